# SPDX-License-Identifier: LGPL-2.1-or-later
"""The only module that talks to clients: who they are, their bytes in, replies and file descriptors out.

A connection has one call under way at a time and its reply sent before the next begins, so calls are answered in
order and a client that does not read stops nobody but itself. The same holds for a call with several replies: each is
made when the one before it was sent, in a turn of its own. File descriptors are received, wherever they come, since the
kernel would close those that are not, and that takes as long as their client likes; one for a call is kept where the
policy says so. Of a connection two are kept at most: as long as a call is under way nothing is read, and what is read
after it begins one more call with descriptors.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, ParamSpec, Protocol

from jeepney.fds import FileDescriptor

from . import fds, journal
from .activation import Listener
from .framing import ROOT, Bounds, ProtocolError, Reader, parse_call, serialise_reply
from .limits import Limits
from .loop import HANGUP, READ, WRITE, Future, Loop, Share, Timer
from .messages import Call, Peer, Reply, Stream

P = ParamSpec("P")

# Not in Python's socket module yet.
SO_PEERPIDFD = 77
# Whose a connection is of which there was no more to learn.
UNKNOWN = -1
_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# Seconds until another try to accept after the process or the system ran out of something.
ACCEPT_PAUSE = 0.2
# Seconds between looks whether a client has read what was before a reply with file descriptors: from, to.
UNREAD_PAUSE, UNREAD_PAUSE_MAX = 0.001, 1.0
# Seconds between looks whether descriptors of a user that wait to be closed have become fewer: from, to.
CLOSING_PAUSE, CLOSING_PAUSE_MAX = 0.001, 1.0
# Seconds that a client may let a reply lie when the service ends.
FINISHING_MAX = 5.0
# Seconds that a client has for its first call, if the service ends just after it came.
FIRST_CALL_MAX = 1.0
# Users whose used time is remembered when they leave; with more of them all is forgiven.
DEBTS_MAX = 1000


class Dispatcher(Protocol):
    def answer(self, call: Call, peer: Peer) -> Coroutine[Future[Any], None, Reply]: ...

    def follow(self, call: Call, peer: Peer, stream: Stream) -> Coroutine[Future[Any], None, Reply]: ...


class User:
    """What the connections of one UID have in common: their share of the time, and what they may use up together."""

    __slots__ = ("buffered", "connections", "share", "uid")

    def __init__(self, loop: Loop, uid: int) -> None:
        self.uid = uid
        self.share = Share(loop)
        self.connections = 0
        self.buffered = 0


class Server:
    """Accepts clients until it is stopped or nobody came for `idle_timeout` seconds (0: for ever), or nobody can."""

    def __init__(
        self,
        loop: Loop,
        dispatcher: Dispatcher,
        listeners: Sequence[Listener],
        idle_timeout: float,
        limits: Limits = Limits(),  # noqa: B008  immutable
        stopping: Callable[[], None] = lambda: None,
        accepts_fds: bool = False,
    ) -> None:
        """`stopping` is told when the server begins to stop. Who `accepts_fds` receives file descriptors from clients.

        That may be changed at any time, for what comes from then on.
        """
        self._loop = loop
        self._announce = stopping
        self.limits = limits
        self.accepts_fds = accepts_fds
        self.closer = fds.Closer()
        self._dispatcher = dispatcher
        self._listeners = [listener for listener in listeners if not listener.connected]
        self._clients = [listener for listener in listeners if listener.connected]
        self._idle_timeout = idle_timeout
        self._idle_timer: Timer | None = None
        self._connections: set[Connection] = set()
        self._users: dict[int, User] = {}
        self._debts: dict[int, float] = {}  # of users without a connection
        self._door = Share(loop)  # who comes in takes no time from who is in
        self._accepting = False
        self._accepted = True  # the last that wanted to come in could
        self._stopping = False
        self._buffered = 0

    def start(self) -> None:
        """Raises OSError when there is no file descriptor for a client that is connected already."""
        for client in self._clients:
            self._welcome(client.socket, peer_of(client.socket, self._loop, client.name))
        self._resume_accepting()
        self._expect_idleness()

    def limit(self, limits: Limits) -> None:
        """From now on. Who is in stays."""
        self.limits = limits
        self._resume_accepting()

    def stop(self) -> None:
        """Accept nobody any more, finish the calls under way, then end the loop."""
        if self._stopping:
            return
        self._stopping = True
        self._announce()
        self._pause_accepting()
        self._door.close()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for connection in list(self._connections):
            connection.finish()
        self._end_if_done()

    def buffer(self, user: User, difference: int) -> bool:
        """Account for so many bytes more or less that wait; False if they are too many. Root's are not counted."""
        if user.uid == 0:
            return True
        self._buffered += difference
        user.buffered += difference
        most = self.limits.buffered_bytes
        if self._buffered > most:
            # Who fills it has to go, not who comes next.
            return user.buffered <= most // max(4, len(self._users))
        return user.buffered <= most // 4

    def closed(self, connection: "Connection") -> None:
        """A connection says that it is over: closed, and no call of it under way."""
        self._connections.discard(connection)
        connection.peer.close()
        connection.user.connections -= 1
        if not connection.user.connections:
            self._remember(connection.user)
            connection.user.share.close()
            del self._users[connection.user.uid]
        if self._stopping:
            self._end_if_done()
        else:
            self._resume_accepting()
            self._expect_idleness()

    def _remember(self, user: User) -> None:
        """Who leaves and comes again has used no less time than before."""
        if user.share.used > self._loop.clock:
            if len(self._debts) >= DEBTS_MAX:
                self._debts.clear()
            self._debts[user.uid] = user.share.used

    def _resume_accepting(self) -> None:
        if self._accepting or self._stopping or len(self._connections) >= self.limits.connections:
            return
        self._accepting = True
        for listener in self._listeners:
            self._door.watch(listener.socket.fileno(), READ, partial(self._accept, listener))

    def _pause_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._door.unwatch(listener.socket.fileno())

    def _accept(self, listener: Listener, _events: int) -> None:
        try:
            with ExitStack() as spare:
                # For the client's process and its user, which it cannot do without: with less it waits.
                for _ in range(2):
                    spare.callback(os.close, os.dup(listener.socket.fileno()))
                client, _ = listener.socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            # The clients wait in the backlog.
            self._run_out(error)
            return
        try:
            self._welcome(client, peer_of(client, self._loop, listener.name))
            self._accepted = True
        except OSError as error:
            self.closer.hang_up(UNKNOWN, client)
            self._run_out(error)

    def _run_out(self, error: OSError) -> None:
        """Of file descriptors or memory. Try again soon, and say so once."""
        if self._accepted:
            journal.log(journal.WARNING, f"Cannot accept connections, trying again until it works: {error}")
        self._accepted = False
        self._pause_accepting()
        self._loop.call_later(ACCEPT_PAUSE, self._resume_accepting)

    def _welcome(self, client: socket.socket, peer: Peer) -> None:
        """Raises OSError when there is no file descriptor for it."""
        if not self._has_room_for(peer.uid):
            journal.refusal(peer.uid, "Too many connections, refused one", MACHINE1_PEER_UID=peer.uid)
            self.closer.hang_up(peer.uid, client)
            peer.close()
            return
        client.setblocking(False)
        fds.keep_out_of_band(client)
        user = self._users.get(peer.uid)
        try:
            if user is None:
                user = User(self._loop, peer.uid)
                user.share.used = self._debts.pop(peer.uid, 0.0)
            connection = Connection(user, self, self._dispatcher, client, peer)
        except OSError:
            # Out of descriptors, memory, or of what a user may watch (max_user_watches, epoll(7)).
            peer.close()
            if user is not None and not user.connections:
                user.share.close()
            raise
        self._users[peer.uid] = user
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        user.connections += 1
        self._connections.add(connection)
        if len(self._connections) >= self.limits.connections:
            self._pause_accepting()

    def _has_room_for(self, uid: int) -> bool:
        """The last quarter is root's alone, so that no number of users keeps the administrator out."""
        if uid == 0:
            return True
        of_users, for_users = len(self._connections) - self._connections_of(0), self.limits.connections * 3 // 4
        return self._connections_of(uid) < self.limits.connections_per_user and of_users < max(1, for_users)

    def _connections_of(self, uid: int) -> int:
        user = self._users.get(uid)
        return user.connections if user is not None else 0

    def _expect_idleness(self) -> None:
        if self._connections:
            return
        if not self._listeners:
            self._loop.call_soon(self.stop)
        elif self._idle_timeout and self._idle_timer is None:
            self._idle_timer = self._loop.call_later(self._idle_timeout, self._be_idle)

    def _be_idle(self) -> None:
        """Stop, but not before all is closed that clients sent.

        A file system that does not answer keeps the process from ending, even when it is killed, and as long as there
        is one the service manager starts no other.
        """
        self._idle_timer = None
        if self.closer.idle:
            self.stop()
        else:
            self._expect_idleness()

    def _end_if_done(self) -> None:
        if not self._connections:
            self._loop.stop()


class Connection:
    """One client, from accept to close."""

    def __init__(self, user: User, server: Server, dispatcher: Dispatcher, client: socket.socket, peer: Peer) -> None:
        self.peer = peer
        self.user = user
        self._share = user.share
        self._server = server
        self._dispatcher = dispatcher
        self._socket = client
        self._bounds = bounds_of(peer.uid, server.limits)
        self._reader = Reader(self._bounds.message_bytes)
        self._buffered = 0
        self._held = 0  # bytes that the call under way takes
        self._stream: tuple[Call, Stream] | None = None  # what makes the next reply to the call under way
        self._call: Call | None = None
        self._reply: Reply | None = None
        self._outgoing = memoryview(b"")
        self._end_of_file = False  # the client will send no more
        self._gone = False  # the client will read no more, and the socket is not watched any more
        self._called = False
        self._first_is_last = False  # the service ends
        self._finishing = False  # the service ends after this call
        self._closed = False
        self._turn_due = False  # to look for another call in what was read
        self._waits_for_room = False  # nothing is read
        self._closing_pause = CLOSING_PAUSE
        self._patience: Timer | None = None  # until the client has to have sent its call, or read its reply
        self._pause: Timer | None = None  # until it is looked again whether the client has read what came before
        self._events = READ
        self._share.watch(client.fileno(), READ, self._on_event)

    def finish(self) -> None:
        """Close as soon as the call under way, if any, is answered.

        Of a client that has just come, the first call is on the way. It was not to know that the service ends, and its
        successor never sees this connection: each one that was accepted has one call answered.
        """
        if self._called:
            self._finish()
        else:
            self._first_is_last = True
            self._share.call_later(FIRST_CALL_MAX, self._finish)

    def _finish(self) -> None:
        if self._closed:
            return
        self._finishing = True
        self.peer.left.resolve(None)
        if self._stream is not None:
            _close_stream(self._stream[1])
        if self._reply is not None:
            self._be_patient(FINISHING_MAX, "did not read its reply", anew=True)
        self._safely(self._go_on)

    def _on_event(self, events: int) -> None:
        if not self._closed:
            self._safely(self._handle, events)

    def _safely(self, step: Callable[P, None], *arguments: P.args, **options: P.kwargs) -> None:
        """What goes wrong with one client ends with its connection."""
        try:
            step(*arguments, **options)
        except ProtocolError as error:
            journal.fault(
                self.peer.uid,
                f"Closing a connection of UID {self.peer.uid}, PID {self.peer.pid}: {error}",
                MACHINE1_PEER_UID=self.peer.uid,
                MACHINE1_PEER_PID=self.peer.pid,
            )
            self._close()
        except Exception:
            journal.bug("Bug, closing a connection")
            self._close()

    def _handle(self, events: int) -> None:
        if events & HANGUP:
            self._leave()
        if events & WRITE:
            self._send()
            self._account()
            if self._reply is None:
                # While the next call is under way, the kernel would say without end that more can be written.
                self._watch(READ)
        if events & (READ | HANGUP):
            if self._busy:
                # More calls while one is under way: they stay in the kernel until their turn comes.
                self._watch(0)
            else:
                self._receive()
        self._go_on()

    @property
    def _busy(self) -> bool:
        return self._call is not None or self._reply is not None or self._turn_due

    def _receive(self) -> None:
        if not self._server.closer.has_room_for(self.user.uid):
            self._wait_for_room()
            return
        self._closing_pause = CLOSING_PAUSE
        received: list[FileDescriptor] = []
        lost = False
        try:
            data, received, lost = fds.receive_unclosed(self._socket)
        except BlockingIOError:
            if not self._gone:
                return
            # It reads no replies, though it has not hung up; no event will tell of more.
            data = b""
        except OSError:
            data = b""
        if received and (lost or not self._server.accepts_fds):
            self._close_received(received)
            received = []
        if lost and self._server.accepts_fds:
            raise ProtocolError("file descriptors that could not be received")
        if data:
            self._reader.feed(data, received)
        else:
            self._end_of_file = True

    def _wait_for_room(self) -> None:
        """Until descriptors of the user's are closed. It has itself to thank for it, if that never comes."""
        if self._gone:
            self._end_of_file = True
            return
        self._waits_for_room = True
        self._share.call_later(self._closing_pause, self._look_for_room)
        self._closing_pause = min(self._closing_pause * 2, CLOSING_PAUSE_MAX)

    def _look_for_room(self) -> None:
        self._waits_for_room = False
        self._safely(self._go_on)

    def _close_received(self, received: Sequence[FileDescriptor]) -> None:
        self._server.closer.close(self.user.uid, received)

    def _account(self) -> None:
        """Tell how much waits here. Raises ProtocolError if the user, or users as a whole, let too much wait."""
        buffered = 0 if self._closed else self._reader.size + len(self._outgoing) + self._held
        difference, self._buffered = buffered - self._buffered, buffered
        if not self._server.buffer(self.user, difference) and difference > 0:
            raise ProtocolError("too much of users waits to be read")

    def _go_on(self) -> None:
        """Begin what can be begun: the next reply or call, more reading, or the end."""
        if self._closed or self._busy:
            return
        if self._stream is not None:
            self._follow(*self._stream)
            return
        message = None if self._finishing else self._reader.next_message()
        if message is not None:
            self._stop_waiting()
            self._held = memory_of(message)
            self._account()
            call = parse_call(message, self._bounds)
            received = self._reader.take_fds()
            self._begin(replace(call, fds=received) if received else call)
        elif self._finishing or self._end_of_file:
            self._close()
        elif self._gone:
            self._receive()
            self._account()
            self._go_on_later()
        else:
            self._watch(0 if self._waits_for_room else READ)
            self._account()
            if self._reader.size:
                self._be_patient(self._server.limits.request_seconds, "did not send all of a call")

    def _go_on_later(self) -> None:
        self._turn_due = True
        self._share.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn_due = False
        self._safely(self._go_on)

    def _begin(self, call: Call) -> None:
        self._call = call
        self._called = True
        self._finishing |= self._first_is_last
        self._share.start(self._made(self._dispatcher.answer(call, self.peer)), partial(self._finished, call))

    def _follow(self, call: Call, stream: Stream) -> None:
        if self._finishing:
            # It came after `finish`, as that of a first call may. That it ends here must not look like all of it.
            self.peer.left.resolve(None)
            _close_stream(stream)
        self._call = call
        self._share.start(self._made(self._dispatcher.follow(call, self.peer, stream)), partial(self._finished, call))

    def _after_reply(self) -> None:
        """One call or reply a turn, so the next one waits for the next."""
        if self._reply is None and (self._reader.size or self._stream is not None):
            self._go_on_later()
        else:
            self._go_on()

    async def _made(self, reply: Coroutine[Future[Any], None, Reply]) -> Reply | None:
        """The dispatcher's reply; None if it raised what it promised not to raise."""
        try:
            return await reply
        except Exception:
            journal.bug("Bug, closing a connection")
            return None

    def _finished(self, call: Call, reply: Reply | None) -> None:
        self._call = None
        if call.fds:
            self._close_received(call.fds)
            call = replace(call, fds=())
        if reply is not None and reply.stream is not None:
            self._stream = call, reply.stream
            if self._gone or call.oneway:
                self._end_stream()
        else:
            self._held = 0
            if self._stream is not None:
                self._end_stream()
        if self._closed or reply is None or call.oneway or self._gone:
            if reply is not None:
                fds.close_untaken(reply.fds, self._share.call_later)
            if self._closed:
                self._server.closed(self)
            elif reply is None:
                self._close()
            else:
                self._account()
                self._safely(self._after_reply)
        else:
            self._reply = reply
            self._safely(self._answer)

    def _answer(self) -> None:
        assert self._reply is not None
        self._outgoing = memoryview(serialise_reply(self._reply))
        if not self._reply.shared:
            self._reply.parameters = {}
        self._send()
        if self._reply is not None:
            self._account()
        self._after_reply()

    def _send(self, pause: float = UNREAD_PAUSE) -> None:
        """Send what is left of the reply, as far as the client takes it.

        File descriptors go on the first byte, and not before the client has read all that was sent earlier: one
        recvmsg(2) may return an earlier reply and the beginning of the next, and the client could give the file
        descriptors to the wrong one.
        """
        reply = self._reply
        if reply is None or self._gone:
            return
        if reply.fds and fds.unread_by_peer(self._socket):
            self._watch(0)
            self._expect_reading()
            following = min(pause * 2, UNREAD_PAUSE_MAX)
            self._pause = self._share.call_later(pause, lambda: self._retry(reply, following))
            return
        try:
            while self._outgoing:
                sent = fds.send(self._socket, self._outgoing, reply.fds)
                self._outgoing = self._outgoing[sent:]
                reply.close()
                reply.fds = ()
        except BlockingIOError:
            self._watch(WRITE)
            self._expect_reading()
        except OSError:
            self._leave()
        else:
            self._drop_reply()

    def _expect_reading(self) -> None:
        """A client may let a reply lie for so long, for less when the service ends."""
        seconds = FINISHING_MAX if self._finishing else self._server.limits.reply_seconds
        self._be_patient(seconds, "did not read its reply")

    def _be_patient(self, seconds: float, otherwise: str, *, anew: bool = False) -> None:
        """Close the connection after so many seconds, unless the wait ends before; from now on only if `anew`."""
        if anew:
            self._stop_waiting()
        if self._patience is None:
            self._patience = self._share.call_later(seconds, lambda: self._give_up(otherwise))

    def _give_up(self, why: str) -> None:
        def give_up() -> None:
            raise ProtocolError(f"the client {why} in time")

        self._safely(give_up)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _retry(self, reply: Reply, pause: float) -> None:
        if self._reply is reply:
            self._safely(self._send, pause)
            self._safely(self._account)
            self._safely(self._after_reply)

    def _watch(self, events: int) -> None:
        """Wait for these events; hang-up always is among them."""
        if events != self._events and not self._gone:
            self._events = events
            self._share.change(self._socket.fileno(), events)

    def _leave(self) -> None:
        """Nobody is there to read replies. What the client sent before it left is still done."""
        if self._gone:
            return
        self._gone = True
        self.peer.left.resolve(None)
        self._share.unwatch(self._socket.fileno())
        self._drop_reply()
        self._end_stream()

    def _end_stream(self) -> None:
        if self._stream is not None:
            _close_stream(self._stream[1])
            self._stream = None
            self._held = 0

    def _drop_reply(self) -> None:
        if self._reply is not None:
            fds.close_untaken(self._reply.fds, self._share.call_later)
            self._reply = None
            self._outgoing = memoryview(b"")
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._stop_waiting()

    def _close(self) -> None:
        if self._closed:
            return
        self._leave()
        self._closed = True
        self._server.closer.hang_up(self.user.uid, self._socket)
        self._close_received(self._reader.take_all_fds())
        self._account()
        if self._call is None:
            self._server.closed(self)


def _close_stream(stream: Stream) -> None:
    try:
        stream.close()
    except Exception:
        journal.bug("Bug, a stream may not be closed")


def bounds_of(uid: int, limits: Limits) -> Bounds:
    """Root's calls may be larger than users', and are never held to less."""
    if uid == 0:
        return Bounds(
            max(ROOT.message_bytes, limits.message_bytes), max(ROOT.depth, limits.depth), max(ROOT.items, limits.items)
        )
    return Bounds(limits.message_bytes, limits.depth, limits.items)


def memory_of(message: bytes) -> int:
    """Bytes that a call takes, about: its texts, and once more what of them polkit is told.

    One character beyond 16 bits makes a text of four bytes a character.
    """
    return len(message) * (2 if message.isascii() and b"\\u" not in message else 8)


def peer_of(client: socket.socket, loop: Loop, name: str = "") -> Peer:
    """The process that connected (SO_PEERCRED and SO_PEERPIDFD, unix(7)) to the socket of this name."""
    size = struct.calcsize("iII")
    pid, uid, gid = struct.unpack("iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return Peer(pid, uid, gid, Future(loop), _pidfd_of(client, pid), name)


def _pidfd_of(client: socket.socket, pid: int) -> FileDescriptor | None:
    """The client's pidfd; None if it has ended. Before Linux 6.5 the kernel has none ready: its PID's, then.

    Raises OSError when there is no room for it: its client must not become one that cannot be authorized.
    """
    try:
        return FileDescriptor(client.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
    except OSError as error:
        if error.errno in _OUT_OF:
            raise
        if error.errno != errno.ENOPROTOOPT:
            return None
    try:
        return FileDescriptor(os.pidfd_open(pid))
    except OSError as error:
        if error.errno in _OUT_OF:
            raise
        return None
