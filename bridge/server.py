# SPDX-License-Identifier: LGPL-2.1-or-later
"""The only module that talks to clients: who they are, their bytes in, replies and file descriptors out.

A connection has one call under way at a time and its reply sent before the next begins, so calls are answered in
order and a client that does not read stops nobody but itself. File descriptors from clients are never received:
recv(2) without room for them makes the kernel drop them.
"""

import errno
import os
import socket
import struct
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol

from jeepney.fds import FileDescriptor

from . import fds, journal
from .activation import Listener
from .framing import MESSAGE_MAX, ProtocolError, Reader, parse_call, serialise_reply
from .loop import HANGUP, READ, WRITE, Future, Loop, Timer
from .messages import Call, Peer, Reply
from .policy import Limits

# Bytes of requests and replies that wait, of all connections but root's together.
BUFFERED_MAX = 64 * 1024 * 1024
ACCEPTED_A_TURN = 64
# Not in Python's socket module yet.
SO_PEERPIDFD = 77
# Calls of one connection that are answered before others get their turn.
CALLS_A_TURN = 16
# Seconds until another try to accept after the process or the system ran out of something.
ACCEPT_PAUSE = 0.2
# Seconds between looks whether a client has read what was before a reply with file descriptors: from, to.
UNREAD_PAUSE, UNREAD_PAUSE_MAX = 0.001, 1.0
# Seconds that a client may let a reply lie before its connection is closed, and when the service ends.
UNREAD_MAX, FINISHING_MAX = 60.0, 5.0


class Dispatcher(Protocol):
    def answer(self, call: Call, peer: Peer) -> Coroutine[Future[Any], None, Reply]: ...


class Server:
    """Accepts clients until it is stopped or nobody came for `idle_timeout` seconds (0: for ever)."""

    def __init__(
        self,
        loop: Loop,
        dispatcher: Dispatcher,
        listeners: Sequence[Listener],
        idle_timeout: float,
        limits: Limits = Limits(),  # noqa: B008  immutable
        stopping: Callable[[], None] = lambda: None,
    ) -> None:
        """`stopping` is told when the server begins to stop."""
        self._loop = loop
        self._announce = stopping
        self.limits = limits
        self._dispatcher = dispatcher
        self._listeners = listeners
        self._idle_timeout = idle_timeout
        self._idle_timer: Timer | None = None
        self._connections: set[Connection] = set()
        self._per_uid: Counter[int] = Counter()
        self._accepting = False
        self._stopping = False
        self._buffered = 0

    def start(self) -> None:
        self._resume_accepting()
        self._expect_idleness()

    def stop(self) -> None:
        """Accept nobody any more, finish the calls under way, then end the loop."""
        if self._stopping:
            return
        self._stopping = True
        self._announce()
        self._pause_accepting()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for connection in list(self._connections):
            connection.finish()
        self._end_if_done()

    def buffer(self, difference: int) -> bool:
        """Account for so many bytes more or less of a user's; False if they are too many."""
        self._buffered += difference
        return self._buffered <= BUFFERED_MAX

    def closed(self, connection: "Connection") -> None:
        """A connection says that it is over: closed, and no call of it under way."""
        self._connections.discard(connection)
        connection.peer.close()
        self._per_uid[connection.peer.uid] -= 1
        if not self._per_uid[connection.peer.uid]:
            del self._per_uid[connection.peer.uid]
        if self._stopping:
            self._end_if_done()
        else:
            self._resume_accepting()
            self._expect_idleness()

    def _resume_accepting(self) -> None:
        if self._accepting or self._stopping or len(self._connections) >= self.limits.connections:
            return
        self._accepting = True
        for listener in self._listeners:
            self._loop.watch(listener.socket.fileno(), READ, partial(self._accept, listener))

    def _pause_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self._loop.unwatch(listener.socket.fileno())

    def _accept(self, listener: Listener, _events: int) -> None:
        for _ in range(ACCEPTED_A_TURN):
            if not self._accepting:
                return
            try:
                client, _ = listener.socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of file descriptors or memory. The clients wait in the backlog.
                journal.log(journal.WARNING, f"Cannot accept a connection, trying again soon: {error}")
                self._pause_accepting()
                self._loop.call_later(ACCEPT_PAUSE, self._resume_accepting)
                return
            self._welcome(listener, client)

    def _welcome(self, listener: Listener, client: socket.socket) -> None:
        client.setblocking(False)
        peer = peer_of(client, self._loop, listener.name)
        # The last quarter is root's alone, so that no number of users keeps the administrator out.
        if peer.uid != 0 and (
            self._per_uid[peer.uid] >= self.limits.connections_per_user
            or len(self._connections) - self._per_uid[0] >= max(1, self.limits.connections * 3 // 4)
        ):
            journal.refusal(peer.uid, "Too many connections, refused one", MACHINE1_PEER_UID=peer.uid)
            client.close()
            peer.close()
            return
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        self._per_uid[peer.uid] += 1
        self._connections.add(Connection(self._loop, self, self._dispatcher, client, peer))
        if len(self._connections) >= self.limits.connections:
            self._pause_accepting()

    def _expect_idleness(self) -> None:
        if not self._connections and self._idle_timeout and self._idle_timer is None:
            self._idle_timer = self._loop.call_later(self._idle_timeout, self.stop)

    def _end_if_done(self) -> None:
        if not self._connections:
            self._loop.stop()


class Connection:
    """One client, from accept to close."""

    def __init__(self, loop: Loop, server: Server, dispatcher: Dispatcher, client: socket.socket, peer: Peer) -> None:
        self.peer = peer
        self._loop = loop
        self._server = server
        self._dispatcher = dispatcher
        self._socket = client
        self._reader = Reader(max(MESSAGE_MAX if peer.uid == 0 else 0, server.limits.message_bytes))
        self._buffered = 0
        self._call: Call | None = None
        self._reply: Reply | None = None
        self._outgoing = memoryview(b"")
        self._end_of_file = False  # the client will send no more
        self._gone = False  # the client will read no more, and the socket is not watched any more
        self._finishing = False  # the service ends after this call
        self._closed = False
        self._going_on = False
        self._patience: Timer | None = None  # until the client has to have read its reply
        self._events = READ
        loop.watch(client.fileno(), READ, self._on_event)

    def finish(self) -> None:
        """Close as soon as the call under way, if any, is answered."""
        self._finishing = True
        self.peer.left.resolve(None)
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
            self._expect_reading()
        self._safely(self._go_on)

    def _on_event(self, events: int) -> None:
        if not self._closed:
            self._safely(lambda: self._handle(events))

    def _safely(self, step: Callable[[], None]) -> None:
        """What goes wrong with one client ends with its connection."""
        try:
            step()
        except ProtocolError as error:
            journal.log(
                journal.DEBUG,
                f"Closing a connection of UID {self.peer.uid}, PID {self.peer.pid}: {error}",
                MACHINE1_PEER_UID=self.peer.uid,
                MACHINE1_PEER_PID=self.peer.pid,
            )
            self._close()
        except Exception:
            journal.log(journal.ERROR, f"Bug, closing a connection: {traceback.format_exc()}")
            self._close()

    def _handle(self, events: int) -> None:
        if events & HANGUP:
            self._leave()
        if events & WRITE:
            self._send()
            self._account()
        if events & (READ | HANGUP):
            if self._busy:
                # More calls while one is under way: they stay in the kernel until their turn comes.
                self._watch(0)
            else:
                self._receive()
        self._go_on()

    @property
    def _busy(self) -> bool:
        return self._call is not None or self._reply is not None

    def _receive(self) -> None:
        try:
            data = self._socket.recv(fds.RECEIVE_SIZE)
        except BlockingIOError:
            if not self._gone:
                return
            # It reads no replies, though it has not hung up; no event will tell of more.
            data = b""
        except OSError:
            data = b""
        if data:
            self._reader.feed(data)
            self._account()
        else:
            self._end_of_file = True

    def _account(self) -> None:
        """Tell how much waits here. Raises ProtocolError if users as a whole let too much wait."""
        if self.peer.uid == 0:
            return
        buffered = 0 if self._closed else self._reader.size + len(self._outgoing)
        difference, self._buffered = buffered - self._buffered, buffered
        if not self._server.buffer(difference) and difference > 0:
            raise ProtocolError("too much of all users waits to be read")

    def _go_on(self) -> None:
        """Begin what can be begun: the next call, more reading, or the end."""
        if self._going_on:
            return
        self._going_on = True
        try:
            for _ in range(CALLS_A_TURN):
                if self._closed or self._busy:
                    return
                message = None if self._finishing else self._reader.next_message()
                if message is not None:
                    self._account()
                    self._begin(parse_call(message))
                elif self._finishing or self._end_of_file:
                    self._close()
                elif self._gone:
                    self._receive()
                else:
                    self._watch(READ)
                    return
        finally:
            self._going_on = False
        self._loop.call_soon(lambda: self._safely(self._go_on))

    def _begin(self, call: Call) -> None:
        self._call = call
        self._loop.start(self._answered(call), lambda reply: self._finished(call, reply))

    async def _answered(self, call: Call) -> Reply | None:
        """The dispatcher's reply; None if it raised what it promised not to raise."""
        try:
            return await self._dispatcher.answer(call, self.peer)
        except Exception:
            journal.log(journal.ERROR, f"Bug, closing a connection: {traceback.format_exc()}")
            return None

    def _finished(self, call: Call, reply: Reply | None) -> None:
        self._call = None
        if self._closed or reply is None or call.oneway or self._gone:
            if reply is not None:
                reply.close()
            if self._closed:
                self._server.closed(self)
            elif reply is None:
                self._close()
            else:
                self._safely(self._go_on)
        else:
            self._reply = reply
            self._safely(self._answer)

    def _answer(self) -> None:
        assert self._reply is not None
        self._outgoing = memoryview(serialise_reply(self._reply))
        self._reply.parameters = {}
        self._send()
        self._account()
        self._go_on()

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
            self._loop.call_later(pause, lambda: self._retry(reply, min(pause * 2, UNREAD_PAUSE_MAX)))
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
        if self._patience is None:
            seconds = FINISHING_MAX if self._finishing else UNREAD_MAX
            self._patience = self._loop.call_later(seconds, self._close)

    def _retry(self, reply: Reply, pause: float) -> None:
        if self._reply is reply:
            self._safely(lambda: self._send(pause))
            self._safely(self._account)
            self._safely(self._go_on)

    def _watch(self, events: int) -> None:
        """Wait for these events; hang-up always is among them."""
        if events != self._events and not self._gone:
            self._events = events
            self._loop.change(self._socket.fileno(), events)

    def _leave(self) -> None:
        """Nobody is there to read replies. What the client sent before it left is still done."""
        if self._gone:
            return
        self._gone = True
        self.peer.left.resolve(None)
        self._loop.unwatch(self._socket.fileno())
        self._drop_reply()

    def _drop_reply(self) -> None:
        if self._reply is not None:
            self._reply.close()
            self._reply = None
            self._outgoing = memoryview(b"")
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _close(self) -> None:
        if self._closed:
            return
        self._leave()
        self._closed = True
        self._socket.close()
        self._account()
        if self._call is None:
            self._server.closed(self)


def peer_of(client: socket.socket, loop: Loop, name: str = "") -> Peer:
    """The process that connected (SO_PEERCRED and SO_PEERPIDFD, unix(7)) to the socket of this name."""
    size = struct.calcsize("iII")
    pid, uid, gid = struct.unpack("iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return Peer(pid, uid, gid, Future(loop), _pidfd_of(client, pid), name)


def _pidfd_of(client: socket.socket, pid: int) -> FileDescriptor | None:
    """The client's pidfd; None if it has ended. Before Linux 6.5 the kernel has none ready: its PID's, then."""
    try:
        return FileDescriptor(client.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            return None
    try:
        return FileDescriptor(os.pidfd_open(pid))
    except OSError:
        return None
