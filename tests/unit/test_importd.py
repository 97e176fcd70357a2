# SPDX-License-Identifier: LGPL-2.1-or-later
"""Transfers that are followed, with an importd that says what the test wants. The real one is in the lab."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jeepney import Header, HeaderFields, Message, new_method_call, new_method_return

import bridge.importd
from bridge.bus import Answer, DBusError, Listener, Signal
from bridge.errors import PermissionDenied, TooManyOperations, TransferCanceled, TransferFailed, Unavailable
from bridge.importd import FOLLOWED_MAX, REASON_MAX, Importd, per_mille
from bridge.limits import Limits
from bridge.loop import Future, Loop, Share
from bridge.messages import Reply, Stream
from bridge.turns import Turns

from .test_watch import Task

MINE, BUS = ":1.7", "org.freedesktop.DBus"
NAME = "org.freedesktop.import1"
PATH = "/org/freedesktop/import1/transfer/_5"


def reply_of(number: int, path: str) -> Answer:
    return answer_of("uo", number, path)


def answer_of(signature: str, *body: object) -> Answer:
    call = new_method_call(bridge.importd._MANAGER, "Member")
    call.header.serial = 1
    returned = new_method_return(call, signature or None, body)
    returned.header.fields[HeaderFields.sender] = MINE
    data = returned.serialise(1)
    header, end = Header.from_buffer(data)
    return Answer(header, data[end + -end % 8 :], [])


class FakeBus:
    """One connection. What begins a transfer waits for `begun`; lists are as the scene has them."""

    def __init__(self, scene: Scene, listener: Listener | None) -> None:
        self._scene = scene
        self.listener = listener
        self.turns = Turns(scene.loop, 1, 1, 1)
        self.rules: list[str] = []
        self.asked: list[tuple[str, tuple[object, ...]]] = []
        self.begun = Future[Answer](scene.loop)
        self.closed = False

    async def call(
        self, message: Message, reply: str, deadline: float | None = None, user: int = 0
    ) -> tuple[Any, ...]:
        member = message.header.fields[HeaderFields.member]
        if member == "AddMatch":
            self.rules.append(message.body[0])
            return ()
        if member == "RemoveMatch":
            if self._scene.keeps_rules:
                raise DBusError("org.freedesktop.DBus.Error.AccessDenied", "Rejected send message")
            self.rules.remove(message.body[0])
            return ()
        if member == "ListTransfersEx":
            assert (message.body, reply, user) == (("machine", 0), "a(ussssdo)", 1000)
            if self._scene.too_old:
                raise DBusError("org.freedesktop.DBus.Error.UnknownMethod", "no such method")
            return ([(7, "pull-raw", "http://a", "b", "machine", 0.5, "/x"), (2, "x", "", "c", "machine", 0.0, "/y")],)
        if member == "CancelTransfer":
            assert (reply, user) == ("", 1000)
            self.asked.append((member, message.body))
            return ()
        assert (member, reply) == ("ListTransfers", "a(usssdo)")
        if self._scene.error is not None:
            raise self._scene.error
        found = self._scene.progress.items()
        return ([(number, "import-tar", "", "new", progress, "/x") for number, progress in found],)

    async def ask(self, message: Message, reply: str, deadline: float | None, user: int = 0) -> Answer:
        assert message.header.fields[HeaderFields.destination] == NAME
        if message.header.fields[HeaderFields.member] not in ("ImportTar", "ExportTar"):
            return answer_of(reply, *await self.call(message, reply, deadline, user))
        self.asked.append((message.header.fields[HeaderFields.member], message.body))
        return await self.begun

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if self.listener is not None:
                self._scene.loop.call_soon(self.listener.broke)


class Scene:
    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.buses: list[FakeBus] = []
        self.progress: dict[int, float] = {5: -1.0}
        self.error: Exception | None = None
        self.shown = True
        self.too_old = False
        self.keeps_rules = False
        self.importd: Importd

    def connect(self, loop: Loop, *_: int, listener: Listener | None = None) -> FakeBus:
        self.buses.append(FakeBus(self, listener))
        return self.buses[-1]

    def turn(self) -> None:
        def soon(turns: int) -> None:
            self.loop.call_soon(self.loop.stop if turns == 0 else lambda: soon(turns - 1))

        soon(10)
        self.loop.run()

    def follow(self, user: int = 0) -> Task:
        task = Task(self.loop, self.importd.follow(user, lambda: self.shown, "ExportTar", "ss", "a", "b"))
        self.turn()
        return task

    def followed(self) -> Stream:
        """A transfer that has begun, number 5."""
        task = self.follow()
        self.bus.begun.resolve(reply_of(5, PATH))
        self.turn()
        assert isinstance(task.result, Reply)
        assert task.result.parameters == {"transfer": 5}
        assert task.result.stream is not None
        return task.result.stream

    def next(self, stream: Stream) -> Task:
        task = Task(self.loop, stream.next())
        self.turn()
        return task

    @property
    def bus(self) -> FakeBus:
        return self.buses[-1]

    def says(self, member: str, *body: object, sender: str = MINE, path: str = "") -> None:
        interface = {"NameOwnerChanged": BUS, "LogMessage": f"{NAME}.Transfer"}.get(member, f"{NAME}.Manager")
        assert self.bus.listener is not None
        self.bus.listener.heard(Signal(sender, interface, member, body, path))
        self.turn()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    loop = Loop()
    monkeypatch.setattr(bridge.importd, "LOOK", 0.0)
    scene = Scene(loop)
    monkeypatch.setattr(bridge.importd, "Bus", scene.connect)
    scene.importd = Importd(loop, 2, Limits(waiting_calls=10, calls_per_user=3))
    yield scene
    scene.importd.close()
    scene.turn()
    loop.close()
    assert all(bus.closed for bus in scene.buses)


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 0), (0.1234, 123), (1.0, 1000), (-1.0, None), (-1.8e308, None), (1.1, None)]
)
def test_progress_is_in_thousandths(progress: float, expected: int | None) -> None:
    assert per_mille(progress) == expected


def test_signals_are_listened_to_before_the_transfer_begins(scene: Scene) -> None:
    scene.follow()
    owner, removed, logged = scene.bus.rules
    assert "member='NameOwnerChanged'" in owner
    assert f"arg0='{NAME}'" in owner
    assert "member='TransferRemoved'" in removed
    assert "member='LogMessage'" in logged
    assert scene.bus.asked == [("ExportTar", ("a", "b"))]


@pytest.mark.parametrize("keeps", [False, True])
def test_what_is_said_of_other_transfers_is_not_heard_for_long(scene: Scene, keeps: bool) -> None:
    """An archive may make that tens of thousands of lines a second, for each that is followed."""
    scene.keeps_rules = keeps
    stream = scene.followed()
    about = [rule for rule in scene.bus.rules if "member='LogMessage'" in rule]
    assert [rule for rule in about if f"path='{PATH}'" in rule]
    assert len(about) == (2 if keeps else 1)
    scene.says("TransferRemoved", 5, PATH, "done")
    assert scene.next(stream).result.parameters["done"]


def test_a_transfer_that_ends_as_it_begins_is_not_missed(scene: Scene) -> None:
    """The reply with its number and the signal of its end may come at once, before its user has the next turn."""
    share, replies = Share(scene.loop), list[Reply]()
    share.start(scene.importd.follow(0, lambda: True, "ExportTar", "ss", "a", "b"), replies.append)
    scene.turn()
    listener = scene.bus.listener
    assert listener is not None
    ended = Signal(MINE, f"{NAME}.Manager", "TransferRemoved", (5, PATH, "done"))
    scene.bus.begun.resolve(reply_of(5, PATH))
    scene.loop.call_soon(lambda: listener.heard(ended))
    scene.turn()
    share.close()
    (reply,) = replies
    assert reply.stream is not None
    end = scene.next(reply.stream)
    assert end.result.parameters == {"transfer": 5, "progress": 1000, "done": True}


def test_that_importd_is_started_for_it_is_no_end(scene: Scene) -> None:
    task = scene.follow()
    scene.says("NameOwnerChanged", NAME, "", MINE, sender=BUS)
    scene.says("TransferRemoved", 0, PATH, "done", sender="")
    scene.bus.begun.resolve(reply_of(5, PATH))
    scene.turn()
    following = scene.next(task.result.stream)
    assert not following.done
    scene.says("TransferRemoved", 5, PATH, "done")
    assert following.result.parameters["done"]


def test_a_transfer_that_is_not_listed_any_more_is_over(scene: Scene) -> None:
    """Though nothing was heard of its end: the bus drops what is sent to who has too much to read."""
    stream = scene.followed()
    scene.progress = {4: 0.5}
    error = scene.next(stream).error
    assert isinstance(error, Unavailable)
    assert "lost on the way" in error.parameters["reason"]
    assert scene.bus.closed


def test_each_change_of_the_progress_is_told_and_then_the_end(scene: Scene) -> None:
    stream = scene.followed()
    told = []
    for progress in (-1.0, 0.25, 0.25, 0.5):
        scene.progress = {4: 0.9, 5: progress}
        task = scene.next(stream)
        if task.done:
            told.append(task.result.parameters)
            assert task.result.stream is stream
        else:
            scene.progress[5] = 0.75
            scene.turn()
            told.append(task.result.parameters)
    assert [each["progress"] for each in told] == [750, 250, 750, 500]
    scene.error = DBusError("x", "y")
    task = scene.next(stream)
    assert not task.done, "what cannot be told now is told later"
    scene.says("TransferRemoved", 5, PATH, "done")
    assert task.result.parameters == {"transfer": 5, "progress": 1000, "done": True}
    assert task.result.stream is None
    assert scene.bus.closed


@pytest.mark.parametrize(
    ("result", "lines", "error"),
    [
        ("canceled", [(27, "x")], TransferCanceled(5)),
        ("failed", [], TransferFailed(5, "failed")),
        ("failed", [(30, "Importing"), (27, "No room"), (30, "Exiting.")], TransferFailed(5, "No room")),
        ("failed", [(26, "first"), (3, "second"), (6, "tar: no"), (28, "warning")], TransferFailed(5, "second")),
        ("failed", [(27, "x" * 2000)], TransferFailed(5, "x" * REASON_MAX)),
        ("a result of a later systemd", [], TransferFailed(5, "a result of a later systemd")),
    ],
)
def test_how_it_ended_is_told_with_what_importd_said_last(
    scene: Scene, result: str, lines: list[tuple[int, str]], error: Exception
) -> None:
    task = scene.next(scene.followed())
    for line in lines:
        scene.says("LogMessage", *line, path=PATH)
    scene.says("TransferRemoved", 5, PATH, result)
    assert (type(task.error), getattr(task.error, "parameters", None)) == (type(error), error.parameters)  # type: ignore[attr-defined]
    assert scene.bus.closed


def test_what_others_say_is_not_about_it(scene: Scene) -> None:
    task = scene.next(scene.followed())
    scene.says("LogMessage", 27, "forged", path=PATH, sender=":1.666")
    scene.says("LogMessage", 27, "another's", path=f"{PATH}0")
    scene.says("LogMessage", "nonsense", path=PATH)
    scene.says("TransferRemoved", 6, f"{PATH}0", "done")
    scene.says("TransferRemoved", 5, PATH, "done", sender=":1.666")
    scene.says("NameOwnerChanged", NAME, MINE, "", sender=":1.666")
    scene.says("NameOwnerChanged", NAME, ":1.5", "", sender=BUS)
    assert not task.done
    scene.says("TransferRemoved", 5, PATH, "failed")
    assert task.error is not None
    assert task.error.parameters["reason"] == "failed"  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["importd", "bus", "client"])
def test_it_never_waits_for_who_has_gone(scene: Scene, how: str) -> None:
    stream = scene.followed()
    task = scene.next(stream)
    assert not task.done
    if how == "importd":
        scene.says("NameOwnerChanged", NAME, MINE, "", sender=BUS)
    elif how == "bus":
        scene.bus.close()
        scene.turn()
    else:
        stream.close()
        stream.close()
        scene.turn()
    assert isinstance(task.error, Unavailable)
    assert scene.bus.closed


def test_an_image_that_is_not_shown_any_more_is_not_told_of(scene: Scene) -> None:
    stream = scene.followed()
    scene.shown = False
    task = scene.next(stream)
    assert isinstance(task.error, PermissionDenied)
    assert task.error.refusal is not None
    assert scene.bus.closed


def test_what_cannot_begin_holds_no_connection(scene: Scene) -> None:
    for error in (DBusError("System.Error.E2BIG", ""), Unavailable("the system bus: nobody there")):
        task = scene.follow()
        scene.bus.begun.fail(error)
        scene.turn()
        assert isinstance(task.error, type(error))
        assert scene.bus.closed
    assert str(task.error.parameters["reason"]).startswith("systemd-importd: ")  # type: ignore[union-attr]


def test_no_more_are_followed_than_importd_has(scene: Scene) -> None:
    for _ in range(FOLLOWED_MAX):
        scene.follow()
    assert isinstance(scene.follow().error, TooManyOperations)
    scene.bus.begun.fail(Unavailable("x"))
    scene.turn()
    assert scene.follow(1000).error is None
    assert isinstance(scene.follow(1001).error, TooManyOperations)


def test_a_user_follows_so_many_and_users_leave_some_to_root(scene: Scene) -> None:
    for _ in range(3):
        assert scene.follow(1000).error is None
    assert isinstance(scene.follow(1000).error, TooManyOperations)
    for user in range(1001, 1001 + FOLLOWED_MAX * 3 // 4 - 3):
        assert scene.follow(user).error is None
    assert isinstance(scene.follow(2000).error, TooManyOperations)
    assert scene.follow().error is None
    scene.importd.limit(2, Limits(calls_per_user=4))
    scene.buses[-2].begun.fail(Unavailable("x"))
    scene.turn()
    assert scene.follow(1000).error is None


# --- what is only asked ----------------------------------------------------------------------------------------------


def test_transfers_are_those_of_machines_by_number(scene: Scene) -> None:
    task = Task(scene.loop, scene.importd.transfers(1000))
    assert task.result == [(2, "x", "", "c", 0.0), (7, "pull-raw", "http://a", "b", 0.5)]


def test_before_256_there_are_no_others(scene: Scene) -> None:
    scene.too_old = True
    scene.progress = {5: 0.5, 3: -1.0}
    task = Task(scene.loop, scene.importd.transfers(1000))
    assert task.result == [(3, "import-tar", "", "new", -1.0), (5, "import-tar", "", "new", 0.5)]
    scene.error = DBusError("System.Error.EIO", "")
    assert Task(scene.loop, scene.importd.transfers(1000)).error is scene.error


def test_importd_may_not_be_there(scene: Scene) -> None:
    """Debian has it in a package of its own; the bus says so in its own words."""
    scene.too_old = True
    scene.error = Unavailable("the system bus: The name org.freedesktop.import1 was not provided by any .service files")
    task = Task(scene.loop, scene.importd.transfers(1000))
    assert isinstance(task.error, Unavailable)
    assert task.error.parameters["reason"].startswith("systemd-importd: the system bus: ")
