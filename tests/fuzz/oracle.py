# SPDX-License-Identifier: LGPL-2.1-or-later
"""A second opinion: which bytes are a call, which parameters fit, and what machined has to get.

Written from the standards (RFC 8259, UAPI.20), the contract and its texts, and on purpose in another way than bridge/,
of which nothing is used here but the contract's JSON: where the two do not agree, one of them is wrong.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTRACT: dict[str, Any] = json.loads((Path(__file__).parents[2] / "bridge" / "contract.json").read_bytes())
METHODS: dict[str, dict[str, Any]] = CONTRACT["methods"]
ERRORS: dict[str, dict[str, Any]] = CONTRACT["errors"]

# --- bytes ----------------------------------------------------------------------------------------------------------

DEPTH_MAX = 32

_TOKEN = re.compile(
    r"""[ \t\n\r]*(?:
        (?P<text>"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*")
        |(?P<number>(?P<integer>-?(?:0|[1-9][0-9]*))(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)
        |(?P<word>true|false|null)
        |(?P<mark>[\[\]{},:]|\Z)
    )""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:u(....)|(.))")
_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS = {"true": True, "false": False, "null": None}


END = ("mark", "")
_COUNTED = {("mark", ","), ("mark", "["), ("mark", "{")}


class Rejected(Exception):
    """These bytes are no call."""


@dataclass(frozen=True)
class Call:
    """What a message says."""

    method: str
    parameters: dict[str, Any]
    more: bool
    oneway: bool
    upgrade: bool


def read_call(message: bytes, items_max: float = math.inf) -> Call:
    """The call that a message, without its NUL, is. Raises Rejected."""
    envelope = read_json(message, items_max)
    if not isinstance(envelope, dict):
        raise Rejected("not an object")
    # A field of a later version of the protocol says something that would be missed; others may extend it under a name.
    known = {"method", "parameters", "more", "oneway", "upgrade"}
    if any(key not in known and not ("." in key and type(value) is dict) for key, value in envelope.items()):
        raise Rejected("a key that nobody knows")
    flags = [envelope.get(key, False) for key in ("more", "oneway", "upgrade")]
    if any(type(flag) is not bool for flag in flags) or flags.count(True) > 1:
        raise Rejected("flags")
    parameters = {} if envelope.get("parameters") is None else envelope["parameters"]
    if type(envelope.get("method")) is not str or type(parameters) is not dict:
        raise Rejected("the types of method and parameters")
    return Call(envelope["method"], parameters, *flags)


def read_json(message: bytes, items_max: float = math.inf) -> object:
    """One JSON value, strictly: no key twice, nothing that is no text or number to everybody. Raises Rejected.

    Items and members are counted by the commas, lists and objects.
    """
    try:
        text = message.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Rejected("not UTF-8") from error
    tokens = _tokens(text)
    if sum(token in _COUNTED for token in itertools.takewhile(lambda token: token != END, _tokens(text))) > items_max:
        raise Rejected("too many items")
    value = _value(next(tokens), tokens, 0)
    if next(tokens) != END:
        raise Rejected("more than one value")
    return value


def _tokens(text: str) -> Iterator[tuple[str, Any]]:
    """Kind and value of each token; at the end the mark "", again and again."""
    position = 0
    while True:
        found = _TOKEN.match(text, position)
        if found is None:
            raise Rejected("no token of JSON")
        position, kind = found.end(), str(found.lastgroup)
        if found["text"] is not None:
            yield "value", _unescaped(found["text"][1:-1])
        elif found["number"] is not None:
            yield "value", _number(found["number"], found["integer"])
        elif found["word"] is not None:
            yield "value", _WORDS[found["word"]]
        else:
            yield kind, found["mark"]


def _unescaped(text: str) -> str:
    if "\\" in text:
        text = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else _SHORT.get(found[2], found[2]), text)
        try:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise Rejected("half a surrogate pair") from error
    if any(character == "\0" or _is_noncharacter(ord(character)) for character in text):
        raise Rejected("NUL or a noncharacter in a text")
    return text


def _is_noncharacter(point: int) -> bool:
    """Unicode 23.7: U+FDD0 to U+FDEF, and the last two of each plane."""
    return 0xFDD0 <= point <= 0xFDEF or point & 0xFFFE == 0xFFFE


def _number(text: str, integer: str) -> int | float:
    if text != integer or len(text) > 20 or not -9223372036854775808 <= int(text) <= 18446744073709551615:
        return float(text)
    return int(text)


def _value(token: tuple[str, Any], tokens: Iterator[tuple[str, Any]], depth: int) -> object:
    if token[0] == "value":
        return token[1]
    if depth == DEPTH_MAX:
        raise Rejected("too deep")
    if token[1] == "[":
        return _list(tokens, depth + 1)
    if token[1] == "{":
        return _object(tokens, depth + 1)
    raise Rejected("no value")


def _list(tokens: Iterator[tuple[str, Any]], depth: int) -> list[Any]:
    items: list[Any] = []
    token = next(tokens)
    if token == ("mark", "]"):
        return items
    while True:
        items.append(_value(token, tokens, depth))
        if _one_of(",]", tokens) == "]":
            return items
        token = next(tokens)


def _object(tokens: Iterator[tuple[str, Any]], depth: int) -> dict[str, Any]:
    members: dict[str, Any] = {}
    kind, key = next(tokens)
    if (kind, key) == ("mark", "}"):
        return members
    while True:
        if kind != "value" or type(key) is not str or key in members:
            raise Rejected("a key that is no text, or there already")
        _one_of(":", tokens)
        members[key] = _value(next(tokens), tokens, depth)
        if _one_of(",}", tokens) == "}":
            return members
        kind, key = next(tokens)


def _one_of(marks: str, tokens: Iterator[tuple[str, Any]]) -> str:
    kind, mark = next(tokens)
    if kind != "mark" or not mark or mark not in marks:
        raise Rejected(f"not one of {marks}")
    return str(mark)


# --- schemas --------------------------------------------------------------------------------------------------------

# What a schema of the contract may say. Another keyword needs a line in `violations`, and in schema_requests.py.
KEYWORDS = {
    "type", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern", "$comment", "items", "maxItems",
    "properties", "required", "additionalProperties",
}  # fmt: skip


def types(schema: Mapping[str, Any]) -> list[str]:
    return [schema["type"]] if isinstance(schema["type"], str) else list(schema["type"])


def type_of(value: object) -> str:
    """The name that JSON Schema has for the type of a value; 1.0 is no integer here."""
    return {
        type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string", list: "array",
        dict: "object",
    }[type(value)]  # fmt: skip


def violations(schema: Mapping[str, Any], value: object, path: str = "") -> set[str]:
    """The paths of all that does not fit, as in `args[2]`."""
    assert schema.keys() <= KEYWORDS, f"a keyword that is not known here: {set(schema) - KEYWORDS}"
    if type_of(value) not in types(schema) or ("enum" in schema and value not in schema["enum"]):
        return {path}
    found: set[str] = set()
    if isinstance(value, str):
        too_long = len(value) > schema.get("maxLength", len(value))
        too_short = len(value) < schema.get("minLength", 0)
        if too_long or too_short or ("pattern" in schema and not re.search(schema["pattern"], value)):
            found.add(path)
    elif isinstance(value, int) and not isinstance(value, bool):
        if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
            found.add(path)
    elif isinstance(value, list):
        if len(value) > schema.get("maxItems", len(value)):
            found.add(path)
        for index, item in enumerate(value):
            found |= violations(schema["items"], item, f"{path}[{index}]")
    elif isinstance(value, dict) and "properties" in schema:
        assert schema["additionalProperties"] is False
        prefix = f"{path}." if path else ""
        found |= {prefix + name for name in schema.get("required", ()) if name not in value}
        for name, member in value.items():
            if name in schema["properties"]:
                found |= violations(schema["properties"][name], member, prefix + name)
            else:
                found.add(prefix + name)
    return found


def invalid_parameters(method: str, parameters: Mapping[str, Any]) -> set[str]:
    """The paths of the parameters that a call of a method of the contract must not have."""
    found = violations(METHODS[method]["parameters"], dict(parameters))
    return found or _invalid_together(method, parameters)


def _invalid_together(method: str, parameters: Mapping[str, Any]) -> set[str]:
    """What a schema cannot say."""
    found = set()
    if method == "io.machine1.OpenMachineShell":
        names = [assignment.split("=")[0] for assignment in parameters.get("env") or []]
        found |= {f"env[{index}]" for index, name in enumerate(names) if name in names[:index]}
    elif method == "io.machine1.CopyFromMachine":
        if "/../" in (parameters.get("dest") or parameters["src"]) + "/":
            found.add("dest")
    elif method in ("io.machine1.PullTar", "io.machine1.PullRaw"):
        found |= {"url"} if _is_ambiguous(parameters["url"]) else set()
    elif method in ("io.machine1.CopyToMachine", "io.machine1.BindMountMachine") and "/../" in parameters["src"] + "/":
        found.add("src")
    return found


def _is_ambiguous(url: str) -> bool:
    """Whether two readers could take an http or https URL for two."""
    rest = url.partition("://")[2]
    host = re.split("[/?]", rest, maxsplit=1)[0]
    path, _, query = rest[len(host) :].partition("?")
    host, _, port = host.rpartition(":") if re.search(r":[^\]:]*\Z", host) else (host, "", "1")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    if host[:1] == "[":
        named = host[-1:] == "]" and len(host) > 2 and set(host[1:-1]) <= set("0123456789abcdefABCDEF:.")
    else:
        named = bool(host) and set(host) <= set(letters + "._-") and host[0] in letters and host[-1] in letters
    numbered = set(port) <= set("0123456789") and 0 < len(port) < 6 and 0 < int(port) < 65536
    plain = set(path) <= set(letters + "-._~!$&'()*+,;=:@/%") and set(query) <= set(letters + "-._~!$&'()*+,;=:@/%?")
    if not (named and numbered and plain):
        return True
    for escape in (path + "?" + query).split("%")[1:]:
        number = int(escape[:2], 16) if re.match("[0-9a-fA-F]{2}", escape) else 0
        if number < 32 or number in b"/\\\x7f":
            return True
    steps = path.replace("%2e", ".").replace("%2E", ".").split("/")
    return "." in steps or ".." in steps


# --- machined -------------------------------------------------------------------------------------------------------

Message = tuple[str, str, tuple[Any, ...]]
_Given = Mapping[str, Any]


def tidy(path: str) -> str:
    """An absolute path, spelled shortly."""
    return re.sub(r"/(\.?/)+", "/", path + "/")[:-1] or "/"


def _shell(given: _Given) -> Message:
    """`$` would be replaced by the guest's systemd; without a program there are no arguments."""
    program = tidy(given["path"]) if given.get("path") else ""
    argv = (given.get("args") or [program]) if program else []
    user = given.get("user") or "root"
    escaped = ["$$".join(argument.split("$")) for argument in argv]
    body = (given["name"], "root" if user == "0" else user, program, escaped, given.get("env") or [])
    return "OpenMachineShell", "sssasas", body


def _kill(given: _Given) -> Message:
    return "KillMachine", "ssi", (given["name"], given.get("who") or "all", given.get("signal") or 15)


def _copy(member: str, given: _Given, source: str, target: str) -> Message:
    paths = given["name"], source, target
    return (f"{member}WithFlags", "ssst", (*paths, 1)) if given.get("replace") is True else (member, "sss", paths)


def _copy_from(given: _Given) -> Message:
    return _copy("CopyFromMachine", given, given["src"], tidy(given.get("dest") or given["src"]))


def _copy_to(given: _Given) -> Message:
    source = tidy(given["src"])
    return _copy("CopyToMachine", given, source, given.get("dest") or source)


def _bind(given: _Given) -> Message:
    source = tidy(given["src"])
    flags = given.get("read_only") is True, given.get("mkdir") is True
    return "BindMountMachine", "sssbb", (given["name"], source, given.get("dest") or source, *flags)


def _clone(given: _Given) -> Message:
    return "CloneImage", "ssb", (given["name"], given["dest"], given.get("read_only") is True)


def _limit(given: _Given) -> int:
    return 2**64 - 1 if given.get("limit") is None else int(given["limit"])


_MESSAGES: dict[str, Callable[[_Given], Message]] = {
    "ListMachines": lambda _: ("ListMachines", "", ()),
    "GetMachine": lambda _: ("ListMachines", "", ()),
    "GetMachineByPID": lambda given: ("GetMachineByPID", "u", (given["pid"],)),
    "PoweroffMachine": lambda given: ("KillMachine", "ssi", (given["name"], "leader", 38)),
    "RebootMachine": lambda given: ("KillMachine", "ssi", (given["name"], "leader", 2)),
    "StartMachine": lambda _: ("ListImages", "", ()),
    "UnregisterMachine": lambda given: ("UnregisterMachine", "s", (given["name"],)),
    "OpenMachineLogin": lambda given: ("OpenMachineLogin", "s", (given["name"],)),
    "OpenMachinePTY": lambda given: ("OpenMachinePTY", "s", (given["name"],)),
    "OpenMachineRootDirectory": lambda given: ("OpenMachineRootDirectory", "s", (given["name"],)),
    "BindMountMachine": _bind,
    "MapFromMachineUser": lambda given: ("MapFromMachineUser", "su", (given["name"], given["uid"])),
    "MapFromMachineGroup": lambda given: ("MapFromMachineGroup", "su", (given["name"], given["gid"])),
    "MapToMachineUser": lambda given: ("MapToMachineUser", "u", (given["uid"],)),
    "MapToMachineGroup": lambda given: ("MapToMachineGroup", "u", (given["gid"],)),
    "TerminateMachine": lambda given: ("TerminateMachine", "s", (given["name"],)),
    "KillMachine": _kill,
    "OpenMachineShell": _shell,
    "CopyFromMachine": _copy_from,
    "CopyToMachine": _copy_to,
    "ListImages": lambda _: ("ListImages", "", ()),
    "RemoveImage": lambda given: ("RemoveImage", "s", (given["name"],)),
    "CloneImage": _clone,
    "RenameImage": lambda given: ("RenameImage", "ss", (given["name"], given["dest"])),
    "GetImage": lambda _: ("ListImages", "", ()),
    "MarkImageReadOnly": lambda given: ("MarkImageReadOnly", "sb", (given["name"], given["read_only"])),
    "SetImageLimit": lambda given: ("SetImageLimit", "st", (given["name"], _limit(given))),
    "GetPool": lambda _: ("GetAll", "s", ("org.freedesktop.machine1.Manager",)),
    "SetPoolLimit": lambda given: ("SetPoolLimit", "t", (_limit(given),)),
    "CleanPool": lambda given: ("CleanPool", "s", (given["mode"],)),
}
# What changes nothing.
MAPS = {"MapFromMachineUser", "MapFromMachineGroup", "MapToMachineUser", "MapToMachineGroup"}
READS = {"ListMachines", "ListImages", "GetMachineByPID", "GetAll", *MAPS}
# What it takes to say the details of one machine or image, and to find it.
DETAILS = {"GetAll", "GetMachineAddresses", "GetMachineOSRelease", "GetMachineUIDShift"}
DETAILS |= {f"GetImage{piece}" for piece in ("Hostname", "MachineID", "MachineInfo", "OSRelease")}
# What is sent after the first message of a call.
FOLLOWING = {*DETAILS, "ListMachines", "StartUnit"}
# Methods that ask a second time even without details.
TWICE = {"io.machine1.GetMachineByPID", "io.machine1.StartMachine"}
UNGUARDED = {f"io.machine1.{name}" for name in (
    "ListMachines", "GetMachine", "GetMachineByPID", "ListImages", "GetImage", "GetPool", *MAPS,
)}  # fmt: skip
# These would go on for ever: stage.py has functions for them that end at once.
WATCHES = {f"io.machine1.{name}" for name in ("WatchMachines", "WatchImages", "WaitMachine")}
UNGUARDED |= WATCHES
# systemd-importd's, and with a file descriptor that nobody sends here: stage.py has functions that end in these errors.
TRANSFERS = {f"io.machine1.{name}": error and f"io.machine1.{error}" for name, error in (
    ("ImportTar", "TransferFailed"), ("ImportRaw", "TransferCanceled"), ("ExportTar", "TransferFailed"),
    ("ExportRaw", "TransferCanceled"), ("PullTar", "TransferFailed"), ("PullRaw", "TransferCanceled"),
    ("ListTransfers", None), ("CancelTransfer", "NoSuchTransfer"),
)}  # fmt: skip
UNGUARDED |= {"io.machine1.ListTransfers"}
# Those that may have several replies, and those that bring a descriptor.
STREAMED = {f"io.machine1.{name}" for name in ("ListMachines", "ListImages", "CleanPool")}
# Of these what can be called with `more` alone.
WANT_MORE = {"io.machine1.CleanPool"}
WITH_FD = {f"io.machine1.OpenMachine{what}" for what in ("Shell", "Login", "PTY", "RootDirectory")}
# What is not done with the host, and the error that says so.
NOT_THE_HOST = {f"io.machine1.{name}": "org.varlink.service.PermissionDenied" for name in (
    "OpenMachineLogin", "OpenMachinePTY", "OpenMachineRootDirectory",
)} | {f"io.machine1.{name}": "io.machine1.NotSupported" for name in (
    "PoweroffMachine", "RebootMachine", "StartMachine", "UnregisterMachine",
)}  # fmt: skip
# Methods that are answered without machined.
OWN = {"io.machine1.Check", "org.varlink.service.GetInfo", "org.varlink.service.GetInterfaceDescription"}
OWN |= {method for method in METHODS if method.startswith("io.systemd.service.")}
# Of these what is root's alone, where the policy has all methods.
ROOTS = {f"io.systemd.service.{method}" for method in ("Reload", "SetLogLevel", "GetEnvironment")}


def message_for(method: str, parameters: _Given) -> Message | None:
    """Member, signature and body of the first D-Bus call that a call becomes whose parameters fit."""
    if method in WATCHES | TRANSFERS.keys() or (method in NOT_THE_HOST and parameters["name"] == ".host"):
        return None
    return _MESSAGES[method.removeprefix("io.machine1.")](parameters)


def guarded(method: str, parameters: _Given) -> bool:
    """Whether polkit is asked about a call whose parameters fit."""
    return method not in UNGUARDED or parameters.get("details") is True


def outcomes(method: str, parameters: _Given) -> set[str | None]:
    """What a call that is allowed ends in, if machined does what it is asked: None is success."""
    if message_for(method, parameters) is None:
        return {NOT_THE_HOST[method]}
    name = method.removeprefix("io.machine1.")
    missing = {
        "GetMachine": "NoSuchMachine",
        "GetMachineByPID": "NoMachineForPID",
        "StartMachine": "NoSuchImage",
        "GetImage": "NoSuchImage",
        "MapToMachineUser": "NoSuchUserMapping",
        "MapToMachineGroup": "NoSuchGroupMapping",
    }.get(name)
    found: set[str | None] = {None, f"io.machine1.{missing}"} if missing else {None}
    return found | {"io.machine1.StartFailed"} if name == "StartMachine" else found
