# SPDX-License-Identifier: LGPL-2.1-or-later
"""Watches of real machines and images. What holds them against what was done is tests/load/watch.py, here for short."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.client import CallError, Client
from tests.load.watch import watch

from .conftest import SOCKET
from .host import Host
from .test_authorization import add_socket

SECONDS = 9


def receive(client: Client) -> dict[str, Any]:
    parameters = client.reply()
    return {key: value for key, value in parameters.items() if key != "cursor"}


def names(reply: dict[str, Any], key: str) -> list[str]:
    return [entry["name"] for entry in reply[key]]


def test_nothing_is_lost_and_nothing_told_twice(fresh_host: Host) -> None:
    """Hundreds of machines, and the end of machined in its work, of an idle one, and of the bus, twice each."""
    verdicts = watch(fresh_host, SECONDS, 0)
    assert {name: verdict.wrong for name, verdict in verdicts.items()} == {name: [] for name in verdicts}
    for verdict in verdicts.values():
        assert verdict.told > 300
        assert verdict.compared > 10
        # A machined that ended with machines, and the bus; not the idle one.
        assert verdict.gaps["restarted"] == 4
    assert verdicts["coming back"].resumed > 3


def _follow_a_guest(name: str) -> list[Any]:
    """Inside a host: what is told of a guest's end, and how long both sorts of wait take for it."""
    found: list[Any] = []
    with Client(SOCKET, timeout=30) as watcher, Client(SOCKET, timeout=30) as waiter, Client(SOCKET) as other:
        watcher.send("WatchMachines", more=True)
        found.append(names(receive(watcher), "machines"))
        found.append(waiter.call("WaitMachine", {"name": name, "state": "running", "timeout": 0})["machine"]["class"])
        waiter.send("WaitMachine", {"name": name, "state": "gone"})
        other.call("TerminateMachine", {"name": name})
        removed = receive(watcher)
        found += [removed["event"], names(removed, "machines"), waiter.reply()]
        started = time.monotonic()
        found.append(other.error("WaitMachine", {"name": name, "state": "running", "timeout": 200_000})[0])
        found.append(0.2 <= time.monotonic() - started < 2)
    return found


def test_a_real_guest_comes_and_goes(fresh_host: Host) -> None:
    fresh_host.guest("web")
    assert fresh_host.inside(_follow_a_guest, "web") == [
        ["web"], "container", "removed", ["web"], {}, "io.machine1.Timeout", True,
    ]  # fmt: skip


def _follow_images() -> list[Any]:
    """Inside a host with the image `base`, as root: what is told, and whether soon enough."""
    found: list[Any] = []
    with Client(SOCKET, timeout=30) as watcher, Client(SOCKET, timeout=30) as other:
        watcher.send("WatchImages", more=True)
        found.append(names(receive(watcher), "images"))
        for method, parameters in (
            ("CloneImage", {"name": "base", "dest": "copy", "read_only": True}),
            ("RenameImage", {"name": "copy", "dest": "other"}),
            ("RemoveImage", {"name": "other"}),
        ):
            other.call(method, parameters)
            for _ in range(2 if method == "RenameImage" else 1):
                reply = receive(watcher)
                found.append((reply["event"], names(reply, "images")))
    return found


def test_images_come_and_go(fresh_host: Host) -> None:
    fresh_host.image("base")
    assert fresh_host.inside(_follow_images) == [
        ["base"],
        ("added", ["copy"]),
        ("removed", ["copy"]),
        ("added", ["other"]),
        ("removed", ["other"]),
    ]


def _see_image_from_outside() -> float:
    """Inside a host, as root: how long it takes until an image is told that nobody made through the service."""
    with Client(SOCKET, timeout=30) as watcher:
        watcher.send("WatchImages", more=True)
        receive(watcher)
        started = time.monotonic()
        subprocess.run(["mkdir", "/var/lib/machines/outside"], check=True)
        reply = receive(watcher)
        assert (reply["event"], names(reply, "images")) == ("added", ["outside"])
        return time.monotonic() - started


def test_an_image_is_seen_that_others_made(fresh_host: Host) -> None:
    """The service may not read the pool's directory, but it sees that it has changed."""
    assert fresh_host.run(["stat", "-c", "%a", "/var/lib/machines"]).stdout.strip() == "700"
    assert fresh_host.inside(_see_image_from_outside) < 2


def _see_what_is_shown(path: str) -> list[Any]:
    """Inside a host with the machine `shown` and another, which has gone when this looks for the second time."""
    with Client(path, timeout=10) as watcher, Client(path, timeout=10) as waiter, Client(SOCKET) as root:
        watcher.send("WatchMachines", {"all": True}, more=True)
        found: list[Any] = [names(receive(watcher), "machines")]
        for name in ("hidden", "missing"):
            found.append(waiter.call("WaitMachine", {"name": name, "state": "gone"}))
            try:
                waiter.call("WaitMachine", {"name": name, "state": "running", "timeout": 100_000})
            except CallError as error:
                found.append(error.name)
        root.call("TerminateMachine", {"name": "hidden"})
        root.call("TerminateMachine", {"name": "shown"})
        reply = watcher.reply()
        found += [reply["event"], names(reply, "machines"), reply["cursor"].rpartition("-")[2]]
    return found


def test_what_is_hidden_is_neither_told_nor_counted(fresh_host: Host) -> None:
    path = add_socket(fresh_host, "box", 'preset = "read-only"\nmachines = ["shown"]\n')
    for name in ("hidden", "shown"):
        fresh_host.register_fake(name)
    assert fresh_host.inside(_see_what_is_shown, path) == [
        ["shown"], {}, "io.machine1.Timeout", {}, "io.machine1.Timeout", "removed", ["shown"], "1",
    ]  # fmt: skip


def _watch_across_a_reload() -> list[Any]:
    """Inside a host with two machines, as root."""
    policy = Path("/etc/machine1-bridge/default.toml")
    found: list[Any] = []
    with Client(SOCKET, timeout=10) as watcher:
        watcher.send("WatchMachines", more=True)
        found.append(names(receive(watcher), "machines"))
        for text in ('methods = ["WatchMachines"]\nmachines = ["one"]\n', 'methods = ["ListMachines"]\n'):
            policy.write_text(text)
            policy.chmod(0o644)
            subprocess.run(["systemctl", "reload", "machine1-bridge.service"], check=True)
            try:
                reply = receive(watcher)
                found.append((reply["event"], names(reply, "machines"), reply.get("gap")))
            except CallError as error:
                found.append(error.name)
    return found


def test_another_policy_is_another_snapshot_or_the_end(fresh_host: Host) -> None:
    for name in ("one", "two"):
        fresh_host.register_fake(name)
    (fresh_host.path / "etc/machine1-bridge").mkdir(exist_ok=True)
    assert fresh_host.inside(_watch_across_a_reload) == [
        ["one", "two"],
        ("snapshot", ["one"], "policy"),
        "org.varlink.service.PermissionDenied",
    ]


@pytest.mark.parametrize("method", ["WatchMachines", "WatchImages"])
def test_a_watch_needs_more(fresh_host: Host, method: str) -> None:
    assert fresh_host.inside(_without_more, method) == "org.varlink.service.ExpectedMore"


def _without_more(method: str) -> str:
    with Client(SOCKET, timeout=10) as client:
        return client.error(method)[0]


def test_waiting_and_watching_clients_do_not_keep_the_service_from_stopping(fresh_host: Host) -> None:
    assert fresh_host.inside(_be_there_when_it_stops) == ["io.machine1.Unavailable"] * 2


def _be_there_when_it_stops() -> list[str]:
    with Client(SOCKET, timeout=10) as watcher, Client(SOCKET, timeout=10) as waiter:
        watcher.send("WatchMachines", more=True)
        receive(watcher)
        waiter.send("WaitMachine", {"name": "never", "state": "running"})
        time.sleep(0.3)
        subprocess.run(["systemctl", "stop", "machine1-bridge.service"], check=True, timeout=8)
        found = []
        for client in (watcher, waiter):
            try:
                client.reply()
            except CallError as error:
                found.append(error.name)
        return found
