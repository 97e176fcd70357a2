# SPDX-License-Identifier: LGPL-2.1-or-later
"""The way of a request: validate, authorize, call, reply, and a line in the journal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from jeepney.fds import FileDescriptor
from jsonschema import Draft202012Validator

from bridge import __version__, audit, introspection, journal
from bridge.authorize import Authorizer
from bridge.bus import DBusError
from bridge.contract import Contract
from bridge.control import Control
from bridge.dispatch import CHECK, Dispatcher
from bridge.errors import (
    Busy,
    InteractiveAuthenticationRequired,
    PermissionDenied,
    Refusal,
    Unavailable,
    VarlinkError,
)
from bridge.loop import Future, Loop
from bridge.machined import BRIDGE_DENIED, Machined
from bridge.messages import Call, Parameters, Peer, Reply
from bridge.methods import METHODS, Method
from bridge.policy import Policy, parse
from bridge.polkit import Polkit

from .conftest import FakeMachined, Line, result_of

CONTRACT = Contract()
LOOP = Loop()
LOOP.close()
EVERYTHING = """
preset = "all"
machines = ["*", ".host"]
images = ["*"]
users = ["*"]
programs = ["**"]
environment = ["*"]
host-paths = true
accept-fds = true
pull = ["http://a/*"]
"""


def peer(uid: int, pid: int = 4711) -> Peer:
    return Peer(pid, uid, uid, Future(LOOP), socket="varlink")


def policy(text: str = EVERYTHING) -> Policy:
    return parse(text.encode(), "default", "x")


ROOT = peer(0, 1)
USER = peer(1000)
ALL = policy()
GUARDED = [name for name, method in METHODS.items() if method.guarded]
# What each method takes at the least.
LEAST = {
    name: {
        key: {
            "src": "/a", "pid": 2, "uid": 2, "gid": 2, "read_only": True, "mode": "all", "state": "gone",
            "image_fd": 0, "url": "http://a/b", "transfer": 1,
        }.get(key, f"my-{key}")
        for key in method["parameters"].get("required", [])
    }
    for name, method in CONTRACT.methods.items()
}
# Those that answer with a descriptor, have several replies or ask more than machined one thing.
SPECIAL = {
    f"io.machine1.{name}"
    for name in ("OpenMachineShell", "OpenMachineLogin", "OpenMachinePTY", "OpenMachineRootDirectory", "StartMachine",
        "CleanPool", "ImportTar", "ImportRaw", "ExportTar", "ExportRaw", "PullTar", "PullRaw", "CancelTransfer",
    )
}
TERMINATE = Call("io.machine1.TerminateMachine", {"name": "web1"})
DENIED = PermissionDenied().refused(Refusal("polkit", "polkit says no"))
PASSWORD = InteractiveAuthenticationRequired().refused(Refusal("polkit", "polkit would ask for a password"))


@dataclass(frozen=True)
class Question:
    """What polkit was asked."""

    uid: int
    action: str
    details: Mapping[str, str]
    interactive: bool


class FakePolkit(Polkit):
    """Says yes, or what it is told to, and remembers the questions."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[Question] = []
        self._error = error

    async def check(self, peer: Peer, action: str, details: Mapping[str, str], interactive: bool) -> None:
        self.asked.append(Question(peer.uid, action, dict(details), interactive))
        if self._error is not None:
            raise self._error


def answer(
    call: Call,
    peer: Peer = ROOT,
    machined: FakeMachined | None = None,
    polkit: FakePolkit | None = None,
    decides: Policy = ALL,
    contract: Contract = CONTRACT,
) -> Reply:
    """Polkit denies what it is asked, unless it is another one. A file descriptor comes where one has to."""
    authorizer = Authorizer(decides, polkit or FakePolkit(DENIED))
    dispatcher = Dispatcher(contract, authorizer, machined or FakeMachined([]), Control(lambda: None))
    if call.method in METHODS and METHODS[call.method].fd is not None and not call.fds:
        with open(os.devnull, "rb") as file:
            fd = FileDescriptor(os.dup(file.fileno()))
        reply = result_of(dispatcher.answer(replace(call, fds=(fd,)), peer))
        fd.close()
        return reply
    return result_of(dispatcher.answer(call, peer))


def error(
    call: Call,
    peer: Peer = ROOT,
    machined: FakeMachined | None = None,
    polkit: FakePolkit | None = None,
    decides: Policy = ALL,
) -> tuple[str | None, Any]:
    reply = answer(call, peer, machined, polkit, decides)
    return reply.error, reply.parameters


@pytest.fixture(autouse=True)
def lines(logged: list[Line], monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    monkeypatch.setattr(audit, "unit_of", lambda _: "")
    return logged


# --- authorize ------------------------------------------------------------------------------------------------------


def test_there_are_guarded_methods_and_others() -> None:
    assert sorted(set(METHODS) - set(GUARDED)) == [
        "io.machine1.GetImage",
        "io.machine1.GetMachine",
        "io.machine1.GetMachineByPID",
        "io.machine1.GetPool",
        "io.machine1.ListImages",
        "io.machine1.ListMachines",
        "io.machine1.ListTransfers",
        "io.machine1.MapFromMachineGroup",
        "io.machine1.MapFromMachineUser",
        "io.machine1.MapToMachineGroup",
        "io.machine1.MapToMachineUser",
        "io.machine1.WaitMachine",
        "io.machine1.WatchImages",
        "io.machine1.WatchMachines",
    ]


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("uid", [1, 1000, 65534, 2**32 - 1])
def test_what_changes_something_needs_polkits_yes(name: str, uid: int) -> None:
    machined, polkit = FakeMachined([]), FakePolkit(DENIED)
    # Root's group makes nobody root.
    client = Peer(1, uid, 0, Future(LOOP))
    call = Call(name, LEAST[name])
    assert error(call, client, machined, polkit) == ("org.varlink.service.PermissionDenied", {})
    assert [question.uid for question in polkit.asked] == [uid]
    assert machined.asked == []
    if name not in SPECIAL:
        polkit = FakePolkit()
        assert answer(call, client, machined, polkit) == Reply()
        assert [question.uid for question in polkit.asked] == [uid]
        assert len(machined.asked) == 1


@pytest.mark.parametrize("name", [name for name in GUARDED if name not in SPECIAL])
def test_root_may_change_things_and_polkit_is_not_asked(name: str) -> None:
    machined, polkit = FakeMachined(), FakePolkit(DENIED)
    assert answer(Call(name, LEAST[name]), ROOT, machined, polkit) == Reply()
    assert len(machined.asked) == 1
    assert polkit.asked == []


@pytest.mark.parametrize("name", ["io.machine1.ListMachines", "io.machine1.ListImages"])
def test_everybody_may_look(name: str) -> None:
    polkit = FakePolkit(DENIED)
    assert answer(Call(name), USER, polkit=polkit).error is None
    assert polkit.asked == []


@pytest.mark.parametrize(("asks", "interactive"), [({}, False), ({"allowInteractiveAuthentication": True}, True)])
def test_asking_for_a_password_makes_nobody_root(asks: dict[str, bool], interactive: bool) -> None:
    machined, polkit = FakeMachined(), FakePolkit(DENIED)
    call = Call(TERMINATE.method, {"name": "web1"} | asks)
    assert answer(call, USER, machined, polkit).error == "org.varlink.service.PermissionDenied"
    assert [question.interactive for question in polkit.asked] == [interactive]
    assert machined.asked == []


@pytest.mark.parametrize("raised", [DENIED, PASSWORD, Busy("too many questions")])
def test_what_polkit_says_is_told(raised: VarlinkError) -> None:
    machined = FakeMachined()
    assert error(TERMINATE, USER, machined, FakePolkit(raised)) == (raised.name, raised.parameters)
    assert machined.asked == []


@pytest.mark.parametrize("peer", [ROOT, USER])
def test_the_policy_is_above_root_and_before_polkit(peer: Peer) -> None:
    machined, polkit = FakeMachined(), FakePolkit()
    for text, expected in [
        ('preset = "manage"\nmachines = ["db"]\n', ("io.machine1.NoSuchMachine", {"name": "web1"})),
        ('preset = "read-only"\nmachines = ["*"]\n', ("org.varlink.service.PermissionDenied", {})),
        ("", ("org.varlink.service.PermissionDenied", {})),
    ]:
        assert error(TERMINATE, peer, machined, polkit, policy(text)) == expected
    assert (machined.asked, polkit.asked) == ([], [])


def test_machined_and_polkit_get_the_same_values() -> None:
    """What is asked is what is done: the defaults are written out before the question."""
    machined, polkit = FakeMachined(), FakePolkit()
    call = Call("io.machine1.CopyFromMachine", {"name": "web1", "src": "/a", "dest": "//b/./c/"})
    assert answer(call, USER, machined, polkit) == Reply()
    assert machined.asked[0].arguments == ("web1", "/a", "/b/c")
    (question,) = polkit.asked
    assert (question.details["machine"], question.details["src"], question.details["dest"]) == ("web1", "/a", "/b/c")


# --- what a policy does not show ------------------------------------------------------------------------------------

PATH = "/org/freedesktop/machine1/x"
MACHINES = [(name, "container", "x", PATH) for name in ("web1", "web2", "db", "Web1", "")]
HOST = (".host", "host", "", PATH)
IMAGES = [(name, "raw", False, 1, 2, 3, PATH) for name in ("web1", "web2", "db", "Web1")]


@pytest.mark.parametrize(
    ("shown", "names"),
    [
        ('["web*"]', ["web1", "web2"]),
        ('["db"]', ["db"]),
        ('["*"]', ["Web1", "db", "web1", "web2"]),
        ('["*", ".host"]', [".host", "Web1", "db", "web1", "web2"]),
        ('["db", ".host"]', [".host", "db"]),
        ('["web3"]', []),
        (None, []),
    ],
)
@pytest.mark.parametrize("peer", [ROOT, USER])
def test_a_list_has_the_machines_that_the_policy_shows(peer: Peer, shown: str | None, names: list[str]) -> None:
    decides = policy('preset = "read-only"\nimages = ["*"]\n' + (f"machines = {shown}\n" if shown else ""))
    call = Call("io.machine1.ListMachines", {"all": True})
    reply = answer(call, peer, FakeMachined([*MACHINES, HOST]), decides=decides)
    assert [machine["name"] for machine in reply.parameters["machines"]] == names


@pytest.mark.parametrize(
    ("shown", "names"), [('["web*"]', ["web1", "web2"]), ('["*"]', ["Web1", "db", "web1", "web2"]), (None, [])]
)
@pytest.mark.parametrize("peer", [ROOT, USER])
def test_a_list_has_the_images_that_the_policy_shows(peer: Peer, shown: str | None, names: list[str]) -> None:
    decides = policy('preset = "read-only"\nmachines = ["*"]\n' + (f"images = {shown}\n" if shown else ""))
    reply = answer(Call("io.machine1.ListImages"), peer, FakeMachined(IMAGES), decides=decides)
    assert [image["name"] for image in reply.parameters["images"]] == names


def test_a_list_without_a_policy_is_refused() -> None:
    machined = FakeMachined(MACHINES)
    for method in ("ListMachines", "ListImages"):
        call = Call(f"io.machine1.{method}")
        assert error(call, ROOT, machined, decides=policy("")) == ("org.varlink.service.PermissionDenied", {})
    assert machined.asked == []


def test_a_hidden_machine_and_a_missing_one_are_told_the_same_way() -> None:
    decides = policy('preset = "read-only"\nmachines = ["web*"]\n')
    call = Call("io.machine1.GetMachine", {"name": "db"})
    hidden = answer(call, USER, FakeMachined(MACHINES), decides=decides)
    missing = answer(call, USER, FakeMachined([]))
    assert hidden == missing == Reply({"name": "db"}, error="io.machine1.NoSuchMachine")


# --- Check ----------------------------------------------------------------------------------------------------------

ALLOWED = Reply({"allowed": True, "reason": ""})


def refused(reason: str) -> Reply:
    return Reply({"allowed": False, "reason": reason})


def check(
    method: str,
    parameters: dict[str, Any] | None = None,
    peer: Peer = USER,
    polkit: FakePolkit | None = None,
    decides: Policy = ALL,
) -> Reply:
    """What Check says of a call; nothing of it reaches machined, and what it says keeps the contract."""
    machined = FakeMachined(MACHINES)
    call = Call(CHECK, {"method": method, "parameters": parameters})
    reply = answer(call, peer, machined, polkit or FakePolkit(), decides)
    assert machined.asked == []
    if reply.error is None:
        Draft202012Validator(CONTRACT.methods[CHECK]["reply"]).validate(reply.parameters)
    return reply


@pytest.mark.parametrize("prefix", ["", "io.machine1."])
@pytest.mark.parametrize("name", METHODS)
def test_check_says_what_would_be_allowed(name: str, prefix: str) -> None:
    polkit = FakePolkit()
    method = prefix + name.removeprefix("io.machine1.")
    assert check(method, LEAST[name], polkit=polkit) == ALLOWED
    assert len(polkit.asked) == (name in GUARDED)
    # What would be asked by the call itself.
    asked = FakePolkit(DENIED)
    answer(Call(name, LEAST[name]), USER, polkit=asked)
    assert polkit.asked == asked.asked


@pytest.mark.parametrize("name", GUARDED)
def test_check_says_what_polkit_would_refuse(name: str) -> None:
    assert check(name, LEAST[name], polkit=FakePolkit(DENIED)) == refused("polkit says no")
    assert check(name, LEAST[name], polkit=FakePolkit(PASSWORD)) == refused("polkit would ask for a password")
    assert check(name, LEAST[name], ROOT, FakePolkit(DENIED)) == ALLOWED


@pytest.mark.parametrize("flag", [True, False, None])
def test_check_asks_nobody_for_a_password(flag: bool | None) -> None:
    polkit = FakePolkit(PASSWORD)
    parameters = {"name": "web1", "allowInteractiveAuthentication": flag}
    assert check("TerminateMachine", parameters, polkit=polkit) == refused("polkit would ask for a password")
    assert [question.interactive for question in polkit.asked] == [False]
    assert "allowInteractiveAuthentication" not in polkit.asked[0].details


def test_check_of_who_asks_too_much_says_so() -> None:
    assert check("TerminateMachine", {"name": "web1"}, polkit=FakePolkit(Busy("too many questions"))) == refused(
        "too many questions"
    )


@pytest.mark.parametrize("peer", [ROOT, USER])
@pytest.mark.parametrize(
    ("text", "method", "parameters", "reason"),
    [
        ("", "ListMachines", {}, "the policy does not allow this method"),
        ('preset = "read-only"', "TerminateMachine", {"name": "web1"}, "the policy does not allow this method"),
        # The method is refused before its parameters are looked at.
        ('preset = "read-only"', "TerminateMachine", {"x": 1}, "the policy does not allow this method"),
        ('preset = "read-only"\nmachines = ["db"]', "GetMachine", {"name": "web1"}, "no machine of this name"),
        ('preset = "manage"\nimages = ["db"]', "RemoveImage", {"name": "web1"}, "no image of this name"),
        ('preset = "manage"\nimages = ["a"]', "CloneImage", {"name": "a", "dest": "b"}, "dest is no name that"),
        (
            'preset = "manage"\nmachines = ["*"]\nusers = ["www"]\nprograms = ["**"]',
            "OpenMachineShell",
            {"name": "web1"},
            "user is no user that the policy allows",
        ),
    ],
)
def test_check_says_what_the_policy_refuses(
    peer: Peer, text: str, method: str, parameters: dict[str, Any], reason: str
) -> None:
    polkit = FakePolkit()
    reply = check(method, parameters, peer, polkit, policy(text))
    assert reply.error is None
    assert reply.parameters["allowed"] is False
    assert reason in reply.parameters["reason"]
    assert polkit.asked == []


def test_check_tells_no_missing_machine_from_one_that_is_there() -> None:
    """It asks nobody who would know."""
    assert check("TerminateMachine", {"name": "web1"}) == check("TerminateMachine", {"name": "web9"}) == ALLOWED


@pytest.mark.parametrize(
    ("method", "parameters", "parameter"),
    [
        ("TerminateMachine", None, "parameters.name"),
        ("TerminateMachine", {}, "parameters.name"),
        ("TerminateMachine", {"name": 5}, "parameters.name"),
        ("KillMachine", {"name": "web1", "x": 1}, "parameters.x"),
        ("OpenMachineShell", {"name": "web1", "path": "/a", "args": ["a", 5]}, "parameters.args[1]"),
        ("CopyToMachine", {"name": "web1", "src": "/a/../b"}, "parameters.src"),
        ("Check", {}, "parameters.method"),
    ],
)
def test_check_says_which_parameter_of_the_call_is_wrong(
    method: str, parameters: dict[str, Any] | None, parameter: str
) -> None:
    polkit = FakePolkit()
    reply = check(method, parameters, polkit=polkit)
    assert reply.error == "org.varlink.service.InvalidParameter"
    assert reply.parameters["parameter"] == parameter
    assert polkit.asked == []
    if parameters is not None:
        _, plain = error(Call(f"io.machine1.{method}", parameters), USER)
        assert reply.parameters == plain | {"parameter": f"parameters.{plain['parameter']}"}


@pytest.mark.parametrize(
    ("parameters", "parameter"),
    [
        ({}, "method"),
        ({"method": 5}, "method"),
        ({"method": "X", "parameters": []}, "parameters"),
        ({"method": "X", "x": 1}, "x"),
    ],
)
def test_checks_own_parameters_have_no_prefix(parameters: dict[str, Any], parameter: str) -> None:
    name, found = error(Call(CHECK, parameters), USER)
    assert name == "org.varlink.service.InvalidParameter"
    assert found["parameter"] == parameter


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("X", ("org.varlink.service.MethodNotFound", {"method": "io.machine1.X"})),
        ("", ("org.varlink.service.MethodNotFound", {"method": "io.machine1."})),
        ("listMachines", ("org.varlink.service.MethodNotFound", {"method": "io.machine1.listMachines"})),
        ("io.machine1.X", ("org.varlink.service.MethodNotFound", {"method": "io.machine1.X"})),
        ("GetInfo", ("org.varlink.service.MethodNotFound", {"method": "io.machine1.GetInfo"})),
        ("io.machine2.X", ("org.varlink.service.InterfaceNotFound", {"interface": "io.machine2"})),
        (".ListMachines", ("org.varlink.service.InterfaceNotFound", {"interface": ""})),
    ],
)
@pytest.mark.parametrize("text", ["", EVERYTHING])
def test_check_of_a_method_that_is_not_there_is_an_error(
    method: str, expected: tuple[str, dict[str, str]], text: str
) -> None:
    reply = check(method, {"name": "web1"}, decides=policy(text))
    assert (reply.error, reply.parameters) == expected


@pytest.mark.parametrize("text", ["", EVERYTHING])
@pytest.mark.parametrize("peer", [ROOT, USER])
def test_check_of_what_is_always_allowed(peer: Peer, text: str) -> None:
    """Check among it, which does not go on to the call inside."""
    polkit = FakePolkit(DENIED)
    calls: list[tuple[str, dict[str, Any] | None]] = [
        ("Check", {"method": "X"}),
        (CHECK, {"method": "Check", "parameters": {"method": "Check"}}),
        (CHECK, {"method": "TerminateMachine", "parameters": {"name": "web1"}}),
        ("org.varlink.service.GetInfo", None),
        ("org.varlink.service.GetInterfaceDescription", {"interface": "x.y"}),
    ]
    for method, parameters in calls:
        assert check(method, parameters, peer, polkit, policy(text)) == ALLOWED
    assert polkit.asked == []


def test_check_does_not_change_the_clients_parameters() -> None:
    parameters = {"name": "web1", "allowInteractiveAuthentication": True}
    check("TerminateMachine", parameters)
    assert parameters == {"name": "web1", "allowInteractiveAuthentication": True}


def test_check_leaves_a_line_where_the_call_would_be_refused(lines: list[Line]) -> None:
    """Who looks for what is allowed leaves a trace; who may is none of the journal's business, as nothing was done."""
    check("TerminateMachine", {"name": "web1"}, polkit=FakePolkit())
    check("X", polkit=FakePolkit())
    assert lines == []
    refused = PermissionDenied().refused(Refusal("polkit", "polkit says no"))
    check("TerminateMachine", {"name": "web1"}, polkit=FakePolkit(refused))
    check("TerminateMachine", {"name": "web1"}, decides=policy(""))
    assert [(line.fields["MACHINE1_METHOD"], line.fields["MACHINE1_DECIDED_BY"]) for line in lines] == [
        ("io.machine1.Check", "polkit"),
        ("io.machine1.Check", "policy"),
    ]


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
    # Parameters come before polkit, upgrades after it.
    polkit = FakePolkit()
    assert error(call, USER, machined, polkit) == expected
    assert len(polkit.asked) == (call.method in GUARDED and "name" in call.parameters)
    assert machined.asked == []


class Untouched(Contract):
    """A contract that checks nothing."""

    def check(self, method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        raise AssertionError("somebody looked at the parameters")


PARAMETERS = [
    {},
    {"name": "web1"},
    {"name": 5},
    {"name": None},
    {"x": "y"},
    {"name": [[[{}]]]},
    {"name": "x" * 100_000},
]


@pytest.mark.parametrize("upgrade", [False, True])
@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("peer", [ROOT, USER])
def test_a_method_that_the_policy_refuses_is_refused_whatever_is_in_the_call(
    method: str, parameters: dict[str, Any], upgrade: bool, peer: Peer
) -> None:
    """Checking takes time, of which they are not to have any; and their parameters are no one's business."""
    machined, polkit = FakeMachined([]), FakePolkit()
    call = Call(method, parameters, upgrade=upgrade)
    reply = answer(call, peer, machined, polkit, policy(""), Untouched())
    assert reply == Reply({}, error="org.varlink.service.PermissionDenied")
    assert (machined.asked, polkit.asked) == ([], [])


@pytest.mark.parametrize("parameters", [parameters for parameters in PARAMETERS if parameters != {"name": "web1"}])
def test_polkit_is_asked_nothing_about_wrong_parameters(parameters: dict[str, Any]) -> None:
    machined, polkit = FakeMachined([]), FakePolkit()
    assert error(Call(TERMINATE.method, parameters), USER, machined, polkit)[0] in (
        "org.varlink.service.InvalidParameter",
        "io.machine1.NoSuchMachine",
    )
    assert (machined.asked, polkit.asked) == ([], [])


def test_a_call_that_polkit_refuses_is_not_told_to_be_an_upgrade() -> None:
    call = Call(TERMINATE.method, TERMINATE.parameters, upgrade=True)
    assert error(call, USER) == ("org.varlink.service.PermissionDenied", {})


def test_what_does_not_exist_is_told_before_the_policy_speaks() -> None:
    expected = ("org.varlink.service.MethodNotFound", {"method": "io.machine1.X"})
    assert error(Call("io.machine1.X"), USER, decides=policy("")) == expected


def test_parameters_are_checked_of_who_may_make_a_call() -> None:
    """That the contract of the test before would have noticed."""
    for call, peer in [(TERMINATE, ROOT), (TERMINATE, USER), (Call("io.machine1.ListMachines"), USER)]:
        assert answer(call, peer, contract=Untouched()).error == "io.machine1.Failed"


def test_a_method_sees_no_null() -> None:
    machined = FakeMachined()
    answer(Call("io.machine1.KillMachine", {"name": "web1", "who": None, "signal": None}), ROOT, machined)
    assert machined.asked[0].arguments == ("web1", "all", 15)


@pytest.mark.parametrize(("more", "oneway"), [(True, False), (False, True)])
def test_more_and_oneway_are_answered_as_any_other(more: bool, oneway: bool) -> None:
    """`more` permits several replies, one is enough; `oneway` is the server's affair."""
    assert answer(Call("io.machine1.ListMachines", more=more, oneway=oneway)) == Reply({"machines": []})


@pytest.mark.parametrize("call", [TERMINATE, Call("io.machine1.ListImages"), Call(CHECK, {"method": "ListImages"})])
def test_a_descriptor_that_no_method_takes_is_refused(call: Call) -> None:
    """Before polkit is asked, and closed by who received it."""
    machined, polkit = FakeMachined(), FakePolkit()
    fd = FileDescriptor(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    name, parameters = error(replace(call, fds=(fd,)), USER, machined, polkit)
    assert (name, parameters["parameter"]) == ("org.varlink.service.InvalidParameter", "fds")
    assert (machined.asked, polkit.asked) == ([], [])
    fd.close()


@pytest.mark.parametrize(("index", "number"), [(0, 0), (1, 1), (252, 1), (0, 2)])
def test_a_descriptor_that_did_not_come_is_named(index: int, number: int) -> None:
    machined, polkit = FakeMachined(), FakePolkit()
    fds = tuple(FileDescriptor(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)) for _ in range(number))
    call = Call("io.machine1.ImportTar", {"name": "web", "image_fd": index}, fds=fds)
    authorizer = Authorizer(ALL, polkit)
    dispatcher = Dispatcher(CONTRACT, authorizer, machined, Control(lambda: None))
    reply = result_of(dispatcher.answer(call, USER))
    assert (reply.error, reply.parameters["parameter"]) == ("org.varlink.service.InvalidParameter", "image_fd")
    assert (machined.asked, polkit.asked) == ([], [])
    for fd in fds:
        fd.close()


@pytest.mark.parametrize("uid", [0, 1000])
def test_where_none_is_accepted_the_policy_says_so(uid: int) -> None:
    """Not that it did not come: nobody could send it."""
    machined, polkit = FakeMachined(), FakePolkit()
    closed = policy(EVERYTHING.replace("accept-fds = true", ""))
    dispatcher = Dispatcher(CONTRACT, Authorizer(closed, polkit), machined, Control(lambda: None))
    call = Call("io.machine1.ExportRaw", {"name": "web", "image_fd": 0})
    assert result_of(dispatcher.answer(call, peer(uid))).error == "org.varlink.service.PermissionDenied"
    assert (machined.asked, polkit.asked) == ([], [])


# --- several replies ------------------------------------------------------------------------------------------------


class Watch:
    """A list of machines again and again, an error, or a reply as it is."""

    def __init__(self, *outcomes: list[str] | Exception | Reply) -> None:
        self._outcomes = list(outcomes)

    async def next(self) -> Reply:
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, Reply):
            return outcome
        return Reply({"machines": [{"name": name} for name in outcome]}, stream=self if self._outcomes else None)

    def close(self) -> None:
        """There is nothing to let go of."""

    async def method(self, machined: Machined, parameters: Parameters) -> Reply:
        return await self.next()


WATCH = Call("io.machine1.ListMachines", more=True)
SHOWS_WEB = policy('preset = "read-only"\nmachines = ["web*"]\n')


def dispatcher(watch: Watch, decides: Policy = SHOWS_WEB, guarded: bool = False) -> Dispatcher:
    methods = METHODS | {WATCH.method: Method(watch.method, guarded, {"machine": "name"}, streams=True)}
    return Dispatcher(CONTRACT, Authorizer(decides, FakePolkit()), FakeMachined(), Control(lambda: None), methods)


def test_each_reply_of_a_stream_shows_what_the_policy_shows() -> None:
    watch = Watch(["web1", "db"], ["db"], ["web2"])
    ways = dispatcher(watch)
    replies = [result_of(ways.answer(WATCH, USER))]
    while (stream := replies[-1].stream) is not None:
        replies.append(result_of(ways.follow(WATCH, USER, stream)))
    assert [[machine["name"] for machine in reply.parameters["machines"]] for reply in replies] == [
        ["web1"],
        [],
        ["web2"],
    ]


@pytest.mark.parametrize("other", ["", 'preset = "read-only"\nmachines = ["web*"]\n'], ids=["method", "parameters"])
def test_a_stream_ends_when_another_policy_does_not_allow_it(other: str) -> None:
    watch = Watch(["web1"], ["web2"])
    ways = dispatcher(watch, replace(SHOWS_WEB, details=True))
    call = Call(WATCH.method, {"details": True}, more=True)
    assert result_of(ways.answer(call, ROOT)).stream is watch
    ways._authorizer.policy = policy(other)
    reply = result_of(ways.follow(call, ROOT, watch))
    assert (reply.error, reply.stream) == ("org.varlink.service.PermissionDenied", None)


@pytest.mark.parametrize("oneway", [False, True])
def test_who_takes_one_reply_gets_none_of_a_method_that_streams(oneway: bool) -> None:
    reply = result_of(dispatcher(Watch()).answer(Call(WATCH.method, oneway=oneway), USER))
    assert reply == Reply(error="org.varlink.service.ExpectedMore")


def test_who_may_not_call_it_is_not_told_that_a_method_streams() -> None:
    reply = result_of(dispatcher(Watch(), policy("")).answer(Call(WATCH.method), USER))
    assert reply.error == "org.varlink.service.PermissionDenied"


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (Busy("x"), "io.machine1.Busy"),
        (DBusError("org.freedesktop.DBus.Error.LimitsExceeded", "no"), "io.machine1.TooManyOperations"),
        (ZeroDivisionError(), "io.machine1.Failed"),
    ],
)
@pytest.mark.parametrize("guarded", [False, True])
def test_a_stream_may_end_in_an_error(lines: list[Line], raised: Exception, error: str, guarded: bool) -> None:
    ways = dispatcher(watch := Watch(raised), ALL, guarded)
    reply = result_of(ways.follow(WATCH, ROOT, watch))
    assert (reply.error, reply.stream) == (error, None)
    bugs = [line.priority for line in lines if "Bug" in line.message]
    assert bugs == [journal.ERROR] * isinstance(raised, ZeroDivisionError)
    # As each end of a guarded call.
    outcomes = [line.fields["MACHINE1_OUTCOME"] for line in lines if "MACHINE1_OUTCOME" in line.fields]
    assert outcomes == [error] * guarded


def test_nothing_follows_when_the_service_stops() -> None:
    client = peer(1000)
    client.left.resolve(None)
    late = Reply(fds=(FileDescriptor(os.open(os.devnull, os.O_RDONLY)),))
    reply = result_of(dispatcher(watch := Watch(late)).follow(WATCH, client, watch))
    assert reply == Reply({"reason": "machine1-bridge stops"}, error="io.machine1.Unavailable")
    assert "closed" in repr(late.fds[0])


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


# --- one line for each guarded call: what the dispatcher makes known for it, see test_audit.py for the rest ---------


def decision(line: Line) -> tuple[object, ...]:
    return tuple(line.fields.get(f"MACHINE1_{name}") for name in ("OUTCOME", "DECISION", "DECIDED_BY", "REASON"))


@pytest.mark.parametrize(
    ("peer", "text", "by"),
    [(ROOT, EVERYTHING, "kernel"), (USER, EVERYTHING, "polkit"), (USER, 'preset="manage"\nmachines=["*"]\n', "policy")],
)
def test_a_guarded_call_is_one_line(lines: list[Line], peer: Peer, text: str, by: str) -> None:
    decides = policy(text + ('polkit = "off"\n' if by == "policy" else ""))
    answer(TERMINATE, peer, polkit=FakePolkit(), decides=decides)
    (line,) = lines
    duration = line.fields.pop("MACHINE1_DURATION_USEC")
    assert isinstance(duration, int)
    assert 0 <= duration < 5_000_000
    assert line == Line(
        journal.INFO,
        f"io.machine1.TerminateMachine on web1 by UID {peer.uid}, PID {peer.pid}: done",
        {
            "MACHINE1_METHOD": "io.machine1.TerminateMachine",
            "MACHINE1_OUTCOME": "done",
            "MACHINE1_DECISION": "allowed",
            "MACHINE1_DECIDED_BY": by,
            "MACHINE1_PEER_UID": peer.uid,
            "MACHINE1_PEER_PID": peer.pid,
            "MACHINE1_PEER_UNIT": "",
            "MACHINE1_SOCKET": "varlink",
            "MACHINE1_POLICY": "default",
            "MACHINE1_MACHINE": "web1",
        },
    )


def test_a_refused_call_is_one_line_that_stands_out(lines: list[Line]) -> None:
    answer(TERMINATE, USER)
    (line,) = lines
    assert line.priority == journal.NOTICE
    assert line.message == (
        "io.machine1.TerminateMachine on web1 by UID 1000, PID 4711: org.varlink.service.PermissionDenied"
        " (polkit: polkit says no)"
    )
    assert decision(line) == ("org.varlink.service.PermissionDenied", "refused", "polkit", "polkit says no")
    assert line.fields["MACHINE1_PEER_UID"] == 1000
    assert line.fields["MACHINE1_PEER_PID"] == 4711


def test_a_hidden_machine_is_refused_in_the_journal_alone(lines: list[Line]) -> None:
    """The client is told that there is none."""
    decides = policy('preset = "manage"\nmachines = ["db"]\n')
    for method in ("io.machine1.GetMachine", TERMINATE.method):
        assert error(Call(method, {"name": "web1"}), USER, decides=decides)[0] == "io.machine1.NoSuchMachine"
        line = lines.pop()
        assert line.priority == journal.NOTICE
        assert decision(line)[:3] == ("io.machine1.NoSuchMachine", "refused", "policy")
        assert line.fields["MACHINE1_MACHINE"] == "web1"
    assert lines == []


def test_what_machined_says_no_to_was_allowed(lines: list[Line]) -> None:
    machined = FakeMachined(error=DBusError("org.freedesktop.machine1.NoSuchMachine", "no"))
    answer(TERMINATE, USER, machined, FakePolkit())
    (line,) = lines
    assert line.priority == journal.INFO
    assert decision(line) == ("io.machine1.NoSuchMachine", "allowed", "polkit", None)


def test_an_image_and_its_new_name_are_both_in_the_line(lines: list[Line]) -> None:
    answer(Call("io.machine1.RenameImage", {"name": "a", "dest": "b"}), ROOT)
    (line,) = lines
    assert line.message.startswith("io.machine1.RenameImage on a, b by ")
    assert (line.fields["MACHINE1_IMAGE"], line.fields["MACHINE1_NEW"]) == ("a", "b")
    assert "MACHINE1_MACHINE" not in line.fields


@pytest.mark.parametrize(
    ("parameters", "machine"), [({}, None), ({"name": "web1", "x": 1}, "web1"), ({"name": 5}, None), ({"x": "w"}, None)]
)
@pytest.mark.parametrize("peer", [ROOT, USER])
def test_a_guarded_call_with_wrong_parameters_is_one_line_with_what_can_be_a_name(
    lines: list[Line], parameters: dict[str, Any], machine: str | None, peer: Peer
) -> None:
    """They are not validated, and may be anything."""
    reply = answer(Call(TERMINATE.method, parameters), peer)
    (line,) = lines
    assert reply.error == "org.varlink.service.InvalidParameter"
    assert line.priority == journal.NOTICE
    assert line.message == (
        f"io.machine1.TerminateMachine on {machine or '?'} by UID {peer.uid}, PID {peer.pid}:"
        " org.varlink.service.InvalidParameter"
    )
    assert decision(line) == ("org.varlink.service.InvalidParameter", "none", "none", None)
    assert line.fields.get("MACHINE1_MACHINE") == machine


def test_of_a_method_that_the_policy_refuses_no_parameter_is_in_the_line(lines: list[Line]) -> None:
    answer(TERMINATE, ROOT, decides=policy(""))
    (line,) = lines
    assert line.message.startswith("io.machine1.TerminateMachine on ? by UID 0, PID 1: ")
    assert "web1" not in repr(line)
    assert decision(line)[1:3] == ("refused", "policy")


def test_who_is_refused_again_and_again_does_not_fill_the_journal(lines: list[Line]) -> None:
    for _ in range(50):
        answer(TERMINATE, USER)
    assert len(lines) == 20
    answer(TERMINATE, peer(1001, 4712))
    assert len(lines) == 21
    assert lines[-1].fields["MACHINE1_PEER_UID"] == 1001


@pytest.mark.parametrize(
    "machined",
    [FakeMachined(), FakeMachined(error=Unavailable("gone"))],
    ids=["done", "failed"],
)
def test_what_was_authorized_is_always_a_line(lines: list[Line], machined: FakeMachined) -> None:
    """Refused users take none of these lines away. Calls that fail before that are as limited as refusals."""
    for _ in range(30):
        answer(TERMINATE, USER)
    lines.clear()
    for _ in range(50):
        answer(TERMINATE, ROOT, machined)
    assert len(lines) == 50
    for _ in range(50):
        answer(Call(TERMINATE.method), ROOT)
    assert len(lines) == 70


def test_what_runs_in_a_shell_is_not_logged(lines: list[Line]) -> None:
    parameters = {"name": "web1", "user": "s1cret", "path": "/s2cret", "args": ["s3cret"], "env": ["A=s4cret"]}
    answer(Call("io.machine1.OpenMachineShell", parameters), USER)
    assert len(lines) == 1
    assert "cret" not in repr(lines)


@pytest.mark.parametrize("polkit", [FakePolkit(), FakePolkit(DENIED), FakePolkit(ZeroDivisionError())])
def test_a_shell_that_fails_tells_no_secrets_either(lines: list[Line], polkit: FakePolkit) -> None:
    parameters = {"name": "web1", "user": "s1cret", "path": "/s2cret", "args": ["s3cret"], "env": ["A=s4cret"]}
    machined = FakeMachined(error=DBusError("x.Y", "why"))
    answer(Call("io.machine1.OpenMachineShell", parameters), USER, machined, polkit)
    assert lines
    assert "cret" not in repr([line for line in lines if "Bug" not in line.message])


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
    assert reply.parameters["version"] == f"{__version__} (io.machine1 {Contract().version})"
    assert reply.parameters["product"] == "machine1-bridge"
    # Its own among them, as the standard wants it.
    assert sorted(reply.parameters["interfaces"]) == ["io.machine1", "io.systemd.service", "org.varlink.service"]


@pytest.mark.parametrize("interface", ["io.machine1", "io.systemd.service", "org.varlink.service"])
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
