# SPDX-License-Identifier: LGPL-2.1-or-later
"""One client on standard input and output: for ssh, and for sockets with Accept=yes.

Who is the client? Where standard input is a socket of somebody else, whoever made that socket: the service runs here
and serves it (inetd-style, StandardInput=socket in a unit with the service's user). Otherwise whoever started this
program, which then is no more than a way to the service that runs already, where it is decided what may be done.
"""

import os
import select
import socket
import stat
import struct
import sys
import time
from collections import deque

from jeepney.fds import FileDescriptor

from . import DEFAULT_SOCKET, fds
from .activation import ActivationError, is_connected

INPUT, OUTPUT = 0, 1
# What a pipe takes without waiting once poll(2) says that it takes something (pipe(7), PIPE_BUF).
PIECE = 4096


def main(arguments: list[str]) -> int:
    """`--socket PATH` says where the service is. Returns 0, or 1 with a reason on standard error."""
    path = DEFAULT_SOCKET
    if arguments:
        import argparse

        parser = argparse.ArgumentParser(prog="machine1-bridge --stdio", description=__doc__)
        parser.add_argument("--socket", metavar="PATH", default=path, help="of the service (default: %(default)s)")
        path = parser.parse_args(arguments).socket
    try:
        client = somebody_else()
    except (ActivationError, OSError) as error:
        print(f"machine1-bridge: {error}", file=sys.stderr)
        return 1
    if client is not None:
        from .service import main as serve

        return serve([], client)
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
            Relay(connection).run()
        except OSError as error:
            print(f"machine1-bridge: {path}: {error.strerror or error}", file=sys.stderr)
            return 1
    return 0


def somebody_else() -> socket.socket | None:
    """The socket that is standard input, if its other end was made by another user than the one who runs this.

    A socket that root made for who runs this is no client of its own, unless root connected to a name: what a program
    of root passes through it, and for whom, nobody here knows. Raises ActivationError for a socket that does not say
    whose its other end is: who is at the other end must not become who runs this.
    """
    if not stat.S_ISSOCK(os.fstat(INPUT).st_mode):
        return None
    client = socket.socket(fileno=os.dup(INPUT))
    if not is_connected(client):
        client.close()
        raise ActivationError("standard input is a socket, but no connected UNIX stream socket")
    _, uid, _ = struct.unpack("iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.geteuid() and (uid != 0 or client.getsockname()):
        client.setblocking(False)
        return client
    client.close()
    return None


class Relay:
    """Between the client and the service, until one of them has hung up.

    File descriptors do not go this way: a shell's terminal is closed, as soon as its program notices; see fds.STARTING.
    """

    def __init__(self, service: socket.socket) -> None:
        self._service = service
        self._to_service = self._to_client = b""
        self._asks = self._answers = True  # whether more may come from the client, from the service
        self._client_reads = True
        self._untaken: deque[tuple[float, FileDescriptor]] = deque()

    def run(self) -> None:
        """Raises OSError."""
        try:
            self._relay()
        finally:
            if self._untaken:
                time.sleep(fds.STARTING)
                self._close_untaken(time.monotonic())

    def _relay(self) -> None:
        while self._answers or self._to_client:
            ready = self._wait()
            if not ready and not self._client_reads and not self._to_service:
                break  # what the client sent before it left has been handed on
            if ready.get(OUTPUT, 0) & (select.POLLERR | select.POLLHUP):
                self._client_reads, self._to_client = False, b""
            if self._to_client:
                if OUTPUT in ready:
                    self._answer()
            elif ready.get(self._service.fileno(), 0) & ~select.POLLOUT:
                self._receive()
            if self._to_service:
                if self._service.fileno() in ready:
                    self._forward()
            elif INPUT in ready:
                self._ask()
            self._close_untaken(time.monotonic() - fds.STARTING)

    def _close_untaken(self, came_before: float) -> None:
        while self._untaken and (self._untaken[0][0] <= came_before or len(self._untaken) > fds.UNTAKEN_MAX):
            self._untaken.popleft()[1].close()

    def _wait(self) -> dict[int, int]:
        """What can be done: file descriptors and their events."""
        service = self._service.fileno()
        wanted: dict[int, int] = {}
        if self._client_reads:
            wanted[OUTPUT] = select.POLLOUT if self._to_client else 0
        # What is not wanted is not registered: that it has hung up would be said again and again.
        if self._answers and not self._to_client:
            wanted[service] = select.POLLIN
        if self._to_service:
            wanted[service] = wanted.get(service, 0) | select.POLLOUT
        elif self._asks:
            wanted[INPUT] = select.POLLIN
        poll = select.poll()
        for descriptor, events in wanted.items():
            poll.register(descriptor, events)
        patience = fds.STARTING * 1000 if self._untaken else None
        return dict(poll.poll(patience if self._client_reads or self._to_service else 0))

    def _ask(self) -> None:
        try:
            self._to_service = os.read(INPUT, fds.RECEIVE_SIZE)
        except ConnectionResetError:
            self._to_service = b""
        if not self._to_service:
            self._asks = False
            self._service.shutdown(socket.SHUT_WR)

    def _forward(self) -> None:
        try:
            self._to_service = self._to_service[self._service.send(self._to_service[:PIECE]) :]
        except (BrokenPipeError, ConnectionResetError):
            self._to_service, self._asks = b"", False

    def _answer(self) -> None:
        try:
            self._to_client = self._to_client[os.write(OUTPUT, self._to_client[:PIECE]) :]
        except BrokenPipeError:
            self._client_reads, self._to_client = False, b""

    def _receive(self) -> None:
        data, received = fds.receive(self._service)
        self._untaken.extend((time.monotonic(), fd) for fd in received)
        self._answers = bool(data)
        self._to_client = data if self._client_reads else b""
