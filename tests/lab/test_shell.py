# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shells, on a real host: the file descriptor that comes back is the PTY of a program in the guest."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import termios
import time

from tests.client import Client

from .conftest import GUEST, SOCKET
from .host import SUITES, Host


class Shell:
    """A shell's PTY in the hands of a client. For use inside a host."""

    def __init__(self, **parameters: object) -> None:
        with Client(SOCKET) as client:
            reply = client.call("OpenMachineShell", {"name": GUEST, **parameters})
            assert reply["pty_fd"] == 0
            assert len(client.fds) == 1
            self.path: str = reply["pty_path"]
            self.fd = client.take_fd()
        assert os.isatty(self.fd)
        self.output = ""

    def write(self, text: str) -> None:
        """Type something. What is typed before a program reads may be lost: the guest resets the terminal first."""
        self.wait_for(r"[#$?] $")
        os.write(self.fd, text.encode())

    def wait_for(self, pattern: str, seconds: float = 15) -> re.Match[str]:
        """Until the output matches."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.output)):
            assert self._read(end), f"no {pattern!r} in {self.output!r}"
        return match

    def to_the_end(self, seconds: float = 15) -> str:
        """All output, until the program is gone and reading fails with EIO (facts of pty(7))."""
        end = time.monotonic() + seconds
        while self._read(end):
            assert time.monotonic() < end
        os.close(self.fd)
        return self.output.replace("\r\n", "\n")

    def _read(self, end: float) -> bool:
        ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
        assert ready, f"nothing more after {self.output!r}"
        try:
            data = os.read(self.fd, 4096)
        except OSError:
            return False
        self.output += data.decode()
        return bool(data)


def test_what_is_typed_is_echoed_and_done(host: Host) -> None:
    def conversation() -> str:
        shell = Shell(path="/bin/sh", args=["sh"])
        shell.write("echo sum $((40+2))\n")
        shell.wait_for(r"echo sum \$\(\(40\+2\)\)\s+sum 42\s")
        shell.write("exit\n")
        return shell.to_the_end()

    assert "sum 42" in host.inside(conversation)


def test_a_login_shell_where_no_program_is_given(host: Host) -> None:
    def conversation() -> str:
        shell = Shell()
        shell.write("echo I am $(id -un) in $(hostname); exit\n")
        return shell.to_the_end()

    assert f"I am root in {GUEST}" in host.inside(conversation)


def test_program_arguments_and_user(host: Host) -> None:
    def conversation() -> str:
        args = ["sh", "-c", 'id -un; echo "$1"', "x", "two  words"]
        return Shell(user="nobody", path="/bin/sh", args=args).to_the_end()

    output = host.inside(conversation)
    assert "nobody\n" in output
    assert "two  words\n" in output


def test_arguments_arrive_as_they_are_written(host: Host) -> None:
    """Dollars above all, which systemd would replace: $$, $NAME, ${NAME}; and no shell is in between."""
    written = ["$$", "$HOME", "${HOME}", "a $HOME b", "%n %%", "", "*", "\\t;'\"", "zwei Wörter"]

    def conversation() -> str:
        return Shell(path="/usr/bin/printf", args=["printf", "<%s>\n", *written], env=["HOME=/replaced"]).to_the_end()

    assert host.inside(conversation) == "".join(f"<{argument}>\n" for argument in written)


def test_environment(host: Host) -> None:
    def conversation() -> str:
        return Shell(path="/usr/bin/env", args=["env"], env=["MACHINE1=set here", "EMPTY="]).to_the_end()

    lines = host.inside(conversation).splitlines()
    assert "MACHINE1=set here" in lines
    assert "EMPTY=" in lines


def test_window_size_set_on_the_file_descriptor(host: Host) -> None:
    def conversation() -> None:
        shell = Shell(path="/bin/sh", args=["sh"])
        fcntl.ioctl(shell.fd, termios.TIOCSWINSZ, struct.pack("4H", 33, 111, 0, 0))
        shell.write("stty size\n")
        shell.wait_for(r"33 111")
        shell.write("trap 'echo now $(stty size)' WINCH; echo armed\n")
        shell.wait_for(r"\narmed\r\n")
        fcntl.ioctl(shell.fd, termios.TIOCSWINSZ, struct.pack("4H", 44, 122, 0, 0))
        shell.write("\n")
        shell.wait_for(r"now 44 122")
        shell.write("exit\n")
        shell.to_the_end()

    host.inside(conversation)


def test_path_of_the_terminal_in_the_guest(host: Host) -> None:
    def conversation() -> tuple[str, str]:
        shell = Shell(path="/usr/bin/tty", args=["tty"])
        return shell.path, shell.to_the_end()

    path, output = host.inside(conversation)
    assert path.startswith("/dev/pts/")
    assert output == f"{path}\n"


def test_the_end_of_the_program_is_the_end_of_the_terminal(host: Host) -> None:
    def conversation() -> str:
        return Shell(path="/bin/sh", args=["sh", "-c", "echo last words; exit 3"]).to_the_end()

    assert host.inside(conversation) == "last words\n"


def test_closing_the_file_descriptor_ends_the_program(host: Host) -> None:
    def conversation() -> None:
        shell = Shell(path="/bin/sh", args=["sh", "-c", "echo $$ running; sleep 1000"])
        shell.wait_for(r"\d+ running")
        os.close(shell.fd)

    host.inside(conversation)
    end = time.monotonic() + 10
    while host.run_in_guest(GUEST, ["pgrep", "-f", "slee[p] 1000"], check=False).returncode == 0:
        assert time.monotonic() < end, "the program outlived its terminal"
        time.sleep(0.1)


def test_many_shells_at_once(host: Host) -> None:
    def conversation() -> list[str]:
        shells = [Shell(path="/bin/sh", args=["sh", "-c", f"printf '{i}? '; read x; echo {i} $x"]) for i in range(10)]
        for shell in reversed(shells):
            shell.write("typed\n")
        return [shell.to_the_end() for shell in shells]

    for number, output in enumerate(host.inside(conversation)):
        assert f"{number} typed\n" in output


def test_varlinkctl_hands_the_shell_to_a_program(host: Host) -> None:
    """--exec is known from 258 on: the program gets the reply on standard input and the PTY as descriptor 3."""
    if SUITES[host.suite] < 258:
        done = host.run(["varlinkctl", "--exec", "call"], check=False)
        assert done.returncode != 0
        return
    parameters = f'{{"name":"{GUEST}","path":"/bin/echo","args":["echo","from","the","guest"]}}'
    command = ["varlinkctl", "--exec", "call", SOCKET, "io.machine1.OpenMachineShell", parameters]
    done = host.run([*command, "--", "sh", "-c", "cat <&3; true"])
    assert "from the guest" in done.stdout
