# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything at once, for long: `python -m tests.load.soak --minutes 10 --suite forky`, or `make soak`.

Clients of several kinds work beside each other, at a pace that leaves the machine some air: lists, shells, images
cloned and removed, calls that are refused, clients that come and leave, messages that are none, clients that read
slowly or never, and 100 that stay connected and call now and then. Each checks what it gets. Meanwhile probes measure
how long calls take, and what the bridge holds is written down.

At the end it is judged: the same file descriptors as at the beginning, no more memory, calls as quick as before, and no
error.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.client import Client
from tests.lab.conftest import GUEST, SOCKET, warm_up
from tests.lab.host import SUITES, Host

from .inside import Cost, Tally, Times, Worker, acting_as, pid_of, settled
from .shells import open_one
from .swarm import Exchange, Swarm, message
from .truth import Machined

SHELLS = 10_000
SHELL_CLIENTS = 4
NOBODY, OTHER = 65534, 33  # nobody and www-data, in every Debian
# Calls that are measured, and the control of each: what needs the same of the machine, but goes past the bridge.
# GetInfo shows the bridge alone, GetMachine needs machined, which shells and images keep busy.
PROBES = {"GetMachine": "ListMachines", "GetInfo": "Ping", "ListMachines": "", "Ping": ""}
PROBE_PAUSE = 0.02
DENIED = ("org.varlink.service.PermissionDenied", "io.systemd.InteractiveAuthenticationRequired")
NEVER_VARLINK = [b"nonsense\0", b"{}\0", b"\xff\0", b'{"method":1}\0', b"[" * 1000 + b"\0", b"x" * 70000]

CONTRACT = message("org.varlink.service.GetInterfaceDescription", {"interface": "io.machine1"})
REPLY_SECONDS = 60  # of the default policy

# --- the judge -------------------------------------------------------------------------------------------------------

# MiB of allocated memory: how much the mean of the last quarter may be above that of the second (the first is
# warm-up), and how much a line through the last half may rise in ten minutes. A run of less than SHORT seconds is still
# warming up then: so much for all of it.
QUARTERS_MAX, RISE_MAX, RISE_MAX_SHORT = 1.0, 0.5, 0.6
# How many times as long as in the second quarter the median call may take in the last, by the clock or beside its
# control; in a short run, whose quarters are over before a noisy machine's noise is, more.
SLOWER_MAX, SLOWER_MAX_SHORT, SHORT = 1.5, 3.0, 300.0


@dataclass(frozen=True)
class Sample:
    """What was seen at one time. Memory is MiB, the rest is since the sample before."""

    seconds: float
    bridge: Cost
    machined: Cost
    probes: dict[str, Times]
    calls: int
    shells: int
    errors: int

    def __str__(self) -> str:
        return (
            f"{self.seconds:5.0f} s  PSS {self.bridge.pss:5.2f}, RSS {self.bridge.rss:5.2f},"
            f" allocated {self.bridge.anonymous:5.2f} MiB  {self.bridge.fds:3} FDs"
            f"  {'  '.join(self._probe(*names) for names in PROBES.items() if names[1])}"
            f"  {self.calls:5} calls  {self.shells:4} shells  {self.errors} errors"
        )

    def _probe(self, name: str, control: str) -> str:
        times = self.probes[name]
        return f"{name} {times.median:5.2f} ms, p99 {times.p99:6.2f} ({control} {self.probes[control].median:5.2f})"


@dataclass(frozen=True)
class Run:
    """All of a run: what the bridge held before any client came and after all had left, and between."""

    before: Cost
    after: Cost
    guest_before: Guest
    guest_after: Guest
    machined_before: Cost
    machined_after: Cost
    same_processes: bool
    samples: list[Sample]


@dataclass(frozen=True)
class Guest:
    """What shells could leave in a guest: terminals and units."""

    terminals: int
    units: int

    @classmethod
    def of(cls, name: str) -> Guest:
        show = ["machinectl", "show", "--property=Leader", "--value", name]
        leader = subprocess.run(show, check=True, capture_output=True, text=True).stdout.strip()
        script = "ls /dev/pts | wc -l; systemctl list-units --all --no-legend 'container-shell@*' | wc -l"
        enter = ["nsenter", f"--target={leader}", "--all", "--", "sh", "-euc", script]
        terminals, units = subprocess.run(enter, check=True, capture_output=True, text=True).stdout.split()
        return cls(int(terminals), int(units))


def judge(run: Run) -> list[str]:
    """What is wrong, each as a line; nothing if all is flat."""
    complaints = []
    if not run.same_processes:
        complaints.append("the bridge or machined is another process than before")
    if run.after.fds != run.before.fds:
        complaints.append(f"the bridge has {run.after.fds} file descriptors, had {run.before.fds}")
    if run.machined_after.fds > run.machined_before.fds:
        complaints.append(f"machined has {run.machined_after.fds} file descriptors, had {run.machined_before.fds}")
    if run.guest_after != run.guest_before:
        complaints.append(f"in the guest {run.guest_after}, before {run.guest_before}")
    if errors := sum(sample.errors for sample in run.samples):
        complaints.append(f"{errors} errors")
    return complaints + _judge_memory(run.samples) + _judge_latency(run.samples)


def _judge_memory(samples: Sequence[Sample]) -> list[str]:
    complaints = []
    _, second, _, last = _quarters(samples)
    growth = statistics.fmean(s.bridge.anonymous for s in last) - statistics.fmean(s.bridge.anonymous for s in second)
    if growth > QUARTERS_MAX:
        complaints.append(f"{growth:.2f} MiB more memory in the last quarter than in the second")
    half = samples[len(samples) // 2 :]
    seconds = half[-1].seconds - half[0].seconds
    # The median of all slopes between two samples (Theil and Sen): one new peak, after which all is flat, is no slope.
    slope = statistics.median(
        (later.bridge.anonymous - earlier.bridge.anonymous) / (later.seconds - earlier.seconds)
        for earlier, later in itertools.combinations(half, 2)
    )
    if slope * seconds > (RISE_MAX * seconds / 600 if samples[-1].seconds >= SHORT else RISE_MAX_SHORT):
        complaints.append(f"memory rose by {slope * seconds:.2f} MiB in the last {seconds:.0f} s")
    return complaints


def _judge_latency(samples: Sequence[Sample]) -> list[str]:
    complaints = []
    most = SLOWER_MAX if samples[-1].seconds >= SHORT else SLOWER_MAX_SHORT
    _, second, _, last = _quarters(samples)
    for probe, control in PROBES.items():
        if not control:
            continue
        before, after = _median(second, probe), _median(last, probe)
        machine = max(1.0, _median(last, control) / _median(second, control))
        if after > most * before * machine:
            complaints.append(f"{probe} takes {after:.2f} ms in the last quarter, {before:.2f} ms in the second")
    return complaints


def _median(samples: Sequence[Sample], probe: str) -> float:
    return statistics.median(sample.probes[probe].median for sample in samples)


def _quarters(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    assert len(samples) >= 8, "too short a run to judge"
    ends = [len(samples) * number // 4 for number in range(5)]
    return [samples[begin:end] for begin, end in itertools.pairwise(ends)]


# --- the clients, each a process inside the host ---------------------------------------------------------------------


class Work:
    """Counts for one client, and its pace."""

    def __init__(self) -> None:
        self.tally = Tally("calls", "errors", "shells", "over")

    @property
    def over(self) -> bool:
        return bool(self.tally["over"])

    def again(self, step: Callable[[], int], pause: float, *, by_the_clock: bool = False) -> None:
        """A step that makes so many calls, again and again until told to end: with pauses, or one each `pause`."""
        due = time.monotonic()
        while not self.over:
            due += pause
            try:
                self.tally["calls"] += step()
            except Exception as error:
                self.tally["errors"] += 1
                print(f"{step.__qualname__}: {error!r}", file=sys.stderr, flush=True)
            left = due - time.monotonic() if by_the_clock else pause
            while left > 0 and not self.over:
                time.sleep(min(left, 0.2))
                left -= 0.2


def reading(work: Work) -> None:
    """Lists and single machines, on one connection."""
    with Client(SOCKET) as client:

        def step() -> int:
            names = [machine["name"] for machine in client.call("ListMachines")["machines"]]
            assert names == [GUEST], names
            assert client.call("GetMachine", {"name": GUEST})["machine"]["name"] == GUEST
            assert client.error("GetMachine", {"name": "nope"})[0] == "io.machine1.NoSuchMachine"
            assert "io.machine1" in client.call("org.varlink.service.GetInfo")["interfaces"]
            return 4

        work.again(step, 0.02)


def shells(work: Work, pause: float) -> None:
    """One shell after the other, every second one read to its end."""
    with Client(SOCKET, timeout=60) as client:

        def step() -> int:
            work.tally["shells"] += 1
            open_one(client, GUEST, read=work.tally["shells"] % 2 == 0)
            return 1

        work.again(step, pause, by_the_clock=True)


def imaging(work: Work) -> None:
    """An image cloned, renamed, seen and removed."""
    with Client(SOCKET, timeout=60) as client:

        def step() -> int:
            client.call("CloneImage", {"name": "base", "dest": "soak1"})
            client.call("RenameImage", {"name": "soak1", "dest": "soak2"})
            assert {image["name"] for image in client.call("ListImages")["images"]} == {GUEST, "base", "soak2"}
            client.call("RemoveImage", {"name": "soak2"})
            assert {image["name"] for image in client.call("ListImages")["images"]} == {GUEST, "base"}
            return 5

        work.again(step, 0.1)


def refused(work: Work) -> None:
    """What somebody may not do, and what nobody can."""
    with Client(SOCKET) as client:

        def step() -> int:
            assert client.error("TerminateMachine", {"name": GUEST})[0] in DENIED
            assert client.error("OpenMachineShell", {"name": GUEST, "path": "/bin/sh"})[0] in DENIED
            assert client.error("RemoveImage", {"name": "base"})[0] in DENIED
            name, parameters = client.error("KillMachine", {"name": GUEST, "signal": 1000})
            assert (name, parameters["parameter"]) == ("org.varlink.service.InvalidParameter", "signal")
            assert client.error("NoSuchMethod")[0] == "org.varlink.service.MethodNotFound"
            return 5

        work.again(step, 0.1)


def coming_and_going(work: Work) -> None:
    """Clients that leave in the middle of anything: a message, a call, a reply."""
    call = message("ListMachines")
    chance = random.Random(1)  # noqa: S311  the same clients each time

    def step() -> int:
        clients = []
        for _ in range(8):
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            client.connect(SOCKET)
            client.sendall((call * 3)[: chance.randrange(3 * len(call))])
            if chance.random() < 0.3:
                client.shutdown(chance.choice([socket.SHUT_RD, socket.SHUT_WR]))
            clients.append(client)
        chance.shuffle(clients)
        for client in clients:
            client.close()
        return len(clients)

    work.again(step, 0.05)


def malformed(work: Work) -> None:
    """What is no Varlink ends the connection."""

    def step() -> int:
        for nonsense in NEVER_VARLINK:
            with Client(SOCKET) as client:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # closed before it had all
                    client.send_bytes(nonsense)
                assert client.is_closed(), nonsense[:20]
        return len(NEVER_VARLINK)

    work.again(step, 0.1)


def reading_slowly(work: Work) -> None:
    """A megabyte of replies, left alone for a while, then all of it, right."""
    exchange = Exchange.now(SOCKET, CONTRACT)
    count = (1 << 20) // len(exchange.reply) + 1

    def step() -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(15)
            client.connect(SOCKET)
            client.sendall(CONTRACT * count)
            time.sleep(1)
            left = len(exchange.reply) * count
            received = bytearray()
            while len(received) < left:
                data = client.recv(1 << 16)
                assert data, f"hung up {left - len(received)} bytes before the end"
                received += data
            assert received == exchange.reply * count
        return count

    work.again(step, 0.5)


def never_reading(work: Work) -> None:
    """Who lets a reply lie for a minute is hung up on."""

    def step() -> int:
        with Client(SOCKET) as client:
            client.send_bytes(CONTRACT * 200)
            poll, started = select.poll(), time.monotonic()
            poll.register(client.socket, 0)  # nothing but the hang-up, which is always told
            while not work.over and not poll.poll(500):
                assert time.monotonic() < started + REPLY_SECONDS + 15, "nobody hung up"
            assert work.over or time.monotonic() > started + REPLY_SECONDS - 1, "hung up too early"
        return 1

    work.again(step, 1)


def staying(work: Work) -> None:
    """100 connections of ten users that stay open, and all call now and then."""
    exchanges = [
        Exchange.now(SOCKET, message(method, parameters))
        for method, parameters in (
            ("GetMachine", {"name": GUEST}),
            ("ListMachines", None),
            ("org.varlink.service.GetInfo", None),
        )
    ]
    with Swarm(SOCKET) as swarm:
        for user in range(10):
            for member in swarm.connect(10, 60000 + user):
                member.takes(exchanges)
        members = list(swarm.members.values())
        work.again(lambda: len(swarm.run(members, 0)), 1)


# --- the run ---------------------------------------------------------------------------------------------------------


def run(seconds: float, interval: float, shell_count: int) -> Run:
    """Inside a host, as root: all clients for so long, a sample each interval."""
    pids = pid_of(), pid_of("systemd-machined.service")
    before, machined_before, guest_before = Cost.of(pids[0]), Cost.of(pids[1]), Guest.of(GUEST)
    samples = []
    with _clients(shell_count / SHELL_CLIENTS / seconds) as works, _probing() as probes:
        started = last = time.monotonic()
        counted = dict.fromkeys(("calls", "errors", "shells"), 0)
        while last - started < seconds:
            times: dict[str, list[float]] = {name: [] for name in PROBES}
            while time.monotonic() < last + interval:
                for name, call in probes.items():
                    begun = time.perf_counter()
                    call()
                    times[name].append(time.perf_counter() - begun)
                time.sleep(PROBE_PAUSE)
            last = time.monotonic()
            now = {name: sum(work.tally[name] for work in works) for name in counted}
            new = {name: now[name] - counted[name] for name in counted}
            counted = now
            bridge, machined = map(Cost.of, pids)
            taken = {name: Times.of(seconds) for name, seconds in times.items()}
            sample = Sample(last - started, bridge, machined, taken, **new)
            print(sample, flush=True)
            samples.append(sample)
    after = settled(lambda: Cost.of(pids[0]), lambda cost: cost.fds == before.fds)
    guest_after = settled(lambda: Guest.of(GUEST), lambda guest: guest == guest_before)
    machined_after = settled(lambda: Cost.of(pids[1]), lambda cost: cost.fds <= machined_before.fds)
    same = pids == (pid_of(), pid_of("systemd-machined.service"))
    return Run(before, after, guest_before, guest_after, machined_before, machined_after, same, samples)


@contextmanager
def _clients(shell_pace: float) -> Iterator[list[Work]]:
    """All clients at work. `shell_pace`: shells a second of each client of those."""
    with ExitStack() as stack:
        works, workers = [], []

        def start(client: Callable[..., None], *arguments: object, uid: int = 0) -> None:
            works.append(Work())
            workers.append(stack.enter_context(Worker(client, works[-1], *arguments, uid=uid)))

        start(reading, uid=OTHER)
        for _ in range(SHELL_CLIENTS):
            start(shells, 1 / shell_pace)
        start(imaging)
        start(refused, uid=NOBODY)
        start(coming_and_going, uid=NOBODY)
        start(malformed, uid=NOBODY)
        start(reading_slowly, uid=NOBODY)
        start(never_reading, uid=NOBODY)
        start(staying)
        yield works
        for work in works:
            work.tally["over"] = 1
        for worker in workers:
            worker.result(90)


@contextmanager
def _probing() -> Iterator[dict[str, Callable[[], object]]]:
    """What is measured, each a call of one client of its own."""
    with acting_as(OTHER):
        client = Client(SOCKET, timeout=30)
    machined = Machined()
    with client:
        yield {
            "GetMachine": lambda: client.call("GetMachine", {"name": GUEST}),
            "GetInfo": lambda: client.call("org.varlink.service.GetInfo"),
            "ListMachines": lambda: machined.call("ListMachines"),
            "Ping": machined.ping,
        }
    machined.close()


def soak(host: Host, seconds: float, interval: float, shell_count: int) -> Run:
    """On a host with the bridge and its guest. Prints as it goes."""
    host.image("base")
    try:
        host.inside(warm_up)
        host.inside(warm_up, uid=NOBODY)
        return host.inside(run, seconds, interval, shell_count, timeout=seconds * 2 + 180)
    finally:
        host.run(["rm", "-r", "/var/lib/machines/base"])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: %(default)s)")
    parser.add_argument("--suite", choices=SUITES, default="forky", help="of the host (default: %(default)s)")
    parser.add_argument("--shells", type=int, default=SHELLS, help="how many in all (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there, too")
    options = parser.parse_args(arguments)
    seconds = options.minutes * 60
    with Host.boot(options.suite, f"soak-{options.suite}-{os.getpid()}") as host:
        host.install()
        host.guest(GUEST)
        found = soak(host, seconds, min(10.0, seconds / 16), options.shells)
    complaints = judge(found)
    if options.json:
        options.json.write_text(json.dumps(asdict(found) | {"complaints": complaints}, indent=1))
    print(f"before: {found.before}; machined {found.machined_before}; {found.guest_before}")
    print(f"after:  {found.after}; machined {found.machined_after}; {found.guest_after}")
    print(f"{sum(s.calls for s in found.samples)} calls, {sum(s.shells for s in found.samples)} shells")
    print(*(complaints or ["flat"]), sep="\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
