# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images, on a real host: what the bridge says and does, held against machined's own list and the files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .conftest import GUEST
from .host import Host
from .varlink import busctl, call, error, images

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
    for method, more in (("RemoveImage", {}), ("CloneImage", {"dest": "new3"}), ("RenameImage", {"dest": "new3"})):
        assert error(host, method, {"name": "nope", **more}) == ("io.machine1.NoSuchImage", {"name": "nope"})


def test_an_image_in_use_is_busy(host: Host) -> None:
    for method, more in (("RemoveImage", {}), ("RenameImage", {"dest": "new4"})):
        name, parameters = error(host, method, {"name": GUEST, **more})
        assert name == "io.machine1.Busy"
        assert parameters["reason"]
    assert GUEST in images(host)


def test_the_hosts_own_image_stays(host: Host) -> None:
    for method, more in (("RemoveImage", {}), ("RenameImage", {"dest": "new6"})):
        assert error(host, method, {"name": ".host", **more}) == ("io.machine1.ReadOnly", {"name": ".host"})
