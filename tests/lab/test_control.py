# SPDX-License-Identifier: LGPL-2.1-or-later
"""io.systemd.service on real hosts: as systemd's own services answer it, and `systemctl reload`."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from .conftest import SOCKET
from .host import SUITES, Host
from .varlink import call, error

NATIVE = "/run/systemd/machine/io.systemd.Machine"
# machined answers it from 262 on.
SINCE = 262
CALLS = [
    ("Ping", "{}"),
    ("GetLogLevel", "{}"),
    ("SetLogLevel", "{}"),
    ("SetLogLevel", '{"level":7}'),
    ("SetLogLevel", '{"level":8}'),
    ("SetLogLevel", '{"level":-1}'),
    ("SetLogLevel", '{"nope":1}'),
    ("SetLogLevel", '{"level":6}'),
    ("GetEnvironment", "{}"),
    ("Nope", "{}"),
]


@pytest.fixture
def admin_host(host: Host) -> Iterator[Host]:
    yield host
    if SUITES[host.suite] >= SINCE:
        for address in (SOCKET, NATIVE):
            host.run(["varlinkctl", "call", address, "io.systemd.service.SetLogLevel", '{"level":6}'])


def outcome(done: subprocess.CompletedProcess[str]) -> str:
    """The error as varlinkctl says it, with the parameter; "" for none."""
    if done.returncode == 0:
        return ""
    text, brace, parameters = done.stderr.strip().partition("{")
    parameter = json.loads(brace + parameters).get("parameter") if brace else None
    return f"{text.split(': ')[-1].splitlines()[0]} {parameter}"


@pytest.mark.parametrize("user", ["root", "nobody"])
@pytest.mark.parametrize(("method", "parameters"), CALLS)
def test_the_outcome_is_that_of_machineds_own(admin_host: Host, method: str, parameters: str, user: str) -> None:
    if SUITES[admin_host.suite] < SINCE:
        # No service of systemd has all of it; what the bridge answers is in tests/unit/test_control.py.
        assert "io.systemd.service" in call_of(admin_host, "org.varlink.service.GetInfo")["interfaces"]
        return
    theirs, ours = (
        admin_host.run(
            ["varlinkctl", "call", address, f"io.systemd.service.{method}", parameters], check=False, user=user
        )
        for address in (NATIVE, SOCKET)
    )
    assert outcome(theirs) == outcome(ours)
    if method == "GetLogLevel":
        assert json.loads(theirs.stdout).keys() == json.loads(ours.stdout).keys()


def call_of(host: Host, method: str) -> dict[str, list[str]]:
    done = host.run(["machine1-bridge", "--stdio"], stdin=json.dumps({"method": method}) + "\0")
    reply: dict[str, list[str]] = json.loads(done.stdout.rstrip("\0"))["parameters"]
    return reply


def test_the_interface_is_systemds_own(host: Host) -> None:
    if SUITES[host.suite] < SINCE:
        return
    theirs, ours = (
        host.run(["varlinkctl", "introspect", address, "io.systemd.service"]).stdout for address in (NATIVE, SOCKET)
    )
    assert theirs == ours


def test_systemctl_reload_takes_a_new_policy(fresh_host: Host) -> None:
    fresh_host.register_fake("web")
    assert call(fresh_host, "GetMachine", {"name": "web"})["machine"]["name"] == "web"
    before = fresh_host.bridge_pid()
    folder = fresh_host.path / "etc/machine1-bridge"
    folder.mkdir()
    (folder / "default.toml").write_text('preset = "read-only"\nmachines = ["db"]\n')
    fresh_host.run(["systemctl", "reload", "machine1-bridge.service"])
    deadline = time.monotonic() + 15
    while call(fresh_host, "ListMachines")["machines"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert error(fresh_host, "GetMachine", {"name": "web"})[0] == "io.machine1.NoSuchMachine"
    (folder / "default.toml").write_text("nonsense")
    fresh_host.run(["systemctl", "reload", "machine1-bridge.service"])
    deadline = time.monotonic() + 15
    log = ["journalctl", "--quiet", "--unit=machine1-bridge", "--grep=Not reloaded: .*default.toml:1: "]
    while fresh_host.run(log, check=False).returncode != 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert call(fresh_host, "ListMachines")["machines"] == []
    assert fresh_host.bridge_pid() == before
    assert fresh_host.run(["systemctl", "is-active", "machine1-bridge.service"]).stdout == "active\n"
