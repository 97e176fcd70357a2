# SPDX-License-Identifier: LGPL-2.1-or-later
"""The derived contract: which methods there are, and whether a call's parameters fit them.

`contract.json` is made from schema/machine1.openapi.yaml by schema/derive.py; nothing here knows a single method.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from .errors import InterfaceNotFound, InvalidParameter, MethodNotFound, VarlinkError

PATH = Path(__file__).with_name("contract.json")

# JSON Schema calls 1.0 an integer. An `int` of Varlink is not a float, whatever its value.
_types = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)


class _Schema(dict[str, Any]):
    """A schema that knows a quick way to tell that a value fits, for texts, integers and booleans.

    jsonschema's own way makes a validator for each value: three quarters of the time that a call takes to check, and
    for a list of arguments that fills a message a tenth of a second of the one thread.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        super().__init__((key, _prepared(value)) for key, value in schema.items())
        self.fits = _quick_check(self)


def _prepared(value: object) -> object:
    if isinstance(value, dict):
        return _Schema(value)
    return [_prepared(item) for item in value] if isinstance(value, list) else value


_PYTHON = {"string": str, "integer": int, "boolean": bool, "null": type(None)}
_QUICK = {"type", "pattern", "minLength", "maxLength", "minimum", "maximum", "enum", "$comment"}


def _quick_check(schema: Mapping[str, Any]) -> Callable[[object], bool]:
    """Whether a value surely fits. What does not, or where there is no quick way, is jsonschema's to say."""
    names = schema.get("type", "object")
    names = [names] if isinstance(names, str) else names
    choices = schema.get("enum")
    if not (schema.keys() <= _QUICK and isinstance(names, list) and set(names) <= _PYTHON.keys()):
        return lambda _: False
    if choices is not None and not all(choice is None or isinstance(choice, str) for choice in choices):
        return lambda _: False
    types = frozenset(_PYTHON[name] for name in names)
    search = re.compile(schema.get("pattern", "")).search
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    smallest, largest = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)

    def fits(value: object) -> bool:
        if type(value) not in types or (choices is not None and value not in choices):
            return False
        if isinstance(value, str):
            return shortest <= len(value) <= longest and search(value) is not None
        return not isinstance(value, int) or isinstance(value, bool) or smallest <= value <= largest

    return fits


def _properties(
    validator: Draft202012Validator, properties: Mapping[str, _Schema], instance: object, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    """The keyword `properties`, by the quick way where there is one."""
    if isinstance(instance, dict):
        for name, member in properties.items():
            if name in instance and not member.fits(instance[name]):
                yield from validator.descend(instance[name], member, path=name, schema_path=name)


def _items(
    validator: Draft202012Validator, items: _Schema, instance: object, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    """The keyword `items`, likewise."""
    if isinstance(instance, list):
        for index, item in enumerate(instance):
            if not items.fits(item):
                yield from validator.descend(item, items, path=index)


def _additional_properties(
    validator: Draft202012Validator, allowed: bool, instance: object, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    """The keyword `additionalProperties`, without a message that names all strangers, however many."""
    if isinstance(instance, dict) and not allowed and not instance.keys() <= schema["properties"].keys():
        yield ValidationError("")


def _type(
    validator: Draft202012Validator, types: str | list[str], instance: object, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    """The keyword `type`, without a message that has all of the value, however long it takes to write that."""
    for name in [types] if isinstance(types, str) else types:
        if validator.is_type(instance, name):
            return
    yield ValidationError("")


_Validator: type[Draft202012Validator] = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    validators={
        "additionalProperties": _additional_properties,
        "items": _items,
        "properties": _properties,
        "type": _type,
    },
    type_checker=_types,
)

# What a violated keyword means to the caller. The offending value is never repeated: it may be large, or a secret.
_REASONS: dict[str, Callable[[Any], str]] = {
    "required": lambda _: "is required",
    "additionalProperties": lambda _: "is not a parameter of this method",
    "type": lambda types: f"must be {_article(types)}",
    "enum": lambda values: f"must be one of {', '.join(v for v in values if v is not None)}",
    "pattern": lambda rule: f"must be {rule}",
    "minimum": lambda bound: f"must be at least {bound}",
    "maximum": lambda bound: f"must be at most {bound}",
    "minLength": lambda bound: f"must have at least {bound} characters",
    "maxLength": lambda bound: f"must have at most {bound} characters",
    "maxItems": lambda bound: f"must have at most {bound} items",
}


def _article(types: str | list[str]) -> str:
    named = [types] if isinstance(types, str) else [name for name in types if name != "null"]
    return " or ".join(f"an {name}" if name[0] in "aeiou" else f"a {name}" for name in named)


class Contract:
    """The methods of the interface and their schemas."""

    def __init__(self, path: Path = PATH) -> None:
        document = json.loads(path.read_bytes())
        self.version: str = document["version"]
        self.interfaces: dict[str, str] = document["interfaces"]
        self.methods: dict[str, dict[str, Any]] = document["methods"]
        self.errors: dict[str, dict[str, Any]] = document["errors"]
        self._validators: dict[str, Draft202012Validator] = {}

    def check(self, method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters without those that are null, which Varlink takes for absent.

        Raises InvalidParameter for the first violation. The method is one of the contract's.
        """
        validator = self._validators.get(method) or self._compile(method)
        violation = next(validator.iter_errors(parameters), None)
        if violation is not None:
            raise _invalid(violation)
        return {name: value for name, value in parameters.items() if value is not None}

    def unknown(self, method: str) -> VarlinkError:
        """What to say of a method that does not exist."""
        interface = method.rpartition(".")[0]
        if any(known.rpartition(".")[0] == interface for known in self.methods):
            return MethodNotFound(method)
        return InterfaceNotFound(interface)

    def _compile(self, method: str) -> Draft202012Validator:
        """Compiled when first needed: a client that calls one method pays for one."""
        validator = self._validators[method] = _Validator(_Schema(self.methods[method]["parameters"]))
        return validator


def _invalid(violation: ValidationError) -> InvalidParameter:
    keyword, expected = str(violation.validator), cast(Any, violation.validator_value)
    instance = cast(Any, violation.instance)
    path = list(violation.absolute_path)
    if keyword == "required":
        path.append(next(name for name in expected if name not in instance))
    elif keyword == "additionalProperties":
        known = cast(Any, violation.schema)["properties"]
        path.append(next(name for name in instance if name not in known))
    elif keyword == "pattern":
        expected = cast(Any, violation.schema)["$comment"]
    return InvalidParameter(_dotted(path), _REASONS[keyword](expected))


def _dotted(path: list[str | int]) -> str:
    """`["args", 2]` is written `args[2]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
