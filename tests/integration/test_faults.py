# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a real machined and a real bus do but rarely: fail oddly, hang, vanish, lie. After each the next call works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from jeepney import HeaderFields

from bridge import methods
from tests.client import Client

from .conftest import REPOSITORY, Bridge, Patched, Terminal, eventually, open_fds
from .fake_machined import Bus, FakeMachined

NOBODY = 65534
DENIED: tuple[str, dict[str, str]] = ("org.varlink.service.PermissionDenied", {})


def works(client: Client, machined: FakeMachined) -> None:
    """The next call is answered, and rightly."""
    machined.returns("ListMachines", "a(ssso)", [("m", "vm", "s", "/m")])
    assert client.call("GetMachine", {"name": "m"})["machine"]["class"] == "vm"


@pytest.mark.parametrize(
    ("dbus_error", "expected"),
    [
        ("org.freedesktop.machine1.NoSuchImage", ("io.machine1.NoSuchImage", {"name": "i"})),
        ("org.freedesktop.DBus.Error.FileExists", ("io.machine1.NameTaken", {"name": "j"})),
        ("System.Error.EEXIST", ("io.machine1.NameTaken", {"name": "j"})),
        ("System.Error.EROFS", ("io.machine1.ReadOnly", {"name": "i"})),
        ("System.Error.EBUSY", ("io.machine1.Busy", {"reason": "as it says"})),
        ("System.Error.EOPNOTSUPP", ("io.machine1.NotSupported", {"reason": "as it says"})),
        ("org.freedesktop.DBus.Error.NotSupported", ("io.machine1.NotSupported", {"reason": "as it says"})),
        ("org.freedesktop.DBus.Error.LimitsExceeded", ("io.machine1.TooManyOperations", {})),
        ("org.freedesktop.DBus.Error.Timeout", ("io.machine1.Timeout", {})),
        ("org.freedesktop.DBus.Error.Spawn.ChildExited", ("io.machine1.Unavailable", {"reason": "as it says"})),
        ("org.freedesktop.DBus.Error.AccessDenied", DENIED),
        ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", DENIED),
        (
            "org.example.NeverSeen",
            ("io.machine1.Failed", {"dbus_error": "org.example.NeverSeen", "message": "as it says"}),
        ),
        # An error about an object that the call does not have stays what it is.
        (
            "org.freedesktop.machine1.NoSuchMachine",
            ("io.machine1.Failed", {"dbus_error": "org.freedesktop.machine1.NoSuchMachine", "message": "as it says"}),
        ),
    ],
)
def test_each_dbus_error_has_its_varlink_error(
    client: Client, machined: FakeMachined, dbus_error: str, expected: tuple[str, dict[str, str]]
) -> None:
    machined.fails("CloneImage", dbus_error, "as it says")
    assert client.error("CloneImage", {"name": "i", "dest": "j"}) == expected
    works(client, machined)


def test_no_machined_on_the_bus(client: Client, bus: Bus) -> None:
    name, parameters = client.error("ListMachines")
    assert name == "io.machine1.Unavailable"
    assert "org.freedesktop.machine1" in parameters["reason"]
    machined = FakeMachined(bus)
    works(client, machined)
    machined.stop()


def test_machined_vanishes_in_the_middle_of_a_call_and_comes_back(
    bridge: Bridge, machined: FakeMachined, bus: Bus
) -> None:
    machined.hangs("CopyToMachine")
    client, other = bridge.client(), bridge.client()
    client.send("CopyToMachine", {"name": "m", "src": "/a"})
    other.send("CopyToMachine", {"name": "m", "src": "/b"})
    machined.wait_for(2)
    machined.stop()
    assert client.receive()["error"] == "io.machine1.Unavailable"
    assert other.receive()["error"] == "io.machine1.Unavailable"
    back = FakeMachined(bus)
    works(client, back)
    assert [member for member, _ in back.calls] == ["ListMachines"], "nothing is done a second time"
    back.stop()


def test_no_bus(tmp_path: Path) -> None:
    bridge = Bridge(tmp_path, f"unix:path={tmp_path}/nothing")
    client = bridge.client()
    name, parameters = client.error("ListMachines")
    assert name == "io.machine1.Unavailable"
    assert "no system bus" in parameters["reason"]
    bus = Bus(tmp_path)
    bridge.stop()
    bridge = Bridge(tmp_path, bus.address)
    client = bridge.client()
    assert client.error("ListMachines")[0] == "io.machine1.Unavailable"
    bus.start()
    machined = FakeMachined(bus)
    works(client, machined)
    bridge.stop()
    machined.stop()
    bus.stop()


def test_the_bus_is_restarted(bridge: Bridge, bus: Bus, machined: FakeMachined) -> None:
    client, waiting = bridge.client(), bridge.client()
    works(client, machined)
    machined.hangs("CopyToMachine")
    waiting.send("CopyToMachine", {"name": "m", "src": "/a"})
    machined.wait_for(2)
    bus.stop()
    assert waiting.receive()["error"] == "io.machine1.Unavailable"
    assert client.error("ListMachines")[0] == "io.machine1.Unavailable"
    bus.start()
    back = FakeMachined(bus)
    works(client, back)
    back.stop()


NAMED: dict[str, object] = {"name": "m"}
COPY = NAMED | {"src": "/a"}
RENAME = NAMED | {"dest": "n"}

# Each method with parameters, the member of machined that it calls, and the signature of the right answer.
METHODS: dict[str, tuple[dict[str, object], str, str]] = {
    "ListMachines": ({}, "ListMachines", "a(ssso)"),
    "GetMachine": (NAMED, "ListMachines", "a(ssso)"),
    "GetMachineByPID": ({"pid": 7}, "GetMachineByPID", "o"),
    "PoweroffMachine": (NAMED, "KillMachine", ""),
    "RebootMachine": (NAMED, "KillMachine", ""),
    "StartMachine": (NAMED, "ListImages", "a(ssbttto)"),
    "UnregisterMachine": (NAMED, "UnregisterMachine", ""),
    "OpenMachineLogin": (NAMED, "OpenMachineLogin", "hs"),
    "OpenMachinePTY": (NAMED, "OpenMachinePTY", "hs"),
    "OpenMachineRootDirectory": (NAMED, "OpenMachineRootDirectory", "h"),
    "BindMountMachine": (COPY, "BindMountMachine", ""),
    "MapFromMachineUser": (NAMED | {"uid": 7}, "MapFromMachineUser", "u"),
    "MapFromMachineGroup": (NAMED | {"gid": 7}, "MapFromMachineGroup", "u"),
    "MapToMachineUser": ({"uid": 7}, "MapToMachineUser", "sou"),
    "MapToMachineGroup": ({"gid": 7}, "MapToMachineGroup", "sou"),
    "TerminateMachine": (NAMED, "TerminateMachine", ""),
    "KillMachine": (NAMED, "KillMachine", ""),
    "OpenMachineShell": (NAMED, "OpenMachineShell", "hs"),
    "CopyFromMachine": (COPY, "CopyFromMachine", ""),
    "CopyToMachine": (COPY, "CopyToMachine", ""),
    "ListImages": ({}, "ListImages", "a(ssbttto)"),
    "GetImage": (NAMED, "ListImages", "a(ssbttto)"),
    "MarkImageReadOnly": (NAMED | {"read_only": True}, "MarkImageReadOnly", ""),
    "SetImageLimit": (NAMED, "SetImageLimit", ""),
    "GetPool": ({}, "GetAll", "a{sv}"),
    "SetPoolLimit": ({}, "SetPoolLimit", ""),
    "CleanPool": ({"mode": "all"}, "CleanPool", "a(st)"),
    "RemoveImage": (NAMED, "RemoveImage", ""),
    "CloneImage": (RENAME, "CloneImage", ""),
    "RenameImage": (RENAME, "RenameImage", ""),
}
# The same values in other types, more of them, fewer, none.
WRONG: list[tuple[str, tuple[object, ...]]] = [
    ("", ()),
    ("s", ("text",)),
    ("u", (5,)),
    ("o", ("/x",)),
    ("as", ([],)),
    ("a(sss)", ([("m", "vm", "s")],)),
    ("a(ssst)", ([("m", "vm", "s", 1)],)),
    ("a(ssso)s", ([], "more")),
    ("a(ssbttt)", ([],)),
    ("v", (("s", "variant"),)),
    ("a{sv}", ({},)),
    ("sh", ("/dev/pts/0", 1)),
    ("hss", (1, "/dev/pts/0", "more")),
]
WITHOUT_DEADLINE = ("CopyFromMachine", "CopyToMachine", "RemoveImage", "CloneImage", "CleanPool")


def test_the_tables_have_each_method() -> None:
    others = {"WatchMachines", "WatchImages", "WaitMachine"}  # they try again: tests/unit/test_watch.py
    # Not machined's: tests/unit/test_importd.py, tests/unit/test_transfers.py.
    others |= {f"{way}{kind}" for way in ("Import", "Export", "Pull") for kind in ("Tar", "Raw")}
    others |= {"ListTransfers", "CancelTransfer"}
    assert {f"io.machine1.{method}" for method in METHODS.keys() | others} == methods.METHODS.keys()


def test_no_method_takes_an_answer_of_the_wrong_type(client: Client, machined: FakeMachined) -> None:
    for method, (parameters, member, right) in METHODS.items():
        for signature, body in WRONG:
            if signature == right:
                continue
            machined.returns(member, signature, *body)
            client.send(method, parameters, more=methods.METHODS[f"io.machine1.{method}"].streams)
            reply = client.receive()
            assert reply.get("error") == "io.machine1.Failed", (method, signature)
            details = reply["parameters"]
            assert details["dbus_error"] == "org.freedesktop.DBus.Error.InconsistentMessage", (method, signature)
            assert client.fds == []
        works(client, machined)


def test_what_a_newer_machined_may_say(client: Client, machined: FakeMachined) -> None:
    """Values of enumerations that the interface does not know are left out, and what is known stays."""
    odd = ["", "vm ", "VM", "host\n", "capsule", "x" * 70_000, "ünknown", '"]}']
    machined.returns("ListMachines", "a(ssso)", [(f"m{n}", kind, "s", "/m") for n, kind in enumerate(odd)])
    assert [machine.get("class") for machine in client.call("ListMachines")["machines"]] == [None] * len(odd)
    machined.returns("ListImages", "a(ssbttto)", [(f"i{n}", kind, False, 1, 1, 1, "/i") for n, kind in enumerate(odd)])
    images = client.call("ListImages")["images"]
    assert [image.get("type") for image in images] == [None] * len(odd)
    assert [image["name"] for image in images] == [f"i{n}" for n in range(len(odd))]
    works(client, machined)


def test_an_answer_that_comes_late_is_nobodys(
    tmp_path: Path, bus: Bus, machined: FakeMachined, terminal: Terminal
) -> None:
    """Of each method that has a deadline: neither its own client's, which was told, nor the next one's."""
    bridge = ShortDeadline(tmp_path, bus.address)
    # Two methods are KillMachine with another signal.
    late = [method for method in METHODS if method not in (*WITHOUT_DEADLINE, "PoweroffMachine", "RebootMachine")]
    clients = [bridge.client() for _ in late]
    for method, client in zip(late, clients, strict=True):
        machined.hangs(METHODS[method][1])
        client.send(method, METHODS[method][0])
    for client in clients:
        assert client.receive()["error"] == "io.machine1.Timeout"
    answers: dict[str, tuple[object, ...]] = {
        "": (),
        "hs": (terminal.theirs, "/dev/pts/0"),
        "h": (terminal.theirs,),
        "o": ("/x",),
        "u": (7,),
        "sou": ("x", "/x", 7),
        "a(ssso)": ([("x", "container", "s", "/x")],),
        "a(ssbttto)": ([],),
        "a{sv}": ({},),
    }
    signatures = {member: signature for _, member, signature in METHODS.values()}
    for call in machined.unanswered.copy():
        signature = signatures[call.header.fields[HeaderFields.member]]
        machined.answer(0, signature, *answers[signature])
    for client in clients:
        works(client, machined)
    assert terminal.is_closed()
    guarded = [member for member, _ in machined.calls if not member.startswith("List")]
    members = {METHODS[method][1] for method in late}
    assert sorted(guarded) == sorted(member for member in members if not member.startswith("List")), "none twice"
    bridge.stop()


def test_file_descriptors_in_a_reply_that_should_have_none(
    bridge: Bridge, client: Client, machined: FakeMachined
) -> None:
    works(client, machined)
    machined.returns("TerminateMachine")
    machined.returns("RemoveImage")
    client.call("TerminateMachine", {"name": "m"})
    client.call("RemoveImage", {"name": "i"})
    before = len(open_fds(bridge.process.pid))
    ours, theirs = os.pipe()
    machined.returns("ListMachines", "h", theirs)
    assert client.error("ListMachines")[0] == "io.machine1.Failed"
    machined.returns("OpenMachineShell", "hhs", theirs, theirs, "/dev/pts/0")
    assert client.error("OpenMachineShell", {"name": "m"})[0] == "io.machine1.Failed"
    works(client, machined)
    os.close(theirs)
    assert os.read(ours, 1) == b""
    os.close(ours)
    assert len(open_fds(bridge.process.pid)) == before


def test_signals_that_nobody_asked_for_disturb_nobody(bridge: Bridge, machined: FakeMachined) -> None:
    """Anybody on the bus may send them, with file descriptors, large, or with a body that cannot be decoded."""
    client, other = bridge.client(), bridge.client()
    works(other, machined)
    machined.hangs("CopyToMachine")
    client.send("CopyToMachine", {"name": "m", "src": "/a"})
    machined.wait_for(2)
    before = len(open_fds(bridge.process.pid))
    ours, theirs = os.pipe()
    machined.signal_callers("h", theirs)
    machined.signal_callers("as", ["x" * 1000] * 1000)
    os.close(theirs)
    assert os.read(ours, 1) == b""
    os.close(ours)
    works(other, machined)
    machined.answer()
    assert client.reply() == {}
    assert len(open_fds(bridge.process.pid)) == before


def test_a_shell_without_its_file_descriptor(client: Client, machined: FakeMachined) -> None:
    machined.returns("OpenMachineShell", "s", "/dev/pts/0")
    assert client.error("OpenMachineShell", {"name": "m"})[0] == "io.machine1.Failed"
    assert client.fds == []
    works(client, machined)


def test_a_deadline_ends_the_wait_and_a_late_shell_is_closed(tmp_path: Path, bus: Bus, machined: FakeMachined) -> None:
    """With a deadline of half a second, so that the test does not take half a minute."""
    bridge = ShortDeadline(tmp_path, bus.address)
    client = bridge.client()
    machined.hangs("OpenMachineShell")
    assert client.error("OpenMachineShell", {"name": "m"}) == ("io.machine1.Timeout", {})
    ours, theirs = os.pipe()
    machined.answer(0, "hs", theirs, "/dev/pts/0")
    os.close(theirs)
    assert os.read(ours, 1) == b"", "the shell that came late is still open"
    os.close(ours)
    works(client, machined)
    bridge.stop()


@pytest.mark.parametrize("method", ["CopyFromMachine", "CopyToMachine", "CloneImage", "RemoveImage"])
def test_what_may_take_long_has_no_deadline(
    tmp_path: Path, bus: Bus, machined: FakeMachined, method: str
) -> None:
    bridge = ShortDeadline(tmp_path, bus.address)
    client = bridge.client()
    machined.hangs(method)
    more = {"CloneImage": {"dest": "j"}, "RemoveImage": {}}.get(method, {"src": "/a"})
    client.send(method, {"name": "m", **more})
    machined.wait_for(1)
    client.socket.settimeout(1.5)
    with pytest.raises(TimeoutError):
        client.receive()
    client.socket.settimeout(10)
    machined.answer()
    assert client.reply() == {}
    bridge.stop()


class ShortDeadline(Patched):
    """The service with a deadline of half a second for calls over D-Bus, and for the greeting of a bus."""

    patch = """
        import bridge.bus, bridge.machined, bridge.reads
        bridge.bus.DEADLINE = bridge.reads.DEADLINE = bridge.machined.DEADLINE = 0.5
        bridge.machined.Machined.call.__kwdefaults__["deadline"] = 0.5
    """


def test_more_calls_at_once_than_the_bus_allows(bridge: Bridge, machined: FakeMachined) -> None:
    """The bus refuses a connection's 129th call without a reply; the service keeps those beyond 96 for later."""
    machined.hangs("RemoveImage")
    clients = [bridge.client() for _ in range(150)]
    for number, client in enumerate(clients):
        client.send("RemoveImage", {"name": f"i{number}"})
    machined.wait_for(96)
    machined.returns("RemoveImage")
    for _ in range(96):
        machined.answer()
    for client in clients:
        assert client.reply() == {}
    assert len(machined.calls) == 150


def test_sigterm_finishes_what_is_under_way(bridge: Bridge, machined: FakeMachined) -> None:
    machined.hangs("CopyFromMachine")
    idle, copying = bridge.client(), bridge.client()
    idle.call("org.varlink.service.GetInfo")
    copying.send("CopyFromMachine", {"name": "m", "src": "/a"})
    copying.send("CopyFromMachine", {"name": "m", "src": "/b"})
    machined.wait_for(1)
    bridge.process.send_signal(signal.SIGTERM)
    assert idle.is_closed()
    assert bridge.process.poll() is None
    machined.answer()
    assert copying.reply() == {}
    assert copying.is_closed()
    assert bridge.process.wait(timeout=10) == 0
    assert len(machined.calls) == 1, "the second call was not begun"


def test_idle_exit(tmp_path: Path, bus: Bus) -> None:
    bridge = Bridge(tmp_path, bus.address, "--idle-timeout", "0.5")
    client = bridge.client()
    client.socket.settimeout(1)
    with pytest.raises(TimeoutError):
        client.receive()
    assert bridge.process.poll() is None, "a connected client is no idleness"
    client.close()
    assert bridge.process.wait(timeout=5) == 0
    bridge.stop()


def test_without_polkit_only_root_passes_guarded_methods(bridge: Bridge, machined: FakeMachined) -> None:
    """The kernel says who connects; nothing in a call changes it."""
    machined.returns("ListMachines", "a(ssso)", [])

    def as_nobody() -> None:
        with Client(bridge.path) as client:
            assert client.call("ListMachines") == {"machines": []}
            for parameters in ({"name": "m"}, {"name": "m", "allowInteractiveAuthentication": True}):
                assert client.error("TerminateMachine", parameters) == DENIED
            assert client.error("TerminateMachine", {"name": 5})[0] == "org.varlink.service.InvalidParameter"

    for parent in Path(bridge.path).parents[:4]:
        os.chmod(parent, 0o755)  # noqa: S103  so that nobody reaches the socket
    assert _exit_status_as_nobody(as_nobody) == 0
    assert [member for member, _ in machined.calls] == ["ListMachines"]


def _exit_status_as_nobody(function: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    "message",
    [
        b"\0",
        b"nonsense\0",
        b"[]\0",
        b'{"parameters":{}}\0',
        b'{"method":5}\0',
        b'{"method":"io.machine1.ListMachines","unknown":1}\0',
        b'{"method":"io.machine1.ListMachines","method":"io.machine1.ListImages"}\0',
        b'{"method":"io.machine1.GetMachine","parameters":{"name":"\\ud800"}}\0',
        b'{"method":"io.machine1.GetMachine","parameters":{"name":"\xff"}}\0',
        b'{"method":"io.machine1.KillMachine","parameters":{"name":"m","signal":NaN}}\0',
        b'{"method":"io.machine1.ListMachines","more":true,"oneway":true}\0',
        b"[" * 100_000 + b"\0",
        b"x" * 5_000_000,
    ],
)
def test_what_is_no_call_ends_the_connection_and_nothing_else(
    bridge: Bridge, machined: FakeMachined, message: bytes
) -> None:
    hostile, other = bridge.client(), bridge.client()
    try:
        hostile.send_bytes(message)
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert hostile.is_closed()
    works(other, machined)


def test_socket_activation_with_two_sockets(tmp_path: Path, bus: Bus, machined: FakeMachined) -> None:
    """systemd-socket-activate(1) in a few lines: descriptors from 3 on, and the variables that say so."""
    import socket

    listeners = []
    for name in ("one", "two"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / name))
        listener.listen()
        listeners.append(listener)
    notification = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notification.bind(str(tmp_path / "notify"))
    notification.settimeout(10)
    code = """if True:
        import os, sys
        os.dup2(int(sys.argv[1]), 100); os.dup2(int(sys.argv[2]), 101)
        os.dup2(100, 3); os.dup2(101, 4); os.close(100); os.close(101)
        os.environ.update(LISTEN_FDS="2", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="varlink:other")
        os.execv(sys.executable, [sys.executable, "-m", "bridge"])
    """
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *(str(listener.fileno()) for listener in listeners)],
            cwd=REPOSITORY,
            env=os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": bus.address, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            pass_fds=[listener.fileno() for listener in listeners],
            stderr=log,
        )
    try:
        assert notification.recv(100) == b"READY=1"
        for name in ("one", "two"):
            with Client(str(tmp_path / name)) as client:
                works(client, machined)
        process.send_signal(signal.SIGTERM)
        assert notification.recv(100) == b"STOPPING=1"
        assert process.wait(timeout=10) == 0
        assert (tmp_path / "one").exists(), "the sockets are the service manager's"
    finally:
        process.kill()
        process.wait()
        for listener in (*listeners, notification):
            listener.close()
    assert eventually(lambda: (tmp_path / "log").read_text() == "")
