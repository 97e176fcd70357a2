# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who is served next where only so many are at one time: users take turns, and none takes all the places."""

from collections import Counter, deque
from collections.abc import Callable

from .errors import TooManyOperations
from .loop import Future, Loop

ROOT = 0


class Turns:
    """`places` at one time, the last quarter of them for root; `per_user` of them for any other user.

    Of users' calls `waiting_max` wait at most, beside the first one of each user.
    """

    def __init__(self, loop: Loop, places: int, per_user: int, waiting_max: int) -> None:
        self._loop = loop
        self.places, self.per_user, self.waiting_max = places, per_user, waiting_max
        self._taken: Counter[int] = Counter()
        self._queues: dict[int, deque[Future[None]]] = {}  # who is served next comes first

    def limit(self, per_user: int, waiting_max: int) -> None:
        """From now on. Who has a place, or waits, stays."""
        self.per_user, self.waiting_max = per_user, waiting_max
        self._hand_out()

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return self._taken.total()

    @property
    def waiting(self) -> int:
        """How many calls of users other than root wait."""
        return sum(len(queue) for user, queue in self._queues.items() if user != ROOT)

    async def take(self, user: int, waits: Callable[[Future[None]], None]) -> None:
        """Return with a place, to be given back. `waits` gets the future that is waited for, and may fail it.

        Raises TooManyOperations if too many wait already, and what the future failed with.
        """
        if user not in self._queues and self.has_place(user):
            self._taken[user] += 1
            return
        if user != ROOT and user in self._queues and self.waiting >= self.waiting_max:
            raise TooManyOperations
        place = Future[None](self._loop)
        self._queues.setdefault(user, deque()).append(place)
        waits(place)
        try:
            await place
        except Exception:
            self._forget(user, place)
            raise

    def give_back(self, user: int) -> None:
        self._taken[user] -= 1
        if not self._taken[user]:
            del self._taken[user]
        self._hand_out()

    def _hand_out(self) -> None:
        while (following := next(filter(self.has_place, self._queues), None)) is not None:
            queue = self._queues.pop(following)
            place = queue.popleft()
            if queue:
                self._queues[following] = queue
            if place.resolve(None):
                self._taken[following] += 1

    def has_place(self, user: int) -> bool:
        """Whether there is a free one for this user."""
        if user == ROOT:
            return self.taken < self.places
        taken, places_of_users = self.taken, max(1, self.places * 3 // 4)
        return (
            taken < self.places
            and taken - self._taken[ROOT] < places_of_users
            and self._taken[user] < self.per_user
        )

    def _forget(self, user: int, place: Future[None]) -> None:
        queue = self._queues.get(user)
        if queue is not None and place in queue:
            queue.remove(place)
            if not queue:
                del self._queues[user]
