# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each command in the README's part on calling does what is said of it, as it stands there."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from .conftest import boot
from .host import REPOSITORY, SUITES, Host

_PART = re.search(r"\n## Call it\n(.*?)\n## ", (REPOSITORY / "README.md").read_text(), re.DOTALL)
assert _PART is not None
# Indented by four, outside of Python's blocks. A backslash at the end of a line joins it with the next.
_INDENTED = re.findall(r"^    ((?:.*\\\n)*.*)$", re.sub(r"```.*?```", "", _PART[1], flags=re.DOTALL), re.MULTILINE)
COMMANDS = [re.sub(r"\\\n\s*", "", command) for command in _INDENTED]


class Expectation(NamedTuple):
    """What a command prints has a place that this matches, and it ends in `status`, if it always is the same.

    Before version `since` of systemd it fails.
    """

    pattern: str
    since: int = 257
    status: int | None = 0


WEB = r'"name"\s*:\s*"web"'
# By what a command has in it. The first that fits counts.
EXPECTED = {
    "--exec call": Expectation(r"(?m)^bin\b", 258, status=1),
    "--more --collect call": Expectation(rf"(?s)^\x1e?\[.*{WEB}"),
    "WatchMachines": Expectation(rf'(?s)"event"\s*:\s*"snapshot".*{WEB}', status=124),
    "WaitMachine": Expectation(WEB),
    "--oneway call": Expectation(r"^$"),
    "call exec:": Expectation(WEB),
    "list-registry": Expectation(r"io\.machine1 +unix:/run/machine1/io\.machine1", 260),
    # Not each kernel has the attributes by which they are found.
    "list-sockets": Expectation(r"unix:/run/machine1/io\.machine1|not support extended attributes", 262, status=None),
    "info": Expectation(r"Product: machine1-bridge"),
    "list-methods": Expectation(r"io\.machine1\.OpenMachineShell"),
    "introspect": Expectation(r"method OpenMachineShell"),
    "io.systemd.service.Ping": Expectation(r"^$"),
    "ListMachines": Expectation(WEB),
    "Check": Expectation(r'"allowed"\s*:\s*true'),
    "KillMachine": Expectation(r"^$"),
    "machine1-bridge shell web /": Expectation(r"(?m)^bin\b"),
    "machine1-bridge report": Expectation(r"\[wrong\]\nnothing"),
}


@pytest.fixture(scope="module")
def readme_host(suite: str) -> Iterator[Host]:
    """A host with a guest of the README's name."""
    with boot(suite) as host:
        host.install()
        yield host


@pytest.mark.parametrize("command", [command for command in COMMANDS if "HOST" not in command])
def test_a_command_does_what_is_said(readme_host: Host, command: str) -> None:
    """Those with HOST in them are in test_ssh.py, those at a terminal in test_command.py."""
    host = readme_host
    if "web" not in host.run(["machinectl", "list"]).stdout:
        host.guest("web")
    (expected,) = itertools.islice((each for part, each in EXPECTED.items() if part in command), 1)
    done = host.run(["sh", "-c", command], check=False)
    version = SUITES[host.suite]
    if "varlinkctl" in command and version < expected.since:
        assert done.returncode != 0
        return
    assert re.search(expected.pattern, done.stdout or done.stderr), done
    if expected.status is not None:
        assert done.returncode == expected.status, done
