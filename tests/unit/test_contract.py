# SPDX-License-Identifier: LGPL-2.1-or-later
"""Parameters are held against the contract, and what is wrong is said for people.

What the contract says is tested in test_contract_derived.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import extend

from bridge import contract as module
from bridge.contract import Contract
from bridge.errors import InterfaceNotFound, InvalidParameter, MethodNotFound

SHELL = "io.machine1.OpenMachineShell"
KILL = "io.machine1.KillMachine"
VALUE = "hunter2\n"


@pytest.fixture
def contract() -> Contract:
    return Contract()


def test_right_parameters_are_handed_on(contract: Contract) -> None:
    parameters = {"name": "web1", "who": "leader", "signal": 64}
    assert contract.check(KILL, parameters) == parameters


def test_null_is_absent(contract: Contract) -> None:
    parameters = {"name": "web1", "who": None, "signal": None, "allowInteractiveAuthentication": None}
    assert contract.check(KILL, parameters) == {"name": "web1"}


def test_false_zero_and_nothing_are_not_absent(contract: Contract) -> None:
    parameters = {"name": "web1", "user": "", "args": [], "allowInteractiveAuthentication": False}
    assert contract.check(SHELL, parameters) == parameters


def test_the_clients_parameters_are_not_changed(contract: Contract) -> None:
    parameters = {"name": "web1", "who": None}
    contract.check(KILL, parameters)
    assert parameters == {"name": "web1", "who": None}


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    (KILL, {}, "name", "is required"),
    (KILL, {"signal": 15}, "name", "is required"),
    ("io.machine1.CloneImage", {"name": "a"}, "dest", "is required"),
    (KILL, {"name": None}, "name", "must be a string"),
    (KILL, {"name": 5}, "name", "must be a string"),
    (KILL, {"name": [VALUE]}, "name", "must be a string"),
    (KILL, {"name": ""}, "name", "must have at least 1 characters"),
    (KILL, {"name": "a" * 65}, "name", "must have at most 64 characters"),
    (KILL, {"name": VALUE}, "name", "must be a host name "),
    (KILL, {"name": "a", "nmae": VALUE}, "nmae", "is not a parameter of this method"),
    (KILL, {"name": "a", "x.y": VALUE}, "x.y", "is not a parameter of this method"),
    (KILL, {"name": "a", "nothing": None}, "nothing", "is not a parameter of this method"),
    (KILL, {"name": "a", "who": VALUE}, "who", "must be one of all, leader"),
    (KILL, {"name": "a", "signal": 0}, "signal", "must be at least 1"),
    (KILL, {"name": "a", "signal": 65}, "signal", "must be at most 64"),
    (KILL, {"name": "a", "signal": 2**64 - 1}, "signal", "must be at most 64"),
    # Python and JSON Schema take these two for integers.
    (KILL, {"name": "a", "signal": True}, "signal", "must be an integer"),
    (KILL, {"name": "a", "signal": 1.0}, "signal", "must be an integer"),
    (KILL, {"name": "a", "signal": "15"}, "signal", "must be an integer"),
    ("io.machine1.ListMachines", {"all": 1}, "all", "must be a boolean"),
    (SHELL, {"name": "a", "args": VALUE}, "args", "must be an array"),
    (SHELL, {"name": "a", "args": {"0": VALUE}}, "args", "must be an array"),
    (SHELL, {"name": "a", "args": ["x", "y", 7]}, "args[2]", "must be a string"),
    (SHELL, {"name": "a", "args": [None]}, "args[0]", "must be a string"),
    (SHELL, {"name": "a", "args": ["x", VALUE * 20_000]}, "args[1]", "must have at most 131071 characters"),
    (SHELL, {"name": "a", "env": ["A=b", VALUE]}, "env[1]", "must be "),
    (SHELL, {"name": "a", "args": [""] * 300_000}, "args", "must have at most "),
    ("org.varlink.service.GetInfo", {"x": 1}, "x", "is not a parameter of this method"),
]


@pytest.mark.parametrize(("method", "parameters", "path", "reason"), WRONG)
def test_what_is_wrong_is_said_for_people(
    contract: Contract, method: str, parameters: dict[str, Any], path: str, reason: str
) -> None:
    with pytest.raises(InvalidParameter) as caught:
        contract.check(method, parameters)
    assert caught.value.parameters["parameter"] == path
    said = caught.value.parameters["reason"]
    assert said.startswith(reason) if reason.endswith(" ") else said == reason
    # A value may be a secret, or larger than the reply to it should be.
    assert VALUE.strip() not in said
    assert len(said) < 300


class Unsaid(str):
    """A name that nobody may make a text of."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise AssertionError("somebody made a text of all names")


def test_too_many_parameters_cost_no_time(contract: Contract) -> None:
    """jsonschema makes a text of every stranger, for a message that nobody reads."""
    parameters = {"name": "a"} | {Unsaid(f"x{number}"): VALUE for number in range(300_000)}
    started = time.process_time()
    with pytest.raises(InvalidParameter) as caught:
        contract.check(KILL, parameters)
    assert time.process_time() - started < 0.1
    assert caught.value.parameters == {"parameter": "x0", "reason": "is not a parameter of this method"}


def test_the_first_stranger_is_named(contract: Contract) -> None:
    with pytest.raises(InvalidParameter) as caught:
        contract.check("io.machine1.ListMachines", {"all": True, "b": 1, "c": 1})
    assert caught.value.parameters["parameter"] == "b"


@pytest.mark.parametrize("method", [KILL, SHELL, "io.machine1.ListMachines"])
def test_all_parameters_at_once_are_not_too_many(contract: Contract, method: str) -> None:
    known = contract.methods[method]["parameters"]["properties"]
    parameters = dict.fromkeys(known) | ({"name": "a"} if "name" in known else {})
    assert contract.check(method, parameters) == ({"name": "a"} if "name" in known else {})


def keywords(schema: dict[str, Any]) -> set[str]:
    """The keywords of JSON Schema in a schema, without the names of properties."""
    found = set(schema)
    for member in schema.get("properties", {}).values():
        found |= keywords(member)
    if "items" in schema:
        found |= keywords(schema["items"])
    return found


def test_each_keyword_of_the_contract_has_a_reason_for_people(contract: Contract) -> None:
    used = set().union(*(keywords(method["parameters"]) for method in contract.methods.values()))
    # What `properties` and `items` hold is checked by the keywords inside of them; `$comment` says a pattern in words.
    assert used - {"properties", "items", "$comment"} == set(module._REASONS)


def patterns(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas in a schema that have a pattern."""
    inside = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return [each for member in inside for each in patterns(member)] + ([schema] if "pattern" in schema else [])


def test_each_pattern_is_said_in_words(contract: Contract) -> None:
    """A regular expression is not for people."""
    found = [each for method in contract.methods.values() for each in patterns(method["parameters"])]
    assert found
    for schema in found:
        assert schema["$comment"].startswith(("a ", "an ")), schema
        assert schema["pattern"] not in schema["$comment"]


def test_a_reason_names_all_types_but_null(tmp_path: Path) -> None:
    """No method takes two types yet, so this is a contract of its own."""
    schema = {"type": "object", "properties": {"x": {"type": ["integer", "string", "null"]}}}
    path = tmp_path / "contract.json"
    document = {"version": "1.0", "interfaces": {}, "errors": {}, "methods": {"a.B": {"parameters": schema}}}
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidParameter) as caught:
        Contract(path).check("a.B", {"x": []})
    assert caught.value.parameters["reason"] == "must be an integer or a string"


@pytest.mark.parametrize("method", ["io.machine1.NoSuch", "io.machine1.", "org.varlink.service.GetNothing"])
def test_a_known_interface_does_not_have_every_method(contract: Contract, method: str) -> None:
    error = contract.unknown(method)
    assert isinstance(error, MethodNotFound)
    assert error.parameters == {"method": method}


@pytest.mark.parametrize(
    ("method", "interface"),
    [
        ("io.machine2.ListMachines", "io.machine2"),
        # As a prefix or a part it is another interface.
        ("io.machine1", "io"),
        ("io.machine1.x.ListMachines", "io.machine1.x"),
        ("x.io.machine1.ListMachines", "x.io.machine1"),
        ("ListMachines", ""),
        ("", ""),
    ],
)
def test_an_unknown_interface_is_told_from_an_unknown_method(contract: Contract, method: str, interface: str) -> None:
    error = contract.unknown(method)
    assert isinstance(error, InterfaceNotFound)
    assert error.parameters == {"interface": interface}


def test_what_does_not_exist_is_not_remembered(contract: Contract) -> None:
    """Or a client that invents names would fill the memory."""
    for number in range(10):
        contract.unknown(f"io.machine1.X{number}")
    contract.check("io.machine1.ListMachines", {})
    assert list(contract._validators) == ["io.machine1.ListMachines"]


def test_the_second_check_is_as_strict_as_the_first(contract: Contract) -> None:
    for _ in range(2):
        with pytest.raises(InvalidParameter):
            contract.check(KILL, {"name": "a", "signal": True})
        assert contract.check(KILL, {"name": "a"}) == {"name": "a"}


# --- the quick way --------------------------------------------------------------------------------------------------

PLAIN = extend(Draft202012Validator, type_checker=module._types)  # type: ignore[no-untyped-call]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 64, 65, -1, 2**63 - 1, 2**63, 1.0, 0.5, float("inf")),
    *("", "a", "web-1", ".host", "-", "all", "leader", "/", "/a", "a/b", "a\0", "a\n", "A=b", "a" * 64, "a" * 65),
    *("a" * 255, "a" * 256, "/" * 4095, "/" * 4096, "\x7f", "ä", [], ["a"], {}, {"a": 1}),
]


def schemas(schema: object) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if "type" in schema and not isinstance(schema["type"], dict):
            yield schema
        for member in schema.values():
            yield from schemas(member)


@pytest.mark.parametrize("method", Contract().methods)
def test_the_quick_way_says_what_jsonschema_says(contract: Contract, method: str) -> None:
    for schema in schemas(contract.methods[method]["parameters"]):
        quick, plain = module._Schema(schema), PLAIN(schema)
        scalar = not {"object", "array"} & {*schema["type"]} and schema["type"] not in ("object", "array")
        for value in VALUES:
            assert quick.fits(value) == (scalar and plain.is_valid(value)), (schema, value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array"},
        {"type": "object"},
        {"type": ["string", "array"]},
        {"type": "number"},
        {"type": "string", "format": "date"},
        {"type": "integer", "multipleOf": 2},
        {"enum": [1]},
        {"type": "integer", "enum": [1]},
        {},
        {"$ref": "#"},
    ],
)
def test_there_is_no_quick_way_for_what_it_does_not_know(schema: dict[str, Any]) -> None:
    assert not any(module._Schema(schema).fits(value) for value in VALUES)


def test_the_contract_is_checked_the_quick_way(contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would take several times as long: jsonschema descends into no parameter that fits."""
    parameters = {"name": "m", "user": "u", "path": "/p", "env": ["A=b"], "allowInteractiveAuthentication": True}
    descended: list[object] = []

    def descend(*_: object, path: object, **__: object) -> Iterator[None]:
        descended.append(path)
        return iter(())

    monkeypatch.setattr(module._Validator, "descend", descend)
    contract.check(SHELL, parameters)
    assert descended == ["env"], "lists are their items' affair"
