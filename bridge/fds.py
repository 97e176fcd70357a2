# SPDX-License-Identifier: LGPL-2.1-or-later
"""File descriptors across UNIX sockets. Whoever holds a `FileDescriptor` closes it or hands it on; a leak warns."""

import _thread
import fcntl
import os
import signal
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


# So many of one user may wait to be closed before what it sends is left unread.
UNCLOSED_MAX = 8
# Seconds that a connection of whose user so many wait already may take to be closed.
HANGING_UP = 0.001


_ROOM = fds_buf_size()
# An int: `&` of the enumeration that it is of takes as long as a system call.
_TRUNCATED = int(socket.MSG_CTRUNC)


class FdsTruncated(OSError):
    """The kernel dropped file descriptors (MSG_CTRUNC), for instance since this process may open no more of them."""


def receive(connection: socket.socket) -> tuple[bytes, list[FileDescriptor]]:
    """Bytes (none: end of file) and the file descriptors that came with them, close-on-exec set.

    Raises BlockingIOError when there is nothing yet, and FdsTruncated; then those that did arrive are closed.
    """
    data, fds, truncated = receive_unclosed(connection)
    if truncated:
        close(fds)
        raise FdsTruncated("file descriptors were lost on the way")
    return data, fds


def receive_unclosed(connection: socket.socket) -> tuple[bytes, list[FileDescriptor], bool]:
    """As `receive`, and whether there were more than this process may open.

    There is room for as many as there can be: what there is none for, the kernel closes before recvmsg(2) returns, and
    so it does in a recv(2), however long that takes.
    """
    data, ancillary, flags, _ = connection.recvmsg(RECEIVE_SIZE, _ROOM, socket.MSG_CMSG_CLOEXEC)
    received = FileDescriptor.from_ancdata(ancillary) if ancillary else []
    return data, received, bool(flags & _TRUNCATED)


def keep_out_of_band(connection: socket.socket) -> None:
    """Have a byte that is sent out of band come like any other: passed over, its file descriptors would be closed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


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


class Closer:
    """Closes what clients sent, in a thread for each user.

    How long close(2) takes is up to who sent it: a file system in user space is asked to flush (fuse(4)), and the last
    descriptor of a TCP socket may linger (SO_LINGER, socket(7)). It stops nobody but the user's other descriptors.
    """

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._unclosed: dict[int, deque[int]] = {}  # of each user, the first being closed
        self._threads: set[int] = set()  # users who have one

    def close(self, user: int, fds: Iterable[FileDescriptor]) -> None:
        """Return at once."""
        numbers = [fd.to_raw_fd() for fd in fds]
        if not numbers:
            return
        with self._lock:
            self._unclosed.setdefault(user, deque()).extend(numbers)
            # Those of others, too, for whom there was none when it was their turn.
            for waiting in self._unclosed.keys() - self._threads:
                try:
                    _thread.start_new_thread(self._work, (waiting,))
                except RuntimeError:
                    return
                self._threads.add(waiting)

    def hang_up(self, user: int, connection: socket.socket) -> None:
        """Close a connection, and with it the descriptors in what its client has sent and nobody has read."""
        try:
            connection.shutdown(socket.SHUT_RDWR)  # no more come
        except OSError:
            pass  # the client has hung up before
        if not _has_unread(connection):
            connection.close()
        elif self.has_room_for(user):
            self.close(user, [FileDescriptor(connection.detach())])
        else:
            # Or each connection that its user makes and leaves would be one open file more.
            _close_in_time(connection)

    def has_room_for(self, user: int) -> bool:
        """Whether more of this user's may come."""
        return len(self._unclosed.get(user, ())) < UNCLOSED_MAX

    @property
    def idle(self) -> bool:
        return not self._unclosed

    def _work(self, user: int) -> None:
        while True:
            with self._lock:
                number = self._unclosed[user][0]
            try:
                os.close(number)
            except OSError:
                pass  # what a file system says when it cannot write: the descriptor is gone
            with self._lock:
                self._unclosed[user].popleft()
                if self._unclosed[user]:
                    continue
                del self._unclosed[user]
                self._threads.discard(user)
                # Where there was no thread for another, who is not read from any more, nobody else would come for it.
                following = next(iter(self._unclosed.keys() - self._threads), None)
                if following is None:
                    return
                user = following
                self._threads.add(user)


def _close_in_time(connection: socket.socket) -> None:
    """What was sent and not received is no file of this process, so that no file system is asked to flush it; and
    lingering ends with a signal. It comes again until it does, as it could come before close(2) is called.
    """
    previous = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, HANGING_UP, HANGING_UP)
    try:
        connection.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _has_unread(connection: socket.socket) -> bool:
    """Whether something has come that was not read (SIOCINQ, unix(7))."""
    (waiting,) = struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, b"\0\0\0\0"))
    return bool(waiting)


def unread_by_peer(connection: socket.socket) -> bool:
    """Whether the peer of a UNIX socket has yet to read something that was sent before (SIOCOUTQ, unix(7))."""
    (pending,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0\0\0\0"))
    return bool(pending)
