# SPDX-License-Identifier: LGPL-2.1-or-later
"""What no bus daemon lets through, and what a broken one could send: the call that it hits ends, the next one works."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
from jeepney import HeaderFields, Message

from tests.client import Client

from .conftest import Bridge, Terminal, eventually
from .fake_bus import FakeBus, Handler, Link
from .test_faults import ShortDeadline

INCONSISTENT = "org.freedesktop.DBus.Error.InconsistentMessage"
TOO_LARGE = 16 * 1024 * 1024 + 1


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeBus, Bridge]]:
    """One service for all tests here: each of them leaves it as it was."""
    directory = tmp_path_factory.mktemp("lies")
    bus = FakeBus(directory)
    bridge = ShortDeadline(directory, bus.address)
    yield bus, bridge
    bridge.stop()
    bus.stop()


@pytest.fixture
def lying_bus(pair: tuple[FakeBus, Bridge]) -> FakeBus:
    return pair[0]


@pytest.fixture
def bridge(pair: tuple[FakeBus, Bridge]) -> Iterator[Bridge]:
    bus, bridge = pair
    yield bridge
    failures = bus.failures
    bridge.let_clients_go()
    bus.reset()
    assert failures == []


def works(client: Client) -> None:
    assert client.call("GetMachine", {"name": "m"})["machine"]["class"] == "vm"


def open_shell(client: Client) -> tuple[str, dict[str, str]]:
    return client.error("OpenMachineShell", {"name": "m"})


def test_it_tells_the_truth_where_it_is_not_told_to_lie(
    client: Client, lying_bus: FakeBus, terminal: Terminal
) -> None:
    lying_bus.handlers["OpenMachineShell"] = lambda link, call: link.send(
        link.reply(call, "hs", 0, "/dev/pts/0", fds=1), terminal.theirs
    )
    assert client.call("OpenMachineShell", {"name": "m"}) == {"pty_fd": 0, "pty_path": "/dev/pts/0"}
    os.close(client.take_fd())
    assert terminal.is_closed()
    works(client)


# --- errors ---------------------------------------------------------------------------------------------------------


NEVER_SEEN = ["org.example.NeverSeen", "", "nodots", "..", "System.Error.", "ümlaut.Error", "x." + "y" * 9999, 'a".b\n']


@pytest.mark.parametrize("name", NEVER_SEEN)
def test_a_name_never_seen_is_passed_on_as_it_is(client: Client, lying_bus: FakeBus, name: str) -> None:
    lying_bus.handlers["TerminateMachine"] = lambda link, call: link.send(link.error(call, name, "s", "as it says"))
    failed = ("io.machine1.Failed", {"dbus_error": name, "message": "as it says"})
    assert client.error("TerminateMachine", {"name": "m"}) == failed
    works(client)


@pytest.mark.parametrize(
    "name",
    [
        "org.freedesktop.DBus.Error.ServiceUnknown",
        "org.freedesktop.DBus.Error.Spawn.ChildExited",
        "org.freedesktop.DBus.Error.LimitsExceeded",
        "org.freedesktop.systemd1.UnitMasked",  # systemd 257 cannot start what is masked,
        "org.freedesktop.DBus.Error.FileExists",  # and 262 calls it that
        "org.example.NeverSeen",
    ],
)
def test_what_the_bus_itself_says_is_that_machined_is_not_to_be_had(
    client: Client, lying_bus: FakeBus, name: str
) -> None:
    """And nothing of the image, whose name would be taken by the words of some of these errors."""
    bus = "org.freedesktop.DBus"
    lying_bus.handlers["CloneImage"] = lambda link, call: link.send(
        link.error(call, name, "s", "as it says", sender=bus)
    )
    error, parameters = client.error("CloneImage", {"name": "i", "dest": "j"})
    assert error == "io.machine1.Unavailable"
    assert "as it says" in parameters["reason"]
    works(client)


def test_what_the_bus_does_not_let_through_is_denied(client: Client, lying_bus: FakeBus) -> None:
    denied, bus = "org.freedesktop.DBus.Error.AccessDenied", "org.freedesktop.DBus"
    lying_bus.handlers["CloneImage"] = lambda link, call: link.send(link.error(call, denied, "s", "no", sender=bus))
    assert client.error("CloneImage", {"name": "i", "dest": "j"}) == ("org.varlink.service.PermissionDenied", {})
    works(client)


@pytest.mark.parametrize(("signature", "body"), [(None, ()), ("u", (5,)), ("as", (["a"],)), ("us", (5, "later"))])
def test_an_error_that_says_nothing_for_people(
    client: Client, lying_bus: FakeBus, signature: str | None, body: tuple[object, ...]
) -> None:
    lying_bus.handlers["TerminateMachine"] = lambda link, call: link.send(link.error(call, "a.B", signature, *body))
    assert client.error("TerminateMachine", {"name": "m"}) == (
        "io.machine1.Failed",
        {"dbus_error": "a.B", "message": ""},
    )
    works(client)


def test_a_name_that_is_no_text(client: Client, lying_bus: FakeBus) -> None:
    """The header's field 4, as a number of 64 bits: as long as a text of seven characters."""

    def lie(link: Link, call: Message) -> None:
        data = link.error(call, "is.text", None)
        said, meant = b"\x04\x01s\0\x07\0\0\0is.text\0", b"\x04\x01t\0\0\0\0\0\5\0\0\0\0\0\0\0"
        assert data.count(said) == 1
        link.send(data.replace(said, meant))

    lying_bus.handlers["TerminateMachine"] = lie
    assert client.error("TerminateMachine", {"name": "m"}) == (
        "io.machine1.Failed",
        {"dbus_error": "", "message": ""},
    )
    works(client)


# --- file descriptors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "promised", "sent"),
    [
        (0, 1, 0),  # none came
        (0, 0, 0),  # none was promised
        (5, 1, 1),  # one that is not there is meant
        (2**32 - 1, 1, 1),
        (0, 2, 2),  # one more than is meant
        (1, 2, 2),
        (0, 2, 1),  # one less than promised
    ],
)
def test_a_shell_whose_descriptors_are_not_those_promised(
    bridge: Bridge, client: Client, lying_bus: FakeBus, terminal: Terminal, index: int, promised: int, sent: int
) -> None:
    lying_bus.handlers["OpenMachineShell"] = lambda link, call: link.send(
        link.reply(call, "hs", index, "/dev/pts/0", fds=promised), *[terminal.theirs] * sent
    )
    name, parameters = open_shell(client)
    assert (name, parameters["dbus_error"]) == ("io.machine1.Failed", INCONSISTENT)
    assert client.fds == []
    assert terminal.is_closed()
    works(client)


def test_a_descriptor_that_was_not_promised_is_for_nobody(
    bridge: Bridge, client: Client, lying_bus: FakeBus, terminal: Terminal
) -> None:
    """Neither for the call that it came with nor for the next one, whose client would get another's shell."""
    lying_bus.handlers["TerminateMachine"] = lambda link, call: link.send(link.reply(call), terminal.theirs)
    lying_bus.handlers["OpenMachineShell"] = lambda link, call: link.send(
        link.reply(call, "hs", 0, "/dev/pts/0", fds=1)
    )
    client.send("TerminateMachine", {"name": "m"})
    client.receive()
    assert terminal.is_closed()
    assert open_shell(client)[0] == "io.machine1.Failed"
    assert client.fds == []
    works(client)


# --- replies that are not what was asked for ------------------------------------------------------------------------


def test_a_reply_that_comes_twice_is_one_reply(client: Client, lying_bus: FakeBus, terminal: Terminal) -> None:
    second, sent = Terminal(), threading.Event()

    def twice(link: Link, call: Message) -> None:
        link.send(link.reply(call, "hs", 0, "/dev/pts/0", fds=1), terminal.theirs)
        link.send(link.reply(call, "hs", 0, "/dev/pts/0", fds=1), second.theirs)
        sent.set()

    lying_bus.handlers["OpenMachineShell"] = twice
    client.call("OpenMachineShell", {"name": "m"})
    assert sent.wait(10)
    assert second.is_closed()
    second.close()
    works(client)
    os.close(client.take_fd())
    assert client.fds == []
    assert terminal.is_closed()


@pytest.mark.parametrize("serial", [0, 1, 4711, 2**32 - 1])
def test_a_reply_to_what_nobody_asked(client: Client, lying_bus: FakeBus, terminal: Terminal, serial: int) -> None:
    """Serial 1 is that of Hello, long answered. The call ends by its deadline."""

    def lie(link: Link, call: Message) -> None:
        call.header.serial = serial
        link.send(link.reply(call, "hs", 0, "/dev/pts/0", fds=1), terminal.theirs)

    lying_bus.handlers["OpenMachineShell"] = lie
    assert open_shell(client) == ("io.machine1.Timeout", {})
    assert terminal.is_closed()
    works(client)


def garbage(link: Link, _call: Message) -> None:
    link.send(b"\xff\0garbage" * 100)


def too_large(link: Link, call: Message) -> None:
    """The header alone: a large body is passed over."""
    data = bytearray(link.reply(call, "s", "x"))
    data[12:16] = TOO_LARGE.to_bytes(4, "little")
    link.send(bytes(data))


def half_a_message(link: Link, call: Message) -> None:
    link.send(link.reply(call, "hs", 0, "/dev/pts/0", fds=1)[:-3])
    link.hang_up()


def no_more(link: Link, _call: Message) -> None:
    link.hang_up()


def a_header_of_another_version(link: Link, call: Message) -> None:
    data = bytearray(link.reply(call))
    data[3] = 77
    data[1] = 99
    link.send(bytes(data))
    link.hang_up()


@pytest.mark.parametrize("lie", [garbage, too_large, half_a_message, no_more, a_header_of_another_version])
def test_a_connection_that_makes_no_sense_any_more_is_given_up_and_opened_anew(
    bridge: Bridge, client: Client, lying_bus: FakeBus, lie: Handler
) -> None:
    """With all that waits on it; a guarded call is not made a second time."""
    lying_bus.handlers["CopyToMachine"] = lambda *_: None
    other = bridge.client()
    other.send("CopyToMachine", {"name": "m", "src": "/a"})
    assert eventually(lambda: lying_bus.calls == ["CopyToMachine"])
    lying_bus.handlers["RemoveImage"] = lie
    for waiting in (client.error("RemoveImage", {"name": "m"})[0], other.receive()["error"]):
        assert waiting == "io.machine1.Unavailable"
    lying_bus.handlers["RemoveImage"] = lambda link, call: link.send(link.reply(call))
    assert client.call("RemoveImage", {"name": "m"}) == {}
    works(other)
    assert [call for call in lying_bus.calls if call != "ListMachines"] == [
        "CopyToMachine",
        "RemoveImage",
        "RemoveImage",
    ]


def test_half_a_message_with_a_descriptor(client: Client, lying_bus: FakeBus, terminal: Terminal) -> None:
    def lie(link: Link, call: Message) -> None:
        link.send(link.reply(call, "hs", 0, "/dev/pts/0", fds=1)[:-3], terminal.theirs)
        link.hang_up()

    lying_bus.handlers["OpenMachineShell"] = lie
    assert open_shell(client)[0] == "io.machine1.Unavailable"
    assert terminal.is_closed()
    works(client)


# --- the greeting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "greeting",
    [
        b"\xff\0garbage\r\n",
        b"ERROR\r\n",
        b"REJECTED EXTERNAL\r\n",
        b"DATA\r\n",
        b"OK 0123456789abcdef0123456789abcdef\r\nmore\r\n",
        b"\r\n" * 1000,
        None,  # nothing, for ever
    ],
)
def test_a_bus_that_greets_in_its_own_way(bridge: Bridge, lying_bus: FakeBus, greeting: bytes | None) -> None:
    right, lying_bus.greeting = lying_bus.greeting, greeting
    client, other = bridge.client(), bridge.client()
    started = time.monotonic()
    client.send("ListMachines")
    assert other.call("org.varlink.service.GetInfo")["product"], "who needs no bus waits for none"
    reply = client.receive()
    assert reply["error"] in ("io.machine1.Unavailable", "io.machine1.Timeout"), reply
    assert time.monotonic() - started < 5
    assert lying_bus.calls == []
    lying_bus.greeting = right
    works(client)





def test_the_serial_of_a_reply_is_no_number(client: Client, lying_bus: FakeBus) -> None:
    def lie(link: Link, call: Message) -> None:
        data = link.reply(call)
        field = bytes([HeaderFields.reply_serial]) + b"\x01u\0"
        assert data.count(field) == 1
        link.send(data.replace(field, bytes([HeaderFields.reply_serial]) + b"\x01b\0"))

    lying_bus.handlers["TerminateMachine"] = lie
    name, _ = client.error("TerminateMachine", {"name": "m"})
    assert name in ("io.machine1.Timeout", "io.machine1.Unavailable")
    works(client)
