# SPDX-License-Identifier: LGPL-2.1-or-later
"""io.systemd.service: what the administrator sees and sets, and nobody else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge import journal
from bridge.authorize import Authorizer
from bridge.contract import Contract
from bridge.control import Control
from bridge.dispatch import Dispatcher
from bridge.loop import Future, Loop
from bridge.messages import Call, Peer, Reply
from bridge.policy import Policy, PolicyError, parse
from bridge.polkit import Polkit

from .conftest import FakeMachined, Line, result_of

SHIPPED = parse((Path(__file__).resolve().parents[2] / "contrib/policy/default.toml").read_bytes(), "default", "x")
BOX = parse(b'preset = "manage"\n', "box", "x")
STRANGER = 4711
DENIED = "org.varlink.service.PermissionDenied"


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    yield
    journal.set_level(journal.INFO)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


class NoPolkit(Polkit):
    def __init__(self) -> None:
        """Nobody is asked."""


class Desk:
    """Calls of one after the other."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.reload: Callable[[], None] = self._count
        self.reloads = 0

    def _count(self) -> None:
        self.reloads += 1

    def call(self, method: str, uid: int = 0, policy: Policy = SHIPPED, **parameters: object) -> Reply:
        control = Control(lambda: self.reload())
        dispatcher = Dispatcher(Contract(), Authorizer(policy, NoPolkit()), FakeMachined(), control)
        peer = Peer(1, uid, uid, Future(self._loop))
        return result_of(dispatcher.answer(Call(f"io.systemd.service.{method}", parameters), peer))


@pytest.fixture
def desk(loop: Loop) -> Desk:
    return Desk(loop)


@pytest.mark.parametrize("uid", [0, STRANGER])
@pytest.mark.parametrize("policy", [SHIPPED, BOX])
def test_everybody_may_ask_whether_it_runs_and_what_it_logs(desk: Desk, uid: int, policy: Policy) -> None:
    assert desk.call("Ping", uid, policy) == Reply()
    assert desk.call("GetLogLevel", uid, policy) == Reply({"level": 6})


def test_root_says_what_is_logged(desk: Desk) -> None:
    for level in range(8):
        assert desk.call("SetLogLevel", level=level) == Reply()
        assert desk.call("GetLogLevel") == Reply({"level": level})


@pytest.mark.parametrize("level", [-1, 8, "debug", 6.5, True, None])
def test_a_level_that_is_none_is_refused(desk: Desk, level: object) -> None:
    reply = desk.call("SetLogLevel", level=level)
    assert (reply.error, reply.parameters["parameter"]) == ("org.varlink.service.InvalidParameter", "level")
    assert journal.level() == 6


def test_the_users_own_process_may_as_well(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    assert desk.call("SetLogLevel", STRANGER, level=7) == Reply()
    assert desk.call("SetLogLevel", STRANGER + 1, level=3).error == DENIED
    assert journal.level() == 7


NEEDED = {"SetLogLevel": {"level": 7}}


@pytest.mark.parametrize("method", ["SetLogLevel", "GetEnvironment", "Reload"])
def test_nobody_else_may(desk: Desk, logged: list[Line], method: str) -> None:
    assert desk.call(method, STRANGER, SHIPPED, **NEEDED.get(method, {})).error == DENIED
    assert desk.reloads == 0
    (line,) = logged
    assert line.fields["MACHINE1_DECIDED_BY"] == "kernel"


@pytest.mark.parametrize("method", ["SetLogLevel", "GetEnvironment", "Reload"])
def test_nor_who_is_root_in_a_sandbox(desk: Desk, method: str) -> None:
    """It has the socket of a policy of its own, and UID 0 there may well be that of the host."""
    assert desk.call(method, 0, BOX, **NEEDED.get(method, {})).error == DENIED
    assert desk.reloads == 0


def test_the_environment_is_that_of_the_process(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME", "thing=ü")
    assert "SOME=thing=ü" in desk.call("GetEnvironment").parameters["environment"]


def test_an_environment_that_is_no_text_is_an_error(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environb, b"SOME", b"\xff")
    assert desk.call("GetEnvironment").error == "io.systemd.service.InconsistentEnvironment"


def test_the_policy_is_read_again(desk: Desk) -> None:
    assert desk.call("Reload", allowInteractiveAuthentication=True) == Reply()
    assert desk.reloads == 1


def test_a_policy_with_a_mistake_is_not_taken(desk: Desk) -> None:
    def fail() -> None:
        raise PolicyError("default.toml:3: no such key")

    desk.reload = fail
    reply = desk.call("Reload")
    assert reply.error == "io.systemd.System"
    assert reply.parameters == {
        "origin": "linux", "errno": 22, "errnoName": "EINVAL", "reason": "default.toml:3: no such key"
    }  # fmt: skip


def test_what_was_set_is_a_line_in_the_journal_and_what_was_asked_is_none(desk: Desk, logged: list[Line]) -> None:
    desk.call("SetLogLevel", level=3)
    desk.call("GetEnvironment")
    (line,) = logged
    assert line.fields["MACHINE1_METHOD"] == "io.systemd.service.SetLogLevel"
