# SPDX-License-Identifier: LGPL-2.1-or-later
"""Derive the Varlink interface and the JSON Schemas of the service from the OpenAPI contract.

    python schema/derive.py            write io.machine1.varlink and bridge/contract.json
    python schema/derive.py --check    exit 1 when one of them is not what would be written

A development tool: it needs PyYAML, the service does not. How OpenAPI becomes Varlink:

- an operationId is a method; its parameters are those of the path, the body and the query, in that order;
- a 2xx response without content is (), an array is one list named after the last part of the path, an object is itself;
- components/schemas with properties are named types; any other component schema is inlined where it is used;
- a property that is an object without properties, with `additionalProperties: true`, is Varlink's `object`: any one;
- x-rule says in words what a pattern wants, as they stand after "must be", and becomes $comment beside the pattern;
- components/responses are errors, with the properties of their content as parameters; one with x-varlink-error belongs
  to another interface and is not derived;
- summary and description become comments, and info.version, MAJOR.MINOR, is the version of the interface.

schema/manual.py makes the manual page of it, and schema/released.py holds it against what was released.

Only what every generator of clients takes is let through (varlinkctl, varlink/go, emersion/go-varlink, zlink,
varlink-rust); whatever else is refused with its place in the document. Nothing is dropped silently.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

INTERFACE = "io.machine1"
SERVICE_INTERFACE = "io.systemd.service"
CONTRACT = Path("schema/machine1.openapi.yaml")
VARLINK = Path(f"{INTERFACE}.varlink")
SCHEMAS = Path("bridge/contract.json")

WIDTH = 100
INDENT = "    "
VERBS = ("get", "put", "post", "delete", "patch")
SCALARS = {"boolean": "bool", "integer": "int", "string": "string"}

# Keywords that go into the runtime schema of each type, and those that only people read.
CONSTRAINTS: dict[str, frozenset[str]] = {
    "boolean": frozenset(),
    "integer": frozenset({"minimum", "maximum"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "x-rule", "enum"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required"}),
}
FOR_PEOPLE = frozenset({"description", "default", "examples"})

# Names that collide with what a generator puts beside its output.
RESERVED_TYPES = frozenset({"Error", "Result", "Option", "Vec", "String", "Client", "Backend", "Handler"})
TYPE_NAME = re.compile(r"[A-Z][A-Za-z0-9]*")
FIELD_NAME = re.compile(r"[a-z](_?[A-Za-z0-9])*")
ENUM_VALUE = re.compile(r"[a-z](_?[a-z0-9])*")
RULE = re.compile(r"[a-z][ -~]*[!-~]")
VERSION = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)")
INTEGER_RANGE = (-(2**63), 2**63 - 1)

# `$` also matches before a final newline in Python's dialect; this matches at the very end in every dialect.
AT_THE_END = r"(?![\s\S])"

# The service answers these itself and checks their parameters in the same way. Varlink defines them, not our contract.
STRING = {"type": "string"}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
STANDARD_METHODS: dict[str, Any] = {
    "org.varlink.service.GetInfo": {
        "parameters": NOTHING,
        "reply": {
            "type": "object",
            "properties": {
                "vendor": STRING,
                "product": STRING,
                "version": STRING,
                "url": STRING,
                "interfaces": {"type": "array", "items": STRING},
            },
            "required": ["vendor", "product", "version", "url", "interfaces"],
            "additionalProperties": False,
        },
    },
    "org.varlink.service.GetInterfaceDescription": {
        "parameters": {
            "type": "object",
            "properties": {"interface": STRING},
            "required": ["interface"],
            "additionalProperties": False,
        },
        "reply": {
            "type": "object",
            "properties": {"description": STRING},
            "required": ["description"],
            "additionalProperties": False,
        },
    },
    # systemd's, as its 262 describes it: beside this file.
    "io.systemd.service.Ping": {"parameters": NOTHING, "reply": NOTHING},
    "io.systemd.service.Reload": {
        "parameters": {
            "type": "object",
            "properties": {"allowInteractiveAuthentication": {"type": ["boolean", "null"]}},
            "additionalProperties": False,
        },
        "reply": NOTHING,
    },
    "io.systemd.service.SetLogLevel": {
        "parameters": {
            "type": "object",
            # LOG_EMERG to LOG_DEBUG of syslog(3). The interface lets it be left out, systemd's services do not.
            "properties": {"level": {"type": "integer", "minimum": 0, "maximum": 7}},
            "required": ["level"],
            "additionalProperties": False,
        },
        "reply": NOTHING,
    },
    "io.systemd.service.GetLogLevel": {
        "parameters": NOTHING,
        "reply": {
            "type": "object",
            "properties": {"level": {"type": "integer"}},
            "required": ["level"],
            "additionalProperties": False,
        },
    },
    "io.systemd.service.GetEnvironment": {
        "parameters": NOTHING,
        "reply": {
            "type": "object",
            "properties": {"environment": {"type": "array", "items": STRING}},
            "required": ["environment"],
            "additionalProperties": False,
        },
    },
}


class ContractError(Exception):
    """The contract holds something outside of the subset; the message names the place in the document."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")


@dataclass(frozen=True)
class Field:
    """A member of a struct: its Varlink type, `?` included, and the JSON Schema of its value."""

    name: str
    varlink: str
    schema: dict[str, Any]
    comment: str
    required: bool
    default: object = None


@dataclass(frozen=True)
class Struct:
    fields: tuple[Field, ...] = ()

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "object", "properties": {f.name: f.schema for f in self.fields}}
        if required := [f.name for f in self.fields if f.required]:
            schema["required"] = required
        schema["additionalProperties"] = False
        return schema


@dataclass(frozen=True)
class Type:
    name: str
    comment: str
    struct: Struct


@dataclass(frozen=True)
class Method:
    name: str
    comment: str
    parameters: Struct
    reply: Struct
    errors: tuple[str, ...]


@dataclass(frozen=True)
class Error:
    name: str
    comment: str
    parameters: Struct


@dataclass
class Interface:
    comment: str
    version: str
    types: list[Type] = field(default_factory=list)
    methods: list[Method] = field(default_factory=list)
    errors: list[Error] = field(default_factory=list)


# --- reading the document -----------------------------------------------------------------------------------------


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML as it should be: of two equal keys, PyYAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ContractError(f"line {node.start_mark.line + 1}", f"key {key!r} is there twice")
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


class Reader:
    """Turns the document into an Interface, refusing what is outside of the subset."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    def read(self) -> Interface:
        info = self.document["info"]
        version = info.get("version")
        if not isinstance(version, str) or not VERSION.fullmatch(version):
            raise ContractError("info", f"the version has to be a text such as '1.0', not {version!r}")
        interface = Interface(f"{comment_of('info', info)}\n\nThis is version {version} of the interface.", version)
        for name, schema in self.components("schemas"):
            if "properties" in schema or schema.get("type") == "object":
                place = f"components.schemas.{name}"
                interface.types.append(Type(name, comment_of(place, schema), self.struct(place, schema, named=True)))
        for name, response in self.components("responses"):
            if "x-varlink-error" not in response:
                interface.errors.append(self.error(name, response))
        for path, item in self.document["paths"].items():
            for verb in VERBS:
                if verb in item:
                    interface.methods.append(self.method(path, item, verb))
        check_names(interface)
        return interface

    def components(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from self.document.get("components", {}).get(kind, {}).items()

    def resolve(self, place: str, node: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Follow `$ref`, which wins over nothing: members beside it replace those of the target (OpenAPI 3.1)."""
        name = ""
        while "$ref" in node:
            reference = node["$ref"]
            target: Any = self.document
            for part in reference.removeprefix("#/").split("/"):
                target = target.get(part) if isinstance(target, dict) else None
            if not reference.startswith("#/") or not isinstance(target, dict):
                raise ContractError(place, f"no such component: {reference}")
            name = reference.rpartition("/")[2]
            node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
        return name, node

    def method(self, path: str, item: dict[str, Any], verb: str) -> Method:
        place = f"paths.{path}.{verb}"
        operation = item[verb]
        if "operationId" not in operation:
            raise ContractError(place, "an operation needs an operationId: it is the method's name")
        name = operation["operationId"]
        by_origin: dict[str, list[Field]] = {"path": [], "body": [], "query": []}
        for node in [*item.get("parameters", []), *operation.get("parameters", [])]:
            parameter = self.resolve(f"{place}.parameters", node)[1]
            spot = f"{place}.parameters.{parameter['name']}"
            if parameter["in"] not in ("path", "query"):
                raise ContractError(spot, f"a parameter in {parameter['in']} has no counterpart in Varlink")
            if is_open(parameter["schema"]):
                raise ContractError(spot, "an open object in a path or query: move it to the body")
            comment = comment_of(spot, parameter)
            required = parameter.get("required", False)
            by_origin[parameter["in"]].append(
                self.field(spot, parameter["name"], parameter["schema"], required=required, comment=comment)
            )
        if "requestBody" in operation:
            spot = f"{place}.requestBody"
            body = self.struct(spot, content_of(spot, operation["requestBody"]) or {})
            by_origin["body"] += body.fields
        fields = tuple(itertools.chain.from_iterable(by_origin.values()))
        for duplicate in {f.name for f in fields if [g.name for g in fields].count(f.name) > 1}:
            raise ContractError(place, f"the parameter {duplicate} is there twice")
        reply, errors = self.responses(place, path, operation["responses"])
        comment = f"{operation['summary']}.\n\n{comment_of(place, operation)}"
        return Method(name, comment, Struct(fields), reply, errors)

    def responses(self, place: str, path: str, responses: dict[str, Any]) -> tuple[Struct, tuple[str, ...]]:
        replies: list[Struct] = []
        errors: list[str] = []
        for status, node in responses.items():
            spot = f"{place}.responses.{status}"
            name, response = self.resolve(spot, node)
            if status.startswith("2"):
                replies.append(self.reply(spot, path, response))
            elif not node.get("$ref", "").startswith("#/components/responses/"):
                raise ContractError(spot, "an error is a $ref to components/responses: its key there is its name")
            elif "x-varlink-error" not in response:
                errors.append(name)
        if len(replies) != 1:
            raise ContractError(place, f"one 2xx response is needed, here are {len(replies)}")
        return replies[0], tuple(errors)

    def reply(self, place: str, path: str, response: dict[str, Any]) -> Struct:
        schema = content_of(place, response)
        if schema is None:
            return Struct()
        schema = self.resolve(place, schema)[1]
        if schema.get("type") != "array":
            return self.struct(place, schema)
        name = path.rpartition("/")[2]
        return Struct((self.field(place, name, schema, required=True, comment=comment_of(place, response)),))

    def error(self, name: str, response: dict[str, Any]) -> Error:
        place = f"components.responses.{name}"
        schema = content_of(place, response)
        parameters = Struct() if schema is None else self.struct(place, schema)
        if any(parameter.name == "error" for parameter in parameters.fields):
            raise ContractError(place, "a parameter of an error cannot be named error: generators use the name")
        return Error(name, comment_of(place, response), parameters)

    def struct(self, place: str, node: dict[str, Any], *, named: bool = False) -> Struct:
        schema = self.resolve(place, node)[1]
        if schema.get("type") != "object":
            raise ContractError(place, f"type object is needed here, not {schema.get('type')!r}")
        check_keywords(place, schema)
        properties: dict[str, Any] = schema.get("properties", {})
        if not properties:
            raise ContractError(place, "an empty struct" + (" as a named type" if named else "; leave out the content"))
        required = schema.get("required", [])
        if missing := set(required) - set(properties):
            raise ContractError(place, f"required, but not among the properties: {', '.join(sorted(missing))}")
        return Struct(
            tuple(
                self.field(f"{place}.{name}", name, property_, required=name in required)
                for name, property_ in properties.items()
            )
        )

    def field(
        self, place: str, name: str, node: dict[str, Any], *, required: bool, comment: str | None = None
    ) -> Field:
        if not FIELD_NAME.fullmatch(name):
            raise ContractError(place, f"field name {name!r}: lower-case first, then letters, digits, single _ inside")
        varlink, schema = self.type(place, node, optional=not required)
        resolved = self.resolve(place, node)[1]
        if comment is None:
            comment = comment_of(place, resolved)
        return Field(name, varlink, schema, comment, required, resolved.get("default"))

    def type(self, place: str, node: dict[str, Any], *, optional: bool) -> tuple[str, dict[str, Any]]:
        """The Varlink type of a value and its JSON Schema. An optional value may also be null: Varlink's `?`."""
        component, schema = self.resolve(place, node)
        kind = schema.get("type")
        if kind not in CONSTRAINTS:
            raise ContractError(place, f"type {kind!r}: one of {', '.join(CONSTRAINTS)} is needed")
        runtime: dict[str, Any] = {"type": [kind, "null"] if optional else kind}
        if is_open(schema) and not component:
            return ("?" if optional else "") + "object", runtime
        check_keywords(place, schema)
        if kind == "object":
            if not component:
                raise ContractError(place, "an anonymous struct: move it to components/schemas")
            struct = self.struct(place, schema, named=True).schema()
            return ("?" if optional else "") + component, {**struct, **runtime}
        if kind == "array":
            if self.resolve(place, schema.get("items", {}))[1].get("type") == "array":
                raise ContractError(place, "an array of arrays")
            if is_open(schema.get("items", {})):
                raise ContractError(place, "an array of open objects")
            element, items = self.type(f"{place}.items", schema.get("items", {}), optional=False)
            varlink = f"[]{element}"
            runtime |= {**limits(place, schema, "minItems", "maxItems"), "items": items}
        elif kind == "integer":
            varlink = "int"
            runtime |= integer_range(place, schema)
        elif "enum" in schema:
            values = schema["enum"]
            check_enum(place, values)
            varlink = f"({', '.join(values)})"
            runtime["enum"] = [*values, None] if optional else list(values)
        else:
            varlink = SCALARS[kind]
            runtime |= limits(place, schema, "minLength", "maxLength")
            if "pattern" in schema or "x-rule" in schema:
                runtime |= explained_pattern(place, schema)
        return ("?" if optional else "") + varlink, runtime


def content_of(place: str, node: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of a body or response; None where it has no content."""
    if "content" not in node:
        return None
    if list(node["content"]) != ["application/json"]:
        raise ContractError(place, "the content has to be application/json and nothing else")
    schema: dict[str, Any] = node["content"]["application/json"]["schema"]
    return schema


def comment_of(place: str, node: Mapping[str, Any]) -> str:
    comment = str(node.get("description", "")).strip()
    if not comment:
        raise ContractError(place, "a description is needed: it becomes the comment")
    if not comment.isascii():
        raise ContractError(place, "a description has to be ASCII: not every parser of Varlink takes other comments")
    return comment


def check_keywords(place: str, schema: Mapping[str, Any]) -> None:
    if unknown := set(schema) - CONSTRAINTS[schema["type"]] - FOR_PEOPLE - {"type"}:
        raise ContractError(place, f"not for type {schema['type']} here: {', '.join(sorted(unknown))}")


def is_open(schema: Mapping[str, Any]) -> bool:
    """Whether this is an object of which nothing at all is said."""
    return (
        set(schema) - FOR_PEOPLE == {"type", "additionalProperties"}
        and schema["type"] == "object"
        and schema["additionalProperties"] is True
    )


def check_enum(place: str, values: Sequence[Any]) -> None:
    if len(values) < 2:
        raise ContractError(place, "an enum of one value: some generators take it for a struct")
    if len(set(values)) < len(values):
        raise ContractError(place, "an enum with a value that is there twice")
    for value in values:
        if not isinstance(value, str) or not ENUM_VALUE.fullmatch(value):
            raise ContractError(place, f"enum value {value!r}: lower-case letters, digits and single _ inside")


def check_names(interface: Interface) -> None:
    methods = [method.name for method in interface.methods]
    names = [type_.name for type_ in interface.types] + methods + [error.name for error in interface.errors]
    reserved = RESERVED_TYPES | {name + suffix for name in methods for suffix in ("In", "Out")}
    for name in names:
        if not TYPE_NAME.fullmatch(name):
            raise ContractError(name, "a type, method or error: upper-case first, then letters and digits")
        if name in reserved:
            raise ContractError(name, "a name that generators use themselves")
        if names.count(name) > 1:
            raise ContractError(name, "a name that is there twice among types, methods and errors")
    known = {error.name for error in interface.errors}
    unused = known - {name for method in interface.methods for name in method.errors}
    if unused:
        raise ContractError(f"components.responses.{min(unused)}", "an error that no operation returns")


def limits(place: str, schema: Mapping[str, Any], *keywords: str) -> dict[str, int]:
    found = {keyword: schema[keyword] for keyword in keywords if keyword in schema}
    for keyword, value in found.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ContractError(place, f"{keyword} has to be a whole number, not {value!r}")
    return found


def integer_range(place: str, schema: Mapping[str, Any]) -> dict[str, int]:
    """Varlink's int has 64 bits; Python and JSON know no such limit, so that a schema always has to say one."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if not isinstance(low, int) or not isinstance(high, int):
        raise ContractError(place, "an integer needs minimum and maximum")
    if not INTEGER_RANGE[0] <= low <= high <= INTEGER_RANGE[1]:
        raise ContractError(place, f"from {low} to {high} is not a range of 64-bit integers")
    return {"minimum": low, "maximum": high}


def explained_pattern(place: str, schema: Mapping[str, Any]) -> dict[str, str]:
    """A pattern and its rule for people: `$comment`, the keyword of JSON Schema that no validator minds."""
    pattern, rule = schema.get("pattern"), schema.get("x-rule")
    if not isinstance(pattern, str):
        raise ContractError(place, "x-rule explains a pattern, and here is none")
    if not isinstance(rule, str) or not RULE.fullmatch(rule):
        raise ContractError(place, f"the pattern {pattern} needs an x-rule: one line of ASCII to stand after 'must be'")
    return {"pattern": portable_pattern(place, pattern), "$comment": rule}


def portable_pattern(place: str, pattern: str) -> str:
    """A pattern with the same meaning in ECMA-262 and in Python: anchored at both ends, without what differs."""
    depth = 0
    parts = re.findall(r"\\u[0-9a-fA-F]{4}|\\.|\[(?:\\.|[^\]\\])*\]|[\s\S]", pattern)
    if parts[:1] != ["^"] or parts[-1:] != ["$"]:
        raise ContractError(place, f"the pattern {pattern} has to be anchored with ^ and $")
    for part in parts[1:-1]:
        depth += (part == "(") - (part == ")")
        if part in ("^", "$", ".") or (part == "|" and depth == 0):
            raise ContractError(place, f"the pattern {pattern} has {part} where its meaning is not plain")
        if re.search(r"\\[a-tv-zA-Z0-9]", part):
            raise ContractError(place, f"the pattern {pattern} has {part}, which differs between dialects")
    portable = "".join(parts[:-1]) + AT_THE_END
    try:
        re.compile(portable)
    except re.error as error:
        raise ContractError(place, f"the pattern {pattern}: {error}") from error
    return portable


# --- writing ------------------------------------------------------------------------------------------------------


def comment_lines(text: str, indent: str = "") -> list[str]:
    """Wrapped `# ` lines, never a bare `#`: varlink/go would swallow the line after it."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    return [
        line
        for paragraph in paragraphs
        for line in textwrap.wrap(
            paragraph,
            WIDTH,
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}# ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]


def struct_text(struct: Struct) -> str:
    if not struct.fields:
        return "()"
    lines = []
    for member in struct.fields:
        separator = "," if member is not struct.fields[-1] else ""
        lines += [*comment_lines(member.comment, INDENT), f"{INDENT}{member.name}: {member.varlink}{separator}"]
    return "\n".join(["(", *lines, ")"])


def varlink_text(interface: Interface) -> str:
    members: list[tuple[str, str]] = []
    for type_ in interface.types:
        members.append((type_.comment, f"type {type_.name} {struct_text(type_.struct)}"))
    for method in interface.methods:
        errors = f"\n\nErrors: {', '.join(method.errors)}." if method.errors else ""
        signature = f"{struct_text(method.parameters)} -> {struct_text(method.reply)}"
        members.append((method.comment + errors, f"method {method.name}{signature}"))
    for error in interface.errors:
        members.append((error.comment, f"error {error.name} {struct_text(error.parameters)}"))
    header = f"# SPDX-License-Identifier: LGPL-2.1-or-later\n# Derived from {CONTRACT} by schema/derive.py: edit that."
    blocks = [header, "\n".join([*comment_lines(interface.comment), f"interface {INTERFACE}"])]
    blocks += ["\n".join([*comment_lines(comment), text]) for comment, text in members]
    return "\n\n".join(blocks) + "\n"


def contract_text(interface: Interface) -> str:
    service_interface = Path(__file__).with_name(f"{SERVICE_INTERFACE}.varlink").read_text(encoding="utf-8")
    contract = {
        "version": interface.version,
        "interfaces": {INTERFACE: varlink_text(interface), SERVICE_INTERFACE: service_interface},
        "methods": {
            **{
                f"{INTERFACE}.{method.name}": {
                    "parameters": method.parameters.schema(),
                    "reply": method.reply.schema(),
                }
                for method in interface.methods
            },
            **STANDARD_METHODS,
        },
        "errors": {f"{INTERFACE}.{error.name}": error.parameters.schema() for error in interface.errors},
    }
    return json.dumps(contract, indent=1) + "\n"


def derive(text: str) -> dict[Path, str]:
    """What the derived files have to contain, from the text of the contract. Raises ContractError."""
    interface = Reader(UniqueKeyLoader(text).get_single_data()).read()
    return {VARLINK: varlink_text(interface), SCHEMAS: contract_text(interface)}


def difference(path: Path, found: str, wanted: str) -> str:
    names = (f"{path} (found)", f"{path} (derived)")
    lines = list(difflib.unified_diff(found.splitlines(), wanted.splitlines(), *names, lineterm=""))
    head = [textwrap.shorten(line, 160, placeholder=" ...") if len(line) > 160 else line for line in lines[:30]]
    return "\n".join([*head, *(["..."] if len(lines) > len(head) else [])])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Derive the Varlink interface and the JSON Schemas from the contract.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a derived file is out of date")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="of the repository")
    options = parser.parse_args(arguments)
    try:
        derived = derive((options.root / CONTRACT).read_text(encoding="utf-8"))
    except ContractError as error:
        print(f"{CONTRACT}: {error}", file=sys.stderr)
        return 1
    return settle(derived, options.root, program="derive.py", check=options.check)


def settle(derived: Mapping[Path, str], root: Path, *, program: str, check: bool) -> int:
    """Write what is not as it was derived, or only say so; the exit status."""
    status = 0
    for path, wanted in derived.items():
        target = root / path
        found = target.read_text(encoding="utf-8") if target.exists() else ""
        if found == wanted:
            continue
        if check:
            print(f"{path} is out of date; run: python schema/{program}", file=sys.stderr)
            print(difference(path, found, wanted), file=sys.stderr)
            status = 1
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(wanted, encoding="utf-8")
            print(f"wrote {path}")
    return status


if __name__ == "__main__":
    sys.exit(main())
