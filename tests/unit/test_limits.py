# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a client may use up: open files, and how much each parameter may hold.

Each limit on the real process: tests/integration/test_limits.py. As keys of a policy: test_policy.py.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import pytest

from bridge.contract import Contract
from bridge.errors import InvalidParameter
from bridge.framing import ROOT
from bridge.limits import RANGES, Limits, within_open_files

CONTRACT = Contract()


@pytest.mark.parametrize("name", RANGES)
def test_a_limit_is_a_number_that_stays(name: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(Limits(), name, 1)


def test_what_a_policy_may_say() -> None:
    """Changed here on purpose, and in the man page. No call is deeper than five levels."""
    assert RANGES == {
        "connections": (1, 8000),
        "connections_per_user": (1, 8000),
        "message_bytes": (4096, 16 * 1024 * 1024),
        "depth": (8, 256),
        "items": (64, 1_000_000),
        "buffered_bytes": (4 * 1024 * 1024, 1024 * 1024 * 1024),
        "calls_per_user": (1, 64),
        "waiting_calls": (1, 8000),
        "request_seconds": (1, 3600),
        "reply_seconds": (1, 3600),
    }


def test_a_call_of_a_user_may_be_no_larger_than_one_of_root() -> None:
    limits = Limits()
    assert limits.message_bytes < ROOT.message_bytes
    assert limits.items < ROOT.items
    assert limits.depth == ROOT.depth


# --- open files -----------------------------------------------------------------------------------------------------


@dataclass
class OpenFiles:
    """RLIMIT_NOFILE of a process."""

    soft: int
    hard: int
    changes: int = 0

    def get(self, which: int) -> tuple[int, int]:
        assert which == resource.RLIMIT_NOFILE
        return self.soft, self.hard

    def set(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        assert limits[1] == self.hard, "it would be lowered for good"
        self.soft, self.hard = limits
        self.changes += 1


Given = Callable[[int, int], OpenFiles]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    def given(soft: int, hard: int) -> OpenFiles:
        files = OpenFiles(soft, hard)
        monkeypatch.setattr(resource, "getrlimit", files.get)
        monkeypatch.setattr(resource, "setrlimit", files.set)
        return files

    return given


@pytest.mark.parametrize(
    ("files", "connections"),
    [
        (1, 1),
        (640, 1),
        (644, 1),
        (647, 1),
        (648, 2),
        (651, 2),
        (652, 3),
        (640 + 4 * 4096 - 1, 4095),
        (640 + 4 * 4096, 4096),
        (1_000_000, 4096),
        (resource.RLIM_INFINITY, 4096),
    ],
)
def test_there_are_no_more_connections_than_files_for_them(given: Given, files: int, connections: int) -> None:
    """Four for each, and 640 for the service itself and for shells that nobody takes."""
    given(files, files)
    limits = replace(Limits(), depth=9, waiting_calls=7)
    assert within_open_files(limits) == replace(limits, connections=connections)


def test_descriptors_of_clients_have_their_files(given: Given) -> None:
    given(1240, 1240)
    assert within_open_files(Limits()).connections == 150
    assert within_open_files(Limits(), accepts_fds=True).connections == 100


@pytest.mark.parametrize("soft", [1024, 1_048_575, 1_048_576])
def test_as_many_files_are_allowed_as_may_be(given: Given, soft: int) -> None:
    files = given(soft, 1_048_576)
    assert within_open_files(Limits()).connections == 4096
    assert (files.soft, files.hard) == (1_048_576, 1_048_576)
    assert files.changes == (soft != 1_048_576)


def test_a_policy_that_asks_for_less_gets_less(given: Given) -> None:
    given(1600, 1600)
    assert within_open_files(Limits(connections=100)).connections == 100
    assert within_open_files(Limits(connections=1000)).connections == 240


def test_there_are_files_enough_for_the_most_connections_that_a_policy_can_ask_for(given: Given) -> None:
    """With what a service manager gives at most, unless it is told otherwise: systemd's DefaultLimitNOFILE=."""
    given(1024, 524_288)
    limits = Limits(connections=RANGES["connections"][1])
    assert within_open_files(limits) == limits


# --- parameters -----------------------------------------------------------------------------------------------------


# What each method needs beside the parameter that is looked at.
LEAST = {
    "name": "a", "dest": "b", "src": "/c", "pid": 1, "uid": 1, "gid": 1, "state": "gone",
    "read_only": True, "mode": "all", "image_fd": 0, "url": "http://a/b", "transfer": 1,
}  # fmt: skip
OTHERS = {
    name: {
        parameter: LEAST.get(parameter, "x")
        for parameter in method["parameters"].get("required", [])
    }
    for name, method in CONTRACT.methods.items()
}


@dataclass
class Size:
    """How much a parameter of a method may hold. `path` is what an error calls it."""

    method: str
    parameter: str
    path: str
    most: int
    reason: str
    value: Callable[[int], Any]

    def __str__(self) -> str:
        return f"{self.method.rpartition('.')[2]}.{self.path}"

    def check(self, length: int) -> None:
        value = self.value(length)
        assert CONTRACT.check(self.method, OTHERS[self.method] | {self.parameter: value})[self.parameter] == value


# The first of these that a schema takes is what fills its texts.
BEGINNINGS = ("", "/", "A=", "http://")


def text(schema: dict[str, Any], method: str, parameter: str) -> Callable[[int], str]:
    """A text that fits but for its length."""
    for beginning in BEGINNINGS:
        value = beginning + "a"
        try:
            CONTRACT.check(method, OTHERS[method] | {parameter: [value] if "items" in schema else value})
        except InvalidParameter:
            continue
        return lambda length: beginning.ljust(length, "a")
    raise AssertionError(f"no text is a {parameter} of {method}")


def of_a_text(schema: dict[str, Any], method: str, parameter: str) -> Size:
    most = schema["maxLength"]
    return Size(
        method, parameter, parameter, most, f"must have at most {most} characters", text(schema, method, parameter)
    )


def of_a_list(schema: dict[str, Any], method: str, parameter: str) -> Size:
    most, short = schema["maxItems"], text(schema, method, parameter)(3)
    return Size(
        method, parameter, parameter, most, f"must have at most {most} items", lambda length: [short] * length
    )


def of_an_item(schema: dict[str, Any], method: str, parameter: str) -> Size:
    most, item = schema["items"]["maxLength"], text(schema, method, parameter)
    return Size(
        method,
        parameter,
        f"{parameter}[1]",
        most,
        f"must have at most {most} characters",
        lambda length: [item(3), item(length)],
    )


def sizes() -> Iterator[Size]:
    for method, about in CONTRACT.methods.items():
        for parameter, schema in about["parameters"]["properties"].items():
            if "maxLength" in schema:
                yield of_a_text(schema, method, parameter)
            if "maxItems" in schema:
                yield of_a_list(schema, method, parameter)
            if "maxLength" in schema.get("items", {}):
                yield of_an_item(schema, method, parameter)


SIZES = list(sizes())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_parameter_may_hold_so_much_and_no_more(size: Size) -> None:
    for length in (size.most - 1, size.most):
        size.check(length)
    with pytest.raises(InvalidParameter) as caught:
        size.check(size.most + 1)
    assert caught.value.parameters == {"parameter": size.path, "reason": size.reason}


# What is looked up in a table, or checked as the call that it asks about.
UNBOUNDED = {("io.machine1.Check", "method"), ("org.varlink.service.GetInterfaceDescription", "interface")}


def test_every_text_and_every_list_has_a_size() -> None:
    """Or what is compared with a list of known ones, or with names that there are."""
    found = {(size.method, size.parameter) for size in SIZES}
    for method, about in CONTRACT.methods.items():
        for parameter, schema in about["parameters"]["properties"].items():
            types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            if {"string", "array"} & set(types) and "enum" not in schema and (method, parameter) not in UNBOUNDED:
                assert (method, parameter) in found
    schemas = json.dumps([about["parameters"] for about in CONTRACT.methods.values()])
    assert len(SIZES) == schemas.count('"maxLength"') + schemas.count('"maxItems"') > 20


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_call_of_root_can_hold_what_a_parameter_may(size: Size) -> None:
    """At its most; a text in UTF-8 of four bytes a character, an item with its quotes and comma."""
    assert 4 * (size.most + 2) < ROOT.message_bytes
    if size.reason.endswith("items"):
        assert 2 * size.most + 10 < ROOT.items, "arguments and environment, as many as may be of both"
