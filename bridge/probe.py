# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs and the service, asked for a report: none is waited for longer than SECONDS, and none is left behind."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .shell import in_words

SECONDS = 5.0
REPLY_MAX = 64 * 1024 * 1024


@dataclass
class Outcome:
    """What a program said. `failure`: why it said nothing that counts."""

    output: str = ""
    failure: str = ""


def _environment(user: str | None) -> dict[str, str]:
    """Whom a program runs as can read its environment, and root's is nobody else's."""
    return dict(os.environ) if user is None else {"PATH": os.environ.get("PATH", os.defpath)}


class Program:
    """One that runs beside the others until it has ended or its time is over. Its output waits in memory for us."""

    def __init__(self, *command: str, user: str | None = None) -> None:
        self._name = command[0]
        self._end = time.monotonic() + SECONDS
        self._output, self._errors = os.memfd_create("output"), os.memfd_create("errors")
        self._process: subprocess.Popen[bytes] | None = None
        self._failure = ""
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._errors,
                env=_environment(user) | {"LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "cat"},
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
        except FileNotFoundError:
            self._failure = f"{self._name} is not installed"
        except (OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
            self._failure = f"{self._name} cannot be run: {error}"

    def outcome(self) -> Outcome:
        if self._process is None:
            return Outcome(failure=self._failure)
        try:
            status = self._process.wait(max(0.0, self._end - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            return Outcome(failure=f"{self._name} did not end within {SECONDS:g} s")
        output, errors = _content(self._output), _content(self._errors)
        if status == 0:
            return Outcome(output)
        said = (errors.strip() or output.strip()).split("\n")[0]
        return Outcome(output, f"{self._name}: {said or f'exit status {status}'}")

    def kill(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(1)
        except (OSError, subprocess.TimeoutExpired):
            pass  # what not even this ends is not waited for

    def close(self) -> None:
        self.kill()
        os.close(self._output)
        os.close(self._errors)


def _content(fd: int) -> str:
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        return file.read(REPLY_MAX).decode(errors="replace")


class SilentError(Exception):
    """The service does not answer, or not as it should; the message says how."""


class Service:
    """The service as any client sees it, for SECONDS in all."""

    def __init__(self, path: str) -> None:
        self._end = time.monotonic() + SECONDS
        self._client = socket.socket(socket.AF_UNIX)
        try:
            self._limit()
            self._client.connect(path)
        except OSError as error:
            self.close()
            raise SilentError(error.strerror or str(error)) from error

    def call(self, method: str) -> Mapping[str, Any]:
        """The reply's parameters. Raises SilentError."""
        data = bytearray()
        try:
            self._limit()
            self._client.sendall(json.dumps({"method": method}).encode() + b"\0")
            while not data.endswith(b"\0"):
                self._limit()
                more = self._client.recv(1 << 20)
                if not more:
                    raise SilentError("the service closed the connection")
                data += more
                if len(data) > REPLY_MAX:
                    raise SilentError("the reply has no end")
            reply = json.loads(data[:-1])
            parameters = reply.get("parameters") or {}
            if "error" in reply:
                raise SilentError(in_words(reply["error"], parameters))
        except TimeoutError as error:
            raise SilentError(f"no reply within {SECONDS:g} s") from error
        except OSError as error:
            raise SilentError(error.strerror or str(error)) from error
        except (ValueError, AttributeError) as error:
            raise SilentError(f"a reply that makes no sense: {error}") from error
        if not isinstance(parameters, dict):
            raise SilentError("a reply that makes no sense")
        return parameters

    def _limit(self) -> None:
        # 0 would mean not to wait at all, which fails in another way.
        self._client.settimeout(max(0.001, self._end - time.monotonic()))

    def close(self) -> None:
        self._client.close()
