# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each row of the table against the service as a process, and that it disturbs nobody."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.client import Client
from tests.integration.conftest import Bridge, eventually, open_fds
from tests.integration.fake_machined import FakeMachined

from .play import flood, play
from .table import INFO, ROWS, Row


@pytest.fixture(scope="module")
def other(bridge: Bridge, machined: FakeMachined) -> Client:
    """A client that came before, by whom the connections to the bus are open already."""
    other = bridge.client()
    other.error("KillMachine", {"name": "before"})
    return other


@pytest.fixture(scope="module")
def files(bridge: Bridge, other: Client) -> Counter[str]:
    """What the service has open between rows."""
    return Counter(open_fds(bridge.process.pid).values())


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS])
def test_row(bridge: Bridge, other: Client, files: Counter[str], machined: FakeMachined, row: Row) -> None:
    machined.calls.clear()
    assert play(bridge.path, row.sent, row) == row.outcome
    assert machined.calls == list(row.reaches)
    assert other.call("org.varlink.service.GetInfo") == INFO.replies[0]["parameters"]
    assert eventually(lambda: Counter(open_fds(bridge.process.pid).values()) == files), open_fds(bridge.process.pid)


def test_a_row_says_why_it_differs_from_sd_varlink_and_only_then() -> None:
    for row in ROWS:
        natives = {row.native_kinds(version) for version in (252, 257, 262)}
        assert bool(row.why) == (natives != {row.outcome.kinds}), row.id
    assert [name for name, count in Counter(row.id for row in ROWS).items() if count > 1] == []


def test_replies_that_nobody_reads_stop_nobody_else_and_are_not_lost(bridge: Bridge, other: Client) -> None:
    """The service reads no more calls of a client that reads no replies, whose memory the kernel then limits."""
    message = b'{"method":"org.varlink.service.GetInfo"}\0'
    client, count = flood(bridge.path, message)
    with client:
        assert 100 < count < 50_000
        assert other.call("org.varlink.service.GetInfo") == INFO.replies[0]["parameters"]
        received = 0
        while received < count:
            received += client.recv(1 << 20).count(0)
        assert received == count
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
