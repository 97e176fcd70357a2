# SPDX-License-Identifier: LGPL-2.1-or-later
"""For use inside a host: processes of any user, numbers they share, what a process costs, how long calls take."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import pickle
import resource
import select
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")

SERVICE = "machine1-bridge.service"


def pid_of(unit: str = SERVICE) -> int:
    """The main process of a unit that runs."""
    show = ["systemctl", "show", "--property=MainPID", "--value", unit]
    pid = int(subprocess.run(show, capture_output=True, check=True, text=True).stdout)
    assert pid, f"{unit} does not run"
    return pid


@dataclass(frozen=True)
class Cost:
    """What a process holds: MiB of memory, file descriptors.

    Memory as proportional and resident set size, both of which depend on who else has the same files open, and the part
    that does not: `anonymous`, what the process has allocated.
    """

    pss: float
    rss: float
    anonymous: float
    fds: int

    @classmethod
    def of(cls, pid: int) -> Cost:
        sizes = {}
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            key, _, value = line.partition(":")
            sizes[key] = int(value.split()[0]) / 1024
        return cls(sizes["Pss"], sizes["Rss"], sizes["Anonymous"], len(os.listdir(f"/proc/{pid}/fd")))


def settled(look: Callable[[], T], wanted: Callable[[T], bool], seconds: float = 10) -> T:
    """What `look` sees once it is as wanted, or, after so long, whatever it is."""
    deadline = time.monotonic() + seconds
    while not wanted(seen := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return seen


def allow_many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """What is connected in here is connected by this user: SO_PEERCRED says the effective IDs of that moment."""
    if uid == os.geteuid():
        yield
        return
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


class Tally:
    """Some numbers that processes share, by name. Each has one process that writes it, any may read."""

    def __init__(self, *names: str) -> None:
        self._places = {name: place for place, name in enumerate(names)}
        self._numbers = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def __getitem__(self, name: str) -> int:
        return self._numbers[self._places[name]]

    def __setitem__(self, name: str, value: int) -> None:
        self._numbers[self._places[name]] = value


class Worker(Generic[T]):
    """A function in a process of its own, as a user. It is over when the function returns or the `with` block ends."""

    def __init__(self, function: Callable[..., T], *arguments: object, uid: int = 0) -> None:
        self._reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._reader)
            _work(function, arguments, uid, writer)
        os.close(writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            os.close(self._reader)

    def result(self, seconds: float = 60) -> T:
        """What the function returned. AssertionError with its traceback if it raised, TimeoutError if it goes on."""
        data, deadline = b"", time.monotonic() + seconds
        while True:
            if not select.select([self._reader], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("a worker goes on")
            chunk = os.read(self._reader, 1 << 20)
            if not chunk:
                break
            data += chunk
        os.close(self._reader)
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        assert data, f"a worker ended with status {status}"
        value, failure = pickle.loads(data)  # noqa: S301  from this program's own fork
        assert failure is None, f"a worker failed:\n{failure}"
        result: T = value
        return result


def _work(function: Callable[..., object], arguments: Sequence[object], uid: int, writer: int) -> None:
    """Never returns: this is a copy of the whole test run."""
    answer: tuple[Any, str | None] = (None, "killed")
    try:
        gc.freeze()  # what the test run holds is none of this process's business, and is looked at again and again
        if uid:
            os.setgroups([uid])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        answer = function(*arguments), None
    except BaseException:
        answer = None, traceback.format_exc()
    finally:
        with open(writer, "wb") as file:
            file.write(pickle.dumps(answer))
        sys.stdout.flush()
        os._exit(0)


@dataclass(frozen=True)
class Times:
    """How long calls took, in milliseconds."""

    median: float
    p99: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        assert seconds, "nothing was measured"
        ordered = sorted(seconds)
        return cls(statistics.median(ordered) * 1e3, ordered[int(len(ordered) * 0.99)] * 1e3, len(ordered))

    def __str__(self) -> str:
        return f"median {self.median:.2f} ms, p99 {self.p99:.2f} ms, {self.count} calls"
