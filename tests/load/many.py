# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines in number: each is no more than a process `sleep`, its leader."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator

from tests.lab.host import Host

from .truth import Machined


@contextlib.contextmanager
def many_machines(host: Host, count: int) -> Iterator[None]:
    """So many more machines, `many1` to the last, gone after."""
    leaders = host.inside(_create, count)
    try:
        yield
    finally:
        host.inside(_remove, leaders)


def _create(count: int) -> list[int]:
    machined, leaders = Machined(), []
    for number in range(1, count + 1):
        leader = subprocess.Popen(["sleep", "infinity"], start_new_session=True, stdin=subprocess.DEVNULL)
        leader.returncode = 0  # it is to outlive this process, which would warn of that
        leaders.append(leader.pid)
        machined.call("CreateMachine", "sayssusa(sv)", f"many{number}", b"", "lab", "container", leader.pid, "", [])
    machined.close()
    return leaders


def _remove(leaders: list[int]) -> None:
    for leader in leaders:
        os.kill(leader, 9)
    machined, deadline = Machined(), time.monotonic() + 30
    while any(name.startswith("many") for name in machined.names("ListMachines")):
        assert time.monotonic() < deadline, "machines outlive their leaders"
        time.sleep(0.05)
    machined.close()
