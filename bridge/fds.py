# SPDX-License-Identifier: LGPL-2.1-or-later
"""File descriptors across UNIX sockets. Whoever holds a `FileDescriptor` closes it or hands it on; a leak warns."""

import fcntl
import socket
import struct
import termios
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from jeepney.fds import FileDescriptor, fds_buf_size

RECEIVE_SIZE = 65536

# Seconds that a shell gets to start. A program whose terminal is closed before it runs is never told: machined answers
# when the guest's systemd has the job, which takes another 20 ms or so to open the terminal, and ignores SIGHUP until
# it has. Such a program would run on, without a terminal and without anybody who knows of it.
STARTING = 2.0
# So many are kept for that at one time.
UNTAKEN_MAX = 512
_untaken: deque[FileDescriptor] = deque()


class FdsTruncated(OSError):
    """The kernel dropped file descriptors (MSG_CTRUNC), for instance since this process may open no more of them."""


def receive(connection: socket.socket) -> tuple[bytes, list[FileDescriptor]]:
    """Bytes (none: end of file) and the file descriptors that came with them, close-on-exec set.

    Raises BlockingIOError when there is nothing yet, and FdsTruncated; then those that did arrive are closed.
    """
    data, ancillary, flags, _ = connection.recvmsg(RECEIVE_SIZE, fds_buf_size(), socket.MSG_CMSG_CLOEXEC)
    fds = FileDescriptor.from_ancdata(ancillary)
    if flags & socket.MSG_CTRUNC:
        close(fds)
        raise FdsTruncated("file descriptors were lost on the way")
    return data, fds


def send(connection: socket.socket, data: bytes | memoryview, fds: Sequence[FileDescriptor] = ()) -> int:
    """Send bytes, the file descriptors on the first of them. Returns how many bytes went; the FDs stay open here."""
    if not fds:
        return connection.send(data, socket.MSG_NOSIGNAL)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd.fileno() for fd in fds]))
    return connection.sendmsg([data], [rights], socket.MSG_NOSIGNAL)


def close(fds: Iterable[FileDescriptor]) -> None:
    for fd in fds:
        fd.close()


def close_untaken(fds: Sequence[FileDescriptor], call_later: Callable[[float, Callable[[], object]], object]) -> None:
    """Close the terminal of a shell that nobody takes, as soon as its program is told by that that it has to end."""
    for fd in fds:
        _untaken.append(fd)
        call_later(STARTING, partial(_close_untaken, fd))
    while len(_untaken) > UNTAKEN_MAX:
        _untaken.popleft().close()


def _close_untaken(fd: FileDescriptor) -> None:
    if fd in _untaken:
        _untaken.remove(fd)
        fd.close()


def close_all_untaken() -> None:
    """The service ends, or the one client of it has left: what it started has to have noticed."""
    if _untaken:
        time.sleep(STARTING)
    close(_untaken)
    _untaken.clear()


def unread_by_peer(connection: socket.socket) -> bool:
    """Whether the peer of a UNIX socket has yet to read something that was sent before (SIOCOUTQ, unix(7))."""
    (pending,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0\0\0\0"))
    return bool(pending)
