# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bridge with a thousand clients, under a flood, with shells in number, with clients that do not read."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.client import Client
from tests.lab.conftest import GUEST, SOCKET, warm_up
from tests.lab.host import Host
from tests.lab.test_authorization import add_socket

from .flood import KINDS, compare
from .inside import SERVICE, Cost, Times, acting_as, pid_of, settled
from .many import many_machines
from .shells import Shells
from .soak import CONTRACT, NOBODY, OTHER, PROBES, Guest, Run, Sample, judge, soak
from .swarm import RECEIVE_SIZE, Exchange, Swarm, message

USERS, OF_A_USER, CALLING = range(60000, 60010), 100, 200
SHELL_SECONDS = 5.0
POLICY = 'preset = "read-only"\nmachines = ["*"]\nimages = ["*"]\n'
# KiB of the bridge's memory for a connection, and MiB that may come on top with later crowds.
PER_CONNECTION_MAX, STAYS_MAX = 16, 0.5


def report(*lines: object) -> None:
    print(*lines, sep="\n", flush=True)


# --- a thousand connections ------------------------------------------------------------------------------------------


def crowd(seconds: float) -> Cost:
    """Inside a host: 1,000 connections of ten users, 200 of them calling for so long; what the bridge holds after."""
    pid = pid_of()
    before = Cost.of(pid)
    calls = [message("GetMachine", {"name": GUEST}), message("ListMachines"), message("org.varlink.service.GetInfo")]
    exchanges = [Exchange.now(SOCKET, call) for call in calls]
    with Swarm(SOCKET) as swarm:
        for uid in USERS:
            for member in swarm.connect(OF_A_USER, uid):
                member.takes(exchanges)
        everybody = list(swarm.members.values())
        swarm.run(everybody, 0)
        started = time.monotonic()
        times = swarm.run(everybody[:: len(everybody) // CALLING], seconds)
        rate = len(times) / (time.monotonic() - started)
        swarm.run(everybody, 0)
        full = Cost.of(pid)
        assert full.fds >= before.fds + len(everybody)
        assert all(member.answered >= 2 for member in everybody)
        one = (full.anonymous - before.anonymous) * 1024 / len(everybody)
        report(f"{rate:.0f} calls a second: {Times.of(times)}; {one:.1f} KiB a connection; {full}")
        assert one <= PER_CONNECTION_MAX
    after = settled(lambda: Cost.of(pid), lambda cost: cost.fds == before.fds)
    assert after.fds == before.fds
    return after


def test_a_thousand_connections_and_200_of_them_calling(host: Host) -> None:
    """Every call is answered, with its own answer. What memory stays after some crowds serves all that come."""
    costs = [host.inside(crowd, seconds) for seconds in (2, 0.5, 0.5, 0.5, 0.5)]
    assert costs[-1].anonymous - costs[2].anonymous <= STAYS_MAX


# --- shells ----------------------------------------------------------------------------------------------------------


def open_shells(seconds: float) -> None:
    pids = pid_of(), pid_of("systemd-machined.service")
    before, guest = [Cost.of(pid) for pid in pids], Guest.of(GUEST)
    shells = Shells(GUEST, seconds=seconds)
    rate = shells.run()
    assert shells.errors == []
    after_guest = settled(lambda: Guest.of(GUEST), lambda now: now == guest)
    fds = [cost.fds for cost in before]
    after = settled(lambda: [Cost.of(pid) for pid in pids], lambda costs: [cost.fds for cost in costs] == fds)
    report(f"{shells.opened} shells, {rate:.0f} a second; before {before} {guest}, after {after} {after_guest}")
    assert after_guest == guest
    assert [cost.fds for cost in after] == fds
    assert after[0].anonymous - before[0].anonymous <= 1


def test_shells_opened_and_closed(host: Host) -> None:
    """As many as a few seconds hold; 10,000 are part of `make soak`."""
    host.inside(open_shells, SHELL_SECONDS)


# --- a flood ---------------------------------------------------------------------------------------------------------


def test_a_flood_of_one_user_does_not_keep_another_waiting(host: Host) -> None:
    """Not by any kind of flood. See flood.py for what is compared with what.

    A kind that seems to is tried a second time, for longer: on a noisy machine one of so many figures can be wrong.
    """
    control = add_socket(host, "control", POLICY)
    try:
        results = host.inside(compare, OTHER, NOBODY, control, list(KINDS), 1, timeout=240)
        again = [kind for kind, result in results.items() if result.too_slow()]
        results |= host.inside(compare, OTHER, NOBODY, control, again, 2, timeout=480)
    finally:
        # What the flood left in its sockets goes with the process; the next test finds the bridge as the first did.
        host.run(["systemctl", "restart", SERVICE])
        host.inside(warm_up)
        host.inside(warm_up, uid=NOBODY)
    for kind, result in results.items():
        report(*result.lines(kind))
    assert {kind: result.too_slow() for kind, result in results.items() if result.too_slow()} == {}


# --- slow readers ----------------------------------------------------------------------------------------------------

MANY = 500
SLOW = 8  # clients of each kind
MEGABYTE = 1 << 20


@pytest.fixture
def many(host: Host) -> Iterator[int]:
    with many_machines(host, MANY):
        yield MANY


def slow_readers() -> None:
    """A megabyte and more waits for each of them, while others go on as ever; then they read it."""
    pid = pid_of()
    exchanges = [Exchange.now(SOCKET, message("ListMachines")), Exchange.now(SOCKET, CONTRACT)]
    assert len(exchanges[0].reply) > MANY * 80
    quick = [Exchange.now(SOCKET, message("GetMachine", {"name": GUEST}))]
    before = Cost.of(pid)
    with acting_as(NOBODY):
        slow = [(exchange, Client(SOCKET, timeout=30)) for exchange in exchanges for _ in range(SLOW)]
    counts = {exchange: MEGABYTE // len(exchange.reply) + 1 for exchange in exchanges}
    for exchange, client in slow:
        client.send_bytes(exchange.call * counts[exchange])
    with Swarm(SOCKET) as swarm:
        members = swarm.connect(20, OTHER)
        for member in members:
            member.takes(quick)
        times = swarm.run(members, 2)
    waiting = Cost.of(pid)
    report(f"{len(slow)} readers of a megabyte each: before {before}, waiting {waiting}; others {Times.of(times)}")
    # One reply of each and what the heap makes of it, not a megabyte of each.
    assert waiting.anonymous - before.anonymous < 0.25 * len(slow)
    for exchange, client in slow:
        read_exactly(client.socket, exchange.reply * counts[exchange])
        client.close()


def read_exactly(client: socket.socket, expected: bytes) -> None:
    received = bytearray()
    while len(received) < len(expected):
        data = client.recv(RECEIVE_SIZE)
        assert data, f"hung up after {len(received)} of {len(expected)} bytes"
        received += data
    assert received == expected


def test_who_reads_late_gets_all_and_keeps_nobody_waiting(host: Host, many: int) -> None:
    host.inside(slow_readers)


def never_reads(path: str, seconds: float) -> float:
    """How long the service waits for a client that reads nothing of a megabyte."""
    started = time.monotonic()
    with Client(path, timeout=seconds * 3) as client:
        client.send_bytes(CONTRACT * 200)
        poll = select.poll()
        poll.register(client.socket, 0)  # nothing but the hang-up, which is always told
        assert poll.poll(seconds * 3000), "nobody hung up"
        return time.monotonic() - started


def test_who_never_reads_is_hung_up_on(host: Host) -> None:
    """After 60 seconds, unless the policy says otherwise."""
    path = add_socket(host, "impatient", POLICY + "[limits]\nreply-seconds = 2\n")
    assert 2 <= host.inside(never_reads, path, 2) < 4


# --- for long --------------------------------------------------------------------------------------------------------


def test_a_short_soak(host: Host) -> None:
    assert judge(soak(host, 15, 1, 250)) == []


COST, TIMES = Cost(24, 26, 14, 12), Times(0.5, 1, 100)
FLAT = Run(
    COST, COST, Guest(2, 0), Guest(2, 0), COST, COST, True,
    [Sample(10.0 * i, COST, COST, dict.fromkeys(PROBES, TIMES), 1000, 100, 0) for i in range(1, 61)],
)  # fmt: skip


def changed(**rates: float) -> Run:
    """A flat run, but with so much more a minute of the bridge's memory (MiB) or what these probes take (ms)."""
    samples = []
    for sample in FLAT.samples:
        new = {name: rate * sample.seconds / 60 for name, rate in rates.items()}
        bridge = replace(COST, anonymous=COST.anonymous + new.get("anonymous", 0))
        probes = {probe: replace(TIMES, median=TIMES.median + new.get(probe, 0)) for probe in PROBES}
        samples.append(replace(sample, bridge=bridge, probes=probes))
    return replace(FLAT, samples=samples)


@pytest.mark.parametrize(
    ("run", "complaint"),
    [
        (changed(anonymous=0.07), "memory rose"),
        (changed(anonymous=0.25), "more memory"),
        (changed(GetInfo=0.2), "GetInfo takes"),
        (changed(GetMachine=0.2), "GetMachine takes"),
        (changed(GetMachine=0.2, Ping=0.2), "GetMachine takes"),
        (replace(FLAT, after=replace(COST, fds=13)), "13 file descriptors, had 12"),
        (replace(FLAT, after=replace(COST, fds=11)), "11 file descriptors, had 12"),
        (replace(FLAT, machined_after=replace(COST, fds=13)), "machined has 13"),
        (replace(FLAT, guest_after=Guest(3, 0)), "in the guest"),
        (replace(FLAT, guest_after=Guest(2, 1)), "in the guest"),
        (replace(FLAT, same_processes=False), "another process"),
        (replace(FLAT, samples=[*FLAT.samples[1:], replace(FLAT.samples[0], seconds=610, errors=1)]), "1 errors"),
    ],
)
def test_what_the_judge_of_a_soak_complains_about(run: Run, complaint: str) -> None:
    assert any(complaint in line for line in judge(run)), judge(run)


def test_the_judge_has_nothing_against_a_new_peak() -> None:
    samples = [replace(sample, bridge=replace(COST, anonymous=14.4)) for sample in FLAT.samples[48:]]
    assert judge(replace(FLAT, samples=[*FLAT.samples[:48], *samples])) == []


def test_the_judge_has_nothing_against_a_flat_run() -> None:
    assert judge(FLAT) == judge(changed(anonymous=0.04, GetInfo=0.02, GetMachine=0.02)) == []


def test_the_judge_blames_the_bridge_for_no_more_than_its_own() -> None:
    """Calls take longer, and so does what goes past the bridge: the machine became slower."""
    assert judge(changed(GetInfo=0.2, Ping=0.2, GetMachine=0.3, ListMachines=0.3)) == []


# --- the swarm itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replies", "complaint"),
    [
        ([b"right\0", b"right\0"], None),
        ([b"right\0", b"wrong\0"], "wrong"),
        ([b"right\0", b"rig"], "still wait"),
        ([b"right\0"], "still wait"),
        ([b"right\0right\0"], "to no call"),
        ([b"right\0", b""], "hung up"),
    ],
)
def test_the_swarm_notices(replies: list[bytes], complaint: str | None) -> None:
    """A service that says these things, one to each call; nothing more when they are over."""
    path = f"\0machine1-bridge-test-swarm-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client, contextlib.suppress(ConnectionResetError):
                for reply in replies:
                    client.recv(100)
                    if not reply:
                        return
                    client.sendall(reply)
                while client.recv(100):
                    pass

        service = threading.Thread(target=serve)
        service.start()
        with Swarm(path) as swarm:
            (member,) = swarm.connect(1)
            member.takes([Exchange(b"call\0", b"right\0")])
            fails = pytest.raises(AssertionError, match=complaint) if complaint else contextlib.nullcontext()
            with fails:
                for _ in range(2):
                    swarm.run([member], 0, patience=0.3)
        service.join()
