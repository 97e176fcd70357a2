# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sends a row of the table to a socket and says what came of it. Runs inside hosts, too."""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import select
import socket
import struct
import termios
import time

from .table import Ending, Envelope, Outcome, Row

# After a row, to see that all before it was answered and that the connection still is one.
SENTINEL = b'{"method":"org.varlink.service.Sentinel"}\0'
# Seconds until a service that does not answer counts as one that never will.
PATIENCE = 30.0
# More calls than any service keeps replies for.
FLOOD_MAX = 200_000


def play(path: str, sent: tuple[bytes, ...], row: Row) -> Outcome:
    """What the service behind `path` does with `sent`, which came with the file descriptors and the end of `row`."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(path)
        try:
            _send(client, sent, row.fds)
            if row.ending is Ending.HALF_CLOSE:
                client.shutdown(socket.SHUT_WR)
            elif row.ending is Ending.SENTINEL:
                client.sendall(SENTINEL)
        except OSError as error:
            if error.errno == errno.EPERM:
                return Outcome(refused_fds=True)
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                raise
        return Outcome() if row.ending is Ending.CLOSE else _receive(client)


def _send(client: socket.socket, pieces: tuple[bytes, ...], fds: int) -> None:
    """Each piece by itself, the next when the service has taken the one before; file descriptors on the first byte."""
    if fds:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            sent = client.sendmsg([pieces[0]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * fds))])
        finally:
            os.close(null)
        pieces = (pieces[0][sent:], *pieces[1:])
    for piece in pieces:
        client.sendall(piece)
        if len(pieces) > 1:
            _wait_until_taken(client)


def _wait_until_taken(client: socket.socket) -> None:
    """No event tells of it."""
    end = time.monotonic() + PATIENCE
    while struct.unpack("i", fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)))[0]:
        if time.monotonic() > end:
            raise TimeoutError("the service does not read")
        time.sleep(0.0001)


def _receive(client: socket.socket) -> Outcome:
    """The replies before the sentinel's, or before the end."""
    replies: list[Envelope] = []
    buffer = bytearray()
    while True:
        end = buffer.find(0)
        if end >= 0:
            reply = json.loads(buffer[:end])
            del buffer[: end + 1]
            if reply.get("parameters") == {"method": "org.varlink.service.Sentinel"}:
                assert not buffer, buffer
                return Outcome(tuple(replies))
            replies.append(reply)
            continue
        try:
            data = client.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        if not data:
            assert not buffer, buffer
            return Outcome(tuple(replies), closed=True)
        buffer += data


def flood(path: str, message: bytes, patience: float = 1.0) -> tuple[socket.socket, int]:
    """A connection that sends the message until the service takes no more of them, or enough, and reads no reply.

    The connection, for the caller to close, and how many were sent whole.
    """
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    client.setblocking(False)
    count = 0
    rest = memoryview(message)
    try:
        while count < FLOOD_MAX and select.select([], [client], [], patience)[1]:
            try:
                rest = rest[client.send(rest) :]
            except BlockingIOError:
                continue
            if not rest:
                count += 1
                rest = memoryview(message)
    except (BrokenPipeError, ConnectionResetError):
        pass
    client.settimeout(PATIENCE)
    return client, count
