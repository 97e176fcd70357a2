# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the bridge costs, on a real host: `python -m tests.benchmarks.measure [SUITE...]`, or `make bench`.

The service is the installed, hardened one; the client is client.c for all ways. The ways take turns in blocks of calls,
since a program that makes calls makes several, and so that a noisy machine is noisy for all of them: ratios between
blocks of one turn are what counts. The table is for the terminal; everything is in build/bench.json.

A read takes some µs, and to wake a process on another processor takes as long again: how long a call is depends on who
is where. The kernel, left alone, has it now this way and now that, perhaps for all of a run. So reads are measured both
ways: client and service on one processor, and each on one of its own (`apart`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tests.client import Client
from tests.lab.conftest import GUEST, SOCKET
from tests.lab.host import REPOSITORY, SUITES, Host
from tests.load.many import many_machines

from . import ways
from .figures import Blocks, Latency, Ratio, as_json, percentile
from .picture import draw
from .ways import Target, Way

MACHINES = (2, 10, 50, 100, 500)
CLIENT = "/usr/bin/bench-client"
RESULTS = REPOSITORY / "build" / "bench.json"
PICTURE = REPOSITORY / "contrib" / "bench.svg"
# A list is remembered once its last change is a moment ago, see bridge/remembered.py.
SETTLING = 0.3
CONNECTIONS = 8
IDLE_CONNECTIONS = 1000
# Who works while a call is under way.
UNITS = {"bridge": "machine1-bridge", "machined": "systemd-machined", "bus": "dbus", "polkit": "polkit"}
# All that the bridge imports, and the greater parts of it.
IMPORTS = ("bridge.service", "jsonschema", "jeepney", "json", "tomllib")
FLOOD = "calls a second, 8 connections, bridge / native (at least)"
COLD = "cold start to first reply, bridge / native"
# Nobody's, and as different from each other.
QUIET_UID, BUSY_UID = 65533, 65534


class Bench:
    """A host with the bridge, a booted guest and a second machine, and the client in it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.figures: dict[str, dict[str, float]] = {}
        self.blocks: dict[tuple[str, int, bool], Blocks] = {}  # by way, machines, and whether `apart`
        self.ratios: dict[str, tuple[Ratio, float | None]] = {}
        self.profiles: dict[str, dict[str, float]] = {}
        self.missing: list[str] = []
        self._processor: int | None = None  # the client's
        subprocess.run(["make", "--silent", "build/bench-client"], cwd=REPOSITORY, check=True)
        shutil.copy(REPOSITORY / "build" / "bench-client", f"{host.path}{CLIENT}")
        host.install()
        host.guest(GUEST)
        host.image("lab-image")
        host.register_fake("second")
        self.service_uid = int(host.run(["id", "-u", "machine1-bridge"]).stdout)

    def client(self, mode: str, *numbers: int, by: Sequence[Way], timeout: float = 120) -> dict[str, Blocks]:
        """Microseconds, by way and block."""
        command = [CLIENT, mode, *map(str, numbers)]
        if self._processor is not None:
            command = ["taskset", "--cpu-list", str(self._processor), *command]
        output = self.host.run(command, stdin="".join(way.line for way in by), timeout=timeout).stdout
        blocks: dict[str, Blocks] = {way.name: [] for way in by}
        for line in output.splitlines():
            name, *times = line.split()
            blocks[name].append([int(nanoseconds) / 1000 for nanoseconds in times])
        return blocks

    @contextmanager
    def placed(self, *, apart: bool) -> Iterator[None]:
        """Those who answer on the first processor, the client there or on the next one."""
        processors = sorted(os.sched_getaffinity(0))
        self._place(str(processors[0]))
        self._processor = processors[apart]
        try:
            yield
        finally:
            self._processor = None
            self._place(",".join(map(str, processors)))

    def _place(self, processors: str) -> None:
        for pid in self._of_units("MainPID").values():
            if pid:
                self.host.run(["taskset", "--all-tasks", "--cpu-list", "--pid", processors, str(pid)])

    def there(self, by: Sequence[Way]) -> list[Way]:
        """Those of the ways that this version has; each has been gone once then."""
        found = []
        for way in by:
            try:
                self.client("calls", 1, 1, by=[way])
            except subprocess.CalledProcessError as error:
                if way.name.startswith("bridge."):
                    raise
                self._miss(f"{way.name}: {error.stderr.strip()}")
            else:
                found.append(way)
        return found

    def _miss(self, what: str) -> None:
        if what not in self.missing:
            self.missing.append(what)

    def calls(self, blocks: int, calls: int, by: Sequence[Way]) -> None:
        self._measure(blocks, calls, self.there(by))

    def _measure(self, blocks: int, calls: int, by: Sequence[Way], machines: int = 2, *, apart: bool = False) -> None:
        for name, measured in self.client("calls", blocks, calls, by=by).items():
            self.blocks[name, machines, apart] = measured
            label = name + (f" {machines}" if machines != 2 else "") + (", apart" if apart else "")
            self.figures[label] = as_json(Latency.of(measured))

    def reads(self, blocks: int, calls: int, machines: int = 2) -> None:
        """On one processor; with two machines also apart, where how many there are makes no other difference."""
        by, places = [*ways.READS, ways.GET_INFO, ways.ECHO], [False, True]
        others: AbstractContextManager[None] = nullcontext()
        if machines != 2:
            by, places = [*ways.READS], [False]
            others = many_machines(self.host, machines - 2)
        elif len(os.sched_getaffinity(0)) == 1:
            places = [False]
            self._miss("a processor of its own for the client")
        with others:
            time.sleep(SETTLING)
            by = self.there(by)
            for apart in places:
                with self.placed(apart=apart):
                    self._measure(blocks, calls, by, machines, apart=apart)

    def profile(self, calls: int, by: Sequence[Way]) -> None:
        """Where the time of a call goes: µs of a processor, by who used them."""
        for way in self.there(by):
            before = self._used()
            measured = self.client("calls", 1, calls, by=[way])[way.name]
            used = {name: (after - before[name]) / calls / 1000 for name, after in self._used().items()}
            self.profiles[way.name] = {"whole call": statistics.mean(measured[0])} | used

    def _used(self) -> dict[str, int]:
        """Nanoseconds of processors that units have used."""
        return self._of_units("CPUUsageNSec")

    def _of_units(self, number: str) -> dict[str, int]:
        """This property of each; 0 where there is none."""
        show = ["systemctl", "show", f"--property={number}", "--value"]
        lines = self.host.run([*show, *(f"{unit}.service" for unit in UNITS.values())]).stdout.split()
        return {name: int(line) if line.isdigit() else 0 for name, line in zip(UNITS, lines, strict=True)}

    def profile_start(self, times: int) -> None:
        """Where the time of a cold start goes before the first call: milliseconds, by what is imported."""
        modules = ("/usr/lib/machine1-bridge", "bridge.service")
        code = "import sys; sys.path.insert(0, {!r}); import {}".format(*modules)
        rounds: list[dict[str, float]] = []
        for _ in range(times):
            bare = self.host.inside(_bare_interpreter)
            lines = self.host.run(["/usr/bin/python3", "-I", "-X", "importtime", "-c", code]).stderr.splitlines()
            cumulative = {
                name.strip(): int(microseconds) / 1000
                for _, microseconds, name in (line.removeprefix("import time:").split("|") for line in lines[1:])
            }
            found = {name.removesuffix(".service"): cumulative.get(name, 0.0) for name in IMPORTS}
            rounds.append({"interpreter": bare} | found)
        self.profiles["imports of a cold start, ms"] = {
            name: statistics.median(each[name] for each in rounds) for name in rounds[0]
        }

    def compare(self, target: Target) -> Ratio | None:
        """None where this version has nothing to compare with."""
        work = self.blocks.get((target.work, target.machines, target.apart))
        beside = self.blocks.get((target.beside, target.beside_machines, target.apart))
        return Ratio.between(work, beside) if work and beside else None

    def slow(self) -> list[str]:
        """What costs more than it can by chance, see Target.guard; of what was measured."""
        compared = [(target, self.compare(target)) for target in ways.RATIOS if target.guard is not None]
        return [
            f"{target.work} / {target.beside}{_where(target)}: {ratio}, at most {target.guard}"
            for target, ratio in compared
            if ratio is not None and target.guard is not None and ratio.median > target.guard
        ]

    def flood(self, blocks: int, calls: int) -> None:
        """GetMachine calls a second, of many connections."""
        by = self.there([ways.GET_MACHINE, ways.LIST_BY_NAME])
        times = self.client("flood", blocks, calls, CONNECTIONS, by=by)
        seconds = {name: [block[0] / 1e6 for block in measured] for name, measured in times.items()}
        for name, taken in seconds.items():
            self.figures[f"{name}, calls a second"] = {"median": round(calls / statistics.median(taken))}
        if len(by) == 2:
            bridge, native = seconds.values()
            ratio = Ratio.of([other / one for one, other in zip(bridge, native, strict=True)])
            self.ratios[FLOOD] = (ratio, 1.0)

    def quiet(self, rounds: int, calls: int) -> None:
        """A quiet client beside busy ones of another user, and of its own."""
        by = self.there([ways.GET_MACHINE, ways.LIST_BY_NAME])
        for beside, busy_uid in (("", BUSY_UID), (" of its own user", QUIET_UID)):
            p99: dict[str, list[tuple[float, float]]] = {way.name: [] for way in by}
            for _ in range(rounds):
                alone = self.client("quiet", calls, 1000, 0, QUIET_UID, busy_uid, by=by)
                busy = self.client("quiet", calls, 1000, CONNECTIONS, QUIET_UID, busy_uid, by=by)
                for name, pairs in p99.items():
                    pairs.append((percentile(busy[name][0], 99), percentile(alone[name][0], 99)))
            for name, pairs in p99.items():
                ratio = Ratio.of([one / other for one, other in pairs])
                target = 3.0 if name.startswith("bridge.") and not beside else None
                self.ratios[f"p99 of a quiet client beside 8 busy ones{beside} / alone, {name}"] = (ratio, target)

    def cold(self, rounds: int) -> None:
        """From the connection that activates a service to its first reply; machined is warm for the bridge's."""
        services = {"bridge": ("machine1-bridge.service", ways.GET_MACHINE)}
        if self.host.run(["systemctl", "is-active", "systemd-machined.socket"], check=False).returncode == 0:
            services["native"] = ("systemd-machined.service", ways.LIST_BY_NAME)
        else:
            self._miss("a socket that activates systemd-machined")
        starts: dict[str, list[float]] = {name: [] for name in services}
        for _ in range(rounds):
            for name, (unit, way) in services.items():
                self.host.run(["systemctl", "stop", unit])
                self.host.run(["systemctl", "reset-failed", unit], check=False)
                if name == "bridge":
                    self.host.run(["machinectl", "list"])
                starts[name].append(self.host.inside(_first_reply, way.socket, way.request))
        for name, times in starts.items():
            self.figures[f"{name}, cold, ms"] = {"median": statistics.median(times), "max": max(times)}
        if "native" in starts:
            ratio = Ratio.of([one / other for one, other in zip(starts["bridge"], starts["native"], strict=True)])
            self.ratios[COLD] = (ratio, 1.0)

    def memory(self) -> None:
        """Proportional set size of the idle service, and what idle connections add."""
        self.host.run(["systemctl", "stop", "machine1-bridge.service"])
        with_machines = self.client("calls", 1, 20, by=[*ways.READS[::2], ways.GET_INFO])
        assert with_machines
        pid = self.host.bridge_pid()
        assert pid is not None
        idle = _pss(self.host, pid)
        connected = self.host.inside(_hold, f"/proc/{pid}/smaps_rollup", timeout=60)
        self.figures["idle service, PSS, MiB"] = {"value": idle, "target": 25}
        self.figures["1,000 idle connections add, MiB"] = {"value": connected - idle, "target": 20}


def _first_reply(path: str, request: bytes) -> float:
    started = time.perf_counter()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(request)
        reply = b""
        while not reply.endswith(b"\0"):
            reply += client.recv(65536)
    assert b'"error"' not in reply, reply
    return (time.perf_counter() - started) * 1e3


def _bare_interpreter() -> float:
    """Inside: milliseconds that a Python takes to start and end."""
    started = time.perf_counter()
    subprocess.run(["/usr/bin/python3", "-I", "-c", "pass"], check=True)
    return (time.perf_counter() - started) * 1e3


def _pss(host: Host, pid: int) -> float:
    return _pss_in((host.path / "proc" / str(pid) / "smaps_rollup").read_text())


def _pss_in(text: str) -> float:
    (line,) = (line for line in text.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) / 1024


def _hold(path: str) -> float:
    """Inside: MiB of the service while so many clients are connected that have made a call each."""
    clients = [Client(SOCKET) for _ in range(IDLE_CONNECTIONS)]
    for client in clients:
        client.call("GetMachine", {"name": GUEST})
    size = _pss_in(Path(path).read_text())
    for client in clients:
        client.close()
    return size


def measure(suite: str, machines: Sequence[int] = MACHINES) -> Bench:
    """Everything, on one version of systemd."""
    with Host.boot(suite, f"bench-{suite}-{os.getpid()}") as host:
        bench = Bench(host)
        bench.reads(60, 25)
        bench.calls(40, 10, ways.IMAGES)
        bench.calls(40, 10, [*ways.KILLS, ways.KILLS[-1].by(bench.service_uid)])
        bench.calls(12, 5, [*ways.SHELLS, ways.SHELLS[-1].by(bench.service_uid)])
        for number in machines[1:]:
            bench.reads(60, 25, number)
        with bench.placed(apart=False):
            bench.profile(3000, [ways.GET_MACHINE, ways.LIST_BY_NAME])
        bench.profile(300, [*ways.IMAGES[:2], *ways.KILLS, ways.KILLS[-1].by(bench.service_uid)])
        bench.profile(30, ways.SHELLS)
        bench.flood(11, 4000)
        bench.quiet(5, 1000)
        bench.cold(11)
        bench.profile_start(7)
        bench.memory()
        for target in ways.RATIOS:
            ratio = bench.compare(target)
            if ratio is not None:
                with_machines = "" if target.machines == 2 else f", {target.machines} machines"
                beside = "the same with 2" if target.beside == target.work else target.beside
                label = f"{target.work} / {beside}{with_machines}{_where(target)}"
                bench.ratios[label] = (ratio, target.at_most)
        return bench


def _where(target: Target) -> str:
    return ", apart" if target.apart else ""


def as_table(version: int, bench: Bench) -> str:
    lines = [f"systemd {version}", f"  {'µs':58}{'median':>10}{'p99':>10}{'first':>10}"]
    for name, figure in bench.figures.items():
        lines.append(f"  {name:58}" + "".join(f"{value:10.1f}" for value in figure.values()))
    lines.append(f"  {'ratios, and nine of ten of them':90}{'target':>8}")
    for name, (ratio, target) in bench.ratios.items():
        at_least = "at least" in name
        verdict = ""
        if target is not None:
            met = ratio.median >= target if at_least else ratio.median <= target
            verdict = f"{target:8.2f}  {'met' if met else 'MISSED'}"
        lines.append(f"  {name:66}{ratio!s:>24}{verdict}")
    lines.append("  profiles: µs of a processor that each took for a call, unless it says otherwise")
    for name, profile in bench.profiles.items():
        lines.append(f"  {name:34}" + ", ".join(f"{who} {used:.0f}" for who, used in profile.items()))
    return "\n".join(lines + [f"  not there: {missing}" for missing in bench.missing])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", default=[*SUITES][::-1], metavar="SUITE")
    options = parser.parse_args()
    document: dict[str, Any] = {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "kernel": platform.release(),
        "processors": os.cpu_count(),
    }
    for suite in options.suites:
        load = os.getloadavg()
        bench = measure(suite)
        version = SUITES[suite]
        print(as_table(version, bench), flush=True)
        document[f"systemd {version}"] = {
            "load before": load,
            "figures, µs": bench.figures,
            "ratios": {name: as_json(ratio) | {"target": target} for name, (ratio, target) in bench.ratios.items()},
            "profiles": bench.profiles,
            "not there": bench.missing,
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        if version == max(SUITES.values()):
            PICTURE.write_text(_picture(version, bench))


def _picture(version: int, bench: Bench) -> str:
    lines = {
        way.name: [(number, Latency.of(bench.blocks[way.name, number, False]).median) for number in MACHINES]
        for way in ways.READS
    }
    return draw(f"Median latency of a read, systemd {version}", lines)


if __name__ == "__main__":
    main()
