# SPDX-License-Identifier: LGPL-2.1-or-later
"""A service of org.varlink.certification: all of the bridge but machined, with other methods behind it.

    python -m tests.conformance.certification SOCKET

A client calls Start, Test01 to Test11 and End, each with what the one before returned; the service says
CertificationError to anything else. What there is to call is in the interface file, which the varlink package brings
along: the schemas that the bridge checks calls against are made from it here. Prints a line once it listens.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import varlink

from bridge import activation, policy
from bridge.authorize import Authorizer
from bridge.bus import Bus
from bridge.contract import Contract
from bridge.control import Control
from bridge.dispatch import Dispatcher
from bridge.errors import VarlinkError
from bridge.loop import Loop
from bridge.machined import Machined
from bridge.messages import Call, Parameters, Peer, Reply
from bridge.methods import Method
from bridge.policy import Policy
from bridge.polkit import Polkit
from bridge.server import Server

INTERFACE = "org.varlink.certification"
VARLINK = Path(varlink.__file__).parent / "tests" / f"{INTERFACE}.varlink"

# What each method returns, in their order; Start a client_id besides, Test10 one after the other.
VALUES: dict[str, Any] = {"bool": False, "int": -(2**63), "float": math.pi, "string": 'ä €\U0001f600 "\\/\b\u007f\t'}
SET: dict[str, object] = {"one": {}, "two": {}, "three": {}}
MY_TYPE = {
    "object": {"method": f"{INTERFACE}.Test09", "parameters": {"list": [1, 2.5, None, True, {}, []], "nothing": None}},
    "enum": "two",
    "struct": {"first": 2**63 - 1, "second": ""},
    "array": ["one", "two", "three"],
    "dictionary": {"foo": "Foo", "ä b": "Bar"},
    "stringset": SET,
    "interface": {
        "foo": [None, {"foo": "foo", "bar": "bar"}, None, {"one": "baz"}],
        "anon": {"foo": True, "bar": False},
    },
}
REPLIES: dict[str, dict[str, Any]] = {
    "Start": {},
    "Test01": {"bool": True},
    "Test02": {"int": 1},
    "Test03": {"float": 1.0},
    "Test04": {"string": "ping"},
    "Test05": VALUES,
    "Test06": {"struct": VALUES},
    "Test07": {"map": {"foo": "Foo", "bar": "Bar"}},
    "Test08": {"set": SET},
    "Test09": {"mytype": MY_TYPE},
    "Test10": {"last_more_replies": [f"Reply number {number}" for number in range(1, 11)]},
    "Test11": {},
    "End": {"all_ok": True},
}
FLAGS = {"Test10": {"more"}, "Test11": {"oneway"}}


class ClientIdError(VarlinkError):
    name = f"{INTERFACE}.ClientIdError"


class CertificationError(VarlinkError):
    name = f"{INTERFACE}.CertificationError"

    def __init__(self, wants: object, got: object) -> None:
        super().__init__()
        self.parameters: dict[str, Any] = {"wants": wants, "got": got}


class Strings:
    """The replies of Test10."""

    open: ClassVar[set[Strings]] = set()

    def __init__(self, texts: list[str]) -> None:
        self._texts = list(texts)
        self.open.add(self)

    async def next(self) -> Reply:
        text = self._texts.pop(0)
        return Reply({"string": text}, stream=self if self._texts else None)

    def close(self) -> None:
        self.open.discard(self)


class Certification:
    """The methods, and for each client which one it has to call next."""

    def __init__(self) -> None:
        self._next: dict[str, str] = {}

    @property
    def methods(self) -> dict[str, Method]:
        def method(name: str) -> Method:
            async def call(machined: Machined, parameters: Parameters) -> Reply:
                return await self._call(name, parameters)

            # Guarded, since each changes what may come next: so it is done for a client that has left by then, too.
            return Method(call, True, {}, streams=name == "Test10")

        return {f"{INTERFACE}.{name}": method(name) for name in REPLIES}

    async def _call(self, name: str, parameters: Parameters) -> Reply:
        names = list(REPLIES)
        if name == "Start":
            client = os.urandom(16).hex()
            self._next[client] = "Test01"
            return Reply({"client_id": client})
        client = parameters["client_id"]
        # Each client has one try.
        expected = self._next.pop(client, None)
        if expected is None:
            raise ClientIdError
        if expected != name:
            raise CertificationError({"method": f"{INTERFACE}.{expected}"}, {"method": f"{INTERFACE}.{name}"})
        place = names.index(name)
        wants = REPLIES[names[place - 1]] | {"client_id": client}
        if without_nulls(parameters) != without_nulls(wants):
            raise CertificationError({"parameters": wants}, {"parameters": parameters})
        if Strings.open:
            raise AssertionError("a stream was not closed")
        if name != "End":
            self._next[client] = names[place + 1]
        if name == "Test10":
            return await Strings(REPLIES[name]["last_more_replies"]).next()
        return Reply(dict(REPLIES[name]))


class Strict(Dispatcher):
    """Checks the flags of a call as well, which methods do not see."""

    async def answer(self, call: Call, peer: Peer) -> Reply:
        interface, _, name = call.method.rpartition(".")
        flags = {flag for flag in ("more", "oneway", "upgrade") if getattr(call, flag)}
        wants = FLAGS.get(name, set())
        # A call without `more` is for the bridge itself to refuse.
        if interface == INTERFACE and flags != wants and not (wants == {"more"} and not flags):
            error = CertificationError(dict.fromkeys(wants, True), dict.fromkeys(flags, True))
            return Reply(error.parameters, error=error.name)
        return await super().answer(call, peer)


def without_nulls(value: object) -> object:
    """The same without what is absent, which may be null; but for a free object, where null is a value."""
    if isinstance(value, Mapping):
        return {
            key: member if key == "object" else without_nulls(member)
            for key, member in value.items()
            if member is not None
        }
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def schema_of(interface: Any, kind: Any) -> dict[str, Any]:  # noqa: ANN401  varlink has no types
    """The JSON Schema of a type, as varlink's scanner has read it."""
    match type(kind).__name__:
        case "bool":
            return {"type": "boolean"}
        case "int":
            return {"type": "integer"}
        case "float":
            return {"type": "number"}
        case "str":
            return {"type": "string"}
        case "_Object" | "_Dict" | "set":
            return {"type": "object"}
        case "_Array":
            return {"type": "array", "items": schema_of(interface, kind.element_type)}
        case "_Enum":
            return {"type": "string", "enum": list(kind.fields)}
        case "_CustomType":
            return schema_of(interface, interface.members[kind.name].type)
        case "_Maybe":
            schema = schema_of(interface, kind.element_type)
            return {**schema, "type": [schema["type"], "null"]}
        case "_Struct":
            return {
                "type": "object",
                "properties": {name: schema_of(interface, member) for name, member in kind.fields.items()},
                "required": [name for name, member in kind.fields.items() if type(member).__name__ != "_Maybe"],
                "additionalProperties": False,
            }
    raise AssertionError(kind)


def contract() -> dict[str, Any]:
    """What bridge/contract.json is to io.machine1."""
    text = VARLINK.read_text(encoding="utf-8")
    interface = varlink.Interface(text)
    standard = {
        name: method for name, method in Contract().methods.items() if name.startswith("org.varlink.service.")
    }
    own = {
        f"{INTERFACE}.{name}": {"parameters": schema_of(interface, interface.members[name].in_type)} for name in REPLIES
    }
    return {"version": "1.0", "interfaces": {INTERFACE: text}, "methods": standard | own, "errors": {}}


def main(path: str) -> None:
    described = Path(f"{path}.json")
    described.write_text(json.dumps(contract()), encoding="utf-8")
    methods = Certification().methods
    for name in methods:
        policy.PARAMETERS[name] = dict.fromkeys(contract()["methods"][name]["parameters"]["properties"], "free")
    loop = Loop()
    everybody = Policy("certification", frozenset(methods), polkit_required=False)
    authorizer = Authorizer(everybody, Polkit(Bus(loop), Bus(loop)))
    dispatcher = Strict(Contract(described), authorizer, Machined(loop), Control(lambda: None), methods)
    described.unlink()
    server = Server(loop, dispatcher, [activation.listen(path)], 0)
    server.start()
    print("listening", flush=True)
    loop.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
