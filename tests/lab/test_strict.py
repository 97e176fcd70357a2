# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of tests/strict on real hosts: the bridge by each host's own Python, and sd-varlink itself."""

from __future__ import annotations

from tests.client import Client
from tests.strict.play import flood, play
from tests.strict.table import ROWS, Kinds, Outcome, Row

from .conftest import SOCKET
from .host import SUITES, Host
from .varlink import busctl

#: Which native service is asked. That of 252 has no interface that the bridge has too, so it is only compared whether
#: it answers.
NATIVE = {
    252: "/run/systemd/userdb/io.systemd.DynamicUser",
    257: "/run/systemd/machine/io.systemd.Machine",
    262: "/run/systemd/machine/io.systemd.Machine",
}
GET_INFO = b'{"method":"org.varlink.service.GetInfo"}\0'


def _play_all(path: str, native: bool) -> dict[str, Outcome | str]:
    """Inside a host, where pytest shows no exception's place."""
    outcomes: dict[str, Outcome | str] = {}
    for row in ROWS:
        try:
            outcomes[row.id] = play(path, row.native_sent or row.sent if native else row.sent, row)
        except TimeoutError as error:
            outcomes[row.id] = repr(error)
    return outcomes


def _answered(kinds: Kinds) -> Kinds:
    """Whatever the reply is."""
    return tuple(kind if kind in ("closed", "refused file descriptors") else "answered" for kind in kinds)


def _refused_by_the_kernel(row: Row, version: int) -> bool:
    """AcceptFileDescriptors=no of socket units, machined's as well, is known from 258 on (and to Linux 6.16)."""
    return row.fds > 0 and version >= 258


def test_the_bridge_does_as_the_table_says(host: Host) -> None:
    outcomes = host.inside(_play_all, SOCKET, False, timeout=120)
    refused = Outcome(refused_fds=True)
    expected = {row.id: refused if _refused_by_the_kernel(row, SUITES[host.suite]) else row.outcome for row in ROWS}
    assert {name: outcome for name, outcome in outcomes.items() if outcome != expected[name]} == {}


def test_sd_varlink_does_as_the_table_says(host: Host) -> None:
    version = SUITES[host.suite]
    busctl(host, "ListMachines")  # so that machined runs
    outcomes = host.inside(_play_all, NATIVE[version], True, timeout=120)
    different = {}
    for row in ROWS:
        outcome, expected = outcomes[row.id], row.native_kinds(version)
        if _refused_by_the_kernel(row, version):
            expected = Outcome(refused_fds=True).kinds
        found = outcome.kinds if isinstance(outcome, Outcome) else (outcome,)
        if version == 252:
            found, expected = _answered(found), _answered(expected)
        if found != expected:
            different[row.id] = (found, expected)
    assert different == {}


def _read_late(path: str, patience: float) -> tuple[bool, int, int]:
    """Inside a host: replies to others while one client reads none; calls of that one, and replies that it got then."""
    client, sent = flood(path, GET_INFO, patience)
    with client, Client(path) as other:
        other.send_bytes(GET_INFO)
        answered = bool(other.receive())
        received = 0
        try:
            while received < sent and (data := client.recv(1 << 20)):
                received += data.count(0)
        except ConnectionResetError:
            pass
    return answered, sent, received


def test_replies_that_nobody_reads(host: Host) -> None:
    """The bridge stops to read calls, and sends all replies later. sd-varlink reads on, keeps 16 MiB of replies, then
    hangs up: most are lost.
    """
    answered, sent, received = host.inside(_read_late, SOCKET, 1.0)
    assert answered
    assert 100 < sent == received < 50_000
    busctl(host, "ListMachines")  # so that machined runs
    answered, sent, received = host.inside(_read_late, NATIVE[SUITES[host.suite]], 30.0, timeout=120)
    assert answered
    assert received < sent // 10
    assert sent > 50_000
