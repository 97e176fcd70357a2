# SPDX-License-Identifier: LGPL-2.1-or-later
"""Thousands of clients in one process, over epoll(7). For use inside a host, as root.

Each client calls in a loop and compares each reply, byte by byte, with the one expected: a reply that is lost, comes
twice, goes to another or is wrong ends the run with AssertionError.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from .inside import acting_as, allow_many_files

RECEIVE_SIZE = 1 << 18


def message(method: str, parameters: Mapping[str, Any] | None = None) -> bytes:
    """A call as it goes over the wire. A method without a dot is one of io.machine1."""
    qualified = method if "." in method else f"io.machine1.{method}"
    return json.dumps({"method": qualified, "parameters": parameters or {}}).encode() + b"\0"


@dataclass(frozen=True)
class Exchange:
    """A call and what its reply has to be, both with their NUL."""

    call: bytes
    reply: bytes

    @classmethod
    def now(cls, path: str, call: bytes) -> Exchange:
        """The reply that a call gets now is the one that it has to get."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(15)
            client.connect(path)
            client.sendall(call)
            reply = b""
            while not reply.endswith(b"\0"):
                data = client.recv(RECEIVE_SIZE)
                assert data, "the service hung up"
                reply += data
            return cls(call, reply)


class Member:
    """One connection of a swarm."""

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.answered = 0
        self._next: Iterator[Exchange] = iter(())
        self._waiting: deque[tuple[Exchange, float]] = deque()
        self._incoming = b""
        self._outgoing = b""

    def takes(self, exchanges: Sequence[Exchange]) -> None:
        """From now on it makes these calls, one after the other, again and again."""
        self._next = cycle(exchanges)

    def call(self) -> None:
        exchange = next(self._next)
        self._waiting.append((exchange, time.perf_counter()))
        self._outgoing += exchange.call
        self.send()

    def send(self) -> None:
        """As much as the service takes; the rest goes with the next call or reply."""
        try:
            while self._outgoing:
                self._outgoing = self._outgoing[self.socket.send(self._outgoing) :]
        except BlockingIOError:
            pass

    def receive(self, times: list[float]) -> int:
        """Take what is there; the number of replies that are complete now."""
        try:
            data = self.socket.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return 0
        assert data, f"the service hung up on a client that waits for {len(self._waiting)} replies"
        self._incoming += data
        count = 0
        while self._incoming:
            assert self._waiting, f"a reply to no call: {self._incoming[:200]!r}"
            exchange, sent = self._waiting[0]
            if len(self._incoming) < len(exchange.reply) and b"\0" not in self._incoming:
                break
            reply, nul, self._incoming = self._incoming.partition(b"\0")
            assert reply + nul == exchange.reply, f"{exchange.call[:100]!r}: {reply[:200]!r}"
            self._waiting.popleft()
            times.append(time.perf_counter() - sent)
            count += 1
        self.send()
        self.answered += count
        return count


class Swarm:
    """Clients of one socket."""

    def __init__(self, path: str) -> None:
        allow_many_files()
        self._path = path
        self._epoll = select.epoll()
        self.members: dict[int, Member] = {}

    def __enter__(self) -> Swarm:
        return self

    def __exit__(self, *error: object) -> None:
        for member in self.members.values():
            member.socket.close()
        self._epoll.close()

    def connect(self, count: int, uid: int = 0) -> list[Member]:
        """So many more connections, of this user."""
        new = []
        with acting_as(uid):
            for _ in range(count):
                client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                client.settimeout(15)
                client.connect(self._path)
                client.setblocking(False)
                member = self.members[client.fileno()] = Member(client)
                self._epoll.register(client.fileno(), select.EPOLLIN)
                new.append(member)
        return new

    def run(self, members: Sequence[Member], seconds: float, at_once: int = 1, patience: float = 30) -> list[float]:
        """These members call, each with so many calls under way, for so long or, if 0, once each.

        Seconds of each call. AssertionError if a reply is not there `patience` seconds after the last call was made.
        """
        times: list[float] = []
        end = time.monotonic() + seconds
        for member in members:
            for _ in range(at_once):
                member.call()
        under_way = len(members) * at_once
        while under_way:
            events = self._epoll.poll(0.2)
            now = time.monotonic()
            for fd, _ in events:
                member = self.members[fd]
                for _ in range(member.receive(times)):
                    if now < end:
                        member.call()
                    else:
                        under_way -= 1
            assert now < end + patience, f"{under_way} calls still wait for replies"
        return times
