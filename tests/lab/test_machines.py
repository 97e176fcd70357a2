# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines, on a real host: what the bridge says and does, held against what machined and the guest say afterwards."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator

import pytest

from .conftest import GUEST
from .host import Host
from .varlink import call, error, machines


def eventually(condition: Callable[[], bool], seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def other_guest(host: Host) -> Iterator[str]:
    """A booted guest that the test may end."""
    host.guest("guest2")
    yield "guest2"
    host.end_guest("guest2")


@pytest.fixture
def virtual_machine(host: Host) -> Iterator[str]:
    """A registered machine of class vm: its leader is a process that sleeps."""
    leader = host.register_fake("vm1", "vm")
    yield "vm1"
    host.run(["sh", "-c", f"kill -9 {leader} 2>/dev/null; machinectl terminate vm1 2>/dev/null; true"])
    assert eventually(lambda: "vm1" not in machines(host))


def test_list_is_what_machined_says(host: Host) -> None:
    truth = machines(host)
    assert truth[GUEST][0] == "container"
    listed = call(host, "ListMachines", {"all": True})["machines"]
    assert {m["name"]: (m["class"], m["service"], m["object_path"]) for m in listed} == truth
    assert [m["name"] for m in call(host, "ListMachines")["machines"]] == sorted(truth.keys() - {".host"})


def test_get_is_what_machined_says(host: Host) -> None:
    for name in (GUEST, ".host"):
        machine = call(host, "GetMachine", {"name": name})["machine"]
        assert (machine["class"], machine["service"], machine["object_path"]) == machines(host)[name]


def test_virtual_machine(host: Host, virtual_machine: str) -> None:
    assert call(host, "GetMachine", {"name": virtual_machine})["machine"]["class"] == "vm"
    name, parameters = error(host, "OpenMachineShell", {"name": virtual_machine})
    assert name == "io.machine1.NotSupported"
    assert parameters["reason"]
    name, _ = error(host, "CopyFromMachine", {"name": virtual_machine, "src": "/etc/passwd", "dest": "/run/nothing"})
    assert name == "io.machine1.NotSupported"
    assert call(host, "TerminateMachine", {"name": virtual_machine}) == {}
    assert eventually(lambda: virtual_machine not in machines(host))


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("GetMachine", {}),
        ("TerminateMachine", {}),
        ("KillMachine", {}),
        ("OpenMachineShell", {}),
        ("CopyFromMachine", {"src": "/etc/passwd", "dest": "/run/nothing"}),
        ("CopyToMachine", {"src": "/etc/passwd", "dest": "/run/nothing"}),
    ],
)
def test_no_such_machine(host: Host, method: str, more: dict[str, str]) -> None:
    assert error(host, method, {"name": "nope", **more}) == ("io.machine1.NoSuchMachine", {"name": "nope"})


def test_signal_reaches_a_trap_in_the_guest(host: Host) -> None:
    """SIGCONT (18) for all of its processes: only the trap takes notice of it."""
    script = 'trap "echo seen >/run/seen" CONT; echo ready >/run/ready; while :; do sleep 0.1; done'
    start = ["systemd-run", "--quiet", "--unit=trap", "sh", "-c", script]
    host.run_in_guest(GUEST, start)
    try:
        assert eventually(lambda: host.run_in_guest(GUEST, ["cat", "/run/ready"], check=False).returncode == 0)
        assert call(host, "KillMachine", {"name": GUEST, "who": "all", "signal": 18}) == {}
        assert eventually(lambda: host.run_in_guest(GUEST, ["cat", "/run/seen"], check=False).stdout == "seen\n")
    finally:
        host.run_in_guest(GUEST, ["systemctl", "stop", "trap.service"])
        host.run_in_guest(GUEST, ["rm", "-f", "/run/seen", "/run/ready"])


def test_signal_to_the_leader_reaches_its_init_alone(host: Host) -> None:
    """SIGRTMIN+22 (56) sets the log level of systemd to debug, SIGRTMIN+23 (57) back to info: see systemd(1)."""

    def level() -> str:
        show = ["systemctl", "show", "--property=LogLevel", "--value"]
        return host.run_in_guest(GUEST, show).stdout.strip()

    assert level() == "info"
    assert call(host, "KillMachine", {"name": GUEST, "who": "leader", "signal": 56}) == {}
    assert eventually(lambda: level() == "debug")
    assert call(host, "KillMachine", {"name": GUEST, "who": "leader", "signal": 57}) == {}
    assert eventually(lambda: level() == "info")


def test_kill_without_signal_is_sigterm_to_all(host: Host, virtual_machine: str) -> None:
    assert call(host, "KillMachine", {"name": virtual_machine}) == {}
    assert eventually(lambda: virtual_machine not in machines(host))


def test_terminate(host: Host, other_guest: str) -> None:
    assert call(host, "TerminateMachine", {"name": other_guest}) == {}
    assert eventually(lambda: other_guest not in machines(host))
    state = ["systemctl", "show", "--property=ActiveState", "--value", f"guest-{other_guest}.service"]
    assert eventually(lambda: host.run(state).stdout.strip() in ("inactive", "failed"))


def test_what_the_host_itself_does_not_support(host: Host) -> None:
    for method, more in (
        ("TerminateMachine", {}),
        ("KillMachine", {}),
        ("CopyFromMachine", {"src": "/etc/passwd", "dest": "/run/nothing"}),
    ):
        name, _ = error(host, method, {"name": ".host", **more})
        assert name == "io.machine1.NotSupported", method


def test_a_shell_on_the_host_is_not_the_bridges_to_give(host: Host) -> None:
    """Not even to root: the bridge itself has no right to it."""
    assert error(host, "OpenMachineShell", {"name": ".host"}) == ("org.varlink.service.PermissionDenied", {})


def test_copy_in_and_out_byte_for_byte(host: Host) -> None:
    content = os.urandom(3_000_000)
    digest = hashlib.sha256(content).hexdigest()
    (host.path / "run/copy-in").write_bytes(content)
    try:
        assert call(host, "CopyToMachine", {"name": GUEST, "src": "/run/copy-in", "dest": "/root/copied"}) == {}
        assert host.run_in_guest(GUEST, ["sha256sum", "/root/copied"]).stdout.split()[0] == digest
        assert call(host, "CopyFromMachine", {"name": GUEST, "src": "/root/copied", "dest": "/run/copy-out"}) == {}
        assert host.run(["sha256sum", "/run/copy-out"]).stdout.split()[0] == digest
        name, parameters = error(host, "CopyToMachine", {"name": GUEST, "src": "/run/copy-in", "dest": "/root/copied"})
        assert (name, parameters["dbus_error"]) == ("io.machine1.Failed", "org.freedesktop.DBus.Error.FileExists")
    finally:
        host.run(["rm", "-f", "/run/copy-in", "/run/copy-out"])
        host.run_in_guest(GUEST, ["rm", "-f", "/root/copied"])


def test_copy_without_destination_keeps_the_path(host: Host) -> None:
    host.run(["sh", "-c", "mkdir /opt/tree && echo one >/opt/tree/file && ln -s file /opt/tree/link"])
    try:
        assert call(host, "CopyToMachine", {"name": GUEST, "src": "/opt/tree"}) == {}
        assert host.run_in_guest(GUEST, ["cat", "/opt/tree/link"]).stdout == "one\n"
        assert host.run_in_guest(GUEST, ["readlink", "/opt/tree/link"]).stdout == "file\n"
        host.run(["rm", "-r", "/opt/tree"])
        assert call(host, "CopyFromMachine", {"name": GUEST, "src": "/opt/tree"}) == {}
        assert host.run(["cat", "/opt/tree/file"]).stdout == "one\n"
    finally:
        host.run(["rm", "-rf", "/opt/tree"])
        host.run_in_guest(GUEST, ["rm", "-rf", "/opt/tree"])


def test_copy_of_what_is_not_there(host: Host) -> None:
    for method in ("CopyFromMachine", "CopyToMachine"):
        name, parameters = error(host, method, {"name": GUEST, "src": "/nope", "dest": "/run/nope"})
        assert (name, parameters["dbus_error"]) == ("io.machine1.Failed", "org.freedesktop.DBus.Error.FileNotFound")
        assert "No such file" in parameters["message"]


@pytest.mark.parametrize(
    ("method", "parameters", "culprit"),
    [
        ("GetMachine", {}, "name"),
        ("GetMachine", {"name": "a/b"}, "name"),
        ("KillMachine", {"name": GUEST, "signal": 1000}, "signal"),
        ("KillMachine", {"name": GUEST, "who": "payload"}, "who"),
        ("OpenMachineShell", {"name": GUEST, "path": "bin/sh"}, "path"),
        ("OpenMachineShell", {"name": GUEST, "env": ["A=1", "nonsense"]}, "env[1]"),
        ("CopyFromMachine", {"name": GUEST, "src": "relative"}, "src"),
    ],
)
def test_a_rejected_call_names_the_parameter(
    host: Host, method: str, parameters: dict[str, object], culprit: str
) -> None:
    name, details = error(host, method, parameters)
    assert (name, details["parameter"]) == ("org.varlink.service.InvalidParameter", culprit)
    assert details["reason"]


def test_who_is_not_root_may_look_and_not_touch(host: Host) -> None:
    assert call(host, "GetMachine", {"name": GUEST}, user="nobody")["machine"]["name"] == GUEST
    assert call(host, "ListMachines", user="nobody")["machines"]
    assert "images" in call(host, "ListImages", user="nobody")
    asked: tuple[str, dict[str, str]] = ("io.systemd.InteractiveAuthenticationRequired", {})
    for method, parameters in (
        ("TerminateMachine", {}),
        ("KillMachine", {}),
        ("OpenMachineShell", {}),
        ("CopyFromMachine", {"src": "/etc/passwd", "dest": "/run/nothing"}),
        ("CopyToMachine", {"src": "/etc/passwd", "dest": "/run/nothing"}),
        ("RemoveImage", {}),
        ("CloneImage", {"dest": "stolen"}),
        ("RenameImage", {"dest": "stolen"}),
    ):
        assert error(host, method, {"name": GUEST, **parameters}, user="nobody") == asked, method
    assert GUEST in machines(host)


def test_a_guest_without_a_bus(host: Host) -> None:
    """machined shows it, and can open no shell there: a clear answer, and neither machined nor the bridge hangs."""
    host.guest("nobus", bus=False)
    try:
        assert call(host, "GetMachine", {"name": "nobus"})["machine"]["class"] == "container"
        started = time.monotonic()
        name, parameters = error(host, "OpenMachineShell", {"name": "nobus"})
        assert name in ("io.machine1.Failed", "io.machine1.NotSupported"), (name, parameters)
        assert time.monotonic() - started < 25
        assert call(host, "GetMachine", {"name": GUEST})
        assert call(host, "CopyFromMachine", {"name": "nobus", "src": "/etc/hostname", "dest": "/run/hostname"}) == {}
        assert host.run(["cat", "/run/hostname"]).stdout == "nobus\n"
    finally:
        host.run(["rm", "-f", "/run/hostname"])
        host.end_guest("nobus")
