# SPDX-License-Identifier: LGPL-2.1-or-later
"""The way of a request: validate, authorize, call, reply, and a line in the journal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from bridge import __version__, introspection, journal
from bridge.bus import DBusError
from bridge.contract import Contract
from bridge.dispatch import Dispatcher
from bridge.errors import Busy, Unavailable
from bridge.machined import BRIDGE_DENIED
from bridge.messages import Call, Peer, Reply
from bridge.methods import METHODS

from .conftest import FakeMachined, Line, result_of

CONTRACT = Contract()
ROOT = Peer(pid=1, uid=0, gid=0)
USER = Peer(pid=4711, uid=1000, gid=1000)
GUARDED = [name for name, method in METHODS.items() if method.guarded]
# What each method takes at the least.
LEAST = {
    name: {key: "/a" if key == "src" else f"my-{key}" for key in method["parameters"].get("required", [])}
    for name, method in CONTRACT.methods.items()
}
TERMINATE = Call("io.machine1.TerminateMachine", {"name": "web1"})


def answer(call: Call, peer: Peer = ROOT, machined: FakeMachined | None = None) -> Reply:
    return result_of(Dispatcher(CONTRACT, machined or FakeMachined([])).answer(call, peer))


def error(call: Call, peer: Peer = ROOT, machined: FakeMachined | None = None) -> tuple[str | None, Any]:
    reply = answer(call, peer, machined)
    return reply.error, reply.parameters


@pytest.fixture(autouse=True)
def lines(logged: list[Line]) -> list[Line]:
    return logged


# --- authorize ------------------------------------------------------------------------------------------------------


def test_there_are_guarded_methods_and_others() -> None:
    assert sorted(set(METHODS) - set(GUARDED)) == [
        "io.machine1.GetMachine",
        "io.machine1.ListImages",
        "io.machine1.ListMachines",
    ]


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("uid", [1, 1000, 65534, 2**32 - 1])
def test_what_changes_something_is_for_root_alone(name: str, uid: int) -> None:
    machined = FakeMachined()
    # Root's group makes nobody root.
    assert error(Call(name, LEAST[name]), Peer(1, uid, 0), machined) == ("org.varlink.service.PermissionDenied", {})
    assert machined.asked == []


@pytest.mark.parametrize("name", [name for name in GUARDED if name != "io.machine1.OpenMachineShell"])
def test_root_may_change_things(name: str) -> None:
    machined = FakeMachined()
    assert answer(Call(name, LEAST[name]), ROOT, machined) == Reply()
    assert len(machined.asked) == 1


@pytest.mark.parametrize("name", ["io.machine1.ListMachines", "io.machine1.ListImages"])
def test_everybody_may_look(name: str) -> None:
    assert answer(Call(name), USER).error is None


def test_asking_for_a_password_makes_nobody_root() -> None:
    call = Call(TERMINATE.method, {"name": "web1", "allowInteractiveAuthentication": True})
    assert answer(call, USER).error == "org.varlink.service.PermissionDenied"


# --- the order of the steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (Call("io.machine2.X"), ("org.varlink.service.InterfaceNotFound", {"interface": "io.machine2"})),
        (Call("io.machine1.X"), ("org.varlink.service.MethodNotFound", {"method": "io.machine1.X"})),
        (Call("io.machine1.X", upgrade=True), ("org.varlink.service.MethodNotFound", {"method": "io.machine1.X"})),
        (
            Call(TERMINATE.method, {}, upgrade=True),
            ("org.varlink.service.InvalidParameter", {"parameter": "name", "reason": "is required"}),
        ),
        (
            Call(TERMINATE.method, TERMINATE.parameters, upgrade=True),
            ("org.varlink.service.MethodNotImplemented", {"method": TERMINATE.method}),
        ),
        (
            Call("org.varlink.service.GetInfo", upgrade=True),
            ("org.varlink.service.MethodNotImplemented", {"method": "org.varlink.service.GetInfo"}),
        ),
    ],
)
def test_what_is_wrong_with_a_call_is_told(call: Call, expected: tuple[str, dict[str, str]]) -> None:
    machined = FakeMachined([])
    assert error(call, ROOT, machined) == expected
    assert machined.asked == []
    if call.method not in GUARDED:
        assert error(call, USER, machined) == expected


class Untouched(Contract):
    """A contract that checks nothing."""

    def check(self, method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        raise AssertionError("somebody looked at the parameters")


@pytest.mark.parametrize("upgrade", [False, True])
@pytest.mark.parametrize(
    "parameters",
    [{}, {"name": "web1"}, {"name": 5}, {"name": None}, {"x": "y"}, {"name": [[[{}]]]}, {"name": "x" * 100_000}],
)
@pytest.mark.parametrize("method", GUARDED)
def test_who_may_not_make_a_call_is_told_so_whatever_is_in_it(
    method: str, parameters: dict[str, Any], upgrade: bool
) -> None:
    """Checking takes time, of which they are not to have any; and their parameters are no one's business."""
    machined = FakeMachined([])
    reply = result_of(Dispatcher(Untouched(), machined).answer(Call(method, parameters, upgrade=upgrade), USER))
    assert reply == Reply({}, error="org.varlink.service.PermissionDenied")
    assert machined.asked == []


def test_parameters_are_checked_of_who_may_make_a_call() -> None:
    """That the contract of the test before would have noticed."""
    for call, peer in [(TERMINATE, ROOT), (Call("io.machine1.ListMachines"), USER)]:
        reply = result_of(Dispatcher(Untouched(), FakeMachined([])).answer(call, peer))
        assert reply.error == "io.machine1.Failed"


def test_a_method_sees_no_null() -> None:
    machined = FakeMachined()
    answer(Call("io.machine1.KillMachine", {"name": "web1", "who": None, "signal": None}), ROOT, machined)
    assert machined.asked[0].arguments == ("web1", "all", 15)


@pytest.mark.parametrize(("more", "oneway"), [(True, False), (False, True)])
def test_more_and_oneway_are_answered_as_any_other(more: bool, oneway: bool) -> None:
    """`more` permits several replies, one is enough; `oneway` is the server's affair."""
    assert answer(Call("io.machine1.ListMachines", more=more, oneway=oneway)) == Reply({"machines": []})


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_an_error_of_machined_names_the_calls_object() -> None:
    machined = FakeMachined(error=DBusError("org.freedesktop.machine1.NoSuchMachine", "no"))
    assert error(TERMINATE, ROOT, machined) == ("io.machine1.NoSuchMachine", {"name": "web1"})


def test_a_taken_name_is_the_new_one() -> None:
    machined = FakeMachined(error=DBusError("System.Error.EEXIST", "no"))
    call = Call("io.machine1.CloneImage", {"name": "a", "dest": "b"})
    assert error(call, ROOT, machined) == ("io.machine1.NameTaken", {"name": "b"})


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (Unavailable("gone"), ("io.machine1.Unavailable", {"reason": "gone"})),
        (Busy("later"), ("io.machine1.Busy", {"reason": "later"})),
        (DBusError("x.Y", "why"), ("io.machine1.Failed", {"dbus_error": "x.Y", "message": "why"})),
    ],
)
def test_an_error_of_the_interface_is_handed_on(raised: Exception, expected: tuple[str, dict[str, str]]) -> None:
    assert error(TERMINATE, ROOT, FakeMachined(error=raised)) == expected


@pytest.mark.parametrize("bug", [ZeroDivisionError("secret"), KeyError("secret"), RecursionError(), TimeoutError()])
def test_a_bug_is_told_to_the_journal_and_not_to_the_client(bug: Exception, lines: list[Line]) -> None:
    name, parameters = error(TERMINATE, ROOT, FakeMachined(error=bug))
    assert name == "io.machine1.Failed"
    assert parameters == {"dbus_error": "", "message": "internal error of machine1-bridge, see its journal"}
    assert lines[0].priority == journal.ERROR
    assert "Bug in io.machine1.TerminateMachine" in lines[0].message
    assert "Traceback" in lines[0].message
    assert type(bug).__name__ in lines[0].message


def test_an_answer_of_another_shape_is_a_bug_and_not_the_end() -> None:
    assert answer(Call("io.machine1.ListMachines"), ROOT, FakeMachined()).error == "io.machine1.Failed"


@pytest.mark.parametrize("name", BRIDGE_DENIED)
def test_a_right_that_the_bridge_lacks_is_told_to_the_administrator(name: str, lines: list[Line]) -> None:
    machined = FakeMachined(error=DBusError(name, "not allowed"))
    assert error(TERMINATE, ROOT, machined) == ("org.varlink.service.PermissionDenied", {})
    assert lines[0].priority == journal.WARNING
    assert "machined does not let this service do io.machine1.TerminateMachine" in lines[0].message
    assert lines[0].fields == {"MACHINE1_METHOD": TERMINATE.method, "MACHINE1_DBUS_ERROR": name}


def test_a_refused_client_is_no_missing_right_of_the_bridge(lines: list[Line]) -> None:
    answer(TERMINATE, USER)
    assert [line.priority for line in lines] == [journal.NOTICE]


# --- one line for each guarded call ---------------------------------------------------------------------------------


def test_a_guarded_call_is_one_line(lines: list[Line]) -> None:
    answer(TERMINATE, ROOT)
    (line,) = lines
    duration = line.fields.pop("MACHINE1_DURATION_USEC")
    assert isinstance(duration, int)
    assert 0 <= duration < 5_000_000
    assert line == Line(
        journal.INFO,
        "io.machine1.TerminateMachine on web1 by UID 0, PID 1: done",
        {
            "MACHINE1_METHOD": "io.machine1.TerminateMachine",
            "MACHINE1_OUTCOME": "done",
            "MACHINE1_PEER_UID": 0,
            "MACHINE1_PEER_PID": 1,
            "MACHINE1_MACHINE": "web1",
        },
    )


def test_a_refused_call_is_one_line_that_stands_out(lines: list[Line]) -> None:
    answer(TERMINATE, USER)
    (line,) = lines
    assert line.priority == journal.NOTICE
    assert line.message == (
        "io.machine1.TerminateMachine on web1 by UID 1000, PID 4711: org.varlink.service.PermissionDenied"
    )
    assert line.fields["MACHINE1_OUTCOME"] == "org.varlink.service.PermissionDenied"
    assert line.fields["MACHINE1_PEER_UID"] == 1000
    assert line.fields["MACHINE1_PEER_PID"] == 4711


def test_an_image_and_its_new_name_are_both_in_the_line(lines: list[Line]) -> None:
    answer(Call("io.machine1.RenameImage", {"name": "a", "dest": "b"}), ROOT)
    (line,) = lines
    assert line.message.startswith("io.machine1.RenameImage on a, b by ")
    assert (line.fields["MACHINE1_IMAGE"], line.fields["MACHINE1_NEW"]) == ("a", "b")
    assert "MACHINE1_MACHINE" not in line.fields


@pytest.mark.parametrize(
    ("parameters", "machine"),
    [
        ({}, None),
        ({"name": "web1", "x": 1}, "web1"),
        ({"name": "no such name"}, "no such name"),
        ({"name": "Bäume/../.."}, "Bäume/../.."),
        ({"name": "x" * 255, "x": 1}, "x" * 255),
        ({"name": "x" * 256}, None),
        ({"name": "no\nsuch name"}, None),
        ({"name": "\x1b[2J"}, None),
        ({"name": "\u202e"}, None),
        ({"name": None}, None),
        ({"name": 5}, None),
        ({"name": True}, None),
        ({"name": ["web1"]}, None),
        ({"name": {"web1": 1}}, None),
        # What is not the name of an object is not said, whatever it is.
        ({"x": "web1"}, None),
    ],
)
@pytest.mark.parametrize("peer", [ROOT, USER])
def test_a_guarded_call_with_wrong_parameters_is_one_line_with_what_can_be_a_name(
    lines: list[Line], parameters: dict[str, Any], machine: str | None, peer: Peer
) -> None:
    """They are not validated, and may be anything."""
    reply = answer(Call(TERMINATE.method, parameters), peer)
    (line,) = lines
    outcome = "InvalidParameter" if peer is ROOT else "PermissionDenied"
    assert reply.error == f"org.varlink.service.{outcome}"
    assert line.priority == (journal.INFO if peer is ROOT else journal.NOTICE)
    assert line.message == (
        f"io.machine1.TerminateMachine on {machine or '?'} by UID {peer.uid}, PID {peer.pid}:"
        f" org.varlink.service.{outcome}"
    )
    assert line.fields.get("MACHINE1_MACHINE") == machine


def test_of_two_objects_the_one_that_can_be_a_name_is_in_the_line(lines: list[Line]) -> None:
    answer(Call("io.machine1.RenameImage", {"name": "a\n", "dest": "b"}), USER)
    (line,) = lines
    assert line.message.startswith("io.machine1.RenameImage on b by ")
    assert line.fields["MACHINE1_NEW"] == "b"
    assert "MACHINE1_IMAGE" not in line.fields


def test_who_is_refused_again_and_again_does_not_fill_the_journal(lines: list[Line]) -> None:
    for _ in range(50):
        answer(TERMINATE, USER)
    assert len(lines) == 20
    other = Peer(pid=4712, uid=1001, gid=1001)
    answer(TERMINATE, other)
    assert len(lines) == 21
    assert lines[-1].fields["MACHINE1_PEER_UID"] == 1001


@pytest.mark.parametrize(
    "machined",
    [FakeMachined(), FakeMachined(error=Unavailable("gone"))],
    ids=["done", "failed"],
)
def test_what_was_not_refused_is_always_a_line(lines: list[Line], machined: FakeMachined) -> None:
    """Refused users take none of these lines away."""
    for _ in range(30):
        answer(TERMINATE, USER)
    lines.clear()
    for _ in range(50):
        answer(TERMINATE, ROOT, machined)
    assert len(lines) == 50
    for _ in range(50):
        answer(Call(TERMINATE.method), ROOT)
    assert len(lines) == 100


def test_what_runs_in_a_shell_is_not_logged(lines: list[Line]) -> None:
    parameters = {"name": "web1", "user": "s1cret", "path": "/s2cret", "args": ["s3cret"], "env": ["A=s4cret"]}
    answer(Call("io.machine1.OpenMachineShell", parameters), USER)
    assert len(lines) == 1
    assert "cret" not in repr(lines)


@pytest.mark.parametrize(
    "call",
    [
        Call("io.machine1.ListMachines"),
        Call("io.machine1.GetMachine", {"name": "web1"}),
        Call("io.machine1.ListImages", {"x": 1}),
        Call("io.machine1.X"),
        Call("x"),
        Call("org.varlink.service.GetInfo"),
    ],
)
def test_calls_that_are_not_guarded_leave_no_line(lines: list[Line], call: Call) -> None:
    answer(call, USER)
    assert lines == []


# --- org.varlink.service --------------------------------------------------------------------------------------------


def test_the_service_says_what_it_is() -> None:
    reply = answer(Call("org.varlink.service.GetInfo"), USER)
    assert reply.error is None
    assert reply.parameters["version"] == __version__
    assert reply.parameters["product"] == "machine1-bridge"
    # Its own among them, as the standard wants it.
    assert sorted(reply.parameters["interfaces"]) == ["io.machine1", "org.varlink.service"]


@pytest.mark.parametrize("interface", ["io.machine1", "org.varlink.service"])
def test_each_interface_is_described(interface: str) -> None:
    reply = answer(Call("org.varlink.service.GetInterfaceDescription", {"interface": interface}), USER)
    assert f"interface {interface}\n" in reply.parameters["description"]


@pytest.mark.parametrize("interface", ["io.machine2", "", "io.machine1.ListMachines"])
def test_an_interface_that_is_not_there_is_named(interface: str) -> None:
    call = Call("org.varlink.service.GetInterfaceDescription", {"interface": interface})
    assert error(call) == ("org.varlink.service.InterfaceNotFound", {"interface": interface})


def test_the_description_is_made_once() -> None:
    service = introspection.Introspection(CONTRACT)
    assert service._service is service._service
