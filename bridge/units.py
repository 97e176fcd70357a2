# SPDX-License-Identifier: LGPL-2.1-or-later
"""Units that systemd starts, and what becomes of it: org.freedesktop.systemd1(5), StartUnit() and JobRemoved.

There is a connection to the bus for it while a start is under way, and none at other times: systemd tells of the jobs
of every unit.
"""

from jeepney import DBusAddress, HeaderFields, new_method_call
from jeepney.bus_messages import message_bus

from .bus import Bus, Signal, listen
from .errors import Unavailable
from .loop import Future, Loop

SYSTEMD = DBusAddress("/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager")


class Units:
    def __init__(self, loop: Loop, per_user: int, waiting_max: int) -> None:
        """With so many calls of one user under way, and so many of all users that wait, until systemd has a job."""
        self._loop = loop
        self._bounds = per_user, waiting_max
        self._jobs: _Jobs | None = None

    async def start(self, unit: str, user: int, left: Future[None] | None) -> str:
        """The result of the job, as JobRemoved names it: `done` where the unit runs. Raises what Bus.call raises.

        Ends when the client has `left`; the job goes on.
        """
        if self._jobs is None or self._jobs.over:
            self._jobs = _Jobs(self._loop, *self._bounds)
        # Apart, as signals are heard: in turns of a user's the end could come before the job's name.
        return await self._loop.apart(self._jobs.start(unit, user, left))

    def close(self) -> None:
        if self._jobs is not None:
            self._jobs.close("machine1-bridge stops")


class _Jobs:
    """One connection, over which systemd says first which job it is, and then what became of it."""

    def __init__(self, loop: Loop, per_user: int, waiting_max: int) -> None:
        self.over = False
        self._loop = loop
        self._bus = Bus(loop, per_user, waiting_max, listener=self)
        self._systemd = ""  # its unique name: anybody may send signals that say they are systemd's
        self._users = 0
        self._listening: Future[None] | None = None
        self._listening_on: object = None  # the connection that has the rules
        self._results: dict[str, list[Future[str]]] = {}  # by job: a start that is under way is one job for all

    async def start(self, unit: str, user: int, left: Future[None] | None) -> str:
        self._users += 1
        try:
            await self._listen()
            answer = await self._bus.ask(new_method_call(SYSTEMD, "StartUnit", "ss", (unit, "fail")), "o", user=user)
            (job,) = answer.body()
            self._systemd = answer.header.fields.get(HeaderFields.sender, "")
            return await self._result(job, left)
        finally:
            self._users -= 1
            if not self._users:
                self.close("the last one has its result")

    async def _listen(self) -> None:
        """Once a connection: dbus-daemon counts the same rule each time, and takes no more than 512 of one."""
        if self._listening is None or (self._listening.done and self._listening_on is not self._bus.connection):
            listening = self._listening = Future[None](self._loop)
            try:
                # While who has queued a job is there, systemd sends JobRemoved also where nobody called Subscribe().
                await listen(self._bus, SYSTEMD.bus_name, (SYSTEMD.interface, "JobRemoved"))
            except Exception as error:
                self._listening = None
                listening.fail(error)
                raise
            self._listening_on = self._bus.connection
            listening.resolve(None)
        else:
            await self._listening

    async def _result(self, job: str, left: Future[None] | None) -> str:
        result = Future[str](self._loop)

        def leave() -> None:
            result.fail(Unavailable("machine1-bridge stops"))

        self._results.setdefault(job, []).append(result)
        if self.over:  # since systemd has answered
            result.fail(Unavailable("the system bus closed the connection"))
        if left is not None:
            left.when_done(leave)
        try:
            return await result
        finally:
            if left is not None:
                left.forget(leave)
            if (others := self._results.get(job)) is not None and result in others:
                others.remove(result)

    def close(self, why: str) -> None:
        """Whoever waits is told that nothing more will be known."""
        self.over = True
        results, self._results = self._results, {}
        for waiting in results.values():
            for result in waiting:
                result.fail(Unavailable(why))
        self._bus.close()

    def heard(self, signal: Signal) -> None:
        match signal.interface, signal.member, signal.body:
            case SYSTEMD.interface, "JobRemoved", (int(), str(job), str(), str(outcome)):
                if signal.sender == self._systemd:
                    for result in self._results.pop(job, []):
                        result.resolve(outcome)
            case message_bus.interface, "NameOwnerChanged", (SYSTEMD.bus_name, _, _):
                if signal.sender == message_bus.bus_name:
                    self.close("systemd left the bus while it started the unit")

    def broke(self) -> None:
        self.close("the system bus closed the connection")
