# SPDX-License-Identifier: LGPL-2.1-or-later
"""A shell in a machine on this terminal: what `machinectl shell` is, through the bridge, for hosts without it.

A client like any other: it needs the socket and nothing else.
"""

import array
import errno
import fcntl
import json
import os
import select
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from . import DEFAULT_SOCKET
from .text import printable

INPUT, OUTPUT = 0, 1
SIZE = 65536
# What a pipe or terminal takes without waiting once poll(2) says that it takes something.
PIECE = 4096
# machinectl(1): "pressing ^] three times within 1s" ends the connection.
ESCAPE, ESCAPES, ESCAPE_SECONDS = b"\x1d", 3, 1.0
# Bytes from a terminal that may wait for a machine that does not read. More are lost, for who types has to be heard: a
# machine can make a terminal type (what it answers to who asks what it is), and not read it.
TYPED_MAX = 1024 * 1024
END_OF_FILE = b"\x04"
# A program that begins to read key by key, as a shell does for its first prompt, loses an end that came before. So one
# is typed again, after so many seconds, twice as many, up to the second number: a file, too, stays at its end.
AGAIN_SECONDS, AGAIN_SECONDS_MAX = 0.1, 10.0
# What would leave the terminal raw.
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
# The guest's systemd makes the terminal that of a session, and some versions then empty it (setup_input() in
# exec-invoke.c), so what is typed waits for that: looks at whether there is one, so many seconds apart, for so long at
# most, and for so long after there is.
LOOK_SECONDS, STARTING_SECONDS, SETTLING_SECONDS = 0.01, 2.0, 0.05
# Not in termios; ioctl_tty(2). MIPS, Alpha and SPARC have another number: there it is waited for in vain.
TIOCGSID = 0x5429

# A program whose terminal is closed before it has opened it would run on, see fds.py: a shell lasts so long at least.
SECONDS_MIN = 0.5


class ShellError(Exception):
    """What to tell who wanted a shell."""


class Ended(BaseException):
    """A signal asks this program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 when the shell has ended, 1 with a reason, 128 and the signal's number after one."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="machine1-bridge shell",
        description="Open a shell in a machine, or run a command there on a terminal of its own.",
        epilog="Press ^] three times within a second to leave; what runs in the machine is then hung up on. Without a"
        " terminal here, standard input goes to the command, and its end, too.",
    )
    parser.add_argument("--socket", metavar="PATH", default=os.environ.get("MACHINE1_SOCKET", DEFAULT_SOCKET))
    parser.add_argument("--user", help="in the machine; root if it is not said")
    parser.add_argument("--env", metavar="NAME=VALUE", action="append", help="a variable of the shell; may be repeated")
    parser.add_argument("name", metavar="NAME", help="of the machine")
    parser.add_argument("command", metavar="COMMAND", nargs="?", help="absolute path of a program, instead of a shell")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if options.arguments and not options.command:
        # argparse takes `NAME --user bob` for arguments, of no command, and who asked for bob would be root.
        parser.error("options come before NAME, and COMMAND is the absolute path of a program")
    parameters: dict[str, object] = {"name": options.name, "allowInteractiveAuthentication": True}
    environment = options.env or []
    if os.isatty(INPUT) and "TERM" in os.environ and not any(each.startswith("TERM=") for each in environment):
        environment.append(f"TERM={os.environ['TERM']}")
    parameters |= {"user": options.user} if options.user else {}
    parameters |= {"env": environment} if environment else {}
    if options.command:
        parameters |= {"path": options.command, "args": [options.command, *options.arguments]}
    try:
        with signals(), Terminal() as terminal:
            pty = open_shell(options.socket, parameters)
            try:
                Session(pty, terminal).run()
            finally:
                os.close(pty)
    except ShellError as error:
        # Some of it is the machine's to say, and on a terminal it may do no more than be read.
        print(f"machine1-bridge: {printable(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 128 + signal.SIGPIPE  # nobody reads any more
    except Ended as end:
        return 128 + end.number
    return 0


def open_shell(path: str, parameters: Mapping[str, object]) -> int:
    """The file descriptor of the PTY, the caller's to close. Raises ShellError."""
    call = json.dumps({"method": "io.machine1.OpenMachineShell", "parameters": parameters}).encode()
    received = array.array("i")
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(call + b"\0")
            message = b""
            while not message.endswith(b"\0"):
                data, descriptors, flags, _ = socket.recv_fds(client, SIZE, 16, socket.MSG_CMSG_CLOEXEC)
                received.extend(descriptors)
                if flags & socket.MSG_CTRUNC:
                    raise ShellError("the terminal was lost on the way: too many open files")
                if not data:
                    raise ShellError(f"{path}: the service closed the connection")
                message += data
        reply = json.loads(message[:-1])
        if "error" in reply:
            raise ShellError(in_words(reply["error"], reply.get("parameters", {})))
        index = reply["parameters"]["pty_fd"]
        if isinstance(index, bool):
            raise TypeError(index)
        return received.pop(index)
    except OSError as error:
        raise ShellError(f"{path}: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ShellError(f"{path}: what the service said makes no sense: {error!r}") from error
    finally:
        for descriptor in received:
            os.close(descriptor)


def in_words(error: str, parameters: Mapping[str, Any]) -> str:
    """An error's name without its interface, and what it says."""
    name = error.rpartition(".")[2]
    return f"{name}: {', '.join(str(value) for value in parameters.values())}" if parameters else name


@contextmanager
def signals() -> Iterator[None]:
    """Signals that end a program raise Ended, so that the terminal is put back as it was."""

    def end(number: int, _: object) -> None:
        raise Ended(number)

    previous = {number: signal.signal(number, end) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Terminal:
    """The terminal that this program has, if it has one: raw inside of `with`, and as it was after."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def __enter__(self) -> "Terminal":
        if os.isatty(INPUT):
            self._before = termios.tcgetattr(INPUT)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            termios.tcsetattr(INPUT, termios.TCSANOW, self._before)  # ^S may have stopped output

    @property
    def is_there(self) -> bool:
        return self._before is not None

    def be_raw(self) -> None:
        """Each key goes to the machine, ^C too."""
        if self._before is not None:
            tty.setraw(INPUT, termios.TCSANOW)

    def give_size_to(self, pty: int) -> None:
        if os.isatty(OUTPUT):
            fcntl.ioctl(pty, termios.TIOCSWINSZ, fcntl.ioctl(OUTPUT, termios.TIOCGWINSZ, bytes(8)))


@dataclass
class Session:
    """What is typed goes to the PTY, what the PTY says to standard output."""

    pty: int
    terminal: Terminal
    _typed: bytes = b""
    _said: bytes = b""
    _begin: float = 0.0
    _input: bool = True  # more may be typed
    _again: float = 0.0  # when the end of what is typed is typed next
    _pause: float = AGAIN_SECONDS  # after which it is typed once more
    _session: float | None = None  # when the terminal was first seen to be that of one
    _started: bool = False  # the program can be typed to
    _ended: bool = False  # the program has
    _at_start_of_line: bool = True
    _escapes: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Until the program has ended or who types leaves."""
        self.terminal.be_raw()
        self._begin = time.monotonic()
        changed, change = os.pipe()
        os.set_blocking(change, False)
        os.set_blocking(self.pty, False)
        previous = signal.signal(signal.SIGWINCH, lambda *_: _poke(change))
        self.terminal.give_size_to(self.pty)
        try:
            while self._step(changed):
                pass
        finally:
            signal.signal(signal.SIGWINCH, previous)
            os.close(changed)
            os.close(change)
            if not self._ended:
                time.sleep(max(0.0, self._begin + SECONDS_MIN - time.monotonic()))

    def _step(self, changed: int) -> bool:
        """False when it is over."""
        poll = select.poll()
        poll.register(changed, select.POLLIN)
        poll.register(self.pty, (0 if self._said else select.POLLIN) | (select.POLLOUT if self._typed else 0))
        if self._said:
            poll.register(OUTPUT, select.POLLOUT)
        if self._has_started() and self._input and (self.terminal.is_there or not self._typed):
            poll.register(INPUT, select.POLLIN)
        ready = dict(poll.poll(self._patience()))
        if changed in ready:
            os.read(changed, SIZE)
            self.terminal.give_size_to(self.pty)
        if self._said:
            if OUTPUT in ready:
                self._said = self._said[os.write(OUTPUT, self._said[:PIECE]) :]
        elif ready.get(self.pty, 0) & ~select.POLLOUT and not self._listen():
            return False
        if self._typed and ready.get(self.pty, 0) & select.POLLOUT:
            self._typed = self._typed[os.write(self.pty, self._typed[:PIECE]) :]
        if INPUT in ready:
            return self._type(os.read(INPUT, SIZE))
        if not self._input and not self._typed and time.monotonic() >= self._again:
            self._end_input()
        return True

    def _patience(self) -> float | None:
        """Milliseconds until there is something to do anyway."""
        if not self._started:
            return LOOK_SECONDS * 1000
        return None if self._input or self._typed else max(0.0, self._again - time.monotonic()) * 1000

    def _has_started(self) -> bool:
        """Whether the terminal is that of a session, though it be one in a PID namespace that is not seen from here."""
        if not self._started:
            now = time.monotonic()
            if self._session is None and _has_session(self.pty):
                self._session = now
            settled = self._session is not None and now - self._session >= SETTLING_SECONDS
            self._started = settled or now - self._begin > STARTING_SECONDS
        return self._started

    def _listen(self) -> bool:
        """False when the program has ended: nobody has the other side of the terminal open."""
        try:
            self._said = os.read(self.pty, SIZE)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        self._ended = not self._said
        return not self._ended

    def _type(self, data: bytes) -> bool:
        """False for who leaves."""
        if not data:
            self._input = False
            if not self._at_start_of_line:
                self._typed += END_OF_FILE  # ends only that line
            self._end_input()
            return not self.terminal.is_there
        self._at_start_of_line = data.endswith(b"\n")
        self._typed = (self._typed + data)[:TYPED_MAX]
        return not (self.terminal.is_there and self._escaped(data))

    def _end_input(self) -> None:
        self._typed += END_OF_FILE
        self._again = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, AGAIN_SECONDS_MAX)

    def _escaped(self, data: bytes) -> bool:
        now = time.monotonic()
        for key in data:
            recent = [then for then in self._escapes if now - then < ESCAPE_SECONDS]
            self._escapes = [*recent, now] if key == ESCAPE[0] else []
            if len(self._escapes) >= ESCAPES:
                return True
        return False


def _has_session(pty: int) -> bool:
    try:
        fcntl.ioctl(pty, TIOCGSID, bytes(4))
    except OSError:
        return False
    return True


def _poke(pipe: int) -> None:
    try:
        os.write(pipe, b".")
    except BlockingIOError:
        pass
