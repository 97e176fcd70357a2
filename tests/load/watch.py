# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tries to catch WatchMachines losing a change: `python -m tests.load.watch --minutes 10 [SUITE...]`, with `make soak`.

A driver registers and removes machines over D-Bus, past the bridge, and writes down each change. Now and then it asks
machined what there is, ends machined or the bus, and has machined exit when it is idle. Clients watch meanwhile: one
always, one that leaves and comes back with its cursor, one that reads so slowly that it misses changes and has to be
told how many.

At the end what each client was told is held against what the driver did. Each change has to be there, once and in its
place, and each snapshot has to be the state after as many changes as it says; only across an end of the bus may changes
be missing, and then the snapshot has to say so.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.client import CallError, Client
from tests.lab.conftest import SOCKET
from tests.lab.host import SUITES, Host

from .inside import Tally, Times, Worker, pid_of
from .truth import Machined

LEADERS = 12
AGAIN = "watch-again"  # a name that comes and goes
STAYS, END = "watch-stays", "watch-end"
# Changes in a row without a pause: more than the bridge and the socket keep for those who are slow.
BURST = 12_000
# Seconds that the client stays which comes back, and between looks of the one that is slow.
STAY_MAX, PAUSE_MAX = 1.0, 2.0
LISTED_EVERY = 20  # changes

# What the driver did. `added` and `removed` are changes; `listed` what machined said; `gap` is where machined was ended
# while there were machines, or the bus.
ADDED, REMOVED, LISTED, GAP = "added", "removed", "listed", "gap"


@dataclass(frozen=True)
class Deed:
    """`name` of the machine, `names` that machined lists, `when` it was begun (CLOCK_MONOTONIC)."""

    kind: str
    name: str = ""
    names: frozenset[str] = frozenset()
    when: float = 0.0


@dataclass(frozen=True)
class Told:
    """A reply, as far as it counts here."""

    event: str
    names: frozenset[str]
    when: float
    gap: str = ""
    missed: int = 0


@dataclass
class Verdict:
    """How many changes a client was told of, and how many snapshots and lists of machined were as they have to be.

    `missed` are changes that the bridge said were missed. `wrong` is where it went wrong.
    """

    told: int = 0
    missed: int = 0
    snapshots: int = 0
    resumed: int = 0
    compared: int = 0
    gaps: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    wrong: list[str] = field(default_factory=list)
    latency: Times | None = None

    def __str__(self) -> str:
        gaps = ", ".join(f"{count} {gap}" for gap, count in sorted(self.gaps.items())) or "none"
        return (
            f"{self.told} changes told, {self.missed} said to be missed, {self.snapshots} snapshots (gaps: {gaps}),"
            f" {self.resumed} times resumed, {self.compared} lists of machined compared, wrong: {len(self.wrong)};"
            f" {self.latency or 'no latency'}"
        )


# --- the judge ------------------------------------------------------------------------------------------------------


class Judge:
    """What there was after each change that the driver made."""

    def __init__(self, deeds: Sequence[Deed]) -> None:
        self.changes = [deed for deed in deeds if deed.kind in (ADDED, REMOVED)]
        self.states: list[int] = [0]  # of each number of changes, a number that stands for the set
        self._after: dict[int, list[int]] = defaultdict(list, {0: [0]})
        self.lists: dict[int, list[frozenset[str]]] = defaultdict(list)
        self.gaps: list[int] = []
        for deed in deeds:
            if deed.kind == LISTED:
                self.lists[len(self.states) - 1].append(deed.names)
            elif deed.kind == GAP:
                self.gaps.append(len(self.states) - 1)
            else:
                self.states.append(self.states[-1] ^ _number([deed.name]))
                self._after[self.states[-1]].append(len(self.states) - 1)

    def judge(self, told: Sequence[Told]) -> Verdict:
        """The places where the client can be by what it was told are few; without any it was told something wrong."""
        verdict, delays = Verdict(), []
        places = {0}
        for number, reply in enumerate(told):
            if reply.event == "resumed":
                verdict.resumed += 1
                continue
            if reply.event == "snapshot":
                verdict.snapshots += 1
                if reply.gap:
                    verdict.gaps[reply.gap] += 1
                verdict.missed += reply.missed
                following = self._after_snapshot(places, reply)
            else:
                verdict.told += 1
                following = {
                    place + 1
                    for place in places
                    if place < len(self.changes)
                    and self.changes[place].kind == reply.event
                    and reply.names == {self.changes[place].name}
                }
                delays += [reply.when - self.changes[place].when for place in list(places)[:1] if following]
            if not following:
                place = min(places)
                due = self.changes[place : place + 3]
                verdict.wrong.append(f"reply {number}, {reply}, after change {place}, due: {due}")
                break
            places = following
            for names in self.lists.get(min(places), ()) if len(places) == 1 else ():
                # The names that were told amount to this state, or there would be no place.
                verdict.compared += 1
                if _number(names) != self.states[min(places)]:
                    verdict.wrong.append(f"machined listed {sorted(names)} after change {min(places)}")
        if not verdict.wrong and len(self.changes) not in places:
            verdict.wrong.append(f"it ends after change {places} of {len(self.changes)}")
        verdict.latency = Times.of(delays) if delays else None
        return verdict

    def _after_snapshot(self, places: set[int], reply: Told) -> set[int]:
        """Those where the state is this one."""
        candidates = self._after.get(_number(reply.names), [])
        if not reply.gap:
            return {place for place in candidates if place in places}
        if reply.gap == "lagged":
            return {place for place in candidates if place - reply.missed in places}
        if reply.gap == "restarted":
            # What the client has not read when the bridge goes on after a gap is missing, too, if it is slow.
            return {
                place
                for place in candidates
                if place >= min(places) and any(min(places) <= gap <= place for gap in self.gaps)
            }
        return set()


def _number(names: Sequence[str] | frozenset[str]) -> int:
    """Stands for a set of names, within one process."""
    number = 0
    for name in names:
        number ^= hash(name)
    return number


# --- what happens inside the host -----------------------------------------------------------------------------------


class Driver:
    """Makes the changes."""

    def __init__(self, leaders: Sequence[int]) -> None:
        self.deeds: list[Deed] = []
        self._machined = Machined()
        self._leaders = leaders
        self._free = list(leaders)
        self._there: dict[str, int] = {}
        self._number = 0

    def add(self, name: str) -> None:
        leader = self._free.pop()
        self._there[name] = leader
        self.deeds.append(Deed(ADDED, name, when=time.monotonic()))
        self._machined.call("RegisterMachine", "sayssus", name, b"", "watch", "container", leader, "")

    def remove(self, name: str) -> None:
        self.deeds.append(Deed(REMOVED, name, when=time.monotonic()))
        self._machined.call("UnregisterMachine", "s", name)
        # 262 says so a moment before it forgets the machine, and its leader cannot be another's in between.
        while name in self._names():
            pass
        self._free.insert(0, self._there.pop(name))

    def listed(self) -> None:
        self.deeds.append(Deed(LISTED, names=frozenset(self._names())))

    def _names(self) -> set[str]:
        return self._machined.names("ListMachines") - {".host"}

    def step(self) -> None:
        """A few changes. Some machines are gone before anybody can have asked what they are."""
        self._number += 1
        name = f"watch-{self._number}"
        kind = self._number % 4
        self.add(name)
        if kind == 0 and AGAIN in self._there:
            self.remove(AGAIN)
            self.add(AGAIN)
        elif kind == 0:
            self.add(AGAIN)
        oldest = next(each for each in [*self._there, name] if each not in (STAYS, AGAIN))
        if kind == 1:
            self.remove(name)
        elif len(self._there) > LEADERS - 4:
            self.remove(oldest)
        if self._number % LISTED_EVERY == 0:
            self.listed()

    def end_machined(self) -> None:
        """In the middle of its work."""
        os.kill(pid_of("systemd-machined.service"), 9)
        self._resume()

    def end_bus(self) -> None:
        """machined goes with it."""
        self._machined.close()
        subprocess.run(["systemctl", "restart", "dbus.service"], check=True)
        self._resume()

    def _resume(self) -> None:
        """When machined is there again, and what was kept of it; the bridge has to notice in the meantime."""
        self.deeds.append(Deed(GAP))
        time.sleep(1.5)
        # The bus may lose the start of machined, while systemd is not back on it, and says so after 25 seconds.
        deadline = time.monotonic() + 60
        while True:
            try:
                self._machined.close()
                self._machined = Machined()
                self._names()
                break
            except (CallError, OSError):
                assert time.monotonic() < deadline, "machined does not come again"
                time.sleep(0.1)
        self.listed()

    def idle(self) -> None:
        """Without machines machined leaves the bus, which is no gap."""
        for name in list(self._there):
            self.remove(name)
        time.sleep(0.5)  # the bridge may be asking still, which would start it again
        subprocess.run(["systemctl", "stop", "systemd-machined.service"], check=True)
        time.sleep(0.5)
        self.add(STAYS)

    def end(self) -> None:
        self.add(END)
        self.listed()
        time.sleep(1)
        self._machined.close()


def drive(tally: Tally, leaders: Sequence[int], seconds: float, burst: int) -> list[Deed]:
    """Each of what ends machined and the bus, again and again, and bursts in between."""
    driver = Driver(leaders)
    driver.add(STAYS)
    incidents: list[Callable[[], None]] = [driver.end_machined, driver.idle, driver.end_bus]
    steps = max(6, round(seconds / 50) * 3)
    begin = time.monotonic()
    for number in range(steps):
        end = begin + seconds * (number + 1) / steps
        middle = (time.monotonic() + end) / 2
        while time.monotonic() < end:
            if burst and number % 3 == 1 and middle and time.monotonic() > middle:
                middle = 0.0
                tally["burst"] = 1
                before = len(driver.deeds)
                while len(driver.deeds) - before < burst:
                    driver.step()
                tally["burst"] = 0
            driver.step()
            time.sleep(random.uniform(0, 0.01))  # noqa: S311
        incidents[number % len(incidents)]()
    driver.end()
    return driver.deeds


def _told(reply: dict[str, Any]) -> Told:
    assert "error" not in reply, reply
    assert reply["continues"]
    parameters = reply["parameters"]
    names = frozenset(machine["name"] for machine in parameters["machines"])
    return Told(parameters["event"], names, time.monotonic(), parameters.get("gap", ""), parameters.get("missed", 0))


def _is_the_end(told: Told) -> bool:
    return told.event in ("added", "snapshot") and END in told.names


def watch_always(tally: Tally) -> list[Told]:
    with Client(SOCKET, timeout=60) as client:
        client.send("WatchMachines", more=True)
        told = [_told(client.receive())]
        tally["always"] = 1
        while not _is_the_end(told[-1]):
            told.append(_told(client.receive()))
        return told


def watch_and_come_back(tally: Tally) -> list[Told]:
    """With the cursor of the last reply that was read; others may have been on the way."""
    told: list[Told] = []
    cursor: str | None = None
    while not told or not _is_the_end(told[-1]):
        with Client(SOCKET, timeout=60) as client:
            client.send("WatchMachines", {"cursor": cursor}, more=True)
            end = time.monotonic() + random.uniform(0, STAY_MAX)  # noqa: S311
            while True:
                reply = client.receive()
                told.append(_told(reply))
                cursor = reply["parameters"]["cursor"]
                tally["coming"] = 1
                if time.monotonic() > end or _is_the_end(told[-1]):
                    break
    return told


def watch_slowly(tally: Tally) -> list[Told]:
    """With pauses, and not at all during a burst. Others must not have to wait for it."""
    with Client(SOCKET, timeout=60) as client:
        client.send("WatchMachines", more=True)
        told = [_told(client.receive())]
        tally["slow"] = 1
        while not _is_the_end(told[-1]):
            time.sleep(random.uniform(0, PAUSE_MAX))  # noqa: S311
            while tally["burst"]:
                time.sleep(0.05)
            client.socket.settimeout(0.1)
            try:
                while not _is_the_end(told[-1]) and not tally["burst"]:
                    told.append(_told(client.receive()))
            except TimeoutError:
                assert time.monotonic() - told[-1].when < 90, "nothing comes any more"
        return told


@contextmanager
def _leaders() -> Iterator[list[int]]:
    """Processes that a machine can be registered for, each in a unit of its own."""
    units = [f"watch-leader-{number}.service" for number in range(LEADERS)]
    try:
        for unit in units:
            subprocess.run(["systemd-run", "--quiet", "--collect", f"--unit={unit}", "sleep", "infinity"], check=True)
        yield [pid_of(unit) for unit in units]
    finally:
        subprocess.run(["systemctl", "stop", *units], check=True)


def run(seconds: float, burst: int) -> dict[str, Verdict]:
    """Inside a host, as root."""
    with _leaders() as leaders, ExitStack() as stack:
        tally = Tally("always", "coming", "slow", "burst")
        watchers = {
            "always": stack.enter_context(Worker(watch_always, tally)),
            "coming back": stack.enter_context(Worker(watch_and_come_back, tally)),
            "slow": stack.enter_context(Worker(watch_slowly, tally)),
        }
        deadline = time.monotonic() + 30
        while not (tally["always"] and tally["coming"] and tally["slow"]):
            assert time.monotonic() < deadline, "the clients do not come to watch"
            time.sleep(0.01)
        driver = stack.enter_context(Worker(drive, tally, leaders, seconds, burst))
        deeds = driver.result(seconds * 2 + 120)
        judge = Judge(deeds)
        verdicts = {name: judge.judge(watcher.result(90)) for name, watcher in watchers.items()}
        _clear(Machined())
    return verdicts


def _clear(machined: Machined) -> None:
    """What the driver has registered and not removed."""
    for name in machined.names("ListMachines") - {".host"}:
        if name.startswith("watch-"):
            machined.call("UnregisterMachine", "s", name)
    machined.close()


def watch(host: Host, seconds: float, burst: int) -> dict[str, Verdict]:
    """On a host with the bridge and without machines. Prints a line for each client."""
    # Restarts of the bus and of machined follow one another faster than systemd likes.
    for unit in ("systemd-machined.service", "dbus.service"):
        drop_in = host.path / f"etc/systemd/system/{unit}.d/watch.conf"
        drop_in.parent.mkdir(parents=True, exist_ok=True)
        drop_in.write_text("[Unit]\nStartLimitIntervalSec=0\n")
    host.run(["systemctl", "daemon-reload"])
    verdicts = host.inside(run, seconds, burst, timeout=seconds * 3 + 300)
    for name, verdict in verdicts.items():
        print(f"systemd {SUITES[host.suite]}, {name}: {verdict}", *verdict.wrong[:3], sep="\n    ", flush=True)
    return verdicts


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load.watch", description=__doc__.partition("\n")[0])
    parser.add_argument("suites", nargs="*", default=["forky"], metavar="SUITE", help="(default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="on each (default: %(default)s)")
    options = parser.parse_args(arguments)
    wrong = 0
    for suite in options.suites:
        with Host.boot(suite, f"watch-{suite}-{os.getpid()}") as host:
            host.install()
            verdicts = watch(host, options.minutes * 60, BURST)
        wrong += sum(len(verdict.wrong) for verdict in verdicts.values())
        wrong += not verdicts["slow"].missed  # it would show nothing
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
