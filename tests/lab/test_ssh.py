# SPDX-License-Identifier: LGPL-2.1-or-later
"""From one host to another over SSH: sshd(8) between two network namespaces, and varlinkctl at the near end."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from .conftest import GUEST, SOCKET, unavailable
from .host import SUITES, Host, Unavailable
from .test_readme import COMMANDS

NEAR, FAR = "192.0.2.1", "192.0.2.2"
# varlinkctl came with 255, so the oldest host is only ever the far one.
PAIRS = [("trixie", "bookworm"), ("forky", "trixie")]
_numbers = itertools.count(1)


@dataclass
class Pair:
    """A host whose root may log in at another one as root and as ada, who is nobody special there."""

    near: Host
    far: Host

    def varlinkctl(self, *arguments: str) -> Any:  # noqa: ANN401  JSON
        return json.loads(self.near.run(["varlinkctl", "-j", *arguments]).stdout)


@pytest.fixture(scope="module", params=PAIRS, ids=[f"{SUITES[near]}-to-{SUITES[far]}" for near, far in PAIRS])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    names = [(suite, f"{suite}-{os.getpid()}-ssh{next(_numbers)}") for suite in request.param]
    try:
        near, far = (Host.boot(suite, name, kind="ssh") for suite, name in names)
    except Unavailable as reason:
        unavailable(reason)
    with near, far:
        try:
            near.wire(f"{NEAR}/24", far, f"{FAR}/24")
        except Unavailable as reason:
            unavailable(reason)
        far.install()
        far.guest(GUEST)
        far.run(["useradd", "--create-home", "ada"])
        near.run(["mkdir", "-p", "-m", "700", "/root/.ssh"])
        near.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519"])
        key = (near.path / "root/.ssh/id_ed25519.pub").read_text()
        for user, home in (("root", "/root"), ("ada", "/home/ada")):
            allow(far, user, home, key)
        (near.path / "root/.ssh/known_hosts").write_text(
            f"{FAR} {(far.path / 'etc/ssh/ssh_host_ed25519_key.pub').read_text()}"
        )
        yield Pair(near, far)


def allow(host: Host, user: str, home: str, key: str) -> None:
    folder = f"{home}/.ssh"
    host.run(["mkdir", "-p", "-m", "700", folder])
    host.run(["tee", f"{folder}/authorized_keys"], stdin=key)
    host.run(["chown", "-R", f"{user}:{user}", folder])


@pytest.mark.parametrize("line", [line for line in COMMANDS if "HOST" in line])
def test_the_lines_of_the_readme(pair: Pair, line: str) -> None:
    assert GUEST in pair.near.run(["sh", "-ec", line.replace("HOST", FAR)]).stdout


WAYS = {"ssh-unix": f"ssh-unix:{{}}:{SOCKET}", "ssh-exec": "ssh-exec:{}:machine1-bridge --stdio"}


@pytest.mark.parametrize("user", ["root", "ada"])
@pytest.mark.parametrize("way", WAYS)
def test_the_other_host_answers_the_user_who_logged_in(pair: Pair, way: str, user: str) -> None:
    address = WAYS[way].format(f"{user}@{FAR}")
    (machine,) = pair.varlinkctl("call", address, "io.machine1.ListMachines", "{}")["machines"]
    assert machine["name"] == GUEST
    question = json.dumps({"method": "TerminateMachine", "parameters": {"name": GUEST}})
    allowed = pair.varlinkctl("call", address, "io.machine1.Check", question)["allowed"]
    assert allowed == (user == "root")


# The client, its session at the other end by the names of old and new versions, and what runs there for it.
SESSIONS = "^(ssh |sshd: .*@|sshd-session: .*@)|--stdio"


def test_nothing_is_left_of_a_call(pair: Pair) -> None:
    """Neither at the far end, when the near end has hung up, nor at the near one."""
    assert "sshd" in pair.near.run(["ssh", f"root@{FAR}", f"pgrep -af '{SESSIONS}'"]).stdout
    for way in WAYS.values():
        pair.varlinkctl("call", way.format(f"root@{FAR}"), "io.machine1.ListMachines", "{}")
    deadline = time.monotonic() + 10
    for host in (pair.near, pair.far):
        while left := host.run(["pgrep", "-af", SESSIONS], check=False).stdout:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
