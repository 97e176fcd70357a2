# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of methods is that of the contract; what machined is asked, and what is made of its answers."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from jeepney.fds import FileDescriptor, NoFDError
from jsonschema import Draft202012Validator

from bridge.bus import DEADLINE
from bridge.contract import Contract
from bridge.control import Control
from bridge.dispatch import CHECK
from bridge.errors import InvalidParameter, NoSuchMachine
from bridge.introspection import Introspection
from bridge.listed import Images, Machines
from bridge.messages import Reply
from bridge.methods import METHODS

from .conftest import Asked, FakeMachined, result_of

CONTRACT = Contract()
PATH = "/org/freedesktop/machine1/x"
ALL = METHODS | Introspection(CONTRACT).methods | Control(lambda: None).methods

VM = ("web1", "vm", "libvirt-qemu", PATH)
CONTAINER = ("db", "container", "systemd-nspawn", PATH)
THE_HOST = (".host", "host", "", PATH)
STRANGE = ("moon", "unikernel", "x", PATH)

UINT64_MAX = 2**64 - 1
RAW = ("disk", "raw", True, 1, 2, 3, PATH)
NOTHING_KNOWN = ("empty", "directory", False, 0, 0, UINT64_MAX, PATH)
HOST_IMAGE = (".host", "directory", False, 0, 0, UINT64_MAX, PATH)


def call(method: str, machined: FakeMachined, **parameters: object) -> Reply:
    """The reply to a call of io.machine1, which keeps the contract as does the call."""
    name = f"io.machine1.{method}"
    reply = result_of(METHODS[name].function(machined, CONTRACT.check(name, parameters)))
    Draft202012Validator(CONTRACT.methods[name]["reply"]).validate(reply.parameters)
    return reply


# --- the table ------------------------------------------------------------------------------------------------------


def test_each_method_of_the_contract_is_in_one_table() -> None:
    """Check is the dispatcher's own."""
    assert sorted([*ALL, CHECK]) == sorted(CONTRACT.methods)


def test_each_method_has_a_function_of_its_own() -> None:
    functions = [method.function for method in ALL.values()]
    assert len(set(functions)) == len(functions)


@pytest.mark.parametrize("name", METHODS)
def test_the_function_bears_the_methods_name(name: str) -> None:
    method = name.removeprefix("io.machine1.")
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method).lower()
    assert METHODS[name].function.__name__ == snake


@pytest.mark.parametrize("name", ALL)
def test_guarded_is_what_the_contract_lets_polkit_ask_about(name: str) -> None:
    asked = "allowInteractiveAuthentication" in CONTRACT.methods[name]["parameters"]["properties"]
    # The administrator's own are not asked about; who changes something with them is still in the journal.
    method = ALL[name]
    assert (method.guarded or method.details) == (asked or name == "io.systemd.service.SetLogLevel")
    assert not (method.guarded and method.details)


@pytest.mark.parametrize("name", ALL)
def test_details_are_guarded(name: str) -> None:
    method, offered = ALL[name], CONTRACT.methods[name]["parameters"]["properties"]
    assert method.details == ("details" in offered)
    assert method.called_with({"details": True}).guarded == (method.guarded or method.details)
    for parameters in ({}, {"details": False}, {"details": None}, {"details": 1}):
        assert method.called_with(parameters) is method


@pytest.mark.parametrize("name", ALL)
def test_objects_are_required_strings(name: str) -> None:
    """So that they are there in every call that is logged or refused."""
    schema = CONTRACT.methods[name]["parameters"]
    for kind, parameter in ALL[name].about.items():
        assert kind in ("machine", "image", "new")
        assert parameter in schema["required"]
        assert schema["properties"][parameter]["type"] == "string"


@pytest.mark.parametrize("name", METHODS)
def test_all_that_a_method_requires_as_a_name_is_an_object_of_it(name: str) -> None:
    """What is not listed would be missing from the log and, one day, from a policy."""
    required = set(CONTRACT.methods[name]["parameters"].get("required", []))
    required -= {"src", "pid", "uid", "gid", "read_only", "mode", "state", "image_fd", "url", "transfer"}
    if name == "io.machine1.WaitMachine":
        # One that is not shown is waited for in vain, as is one that does not come: it is not refused.
        required.remove("name")
    assert set(METHODS[name].about.values()) == required


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "name" in method.about.values()])
def test_a_machine_is_no_image(name: str) -> None:
    kind = next(kind for kind, parameter in METHODS[name].about.items() if parameter == "name")
    if re.search("(Import|Pull)(Tar|Raw)$", name):
        assert kind == "new"
    else:
        image = re.search("Image|StartMachine$|Export", name)
        assert kind == ("image" if image else "machine")


# --- machines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "names"),
    [({}, ["db", "moon", "web1"]), ({"all": False}, ["db", "moon", "web1"]), ({"all": None}, ["db", "moon", "web1"])],
)
def test_machines_are_listed_in_order_without_the_host(parameters: dict[str, Any], names: list[str]) -> None:
    machined = FakeMachined([VM, STRANGE, THE_HOST, CONTAINER])
    reply = call("ListMachines", machined, **parameters)
    assert [machine["name"] for machine in reply.parameters["machines"]] == names
    assert machined.asked == [Asked("ListMachines", "", (), "a(ssso)", DEADLINE)]


def test_all_machines_are_with_the_host() -> None:
    reply = call("ListMachines", FakeMachined([VM, THE_HOST]), all=True)
    assert reply.parameters == {
        "machines": [
            {"name": ".host", "class": "host", "service": "", "object_path": PATH},
            {"name": "web1", "class": "vm", "service": "libvirt-qemu", "object_path": PATH},
        ]
    }


def test_no_machines_are_an_empty_list() -> None:
    assert call("ListMachines", FakeMachined([])).parameters == {"machines": []}


def test_a_class_that_machined_adds_one_day_is_absent() -> None:
    (machine,) = call("ListMachines", FakeMachined([STRANGE])).parameters["machines"]
    assert machine == {"name": "moon", "service": "x", "object_path": PATH}


@pytest.mark.parametrize("name", ["web1", "db", ".host"])
def test_a_machine_is_found_by_its_whole_name(name: str) -> None:
    machined = FakeMachined([("web11", "vm", "x", PATH), VM, CONTAINER, THE_HOST])
    reply = call("GetMachine", machined, name=name)
    assert reply.parameters["machine"]["name"] == name
    assert reply.parameters["machine"]["class"] == {"web1": "vm", "db": "container", ".host": "host"}[name]


@pytest.mark.parametrize("machines", [[], [("web11", "vm", "x", PATH), ("web", "vm", "x", PATH)]])
def test_a_machine_that_is_not_there_is_named(machines: list[tuple[str, ...]]) -> None:
    with pytest.raises(NoSuchMachine) as caught:
        call("GetMachine", FakeMachined(machines), name="web1")
    assert caught.value.parameters == {"name": "web1"}


class SameMachined(FakeMachined):
    """Says the same machines and images, until they are others."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = Machines([VM, CONTAINER, THE_HOST])
        self.listed_images = Images([RAW, HOST_IMAGE])

    async def machines(self) -> Machines:
        return self.listed

    async def images(self) -> Images:
        return self.listed_images


QUESTIONS: list[tuple[str, dict[str, object]]] = [
    ("ListMachines", {}),
    ("ListMachines", {"all": True}),
    ("GetMachine", {"name": "web1"}),
    ("GetMachine", {"name": "db"}),
    ("ListImages", {}),
    ("ListImages", {"all": True}),
]


def test_each_question_about_the_same_has_one_reply() -> None:
    machined = SameMachined()
    replies = [call(method, machined, **parameters) for method, parameters in QUESTIONS]
    assert len({id(reply) for reply in replies}) == len(QUESTIONS)
    assert all(reply.shared for reply in replies)
    for reply, (method, parameters) in zip(replies, QUESTIONS, strict=True):
        assert call(method, machined, **parameters) is reply
    assert call("ListMachines", machined, all=False) is replies[0]
    assert call("ListImages", machined, all=False) is replies[4]


@pytest.mark.parametrize(("method", "parameters"), QUESTIONS)
def test_under_another_policy_it_is_another(method: str, parameters: dict[str, object]) -> None:
    """For a call as well that was under way, in the view of a user that it had."""
    machined = SameMachined()
    view = machined.on_behalf_of(1000, machined.shown)
    assert isinstance(view, SameMachined)
    before = call(method, machined, **parameters)
    assert call(method, view, **parameters) is before
    machined._rules.changes += 1
    after = call(method, view, **parameters)
    assert after is not before
    assert call(method, machined, **parameters) is after


@pytest.mark.parametrize(("method", "parameters"), QUESTIONS)
def test_others_have_other_replies(method: str, parameters: dict[str, object]) -> None:
    machined = SameMachined()
    before = call(method, machined, **parameters)
    machined.listed = Machines([("web1", "container", "x", PATH), ("db", "vm", "x", PATH)])
    machined.listed_images = Images([NOTHING_KNOWN])
    after = call(method, machined, **parameters)
    assert after is not before
    assert after.parameters != before.parameters


def test_who_is_not_there_leaves_nothing_with_those_who_are() -> None:
    """Names that clients make up are not remembered."""
    machined = SameMachined()
    for number in range(3):
        with pytest.raises(NoSuchMachine):
            call("GetMachine", machined, name=f"x{number}")
    assert machined.listed.replies == {}


# --- what machined is asked -----------------------------------------------------------------------------------------

N = {"name": "web1"}
DEST = {"name": "a", "dest": "b"}


@pytest.mark.parametrize(
    ("method", "parameters", "signature", "arguments", "deadline"),
    [
        ("TerminateMachine", N, "s", ("web1",), DEADLINE),
        ("KillMachine", N, "ssi", ("web1", "all", 15), DEADLINE),
        ("KillMachine", N | {"who": "leader", "signal": 9}, "ssi", ("web1", "leader", 9), DEADLINE),
        ("KillMachine", N | {"who": None, "signal": None}, "ssi", ("web1", "all", 15), DEADLINE),
        ("PoweroffMachine", N, "ssi", ("web1", "leader", 38), DEADLINE),
        ("RebootMachine", N, "ssi", ("web1", "leader", 2), DEADLINE),
        ("UnregisterMachine", N, "s", ("web1",), DEADLINE),
        ("BindMountMachine", N | {"src": "/a"}, "sssbb", ("web1", "/a", "/a", False, False), DEADLINE),
        (
            "BindMountMachine",
            N | {"src": "/a", "dest": "/b", "read_only": True, "mkdir": True},
            "sssbb",
            ("web1", "/a", "/b", True, True),
            DEADLINE,
        ),
        # Copies and images take as long as they take.
        ("CopyFromMachine", N | {"src": "/a", "dest": "/b"}, "sss", ("web1", "/a", "/b"), None),
        ("CopyFromMachine", N | {"src": "/a"}, "sss", ("web1", "/a", "/a"), None),
        ("CopyFromMachine", N | {"src": "/a", "dest": ""}, "sss", ("web1", "/a", "/a"), None),
        ("CopyToMachine", N | {"src": "/a", "dest": "/b"}, "sss", ("web1", "/a", "/b"), None),
        ("CopyToMachine", N | {"src": "/a", "dest": None}, "sss", ("web1", "/a", "/a"), None),
        ("CopyToMachine", N | {"src": "/a", "replace": False}, "sss", ("web1", "/a", "/a"), None),
        ("CopyToMachine", N | {"src": "/a", "replace": True}, "ssst", ("web1", "/a", "/a", 1), None),
        ("CopyFromMachine", N | {"src": "/a", "replace": True}, "ssst", ("web1", "/a", "/a", 1), None),
        ("RemoveImage", {"name": "a"}, "s", ("a",), None),
        ("CloneImage", DEST, "ssb", ("a", "b", False), None),
        ("CloneImage", DEST | {"read_only": True}, "ssb", ("a", "b", True), None),
        ("RenameImage", DEST, "ss", ("a", "b"), DEADLINE),
    ],
)
def test_machined_is_asked_what_the_client_asks(
    method: str,
    parameters: dict[str, Any],
    signature: str,
    arguments: tuple[object, ...],
    deadline: float | None,
) -> None:
    machined = FakeMachined()
    member = "KillMachine" if method in ("PoweroffMachine", "RebootMachine") else method
    member += "WithFlags" if parameters.get("replace") else ""
    assert call(method, machined, **parameters) == Reply()
    assert machined.asked == [Asked(member, signature, arguments, "", deadline)]
    # True is 1 for Python, and a D-Bus boolean is no integer.
    assert [type(value) for value in machined.asked[0].arguments] == [type(value) for value in arguments]


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("TerminateMachine", N), ("CopyToMachine", N | {"src": "/a"}), ("RenameImage", DEST), ("OpenMachineShell", N)],
)
def test_interactive_authentication_is_no_affair_of_machined(method: str, parameters: dict[str, Any]) -> None:
    """It is between the client and the bridge, who alone asks machined."""
    plain, interactive = FakeMachined(None, ""), FakeMachined(None, "")
    for machined, more in ((plain, {}), (interactive, {"allowInteractiveAuthentication": True})):
        name = f"io.machine1.{method}"
        result_of(METHODS[name].function(machined, CONTRACT.check(name, parameters | more)))
    assert plain.asked == interactive.asked


# --- a shell --------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell() -> FakeMachined:
    return FakeMachined(FileDescriptor(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)), "/dev/pts/7")


def open_shell(shell: FakeMachined, **parameters: object) -> tuple[object, ...]:
    """What machined is asked for; the file descriptor of the reply is closed."""
    reply = call("OpenMachineShell", shell, name="web1", **parameters)
    reply.close()
    (asked,) = shell.asked
    return asked.arguments


def test_a_shell_comes_back_as_its_terminal(shell: FakeMachined) -> None:
    reply = call("OpenMachineShell", shell, name="web1")
    assert reply.parameters == {"pty_fd": 0, "pty_path": "/dev/pts/7"}
    (pty,) = reply.fds
    assert os.fstat(pty.fileno()).st_rdev == os.stat(os.devnull).st_rdev
    assert shell.asked == [Asked("OpenMachineShell", "sssasas", ("web1", "", "", [], []), "hs", DEADLINE)]
    reply.close()
    with pytest.raises(NoFDError, match="closed"):
        pty.fileno()


def test_who_and_what_runs_in_a_shell_is_the_clients_choice(shell: FakeMachined) -> None:
    arguments = open_shell(shell, user="www", path="/bin/sh", args=["sh", "-c", "x"], env=["A=1", "B=", "C=D=E"])
    assert arguments == ("web1", "www", "/bin/sh", ["sh", "-c", "x"], ["A=1", "B=", "C=D=E"])


def test_a_dollar_in_an_argument_arrives_as_it_is_written(shell: FakeMachined) -> None:
    arguments = open_shell(shell, path="/bin/$x", args=["$HOME", "a$$b", "", "100$"], env=["A=$B"])
    # systemd's specifiers are doubled in arguments alone: the others it does not expand.
    assert arguments == ("web1", "", "/bin/$x", ["$$HOME", "a$$$$b", "", "100$$"], ["A=$B"])


@pytest.mark.parametrize(
    ("env", "path"),
    [(["A=1", "A=2"], "env[1]"), (["A=1", "B=1", "A=1"], "env[2]"), (["A=", "AB=", "B=", "AB=A="], "env[3]")],
)
def test_a_variable_is_assigned_once(env: list[str], path: str) -> None:
    machined = FakeMachined()
    with pytest.raises(InvalidParameter) as caught:
        call("OpenMachineShell", machined, name="web1", env=env)
    assert caught.value.parameters["parameter"] == path
    assert machined.asked == []


# --- images ---------------------------------------------------------------------------------------------------------


def test_images_are_listed_in_order_without_the_host() -> None:
    machined = FakeMachined([RAW, HOST_IMAGE, ("a", *RAW[1:])])
    reply = call("ListImages", machined)
    assert [image["name"] for image in reply.parameters["images"]] == ["a", "disk"]
    assert machined.asked == [Asked("ListImages", "", (), "a(ssbttto)", DEADLINE)]


def test_all_images_are_with_the_host() -> None:
    reply = call("ListImages", FakeMachined([RAW, HOST_IMAGE]), all=True)
    assert [image["name"] for image in reply.parameters["images"]] == [".host", "disk"]


def test_an_image_is_told_as_it_is() -> None:
    (image,) = call("ListImages", FakeMachined([RAW])).parameters["images"]
    assert image == {
        "name": "disk", "type": "raw", "read_only": True, "ctime": 1, "mtime": 2, "usage": 3, "object_path": PATH,
    }  # fmt: skip


def test_what_is_not_known_of_an_image_is_absent() -> None:
    (image,) = call("ListImages", FakeMachined([NOTHING_KNOWN])).parameters["images"]
    assert image == {"name": "empty", "type": "directory", "read_only": False, "object_path": PATH}


@pytest.mark.parametrize(
    ("ctime", "mtime", "usage", "known"),
    [
        (1, 0, UINT64_MAX, {"ctime": 1}),
        (0, 1, UINT64_MAX, {"mtime": 1}),
        (0, 0, 0, {"usage": 0}),
        (2**63 - 1, 2**63 - 1, 2**63 - 1, dict.fromkeys(("ctime", "mtime", "usage"), 2**63 - 1)),
        # An int of Varlink is signed.
        (2**63, 2**63, 2**63, {}),
        (UINT64_MAX, UINT64_MAX, UINT64_MAX, {}),
    ],
)
def test_each_number_is_known_or_not(ctime: int, mtime: int, usage: int, known: dict[str, int]) -> None:
    (image,) = call("ListImages", FakeMachined([("a", "raw", True, ctime, mtime, usage, PATH)])).parameters["images"]
    assert {key: image[key] for key in ("ctime", "mtime", "usage") if key in image} == known


@pytest.mark.parametrize("image_type", ["directory", "subvolume", "raw", "block"])
def test_a_type_of_the_contract_is_told(image_type: str) -> None:
    (image,) = call("ListImages", FakeMachined([("a", image_type, *RAW[2:])])).parameters["images"]
    assert image["type"] == image_type


def test_a_type_that_machined_adds_one_day_is_absent() -> None:
    (image,) = call("ListImages", FakeMachined([("a", "mstack", *RAW[2:])])).parameters["images"]
    assert "type" not in image
    assert image["name"] == "a"
