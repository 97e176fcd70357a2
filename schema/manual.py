# SPDX-License-Identifier: LGPL-2.1-or-later
"""Derive the manual page io.machine1(7) from the OpenAPI contract.

    python schema/manual.py            write contrib/man/io.machine1.7
    python schema/manual.py --check    exit 1 when it is not what would be written

Beside what derive.py reads, an operation has for this page

- x-polkit-action: the action that polkit is asked about, where the method is guarded; x-polkit-action-host: the one
  for .host, where that is another; x-polkit-action-details: the one where it is guarded with details alone;
- x-examples: each with a description, the parameters of a call, and its reply, which varlinkctl prints. Where the reply
  carries a file descriptor, exec is the command that varlinkctl gives it to, prints is what that prints, and systemd is
  the first version whose varlinkctl can. Or x-no-example: why there is none.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import derive

PAGE = Path("contrib/man/io.machine1.7")
SOCKET = "/run/machine1/io.machine1"
WIDTH = 78
EXAMPLE = {"description", "parameters", "reply"}
EXAMPLE_OF_EXEC = {"description", "parameters", "exec", "prints", "systemd"}

HEAD = """\
.\\" SPDX-License-Identifier: LGPL-2.1-or-later
.\\" Derived from {contract} by schema/manual.py: edit that.
.TH IO.MACHINE1 7 {date} "io.machine1 {version}" "io.machine1"
.\\" Names are long, and are not to be broken.
.nh
.ad l
.SH NAME
io.machine1 \\- Varlink interface to local machines and their images"""

CALLS = """\
Every method is the same with systemd 252 and each newer version. The interface only grows: the field version in the
reply of org.varlink.service.GetInfo says which one there is, after the version of the service, as in
0.1.0 (io.machine1 1.0).

First the policy of the socket decides what a caller may do. About methods that are guarded, polkit is asked then,
unless the caller is root. Check says what would become of a call."""

UNITS = {
    "machine1-bridge.socket": """Listens on /run/machine1/io.machine1. Everybody may connect to it.""",
    "machine1-bridge.service": """Serves that socket by the policy /etc/machine1-bridge/default.toml, or, where that
        file does not exist, by the one that comes with the service.""",
    "machine1-bridge@NAME.socket": """Listens on /run/machine1/sandbox/NAME. Only root may connect to it, unless a
        drop-in with SocketUser= names another user. It is made to be bound into a sandbox.""",
    "machine1-bridge@NAME.service": """Serves that socket by the policy /etc/machine1-bridge/NAME.toml, in a process of
        its own.""",
}
FILES = {
    SOCKET: "The socket for everybody.",
    "/run/machine1/sandbox/NAME": "The socket for the sandbox NAME.",
    "/run/varlink/registry/io.machine1": """A link to the socket for everybody, where varlinkctl list-registry of
        systemd 260 and newer finds it.""",
    "/usr/share/polkit-1/actions/io.machine1.policy": "The actions that polkit is asked about.",
    "/usr/share/doc/machine1-bridge/migration.md": """The calls of machinectl, io.systemd.Machine and
        io.systemd.MachineImage, the calls that take their places, and what differs.""",
}
SEE_ALSO = [
    ("machine1-bridge", 8),
    ("varlinkctl", 1),
    ("machinectl", 1),
    ("systemd-machined.service", 8),
    ("org.freedesktop.machine1", 5),
    ("polkit", 8),
]


# --- roff ----------------------------------------------------------------------------------------------------------

ESCAPES = {"\\": "\\e", "-": "\\-", "'": "\\(aq", '"': "\\(dq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}


def escaped(text: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in text)


def line(text: str) -> str:
    """A line that is no request, whatever it begins with."""
    return f"\\&{text}" if text.startswith(".") else text


def prose(text: str) -> Iterator[str]:
    """Paragraphs, each sentence on lines of its own, as roff wants it."""
    for index, paragraph in enumerate(text.strip().split("\n\n")):
        if index:
            yield ".PP"
        yield from sentences(paragraph)


def sentences(paragraph: str) -> Iterator[str]:
    for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z])", " ".join(paragraph.split())):
        wrapped = textwrap.wrap(escaped(sentence), WIDTH, break_long_words=False, break_on_hyphens=False)
        yield from (line(piece) for piece in wrapped)


def literal(lines: Sequence[str]) -> Iterator[str]:
    yield from (".PP", ".RS 4", ".nf")
    yield from (line(escaped(text)) for text in lines)
    yield from (".fi", ".RE")


def tagged(tag: str, text: str, more: str = "") -> Iterator[str]:
    """An entry of a list: what it is about in bold, and what there is to say of it."""
    yield ".TP"
    yield f'.BR {escaped(tag)} " {escaped(more)}"' if more else f".B {escaped(tag)}"
    yield from sentences(text)


# --- words ---------------------------------------------------------------------------------------------------------


def listed(words: Sequence[str], last: str) -> str:
    return f" {last} ".join([*([", ".join(words[:-1])] if words[:-1] else []), *words[-1:]])


def facts(field: derive.Field) -> Iterator[str]:
    """What stands in brackets behind a name: the type, what bounds it, and whether it may be left out."""
    varlink = field.varlink.removeprefix("?")
    yield listed(varlink.strip("()").split(", "), "or") if varlink.startswith("(") else varlink
    if varlink == "int":
        low, high = field.schema["minimum"], field.schema["maximum"]
        yield f"{low} to {high}" if high < derive.INTEGER_RANGE[1] else f"{low} or more"
    if "maxItems" in field.schema:
        yield f"at most {field.schema['maxItems']} items"
    if not field.required:
        yield "optional"
    if field.default is not None:
        yield f"default {json.dumps(field.default) if isinstance(field.default, bool) else field.default}"


def rule(schema: Mapping[str, Any], subject: str = "Must") -> str:
    """What a text must be, as a sentence."""
    words, longest = schema.get("$comment"), schema.get("maxLength")
    if longest is None:
        return f" {subject} be {words}." if words else ""
    return f" {subject} {f'be {words}, with' if words else 'have'} at most {longest} characters."


def members(struct: derive.Struct) -> Iterator[str]:
    for field in struct.fields:
        rules = rule(field.schema) + rule(field.schema.get("items", {}), "Each must")
        yield from tagged(field.name, field.comment + rules, f"({', '.join(facts(field))})")


# --- the page ------------------------------------------------------------------------------------------------------


class Page:
    """The page of an interface; what only the page needs is looked up in the document."""

    def __init__(self, text: str) -> None:
        self.document = derive.UniqueKeyLoader(text).get_single_data()
        self.interface = derive.Reader(self.document).read()
        self.operations: dict[str, dict[str, Any]] = {
            item[verb]["operationId"]: item[verb]
            for item in self.document["paths"].values()
            for verb in derive.VERBS
            if verb in item
        }
        self.responses: dict[str, dict[str, Any]] = self.document["components"]["responses"]

    def text(self) -> str:
        return "\n".join(self.lines()) + "\n"

    def lines(self) -> Iterator[str]:
        date, version = self.document["info"].get("x-date"), self.interface.version
        if not isinstance(date, str):
            raise derive.ContractError("info", "the page needs an x-date, as a text")
        yield HEAD.format(contract=derive.CONTRACT, date=date, version=version)
        yield ".SH SYNOPSIS"
        yield from (f".B {SOCKET}", ".PP", ".nf")
        for method in self.interface.methods:
            yield from self.signature(method)
        yield ".fi"
        yield ".SH DESCRIPTION"
        yield from prose(self.interface.comment)
        yield ".PP"
        yield from prose(CALLS)
        yield ".SH METHODS"
        for method in self.interface.methods:
            yield from self.method(method)
        yield ".SH TYPES"
        for type_ in self.interface.types:
            yield f".SS {type_.name}"
            yield from prose(type_.comment)
            yield from members(type_.struct)
        yield ".SH ERRORS"
        yield from self.errors()
        yield ".SH UNITS"
        for name, text in UNITS.items():
            yield from tagged(name, text)
        yield ".SH FILES"
        for name, text in FILES.items():
            yield from tagged(name, text)
        yield '.SH "SEE ALSO"'
        for index, (name, section) in enumerate(SEE_ALSO):
            yield f".BR {escaped(name)} ({section}){',' if index + 1 < len(SEE_ALSO) else ''}"

    def signature(self, method: derive.Method) -> Iterator[str]:
        def names(struct: derive.Struct) -> str:
            return ", ".join(f"{field.name}: {field.varlink}".replace(" ", "\0") for field in struct.fields)

        text = f"{method.name}({names(method.parameters)}) ->\0({names(method.reply)})"
        for piece in textwrap.wrap(text, 68, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False):
            yield escaped(piece.replace("\0", " "))

    def method(self, method: derive.Method) -> Iterator[str]:
        operation = self.operations[method.name]
        place = f"operation {method.name}"
        yield f".SS {method.name}"
        yield from prose(f"{operation['summary'].capitalize()}.\n\n{operation['description']}")
        if method.parameters.fields:
            yield from (".PP", "Parameters:")
            yield from members(method.parameters)
        yield from (".PP", "Reply:" if method.reply.fields else "The reply has no fields.")
        yield from members(method.reply)
        yield ".PP"
        yield from sentences(self.guard(operation))
        yield ".PP"
        yield from sentences(f"Errors: {', '.join(self.names(operation))}.")
        if bool(operation.get("x-examples")) == bool(operation.get("x-no-example")):
            raise derive.ContractError(place, "the page needs an example of each method: x-examples, or x-no-example")
        for example in operation.get("x-examples", []):
            yield from self.example(place, method, example)

    def guard(self, operation: Mapping[str, Any]) -> str:
        if "x-polkit-action-details" in operation:
            action = operation["x-polkit-action-details"]
            return f"Guarded by the polkit action {action} with details, and else not: the policy decides alone."
        if "x-polkit-action" not in operation:
            return "Not guarded: the policy of the socket alone decides."
        host = operation.get("x-polkit-action-host")
        return f"Guarded by the polkit action {operation['x-polkit-action']}{f', on .host by {host}' if host else ''}."

    def names(self, operation: Mapping[str, Any]) -> Iterator[str]:
        for status, response in operation["responses"].items():
            if not status.startswith("2"):
                name = response["$ref"].rpartition("/")[2]
                yield self.responses[name].get("x-varlink-error", name)

    def example(self, place: str, method: derive.Method, example: Mapping[str, Any]) -> Iterator[str]:
        if set(example) not in (EXAMPLE, EXAMPLE_OF_EXEC):
            raise derive.ContractError(place, f"an example has {', '.join(sorted(EXAMPLE))}; see schema/manual.py")
        since = f" (systemd {example['systemd']} and newer)" if "systemd" in example else ""
        yield ".PP"
        yield from sentences(f"{example['description']}{since}:")
        yield from literal(command(method, example))
        if "exec" in example:
            yield from (".PP", "It prints:", *literal(example["prints"].splitlines()))
        elif example["reply"]:
            yield from (".PP", "It prints:", *literal(json.dumps(example["reply"], indent=4).splitlines()))

    def errors(self) -> Iterator[str]:
        """Those of the interface, with their fields, and then those of others."""
        fields = {error.name: error.parameters for error in self.interface.errors}
        own = {name: response for name, response in self.responses.items() if name in fields}
        for name, response in {**own, **self.responses}.items():
            full = response.get("x-varlink-error", f"{derive.INTERFACE}.{name}")
            yield from tagged(full, response["description"])
            struct = fields.get(name)
            if struct is None:
                schema = derive.content_of(name, response)
                struct = derive.Reader(self.document).struct(name, schema) if schema else derive.Struct()
            if struct.fields:
                yield from (".RS", *members(struct), ".RE")


def command(method: derive.Method, example: Mapping[str, Any]) -> list[str]:
    """The lines of a shell's command."""
    option = " --exec" if "exec" in example else ""
    lines = [f"varlinkctl{option} call {SOCKET}", f"    {derive.INTERFACE}.{method.name}"]
    lines.append(f"    {shlex.quote(json.dumps(example['parameters']))}")
    if "exec" in example:
        lines.append(f"    -- {shlex.join(example['exec'])}")
    return [*(f"{text} \\" for text in lines[:-1]), lines[-1]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Derive io.machine1(7) from the contract.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the page is out of date")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="of the repository")
    options = parser.parse_args(arguments)
    try:
        page = Page((options.root / derive.CONTRACT).read_text(encoding="utf-8")).text()
    except derive.ContractError as error:
        print(f"{derive.CONTRACT}: {error}", file=sys.stderr)
        return 1
    return derive.settle({PAGE: page}, options.root, program="manual.py", check=options.check)


if __name__ == "__main__":
    sys.exit(main())
