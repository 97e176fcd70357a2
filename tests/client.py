# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Varlink client that sees everything: bytes, file descriptors and on which message they came."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any

RECEIVE_SIZE = 65536
FDS_MAX = 8


class CallError(Exception):
    """An error reply."""

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        super().__init__(name, parameters)
        self.name, self.parameters = name, parameters


class Client:
    """One connection. Times are in seconds; whatever takes longer than `timeout` raises TimeoutError."""

    def __init__(self, path: str, timeout: float = 15) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        self._buffer = b""
        self.fds: list[int] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()
        self.socket.close()

    def send(self, method: str, parameters: Mapping[str, Any] | None = None, **flags: bool) -> None:
        """Send a call. A method without a dot is one of io.machine1."""
        qualified = method if "." in method else f"io.machine1.{method}"
        self.send_bytes(json.dumps({"method": qualified, "parameters": parameters} | flags).encode() + b"\0")

    def send_bytes(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> dict[str, Any]:
        """The next reply; its file descriptors are appended to `fds`. Raises EOFError when the service hung up."""
        while b"\0" not in self._buffer:
            self._read()
        message, _, self._buffer = self._buffer.partition(b"\0")
        reply = json.loads(message)
        assert isinstance(reply, dict)
        return reply

    def _read(self) -> None:
        data, ancillary, flags, _ = self.socket.recvmsg(RECEIVE_SIZE, socket.CMSG_SPACE(4 * FDS_MAX))
        assert not flags & socket.MSG_CTRUNC
        for level, kind, payload in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            self.fds += memoryview(payload).cast("i").tolist()
        if not data:
            raise EOFError
        self._buffer += data

    def call(self, method: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The reply's parameters. Raises CallError."""
        self.send(method, parameters)
        return self.reply()

    def reply(self) -> dict[str, Any]:
        """The next reply's parameters. Raises CallError."""
        reply = self.receive()
        parameters = reply.get("parameters") or {}
        assert isinstance(parameters, dict)
        if "error" in reply:
            raise CallError(reply["error"], parameters)
        return parameters

    def error(self, method: str, parameters: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Name and parameters of the error that the call has to end in."""
        try:
            parameters = self.call(method, parameters)
        except CallError as error:
            return error.name, error.parameters
        raise AssertionError(f"{method} succeeded: {parameters}")

    def take_fd(self) -> int:
        """The oldest file descriptor that came, from now on the caller's."""
        return self.fds.pop(0)

    def rest(self) -> bytes:
        """What was received of a reply that did not come to its end."""
        return self._buffer

    def is_closed(self) -> bool:
        """Whether the service hung up without another byte."""
        try:
            self._read()
        except (EOFError, ConnectionResetError):
            return True
        return False
