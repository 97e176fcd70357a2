# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Go client against the real thing: programs with it, and machine1-shell, which is one static file."""

from __future__ import annotations

import shutil
import signal
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from tests.clients import go
from tests.unit import test_shell as twin
from tests.unit.test_shell import Typist

from .conftest import GUEST, SOCKET
from .host import SUITES, Host
from .test_authorization import SANDBOX, add_socket

FOLDER = "/run/clients-go"
SHELL = f"{FOLDER}/machine1-shell"
# Nothing else is in there: no /proc, no /dev, no library.
BOX = ["bwrap", "--unshare-all", "--die-with-parent", "--clearenv", "--ro-bind", SHELL, "/machine1-shell"]


@pytest.fixture
def client(host: Host) -> Iterator[Host]:
    """The host with the programs in it."""
    folder = host.path / FOLDER[1:]
    folder.mkdir()
    for program in (go.program(), go.example(), go.machines()):
        shutil.copy(program, folder)
    yield host
    shutil.rmtree(folder)


# --- the module -----------------------------------------------------------------------------------------------------


def test_the_readmes_example_opens_a_shell_in_each_machine(client: Host) -> None:
    assert client.run([f"{FOLDER}/example"]).stdout.split() == [GUEST]


def test_machines_are_listed(client: Host) -> None:
    assert client.run([f"{FOLDER}/machines"]).stdout == f"{GUEST} container systemd-nspawn\n"


@pytest.mark.parametrize(
    ("user", "name", "outcome"),
    [
        (None, "nope", "NoSuchMachine nope"),
        (None, "-", "InvalidParameter name"),
        ("nobody", GUEST, "InteractiveAuthenticationRequired"),
        ("machine1-bridge", GUEST, "PermissionDenied"),
    ],
)
def test_an_error_is_typed(client: Host, user: str | None, name: str, outcome: str) -> None:
    assert client.run([f"{FOLDER}/machines", name], user=user).stdout == f"{outcome}\n"


def test_a_login_prompt_a_terminal_and_the_root_directory(client: Host) -> None:
    opened = (client.run([f"{FOLDER}/machines", what, GUEST]).stdout for what in ("login", "pty", "root"))
    login, terminal, root = opened
    assert (login, root) == ("it asks who logs in\n", client.run_in_guest(GUEST, ["cat", "/etc/hostname"]).stdout)
    if SUITES[client.suite] < 258:
        assert terminal == "NotSupported: systemd does this from version 258 on\n"
    else:
        assert terminal.startswith("/dev/pts/")
    assert client.run([f"{FOLDER}/machines", "login", "nope"]).stdout == "NoSuchMachine nope\n"


# --- the program without a terminal ---------------------------------------------------------------------------------


def test_a_command_in_the_guest(client: Host) -> None:
    done = client.run([SHELL, "--env", "A=b c", GUEST, "/bin/sh", "-c", 'echo "$A" $((6*7)); hostname'])
    assert done.stdout.split() == ["b", "c", "42", GUEST]
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
    done = client.run([SHELL, "--env", "1=2", GUEST], check=False)
    assert (done.returncode, done.stderr) == (1, "machine1-shell: InvalidParameter: env[0]\n")
    done = client.run([SHELL, GUEST], check=False, user="nobody")
    assert done.returncode == 1
    assert done.stderr in ("machine1-shell: PermissionDenied\n", "machine1-shell: InteractiveAuthenticationRequired\n")


def test_a_sandbox_with_one_socket_and_the_program(client: Host) -> None:
    path = add_socket(client, "go", SANDBOX, mode="0600")
    command = [*BOX, "--bind", path, "/socket", "/machine1-shell", "--socket", "/socket"]
    done = client.run([*command, GUEST, "/bin/cat", "/etc/hostname"])
    assert (done.stdout.strip(), done.stderr) == (GUEST, "")
    done = client.run([*command, GUEST, "/bin/cat", "/etc/shadow"], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "machine1-shell: PermissionDenied\n")


# --- the program on a terminal --------------------------------------------------------------------------------------

Start = Callable[..., Typist]


@pytest.fixture
def start(client: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Somebody at a terminal runs a command inside the host."""
    typists = []

    def at_terminal(*command: str) -> Typist:
        enter = ["nsenter", f"--target={client.init.pid}", "--all", "--", *command]
        monkeypatch.setattr(twin, "command", lambda *_: enter)
        typist = Typist(client)  # type: ignore[arg-type]  # its command does not look at it
        typists.append(typist)
        return typist

    yield at_terminal
    for typist in typists:
        typist.close()


def shell(typist: Typist) -> None:
    """One is there, and reads."""
    typist.sees(b"#")
    typist.type(b"echo $((6*7))\r")
    typist.sees(b"42\r\n")


def ends_in_guest(host: Host, program: str) -> None:
    deadline = time.monotonic() + 10
    while host.run_in_guest(GUEST, ["pgrep", "-f", program], check=False).returncode == 0:
        assert time.monotonic() < deadline, program
        time.sleep(0.1)


@pytest.mark.parametrize("boxed", [False, True], ids=["plain", "sandboxed"])
def test_a_shell_on_a_terminal_and_the_way_out(client: Host, start: Start, boxed: bool) -> None:
    command = [*BOX, "--bind", SOCKET, "/socket", "/machine1-shell", "--socket", "/socket"] if boxed else [SHELL]
    typist = start(*command, GUEST)
    shell(typist)
    assert termios.tcgetattr(typist.far) != typist.before
    typist.type(b"exec sleep 4321\r")
    typist.sees(b"4321")
    typist.type(b"\x1d\x1d\x1d")
    assert typist.ends() == 0
    ends_in_guest(client, "sleep 4321")


def test_the_window_is_as_large_as_this_one(client: Host, start: Start) -> None:
    typist = start(SHELL, GUEST)
    shell(typist)
    typist.type(b"stty size; echo $TERM\r")
    typist.sees(b"30 100\r\nxterm-test")
    typist.resize((40, 132))
    # Inside of the host it has no session, whose processes the kernel would tell.
    client.run(["pkill", "--signal", "WINCH", "--exact", "machine1-shell"])
    typist.type(b"until [ \"$(stty size)\" = '40 132' ]; do sleep 0.1; done; echo re''sized\r")
    typist.sees(b"resized")
    typist.type(b"exit\r")
    assert typist.ends() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_the_terminal_as_it_was(client: Host, start: Start, number: signal.Signals) -> None:
    typist = start(SHELL, GUEST)
    shell(typist)
    typist.type(b"exec sleep 5432\r")
    typist.sees(b"5432")
    client.run(["pkill", "--signal", str(number.value), "--exact", "machine1-shell"])
    assert typist.ends() == 128 + number
    ends_in_guest(client, "sleep 5432")
