# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service process, its bus and the fake machined are those of the integration tests, shared by all rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.conftest import Bridge
from tests.integration.fake_machined import Bus, FakeMachined


@pytest.fixture(scope="session")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    bus = Bus(tmp_path_factory.mktemp("bus"))
    bus.start()
    yield bus
    bus.stop()


@pytest.fixture(scope="session")
def machined(bus: Bus) -> Iterator[FakeMachined]:
    """It knows no machine."""
    machined = FakeMachined(bus)
    machined.fails("KillMachine", "org.freedesktop.machine1.NoSuchMachine", "nope")
    yield machined
    machined.stop()


@pytest.fixture(scope="session")
def bridge(tmp_path_factory: pytest.TempPathFactory, bus: Bus, machined: FakeMachined) -> Iterator[Bridge]:
    bridge = Bridge(tmp_path_factory.mktemp("bridge"), bus.address)
    yield bridge
    bridge.stop()
