# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is said of images beyond the list, and of their pool, and what is done to them. test_methods.py has the list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from bridge.bus import DEADLINE, DBusError
from bridge.contract import Contract
from bridge.details import UNKNOWN_PROPERTY
from bridge.errors import NoSuchImage, NotSupported, Timeout, TooManyOperations, Unavailable
from bridge.listed import Images
from bridge.loop import Future, Loop
from bridge.machined import SLOW, Machined, Rules
from bridge.messages import Reply
from bridge.methods import METHODS

from .conftest import result_of

CONTRACT = Contract()
UINT64_MAX = 2**64 - 1
PATH = "/org/freedesktop/machine1/image/"
RAW = ("disk", "raw", True, 1, 2, 3, PATH + "disk")
TREE = ("tree", "directory", False, 0, 0, UINT64_MAX, PATH + "tree")
OTHER = ("tree-2", "directory", True, 0, 0, UINT64_MAX, PATH + "tree_2d2")
HOST_IMAGE = (".host", "directory", False, 0, 0, UINT64_MAX, PATH + "_2ehost")
ALL = [HOST_IMAGE, RAW, TREE, OTHER]

PROPERTIES = {"Path": "/var/lib/machines/tree", "Limit": 5, "UsageExclusive": 6, "LimitExclusive": 7}
ANSWERS: dict[str, Any] = {
    "GetAll": PROPERTIES,
    "GetImageHostname": "tree.example",
    "GetImageMachineID": bytes(range(16)),
    "GetImageMachineInfo": {"CHASSIS": "vm"},
    "GetImageOSRelease": {"ID": "debian", "NAME": "Debian = x"},
}
DETAILS: dict[str, Any] = {
    "path": "/var/lib/machines/tree",
    "limit": 5,
    "usage_exclusive": 6,
    "limit_exclusive": 7,
    "hostname": "tree.example",
    "machine_id": "000102030405060708090a0b0c0d0e0f",
    "machine_info": ["CHASSIS=vm"],
    "os_release": ["ID=debian", "NAME=Debian = x"],
    "missing": [],
}
# Which fields each of machined's answers is.
FIELDS = {
    "GetAll": ["path", "limit", "usage_exclusive", "limit_exclusive"],
    "GetImageHostname": ["hostname"],
    "GetImageMachineID": ["machine_id"],
    "GetImageMachineInfo": ["machine_info"],
    "GetImageOSRelease": ["os_release"],
}
GONE = DBusError("org.freedesktop.machine1.NoSuchImage", "No image 'tree' known")


class Hidden:
    """A policy that hides some images."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def shows_machine(self, name: str) -> bool:
        raise AssertionError

    def shows_image(self, name: str) -> bool:
        return name not in self.names


class Talkative(Machined):
    """machined that has an answer for each member, an error, or a future; and remembers what it was asked."""

    def __init__(self, answers: Mapping[str, Any] = ANSWERS, shown: Hidden | None = None) -> None:
        self._answers = answers
        self._rules = Rules()
        self._loop = LOOP
        self.asked: list[tuple[object, ...]] = []
        self.listed = Images(ALL)
        self.shown = shown or Hidden()

    async def images(self) -> Images:
        return self.listed

    async def call(
        self, member: str, signature: str = "", *arguments: object, reply: str = "", deadline: float | None = DEADLINE
    ) -> tuple[Any, ...]:
        self.asked.append((member, signature, *arguments, reply, deadline))
        return (await self._answer(member),)

    async def properties(self, path: str = "manager", interface: str = "manager") -> dict[str, Any]:
        self.asked.append(("GetAll", path, interface))
        found: dict[str, Any] = await self._answer("GetAll")
        return found

    async def _answer(self, member: str) -> Any:  # noqa: ANN401  whatever it is
        answer = self._answers[member]
        if isinstance(answer, Future):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        return answer


LOOP = Loop()
LOOP.close()  # nothing waits in it


def checked(method: str, reply: Reply) -> Reply:
    Draft202012Validator(CONTRACT.methods[f"io.machine1.{method}"]["reply"]).validate(reply.parameters)
    return reply


def call(method: str, machined: Machined, **parameters: object) -> dict[str, Any]:
    """The reply's parameters; the call and the reply keep the contract."""
    name = f"io.machine1.{method}"
    reply = result_of(METHODS[name].function(machined, CONTRACT.check(name, parameters)))
    assert reply.stream is None
    return checked(method, reply).parameters


def replies(method: str, machined: Machined, **parameters: object) -> list[dict[str, Any]]:
    """All replies to a call with `more`."""
    name = f"io.machine1.{method}"
    function = METHODS[name].streamed or METHODS[name].function
    reply = checked(method, result_of(function(machined, CONTRACT.check(name, parameters))))
    found = [reply.parameters]
    while reply.stream is not None:
        reply = checked(method, result_of(reply.stream.next()))
        found.append(reply.parameters)
    return found


def names(parameters: Mapping[str, Any]) -> list[str]:
    return [image["name"] for image in parameters["images"]]


# --- which ones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"type": "directory"}, ["tree", "tree-2"]),
        ({"type": "directory", "all": True}, [".host", "tree", "tree-2"]),
        ({"type": "raw"}, ["disk"]),
        ({"type": "block"}, []),
        ({"read_only": True}, ["disk", "tree-2"]),
        ({"read_only": False}, ["tree"]),
        ({"read_only": True, "type": "directory"}, ["tree-2"]),
        ({"read_only": None, "type": None}, ["disk", "tree", "tree-2"]),
    ],
)
def test_those_that_are_asked_for_are_listed(parameters: dict[str, Any], expected: list[str]) -> None:
    assert names(call("ListImages", Talkative(), **parameters)) == expected
    one_by_one = replies("ListImages", Talkative(), **parameters)
    assert [names(reply) for reply in one_by_one] == ([[name] for name in expected] or [[]])


def test_an_image_is_found_by_its_whole_name() -> None:
    assert call("GetImage", Talkative(), name="disk") == {
        "image": {
            "name": "disk", "type": "raw", "read_only": True, "ctime": 1, "mtime": 2, "usage": 3,
            "object_path": PATH + "disk",
        }
    }  # fmt: skip
    assert call("GetImage", Talkative(), name=".host")["image"]["name"] == ".host"
    for name in ("tre", "tree-", "nope"):
        with pytest.raises(NoSuchImage) as raised:
            call("GetImage", Talkative(), name=name)
        assert raised.value.parameters == {"name": name}


def test_the_plain_reply_is_shared_and_no_other() -> None:
    machined = Talkative()

    def reply(method: str, **parameters: object) -> Reply:
        return result_of(METHODS[f"io.machine1.{method}"].function(machined, parameters))

    assert reply("GetImage", name="tree") is reply("GetImage", name="tree", details=False)
    assert reply("ListImages") is reply("ListImages", details=False, allowInteractiveAuthentication=True)
    for parameters in ({"type": "raw"}, {"read_only": False}, {"details": True}):
        assert not reply("ListImages", **parameters).shared
    assert not reply("GetImage", name="tree", details=True).shared


@pytest.mark.parametrize("details", [False, True])
def test_hidden_images_make_no_reply_and_no_question(details: bool) -> None:
    machined = Talkative(shown=Hidden("disk", "tree-2"))
    assert [names(reply) for reply in replies("ListImages", machined, details=details)] == [["tree"]]
    assert all("disk" not in str(asked) and "2d2" not in str(asked) for asked in machined.asked)
    machined = Talkative(shown=Hidden("disk", "tree", "tree-2"))
    assert [names(reply) for reply in replies("ListImages", machined, details=details)] == [[]]
    assert machined.asked == []


def test_details_in_one_reply_are_not_of_hidden_images() -> None:
    machined = Talkative(shown=Hidden("disk", "tree-2"))
    assert names(call("ListImages", machined, details=True)) == ["tree"]
    assert all("disk" not in str(asked) and "2d2" not in str(asked) for asked in machined.asked)


def test_no_image_is_looked_into_for_a_client_that_has_left() -> None:
    machined = Talkative()
    machined.left = Future(LOOP)
    machined.left.resolve(None)
    with pytest.raises(Unavailable):
        call("ListImages", machined, details=True)
    assert machined.asked == []


def test_an_image_that_is_hidden_meanwhile_is_not_looked_into() -> None:
    machined = Talkative(shown=(shown := Hidden()))
    reply = result_of(METHODS["io.machine1.ListImages"].streamed(machined, {"details": True}))  # type: ignore[misc]
    assert names(reply.parameters) == ["disk"]
    shown.names = ("tree",)
    machined.asked.clear()
    assert reply.stream is not None
    assert names(result_of(reply.stream.next()).parameters) == ["tree-2"]
    assert {asked[1] if asked[0] == "GetAll" else asked[2] for asked in machined.asked} == {PATH + "tree_2d2", "tree-2"}


def test_a_list_ends_where_the_client_does() -> None:
    reply = result_of(METHODS["io.machine1.ListImages"].streamed(Talkative(), {}))  # type: ignore[misc]
    assert reply.stream is not None
    reply.stream.close()
    reply.stream.close()
    assert result_of(reply.stream.next()) == Reply({"images": []})


# --- details --------------------------------------------------------------------------------------------------------


def test_details_are_all_that_machined_says() -> None:
    machined = Talkative()
    image = call("GetImage", machined, name="tree", details=True)["image"]
    assert image == {
        "name": "tree", "type": "directory", "read_only": False, "object_path": PATH + "tree", "details": DETAILS,
    }  # fmt: skip
    assert machined.asked == [
        ("GetAll", PATH + "tree", "org.freedesktop.machine1.Image"),
        ("GetImageHostname", "s", "tree", "s", DEADLINE),
        ("GetImageMachineID", "s", "tree", "ay", DEADLINE),
        ("GetImageMachineInfo", "s", "tree", "a{ss}", DEADLINE),
        ("GetImageOSRelease", "s", "tree", "a{ss}", DEADLINE),
    ]
    assert {member for member in FIELDS if member != "GetAll"} <= set(SLOW)


def test_lists_with_details_have_those_of_each() -> None:
    assert [image["details"] for image in call("ListImages", Talkative(), details=True)["images"]] == [DETAILS] * 3
    one_by_one = replies("ListImages", Talkative(), details=True, all=True)
    assert [reply["images"][0]["details"] for reply in one_by_one] == [DETAILS] * 4


def test_what_an_image_does_not_have_is_not_missing() -> None:
    answers = {
        "GetAll": {"Path": "/x", "Limit": UINT64_MAX, "UsageExclusive": UINT64_MAX, "LimitExclusive": 2**63},
        "GetImageHostname": "",
        "GetImageMachineID": b"",
        "GetImageMachineInfo": {},
        "GetImageOSRelease": {},
    }
    image = call("GetImage", Talkative(answers), name="tree", details=True)["image"]
    assert image["details"] == {"path": "/x", "machine_info": [], "os_release": [], "missing": []}


@pytest.mark.parametrize("member", FIELDS)
@pytest.mark.parametrize(
    ("error", "name", "reason"),
    [
        (DBusError("System.Error.EBADMSG", "torn"), "System.Error.EBADMSG", "torn"),
        (DBusError("org.freedesktop.DBus.Error.AccessDenied", "no"), "org.freedesktop.DBus.Error.AccessDenied", "no"),
        (Timeout(), "io.machine1.Timeout", ""),
        (Unavailable("it left"), "io.machine1.Unavailable", "it left"),
        (TooManyOperations(), "io.machine1.TooManyOperations", ""),
    ],
)
def test_a_piece_that_fails_is_missing_alone(member: str, error: Exception, name: str, reason: str) -> None:
    details = call("GetImage", Talkative(ANSWERS | {member: error}), name="tree", details=True)["image"]["details"]
    fields = FIELDS[member]
    assert details["missing"] == [{"piece": field, "error": name, "reason": reason} for field in fields]
    assert {field: value for field, value in details.items() if field != "missing"} == {
        field: value for field, value in DETAILS.items() if field not in (*fields, "missing")
    }


def test_all_pieces_may_fail() -> None:
    machined = Talkative(dict.fromkeys(FIELDS, DBusError("System.Error.EIO", "broken")))
    details = call("GetImage", machined, name="tree", details=True)["image"]["details"]
    assert details.keys() == {"missing"}
    assert {entry["piece"] for entry in details["missing"]} == DETAILS.keys() - {"missing"}


@pytest.mark.parametrize("properties", [{}, {"Path": 5}])
def test_a_path_that_machined_does_not_say_is_missing(properties: dict[str, Any]) -> None:
    machined = Talkative(ANSWERS | {"GetAll": properties})
    details = call("GetImage", machined, name="tree", details=True)["image"]["details"]
    assert {entry["piece"] for entry in details["missing"]} == set(FIELDS["GetAll"])
    assert {entry["error"] for entry in details["missing"]} == {UNKNOWN_PROPERTY}


@pytest.mark.parametrize("member", FIELDS)
@pytest.mark.parametrize(
    "error", [GONE, DBusError("org.freedesktop.DBus.Error.UnknownObject", "Unknown object '/org/x'.")]
)
def test_an_image_that_was_removed_meanwhile_is_none(member: str, error: DBusError) -> None:
    machined = Talkative(ANSWERS | {member: error})
    with pytest.raises(NoSuchImage) as raised:
        call("GetImage", machined, name="tree", details=True)
    assert raised.value.parameters == {"name": "tree"}
    assert call("ListImages", machined, details=True) == {"images": []}
    assert replies("ListImages", machined, details=True) == [{"images": []}]


def test_a_call_waits_for_one_piece_at_a_time() -> None:
    """Or who asks would take the places of several calls."""
    loop = Loop()
    waiting = {member: Future[Any](loop) for member in FIELDS}
    machined = Talkative(waiting)
    found: list[Reply] = []

    async def ask() -> None:
        found.append(await METHODS["io.machine1.GetImage"].function(machined, {"name": "tree", "details": True}))
        loop.stop()

    loop.start(ask(), lambda _: None)
    for number, (member, future) in enumerate(waiting.items()):
        assert [asked[0] for asked in machined.asked] == list(FIELDS)[: number + 1]
        future.when_done(loop.stop)
        loop.call_soon(lambda future=future, member=member: future.resolve(ANSWERS[member]))  # type: ignore[misc]
        loop.run()
    loop.close()
    assert found[0].parameters["image"]["details"] == DETAILS


# --- what is done ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "parameters", "asked"),
    [
        ("MarkImageReadOnly", {"name": "tree", "read_only": True}, ("sb", "tree", True)),
        ("MarkImageReadOnly", {"name": "tree", "read_only": False}, ("sb", "tree", False)),
        ("SetImageLimit", {"name": "tree", "limit": 0}, ("st", "tree", 0)),
        ("SetImageLimit", {"name": "tree", "limit": 2**63 - 1}, ("st", "tree", 2**63 - 1)),
        ("SetImageLimit", {"name": "tree"}, ("st", "tree", UINT64_MAX)),
        ("SetImageLimit", {"name": "tree", "limit": None}, ("st", "tree", UINT64_MAX)),
        ("SetPoolLimit", {"limit": 10**9}, ("t", 10**9)),
        ("SetPoolLimit", {}, ("t", UINT64_MAX)),
    ],
)
def test_machined_is_asked_what_the_client_asks(
    method: str, parameters: dict[str, Any], asked: tuple[object, ...]
) -> None:
    machined = Talkative({method: None})
    assert call(method, machined, **parameters) == {}
    assert machined.asked == [(method, *asked, "", DEADLINE)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            DBusError("System.Error.ENOTCONN", "Transport endpoint is not connected"),
            "the quota of this btrfs is off; SetPoolLimit turns it on",
        ),
        (
            DBusError("org.freedesktop.DBus.Error.NotSupported", "Operation not supported"),
            "only an image that is a subvolume of btrfs has a limit",
        ),
    ],
)
def test_where_there_are_no_limits_it_is_said_why(error: DBusError, reason: str) -> None:
    """The kernel's words tell nobody anything."""
    with pytest.raises(NotSupported) as raised:
        call("SetImageLimit", Talkative({"SetImageLimit": error}), name="tree", limit=5)
    assert raised.value.parameters == {"reason": reason}
    other = DBusError("System.Error.EIO", "broken")
    with pytest.raises(DBusError) as passed:
        call("SetImageLimit", Talkative({"SetImageLimit": other}), name="tree", limit=5)
    assert passed.value is other


@pytest.mark.parametrize(
    ("usage", "limit", "known"),
    [
        (1, 2, {"usage": 1, "limit": 2}),
        (0, UINT64_MAX, {"usage": 0}),
        (UINT64_MAX, 0, {"limit": 0}),
        (2**63, 2**63, {}),
    ],
)
def test_the_pool_is_told_as_far_as_it_is_known(usage: int, limit: int, known: dict[str, int]) -> None:
    machined = Talkative({"GetAll": {"PoolPath": "/var/lib/machines", "PoolUsage": usage, "PoolLimit": limit}})
    assert call("GetPool", machined) == {"path": "/var/lib/machines", **known}
    assert machined.asked == [("GetAll", "manager", "manager")]


def test_a_pool_without_a_path_is_a_failure() -> None:
    with pytest.raises(DBusError) as raised:
        call("GetPool", Talkative({"GetAll": {}}))
    assert raised.value.name == UNKNOWN_PROPERTY


def test_each_image_that_was_removed_is_a_reply() -> None:
    machined = Talkative({"CleanPool": [("b", 5), ("a", UINT64_MAX), (".c", 0)]})
    removed = [{"name": ".c", "usage": 0}, {"name": "a"}, {"name": "b", "usage": 5}]
    assert replies("CleanPool", machined, mode="all") == removed
    assert machined.asked == [("CleanPool", "s", "all", "a(st)", None)], "it takes as long as it takes"
    assert METHODS["io.machine1.CleanPool"].streams


def test_where_none_was_removed_there_is_one_reply() -> None:
    assert replies("CleanPool", Talkative({"CleanPool": []}), mode="hidden") == [{}]


def test_what_was_removed_is_forgotten_when_the_client_leaves() -> None:
    machined = Talkative({"CleanPool": [("a", 1), ("b", 2)]})
    reply = result_of(METHODS["io.machine1.CleanPool"].function(machined, {"mode": "all"}))
    assert reply.stream is not None
    reply.stream.close()
    reply.stream.close()
    assert result_of(reply.stream.next()) == Reply()
