# SPDX-License-Identifier: LGPL-2.1-or-later
"""One user floods the bridge while another makes one call at a time. For use inside a host, as root.

What is asked: the other user's calls take no longer than three times what they take when it is quiet. Phases of quiet
and of flood take turns in one run, so that a noisy machine is noisy for both.

How much of what is lost is the bridge's? The flood costs CPU outside of the bridge, too: its own process, the bus,
machined, polkit and the journal, on as few as two cores, and no scheduler of the bridge's gives that back. So there is
a control: a second bridge (a socket of the template, a process of its own) that nobody floods. Each probe goes to the
flooded one and to the control by turns. By how much GetInfo became slower at the control, which needs nothing but CPU,
is the machine's share; the figures are divided by it. They are not divided by what GetMachine lost at the control: how
much of machined's time a user gets is up to the bridge. All figures are printed.

A client that leaves does not take back what it sent: the probes go on for a while after the flood.

The flood costs its own process little: it sends blocks of ready-made calls, and counts replies without reading them.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.client import Client
from tests.lab.conftest import GUEST, SOCKET

from .inside import SERVICE, Tally, Times, Worker, acting_as, allow_many_files, settled
from .swarm import RECEIVE_SIZE, message

CONNECTIONS = 128
MESSAGE_MAX = 64 * 1024
BLOCK = 64 * 1024
# Seconds of a phase, and of what comes before it and does not count.
QUIET, FLOOD, AFTER, LEAD = 0.5, 0.8, 0.4, 0.15
SAMPLES_MIN = 40
PHASE_MAX = 5.0
RATIO_MAX = 3.0

CPU_ALONE = "org.varlink.service.GetInfo"
PROBES = {"GetMachine": {"name": GUEST}, CPU_ALONE: None}


def _full(method: str, parameters: Mapping[str, object], items: int = 1 << 62) -> bytes:
    """A call filled up to the largest message of users, by arguments as many as fit or as are given."""
    space = MESSAGE_MAX - len(message(method, {**parameters, "args": []}))
    count = min(items, space // 5)
    item = "x" * (space // count - 4)
    call = message(method, {**parameters, "args": [item] * count})
    assert MESSAGE_MAX * 0.9 < len(call) <= MESSAGE_MAX + 1
    return call


def _nested(levels: int) -> bytes:
    text = '{"method":"io.machine1.ListMachines","parameters":{"x":' + "[" * levels
    return (text + "]" * levels + "}}").encode() + b"\0"


SHELL = {"name": "nope", "path": "/bin/sh"}
READS = message("ListMachines") + message("GetMachine", {"name": GUEST}) + message("ListImages")
CHEAP = message("org.varlink.service.GetInfo")
CONTRACT = message("org.varlink.service.GetInterfaceDescription", {"interface": "io.machine1"})
INVALID = message("KillMachine", {"name": "nope", "signal": -1}) + message("NoSuchMethod") + message("GetMachine")
REFUSED = message("TerminateMachine", {"name": "nope"}) + message("RemoveImage", {"name": "nope"})
LARGE = [
    _full("OpenMachineShell", SHELL, items=1),  # one text
    _full("OpenMachineShell", SHELL, items=1900),  # as many items as a message of users may have
    message("OpenMachineShell", SHELL | {"args": ['\\"\n\u20ac' * 4000]}),  # escapes
    message("GetMachine", {f"stranger{number}": number for number in range(900)}),
]
MALFORMED = [
    _full("OpenMachineShell", SHELL),  # more items than fit into any command
    b"x" * (MESSAGE_MAX + 1) + b"\0",
    b'{"method":"' + b"\xff" * 60000 + b'"}\0',
    _nested(30),  # as deep as it may be, and no parameter of the method
    _nested(30000),
    json.dumps({"method": "a.b", "parameters": {str(number): {} for number in range(4000)}}).encode()[:-2] + b"\0",
]
UNFINISHED = CHEAP + READS[:-1]


@dataclass(frozen=True)
class Kind:
    """What each connection of a flood sends again and again: one of these. Whether it leaves as soon as it has sent."""

    blocks: list[bytes]
    leaves: bool = False

    @classmethod
    def of(cls, *calls: bytes, leaves: bool = False) -> Kind:
        return cls([call if leaves else call * max(1, BLOCK // len(call)) for call in calls], leaves)


KINDS = {
    "reads": Kind.of(READS),
    "cheap calls": Kind.of(CHEAP, INVALID),
    "large replies": Kind.of(CONTRACT),
    "questions to polkit": Kind.of(REFUSED),
    "large messages": Kind.of(*LARGE),
    "malformed messages": Kind.of(*MALFORMED, leaves=False),
    "coming and going": Kind.of(b"", UNFINISHED, leaves=True),
    "all at once": Kind.of(READS, CHEAP, CONTRACT, REFUSED, *LARGE, *MALFORMED, INVALID),
}


class _Flooder:
    """The process that floods. `tally` says with what, and hears how much came of it."""

    def __init__(self, path: str, tally: Tally) -> None:
        self._path = path
        self._tally = tally
        self._epoll = select.epoll()
        self._clients: dict[int, tuple[socket.socket, memoryview, bytes]] = {}
        self._turn = 0

    def run(self) -> None:
        """Until killed."""
        allow_many_files()
        kinds, now = [None, *KINDS.values()], 0
        while True:
            if self._tally["kind"] != now:
                now = self._tally["kind"]
                for client, _, _ in self._clients.values():
                    client.close()
                self._clients.clear()
                self._tally["now"] = now
            kind = kinds[now]
            if kind is None:
                time.sleep(0.005)
            else:
                self._flood(kind)

    def _flood(self, kind: Kind) -> None:
        while len(self._clients) < CONNECTIONS and self._connect(kind):
            pass
        for fd, events in self._epoll.poll(0.02):
            client, left, block = self._clients[fd]
            try:
                if events & select.EPOLLIN:
                    data = client.recv(RECEIVE_SIZE)
                    if not data:
                        raise ConnectionResetError
                    self._tally["replies"] += data.count(b"\0")
                if events & select.EPOLLOUT:
                    left = left[client.send(left) :] if left else left
                    self._clients[fd] = client, left or memoryview(block), block
                if events & (select.EPOLLHUP | select.EPOLLERR) or (kind.leaves and not left):
                    raise ConnectionResetError
            except BlockingIOError:
                pass
            except OSError:
                client.close()
                del self._clients[fd]

    def _connect(self, kind: Kind) -> bool:
        """False if the service has to accept others before."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.setblocking(False)
        try:
            client.connect(self._path)
        except OSError:
            client.close()
            return False
        self._turn += 1
        self._tally["connections"] += 1
        block = kind.blocks[self._turn % len(kind.blocks)]
        self._clients[client.fileno()] = client, memoryview(block), block
        self._epoll.register(client.fileno(), select.EPOLLIN | select.EPOLLOUT)
        return True


@dataclass
class Comparison:
    """What one probe took (seconds): when quiet, under a flood, and right after the flood's client left."""

    quiet: list[float] = field(default_factory=list)
    flood: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)

    @property
    def slower(self) -> float:
        """How many times as long the median call takes under the flood."""
        return Times.of(self.flood).median / Times.of(self.quiet).median

    @property
    def slower_after(self) -> float:
        return Times.of(self.after).median / Times.of(self.quiet).median

    def __str__(self) -> str:
        return (
            f"flood {self.slower:6.2f}, after {self.slower_after:6.2f}; quiet {Times.of(self.quiet)};"
            f" flood {Times.of(self.flood)}; after {Times.of(self.after)}"
        )


@dataclass
class Result:
    """Of one kind of flood: comparisons by probe, at both bridges; and how much of the flood there was a second."""

    flooded: dict[str, Comparison]
    control: dict[str, Comparison]
    replies: float = 0
    connections: float = 0

    def ratios(self) -> dict[str, float]:
        """The bridge's own share, which has a bound, by what was measured. That of the machine is never less than 1."""
        machine, shares = self.control[CPU_ALONE], {}
        for probe, comparison in self.flooded.items():
            shares[f"{probe} under the flood"] = comparison.slower / max(1.0, machine.slower)
            shares[f"{probe} after the flood"] = comparison.slower_after / max(1.0, machine.slower_after)
        return shares

    def too_slow(self) -> dict[str, float]:
        return {what: ratio for what, ratio in self.ratios().items() if ratio > RATIO_MAX}

    def lines(self, kind: str) -> list[str]:
        lines = [f"{kind}: {self.replies:.0f} replies, {self.connections:.0f} connections a second"]
        for where, comparisons in (("flooded", self.flooded), ("control", self.control)):
            lines += [f"  {where} {probe:28} {comparison}" for probe, comparison in comparisons.items()]
        shares = ", ".join(f"{what} {ratio:.2f}" for what, ratio in self.ratios().items())
        return [*lines, f"  the bridge's share: {shares}"]


def compare(uid: int, flooder: int, control: str, kinds: list[str], rounds: int) -> dict[str, Result]:
    """Probes by `uid` while `flooder` floods, in each of the kinds of flood. `control` is the second bridge's socket.

    Each time the bridge starts anew, or else the calls that the last flood left in its sockets would be no quiet.
    """
    tally = Tally("kind", "now", "replies", "connections")
    results = {
        kind: Result({probe: Comparison() for probe in PROBES}, {probe: Comparison() for probe in PROBES})
        for kind in kinds
    }
    with Worker(_Flooder(SOCKET, tally).run, uid=flooder):
        for _ in range(rounds):
            for kind, result in results.items():
                subprocess.run(["systemctl", "restart", SERVICE], check=True)
                with _clients(uid, SOCKET, control) as clients:
                    _round(clients, kind, result, tally, rounds)
    return results


def _round(clients: list[Client], kind: str, result: Result, tally: Tally, rounds: int) -> None:
    bridges = list(zip(clients, (result.flooded, result.control), strict=True))
    _probe([(client, {name: c.quiet for name, c in bridge.items()}) for client, bridge in bridges], QUIET)
    _set_flood(tally, 1 + list(KINDS).index(kind))
    before, started = (tally["replies"], tally["connections"]), time.monotonic()
    _probe([(client, {name: c.flood for name, c in bridge.items()}) for client, bridge in bridges], FLOOD)
    seconds = (time.monotonic() - started) * rounds
    result.replies += (tally["replies"] - before[0]) / seconds
    result.connections += (tally["connections"] - before[1]) / seconds
    _set_flood(tally, 0)
    _probe([(client, {name: c.after for name, c in bridge.items()}) for client, bridge in bridges], AFTER)


@contextlib.contextmanager
def _clients(uid: int, *paths: str) -> Iterator[list[Client]]:
    with contextlib.ExitStack() as stack:
        with acting_as(uid):
            clients = [stack.enter_context(Client(path, timeout=60)) for path in paths]
        yield clients


def _set_flood(tally: Tally, kind: int) -> None:
    tally["kind"] = kind
    assert settled(lambda: tally["now"], lambda now: now == kind) == kind, "the flood does not obey"


def _probe(bridges: list[tuple[Client, dict[str, list[float]]]], seconds: float) -> None:
    """Each probe at each bridge by turns, for so long, and until there are samples enough."""
    begin = time.monotonic() + LEAD
    end, count = begin + seconds, 0
    while (now := time.monotonic()) < end or not count or (count < SAMPLES_MIN and now < end + PHASE_MAX):
        for name, parameters in PROBES.items():
            for client, times in bridges:
                started = time.perf_counter()
                client.call(name, parameters)
                if now >= begin:
                    times[name].append(time.perf_counter() - started)
        count += now >= begin
