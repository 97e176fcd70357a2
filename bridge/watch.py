# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines and images as they come and go: one watch of each kind for all who follow it, and none while nobody does.

Who follows gets the present state as a snapshot, then each change in order. Where changes may have been lost, because
machined or the bus went away, because the follower was too slow, or because the policy is another one, it is told so
and gets a snapshot anew. Only changes that the policy shows are counted: a cursor tells nothing of what is hidden.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from . import remembered
from .bus import DEADLINE, DBusError
from .errors import Timeout, Unavailable, VarlinkError
from .listed import Image, Images, Machine, Machines
from .loop import Future, Loop, Timer
from .messages import Reply
from .pool import Pool
from .ring import Ring

Entry = TypeVar("Entry", Machine, Image)
Event: TypeAlias = Literal["added", "removed", "changed"]
Gap: TypeAlias = Literal["cursor", "lagged", "restarted", "policy"]

HOST = ".host"

# All in seconds. After the last one has left, for one that comes back with its cursor.
LINGER = 10.0
# Until another try after machined or the bus did not answer; and how long that goes on before followers are told. The
# bus needs 25 seconds to notice that a start of machined was lost, as when systemd had not come back to the bus itself.
RETRY, PATIENCE = 0.1, 60.0
# Between looks whether an answer of machined fits what it has announced, and how many of them.
DOUBT, DOUBTS_MAX = 0.02, 50
# Until machined is asked again though it has announced nothing.
VERIFY = 5.0
# Between looks at the pool, and until images are read whatever it looks like.
LOOK, REREAD = 0.25, 5.0


@dataclass(frozen=True, slots=True)
class Change(Generic[Entry]):
    event: Event
    entry: Entry


class Follower(Protocol[Entry]):
    def changed(self, change: Change[Entry] | None) -> None:
        """This changed; None: anything may have."""

    def failed(self, error: Exception) -> None:
        """The watch has ended."""


class Watch(Generic[Entry]):
    """What there is, by name, and the changes that made it so. `state` is true while `settled`."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.ring: Ring[Change[Entry]] = Ring()
        self.state: dict[str, Entry] = {}
        self.settled = False
        self.shows: Callable[[str], bool] = lambda _: False
        self._followers: set[Follower[Entry]] = set()
        self._session: object | None = None
        self._linger: Timer | None = None
        self._sleep: Future[None] | None = None
        self._failing_since: float | None = None
        self._begun = False

    def join(self, follower: Follower[Entry], shows: Callable[[str], bool]) -> None:
        """The first one begins the watch. `shows` is by the policy of now, which is the same for all."""
        self.shows = shows
        self._followers.add(follower)
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._session is None:
            self._session = object()
            self._failing_since = None
            self._begun = False
            self.ring.renew()
            self.loop.start(self._run(self._session), lambda _: None)

    def part(self, follower: Follower[Entry]) -> None:
        self._followers.discard(follower)
        if not self._followers and self._session is not None and self._linger is None:
            self._linger = self.loop.call_later(LINGER, self.end)

    def end(self) -> None:
        """Whoever follows is told of nothing more."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self._session = None
        self.settled = False
        self.state = {}
        self.wake()

    def renew(self) -> None:
        """Another policy: what is shown is not what was."""
        self.ring.renew()
        self._tell(None)

    def wake(self) -> None:
        """Do now what would be done after a while."""
        if self._sleep is not None:
            self._sleep.resolve(None)

    async def _run(self, session: object) -> None:
        """Watch, as long as the session lasts."""
        raise NotImplementedError

    async def _pause(self, seconds: float) -> None:
        """Until `wake` at the latest."""
        sleep = self._sleep = Future[None](self.loop)
        timer = self.loop.call_later(seconds, lambda: sleep.resolve(None))
        await sleep
        timer.cancel()

    def _settle(self, state: dict[str, Entry]) -> None:
        """This is the state now, however it came to be."""
        self.state = state
        if self._begun:
            self.ring.interrupt()
        self._begun = self.settled = True
        self._tell(None)

    def _publish(self, event: Event, entry: Entry) -> None:
        if event == "removed":
            del self.state[entry[0]]
        else:
            self.state[entry[0]] = entry
        if self.shows(entry[0]) and entry[0] != HOST:
            change = Change(event, entry)
            self.ring.append(change)
            self._tell(change)

    def _tell(self, change: Change[Entry] | None) -> None:
        for follower in list(self._followers):
            follower.changed(change)

    def _may_fail_on(self, error: Exception) -> bool:
        """Whether to try again. If there has been no answer for too long, or never one, it ends."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if self._begun and now - self._failing_since < PATIENCE:
            return True
        followers, self._followers = self._followers, set()
        self.end()
        for follower in followers:
            follower.failed(error)
        return False


# --- machines -------------------------------------------------------------------------------------------------------


class Told(Protocol):
    """Who gets machined's signals, in order."""

    def added(self, name: str, path: str) -> None: ...

    def removed(self, name: str) -> None: ...

    def moved(self, there: bool) -> None:
        """machined came to the bus, or left it."""

    def broke(self) -> None:
        """Signals may have been lost."""


class Signals(Protocol):
    """machined's signals and its list, in one order. Calls raise what Bus.call raises."""

    async def open(self) -> None: ...

    async def machines(self) -> Machines: ...

    def close(self) -> None: ...


class MachineWatch(Watch[Machine]):
    """From machined's signals, which have no more than a name, and its list, which has the rest.

    Both come over one connection in the order in which machined sent them. So an answer says what the machines are that
    were announced before it; and it has to list just those which the signals have left.
    """

    def __init__(self, loop: Loop, connect: Callable[[Told], Signals]) -> None:
        super().__init__(loop)
        self._connect = connect
        self._signals: Signals | None = None
        self._due = False
        self._broken = False
        self._names: set[str] = set()  # by the signals, so perhaps ahead of `state`
        self._pending: list[Change[Machine]] = []  # not published, since machined has to say more of one of them
        self._doubts = 0

    def end(self) -> None:
        super().end()
        self._close()
        self._names.clear()
        self._pending.clear()
        self._doubts = 0

    async def _run(self, session: object) -> None:
        while self._session is session:
            try:
                self._broken = False
                self._signals = self._connect(self)
                await self._signals.open()
                while not self._broken:
                    machines = await self._signals.machines()
                    if self._session is not session:
                        return
                    self._failing_since = None
                    self._due = False  # what was announced until now is in this answer
                    self._take(machines)
                    await self._until_due()
                    if self._session is not session:
                        return
                raise Unavailable("the system bus closed the connection")
            except (DBusError, VarlinkError) as error:
                if self._session is not session:
                    return
                self._close()
                self._lose()
                if not self._may_fail_on(error):
                    return
            await self._pause(RETRY)

    def added(self, name: str, path: str) -> None:
        if not self.settled or name == HOST:
            return
        if name in self._names:
            self.removed(name)
        self._names.add(name)
        self._pending.append(Change("added", (name, "", "", path)))
        if len(self._pending) > self.ring.size:
            self._flush({})
        self._want()

    def removed(self, name: str) -> None:
        if not self.settled or name not in self._names:
            return
        self._names.discard(name)
        if self._pending:
            self._pending.append(Change("removed", (name, "", "", "")))
        else:
            self._publish("removed", self.state[name])

    def moved(self, there: bool) -> None:
        """A machined that leaves without machines has none until it comes again, and then announces them.

        The same goes for one whose machines are hidden, all of them: a gap would tell that there are some.
        """
        if there:
            self._want()
        elif any(self.shows(name) for name in self._names):
            self._lose()
            self._want()
        else:
            for name in list(self._names):
                self.removed(name)

    def broke(self) -> None:
        self._broken = True
        self._want()

    def _take(self, machines: Machines) -> None:
        """What machined answered, after all signals up to here."""
        if not self.settled:
            if self._has_ghosts(machines):
                self._doubt(machines)
                return
            self._doubts = 0
            self._names = set(machines) - {HOST}
            self._settle(dict(machines))
            return
        heard = bool(self._pending)
        self._flush(machines)
        if self._names == set(machines) - {HOST}:
            self._doubts = 0
        elif heard:
            self._doubts = 0
            self._doubt(machines)
        else:
            self._doubt(machines)

    def _flush(self, machines: dict[str, Machine]) -> None:
        """Publish what was announced. The last one of a name is the one that is listed, if it is there still."""
        last = {change.entry[0]: index for index, change in enumerate(self._pending)}
        pending, self._pending = self._pending, []
        for index, change in enumerate(pending):
            name = change.entry[0]
            if change.event == "removed":
                self._publish("removed", self.state[name])
            elif last[name] == index and name in machines:
                self._publish("added", machines[name])
            else:
                self._publish("added", change.entry)

    def _has_ghosts(self, machines: Machines) -> bool:
        """Whether one is listed that was announced to be gone: 262 forgets it when it has nothing else to do.

        Its file is removed before that is announced.
        """
        directory = remembered.DIRECTORY
        if self._doubts >= DOUBTS_MAX or not directory.is_dir():
            return False
        return any(not os.path.lexists(directory / name) for name in machines if name != HOST)

    def _doubt(self, machines: Machines) -> None:
        """The answer does not fit. Ask again soon; the list has the last word.

        Where it differs in hidden machines alone, that makes no gap: it would tell of them.
        """
        self._doubts += 1
        if self._doubts > DOUBTS_MAX:
            listed = set(machines) - {HOST}
            if self.settled and not any(self.shows(name) for name in self._names ^ listed):
                for name in self._names - listed:
                    self.removed(name)
                for name in listed - self._names:
                    self._names.add(name)
                    self._publish("added", machines[name])
                self._doubts = 0
                return
            self._lose()
        self.loop.call_later(DOUBT, self._want)

    def _lose(self) -> None:
        """What is known may not be true any more: machined has to say what is."""
        if self.settled:
            self._flush({})
            self.settled = False
        self._doubts = 0

    def _want(self) -> None:
        """machined has to be asked again."""
        self._due = True
        self.wake()

    async def _until_due(self) -> None:
        """Whatever was announced, a machined that has machines is asked now and then; without any it may leave."""
        while not self._due and self._session is not None:
            await self._pause(VERIFY if self._names else DEADLINE)
            self._due |= bool(self._names)

    def _close(self) -> None:
        if self._signals is not None:
            self._signals.close()
            self._signals = None


# --- images ---------------------------------------------------------------------------------------------------------


class ImageWatch(Watch[Image]):
    """The difference between two answers of machined, which is asked when the pool looks different, and now and then.

    What comes and goes between two answers is not seen.
    """

    def __init__(self, loop: Loop, read: Callable[[], Any], pool: Pool) -> None:
        super().__init__(loop)
        self._read, self._pool = read, pool
        self._hinted = False

    async def _run(self, session: object) -> None:
        while self._session is session:
            self._hinted = False
            try:
                stamp = self._pool.look()
                images: Images = await self._read()
                if self._session is not session:
                    return
                self._failing_since = None
                self._take(images)
            except (DBusError, VarlinkError) as error:
                if self._session is not session or not self._may_fail_on(error):
                    return
                await self._pause(RETRY)
                continue
            end = time.monotonic() + REREAD
            while self._session is session and not self._hinted and time.monotonic() < end:
                await self._pause(LOOK)
                if self._pool.has_changed(stamp):
                    break

    def hint(self) -> None:
        """This service has just changed an image."""
        self._hinted = True
        self.wake()

    def _take(self, images: Images) -> None:
        found = {image[0]: image for image in images}
        if not self.settled:
            self._settle(found)
            return
        before = self.state.copy()
        for name, image in before.items():
            if name not in found or _identity(found[name]) != _identity(image):
                self._publish("removed", image)
        for name, image in found.items():
            if name not in self.state:
                self._publish("added", image)
            elif self.state[name] != image:
                self._publish("changed", image)


def _identity(image: Image) -> tuple[object, ...]:
    """What does not change while it is the same image: its type, when it was created, and where its object is."""
    return image[1], image[3], image[6]


# --- who follows ----------------------------------------------------------------------------------------------------


class Changes(Generic[Entry]):
    """The replies to one call of WatchMachines or WatchImages: a messages.Stream."""

    def __init__(
        self,
        watch: Watch[Entry],
        shows: Callable[[str], bool],
        key: str,
        shape: Callable[[Entry], dict[str, object]],
        *,
        everything: bool,
    ) -> None:
        """`key` is the field of the entries, each of which `shape` makes; with the host's if `everything`."""
        self._watch: Watch[Entry] = watch
        self._shows = shows
        self._key = key
        self._shape: Callable[[Entry], dict[str, object]] = shape
        self._everything = everything
        self._epoch, self._position = "", 0
        self._news: Future[None] | None = None
        self._failure: Exception | None = None
        self._closed = False

    async def first(self, cursor: str | None, left: Future[None] | None = None) -> Reply:
        """The first reply. Raises what Bus.call raises, also when the client has `left` before; then it is closed."""
        self._watch.join(self, self._shows)
        if left is not None:
            left.when_done(self.close)
        try:
            await self._settled()
        except Exception:
            self.close()
            raise
        finally:
            if left is not None:
                left.forget(self.close)
        if self._closed:
            raise Unavailable("machine1-bridge stops")
        ring = self._watch.ring
        if cursor is None:
            return self._snapshot()
        position = ring.position(cursor)
        if position is None:
            return self._snapshot("cursor")
        self._epoch, self._position = ring.epoch, position
        return self._behind() or self._reply("resumed", [])

    async def next(self) -> Reply:
        while not self._closed:
            await self._settled()
            reply = None if self._closed else self._following()
            if reply is not None:
                return reply
            await self._hear()
        return Reply()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._watch.part(self)
            self.changed(None)

    def changed(self, change: Change[Entry] | None) -> None:
        if self._news is not None:
            self._news.resolve(None)

    def failed(self, error: Exception) -> None:
        self._failure = error
        self.changed(None)

    async def _settled(self) -> None:
        while not self._closed:
            if self._failure is not None:
                raise self._failure
            if self._watch.settled:
                return
            await self._hear()

    async def _hear(self) -> None:
        self._news = Future(self._watch.loop)
        await self._news
        self._news = None

    def _following(self) -> Reply | None:
        ring = self._watch.ring
        if (behind := self._behind()) is not None:
            return behind
        if self._position == ring.end:
            return None
        change = ring[self._position]
        self._position += 1
        return self._reply(change.event, [change.entry])

    def _behind(self) -> Reply | None:
        """A snapshot, if there is no way on from where this is."""
        ring = self._watch.ring
        if self._epoch != ring.epoch:
            return self._snapshot("policy")
        if self._position < ring.broken:
            return self._snapshot("restarted")
        if self._position < ring.begin:
            return self._snapshot("lagged", missed=ring.end - self._position)
        return None

    def _snapshot(self, gap: Gap | None = None, **missed: int) -> Reply:
        ring, state = self._watch.ring, self._watch.state
        self._epoch, self._position = ring.epoch, ring.end
        names = sorted(name for name in state if self._shows(name) and (self._everything or name != HOST))
        return self._reply("snapshot", [state[name] for name in names], **({"gap": gap} if gap else {}), **missed)

    def _reply(self, event: str, entries: list[Entry], **more: object) -> Reply:
        shaped = [self._shape(entry) for entry in entries]
        cursor = self._watch.ring.cursor(self._position)
        return Reply({"event": event, self._key: shaped, "cursor": cursor, **more}, stream=self)


class _Wait:
    """For one machine to be there, or not."""

    def __init__(self, watch: Watch[Machine], name: str, *, there: bool) -> None:
        self._watch, self._name, self._there = watch, name, there
        self._late = False
        self.outcome: Future[Machine | None] = Future(watch.loop)

    def changed(self, change: Change[Machine] | None) -> None:
        if change is None:
            if self._watch.settled:
                self._judge(self._watch.state.get(self._name) if self._watch.shows(self._name) else None)
                if self._late:
                    self.outcome.fail(Timeout())
        elif change.entry[0] == self._name:
            self._judge(None if change.event == "removed" else change.entry)

    def failed(self, error: Exception) -> None:
        self.outcome.fail(error)

    def expire(self) -> None:
        """The time is over, as soon as it is known what there is."""
        self._late = True
        self.changed(None)

    def _judge(self, machine: Machine | None) -> None:
        if self._there == (machine is not None):
            self.outcome.resolve(machine)


async def wait_for_machine(
    watch: Watch[Machine],
    shows: Callable[[str], bool],
    name: str,
    *,
    there: bool,
    seconds: float | None,
    left: Future[None] | None,
) -> Machine | None:
    """Return when it is there, or not. Raises Timeout, and what Bus.call raises; ends when the client has `left`."""
    wait = _Wait(watch, name, there=there)
    timer = None if seconds is None else watch.loop.call_later(seconds, wait.expire)

    def leave() -> None:
        wait.failed(Unavailable("machine1-bridge stops"))

    if left is not None:
        left.when_done(leave)
    watch.join(wait, shows)
    try:
        wait.changed(None)
        return await wait.outcome
    finally:
        watch.part(wait)
        if timer is not None:
            timer.cancel()
        if left is not None:
            left.forget(leave)
