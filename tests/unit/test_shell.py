# SPDX-License-Identifier: LGPL-2.1-or-later
"""`machine1-bridge shell` on a terminal of the test's own, with a service that hands it the terminal of a real sh."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.shell import SECONDS_MIN

REPOSITORY = Path(__file__).resolve().parents[2]
PROMPT = b"in the machine> "


class Service:
    """Takes one call a connection and answers as told; programs run on terminals of its own."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.calls: list[dict[str, Any]] = []
        self.answer: Callable[[socket.socket], None] = self.shell
        self.session = ["setsid", "--ctty"]
        self._programs: list[subprocess.Popen[bytes]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client:
                message = b""
                while not message.endswith(b"\0"):
                    data = client.recv(65536)
                    if not data:
                        return
                    message += data
                self.calls.append(json.loads(message[:-1]))
                self.answer(client)

    def shell(self, client: socket.socket) -> None:
        parameters = self.calls[-1]["parameters"]
        terminal, far = pty.openpty()
        # What a shell starts in the background ignores ^C, and so does all that this has started.
        program = [*self.session, "env", "--default-signal", *parameters.get("args", ["sh"])]
        environment = {"PS1": PROMPT.decode(), "PATH": os.environ["PATH"]}
        self._programs.append(subprocess.Popen(program, stdin=far, stdout=far, stderr=far, env=environment))
        os.close(far)
        self.send(client, {"parameters": {"pty_fd": 0, "pty_path": "/dev/pts/0"}}, terminal)
        os.close(terminal)

    def send(self, client: socket.socket, reply: object, *descriptors: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        client.sendmsg([json.dumps(reply).encode() + b"\0"], rights)

    def fails(self, error: str, **parameters: object) -> None:
        self.answer = lambda client: self.send(client, {"error": error, "parameters": parameters})

    def programs_end(self) -> list[int]:
        """The status of each of the programs, which end within a while."""
        return [program.wait(20) for program in self._programs]

    def close(self) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as last:
            last.connect(self.path)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._listener.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "service")
    yield service
    service.close()


def command(service: Service, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "bridge", "shell", "--socket", service.path, *arguments]


class Typist:
    """Somebody at a terminal who runs `machine1-bridge shell`."""

    def __init__(self, service: Service, *arguments: str, window: tuple[int, int] = (30, 100)) -> None:
        self.terminal, self.far = pty.openpty()
        self.resize(window)
        self.before = termios.tcgetattr(self.far)
        self.process = subprocess.Popen(
            command(service, *arguments),
            stdin=self.far,
            stdout=self.far,
            stderr=self.far,
            cwd=REPOSITORY,
            env={**os.environ, "TERM": "xterm-test"},
        )
        self.seen = b""

    def resize(self, window: tuple[int, int]) -> None:
        fcntl.ioctl(self.far, termios.TIOCSWINSZ, struct.pack("HHHH", *window, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.terminal, text)

    def sees(self, text: bytes, seconds: float = 20) -> None:
        """And no longer what came up to it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            readable, _, _ = select.select([self.terminal], [], [], max(0, end - time.monotonic()))
            assert readable, (text, self.seen)
            self.seen += os.read(self.terminal, 65536)
        self.seen = self.seen.partition(text)[2]

    def gets(self, text: bytes, answer: bytes) -> None:
        """What is typed is typed again until there is an answer."""
        end = time.monotonic() + 20
        while answer not in self.seen:
            assert time.monotonic() < end, (answer, self.seen)
            self.type(text)
            while select.select([self.terminal], [], [], 0.3)[0]:
                self.seen += os.read(self.terminal, 65536)

    def ends(self) -> int:
        """The exit status; the terminal is as it was."""
        status = self.process.wait(20)
        assert termios.tcgetattr(self.far) == self.before
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)
        os.close(self.far)


@pytest.fixture
def typist(service: Service) -> Iterator[Typist]:
    typist = Typist(service, "web")
    typist.sees(PROMPT)
    yield typist
    typist.close()


def test_a_shell_is_one_of_this_terminal(service: Service, typist: Typist) -> None:
    assert service.calls == [
        {
            "method": "io.machine1.OpenMachineShell",
            "parameters": {"name": "web", "allowInteractiveAuthentication": True, "env": ["TERM=xterm-test"]},
        }
    ]
    typist.type(b"stty size\r")
    typist.sees(b"30 100")
    typist.resize((40, 132))
    typist.process.send_signal(signal.SIGWINCH)
    typist.sees(PROMPT)
    typist.type(b"stty size\r")
    typist.sees(b"40 132")
    # The terminal here is raw: ^C is for the program there.
    typist.type(b"cat\r")
    typist.sees(b"cat")
    typist.type(b"it runs\r")
    for _ in ("as typed", "by cat, which a shell about to start it would be instead"):
        typist.sees(b"it runs")
    typist.type(b"\x03")
    # It also takes away what was typed after it, and what was not shown yet, the prompt perhaps.
    typist.gets(b"echo $((6*8))\r", b"48")
    typist.type(b"exit\r")
    assert typist.ends() == 0
    assert service.programs_end() != [-signal.SIGHUP]


def test_three_times_the_key_leaves_and_what_runs_there_is_hung_up_on(service: Service, typist: Typist) -> None:
    typist.type(b"\x1d\x1d")
    typist.type(b"x\x1d\x1d\r")
    typist.sees(b"not found")
    started = time.monotonic()
    typist.type(b"\x1d\x1d\x1d")
    assert typist.ends() == 0
    assert time.monotonic() - started < 5
    assert service.programs_end() == [-signal.SIGHUP]


@pytest.mark.parametrize("around", [(b"", b"x"), (b"x", b""), (b"x", b"x\r")])
def test_three_times_the_key_leaves_whatever_is_typed_around_it(
    service: Service, typist: Typist, around: tuple[bytes, bytes]
) -> None:
    typist.type((b"\x1d" * 3).join(around))
    assert typist.ends() == 0
    assert service.programs_end() == [-signal.SIGHUP]


def test_a_machine_that_does_not_read_keeps_nobody(service: Service) -> None:
    """However much is typed: by a terminal that it asks what it is, for example."""
    typist = Typist(service, "web", "/bin/sh", "-c", "stty raw -echo; echo ready; exec sleep 60")
    typist.sees(b"ready")
    for _ in range(100):
        typist.type(b"x" * 1000)
    time.sleep(0.5)
    typist.type(b"\x1d\x1d\x1d")
    assert typist.ends() == 0
    typist.close()
    assert service.programs_end() == [-signal.SIGHUP]


def test_three_times_the_key_but_slowly_is_typing(service: Service, typist: Typist) -> None:
    for _ in range(3):
        typist.type(b"\x1d")
        time.sleep(0.6)
    typist.type(b"\rexit\r")
    assert typist.ends() == 0
    assert service.programs_end() != [-signal.SIGHUP]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_leaves_the_terminal_as_it_was(service: Service, typist: Typist, number: signal.Signals) -> None:
    assert termios.tcgetattr(typist.far) != typist.before
    typist.process.send_signal(number)
    assert typist.ends() == 128 + number
    assert service.programs_end() == [-signal.SIGHUP]


def test_who_is_gone_at_once_leaves_when_the_program_can_be_told(service: Service) -> None:
    """One that has not opened its terminal yet would run on."""
    typist = Typist(service, "web")
    typist.sees(PROMPT)
    started = time.monotonic()
    typist.type(b"\x1d\x1d\x1d")
    assert typist.ends() == 0
    typist.close()
    assert time.monotonic() - started > SECONDS_MIN / 2
    assert service.programs_end() == [-signal.SIGHUP]


def test_a_terminal_that_goes_away_ends_it(service: Service, typist: Typist) -> None:
    os.close(typist.far)
    os.close(typist.terminal)
    assert typist.process.wait(20) != 0
    assert service.programs_end() == [-signal.SIGHUP]
    typist.terminal, typist.far = os.pipe()


def run(service: Service, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(service, *arguments), input=given, capture_output=True, cwd=REPOSITORY, timeout=30, check=False
    )


def test_without_a_terminal_output_is_that_of_the_command(service: Service) -> None:
    done = run(service, "--user", "bob", "--env", "A=b", "--env", "C=", "web", "/bin/echo", "-n", "--user", "x y")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"--user x y", b"")
    assert service.calls[0]["parameters"] == {
        "name": "web",
        "allowInteractiveAuthentication": True,
        "user": "bob",
        "env": ["A=b", "C="],
        "path": "/bin/echo",
        "args": ["/bin/echo", "-n", "--user", "x y"],
    }
    assert service.programs_end() == [0]


@pytest.mark.parametrize("given", [b"one\ntwo\n", b"one\ntwo"])
def test_without_a_terminal_input_is_that_of_the_command_and_ends_it(service: Service, given: bytes) -> None:
    # cat closes the terminal before it ends: alone it would be hung up on, or not, as it happens.
    done = run(service, "web", "/bin/sh", "-c", "stty -echo; cat; exit 0", given=given)
    assert (done.returncode, done.stderr) == (0, b"")
    # What is typed before the terminal is told not to show it is seen twice.
    assert done.stdout.replace(b"\r\n", b"\n").endswith(given.removesuffix(b"\n") + given[len(b"one\ntwo") :])
    assert service.programs_end() == [0]


def test_what_is_typed_waits_until_the_terminal_has_been_emptied(service: Service) -> None:
    """As the systemd of a machine empties it, some versions after they have made it that of a session."""
    program = """
import fcntl, os, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
time.sleep(0.03)
termios.tcflush(0, termios.TCIOFLUSH)
os.execvp("sh", ["sh", "-c", "stty -echo; exec wc -l"])
"""
    service.session = ["setsid"]
    done = run(service, "web", sys.executable, "-c", program, given=b"a\nb\nc\n")
    assert done.stdout.split()[-1] == b"3"
    assert service.programs_end() == [0]


def test_an_end_of_input_that_a_program_has_thrown_away_comes_again(service: Service) -> None:
    """As a shell does that asks for commands: the terminal becomes another one, and what waits there is lost."""
    program = """
import os, time, tty
time.sleep(0.5)
tty.setraw(0)
while (key := os.read(0, 1)) != b"\\4":
    print(key)
"""
    done = run(service, "web", sys.executable, "-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert service.programs_end() == [0]


def test_much_output_comes_whole(service: Service) -> None:
    done = run(service, "web", "/usr/bin/seq", "200000")
    assert done.stdout.split() == [str(number).encode() for number in range(1, 200_001)]
    assert service.programs_end() == [0]


@pytest.mark.parametrize("arguments", [["web", "--user", "bob"], ["web", "-l"], ["web", "", "x"]])
def test_an_option_after_the_name_is_no_argument_of_nothing(service: Service, arguments: list[str]) -> None:
    done = run(service, *arguments)
    assert done.returncode == 2
    assert b"options come before NAME" in done.stderr
    assert service.calls == []


def test_an_error_is_one_line(service: Service) -> None:
    service.fails("io.machine1.NoSuchMachine", name="web")
    done = run(service, "web")
    assert (done.returncode, done.stderr) == (1, b"machine1-bridge: NoSuchMachine: web\n")
    service.fails("io.machine1.Timeout")
    assert run(service, "web").stderr == b"machine1-bridge: Timeout\n"


def test_what_a_machine_says_in_an_error_can_only_be_read(service: Service) -> None:
    """It could write to the terminal."""
    service.fails("io.machine1.Failed", dbus_error="x", message="\x1b[2J\nyour pässword:\r\u202e")
    done = run(service, "web")
    assert done.returncode == 1
    said = done.stderr.decode()
    assert "your pässword:" in said
    assert said.endswith("\n")
    assert said[:-1].isprintable()


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"parameters": {}},
        {"parameters": {"pty_fd": 1}},
        {"parameters": {"pty_fd": "0"}},
        {"parameters": {"pty_fd": False}},
        {"error": 5},
        {"error": "x.Y", "parameters": [1]},
        [],
        "x",
    ],
)
def test_a_service_that_makes_no_sense_is_an_error(service: Service, reply: object) -> None:
    def answer(client: socket.socket) -> None:
        here, there = os.pipe()
        service.send(client, reply, here)
        os.close(here)
        os.close(there)

    service.answer = answer
    done = run(service, "web")
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1, done.stderr


def test_output_that_nobody_reads_ends_it(service: Service) -> None:
    """As if SIGPIPE had."""
    reader, writer = os.pipe()
    os.close(reader)
    line = command(service, "web", "/usr/bin/yes")
    done = subprocess.run(line, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")
    assert service.programs_end() == [-signal.SIGHUP]


def test_a_service_that_hangs_up_is_an_error(service: Service) -> None:
    service.answer = lambda client: None
    assert b"closed the connection" in run(service, "web").stderr


def test_no_service_is_an_error(tmp_path: Path, service: Service) -> None:
    path = f"{tmp_path}/none"
    command = [sys.executable, "-m", "bridge", "shell", "--socket", path, "web"]
    done = subprocess.run(command, capture_output=True, cwd=REPOSITORY, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"machine1-bridge: {path}: No such file or directory\n")


def test_it_loads_nothing_of_the_service() -> None:
    """A shell is there at once."""
    code = "import sys, bridge.shell; print(sorted({'jsonschema', 'jeepney', 'bridge.service'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=REPOSITORY, text=True, check=True)
    assert done.stdout == "[]\n"
