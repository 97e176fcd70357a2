# SPDX-License-Identifier: LGPL-2.1-or-later
"""File descriptors across UNIX sockets. Whoever holds a `FileDescriptor` closes it or hands it on; a leak warns."""

import fcntl
import socket
import struct
import termios
from array import array
from collections.abc import Sequence

from jeepney.fds import FileDescriptor, fds_buf_size

RECEIVE_SIZE = 65536


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


def close(fds: Sequence[FileDescriptor]) -> None:
    for fd in fds:
        fd.close()


def unread_by_peer(connection: socket.socket) -> bool:
    """Whether the peer of a UNIX socket has yet to read something that was sent before (SIOCOUTQ, unix(7))."""
    (pending,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0\0\0\0"))
    return bool(pending)
