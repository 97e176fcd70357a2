# SPDX-License-Identifier: LGPL-2.1-or-later
"""Coroutines on one thread over epoll(7), in turns between users: just what a forwarding service needs.

Not asyncio: importing it takes as long as half of the native service's whole cold start, and each of its wake-ups
one more turn of the loop; and it knows no turns. There are no tasks to cancel, no executors and no transports here.
"""

import heapq
import os
import select
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from itertools import count
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")
Schedule: TypeAlias = Callable[[Callable[[], None]], None]

TURN_MAX = 0.01
# Seconds to stay awake for the next event if it is likely to come as soon as AGAIN, as it did at the wait before the
# last: where each call goes to machined, the waits for the client and for machined take turns. To fall asleep and be
# woken takes a processor longer than that, and twice as long a client that calls again once it has its reply.
AWAKE = 0.000_05
AGAIN = 0.000_15
# Seconds that a share has turns for, one after the other, while no other is known to have something to do.
STRETCH = 0.000_2

# Seconds that epoll_wait(2) can be asked to wait: it takes an int of milliseconds.
PATIENCE_MAX = 2_000_000.0

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
# The kernel reports these two whether asked or not.
HANGUP = select.EPOLLHUP | select.EPOLLERR


class Future(Generic[T]):
    """A value that comes later. Only the first result counts; a late one is told so and can clean up."""

    __slots__ = ("_exception", "_loop", "_value", "_waiting", "done")

    def __init__(self, loop: "Loop") -> None:
        self._loop = loop
        self._value: T | None = None
        self._exception: Exception | None = None
        self._waiting: list[tuple[Callable[[], None], Schedule]] = []
        self.done = False

    def resolve(self, value: T) -> bool:
        """Give the result; False if there was one already."""
        return self._finish(value, None)

    def fail(self, exception: Exception) -> bool:
        """Give an exception as the result; False if there was a result already."""
        return self._finish(None, exception)

    def when_done(self, callback: Callable[[], None], schedule: "Schedule | None" = None) -> None:
        """Schedule a callback for when there is a result: `Loop.call_soon`, or a share's."""
        schedule = schedule or self._loop.call_soon
        if self.done:
            schedule(callback)
        else:
            self._waiting.append((callback, schedule))

    def forget(self, callback: Callable[[], None]) -> None:
        """Undo `when_done`."""
        self._waiting = [entry for entry in self._waiting if entry[0] != callback]

    def _finish(self, value: T | None, exception: Exception | None) -> bool:
        if self.done:
            return False
        self.done, self._value, self._exception = True, value, exception
        for callback, schedule in self._waiting:
            schedule(callback)
        self._waiting.clear()
        return True

    def __await__(self) -> Generator["Future[Any]", None, T]:
        if not self.done:
            yield self
        if self._exception is not None:
            raise self._exception
        return self._value  # type: ignore[return-value]  # done without exception: there is a value


class Timer:
    """Something to be called once, unless cancelled before."""

    __slots__ = ("_loop", "callback", "when")

    def __init__(self, loop: "Loop", when: float, callback: Callable[[], object]) -> None:
        self._loop = loop
        self.when = when
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self._loop.forget_timer()


class Loop:
    """Waits for file descriptors and timers, and drives coroutines that await futures."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._ready: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._cancelled_timers = 0
        self._order = count()
        self._running = False
        self._contenders: list[Share] = []  # those with something to do
        self._clock = 0.0  # the time that the share which had the last turn had used before it
        # On a single processor nobody could do what is waited for.
        self._awake = AWAKE if len(os.sched_getaffinity(0)) > 1 else 0.0
        self._brisk = False, False  # whether the wait before the last was short, and the last one

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call `handler` with the events that occur on `fd`, hang-up and error always among them."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """To be called before `fd` is closed."""
        self._epoll.unregister(fd)
        del self._handlers[fd]

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._ready.append(callback)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        timer = Timer(self, time.monotonic() + seconds, callback)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        return timer

    def forget_timer(self) -> None:
        """Cancelled timers stay in the heap until half of it is theirs: most deadlines are never reached."""
        self._cancelled_timers += 1
        if self._cancelled_timers > 100 and self._cancelled_timers * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._cancelled_timers = 0

    def start(self, coroutine: Coroutine[Future[Any], None, T], finished: Callable[[T], None]) -> None:
        """Run a coroutine at once as far as it goes, and on when what it waits for is there.

        `finished` gets its result, perhaps before this returns. An exception out of it is a bug and ends the loop.
        """
        _step(coroutine, finished, self.call_soon)

    async def apart(self, coroutine: Coroutine[Future[Any], None, T]) -> T:
        """What it comes to, made in turns of the loop's own and not in those of who waits for it."""
        result = Future[T](self)

        async def make() -> None:
            try:
                result.resolve(await coroutine)
            except Exception as error:  # for who waits
                result.fail(error)

        self.start(make(), lambda _: None)
        return await result

    def run(self) -> None:
        """Until `stop`."""
        self._running = True
        while self._running:
            events = self._wait()
            # Whose event it is must be known before any handler runs: one may close a descriptor whose number
            # another reuses.
            for handler, happened in [(self._handlers[fd], happened) for fd, happened in events]:
                handler(happened)
            self._call_due_timers()
            # What becomes ready by this waits for the next turn, so that nobody starves the descriptors.
            for _ in range(len(self._ready)):
                self._ready.popleft()()
            self._give_turn()

    def _wait(self) -> list[tuple[int, int]]:
        """Events, none if something else is to be done first."""
        patience = self._patience()
        if patience == 0:
            return self._epoll.poll(0)
        events: list[tuple[int, int]] = []
        begin = time.monotonic()
        if self._brisk[0]:
            while not events and time.monotonic() - begin < self._awake:
                events = self._epoll.poll(0)
        if not events:
            events = self._epoll.poll(patience)
        self._brisk = self._brisk[1], time.monotonic() - begin < AGAIN
        return events

    def contend(self, share: "Share") -> None:
        """A share says that it has something to do. Time that it did not use before is not saved up for it."""
        share.used = max(share.used, self._clock)
        self._contenders.append(share)

    @property
    def clock(self) -> float:
        """What a share has used that begins now."""
        return self._clock

    def _give_turn(self) -> None:
        """To the share that used the least time: who asks little now and then does not wait for who asks much.

        One turn, then the descriptors are looked at again, for somebody may have come who used less (start-time fair
        queuing); who is alone has several. What is being done is not interrupted, so the limits of a call are what
        bounds the wait.
        """
        if not self._contenders:
            return
        share = min(self._contenders, key=_used) if len(self._contenders) > 1 else self._contenders[0]
        begin = time.monotonic()
        self._clock = share.used
        share.turn()
        while share.goes_on and len(self._contenders) == 1 and time.monotonic() - begin < STRETCH:
            share.turn()
        if not share.end_turn():
            self._contenders.remove(share)
        # No more than a call can take: what another process took in between is not this user's debt.
        share.used += min(time.monotonic() - begin, TURN_MAX)

    def stop(self) -> None:
        self._running = False

    def close(self) -> None:
        self._epoll.close()

    def _patience(self) -> float | None:
        """Seconds that epoll may wait; None: for ever."""
        if self._ready or self._contenders:
            return 0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
            self._cancelled_timers -= 1
        if not self._timers:
            return None
        return min(max(0.0, self._timers[0][0] - time.monotonic()), PATIENCE_MAX)

    def _call_due_timers(self) -> None:
        if not self._timers:
            return
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is None:
                self._cancelled_timers -= 1
            else:
                callback()


class Share:
    """One user's part in the loop's time: its descriptors and callbacks have their turns between those of others."""

    __slots__ = ("_callback_next", "_contending", "_epoll", "_handlers", "_loop", "_ready", "used")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._ready: deque[Callable[[], None]] = deque()
        self._callback_next = False
        self._contending = False
        self.used = 0.0  # seconds
        loop.watch(self._epoll.fileno(), READ, lambda _: self._contend())

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """As Loop.watch."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """To be called before `fd` is closed."""
        self._epoll.unregister(fd)
        del self._handlers[fd]

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._ready.append(callback)
        self._contend()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """As Loop.call_later. It takes no turn, so it should do little."""
        return self._loop.call_later(seconds, callback)

    def start(self, coroutine: Coroutine[Future[Any], None, T], finished: Callable[[T], None]) -> None:
        """As Loop.start; what comes after a wait is a turn of its own."""
        _step(coroutine, finished, self.call_soon)

    def turn(self) -> None:
        """Do one thing, a callback after a descriptor's event and the other way round."""
        if (self._callback_next and self._ready) or not self._handle():
            self._callback_next = False
            if self._ready:
                self._ready.popleft()()
        else:
            self._callback_next = True

    @property
    def goes_on(self) -> bool:
        """Whether there is something to do after a turn, or likely to be: an event of one of many descriptors."""
        return bool(self._ready) or (self._callback_next and len(self._handlers) > 1)

    def end_turn(self) -> bool:
        """False if nothing is left but what an event tells of."""
        self._contending = bool(self._ready)
        return self._contending

    def close(self) -> None:
        """Nothing is watched any more. What was to be called soon still is."""
        self._loop.unwatch(self._epoll.fileno())
        self._epoll.close()

    def _handle(self) -> bool:
        """Whether there was an event. The kernel reports the descriptors of an epoll in turns."""
        if self._epoll.closed:
            return False
        for fd, happened in self._epoll.poll(0, 1):
            self._handlers[fd](happened)
            return True
        return False

    def _contend(self) -> None:
        if not self._contending:
            self._contending = True
            self._loop.contend(self)


def _step(
    coroutine: Coroutine[Future[Any], None, T], finished: Callable[[T], None], schedule: Schedule
) -> None:
    try:
        awaited = coroutine.send(None)
    except StopIteration as stop:
        finished(stop.value)
    else:
        awaited.when_done(partial(_step, coroutine, finished, schedule), schedule)


def _used(share: Share) -> float:
    return share.used
