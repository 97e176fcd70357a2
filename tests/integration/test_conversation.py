# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whole conversations through the socket: requests as a client writes them, D-Bus calls as machined gets them."""

from __future__ import annotations

import json
import os
import socket
import threading

import pytest

from tests.client import Client

from .conftest import Bridge, eventually, open_fds
from .fake_machined import FakeMachined

MACHINES = [
    ("web", "container", "systemd-nspawn", "/org/freedesktop/machine1/machine/web"),
    (".host", "host", "", "/org/freedesktop/machine1/machine/_2ehost"),
    ("db", "vm", "libvirt", "/org/freedesktop/machine1/machine/db"),
]
WEB = {
    "name": "web",
    "class": "container",
    "service": "systemd-nspawn",
    "object_path": "/org/freedesktop/machine1/machine/web",
}
DB = {"name": "db", "class": "vm", "service": "libvirt", "object_path": "/org/freedesktop/machine1/machine/db"}
HOST = {"name": ".host", "class": "host", "service": "", "object_path": "/org/freedesktop/machine1/machine/_2ehost"}


@pytest.fixture(autouse=True)
def machines(machined: FakeMachined) -> None:
    machined.returns("ListMachines", "a(ssso)", MACHINES)


def test_lists_machines_by_name_and_the_host_on_request(client: Client) -> None:
    assert client.call("ListMachines") == {"machines": [DB, WEB]}
    assert client.call("ListMachines", {"all": False}) == {"machines": [DB, WEB]}
    assert client.call("ListMachines", {"all": True}) == {"machines": [HOST, DB, WEB]}


def test_gets_a_machine(client: Client) -> None:
    assert client.call("GetMachine", {"name": "db"}) == {"machine": DB}
    assert client.call("GetMachine", {"name": ".host"}) == {"machine": HOST}
    assert client.error("GetMachine", {"name": "nope"}) == ("io.machine1.NoSuchMachine", {"name": "nope"})


def test_a_class_that_is_not_in_the_interface_is_left_out(client: Client, machined: FakeMachined) -> None:
    machined.returns("ListMachines", "a(ssso)", [("m", "hologram", "s", "/m")])
    assert client.call("ListMachines") == {"machines": [{"name": "m", "service": "s", "object_path": "/m"}]}


def test_what_is_not_known_of_an_image_is_left_out(client: Client, machined: FakeMachined) -> None:
    unknown = 2**64 - 1
    machined.returns(
        "ListImages",
        "a(ssbttto)",
        [
            (".host", "directory", True, 5, 0, unknown, "/host"),
            ("b", "directory", False, 0, 0, unknown, "/b"),
            ("a", "raw", True, 1, 2, 0, "/a"),
            ("c", "crystal", True, 1, unknown, 2**63, "/c"),
        ],
    )
    a = {"name": "a", "type": "raw", "read_only": True, "ctime": 1, "mtime": 2, "usage": 0, "object_path": "/a"}
    b = {"name": "b", "type": "directory", "read_only": False, "object_path": "/b"}
    c = {"name": "c", "read_only": True, "ctime": 1, "object_path": "/c"}
    host = {"name": ".host", "type": "directory", "read_only": True, "ctime": 5, "object_path": "/host"}
    assert client.call("ListImages") == {"images": [a, b, c]}
    assert client.call("ListImages", {"all": True}) == {"images": [host, a, b, c]}


@pytest.mark.parametrize(
    ("method", "parameters", "member", "arguments"),
    [
        ("TerminateMachine", {"name": "web"}, "TerminateMachine", ("web",)),
        ("KillMachine", {"name": "web"}, "KillMachine", ("web", "all", 15)),
        ("KillMachine", {"name": "web", "who": None, "signal": None}, "KillMachine", ("web", "all", 15)),
        ("KillMachine", {"name": "web", "who": "leader", "signal": 37}, "KillMachine", ("web", "leader", 37)),
        ("CopyFromMachine", {"name": "web", "src": "/a"}, "CopyFromMachine", ("web", "/a", "/a")),
        ("CopyToMachine", {"name": "web", "src": "/a", "dest": "/b"}, "CopyToMachine", ("web", "/a", "/b")),
        ("RemoveImage", {"name": "i"}, "RemoveImage", ("i",)),
        ("CloneImage", {"name": "i", "dest": "j"}, "CloneImage", ("i", "j", False)),
        ("CloneImage", {"name": "i", "dest": "j", "read_only": True}, "CloneImage", ("i", "j", True)),
        ("RenameImage", {"name": "i", "dest": "j"}, "RenameImage", ("i", "j")),
    ],
)
def test_a_call_reaches_machined_with_its_defaults_filled_in(
    client: Client,
    machined: FakeMachined,
    method: str,
    parameters: dict[str, object],
    member: str,
    arguments: tuple[object, ...],
) -> None:
    machined.returns(member)
    assert client.call(method, parameters | {"allowInteractiveAuthentication": True}) == {}
    assert machined.calls == [(member, arguments)]


def test_a_shell_comes_as_a_file_descriptor(client: Client, machined: FakeMachined) -> None:
    ours, theirs = os.pipe()
    machined.returns("OpenMachineShell", "hs", theirs, "/dev/pts/7")
    parameters = {"name": "web", "user": "joe", "path": "/bin/sh", "args": ["sh", "-c", "ls"], "env": ["A=1"]}
    assert client.call("OpenMachineShell", parameters) == {"pty_fd": 0, "pty_path": "/dev/pts/7"}
    os.close(theirs)
    (shell,) = client.fds
    os.write(client.take_fd(), b"typed")
    os.close(shell)
    assert os.read(ours, 100) == b"typed"
    assert os.read(ours, 100) == b"", "somebody still holds the shell"
    os.close(ours)
    assert machined.calls[0] == ("OpenMachineShell", ("web", "joe", "/bin/sh", ["sh", "-c", "ls"], ["A=1"]))


def test_a_shell_whose_client_left_is_closed(bridge: Bridge, machined: FakeMachined) -> None:
    machined.hangs("OpenMachineShell")
    with bridge.client() as client:
        client.send("OpenMachineShell", {"name": "web"})
        machined.wait_for(1)
    ours, theirs = os.pipe()
    machined.answer(0, "hs", theirs, "/dev/pts/7")
    os.close(theirs)
    assert os.read(ours, 1) == b""
    os.close(ours)


def test_file_descriptors_wait_until_the_client_has_read_what_came_before(
    client: Client, machined: FakeMachined
) -> None:
    """A client that sends two calls at once must not be able to mistake whose file descriptor it got."""
    ours, theirs = os.pipe()
    machined.returns("OpenMachineShell", "hs", theirs, "/dev/pts/7")
    client.send("ListMachines")
    client.send("OpenMachineShell", {"name": "web"})
    machined.wait_for(2)
    assert "machines" in client.reply()
    assert client.fds == []
    assert client.reply()["pty_fd"] == 0
    assert len(client.fds) == 1
    os.close(ours)
    os.close(theirs)


def test_calls_of_one_connection_are_answered_in_order(client: Client, machined: FakeMachined) -> None:
    machined.hangs("CopyFromMachine")
    client.send("CopyFromMachine", {"name": "web", "src": "/a"})
    for name in ("web", "nope", "db"):
        client.send("GetMachine", {"name": name})
    machined.wait_for(1)
    machined.answer()
    assert client.reply() == {}
    assert client.reply() == {"machine": WEB}
    assert client.receive()["error"] == "io.machine1.NoSuchMachine"
    assert client.reply() == {"machine": DB}
    assert [member for member, _ in machined.calls] == ["CopyFromMachine"] + 3 * ["ListMachines"]


def test_a_call_that_takes_long_holds_up_nobody_else(bridge: Bridge, machined: FakeMachined) -> None:
    for member in ("CopyFromMachine", "CloneImage"):
        machined.hangs(member)
    copying, cloning, listing = bridge.client(), bridge.client(), bridge.client()
    copying.send("CopyFromMachine", {"name": "web", "src": "/a"})
    cloning.send("CloneImage", {"name": "i", "dest": "j"})
    machined.wait_for(2)
    assert listing.call("GetMachine", {"name": "web"}) == {"machine": WEB}
    machined.answer(1)
    assert cloning.reply() == {}
    machined.answer(0)
    assert copying.reply() == {}


def test_many_calls_in_one_packet_and_one_call_byte_by_byte(client: Client) -> None:
    message = json.dumps({"method": "io.machine1.GetMachine", "parameters": {"name": "web"}}).encode() + b"\0"
    client.send_bytes(message * 100)
    for _ in range(100):
        assert client.reply() == {"machine": WEB}
    for byte in message:
        client.send_bytes(bytes([byte]))
    assert client.reply() == {"machine": WEB}


def test_oneway_is_done_and_not_answered(client: Client, machined: FakeMachined) -> None:
    machined.returns("TerminateMachine")
    client.send("TerminateMachine", {"name": "web"}, oneway=True)
    client.send("NoSuchMethod", oneway=True)
    client.send("GetMachine", {}, oneway=True)
    assert client.call("GetMachine", {"name": "db"}) == {"machine": DB}
    assert machined.calls[0] == ("TerminateMachine", ("web",))


def test_oneway_is_done_although_the_client_left_at_once(bridge: Bridge, machined: FakeMachined) -> None:
    machined.returns("TerminateMachine")
    with bridge.client() as client:
        client.send("TerminateMachine", {"name": "web"}, oneway=True)
        client.send("TerminateMachine", {"name": "db"}, oneway=True)
    machined.wait_for(2)
    assert machined.calls == [("TerminateMachine", ("web",)), ("TerminateMachine", ("db",))]


def test_a_shell_opened_oneway_is_closed(client: Client, machined: FakeMachined) -> None:
    ours, theirs = os.pipe()
    machined.returns("OpenMachineShell", "hs", theirs, "/dev/pts/7")
    client.send("OpenMachineShell", {"name": "web"}, oneway=True)
    assert client.call("GetMachine", {"name": "db"}) == {"machine": DB}
    os.close(theirs)
    assert os.read(ours, 1) == b""
    assert client.fds == []
    os.close(ours)


def test_a_client_that_sends_no_more_still_gets_its_replies(client: Client) -> None:
    client.send("GetMachine", {"name": "web"})
    client.send("GetMachine", {"name": "db"})
    client.socket.shutdown(socket.SHUT_WR)
    assert client.reply() == {"machine": WEB}
    assert client.reply() == {"machine": DB}
    assert client.is_closed()


def test_more_gets_its_one_reply_without_continues(client: Client) -> None:
    client.send("GetMachine", {"name": "web"}, more=True)
    assert "continues" not in client.receive()


def test_with_more_a_list_comes_one_by_one(client: Client) -> None:
    whole = client.call("ListMachines")["machines"]
    client.send("ListMachines", more=True)
    replies = [client.receive() for _ in whole]
    assert [reply["parameters"]["machines"] for reply in replies] == [[machine] for machine in whole]
    assert [reply.get("continues", False) for reply in replies] == [True] * (len(whole) - 1) + [False]


def test_upgrade_is_not_offered(client: Client) -> None:
    client.send("ListMachines", upgrade=True)
    assert client.receive() == {
        "error": "org.varlink.service.MethodNotImplemented",
        "parameters": {"method": "io.machine1.ListMachines"},
    }
    assert client.call("GetMachine", {"name": "web"}) == {"machine": WEB}


@pytest.mark.parametrize("parameters", [None, {}])
def test_no_parameters_may_be_written_in_every_way(client: Client, parameters: dict[str, object] | None) -> None:
    assert client.call("ListMachines", parameters) == {"machines": [DB, WEB]}
    client.send_bytes(b'{"method":"io.machine1.ListMachines"}\0')
    assert client.reply() == {"machines": [DB, WEB]}


def test_a_rejected_call_never_reaches_machined(client: Client, machined: FakeMachined) -> None:
    rejected: list[tuple[str, dict[str, object], str]] = [
        ("GetMachine", {}, "name"),
        ("GetMachine", {"name": 5}, "name"),
        ("GetMachine", {"name": "web", "colour": "red"}, "colour"),
        ("ListMachines", {"all": "yes"}, "all"),
        ("KillMachine", {"name": "web", "who": "payload"}, "who"),
        ("KillMachine", {"name": "web", "signal": 0}, "signal"),
        ("KillMachine", {"name": "web", "signal": True}, "signal"),
        ("KillMachine", {"name": "web", "signal": 9.0}, "signal"),
        ("OpenMachineShell", {"name": "web", "args": ["a", "b", 3]}, "args[2]"),
        ("OpenMachineShell", {"name": "web", "env": ["A=1", "B"]}, "env[1]"),
        ("CopyToMachine", {"name": "web", "src": "a"}, "src"),
        ("CloneImage", {"name": "i"}, "dest"),
    ]
    for method, parameters, name in rejected:
        error, details = client.error(method, parameters)
        assert (error, details["parameter"]) == ("org.varlink.service.InvalidParameter", name)
        assert details["reason"]
    assert machined.calls == []


def test_what_does_not_exist_is_said_to_be_so(client: Client) -> None:
    assert client.error("Nope") == ("org.varlink.service.MethodNotFound", {"method": "io.machine1.Nope"})
    assert client.error("io.machine2.Nope") == (
        "org.varlink.service.InterfaceNotFound",
        {"interface": "io.machine2"},
    )


def test_flooding_with_unread_calls_stops_nobody_else(bridge: Bridge) -> None:
    """A client that writes and never reads is left alone; its calls stay in its own socket."""
    flooding, other = bridge.client(), bridge.client()
    flooding.socket.settimeout(0.5)
    message = b'{"method":"org.varlink.service.GetInfo"}\0' * 100
    with pytest.raises(TimeoutError):
        flooding.send_bytes(message * 10_000)
    assert other.call("GetMachine", {"name": "web"}) == {"machine": WEB}


def test_many_clients_at_once(bridge: Bridge) -> None:
    results = []

    def work() -> None:
        with Client(bridge.path) as client:
            for _ in range(20):
                results.append(client.call("GetMachine", {"name": "web"}) == {"machine": WEB})

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 400


def test_file_descriptors_of_a_client_are_not_kept(bridge: Bridge, client: Client) -> None:
    client.call("ListMachines")
    before = len(open_fds(bridge.process.pid))
    ours, theirs = os.pipe()
    message = b'{"method":"io.machine1.ListMachines"}\0'
    socket.send_fds(client.socket, [message], [theirs] * 10)
    os.close(theirs)
    assert client.reply() == {"machines": [DB, WEB]}
    assert os.read(ours, 1) == b""
    os.close(ours)
    assert eventually(lambda: len(open_fds(bridge.process.pid)) == before)
