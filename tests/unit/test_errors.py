# SPDX-License-Identifier: LGPL-2.1-or-later
"""The exceptions and the contract name the same errors with the same parameters."""

from __future__ import annotations

import inspect

import pytest
from jsonschema import Draft202012Validator

from bridge import errors
from bridge.contract import Contract
from bridge.errors import VarlinkError

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, VarlinkError) and value is not VarlinkError
]
SCHEMAS = Contract().errors
OWN = [kind for kind in CLASSES if kind.name.startswith("io.machine1.")]

# UAPI.20, org.varlink.service. `reason` is ours: systemd and the Go library ignore what they do not know. The last one
# is systemd's, without parameters.
STANDARD = {
    "org.varlink.service.InterfaceNotFound": {"interface"},
    "org.varlink.service.MethodNotFound": {"method"},
    "org.varlink.service.MethodNotImplemented": {"method"},
    "org.varlink.service.ExpectedMore": set(),
    "org.varlink.service.InvalidParameter": {"parameter", "reason"},
    "org.varlink.service.PermissionDenied": set(),
    "io.systemd.InteractiveAuthenticationRequired": set(),
    "io.systemd.System": {"origin", "errno", "errnoName", "reason"},
    "io.systemd.service.InconsistentEnvironment": set(),
}

# The values of parameters that are no texts.
NUMBERS = {"pid": 1, "uid": 2, "gid": 3, "transfer": 4}
CONSTANT = {"io.systemd.System": {"origin": "linux", "errno": 22, "errnoName": "EINVAL"}}


def make(kind: type[VarlinkError]) -> VarlinkError:
    """An instance, each parameter of the constructor with its own name as the value."""
    parameters = inspect.signature(kind).parameters.values()
    names = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
    return kind(**{name: NUMBERS.get(name, name) for name in names})


def test_each_error_of_the_contract_has_one_class_and_the_other_way_round() -> None:
    assert sorted(kind.name for kind in OWN) == sorted(SCHEMAS)


def test_all_other_errors_are_those_of_the_standard_and_of_systemd() -> None:
    assert sorted(kind.name for kind in CLASSES if kind not in OWN) == sorted(STANDARD)


@pytest.mark.parametrize("kind", OWN)
def test_parameters_are_those_of_the_contract(kind: type[VarlinkError]) -> None:
    error = make(kind)
    schema = SCHEMAS[kind.name]
    Draft202012Validator(schema).validate(error.parameters)
    # None that the contract has is left out either, required or not.
    assert error.parameters.keys() == schema["properties"].keys()


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind not in OWN])
def test_parameters_are_those_of_the_standard(kind: type[VarlinkError]) -> None:
    assert make(kind).parameters.keys() == STANDARD[kind.name]


@pytest.mark.parametrize("kind", CLASSES)
def test_each_parameter_says_what_it_was_given(kind: type[VarlinkError]) -> None:
    error = make(kind)
    given = [name for name, each in inspect.signature(kind).parameters.items() if each.kind is not each.VAR_KEYWORD]
    # No value is swapped with another or lost. `name` is the interface's word for what the code calls by its kind.
    told = dict(error.parameters)
    for name, value in CONSTANT.get(kind.name, {}).items():
        assert told.pop(name) == value
    assert sorted(told.values(), key=str) == sorted((NUMBERS.get(name, name) for name in given), key=str)
    assert all(value in (NUMBERS.get(name, name), "machine", "image") for name, value in told.items())


@pytest.mark.parametrize("kind", CLASSES)
def test_the_name_is_that_of_the_class(kind: type[VarlinkError]) -> None:
    assert kind.name.rpartition(".")[2] == kind.__name__


@pytest.mark.parametrize("kind", CLASSES)
def test_why_it_was_refused_stays_out_of_what_the_client_gets(kind: type[VarlinkError]) -> None:
    """It would tell a hidden machine from a missing one."""
    plain, error = make(kind), make(kind)
    assert plain.refusal is None
    refusal = errors.Refusal("policy", "a reason of its own")
    assert error.refused(refusal) is error
    assert error.refusal is refusal
    assert make(kind).refusal is None
    assert (error.name, error.parameters, str(error)) == (plain.name, plain.parameters, str(plain))


def test_an_error_shows_its_parameters_in_a_traceback() -> None:
    assert "web1" in str(errors.NoSuchMachine("web1"))
