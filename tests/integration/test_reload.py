# SPDX-License-Identifier: LGPL-2.1-or-later
"""A policy that changes while the service runs, and a file with a mistake that it does not take."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client import Client

from .conftest import Bridge, eventually, open_fds
from .fake_machined import Bus, FakeMachined
from .test_limits import LimitedBridge
from .test_polkit import connections

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root, whom alone the service lets reload it")

ALL = 'preset = "all"\nhost-paths = true\nmachines = ["*"]\n'
WEB = 'preset = "all"\nhost-paths = true\nmachines = ["web"]\n'
MACHINES = [("db", "vm", "s", "/m/db"), ("web", "vm", "s", "/m/web")]
RELOAD = "io.systemd.service.Reload"


class Reloaded(LimitedBridge):
    """The service with a policy that a test changes."""

    def write(self, policy: str) -> None:
        (self._policies / "default.toml").write_text(policy)

    @property
    def file(self) -> Path:
        return self._policies / "default.toml"

    def names(self, client: Client) -> list[str]:
        return [machine["name"] for machine in client.call("ListMachines")["machines"]]


@pytest.fixture
def reloaded(tmp_path: Path, bus: Bus, machined: FakeMachined) -> Iterator[Reloaded]:
    machined.returns("ListMachines", "a(ssso)", MACHINES)
    tmp_path.chmod(0o755)  # for clients of another user
    bridge = Reloaded(tmp_path, bus.address, ALL, None)
    yield bridge
    bridge.stop()


def by_call(bridge: Bridge, client: Client) -> None:
    assert client.call(RELOAD) == {}


def by_signal(bridge: Bridge, client: Client) -> None:
    bridge.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: "Reloaded the policy" in bridge.log.read_text())


@pytest.mark.parametrize("way", [by_call, by_signal])
def test_the_next_call_of_each_client_is_under_the_new_policy(
    reloaded: Reloaded, way: Callable[[Bridge, Client], None]
) -> None:
    here, there = reloaded.client(), reloaded.client()
    assert reloaded.names(here) == reloaded.names(there) == ["db", "web"]
    reloaded.write(WEB)
    assert reloaded.names(here) == ["db", "web"]
    way(reloaded, here)
    assert reloaded.names(here) == reloaded.names(there) == reloaded.names(reloaded.client()) == ["web"]
    assert there.error("GetMachine", {"name": "db"}) == ("io.machine1.NoSuchMachine", {"name": "db"})


def test_with_a_mistake_all_stays_as_it_was(reloaded: Reloaded) -> None:
    client = reloaded.client()
    reloaded.write('preset = "all"\nmachine = ["web"]\n')
    error, parameters = client.error(RELOAD)
    assert error == "io.systemd.System"
    assert parameters["reason"].startswith(f"{reloaded.file}:2: ")
    assert (parameters["errno"], parameters["errnoName"], parameters["origin"]) == (22, "EINVAL", "linux")
    assert f"Not reloaded: {reloaded.file}:2: " in reloaded.log.read_text()
    reloaded.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: reloaded.log.read_text().count("Not reloaded: ") == 2)
    assert reloaded.names(client) == ["db", "web"]


def test_limits_are_taken_too(reloaded: Reloaded) -> None:
    """Those of a connection by new ones, those of all at once."""
    deep = {"method": "GetMachine", "parameters": {"name": [[[[[[[[[]]]]]]]]]}}
    with connections(reloaded) as connect:
        old = connect()
        old.call("org.varlink.service.GetInfo")
        reloaded.write(f"{ALL}[limits]\nconnections = 3\ndepth = 8\n")
        by_call(reloaded, reloaded.client())
        new = connect()
        new.call("org.varlink.service.GetInfo")
        late = reloaded.client()
        late.send("org.varlink.service.GetInfo")
        late.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            late.receive()
        assert old.error("Check", deep)[0] == "org.varlink.service.InvalidParameter"
        new.send("Check", deep)
        assert new.is_closed()
        late.socket.settimeout(15)
        assert late.receive()["parameters"]["product"] == "machine1-bridge"


def test_the_service_manager_is_told(tmp_path: Path, bus: Bus, machined: FakeMachined) -> None:
    """sd_notify(3): RELOADING=1 with the time, then READY=1 again, whatever came of it."""
    path = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, pytest.MonkeyPatch.context() as patch:
        manager.bind(path)
        manager.settimeout(15)
        patch.setenv("NOTIFY_SOCKET", path)
        bridge = Reloaded(tmp_path, bus.address, ALL, None)
        assert manager.recv(100) == b"READY=1"
        for policy in (WEB, "nonsense"):
            bridge.write(policy)
            bridge.process.send_signal(signal.SIGHUP)
            state, _, since = manager.recv(100).partition(b"\nMONOTONIC_USEC=")
            assert state == b"RELOADING=1"
            assert since.isdigit()
            assert manager.recv(100) == b"READY=1"
        bridge.stop()


# --- file descriptors from clients ----------------------------------------------------------------------------------


def outcome(client: Client, method: str) -> str | None:
    """The error that a call ends in which comes with a file descriptor, None for success."""
    message = json.dumps({"method": method, "parameters": {}}).encode() + b"\0"
    with open(os.devnull, "rb") as file:
        socket.send_fds(client.socket, [message], [file.fileno()])
    reply = client.receive()
    if "error" in reply:
        assert reply["parameters"]["parameter"] == "fds"
    return reply.get("error")


def test_whether_file_descriptors_are_accepted_is_taken_too(reloaded: Reloaded) -> None:
    """By connections that there are, too. None stays open."""
    client = reloaded.client()
    assert reloaded.names(client) == ["db", "web"]
    before = reloaded.fds_without_clients(1)
    for accepted in (False, True, False):
        reloaded.write(f"{ALL}accept-fds = {str(accepted).lower()}\n")
        by_call(reloaded, client)
        expected = "org.varlink.service.InvalidParameter" if accepted else None
        for method in ("io.machine1.ListMachines", "org.varlink.service.GetInfo"):
            assert outcome(client, method) == expected
        assert eventually(lambda: os.devnull not in list(open_fds(reloaded.process.pid).values())[3:])
        assert reloaded.fds_without_clients(1) == before
