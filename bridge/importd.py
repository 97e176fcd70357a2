# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd-importd as this service sees it: org.freedesktop.import1(5).

It numbers its transfers from 1 on, and anew each time that it is started; it does not end while there is one.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from jeepney import DBusAddress, HeaderFields, Message, new_method_call
from jeepney.bus_messages import MatchRule, message_bus

from . import errors
from .bus import DEADLINE, Answer, Bus, DBusError, Signal, listen
from .limits import Limits
from .loop import Future, Loop
from .messages import Reply
from .turns import ROOT

_MANAGER = DBusAddress("/org/freedesktop/import1", "org.freedesktop.import1", "org.freedesktop.import1.Manager")
_TRANSFER = "org.freedesktop.import1.Transfer"

# So many are followed at one time, as importd has no more; a quarter of them is root's.
FOLLOWED_MAX = 64
# Seconds between two looks at the progress of a transfer.
LOOK = 1.0
# Of what importd tells of a transfer, the last line of this priority or a graver one says why it failed: syslog(3).
_ERROR = 3
REASON_MAX = 1024

# Number, type, where it is from or goes to, name of the image, progress.
Listed: TypeAlias = tuple[int, str, str, str, float]


def _lines(path: str | None = None) -> MatchRule:
    """What is said of the transfer that has this path; of each, without one: as `listen` has it."""
    return MatchRule(type="signal", sender=_MANAGER.bus_name, interface=_TRANSFER, member="LogMessage", path=path)


def per_mille(progress: float) -> int | None:
    """None if importd does not know it: some versions then say a number far below 0."""
    return int(progress * 1000) if 0 <= progress <= 1 else None


class Importd:
    """Calls to systemd-importd's manager object."""

    def __init__(self, loop: Loop, at_once: int, limits: Limits) -> None:
        """With so many calls of one user under way; those who follow a transfer are counted for themselves."""
        self._loop = loop
        self._bus = Bus(loop, at_once, limits.waiting_calls)
        self._followed: dict[Followed, int] = {}  # and for which user
        self._limits = limits

    async def call(self, user: int, member: str, signature: str, *arguments: object, reply: str) -> tuple[Any, ...]:
        """The body of the reply. Raises what Bus.call raises."""
        return (await _ask(self._bus, _message(member, signature, *arguments), reply, user)).body()

    async def transfers(self, user: int) -> list[Listed]:
        """Those of images of machines. Before systemd 256 there are no others."""
        try:
            (found,) = await self.call(user, "ListTransfersEx", "st", "machine", 0, reply="a(ussssdo)")
        except DBusError as error:
            if error.name != "org.freedesktop.DBus.Error.UnknownMethod":
                raise
            (found,) = await self.call(user, "ListTransfers", "", reply="a(usssdo)")
        # With the class before the progress, and the object's path at the end.
        return sorted((*entry[:4], entry[-2]) for entry in found)

    async def follow(
        self, user: int, shown: Callable[[], bool], member: str, signature: str, *arguments: object
    ) -> Reply:
        """Begin a transfer, and tell of it until it is over, or it is not `shown` any more.

        Raises what Bus.call raises, and TooManyOperations.
        """
        if not self._has_place(user):
            raise errors.TooManyOperations
        followed = Followed(self._loop, shown, lambda followed: self._followed.pop(followed, None))
        self._followed[followed] = user
        try:
            # Apart, as signals are heard: in turns of a user's the end could come before the number.
            return await self._loop.apart(followed.begin(_message(member, signature, *arguments)))
        except BaseException:
            followed.close()
            raise

    def _has_place(self, user: int) -> bool:
        if user == ROOT:
            return len(self._followed) < FOLLOWED_MAX
        users = list(self._followed.values())
        of_users = len(users) - users.count(ROOT)
        return (
            len(users) < FOLLOWED_MAX
            and of_users < FOLLOWED_MAX * 3 // 4
            and users.count(user) < self._limits.calls_per_user
        )

    def limit(self, at_once: int, limits: Limits) -> None:
        """From now on."""
        self._limits = limits
        self._bus.turns.limit(at_once, limits.waiting_calls)

    def close(self) -> None:
        for followed in list(self._followed):
            followed.close()
        self._bus.close()


class Followed:
    """A transfer, and the Stream of what becomes of it.

    It has a connection to the bus of its own, on which the reply that has its number and what is said of it come in
    the order in which importd sent them.
    """

    def __init__(self, loop: Loop, shown: Callable[[], bool], closed: "Callable[[Followed], object]") -> None:
        self._loop = loop
        self._shown, self._tell_closed = shown, closed
        self._bus = Bus(loop, listener=self)
        self._owner = self._path = ""
        self._number = 0
        self._progress: int | None = None
        self._reason = ""
        self._end: Reply | Exception | None = None
        self._news = Future[None](loop)

    async def begin(self, message: Message) -> Reply:
        signals = (_MANAGER.interface, "TransferRemoved"), (_TRANSFER, "LogMessage")
        await listen(self._bus, _MANAGER.bus_name, *signals)
        answer = await _ask(self._bus, message, "uo")
        self._owner = answer.header.fields.get(HeaderFields.sender, "")
        self._number, self._path = answer.body()
        try:
            await self._bus.call(message_bus.AddMatch(_lines(self._path)), "")
            await self._bus.call(message_bus.RemoveMatch(_lines()), "")
        except (DBusError, errors.VarlinkError):
            pass  # all that is said goes on to come, or `broke` tells
        return Reply({"transfer": self._number}, stream=self)

    async def next(self) -> Reply:
        while self._end is None:
            await self._pause()
            if not self._shown():
                refusal = errors.Refusal("policy", "the policy does not show the image any more")
                self._over(errors.PermissionDenied().refused(refusal))
            elif self._end is None and (progress := await self._look()) != self._progress:
                self._progress = progress
                return Reply(self._state(), stream=self)
        self.close()
        if isinstance(self._end, Exception):
            raise self._end
        return self._end

    def close(self) -> None:
        """The transfer goes on."""
        self._over(errors.Unavailable("nobody follows the transfer any more"))
        self._bus.close()
        self._tell_closed(self)

    def heard(self, signal: Signal) -> None:
        if not self._owner:  # it may be starting still
            return
        match signal.interface, signal.member, signal.body:
            case message_bus.interface, "NameOwnerChanged", (_MANAGER.bus_name, self._owner, str()):
                if signal.sender == message_bus.bus_name:
                    self._over(errors.Unavailable("systemd-importd ended, and with it perhaps the transfer"))
            case _MANAGER.interface, "TransferRemoved", (self._number, _, str(result)) if signal.sender == self._owner:
                self._over(self._ended(result))
            case _ if signal.interface == _TRANSFER and (signal.sender, signal.path) == (self._owner, self._path):
                self._note(signal.body)

    def broke(self) -> None:
        self._over(errors.Unavailable("the system bus closed the connection; the transfer may go on"))

    def _note(self, body: tuple[Any, ...]) -> None:
        match body:
            case (int(priority), str(line)) if priority & 7 <= _ERROR:
                self._reason = line[:REASON_MAX]

    def _ended(self, result: str) -> Reply | Exception:
        if result == "done":
            return Reply({"transfer": self._number, "progress": 1000, "done": True})
        if result == "canceled":
            return errors.TransferCanceled(self._number)
        return errors.TransferFailed(self._number, self._reason or result)

    def _over(self, end: Reply | Exception) -> None:
        """The first end counts."""
        if self._end is None:
            self._end = end
            self._news.resolve(None)

    async def _pause(self) -> None:
        """Until there is an end, or it is time to look again."""
        news = self._news
        timer = self._loop.call_later(LOOK, lambda: news.resolve(None))
        await news
        timer.cancel()
        if self._end is None:
            self._news = Future[None](self._loop)

    async def _look(self) -> int | None:
        """The progress; what it was if it cannot be told now."""
        try:
            (found,) = await self._bus.call(_message("ListTransfers", ""), "a(usssdo)")
        except (DBusError, errors.VarlinkError):
            return self._progress
        of_this = [per_mille(progress) for number, _, _, _, progress, _ in found if number == self._number]
        if not of_this:
            # importd says so before it takes one from the list, but the bus may drop a signal for who has many to read.
            self._over(errors.Unavailable("the transfer is over, and what became of it was lost on the way"))
            return self._progress
        return self._progress if of_this[0] is None else of_this[0]

    def _state(self) -> dict[str, Any]:
        return {"transfer": self._number} | ({} if self._progress is None else {"progress": self._progress})


def _message(member: str, signature: str, *arguments: object) -> Message:
    return new_method_call(_MANAGER, member, signature or None, arguments)


async def _ask(bus: Bus, message: Message, reply: str, user: int = ROOT) -> Answer:
    """As Bus.ask. Who cannot be reached is named, as it may not be installed: Debian has it in systemd-container."""
    try:
        return await bus.ask(message, reply, DEADLINE, user=user)
    except errors.Unavailable as error:
        raise errors.Unavailable(f"systemd-importd: {error.parameters['reason']}") from error
