# SPDX-License-Identifier: LGPL-2.1-or-later
"""The server with clients that behave, clients that do not, and a dispatcher of the tests' own."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import resource
import select
import socket
import subprocess
import sys
import time
import types
from array import array
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jeepney.fds import FileDescriptor

from bridge import activation, journal, server
from bridge import loop as loop_module
from bridge.framing import ROOT, Bounds
from bridge.limits import Limits
from bridge.loop import Future, Loop, Share
from bridge.messages import Call, Peer, Reply, Stream
from bridge.server import Server

from .conftest import LINGERING, Line, lingering

RECEIVE_SIZE = 1 << 20
BIG = 1 << 20  # more than the buffers of a UNIX socket hold


class FakeStream:
    """Replies `{"n": 1}` and so on, to `last` or without end; each at once or, if `held`, when a test gives it."""

    def __init__(self, loop: Loop, last: int = -1, size: int = 0, held: bool = False) -> None:
        self._loop = loop
        self._last, self._filling, self._held = last, {"big": "x" * size} if size else {}, held
        self.asked = 0
        self.closed = False
        self.waiting: Future[None] | None = None

    async def next(self) -> Reply:
        self.asked += 1
        number = self.asked
        if self._held and not self.closed:
            self.waiting = Future[None](self._loop)
            await self.waiting
            self.waiting = None
        return self.reply(number)

    def reply(self, number: int) -> Reply:
        return Reply({"n": number, **self._filling}, stream=None if number == self._last else self)

    def give(self) -> None:
        assert self.waiting is not None
        self.waiting.resolve(None)

    def close(self) -> None:
        self.closed = True
        if self.waiting is not None:
            self.waiting.resolve(None)


class FakeDispatcher:
    """Knows a few methods by what they do, and remembers what it was asked."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.calls: list[Call] = []
        self.peers: list[Peer] = []
        self.held: list[Future[Reply]] = []
        self.shared = Reply({"x": "y"}, shared=True)
        self.pty: list[FileDescriptor] = []
        self.streams: list[FakeStream] = []
        self.files: list[list[int]] = []  # that came with each call, by inode

    @property
    def asked(self) -> list[object]:
        """The parameter `n` of each call."""
        return [call.parameters.get("n") for call in self.calls]

    async def answer(self, call: Call, peer: Peer) -> Reply:
        self.calls.append(call)
        self.peers.append(peer)
        self.files.append([os.fstat(fd.fileno()).st_ino for fd in call.fds])
        if call.method == "t.Hold":
            future = Future[Reply](self._loop)
            self.held.append(future)
            return await future
        if call.method == "t.Bug":
            raise ZeroDivisionError
        if call.method == "t.Error":
            return Reply({"x": 1}, error="t.Wrong")
        if call.method == "t.Big":
            return Reply({"big": "x" * BIG, **call.parameters})
        if call.method == "t.Shared":
            return self.shared
        if call.method == "t.Stream":
            self.streams.append(FakeStream(self._loop, **call.parameters))
            return self.streams[-1].reply(0)
        if call.method == "t.Fd":
            return Reply(dict(call.parameters), fds=(self.open(),))
        if call.method == "t.BigFd":
            return Reply({"big": "x" * BIG, **call.parameters}, fds=(self.open(),))
        return Reply(dict(call.parameters))

    async def follow(self, call: Call, peer: Peer, stream: Stream) -> Reply:
        assert (call, peer) in zip(self.calls, self.peers, strict=True)
        self.calls.append(call)
        self.peers.append(peer)
        return await stream.next()

    def open(self) -> FileDescriptor:
        fd = FileDescriptor(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        self.pty.append(fd)
        return fd

    def release(self, reply: Reply | None = None) -> None:
        self.held.pop(0).resolve(Reply({"released": True}) if reply is None else reply)


class Stage:
    """A server on a loop that runs while a test waits for something, all on one thread."""

    def __init__(self, directory: Path, idle_timeout: float = 0) -> None:
        self.loop = Loop()
        self.dispatcher = FakeDispatcher(self.loop)
        self.path = str(directory / "socket")
        self.listener = activation.listen(self.path)
        self.announced: list[str] = []
        self.server = Server(
            self.loop,
            self.dispatcher,
            [self.listener],
            idle_timeout,
            stopping=lambda: self.announced.append("stopping"),
        )
        self.ended = False
        self._clients: list[Client] = []
        self.server.start()

    def client(self) -> Client:
        client = Client(self)
        self._clients.append(client)
        return client

    def turn(self, seconds: float = 0.03) -> None:
        """Let the server do what it has to do for a while, or until it ends."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end or self.ended)

    def until(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        """Run until the condition comes true. Fails if it does not."""
        end = time.monotonic() + seconds
        met = False
        waiting = True

        def look() -> None:
            nonlocal met, waiting
            met = condition()
            waiting = not met and time.monotonic() < end
            if waiting:
                timer[0] = self.loop.call_later(0.001, look)
            else:
                self.loop.stop()

        timer = [self.loop.call_later(0, look)]
        self.loop.run()
        timer[0].cancel()
        if waiting:
            # It was not us who stopped the loop.
            self.ended = True
            met = condition()
        assert met

    def close(self) -> None:
        """All clients leave; then nothing may keep the server from ending."""
        for client in self._clients:
            client.close()
        while self.dispatcher.held:
            self.dispatcher.release()
        self.turn()
        if not self.ended:
            self.loop.call_soon(self.server.stop)
            self.until(lambda: self.ended)
        self.loop.close()
        self.listener.socket.close()
        end = time.monotonic() + 10
        while not self.server.closer.idle and time.monotonic() < end:
            time.sleep(0.001)
        assert self.server.closer.idle
        assert not self.server._connections
        assert not self.server._users
        assert self.server._buffered == 0


class Client:
    """Says what it says at once, and reads only when a test wants it to."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.connect(stage.path)
        self._buffer = b""
        self._replies: list[Any] = []
        self.left = False
        # What each recvmsg(2) returned: bytes, and how many descriptors came with them.
        self.received: list[tuple[bytes, int]] = []

    def send(self, method: str, parameters: dict[str, Any] | None = None, **flags: bool) -> None:
        self.send_bytes(message(method, parameters, **flags))

    def send_bytes(self, data: bytes) -> None:
        left = memoryview(data)

        def push() -> bool:
            nonlocal left
            try:
                while left:
                    left = left[self.socket.send(left) :]
            except BlockingIOError:
                return False
            return True

        if not push():
            self._stage.until(push)

    def look(self) -> None:
        """Read what is there."""
        while not self.left:
            try:
                data, ancillary, flags, _ = self.socket.recvmsg(
                    RECEIVE_SIZE, socket.CMSG_SPACE(4 * 8), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except ConnectionResetError:
                data, ancillary, flags = b"", [], 0
            assert not flags & socket.MSG_CTRUNC
            fds = FileDescriptor.from_ancdata(ancillary)
            for fd in fds:
                fd.close()
            self.received.append((data, len(fds)))
            self.left = not data
            self._buffer += data
            *whole, self._buffer = self._buffer.split(b"\0")
            self._replies += [json.loads(each) for each in whole]

    def receive(self, number: int = 1) -> list[Any]:
        """So many replies."""

        def enough() -> bool:
            self.look()
            return len(self._replies) >= number or self.left

        self._stage.until(enough)
        assert len(self._replies) >= number, "the server hung up"
        taken, self._replies = self._replies[:number], self._replies[number:]
        return taken

    def silent(self) -> bool:
        """Whether for a moment no reply comes, nor the end."""
        self._stage.turn()
        self.look()
        return not self._replies and not self._buffer and not self.left

    def hung_up(self) -> bool:
        """Whether the server hangs up without another byte."""

        def over() -> bool:
            self.look()
            return self.left

        self._stage.until(over)
        return not self._replies and not self._buffer

    def echo(self, n: int = 0) -> bool:
        """Whether a call is answered."""
        self.send("t.Echo", {"n": n})
        return self.receive() == [{"parameters": {"n": n}}]

    def close(self) -> None:
        self.socket.close()


def message(method: str, parameters: dict[str, Any] | None = None, **flags: bool) -> bytes:
    return json.dumps({"method": method, "parameters": parameters} | flags).encode() + b"\0"


def echoes(*numbers: int) -> list[Any]:
    return [{"parameters": {"n": n}} for n in numbers]


@pytest.fixture
def stage(tmp_path: Path, logged: list[Line]) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()
    assert [line.message for line in logged if "Bug" in line.message] == []


@pytest.fixture
def client(stage: Stage) -> Client:
    return stage.client()


USER = 1000


def clients_of(monkeypatch: pytest.MonkeyPatch, *uids: int) -> None:
    """Clients that come from now on are of these users, one after the other; any number if it is one user."""
    numbered = itertools.repeat((1, uids[0])) if len(uids) == 1 else iter(enumerate(uids, 1))

    def peer_of(client: socket.socket, loop: Loop, name: str = "") -> Peer:
        pid, uid = next(numbered)
        return Peer(pid, uid, uid, Future(loop), socket=name)

    monkeypatch.setattr(server, "peer_of", peer_of)


@pytest.fixture
def user(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client that is not root. So are all that come after it."""
    clients_of(monkeypatch, USER)
    return stage.client()


# --- calls and replies ----------------------------------------------------------------------------------------------


def test_a_call_is_answered_and_the_kernel_says_whose_it_is(stage: Stage, client: Client) -> None:
    client.send("t.Echo", {"n": 1}, more=True)
    assert client.receive() == echoes(1)
    assert stage.dispatcher.calls == [Call("t.Echo", {"n": 1}, more=True)]
    (peer,) = stage.dispatcher.peers
    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.getuid(), os.getgid())


def test_an_error_is_a_reply_as_any_other(client: Client) -> None:
    client.send("t.Error")
    assert client.receive() == [{"error": "t.Wrong", "parameters": {"x": 1}}]
    assert client.echo()


def test_a_shared_reply_is_for_all_and_is_not_used_up(stage: Stage, client: Client) -> None:
    for each in (client, client, stage.client()):
        each.send("t.Shared")
        assert each.receive() == [{"parameters": {"x": "y"}}]
    assert stage.dispatcher.shared.parameters == {"x": "y"}


def test_calls_are_answered_in_order_one_at_a_time(stage: Stage, client: Client) -> None:
    client.send_bytes(message("t.Hold", {"n": 1}) + message("t.Echo", {"n": 2}) + message("t.Echo", {"n": 3}))
    assert client.silent()
    client.send("t.Echo", {"n": 4})
    assert client.silent()
    assert stage.dispatcher.asked == [1]
    stage.dispatcher.release()
    assert client.receive(4) == [{"parameters": {"released": True}}, *echoes(2, 3, 4)]


def test_clients_do_not_wait_for_each_other(stage: Stage, client: Client) -> None:
    client.send("t.Hold")
    assert client.silent()
    assert stage.client().echo()
    assert client.silent()


def test_a_oneway_call_is_done_and_not_answered(stage: Stage, client: Client) -> None:
    client.send("t.Echo", {"n": 1}, oneway=True)
    client.send("t.Error", {"n": 2}, oneway=True)
    client.send("t.Fd", {"n": 3}, oneway=True)
    client.send("t.Echo", {"n": 4})
    assert client.receive() == echoes(4)
    assert stage.dispatcher.asked == [1, 2, 3, 4]
    (pty,) = stage.dispatcher.pty
    assert "closed" in repr(pty)


def test_a_oneway_call_keeps_its_place(stage: Stage, client: Client) -> None:
    client.send_bytes(message("t.Hold", {"n": 1}, oneway=True) + message("t.Echo", {"n": 2}))
    assert client.silent()
    assert stage.dispatcher.asked == [1]
    stage.dispatcher.release()
    assert client.receive() == echoes(2)


def test_a_call_may_come_in_pieces(stage: Stage, client: Client) -> None:
    whole = message("t.Echo", {"n": 1})
    for byte in whole[:-1]:
        client.send_bytes(bytes([byte]))
        stage.turn(0)
    assert client.silent()
    client.send_bytes(whole[-1:])
    assert client.receive() == echoes(1)


def test_calls_and_replies_may_be_large(client: Client) -> None:
    client.send("t.Echo", {"x": "y" * BIG})
    assert client.receive() == [{"parameters": {"x": "y" * BIG}}]


def test_many_calls_at_once_do_not_starve_others(stage: Stage, client: Client) -> None:
    other = stage.client()
    assert other.echo()
    # Last, so that the kernel reports it first.
    assert client.echo()
    stage.dispatcher.calls.clear()
    client.send_bytes(b"".join(message("t.Echo", {"n": n}) for n in range(100)))
    other.send("t.Echo", {"n": "other"})
    assert client.receive(100) == echoes(*range(100))
    assert stage.dispatcher.asked.index("other") < 50


def test_what_is_no_call_ends_its_connection_after_the_replies_before_it(
    stage: Stage, client: Client, logged: list[Line]
) -> None:
    other = stage.client()
    client.send_bytes(message("t.Echo", {"n": 1}) + b"nonsense\0" + message("t.Echo", {"n": 2}))
    assert client.receive() == echoes(1)
    assert client.hung_up()
    assert stage.dispatcher.asked == [1]
    assert other.echo()
    (line,) = logged
    # A client could fill the journal with it otherwise.
    assert line.priority == journal.INFO
    assert line.fields == {"MACHINE1_PEER_UID": os.getuid(), "MACHINE1_PEER_PID": os.getpid()}


def test_a_message_without_end_is_cut_off(stage: Stage, client: Client) -> None:
    def push() -> bool:
        try:
            client.socket.send(b"x" * 65536)
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    stage.until(push)
    assert client.hung_up()


# --- clients that leave ---------------------------------------------------------------------------------------------


def test_a_client_that_says_no_more_still_gets_its_replies(stage: Stage, client: Client) -> None:
    client.send_bytes(message("t.Echo", {"n": 1}) + message("t.Hold", {"n": 2}) + message("t.Echo", {"n": 3}))
    client.socket.shutdown(socket.SHUT_WR)
    assert client.receive() == echoes(1)
    assert client.silent()
    stage.dispatcher.release()
    assert client.receive(2) == [{"parameters": {"released": True}}, *echoes(3)]
    assert client.hung_up()


@pytest.mark.parametrize("half", [b"", b'{"method":'])
def test_a_client_that_says_no_more_and_asked_nothing_is_let_go(client: Client, half: bytes) -> None:
    client.send_bytes(half)
    client.socket.shutdown(socket.SHUT_WR)
    assert client.hung_up()


def test_what_a_client_asked_before_it_left_is_still_done(stage: Stage, client: Client) -> None:
    calls = [message("t.Hold", {"n": 0}), *(message("t.Echo", {"n": n}, oneway=True) for n in range(1, 3000))]
    client.send_bytes(b"".join(calls))
    client.close()
    stage.turn()
    assert stage.dispatcher.asked == [0]
    stage.dispatcher.release()
    stage.until(lambda: stage.dispatcher.asked == list(range(3000)))


def test_a_reply_to_a_client_that_left_is_closed(stage: Stage, client: Client) -> None:
    client.send("t.Hold")
    stage.turn()
    client.close()
    stage.turn()
    pty = stage.dispatcher.open()
    stage.dispatcher.release(Reply({}, fds=(pty,)))
    stage.until(lambda: "closed" in repr(pty))
    assert stage.client().echo()


def test_a_client_that_leaves_in_the_middle_of_a_reply_is_no_trouble(stage: Stage, client: Client) -> None:
    client.send("t.BigFd")
    stage.turn()
    client.close()
    stage.turn()
    assert stage.client().echo()


def test_a_client_that_reads_no_more_is_still_heard(stage: Stage, client: Client) -> None:
    """Its replies cannot be sent, and no hang-up says so."""
    client.socket.shutdown(socket.SHUT_RD)
    client.send_bytes(b"".join(message("t.Fd", {"n": n}) for n in range(3)))
    stage.until(lambda: stage.dispatcher.asked == [0, 1, 2])
    client.close()
    stage.turn()
    assert all("closed" in repr(pty) for pty in stage.dispatcher.pty)
    assert stage.client().echo()


def test_waiting_for_a_call_costs_no_time_when_its_client_left(stage: Stage, client: Client) -> None:
    """Hang-up is reported without end to who still listens for it."""
    client.send("t.Hold")
    stage.turn()
    client.close()
    turns = len(poll_times(stage, 0.1))
    assert turns < 20


def poll_times(stage: Stage, seconds: float) -> list[float]:
    """When the loop woke up, in a time in which it has nothing to do."""
    times: list[float] = []
    patience = stage.loop._patience

    def counted() -> float | None:
        times.append(time.monotonic())
        return patience()

    stage.loop._patience = counted  # type: ignore[method-assign]
    stage.loop.call_later(seconds, stage.loop.stop)
    stage.loop.run()
    stage.loop._patience = patience  # type: ignore[method-assign]
    return times


@pytest.mark.parametrize("flooding", [False, True])
def test_waiting_for_a_call_costs_no_time_when_more_calls_come(stage: Stage, client: Client, flooding: bool) -> None:
    client.send("t.Hold")
    stage.turn()
    if flooding:
        client.send("t.Echo", {"n": 1})
    else:
        client.socket.shutdown(socket.SHUT_WR)
    assert len(poll_times(stage, 0.1)) < 20
    stage.dispatcher.release()
    assert client.receive() == [{"parameters": {"released": True}}]


def test_a_client_that_does_not_read_stops_nobody_but_itself(stage: Stage, client: Client) -> None:
    for n in range(3):
        client.send("t.Big", {"n": n})
    stage.turn()
    other = stage.client()
    assert other.echo()
    # It is not even asked for the second before the first is on its way.
    assert stage.dispatcher.asked == [0, 0]
    assert len(poll_times(stage, 0.1)) < 20
    assert [reply["parameters"]["n"] for reply in client.receive(3)] == [0, 1, 2]
    assert stage.dispatcher.asked == [0, 0, 1, 2]


# --- file descriptors -----------------------------------------------------------------------------------------------


def test_a_descriptor_comes_on_the_first_byte_of_its_reply(stage: Stage, client: Client) -> None:
    client.send("t.Fd", {"n": 1})
    assert client.receive() == echoes(1)
    assert client.received == [(b'{"parameters":{"n":1}}\0', 1)]
    (pty,) = stage.dispatcher.pty
    assert "closed" in repr(pty)


def test_a_descriptor_comes_once_with_a_reply_in_many_pieces(stage: Stage, client: Client) -> None:
    client.send("t.BigFd", {"n": 1})
    (reply,) = client.receive()
    assert reply["parameters"]["n"] == 1
    assert len(client.received) > 1
    assert [number for _, number in client.received] == [1] + [0] * (len(client.received) - 1)


def test_a_descriptor_waits_until_all_before_it_is_read(stage: Stage, client: Client) -> None:
    """One recvmsg(2) could return both replies otherwise, and to which of the two does the descriptor belong?"""
    client.send_bytes(message("t.Echo", {"n": 1}) + message("t.Fd", {"n": 2}) + message("t.Echo", {"n": 3}))
    stage.turn(0.1)
    assert stage.dispatcher.asked == [1, 2]
    assert client.receive(3) == echoes(1, 2, 3)
    first, second, *_ = client.received
    assert first == (b'{"parameters":{"n":1}}\0', 0)
    # What comes after does not matter: descriptors belong to the first byte.
    assert second[0].startswith(b'{"parameters":{"n":2}}\0')
    assert second[1] == 1


def test_waiting_for_a_client_to_read_costs_little_and_less_with_time(stage: Stage, client: Client) -> None:
    client.send_bytes(message("t.Echo", {"n": 1}) + message("t.Fd", {"n": 2}))
    stage.turn(0.05)
    assert len(poll_times(stage, 0.2)) < 20
    assert client.receive(2) == echoes(1, 2)


def test_a_descriptor_that_waits_for_a_client_that_leaves_is_closed(stage: Stage, client: Client) -> None:
    client.send_bytes(message("t.Echo", {"n": 1}) + message("t.Fd", {"n": 2}))
    stage.until(lambda: len(stage.dispatcher.pty) == 1)
    stage.turn()
    (pty,) = stage.dispatcher.pty
    assert "closed" not in repr(pty)
    client.close()
    stage.until(lambda: "closed" in repr(pty))


def test_descriptors_from_clients_are_dropped(stage: Stage, client: Client) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        socket.send_fds(client.socket, [message("t.Echo", {"n": 1})], [writer])
        os.close(writer)
        assert client.receive() == echoes(1)
        # Its other end is open nowhere any more, as soon as the thread that closes it has had a turn.
        assert select.select([pipe], [], [], 10)[0] == [pipe]
        assert pipe.read() == b""


# --- descriptors from clients, where the policy accepts them --------------------------------------------------------


class Sent:
    """A descriptor that a client sends and has no more itself. It is open as long as the server has it."""

    def __init__(self) -> None:
        reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pipe = os.fdopen(reader, "rb", buffering=0)
        self.inode = os.fstat(reader).st_ino

    def go(self, client: Client, data: bytes) -> Sent:
        socket.send_fds(client.socket, [data], [self._writer])
        os.close(self._writer)
        return self

    @property
    def open(self) -> bool:
        return self._pipe.read(100) is None

    def read(self) -> bytes | None:
        return self._pipe.read(100)

    def is_gone(self) -> bool:
        return not self.open

    def close(self) -> None:
        self._pipe.close()


Send = Callable[..., Sent]


@pytest.fixture
def send(stage: Stage) -> Iterator[Send]:
    """Sends bytes and a descriptor of a client's, where the server accepts it."""
    stage.server.accepts_fds = True
    everything: list[Sent] = []

    def send(client: Client, data: bytes) -> Sent:
        everything.append(Sent().go(client, data))
        return everything[-1]

    yield send
    for sent in everything:
        assert eventually(stage, sent.is_gone)
        sent.close()


def eventually(stage: Stage, condition: Callable[[], bool]) -> bool:
    """Also when the server has ended."""
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        if not stage.ended:
            stage.turn(0.002)
    return condition()


def test_a_descriptor_comes_with_its_call(stage: Stage, client: Client, send: Send) -> None:
    """And is the call's until there is a reply."""
    sent = send(client, message("t.Hold"))
    stage.until(lambda: bool(stage.dispatcher.held))
    (call,) = stage.dispatcher.calls
    (received,) = call.fds
    assert not os.get_inheritable(received.fileno())
    os.write(received.fileno(), b"through")
    assert sent.read() == b"through"
    stage.turn()
    assert sent.open
    stage.dispatcher.release()
    client.receive()
    assert eventually(stage, sent.is_gone)
    assert client.echo()
    assert stage.dispatcher.calls[-1].fds == ()


def test_each_call_gets_its_own(stage: Stage, client: Client, send: Send) -> None:
    """Though all are there before the first is read, and one read(2) returns a call and what comes with the next."""
    client.send("t.Echo", {"n": 0})
    send(client, message("t.Echo", {"n": 1}))
    client.send("t.Echo", {"n": 2})
    client.send_bytes(message("t.Echo", {"n": 3})[:10])
    client.send_bytes(message("t.Echo", {"n": 3})[10:])
    half = message("t.Echo", {"n": 4})
    send(client, half[:10])
    client.send_bytes(half[10:])
    send(client, message("t.Echo", {"n": 5}))
    assert client.receive(6) == echoes(*range(6))
    assert [len(call.fds) for call in stage.dispatcher.calls] == [0, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_each_call_gets_its_own_however_they_are_cut(stage: Stage, client: Client, send: Send, seed: int) -> None:
    """In one piece or in several, the descriptor with the first; read at once, or many together."""
    chance = random.Random(seed)  # noqa: S311
    expected: list[list[int]] = []
    for number in range(60):
        data = message("t.Echo", {"n": number, "x": "y" * chance.choice([0, 100, 5000])})
        cut = chance.choice([len(data), chance.randrange(1, len(data))])
        if chance.random() < 0.5:
            expected.append([send(client, data[:cut]).inode])
        else:
            client.send_bytes(data[:cut])
            expected.append([])
        if chance.random() < 0.3:
            stage.turn(0.001)
        if cut < len(data):
            client.send_bytes(data[cut:])
    client.receive(60)
    assert stage.dispatcher.asked == list(range(60))
    assert stage.dispatcher.files == expected


@pytest.mark.parametrize("method", ["t.Echo", "t.Error", "t.Bug", "t.Fd", "t.Shared", "t.Big"])
@pytest.mark.parametrize("oneway", [False, True])
def test_a_descriptor_is_closed_whatever_its_call_ends_in(
    stage: Stage, client: Client, send: Send, logged: list[Line], method: str, oneway: bool
) -> None:
    sent = send(client, message(method, {"n": 1}, oneway=oneway))
    assert eventually(stage, lambda: bool(stage.dispatcher.calls))
    assert eventually(stage, sent.is_gone)
    logged.clear()


def test_a_descriptor_is_closed_with_the_first_reply_of_many(stage: Stage, client: Client, send: Send) -> None:
    sent = send(client, message("t.Stream", {"last": 2, "held": True}, more=True))
    client.receive()
    assert eventually(stage, sent.is_gone)
    for _ in range(2):
        stage.until(lambda: stage.dispatcher.streams[0].waiting is not None)
        stage.dispatcher.streams[0].give()
        client.receive()


@pytest.mark.parametrize("leaves", [True, False])
def test_a_descriptor_is_closed_when_its_call_is_done_though_nobody_is_there(
    stage: Stage, client: Client, send: Send, leaves: bool
) -> None:
    """The client has left, or the service ends."""
    sent = send(client, message("t.Hold"))
    stage.until(lambda: bool(stage.dispatcher.held))
    if leaves:
        client.close()
    else:
        stage.server.stop()
    stage.turn()
    assert sent.open
    stage.dispatcher.release()
    assert eventually(stage, sent.is_gone)


def test_descriptors_of_calls_that_never_come_are_closed(stage: Stage, client: Client, send: Send) -> None:
    """Half a call, whole ones that wait behind another when the service ends, and what is no call."""
    whole, half, wrong = client, stage.client(), stage.client()
    behind = send(whole, message("t.Hold") + message("t.Echo"))
    part = send(half, message("t.Echo")[:10])
    nonsense = send(wrong, b"nonsense\0")
    stage.until(lambda: bool(stage.dispatcher.held))
    assert eventually(stage, nonsense.is_gone)
    assert wrong.hung_up()
    stage.turn()
    assert behind.open
    assert part.open
    half.close()
    assert eventually(stage, part.is_gone)
    stage.server.stop()
    stage.dispatcher.release()
    assert eventually(stage, behind.is_gone)
    assert stage.dispatcher.calls[0].fds == ()


@pytest.mark.parametrize("number", [2, 3, 253])
def test_a_call_with_more_descriptors_ends_its_connection(
    stage: Stage, client: Client, logged: list[Line], number: int
) -> None:
    stage.server.accepts_fds = True
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        socket.send_fds(client.socket, [message("t.Echo")], [writer] * number)
        os.close(writer)
        assert client.hung_up()
        assert pipe.read() == b""
    assert stage.dispatcher.calls == []
    assert [line.message.rpartition(": ")[2] for line in logged] == ["more file descriptors than a call takes"]


def test_a_descriptor_for_which_there_is_no_room_ends_its_connection(
    stage: Stage, client: Client, logged: list[Line]
) -> None:
    """A call without it would be another one."""
    stage.server.accepts_fds = True
    assert client.echo()
    socket.send_fds(client.socket, [message("t.Echo", {"n": 1})], [0])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        stage.until(lambda: not stage.server._connections)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert client.hung_up()
    assert len(stage.dispatcher.calls) == 1
    assert logged[-1].message.endswith("file descriptors that could not be received")


def test_whether_descriptors_are_accepted_may_change(stage: Stage, client: Client) -> None:
    """For connections that there are, too."""
    for accepts in (False, True, False):
        stage.server.accepts_fds = accepts
        for each in (client, stage.client()):
            socket.send_fds(each.socket, [message("t.Echo", {"n": 1})], [0])
            assert each.receive() == echoes(1)
            assert len(stage.dispatcher.calls[-1].fds) == accepts


def test_two_descriptors_of_a_client_are_open_at_most(stage: Stage, client: Client, send: Send) -> None:
    """However many it sends: what is not read stays in the kernel, where it counts as the client's."""
    assert client.echo()
    before = len(os.listdir("/proc/self/fd"))
    half = message("t.Hold")
    sent = [send(client, half[:10])]
    stage.turn()
    sent += [send(client, half[10:] + half[:10]) for _ in range(20)]
    stage.until(lambda: bool(stage.dispatcher.held))
    stage.turn()
    assert len(os.listdir("/proc/self/fd")) - before - len(sent) <= 2
    client.close()
    while stage.server._connections:
        stage.turn(0.002)
        while stage.dispatcher.held:
            stage.dispatcher.release()


def test_a_socket_with_itself_inside_is_closed_as_anything_else(stage: Stage, client: Client, send: Send) -> None:
    """Sockets that wait in one another are open nowhere: the kernel finds them (unix(7))."""
    here, there = socket.socketpair()
    with here, there:
        socket.send_fds(here, [b"x"], [here.fileno(), there.fileno()])
        socket.send_fds(there, [b"x"], [here.fileno(), there.fileno()])
        socket.send_fds(client.socket, [message("t.Echo", {"n": 1})], [here.fileno()])
    assert client.receive() == echoes(1)
    assert client.echo()


def test_what_takes_long_to_be_closed_holds_up_nobody(stage: Stage, client: Client, send: Send) -> None:
    there, slow = lingering()
    socket.send_fds(client.socket, [message("t.Echo", {"n": 1})], [slow.fileno()])
    slow.close()
    begin = time.monotonic()
    assert client.receive() == echoes(1)
    assert stage.client().echo()
    assert time.monotonic() - begin < LINGERING / 2
    there.close()


@pytest.mark.parametrize("accepts", [False, True])
@pytest.mark.parametrize("how", ["read", "out of band", "never read", "before it is refused"])
def test_no_client_says_how_long_this_takes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, accepts: bool, how: str
) -> None:
    """By what it sends, and has the last descriptor of when it is closed here."""
    stage.server.accepts_fds = accepts
    other = stage.client()
    assert other.echo()
    if how == "before it is refused":
        monkeypatch.setattr(stage.server, "_has_room_for", lambda _: False)
    client = stage.client()
    there, slow = lingering()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [slow.fileno()]))]
    match how:
        case "read":
            client.socket.sendmsg([message("t.Echo")], rights)
        case "out of band":
            client.socket.sendmsg([b"{"], rights, socket.MSG_OOB)
            client.send_bytes(b"\0")
        case "never read":
            client.send_bytes(message("t.Hold"))
            stage.until(lambda: bool(stage.dispatcher.held))
            client.socket.sendmsg([message("t.Echo")], rights)
            client.close()
            stage.turn()
            stage.dispatcher.release()
        case _:
            client.socket.sendmsg([message("t.Echo")], rights)
    slow.close()
    begin = time.monotonic()
    for _ in range(5):
        assert other.echo()
    assert time.monotonic() - begin < LINGERING / 2
    there.close()


@pytest.mark.parametrize("leaves", [False, True])
def test_a_user_whose_descriptors_cannot_be_closed_is_not_heard_until_they_are(
    stage: Stage, user: Client, send: Send, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    """Which costs little meanwhile, and no other user."""
    assert user.echo()
    room = False
    monkeypatch.setattr(stage.server.closer, "has_room_for", lambda uid: room or uid != USER)
    monkeypatch.setattr(server, "CLOSING_PAUSE_MAX", 0.02)
    socket.send_fds(user.socket, [message("t.Echo", {"n": 1})], [0])
    assert len(poll_times(stage, 0.3)) < 100
    assert user.silent()
    clients_of(monkeypatch, USER + 1)
    assert stage.client().echo()
    if leaves:
        user.close()
        stage.until(lambda: len(stage.server._connections) == 1)
        return
    room = True
    assert user.receive() == echoes(1)
    assert len(stage.dispatcher.calls[-1].fds) == 1
    assert user.echo()


def test_many_descriptors_in_a_hurry_all_come(stage: Stage, client: Client, send: Send) -> None:
    """Though they are sent faster than a thread closes them."""
    sent = [send(client, message("t.Echo", {"n": number})) for number in range(200)]
    client.receive(200)
    assert stage.dispatcher.files == [[each.inode] for each in sent]


# --- limits ---------------------------------------------------------------------------------------------------------


def test_a_user_gets_so_many_connections_and_no_more(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, logged: list[Line]
) -> None:
    stage.server.limits = Limits(connections_per_user=2)
    clients_of(monkeypatch, USER)
    first, second = stage.client(), stage.client()
    assert first.echo()
    assert second.echo()
    assert stage.client().hung_up()
    assert [(line.priority, line.fields) for line in logged] == [(journal.NOTICE, {"MACHINE1_PEER_UID": USER})]
    assert first.echo()
    second.close()
    stage.turn()
    assert stage.client().echo()
    assert stage.client().hung_up()


def test_one_user_takes_nothing_away_from_another(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.server.limits = Limits(connections_per_user=1)
    clients_of(monkeypatch, 1000, 1001, 1000, 1001)
    clients = [stage.client() for _ in range(4)]
    assert clients[0].echo()
    assert clients[1].echo()
    assert clients[2].hung_up()
    assert clients[3].hung_up()
    assert [peer.uid for peer in stage.dispatcher.peers] == [1000, 1001]


def test_root_may_have_more_connections_than_a_user(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, logged: list[Line]
) -> None:
    stage.server.limits = Limits(connections_per_user=1)
    clients_of(monkeypatch, 0)
    clients = [stage.client() for _ in range(5)]
    assert all(client.echo() for client in clients)
    assert logged == []


def test_users_together_leave_room_for_root(stage: Stage, monkeypatch: pytest.MonkeyPatch, logged: list[Line]) -> None:
    stage.server.limits = Limits(connections=4)
    clients_of(monkeypatch, 1000, 1001, 1002, 1003, 0, 1004, 0)
    clients = [stage.client() for _ in range(6)]
    assert all(client.echo() for client in clients[:3])
    assert clients[3].hung_up()
    assert [line.fields for line in logged] == [{"MACHINE1_PEER_UID": 1003}]
    assert clients[4].echo()
    # Now it is full, and the sixth waits: not even who it is was looked at.
    assert clients[5].silent()
    clients[4].close()
    assert clients[5].hung_up()
    assert clients[0].echo()
    assert stage.client().echo()
    assert [peer.uid for peer in stage.dispatcher.peers] == [1000, 1001, 1002, 0, 1000, 0]


def test_roots_connections_take_none_from_users(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.server.limits = Limits(connections=8)
    clients_of(monkeypatch, 0, 0, 0, 1000)
    clients = [stage.client() for _ in range(4)]
    assert all(client.echo() for client in clients)


@pytest.mark.parametrize(("connections", "of_users"), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 3), (8, 6)])
def test_users_together_get_three_quarters_and_one_at_least(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, connections: int, of_users: int
) -> None:
    stage.server.limits = Limits(connections=connections)
    clients_of(monkeypatch, *range(1000, 1000 + of_users + 1))
    clients = [stage.client() for _ in range(of_users + 1)]
    assert all(client.echo() for client in clients[:of_users])
    if of_users < connections:
        assert clients[of_users].hung_up()
    else:
        assert clients[of_users].silent()
        clients[0].close()
        assert clients[of_users].echo()


def test_a_higher_limit_opens_the_door_again(stage: Stage) -> None:
    """Nobody has to leave for that."""
    stage.server.limit(Limits(connections=1))
    first, second = stage.client(), stage.client()
    assert first.echo()
    assert second.silent()
    stage.server.limit(Limits(connections=2))
    assert second.echo()
    assert first.echo()


def test_the_limits_leave_room_for_root(stage: Stage) -> None:
    limits = Limits()
    assert limits.connections_per_user < limits.connections * 3 // 4 < limits.connections
    assert stage.server.limits == limits


def test_who_is_refused_again_and_again_does_not_fill_the_journal(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, logged: list[Line]
) -> None:
    stage.server.limits = Limits(connections_per_user=0)
    clients_of(monkeypatch, USER)
    for _ in range(30):
        assert stage.client().hung_up()
    assert len(logged) == 20


def test_who_comes_in_does_not_hold_up_who_is_in(stage: Stage, client: Client) -> None:
    """One is let in a turn, and who is in has its turns between."""
    assert client.echo()
    clients = [stage.client() for _ in range(10)]
    client.send("t.Echo", {"n": 1})
    counts: list[int] = []
    answer = stage.dispatcher.answer

    def counted(call: Call, peer: Peer) -> Coroutine[Future[Any], None, Reply]:
        counts.append(len(stage.server._connections))
        return answer(call, peer)

    stage.dispatcher.answer = counted  # type: ignore[method-assign]
    # What the first call took is no matter here: on a busy machine that can be as much as letting all of them in.
    for user in stage.server._users.values():
        user.share.used = stage.server._door.used
    assert client.receive() == echoes(1)
    assert counts[0] <= 3
    stage.until(lambda: len(stage.server._connections) == 11)
    assert all(other.echo() for other in clients)


def of_size(size: int) -> bytes:
    """A call of so many bytes without its NUL."""
    empty = len(message("t.Echo", {"x": ""})) - 1
    return message("t.Echo", {"x": "y" * (size - empty)})


MESSAGE_OF_USERS_MAX = Limits().message_bytes


@pytest.mark.parametrize("limit", [MESSAGE_OF_USERS_MAX, 4096, 100_000])
def test_a_message_of_a_user_may_be_so_long(stage: Stage, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    assert MESSAGE_OF_USERS_MAX == 64 * 1024
    stage.server.limits = Limits(message_bytes=limit)
    clients_of(monkeypatch, USER)
    user = stage.client()
    user.send_bytes(of_size(limit))
    ((_, reply),) = user.receive()[0].items()
    assert limit - 100 < len(reply["x"]) < limit
    assert user.echo()


@pytest.mark.parametrize("limit", [MESSAGE_OF_USERS_MAX, 4096, 100_000])
@pytest.mark.parametrize("whole", [True, False])
def test_a_message_of_a_user_that_is_longer_ends_its_connection(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, whole: bool, limit: int
) -> None:
    stage.server.limits = Limits(message_bytes=limit)
    clients_of(monkeypatch, USER)
    user = stage.client()
    long = of_size(limit + 1)
    try:
        user.send_bytes(long if whole else long[:-1])
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert user.hung_up()
    assert stage.dispatcher.calls == []
    assert stage.client().echo()


def test_a_message_of_root_may_be_longer(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.server.limits = Limits(message_bytes=4096)
    clients_of(monkeypatch, 0)
    client = stage.client()
    client.send_bytes(of_size(ROOT.message_bytes))
    (reply,) = client.receive()
    assert len(reply["parameters"]["x"]) > ROOT.message_bytes - 100


# --- what waits of all users together -------------------------------------------------------------------------------


def test_what_a_user_sent_and_did_not_end_waits(stage: Stage, user: Client) -> None:
    half = message("t.Echo", {"n": 1})
    user.send_bytes(half[:-5])
    stage.turn()
    assert stage.server._buffered == len(half) - 5
    other = stage.client()
    other.send_bytes(half[:10])
    stage.turn()
    assert stage.server._buffered == len(half) - 5 + 10
    user.send_bytes(half[-5:])
    assert user.receive() == echoes(1)
    assert stage.server._buffered == 10
    other.close()
    stage.turn()
    assert stage.server._buffered == 0


def test_what_a_user_sent_after_a_call_under_way_waits(stage: Stage, user: Client) -> None:
    later = message("t.Echo", {"n": 2})
    user.send_bytes(message("t.Hold") + later)
    stage.turn()
    # With what the call under way takes itself.
    assert stage.server._buffered == len(later) + server.memory_of(message("t.Hold")[:-1])
    stage.dispatcher.release()
    user.receive(2)
    assert stage.server._buffered == 0


def test_what_a_user_did_not_read_waits(stage: Stage, user: Client) -> None:
    user.send("t.Big")
    stage.turn()
    waiting = stage.server._buffered
    # The rest is in the buffers of the socket.
    assert BIG // 4 < waiting < BIG
    user.socket.recv(BIG // 2)
    stage.turn()
    assert stage.server._buffered < waiting


def test_what_a_user_has_read_does_not_wait_any_more(stage: Stage, user: Client) -> None:
    """Though it says nothing more, and stays."""
    user.send("t.Big")
    stage.turn()
    assert stage.server._buffered
    user.socket.setblocking(False)
    received = 0

    def all_read() -> bool:
        nonlocal received
        try:
            received += len(user.socket.recv(RECEIVE_SIZE))
        except BlockingIOError:
            pass
        return received > BIG

    stage.until(all_read)
    stage.turn()
    assert stage.server._buffered == 0


def test_what_waited_for_a_descriptors_sake_does_not_wait_any_more(stage: Stage, user: Client) -> None:
    user.send_bytes(message("t.Echo", {"n": 1}) + message("t.Fd", {"n": 2}))
    stage.until(lambda: len(stage.dispatcher.pty) == 1)
    stage.turn()
    assert stage.server._buffered == len(b'{"parameters":{"n":2}}\0')
    assert user.receive(2) == echoes(1, 2)
    stage.turn()
    assert stage.server._buffered == 0


def test_what_root_leaves_waiting_is_not_counted(
    stage: Stage, client: Client, logged: list[Line]
) -> None:
    stage.server.limits = Limits(buffered_bytes=10)
    client.send("t.Big", {"n": 1})
    other = stage.client()
    other.send_bytes(b"x" * 1000)
    stage.turn()
    assert stage.server._buffered == 0
    assert client.receive()[0]["parameters"]["n"] == 1
    assert not other.left
    assert logged == []


def test_who_lets_too_much_wait_to_be_read_is_let_go(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, logged: list[Line]
) -> None:
    """The one by whom it becomes too much; the others get what is theirs."""
    most = 7 * BIG // 2
    stage.server.limits = Limits(buffered_bytes=most)
    clients_of(monkeypatch, *range(1000, 1006))
    clients = [stage.client() for _ in range(6)]
    for n, client in enumerate(clients[:5]):
        client.send("t.Big", {"n": n})
        stage.turn()
    # Three or four fit, depending on what the buffers of a socket hold.
    left = {connection.peer.uid for connection in stage.server._connections}
    gone = set(range(1000, 1005)) - left
    assert {1004} <= gone <= {1003, 1004}
    assert stage.server._buffered <= most
    assert [line.priority for line in logged] == [journal.INFO] * len(gone)
    assert {line.fields["MACHINE1_PEER_UID"] for line in logged} == gone
    for n, client in enumerate(clients[:3]):
        assert client.receive()[0]["parameters"]["n"] == n
        assert client.echo()
    assert clients[5].echo()


def test_a_user_that_lets_too_much_wait_takes_nothing_from_others(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, logged: list[Line]
) -> None:
    """A quarter of what may wait of all is one user's."""
    stage.server.limits = Limits(buffered_bytes=4000)
    clients_of(monkeypatch, USER, USER, 1001)
    first, second, other = (stage.client() for _ in range(3))
    first.send_bytes(b" " * 600)
    second.send_bytes(b" " * 400)
    stage.turn()
    assert stage.server._buffered == 1000
    assert logged == []
    second.send_bytes(b" ")
    assert second.hung_up()
    other.send_bytes(b" " * 1000)
    stage.turn()
    assert stage.server._buffered == 1600
    assert len(stage.server._connections) == 2


def test_who_sends_too_much_that_does_not_end_is_let_go(
    stage: Stage, user: Client, logged: list[Line]
) -> None:
    stage.server.limits = Limits(buffered_bytes=8000)
    first = message("t.Echo", {"x": "y" * 800})
    user.send_bytes(first[:700])
    stage.turn()
    other = stage.client()
    other.send_bytes(b" " * 1300)
    stage.turn()
    # To the byte.
    assert stage.server._buffered == 2000
    other.send_bytes(b" ")
    assert other.hung_up()
    assert stage.server._buffered == 700
    assert [line.fields["MACHINE1_PEER_UID"] for line in logged] == [USER]
    user.send_bytes(first[700:])
    assert user.receive() == [{"parameters": {"x": "y" * 800}}]


def test_a_call_takes_more_than_its_bytes() -> None:
    """So that those under way are counted: a text of four bytes a character, and once more for polkit."""
    assert server.memory_of(b"x" * 100) == 200
    assert server.memory_of(b"x" * 98 + "ä".encode()) == 800
    assert server.memory_of(b"x" * 94 + b"\\u00e4") == 800


def test_who_comes_to_what_others_filled_is_served(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, logged: list[Line]
) -> None:
    """And who filled it goes, as soon as it sends more."""
    stage.server.limits = Limits(buffered_bytes=4000)
    clients_of(monkeypatch, *range(1000, 1005), 2000)
    *filling, other = (stage.client() for _ in range(6))
    for client in filling[:4]:
        client.send_bytes(b" " * 990)
    stage.turn()
    assert other.echo()
    filling[4].send_bytes(b" " * 100)
    stage.turn()
    assert stage.server._buffered == 4060
    filling[3].send_bytes(b" ")
    assert filling[3].hung_up()
    assert other.echo()


def test_who_leaves_and_comes_again_has_used_as_much_time(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    clients_of(monkeypatch, USER)
    client = stage.client()
    assert client.echo()
    (user,) = stage.server._users.values()
    user.share.used += 5.0
    used = user.share.used
    client.close()
    stage.until(lambda: not stage.server._users)
    assert stage.client().echo()
    (again,) = stage.server._users.values()
    assert again is not user
    assert again.share.used >= used


def leaves_in_a_call(stage: Stage, client: Client) -> None:
    client.send_bytes(message("t.Hold") + message("t.Echo"))
    stage.turn()
    client.close()
    stage.turn()
    stage.dispatcher.release()


def leaves_in_a_big_reply(stage: Stage, client: Client) -> None:
    client.send_bytes(message("t.BigFd") + message("t.Big"))
    stage.turn()
    client.close()


def reads_no_more(stage: Stage, client: Client) -> None:
    client.send("t.Hold")
    stage.turn()
    client.socket.shutdown(socket.SHUT_RD)
    client.send_bytes(message("t.Big") + b"half")
    stage.turn()
    stage.dispatcher.release()
    stage.turn()
    client.close()


def says_no_more(stage: Stage, client: Client) -> None:
    client.send_bytes(message("t.Echo") + b"half")
    client.socket.shutdown(socket.SHUT_WR)
    client.receive()


def speaks_nonsense(stage: Stage, client: Client) -> None:
    client.send_bytes(b"nonsense\0" + message("t.Echo") + b"half")


def lets_a_reply_lie(stage: Stage, client: Client) -> None:
    client.send_bytes(message("t.Big") + b"half")


def lets_a_descriptor_lie(stage: Stage, client: Client) -> None:
    client.send_bytes(message("t.Echo") + message("t.BigFd") + b"half")


def sees_the_end(stage: Stage, client: Client) -> None:
    client.send_bytes(message("t.Hold") + message("t.Echo"))
    stage.turn()
    stage.server.stop()
    stage.turn()
    stage.dispatcher.release(Reply({"big": "x" * BIG}))
    stage.until(lambda: stage.ended)


@pytest.mark.parametrize(
    "act",
    [
        leaves_in_a_call,
        leaves_in_a_big_reply,
        reads_no_more,
        says_no_more,
        speaks_nonsense,
        lets_a_reply_lie,
        lets_a_descriptor_lie,
        sees_the_end,
    ],
)
def test_nothing_waits_of_who_is_gone(
    stage: Stage, user: Client, monkeypatch: pytest.MonkeyPatch, act: Callable[[Stage, Client], None]
) -> None:
    """Or users as a whole would have less and less."""
    stage.server.limits = Limits(reply_seconds=0.1, request_seconds=0.1)  # type: ignore[arg-type]  # to be quick
    monkeypatch.setattr(server, "FINISHING_MAX", 0.1)
    act(stage, user)
    stage.until(lambda: not stage.server._connections)
    assert stage.server._buffered == 0


def test_nothing_waits_of_who_met_a_bug(stage: Stage, user: Client, logged: list[Line]) -> None:
    user.send_bytes(message("t.Bug") + message("t.Echo"))
    stage.until(lambda: bool(logged))
    stage.turn()
    assert not stage.server._connections
    assert stage.server._buffered == 0
    logged.clear()


# --- who the client is ----------------------------------------------------------------------------------------------


def peers(stage: Stage) -> list[Peer]:
    return [connection.peer for connection in stage.server._connections]


def the_peer(stage: Stage) -> Peer:
    stage.until(lambda: len(peers(stage)) == 1)
    (peer,) = peers(stage)
    return peer


def pid_of(pidfd: FileDescriptor | None) -> int:
    """The process that a pidfd refers to, proc_pid_fdinfo(5)."""
    assert pidfd is not None
    text = Path(f"/proc/self/fdinfo/{pidfd.fileno()}").read_text()
    return int(dict(line.split(":", 1) for line in text.splitlines())["Pid"])


@contextmanager
def foreign(stage: Stage) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A connected client in a process of its own, which goes on with a line on stdin; and its PID.

    It leaves its connection to this process, so that it ends and the connection does not.
    """
    ours, theirs = socket.socketpair()
    program = (
        "import os, socket, sys\n"
        "client = socket.socket(socket.AF_UNIX)\n"
        "client.connect(sys.argv[1])\n"
        "channel = socket.socket(fileno=int(sys.argv[2]))\n"
        "socket.send_fds(channel, [b'x'], [client.fileno()])\n"
        "sys.stdin.readline()\n"
    )
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-IS", "-c", program, stage.path, str(theirs.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            text=True,
        )
        try:
            ours.settimeout(10)
            _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
            try:
                yield process, fd
            finally:
                os.close(fd)
        finally:
            process.kill()
            process.communicate()


def test_a_pidfd_is_of_the_process_that_connected(stage: Stage) -> None:
    with foreign(stage) as (process, _):
        peer = the_peer(stage)
        assert peer.pid == pid_of(peer.pidfd) == process.pid != os.getpid()
        assert peer.pidfd is not None
        assert not os.get_inheritable(peer.pidfd.fileno())
        assert peer.lives()
        process.communicate("go on\n")
        assert not peer.lives()
        # Somebody else has the connection still; whoever that is, it is not who connected.
        assert peers(stage) == [peer]
        assert not peer.left.done
        assert pid_of(peer.pidfd) == -1
    stage.until(lambda: not peers(stage))


def test_who_connected_and_ended_before_it_was_accepted_does_not_live(stage: Stage) -> None:
    """Its PID may be another's by now, so that no pidfd may be made of it."""
    with foreign(stage) as (process, _):
        process.communicate("go on\n")
        peer = the_peer(stage)
        assert peer.pid == process.pid
        assert not peer.lives()
    stage.until(lambda: not peers(stage))


@pytest.mark.parametrize("how", ["by the client", "by the server", "by a bug"])
def test_a_pidfd_is_closed_with_its_connection(stage: Stage, client: Client, logged: list[Line], how: str) -> None:
    peer = the_peer(stage)
    assert peer.pidfd is not None
    assert "closed" not in repr(peer.pidfd)
    if how == "by the client":
        client.close()
    else:
        client.send_bytes(b"nonsense\0" if how == "by the server" else message("t.Bug"))
    stage.until(lambda: not peers(stage))
    assert "closed" in repr(peer.pidfd)
    assert peer.left.done
    logged.clear()


def test_a_pidfd_is_open_as_long_as_a_call_is_under_way(stage: Stage, client: Client) -> None:
    """Polkit may be about to get it."""
    client.send("t.Hold")
    stage.until(lambda: len(stage.dispatcher.held) == 1)
    peer = the_peer(stage)
    client.close()
    stage.until(lambda: peer.left.done)
    stage.turn()
    assert peer.lives()
    stage.dispatcher.release()
    stage.until(lambda: not peers(stage))
    assert "closed" in repr(peer.pidfd)


def test_a_pidfd_of_who_is_refused_is_closed(stage: Stage, monkeypatch: pytest.MonkeyPatch, logged: list[Line]) -> None:
    stage.server.limits = Limits(connections_per_user=0)
    made: list[Peer] = []
    real = server.peer_of

    def of_a_user(client: socket.socket, loop: Loop, name: str = "") -> Peer:
        peer = real(client, loop, name)
        peer.uid = USER
        made.append(peer)
        return peer

    monkeypatch.setattr(server, "peer_of", of_a_user)
    assert stage.client().hung_up()
    (peer,) = made
    assert peer.pidfd is not None
    assert "closed" in repr(peer.pidfd)
    assert len(logged) == 1


def test_left_is_resolved_when_a_client_hangs_up_in_a_call(stage: Stage, client: Client) -> None:
    client.send("t.Hold")
    stage.until(lambda: len(stage.dispatcher.held) == 1)
    peer = the_peer(stage)
    told: list[bool] = []
    peer.left.when_done(lambda: told.append(True))
    stage.turn()
    assert told == []
    client.close()
    stage.until(lambda: bool(told))
    # What it asked for is still under way.
    assert peers(stage) == [peer]
    assert len(stage.dispatcher.held) == 1


def test_left_is_resolved_though_more_calls_wait(stage: Stage, client: Client) -> None:
    client.send_bytes(message("t.Hold") + b"".join(message("t.Echo", {"n": n}) for n in range(100)))
    stage.until(lambda: len(stage.dispatcher.held) == 1)
    peer = the_peer(stage)
    client.close()
    stage.until(lambda: peer.left.done)
    assert len(stage.dispatcher.held) == 1


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RD])
def test_left_is_not_resolved_on_a_half_close(stage: Stage, client: Client, how: int) -> None:
    client.send("t.Hold")
    stage.until(lambda: len(stage.dispatcher.held) == 1)
    peer = the_peer(stage)
    client.socket.shutdown(how)
    stage.turn(0.1)
    assert not peer.left.done
    if how == socket.SHUT_WR:
        stage.dispatcher.release()
        assert client.receive() == [{"parameters": {"released": True}}]
        assert client.hung_up()
        assert peer.left.done
    else:
        client.socket.shutdown(socket.SHUT_WR)
        stage.until(lambda: peer.left.done)


def test_left_is_each_clients_own(stage: Stage, client: Client) -> None:
    other = stage.client()
    for each in (client, other):
        each.send("t.Hold")
    stage.until(lambda: len(stage.dispatcher.held) == 2)
    first, second = stage.dispatcher.peers
    assert first.left is not second.left
    client.close()
    stage.until(lambda: first.left.done or second.left.done)
    stage.turn()
    assert [first.left.done, second.left.done] == [True, False]


def test_a_peer_knows_the_name_of_the_socket_it_came_in_on(stage: Stage, client: Client, tmp_path: Path) -> None:
    assert the_peer(stage).socket == stage.path
    other = activation.listen(str(tmp_path / "other"))
    with other.socket, socket.socket(socket.AF_UNIX) as late:
        stage.server._pause_accepting()
        stage.server._listeners = [stage.listener, activation.Listener(other.socket, "web")]
        stage.server._resume_accepting()
        late.connect(str(tmp_path / "other"))
        stage.until(lambda: len(peers(stage)) == 2)
        assert sorted(peer.socket for peer in peers(stage)) == [stage.path, "web"]
        assert client.echo()
        stage.server._pause_accepting()
        stage.server._listeners = [stage.listener]
        stage.server._resume_accepting()


class Kernel(socket.socket):
    """A socket whose kernel has no pidfd of the peer, for the reason that it gives."""

    number = errno.ENOPROTOOPT

    def getsockopt(self, *arguments: Any) -> Any:  # noqa: ANN401
        if arguments[1] == server.SO_PEERPIDFD:
            raise OSError(self.number, os.strerror(self.number))
        return super().getsockopt(*arguments)


def peer_with(number: int) -> Peer:
    loop = Loop()
    try:
        ours, theirs = socket.socketpair()
        with ours, theirs, Kernel(fileno=ours.detach()) as old:
            old.number = number
            return server.peer_of(old, loop, "web")
    finally:
        loop.close()


def test_a_kernel_before_6_5_gives_a_pidfd_by_pid() -> None:
    peer = peer_with(errno.ENOPROTOOPT)
    try:
        assert (peer.pid, pid_of(peer.pidfd), peer.socket) == (os.getpid(), os.getpid(), "web")
        assert peer.lives()
    finally:
        peer.close()


@pytest.mark.parametrize("number", [errno.ESRCH, errno.ENODATA, errno.EINVAL])
def test_a_peer_that_the_kernel_has_no_pidfd_of_does_not_live(number: int) -> None:
    """And none is made by its PID, which may be another's."""
    peer = peer_with(number)
    assert peer.pidfd is None
    assert not peer.lives()
    peer.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_peer_without_room_for_its_pidfd_is_none(number: int) -> None:
    """Or it would be one that nothing can be authorized for, though it lives."""
    with pytest.raises(OSError, match=os.strerror(number)):
        peer_with(number)


def test_on_an_old_kernel_a_peer_that_ended_does_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(pid: int, flags: int = 0) -> int:
        raise ProcessLookupError(pid)

    monkeypatch.setattr(os, "pidfd_open", gone)
    peer = peer_with(errno.ENOPROTOOPT)
    assert peer.pidfd is None
    assert not peer.lives()


# --- clients that wait to be accepted -------------------------------------------------------------------------------


def test_beyond_the_limit_of_all_connections_clients_wait(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, logged: list[Line]
) -> None:
    stage.server.limits = Limits(connections=2)
    first, second = stage.client(), stage.client()
    assert first.echo()
    assert second.echo()
    third = stage.client()
    third.send("t.Echo", {"n": 3})
    assert third.silent()
    assert first.echo()
    assert len(poll_times(stage, 0.1)) < 20
    second.close()
    assert third.receive() == echoes(3)
    assert logged == []


def test_out_of_descriptors_clients_wait_and_nothing_spins(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, logged: list[Line]
) -> None:
    monkeypatch.setattr(server, "ACCEPT_PAUSE", 0.1)
    first, second = stage.client(), stage.client()
    assert first.echo()
    assert second.echo()
    third = stage.client()
    third.send("t.Echo", {"n": 3})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        assert third.silent()
        assert first.echo()
        assert len(poll_times(stage, 0.25)) < 20
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert third.receive() == echoes(3)
    assert [line.priority for line in logged] == [journal.WARNING], "said once"


# --- the end --------------------------------------------------------------------------------------------------------


def test_stop_finishes_the_call_under_way_and_closes_the_idle(stage: Stage, client: Client) -> None:
    idle = stage.client()
    assert idle.echo()
    client.send_bytes(message("t.Hold", {"n": 1}) + message("t.Echo", {"n": 2}))
    stage.until(lambda: len(stage.dispatcher.held) == 1)
    stage.server.stop()
    assert idle.hung_up()
    stage.turn()
    assert not stage.ended
    stage.dispatcher.release()
    stage.until(lambda: stage.ended)
    assert client.receive() == [{"parameters": {"released": True}}]
    assert client.hung_up()
    # The second call was not begun.
    assert stage.dispatcher.asked == [0, 1]


def test_stop_answers_the_first_call_of_who_has_just_come(stage: Stage) -> None:
    """Accepted, but not read from: the call is there, or comes a little later; a second one is not begun."""
    here, later = stage.client(), stage.client()
    stage.turn()
    here.send_bytes(message("t.Echo", {"n": 1}) + message("t.Echo", {"n": 2}))
    stage.server.stop()
    stage.turn()
    assert here.receive() == echoes(1)
    assert here.hung_up()
    assert not stage.ended
    later.send("t.Echo", {"n": 3})
    stage.until(lambda: stage.ended)
    assert later.receive() == echoes(3)
    assert later.hung_up()
    assert stage.dispatcher.asked == [1, 3]


def test_stop_ends_the_stream_of_a_first_call_as_that_of_any_other(stage: Stage, client: Client) -> None:
    """Its dispatcher knows by `left` that more was to come, which a stream that is closed does not say."""
    left: list[bool] = []
    follow = stage.dispatcher.follow

    async def ask(call: Call, peer: Peer, stream: Stream) -> Reply:
        left.append(peer.left.done)
        await follow(call, peer, stream)
        return Reply(error="t.Stopping")

    stage.dispatcher.follow = ask  # type: ignore[method-assign]
    stage.turn()
    stage.server.stop()
    client.send("t.Stream", more=True)
    stage.until(lambda: stage.ended)
    assert client.receive(2)[1]["error"] == "t.Stopping"
    assert left == [True]


def test_stop_waits_for_a_first_call_only_so_long(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.server.FIRST_CALL_MAX", 0.05)
    silent, holding = stage.client(), stage.client()
    stage.turn()
    stage.server.stop()
    holding.send("t.Hold")
    stage.until(lambda: silent.hung_up())
    stage.dispatcher.release()
    stage.until(lambda: stage.ended)
    assert holding.receive() == [{"parameters": {"released": True}}]


def test_stop_sends_a_reply_to_its_end(stage: Stage, client: Client) -> None:
    client.send("t.BigFd", {"n": 1})
    stage.turn()
    stage.server.stop()
    stage.turn()
    assert not stage.ended
    (reply,) = client.receive()
    assert reply["parameters"]["n"] == 1
    stage.until(lambda: stage.ended)


def test_stop_without_clients_ends_at_once_and_is_told_once(stage: Stage) -> None:
    stage.loop.call_soon(stage.server.stop)
    stage.loop.call_soon(stage.server.stop)
    stage.until(lambda: stage.ended)
    assert stage.announced == ["stopping"]


def test_after_stop_nobody_is_accepted(stage: Stage, client: Client) -> None:
    client.send("t.Hold")
    stage.until(lambda: len(stage.dispatcher.held) == 1)
    stage.server.stop()
    late = stage.client()
    late.send("t.Echo")
    assert late.silent()
    assert not stage.ended
    stage.dispatcher.release()
    stage.until(lambda: stage.ended)
    assert late.silent()


def test_stop_is_not_undone_by_a_pause_that_ends(stage: Stage, client: Client) -> None:
    """Or accept(2) would go on after it."""
    client.send("t.Hold")
    stage.until(lambda: len(stage.dispatcher.held) == 1)
    stage.server._pause_accepting()
    stage.server.stop()
    stage.server._resume_accepting()
    late = stage.client()
    late.send("t.Echo", {"n": 9})
    assert late.silent()
    assert 9 not in stage.dispatcher.asked


def test_a_bug_of_the_dispatcher_ends_the_connection_it_is_in(tmp_path: Path, logged: list[Line]) -> None:
    stage = Stage(tmp_path)
    client, other = stage.client(), stage.client()
    assert other.echo()
    client.send("t.Bug")
    assert client.hung_up()
    assert other.echo()
    (line,) = logged
    assert line.priority == journal.ERROR
    assert "ZeroDivisionError" in line.message
    client.close()
    other.close()
    stage.close()


# --- idleness -------------------------------------------------------------------------------------------------------


def test_a_server_that_nobody_comes_to_ends(tmp_path: Path) -> None:
    stage = Stage(tmp_path, idle_timeout=0.05)
    started = time.monotonic()
    stage.until(lambda: stage.ended)
    assert 0.05 <= time.monotonic() - started < 5
    assert stage.announced == ["stopping"]
    stage.close()


def test_a_client_that_is_there_is_no_idleness_even_if_it_says_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path, idle_timeout=0.05)
    clients = [stage.client(), stage.client()]
    stage.turn(0.12)
    assert not stage.ended
    clients[0].close()
    stage.turn(0.12)
    assert not stage.ended
    assert clients[1].echo()
    clients[1].close()
    left = time.monotonic()
    stage.until(lambda: stage.ended)
    # The time counts from when the last one left.
    assert time.monotonic() - left >= 0.04
    stage.close()


def test_a_client_that_comes_and_goes_begins_the_time_anew(tmp_path: Path) -> None:
    stage = Stage(tmp_path, idle_timeout=0.1)
    for _ in range(3):
        stage.turn(0.06)
        assert not stage.ended
        client = stage.client()
        assert client.echo()
        client.close()
    stage.until(lambda: stage.ended)
    stage.close()


def test_a_server_that_could_not_end_goes_on(tmp_path: Path) -> None:
    """A file system that does not answer keeps a process for ever, and from being followed by another."""
    stage = Stage(tmp_path, idle_timeout=0.05)
    there, slow = lingering()
    stage.server.closer.close(USER, [slow])
    stage.turn(0.3)
    assert not stage.ended
    assert stage.client().echo()
    there.close()
    stage.close()


def test_without_a_time_the_server_waits_for_ever(stage: Stage) -> None:
    assert stage.loop._timers == []
    assert stage.client().echo()
    stage.turn(0.05)
    assert not stage.ended


def test_a_client_that_reads_no_more_costs_no_time(stage: Stage, client: Client) -> None:
    """Its reply cannot be sent, and it has not hung up: nothing will ever happen on that connection."""
    client.socket.shutdown(socket.SHUT_RD)
    client.send("t.Echo", {"n": 1})
    stage.turn()
    assert len(poll_times(stage, 0.1)) < 20


def test_a_client_may_let_a_reply_lie_for_so_long(stage: Stage, client: Client) -> None:
    stage.server.limits = Limits(reply_seconds=0.05)  # type: ignore[arg-type]  # to be quick
    client.send("t.Big")
    stage.until(lambda: not stage.server._connections)


def test_a_client_that_never_reads_does_not_keep_the_server_from_ending(
    stage: Stage, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "FINISHING_MAX", 0.05)
    client.send("t.Big")
    stage.turn()
    stage.server.stop()
    stage.until(lambda: stage.ended)


def test_a_bug_of_the_dispatcher_keeps_nobody_from_ending(stage: Stage, client: Client, logged: list[Line]) -> None:
    """Not even if it raises what it promised not to raise."""
    client.send("t.Bug")
    assert client.hung_up()
    stage.loop.call_soon(stage.server.stop)
    stage.until(lambda: stage.ended)
    (line,) = logged
    assert line.priority == journal.ERROR
    assert line.message.startswith("Bug, closing a connection: ")
    assert "ZeroDivisionError" in line.message
    # The stage asserts that there was no bug.
    logged.clear()


def test_a_pause_that_ends_does_not_lift_the_limit(
    stage: Stage, client: Client, logged: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of descriptors, then at the limit: when the pause is over, the limit still holds."""
    stage.server.limits = Limits(connections=2)
    monkeypatch.setattr(server, "ACCEPT_PAUSE", 0.05)
    assert client.echo()
    waiting = [stage.client() for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        stage.turn(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    client.close()
    stage.turn(0.3)
    assert len(stage.server._connections) == 2
    for other in waiting:
        other.close()


def test_nothing_spins_when_a_reply_is_read_at_last_and_the_next_call_takes_long(stage: Stage, client: Client) -> None:
    """While the reply waited, the kernel was asked when more could be written. Now it could be, without end."""
    client.send_bytes(message("t.Big", {"n": 1}) + message("t.Hold"))
    stage.turn()
    client.receive()
    stage.until(lambda: len(stage.dispatcher.held) == 1)
    assert len(poll_times(stage, 0.1)) < 20
    stage.dispatcher.release()
    assert client.receive() == [{"parameters": {"released": True}}]
    assert client.echo()


@pytest.mark.parametrize("what", ["its connection", "its user"])
def test_a_client_that_there_is_no_memory_for_leaves_nothing_behind(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, logged: list[Line], what: str
) -> None:
    """epoll_ctl(2) may fail as well as accept(2): ENOMEM, and ENOSPC for fs.epoll.max_user_watches."""
    monkeypatch.setattr(server, "ACCEPT_PAUSE", 0.02)
    made: list[Peer] = []
    real_peer, real_watch = server.peer_of, loop_module.Share.watch

    def peer_of(client: socket.socket, loop: Loop, name: str = "") -> Peer:
        made.append(real_peer(client, loop, name))
        return made[-1]

    def no_room(share: Share, fd: int, events: int, handler: Callable[[int], None]) -> None:
        if share is stage.server._door:
            real_watch(share, fd, events, handler)
        else:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_user(loop: Loop, uid: int) -> server.User:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(server, "peer_of", peer_of)
    idle = stage.server._idle_timer
    with monkeypatch.context() as patch:
        if what == "its user":
            patch.setattr(server, "User", no_user)
        else:
            patch.setattr(loop_module.Share, "watch", no_room)
        assert stage.client().hung_up()
        stage.turn()
        assert stage.server._users == {}
        assert not stage.server._connections
        assert stage.server._idle_timer is idle
        assert "closed" in repr(made[0].pidfd)
    # Who is in stays in, and keeps its part.
    client = stage.client()
    assert client.echo()
    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Share, "watch", no_room)
        assert stage.client().hung_up()
    assert client.echo()
    assert stage.server._connections_of(os.getuid()) == 1
    assert {line.priority for line in logged} == {journal.WARNING}


# --- users take turns -----------------------------------------------------------------------------------------------


def flood(stage: Stage, monkeypatch: pytest.MonkeyPatch, connections: int, calls: int) -> list[Client]:
    """One user's connections, each with so many calls at once. Who comes next is another user."""
    clients_of(monkeypatch, *[USER] * connections, *range(USER + 1, USER + 10))
    clients = [stage.client() for _ in range(connections)]
    stage.until(lambda: len(stage.server._connections) == connections)
    for number, client in enumerate(clients):
        client.send_bytes(b"".join(message("t.Echo", {"n": f"{number}/{n}"}) for n in range(calls)))
    return clients


def test_a_quiet_user_does_not_wait_for_one_that_floods(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connections with however many calls it has: they all are one user's."""
    clients, asked = flood(stage, monkeypatch, 100, 50), stage.dispatcher.calls
    quiet = stage.client()
    for n in range(20):
        stage.until(lambda: len(asked) > 200 * n)  # noqa: B023
        before = len(asked)
        quiet.send("t.Echo", {"n": "quiet"})
        stage.until(lambda: "quiet" in stage.dispatcher.asked[before:])  # noqa: B023
        # The loop may have been about to begin one, and each call of the one is a turn like one of the other.
        assert stage.dispatcher.asked[before:].index("quiet") <= 2
        assert quiet.receive() == [{"parameters": {"n": "quiet"}}]
    assert len(asked) < 5000, "the flood was over before the end of the test"
    for number, client in enumerate(clients):
        assert client.receive(50) == [{"parameters": {"n": f"{number}/{n}"}} for n in range(50)]


def test_a_newcomer_does_not_wait_for_one_that_floods(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    flood(stage, monkeypatch, 50, 50)
    stage.until(lambda: len(stage.dispatcher.calls) > 100)
    before = len(stage.dispatcher.calls)
    newcomer = stage.client()
    newcomer.send("t.Echo", {"n": "new"})
    stage.until(lambda: "new" in stage.dispatcher.asked)
    assert stage.dispatcher.asked.index("new") - before <= 4
    assert newcomer.receive() == [{"parameters": {"n": "new"}}]
    stage.until(lambda: len(stage.dispatcher.calls) == 50 * 50 + 1)


def test_connections_of_one_user_take_turns(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of each, in turns, whoever has how many."""
    clients = flood(stage, monkeypatch, 3, 20)
    for client in clients:
        client.receive(20)
    order = [str(n).partition("/")[0] for n in stage.dispatcher.asked]
    for number in "012":
        # Between two of one, there is no third of another.
        places = [index for index, each in enumerate(order) if each == number]
        assert all(later - earlier <= 6 for earlier, later in itertools.pairwise(places))


def test_a_turn_is_one_call(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    turn = Share.turn

    def counted(share: Share) -> None:
        before = len(stage.dispatcher.calls)
        turn(share)
        begun.append(len(stage.dispatcher.calls) - before)

    monkeypatch.setattr(Share, "turn", counted)
    clients = flood(stage, monkeypatch, 3, 20)
    # Neither do replies that wait make it more, nor one that is read at last, nor calls without a reply.
    clients[0].send_bytes(b"".join(message(f"t.{what}") for what in ("Big", "Echo", "Fd", "Echo", "BigFd", "Echo")))
    clients[1].send_bytes(b"".join(message("t.Echo", oneway=True) for _ in range(20)) + message("t.Echo"))
    clients[0].receive(26)
    clients[1].receive(21)
    clients[2].receive(20)
    clients[2].send_bytes(message("t.Hold") + b"".join(message("t.Echo") for _ in range(20)))
    stage.until(lambda: len(stage.dispatcher.held) == 1)
    stage.dispatcher.release()
    clients[2].receive(21)
    assert sum(begun) == 20 + 6 + 20 + 21 + 20 + 21
    assert max(begun) == 1


def test_what_is_done_when_a_call_is_answered_takes_time_of_its_user(stage: Stage, user: Client) -> None:
    user.send("t.Hold")
    stage.until(lambda: len(stage.dispatcher.held) == 1)
    share = stage.server._users[USER].share
    before = share.used
    stage.dispatcher.release()
    assert len(share._ready) == 1
    assert user.receive() == [{"parameters": {"released": True}}]
    assert share.used > before


def test_a_user_has_its_share_as_long_as_it_has_a_connection(stage: Stage, user: Client) -> None:
    assert user.echo()
    share = stage.server._users[USER].share
    second = stage.client()
    assert second.echo()
    assert stage.server._users[USER].share is share
    user.close()
    stage.until(lambda: len(stage.server._connections) == 1)
    assert second.echo()
    assert not share._epoll.closed
    second.close()
    stage.until(lambda: not stage.server._users)
    assert share._epoll.closed
    again = stage.client()
    assert again.echo()
    assert stage.server._users[USER].share is not share
    assert stage.server._users[USER].connections == 1


def test_a_user_that_left_in_a_call_has_its_share_until_it_is_over(stage: Stage, user: Client) -> None:
    user.send("t.Hold")
    stage.until(lambda: len(stage.dispatcher.held) == 1)
    share = stage.server._users[USER].share
    user.close()
    stage.turn()
    assert not share._epoll.closed
    # Who comes meanwhile is the same user.
    again = stage.client()
    assert again.echo()
    assert stage.server._users[USER].share is share
    stage.dispatcher.release()
    stage.until(lambda: len(stage.server._connections) == 1)
    assert again.echo()


def test_what_comes_while_whole_calls_wait_stays_in_the_kernel(
    stage: Stage, user: Client, logged: list[Line]
) -> None:
    """So a client may send ahead as much as it likes: it is never too much that waits here."""
    call = message("t.Echo", {"n": 1})
    most = 0

    def watched() -> bool:
        nonlocal most
        most = max(most, stage.server._buffered)
        user.look()
        return len(user._replies) == 8_000

    stage.server.limits = Limits(buffered_bytes=4 * (65536 + 3 * len(call)))
    data = memoryview(call * 8_000)
    while data:
        try:
            data = data[user.socket.send(data) :]
        except BlockingIOError:
            stage.turn(0)
            user.look()
            most = max(most, stage.server._buffered)
    stage.until(watched, 30)
    assert 0 < most < 65536 + 3 * len(call)
    assert stage.server._buffered == 0
    assert logged == []


def test_nothing_is_read_while_a_call_is_under_way(stage: Stage, user: Client) -> None:
    user.send("t.Hold")
    stage.turn()
    sent = 0
    try:
        while True:
            sent += user.socket.send(b" " * 65536)
    except BlockingIOError:
        pass
    stage.turn()
    assert stage.server._buffered == server.memory_of(message("t.Hold")[:-1]), "the call itself"
    with pytest.raises(BlockingIOError):
        user.socket.send(b" ")


# --- how long a client may take -------------------------------------------------------------------------------------


class Clock:
    """The loop's, which tests set forward."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self._stage = stage
        self._ahead = 0.0
        monkeypatch.setattr(
            loop_module, "time", types.SimpleNamespace(monotonic=lambda: time.monotonic() + self._ahead)
        )

    def advance(self, seconds: float) -> None:
        """With what was to be done before it done before, and what is due by then done, too."""
        self._stage.turn(0.01)
        self._ahead += seconds
        self._stage.turn(0.01)


@pytest.fixture
def clock(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(stage, monkeypatch)


HALF = message("t.Echo", {"n": 7})[:20]
REST = message("t.Echo", {"n": 7})[20:]
MOMENT = 0.5  # for what the tests themselves take


def test_a_call_may_take_so_long_to_come(stage: Stage, user: Client, clock: Clock) -> None:
    """And half of the next as long again."""
    for _ in range(3):
        user.send_bytes(HALF)
        clock.advance(30 - MOMENT)
        user.send_bytes(REST + HALF)
        assert user.receive() == echoes(7)
        clock.advance(30 - MOMENT)
        user.send_bytes(REST)
        assert user.receive() == echoes(7)


@pytest.mark.parametrize("half", [HALF, HALF[:1], HALF + b" " * 60_000], ids=["half", "a byte", "much"])
def test_a_call_that_takes_longer_to_come_ends_its_connection(
    stage: Stage, user: Client, clock: Clock, logged: list[Line], half: bytes
) -> None:
    other = stage.client()
    user.send_bytes(half)
    clock.advance(30 - MOMENT)
    assert user.silent()
    clock.advance(MOMENT)
    user.look()
    assert user.left
    assert [(line.priority, line.message.partition(": ")[2]) for line in logged] == [
        (journal.INFO, "the client did not send all of a call in time")
    ]
    assert other.echo()
    assert stage.server._buffered == 0


def test_who_says_nothing_may_take_for_ever(stage: Stage, user: Client, clock: Clock) -> None:
    clock.advance(10_000)
    assert user.echo()
    clock.advance(10_000)
    assert user.echo()
    assert stage.loop._patience() is None


def test_a_byte_now_and_then_gives_no_more_time(stage: Stage, user: Client, clock: Clock) -> None:
    """The time is that of the whole call, from its first byte."""
    for byte in HALF[:10]:
        user.send_bytes(bytes([byte]))
        clock.advance(3 - MOMENT / 10)
    assert user.silent()
    clock.advance(MOMENT)
    user.look()
    assert user.left


def test_root_has_no_more_time_than_others(stage: Stage, client: Client, clock: Clock) -> None:
    client.send_bytes(HALF)
    clock.advance(30)
    client.look()
    assert client.left


def test_the_time_of_a_call_under_way_does_not_count(stage: Stage, user: Client, clock: Clock) -> None:
    """Nobody reads then, so that who sends ahead is not to blame."""
    user.send_bytes(message("t.Hold") + HALF)
    stage.until(lambda: len(stage.dispatcher.held) == 1)
    clock.advance(1000)
    stage.dispatcher.release()
    assert user.receive() == [{"parameters": {"released": True}}]
    clock.advance(30 - MOMENT)
    user.send_bytes(REST)
    assert user.receive() == echoes(7)


def test_half_a_call_after_one_under_way_has_its_time_from_then_on(stage: Stage, user: Client, clock: Clock) -> None:
    user.send_bytes(message("t.Hold") + HALF)
    stage.until(lambda: len(stage.dispatcher.held) == 1)
    clock.advance(1000)
    stage.dispatcher.release()
    assert user.receive() == [{"parameters": {"released": True}}]
    clock.advance(30)
    user.look()
    assert user.left


def test_the_time_of_a_reply_that_is_not_read_is_not_that_of_the_next_call(
    stage: Stage, user: Client, clock: Clock
) -> None:
    user.send_bytes(message("t.Big", {"n": 1}) + HALF)
    clock.advance(60 - MOMENT)
    assert user.receive()[0]["parameters"]["n"] == 1
    clock.advance(30 - MOMENT)
    assert user.silent()
    clock.advance(MOMENT)
    user.look()
    assert user.left


@pytest.mark.parametrize("uid", [USER, 0])
@pytest.mark.parametrize("method", ["t.Big", "t.BigFd"])
def test_a_reply_may_lie_for_so_long(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, clock: Clock, method: str, uid: int
) -> None:
    clients_of(monkeypatch, uid)
    client = stage.client()
    for n in range(2):
        client.send(method, {"n": n})
        clock.advance(60 - MOMENT)
        assert client.receive()[0]["parameters"]["n"] == n


@pytest.mark.parametrize("uid", [USER, 0])
@pytest.mark.parametrize("calls", [["Big"], ["BigFd"], ["Echo", "Fd"]], ids=["big", "big FD", "FD"])
def test_a_reply_that_lies_for_longer_ends_its_connection(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, clock: Clock, logged: list[Line], calls: list[str], uid: int
) -> None:
    clients_of(monkeypatch, uid)
    client, other = stage.client(), stage.client()
    client.send_bytes(b"".join(message(f"t.{what}") for what in calls))
    stage.until(lambda: len(stage.dispatcher.calls) == len(calls))
    clock.advance(60 - MOMENT)
    assert len(stage.server._connections) == 2
    # Reading a little gives no more time.
    client.socket.recv(1)
    clock.advance(MOMENT)
    assert len(stage.server._connections) == 1
    assert [(line.priority, line.message.partition(": ")[2]) for line in logged] == [
        (journal.INFO, "the client did not read its reply in time")
    ]
    assert all("closed" in repr(pty) for pty in stage.dispatcher.pty)
    assert other.echo()
    assert stage.server._buffered == 0


@pytest.mark.parametrize(
    ("uid", "limits", "bounds"),
    [
        (USER, Limits(), Bounds(65536, 32, 1024)),
        (USER, Limits(message_bytes=4096, depth=8, items=64), Bounds(4096, 8, 64)),
        (USER, Limits(message_bytes=1 << 24, depth=256, items=1_000_000), Bounds(1 << 24, 256, 1_000_000)),
        (0, Limits(), ROOT),
        (0, Limits(message_bytes=4096, depth=8, items=64), ROOT),
        (0, Limits(message_bytes=1 << 24), Bounds(1 << 24, ROOT.depth, ROOT.items)),
        (0, Limits(depth=256), Bounds(ROOT.message_bytes, 256, ROOT.items)),
        (0, Limits(items=1_000_000), Bounds(ROOT.message_bytes, ROOT.depth, 1_000_000)),
    ],
)
def test_a_call_of_a_user_is_held_to_the_limits_and_one_of_root_to_no_less_than_it_can_need(
    uid: int, limits: Limits, bounds: Bounds
) -> None:
    assert server.bounds_of(uid, limits) == bounds


@pytest.mark.parametrize(("uid", "answered"), [(USER, False), (0, True)])
@pytest.mark.parametrize("what", ["depth", "items"])
def test_the_bounds_of_a_call_are_those_of_its_user(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, logged: list[Line], what: str, uid: int, answered: bool
) -> None:
    stage.server.limits = Limits(depth=8, items=64)
    clients_of(monkeypatch, uid)
    client = stage.client()
    deep: list[Any] = []
    for _ in range(6):
        deep = [deep]
    for above, parameters in enumerate(
        [{"x": deep[0]}, {"x": deep}] if what == "depth" else [{"x": [1] * 61}, {"x": [1] * 62}]
    ):
        client.send("t.Echo", parameters)
        if answered or not above:
            assert client.receive() == [{"parameters": parameters}]
        else:
            assert client.hung_up()
    assert len(logged) == (not answered)
    assert stage.client().echo()


# --- several replies to one call ------------------------------------------------------------------------------------


def streamed(*numbers: int, last: bool = False) -> list[Any]:
    """Replies of a stream; the last of them its last one."""
    replies: list[Any] = [{"parameters": {"n": n}, "continues": True} for n in numbers]
    if last:
        del replies[-1]["continues"]
    return replies


def test_all_replies_but_the_last_say_that_another_comes(stage: Stage, client: Client) -> None:
    client.send_bytes(message("t.Stream", {"last": 4}, more=True) + message("t.Echo", {"n": 9}))
    assert client.receive(6) == streamed(0, 1, 2, 3, 4, last=True) + echoes(9)
    (stream,) = stage.dispatcher.streams
    assert (stream.asked, stream.closed) == (4, True)
    client.send("t.Stream", {"last": 1}, more=True)
    assert client.receive(2) == streamed(0, 1, last=True)


def test_a_reply_that_follows_goes_when_it_is_there(stage: Stage, client: Client) -> None:
    client.send("t.Stream", {"held": True}, more=True)
    assert client.receive() == streamed(0)
    (stream,) = stage.dispatcher.streams
    for n in range(1, 4):
        client.send("t.Echo", {"n": n})
        assert client.silent()
        stream.give()
        assert client.receive() == streamed(n)
    assert stage.client().echo()
    assert len(poll_times(stage, 0.1)) < 20


def test_a_reply_is_made_when_the_one_before_was_sent(stage: Stage, user: Client) -> None:
    """Who does not read has one reply wait, however many there are."""
    user.send("t.Stream", {"size": BIG}, more=True)
    stage.turn(0.1)
    (stream,) = stage.dispatcher.streams
    assert stream.asked == 0
    for n in range(3):
        assert BIG // 4 < stage.server._buffered < BIG + 1000
        (reply,) = user.receive()
        assert reply["parameters"]["n"] == n
        stage.turn()
        assert stream.asked == n + 1
    assert stage.client().echo()


def test_a_call_takes_its_bytes_until_its_last_reply(stage: Stage, user: Client) -> None:
    call = message("t.Stream", {"held": True, "last": 2}, more=True)
    user.send_bytes(call)
    user.receive()
    assert stage.server._buffered == server.memory_of(call[:-1])
    stage.dispatcher.streams[0].give()
    user.receive()
    assert stage.server._buffered == server.memory_of(call[:-1])
    stage.turn()
    stage.dispatcher.streams[0].give()
    user.receive()
    assert stage.server._buffered == 0


def reads(client: Client) -> bool:
    client.look()
    return True


def test_a_stream_without_end_takes_turns(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other users, and with other connections of its own; each reply is one."""
    clients_of(monkeypatch, USER, USER, USER + 1)
    greedy, sibling, other = stage.client(), stage.client(), stage.client()
    greedy.send("t.Stream", {}, more=True)
    greedy.receive(10)
    (stream,) = stage.dispatcher.streams
    for client in (sibling, other):
        waited = []
        for n in range(20):
            before = len(stage.dispatcher.calls)
            client.send("t.Echo", {"n": n})
            stage.until(lambda: reads(greedy) and n in stage.dispatcher.asked[before:])  # noqa: B023
            waited.append(stage.dispatcher.asked[before:].index(n))
            assert client.receive() == echoes(n)
        # As in test_a_quiet_user_does_not_wait_for_one_that_floods; but when this machine pauses in a turn of the quiet
        # one, that is taken for its own time, and the stream has as much.
        assert sorted(waited)[10] <= 2
    greedy.close()
    stage.until(lambda: stream.closed)
    asked = stream.asked
    stage.turn()
    assert stream.asked == asked


@pytest.mark.parametrize("parameters", [{"held": True}, {"size": BIG}, {}], ids=["waits", "lies", "flows"])
def test_a_stream_ends_when_its_client_leaves(stage: Stage, user: Client, parameters: dict[str, Any]) -> None:
    """And what the client sent before it left is still done."""
    user.send_bytes(message("t.Stream", parameters, more=True) + message("t.Echo", {"n": 5}, oneway=True))
    stage.until(lambda: bool(stage.dispatcher.streams))
    stage.turn()
    user.close()
    (stream,) = stage.dispatcher.streams
    stage.until(lambda: stream.closed)
    stage.until(lambda: not stage.server._connections)
    assert stage.dispatcher.asked[-1] == 5
    assert stage.server._buffered == 0


def test_a_stream_goes_on_for_a_client_that_says_no_more(stage: Stage, client: Client) -> None:
    client.send("t.Stream", {"held": True, "last": 1}, more=True)
    client.socket.shutdown(socket.SHUT_WR)
    assert client.receive() == streamed(0)
    assert len(poll_times(stage, 0.1)) < 20
    stage.dispatcher.streams[0].give()
    assert client.receive() == streamed(1, last=True)
    assert client.hung_up()


@pytest.mark.parametrize("oneway", [False, True])
def test_a_stream_that_comes_too_late_is_closed(stage: Stage, client: Client, oneway: bool) -> None:
    """Its client left before the first reply, or never wanted one."""
    client.send("t.Hold", oneway=oneway)
    stage.turn()
    if not oneway:
        client.close()
        stage.turn()
    stream = FakeStream(stage.loop)
    stage.dispatcher.release(stream.reply(0))
    stage.until(lambda: stream.closed)
    assert client.echo() if oneway else stage.client().echo()
    assert stream.asked == 0


def test_stop_ends_a_stream(stage: Stage, client: Client) -> None:
    """With the reply that it had been asked for; the dispatcher makes that an error."""
    client.send("t.Stream", {"held": True, "last": 1}, more=True)
    assert client.receive() == streamed(0)
    stage.turn()
    stage.server.stop()
    stage.until(lambda: stage.ended)
    assert client.receive() == streamed(1, last=True)
    assert client.hung_up()


def test_stop_sends_what_a_stream_has_begun(stage: Stage, client: Client) -> None:
    client.send("t.Stream", {"size": BIG, "last": 1}, more=True)
    stage.turn()
    stage.server.stop()
    assert stage.dispatcher.streams[0].closed
    stage.turn()
    assert not stage.ended
    assert [reply["parameters"]["n"] for reply in client.receive(2)] == [0, 1]
    stage.until(lambda: stage.ended)


def test_a_reply_that_follows_may_be_left_lying_as_long_as_any(stage: Stage, user: Client, clock: Clock) -> None:
    """And one may be waited for for ever."""
    user.send("t.Stream", {"held": True, "size": BIG}, more=True)
    user.receive()
    (stream,) = stage.dispatcher.streams
    clock.advance(10_000)
    stream.give()
    clock.advance(60 - MOMENT)
    assert not stream.closed
    user.receive()
    stage.turn()
    stream.give()
    clock.advance(60 - MOMENT)
    assert not stream.closed
    clock.advance(MOMENT)
    assert stream.closed
    assert not stage.server._connections


def test_a_descriptor_of_a_stream_is_not_mistaken_for_one_of_the_reply_before(
    stage: Stage, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.send("t.Stream", {"held": True}, more=True)
    stage.turn()
    (stream,) = stage.dispatcher.streams
    reply = Reply({"n": 1}, fds=(stage.dispatcher.open(),))
    monkeypatch.setattr(stream, "reply", lambda _: reply)
    stream.give()
    stage.turn()
    # The client has not read the first one yet.
    assert client.receive(2) == [*streamed(0), {"parameters": {"n": 1}}]
    assert [number for _, number in client.received] == [0, 1]


@pytest.mark.parametrize("where", ["next", "close"])
def test_a_bug_in_a_stream_ends_no_more_than_its_connection(
    stage: Stage, user: Client, logged: list[Line], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def wrong(_stream: FakeStream) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(FakeStream, where, wrong)
    user.send("t.Stream", {"last": 1}, more=True)
    if where == "next":
        assert user.receive() == streamed(0)
        assert user.hung_up()
        assert stage.dispatcher.streams[0].closed
    else:
        assert user.receive(2) == streamed(0, 1, last=True)
        assert user.echo()
    assert [line.message for line in logged if "Bug" in line.message] != []
    logged.clear()
    assert stage.client().echo()


def test_a_stream_that_comes_when_the_service_ends_is_closed(stage: Stage, client: Client) -> None:
    """Its call was under way, and is answered to its end."""
    client.send("t.Hold", more=True)
    stage.turn()
    stage.server.stop()
    stream = FakeStream(stage.loop, held=True, last=1)
    stage.dispatcher.release(stream.reply(0))
    stage.until(lambda: stage.ended)
    assert stream.closed
    assert client.receive(2) == streamed(0, 1, last=True)
