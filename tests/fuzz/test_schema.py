# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests from the schemas: what fits reaches machined unchanged, of what does not the parameter is named."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.authorize import Authorizer
from bridge.contract import Contract
from bridge.control import Control
from bridge.dispatch import Dispatcher
from bridge.framing import parse_call, serialise_reply
from bridge.loop import Future, Loop
from bridge.messages import Peer
from bridge.policy import parse
from tests.client import Client
from tests.integration.fake_machined import FakeMachined
from tests.unit.conftest import result_of

from . import oracle
from .fakes import FakeBus, fake_bus, machined_on, polkit_on
from .schema_requests import (
    OF_TYPE,
    broken,
    check_keywords,
    fitting,
    longest,
    spelled,
    violations_of,
)
from .stage import EVERYTHING

INVALID = "org.varlink.service.InvalidParameter"
SCHEMAS = {name: method["parameters"] for name, method in oracle.METHODS.items()}
# Not machined's, or never over.
OTHERS = oracle.WATCHES | oracle.TRANSFERS.keys()
MACHINED = {name: schema for name, schema in SCHEMAS.items() if name not in OTHERS | oracle.OWN}
REQUESTS = {name: fitting(schema) for name, schema in SCHEMAS.items()}
VIOLATIONS = {name: list(violations_of(schema)) for name, schema in SCHEMAS.items() if schema["properties"]}
TEXTS = [
    (name, parameter, schema.get("items", schema))
    for name, method in SCHEMAS.items()
    if name not in OTHERS
    for parameter, schema in method["properties"].items()
    if "maxLength" in schema.get("items", schema)
]
LISTS = [
    (name, parameter, schema)
    for name, method in SCHEMAS.items()
    for parameter, schema in method["properties"].items()
    if "maxItems" in schema
]
NUMBERS = [
    (name, parameter, schema[bound])
    for name, method in MACHINED.items()
    for parameter, schema in method["properties"].items()
    for bound in ("minimum", "maximum")
    if bound in schema
]
SEEDS = st.integers(0, 2**32)


class Service:
    """All between the bytes of a message and those of the reply, on a bus that does not leave the process."""

    def __init__(self) -> None:
        self._loop = Loop()
        self.bus = FakeBus(self._loop)
        policy = parse(EVERYTHING.encode(), "default", "default.toml")
        authorizer = Authorizer(policy, polkit_on(self.bus))
        self._dispatcher = Dispatcher(
            Contract(), authorizer, machined_on(self.bus, self._loop), Control(lambda: None)
        )
        self._root = Peer(1, 0, 0, Future(self._loop))

    def close(self) -> None:
        self.bus.close()
        self._loop.close()

    def answer(self, message: str) -> tuple[list[oracle.Message], str | None, dict[str, Any]]:
        """What machined got; the error, if it is one; the parameters."""
        self.bus.calls.clear()
        reply = result_of(self._dispatcher.answer(parse_call(message.encode()), self._root))
        reply.close()
        answer = oracle.read_json(serialise_reply(reply).removesuffix(b"\0"))
        assert isinstance(answer, dict)
        return list(self.bus.calls), answer.get("error"), answer.get("parameters") or {}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


def call(method: str, parameters: Mapping[str, Any]) -> str:
    more = {"more": True} if method in oracle.WANT_MORE else {}
    return json.dumps({"method": method, "parameters": parameters, **more})


def least(method: str) -> dict[str, Any]:
    """A request with nothing but what has to be there."""
    values = {
        "src": "/web", "level": 0, "pid": 1, "uid": 1, "gid": 1, "read_only": True, "mode": "all", "state": "gone",
        "image_fd": 0, "url": "http://web/", "transfer": 1,
    }  # fmt: skip
    return {name: values.get(name, "web") for name in SCHEMAS[method].get("required", [])}


def reached(method: str, request: Mapping[str, Any], got: list[oracle.Message]) -> bool:
    """Whether machined got what the request says, and at most what belongs to that afterwards."""
    first = oracle.message_for(method, request)
    several = request.get("details") or method in oracle.TWICE
    rest = {member for member, _, _ in got[1:]}
    return repr(got[:1]) == repr([first] if first else []) and rest <= (oracle.FOLLOWING if several else set())


# --- what fits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", MACHINED)
@settings(max_examples=100)
@given(data=st.data())
def test_what_fits_reaches_machined_unchanged(service: Service, method: str, data: st.DataObject) -> None:
    request = data.draw(REQUESTS[method])
    got, error, parameters = service.answer(call(method, request))
    wrong = oracle.invalid_parameters(method, request)
    if wrong:
        # What the schema cannot say: a variable twice, .. in a path of the host.
        assert (got, error, parameters["parameter"] in wrong) == ([], INVALID, True)
    else:
        assert reached(method, request, got)
        assert error in oracle.outcomes(method, request)


@pytest.mark.parametrize("method", MACHINED)
@settings(max_examples=25)
@given(data=st.data(), seed=SEEDS)
def test_how_it_is_written_changes_nothing(service: Service, method: str, data: st.DataObject, seed: int) -> None:
    """White space, the order of keys, escapes; null for what may be left out."""
    request = data.draw(REQUESTS[method])
    plain = service.answer(call(method, request))
    chance = random.Random(seed)  # noqa: S311
    absent = [name for name in MACHINED[method]["properties"] if name not in request]
    nulls = dict.fromkeys(chance.sample(absent, chance.randint(0, len(absent))))
    optional = {name: value for name, value in nulls.items() if name not in MACHINED[method].get("required", [])}
    envelope = {"method": method, "parameters": request | optional}
    envelope |= dict.fromkeys(chance.sample(["more", "upgrade", "oneway"], chance.randint(0, 3)), False)
    envelope |= {"more": True} if method in oracle.WANT_MORE else {}
    assert service.answer(spelled(envelope, chance)) == plain


@settings(max_examples=100)
@given(value=st.recursive(st.none() | st.booleans() | st.integers(-5, 5) | st.text(), st.lists), seed=SEEDS)
def test_the_ways_of_writing_mean_the_same(value: object, seed: int) -> None:
    """Or the test above would say nothing."""
    written = spelled([value, {"a": value, "b": 1}], random.Random(seed))  # noqa: S311
    assert json.loads(written) == [value, {"a": value, "b": 1}]


@pytest.mark.parametrize(("method", "parameter", "schema"), TEXTS, ids=str)
def test_a_text_may_be_so_long(service: Service, method: str, parameter: str, schema: dict[str, Any]) -> None:
    text = longest(schema)
    assert len(text) == schema["maxLength"]
    is_item = "items" in SCHEMAS[method]["properties"][parameter]
    request = least(method) | ({"path": "/a"} if is_item else {}) | {parameter: [text] if is_item else text}
    got, _, _ = service.answer(call(method, request))
    assert reached(method, request, got)


@pytest.mark.parametrize(("method", "parameter", "schema"), LISTS, ids=str)
def test_a_list_may_have_so_many(service: Service, method: str, parameter: str, schema: dict[str, Any]) -> None:
    items = [f"A{index}=" for index in range(schema["maxItems"])]
    request = least(method) | {"path": "/a", parameter: items}
    got, _, _ = service.answer(call(method, request))
    assert reached(method, request, got)


@pytest.mark.parametrize(("method", "parameter", "number"), NUMBERS, ids=str)
def test_a_number_may_be_so_large(service: Service, method: str, parameter: str, number: int) -> None:
    request = least(method) | {parameter: number}
    got, _, _ = service.answer(call(method, request))
    assert reached(method, request, got)


@pytest.mark.parametrize("method", MACHINED)
def test_the_least_reaches_machined(service: Service, method: str) -> None:
    got, _, _ = service.answer(call(method, least(method)))
    assert reached(method, least(method), got)


# --- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", VIOLATIONS)
def test_what_does_not_fit_is_named_and_goes_nowhere(service: Service, method: str) -> None:
    """Each rule of the schema, broken in each way."""
    for violation in VIOLATIONS[method]:
        for value in violation.values or [None]:
            request = broken(least(method), violation, value)
            assert oracle.violations(SCHEMAS[method], request) == {violation.path}
            got, error, parameters = service.answer(call(method, request))
            assert (got, error, parameters.get("parameter")) == ([], INVALID, violation.path), (violation, value)
            assert parameters.keys() == {"parameter", "reason"}


@pytest.mark.parametrize("method", VIOLATIONS)
@settings(max_examples=60)
@given(data=st.data())
def test_it_is_named_whatever_the_rest_says(service: Service, method: str, data: st.DataObject) -> None:
    request = data.draw(REQUESTS[method])
    violation = data.draw(st.sampled_from(VIOLATIONS[method]))
    value = data.draw(st.sampled_from(violation.values)) if violation.values else None
    got, error, parameters = service.answer(call(method, broken(request, violation, value)))
    assert (got, error, parameters.get("parameter")) == ([], INVALID, violation.path)


@pytest.mark.parametrize("method", sorted(MACHINED.keys() & VIOLATIONS.keys()))
def test_check_names_it_below_parameters(service: Service, method: str) -> None:
    for violation in VIOLATIONS[method]:
        value = violation.values[0] if violation.values else None
        asked = {"method": method, "parameters": broken(least(method), violation, value)}
        got, error, parameters = service.answer(call("io.machine1.Check", asked))
        assert (got, error, parameters["parameter"]) == ([], INVALID, f"parameters.{violation.path}")


@settings(max_examples=100)
@given(data=st.data(), method=st.sampled_from(sorted(VIOLATIONS)))
def test_of_several_one_is_named(service: Service, data: st.DataObject, method: str) -> None:
    request = least(method)
    violations = data.draw(st.lists(st.sampled_from(VIOLATIONS[method]), min_size=2, max_size=4))
    for violation in violations:
        if violation.values:
            request = broken(request, violation, data.draw(st.sampled_from(violation.values)))
    wrong = oracle.invalid_parameters(method, request)
    if wrong:
        got, error, parameters = service.answer(call(method, request))
        assert (got, error, parameters.get("parameter") in wrong) == ([], INVALID, True)


# --- the tests themselves -------------------------------------------------------------------------------------------


def test_all_kinds_of_violation_are_there() -> None:
    violations = [violation for found in VIOLATIONS.values() for violation in found]
    kinds = {violation.kind.partition(" for ")[0].removesuffix(" in list") for violation in violations}
    rules = {"missing", "unknown", "outsider", "below", "above", "too many", "too long", "empty", "pattern"}
    assert kinds == rules | OF_TYPE.keys()


def test_a_keyword_that_is_not_known_is_no_secret() -> None:
    with pytest.raises(AssertionError, match="multipleOf"):
        check_keywords({"type": "integer", "multipleOf": 2})
    with pytest.raises(AssertionError, match="multipleOf"):
        fitting({"type": "integer", "multipleOf": 2})
    with pytest.raises(AssertionError, match="multipleOf"):
        list(violations_of({"type": "object", "properties": {"x": {"type": "integer", "multipleOf": 2}}}))


def test_the_fake_bus_closes_what_it_opens() -> None:
    loop = Loop()
    with fake_bus(loop) as bus:
        assert bus.calls == []
    loop.close()


# --- the whole way --------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(data=st.data(), method=st.sampled_from(sorted(set(MACHINED) - oracle.WITH_FD)))
def test_the_same_by_socket_and_bus(
    client: Client, machined: FakeMachined, data: st.DataObject, method: str
) -> None:
    request = data.draw(REQUESTS[method])
    wrong = oracle.invalid_parameters(method, request)
    message = None if wrong else oracle.message_for(method, request)
    for member, signature, body in (
        ("ListMachines", "a(ssso)", ([],)),
        ("ListImages", "a(ssbttto)", ([],)),
        ("GetMachineByPID", "o", ("/m",)),
        ("MapFromMachineUser", "u", (1,)),
        ("MapFromMachineGroup", "u", (1,)),
        ("MapToMachineUser", "sou", ("m", "/m", 1)),
        ("MapToMachineGroup", "sou", ("m", "/m", 1)),
        ("GetAll", "a{sv}", ({},)),
    ):
        machined.returns(member, signature, *body)
    machined.calls.clear()
    if message is not None and message[0] not in oracle.READS:
        machined.returns(message[0])
    client.send(method, request, more=method in oracle.WANT_MORE)
    reply = client.receive()
    if wrong:
        assert (machined.calls, reply["parameters"]["parameter"] in wrong) == ([], True)
    else:
        assert machined.calls[:1] == ([(message[0], message[2])] if message else [])
        assert {member for member, _ in machined.calls[1:]} <= oracle.FOLLOWING


@settings(max_examples=30)
@given(data=st.data(), method=st.sampled_from(sorted(VIOLATIONS)))
def test_violations_are_named_by_socket(
    client: Client, machined: FakeMachined, data: st.DataObject, method: str
) -> None:
    violation = data.draw(st.sampled_from(VIOLATIONS[method]))
    value = violation.values[0] if violation.values else None
    name, parameters = client.error(method, broken(least(method), violation, value))
    assert (name, parameters["parameter"]) == (INVALID, violation.path)
    assert machined.calls == []
