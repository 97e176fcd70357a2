# SPDX-License-Identifier: LGPL-2.1-or-later
"""File descriptors travel with the bytes they belong to, and none is lost or left open."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from jeepney.fds import FileDescriptor

from bridge import fds

from .conftest import LINGERING, lingering, open_fds


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    yield here, there
    here.close()
    there.close()


def null() -> FileDescriptor:
    return FileDescriptor(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def test_bytes_come_with_their_descriptors(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        sent = FileDescriptor(writer)
        assert fds.send(here, b"hello", [sent]) == 5
        # It was lent for sending; whoever sent it closes it.
        assert os.fstat(sent.fileno())
        sent.close()
        data, (received,) = fds.receive(there)
        assert data == b"hello"
        os.write(received.fileno(), b"through")
        received.close()
        assert pipe.read() == b"through"


def test_order_is_kept(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    sent = [null(), FileDescriptor(os.open("/", os.O_PATH | os.O_CLOEXEC))]
    fds.send(here, b"x", sent)
    _, received = fds.receive(there)
    assert [os.fstat(fd.fileno()).st_ino for fd in received] == [os.fstat(fd.fileno()).st_ino for fd in sent]
    fds.close([*sent, *received])


def test_received_descriptors_are_not_inherited(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    sent = null()
    fds.send(here, b"x", [sent])
    _, (received,) = fds.receive(there)
    assert not os.get_inheritable(received.fileno())
    fds.close([sent, received])


def test_descriptors_ride_on_the_first_byte(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    sent = null()
    fds.send(here, b"12", [sent])
    sent.close()
    data, ancillary, _, _ = there.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    assert data == b"1"
    fds.close(FileDescriptor.from_ancdata(ancillary))
    assert ancillary


def test_nothing_yet_and_nothing_ever_again_are_told_apart(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    with pytest.raises(BlockingIOError):
        fds.receive(there)
    here.close()
    assert fds.receive(there) == (b"", [])


def test_no_more_is_sent_than_fits(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    data = bytes(8 * 1024 * 1024)
    sent = fds.send(here, memoryview(data))
    assert 0 < sent < len(data)
    with pytest.raises(BlockingIOError):
        fds.send(here, data)
    assert fds.receive(there) == (bytes(fds.RECEIVE_SIZE), [])


def test_lost_descriptors_are_an_error_and_the_others_are_closed(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """The kernel drops what the process may not open, and says so in a flag that is easily missed."""
    here, there = pair
    sent = [null(), null(), null()]
    fds.send(here, b"x", sent)
    fds.close(sent)
    before = open_fds()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = null()
    resource.setrlimit(resource.RLIMIT_NOFILE, (free.fileno() + 1, hard))
    free.close()
    try:
        with pytest.raises(fds.FdsTruncated):
            fds.receive(there)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_fds().keys() == before.keys()


def test_as_many_are_received_as_one_message_can_have(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    sent = null()
    for number in (0, 1, 253):
        fds.send(here, b"x", [sent] * number)
        data, received, lost = fds.receive_unclosed(there)
        assert (data, len(received), lost) == (b"x", number, False)
        assert not any(os.get_inheritable(fd.fileno()) for fd in received)
        fds.close(received)
    with pytest.raises(OSError, match="Invalid argument"):
        fds.send(here, b"x", [sent] * 254)
    sent.close()


@pytest.mark.parametrize("with_descriptor", [False, True])
def test_a_peer_that_left_is_an_error_and_no_signal(
    pair: tuple[socket.socket, socket.socket], with_descriptor: bool
) -> None:
    """SIGPIPE ends a process that does not ignore it, and what a library does about it is its own affair."""
    here, there = pair
    there.close()
    came: list[int] = []
    previous = signal.signal(signal.SIGPIPE, lambda number, _: came.append(number))
    sent = [null()] if with_descriptor else []
    try:
        with pytest.raises(BrokenPipeError):
            fds.send(here, b"x", sent)
    finally:
        signal.signal(signal.SIGPIPE, previous)
        fds.close(sent)
    assert came == []


def test_what_the_peer_has_not_read_shows(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    assert not fds.unread_by_peer(here)
    here.send(b"12")
    assert fds.unread_by_peer(here)
    # The other direction does not count.
    assert not fds.unread_by_peer(there)
    there.recv(1)
    assert fds.unread_by_peer(here)
    there.recv(1)
    assert not fds.unread_by_peer(here)


# --- what clients sent ----------------------------------------------------------------------------------------------

def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


def test_what_takes_long_to_be_closed_keeps_nobody_but_its_user() -> None:
    closer = fds.Closer()
    there, slow = lingering()
    begin = time.monotonic()
    closer.close(1000, [slow])
    behind, others = null(), null()
    number = behind.fileno()
    closer.close(1000, [behind])
    closer.close(1001, [others])
    assert eventually(lambda: list(closer._unclosed) == [1000])
    assert time.monotonic() - begin < LINGERING
    assert list(closer._unclosed[1000])[1:] == [number]
    assert not closer.idle
    assert eventually(lambda: closer.idle)
    assert time.monotonic() - begin >= LINGERING * 0.9
    there.close()


def test_a_user_of_whom_many_wait_has_no_room() -> None:
    closer = fds.Closer()
    there, slow = lingering()
    closer.close(1000, [slow])
    for _ in range(fds.UNCLOSED_MAX - 1):
        assert closer.has_room_for(1000)
        closer.close(1000, [null()])
    assert not closer.has_room_for(1000)
    assert closer.has_room_for(1001)
    there.close()  # and so the connection is gone
    assert eventually(lambda: closer.idle)
    assert closer.has_room_for(1000)


def test_connections_of_a_user_without_room_are_closed_at_once_whatever_was_sent() -> None:
    """Or each that it makes and leaves would be one more open file of the service, which only has so many."""
    closer = fds.Closer()
    there, slow = lingering()
    closer.close(1000, [slow, *(null() for _ in range(fds.UNCLOSED_MAX - 1))])
    before = open_fds()
    begin = time.monotonic()
    for _ in range(5):
        peer, sent = lingering()
        here, client = socket.socketpair()
        socket.send_fds(client, [b"x"], [sent.fileno()])
        sent.close()
        client.close()
        closer.hang_up(1000, here)
        peer.close()
    assert time.monotonic() - begin < LINGERING / 2
    assert not closer.has_room_for(1000)
    assert open_fds().items() <= before.items()
    there.close()
    assert eventually(lambda: closer.idle)


def test_without_a_thread_descriptors_wait_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    closer = fds.Closer()

    def none_left(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("_thread.start_new_thread", none_left)
        closer.close(1000, [null()])
    assert not closer.idle
    closer.close(1001, [])
    assert not closer.idle
    closer.close(1001, [null()])
    assert eventually(lambda: closer.idle)


def test_a_thread_that_is_done_goes_on_with_those_of_a_user_who_got_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no room is not read from, and so has nothing more closed that would have a thread started."""
    closer = fds.Closer()
    there, slow = lingering()
    closer.close(1000, [slow])

    def none_left(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("_thread.start_new_thread", none_left)
        closer.close(1001, [null() for _ in range(fds.UNCLOSED_MAX)])
        closer.close(1002, [null()])
    assert not closer.has_room_for(1001)
    there.close()
    assert eventually(lambda: closer.idle)


def test_a_descriptor_that_cannot_be_closed_well_keeps_none_from_being_closed() -> None:
    """Such as one whose file system has no room left for what was written."""
    closer = fds.Closer()
    gone = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.close(gone)
    closer.close(1000, [FileDescriptor(gone), null()])
    assert eventually(lambda: closer.idle)
