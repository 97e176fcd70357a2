# SPDX-License-Identifier: LGPL-2.1-or-later
"""`machine1-bridge report` on hosts in order and on hosts that are not: it ends soon, and names what is wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.policy import PRESETS

from .conftest import GUEST, SOCKET, boot
from .host import REPOSITORY, SUITES, Host
from .test_machines import eventually

BRIDGE = "/usr/bin/machine1-bridge"
DROP_IN = Path("etc/systemd/system/machine1-bridge.service.d")
ACTIONS = (REPOSITORY / "contrib/polkit/io.machine1.policy").read_text().count("<action id=")
# Two rounds of programs, the service, and what a busy machine takes.
SECONDS_MAX = 25


# The command as installed, but that waits for less.
HASTY = """
import sys
sys.path.insert(0, "/usr/lib/machine1-bridge")
import bridge.__main__, bridge.probe
bridge.probe.SECONDS = 1.0
sys.exit(bridge.__main__.main(["report"]))
"""


def report(host: Host, *arguments: str, user: str | None = None, hasty: bool = False) -> tuple[str, list[str]]:
    """All of it, and what it says is wrong."""
    command = ["python3", "-IS", "-c", HASTY] if hasty else [BRIDGE, "report", *arguments]
    begin = time.monotonic()
    done = host.run(command, user=user)
    assert time.monotonic() - begin < SECONDS_MAX
    assert done.stderr == ""
    wrong = done.stdout.partition("[wrong]\n")[2].partition("\n\n")[0].splitlines()
    return done.stdout, wrong


@pytest.fixture(scope="module")
def order(suite: str) -> Iterator[Host]:
    """A host with a guest on which nobody else tries things: other tests leave policies with mistakes."""
    with boot(suite) as host:
        host.install()
        host.guest(GUEST)
        yield host


@pytest.mark.parametrize("user", [None, "nobody"])
def test_a_host_in_order(order: Host, user: str | None) -> None:
    host = order
    text, wrong = report(host, user=user)
    assert wrong == ["nothing"]
    assert f"systemd:                     {SUITES[host.suite]}" in text
    for line in (
        "machine1-bridge.socket:      loaded, active (running), enabled",
        f"socket:                      {SOCKET}, srw-rw-rw-, UID 0, GID 0",
        f"registry link:               to {SOCKET}",
        "system bus:                  answers",
        "machined on the bus:         answers",
        f"polkit knows:                {ACTIONS} actions of io.machine1",
        "varlink:                     31.",
    ):
        assert f"\n{line}" in text
    followed = "yes" if user is None else "only root can"
    assert f"\npolkit follows the rule:     {followed}" in text
    assert f"\nthe bus follows the policy:  {followed}" in text
    assert " machines, after " in text
    assert GUEST not in text


def test_the_journal_if_asked(order: Host) -> None:
    host = order
    host.run([BRIDGE, "shell", "nope"], check=False)
    host.run(["journalctl", "--sync"])
    text, wrong = report(host, "--journal")
    assert wrong == ["nothing"]
    assert "io.machine1.OpenMachineShell on nope by UID 0" in text.partition("[journal]")[2]


def test_a_socket_that_is_stopped(fresh_host: Host) -> None:
    fresh_host.run(["systemctl", "stop", "machine1-bridge.socket", "machine1-bridge.service"])
    _, wrong = report(fresh_host)
    assert wrong == [
        "! connecting to the service: No such file or directory",
        "! machine1-bridge.socket is inactive: systemctl enable --now machine1-bridge.socket",
        "! the socket: No such file or directory",
    ]


def test_policies_with_mistakes(fresh_host: Host) -> None:
    folder = fresh_host.path / "etc/machine1-bridge"
    folder.mkdir()
    (folder / "default.toml").write_text('preset = "manage"\nmachines = ["honeypot["]\n')
    (folder / "joe.toml").write_text('preset = "everything"\n')
    text, wrong = report(fresh_host)
    assert (
        "! default.toml: does not load, so its service does not start: line 2: machines[0]: '...' has a [ with"
        in str(wrong)
    )
    assert "! NAME1.toml: does not load, so its service does not start: line 1: preset must be one of" in str(wrong)
    assert "! org.varlink.service.GetInfo: " in str(wrong) or "! connecting to the service" in str(wrong)
    assert "honeypot" not in text
    assert "joe" not in text
    # Once it is in order there is nothing left to say, though the socket may have to be started again.
    (folder / "default.toml").write_text('preset = "manage"\n')
    (folder / "joe.toml").unlink()
    fresh_host.run(["systemctl", "reset-failed", "machine1-bridge.socket", "machine1-bridge.service"])
    fresh_host.run(["systemctl", "restart", "machine1-bridge.socket"])
    assert report(fresh_host)[1] == ["nothing"]
    time.sleep(1.5)  # times of starts are in seconds
    (folder / "default.toml").write_text('preset = "read-only"\n')
    newer = "! default.toml is newer than the service that follows it: reload machine1-bridge.service"
    assert report(fresh_host)[1] == [newer]
    fresh_host.run(["systemctl", "reload", "machine1-bridge.service"])
    assert report(fresh_host)[1] == ["nothing"]


def test_a_policy_that_a_user_may_not_read_is_no_mistake(fresh_host: Host) -> None:
    folder = fresh_host.path / "etc/machine1-bridge"
    folder.mkdir(mode=0o755)
    (folder / "box.toml").write_text('preset = "read-only"\n')
    (folder / "box.toml").chmod(0o600)
    text, wrong = report(fresh_host, user="nobody")
    assert wrong == ["nothing"]
    assert f"{'NAME1.toml:':<28} cannot be read by this user" in text


def test_sandboxes(fresh_host: Host) -> None:
    folder = fresh_host.path / "etc/machine1-bridge"
    folder.mkdir(mode=0o755)
    (folder / "joe.toml").write_text('preset = "read-only"\n')
    fresh_host.run(["systemctl", "start", "machine1-bridge@joe.socket"])
    text, wrong = report(fresh_host, "--socket", "/run/machine1/sandbox/joe")
    assert wrong == ["nothing"]
    assert "machine1-bridge@NAME1.socket" in text
    assert f"{'NAME1.toml:':<28} loads: {len(PRESETS['read-only'])} methods, polkit required" in text
    assert f"{'sockets of sandboxes:':<28} 1" in text
    assert "joe" not in text
    text, _ = report(fresh_host, "--socket", "/run/machine1/sandbox/joe", "--names")
    assert "machine1-bridge@joe.socket" in text


@pytest.mark.parametrize("service", ["systemd-machined", "machine1-bridge", "polkit", "dbus"])
def test_a_service_that_hangs(fresh_host: Host, service: str) -> None:
    # As it is shipped on one of them.
    hasty = SUITES[fresh_host.suite] < 262
    if service == "dbus" and not (fresh_host.path / "usr/bin/dbus-daemon").exists():
        pytest.fail("the host has another bus")
    report(fresh_host)  # all of them run now
    fresh_host.run(["systemctl", "kill", "--signal=STOP", "--kill-whom=main", f"{service}.service"])
    try:
        _, wrong = report(fresh_host, hasty=hasty)
        assert "! " in wrong[0]
        for line in {
            "systemd-machined": ["machined on the bus: busctl"],
            "machine1-bridge": ["org.varlink.service.GetInfo: no reply within "],
            "polkit": ["polkit does not answer, so only root may change anything: busctl"],
            "dbus": ["system bus: busctl", "machined on the bus: busctl", "polkit does not answer"],
        }[service]:
            assert any(problem.startswith(f"! {line}") for problem in wrong), wrong
        report(fresh_host, user="nobody", hasty=hasty)
    finally:
        # Past the bus, which may be the one that hangs.
        pid = fresh_host.run(["pgrep", "-f", f"^[^ ]*{PROGRAMS[service]}"]).stdout.split()[0]
        fresh_host.run(["kill", "-CONT", pid])
    assert eventually(lambda: report(fresh_host)[1] == ["nothing"])


PROGRAMS = {
    "systemd-machined": "systemd-machined",
    "machine1-bridge": "python.*machine1-bridge",
    "polkit": "polkitd",
    "dbus": "dbus-daemon",
}


def test_what_lets_the_service_do_its_work(fresh_host: Host) -> None:
    """Each piece taken away, and each that is there but was not read."""
    report(fresh_host)
    fresh_host.run(["rm", "/usr/share/polkit-1/rules.d/10-machine1-bridge.rules"])
    fresh_host.run(["rm", "/usr/share/polkit-1/actions/io.machine1.policy"])
    fresh_host.run(["systemctl", "restart", "polkit.service"])
    _, wrong = report(fresh_host)
    assert any(problem.startswith("! polkit rule: no 10-machine1-bridge.rules in ") for problem in wrong)
    assert any(problem.startswith("! polkit actions: no io.machine1.policy in ") for problem in wrong)
    assert any(problem.startswith("! polkit does not follow the rule") for problem in wrong)
    assert "! polkit knows no action of io.machine1, so only root may change anything" in wrong
    bus = ["busctl", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "ReloadConfig"]
    policy = "/usr/share/dbus-1/system.d/machine1-bridge.conf"
    fresh_host.run(["mv", policy, "/root/"])
    fresh_host.run(bus)
    unread = "! the bus does not follow the policy for machine1-bridge: systemctl reload dbus.service"
    _, wrong = report(fresh_host)
    assert unread in wrong
    assert any(problem.startswith("! D-Bus policy: no machine1-bridge.conf in ") for problem in wrong)
    fresh_host.run(["mv", "/root/machine1-bridge.conf", policy])
    fresh_host.run(bus)
    assert unread not in report(fresh_host)[1]


def test_a_service_of_root(fresh_host: Host) -> None:
    folder = fresh_host.path / DROP_IN
    folder.mkdir(parents=True)
    shipped = fresh_host.path / "usr/share/doc/machine1-bridge/no-polkit.conf"
    (folder / "no-polkit.conf").write_bytes(shipped.read_bytes())
    assert any("was changed on disk: systemctl daemon-reload" in problem for problem in report(fresh_host)[1])
    fresh_host.run(["systemctl", "daemon-reload"])
    fresh_host.run(["systemctl", "restart", "machine1-bridge.service"])
    text, wrong = report(fresh_host)
    assert wrong == ["nothing"]
    assert f"/{DROP_IN}/no-polkit.conf" in text
    assert "the service runs as another user than its own" in text


def test_a_host_without_machined(fresh_host: Host) -> None:
    fresh_host.run(["systemctl", "mask", "--now", "systemd-machined.service"])
    _, wrong = report(fresh_host)
    assert "! systemd-machined.service is masked" in wrong
    assert any(problem.startswith("! io.machine1.ListMachines: Unavailable") for problem in wrong), wrong
