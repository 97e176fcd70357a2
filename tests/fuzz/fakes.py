# SPDX-License-Identifier: LGPL-2.1-or-later
"""A system bus in the process: takes what Machined and Polkit of bridge/ send, and answers as it is told."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from jeepney import Header, HeaderFields, Message, new_method_call, new_method_return
from jeepney.fds import FileDescriptor

import bridge.machined
import bridge.remembered
from bridge.bus import DEADLINE, Answer, Bus, DBusError, GivenUp, Repeated
from bridge.errors import Timeout, Unavailable
from bridge.loop import Future, Loop
from bridge.machined import Machined
from bridge.polkit import Polkit
from bridge.turns import Turns
from bridge.units import SYSTEMD, Units

REPLIES = {
    "ListMachines": "a(ssso)", "ListImages": "a(ssbttto)", "OpenMachineShell": "hs", "OpenMachineLogin": "hs",
    "OpenMachinePTY": "hs", "OpenMachineRootDirectory": "h", "GetMachineByPID": "o", "GetAll": "a{sv}",
    "GetMachineAddresses": "a(iay)", "GetMachineOSRelease": "a{ss}", "GetMachineUIDShift": "u",
    "MapFromMachineUser": "u", "MapFromMachineGroup": "u", "MapToMachineUser": "sou", "MapToMachineGroup": "sou",
    "StartUnit": "o", "GetImageHostname": "s", "GetImageMachineID": "ay", "GetImageMachineInfo": "a{ss}",
    "GetImageOSRelease": "a{ss}", "CleanPool": "a(st)",
}  # fmt: skip
# From which number on no machine has this process, user or group.
NOBODY = 1000
UNKNOWN = 2**64 - 1
# Names as machined may say them, whatever this service would let pass; one by one, one more in each list.
NAMES = ["web", ".host", "web-2", "", "a\u2028b", 'q"\\', "\x1b[0m\n", "é" * 300, "\U0010fffd", "[[{{", "\x7f"]
MACHINES = [
    (name, ("container", "vm", "host", "hologram", "")[index % 5], "systemd-nspawn", f"/m/_{index}")
    for index, name in enumerate(NAMES)
]
IMAGES = [
    (name, ("directory", "raw", "")[index % 3], index % 2 == 0, (0, 1, UNKNOWN)[index % 3], 2**63 - 1, UNKNOWN, "/i")
    for index, name in enumerate(NAMES)
]
# What machined's answer may be instead of a reply.
FAULTS: list[Exception] = [
    DBusError("org.freedesktop.machine1.NoSuchMachine", "no machine"),
    DBusError("org.freedesktop.machine1.NoSuchImage", "no image"),
    DBusError("org.freedesktop.DBus.Error.FileExists", "there"),
    DBusError("System.Error.EROFS", "read-only"),
    DBusError("System.Error.EBUSY", "busy"),
    DBusError("org.freedesktop.DBus.Error.NotSupported", 'not "here"\n\x01\u2028'),
    DBusError("org.freedesktop.DBus.Error.LimitsExceeded", ""),
    DBusError("org.freedesktop.DBus.Error.AccessDenied", "no right"),
    DBusError("org.freedesktop.DBus.Error.Spawn.ExecFailed", ""),
    DBusError("", ""),
    DBusError("org.example.Ñew", "x" * 5000),
    Timeout(),
    Unavailable("no bus"),
]
POLKIT_ANSWERS = [(True, False), (False, False), (False, True)]


@dataclass
class Script:
    """How machined and polkit answer: with FAULTS[fault - 1] or, for 0, well; after so many turns of the loop."""

    fault: int = 0
    listed: int = 3
    turns: int = 0
    polkit: int = 0
    polkit_fails: bool = False
    polkit_turns: int = 0


class FakeBus:
    """One for all connections to the bus. Remembers each call to machined: member, signature, body."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.script = Script()
        self.calls: list[tuple[str, str, tuple[Any, ...]]] = []
        self.questions: list[tuple[Any, ...]] = []
        self.turns = Turns(loop, 96, 8, 1024)
        self._terminal = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        if self._terminal >= 0:
            os.close(self._terminal)
        self._terminal = -1

    def send(self, message: Message) -> None:
        _travel(message)

    async def call(
        self,
        message: Message,
        reply: str,
        deadline: float | None = DEADLINE,
        given_up: Future[None] | None = None,
        user: int = 0,
        most: int = 0,
    ) -> tuple[Any, ...]:
        fields = message.header.fields
        member, signature = fields[HeaderFields.member], fields.get(HeaderFields.signature, "")
        arrived = _travel(message)
        if fields[HeaderFields.destination] == "org.freedesktop.PolicyKit1":
            self.questions.append(message.body)
            return await self._ask(given_up)
        assert arrived == message.body, (arrived, message.body)
        assert reply == REPLIES.get(member, ""), (member, reply)
        self.calls.append((member, signature, message.body))
        await self._answer_or_fail(given_up)
        return self._body(member, message)

    async def ask(self, message: Repeated, reply: str, user: int) -> Answer:
        """What is read again and again: without parameters, and not decoded yet."""
        member = message.header.fields[HeaderFields.member]
        assert reply == REPLIES[member], (member, reply)
        self.calls.append((member, "", ()))
        await self._answer_or_fail(None)
        call = Message.from_buffer(message.serialise(1))
        data = new_method_return(call, reply, self._body(member, call)).serialise(1)
        header, end = Header.from_buffer(data)
        return Answer(header, data[end + -end % 8 :], [])

    async def _answer_or_fail(self, given_up: Future[None] | None) -> None:
        await self._pass_turns(self.script.turns, given_up)
        if self.script.fault:
            # Not the same each time: a raised exception keeps its trace.
            fault = FAULTS[self.script.fault - 1]
            raise type(fault)(*fault.args) if isinstance(fault, DBusError) else _again(fault)

    def _body(self, member: str, message: Message) -> tuple[Any, ...]:
        signature = REPLIES.get(member, "")
        if signature.startswith("h"):
            return (FileDescriptor(os.dup(self._terminal)), "/dev/pts/0")[: len(signature)]
        if member == "GetAll":
            path = message.header.fields[HeaderFields.path]
            if path == "/i":
                return ({"Path": ("s", "/a\u2028"), "Limit": ("t", UNKNOWN), "UsageExclusive": ("t", 5)},)
            if path == "/org/freedesktop/machine1":
                return ({"PoolPath": ("s", "/pool"), "PoolUsage": ("t", 7), "PoolLimit": ("t", UNKNOWN)},)
            name = next(entry[0] for entry in MACHINES if entry[3] == path)
            return ({"Name": ("s", name), "Leader": ("u", 7), "Id": ("ay", b"\x01" * 16), "UID": ("u", 2**32 - 1)},)
        if member in ("GetMachineByPID", "MapToMachineUser", "MapToMachineGroup") and message.body[0] >= NOBODY:
            kind = {"GetMachineByPID": "MachineForPID", "MapToMachineUser": "SuchUserMapping"}
            raise DBusError(f"org.freedesktop.machine1.No{kind.get(member, 'SuchGroupMapping')}", "none")
        found: dict[str, tuple[Any, ...]] = {
            "GetMachineByPID": ("/m/_0",), "StartUnit": ("/job",), "GetMachineAddresses": ([(2, b"\x7f\0\0\1")],),
            "GetMachineOSRelease": ({"ID": "x", "NAME": "\u2028"},), "GetMachineUIDShift": (0,),
            "GetImageHostname": ("a\u2028",), "GetImageMachineID": (b"\x01" * 16,), "GetImageMachineInfo": ({},),
            "GetImageOSRelease": ({"ID": "x"},),
            "CleanPool": ([(name, UNKNOWN - index % 2) for index, name in enumerate(NAMES[: self.script.listed])],),
        }  # fmt: skip
        if signature in ("u", "sou") or member in found:
            return found.get(member, (5,) if signature == "u" else ("web", "/m/_0", 5))
        lists: dict[str, list[tuple[Any, ...]]] = {"ListMachines": list(MACHINES), "ListImages": list(IMAGES)}
        return (lists[member][: self.script.listed],) if member in lists else ()

    async def _ask(self, given_up: Future[None] | None) -> tuple[Any, ...]:
        await self._pass_turns(self.script.polkit_turns, given_up)
        if self.script.polkit_fails:
            raise DBusError("org.freedesktop.DBus.Error.ServiceUnknown", "nobody there")
        return ((*POLKIT_ANSWERS[self.script.polkit], {}),)

    async def _pass_turns(self, turns: int, given_up: Future[None] | None) -> None:
        for _ in range(turns):
            turn = Future[None](self._loop)
            self._loop.call_soon(lambda turn=turn: turn.resolve(None))  # type: ignore[misc]  # of this round
            await turn
            if given_up is not None and given_up.done:
                raise GivenUp


class FakeUnits:
    """Each start works but that of web-2, if systemd answers at all."""

    def __init__(self, bus: FakeBus) -> None:
        self._bus = bus

    async def start(self, unit: str, user: int, left: Future[None] | None) -> str:
        await self._bus.call(new_method_call(SYSTEMD, "StartUnit", "ss", (unit, "fail")), "o", user=user)
        return "failed" if unit == "systemd-nspawn@web-2.service" else "done"

    def close(self) -> None:
        pass


def _again(fault: Exception) -> Exception:
    return Unavailable("no bus") if isinstance(fault, Unavailable) else Timeout()


def _travel(message: Message) -> tuple[Any, ...]:
    """The body as it arrives on the other side of the bus."""
    numbers = array("i")
    data = message.serialise(1, numbers)
    signature = message.header.fields.get(HeaderFields.signature, "")
    if numbers:
        return ()
    body: tuple[Any, ...] = Message.from_buffer(data).body
    # D-Bus has structures where lists of arguments are given as tuples, and the other way round: none here.
    assert not signature or len(body) == len(message.body)
    return body


def machined_on(bus: FakeBus, loop: Loop) -> Machined:
    """The real one, on that bus."""
    # That of the machine that runs this says nothing of the machines there.
    directory = patch.object(bridge.remembered, "DIRECTORY", Path("/nonexistent"))
    with directory, patch.object(bridge.machined, "Bus", lambda *_: bus):
        machined = Machined(loop)
    machined._units = cast(Units, FakeUnits(bus))
    return machined


def polkit_on(bus: FakeBus) -> Polkit:
    """The real one, on that bus."""
    return Polkit(cast(Bus, bus), cast(Bus, bus))


@contextmanager
def fake_bus(loop: Loop) -> Iterator[FakeBus]:
    bus = FakeBus(loop)
    try:
        yield bus
    finally:
        bus.close()
