# SPDX-License-Identifier: LGPL-2.1-or-later
"""Units that systemd starts, with a systemd that says what the test wants. The real one is in the lab."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jeepney import Header, HeaderFields, Message, new_method_call, new_method_return

import bridge.units
from bridge.bus import Answer, DBusError, Listener, Signal
from bridge.errors import Unavailable
from bridge.loop import Future, Loop, Share
from bridge.units import SYSTEMD, Units

from .test_watch import Task

MINE, BUS = ":1.7", "org.freedesktop.DBus"
UNIT = "systemd-nspawn@web.service"


def reply(job: str) -> Answer:
    """What systemd says to StartUnit."""
    call = new_method_call(SYSTEMD, "StartUnit")
    call.header.serial = 1
    returned = new_method_return(call, "o", (job,))
    returned.header.fields[HeaderFields.sender] = MINE
    data = returned.serialise(1)
    header, end = Header.from_buffer(data)
    return Answer(header, data[end + -end % 8 :], [])


class FakeBus:
    """One connection. Each StartUnit waits for `reply`."""

    def __init__(self, loop: Loop, listener: Listener) -> None:
        self._loop = loop
        self.listener = listener
        self.rules: list[str] = []
        self.started: list[tuple[str, str]] = []
        self.replies: list[Future[Answer]] = []
        self.closed = False
        self.connection = object()

    async def call(self, message: Message, reply: str) -> tuple[Any, ...]:
        self.rules.append(message.body[0])
        return ()

    async def ask(self, message: Message, reply: str, user: int) -> Answer:
        assert message.header.fields[HeaderFields.destination] == SYSTEMD.bus_name
        assert (message.header.fields[HeaderFields.member], reply, user) == ("StartUnit", "o", 1000)
        self.started.append(message.body)
        self.replies.append(Future[Answer](self._loop))
        return await self.replies[-1]

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self.listener.broke)


class Scene:
    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.buses: list[FakeBus] = []
        self.units = Units(loop, 2, 10)
        self.bus: type[FakeBus] = FakeBus

    def connect(self, loop: Loop, per_user: int, waiting_max: int, listener: Listener) -> FakeBus:
        assert (per_user, waiting_max) == (2, 10)
        self.buses.append(self.bus(loop, listener))
        return self.buses[-1]

    def turn(self) -> None:
        def soon(turns: int) -> None:
            self.loop.call_soon(self.loop.stop if turns == 0 else lambda: soon(turns - 1))

        soon(10)
        self.loop.run()

    def start(self, unit: str = UNIT, left: Future[None] | None = None) -> Task:
        task = Task(self.loop, self.units.start(unit, 1000, left))
        self.turn()
        return task

    def queued(self, unit: str = UNIT, job: str = "/job/1", left: Future[None] | None = None) -> Task:
        """A start for which systemd has named the job."""
        task = self.start(unit, left)
        self.buses[-1].replies[-1].resolve(reply(job))
        self.turn()
        return task

    def says(self, *body: object, sender: str = MINE, member: str = "JobRemoved", bus: int = -1) -> None:
        interface = BUS if member == "NameOwnerChanged" else SYSTEMD.interface
        self.buses[bus].listener.heard(Signal(sender, interface, member, body))
        self.turn()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    loop = Loop()
    scene = Scene(loop)
    monkeypatch.setattr(bridge.units, "Bus", scene.connect)
    yield scene
    scene.units.close()
    scene.turn()
    loop.close()
    assert all(bus.closed for bus in scene.buses)


@pytest.mark.parametrize("result", ["done", "failed", "timeout", "a result of a later systemd"])
def test_the_result_is_that_of_the_job(scene: Scene, result: str) -> None:
    task = scene.queued()
    assert scene.buses[0].started == [(UNIT, "fail")]
    assert not task.done
    scene.says(1, "/job/1", UNIT, result)
    assert task.result == result


def test_systemd_is_listened_to_before_it_is_asked_and_no_longer_than_somebody_waits(scene: Scene) -> None:
    task = scene.start()
    (bus,) = scene.buses
    owner, jobs = bus.rules
    assert f"interface='{SYSTEMD.interface}'" in jobs
    assert f"sender='{SYSTEMD.bus_name}'" in jobs
    assert "member='JobRemoved'" in jobs
    assert "member='NameOwnerChanged'" in owner
    assert f"arg0='{SYSTEMD.bus_name}'" in owner
    bus.replies[0].resolve(reply("/job/1"))
    scene.turn()
    assert not bus.closed
    scene.says(1, "/job/1", UNIT, "done")
    assert task.done
    assert bus.closed


def test_jobs_of_others_and_signals_of_others_are_not_its_own(scene: Scene) -> None:
    task = scene.queued()
    scene.says(2, "/job/2", "other.service", "failed")
    scene.says(1, "/job/1", UNIT, "failed", sender=":1.666")
    scene.says(1, "/job/1", UNIT, "failed", member="JobNew")
    scene.says("1", "/job/1", UNIT, "failed")
    scene.says(SYSTEMD.bus_name, MINE, ":1.8", member="NameOwnerChanged", sender=":1.666")
    assert not task.done
    scene.says(1, "/job/1", UNIT, "done")
    assert task.result == "done"


def test_a_job_that_ends_at_once_has_ended(scene: Scene) -> None:
    """Its end is read together with the reply that names it, before it is the user's turn."""
    share, results = Share(scene.loop), list[str]()
    share.start(scene.units.start(UNIT, 1000, None), results.append)
    scene.turn()
    (bus,) = scene.buses
    bus.replies[0].resolve(reply("/job/1"))
    end = Signal(MINE, SYSTEMD.interface, "JobRemoved", (1, "/job/1", UNIT, "done"))
    scene.loop.call_soon(lambda: bus.listener.heard(end))
    scene.turn()
    assert results == ["done"]
    share.close()


def test_two_who_start_the_same_unit_have_one_job(scene: Scene) -> None:
    first, second = scene.queued(), scene.queued()
    other = scene.queued("systemd-nspawn@db.service", "/job/2")
    scene.says(1, "/job/1", UNIT, "done")
    assert (first.result, second.result, other.done) == ("done", "done", False)
    scene.says(2, "/job/2", "systemd-nspawn@db.service", "failed")
    assert other.result == "failed"
    assert len(scene.buses) == 1


def test_however_many_start_the_bus_has_each_rule_once(scene: Scene) -> None:
    """dbus-daemon takes no more than 512 of a connection, which one start that hangs keeps open for all."""
    for _ in range(3):
        scene.start()
    assert len(scene.buses[0].rules) == 2


def test_another_connection_has_the_rules_as_well(scene: Scene) -> None:
    """One that systemd has left too many calls on unanswered takes no more."""
    scene.start()
    scene.buses[0].connection = object()
    scene.start()
    assert len(scene.buses[0].rules) == 4


def test_who_waits_for_another_to_listen_is_told_that_it_failed(scene: Scene) -> None:
    class Silent(FakeBus):
        async def call(self, message: Message, reply: str) -> tuple[Any, ...]:
            await super().call(message, reply)
            answers.append(Future(self._loop))
            return await answers[-1]

    answers: list[Future[tuple[Any, ...]]] = []
    scene.bus = Silent
    tasks = [scene.start() for _ in range(2)]
    assert len(answers) == 1
    answers[0].fail(Unavailable("no bus"))
    scene.turn()
    assert all(isinstance(task.error, Unavailable) for task in tasks)
    assert not scene.buses[0].started


def test_a_start_that_systemd_refuses_is_its_error(scene: Scene) -> None:
    task = scene.start()
    scene.buses[0].replies[0].fail(DBusError("org.freedesktop.systemd1.UnitMasked", "masked"))
    scene.turn()
    assert isinstance(task.error, DBusError)
    assert scene.buses[0].closed


def test_who_leaves_ends_its_wait_alone(scene: Scene) -> None:
    left = Future[None](scene.loop)
    gone, stays = scene.queued(left=left), scene.queued()
    left.resolve(None)
    scene.turn()
    assert isinstance(gone.error, Unavailable)
    assert not stays.done
    scene.says(1, "/job/1", UNIT, "done")
    assert stays.result == "done"


@pytest.mark.parametrize("how", ["systemd leaves", "the bus ends", "the service ends"])
def test_nobody_waits_for_what_will_never_be_known(scene: Scene, how: str) -> None:
    named, unnamed = scene.queued(), scene.start()
    match how:
        case "systemd leaves":
            scene.says(SYSTEMD.bus_name, MINE, "", member="NameOwnerChanged", sender=BUS)
        case "the bus ends":
            scene.buses[0].listener.broke()
        case _:
            scene.units.close()
    scene.turn()
    assert isinstance(named.error, Unavailable)
    # Its reply came, but nothing that is said after it will.
    scene.buses[0].replies[1].resolve(reply("/job/1"))
    scene.turn()
    assert isinstance(unnamed.error, Unavailable)


def test_the_next_start_does_not_trust_a_connection_that_ended(scene: Scene) -> None:
    scene.queued()
    scene.buses[0].listener.broke()
    task = scene.queued()
    assert len(scene.buses) == 2
    scene.says(1, "/job/1", UNIT, "failed", bus=0)
    assert not task.done
    scene.says(1, "/job/1", UNIT, "done")
    assert task.result == "done"
