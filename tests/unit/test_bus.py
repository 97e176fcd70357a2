# SPDX-License-Identifier: LGPL-2.1-or-later
"""Calls over a bus of the tests' own that does what no real one does. With a real one: tests/integration."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageType,
    new_error,
    new_method_call,
    new_method_return,
    new_signal,
)
from jeepney.bus_messages import message_bus
from jeepney.fds import FileDescriptor
from jeepney.low_level import Parser, Struct

from bridge import bus as module
from bridge.bus import Bus, DBusError, Repeated, Signal
from bridge.errors import Timeout, TooManyOperations, Unavailable
from bridge.loop import Future, Loop
from bridge.machined import READS, SAID_INSIDE_MAX, SLOW, Machined, to_varlink_error

from .conftest import open_fds

NAME = "org.example.Service"
ADDRESS = DBusAddress("/x", NAME, "org.example.Interface")
INCONSISTENT = "org.freedesktop.DBus.Error.InconsistentMessage"
LIMITS_EXCEEDED = "org.freedesktop.DBus.Error.LimitsExceeded"


def with_indices(data: bytes, signature: str) -> bytes:
    """A message with numbers in its body, as one that says that they are indices of descriptors."""

    def field(text: str) -> bytes:
        return b"\x08\x01g\0" + bytes([len(text)]) + text.encode() + b"\0"

    return data.replace(field(signature.replace("h", "u")), field(signature))


class Link:
    """One connection as the bus sees it."""

    def __init__(self, connection: socket.socket, refuses: bool, greets: bool) -> None:
        self.socket = connection
        self.socket.setblocking(False)
        self.refuses = refuses
        self.greets = greets
        self.hello: Message | None = None
        self.calls: list[Message] = []
        self.descriptors: list[FileDescriptor] = []
        self.lost = False
        self.deaf = False
        self._lines: bytes | None = b""
        self._parser = Parser()
        self._serial = 0

    def look(self) -> None:
        """Read what is there, as far as it is understood at once."""
        while not self.lost and not self.deaf:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(16 * 4), socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data, ancillary = b"", []
            self.lost = not data
            received = FileDescriptor.from_ancdata(ancillary)
            self.descriptors += received
            if self._lines is not None:
                data = self._authenticate(self._lines + data)
            self._parser.add_data(data, received)
            while (message := self._parser.get_next_message()) is not None:
                if message.header.fields[HeaderFields.member] == "Hello":
                    self.hello = message
                    if self.greets:
                        self.greet()
                else:
                    self.calls.append(message)

    def _authenticate(self, data: bytes) -> bytes:
        """Answer lines until BEGIN. Returns what comes after it."""
        *lines, rest = data.split(b"\r\n")
        for number, line in enumerate(lines):
            if line.startswith(b"\0AUTH EXTERNAL "):
                self.send(b"REJECTED EXTERNAL\r\n" if self.refuses else b"OK 0123456789abcdef0123456789abcdef\r\n")
            elif line == b"NEGOTIATE_UNIX_FD":
                self.send(b"AGREE_UNIX_FD\r\n")
            else:
                assert line == b"BEGIN"
                self._lines = None
                return b"\r\n".join([*lines[number + 1 :], rest])
        self._lines = rest
        return b""

    def send(self, data: bytes, *descriptors: int) -> None:
        """In one go: what a test says is small, or read."""
        assert socket.send_fds(self.socket, [data], descriptors) == len(data)

    def encode(self, message: Message) -> bytes:
        self._serial += 1
        data: bytes = message.serialise(self._serial)
        return data

    def greet(self) -> None:
        assert self.hello is not None
        self.answer(self.hello, "s", ":1.1")

    def answer(self, call: Message, signature: str = "", *body: object) -> None:
        self.send(self.encode(new_method_return(call, signature, body)))

    def fail(self, call: Message, name: str, text: str | None = None, sender: str = NAME) -> None:
        error = new_error(call, name, None if text is None else "s", () if text is None else (text,))
        error.header.fields[HeaderFields.sender] = sender
        self.send(self.encode(error))

    def answer_with_descriptors(self, call: Message, signature: str, body: tuple[object, ...], number: int) -> None:
        """The body has indices instead of descriptors, of which there are so many."""
        message = new_method_return(call, signature.replace("h", "u"), body)
        message.header.fields[HeaderFields.unix_fds] = number
        descriptors = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(number)]
        self.send(with_indices(self.encode(message), signature), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    def close(self) -> None:
        self.socket.close()
        for descriptor in self.descriptors:
            descriptor.close()


class Bench:
    """A bus and who calls over it, on one loop and one thread."""

    def __init__(self, path: Path) -> None:
        self.loop = Loop()
        self.bus = Bus(self.loop)
        self.links: list[Link] = []
        self.refuses = False
        self.greets = True
        self.connections: list[module._Connection] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.setblocking(False)

    def look(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                self.links.append(Link(connection, self.refuses, self.greets))
        except BlockingIOError:
            pass
        for link in self.links:
            link.look()

    def until(self, condition: Callable[[], bool], seconds: float = 5) -> None:
        """Run until the condition comes true. Fails if it does not."""
        end = time.monotonic() + seconds
        met = False

        def look() -> None:
            nonlocal met
            self.look()
            met = condition()
            if met or time.monotonic() > end:
                self.loop.stop()
            else:
                timer[0] = self.loop.call_later(0.001, look)

        timer = [self.loop.call_later(0, look)]
        self.loop.run()
        assert met

    def turn(self, seconds: float = 0.03) -> None:
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)

    @property
    def link(self) -> Link:
        """The only connection so far."""
        (link,) = self.links
        return link

    def call(
        self,
        member: str = "M",
        signature: str = "",
        *arguments: object,
        reply: str = "",
        deadline: float | None = 5,
        given_up: Future[None] | None = None,
    ) -> Outcome:
        message = new_method_call(ADDRESS, member, signature or None, arguments)
        return Outcome(self, self.bus.call(message, reply, deadline, given_up))

    def calls(self, number: int, link: int = -1) -> list[Message]:
        """Calls that came over a connection, when there are so many."""
        self.until(lambda: bool(self.links) and len(self.links[link].calls) >= number)
        calls = self.links[link].calls
        assert len(calls) == number
        return calls

    def works(self) -> bool:
        """Whether a call over the latest connection is answered."""
        before = len(self.links[-1].calls)
        outcome = self.call("Works", reply="s")
        call = self.calls(before + 1)[-1]
        self.links[-1].answer(call, "s", "yes")
        return outcome.value() == ("yes",)

    def works_again(self) -> bool:
        """Whether a call over another connection is answered."""
        before = len(self.links)
        outcome = self.call("Works", reply="s")
        self.until(lambda: len(self.links) == before + 1)
        call = self.calls(1)[0]
        self.links[-1].answer(call, "s", "yes")
        return outcome.value() == ("yes",)

    def close(self) -> None:
        self.bus.close()
        self.turn(0)
        # Whoever waited was told, and nobody has a turn any more.
        assert self.bus.turns.taken == self.bus.turns.waiting == 0
        assert self.bus._connection is None
        for link in self.links:
            link.close()
        self._listener.close()
        self.loop.close()


class Outcome:
    """What becomes of a call."""

    def __init__(self, bench: Bench, call: Coroutine[Future[Any], None, tuple[Any, ...]]) -> None:
        self._bench = bench
        self._result: tuple[Any, ...] | Exception | None = None
        self.lasted = 0.0
        started = time.monotonic()

        async def caught() -> tuple[Any, ...] | Exception:
            try:
                return await call
            except Exception as error:
                return error

        def finished(result: tuple[Any, ...] | Exception) -> None:
            self._result = result
            self.lasted = time.monotonic() - started

        bench.loop.start(caught(), finished)

    @property
    def done(self) -> bool:
        return self._result is not None

    def value(self) -> tuple[Any, ...]:
        self._bench.until(lambda: self.done)
        assert isinstance(self._result, tuple), repr(self._result)
        return self._result

    def error(self) -> Exception:
        self._bench.until(lambda: self.done)
        assert isinstance(self._result, Exception), repr(self._result)
        return self._result

    def unavailable(self) -> bool:
        return isinstance(self.error(), Unavailable)

    def timed_out(self) -> bool:
        return isinstance(self.error(), Timeout)

    def dbus_error(self) -> tuple[str, str]:
        error = self.error()
        assert isinstance(error, DBusError), repr(error)
        return error.name, error.message


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    path = tmp_path / "bus"
    monkeypatch.setattr(module, "get_bus", lambda _: str(path))
    bench = Bench(path)
    with warnings.catch_warnings():
        # A descriptor that nobody closed warns when it is collected.
        warnings.simplefilter("error")
        yield bench
        bench.close()


@pytest.fixture
def connected(bench: Bench) -> Bench:
    """After the first call, so that there is a connection."""
    assert bench.works_again()
    bench.link.calls.clear()
    return bench


def pair_of_pipe() -> tuple[int, int]:
    return os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)


# --- calls and replies ----------------------------------------------------------------------------------------------


def test_a_call_is_sent_as_it_is_and_its_reply_comes_back(bench: Bench) -> None:
    outcome = bench.call("Member", "sai", "ä", [1, 2], reply="a(sb)t")
    (call,) = bench.calls(1)
    assert call.header.message_type == MessageType.method_call
    assert call.header.fields[HeaderFields.destination] == NAME
    assert call.header.fields[HeaderFields.path] == "/x"
    assert call.header.fields[HeaderFields.interface] == "org.example.Interface"
    assert call.header.fields[HeaderFields.member] == "Member"
    assert call.body == ("ä", [1, 2])
    assert not outcome.done
    bench.link.answer(call, "a(sb)t", [("x", True)], 7)
    assert outcome.value() == ([("x", True)], 7)


def test_nothing_is_said_before_the_bus_greets(bench: Bench) -> None:
    bench.greets = False
    outcome = bench.call()
    bench.until(lambda: bool(bench.links) and bench.link.hello is not None)
    bench.turn()
    assert bench.link.calls == []
    bench.link.greet()
    (call,) = bench.calls(1)
    bench.link.answer(call)
    assert outcome.value() == ()


def test_no_connection_is_opened_before_it_is_needed(bench: Bench) -> None:
    bench.turn()
    assert bench.links == []


def test_calls_share_a_connection_and_are_answered_in_any_order(bench: Bench) -> None:
    outcomes = [bench.call(f"M{number}", reply="i") for number in range(5)]
    calls = bench.calls(5)
    assert len({call.header.serial for call in calls}) == 5
    for number in (3, 0, 4, 1, 2):
        bench.link.answer(calls[number], "i", number)
    assert [outcome.value() for outcome in outcomes] == [(number,) for number in range(5)]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_replies_may_come_in_pieces_and_several_at_once(connected: Bench, size: int) -> None:
    outcomes = [connected.call(reply="s") for _ in range(3)]
    data = b"".join(
        connected.link.encode(new_method_return(call, "s", (f"reply {number}",)))
        for number, call in enumerate(connected.calls(3))
    )
    for start in range(0, len(data), size):
        connected.link.send(data[start : start + size])
        connected.turn(0)
    assert [outcome.value() for outcome in outcomes] == [("reply 0",), ("reply 1",), ("reply 2",)]


def test_an_error_is_raised_with_its_name_and_its_text(connected: Bench) -> None:
    outcomes = [connected.call(), connected.call()]
    first, second = connected.calls(2)
    connected.link.fail(first, "org.example.Wrong", "for this reason")
    connected.link.fail(second, "org.example.Wrong")
    assert [outcome.dbus_error() for outcome in outcomes] == [
        ("org.example.Wrong", "for this reason"),
        ("org.example.Wrong", ""),
    ]


@pytest.mark.parametrize(("signature", "body"), [("", ()), ("i", (1,)), ("ss", ("a", "b")), ("v", (("s", "a"),))])
def test_an_answer_of_another_shape_is_an_error(connected: Bench, signature: str, body: tuple[object, ...]) -> None:
    outcome = connected.call("Member", reply="s")
    connected.link.answer(connected.calls(1)[0], signature, *body)
    assert outcome.dbus_error() == (INCONSISTENT, f"Member was answered with '{signature}' instead of 's'")
    assert connected.works()


def test_a_call_that_the_socket_does_not_hold_goes_in_pieces(connected: Bench) -> None:
    connected.link.deaf = True
    large, small = connected.call("Large", "s", "x" * 1_000_000), connected.call("Small")
    connected.turn()
    connected.link.deaf = False
    calls = connected.calls(2)
    assert calls[0].body == ("x" * 1_000_000,)
    assert calls[1].header.fields[HeaderFields.member] == "Small"
    for call in calls:
        connected.link.answer(call)
    assert (large.value(), small.value()) == ((), ())


def test_waiting_for_the_bus_to_read_costs_no_time(connected: Bench) -> None:
    connected.link.deaf = True
    outcome = connected.call("Large", "s", "x" * 1_000_000, deadline=None)
    connected.turn()
    started = time.process_time()
    connected.loop.call_later(0.2, connected.loop.stop)
    connected.loop.run()
    assert time.process_time() - started < 0.1
    connected.link.deaf = False
    connected.link.answer(connected.calls(1)[0])
    assert outcome.value() == ()
    started = time.process_time()
    connected.loop.call_later(0.2, connected.loop.stop)
    connected.loop.run()
    assert time.process_time() - started < 0.1


# --- no bus, and one that goes away ---------------------------------------------------------------------------------


def test_without_a_bus_nothing_is_available(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setattr(module, "get_bus", lambda _: str(tmp_path / "none"))
        assert bench.call().unavailable()
    # As soon as it is there, it is used.
    assert bench.works_again()


def test_an_address_that_jeepney_cannot_use_is_no_bus(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_bus(_: str) -> str:
        raise RuntimeError("DBus transport not supported")

    with monkeypatch.context() as context:
        context.setattr(module, "get_bus", get_bus)
        assert bench.call().unavailable()


def test_a_bus_that_refuses_is_not_available_and_asked_again(bench: Bench) -> None:
    bench.refuses = True
    first, second = bench.call(), bench.call()
    assert first.unavailable()
    assert second.unavailable()
    bench.refuses = False
    assert bench.works_again()
    assert len(bench.links) == 2


def test_a_bus_that_answers_the_greeting_with_an_error_is_not_available(bench: Bench) -> None:
    bench.greets = False
    outcome = bench.call()
    bench.until(lambda: bool(bench.links) and bench.link.hello is not None)
    assert bench.link.hello is not None
    bench.link.fail(bench.link.hello, LIMITS_EXCEEDED, "too many")
    error = outcome.error()
    assert isinstance(error, Unavailable)
    assert "too many" in str(error.parameters["reason"])
    bench.until(lambda: bench.link.lost)


def test_a_bus_that_greets_with_nonsense_is_not_available(bench: Bench) -> None:
    bench.greets = False
    outcome = bench.call()
    bench.until(lambda: bool(bench.links) and bench.link.hello is not None)
    assert bench.link.hello is not None
    bench.link.send(malformed(bench.link, bench.link.hello))
    assert outcome.unavailable()
    bench.until(lambda: bench.link.lost)


def test_a_bus_that_never_greets_is_waited_for_no_longer_than_a_deadline(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEADLINE", 0.05)
    bench.greets = False
    outcomes = [bench.call(deadline=None), bench.call(deadline=None)]
    assert all(outcome.unavailable() for outcome in outcomes)
    assert 0.05 <= outcomes[0].lasted < 3
    bench.until(lambda: bench.link.lost)


def test_the_deadline_of_the_greeting_is_not_that_of_the_connection(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEADLINE", 0.05)
    outcome = bench.call(deadline=None)
    bench.calls(1)
    bench.turn(0.15)
    assert not outcome.done
    bench.link.answer(bench.link.calls[0])
    assert outcome.value() == ()


def test_when_the_bus_goes_all_calls_end_and_the_next_finds_it_again(connected: Bench) -> None:
    outcomes = [connected.call(deadline=None) for _ in range(5)]
    connected.calls(5)
    connected.link.socket.shutdown(socket.SHUT_RDWR)
    assert all(outcome.unavailable() for outcome in outcomes)
    assert connected.works_again()
    assert len(connected.links) == 2


def test_what_the_bus_said_before_it_went_is_heard(connected: Bench) -> None:
    outcomes = [connected.call(), connected.call()]
    connected.link.answer(connected.calls(2)[0])
    connected.link.socket.shutdown(socket.SHUT_RDWR)
    assert outcomes[0].value() == ()
    assert outcomes[1].unavailable()


def test_a_call_when_the_bus_just_went_ends(connected: Bench) -> None:
    """Nobody has noticed yet."""
    connected.link.socket.shutdown(socket.SHUT_RDWR)
    assert connected.call(deadline=None).unavailable()


def test_a_call_over_a_closed_connection_ends_at_once(connected: Bench) -> None:
    """Nobody would ever look at its socket again."""
    connection = connected.bus._connection
    assert connection is not None
    connection.close("for a test")
    with pytest.raises(Unavailable):
        connection.call(new_method_call(ADDRESS, "M"))
    connected.until(lambda: connected.link.lost)


def test_who_waited_for_the_greeting_when_the_connection_ended_is_told(bench: Bench) -> None:
    """The greeting came, and in the same turn the end: the call begins when all is over."""
    bench.greets = False
    outcome = bench.call(deadline=None)
    bench.until(lambda: bool(bench.links) and bench.link.hello is not None)
    assert bench.link.hello is not None
    bench.link.send(bench.link.encode(new_method_return(bench.link.hello, "s", (":1.1",))) + b"nonsense" * 2)
    assert outcome.unavailable()
    bench.until(lambda: bench.link.lost)


def test_the_end_of_the_service_ends_all_calls(connected: Bench) -> None:
    outcomes = [connected.call(deadline=None) for _ in range(3)]
    connected.calls(3)
    connected.bus.close()
    assert all(outcome.unavailable() for outcome in outcomes)
    connected.until(lambda: connected.link.lost)
    connected.bus.close()


# --- deadlines ------------------------------------------------------------------------------------------------------


def test_a_call_without_an_answer_ends_in_time(connected: Bench) -> None:
    outcome = connected.call(deadline=0.1)
    assert outcome.timed_out()
    assert 0.1 <= outcome.lasted < 3
    assert connected.works()


def test_without_a_deadline_a_call_takes_what_it_takes(connected: Bench) -> None:
    outcome = connected.call(deadline=None)
    connected.calls(1)
    assert connected.loop._patience() is None
    connected.turn(0.1)
    assert not outcome.done
    connected.link.answer(connected.link.calls[0])
    assert outcome.value() == ()


def test_a_call_that_was_answered_leaves_no_timer(connected: Bench) -> None:
    assert connected.works()
    assert connected.loop._patience() is None


def test_a_late_reply_is_dropped_with_its_descriptors(connected: Bench) -> None:
    before = open_fds()
    outcome = connected.call(reply="h", deadline=0.05)
    assert outcome.timed_out()
    connected.link.answer_with_descriptors(connected.calls(1)[0], "h", (0,), 1)
    assert connected.works()
    assert open_fds() == before


def test_the_deadline_covers_the_wait_for_a_turn(connected: Bench) -> None:
    connected.bus.turns.places = 1
    first = connected.call(deadline=None)
    second = connected.call(deadline=0.05)
    assert second.timed_out()
    assert 0.05 <= second.lasted < 3
    connected.link.answer(connected.calls(1)[0])
    assert first.value() == ()
    # It never was sent, then or later.
    connected.turn()
    assert len(connected.link.calls) == 1


def test_the_deadline_goes_on_after_the_wait_for_a_turn(connected: Bench) -> None:
    connected.bus.turns.places = 1
    first = connected.call(deadline=None)
    second = connected.call(deadline=0.3)
    connected.turn(0.2)
    connected.link.answer(connected.calls(1)[0])
    assert first.value() == ()
    assert second.timed_out()
    # Not as long again as if it began with the turn.
    assert 0.3 <= second.lasted < 0.45
    assert len(connected.link.calls) == 2


def test_a_deadline_that_passes_while_the_bus_is_greeting_is_not_forgotten(bench: Bench) -> None:
    bench.greets = False
    outcome = bench.call(deadline=0.05)
    bench.until(lambda: bool(bench.links) and bench.link.hello is not None)
    bench.turn(0.1)
    bench.link.greet()
    bench.until(lambda: outcome.done, 1)
    assert outcome.timed_out()


def test_a_deadline_that_passes_between_two_waits_is_not_forgotten(bench: Bench) -> None:
    """The turn has come in the same moment in which the time is over."""
    late = module._Patience(bench.loop, 0.01, None)
    turn, reply = Future[None](bench.loop), Future[None](bench.loop)
    late.fails(turn)
    turn.resolve(None)
    bench.turn(0.05)
    late.fails(reply)
    assert reply.done


# --- turns ----------------------------------------------------------------------------------------------------------


def test_so_many_calls_are_under_way_and_no_more(connected: Bench) -> None:
    connected.bus.turns.places = 3
    outcomes = [connected.call(f"M{number}") for number in range(8)]
    for number in range(8):
        connected.turn(0.01)
        calls = connected.calls(min(number + 3, 8))
        connected.link.answer(calls[number])
        assert outcomes[number].value() == ()
    # First come, first served.
    assert [call.header.fields[HeaderFields.member] for call in connected.link.calls] == [f"M{n}" for n in range(8)]
    assert connected.bus.turns.taken == 0


def test_the_bus_lets_more_calls_through_than_there_are_turns() -> None:
    """Its limit is 128, and calls that nobody waits for any more count."""
    assert module.CALLS_MAX + module.ABANDONED_MAX <= 128


def test_a_turn_of_who_waits_no_more_goes_to_the_next(connected: Bench) -> None:
    connected.bus.turns.places = 1
    first = connected.call("First", deadline=None)
    impatient = [connected.call("Impatient", deadline=0.05) for _ in range(3)]
    last = connected.call("Last", deadline=None)
    assert all(outcome.timed_out() for outcome in impatient)
    connected.link.answer(connected.calls(1)[0])
    assert first.value() == ()
    assert connected.calls(2)[1].header.fields[HeaderFields.member] == "Last"
    connected.link.answer(connected.link.calls[1])
    assert last.value() == ()
    assert connected.bus.turns.taken == 0
    assert connected.works()


def test_a_turn_comes_back_when_all_who_wait_for_it_are_gone(connected: Bench) -> None:
    connected.bus.turns.places = 1
    first = connected.call(deadline=None)
    assert connected.call(deadline=0.05).timed_out()
    connected.link.answer(connected.calls(1)[0])
    assert first.value() == ()
    assert connected.bus.turns.taken == 0
    assert connected.works()


@pytest.mark.parametrize("end", ["error", "shape", "deadline", "lost"])
def test_a_call_that_fails_gives_its_turn_back(connected: Bench, end: str) -> None:
    connected.bus.turns.places = 1
    for _ in range(3):
        connected.links[-1].calls.clear()
        outcome = connected.call(deadline=0.05 if end == "deadline" else 5)
        connected.until(lambda: bool(connected.links[-1].calls))
        link = connected.links[-1]
        (call,) = link.calls
        if end == "error":
            link.fail(call, "org.example.Wrong")
        elif end == "shape":
            link.answer(call, "s", "x")
        elif end == "lost":
            link.socket.shutdown(socket.SHUT_RDWR)
        outcome.error()
        connected.turn(0.01)
    assert connected.bus.turns.taken == 0


def test_without_a_bus_a_call_gives_its_turn_back(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.bus.turns.places = 1
    monkeypatch.setattr(module, "get_bus", lambda _: str(tmp_path / "none"))
    for _ in range(3):
        assert bench.call().unavailable()
    assert bench.bus.turns.taken == 0


# --- calls that nobody waits for any more ---------------------------------------------------------------------------


def test_a_connection_with_too_many_abandoned_calls_takes_no_more(
    connected: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bus counts them, and would refuse all others before long. What is waited for on it goes on."""
    monkeypatch.setattr(module, "ABANDONED_MAX", 2)
    waiting = connected.call(deadline=None)
    for _ in range(2):
        assert connected.call(deadline=0.02).timed_out()
    connected.turn()
    assert not waiting.done
    assert not connected.link.lost
    # Whose call it is that is one too many is told as the others were.
    assert connected.call(deadline=0.02).timed_out()
    assert connected.works_again()
    assert len(connected.links) == 2
    assert not waiting.done
    assert not connected.links[0].lost
    connected.links[0].answer(connected.links[0].calls[0])
    assert waiting.value() == ()
    connected.until(lambda: connected.links[0].lost)
    assert not connected.links[1].lost


def test_the_end_of_the_service_ends_connections_that_take_no_more(
    connected: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ABANDONED_MAX", 0)
    waiting = connected.call(deadline=None)
    assert connected.call(deadline=0.02).timed_out()
    assert connected.works_again()
    connected.bus.close()
    assert waiting.unavailable()
    connected.until(lambda: all(link.lost for link in connected.links))


@pytest.mark.parametrize("answers", ["return", "error"])
def test_an_abandoned_call_that_is_answered_does_not_count(
    connected: Bench, monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    monkeypatch.setattr(module, "ABANDONED_MAX", 2)
    for number in range(1, 7):
        assert connected.call(deadline=0.02).timed_out()
        call = connected.calls(number)[-1]
        if answers == "error":
            connected.link.fail(call, "org.example.Wrong")
        else:
            connected.link.answer(call)
        connected.turn(0.01)
    assert connected.works()
    assert len(connected.links) == 1


def test_a_call_that_timed_out_before_its_turn_was_not_abandoned(
    connected: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bus does not know of it."""
    monkeypatch.setattr(module, "ABANDONED_MAX", 2)
    connected.bus.turns.places = 1
    first = connected.call(deadline=None)
    for _ in range(5):
        assert connected.call(deadline=0.01).timed_out()
    connected.link.answer(connected.calls(1)[0])
    assert first.value() == ()
    assert len(connected.links) == 1


# --- messages that nobody asked for, and such that cannot be decoded ------------------------------------------------


def malformed(link: Link, call: Message, signature: str = "s") -> bytes:
    """A reply that says it has a text of a length that it has not."""
    data = bytearray(link.encode(new_method_return(call, "s", ("text",))))
    body = len(data) - 4 - len(b"text\0")
    assert data[body : body + 4] == (4).to_bytes(4, "little")
    data[body : body + 4] = (1000).to_bytes(4, "little")
    return bytes(data)


def noise(kind: MessageType, signature: str | None = None, body: tuple[object, ...] = ()) -> Message:
    message = new_signal(DBusAddress("/x", interface="org.example.Noise"), "Noise", signature, body)
    message.header.message_type = kind
    if kind is MessageType.error:
        message.header.fields[HeaderFields.error_name] = "org.example.Noise"
    if kind in (MessageType.method_return, MessageType.error):
        message.header.fields[HeaderFields.reply_serial] = 123_456
    return message


@pytest.mark.parametrize("kind", list(MessageType))
def test_messages_that_nobody_asked_for_are_dropped_undecoded(connected: Bench, kind: MessageType) -> None:
    """Whoever wrote their bodies."""
    broken = bytearray(connected.link.encode(noise(kind, "s", ("text",))))
    broken[-9:-5] = (1000).to_bytes(4, "little")
    outcome = connected.call(reply="s")
    (call,) = connected.calls(1)
    with pytest.raises(Exception):  # noqa: B017, PT011  jeepney would raise whatever it ran into
        Message.from_buffer(bytes(broken))
    connected.link.send(bytes(broken))
    connected.link.send(connected.link.encode(noise(kind, "as", (["x" * 1000] * 50,))))
    connected.link.send(connected.link.encode(noise(kind)))
    connected.link.answer(call, "s", "yes")
    assert outcome.value() == ("yes",)
    assert len(connected.links) == 1
    assert not connected.link.lost


def test_a_message_that_nobody_asked_for_is_not_decoded(connected: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it could be: that would be somebody else's use of our time."""
    decoded: list[str] = []
    decoder = module._type

    def counted(signature: str) -> Struct:
        decoded.append(signature)
        return decoder(signature)

    outcome = connected.call(reply="u")
    (call,) = connected.calls(1)
    monkeypatch.setattr(module, "_type", counted)
    connected.link.send(connected.link.encode(noise(MessageType.signal, "s", ("x",))))
    connected.link.send(connected.link.encode(new_method_return(call, "u", (7,))))
    connected.loop.call_later(0.05, connected.loop.stop)
    connected.loop.run()
    assert decoded == ["u"]
    assert outcome.value() == (7,)


def test_a_reply_of_another_signature_is_not_decoded(connected: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = connected.call(reply="s")
    (call,) = connected.calls(1)
    monkeypatch.setattr(module, "_type", None)
    connected.link.answer(call, "as", ["x"])
    assert "'as' instead of 's'" in outcome.dbus_error()[1]


def test_a_message_that_is_sent_often_is_the_same_but_for_its_number() -> None:
    message = new_method_call(ADDRESS, "Often", "su", ("x", 2))
    repeated = Repeated(message)
    assert repeated.header is message.header
    for serial in (1, 2, 2**32 - 1):
        assert repeated.serialise(serial) == message.serialise(serial)


@pytest.mark.parametrize("kind", list(MessageType))
def test_descriptors_that_nobody_asked_for_are_closed(connected: Bench, kind: MessageType) -> None:
    before = open_fds()
    reader, writer = pair_of_pipe()
    message = noise(kind, "u", (0,))
    message.header.fields[HeaderFields.unix_fds] = 1
    connected.link.send(with_indices(connected.link.encode(message), "h"), writer)
    os.close(writer)
    connected.turn()
    # Its other end is open nowhere any more.
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert connected.works()
    assert open_fds() == before


def test_a_second_reply_is_not_for_the_next_call(connected: Bench) -> None:
    first = connected.call(reply="s")
    (call,) = connected.calls(1)
    connected.link.answer(call, "s", "first")
    connected.link.answer(call, "s", "second")
    assert first.value() == ("first",)
    assert connected.works()


def test_a_reply_that_cannot_be_decoded_fails_its_call_and_no_other(connected: Bench) -> None:
    outcomes = [connected.call(reply="s", deadline=None) for _ in range(3)]
    calls = connected.calls(3)
    connected.link.send(malformed(connected.link, calls[1]))
    name, text = outcomes[1].dbus_error()
    assert name == INCONSISTENT
    assert text.startswith("malformed reply: ")
    connected.link.answer(calls[2], "s", "c")
    connected.link.answer(calls[0], "s", "a")
    assert (outcomes[0].value(), outcomes[2].value()) == (("a",), ("c",))
    assert connected.works()


def test_descriptors_of_a_reply_that_cannot_be_decoded_are_closed(connected: Bench) -> None:
    before = open_fds()
    outcome = connected.call(reply="h")
    # It names the third of two.
    connected.link.answer_with_descriptors(connected.calls(1)[0], "h", (2,), 2)
    assert outcome.dbus_error()[0] == INCONSISTENT
    assert connected.works()
    assert open_fds() == before


def test_a_message_without_a_header_that_can_be_read_ends_the_connection(connected: Bench) -> None:
    outcomes = [connected.call(deadline=None) for _ in range(2)]
    connected.calls(2)
    connected.link.send(b"l\x02\0\1" + bytes(4) + b"\1\0\0\0" + b"\x08\0\0\0" + b"\xff" * 8)
    assert all(outcome.unavailable() for outcome in outcomes)
    connected.until(lambda: connected.link.lost)


def test_a_header_that_is_too_large_ends_the_connection_before_it_comes(connected: Bench) -> None:
    outcome = connected.call(deadline=None)
    connected.calls(1)
    connected.link.send(b"l\x02\0\1" + bytes(4) + b"\1\0\0\0" + module.MESSAGE_MAX.to_bytes(4, "little"))
    error = outcome.error()
    assert isinstance(error, Unavailable)
    assert "bytes" in str(error.parameters["reason"])
    connected.until(lambda: connected.link.lost)


def test_a_message_may_be_so_large(connected: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [connected.call(reply="s") for _ in range(2)]
    first, second = connected.calls(2)
    exact = connected.link.encode(new_method_return(first, "s", ("x" * 1000,)))
    monkeypatch.setattr(module, "MESSAGE_MAX", len(exact))
    connected.link.send(exact)
    assert outcomes[0].value() == ("x" * 1000,)
    connected.link.answer(second, "s", "x" * 1001)
    name, text = outcomes[1].dbus_error()
    assert (name, "1006 bytes are too many" in text) == ("org.freedesktop.DBus.Error.InconsistentMessage", True)


@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_reply_that_is_too_large_fails_its_call_and_no_other(
    connected: Bench, monkeypatch: pytest.MonkeyPatch, size: int, error: bool
) -> None:
    monkeypatch.setattr(module, "MESSAGE_MAX", 1000)
    outcomes = [connected.call(reply="s", deadline=None) for _ in range(2)]
    first, second = connected.calls(2)
    text = ("x" * 1000,)
    large = new_error(first, "org.example.Large", "s", text) if error else new_method_return(first, "s", text)
    stream = connected.link.encode(large) + connected.link.encode(new_method_return(second, "s", ("small",)))
    for begin in range(0, len(stream), size):
        connected.link.send(stream[begin : begin + size])
        connected.turn(0)
    assert "too many" in outcomes[0].dbus_error()[1]
    assert outcomes[1].value() == ("small",)
    assert len(connected.links) == 1


def test_a_call_may_take_less(connected: Bench) -> None:
    message = new_method_call(ADDRESS, "M")
    outcomes = [Outcome(connected, connected.bus.call(message, "s", most=20)) for _ in range(2)]
    first, second = connected.calls(2)
    connected.link.answer(first, "s", "x" * 15)
    connected.link.answer(second, "s", "x" * 16)
    assert outcomes[0].value() == ("x" * 15,)
    assert outcomes[1].dbus_error() == ("org.freedesktop.DBus.Error.LimitsExceeded", "21 bytes are too many")


def test_the_text_of_an_error_is_only_so_long(connected: Bench) -> None:
    """A guest has written it, when its own systemd refuses a shell."""
    outcome = connected.call()
    connected.link.fail(connected.calls(1)[0], "org.example.Long", "x" * 10_000)
    assert outcome.dbus_error() == ("org.example.Long", "x" * module.ERROR_TEXT_MAX)


# --- limits of the bus and of who is called -------------------------------------------------------------------------


def test_a_limit_of_the_bus_is_not_one_of_machined(connected: Bench) -> None:
    outcomes = [connected.call(), connected.call()]
    first, second = connected.calls(2)
    connected.link.fail(first, LIMITS_EXCEEDED, "of the bus", sender="org.freedesktop.DBus")
    connected.link.fail(second, LIMITS_EXCEEDED, "of machined", sender=":1.5")
    error = outcomes[0].error()
    assert isinstance(error, Unavailable)
    assert error.parameters == {"reason": "the system bus: of the bus"}
    error = outcomes[1].error()
    assert isinstance(error, DBusError)
    assert error.name == LIMITS_EXCEEDED
    assert isinstance(to_varlink_error(error, {}), TooManyOperations)
    assert connected.works()


@pytest.mark.parametrize("name", ["ServiceUnknown", "NoReply", "FileExists", "Spawn.ChildExited"])
def test_what_the_bus_itself_says_is_that_nobody_can_be_called(connected: Bench, name: str) -> None:
    """FileExists is what it says of a unit that is masked, and no name that is taken."""
    outcome = connected.call()
    (call,) = connected.calls(1)
    connected.link.fail(call, f"org.freedesktop.DBus.Error.{name}", "no", sender="org.freedesktop.DBus")
    assert outcome.unavailable()


def test_but_that_the_bus_does_not_let_this_service_call_is_told(connected: Bench) -> None:
    outcome = connected.call()
    name = "org.freedesktop.DBus.Error.AccessDenied"
    connected.link.fail(connected.calls(1)[0], name, "no", sender="org.freedesktop.DBus")
    assert outcome.dbus_error() == (name, "no")


def test_a_call_that_is_given_up_keeps_its_place_until_it_is_answered(connected: Bench) -> None:
    """It is worked on: who asks and leaves, again and again, has no more under way than who stays."""
    connected.bus.turns.places = 1
    gone = Future[None](connected.loop)
    first = connected.call("First", deadline=None, given_up=gone)
    second = connected.call("Second", deadline=None)
    connected.calls(1)
    gone.resolve(None)
    assert isinstance(first.error(), module.GivenUp)
    connected.turn()
    assert len(connected.link.calls) == 1
    connected.link.answer(connected.link.calls[0])
    connected.link.answer(connected.calls(2)[1])
    assert second.value() == ()


def test_a_call_that_is_given_up_does_not_keep_its_place_for_ever(
    connected: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEADLINE", 0.05)
    connected.bus.turns.places = 1
    gone = Future[None](connected.loop)
    first = connected.call("First", deadline=None, given_up=gone)
    second = connected.call("Second", deadline=None)
    connected.calls(1)
    gone.resolve(None)
    assert isinstance(first.error(), module.GivenUp)
    connected.link.answer(connected.calls(2)[1])
    assert second.value() == ()
    connected.link.answer(connected.link.calls[0])
    assert connected.works()


def test_a_place_comes_back_when_the_connection_of_a_call_that_was_given_up_is_lost(connected: Bench) -> None:
    connected.bus.turns.places = 1
    gone = Future[None](connected.loop)
    first = connected.call("First", deadline=None, given_up=gone)
    connected.calls(1)
    gone.resolve(None)
    assert isinstance(first.error(), module.GivenUp)
    connected.link.socket.shutdown(socket.SHUT_RDWR)
    connected.until(lambda: connected.bus.turns.taken == 0)
    assert connected.works_again()


# --- descriptors ----------------------------------------------------------------------------------------------------


def test_descriptors_of_a_reply_are_in_its_body(connected: Bench) -> None:
    outcome = connected.call(reply="hsh")
    connected.link.answer_with_descriptors(connected.calls(1)[0], "hsh", (1, "x", 0), 2)
    first, text, second = outcome.value()
    assert text == "x"
    for descriptor in (first, second):
        assert os.readlink(f"/proc/self/fd/{descriptor.fileno()}") == os.devnull
        assert not os.get_inheritable(descriptor.fileno())
        descriptor.close()


@pytest.mark.parametrize(
    ("signature", "body", "number", "expected"),
    [
        ("", (), 1, ""),
        ("s", ("x",), 2, "s"),
        ("h", (0,), 1, ""),
        ("h", (0,), 1, "s"),
        ("h", (0,), 2, "h"),
        ("hh", (0, 0), 1, "hh"),
    ],
)
def test_descriptors_beside_what_was_expected_are_closed(
    connected: Bench, signature: str, body: tuple[object, ...], number: int, expected: str
) -> None:
    before = open_fds()
    outcome = connected.call(reply=expected)
    connected.link.answer_with_descriptors(connected.calls(1)[0], signature, body, number)
    assert outcome.dbus_error()[0] == INCONSISTENT
    assert connected.works()
    assert open_fds() == before


def test_descriptors_of_an_error_are_closed(connected: Bench) -> None:
    before = open_fds()
    outcome = connected.call(reply="h")
    error = new_error(connected.calls(1)[0], "org.example.Wrong")
    error.header.fields[HeaderFields.unix_fds] = 1
    reader, writer = pair_of_pipe()
    connected.link.send(connected.link.encode(error), writer)
    os.close(writer)
    assert outcome.dbus_error() == ("org.example.Wrong", "")
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert open_fds() == before


def test_descriptors_of_a_message_that_is_not_complete_are_closed_at_the_end(connected: Bench) -> None:
    reader, writer = pair_of_pipe()
    outcome = connected.call(deadline=None)
    reply = connected.link.encode(new_method_return(connected.calls(1)[0], "s", ("x",)))
    connected.link.send(reply[:20], writer)
    os.close(writer)
    connected.turn()
    connected.bus.close()
    assert outcome.unavailable()
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_each_reply_has_its_own_descriptors(connected: Bench) -> None:
    """Though one recvmsg(2) may return several."""
    outcomes = [connected.call(reply="h") for _ in range(2)]
    calls = connected.calls(2)
    pipes = [pair_of_pipe() for _ in calls]
    for call, (_, writer) in zip(calls, pipes, strict=True):
        message = new_method_return(call, "u", (0,))
        message.header.fields[HeaderFields.unix_fds] = 1
        connected.link.send(with_indices(connected.link.encode(message), "h"), writer)
        os.close(writer)
    for number, (outcome, (reader, _)) in enumerate(zip(outcomes, pipes, strict=True)):
        (descriptor,) = outcome.value()
        os.write(descriptor.fileno(), bytes([number]))
        descriptor.close()
        assert os.read(reader, 9) == bytes([number])
        assert os.read(reader, 9) == b""
        os.close(reader)


def test_descriptors_are_lent_to_a_call(connected: Bench) -> None:
    reader, writer = pair_of_pipe()
    before = open_fds()
    outcome = connected.call("M", "sh", "x", writer)
    (call,) = connected.calls(1)
    (received,) = connected.link.descriptors
    os.write(received.fileno(), b"through")
    assert os.read(reader, 9) == b"through"
    received.close()
    assert call.body[1] is received
    # The caller's is still the caller's, and there is no other.
    assert open_fds() == before
    os.close(writer)
    assert os.read(reader, 9) == b""
    os.close(reader)
    connected.link.answer(call)
    assert outcome.value() == ()


def test_descriptors_go_once_with_a_call_that_goes_in_pieces(connected: Bench) -> None:
    reader, writer = pair_of_pipe()
    connected.link.deaf = True
    outcome = connected.call("M", "sh", "x" * 1_000_000, writer)
    os.close(writer)
    connected.turn()
    connected.link.deaf = False
    (call,) = connected.calls(1)
    (received,) = connected.link.descriptors
    assert call.body == ("x" * 1_000_000, received)
    received.close()
    assert os.read(reader, 1) == b""
    os.close(reader)
    connected.link.answer(call)
    assert outcome.value() == ()


@pytest.mark.parametrize("end", ["read", "lost", "closed"])
def test_descriptors_that_wait_to_be_sent_are_closed(connected: Bench, end: str) -> None:
    """The caller may close its own as soon as it has called."""
    connected.link.deaf = True
    before = connected.call("Large", "s", "x" * 1_000_000)
    reader, writer = pair_of_pipe()
    outcome = connected.call("M", "h", writer)
    os.close(writer)
    connected.turn()
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    if end == "read":
        connected.link.deaf = False
        for call in connected.calls(2):
            connected.link.answer(call)
        assert (before.value(), outcome.value()) == ((), ())
        (received,) = connected.link.descriptors
        received.close()
    elif end == "lost":
        connected.link.socket.shutdown(socket.SHUT_RDWR)
        assert before.unavailable()
        assert outcome.unavailable()
    else:
        connected.bus.close()
        assert before.unavailable()
        assert outcome.unavailable()
    assert os.read(reader, 1) == b""
    os.close(reader)


# --- machined's connections -----------------------------------------------------------------------------------------


async def body(read: Awaitable[object]) -> tuple[object]:
    return (await read,)


def test_reads_changes_and_what_is_slow_go_over_connections_of_their_own(bench: Bench) -> None:
    machined = Machined(bench.loop)
    reads = [Outcome(bench, body(machined.machines())), Outcome(bench, body(machined.images()))]
    bench.calls(2, 0)
    slow = [Outcome(bench, machined.call(member, "s", "m", deadline=None)) for member in SLOW]
    bench.calls(len(SLOW), 1)
    change = Outcome(bench, machined.call("TerminateMachine", "s", "m"))
    (call,) = bench.calls(1, 2)
    assert call.header.fields[HeaderFields.member] == "TerminateMachine"
    assert call.header.fields[HeaderFields.destination] == "org.freedesktop.machine1"
    assert call.header.fields[HeaderFields.path] == "/org/freedesktop/machine1"
    assert call.header.fields[HeaderFields.interface] == "org.freedesktop.machine1.Manager"
    assert call.body == ("m",)
    bench.links[2].answer(call)
    assert change.value() == ()
    for signature, call, read in zip(READS.values(), bench.links[0].calls[:2], reads, strict=True):
        bench.links[0].answer(call, signature, [])
        (listed,) = read.value()
        assert not listed
    assert not any(outcome.done for outcome in slow)
    assert len(bench.links) == 3
    machined.close()
    bench.until(lambda: all(link.lost for link in bench.links))


def test_when_one_connection_is_lost_the_others_go_on(bench: Bench) -> None:
    machined = Machined(bench.loop)
    read = Outcome(bench, body(machined.machines()))
    bench.calls(1, 0)
    change = Outcome(bench, machined.call("RemoveImage", "s", "i", deadline=None))
    bench.calls(1, 1)
    bench.links[0].socket.shutdown(socket.SHUT_RDWR)
    assert read.unavailable()
    bench.turn()
    assert not change.done
    bench.links[1].answer(bench.links[1].calls[0])
    assert change.value() == ()
    machined.close()


@pytest.mark.parametrize(("member", "most"), [("TerminateMachine", 2), ("CopyToMachine", 8)])
def test_a_user_has_so_many_calls_at_machined_and_leaves_room_for_others(
    bench: Bench, member: str, most: int
) -> None:
    machined = Machined(bench.loop)
    flood = [
        Outcome(bench, machined.on_behalf_of(1000, machined.shown).call(member, "s", "flood", deadline=None))
        for _ in range(20)
    ]
    bench.calls(most)
    quiet = Outcome(bench, machined.on_behalf_of(1001, machined.shown).call(member, "s", "quiet"))
    assert [call.body for call in bench.calls(most + 1)] == [("flood",)] * most + [("quiet",)]
    for answered in range(20):
        (call, *_) = [call for call in bench.calls(min(most + 1 + answered, 21)) if call.body == ("flood",)][answered:]
        bench.link.answer(call)
        assert flood[answered].value() == ()
    bench.link.answer(next(call for call in bench.link.calls if call.body == ("quiet",)))
    assert quiet.value() == ()
    machined.close()


@pytest.mark.parametrize("deadline", [None, 0.05])
def test_the_deadline_of_a_call_to_machined_is_the_callers(bench: Bench, deadline: float | None) -> None:
    machined = Machined(bench.loop)
    outcome = Outcome(bench, machined.call("CopyToMachine", "", deadline=deadline))
    bench.calls(1)
    bench.turn(0.15)
    assert outcome.done == (deadline is not None)
    machined.close()
    outcome.error()


@pytest.mark.parametrize("member", ["GetMachineOSRelease", "GetMachineAddresses", "GetImageMachineInfo"])
def test_what_is_said_inside_of_a_machine_is_taken_only_so_far(bench: Bench, member: str) -> None:
    machined = Machined(bench.loop)
    outcome = Outcome(bench, machined.call(member, "", reply="s"))
    (call,) = bench.calls(1)
    bench.link.answer(call, "s", "x" * SAID_INSIDE_MAX)
    assert outcome.dbus_error()[0] == "org.freedesktop.DBus.Error.LimitsExceeded"
    machined.close()


def test_properties_are_taken_only_so_far(bench: Bench) -> None:
    """Who registers a machine says what its service is called, and where it is reached by SSH."""
    machined = Machined(bench.loop)
    outcome = Outcome(bench, machined.machine_properties("web", "/web"))  # type: ignore[arg-type]
    (call,) = bench.calls(1)
    bench.link.answer(call, "a{sv}", {"Name": ("s", "web"), "Service": ("s", "x" * SAID_INSIDE_MAX)})
    assert outcome.dbus_error()[0] == "org.freedesktop.DBus.Error.LimitsExceeded"
    machined.close()


def test_the_bus_greets_by_its_name() -> None:
    """By which its own errors are told from those of others."""
    assert message_bus.bus_name == "org.freedesktop.DBus"


# --- signals --------------------------------------------------------------------------------------------------------


class Ears:
    """A Listener."""

    def __init__(self) -> None:
        self.log: list[object] = []

    def heard(self, signal: Signal) -> None:
        self.log.append(signal)

    def broke(self) -> None:
        self.log.append("broke")


@pytest.fixture
def listening(bench: Bench) -> tuple[Bench, Ears]:
    """With a connection to a bus that listens."""
    ears = Ears()
    bench.bus = Bus(bench.loop, listener=ears)
    assert bench.works_again()
    bench.link.calls.clear()
    return bench, ears


def test_signals_and_replies_keep_their_order(listening: tuple[Bench, Ears]) -> None:
    """All in one piece: who waits for the reply goes on after the signal before it, and before the one after it."""
    bench, ears = listening

    async def ask() -> None:
        await bench.bus.call(new_method_call(ADDRESS, "M"), "s")
        ears.log.append("reply")

    bench.loop.start(ask(), lambda _: None)
    (call,) = bench.calls(1)
    before, after = (bench.link.encode(noise(MessageType.signal, "s", (text,))) for text in ("before", "after"))
    reply = bench.link.encode(new_method_return(call, "s", ("x",)))
    bench.link.send(before + reply + after)
    bench.until(lambda: len(ears.log) == 3)
    assert ears.log == [
        Signal("", "org.example.Noise", "Noise", ("before",)),
        "reply",
        Signal("", "org.example.Noise", "Noise", ("after",)),
    ]


def test_who_listens_is_told_when_signals_may_be_lost(listening: tuple[Bench, Ears]) -> None:
    bench, ears = listening
    bench.link.socket.shutdown(socket.SHUT_RDWR)
    bench.until(lambda: bool(ears.log))
    assert ears.log == ["broke"]


def test_a_signal_that_makes_no_sense_ends_the_connection(listening: tuple[Bench, Ears]) -> None:
    bench, ears = listening
    broken = bytearray(bench.link.encode(noise(MessageType.signal, "s", ("text",))))
    broken[-9:-5] = (1000).to_bytes(4, "little")
    bench.link.send(bytes(broken))
    bench.until(lambda: bool(ears.log))
    assert ears.log == ["broke"]


@pytest.mark.parametrize("size", [module.SIGNAL_MAX, 20 * 1024 * 1024])
def test_a_large_signal_is_dropped_undecoded(listening: tuple[Bench, Ears], size: int) -> None:
    """It can be none of those that are listened to. Anybody may have sent it."""
    bench, ears = listening
    large = bench.link.encode(noise(MessageType.signal, "s", ("x" * size,)))
    small = bench.link.encode(noise(MessageType.signal, "s", ("x",)))
    for begin in range(0, len(large), 65536):
        bench.link.send(large[begin : begin + 65536])
        bench.turn(0)
    bench.link.send(small)
    bench.until(lambda: bool(ears.log))
    assert ears.log == [Signal("", "org.example.Noise", "Noise", ("x",))]


def test_descriptors_of_a_signal_are_closed(listening: tuple[Bench, Ears]) -> None:
    bench, ears = listening
    before = open_fds()
    reader, writer = pair_of_pipe()
    message = noise(MessageType.signal, "u", (0,))
    message.header.fields[HeaderFields.unix_fds] = 1
    bench.link.send(with_indices(bench.link.encode(message), "h"), reader)
    os.close(reader)
    os.close(writer)
    bench.until(lambda: bool(ears.log))
    assert open_fds() == before
