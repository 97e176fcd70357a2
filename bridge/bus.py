# SPDX-License-Identifier: LGPL-2.1-or-later
"""The system bus: one connection, opened when first needed and again when it broke, with many calls under way on it.

The only module that does I/O on the bus; `machined` and `polkit` say what is called there.
"""

import os
import socket
import struct
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import count
from typing import Any, Protocol, TypeAlias

from jeepney import Header, HeaderFields, Message, MessageFlag, MessageType
from jeepney.auth import BEGIN, Authenticator
from jeepney.bus import get_bus
from jeepney.bus_messages import MatchRule, message_bus
from jeepney.fds import FileDescriptor
from jeepney.low_level import Struct, calc_msg_size, parse_signature

from . import errors, fds
from .loop import HANGUP, READ, WRITE, Future, Loop, Timer
from .turns import ROOT, Turns

# Seconds. What sd-bus itself waits for (sd_bus_set_method_call_timeout(3)).
DEADLINE = 25.0

# The bus daemon refuses a connection's 129th call without a reply (max_replies_per_connection, dbus-daemon(1)), those
# that nobody waits for any more among them: so many of those are allowed for before the connection is given up.
CALLS_MAX = 96
ABANDONED_MAX = 32
WAITING_MAX = 1024

# The reply with 10,000 machines has 2 MB; the bus itself lets much more through.
MESSAGE_MAX = 16 * 1024 * 1024

# The body of a signal that somebody listens to: names, paths and numbers. Others may send what takes seconds to decode,
# where the policy of the bus does not keep them from it.
SIGNAL_MAX = 4096

# What an error says for people. A guest words some of them, and they go into the journal.
ERROR_TEXT_MAX = 4096

_FIXED_HEADER = 16


class DBusError(Exception):
    """An error that came over the bus. `name` is the D-Bus one; `message` is what the other side says for people."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name, self.message = name, message


class GivenUp(Exception):
    """Nobody wants the answer any more."""


@dataclass(slots=True)
class Answer:
    """A reply as it came: its header, its body's bytes, and its file descriptors."""

    header: Header
    data: bytes
    received: list[FileDescriptor]

    @property
    def signature(self) -> str:
        signature: str = self.header.fields.get(HeaderFields.signature, "")
        return signature

    def body(self) -> tuple[Any, ...]:
        """The file descriptors in it are those that were received. Raises DBusError if it is malformed."""
        try:
            if len(self.received) < (number := self.header.fields.get(HeaderFields.unix_fds, 0)):
                raise ValueError(f"{len(self.received)} of {number} file descriptors")
            if len(self.data) < self.header.body_length:
                raise ValueError(f"{self.header.body_length} bytes are too many")
            if not self.signature:
                return ()
            body, _ = _type(self.signature).parse_data(self.data, 0, self.header.endianness, fds=self.received)
        except Exception as error:
            # jeepney raises whatever a malformed body makes it run into.
            fds.close(self.received)
            raise _inconsistent(f"malformed reply: {error!r}") from error
        checked: tuple[Any, ...] = body
        return checked


@dataclass(frozen=True, slots=True)
class Signal:
    """One that came to a Bus which listens. `sender` is the unique name that the bus itself put there."""

    sender: str
    interface: str
    member: str
    body: tuple[Any, ...]
    path: str = field(default="", compare=False)


class Listener(Protocol):
    """Hears what comes to a connection beside replies. Both are called in turns of the loop's own.

    A signal is handed over by the same queue as a reply: whoever waits for a reply goes on after the signals that were
    sent before it, and before those that were sent after it.
    """

    def heard(self, signal: Signal) -> None: ...

    def broke(self) -> None:
        """The connection ended, and signals may have been lost."""


class Repeated:
    """A message that is sent often, without file descriptors: in bytes but for its serial number."""

    def __init__(self, message: Message) -> None:
        self.header = message.header
        self._data = bytearray(message.serialise(1))
        self._serial = struct.Struct(message.header.endianness.struct_code() + "I")

    def serialise(self, serial: int, _: object = None) -> bytes:
        """As Message.serialise."""
        self._serial.pack_into(self._data, 8, serial)
        return bytes(self._data)


class _Connection:
    """One connection to the bus, from its first byte to its end."""

    def __init__(self, loop: Loop, retired: "_Told", over: "_Told", listener: Listener | None = None) -> None:
        """`retired` is told when it takes no more calls, `over` when it has ended.

        Raises OSError when there is no bus.
        """
        self._loop = loop
        self._listener = listener
        self._tell_retired, self._tell_over = retired, over
        self._serials = count(1)
        self._pending: dict[int, Future[Answer]] = {}
        self._incoming = bytearray()
        self._received: list[FileDescriptor] = []
        self._unwanted = 0  # bytes that are still to come of a message which is too large
        self._authenticator: Authenticator | None = Authenticator(enable_fds=True)
        self._outgoing: deque[tuple[bytes, list[FileDescriptor]]] = deque()
        self._abandoned: set[int] = set()
        self._left: dict[int, tuple[Callable[[], None], Timer]] = {}
        self._retired = False
        self._writing = False
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

    def call(self, message: Message | Repeated) -> tuple[int, Future[Answer]]:
        """Send a message. Returns its serial number and the future of its reply.

        File descriptors in its body stay the caller's: duplicates go.
        """
        if self._closed:
            raise errors.Unavailable("the system bus closed the connection")
        serial = next(self._serials)
        numbers = array("i")
        data = message.serialise(serial, numbers)
        descriptors = _duplicates(numbers)
        future: Future[Answer] = Future(self._loop)
        self._pending[serial] = future
        self._write(data, descriptors)
        return serial, future

    def send(self, message: Message) -> None:
        """Send a call that wants no reply."""
        message.header.flags |= MessageFlag.no_reply_expected
        self._write(message.serialise(next(self._serials)))

    def forget(self, serial: int) -> None:
        """Nobody waits for this reply any more. If it comes, its file descriptors are closed.

        With too many such, the bus would soon take no more calls: the next ones find another connection, and this one
        ends when those that are waited for are answered.
        """
        if self._pending.pop(serial, None) is not None:
            self._abandoned.add(serial)
            if len(self._abandoned) > ABANDONED_MAX and not self._retired:
                self._retired = True
                self._tell_retired(self)
            self._end_if_done()

    def leave(self, serial: int, give_back: Callable[[], None]) -> None:
        """Nobody waits for this reply any more, but it is worked on: its place is taken until it comes or is overdue.

        Or who asks and leaves, again and again, would have any number of calls under way.
        """
        if self._pending.pop(serial, None) is None:
            give_back()
        else:
            self._left[serial] = give_back, self._loop.call_later(DEADLINE, lambda: self._overdue(serial))

    def _overdue(self, serial: int) -> None:
        give_back, _ = self._left.pop(serial)
        self._pending[serial] = Future(self._loop)
        self.forget(serial)
        give_back()

    def _end_if_done(self) -> None:
        if self._retired and not self._pending and not self._left:
            self.close("all that was waited for on it is answered")

    def close(self, reason: str) -> None:
        """End the connection, and with Unavailable all that waits for it."""
        if self._closed:
            return
        self._closed = True
        self._tell_over(self)
        self._patience.cancel()
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        fds.close(self._received)
        self._drop_outgoing()
        pending, self._pending = self._pending, {}
        self.ready.fail(errors.Unavailable(reason))
        for future in pending.values():
            future.fail(errors.Unavailable(reason))
        left, self._left = self._left, {}
        for give_back, timer in left.values():
            timer.cancel()
            give_back()

    def _write(self, data: bytes, descriptors: Sequence[FileDescriptor] = ()) -> None:
        """Send what can be sent now. Failure shows as an event of the socket, after what the bus had to say before."""
        self._outgoing.append((data, list(descriptors)))
        if len(self._outgoing) == 1:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._outgoing:
                data, descriptors = self._outgoing[0]
                sent = fds.send(self._socket, data, descriptors)
                fds.close(descriptors)
                self._outgoing.popleft()
                if sent < len(data):
                    self._outgoing.appendleft((data[sent:], []))
        except BlockingIOError:
            pass
        except OSError:
            self._drop_outgoing()
        if self._writing != bool(self._outgoing):
            self._writing = bool(self._outgoing)
            self._loop.change(self._socket.fileno(), READ | WRITE if self._writing else READ)

    def _drop_outgoing(self) -> None:
        for _, descriptors in self._outgoing:
            fds.close(descriptors)
        self._outgoing.clear()

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
            self._incoming += data
            self._received += received
            self._pass_over()
            while not self._closed and len(self._incoming) >= _FIXED_HEADER:
                size = wanted = calc_msg_size(self._incoming[:_FIXED_HEADER])
                if size > MESSAGE_MAX:
                    # Without its body it fails the call that it answers, and no other: a guest may have made it large.
                    wanted = size - _body_length(self._incoming)
                    if wanted > MESSAGE_MAX:
                        raise ValueError(f"a header of {wanted} bytes")
                if len(self._incoming) < wanted:
                    break
                message = bytes(self._incoming[:wanted])
                del self._incoming[:wanted]
                self._unwanted = size - wanted
                self._pass_over()
                self._dispatch(message)
            if self._received and not self._incoming:
                # They would be taken for the next reply's, whose client would get what is another's.
                raise ValueError("file descriptors that belong to no message")

    def _pass_over(self) -> None:
        passed = min(self._unwanted, len(self._incoming))
        del self._incoming[:passed]
        self._unwanted -= passed

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

    async def _greet(self, reply: Future[Answer]) -> None:
        try:
            answer = await reply
            body = answer.body()
        except errors.Unavailable:
            return
        except DBusError as error:
            self.close(f"the system bus sent nonsense: {error.message}")
            return
        fds.close(answer.received)
        if answer.header.message_type == MessageType.error:
            self.close(f"the system bus refused the connection: {_text(body)}")
        else:
            self._patience.cancel()
            self.ready.resolve(None)

    def _dispatch(self, message: bytes) -> None:
        """Give a reply to who waits for it, and a signal to who listens. All else is dropped undecoded, as are signals
        where nobody listens, and large ones: anybody may send them to this connection.

        Each message says how many file descriptors are its own, so reading ahead mixes nothing up.
        """
        header, end = Header.from_buffer(message)
        number = header.fields.get(HeaderFields.unix_fds, 0)
        received, self._received = self._received[:number], self._received[number:]
        future = None
        if header.message_type in (MessageType.method_return, MessageType.error):
            serial = header.fields.get(HeaderFields.reply_serial)
            if serial in self._abandoned or serial in self._left:
                fds.close_untaken(received, self._loop.call_later)
                self._came_late(serial)
                return
            future = self._pending.pop(serial, None)
        elif (
            header.message_type == MessageType.signal
            and self._listener is not None
            and header.body_length <= SIGNAL_MAX
        ):
            self._hear(self._listener, header, Answer(header, message[end + -end % 8 :], received))
            return
        if future is None:
            fds.close(received)
            return
        if not future.resolve(Answer(header, message[end + -end % 8 :], received)):
            fds.close_untaken(received, self._loop.call_later)
        self._end_if_done()

    def _hear(self, listener: Listener, header: Header, content: Answer) -> None:
        fields = header.fields
        sender, interface, member, path = (
            fields.get(which, "")
            for which in (HeaderFields.sender, HeaderFields.interface, HeaderFields.member, HeaderFields.path)
        )
        try:
            signal = Signal(sender, interface, member, content.body(), path)
        except DBusError as error:
            self.close(f"the system bus sent nonsense: {error.message}")
            return
        fds.close(content.received)
        self._loop.call_soon(partial(listener.heard, signal))

    def _came_late(self, serial: int) -> None:
        self._abandoned.discard(serial)
        if serial in self._left:
            give_back, timer = self._left.pop(serial)
            timer.cancel()
            give_back()
        self._end_if_done()


_Told: TypeAlias = Callable[[_Connection], None]


class Bus:
    """Calls over the system bus, by a connection of its own."""

    def __init__(
        self,
        loop: Loop,
        per_user: int = CALLS_MAX,
        waiting_max: int = WAITING_MAX,
        listener: Listener | None = None,
    ) -> None:
        """With so many calls of one user under way, and so many of all users that wait: see Turns."""
        self._loop = loop
        self._listener = listener
        self._connection: _Connection | None = None  # for the next call
        self._connections: set[_Connection] = set()
        self.turns = Turns(loop, CALLS_MAX, per_user, waiting_max)

    async def call(
        self,
        message: Message,
        reply: str,
        deadline: float | None = DEADLINE,
        given_up: Future[None] | None = None,
        user: int = ROOT,
        most: int = MESSAGE_MAX,
    ) -> tuple[Any, ...]:
        """The body of the reply, whose signature has to be `reply`: see `ask`. With more bytes it is an error."""
        answer = await self.ask(message, reply, deadline, given_up, user)
        if len(answer.data) > most:
            fds.close(answer.received)
            raise DBusError("org.freedesktop.DBus.Error.LimitsExceeded", f"{len(answer.data)} bytes are too many")
        return answer.body()

    async def ask(
        self,
        message: Message | Repeated,
        reply: str,
        deadline: float | None = DEADLINE,
        given_up: Future[None] | None = None,
        user: int = ROOT,
    ) -> Answer:
        """The reply, whose signature has to be `reply`.

        `deadline` in seconds, the wait for the user's turn included; None for what may take as long as it takes.
        Raises DBusError, and Timeout, Unavailable and TooManyOperations as errors of the interface. A reply that comes
        after the deadline is dropped. When `given_up` is done, the wait ends with GivenUp, whether the call was sent by
        then or not.
        """
        late = _Patience(self._loop, deadline, given_up)
        try:
            await self.turns.take(user, late.fails)
            answer = await self._answer(message, late, partial(self.turns.give_back, user))
        finally:
            late.cancel()
        if answer.header.message_type == MessageType.error:
            body = answer.body()
            fds.close(answer.received)
            raise _error(answer.header, body)
        if answer.signature != reply or len(answer.received) != reply.count("h"):
            fds.close(answer.received)
            member = message.header.fields[HeaderFields.member]
            raise _inconsistent(f"{member} was answered with '{answer.signature}' instead of '{reply}'")
        return answer

    @property
    def connection(self) -> object:
        """What the next call goes over; None if that will open another one."""
        return self._connection

    def send(self, message: Message) -> None:
        """Send a call whose reply nobody waits for. Where there is no connection, nobody is there to be called."""
        if self._connection is not None and self._connection.ready.done:
            self._connection.send(message)

    def close(self) -> None:
        for connection in list(self._connections):
            connection.close("the service ends")

    async def _answer(
        self, message: Message | Repeated, late: "_Patience", give_back: Callable[[], None]
    ) -> Answer:
        """`give_back` is called when the call does not take its place any more, perhaps later."""
        with ExitStack() as place:
            place.callback(give_back)
            if self._connection is None:
                self._connection = self._connect()
            connection = self._connection
            await connection.ready
            serial, future = connection.call(message)
            late.fails(future)
            try:
                return await future
            except GivenUp:
                place.pop_all()
                connection.leave(serial, give_back)
                raise
            finally:
                connection.forget(serial)

    def _connect(self) -> _Connection:
        try:
            connection = _Connection(self._loop, self._retire, self._forget, self._listener)
        except (OSError, RuntimeError) as error:
            raise errors.Unavailable(f"no system bus: {error}") from error
        self._connections.add(connection)
        return connection

    def _retire(self, connection: _Connection) -> None:
        """The next call opens another."""
        if self._connection is connection:
            self._connection = None

    def _forget(self, connection: _Connection) -> None:
        self._retire(connection)
        self._connections.discard(connection)
        if self._listener is not None:
            self._loop.call_soon(self._listener.broke)


async def listen(bus: Bus, name: str, *signals: tuple[str, str]) -> None:
    """Have the listener of a bus hear these signals (interface, member) of who has the name, and when another has it.

    Raises what Bus.call raises.
    """
    rules = [
        MatchRule(type="signal", sender=sender, interface=interface, member=member)
        for sender, interface, member in (
            (message_bus.bus_name, message_bus.interface, "NameOwnerChanged"),
            *((name, *signal) for signal in signals),
        )
    ]
    rules[0].add_arg_condition(0, name)
    for rule in rules:
        await bus.call(message_bus.AddMatch(rule), "")


class _Patience:
    """How long a call waits, for one thing after the other: until a time, or until nobody wants the answer any more."""

    def __init__(self, loop: Loop, seconds: float | None, given_up: Future[None] | None) -> None:
        self._awaited: Future[Any] | None = None
        self._over: Exception | None = None
        self._given_up = given_up
        self._timer = None if seconds is None else loop.call_later(seconds, self._expire)
        if given_up is not None:
            given_up.when_done(self._give_up)

    def fails(self, awaited: Future[Any]) -> None:
        """This is what is waited for now."""
        self._awaited = awaited
        if self._over is not None:
            awaited.fail(self._over)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._given_up is not None:
            self._given_up.forget(self._give_up)

    def _expire(self) -> None:
        self._end(errors.Timeout())

    def _give_up(self) -> None:
        self._end(GivenUp())

    def _end(self, error: Exception) -> None:
        self._over = error
        if self._awaited is not None:
            self._awaited.fail(error)


def _duplicates(numbers: Sequence[int]) -> list[FileDescriptor]:
    """Duplicates of file descriptors. Raises Unavailable when this process may open no more."""
    duplicates: list[FileDescriptor] = []
    try:
        for number in numbers:
            duplicates.append(FileDescriptor(os.dup(number)))
    except OSError as error:
        fds.close(duplicates)
        raise errors.Unavailable(f"no file descriptor for a call: {error.strerror}") from error
    return duplicates


def _body_length(message: bytearray) -> int:
    (length,) = struct.unpack_from("<I" if message[0] == ord("l") else ">I", message, 4)
    return int(length)


@lru_cache(32)
def _type(signature: str) -> Struct:
    """What decodes a body of this signature."""
    return parse_signature(list(f"({signature})"))


def _inconsistent(message: str) -> DBusError:
    return DBusError("org.freedesktop.DBus.Error.InconsistentMessage", message)


def _error(header: Header, body: tuple[Any, ...]) -> Exception:
    """What an error reply says.

    One of the bus itself says nothing of the one that was called, but that it cannot be: a limit of the bus, nobody
    there, or that systemd could not start it, in whatever words (FileExists for a unit that is masked, in 262). Only
    AccessDenied is about the call.
    """
    fields = header.fields
    name = fields.get(HeaderFields.error_name, "")
    if not isinstance(name, str):
        name = ""
    if fields.get(HeaderFields.sender) == message_bus.bus_name and name != "org.freedesktop.DBus.Error.AccessDenied":
        return errors.Unavailable(f"the system bus: {_text(body)}")
    return DBusError(name, _text(body))


def _text(body: tuple[Any, ...]) -> str:
    """The text of an error reply, by convention the first of its body."""
    return body[0][:ERROR_TEXT_MAX] if body and isinstance(body[0], str) else ""
