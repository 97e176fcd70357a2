# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shells opened and closed in number. For use inside a host, as root."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from dataclasses import dataclass, field

from tests.client import Client
from tests.lab.conftest import SOCKET

PROGRAM = {"path": "/bin/echo", "args": ["echo", "a shell"]}
OUTPUT = b"a shell\r\n"


def read_to_the_end(fd: int, seconds: float = 60) -> bytes:
    """What the program writes, until it is over: EIO (pty(7))."""
    output = b""
    while True:
        assert select.select([fd], [], [], seconds)[0], f"no end of a shell after {output!r}"
        try:
            data = os.read(fd, 4096)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return output
        if not data:
            return output
        output += data


def open_one(client: Client, guest: str, *, read: bool) -> None:
    """Open a shell; read its output to the end, or close the terminal at once."""
    reply = client.call("OpenMachineShell", {"name": guest, **PROGRAM})
    assert reply["pty_fd"] == 0
    fd = client.take_fd()
    try:
        assert not client.fds
        if read:
            output = read_to_the_end(fd)
            assert output == OUTPUT, output
    finally:
        os.close(fd)


@dataclass
class Shells:
    """Some clients, each with one shell open at a time, every second one closed at once.

    Until so many were opened, or for so many seconds. What went wrong is in `errors`.
    """

    guest: str
    clients: int = 8
    count: int = 1 << 62
    seconds: float = 1e9
    opened: int = 0
    errors: list[str] = field(default_factory=list)

    def run(self) -> float:
        """Shells a second."""
        started = time.monotonic()
        lock = threading.Lock()

        def client_of_many() -> None:
            try:
                with Client(SOCKET, timeout=60) as client:
                    while time.monotonic() - started < self.seconds:
                        with lock:
                            if self.opened == self.count:
                                return
                            self.opened += 1
                            number = self.opened
                        open_one(client, self.guest, read=number % 2 == 0)
            except Exception as error:
                self.errors.append(repr(error))

        threads = [threading.Thread(target=client_of_many) for _ in range(self.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.opened / (time.monotonic() - started)
