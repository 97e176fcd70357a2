# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the bridge costs, on a real host: `python -m tests.benchmarks.measure [SUITE...]`, or `make bench`.

One client, one process, the ways to machined interleaved call by call, so that a noisy machine is noisy for all of
them; ratios are what counts. The service is the installed, hardened one. JSON goes to standard output with --json.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Callable

from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import open_dbus_connection

from tests.client import Client
from tests.lab.conftest import GUEST, SOCKET
from tests.lab.host import SUITES, Host

NATIVE = "/run/systemd/machine/io.systemd.Machine"
MANAGER = DBusAddress(
    "/org/freedesktop/machine1", "org.freedesktop.machine1", "org.freedesktop.machine1.Manager"
)
ROUNDS = 1000
COLD_ROUNDS = 10

Figures = dict[str, dict[str, float]]


def interleaved(ways: dict[str, Callable[[], object]], rounds: int) -> Figures:
    """Microseconds by way: median and 99th percentile."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append((time.perf_counter() - started) * 1e6)
    return {
        name: {"median": statistics.median(values), "p99": sorted(values)[int(len(values) * 0.99)]}
        for name, values in times.items()
    }


def warm() -> Figures:
    """Inside a host: ListMachines and GetMachine by way of the bridge, of D-Bus, and of machined's own Varlink."""
    bus = open_dbus_connection("SYSTEM")
    bridge = Client(SOCKET)
    message = new_method_call(MANAGER, "ListMachines")
    ways: dict[str, Callable[[], object]] = {
        "bridge ListMachines": lambda: bridge.call("ListMachines"),
        "D-Bus ListMachines": lambda: bus.send_and_get_reply(message),
        "bridge GetMachine": lambda: bridge.call("GetMachine", {"name": GUEST}),
        "bridge GetInfo": lambda: bridge.call("org.varlink.service.GetInfo"),
    }
    native = Client(NATIVE) if os.path.exists(NATIVE) else None
    if native is not None:
        ways["native List by name"] = lambda: native.call("io.systemd.Machine.List", {"name": GUEST})
    for way in ways.values():
        way()
    figures = interleaved(ways, ROUNDS)
    bridge.close()
    bus.close()
    if native is not None:
        native.close()
    return figures


def cold(path: str, method: str, parameters: dict[str, object] | None) -> float:
    """Inside a host: milliseconds from the connection that activates a service to its first reply."""
    started = time.perf_counter()
    with Client(path) as client:
        client.call(method, parameters)
    return (time.perf_counter() - started) * 1e3


def memory(host: Host) -> dict[str, float]:
    """MiB of the idle service: proportional set size (PSS) and resident set size."""
    pid = host.bridge_pid()
    lines = (host.path / "proc" / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    return {"PSS": sizes["Pss"], "RSS": sizes["Rss"]}


def measure(suite: str) -> dict[str, object]:
    with Host.boot(suite, f"bench-{suite}-{os.getpid()}") as host:
        host.install()
        host.guest(GUEST)
        services: dict[str, tuple[str, str, str, dict[str, object] | None]] = {
            "bridge": ("machine1-bridge.service", SOCKET, "io.machine1.ListMachines", None)
        }
        if host.run(["systemctl", "is-active", "systemd-machined.socket"], check=False).returncode == 0:
            services["native"] = ("systemd-machined.service", NATIVE, "io.systemd.Machine.List", {"name": GUEST})
        starts: dict[str, list[float]] = {name: [] for name in services}
        for _ in range(COLD_ROUNDS):
            for name, (unit, path, method, parameters) in services.items():
                host.run(["systemctl", "reset-failed", unit])
                host.run(["systemctl", "stop", unit])
                if name == "bridge":
                    host.run(["machinectl", "list"])  # machined itself is warm
                starts[name].append(host.inside(cold, path, method, parameters))
        idle = memory(host)
        return {
            "warm, µs": host.inside(warm, timeout=120),
            "cold, ms": {name: {"median": statistics.median(v), "max": max(v)} for name, v in starts.items()},
            "idle, MiB": idle,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", default=list(SUITES), metavar="SUITE")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {f"systemd {SUITES[suite]}": measure(suite) for suite in options.suites}
    if options.json:
        print(json.dumps(results, indent=1, ensure_ascii=False))
        return
    for version, result in results.items():
        print(f"\n{version}")
        for kind, figures in result.items():
            print(f"  {kind}")
            assert isinstance(figures, dict)
            for name, values in figures.items():
                shown = values if isinstance(values, dict) else {"": values}
                print(f"    {name:24}" + "".join(f"{key:>8} {value:9.1f}" for key, value in shown.items()))


if __name__ == "__main__":
    # jeepney imports what it needs for a connection only now and then: nothing may be missing inside a host.
    socket.getaddrinfo("localhost", None)
    main()
