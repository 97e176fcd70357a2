# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds for every unit test: nothing stays open and no thread stays behind. And what several of them share."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from jeepney.fds import FileDescriptor

from bridge import fds, journal
from bridge.bus import DEADLINE
from bridge.listed import Images, Machines
from bridge.machined import READS, Machined, Rules, images_by_name, machines_by_name

T = TypeVar("T")


def open_fds() -> dict[str, str]:
    """What this process has open, by descriptor number."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
    return found


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """First set up and last torn down, so that it sees what other fixtures leave, too."""
    descriptors, threads = open_fds(), set(threading.enumerate())
    yield
    assert open_fds().items() <= descriptors.items()
    assert set(threading.enumerate()) <= threads


@pytest.fixture(autouse=True)
def _shells_start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one that nobody takes is closed in the next turn."""
    monkeypatch.setattr(fds, "STARTING", 0.0)


LINGERING = 1


def lingering() -> tuple[socket.socket, FileDescriptor]:
    """A connection, and a descriptor of it whose close(2) takes LINGERING seconds, or until the connection is gone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
    here.setblocking(False)
    try:
        while True:
            here.send(bytes(65536))
    except BlockingIOError:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGERING))
    return there, FileDescriptor(here.detach())


@dataclass(frozen=True)
class Line:
    """What was logged."""

    priority: int
    message: str
    fields: dict[str, object]


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """Log lines, here instead of in the journal."""
    lines: list[Line] = []

    def log(priority: int, message: str, **fields: object) -> None:
        lines.append(Line(priority, message, fields))

    monkeypatch.setattr(journal, "record", log)
    monkeypatch.setattr(journal, "_level", journal.DEBUG)
    # How often somebody was refused in other tests does not count here.
    monkeypatch.setattr(journal, "_refusals", journal._Refusals())
    return lines


@dataclass(frozen=True)
class Asked:
    """A call that machined got."""

    member: str
    signature: str
    arguments: tuple[object, ...]
    reply: str
    deadline: float | None


class FakeMachined(Machined):
    """Answers at once, with a body or an error, and remembers what it was asked."""

    def __init__(self, *body: object, error: Exception | None = None) -> None:
        self.asked: list[Asked] = []
        self._rules = Rules()
        self._body = body
        self._error = error

    async def machines(self) -> Machines:
        return machines_by_name(await self.call("ListMachines", reply=READS["ListMachines"]))

    async def images(self) -> Images:
        return images_by_name(await self.call("ListImages", reply=READS["ListImages"]))

    async def call(
        self, member: str, signature: str = "", *arguments: object, reply: str = "", deadline: float | None = DEADLINE
    ) -> tuple[Any, ...]:
        self.asked.append(Asked(member, signature, arguments, reply, deadline))
        if self._error is not None:
            raise self._error
        return self._body


def result_of(awaitable: Awaitable[T]) -> T:
    """What a coroutine that never waits comes to."""

    async def body() -> T:
        return await awaitable

    coroutine = body()
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise AssertionError("it waits")
