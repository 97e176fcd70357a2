# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service as a process, on a private bus with a fake machined; nothing it opened may stay open."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client import Client

from .fake_machined import Bus, FakeMachined

REPOSITORY = Path(__file__).parents[2]


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether the condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def open_fds(pid: int | str = "self") -> dict[str, str]:
    """What a process has open, by descriptor number."""
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:
            continue
    return found


class Bridge:
    """`python -m bridge --listen ...` and the clients of a test."""

    def __init__(self, directory: Path, bus_address: str, *arguments: str, wait: bool = True) -> None:
        self.path = str(directory / "socket")
        self.log = directory / "log"
        self._clients: list[Client] = []
        environment = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": bus_address}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                # -X dev and -W error: a leaked descriptor or socket shows in the log.
                [sys.executable, "-X", "dev", "-W", "error", *self.command(), "--listen", self.path, *arguments],
                cwd=REPOSITORY,
                env=environment,
                stderr=log,
            )
        if wait:
            assert eventually(self._listens), self.log.read_text()
            with Client(self.path) as client:
                client.call("org.varlink.service.GetInfo")
            self.fds_at_start = self.fds_without_clients(0)

    def _listens(self) -> bool:
        try:
            Client(self.path).close()
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def command(self) -> list[str]:
        """Python's arguments that name the program."""
        return ["-m", "bridge"]

    def client(self) -> Client:
        client = Client(self.path)
        self._clients.append(client)
        return client

    def fds_without_clients(self, clients: int) -> int:
        """Open descriptors but those of so many clients and of the bus, as soon as they are as few as that."""
        eventually(lambda: self._sockets() <= clients + 1 + 2, 1)  # the listener, the pair for signals
        return len(open_fds(self.process.pid))

    def _sockets(self) -> int:
        return sum(target.startswith("socket:") for target in open_fds(self.process.pid).values())

    def stop(self) -> str:
        """End the service and return what it logged. Then it has no more open than at its start, but the bus."""
        for client in self._clients:
            client.close()
        if self.process.poll() is None:
            # More than at the start, it may have its five connections to the bus.
            assert eventually(lambda: len(open_fds(self.process.pid)) <= self.fds_at_start + 5), open_fds(
                self.process.pid
            )
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=10) == 0, self.log.read_text()
        log = self.log.read_text()
        assert "Warning" not in log, log
        assert "Bug" not in log, log
        assert not os.path.exists(self.path)
        return log


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    before = open_fds()
    yield
    assert eventually(lambda: open_fds().keys() <= before.keys(), 2), open_fds()


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    bus = Bus(tmp_path)
    bus.start()
    yield bus
    bus.stop()


@pytest.fixture
def machined(bus: Bus) -> Iterator[FakeMachined]:
    machined = FakeMachined(bus)
    yield machined
    machined.stop()


@pytest.fixture
def bridge(tmp_path: Path, bus: Bus) -> Iterator[Bridge]:
    bridge = Bridge(tmp_path, bus.address)
    yield bridge
    bridge.stop()


@pytest.fixture
def client(bridge: Bridge) -> Client:
    return bridge.client()
