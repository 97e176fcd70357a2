# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Rust client against the real thing: its example, and its program machine1-shell, which is one static file."""

from __future__ import annotations

import shutil
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients import rust
from tests.unit.test_shell import Typist

from .conftest import GUEST
from .host import Host
from .test_authorization import SANDBOX, add_socket

SHELL = "/run/machine1-shell"
MACHINES = "/run/machines"


@pytest.fixture(scope="session")
def built() -> Path:
    return rust.build()


@pytest.fixture
def client(host: Host, built: Path) -> Iterator[Host]:
    """The host with both programs in it."""
    placed = {SHELL: built / "machine1-shell", MACHINES: built / "examples" / "machines"}
    for path, program in placed.items():
        shutil.copy(program, host.path / path[1:])
    yield host
    for path in placed:
        (host.path / path[1:]).unlink()


# --- the crate ------------------------------------------------------------------------------------------------------


def test_machines_are_listed(client: Host) -> None:
    assert client.run([MACHINES]).stdout == f"{GUEST} container systemd-nspawn\n"


@pytest.mark.parametrize(
    ("user", "name", "said"),
    [
        (None, "nope", "There is no machine nope."),
        (None, "-", "This cannot be a name: it must "),
        ("nobody", GUEST, "You may do this after entering a password."),
    ],
)
def test_an_error_is_typed(client: Host, user: str | None, name: str, said: str) -> None:
    done = client.run([MACHINES, "terminate", name], user=user, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(said)


# --- the program without a terminal ---------------------------------------------------------------------------------


def test_a_command_in_the_guest(client: Host) -> None:
    done = client.run([SHELL, "--env", "A=b c", GUEST, "/bin/sh", "-c", 'echo "$A" $((6*7)); hostname'])
    assert done.stdout.split() == ["b", "c", "42", client.run_in_guest(GUEST, ["hostname"]).stdout.strip()]
    assert done.stderr == ""


def test_input_is_that_of_the_command(client: Host) -> None:
    done = client.run([SHELL, GUEST, "/bin/sh", "-c", "stty -echo; exec wc -l"], stdin="a\nb\nc\n")
    assert done.stdout.split()[-1] == "3"


@pytest.mark.parametrize("script", ["", "echo $((6*7))\n"])
def test_the_end_of_input_ends_a_shell_that_asks_for_commands(client: Host, script: str) -> None:
    done = client.run([SHELL, GUEST], stdin=script, timeout=20)
    assert ("\n42\n" in done.stdout) == bool(script)


def test_what_is_wrong_is_one_line(client: Host) -> None:
    done = client.run([SHELL, "nope"], check=False)
    assert (done.returncode, done.stderr) == (1, "machine1-shell: NoSuchMachine: nope\n")
    done = client.run([SHELL, GUEST, "ls"], check=False)
    assert (done.returncode, done.stderr.partition(",")[0]) == (1, "machine1-shell: InvalidParameter: path")
    done = client.run([SHELL, GUEST], check=False, user="nobody")
    assert done.returncode == 1
    assert done.stderr.startswith(("machine1-shell: PermissionDenied", "machine1-shell: InteractiveAuthentication"))


# --- the program on a terminal --------------------------------------------------------------------------------------

Start = Callable[..., Typist]


@pytest.fixture
def start(client: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Somebody at a terminal runs machine1-shell inside the host, or what is given."""
    typists = []

    def at_terminal(*arguments: str) -> Typist:
        command = ["nsenter", f"--target={client.init.pid}", "--all", "--", *arguments]
        monkeypatch.setattr("tests.unit.test_shell.command", lambda *_: command)
        typist = Typist(client)  # type: ignore[arg-type]  # whose command does not depend on it here
        typists.append(typist)
        return typist

    yield at_terminal
    for typist in typists:
        typist.close()


def is_gone(host: Host, program: str) -> bool:
    """Before long, in the guest."""
    deadline = time.monotonic() + 10
    while host.run_in_guest(GUEST, ["pgrep", "-f", program], check=False).returncode == 0:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_a_shell_on_a_terminal_and_the_way_out(client: Host, start: Start) -> None:
    typist = start(SHELL, GUEST)
    typist.sees(b"#")
    typist.type(b"echo $((6*7)) $TERM; stty size\r")
    typist.sees(b"42 xterm-test")
    typist.sees(b"30 100")
    typist.resize((40, 132))
    client.run(["pkill", "--signal", "WINCH", "--exact", "machine1-shell"])
    typist.type(b"stty size\r")
    typist.sees(b"40 132")
    typist.type(b"exec sleep 4321\r")
    typist.sees(b"sleep 4321")
    assert client.run_in_guest(GUEST, ["pgrep", "-f", "sleep 4321"]).stdout
    typist.type(b"\x1d\x1d\x1d")
    assert typist.ends() == 0
    assert is_gone(client, "sleep 4321")


def test_a_shell_ends_with_the_one_inside(start: Start) -> None:
    typist = start(SHELL, GUEST)
    typist.sees(b"#")
    typist.type(b"exit\r")
    assert typist.ends() == 0


@pytest.mark.parametrize(("name", "number"), [("TERM", 15), ("HUP", 1), ("INT", 2)])
def test_a_signal_leaves_the_terminal_as_it_was(client: Host, start: Start, name: str, number: int) -> None:
    typist = start(SHELL, GUEST, "/bin/sh", "-c", "echo it runs; exec sleep 4322")
    typist.sees(b"it runs")
    assert termios.tcgetattr(typist.far) != typist.before
    client.run(["pkill", "--signal", name, "--exact", "machine1-shell"])
    assert typist.ends() == 128 + number
    assert is_gone(client, "sleep 4322")


# --- the program in a sandbox ---------------------------------------------------------------------------------------


@pytest.fixture
def sandbox(client: Host) -> Iterator[list[str]]:
    """bubblewrap, with nothing inside but the program and one socket with a policy of its own."""
    path = add_socket(client, "rust", SANDBOX, mode="0600")
    yield [
        *("bwrap", "--unshare-all", "--die-with-parent", "--clearenv"),
        *("--ro-bind", SHELL, "/machine1-shell", "--bind", path, "/socket"),
        *("--setenv", "MACHINE1_SOCKET", "/socket", "/machine1-shell"),
    ]
    client.run(["systemctl", "stop", "machine1-bridge@rust.socket", "machine1-bridge@rust.service"])
    (client.path / "etc/machine1-bridge/rust.toml").unlink()
    shutil.rmtree(client.path / "run/systemd/system/machine1-bridge@rust.socket.d")
    client.run(["systemctl", "daemon-reload"])


def test_a_sandbox_needs_the_program_and_a_socket(client: Host, sandbox: list[str], start: Start) -> None:
    done = client.run([*sandbox, GUEST, "/bin/cat", "/etc/hostname"])
    assert (done.stdout.split(), done.stderr) == ([client.run_in_guest(GUEST, ["hostname"]).stdout.strip()], "")
    for command, error in ((["/bin/cat", "/etc/shadow"], "PermissionDenied"), ([], "PermissionDenied")):
        done = client.run([*sandbox, GUEST, *command], check=False)
        assert (done.returncode, done.stderr) == (1, f"machine1-shell: {error}\n")
    done = client.run([*sandbox, "guest2"], check=False)
    assert (done.returncode, done.stderr) == (1, "machine1-shell: NoSuchMachine: guest2\n")
    typist = start(*sandbox, GUEST, "/bin/cat", "/etc/hostname")
    typist.sees(b"\n")
    assert typist.ends() == 0
