# SPDX-License-Identifier: LGPL-2.1-or-later
"""A bus that lies, for what no bus daemon lets through: bytes as a test wants them, and machined behind it in one."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from jeepney import HeaderFields, Message, new_error, new_method_return
from jeepney.fds import FileDescriptor
from jeepney.low_level import Parser

GREETING = b"OK 0123456789abcdef0123456789abcdef\r\n"
MACHINES = ("a(ssso)", [("m", "vm", "s", "/m")])


class Link:
    """One connection of the service to this bus."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._serial = 0
        self.handshake: bytes | None = b""
        self.parser = Parser()

    def reply(self, call: Message, signature: str = "", *body: object, fds: int = 0) -> bytes:
        """The bytes of a reply. A descriptor in its body is an index, and `fds` says how many the header promises."""
        numbers = signature.replace("h", "u")
        message = new_method_return(call, numbers, body)
        if fds:
            message.header.fields[HeaderFields.unix_fds] = fds
        data = self._serialise(message)
        if "h" in signature:
            said, meant = (b"g\0" + bytes([len(signature)]) + text.encode() for text in (numbers, signature))
            assert data.count(said) == 1
            data = data.replace(said, meant)
        return data

    def error(self, call: Message, name: str, signature: str | None = "s", *body: object, sender: str = "") -> bytes:
        message = new_error(call, name, signature, body)
        if sender:
            message.header.fields[HeaderFields.sender] = sender
        return self._serialise(message)

    def _serialise(self, message: Message) -> bytes:
        self._serial += 1
        data: bytes = message.serialise(self._serial)
        return data

    def send(self, data: bytes, *descriptors: int) -> None:
        """The descriptors go on the first byte. Who left in the meantime gets nothing."""
        try:
            assert socket.send_fds(self._socket, [data], descriptors) > 0
        except (BrokenPipeError, ConnectionResetError):
            pass

    def hang_up(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed already


Handler = Callable[[Link, Message], None]


def list_machines(link: Link, call: Message) -> None:
    link.send(link.reply(call, MACHINES[0], MACHINES[1]))


class FakeBus:
    """Listens where `address` says. `handlers` say what becomes of a call, `greeting` what a new connection is told."""

    def __init__(self, directory: Path) -> None:
        path = directory / "lying-bus"
        self.address = f"unix:path={path}"
        self._links: dict[socket.socket, Link] = {}
        self.reset()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._end = os.eventfd(0)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """Hang up on everybody and tell no lies from now on."""
        self.handlers: dict[str, Handler] = {"ListMachines": list_machines}
        self.greeting: bytes | None = GREETING
        self.calls: list[str] = []
        self.failures: list[Exception] = []
        for link in list(self._links.values()):
            link.hang_up()

    def stop(self) -> None:
        os.eventfd_write(self._end, 1)
        self._thread.join()
        self._listener.close()
        os.close(self._end)

    def _serve(self) -> None:
        links = self._links
        while True:
            readable: list[int | socket.socket] = [self._end, self._listener, *links]
            ready, _, _ = select.select(readable, [], [])
            for source in ready:
                if isinstance(source, int):
                    for connection in links:
                        connection.close()
                    return
                if source is self._listener:
                    connection = self._listener.accept()[0]
                    links[connection] = Link(connection)
                elif not self._read(source, links[source]):
                    del links[source]
                    source.close()

    def _read(self, connection: socket.socket, link: Link) -> bool:
        """Answer what came; False at its end."""
        try:
            data, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(64))
        except ConnectionResetError:
            return False
        for descriptor in FileDescriptor.from_ancdata(ancillary):
            descriptor.close()
        link.parser.add_data(self._shake_hands(link, data))
        while (message := link.parser.get_next_message()) is not None:
            self._answer(link, message)
        return bool(data)

    def _shake_hands(self, link: Link, data: bytes) -> bytes:
        """Answer line by line until BEGIN; what comes after it is messages."""
        if link.handshake is None:
            return data
        link.handshake += data
        while b"\r\n" in link.handshake:
            line, _, link.handshake = link.handshake.partition(b"\r\n")
            if line == b"BEGIN":
                messages, link.handshake = link.handshake, None
                return messages
            if line == b"NEGOTIATE_UNIX_FD":
                link.send(b"AGREE_UNIX_FD\r\n")
            elif self.greeting is not None:
                link.send(self.greeting)
        return b""

    def _answer(self, link: Link, message: Message) -> None:
        member = message.header.fields[HeaderFields.member]
        if member == "Hello":
            link.send(link.reply(message, "s", ":1.1"))
        else:
            self.calls.append(member)
            try:
                self.handlers[member](link, message)
            except Exception as failure:
                # Of the test, which looks at it in the end. The thread serves on.
                self.failures.append(failure)
