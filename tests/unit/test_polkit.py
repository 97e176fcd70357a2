# SPDX-License-Identifier: LGPL-2.1-or-later
"""Questions to polkit: what is written on the bus, and what each answer means. The bus itself is a fake."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields, Message
from jeepney.fds import FileDescriptor

from bridge import errors, journal
from bridge.bus import DEADLINE, Bus, DBusError, GivenUp
from bridge.loop import Future, Loop
from bridge.messages import Peer
from bridge.polkit import Polkit
from bridge.turns import Turns

from .conftest import Line

ACTION = "io.machine1.manage-machines"
DETAILS = {"verb": "terminate", "machine": "m"}
QUESTIONS_MAX = 8
Result = tuple[bool, bool, dict[str, str]]
YES: Result = (True, False, {})
NO: Result = (False, False, {})
CHALLENGE: Result = (False, True, {})
OLD = DBusError("org.freedesktop.PolicyKit1.Error.Failed", "Didn't find value for key `pid'")


class FakeBus(Bus):
    """Each call waits until it is answered, unless `answers` has something for it."""

    def __init__(self, loop: Loop, *answers: object) -> None:
        self.calls: list[tuple[Message, str, float | None]] = []
        self.sent: list[Message] = []
        self.pending: list[Future[Any]] = []
        self.answers = list(answers)
        self._own = loop
        self.users: list[int] = []
        self.turns = Turns(loop, 96, QUESTIONS_MAX, 1024)

    async def call(
        self,
        message: Message,
        reply: str,
        deadline: float | None = DEADLINE,
        given_up: Future[None] | None = None,
        user: int = 0,
        most: int = 0,
    ) -> tuple[Any, ...]:
        self.calls.append((message, reply, deadline))
        self.users.append(user)
        future = Future[Any](self._own)
        self.pending.append(future)
        if given_up is not None:
            given_up.when_done(lambda: _give_up(future))
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                future.fail(answer)
            else:
                future.resolve(answer)
        await self.turns.take(user, lambda _: None)
        try:
            return (await future,)
        finally:
            self.turns.give_back(user)

    def send(self, message: Message) -> None:
        self.sent.append(message)


def _give_up(future: Future[Any]) -> None:
    future.fail(GivenUp())


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(autouse=True)
def lines(logged: list[Line]) -> list[Line]:
    return logged


MakePeer = Callable[..., Peer]


@pytest.fixture
def peer(loop: Loop) -> Iterator[MakePeer]:
    """Clients, each with a process of its own that lives until it is killed."""
    made: list[tuple[subprocess.Popen[bytes], Peer]] = []

    def make(uid: int = 1000, pidfd: bool = True) -> Peer:
        process = subprocess.Popen(["sleep", "60"])
        descriptor = FileDescriptor(os.pidfd_open(process.pid)) if pidfd else None
        made.append((process, Peer(process.pid, uid, uid, Future(loop), descriptor)))
        return made[-1][1]

    yield make
    for process, client in made:
        process.kill()
        process.wait()
        client.close()


class Outcome:
    """What becomes of one question."""

    def __init__(self, loop: Loop, polkit: Polkit, client: Peer, interactive: bool = False) -> None:
        self.done = False
        self.error: errors.VarlinkError | None = None

        async def ask() -> None:
            try:
                await polkit.check(client, ACTION, DETAILS, interactive)
            except errors.VarlinkError as error:
                self.error = error
            self.done = True

        loop.start(ask(), lambda _: None)


def turn(loop: Loop) -> None:
    """Let what is ready run."""
    loop.call_soon(lambda: loop.call_soon(lambda: loop.call_soon(loop.stop)))
    loop.run()


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[22 - 3])


# --- what is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("interactive", "flags", "deadline"), [(False, 0, DEADLINE), (True, 1, None)])
def test_the_question(loop: Loop, peer: MakePeer, interactive: bool, flags: int, deadline: float | None) -> None:
    bus, client = FakeBus(loop, YES), peer()
    assert Outcome(loop, Polkit(bus, bus), client, interactive).done
    ((message, reply, patience),) = bus.calls
    fields = message.header.fields
    assert fields[HeaderFields.destination] == "org.freedesktop.PolicyKit1"
    assert fields[HeaderFields.path] == "/org/freedesktop/PolicyKit1/Authority"
    assert fields[HeaderFields.interface] == "org.freedesktop.PolicyKit1.Authority"
    assert fields[HeaderFields.member] == "CheckAuthorization"
    assert fields[HeaderFields.signature] == "(sa{sv})sa{ss}us"
    (kind, subject), action, details, sent_flags, identifier = message.body
    assert kind == "unix-process"
    assert subject == {"pidfd": ("h", client.pidfd), "uid": ("i", 1000)}
    assert (action, details, sent_flags) == (ACTION, DETAILS, flags)
    assert identifier
    assert (reply, patience) == ("(bba{ss})", deadline)
    assert bus.sent == []


def test_an_old_polkit_is_asked_anew_and_from_then_on_at_once(loop: Loop, peer: MakePeer) -> None:
    bus, client = FakeBus(loop, OLD, YES, NO), peer()
    polkit = Polkit(bus, bus)
    first, second = Outcome(loop, polkit, client), Outcome(loop, polkit, client)
    assert first.error is None
    assert isinstance(second.error, errors.PermissionDenied)
    subjects = [message.body[0][1] for message, _, _ in bus.calls]
    process = {"pid": ("u", client.pid), "start-time": ("t", start_time(client.pid)), "uid": ("i", 1000)}
    assert subjects == [{"pidfd": ("h", client.pidfd), "uid": ("i", 1000)}, process, process]
    identifiers = [message.body[4] for message, _, _ in bus.calls]
    assert len(set(identifiers)) == 3


def test_the_error_of_an_old_polkit_may_come_but_once(loop: Loop, peer: MakePeer) -> None:
    bus = FakeBus(loop, OLD, OLD)
    outcome = Outcome(loop, Polkit(bus, bus), peer())
    assert isinstance(outcome.error, errors.PermissionDenied)
    assert len(bus.calls) == 2


@pytest.mark.parametrize("answers", [(OLD,), (OLD, YES)], ids=["not asked again", "even if it said yes"])
def test_a_dead_client_is_refused_by_the_kernel(loop: Loop, peer: MakePeer, answers: tuple[Any, ...]) -> None:
    bus, client = FakeBus(loop), peer()
    outcome = Outcome(loop, Polkit(bus, bus), client)
    os.kill(client.pid, signal.SIGKILL)
    os.waitid(os.P_PID, client.pid, os.WEXITED | os.WNOWAIT)  # a zombie: /proc/PID/stat is there still
    start_time(client.pid)
    bus.answers = list(answers[1:])
    bus.pending[0].fail(OLD)
    turn(loop)
    assert outcome.done
    assert isinstance(outcome.error, errors.PermissionDenied)
    assert outcome.error.refusal is not None
    assert outcome.error.refusal.by == "kernel"
    assert len(bus.calls) == 1


def test_a_client_without_a_pidfd_had_ended_when_it_was_accepted(loop: Loop, peer: MakePeer) -> None:
    bus = FakeBus(loop, YES)
    outcome = Outcome(loop, Polkit(bus, bus), peer(pidfd=False))
    assert outcome.error is not None
    assert outcome.error.refusal is not None
    assert outcome.error.refusal.by == "kernel"
    assert bus.calls == []


@pytest.mark.parametrize("name", ["a) R 1 2 3 (b", "x y", ")", "(("])
def test_a_process_may_be_called_anything(
    loop: Loop, peer: MakePeer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = " ".join(str(number) for number in range(4, 53))
    monkeypatch.setattr(Path, "read_text", lambda _: f"4711 ({name}) S {fields}\n")
    bus = FakeBus(loop, OLD, YES)
    Outcome(loop, Polkit(bus, bus), peer())
    assert bus.calls[1][0].body[0][1]["start-time"] == ("t", 22)


@pytest.mark.parametrize("text", ["", "4711", "4711 (x) S 1 2", "4711 (x) S " + "x " * 40])
def test_a_start_time_that_cannot_be_read_is_a_no(
    loop: Loop, peer: MakePeer, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: text)
    bus = FakeBus(loop, OLD, YES)
    outcome = Outcome(loop, Polkit(bus, bus), peer())
    assert isinstance(outcome.error, errors.PermissionDenied)
    assert len(bus.calls) == 1


# --- what is answered ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "interactive", "expected"),
    [
        (YES, False, None),
        (YES, True, None),
        ((True, True, {"polkit.retains_authorization_after_challenge": "1"}), False, None),
        (NO, False, errors.PermissionDenied),
        (NO, True, errors.PermissionDenied),
        (CHALLENGE, False, errors.InteractiveAuthenticationRequired),
        (CHALLENGE, True, errors.PermissionDenied),
        (DBusError("org.freedesktop.PolicyKit1.Error.Failed", ""), False, errors.PermissionDenied),
        (DBusError("org.freedesktop.DBus.Error.ServiceUnknown", "no such name"), False, errors.PermissionDenied),
        (DBusError("org.freedesktop.DBus.Error.InconsistentMessage", "x"), True, errors.PermissionDenied),
        (errors.Timeout(), False, errors.PermissionDenied),
        (errors.Unavailable("no system bus"), False, errors.PermissionDenied),
        (errors.Unavailable("no system bus"), True, errors.PermissionDenied),
    ],
)
def test_an_answer(
    loop: Loop, peer: MakePeer, answer: object, interactive: bool, expected: type | None, lines: list[Line]
) -> None:
    outcome = Outcome(loop, Polkit(FakeBus(loop, answer), FakeBus(loop, answer)), peer(), interactive)
    assert outcome.done
    assert type(outcome.error) is (expected or type(None))
    if outcome.error is not None:
        assert outcome.error.parameters == {}
        assert outcome.error.refusal is not None
        assert outcome.error.refusal.by == "polkit"
    warned = [line for line in lines if line.priority == journal.NOTICE]
    assert len(warned) == isinstance(answer, Exception)
    assert all(ACTION in line.message for line in warned)


# --- a client that leaves --------------------------------------------------------------------------------------------


def test_a_question_is_cancelled_when_the_client_leaves(loop: Loop, peer: MakePeer) -> None:
    bus, client, other = FakeBus(loop), peer(), peer()
    polkit = Polkit(bus, bus)
    outcome, _ = Outcome(loop, polkit, client, True), Outcome(loop, polkit, other, True)
    turn(loop)
    assert bus.sent == []
    client.left.resolve(None)
    turn(loop)
    (cancel,) = bus.sent
    assert cancel.header.fields[HeaderFields.member] == "CancelCheckAuthorization"
    assert cancel.body == (bus.calls[0][0].body[4],)
    assert isinstance(outcome.error, errors.PermissionDenied)


def test_what_is_answered_is_not_cancelled(loop: Loop, peer: MakePeer) -> None:
    bus, client = FakeBus(loop, YES), peer()
    polkit = Polkit(bus, bus)
    assert Outcome(loop, polkit, client).done
    client.left.resolve(None)
    turn(loop)
    assert bus.sent == []


def test_the_second_way_of_asking_is_cancelled_as_well(loop: Loop, peer: MakePeer) -> None:
    bus, client = FakeBus(loop, OLD), peer()
    Outcome(loop, Polkit(bus, bus), client, True)
    client.left.resolve(None)
    turn(loop)
    assert [message.body for message in bus.sent] == [(bus.calls[1][0].body[4],)]


# --- how many --------------------------------------------------------------------------------------------------------


def test_one_user_has_so_many_questions_for_a_password_at_a_time(
    loop: Loop, peer: MakePeer, lines: list[Line]
) -> None:
    bus, client, other = FakeBus(loop), peer(1000), peer(1001)
    polkit = Polkit(bus, bus)
    waiting = [Outcome(loop, polkit, client, True) for _ in range(QUESTIONS_MAX)]
    # Of the user, not of the process.
    for another in (client, peer(1000)):
        assert isinstance(Outcome(loop, polkit, another, True).error, errors.Busy)
    assert len(bus.calls) == QUESTIONS_MAX
    assert not Outcome(loop, polkit, other, True).done
    for index, answer in enumerate((YES, NO, errors.Timeout(), DBusError("x.Y", ""))):
        if isinstance(answer, Exception):
            bus.pending[index].fail(answer)
        else:
            bus.pending[index].resolve(answer)
        turn(loop)
        assert waiting[index].done
        assert not Outcome(loop, polkit, client, True).done, "each end makes room for one"
        assert isinstance(Outcome(loop, polkit, client, True).error, errors.Busy)
    for future in bus.pending:
        future.resolve(YES)
    turn(loop)
    assert bus.turns.taken == 0


def test_questions_that_ask_nobody_wait_for_their_users_turn(loop: Loop, peer: MakePeer) -> None:
    """The bus gives turns; it has to know whose question it is."""
    quick, patient, client = FakeBus(loop), FakeBus(loop), peer(1000)
    polkit = Polkit(quick, patient)
    outcomes = [Outcome(loop, polkit, client) for _ in range(2 * QUESTIONS_MAX)]
    assert quick.users == [1000] * (2 * QUESTIONS_MAX)
    assert patient.users == []
    for future in quick.pending:
        future.resolve(YES)
    turn(loop)
    turn(loop)
    assert all(outcome.done and outcome.error is None for outcome in outcomes)


def test_nobody_waits_until_others_have_typed_their_passwords(loop: Loop, peer: MakePeer) -> None:
    bus = FakeBus(loop)
    bus.turns.places = 4
    polkit = Polkit(bus, bus)
    for uid in range(1000, 1003):
        assert not Outcome(loop, polkit, peer(uid), True).done
    assert isinstance(Outcome(loop, polkit, peer(1003), True).error, errors.Busy)
    bus.pending[0].resolve(YES)
    turn(loop)
    assert not Outcome(loop, polkit, peer(1003), True).done


def test_too_many_that_wait_are_no_refusal_of_polkit(loop: Loop, peer: MakePeer) -> None:
    bus = FakeBus(loop, errors.TooManyOperations())
    assert isinstance(Outcome(loop, Polkit(bus, bus), peer()).error, errors.TooManyOperations)


def test_a_question_is_counted_once_also_for_an_old_polkit(loop: Loop, peer: MakePeer) -> None:
    bus, client = FakeBus(loop), peer()
    polkit = Polkit(bus, bus)
    outcomes = [Outcome(loop, polkit, client, True) for _ in range(QUESTIONS_MAX)]
    for future in bus.pending[:]:
        future.fail(OLD)
    turn(loop)
    assert len(bus.calls) == 2 * QUESTIONS_MAX
    assert isinstance(Outcome(loop, polkit, client, True).error, errors.Busy)
    for future in bus.pending:
        future.resolve(YES)
    turn(loop)
    assert all(outcome.done and outcome.error is None for outcome in outcomes)
    assert bus.turns.taken == 0
