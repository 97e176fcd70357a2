# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images in and out through the real systemd-importd: what comes is what went, and what is begun comes to an end."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.client import Client

from .conftest import GUEST, unavailable
from .host import SUITES, Host, Unavailable
from .test_authorization import add_rule
from .test_machines import eventually
from .varlink import busctl, images

POLICY = """
preset = "manage"
methods = ["ImportTar", "ImportRaw", "ExportTar", "ExportRaw", "PullTar", "PullRaw", "CancelTransfer"]
machines = ["*"]
images = ["new-*", "{guest}"]
accept-fds = {accepts}
pull = ["http://127.0.0.1:8000/*"]
"""
ASK = "io.systemd.InteractiveAuthenticationRequired"
DENIED = "org.varlink.service.PermissionDenied"
INVALID = "org.varlink.service.InvalidParameter"
ARCHIVE = "/var/tmp/archive"
Replies = list[dict[str, Any]]

_numbers = itertools.count(1)


def add_socket(host: Host, accepts: bool = True, unit: str = "AcceptFileDescriptors=yes") -> str:
    """A socket of the template for everybody, its name. Its policy and its unit accept file descriptors or do not."""
    name = f"transfers{next(_numbers)}"
    directory = host.path / "etc/machine1-bridge"
    directory.mkdir(exist_ok=True)
    policy = POLICY.format(guest=GUEST, accepts=str(accepts).lower())
    (directory / f"{name}.toml").write_text(policy)
    drop_in = host.path / f"run/systemd/system/machine1-bridge@{name}.socket.d"
    drop_in.mkdir(parents=True)
    # What 252 and 257 do not know, they only warn of.
    (drop_in / "transfers.conf").write_text(f"[Socket]\nSocketMode=0666\n{unit}\n")
    host.run(["systemctl", "daemon-reload"])
    host.run(["systemctl", "start", f"machine1-bridge@{name}.socket"])
    return name


def remove_socket(host: Host, name: str) -> None:
    host.run(["systemctl", "stop", f"machine1-bridge@{name}.socket", f"machine1-bridge@{name}.service"])
    (host.path / f"etc/machine1-bridge/{name}.toml").unlink()
    host.run(["rm", "-r", f"/run/systemd/system/machine1-bridge@{name}.socket.d"])
    host.run(["systemctl", "daemon-reload"])


@pytest.fixture
def name(host: Host) -> Iterator[str]:
    """A socket's; images that begin with `new-` are gone after the test."""
    name = add_socket(host)
    yield name
    remove_socket(host, name)
    for image in images(host).keys() - {GUEST, ".host"}:
        busctl(host, "RemoveImage", "s", image)
    host.run(["sh", "-c", f"rm -f {ARCHIVE}*"])


def path_of(name: str) -> str:
    return f"/run/machine1/sandbox/{name}"


def send(client: Client, method: str, parameters: Mapping[str, Any], fd: int | None, **flags: bool) -> None:
    call = json.dumps({"method": f"io.machine1.{method}", "parameters": parameters} | flags).encode() + b"\0"
    socket.send_fds(client.socket, [call], [] if fd is None else [fd])


def transfer(
    name: str, method: str, parameters: Mapping[str, Any], file: str = "", flags: int = os.O_RDONLY, more: bool = True
) -> Replies:
    """Inside a host: all replies to a call with `more`, with a file that is opened for it."""
    with Client(path_of(name), timeout=50) as client:
        fd = os.open(file, flags, 0o600) if file else None
        send(client, method, {**parameters, **({"image_fd": 0} if file else {})}, fd, more=more)
        if fd is not None:
            os.close(fd)
        replies = [client.receive()]
        while replies[-1].get("continues"):
            replies.append(client.receive())
        return replies


def error(host: Host, *arguments: Any, user: str = "root") -> tuple[str, dict[str, Any]]:  # noqa: ANN401  as transfer
    """What the call ends in."""
    account = host.account(user)
    reply = host.inside(transfer, *arguments, uid=account.uid, gid=account.gid)[-1]
    return reply["error"], reply["parameters"] or {}


def is_done(replies: Replies) -> bool:
    """Whether each reply is of one transfer, the progress never goes back, and the last one says that all is done."""
    assert "error" not in replies[-1], replies
    parameters = [reply["parameters"] for reply in replies]
    progress = [each.get("progress", 0) for each in parameters]
    last = {"transfer": parameters[0]["transfer"], "progress": 1000, "done": True}
    return (
        len({each["transfer"] for each in parameters}) == 1
        and progress == sorted(progress)
        and parameters[-1] == last
        and not any("done" in each for each in parameters[:-1])
    )


def contents(file: str) -> dict[str, tuple[object, ...]]:
    """Inside a host: what an archive has by path: type, mode, owner, and where a link leads or what is in a file."""
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(file) as archive:
        for member in archive:
            path, data = os.path.normpath(member.name), b""
            if member.islnk():
                # Of the names of a file one has all that is said of it; which one is up to who packs.
                member = archive.getmember(member.linkname)
            if member.isfile():
                opened = archive.extractfile(member)
                assert opened is not None
                data = opened.read()
            found[path] = (
                member.type,
                None if member.issym() else oct(member.mode),  # which 262 leaves out
                member.uid,
                member.gid,
                member.linkname if member.issym() else hashlib.sha256(data).hexdigest(),
                (member.devmajor, member.devminor) if member.isdev() else None,
            )
    return found


def test_an_archive_becomes_an_image_is_cloned_booted_and_exported(host: Host, name: str) -> None:
    tree = f"/var/lib/machines/{GUEST}"
    odd = "mkdir -p etc/odd; ln -sf ../hostname etc/odd/link; echo x >etc/odd/file; chown 1234:4321 etc/odd/file"
    odd += "; chmod 4751 etc/odd/file; ln -f etc/odd/file etc/odd/hard"
    host.run(["sh", "-euc", f"cd {tree}; {odd}"])
    pack = ["tar", "--numeric-owner", "--one-file-system", "--directory", tree, "--create", "--file", ARCHIVE]
    try:
        host.run([*pack, "--exclude=./run/*", "--exclude=./tmp/*", "--exclude=./var/log/*", "."])
    finally:
        host.run(["rm", "-r", f"{tree}/etc/odd"])
    assert is_done(host.inside(transfer, name, "ImportTar", {"name": "new-1"}, ARCHIVE))
    assert images(host)["new-1"]["type"] == "directory"
    assert host.inside(clone, name) == {}
    unit = ["systemd-run", "--quiet", "--collect", "--unit=new-2", "--slice=machine.slice", "--property=Type=notify"]
    unit += ["--property=KillMode=mixed", "--property=Delegate=yes", "systemd-nspawn", "--quiet", "--boot"]
    unit += ["--keep-unit", "--settings=no", "--notify-ready=yes", "--machine=new-2"]
    host.run(unit)
    try:
        assert host.run_in_guest("new-2", ["cat", "/etc/odd/link"]).stdout == f"{GUEST}\n"
    finally:
        host.run(["systemctl", "stop", "new-2.service"])
    exported = f"{ARCHIVE}.out"
    write = os.O_WRONLY | os.O_CREAT
    assert is_done(host.inside(transfer, name, "ExportTar", {"name": "new-1"}, exported, write))
    before, after = host.inside(contents, ARCHIVE), host.inside(contents, exported)
    assert len(before) > 3000
    assert before["etc/odd/file"][1:4] == ("0o4751", 1234, 4321)
    assert before["etc/odd/link"][4] == "../hostname"
    assert before == after
    packed = f"{ARCHIVE}.packed.gz"
    assert is_done(host.inside(transfer, name, "ExportTar", {"name": "new-1", "format": "gzip"}, packed, write))
    host.run(["gzip", "--decompress", packed])
    assert host.inside(contents, packed.removesuffix(".gz")) == after


def clone(name: str) -> dict[str, Any]:
    with Client(path_of(name), timeout=50) as client:
        return client.call("CloneImage", {"name": "new-1", "dest": "new-2"})


def test_a_disk_image_comes_back_as_it_went(host: Host, name: str) -> None:
    host.run(["sh", "-euc", f"head -c 3000000 /dev/urandom >{ARCHIVE}; truncate -s 5M {ARCHIVE}"])
    assert is_done(host.inside(transfer, name, "ImportRaw", {"name": "new-raw", "read_only": True}, ARCHIVE))
    entry = images(host)["new-raw"]
    assert (entry["type"], entry["read_only"]) == ("raw", True)
    write = os.O_RDWR | os.O_CREAT
    assert is_done(host.inside(transfer, name, "ExportRaw", {"name": "new-raw"}, f"{ARCHIVE}.out", write))
    host.run(["cmp", ARCHIVE, f"{ARCHIVE}.out"])
    (refused, parameters) = error(host, name, "ExportTar", {"name": "new-raw"}, f"{ARCHIVE}.out", write)
    assert (refused, parameters["parameter"]) == (INVALID, "name")


def test_progress_is_told_while_it_goes_on(host: Host, name: str) -> None:
    host.run(["sh", "-euc", "head -c 150000000 /dev/urandom >/var/lib/machines/new-raw.raw"])
    parameters = {"name": "new-raw", "format": "bzip2"}
    replies = host.inside(transfer, name, "ExportRaw", parameters, f"{ARCHIVE}.out", os.O_WRONLY | os.O_CREAT)
    assert is_done(replies)
    between = {reply["parameters"].get("progress") for reply in replies[1:-1]}
    if SUITES[host.suite] == 252:
        # Its importd ignores what its own export says: "Got invalid percent value".
        assert between == set()
        return
    assert len(between) > 1
    assert all(0 <= progress <= 1000 for progress in between)


def test_a_name_that_is_taken_is_replaced_by_force_alone(host: Host, name: str) -> None:
    host.image("new-1")
    host.run(["sh", "-euc", f"cd /var/lib/machines/new-1; echo other >etc/hostname; tar -cf {ARCHIVE} ."])
    host.run(["sh", "-euc", "echo before >/var/lib/machines/new-1/etc/hostname"])
    taken = ("io.machine1.NameTaken", {"name": "new-1"})
    assert error(host, name, "ImportTar", {"name": "new-1"}, ARCHIVE) == taken
    assert host.run(["cat", "/var/lib/machines/new-1/etc/hostname"]).stdout == "before\n"
    assert is_done(host.inside(transfer, name, "ImportTar", {"name": "new-1", "force": True}, ARCHIVE))
    assert host.run(["cat", "/var/lib/machines/new-1/etc/hostname"]).stdout == "other\n"


def test_varlinkctl_sends_a_file(host: Host, name: str) -> None:
    """From 258 on."""
    if SUITES[host.suite] < 258:
        return
    host.run(["sh", "-euc", f"mkdir -p /run/tree; echo there >/run/tree/file; tar -C /run/tree -cf {ARCHIVE} ."])
    parameters = json.dumps({"name": "new-1", "image_fd": 0})
    script = f"varlinkctl --more --push-fd=3 call {path_of(name)} io.machine1.$1 '{parameters}'"
    assert '"done":true' in host.run(["sh", "-euc", f"{script} 3<{ARCHIVE}", "sh", "ImportTar"]).stdout
    assert '"done":true' in host.run(["sh", "-euc", f"{script} 3>{ARCHIVE}.out", "sh", "ExportTar"]).stdout
    assert host.inside(contents, f"{ARCHIVE}.out") == host.inside(contents, ARCHIVE)


def test_what_is_not_shown_is_not_there_and_stays(host: Host, name: str) -> None:
    host.image("hidden")
    host.run(["sh", "-euc", f"tar -C /var/lib/machines/hidden -cf {ARCHIVE} ."])
    for image in ("hidden", "missing"):
        for force in (False, True):
            parameters = {"name": image, "force": force}
            assert error(host, name, "ImportTar", parameters, ARCHIVE) == (DENIED, {})
            pull = parameters | {"url": "http://127.0.0.1:8000/x"}
            assert error(host, name, "PullTar", pull) == (DENIED, {})
        missing = ("io.machine1.NoSuchImage", {"name": image})
        assert error(host, name, "ExportTar", {"name": image}, f"{ARCHIVE}.out", os.O_WRONLY | os.O_CREAT) == missing
    assert host.run(["cat", "/var/lib/machines/hidden/etc/hostname"]).stdout == "hidden\n"
    assert host.run(["stat", "--format=%s", f"{ARCHIVE}.out"]).stdout == "0\n"


def test_an_archive_makes_no_image_of_the_host(host: Host, name: str) -> None:
    """To systemd 256 and newer, what new-root.v/new-root_1 is a link to is the image new-root."""
    make = f"mkdir {ARCHIVE}.d; ln -s / {ARCHIVE}.d/new-root_1; tar -C {ARCHIVE}.d -cf {ARCHIVE} .; rm -r {ARCHIVE}.d"
    host.run(["sh", "-euc", make])
    for image in ("new-root.v", "new-root.raw.v", "new-root.mstack"):
        assert error(host, name, "ImportTar", {"name": image}, ARCHIVE) == (DENIED, {})
    assert not {"new-root", "new-root.v", "new-root.mstack"} & images(host).keys()


@pytest.mark.parametrize(
    ("file", "flags"),
    [
        ("/var/tmp", os.O_RDONLY),
        ("/dev/null", os.O_RDONLY),
        ("/etc/hostname", os.O_PATH),
        ("/etc/hostname", os.O_WRONLY),
        ("/etc/hostname", os.O_RDWR | os.O_APPEND),
        ("/etc/hostname", os.O_RDONLY | os.O_NONBLOCK),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused(host: Host, name: str, file: str, flags: int) -> None:
    refused, parameters = error(host, name, "ImportTar", {"name": "new-1"}, file, flags)
    assert (refused, parameters["parameter"]) == (INVALID, "image_fd")
    assert "new-1" not in images(host)


def test_what_is_no_archive_fails_and_leaves_nothing(host: Host, name: str) -> None:
    host.run(["sh", "-euc", f"head -c 100000 /dev/urandom >{ARCHIVE}"])
    failed, parameters = error(host, name, "ImportTar", {"name": "new-1"}, ARCHIVE)
    assert failed == "io.machine1.TransferFailed"
    assert "tar" in parameters["reason"]
    assert "new-1" not in images(host)


def hanging(name: str, others: str) -> tuple[Replies, list[object], Replies]:
    """Inside a host: an archive that does not come, whose transfer is looked at and canceled by somebody else.

    `others` is a socket that does not accept file descriptors, which here makes no difference.
    """
    reader, writer = os.pipe()
    with Client(path_of(name), timeout=50) as client, Client(path_of(others)) as other:
        send(client, "ImportTar", {"name": "new-hang", "image_fd": 0}, reader, more=True)
        os.close(reader)
        begun = [client.receive()]
        number = begun[0]["parameters"]["transfer"]
        seen: list[object] = [other.call("ListTransfers")]
        seen.append(other.error("CancelTransfer", {"transfer": number + 1}))
        seen.append(other.call("CancelTransfer", {"transfer": number}))
        end = [client.receive()]
        seen.append(other.error("CancelTransfer", {"transfer": number}))
        seen.append(other.call("ListTransfers"))
    os.close(writer)
    return begun, seen, end


def test_a_transfer_that_hangs_is_canceled(host: Host, name: str) -> None:
    others = add_socket(host, accepts=False)
    begun, seen, end = host.inside(hanging, name, others)
    remove_socket(host, others)
    number = begun[0]["parameters"]["transfer"]
    assert begun == [{"parameters": {"transfer": number}, "continues": True}]
    entry = {"transfer": number, "name": "new-hang", "type": "import_tar"}
    assert seen == [
        {"transfers": [entry]},
        ("io.machine1.NoSuchTransfer", {"transfer": number + 1}),
        {},
        ("io.machine1.NoSuchTransfer", {"transfer": number}),
        {"transfers": []},
    ]
    assert end == [{"error": "io.machine1.TransferCanceled", "parameters": {"transfer": number}}]
    assert "new-hang" not in images(host)


def left_alone(name: str) -> int:
    """Inside a host: whose transfer goes on, while the archive that it waits for has yet to come; its number."""
    fifo = f"{ARCHIVE}.fifo"
    os.mkfifo(fifo)
    reader, keeper = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), os.open(fifo, os.O_WRONLY)
    os.set_blocking(reader, True)
    with Client(path_of(name)) as client:
        send(client, "ImportTar", {"name": "new-left", "image_fd": 0}, reader, more=True)
        number: int = client.receive()["parameters"]["transfer"]
    os.close(reader)
    with open(keeper, "wb") as rest, open(ARCHIVE, "rb") as archive:
        rest.write(archive.read())
    return number


def test_a_transfer_goes_on_when_its_client_has_left(host: Host, name: str) -> None:
    host.run(["sh", "-euc", f"mkdir -p /run/tree; echo there >/run/tree/file; tar -C /run/tree -cf {ARCHIVE} ."])
    host.inside(left_alone, name)
    assert eventually(lambda: "new-left" in images(host))
    assert host.run(["cat", "/var/lib/machines/new-left/file"]).stdout == "there\n"


def importd_ends(name: str) -> Replies:
    reader, writer = os.pipe()
    with Client(path_of(name), timeout=50) as client:
        send(client, "ImportTar", {"name": "new-hang", "image_fd": 0}, reader, more=True)
        os.close(reader)
        replies = [client.receive()]
        os.system("systemctl kill --signal=KILL systemd-importd.service")  # noqa: S605  inside a host of the lab
        replies.append(client.receive())
    os.close(writer)
    return replies


def test_who_follows_is_told_that_importd_ended(host: Host, name: str) -> None:
    _, end = host.inside(importd_ends, name)
    assert end["error"] == "io.machine1.Unavailable"
    assert "systemd-importd ended" in end["parameters"]["reason"]
    state = ["systemctl", "show", "--property=ActiveState", "--value", "systemd-importd.service"]
    assert eventually(lambda: host.run(state).stdout.strip() in ("failed", "inactive"))
    (listed,) = host.inside(transfer, name, "ListTransfers", {}, "", os.O_RDONLY, False)
    assert listed == {"parameters": {"transfers": []}}


def test_the_service_keeps_no_descriptor(host: Host, name: str) -> None:
    """Whatever became of the call that it came with, and whether the client stayed."""
    host.run(["sh", "-euc", f"mkdir -p /run/tree; tar -C /run/tree -cf {ARCHIVE} ."])
    host.inside(transfer, name, "ListTransfers", {}, "", os.O_RDONLY, False)
    host.inside(transfer, name, "ImportTar", {"name": "new-0"}, ARCHIVE)
    show = ["systemctl", "show", "--property=MainPID", "--value", f"machine1-bridge@{name}.service"]
    pid = int(host.run(show).stdout)
    before = sorted(host.open_files(pid).values())
    nobody = host.account("nobody")
    for number in range(3):
        host.inside(transfer, name, "ImportTar", {"name": f"new-{number + 1}"}, ARCHIVE)
        host.inside(transfer, name, "ImportTar", {"name": "new-1"}, ARCHIVE, os.O_RDONLY, False)
        host.inside(transfer, name, "ListMachines", {}, ARCHIVE, os.O_RDONLY, False)
        host.inside(transfer, name, "ImportTar", {"name": "hidden"}, "/etc/hostname", os.O_RDONLY, False)
        host.inside(hanging, name, name)
        error(host, name, "ImportTar", {"name": "new-9"}, "/etc/hostname", user="nobody")
    assert nobody.uid != 0

    def kinds() -> list[str]:
        return sorted(what.partition(":[")[0] for what in host.open_files(pid).values())

    def wanted() -> bool:
        # nobody's question to polkit opened a connection to the bus.
        return len(kinds()) <= len(before) + 1 and not any("hostname" in kind or ARCHIVE in kind for kind in kinds())

    assert eventually(wanted), (kinds(), before)


def test_a_socket_that_does_not_accept_descriptors(host: Host) -> None:
    """They are lost on the way, and what needs one is refused; so is any unit's, from 258 on, that says nothing."""
    name = add_socket(host, accepts=False)
    try:
        assert error(host, name, "ImportTar", {"name": "new-1"}, "/etc/hostname") == (DENIED, {})
        refused = host.inside(check, name)
        assert refused["reason"] == "image_fd is a file descriptor, which the policy does not accept"
        reply = host.inside(transfer, name, "ListImages", {}, "", os.O_RDONLY, False)
        assert reply[0]["parameters"]["images"]
    finally:
        remove_socket(host, name)


def check(name: str) -> dict[str, Any]:
    with Client(path_of(name)) as client:
        return client.call("Check", {"method": "ImportTar", "parameters": {"name": "new-1", "image_fd": 0}})


# --- who may ---------------------------------------------------------------------------------------------------------

RULE = """
polkit.addRule(function(action, subject) {
    if (subject.user == "www-data" && action.lookup("new_name") == "new-may" &&
        ["io.machine1.import-images", "io.machine1.pull-images"].indexOf(action.id) >= 0)
        return polkit.Result.YES;
    return polkit.Result.NOT_HANDLED;
});
"""


def test_polkit_is_asked_about_each_kind(fresh_host: Host) -> None:
    host = fresh_host
    name = add_socket(host)
    add_rule(host, RULE)
    host.image(GUEST)
    host.run(["sh", "-euc", f"tar -C /var/lib/machines/{GUEST} -cf {ARCHIVE} .; chmod 666 {ARCHIVE}"])
    url = {"url": "http://127.0.0.1:8000/x", "verify": "no"}
    for user, may in (("nobody", False), ("www-data", True)):
        for image in ("new-may", "new-not"):
            account = host.account(user)
            imported = ["ImportTar", {"name": image, "force": True}, ARCHIVE]
            (reply, *_) = host.inside(transfer, name, *imported, uid=account.uid, gid=account.gid)
            assert reply.get("error") == (None if may and image == "new-may" else ASK)
            pulled = ["PullRaw", {"name": image, "force": True} | url]
            (reply, *_) = host.inside(transfer, name, *pulled, uid=account.uid, gid=account.gid)
            assert reply.get("error") == (None if may and image == "new-may" else ASK)
        assert error(host, name, "ExportTar", {"name": GUEST}, ARCHIVE, os.O_WRONLY, user=user)[0] == ASK
        assert error(host, name, "CancelTransfer", {"transfer": 1}, user=user)[0] == ASK
    assert {"new-may", GUEST} <= images(host).keys()
    assert "new-not" not in images(host)


# --- from a server ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pulling_host(suite: str) -> Iterator[Host]:
    kind = "pull" if SUITES[suite] >= 260 else "plain"
    try:
        host = Host.boot(suite, f"{suite}-pull-{os.getpid()}", kind=kind)
    except Unavailable as reason:
        unavailable(reason)
    with host:
        host.install()
        yield host


def pull(name: str, method: str, parameters: Mapping[str, Any], patience: float) -> Replies:
    """Inside a host: as `transfer`, but one that hangs is canceled, and begun again a few times.

    systemd-pull of 252 sometimes waits for ever, when all that it asked for has come.
    """
    for _ in range(8):
        with Client(path_of(name), timeout=patience) as client:
            send(client, method, parameters, None, more=True)
            replies = [client.receive()]
            try:
                while replies[-1].get("continues"):
                    replies.append(client.receive())
            except TimeoutError:
                with Client(path_of(name)) as other:
                    other.call("CancelTransfer", {"transfer": replies[0]["parameters"]["transfer"]})
                canceled = client.receive()
                assert canceled["error"] == "io.machine1.TransferCanceled"
            else:
                return replies
    raise AssertionError("it hangs each time")


def test_an_image_is_pulled_from_where_the_policy_says(pulling_host: Host) -> None:
    host = pulling_host
    name = add_socket(host)
    host.run(["mkdir", "-p", "/srv/images"])
    script = "cd /srv/images; head -c 2000000 /dev/urandom >disk.raw; mkdir tree; echo pulled >tree/file"
    host.run(["sh", "-euc", f"{script}; tar -C tree -cf tree.tar .; sha256sum disk.raw tree.tar >SHA256SUMS"])
    server = ["python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", "/srv/images", "8000"]
    host.run(["systemd-run", "--quiet", "--unit=server", *server])
    at = ["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 8000))"]
    assert eventually(lambda: host.run(at, check=False).returncode == 0)
    base = "http://127.0.0.1:8000"
    tar, raw = {"url": f"{base}/tree.tar"}, {"url": f"{base}/./disk.raw"}
    assert error(host, name, "PullRaw", {"name": "new-raw"} | raw)[1]["parameter"] == "url"
    raw["url"] = f"{base}/disk.raw"
    patience = 5 if SUITES[host.suite] == 252 else 50
    assert is_done(host.inside(pull, name, "PullTar", {"name": "new-tar", "verify": "checksum"} | tar, patience))
    assert host.run(["cat", "/var/lib/machines/new-tar/file"]).stdout == "pulled\n"
    assert is_done(host.inside(pull, name, "PullRaw", {"name": "new-raw", "verify": "no"} | raw, patience))
    host.run(["cmp", "/srv/images/disk.raw", "/var/lib/machines/new-raw.raw"])
    # Nobody has signed them.
    (*_, failed) = host.inside(pull, name, "PullTar", {"name": "new-signed"} | tar, patience)
    assert failed["error"] == "io.machine1.TransferFailed"
    assert failed["parameters"]["reason"]
    host.run(["sh", "-euc", "echo x >>/srv/images/tree.tar"])
    (*_, failed) = host.inside(pull, name, "PullTar", {"name": "new-other", "verify": "checksum"} | tar, patience)
    assert failed["error"] == "io.machine1.TransferFailed"
    for url in ("http://127.0.0.1:8001/tree.tar", "http://localhost:8000/tree.tar", "https://127.0.0.1:8000/tree.tar"):
        assert error(host, name, "PullTar", {"name": "new-2", "url": url}) == (DENIED, {})
    assert images(host).keys() >= {"new-tar", "new-raw"}
    assert not images(host).keys() & {"new-signed", "new-other", "new-2"}
