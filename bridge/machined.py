# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd-machined as this service sees it: org.freedesktop.machine1(5) on the system bus.

The only module that talks to the bus. One connection, opened when first needed and again when it broke; many calls
under way on it at once, each with a deadline; one table that says what a D-Bus error means to a client.
"""

import socket
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from jeepney import DBusAddress, HeaderFields, Message, MessageType, new_method_call
from jeepney.auth import BEGIN, Authenticator
from jeepney.bus import get_bus
from jeepney.bus_messages import message_bus
from jeepney.fds import FileDescriptor
from jeepney.low_level import Parser

from . import errors, fds
from .loop import HANGUP, READ, WRITE, Future, Loop

# Seconds. What sd-bus itself waits for (sd_bus_set_method_call_timeout(3)).
DEADLINE = 25.0

# The bus daemon refuses a connection's 129th call without a reply (max_replies_per_connection, dbus-daemon(1)).
CALLS_MAX = 100

_MANAGER = DBusAddress(
    "/org/freedesktop/machine1", "org.freedesktop.machine1", "org.freedesktop.machine1.Manager"
)


# A reply and the file descriptors that came with it; those in its body are the same objects.
_Answer = tuple[Message, list[FileDescriptor]]


class DBusError(Exception):
    """An error that came over the bus. `name` is the D-Bus one; `message` is what machined says for people."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name, self.message = name, message


# About the bridge's own rights (contrib/polkit, contrib/dbus): the client's were checked before.
BRIDGE_DENIED = (
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
)

# D-Bus error to varlink error. `names` are the objects that the call was about: machine, image, new (a new image name).
# What is not here, or whose object the call does not have, is Failed with the D-Bus error's name and message.
ERRORS: dict[str, Callable[[DBusError, Mapping[str, str]], errors.VarlinkError]] = {
    "org.freedesktop.machine1.NoSuchMachine": lambda _, names: errors.NoSuchMachine(names["machine"]),
    "org.freedesktop.machine1.NoSuchImage": lambda _, names: errors.NoSuchImage(names["image"]),
    "org.freedesktop.DBus.Error.FileExists": lambda _, names: errors.NameTaken(names["new"]),
    "System.Error.EEXIST": lambda _, names: errors.NameTaken(names["new"]),
    "System.Error.EROFS": lambda _, names: errors.ReadOnly(names["image"]),
    "System.Error.EBUSY": lambda error, _: errors.Busy(error.message),
    "org.freedesktop.DBus.Error.NotSupported": lambda error, _: errors.NotSupported(error.message),
    "org.freedesktop.DBus.Error.UnknownMethod": lambda error, _: errors.NotSupported(error.message),
    "System.Error.EOPNOTSUPP": lambda error, _: errors.NotSupported(error.message),
    "org.freedesktop.DBus.Error.LimitsExceeded": lambda *_: errors.TooManyOperations(),
    "org.freedesktop.DBus.Error.Timeout": lambda *_: errors.Timeout(),
    "System.Error.ETIMEDOUT": lambda *_: errors.Timeout(),
    # The bus says these when nobody is there to answer, or left while answering.
    "org.freedesktop.DBus.Error.ServiceUnknown": lambda error, _: errors.Unavailable(error.message),
    "org.freedesktop.DBus.Error.NameHasNoOwner": lambda error, _: errors.Unavailable(error.message),
    "org.freedesktop.DBus.Error.NoReply": lambda error, _: errors.Unavailable(error.message),
    "org.freedesktop.DBus.Error.TimedOut": lambda error, _: errors.Unavailable(error.message),
    **dict.fromkeys(BRIDGE_DENIED, lambda *_: errors.PermissionDenied()),
}


def to_varlink_error(error: DBusError, names: Mapping[str, str]) -> errors.VarlinkError:
    """What the client is told of a D-Bus error, given the names of the objects that its call was about."""
    if error.name.startswith("org.freedesktop.DBus.Error.Spawn."):
        return errors.Unavailable(error.message)
    translate = ERRORS.get(error.name)
    try:
        return translate(error, names) if translate else errors.Failed(error.name, error.message)
    except KeyError:
        return errors.Failed(error.name, error.message)


class _Connection:
    """One connection to the bus, from its first byte to its end."""

    def __init__(self, loop: Loop, lost: Callable[[], None]) -> None:
        """Raises OSError when there is no bus."""
        self._loop = loop
        self._lost = lost
        self._serials = count(1)
        self._pending: dict[int, Future[_Answer]] = {}
        self._parser = Parser()
        self._authenticator: Authenticator | None = Authenticator(enable_fds=True)
        self._outgoing = bytearray()
        self._closed = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(get_bus("SYSTEM"))
        except BaseException:
            self._socket.close()
            raise
        loop.watch(self._socket.fileno(), READ, self._on_event)
        self.ready = Future[None](loop)
        self._patience = loop.call_later(DEADLINE, lambda: self.close("the system bus did not answer in time"))
        self._write(self._authenticator.data_to_send())

    def call(self, message: Message) -> tuple[int, Future[_Answer]]:
        """Send a message. Returns its serial number and the future of its reply."""
        serial = next(self._serials)
        future = self._pending[serial] = Future[_Answer](self._loop)
        self._write(message.serialise(serial))
        return serial, future

    def forget(self, serial: int) -> None:
        """Nobody waits for this reply any more. If it comes, its file descriptors are closed."""
        self._pending.pop(serial, None)

    def close(self, reason: str) -> None:
        """End the connection, and with Unavailable all that waits for it."""
        if self._closed:
            return
        self._closed = True
        self._patience.cancel()
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        fds.close(self._parser.fds)
        self._lost()
        pending, self._pending = self._pending, {}
        self.ready.fail(errors.Unavailable(reason))
        for future in pending.values():
            future.fail(errors.Unavailable(reason))

    def _write(self, data: bytes) -> None:
        """Send what can be sent now. Failure shows as an event of the socket, after what the bus had to say before."""
        if self._outgoing:
            self._outgoing += data
            return
        try:
            sent = fds.send(self._socket, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return
        if sent < len(data):
            self._outgoing += data[sent:]
            self._loop.change(self._socket.fileno(), READ | WRITE)

    def _flush(self) -> None:
        data = bytes(self._outgoing)
        self._outgoing.clear()
        self._loop.change(self._socket.fileno(), READ)
        self._write(data)

    def _on_event(self, events: int) -> None:
        if self._closed:
            return
        if events & WRITE:
            self._flush()
        if events & (READ | HANGUP):
            try:
                self._receive()
            except BlockingIOError:
                pass
            except OSError as error:
                self.close(f"the system bus: {error}")
            except Exception as error:
                # jeepney raises whatever a malformed message makes it run into.
                self.close(f"the system bus sent nonsense: {error!r}")

    def _receive(self) -> None:
        data, received = fds.receive(self._socket)
        if not data:
            self.close("the system bus closed the connection")
        elif self._authenticator is not None:
            fds.close(received)
            self._authenticate(self._authenticator, data)
        else:
            self._parser.add_data(data, received)
            # Each message says how many file descriptors are its own, so reading ahead mixes nothing up.
            while not self._closed:
                held = self._parser.fds
                message = self._parser.get_next_message()
                if message is None:
                    break
                self._dispatch(message, held[: len(held) - len(self._parser.fds)])

    def _authenticate(self, authenticator: Authenticator, data: bytes) -> None:
        authenticator.feed(data)
        for line in authenticator:
            if not line:
                return
            self._write(line)
        self._write(BEGIN)
        self._authenticator = None
        _, reply = self.call(message_bus.Hello())
        self._loop.start(self._greet(reply), lambda _: None)

    async def _greet(self, reply: Future[_Answer]) -> None:
        try:
            message, _ = await reply
        except errors.Unavailable:
            return
        if message.header.message_type == MessageType.error:
            self.close(f"the system bus refused the connection: {_error(message).message}")
        else:
            self._patience.cancel()
            self.ready.resolve(None)

    def _dispatch(self, message: Message, received: list[FileDescriptor]) -> None:
        """Give a reply to who waits for it; all else is of no interest here."""
        future = None
        if message.header.message_type in (MessageType.method_return, MessageType.error):
            future = self._pending.pop(message.header.fields.get(HeaderFields.reply_serial), None)
        if future is None or not future.resolve((message, received)):
            fds.close(received)


class Machined:
    """Calls to systemd-machined's manager object."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._connection: _Connection | None = None
        self._calls = 0
        self._queue: deque[Future[None]] = deque()

    async def call(
        self, member: str, signature: str = "", *arguments: object, reply: str = "", deadline: float | None = DEADLINE
    ) -> tuple[Any, ...]:
        """The body of machined's reply, whose signature has to be `reply`.

        `deadline` in seconds; None for what may take as long as it takes. Raises DBusError, and Timeout and
        Unavailable as errors of the interface. A reply that comes after the deadline is dropped.
        """
        message = new_method_call(_MANAGER, member, signature or None, arguments)
        await self._take_turn()
        try:
            answer, received = await self._answer(message, deadline)
        finally:
            self._end_turn()
        if answer.header.message_type == MessageType.error:
            fds.close(received)
            raise _error(answer)
        actual = answer.header.fields.get(HeaderFields.signature, "")
        if actual != reply or len(received) != reply.count("h"):
            fds.close(received)
            raise DBusError(
                "org.freedesktop.DBus.Error.InconsistentMessage",
                f"{member} was answered with signature '{actual}' instead of '{reply}'",
            )
        body: tuple[Any, ...] = answer.body
        return body

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close("the service ends")

    async def _answer(self, message: Message, deadline: float | None) -> _Answer:
        if self._connection is None:
            try:
                self._connection = _Connection(self._loop, self._forget_connection)
            except (OSError, RuntimeError) as error:
                raise errors.Unavailable(f"no system bus: {error}") from error
        connection = self._connection
        await connection.ready
        serial, future = connection.call(message)
        if deadline is None:
            return await future
        timer = self._loop.call_later(deadline, lambda: future.fail(errors.Timeout()))
        try:
            return await future
        finally:
            timer.cancel()
            connection.forget(serial)

    def _forget_connection(self) -> None:
        """The next call opens another."""
        self._connection = None

    async def _take_turn(self) -> None:
        if self._calls < CALLS_MAX:
            self._calls += 1
        else:
            turn = Future[None](self._loop)
            self._queue.append(turn)
            await turn

    def _end_turn(self) -> None:
        if self._queue:
            self._queue.popleft().resolve(None)
        else:
            self._calls -= 1


def _error(message: Message) -> DBusError:
    text = message.body[0] if message.body and isinstance(message.body[0], str) else ""
    return DBusError(message.header.fields.get(HeaderFields.error_name, ""), text)
