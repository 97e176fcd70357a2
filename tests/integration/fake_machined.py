# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machined for what the real one cannot be made to do: be slow, fail oddly, vanish, lie. On a bus of its own."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, HeaderFields, Message, MessageType, new_error, new_method_return, new_signal
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import DBusConnection, open_dbus_connection

NAME = "org.freedesktop.machine1"

CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


class Bus:
    """A dbus-daemon that can be stopped and started again at the same address."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "bus"
        self.address = f"unix:path={self.socket}"
        self._configuration = directory / "bus.conf"
        self._configuration.write_text(CONFIGURATION.format(socket=self.socket))
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={self._configuration}", "--nofork", "--print-address"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith("unix:")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None
            self.socket.unlink(missing_ok=True)


class DBusFault(Exception):
    """Raised by a handler: the error that is sent instead of a reply."""

    def __init__(self, name: str, message: str = "") -> None:
        super().__init__(name, message)
        self.name, self.message = name, message


Handler = Callable[[tuple[Any, ...]], tuple[str, tuple[Any, ...]] | None]


class FakeService:
    """Owns a name on the bus and answers method calls in a thread of its own."""

    def __init__(self, bus: Bus, name: str) -> None:
        """Answering begins at once: what `_answer` needs is set before."""
        self._connection: DBusConnection = open_dbus_connection(bus.address, enable_fds=True)
        reply = self._connection.send_and_get_reply(message_bus.RequestName(name))
        assert reply.body == (1,)
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave the bus, as a service does that is killed."""
        self._stopping = True
        self._thread.join()
        self._connection.close()

    def _serve(self) -> None:
        while not self._stopping:
            try:
                message = self._connection.receive(timeout=0.02)
            except TimeoutError:
                continue
            except ConnectionResetError:
                return
            if message.header.message_type == MessageType.method_call:
                self._answer(message)

    def _answer(self, message: Message) -> None:
        raise NotImplementedError


class FakeMachined(FakeService):
    """Answers D-Bus calls with what `handlers` say; a handler that returns None never answers."""

    def __init__(self, bus: Bus) -> None:
        self.handlers: dict[str, Handler] = {}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.unanswered: list[Message] = []
        super().__init__(bus, NAME)

    def returns(self, member: str, signature: str = "", *body: object) -> None:
        """From now on `member` is answered with this."""
        self.handlers[member] = lambda _: (signature, body)

    def fails(self, member: str, error: str, message: str = "") -> None:
        """From now on `member` is answered with this error."""

        def fail(_: tuple[Any, ...]) -> None:
            raise DBusFault(error, message)

        self.handlers[member] = fail

    def hangs(self, member: str) -> None:
        """From now on `member` gets no answer, until `answer`."""
        self.handlers[member] = lambda _: None

    def wait_for(self, number: int) -> None:
        """Until so many calls have come."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.calls) >= number, timeout=10), self.calls

    def answer(self, index: int = 0, signature: str = "", *body: object) -> None:
        """Answer a call that was left hanging."""
        self._connection.send_message(new_method_return(self.unanswered.pop(index), signature, body))

    def signal_callers(self, signature: str, *body: object) -> None:
        """Send a signal that nobody asked for to all who called, as anybody on a system bus may."""
        for caller in {message.header.fields[HeaderFields.sender] for message in self.unanswered}:
            signal = new_signal(DBusAddress("/x", interface="org.example.Noise"), "Noise", signature, body)
            signal.header.fields[HeaderFields.destination] = caller
            self._connection.send_message(signal)

    def _answer(self, message: Message) -> None:
        member = message.header.fields[HeaderFields.member]
        reply: Message | None = None
        try:
            answer = self.handlers[member](message.body)
            if answer is not None:
                reply = new_method_return(message, *answer)
        except DBusFault as fault:
            reply = new_error(message, fault.name, "s", (fault.message,))
        with self._changed:
            self.calls.append((member, message.body))
            if reply is None:
                self.unanswered.append(message)
            self._changed.notify_all()
        if reply is not None:
            self._connection.send_message(reply)


