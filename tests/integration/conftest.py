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
from textwrap import dedent

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


# A fake machined has no files for its machines, and those of this machine's own machined say nothing of them.
HERE = """
import pathlib, bridge.remembered
bridge.remembered.DIRECTORY = pathlib.Path("/nonexistent")
"""


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
            self.files_at_start = self.files()

    def _listens(self) -> bool:
        try:
            Client(self.path).close()
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    patch = ""

    def command(self) -> list[str]:
        """Python's arguments that name the program."""
        return ["-c", f"{HERE}\n{dedent(self.patch)}\nimport sys, bridge.__main__ as b\nsys.exit(b.main())"]

    def client(self) -> Client:
        client = Client(self.path)
        self._clients.append(client)
        return client

    def fds_without_clients(self, clients: int) -> int:
        """Open descriptors but those of so many clients and of the bus, as soon as they are as few as that."""
        eventually(lambda: self._sockets() <= clients + 1 + 2, 1)  # the listener, the pair for signals
        eventually(lambda: self._pidfds() <= clients, 1)  # a client's is closed after its socket
        return len(open_fds(self.process.pid))

    def _sockets(self) -> int:
        return sum(target.startswith("socket:") for target in open_fds(self.process.pid).values())

    def _pidfds(self) -> int:
        return sum("pidfd" in target for target in open_fds(self.process.pid).values())

    def files(self) -> list[str]:
        """What it has open that is no socket, by kind: terminals, pipes and pidfds have no business to stay."""
        targets = open_fds(self.process.pid).values()
        return sorted(target.partition(":[")[0] for target in targets if not target.startswith("socket:"))

    def status(self, field: str) -> int:
        """A number out of proc_pid_status(5)."""
        (line,) = (line for line in self._status() if line.startswith(f"{field}:"))
        return int(line.split()[1])

    def _status(self) -> list[str]:
        return Path(f"/proc/{self.process.pid}/status").read_text().splitlines()

    def cpu_seconds(self) -> float:
        """What it used of the processor until now."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_as_at_its_start(self) -> None:
        """Without clients it holds what it held, but for connections to the bus, and runs nothing beside itself."""
        pid = self.process.pid
        assert eventually(lambda: self.files() == self.files_at_start), (self.files(), self.files_at_start)
        assert eventually(lambda: len(open_fds(pid)) <= self.fds_at_start + 5), open_fds(pid)
        assert self.status("Threads") == 1
        assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""
        with Client(self.path) as client:
            assert client.call("org.varlink.service.GetInfo")["product"] == "machine1-bridge"

    def let_clients_go(self) -> None:
        """Close all connections of the test, after which the service is as at its start."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        self.is_as_at_its_start()

    def stop(self) -> str:
        """End the service and return what it logged. Whatever a test did to it, it is as at its start before."""
        if self.process.poll() is None:
            self.let_clients_go()
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=10) == 0, self.log.read_text()
        for client in self._clients:
            client.close()
        log = self.log.read_text()
        assert "Warning" not in log, log
        assert "Bug" not in log, log
        assert not os.path.exists(self.path)
        return log


class Patched(Bridge):
    """The service after `patch`, code that changes a constant or makes the system fail where it would hardly."""


class Terminal:
    """A pipe whose writing end goes into replies as if it was a PTY: who reads the other sees when all are closed."""

    def __init__(self) -> None:
        self._ours, self.theirs = os.pipe()
        os.set_blocking(self._ours, False)
        self._open = True

    def is_closed(self) -> bool:
        """Whether nobody has it any more."""
        if self._open:
            self._open = False
            os.close(self.theirs)
        return eventually(self._ended, 5)

    def _ended(self) -> bool:
        try:
            return os.read(self._ours, 1) == b""
        except BlockingIOError:
            return False

    def close(self) -> None:
        if self._open:
            os.close(self.theirs)
        os.close(self._ours)


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    before = open_fds()
    yield
    assert eventually(lambda: open_fds().keys() <= before.keys(), 2), open_fds()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


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
