# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command beside the service: shells on a terminal, and one client on standard input and output."""

from __future__ import annotations

import json
import os
import pty
import select
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence

import pytest

from .conftest import GUEST
from .host import Host
from .varlink import has_varlinkctl

BRIDGE = "/usr/bin/machine1-bridge"
LIST = '{"method":"io.machine1.ListMachines"}\0'
TERMINATE = '{"method":"io.machine1.TerminateMachine","parameters":{"name":"nope"}}\0'


REFUSED = {"root": "io.machine1.NoSuchMachine", "nobody": "io.systemd.InteractiveAuthenticationRequired"}


def replies(output: str) -> list[dict[str, object]]:
    return [json.loads(reply) for reply in output.split("\0")[:-1]]


# --- shells ---------------------------------------------------------------------------------------------------------


def test_a_command_in_the_guest(host: Host) -> None:
    done = host.run([BRIDGE, "shell", "--env", "A=b c", GUEST, "/bin/sh", "-c", 'echo "$A" $((6*7)); hostname'])
    assert done.stdout.split() == ["b", "c", "42", host.run_in_guest(GUEST, ["hostname"]).stdout.strip()]
    assert done.stderr == ""


def test_input_is_that_of_the_command(host: Host) -> None:
    done = host.run([BRIDGE, "shell", GUEST, "/bin/sh", "-c", "stty -echo; exec wc -l"], stdin="a\nb\nc\n")
    assert done.stdout.split()[-1] == "3"


@pytest.mark.parametrize("script", ["", "echo $((6*7))\n"])
def test_the_end_of_input_ends_a_shell_that_asks_for_commands(host: Host, script: str) -> None:
    done = host.run([BRIDGE, "shell", GUEST], stdin=script, timeout=20)
    assert ("\n42\n" in done.stdout) == bool(script)


def test_what_is_wrong_is_one_line(host: Host) -> None:
    done = host.run([BRIDGE, "shell", "nope"], check=False)
    assert (done.returncode, done.stderr) == (1, "machine1-bridge: NoSuchMachine: nope\n")
    done = host.run([BRIDGE, "shell", GUEST], check=False, user="nobody")
    assert done.returncode == 1
    assert done.stderr.startswith(("machine1-bridge: PermissionDenied", "machine1-bridge: InteractiveAuthentication"))


class Terminal:
    """A terminal on which `machine1-bridge shell` runs inside the host."""

    def __init__(self, host: Host, *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        command = ["nsenter", f"--target={host.init.pid}", "--all", "--", BRIDGE, "shell", *arguments]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.seen = b""

    def type(self, text: bytes) -> None:
        os.write(self.ours, text)

    def sees(self, text: bytes) -> None:
        end = time.monotonic() + 20
        while text not in self.seen:
            readable, _, _ = select.select([self.ours], [], [], max(0, end - time.monotonic()))
            assert readable, (text, self.seen)
            self.seen += os.read(self.ours, 65536)
        self.seen = self.seen.partition(text)[2]

    def close(self) -> None:
        os.close(self.ours)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def terminal(host: Host) -> Iterator[Terminal]:
    terminal = Terminal(host, GUEST)
    yield terminal
    terminal.close()


def test_a_shell_on_a_terminal_and_the_way_out(host: Host, terminal: Terminal) -> None:
    terminal.sees(b"#")
    terminal.type(b"echo $((6*7)); exec sleep 4321\r")
    terminal.sees(b"42")
    assert host.run_in_guest(GUEST, ["pgrep", "-f", "sleep 4321"]).stdout
    terminal.type(b"\x1d\x1d\x1d")
    assert terminal.process.wait(20) == 0
    deadline = time.monotonic() + 10
    while host.run_in_guest(GUEST, ["pgrep", "-f", "sleep 4321"], check=False).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_shell_ends_with_the_one_inside(terminal: Terminal) -> None:
    terminal.sees(b"#")
    terminal.type(b"exit\r")
    assert terminal.process.wait(20) == 0


# --- completion -----------------------------------------------------------------------------------------------------

COMPLETE = """
source /usr/share/bash-completion/completions/machine1-bridge
COMP_WORDS=(machine1-bridge "$@")
COMP_CWORD=$#
_machine1_bridge
printf '%s\\n' "${COMPREPLY[@]}"
"""


def complete(host: Host, *words: str, user: str | None = None) -> list[str]:
    done = host.run(["bash", "--norc", "-c", COMPLETE, "bash", *words], user=user)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("user", [None, "nobody"])
def test_names_of_machines_are_completed(host: Host, user: str | None) -> None:
    assert complete(host, "shell", "", user=user) == [GUEST]
    assert complete(host, "shell", GUEST[:3], user=user) == [GUEST]
    assert complete(host, "shell", "nope", user=user) == []


def test_completion_on_a_host_of_its_own(fresh_host: Host) -> None:
    folder = fresh_host.path / "etc/machine1-bridge"
    folder.mkdir(mode=0o755)
    for name in ("box.toml", "$(kill $$).toml", "notes"):
        (folder / name).write_text("")
    assert complete(fresh_host, "--policy", "") == ["box"]
    fresh_host.run(["systemctl", "stop", "machine1-bridge.socket", "machine1-bridge.service"])
    assert complete(fresh_host, "shell", "") == []


# --- standard input and output --------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_stdio_is_a_way_to_the_service_as_who_runs_it(host: Host, user: str) -> None:
    done = host.run([BRIDGE, "--stdio"], stdin=LIST + TERMINATE, user=user)
    listed, ended = replies(done.stdout)
    assert GUEST in str(listed["parameters"])
    assert ended["error"] == REFUSED[user]
    assert done.stderr == ""


def test_stdio_starts_the_service(fresh_host: Host) -> None:
    assert fresh_host.bridge_pid() is None
    assert replies(fresh_host.run([BRIDGE, "--stdio"], stdin=LIST).stdout) == [{"parameters": {"machines": []}}]
    assert fresh_host.bridge_pid() is not None


def test_varlinkctl_starts_a_service_of_its_own(host: Host) -> None:
    if not has_varlinkctl(host):
        return
    call = ["io.machine1.GetMachine", json.dumps({"name": GUEST})]
    done = host.run(["varlinkctl", "call", "-j", f"exec:{BRIDGE}", *call])
    assert json.loads(done.stdout)["machine"]["name"] == GUEST


UNITS = {
    "each.socket": """
[Socket]
ListenStream=/run/each
SocketMode=0666
Accept=yes
""",
    "each@.service": """
[Service]
User=machine1-bridge
ExecStart={}
{}
""",
}


def ask(path: str, *calls: str) -> list[dict[str, object]]:
    """Inside a host."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(path)
        client.sendall("".join(calls).encode())
        data = b""
        while data.count(b"\0") < len(calls):
            more = client.recv(65536)
            assert more, data
            data += more
    return replies(data.decode())


WAYS: Sequence[tuple[str, str]] = [
    (f"{BRIDGE} --stdio", "StandardInput=socket\nStandardOutput=socket\nStandardError=journal"),
    (BRIDGE, ""),
]


@pytest.mark.parametrize(("command", "settings"), WAYS, ids=["inetd", "handed over"])
def test_a_unit_with_a_process_for_each_connection(fresh_host: Host, command: str, settings: str) -> None:
    """Who asks is who connected, and the process ends when the client has left."""
    folder = fresh_host.path / "run/systemd/system"
    folder.mkdir(exist_ok=True)
    for name, text in UNITS.items():
        (folder / name).write_text(text.format(command, settings))
    fresh_host.run(["systemctl", "daemon-reload"])
    fresh_host.run(["systemctl", "start", "each.socket"])
    nobody = fresh_host.account("nobody")
    for uid in (0, nobody.uid):
        listed, ended = fresh_host.inside(ask, "/run/each", LIST, TERMINATE, uid=uid)
        assert listed == {"parameters": {"machines": []}}
        assert ended["error"] == (REFUSED["nobody"] if uid else REFUSED["root"])
    deadline = time.monotonic() + 10
    while "each@" in (units := fresh_host.run(["systemctl", "list-units", "--no-legend", "each@*"]).stdout):
        assert time.monotonic() < deadline, units
        time.sleep(0.1)
    assert fresh_host.bridge_pid() is None
