# SPDX-License-Identifier: LGPL-2.1-or-later
"""The event loop: futures, timers, coroutines, file descriptors."""

from __future__ import annotations

import os
import socket
import time
import types
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from bridge import loop as module
from bridge.loop import HANGUP, READ, WRITE, Future, Loop, Share


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    pairs = [socket.socketpair() for _ in range(2)]
    yield pairs
    for pair in pairs:
        for each in pair:
            each.close()


def run(loop: Loop, seconds: float = 0) -> None:
    """As long as there is something to do at once, and `seconds` more."""
    loop.call_later(seconds, lambda: loop.call_soon(lambda: loop.call_soon(loop.stop)))
    loop.run()


# --- futures --------------------------------------------------------------------------------------------------------


async def wait(future: Future[str], log: list[str]) -> None:
    try:
        log.append(await future)
    except ValueError as error:
        log.append(f"failed: {error}")


def nothing(_: object) -> None:
    pass


def test_a_coroutine_goes_on_when_the_future_is_resolved(loop: Loop) -> None:
    future, log = Future[str](loop), list[str]()
    loop.start(wait(future, log), nothing)
    assert future.resolve("value")
    # Whoever resolves is not interrupted by who waited.
    assert log == []
    run(loop)
    assert log == ["value"]


def test_a_failed_future_raises_where_it_is_awaited(loop: Loop) -> None:
    future, log = Future[str](loop), list[str]()
    loop.start(wait(future, log), nothing)
    assert future.fail(ValueError("no"))
    run(loop)
    assert log == ["failed: no"]


def test_only_the_first_result_counts(loop: Loop) -> None:
    future, log = Future[str](loop), list[str]()
    assert not future.done
    assert future.resolve("first")
    assert future.done
    assert not future.resolve("second")
    assert not future.fail(ValueError("late"))
    loop.start(wait(future, log), nothing)
    assert log == ["first"]


def test_a_value_after_a_failure_is_told_that_it_is_late(loop: Loop) -> None:
    future, log = Future[str](loop), list[str]()
    assert future.fail(ValueError("no"))
    assert not future.resolve("late")
    loop.start(wait(future, log), nothing)
    assert log == ["failed: no"]


def test_all_who_wait_go_on_in_their_order(loop: Loop) -> None:
    future, log = Future[str](loop), list[str]()
    for name in "abc":
        future.when_done(lambda name=name: log.append(name))  # type: ignore[misc]
    future.resolve("")
    future.when_done(lambda: log.append("later"))
    assert log == []
    run(loop)
    assert log == ["a", "b", "c", "later"]


def test_none_is_a_value(loop: Loop) -> None:
    future = Future[None](loop)
    results: list[None] = []

    async def body() -> None:
        results.append(await future)  # type: ignore[func-returns-value]

    loop.start(body(), nothing)
    future.resolve(None)
    run(loop)
    assert results == [None]


# --- coroutines -----------------------------------------------------------------------------------------------------


def test_a_coroutine_runs_at_once_as_far_as_it_goes(loop: Loop) -> None:
    future, log = Future[str](loop), list[str]()

    async def body() -> str:
        log.append("begun")
        return await future + "!"

    loop.start(body(), log.append)
    assert log == ["begun"]
    future.resolve("value")
    run(loop)
    assert log == ["begun", "value!"]


def test_a_coroutine_that_never_waits_is_finished_before_start_returns(loop: Loop) -> None:
    log: list[str] = []

    async def body() -> str:
        return "done"

    loop.start(body(), log.append)
    assert log == ["done"]


def test_a_coroutine_waits_many_times(loop: Loop) -> None:
    futures, log = [Future[int](loop) for _ in range(3)], list[int]()

    async def body() -> int:
        return sum([await future for future in futures])

    loop.start(body(), log.append)
    for value, future in enumerate(reversed(futures)):
        future.resolve(value + 1)
        run(loop)
    assert log == [6]


def test_a_bug_in_a_coroutine_ends_the_loop(loop: Loop) -> None:
    future = Future[None](loop)

    async def body() -> None:
        await future
        raise ZeroDivisionError

    loop.start(body(), nothing)
    future.resolve(None)
    with pytest.raises(ZeroDivisionError):
        loop.run()


# --- callbacks and timers -------------------------------------------------------------------------------------------


def test_what_is_due_soon_does_not_starve_descriptors(
    loop: Loop, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    (here, there), _ = pairs
    turns = 0

    def again() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(again)
        assert turns < 100, "descriptors are starved"

    loop.call_soon(again)
    loop.watch(here.fileno(), READ, lambda _: loop.stop())
    there.send(b"x")
    loop.run()
    loop.unwatch(here.fileno())


def test_callbacks_run_in_their_order_and_those_they_ask_for_after_them(loop: Loop) -> None:
    log: list[str] = []

    def first() -> None:
        log.append("a")
        loop.call_soon(lambda: log.append("c"))

    loop.call_soon(first)
    loop.call_soon(lambda: log.append("b"))
    run(loop)
    assert log == ["a", "b", "c"]


def test_what_is_due_soon_does_not_wait(loop: Loop) -> None:
    turns = 0

    def again() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(again if turns < 500 else loop.stop)

    loop.call_soon(again)
    started = time.monotonic()
    loop.run()
    assert time.monotonic() - started < 0.3


def test_timers_go_off_in_the_order_of_their_times(loop: Loop) -> None:
    log: list[str] = []
    for name, seconds in (("c", 0.03), ("a", 0.01), ("b", 0.02)):
        loop.call_later(seconds, lambda name=name: log.append(name))  # type: ignore[misc]
    run(loop, 0.04)
    assert log == ["a", "b", "c"]


def test_timers_of_the_same_time_go_off_in_the_order_they_were_set(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[int] = []
    now = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now)
        for number in range(10):
            loop.call_later(0, lambda number=number: log.append(number))  # type: ignore[misc]
    run(loop)
    assert log == list(range(10))


def test_a_timer_does_not_go_off_early(loop: Loop) -> None:
    started = time.monotonic()
    loop.call_later(0.05, loop.stop)
    loop.run()
    assert time.monotonic() - started >= 0.05


@pytest.mark.parametrize("seconds", [1e9, 9_223_372_036_854.775807])
def test_a_timer_may_be_as_late_as_anybody_asks(
    loop: Loop, pairs: list[tuple[socket.socket, socket.socket]], seconds: float
) -> None:
    """The longest timeout of WaitMachine, and of --idle-timeout: epoll_wait(2) takes 25 days at most."""
    here, there = pairs[0]
    loop.watch(here.fileno(), READ, lambda _: loop.stop())
    there.send(b"x")
    timer = loop.call_later(seconds, lambda: None)
    loop.run()
    assert timer.callback is not None
    loop.unwatch(here.fileno())


def test_waiting_for_a_timer_costs_no_time_of_the_processor(loop: Loop) -> None:
    started = time.process_time()
    loop.call_later(0.2, loop.stop)
    loop.run()
    assert time.process_time() - started < 0.1


def test_a_cancelled_timer_does_not_go_off(loop: Loop) -> None:
    log: list[str] = []
    timer = loop.call_later(0.01, lambda: log.append("cancelled"))
    timer.cancel()
    timer.cancel()
    loop.call_later(0.02, lambda: log.append("other"))
    run(loop, 0.03)
    assert log == ["other"]


def test_a_timer_that_is_cancelled_by_one_due_with_it_does_not_go_off(loop: Loop) -> None:
    log: list[str] = []
    loop.call_later(0, lambda: second.cancel())
    second = loop.call_later(0, lambda: log.append("second"))
    time.sleep(0.001)
    run(loop)
    assert log == []


def test_a_timer_goes_off_once_and_can_be_cancelled_after(loop: Loop) -> None:
    log: list[str] = []
    timer = loop.call_later(0, lambda: log.append("once"))
    run(loop, 0.01)
    timer.cancel()
    run(loop, 0.01)
    assert log == ["once"]
    # It was gone already: nothing is left to be counted as cancelled.
    assert loop._cancelled_timers == 0


def test_cancelled_timers_do_not_pile_up(loop: Loop) -> None:
    """A busy service sets a deadline for each call and cancels nearly all, long before their times."""
    log: list[str] = []
    loop.call_later(0.02, lambda: log.append("kept"))
    for _ in range(10_000):
        loop.call_later(3600, lambda: log.append("cancelled")).cancel()
        assert len(loop._timers) <= 205
    run(loop, 0.03)
    assert log == ["kept"]


def test_timers_are_kept_while_others_are_cancelled(loop: Loop) -> None:
    log: list[int] = []
    timers = []
    for number in range(1000):
        timers.append(loop.call_later(number / 1e6, lambda number=number: log.append(number)))  # type: ignore[misc]
    for number, timer in enumerate(timers):
        if number % 10:
            timer.cancel()
    assert len(loop._timers) < 300
    run(loop, 0.02)
    assert log == list(range(0, 1000, 10))
    assert loop._timers == []
    assert loop._cancelled_timers == 0


# --- file descriptors -----------------------------------------------------------------------------------------------


def test_a_handler_is_told_what_happened(loop: Loop, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    (here, there), _ = pairs
    log: list[int] = []

    def handler(events: int) -> None:
        log.append(events)
        loop.stop()

    loop.watch(here.fileno(), READ, handler)
    there.send(b"x")
    loop.run()
    here.recv(1)
    loop.change(here.fileno(), WRITE)
    loop.run()
    loop.change(here.fileno(), 0)
    there.close()
    loop.run()
    loop.unwatch(here.fileno())
    assert log[:2] == [READ, WRITE]
    # Hang-up comes unasked.
    assert log[2] & HANGUP


def test_what_is_not_watched_any_more_is_not_heard(
    loop: Loop, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    (here, there), _ = pairs
    log: list[int] = []
    loop.watch(here.fileno(), READ, log.append)
    loop.unwatch(here.fileno())
    there.send(b"x")
    run(loop, 0.01)
    assert log == []


def test_an_event_does_not_go_to_who_took_over_the_number_of_the_descriptor(
    loop: Loop, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """Two are readable. The handler of the first closes the second, and a third one gets its number."""
    (first, first_peer), (second, second_peer) = pairs
    log: list[str] = []
    number = second.fileno()

    def replace_second(_: int) -> None:
        log.append("first")
        first.recv(1)
        loop.unwatch(number)
        second.close()
        os.dup2(first.fileno(), number)
        loop.watch(number, READ, lambda _: log.append("third"))

    loop.watch(first.fileno(), READ, replace_second)
    loop.watch(number, READ, lambda _: log.append("second, stale"))
    first_peer.send(b"x")
    second_peer.send(b"x")
    run(loop, 0.01)
    # Its handler hears the stale event and has to know that it is closed. The third has got nothing to read.
    assert log == ["first", "second, stale"]
    loop.unwatch(number)
    os.close(number)


def test_a_handler_may_stop_watching_itself(loop: Loop, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    (here, there), _ = pairs
    log: list[int] = []

    def handler(events: int) -> None:
        log.append(events)
        loop.unwatch(here.fileno())

    loop.watch(here.fileno(), READ, handler)
    there.send(b"x")
    run(loop, 0.01)
    assert log == [READ]


# --- stop -----------------------------------------------------------------------------------------------------------


def test_stop_ends_the_loop_after_this_turn_and_it_can_run_again(loop: Loop) -> None:
    log: list[str] = []

    def first() -> None:
        loop.stop()
        loop.call_soon(lambda: log.append("next turn"))

    loop.call_soon(first)
    loop.call_soon(lambda: log.append("same turn"))
    loop.run()
    assert log == ["same turn"]
    run(loop)
    assert log == ["same turn", "next turn"]


def test_close_gives_the_descriptor_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    loop = Loop()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    loop.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_coroutines_wait_for_each_other(loop: Loop) -> None:
    """A request that opens the bus, and one that waits for the same: the shape of machined.py."""
    ready, log = Future[None](loop), list[str]()

    async def user(name: str) -> str:
        await ready
        return name

    make: Callable[[str], Coroutine[Future[Any], None, str]] = user
    loop.start(make("a"), log.append)
    loop.start(make("b"), log.append)
    loop.call_later(0.001, lambda: ready.resolve(None))
    run(loop, 0.01)
    assert log == ["a", "b"]


# --- shares ---------------------------------------------------------------------------------------------------------


class Shares:
    """Users whose work takes as long as a test says: time goes on only by work. `log` says who worked, in order."""

    def __init__(self, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
        self._loop = loop
        self.now = 0.0
        self.log: list[str] = []
        self._shares: list[Share] = []
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(module, "TURN_MAX", 100)
        # Each turn by itself, but where a test says otherwise.
        monkeypatch.setattr(module, "STRETCH", 0)

    def share(self) -> Share:
        self._shares.append(Share(self._loop))
        return self._shares[-1]

    def work(
        self, share: Share, name: str, costs: float, times: int = 1, then: Callable[[], None] = lambda: None
    ) -> None:
        """So many callbacks, each of which takes its time. In the last one something else happens as well."""

        def one(last: bool) -> None:
            self.now += costs
            self.log.append(name)
            if last:
                then()

        for number in range(times):
            share.call_soon(lambda last=number == times - 1: one(last))  # type: ignore[misc]

    def run(self, number: int) -> str:
        """What is done in so many turns."""
        before = len(self.log)

        def again(left: int) -> None:
            self._loop.call_soon(self._loop.stop if left == 1 else lambda: again(left - 1))

        again(number)
        self._loop.run()
        return "".join(self.log[before:])

    def close(self) -> None:
        for share in self._shares:
            share.close()


@pytest.fixture
def shares(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shares]:
    shares = Shares(loop, monkeypatch)
    yield shares
    shares.close()


def test_shares_do_one_thing_a_turn_and_take_turns(shares: Shares) -> None:
    a, b = shares.share(), shares.share()
    shares.work(a, "a", 1, 4)
    shares.work(b, "b", 1, 2)
    assert shares.run(1) == "a"
    assert shares.run(10) == "babaa"


def test_a_share_is_one_of_those_that_contend_however_much_it_has_to_do(shares: Shares, loop: Loop) -> None:
    a, b = shares.share(), shares.share()
    for _ in range(3):
        shares.work(a, "a", 1, 4)
        shares.work(b, "b", 1, 4)
        shares.run(2)
        assert len(loop._contenders) == 2
    shares.run(20)
    assert loop._contenders == []


def test_a_share_whose_event_is_gone_by_its_turn_does_nothing(
    shares: Shares, loop: Loop, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    (here, there), _ = pairs
    share = shares.share()
    share.watch(here.fileno(), READ, lambda _: shares.log.append("event"))
    there.send(b"x")
    loop.call_soon(lambda: share.unwatch(here.fileno()))
    assert shares.run(3) == ""
    assert loop._contenders == []


def test_who_needs_more_time_has_fewer_turns(shares: Shares) -> None:
    """Both get the same time, whatever it is made of."""
    a, b = shares.share(), shares.share()
    shares.work(a, "a", 5, 3)
    shares.work(b, "b", 1, 15)
    assert shares.run(40) == "abbbbbabbbbbabbbbb"


def test_a_turn_counts_as_no_more_than_a_call_can_take(shares: Shares, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process took in between is not this user's debt."""
    monkeypatch.setattr(module, "TURN_MAX", 2)
    a, b = shares.share(), shares.share()
    shares.work(a, "a", 50, 3)
    shares.work(b, "b", 1, 6)
    assert shares.run(40) == "abbabbabb"


def test_turns_are_the_same_whoever_came_first(shares: Shares) -> None:
    a, b = shares.share(), shares.share()
    shares.work(b, "b", 1, 10)
    shares.work(a, "a", 5, 2)
    assert shares.run(40) == "babbbbbabbbb"


def test_time_that_was_not_used_is_not_saved_up(shares: Shares) -> None:
    """Who comes after a while has its turn at once, and from then on as often as others."""
    a, b = shares.share(), shares.share()
    shares.work(a, "a", 1, 200)
    shares.run(100)
    assert b.used == 0
    shares.work(b, "b", 1, 5)
    assert shares.run(12) == "bababababaaa"


def test_time_that_was_used_is_not_forgotten_by_having_nothing_to_do(shares: Shares) -> None:
    """Or who asks for much, but for one thing at a time, would be served before others each time."""
    a, b = shares.share(), shares.share()
    shares.work(a, "a", 1, 100)
    assert shares.run(1) == "a"
    shares.work(b, "b", 10)
    assert shares.run(2) == "ba"
    shares.work(b, "b", 10)
    assert shares.run(10) == "a" * 9 + "b"


def test_who_has_something_to_do_at_last_is_next(
    shares: Shares, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """It came while another had its turn, so it is behind none who was there then."""
    (here, there), _ = pairs
    a, b = shares.share(), shares.share()
    shares.work(a, "a", 1, 3)
    shares.work(a, "A", 1, then=lambda: assert_sent(there))
    shares.work(a, "a", 1, 3)

    def handler(_: int) -> None:
        here.recv(10)
        shares.log.append("b")

    b.watch(here.fileno(), READ, handler)
    assert shares.run(10) == "aaaAbaaa"
    b.unwatch(here.fileno())


def assert_sent(sender: socket.socket) -> None:
    assert sender.send(b"x") == 1


def test_the_loops_own_callbacks_do_not_wait_for_shares(shares: Shares, loop: Loop) -> None:
    a = shares.share()
    shares.work(a, "a", 1, 5)
    loop.call_soon(lambda: loop.call_soon(lambda: shares.log.append("-")))
    assert shares.run(10) == "a-aaaa"


def test_a_share_hears_of_its_descriptors(
    shares: Shares, loop: Loop, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    (here, there), _ = pairs
    share, heard = shares.share(), list[int]()

    def handler(events: int) -> None:
        heard.append(events)
        loop.stop()

    share.watch(here.fileno(), WRITE, handler)
    there.send(b"x")
    loop.run()
    share.change(here.fileno(), READ)
    loop.run()
    here.recv(1)
    share.change(here.fileno(), 0)
    there.close()
    loop.run()
    assert heard[:2] == [WRITE, READ]
    assert heard[2] & HANGUP
    share.unwatch(here.fileno())
    shares.run(5)
    assert len(heard) == 3
    assert share._handlers == {}


def test_a_descriptor_of_a_share_that_is_ready_again_and_again_has_one_turn_of_many(
    shares: Shares, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """Between two of its events, others of the same share and other shares have theirs."""
    (first, first_peer), (second, second_peer) = pairs
    a, b = shares.share(), shares.share()
    for peer in (first_peer, second_peer):
        peer.send(b"never read")

    def handler(name: str) -> Callable[[int], None]:
        def handle(_: int) -> None:
            shares.now += 1
            shares.log.append(name)

        return handle

    a.watch(first.fileno(), READ, handler("1"))
    a.watch(second.fileno(), READ, handler("2"))
    shares.work(b, "b", 1, 100)
    shares.run(2)
    assert shares.run(8) in ("1b2b1b2b", "2b1b2b1b", "b1b2b1b2", "b2b1b2b1")
    a.unwatch(first.fileno())
    a.unwatch(second.fileno())


def test_callbacks_and_descriptors_of_a_share_do_not_starve_each_other(
    shares: Shares, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    (here, there), _ = pairs
    share = shares.share()
    there.send(b"never read")
    share.watch(here.fileno(), READ, lambda _: shares.log.append("d"))
    shares.work(share, "c", 0, 100)
    assert shares.run(8) == "dcdcdcdc"
    share.unwatch(here.fileno())
    assert shares.run(3) == "ccc"
    share.watch(here.fileno(), READ, lambda _: shares.log.append("d"))
    assert shares.run(4) == "dcdc"
    share.unwatch(here.fileno())


def test_who_is_alone_has_turns_for_a_while(shares: Shares, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRETCH", 3)
    a, b = shares.share(), shares.share()
    shares.work(a, "a", 1, 7)
    assert [shares.run(1), shares.run(1)] == ["aaa", "aaa"]
    shares.work(b, "b", 1, 10)
    # Now there are two, until there is one again.
    turns = [shares.run(1) for _ in range(8)]
    both = turns.index("a") + 1
    assert turns[:both] == ["b"] * (both - 1) + ["a"]
    assert "".join(turns[both:]) == "b" * (11 - both)
    assert turns[both] == "bbb"


def test_who_gets_company_in_a_turn_is_alone_no_more(shares: Shares, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRETCH", 100)
    a, b = shares.share(), shares.share()
    shares.work(a, "a", 1, 2, then=lambda: shares.work(b, "b", 1))
    shares.work(a, "a", 1, 2)
    assert shares.run(1) == "aa"
    assert shares.run(1) == "b"


def test_who_is_alone_is_charged_for_all_its_turns_and_contends_once(
    shares: Shares, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STRETCH", 3)
    share = shares.share()
    shares.work(share, "a", 1, 2, then=lambda: shares.work(share, "c", 1, 4))
    assert shares.run(1) == "aac"
    assert share.used == 3
    assert loop._contenders == [share]
    assert shares.run(1) == "ccc"
    assert loop._contenders == []


@pytest.mark.parametrize("others", [0, 1])
def test_events_of_many_descriptors_are_one_stretch_and_one_descriptor_is_not_looked_at_twice(
    shares: Shares,
    pairs: list[tuple[socket.socket, socket.socket]],
    monkeypatch: pytest.MonkeyPatch,
    others: int,
) -> None:
    """Whose only client is answered has nothing else to do most of the time."""
    monkeypatch.setattr(module, "STRETCH", 3)
    (here, there), (other, _) = pairs
    share = shares.share()
    there.send(b"never read")

    def handle(_: int) -> None:
        shares.now += 1
        shares.log.append("d")

    share.watch(here.fileno(), READ, handle)
    if others:
        share.watch(other.fileno(), READ, handle)
    assert shares.run(1) == ("ddd" if others else "d")
    share.unwatch(here.fileno())
    if others:
        share.unwatch(other.fileno())


def test_callbacks_of_a_share_run_in_their_order_and_those_they_ask_for_after_them(shares: Shares) -> None:
    share = shares.share()
    share.call_soon(lambda: shares.work(share, "c", 1))
    shares.work(share, "a", 1)
    shares.work(share, "b", 1)
    assert shares.run(1) == ""
    assert shares.run(10) == "abc"


def test_a_share_without_anything_to_do_costs_no_time(
    shares: Shares, loop: Loop, pairs: list[tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here, there), _ = pairs
    share = shares.share()

    def read(_: int) -> None:
        here.recv(10)

    share.watch(here.fileno(), READ, read)
    shares.work(share, "a", 1)
    there.send(b"x")
    assert shares.run(5) == "a"
    assert loop._contenders == []
    assert loop._patience() is None
    monkeypatch.undo()
    loop.call_later(0.1, loop.stop)
    started = time.process_time()
    loop.run()
    assert time.process_time() - started < 0.05
    share.unwatch(here.fileno())


def test_what_comes_after_a_wait_is_a_turn_of_its_own_share(shares: Shares, loop: Loop) -> None:
    a, b, future = shares.share(), shares.share(), Future[str](loop)

    async def wait(name: str) -> str:
        await future
        return name

    def done(name: str) -> None:
        shares.now += 1
        shares.log.append(name)

    for _ in range(3):
        a.start(wait("a"), done)
    b.start(wait("b"), done)
    future.resolve("")
    assert shares.run(1) == "a"
    assert shares.run(1) == "b"
    assert shares.run(5) == "aa"


@pytest.mark.parametrize("error", [None, ZeroDivisionError()])
def test_what_is_done_apart_is_no_users_turn(loop: Loop, error: Exception | None) -> None:
    """It goes on as soon as the loop does, though another thing of the share's comes first."""
    share, log, future = Share(loop), list[str](), Future[str](loop)

    async def inner() -> str:
        value = await future
        log.append("inner")
        if error is not None:
            raise error
        return value

    async def outer() -> None:
        try:
            log.append(await loop.apart(inner()))
        except ZeroDivisionError:
            log.append("failed")

    share.start(outer(), nothing)
    share.call_soon(lambda: log.append("share"))
    future.resolve("value")
    run(loop, 0.01)
    assert log == ["inner", "share", "value" if error is None else "failed"]
    share.close()


def test_a_coroutine_of_a_share_runs_at_once_as_far_as_it_goes(shares: Shares) -> None:
    share, log = shares.share(), list[str]()

    async def body() -> str:
        return "done"

    share.start(body(), log.append)
    assert log == ["done"]


def test_who_did_not_say_waits_in_the_loops_own_time(loop: Loop) -> None:
    """And who did, in the time that it said, whether there is a result by then or not."""
    future, log, own = Future[None](loop), list[str](), list[Callable[[], None]]()
    future.when_done(lambda: log.append("a"), own.append)
    future.when_done(lambda: log.append("b"))
    future.resolve(None)
    future.when_done(lambda: log.append("c"), own.append)
    run(loop)
    assert log == ["b"]
    for callback in own:
        callback()
    assert log == ["b", "a", "c"]


def test_who_is_forgotten_is_not_called(loop: Loop) -> None:
    future, log = Future[None](loop), list[str]()

    def forgotten() -> None:
        log.append("forgotten")

    future.when_done(forgotten)
    future.when_done(lambda: log.append("other"))
    future.forget(forgotten)
    future.resolve(None)
    run(loop)
    assert log == ["other"]


def test_a_timer_of_a_share_goes_off_as_any_other(loop: Loop) -> None:
    share, log = Share(loop), list[float]()
    started = time.monotonic()
    share.call_later(0.02, lambda: log.append(time.monotonic() - started))
    share.call_later(0.01, lambda: log.append(0)).cancel()
    run(loop, 0.04)
    (after,) = log
    assert after >= 0.02
    share.close()


def test_a_share_that_is_closed_hears_nothing_and_still_does_what_was_asked_for(
    loop: Loop, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    (here, there), _ = pairs
    before = len(os.listdir("/proc/self/fd"))
    share, log = Share(loop), list[str]()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    share.watch(here.fileno(), READ, lambda _: log.append("event"))
    share.call_soon(lambda: log.append("a"))
    share.call_soon(lambda: share.call_soon(lambda: log.append("b")))
    share.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(loop._handlers) == 0
    there.send(b"x")
    run(loop, 0.01)
    assert log == ["a", "b"]
    assert loop._contenders == []
    share.call_soon(lambda: log.append("c"))
    run(loop, 0.01)
    assert log == ["a", "b", "c"]


def test_a_share_may_be_closed_in_its_turn(loop: Loop, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """As by a user's last connection that ends. What is left to do is done."""
    (here, there), _ = pairs
    share, log = Share(loop), list[str]()

    def handler(_: int) -> None:
        share.call_soon(lambda: log.append("later"))
        share.unwatch(here.fileno())
        share.close()

    share.watch(here.fileno(), READ, handler)
    there.send(b"x")
    run(loop, 0.01)
    assert log == ["later"]
    assert loop._contenders == []


def test_a_bug_in_a_turn_ends_the_loop(loop: Loop) -> None:
    share = Share(loop)

    def bug() -> None:
        raise ZeroDivisionError

    share.call_soon(bug)
    with pytest.raises(ZeroDivisionError):
        loop.run()
    share.close()


# --- waiting awake --------------------------------------------------------------------------------------------------


class SlowClock:
    """Stands for epoll and for the clock: each look takes 10 µs, and each event comes when it is told to."""

    def __init__(self, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.looks = 0  # awake
        self.event = 0.0
        monkeypatch.setattr(loop, "_epoll", self)
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: self.now))

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        if timeout == 0:
            self.looks += 1
            self.now += 0.000_01
        else:
            self.now = max(self.now, self.event)
        return [(7, READ)] if self.now >= self.event else []

    def close(self) -> None:
        pass

    def wait(self, loop: Loop, seconds: float) -> int:
        """How many looks it took to see an event that comes after so long."""
        self.event, self.looks = self.now + seconds, 0
        assert loop._wait() == [(7, READ)]
        assert self.now == pytest.approx(self.event, abs=0.000_01)
        return self.looks


@pytest.fixture
def processors(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    processors = {0, 1}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: processors)
    return processors


def test_who_calls_again_at_once_finds_the_loop_awake(processors: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    clock = SlowClock(loop, monkeypatch)
    assert clock.wait(loop, 1) == 0
    assert clock.wait(loop, 0.000_1) == 0  # that was soon
    assert clock.wait(loop, 0.000_03) == 0
    assert clock.wait(loop, 0.000_03) == 3
    assert clock.wait(loop, 0.000_03) == 3
    assert clock.wait(loop, 0.000_1) == 5  # so long and no longer
    assert clock.wait(loop, 0.000_2) == 5
    assert clock.wait(loop, 0.000_03) == 3
    assert clock.wait(loop, 0.000_03) == 0  # who is slow is waited for asleep
    assert clock.wait(loop, 0.000_03) == 3


def test_a_client_that_calls_again_finds_it_awake_though_each_call_goes_on_to_machined(
    processors: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop()
    clock = SlowClock(loop, monkeypatch)
    client, machined = 0.000_03, 0.000_4
    assert [clock.wait(loop, client), clock.wait(loop, machined)] == [0, 0]
    for _ in range(3):
        assert clock.wait(loop, client) == 3
        assert clock.wait(loop, machined) == 0


def test_on_one_processor_nobody_is_kept_from_it(processors: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    processors.remove(1)
    loop = Loop()
    clock = SlowClock(loop, monkeypatch)
    assert [clock.wait(loop, 0.000_03) for _ in range(4)] == [0, 0, 0, 0]
