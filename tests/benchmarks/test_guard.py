# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guard against what makes the bridge slow: ratios of a short run on the newest systemd, with generous bounds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.lab.conftest import unavailable
from tests.lab.host import SUITES, Host, Unavailable

from . import ways
from .measure import COLD, FLOOD, Bench

pytestmark = pytest.mark.lab

DISPATCH = "usr/lib/machine1-bridge/bridge/dispatch.py"
BEGIN = "        entry = Entry(call, peer, self._authorizer.policy.name)\n"


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    try:
        host = Host.boot([*SUITES][-1], f"guard-{os.getpid()}")
    except Unavailable as reason:
        unavailable(reason)
    with host:
        yield Bench(host)


def measured(bench: Bench) -> list[str]:
    """What is slow."""
    bench.blocks.clear()
    bench.reads(30, 20)
    bench.calls(20, 10, ways.IMAGES)
    bench.calls(20, 5, [*ways.KILLS, ways.KILLS[-1].by(bench.service_uid)])
    return bench.slow()


def test_nothing_is_slow(bench: Bench) -> None:
    slow = measured(bench)
    bench.calls(6, 5, ways.SHELLS)
    assert slow + bench.slow() == []
    bench.flood(5, 2000)
    assert bench.ratios[FLOOD][0].median >= 0.4
    bench.cold(3)
    assert bench.ratios[COLD][0].median <= 15


def test_a_slow_bridge_is_noticed(bench: Bench) -> None:
    """Half a millisecond for each call, as it were without what it remembers."""
    path = bench.host.path / DISPATCH
    source = path.read_text()
    assert source.count(BEGIN) == 1
    path.write_text(source.replace(BEGIN, f"        __import__('time').sleep(0.000_5)\n{BEGIN}"))
    shutil.rmtree(path.parent / "__pycache__")  # compiled when it was installed, and not looked at again
    try:
        bench.host.run(["systemctl", "stop", "machine1-bridge.service"])
        slow = measured(bench)
    finally:
        path.write_text(source)
    assert {line.partition(" ")[0] for line in slow} >= {"bridge.GetMachine", "bridge.ListMachines"}


def test_a_call_as_the_service_would_make_it_is_one_of_its_user(bench: Bench) -> None:
    """Or the ratio to it would say nothing."""
    call = ways.KILLS[-1].by(bench.service_uid)
    assert bench.client("calls", 1, 1, by=[call])[call.name]
    bench.host.run(["systemctl", "stop", "polkit.service"])
    bench.host.run(["systemctl", "mask", "--runtime", "polkit.service"])
    try:
        assert bench.there([ways.KILLS[-1]])
        assert not bench.there([call])
    finally:
        bench.host.run(["systemctl", "unmask", "--runtime", "polkit.service"])
