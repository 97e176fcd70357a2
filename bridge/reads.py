# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads that many clients wait for, made once.

One call over D-Bus answers all clients that asked before it was sent, and never one that asked later: no answer is
older than its question. So the number of calls depends on how fast they are answered, not on how many clients ask.
And an answer that is byte for byte the one before means the same: only a new one is decoded.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from jeepney import Message

from .bus import DEADLINE, Bus, Repeated
from .errors import Timeout
from .loop import Future, Loop
from .turns import ROOT

T = TypeVar("T")

# At one time: the next while one is answered, so that whoever answers does not wait for this side.
UNDER_WAY_MAX = 2


class Read(Generic[T]):
    """One call without parameters that changes nothing, and who waits for its answer."""

    def __init__(
        self, loop: Loop, bus: Bus, message: Message, reply: str, shape: Callable[[tuple[Any, ...]], T]
    ) -> None:
        """See Bus.ask. `shape` makes of the body what those get who wait."""
        self._loop, self._bus = loop, bus
        self._message, self._reply = Repeated(message), reply
        self._shape = shape
        self._last: tuple[tuple[object, bytes], T] | None = None  # byte order and body, and what was made of it
        self._under_way = 0
        self._waiting: list[Future[T]] = []

    async def answer(self) -> T:
        """The reply, for all who wait and as long as it is the same one object: not to be changed.

        Raises what Bus.call raises.
        """
        answer: Future[T] = Future(self._loop)
        timer = self._loop.call_later(DEADLINE, lambda: answer.fail(Timeout()))
        self._waiting.append(answer)
        if self._under_way < UNDER_WAY_MAX:
            self._ask()
        try:
            return await answer
        finally:
            timer.cancel()

    def _ask(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._under_way += 1
        self._loop.start(self._outcome(), partial(self._tell, waiting))

    async def _outcome(self) -> T | Exception:
        try:
            answer = await self._bus.ask(self._message, self._reply, user=ROOT)
            said = answer.header.endianness, answer.data
            if self._last is None or self._last[0] != said:
                self._last = said, self._shape(answer.body())
        except Exception as error:
            return error
        return self._last[1]

    def _tell(self, waiting: list[Future[T]], outcome: T | Exception) -> None:
        self._under_way -= 1
        for answer in waiting:
            if isinstance(outcome, Exception):
                answer.fail(outcome)
            else:
                answer.resolve(outcome)
        if self._waiting:
            self._ask()
