# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads that many clients wait for, made once.

One call over D-Bus answers all clients that asked before it was sent, and never one that asked later: no answer is
older than its question. So the number of calls depends on how fast they are answered, not on how many clients ask.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from jeepney import Message

from .bus import DEADLINE, Bus
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
        """See Bus.call. `shape` makes of the body what those get who wait."""
        self._loop, self._bus = loop, bus
        self._message, self._reply = message, reply
        self._shape = shape
        self._under_way = 0
        self._waiting: list[Future[T]] = []

    async def answer(self) -> T:
        """The reply, for all who wait the same object: not to be changed. Raises what Bus.call raises."""
        answer = Future[T](self._loop)
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
            return self._shape(await self._bus.call(self._message, self._reply, user=ROOT))
        except Exception as error:
            return error

    def _tell(self, waiting: list[Future[T]], outcome: T | Exception) -> None:
        self._under_way -= 1
        for answer in waiting:
            if isinstance(outcome, Exception):
                answer.fail(outcome)
            else:
                answer.resolve(outcome)
        if self._waiting:
            self._ask()
