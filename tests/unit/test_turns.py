# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who gets a place, who waits for one and in which order, and who is told that too many wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bridge.errors import Timeout, TooManyOperations
from bridge.loop import Future, Loop
from bridge.turns import ROOT, Turns

A, B, C = 1000, 1001, 1002


class Place:
    """What becomes of one who wants a place."""

    def __init__(self, user: int) -> None:
        self.user = user
        self.taken = False
        self.error: Exception | None = None
        self.awaited: list[Future[None]] = []

    @property
    def waits(self) -> bool:
        return not self.taken and self.error is None


class Counter:
    """Where places are given out. `order` says who got one, by when it was known there."""

    def __init__(self, loop: Loop, places: int, per_user: int, waiting_max: int) -> None:
        self._loop = loop
        self.turns = Turns(loop, places, per_user, waiting_max)
        self.order: list[Place] = []

    def wants(self, user: int) -> Place:
        place = Place(user)

        async def take() -> None:
            try:
                await self.turns.take(user, place.awaited.append)
            except Exception as error:
                place.error = error
            else:
                place.taken = True
                self.order.append(place)

        self._loop.start(take(), lambda _: None)
        return place

    def gives_back(self, user: int) -> None:
        self.turns.give_back(user)
        self.settle()

    def settle(self) -> None:
        """Let those go on whose wait is over."""
        self._loop.call_soon(lambda: self._loop.call_soon(self._loop.stop))
        self._loop.run()

    @property
    def users(self) -> list[int]:
        """Who has got a place so far, in their order."""
        return [place.user for place in self.order]


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


Open = Callable[..., Counter]


@pytest.fixture
def counter(loop: Loop) -> Open:
    def counter(places: int = 100, per_user: int = 100, waiting_max: int = 100) -> Counter:
        return Counter(loop, places, per_user, waiting_max)

    return counter


def test_a_place_is_taken_at_once_where_there_is_one(counter: Open) -> None:
    here = counter()
    place = here.wants(A)
    assert place.taken
    assert place.awaited == []
    assert (here.turns.taken, here.turns.waiting) == (1, 0)
    here.gives_back(A)
    assert (here.turns.taken, here.turns.waiting) == (0, 0)
    # Nothing is remembered of users without a place.
    assert not here.turns._taken
    assert not here.turns._queues


def test_a_higher_limit_is_for_who_waits_already(loop: Loop, counter: Open) -> None:
    here = counter(per_user=1, waiting_max=1)
    first, second, third = (here.wants(A) for _ in range(3))
    assert (first.taken, second.waits) == (True, True)
    assert isinstance(third.error, TooManyOperations)
    here.turns.limit(2, 2)
    here.settle()
    assert second.taken
    # A lower one takes nothing from anybody.
    here.turns.limit(1, 1)
    here.settle()
    assert here.turns.taken == 2


@pytest.mark.parametrize("per_user", [1, 2, 5])
def test_a_user_has_so_many_places_and_takes_none_from_others(counter: Open, per_user: int) -> None:
    here = counter(per_user=per_user)
    assert all(here.wants(A).taken for _ in range(per_user))
    more = here.wants(A)
    assert more.waits
    assert (here.turns.taken, here.turns.waiting) == (per_user, 1)
    assert here.wants(B).taken
    # Another's place is no help.
    here.gives_back(B)
    assert more.waits
    here.gives_back(A)
    assert more.taken
    assert (here.turns.taken, here.turns.waiting) == (per_user, 0)


@pytest.mark.parametrize(("places", "of_users"), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 3), (8, 6), (96, 72)])
def test_users_have_three_quarters_of_the_places_and_one_at_least(counter: Open, places: int, of_users: int) -> None:
    here = counter(places)
    wanting = [here.wants(user) for user in range(1000, 1000 + of_users + 1)]
    assert [place.taken for place in wanting] == [True] * of_users + [False]
    # Root has the rest, and after that waits as well.
    assert all(here.wants(ROOT).taken for _ in range(places - of_users))
    assert here.turns.taken == places
    assert here.wants(ROOT).waits


def test_roots_places_are_none_of_the_users(counter: Open) -> None:
    here = counter(8)
    assert all(here.wants(ROOT).taken for _ in range(2))
    assert all(here.wants(user).taken for user in range(1000, 1006))
    assert here.wants(2000).waits


def test_when_root_has_more_than_its_quarter_users_have_what_is_left(counter: Open) -> None:
    here = counter(8)
    assert all(here.wants(ROOT).taken for _ in range(7))
    assert here.wants(A).taken
    waiting = here.wants(B)
    assert waiting.waits
    assert here.turns.taken == 8
    here.gives_back(ROOT)
    assert waiting.taken
    assert here.turns.taken == 8


def test_root_has_any_number_of_places_and_any_number_may_wait(counter: Open) -> None:
    here = counter(8, per_user=1, waiting_max=1)
    assert all(here.wants(ROOT).taken for _ in range(8))
    waiting = [here.wants(ROOT) for _ in range(20)]
    assert all(place.waits for place in waiting)
    # Nor do they take waiting room from users.
    assert here.turns.waiting == 0
    assert here.wants(A).waits
    assert isinstance(here.wants(A).error, TooManyOperations)
    # Nor is there none for it when users have taken theirs.
    assert here.wants(ROOT).waits
    here.gives_back(ROOT)
    assert [place.waits for place in waiting[:2]] == [False, True]


@pytest.mark.parametrize("waiting_max", [0, 1, 3])
def test_so_many_wait_of_all_users(counter: Open, waiting_max: int) -> None:
    here = counter(per_user=1, waiting_max=waiting_max)
    assert here.wants(A).taken
    assert here.wants(B).taken
    # The first one of each user may wait in any case.
    number_waiting = max(waiting_max, 2)
    waiting = [here.wants((A, B)[number % 2]) for number in range(number_waiting)]
    assert all(place.waits for place in waiting)
    assert here.turns.waiting == number_waiting
    for user in (A, B):
        refused = here.wants(user)
        assert isinstance(refused.error, TooManyOperations)
        assert refused.awaited == []
    assert here.turns.waiting == number_waiting
    # Who need not wait is served all the same.
    assert here.wants(C).taken
    here.gives_back(A)
    assert waiting[0].taken
    assert here.wants(A).waits


def test_users_take_turns(counter: Open) -> None:
    """However many of one wait: another comes after one of them, not after all."""
    here = counter(1)
    here.wants(A)
    for user in (A, A, A, B, B, C):
        assert here.wants(user).waits
    for _ in range(6):
        here.gives_back(here.users[-1])
    assert here.users == [A, A, B, C, A, B, A]
    assert here.turns.waiting == 0


def test_root_has_its_turn_as_others_have(counter: Open) -> None:
    here = counter(1)
    here.wants(A)
    for user in (A, A, ROOT, ROOT):
        assert here.wants(user).waits
    for _ in range(4):
        here.gives_back(here.users[-1])
    assert here.users == [A, A, ROOT, A, ROOT]


def test_of_one_user_who_came_first_is_served_first(counter: Open) -> None:
    here = counter(per_user=1)
    first = here.wants(A)
    waiting = [here.wants(A) for _ in range(4)]
    for _ in waiting:
        here.gives_back(A)
    assert here.order == [first, *waiting]


def test_who_may_not_now_does_not_keep_others_from_their_turn(counter: Open) -> None:
    """The first in line has all the places that it may have."""
    here = counter(4, per_user=2)
    assert all(here.wants(user).taken for user in (A, A, B))
    more, other = here.wants(A), here.wants(C)
    here.gives_back(B)
    assert more.waits
    assert other.taken


def test_one_that_leaves_makes_room_for_as_many_as_fit(counter: Open) -> None:
    """A place of root may be none that users could have; the next one is."""
    here = counter(4)
    assert all(here.wants(ROOT).taken for _ in range(4))
    waiting = [here.wants(user) for user in (A, B, C, C)]
    for taken in (1, 2, 3, 3):
        here.gives_back(ROOT)
        assert sum(place.taken for place in waiting) == taken
    assert here.turns.taken == 3


@pytest.mark.parametrize("settled", [True, False], ids=["heard of", "not yet heard of"])
def test_who_waits_no_more_is_passed_over(counter: Open, settled: bool) -> None:
    here = counter(per_user=1)
    here.wants(A)
    first, second, third, last = (here.wants(A) for _ in range(4))
    for place in (first, second):
        (awaited,) = place.awaited
        assert awaited.fail(Timeout())
    if settled:
        here.settle()
        assert here.turns.waiting == 2
    here.gives_back(A)
    assert isinstance(first.error, Timeout)
    assert isinstance(second.error, Timeout)
    assert third.taken
    assert last.waits
    assert (here.turns.taken, here.turns.waiting) == (1, 1)
    here.gives_back(A)
    assert last.taken
    here.gives_back(A)
    assert not here.turns._taken
    assert not here.turns._queues


@pytest.mark.parametrize("settled", [True, False], ids=["heard of", "not yet heard of"])
def test_when_all_of_a_user_wait_no_more_its_place_goes_to_nobody(counter: Open, settled: bool) -> None:
    here = counter(per_user=1)
    here.wants(A)
    gone = here.wants(A)
    gone.awaited[0].fail(Timeout())
    if settled:
        here.settle()
    here.gives_back(A)
    assert isinstance(gone.error, Timeout)
    assert here.turns.taken == 0
    assert here.wants(A).taken


def test_one_in_the_middle_that_waits_no_more_leaves_the_others_their_order(counter: Open) -> None:
    here = counter(per_user=1)
    first = here.wants(A)
    second, gone, third = (here.wants(A) for _ in range(3))
    gone.awaited[0].fail(Timeout())
    here.settle()
    for _ in range(2):
        here.gives_back(A)
    assert here.order == [first, second, third]


def test_who_has_a_place_by_now_has_to_give_it_back_though_its_time_is_over(counter: Open) -> None:
    """Both in the same moment: the place counts, and the failure comes too late."""
    here = counter(per_user=1)
    here.wants(A)
    second = here.wants(A)
    here.turns.give_back(A)
    assert not second.awaited[0].fail(Timeout())
    here.settle()
    assert second.taken
    assert here.turns.taken == 1
