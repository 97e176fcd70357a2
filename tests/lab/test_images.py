# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images, on a real host: what the bridge says and does, held against machined's own list and the files."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.client import Client

from .conftest import GUEST, SOCKET, unavailable
from .host import Host, Unavailable
from .test_authorization import add_socket
from .varlink import busctl, call, error, images

# What is written in an image, and what machined says of one that a machine uses.
WRITTEN = {"hostname", "machine_id", "machine_info", "os_release"}
EBUSY = "System.Error.EBUSY"
ODD_NAME = "image with spaces, Ünïcode and (brackets)"


@pytest.fixture
def image(host: Host) -> Iterator[str]:
    """An image `base`; whatever images a test makes begin with `new` and are gone after it."""
    host.image("base")
    yield "base"
    for name in images(host).keys() - {GUEST, ".host"}:
        busctl(host, "RemoveImage", "s", name)


def test_list_is_what_machined_says(host: Host, image: str) -> None:
    truth = images(host)
    listed = {i["name"]: i for i in call(host, "ListImages", {"all": True})["images"]}
    assert listed.keys() == truth.keys() >= {GUEST, image, ".host"}
    for name, entry in listed.items():
        for key, unknown in (("ctime", 0), ("mtime", 0), ("usage", 2**64 - 1)):
            assert entry.get(key, unknown) == truth[name][key]
        for key in ("type", "read_only", "object_path"):
            assert entry[key] == truth[name][key]
    assert [i["name"] for i in call(host, "ListImages")["images"]] == sorted(truth.keys() - {".host"})


def test_clone_rename_remove(host: Host, image: str) -> None:
    assert call(host, "CloneImage", {"name": image, "dest": "new1"}) == {}
    assert images(host)["new1"]["read_only"] is False
    assert host.run(["cat", "/var/lib/machines/new1/etc/hostname"]).stdout == "base\n"
    assert call(host, "RenameImage", {"name": "new1", "dest": ODD_NAME}) == {}
    assert "new1" not in images(host)
    assert ODD_NAME in images(host)
    assert call(host, "RemoveImage", {"name": ODD_NAME}) == {}
    assert images(host).keys() & {"new1", ODD_NAME} == set()
    assert host.run(["ls", "/var/lib/machines"]).stdout.split() == sorted([GUEST, image])


def test_clone_read_only(host: Host, image: str) -> None:
    assert call(host, "CloneImage", {"name": image, "dest": "new-ro", "read_only": True}) == {}
    (entry,) = (i for i in call(host, "ListImages")["images"] if i["name"] == "new-ro")
    assert entry["read_only"] is images(host)["new-ro"]["read_only"] is True
    # The mark keeps nobody from removing the image, machined takes it off first.
    assert call(host, "RemoveImage", {"name": "new-ro"}) == {}
    assert "new-ro" not in images(host)


def test_name_taken(host: Host, image: str) -> None:
    host.image("new2")
    for method in ("CloneImage", "RenameImage"):
        assert error(host, method, {"name": image, "dest": "new2"}) == ("io.machine1.NameTaken", {"name": "new2"})
    assert host.run(["cat", "/var/lib/machines/new2/etc/hostname"]).stdout == "new2\n"


def test_no_such_image(host: Host) -> None:
    for method, more in (
        ("RemoveImage", {}), ("CloneImage", {"dest": "new3"}), ("RenameImage", {"dest": "new3"}), ("GetImage", {}),
        ("GetImage", {"details": True}), ("MarkImageReadOnly", {"read_only": True}), ("SetImageLimit", {}),
    ):  # fmt: skip
        assert error(host, method, {"name": "nope", **more}) == ("io.machine1.NoSuchImage", {"name": "nope"})


def test_an_image_in_use_is_busy(host: Host) -> None:
    for method, more in (("RemoveImage", {}), ("RenameImage", {"dest": "new4"})):
        name, parameters = error(host, method, {"name": GUEST, **more})
        assert name == "io.machine1.Busy"
        assert parameters["reason"]
    assert GUEST in images(host)


def test_the_hosts_own_image_stays(host: Host) -> None:
    for method, more in (
        ("RemoveImage", {}), ("RenameImage", {"dest": "new6"}), ("MarkImageReadOnly", {"read_only": True}),
        ("SetImageLimit", {"limit": 1000}),
    ):  # fmt: skip
        assert error(host, method, {"name": ".host", **more}) == ("io.machine1.ReadOnly", {"name": ".host"})


# --- which there are ------------------------------------------------------------------------------------------------


def _replies(path: str, method: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Inside a host: all replies to a call with `more`."""
    with Client(path, timeout=60) as client:
        client.send(method, parameters, more=True)
        found = [client.receive()]
        while found[-1].get("continues"):
            found.append(client.receive())
    return found


def replies(host: Host, method: str, parameters: Mapping[str, Any], path: str = SOCKET) -> list[dict[str, Any]]:
    """The parameters of all replies to a call with `more`."""
    found = host.inside(_replies, path, method, parameters)
    assert [reply["error"] for reply in found if "error" in reply] == []
    return [reply.get("parameters") or {} for reply in found]


def names(parameters: Mapping[str, Any]) -> list[str]:
    return [entry["name"] for entry in parameters["images"]]


def test_those_that_are_asked_for_come_alone_and_one_by_one(host: Host, image: str) -> None:
    call(host, "CloneImage", {"name": image, "dest": "new-ro", "read_only": True})
    host.run(["truncate", "--size=1M", "/var/lib/machines/new-disk.raw"])
    assert names(call(host, "ListImages", {"type": "raw"})) == ["new-disk"]
    assert names(call(host, "ListImages", {"read_only": True})) == ["new-ro"]
    assert names(call(host, "ListImages", {"read_only": False, "type": "directory"})) == [image, GUEST]
    everything = [image, GUEST, "new-disk", "new-ro"]
    assert [names(reply) for reply in replies(host, "ListImages", {})] == [[name] for name in everything]
    assert [names(reply) for reply in replies(host, "ListImages", {"type": "block"})] == [[]]
    assert call(host, "GetImage", {"name": image})["image"] == call(host, "ListImages")["images"][0]


# --- details --------------------------------------------------------------------------------------------------------


def test_details_are_what_is_in_the_image(host: Host, image: str) -> None:
    etc = host.path / "var/lib/machines" / image / "etc"
    (etc / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (etc / "os-release").write_text('ID=lab\nNAME="A lab = x"\n')
    (etc / "machine-info").write_text("CHASSIS=vm\n")
    found = call(host, "GetImage", {"name": image, "details": True})["image"]
    assert found.pop("details") == {
        "path": f"/var/lib/machines/{image}",
        "hostname": "base",
        "machine_id": "0123456789abcdef0123456789abcdef",
        "machine_info": ["CHASSIS=vm"],
        "os_release": ["ID=lab", "NAME=A lab = x"],
        "missing": [],
    }
    assert found == call(host, "GetImage", {"name": image})["image"]


def test_details_are_those_that_machined_says(host: Host, image: str) -> None:
    """Of an image that a machine uses it says what it knows, and that it cannot read it now."""
    details = {reply["images"][0]["name"]: reply["images"][0]["details"]
               for reply in replies(host, "ListImages", {"details": True, "all": True})}  # fmt: skip
    assert details.keys() == images(host).keys() == {image, GUEST, ".host"}
    running = details.pop(GUEST)
    assert running["path"] == f"/var/lib/machines/{GUEST}"
    assert {entry["piece"]: entry["error"] for entry in running["missing"]} == dict.fromkeys(WRITTEN, EBUSY)
    for name, found in details.items():
        (release,) = busctl(host, "GetImageOSRelease", "s", name)
        assert found["os_release"] == [f"{key}={value}" for key, value in release.items()]
        assert found.get("hostname", "") == busctl(host, "GetImageHostname", "s", name)[0]
        assert found.get("machine_id", "") == bytes(busctl(host, "GetImageMachineID", "s", name)[0]).hex()
        assert found["missing"] == []
    assert details[".host"]["path"] == "/"


def test_of_a_disk_that_cannot_be_read_the_rest_is_there(host: Host, image: str) -> None:
    """Nothing is on it, so what is written in an image cannot be had, and what machined knows of the file can."""
    host.run(["truncate", "--size=1M", "/var/lib/machines/new-disk.raw"])
    details = call(host, "GetImage", {"name": "new-disk", "details": True})["image"]["details"]
    assert details["path"] == "/var/lib/machines/new-disk.raw"
    assert details["limit"] == 1024 * 1024
    assert {entry["piece"] for entry in details["missing"]} == WRITTEN
    for entry in details["missing"]:
        assert "." in entry["error"]
        assert "Failed to read image metadata" in entry["reason"]
    listed = call(host, "ListImages", {"details": True})["images"]
    whole = [entry["name"] for entry in listed if not entry["details"]["missing"]]
    assert (whole, len(listed)) == ([image], 3)


def test_details_are_for_who_may_have_them(host: Host, image: str) -> None:
    asked: tuple[str, dict[str, str]] = ("io.systemd.InteractiveAuthenticationRequired", {})
    assert error(host, "GetImage", {"name": image, "details": True}, user="nobody") == asked
    assert error(host, "ListImages", {"details": True}, user="nobody") == asked
    assert call(host, "GetImage", {"name": image}, user="nobody")["image"]["name"] == image


def test_a_hidden_image_has_no_details_and_no_reply(fresh_host: Host) -> None:
    """Not even for root. Hidden is like missing."""
    host = fresh_host
    for name in ("seen", "hidden"):
        host.image(name)
    policy = 'methods = ["ListImages", "GetImage", "GetPool", "CleanPool"]\nimages = ["seen"]\n'
    policy += 'details = true\npolkit = "off"\n'
    path = add_socket(host, "narrow", policy)
    for parameters in ({}, {"details": True}, {"all": True}, {"details": True, "all": True, "type": "directory"}):
        assert [names(reply) for reply in replies(host, "ListImages", parameters, path)] == [["seen"]]
        assert names(host.inside(_ask, path, "ListImages", parameters)["parameters"]) == ["seen"]
    for name in ("hidden", "nope", ".host"):
        for details in (False, True):
            reply = host.inside(_ask, path, "GetImage", {"name": name, "details": details})
            assert reply == {"error": "io.machine1.NoSuchImage", "parameters": {"name": name}}
    # About every image, so it is not for who sees some.
    for method, more in (("GetPool", {}), ("CleanPool", {"mode": "all"})):
        assert host.inside(_ask, path, method, more)["error"] == "org.varlink.service.PermissionDenied"
        checked = host.inside(_ask, path, "Check", {"method": method, "parameters": more})["parameters"]
        assert checked["allowed"] is False
        assert "every image" in checked["reason"]
    assert images(host).keys() == {"seen", "hidden", ".host"}


def _ask(path: str, method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Inside a host: a reply as it is."""
    with Client(path) as client:
        client.send(method, parameters)
        return client.receive()


# --- marks, limits and the pool -------------------------------------------------------------------------------------


def test_mark_read_only(host: Host, image: str) -> None:
    file = f"/var/lib/machines/{image}/new"
    for read_only in (True, True, False):
        assert call(host, "MarkImageReadOnly", {"name": image, "read_only": read_only}) == {}
        assert images(host)[image]["read_only"] is read_only
        assert call(host, "GetImage", {"name": image})["image"]["read_only"] is read_only
        assert (host.run(["touch", file], check=False).returncode != 0) is read_only
    assert error(host, "MarkImageReadOnly", {"name": image}) == (
        "org.varlink.service.InvalidParameter", {"parameter": "read_only", "reason": "is required"},
    )  # fmt: skip


def test_limits_need_btrfs(host: Host, image: str) -> None:
    """And where there is none, that is said on all three versions."""
    for limit in ({"limit": 1000}, {}):
        assert error(host, "SetImageLimit", {"name": image} | limit) == (
            "io.machine1.NotSupported", {"reason": "only an image that is a subvolume of btrfs has a limit"},
        )  # fmt: skip
        assert error(host, "SetPoolLimit", limit) == (
            "io.machine1.NotSupported", {"reason": "Quota is only supported on btrfs."},
        )  # fmt: skip
    assert call(host, "GetPool") == {"path": "/var/lib/machines"}
    assert call(host, "GetPool", user="nobody") == {"path": "/var/lib/machines"}


def test_clean_pool(fresh_host: Host) -> None:
    """Hidden images, then all: but the running one's and the host's stay."""
    host = fresh_host
    host.guest("busy")
    for name in (".leftover", ".other", "a", "b"):
        host.image(name)
    call(host, "MarkImageReadOnly", {"name": "b", "read_only": True})
    assert error(host, "CleanPool", {"mode": "all"}) == ("org.varlink.service.ExpectedMore", {})
    assert error(host, "CleanPool", {"mode": "some"})[0] == "org.varlink.service.InvalidParameter"
    assert images(host).keys() == {".leftover", ".other", "a", "b", "busy", ".host"}
    assert replies(host, "CleanPool", {"mode": "hidden"}) == [{"name": ".leftover"}, {"name": ".other"}]
    assert images(host).keys() == {"a", "b", "busy", ".host"}
    assert replies(host, "CleanPool", {"mode": "hidden"}) == [{}]
    assert replies(host, "CleanPool", {"mode": "all"}) == [{"name": "a"}, {"name": "b"}]
    assert images(host).keys() == {"busy", ".host"}
    assert replies(host, "CleanPool", {"mode": "all"}) == [{}]
    assert host.run_in_guest("busy", ["cat", "/etc/hostname"]).stdout == "busy\n"


MOUNT = """
    mknod /dev/loop-control c 10 237
    for i in $(seq 0 63); do mknod "/dev/loop$i" b 7 "$i"; done
    mount -t btrfs -o loop /run/pool.btrfs /var/lib/machines
"""


@pytest.fixture
def btrfs_host(fresh_host: Host, tmp_path: Path) -> Iterator[Host]:
    """A host whose pool is a btrfs without quotas yet, with the image `base`."""
    make = shutil.which("mkfs.btrfs", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if make is None:
        unavailable(Unavailable("there is no mkfs.btrfs: apt-get install btrfs-progs"))
    if "btrfs" not in Path("/proc/filesystems").read_text(encoding="ascii").split():
        subprocess.run(["modprobe", "--quiet", "btrfs"], check=False)
    if "btrfs" not in Path("/proc/filesystems").read_text(encoding="ascii").split():
        unavailable(Unavailable("the kernel has no btrfs"))
    file = tmp_path / "pool.btrfs"
    with file.open("wb") as pool:
        pool.truncate(300 * 1024 * 1024)
    subprocess.run([make, "--quiet", file], check=True)
    shutil.copyfile(file, fresh_host.path / "run/pool.btrfs")
    fresh_host.run(["sh", "-euc", MOUNT])
    fresh_host.image("base")
    yield fresh_host
    fresh_host.run(["umount", "/var/lib/machines"])


def details_of(host: Host, name: str) -> dict[str, Any]:
    found: dict[str, Any] = call(host, "GetImage", {"name": name, "details": True})["image"]["details"]
    return found


def test_limits_on_btrfs(btrfs_host: Host) -> None:
    """What is limited cannot be written."""
    host = btrfs_host
    call(host, "CloneImage", {"name": "base", "dest": "early"})
    assert call(host, "GetImage", {"name": "early"})["image"]["type"] == "subvolume"
    # A directory has no limit of its own; a subvolume has one once there are quotas.
    reasons = {name: error(host, "SetImageLimit", {"name": name, "limit": 10**7}) for name in ("base", "early")}
    assert {name for name, _ in reasons.values()} == {"io.machine1.NotSupported"}
    assert "SetPoolLimit" in reasons["early"][1]["reason"]

    assert call(host, "SetPoolLimit", {"limit": 10**8}) == {}
    pool = call(host, "GetPool")
    assert pool["limit"] == 10**8 == host_property(host, "PoolLimit")
    assert pool["usage"] == host_property(host, "PoolUsage") < 10**8

    call(host, "CloneImage", {"name": "base", "dest": "limited"})
    assert "limit" not in details_of(host, "limited")
    assert call(host, "SetImageLimit", {"name": "limited", "limit": 10**7}) == {}
    assert details_of(host, "limited")["limit"] == 10**7
    write = ["dd", "if=/dev/zero", "of=/var/lib/machines/limited/big", "bs=1M", "count=20", "conv=fsync"]
    done = host.run(write, check=False)
    assert done.returncode != 0
    assert "quota" in done.stderr.lower()
    host.run(["rm", "-f", "/var/lib/machines/limited/big"])
    assert call(host, "SetImageLimit", {"name": "limited"}) == {}
    assert "limit" not in details_of(host, "limited")
    host.run(write)
    host.run(["sync", "--file-system", "/var/lib/machines"])
    found = call(host, "GetImage", {"name": "limited", "details": True})["image"]
    assert found["usage"] >= 20 * 1024 * 1024
    assert found["details"]["usage_exclusive"] >= 20 * 1024 * 1024

    assert call(host, "SetPoolLimit") == {}
    assert "limit" not in call(host, "GetPool")
    removed = {reply["name"]: reply.get("usage") for reply in replies(host, "CleanPool", {"mode": "all"})}
    assert removed.keys() == {"base", "early", "limited"}
    assert (removed["limited"] or 0) >= 20 * 1024 * 1024


def host_property(host: Host, name: str) -> int:
    manager = ["org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager"]
    return int(host.run(["busctl", "get-property", *manager, name]).stdout.split()[1])
