# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the lab: a host of each suite with the bridge installed, and a check that each test left nothing.

Each test that uses `host` runs three times, with systemd 252, 257 and 262. A host is up only while its suite's tests
run: pytest orders tests by a parameter of session scope.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.client import Client

from .host import SUITES, Host, Unavailable

SOCKET = "/run/machine1/io.machine1"
GUEST = "guest1"
SETTLE = 3.0  # seconds that the bridge has to close what a client left, and processes to end

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.lab)


def unavailable(reason: Unavailable) -> NoReturn:
    """Skip with the reason; in CI a test that did not run is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"the lab is not available: {reason}", pytrace=False)
    pytest.skip(f"the lab is not available: {reason}")


def boot(suite: str) -> Host:
    try:
        return Host.boot(suite, f"{suite}-{os.getpid()}-{next(_numbers)}")
    except Unavailable as reason:
        unavailable(reason)


@pytest.fixture(scope="session", params=SUITES, ids=[str(version) for version in SUITES.values()])
def suite(request: pytest.FixtureRequest) -> str:
    """A suite of Debian's, by name; the test's ID shows its version of systemd."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def bare_host(suite: str) -> Iterator[Host]:
    """A host without the bridge, shared by all tests of the suite that ask for it: leave it as it is."""
    with boot(suite) as host:
        yield host


@pytest.fixture(scope="session")
def host(suite: str) -> Iterator[Host]:
    """A host with the bridge installed and the guest `guest1` running, shared by the tests: leave both as they are."""
    with boot(suite) as host:
        host.install()
        host.guest(GUEST)
        warm(host)
        yield host


@pytest.fixture
def fresh_host(suite: str) -> Iterator[Host]:
    """A host with the bridge installed for one test alone, which may do to it what it likes. No guest runs in it."""
    with boot(suite) as host:
        host.install()
        yield host


_warm: dict[str, int | None] = {}  # the process of each host's bridge that has all of its connections


def warm(host: Host) -> None:
    nobody = host.account("nobody")
    host.inside(warm_up)
    host.inside(warm_up, uid=nobody.uid, gid=nobody.gid)
    _warm[host.name] = host.bridge_pid()


def warm_up() -> None:
    """Inside a host: calls, so that the bridge runs with its connections to the bus before FDs are counted."""
    with Client(SOCKET, timeout=30) as client:
        client.call("ListMachines")
        for interactive in (False, True):
            client.error("TerminateMachine", {"name": "nope", "allowInteractiveAuthentication": interactive})
        client.error("RemoveImage", {"name": "nope"})


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test on the shared host: the bridge has as many FDs open as before, and no process was left behind.

    FDs are compared only if the bridge is the same process as before: a test may well have restarted it.
    """
    if "host" not in request.fixturenames:
        yield
        return
    host: Host = request.getfixturevalue("host")
    if host.bridge_pid() is None or host.bridge_pid() != _warm.get(host.name):
        # Another process than at the last look: it opens its connections to the bus when it first needs them.
        warm(host)
    processes = set(host.left_behind())
    bridge = host.bridge_pid()
    before = {} if bridge is None else host.open_files(bridge)
    yield

    def new_processes() -> list[str]:
        return sorted(set(host.left_behind()) - processes)

    def other_files() -> list[str]:
        if bridge is None or bridge != host.bridge_pid():
            return []
        after = host.open_files(bridge)
        if len(after) == len(before):
            return []
        lines = [f"+ {number} {what}" for number, what in after.items() if before.get(number) != what]
        return lines + [f"- {number} {what}" for number, what in before.items() if number not in after]

    assert _settled(new_processes) == [], "processes left behind by the test"
    assert _settled(other_files) == [], "file descriptors of the bridge, + opened and - closed by the test"


def _settled(look: Callable[[], list[str]]) -> list[str]:
    """What `look` still finds after it had time to find nothing."""
    deadline = time.monotonic() + SETTLE
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found
