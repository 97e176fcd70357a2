# SPDX-License-Identifier: LGPL-2.1-or-later
"""Replies that many calls share, and replies that follow one another."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Generic, TypeVar

from .listed import Images, Machines
from .machined import Machined
from .messages import Reply

T = TypeVar("T")


def shared(
    machined: Machined, listed: Machines | Images, about: str | bool, parameters: Callable[[], dict[str, Any]]
) -> Reply:
    """The one reply about this, as long as this is what is listed and what the policy shows."""
    key = (machined.rules, about)
    reply = listed.replies.get(key)
    if reply is None:
        reply = listed.replies[key] = Reply(parameters(), shared=True)
    return reply


class OneByOne(Generic[T]):
    """A Stream: of a list, a reply for each entry. What is not shown to the client has to be out of it before.

    An entry that is described as None has gone since it was listed.
    """

    def __init__(
        self, key: str, entries: Iterable[T], describe: Callable[[T], Awaitable[dict[str, Any] | None]]
    ) -> None:
        self._key, self._entries, self._describe = key, deque(entries), describe

    async def next(self) -> Reply:
        """An empty list, where there is nothing, or nothing more."""
        while self._entries:
            described = await self._describe(self._entries.popleft())
            if described is not None:
                return Reply({self._key: [described]}, stream=self if self._entries else None)
        return Reply({self._key: []})

    def close(self) -> None:
        self._entries.clear()
