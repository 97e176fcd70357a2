# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is said of machines beyond the list: their details, their processes, their users."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from bridge.bus import DEADLINE, DBusError
from bridge.contract import Contract
from bridge.details import UNKNOWN_PROPERTY
from bridge.errors import (
    NoMachineForPID,
    NoSuchGroupMapping,
    NoSuchImage,
    NoSuchMachine,
    NoSuchUserMapping,
    NotSupported,
    PermissionDenied,
    StartFailed,
    Timeout,
    Unavailable,
    VarlinkError,
)
from bridge.listed import Images, Machines
from bridge.loop import Future, Loop
from bridge.machined import Machined, Rules
from bridge.messages import Reply
from bridge.methods import METHODS

from .conftest import result_of

CONTRACT = Contract()
PATH = "/org/freedesktop/machine1/machine/"
WEB = ("web", "container", "systemd-nspawn", PATH + "web")
DB = ("db", "vm", "libvirt-qemu", PATH + "db")
THE_HOST = (".host", "host", "", PATH + "_2ehost")

PROPERTIES: dict[str, Any] = {
    "Name": "web",
    "Id": b"\x01" * 16,
    "Leader": 4711,
    "Unit": "web.service",
    "RootDirectory": "/var/lib/machines/web",
    "Timestamp": 1_700_000_000_000_000,
    "State": "running",
    "NetworkInterfaces": [3],
    "SSHAddress": "vsock/3",
    "SSHPrivateKeyPath": "/run/key",
    "VSockCID": 3,
    "Supervisor": 4710,
    "UID": 0,
}
ANSWERS: dict[str, Any] = {
    "GetMachineAddresses": [(2, bytes([192, 0, 2, 1])), (10, bytes(15) + b"\x01"), (77, b"?")],
    "GetMachineOSRelease": {"ID": "debian", "VERSION_ID": "13"},
    "GetMachineUIDShift": 65536,
}
DETAILS = {
    "id": "01" * 16,
    "leader": 4711,
    "unit": "web.service",
    "root_directory": "/var/lib/machines/web",
    "timestamp": 1_700_000_000_000_000,
    "state": "running",
    "network_interfaces": [3],
    "ssh_address": "vsock/3",
    "ssh_private_key_path": "/run/key",
    "vsock_cid": 3,
    "supervisor": 4710,
    "owner_uid": 0,
    "addresses": [{"family": "ipv4", "address": "192.0.2.1"}, {"family": "ipv6", "address": "::1"}],
    "os_release": ["ID=debian", "VERSION_ID=13"],
    "uid_shift": 65536,
    "missing": [],
}


class OnlyThese:
    """A policy that shows some objects."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def shows_machine(self, name: str) -> bool:
        return name in self._names

    shows_image = shows_machine


class Talkative(Machined):
    """machined that has an answer for each member, or an error, and remembers what it was asked."""

    def __init__(self, answers: Mapping[str, Any] = ANSWERS, properties: object = None, shown: object = None) -> None:
        self._answers = answers
        self._properties = PROPERTIES if properties is None else properties
        self._rules = Rules()
        self.asked: list[tuple[object, ...]] = []
        self.started: list[str] = []
        self.result = "done"
        if shown is not None:
            self.shown = shown  # type: ignore[assignment]

    async def machines(self) -> Machines:
        return Machines([WEB, DB, THE_HOST])

    async def images(self) -> Images:
        return Images([("web", "directory", False, 1, 1, 1, "/x"), ("web-1", "directory", False, 1, 1, 1, "/x")])

    async def call(
        self, member: str, signature: str = "", *arguments: object, reply: str = "", deadline: float | None = DEADLINE
    ) -> tuple[Any, ...]:
        self.asked.append((member, *arguments))
        answer = self._answers[member]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, tuple) else (answer,)

    async def machine_properties(self, name: str, path: str) -> dict[str, Any]:
        self.asked.append(("GetAll", name, path))
        if isinstance(self._properties, Exception):
            raise self._properties
        assert isinstance(self._properties, dict)
        return self._properties

    async def start_unit(self, unit: str) -> str:
        self.started.append(unit)
        return self.result


def call(method: str, machined: Machined, **parameters: Any) -> Reply:  # noqa: ANN401  JSON
    """The reply to a call of io.machine1, one with `more` if that is true. It keeps the contract as does the call."""
    name = f"io.machine1.{method}"
    function = METHODS[name].streamed if parameters.pop("more", False) else METHODS[name].function
    assert function is not None
    reply = result_of(function(machined, CONTRACT.check(name, parameters)))
    Draft202012Validator(CONTRACT.methods[name]["reply"]).validate(reply.parameters)
    return reply


# --- details --------------------------------------------------------------------------------------------------------


def test_the_details_are_said_in_one_call() -> None:
    machined = Talkative()
    (machine,) = call("GetMachine", machined, name="web", details=True).parameters.values()
    assert machine["details"] == DETAILS
    assert ("GetAll", "web", PATH + "web") in machined.asked


def test_nobody_is_asked_for_details_that_are_not_wanted() -> None:
    machined = Talkative()
    (machine,) = call("GetMachine", machined, name="web", details=False).parameters.values()
    assert "details" not in machine
    assert machined.asked == []


@pytest.mark.parametrize(
    ("member", "field"),
    [("GetMachineAddresses", "addresses"), ("GetMachineOSRelease", "os_release"), ("GetMachineUIDShift", "uid_shift")],
)
@pytest.mark.parametrize(
    ("error", "missing"),
    [
        (DBusError("System.Error.EIO", "broken"), {"error": "System.Error.EIO", "reason": "broken"}),
        (Timeout(), {"error": "io.machine1.Timeout", "reason": ""}),
        (NotSupported("too old"), {"error": "io.machine1.NotSupported", "reason": "too old"}),
    ],
)
def test_a_piece_that_fails_is_reported_for_itself(
    member: str, field: str, error: Exception, missing: dict[str, str]
) -> None:
    (machine,) = call("GetMachine", Talkative(ANSWERS | {member: error}), name="web", details=True).parameters.values()
    assert machine["details"].pop("missing") == [{"piece": field, **missing}]
    assert machine["details"] == {key: value for key, value in DETAILS.items() if key not in (field, "missing")}


def test_without_its_properties_the_rest_is_said() -> None:
    machined = Talkative(properties=DBusError("org.freedesktop.DBus.Error.UnknownObject", "gone"))
    (machine,) = call("GetMachine", machined, name="web", details=True).parameters.values()
    missing = machine["details"].pop("missing")
    assert {entry["error"] for entry in missing} == {"org.freedesktop.DBus.Error.UnknownObject"}
    assert machine["details"].keys() == {"addresses", "os_release", "uid_shift"}
    assert {entry["piece"] for entry in missing} == DETAILS.keys() - machine["details"].keys() - {"missing"}


@pytest.mark.parametrize(
    ("member", "field", "version"), [("SSHAddress", "ssh_address", 256), ("Supervisor", "supervisor", 258)]
)
def test_what_an_older_machined_does_not_know_is_said_with_the_version(member: str, field: str, version: int) -> None:
    older = {key: value for key, value in PROPERTIES.items() if key != member}
    (machine,) = call("GetMachine", Talkative(properties=older), name="web", details=True).parameters.values()
    assert machine["details"]["missing"] == [
        {"piece": field, "error": UNKNOWN_PROPERTY, "reason": f"known from systemd {version} on"}
    ]
    assert field not in machine["details"]


@pytest.mark.parametrize(
    ("member", "value", "field"),
    [
        ("Id", bytes(16), "id"),
        ("Leader", 0, "leader"),
        ("Unit", "", "unit"),
        ("RootDirectory", "", "root_directory"),
        ("Timestamp", 0, "timestamp"),
        ("Timestamp", 2**64 - 1, "timestamp"),
        ("State", "dreaming", "state"),
        ("SSHAddress", "", "ssh_address"),
        ("VSockCID", 2**32 - 1, "vsock_cid"),
        ("UID", 2**32 - 1, "owner_uid"),
    ],
)
def test_what_a_machine_does_not_have_is_absent(member: str, value: object, field: str) -> None:
    (machine,) = call(
        "GetMachine", Talkative(properties=PROPERTIES | {member: value}), name="web", details=True
    ).parameters.values()
    assert machine["details"] == {key: text for key, text in DETAILS.items() if key != field}


# --- lists ----------------------------------------------------------------------------------------------------------


def names(reply: Reply) -> list[str]:
    return [machine["name"] for machine in reply.parameters["machines"]]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"class": "container"}, ["web"]),
        ({"class": "vm"}, ["db"]),
        ({"class": "host"}, []),
        ({"class": "host", "all": True}, [".host"]),
        ({"service": "systemd-nspawn"}, ["web"]),
        ({"service": "systemd-nspawn", "class": "vm"}, []),
        ({"service": ""}, []),
        ({"service": "", "all": True}, [".host"]),
        ({"all": True}, [".host", "db", "web"]),
    ],
)
def test_a_list_is_filtered(filters: dict[str, object], expected: list[str]) -> None:
    assert names(call("ListMachines", Talkative(), **filters)) == expected
    assert streamed(Talkative(), **filters) == expected
    # Nor does it become what others get.
    assert names(call("ListMachines", Talkative())) == ["db", "web"]


def streamed(machined: Machined, **parameters: object) -> list[str]:
    """The names in all replies, of which each but the last says that another follows."""
    reply, found = call("ListMachines", machined, more=True, **parameters), []
    while True:
        found += names(reply)
        if reply.stream is None:
            return found
        assert len(names(reply)) == 1
        reply = result_of(reply.stream.next())


def test_each_machine_has_a_reply_of_its_own() -> None:
    assert streamed(Talkative(), all=True) == [".host", "db", "web"]
    assert call("ListMachines", Talkative(shown=OnlyThese()), more=True) == Reply({"machines": []})


def test_the_number_of_replies_does_not_tell_of_what_is_hidden() -> None:
    reply = call("ListMachines", Talkative(shown=OnlyThese("web")), more=True)
    assert (names(reply), reply.stream) == (["web"], None)


def test_who_leaves_in_the_middle_leaves_nothing_to_do() -> None:
    machined = Talkative()
    reply = call("ListMachines", machined, more=True, all=True)
    assert reply.stream is not None
    reply.stream.close()
    reply.stream.close()
    assert result_of(reply.stream.next()) == Reply({"machines": []})


def test_nobody_is_asked_for_details_for_a_client_that_has_left() -> None:
    """Those of a thousand machines that do not answer would keep the service from ending for hours."""
    machined = Talkative()
    loop = Loop()
    loop.close()  # nothing waits in it
    machined.left = Future(loop)
    first = machined.call

    async def leave(member: str, signature: str = "", *arguments: object, **options: Any) -> tuple[Any, ...]:  # noqa: ANN401
        assert machined.left is not None
        machined.left.resolve(None)
        return await first(member, signature, *arguments, **options)

    machined.call = leave  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        call("ListMachines", machined, details=True)
    assert [asked[:2] for asked in machined.asked] == [("GetAll", "db"), ("GetMachineAddresses", "db")]


def test_details_come_with_lists_of_what_is_shown() -> None:
    for more in (False, True):
        machined = Talkative(shown=OnlyThese("web"))
        (machine,) = call("ListMachines", machined, more=more, details=True).parameters["machines"]
        assert machine["details"] == DETAILS
        # What is hidden costs no time that could tell of it.
        assert {asked[1] for asked in machined.asked} == {"web"}


# --- by a process ---------------------------------------------------------------------------------------------------

NO_MACHINE = DBusError("org.freedesktop.machine1.NoMachineForPID", "PID 1 does not belong to any known machine")


def test_a_process_is_of_a_machine() -> None:
    machined = Talkative({"GetMachineByPID": PATH + "web"})
    (machine,) = call("GetMachineByPID", machined, pid=7).parameters.values()
    assert machine["name"] == "web"
    assert machined.asked == [("GetMachineByPID", 7)]


def test_a_process_comes_with_the_details() -> None:
    machined = Talkative(ANSWERS | {"GetMachineByPID": PATH + "web"})
    (machine,) = call("GetMachineByPID", machined, pid=7, details=True).parameters.values()
    assert machine["details"] == DETAILS


@pytest.mark.parametrize(
    ("answer", "shown"),
    [(NO_MACHINE, OnlyThese("web")), (PATH + "web", OnlyThese("db")), (PATH + "gone", OnlyThese("web"))],
)
def test_a_process_of_a_hidden_machine_is_one_of_none(answer: object, shown: OnlyThese) -> None:
    with pytest.raises(NoMachineForPID) as caught:
        call("GetMachineByPID", Talkative({"GetMachineByPID": answer}, shown=shown), pid=7)
    assert caught.value.parameters == {"pid": 7}


def test_nobody_learns_where_this_service_is() -> None:
    machined = Talkative({"GetMachineByPID": PATH + "web"})
    with pytest.raises(NoMachineForPID):
        call("GetMachineByPID", machined, pid=os.getpid())
    assert machined.asked == []


def test_what_else_goes_wrong_is_not_a_missing_machine() -> None:
    with pytest.raises(DBusError):
        call("GetMachineByPID", Talkative({"GetMachineByPID": DBusError("System.Error.EIO", "x")}), pid=7)


# --- users ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "key", "missing"), [
    ("User", "uid", NoSuchUserMapping), ("Group", "gid", NoSuchGroupMapping),
])  # fmt: skip
def test_users_are_mapped_in_both_directions(kind: str, key: str, missing: type[VarlinkError]) -> None:
    inward, outward = f"MapToMachine{kind}", f"MapFromMachine{kind}"
    machined = Talkative({inward: ("web", PATH + "web", 5), outward: 65541})
    assert call(inward, machined, **{key: 65541}).parameters == {"name": "web", key: 5}
    assert call(outward, machined, name="web", **{key: 5}).parameters == {key: 65541}
    assert machined.asked == [(inward, 65541), (outward, "web", 5)]
    none = DBusError(f"org.freedesktop.machine1.NoSuch{kind}Mapping", "No matching mapping.")
    for hidden in (Talkative({inward: none}), Talkative({inward: ("web", PATH, 5)}, shown=OnlyThese("db"))):
        with pytest.raises(missing) as caught:
            call(inward, hidden, **{key: 65541})
        assert caught.value.parameters == {key: 65541}
    with pytest.raises(missing):
        call(outward, Talkative({outward: none}), name="web", **{key: 5})
    host = DBusError("org.freedesktop.DBus.Error.InvalidArgs", "Not supported for non-container machines.")
    with pytest.raises(NotSupported) as refused:
        call(outward, Talkative({outward: host}), name=".host", **{key: 5})
    assert refused.value.parameters == {"reason": "Not supported for non-container machines."}
    for method, parameters in ((inward, {key: 1}), (outward, {"name": "web", key: 1})):
        with pytest.raises(DBusError, match="EIO"):
            call(method, Talkative({method: DBusError("System.Error.EIO", "x")}), **parameters)


# --- beginning and ending -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["web", "web-1"])
def test_an_image_is_started_as_machinectl_does(name: str) -> None:
    machined = Talkative()
    assert call("StartMachine", machined, name=name) == Reply()
    assert machined.started == [f"systemd-nspawn@{name}.service"]


@pytest.mark.parametrize("result", ["failed", "timeout", "canceled"])
def test_a_start_that_fails_is_an_error_with_the_result(result: str) -> None:
    machined = Talkative()
    machined.result = result
    with pytest.raises(StartFailed) as caught:
        call("StartMachine", machined, name="web")
    assert caught.value.parameters == {"name": "web", "result": result}


def test_what_is_no_image_is_not_started() -> None:
    machined = Talkative()
    with pytest.raises(NoSuchImage) as caught:
        call("StartMachine", machined, name="db")
    assert caught.value.parameters == {"name": "db"}
    assert machined.started == []


@pytest.mark.parametrize("method", ["StartMachine", "PoweroffMachine", "RebootMachine", "UnregisterMachine"])
def test_the_host_goes_on(method: str) -> None:
    machined = Talkative()
    with pytest.raises(NotSupported):
        call(method, machined, name=".host")
    assert (machined.asked, machined.started) == ([], [])


@pytest.mark.parametrize("method", ["OpenMachineRootDirectory", "OpenMachineLogin", "OpenMachinePTY"])
def test_nobody_gets_into_the_host(method: str) -> None:
    machined = Talkative()
    with pytest.raises(PermissionDenied):
        call(method, machined, name=".host")
    assert machined.asked == []


def test_a_machine_that_is_not_there_has_no_details() -> None:
    with pytest.raises(NoSuchMachine):
        call("GetMachine", Talkative(), name="gone", details=True)
