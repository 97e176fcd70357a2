# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads that many wait for: how often the bus is asked, and that no answer is older than its question."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from jeepney import DBusAddress, Endianness, Header, Message, MessageType, new_method_call

from bridge import reads
from bridge.bus import DEADLINE, Answer, Bus, DBusError, Repeated
from bridge.errors import Timeout, Unavailable
from bridge.loop import Future, Loop
from bridge.reads import UNDER_WAY_MAX, Read
from bridge.turns import ROOT

MESSAGE = new_method_call(DBusAddress("/x", "org.example.Service", "org.example.Interface"), "List")


class FakeAnswer(Answer):
    """A body that need not be decoded, and how often it was."""

    def __init__(self, *body: object, endianness: Endianness = Endianness.little) -> None:
        header = Header(endianness, MessageType.method_return, 0, 1, 0, 1, {})
        super().__init__(header, repr(body).encode(), [])
        self._body = body
        self.decoded = 0

    def body(self) -> tuple[Any, ...]:
        self.decoded += 1
        return self._body


class FakeBus(Bus):
    """Each call waits until it is answered, unless there is no bus."""

    def __init__(self, loop: Loop) -> None:
        self._own = loop
        self.calls: list[Future[Answer]] = []
        self.asked: list[tuple[bytes, str, float | None, int]] = []
        self.gone = False

    async def ask(
        self,
        message: Message | Repeated,
        reply: str,
        deadline: float | None = DEADLINE,
        given_up: Future[None] | None = None,
        user: int = 1000,
    ) -> Answer:
        self.asked.append((message.serialise(1), reply, deadline, user))
        if self.gone:
            raise Unavailable("no system bus")
        self.calls.append(Future(self._own))
        return await self.calls[-1]


class Reader:
    """One who waits for an answer."""

    def __init__(self, loop: Loop, read: Read[tuple[Any, ...]]) -> None:
        self.answer: tuple[Any, ...] | None = None
        self.error: Exception | None = None

        async def wait() -> None:
            try:
                self.answer = await read.answer()
            except Exception as error:
                self.error = error

        loop.start(wait(), lambda _: None)

    @property
    def done(self) -> bool:
        return self.answer is not None or self.error is not None


class Desk:
    """A read and those who ask for it."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.bus = FakeBus(loop)
        self.read = Read(loop, self.bus, MESSAGE, "as", lambda body: body)

    def ask(self) -> Reader:
        return Reader(self._loop, self.read)

    def answer(self, index: int, *body: object) -> None:
        """The bus answers the call of this number."""
        self.answer_as_it_is(index, FakeAnswer(*body))

    def answer_as_it_is(self, index: int, answer: Answer) -> None:
        assert self.bus.calls[index].resolve(answer)
        self.settle()

    def fail(self, index: int, error: Exception) -> None:
        assert self.bus.calls[index].fail(error)
        self.settle()

    def settle(self, seconds: float = 0) -> None:
        self._loop.call_later(seconds, lambda: self._soon(4))
        self._loop.run()

    def _soon(self, turns: int) -> None:
        self._loop.call_soon(self._loop.stop if turns == 0 else lambda: self._soon(turns - 1))


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def desk(loop: Loop) -> Desk:
    return Desk(loop)


def test_a_read_is_asked_at_once_and_answered(desk: Desk, loop: Loop) -> None:
    reader = desk.ask()
    # Of nobody in particular: whose turn it is does not matter for what is everybody's.
    assert desk.bus.asked == [(MESSAGE.serialise(1), "as", DEADLINE, ROOT)]
    assert not reader.done
    desk.answer(0, ["m"])
    assert reader.answer == (["m"],)
    # Nothing is left that would wake anybody up.
    assert loop._patience() is None
    assert desk.ask().answer is None
    assert len(desk.bus.calls) == 2


def test_the_next_is_asked_while_one_is_answered_and_no_more(desk: Desk) -> None:
    assert UNDER_WAY_MAX == 2
    readers = [desk.ask() for _ in range(5)]
    assert len(desk.bus.calls) == 2
    desk.answer(0, "a")
    # Those who had to wait are answered by one call, which was sent after all of them had asked.
    assert len(desk.bus.calls) == 3
    assert [reader.answer for reader in readers] == [("a",), None, None, None, None]
    desk.answer(1, "b")
    assert len(desk.bus.calls) == 3
    assert [reader.answer for reader in readers] == [("a",), ("b",), None, None, None]
    desk.answer(2, "c")
    assert [reader.answer for reader in readers] == [("a",), ("b",), ("c",), ("c",), ("c",)]
    assert len(desk.bus.calls) == 3


def test_who_asks_after_a_call_was_sent_is_not_answered_by_it(desk: Desk) -> None:
    """Though nobody else would wait for the next: what it says may be older than the question."""
    first, second = desk.ask(), desk.ask()
    late = desk.ask()
    desk.answer(0, "old")
    later = desk.ask()
    desk.answer(1, "old")
    assert (first.answer, second.answer) == (("old",), ("old",))
    assert not late.done
    assert not later.done
    desk.answer(2, "late")
    assert late.answer == ("late",)
    assert not later.done
    desk.answer(3, "later")
    assert later.answer == ("later",)


def test_calls_may_be_answered_in_any_order(desk: Desk) -> None:
    first, second, third = desk.ask(), desk.ask(), desk.ask()
    desk.answer(1, "b")
    assert (first.answer, second.answer, third.answer) == (None, ("b",), None)
    desk.answer(2, "c")
    assert third.answer == ("c",)
    desk.answer(0, "a")
    assert first.answer == ("a",)
    assert len(desk.bus.calls) == 3


@pytest.mark.parametrize("seed", range(20))
def test_no_answer_is_older_than_its_question_and_nobody_is_forgotten(desk: Desk, seed: int) -> None:
    """The world goes on between any two steps; each call says how it is when it is answered, at the earliest sent."""
    steps = random.Random(seed)  # noqa: S311
    readers: list[tuple[int, Reader]] = []
    sent: dict[int, int] = {}
    open_calls: list[int] = []
    for now in range(200):
        if open_calls and steps.random() < 0.3:
            number = open_calls.pop(steps.randrange(len(open_calls)))
            # The oldest that the answer may be.
            desk.answer(number, sent[number])
        else:
            readers.append((now, desk.ask()))
        for number in range(len(sent), len(desk.bus.calls)):
            sent[number] = now
            open_calls.append(number)
        assert len(open_calls) <= UNDER_WAY_MAX
    while open_calls:
        number = open_calls.pop(0)
        desk.answer(number, sent[number])
        for new in range(len(sent), len(desk.bus.calls)):
            sent[new] = 200
            open_calls.append(new)
    for asked, reader in readers:
        assert reader.answer is not None
        assert reader.answer[0] >= asked


def test_an_answer_that_is_the_one_before_byte_for_byte_is_not_decoded_again(desk: Desk) -> None:
    answers = [FakeAnswer("a"), FakeAnswer("a"), FakeAnswer("b"), FakeAnswer("a")]
    readers = []
    for index, answer in enumerate(answers):
        readers.append(desk.ask())
        desk.answer_as_it_is(index, answer)
    assert [answer.decoded for answer in answers] == [1, 0, 1, 1]
    assert [reader.answer for reader in readers] == [("a",), ("a",), ("b",), ("a",)]
    assert readers[1].answer is readers[0].answer


def test_the_same_bytes_in_another_order_are_another_answer(desk: Desk) -> None:
    for index, order in enumerate(Endianness):
        answer = FakeAnswer("a", endianness=order)
        desk.ask()
        desk.answer_as_it_is(index, answer)
        assert answer.decoded == 1


def test_an_answer_that_cannot_be_decoded_is_not_remembered(desk: Desk) -> None:
    class Malformed(FakeAnswer):
        def body(self) -> tuple[Any, ...]:
            super().body()
            raise DBusError("org.example.Wrong", "x")

    for index in range(2):
        answer, reader = Malformed("a"), desk.ask()
        desk.answer_as_it_is(index, answer)
        assert answer.decoded == 1
        assert isinstance(reader.error, DBusError)
    reader = desk.ask()
    desk.answer(2, "a")
    assert reader.answer == ("a",)


def test_the_number_of_calls_does_not_depend_on_how_many_ask(desk: Desk) -> None:
    readers = [desk.ask() for _ in range(1000)]
    for number in range(3):
        desk.answer(number, number)
    assert len(desk.bus.calls) == 3
    assert all(reader.done for reader in readers)


@pytest.mark.parametrize("error", [DBusError("org.example.Wrong", "x"), Unavailable("x"), Timeout()])
def test_an_error_is_of_all_who_wait_for_the_same_call_and_of_no_other(desk: Desk, error: Exception) -> None:
    first, second, *others = [desk.ask() for _ in range(5)]
    desk.answer(0, "a")
    desk.fail(2, error)
    assert first.answer == ("a",)
    assert [other.error for other in others] == [error] * 3
    assert not second.done
    desk.answer(1, "b")
    assert second.answer == ("b",)
    again = desk.ask()
    desk.answer(3, "again")
    assert again.answer == ("again",)


def test_a_call_that_failed_makes_room_for_the_next(desk: Desk) -> None:
    readers = [desk.ask() for _ in range(3)]
    desk.fail(0, Unavailable("gone"))
    assert len(desk.bus.calls) == 3
    desk.answer(2, "c")
    assert readers[2].answer == ("c",)


def test_without_a_bus_each_is_told_at_once(desk: Desk) -> None:
    desk.bus.gone = True
    readers = [desk.ask() for _ in range(5)]
    assert all(isinstance(reader.error, Unavailable) for reader in readers)
    desk.bus.gone = False
    back = [desk.ask() for _ in range(2)]
    assert len(desk.bus.calls) == 2
    desk.answer(0, "a")
    desk.answer(1, "b")
    assert [reader.answer for reader in back] == [("a",), ("b",)]


def test_who_waits_for_the_next_call_waits_no_longer_than_a_deadline(
    desk: Desk, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls before it may take as long as theirs."""
    monkeypatch.setattr(reads, "DEADLINE", 0.05)
    started = time.monotonic()
    readers = [desk.ask() for _ in range(3)]
    desk.settle(0.02)
    assert not any(reader.done for reader in readers)
    desk.settle(0.05)
    assert time.monotonic() - started >= 0.05
    assert all(isinstance(reader.error, Timeout) for reader in readers)
    assert len(desk.bus.calls) == 2
    assert loop._patience() is None
    # What comes late is for nobody, and harms nobody.
    monkeypatch.setattr(reads, "DEADLINE", 5)
    fresh = desk.ask()
    desk.answer(0, "late")
    assert not fresh.done
    desk.answer(2, "fresh")
    assert fresh.answer == ("fresh",)
    desk.answer(1, "late")


def test_those_who_share_an_error_pay_for_it_once(desk: Desk) -> None:
    """One exception is raised in each of them: what it carries must not make that quadratic."""
    readers = [desk.ask() for _ in range(4000)]
    started = time.process_time()
    desk.answer(0, "a")
    desk.fail(2, DBusError("org.example.Wrong", "x"))
    assert time.process_time() - started < 1
    assert all(reader.error is not None for reader in readers[2:])
