# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the service comes to life and says so: sockets handed over or made by hand, and notifications.

sd_listen_fds(3) and sd_notify(3), as environment variables and datagrams say it.
"""

import os
import socket
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass

FIRST_FD = 3
BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket and its name: FileDescriptorName= of the socket unit, or the path it was made at.

    Or one that a single client is `connected` to already: of a unit with Accept=yes, of varlinkctl's `exec:`.
    """

    socket: socket.socket
    name: str
    connected: bool = False


class ActivationError(Exception):
    """What was handed over cannot be served; the message says what."""


def inherited(environment: MutableMapping[str, str]) -> list[Listener]:
    """The sockets that the service manager passed, none if it passed none. The variables are for us alone and go."""
    pid, number, names = (environment.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not number.isdecimal():
        return []
    named = names.split(":") if names else []
    listeners: list[Listener] = []
    try:
        for index in range(int(number)):
            fd = FIRST_FD + index
            name = named[index] if index < len(named) else "unknown"
            listeners.append(_served(fd, name))
    except ActivationError:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


def _served(fd: int, name: str) -> Listener:
    try:
        os.set_inheritable(fd, False)
        served = socket.socket(fileno=fd)
    except OSError as error:
        raise ActivationError(f"file descriptor {fd} ({name}) is no socket: {error.strerror}") from error
    connected = is_connected(served)
    listens = _is_unix_stream(served) and bool(served.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if not (connected or listens):
        served.close()
        raise ActivationError(f"file descriptor {fd} ({name}) is no UNIX stream socket that listens or is connected")
    served.setblocking(False)
    return Listener(served, name, connected)


def is_connected(served: socket.socket) -> bool:
    """Whether this is a UNIX stream socket with a client at its other end."""
    try:
        served.getpeername()
    except OSError:
        return False
    return _is_unix_stream(served)


def _is_unix_stream(served: socket.socket) -> bool:
    return served.family == socket.AF_UNIX and served.type == socket.SOCK_STREAM


def listen(path: str) -> Listener:
    """A socket of our own at `path`, for everybody to connect to. One that nobody listens on any more is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _remove_stale(path)
        umask = os.umask(0o111)
        try:
            listener.bind(path)
        finally:
            os.umask(umask)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ActivationError(f"cannot listen on {path}: {error.strerror or error}") from error
    return Listener(listener, path)


def _remove_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            # For a file that is no socket the kernel says the same.
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            raise OSError(None, "somebody listens there already, and is very busy") from error
        else:
            raise OSError(None, "somebody listens there already")


def notify(state: str, environment: MutableMapping[str, str]) -> None:
    """Tell the service manager, if there is one that wants to know."""
    address = environment.get("NOTIFY_SOCKET", "")
    # Of a program that a service has started, the socket is that service's.
    if not address or environment.get("SYSTEMD_EXEC_PID", str(os.getpid())) != str(os.getpid()):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        try:
            notifier.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            # It went away: nothing depends on it any more.
            pass
