# SPDX-License-Identifier: LGPL-2.1-or-later
"""Inputs, exact outcomes, and what sd-varlink makes of the same.

The measure is sd-varlink, where it has an answer: a row says nothing about it if it does the same, and else what it
does instead and why the bridge does not. "UAPI.20" is the specification of Varlink. The rows are asked by root.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge import __version__
from bridge.contract import Contract
from bridge.framing import ROOT

Envelope = Mapping[str, Any]
#: Of each reply "success" or the error's name, then perhaps "closed".
Kinds = tuple[str, ...]

GET_INFO = "org.varlink.service.GetInfo"
DESCRIBE = "org.varlink.service.GetInterfaceDescription"
INTERFACE_NOT_FOUND = "org.varlink.service.InterfaceNotFound"
METHOD_NOT_FOUND = "org.varlink.service.MethodNotFound"
METHOD_NOT_IMPLEMENTED = "org.varlink.service.MethodNotImplemented"
INVALID_PARAMETER = "org.varlink.service.InvalidParameter"
NO_SUCH_MACHINE = "io.machine1.NoSuchMachine"
SYSTEM = "io.systemd.System"


class Ending(enum.Enum):
    """What follows the bytes of a row."""

    SENTINEL = "another call, to see what comes before its reply"
    HALF_CLOSE = "shutdown(2) for writing"
    CLOSE = "close(2) without reading"


@dataclass(frozen=True)
class Outcome:
    """Whole replies, and whether the service hung up then; or the kernel took no file descriptors for it."""

    replies: tuple[Envelope, ...] = ()
    closed: bool = False
    refused_fds: bool = False

    @property
    def kinds(self) -> Kinds:
        """Its class: errors of machined's own Varlink interface count as ours of the same name."""
        names = [reply.get("error", "success").replace("io.systemd.Machine.", "io.machine1.") for reply in self.replies]
        return (*names, *["closed"] * self.closed, *["refused file descriptors"] * self.refused_fds)


@dataclass(frozen=True)
class Row:
    """`sent` in pieces, one send(2) each. `native` is what sd-varlink does instead, with the reason in `why`."""

    id: str
    sent: tuple[bytes, ...]
    outcome: Outcome
    native: Kinds | None = None
    why: str = ""
    #: Versions of systemd that do something else again.
    native_versions: Mapping[int, Kinds] = field(default_factory=dict)
    #: The same for a native service, where the method of the bridge has another name there.
    native_sent: tuple[bytes, ...] | None = None
    #: What has to reach machined: D-Bus member and arguments.
    reaches: tuple[tuple[str, tuple[object, ...]], ...] = ()
    ending: Ending = Ending.SENTINEL
    fds: int = 0

    def native_kinds(self, version: int) -> Kinds:
        return self.native_versions.get(version, self.outcome.kinds if self.native is None else self.native)


# --- replies --------------------------------------------------------------------------------------------------------

_INFO: Envelope = {
    "parameters": {
        "vendor": "machine1-bridge",
        "product": "machine1-bridge",
        "version": f"{__version__} (io.machine1 {Contract().version})",
        "url": "man:machine1-bridge(8)",
        "interfaces": ["org.varlink.service", "io.machine1", "io.systemd.service"],
    }
}
_DESCRIPTION: Envelope = {"parameters": {"description": Contract().interfaces["io.machine1"]}}


def _error(name: str, /, **parameters: str) -> Envelope:
    return {"error": name, "parameters": parameters}


def _invalid(parameter: str, reason: str) -> Outcome:
    return Outcome((_error(INVALID_PARAMETER, parameter=parameter, reason=reason),))


def _no_interface(interface: str) -> Outcome:
    return Outcome((_error(INTERFACE_NOT_FOUND, interface=interface),))


def _no_method(method: str) -> Outcome:
    return Outcome((_error(METHOD_NOT_FOUND, method=method),))


CLOSED = Outcome(closed=True)
NOTHING = Outcome()
INFO = Outcome((_INFO,))
DESCRIPTION = Outcome((_DESCRIPTION,))
#: Of a value that is read, and is then that of no parameter.
READ = _invalid("x", "is not a parameter of this method")
NO_INTEGER = _invalid("signal", "must be an integer")
NO_MACHINE = Outcome((_error(NO_SUCH_MACHINE, name="nope"),))

# --- calls ----------------------------------------------------------------------------------------------------------


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _call(method: str, parameters: str | bytes = "", more: str | bytes = "") -> bytes:
    """A call, its parameters and further members as JSON."""
    members = b',"parameters":' + _bytes(parameters) if parameters else b""
    return b'{"method":"' + method.encode() + b'"' + members + _bytes(more) + b"}\0"


def _get_info(members: str | bytes) -> bytes:
    """GetInfo with further members: `,"key":value`."""
    return _call(GET_INFO, more=members)


def _value(text: str | bytes) -> bytes:
    """GetInfo with this as the value of a parameter that it does not have."""
    return _call(GET_INFO, b'{"x":' + _bytes(text) + b"}")


def _describe(text: str | bytes) -> bytes:
    """GetInterfaceDescription of this, between quotes: the reply holds how it was read."""
    return _call(DESCRIBE, b'{"interface":"' + _bytes(text) + b'"}')


def _row(
    name: str,
    sent: bytes | tuple[bytes, ...],
    outcome: Outcome,
    native: Kinds | None = None,
    why: str = "",
    **more: Any,  # noqa: ANN401  what else a row has
) -> Row:
    return Row(name, (sent,) if isinstance(sent, bytes) else sent, outcome, native, why, **more)


def _rows(
    name: str, outcome: Outcome, sent: Mapping[str, bytes], native: Kinds | None = None, why: str = ""
) -> tuple[Row, ...]:
    """Rows that differ in what is sent alone."""
    return tuple(_row(f"{name}-{key}", message, outcome, native, why) for key, message in sent.items())


_BARE = _get_info("")
_UNFINISHED = _BARE[:-1]

# --- one message ----------------------------------------------------------------------------------------------------

_SHAPES = (
    _row("call", _BARE, INFO),
    _row(
        "call-with-parameters",
        _describe("io.machine1"),
        DESCRIPTION,
        native_sent=(_describe("org.varlink.service"),),
    ),
    *_rows(
        "empty",
        CLOSED,
        {"nul": b"\0", "three-nuls": b"\0\0\0", "space": b" \0", "newline": b"\n\0"},
    ),
    *_rows(
        "not-an-object",
        CLOSED,
        {
            "array": b"[]\0",
            "array-of-a-call": b"[" + _UNFINISHED + b"]\0",
            "array-of-calls": b"[" + _UNFINISHED + b"," + _UNFINISHED + b"]\0",
            "null": b"null\0",
            "true": b"true\0",
            "number": b"7\0",
            "string": b'"method"\0',
            "word": b"hello\0",
        },
    ),
    *_rows(
        "no-method",
        CLOSED,
        {
            "empty-object": b"{}\0",
            "parameters-alone": b'{"parameters":{}}\0',
            "null": b'{"method":null}\0',
            "number": b'{"method":7}\0',
            "array": b'{"method":["org.varlink.service.GetInfo"]}\0',
        },
    ),
    *_rows(
        "whitespace",
        INFO,
        {
            "before": b" \t\r\n" + _BARE,
            "after": _UNFINISHED + b" \t\r\n\0",
            "within": b'{ "method"\t:\n"' + GET_INFO.encode() + b'"\r, "more" : false }\0',
        },
    ),
    *_rows(
        "no-whitespace-of-json",
        CLOSED,
        {
            "form-feed": b"\f" + _BARE,
            "vertical-tab": b"\v" + _BARE,
            "no-break-space": b"\xc2\xa0" + _BARE,
            "form-feed-within": b"{\f" + _BARE[1:],
        },
    ),
    *_rows(
        "byte-order-mark",
        CLOSED,
        {"utf-8": b"\xef\xbb\xbf" + _BARE, "utf-16": _UNFINISHED.decode().encode("utf-16")},
    ),
    *_rows(
        "trailing",
        CLOSED,
        {
            "call": _UNFINISHED + _BARE,
            "letter": _UNFINISHED + b"x\0",
            "bracket": _UNFINISHED + b"}\0",
            "comma": _UNFINISHED + b",\0",
            "null": _UNFINISHED + b"null\0",
        },
    ),
    *_rows(
        "comment",
        CLOSED,
        {
            "c": b"/* x */" + _BARE,
            "c++": b"// x\n" + _BARE,
            "shell": b"# x\n" + _BARE,
            "within": b"{/**/" + _BARE[1:],
            "after": _UNFINISHED + b"/**/\0",
        },
    ),
    *_rows(
        "not-json",
        CLOSED,
        {
            "single-quotes": _BARE.replace(b'"', b"'"),
            "no-quotes": b'{method:"org.varlink.service.GetInfo"}\0',
            "comma-before-the-end": _get_info(","),
            "comma-in-array": _value("[1,]"),
            "no-colon": b'{"method" "org.varlink.service.GetInfo"}\0',
            "no-comma": b'{"method":"org.varlink.service.GetInfo" "more":true}\0',
            "not-closed": _UNFINISHED[:-1] + b"\0",
            "string-not-closed": _UNFINISHED[:-2] + b"\0",
            "closed-otherwise": _value("[}"),
            "two-strings": _value('"a" "b"'),
            "True": _value("True"),
            "TRUE": _value("TRUE"),
            "None": _value("None"),
            "undefined": _value("undefined"),
            "nothing": _value(""),
        },
    ),
)

# --- the envelope ---------------------------------------------------------------------------------------------------

_TWICE = "a key twice is read differently by others: it ends the connection wherever it is, as in the envelope"
_FALSE = (
    "sd-varlink takes false for a flag beside a true one only if it comes first, and once more; the order of keys "
    "means nothing in JSON, and false is what an absent flag is"
)
_EXTENSION = "UAPI.20: implementations should ignore objects of vendors, under a key with a dot"
_NO_UPGRADE = "UAPI.20: a successful reply would hand the connection over; sd-varlink goes on as if nothing was asked"
_NO_INTERFACE = "UAPI.20: MethodNotFound is for a known interface; sd-varlink says it of any"

_ENVELOPE = (
    *_rows(
        "twice",
        CLOSED,
        {
            "method": _get_info(f',"method":"{GET_INFO}"'),
            "method-escaped": _get_info(f',"m\\u0065thod":"{GET_INFO}"'),
            "parameters": _get_info(',"parameters":{},"parameters":{}'),
            "more": _get_info(',"more":true,"more":true'),
            "extension": _get_info(',"com.example":{},"com.example":{}'),
            "in-extension": _get_info(',"com.example":{"a":1,"a":1}'),
        },
    ),
    _row("twice-false", _get_info(',"more":false,"more":false'), CLOSED, ("success",), _TWICE),
    *_rows(
        "twice-in-parameters",
        CLOSED,
        {
            "same": _call(DESCRIBE, '{"interface":"org.varlink.service","interface":"org.varlink.service"}'),
            "other": _call(DESCRIBE, '{"interface":"a.b","interface":"org.varlink.service"}'),
            "escaped": _call(DESCRIBE, '{"interface":"a.b","\\u0069nterface":"org.varlink.service"}'),
        },
        (SYSTEM,),
        _TWICE,
    ),
    _row(
        "twice-in-parameters-null",
        _call(DESCRIBE, '{"interface":null,"interface":"org.varlink.service"}'),
        CLOSED,
        (INVALID_PARAMETER,),
        _TWICE,
    ),
    *_rows(
        "twice-deep-in-parameters",
        CLOSED,
        {"object": _value('{"a":1,"a":1}'), "in-array": _value('[{"a":1,"a":2}]')},
        (INVALID_PARAMETER,),
        _TWICE,
    ),
    *_rows(
        "unknown-key",
        CLOSED,
        {
            "value": _get_info(',"unknown":1'),
            "null": _get_info(',"unknown":null'),
            "object": _get_info(',"unknown":{}'),
            "empty": _get_info(',"":1'),
            "of-a-reply": _get_info(',"continues":false'),
            "of-an-error": _get_info(',"error":null'),
            "upper-case-flag": _get_info(',"More":true'),
            "upper-case-method": _get_info(',"Method":"a.B"'),
            "dot-and-number": _get_info(',"com.example":1'),
            "dot-and-null": _get_info(',"com.example":null'),
            "dot-and-array": _get_info(',"com.example":[]'),
        },
    ),
    *_rows(
        "extension",
        INFO,
        {
            "empty": _get_info(',"com.example":{}'),
            "full": _get_info(',"com.example.trace":{"id":1,"b":[null]}'),
            "first": b'{"com.example":{},' + _BARE[1:],
        },
        ("closed",),
        _EXTENSION,
    ),
    *_rows(
        "parameters",
        INFO,
        {
            "null": _call(GET_INFO, "null"),
            "empty": _call(GET_INFO, "{}"),
            "first": b'{"parameters":{},' + _BARE[1:],
        },
    ),
    *_rows(
        "parameters-no-object",
        CLOSED,
        {
            "array": _call(GET_INFO, "[]"),
            "full-array": _call(GET_INFO, '["a"]'),
            "string": _call(GET_INFO, '"a"'),
            "empty-string": _call(GET_INFO, '""'),
            "zero": _call(GET_INFO, "0"),
            "true": _call(GET_INFO, "true"),
            "false": _call(GET_INFO, "false"),
        },
    ),
    *_rows(
        "unknown-parameter",
        READ,
        {
            "alone": _value("1"),
            "null": _value("null"),
        },
    ),
    _row(
        "unknown-parameter-beside",
        _call(DESCRIBE, '{"interface":"org.varlink.service","x":1}'),
        READ,
    ),
    _row(
        "unknown-parameter-dot",
        _call(GET_INFO, '{"com.example":{}}'),
        _invalid("com.example", "is not a parameter of this method"),
    ),
    _row(
        "unknown-parameter-upper-case",
        _call(DESCRIBE, '{"Interface":"org.varlink.service"}'),
        _invalid("interface", "is required"),
    ),
    *_rows(
        "parameter-missing",
        _invalid("interface", "is required"),
        {"all": _call(DESCRIBE), "null": _call(DESCRIBE, "null"), "empty": _call(DESCRIBE, "{}")},
    ),
    *_rows(
        "parameter-of-wrong-type",
        _invalid("interface", "must be a string"),
        {
            "null": _call(DESCRIBE, '{"interface":null}'),
            "number": _call(DESCRIBE, '{"interface":1}'),
            "array": _call(DESCRIBE, '{"interface":["org.varlink.service"]}'),
            "object": _call(DESCRIBE, '{"interface":{}}'),
            "true": _call(DESCRIBE, '{"interface":true}'),
        },
    ),
)

_FLAG = ("more", "oneway", "upgrade")
_NOT_BOOLEAN = ("null", "0", "1", "1.0", '"true"', '""', "[]", "{}", "[true]")
_NOT_IMPLEMENTED = Outcome((_error(METHOD_NOT_IMPLEMENTED, method=GET_INFO),))
_UPGRADE_UNKNOWN = {252: ("closed",), 257: ("closed",)}

_FLAGS = (
    _row("more", _get_info(',"more":true'), INFO),
    _row("more-error", _call(DESCRIBE, '{"interface":"a.b"}', ',"more":true'), _no_interface("a.b")),
    _row("more-false", _get_info(',"more":false'), INFO),
    _row("oneway", _get_info(',"oneway":true'), NOTHING),
    _row("oneway-error", _call(DESCRIBE, '{"interface":"a.b"}', ',"oneway":true'), NOTHING),
    _row("oneway-invalid", _call(DESCRIBE, '{"interface":1}', ',"oneway":true'), NOTHING),
    _row("oneway-unknown-method", _call("com.example.Nope", more=',"oneway":true'), NOTHING),
    _row("oneway-false", _get_info(',"oneway":false'), INFO),
    _row(
        "upgrade",
        _get_info(',"upgrade":true'),
        _NOT_IMPLEMENTED,
        ("success",),
        _NO_UPGRADE,
        native_versions=_UPGRADE_UNKNOWN,
    ),
    _row(
        "upgrade-false",
        _get_info(',"upgrade":false'),
        INFO,
        why="UAPI.20 has the flag, sd-varlink 257 has it not yet",
        native_versions=_UPGRADE_UNKNOWN,
    ),
    *(_row(f"{flag}-is-{value}", _get_info(f',"{flag}":{value}'), CLOSED) for flag in _FLAG for value in _NOT_BOOLEAN),
    *(
        _row(f"{one}-and-{other}", _get_info(f',"{one}":true,"{other}":true'), CLOSED)
        for one in _FLAG
        for other in _FLAG
        if one != other
    ),
    _row("all-flags", _get_info(',"more":true,"oneway":true,"upgrade":true'), CLOSED),
    _row("more-after-false", _get_info(',"oneway":false,"more":true'), INFO),
    _row("oneway-after-false", _get_info(',"more":false,"oneway":true'), NOTHING),
    _row("more-before-false", _get_info(',"more":true,"oneway":false'), INFO, ("closed",), _FALSE),
    _row("oneway-before-false", _get_info(',"oneway":true,"more":false'), NOTHING, ("closed",), _FALSE),
)

_METHODS = (
    *(
        _row(f"method-{name}", _call(method), _no_method(method))
        for name, method in {
            "unknown": "org.varlink.service.Nope",
            "lower-case": "org.varlink.service.getInfo",
            "upper-case": "org.varlink.service.GETINFO",
            "trailing-dot": "org.varlink.service.",
            "trailing-space": "org.varlink.service.GetInfo ",
            "very-long": "org.varlink.service." + "B" * 1_000_000,
            "digit": "org.varlink.service.1",
            "not-ascii": "org.varlink.service.Gétinfo",
        }.items()
    ),
    *(
        _row(
            f"method-{name}",
            _call(method),
            _no_interface(method.rpartition(".")[0]),
            (METHOD_NOT_FOUND,),
            _NO_INTERFACE,
        )
        for name, method in {
            "of-unknown-interface": "com.example.Nope",
            "empty": "",
            "no-dot": "GetInfo",
            "dot": ".",
            "leading-dot": ".GetInfo",
            "leading-space": " org.varlink.service.GetInfo",
            "interface-alone": "org.varlink.service",
            "interface-in-upper-case": "Org.Varlink.Service.GetInfo",
            "two-dots": "org.varlink.service..GetInfo",
            "very-long-interface": "a." * 200_000 + "B",
            "interface-not-ascii": "ä.B",
        }.items()
    ),
    _row("method-escaped", _call("org.varlink.service.G\\u0065tInfo"), INFO),
    _row("method-with-newline", _call("org.varlink.service.GetInfo\\n"), _no_method("org.varlink.service.GetInfo\n")),
)

# --- texts ----------------------------------------------------------------------------------------------------------

_DELETE = "RFC 8259 lets it stand unescaped, and Python's encoder, for one, writes it so"
_NONCHARACTERS = "\ufdd0\ufdef\ufffe\uffff\U0001fffe\U0001ffff\U0010fffe\U0010ffff"

_TEXTS = (
    *(
        _row(f"text-{name}", _describe(sent), _no_interface(read))
        for name, sent, read in (
            ("empty", b"", ""),
            ("utf-8", "aä€😀".encode(), "aä€😀"),
            ("surrogate-pair", b"\\ud83d\\ude00", "😀"),
            ("surrogate-pair-upper-case", b"\\uD83D\\uDE00", "😀"),
            ("last-character", b"\xf4\x8f\xbf\xbd", "\U0010fffd"),
            ("beside-noncharacters", "\ufdcf\ufdf0\ufffd\U00010000".encode(), "\ufdcf\ufdf0\ufffd\U00010000"),
            ("private-and-unassigned", "\ue000\u0378".encode(), "\ue000\u0378"),
            ("byte-order-mark-within", b"a\xef\xbb\xbf", "a\ufeff"),
            ("right-to-left-override", "a\u202eb".encode(), "a\u202eb"),
            ("delete-escaped", b"a\\u007f", "a\x7f"),
            ("c1-control", b"a\xc2\x80", "a\x80"),
            ("control-escaped", b"a\\u0001\\b\\f\\n\\r\\t", "a\x01\b\f\n\r\t"),
            ("escapes", b'\\"\\\\\\/', '"\\/'),
            ("backslash-u-escaped", b"\\\\u0000\\\\ud800", "\\u0000\\ud800"),
            ("separators", "\u2028\u2029".encode(), "\u2028\u2029"),
        )
    ),
    _row("text-delete", _describe(b"a\x7f"), _no_interface("a\x7f"), ("closed",), _DELETE),
    *_rows(
        "noncharacter",
        CLOSED,
        {
            **{f"{ord(character):x}": _describe(character) for character in _NONCHARACTERS},
            "escaped": _describe("\\ufffe"),
            "escaped-in-a-block": _describe("\\ufdd0"),
            "escaped-as-a-pair": _describe("\\udbff\\udfff"),
            "in-a-key": _call(GET_INFO, '{"\uffff":1}'),
            "in-the-method": _call("org.varlink.service.\uffff"),
            "in-an-extension": _get_info(',"com.example":{"a":"\uffff"}'),
        },
    ),
    *_rows(
        "no-utf-8",
        CLOSED,
        {
            "overlong-2": _describe(b"\xc0\xaf"),
            "overlong-nul": _describe(b"\xc0\x80"),
            "overlong-3": _describe(b"\xe0\x80\xaf"),
            "overlong-4": _describe(b"\xf0\x80\x80\xaf"),
            "high-surrogate": _describe(b"\xed\xa0\x80"),
            "low-surrogate": _describe(b"\xed\xb0\x80"),
            "surrogates": _describe(b"\xed\xa0\xbd\xed\xb8\x80"),
            "1-of-2": _describe(b"\xc3"),
            "2-of-3": _describe(b"\xe2\x82"),
            "3-of-4": _describe(b"\xf0\x9f\x98"),
            "continuation": _describe(b"\x80"),
            "ff": _describe(b"\xff"),
            "beyond-unicode": _describe(b"\xf4\x90\x80\x80"),
            "five-bytes": _describe(b"\xf8\x88\x80\x80\x80"),
            "latin-1": _describe("ä".encode("latin-1")),
            "in-a-key": _call(GET_INFO, b'{"\xff":1}'),
            "in-the-method": b'{"method":"org.varlink.service.GetInfo\xff"}\0',
            "in-an-extension": _get_info(b',"com.example":{"a":"\xff"}'),
            "outside-strings": b"\xff" + _BARE,
        },
    ),
    *_rows(
        "half-a-surrogate-pair",
        CLOSED,
        {
            "high": _describe("\\ud800"),
            "low": _describe("\\udc00"),
            "swapped": _describe("\\ude00\\ud83d"),
            "two-high": _describe("\\ud83d\\ud83d"),
            "high-and-letter": _describe("\\ud800a"),
            "high-and-utf-8": _describe(b"\\ud83d\xed\xb8\x80"),
            "high-after-backslash": _describe("\\\\\\ud800"),
            "in-a-key": _call(GET_INFO, '{"\\ud800":1}'),
            "in-the-method": _call("org.varlink.service.\\ud800"),
            "in-an-extension": _get_info(',"com.example":{"a":"\\ud800"}'),
            "deep": _value('[[{"a":["\\udfff"]}]]'),
        },
    ),
    *_rows(
        "nul-escaped",
        CLOSED,
        {
            "within": _describe("a\\u0000b"),
            "alone": _describe("\\u0000"),
            "at-the-end": _describe("org.varlink.service\\u0000"),
            "in-a-key": _call(GET_INFO, '{"a\\u0000":1}'),
            "in-the-method": _call("org.varlink.service.GetInfo\\u0000"),
            "in-an-extension": _get_info(',"com.example":{"a":"\\u0000"}'),
        },
    ),
    _row("nul-within", _describe(b"a\0b"), CLOSED),
    *_rows(
        "control",
        CLOSED,
        {
            "01": _describe(b"a\x01"),
            "newline": _describe(b"a\n"),
            "tab": _describe(b"a\t"),
            "carriage-return": _describe(b"a\r"),
            "1f": _describe(b"a\x1f"),
            "in-a-key": _call(GET_INFO, b'{"a\n":1}'),
        },
    ),
    *_rows(
        "escape",
        CLOSED,
        {
            "unknown": _describe("\\x41"),
            "single-quote": _describe("\\'"),
            "short": _describe("\\u12"),
            "no-digit": _describe("\\u12g4"),
            "sign": _describe("\\u+041"),
            "space": _describe("\\u 041"),
            "underscore": _describe("\\u0_41"),
            "upper-case": _describe("\\U0041"),
            "newline": _describe("\\\n"),
            "octal": _describe("\\101"),
            "short-second-half": _describe("\\ud83d\\ude0"),
        },
    ),
    _row("long-text", _call(GET_INFO, '{"x":"%s"}' % ("a" * 1_000_000)), READ),
    _row(
        "long-key",
        _call(GET_INFO, '{"%s":1}' % ("a" * 1_000_000)),
        _invalid("a" * 1_000_000, "is not a parameter of this method"),
    ),
)

# --- numbers --------------------------------------------------------------------------------------------------------


def _kill(signal: str) -> tuple[bytes, bytes]:
    """A signal to a machine that does not exist: for the bridge, for machined."""
    ours = _call("io.machine1.KillMachine", f'{{"name":"nope","who":"leader","signal":{signal}}}')
    return ours, _call("io.systemd.Machine.Kill", f'{{"name":"nope","whom":"leader","signal":{signal}}}')


def _signal(
    name: str, signal: str, outcome: Outcome, native: Kinds | None = None, why: str = "", reaches: int | None = None
) -> Row:
    ours, theirs = _kill(signal)
    call = () if reaches is None else (("KillMachine", ("nope", "leader", reaches)),)
    return _row(name, ours, outcome, native, why, native_sent=(theirs,), reaches=call)


_NO_FRACTION = "UAPI.20: an int has neither fraction nor exponent"
_NO_TEXT = "UAPI.20 allows to take a text of digits for an int; a client that needs it is not known"
_SIGNAL_DEFAULT = "signal is ?int in io.machine1, 15 where it is absent or null"

_NUMBERS = (
    *_rows(
        "number",
        READ,
        {
            name: _value(name)
            for name in (
                *("0", "-0", "-1", "0.0", "-0.0", "1.0", "1e0", "1E2", "1e+2", "1e-2", "1.5e1", "1e308", "1e309"),
                *("1e400", "-1e400", "1e-400", "1e99999", "1e-99999"),
                *(str(2**63 - 1), str(2**63), str(2**64 - 1), str(2**64), str(-(2**63)), str(-(2**63) - 1)),
                *(str(2**53 + 1), str(2**128), str(-(2**128))),
            )
        }
        | {
            "5000-digits": _value("9" * 5000),
            "minus-5000-digits": _value("-" + "9" * 5000),
            "5000-digits-of-a-fraction": _value("0." + "1" * 5000),
            "5000-digits-before-a-fraction": _value("9" * 5000 + ".5"),
            "a-million-digits": _value("9" * 1_000_000),
        },
    ),
    *_rows(
        "no-number",
        CLOSED,
        {
            name: _value(name)
            for name in (
                *("NaN", "nan", "Infinity", "-Infinity", "inf", "-inf", "-NaN", "1.#INF"),
                *("00", "01", "-01", "-00", "00.5", "+1", "--1", "-", ".5", "-.5", "1.", "-1.", "1.e2", "1e", "1e+"),
                *(
                    "1.0e",
                    "0x10",
                    "0b1",
                    "0o7",
                    "1_0",
                    "1,0",
                    "1-1",
                    "1 0",
                    "- 1",
                    "1f",
                    "1L",
                    "\u0661",
                    "\uff11",
                    "1e1.5",
                ),
            )
        },
    ),
    _signal("signal", "15", NO_MACHINE, reaches=15),
    _signal("signal-least", "1", NO_MACHINE, reaches=1),
    _signal("signal-most", "64", NO_MACHINE, reaches=64),
    _signal("signal-0", "0", _invalid("signal", "must be at least 1")),
    _signal("signal-minus-0", "-0", _invalid("signal", "must be at least 1")),
    _signal("signal-negative", "-1", _invalid("signal", "must be at least 1")),
    _signal("signal-65", "65", _invalid("signal", "must be at most 64")),
    *(
        _signal(f"signal-{name}", str(number), _invalid("signal", reason))
        for name, number, reason in (
            ("2^31", 2**31, "must be at most 64"),
            ("2^32+15", 2**32 + 15, "must be at most 64"),
            ("2^63-1", 2**63 - 1, "must be at most 64"),
            ("2^63", 2**63, "must be at most 64"),
            ("2^64-1", 2**64 - 1, "must be at most 64"),
            ("-2^31", -(2**31), "must be at least 1"),
            ("-2^63", -(2**63), "must be at least 1"),
        )
    ),
    *(
        _signal(f"signal-{name}", str(number), NO_INTEGER)
        for name, number in (
            ("2^64", 2**64),
            ("2^64+15", 2**64 + 15),
            ("-2^63-1", -(2**63) - 1),
            ("15-2^64", 15 - 2**64),
            ("2^128+15", 2**128 + 15),
            ("5000-digits", "9" * 5000),
            ("minus-5000-digits", "-" + "9" * 5000),
        )
    ),
    *(
        _signal(f"signal-{text}", text, NO_INTEGER, (NO_SUCH_MACHINE,), _NO_FRACTION)
        for text in ("1.0", "15.0", "1e0", "1e1", "1.5e1", "150e-1", "1E1")
    ),
    *(
        _signal(f"signal-{text}", text, NO_INTEGER)
        for text in (
            *("true", "false", "[15]", "{}", '""', '"a"', "15.5", "1e400", "-1e400", "1e-400", "0.0", "1e2"),
            *("1e99999", '"1.0"', '"0x1g"'),
        )
    ),
    _signal('signal-"15"', '"15"', NO_INTEGER, (NO_SUCH_MACHINE,), _NO_TEXT),
    _signal("signal-null", "null", NO_MACHINE, (INVALID_PARAMETER,), _SIGNAL_DEFAULT, reaches=15),
)

# --- sizes ----------------------------------------------------------------------------------------------------------

_MIB = 1024 * 1024
_SHALLOW = "the interface is three levels deep; sd-varlink reads 2048, until 257 one more"
_SMALL = "no call needs more than ARG_MAX; sd-varlink reads 16 MiB, and up to 2 more as its buffer happens to grow"


def _nested(levels: int, opening: str = "[", closing: str = "]") -> bytes:
    """A message as many levels deep: itself, its parameters, and arrays or objects."""
    return _value(opening * (levels - 2) + ("1" if opening != "[" else "") + closing * (levels - 2))


def _padded(size: int) -> bytes:
    """A message of so many bytes before its NUL."""
    return _UNFINISHED + b" " * (size - len(_UNFINISHED)) + b"\0"


_SIZES = (
    _row("deep-arrays", _nested(ROOT.depth), READ),
    _row("deep-objects", _nested(ROOT.depth, '{"a":', "}"), READ),
    _row("deep-and-broad", _value("[[]," + "[" * (ROOT.depth - 3) + "]" * (ROOT.depth - 3) + ",{}]"), READ),
    _row("too-deep-arrays", _nested(ROOT.depth + 1), CLOSED, (INVALID_PARAMETER,), _SHALLOW),
    _row("too-deep-objects", _nested(ROOT.depth + 1, '{"a":', "}"), CLOSED, (INVALID_PARAMETER,), _SHALLOW),
    _row("too-deep-for-recursion", _nested(2048), CLOSED, (INVALID_PARAMETER,), _SHALLOW),
    _row(
        "too-deep-from-262-on",
        _nested(2049),
        CLOSED,
        why=_SHALLOW,
        native_versions={252: (INVALID_PARAMETER,), 257: (INVALID_PARAMETER,)},
    ),
    _row("too-deep-for-all", _nested(2050), CLOSED),
    _row("too-deep-by-far", _nested(100_000), CLOSED),
    _row("too-deep-not-closed", b"[" * 100_000 + b"\0", CLOSED),
    _row("too-deep-objects-not-closed", b'{"a":' * 100_000 + b"\0", CLOSED),
    _row("brackets-in-a-text", _value('"%s"' % ("[{" * 5000)), READ),
    _row("brackets-after-an-escaped-quote", _value('"\\"%s"' % ("[{" * 5000)), READ),
    _row("largest-message", _padded(ROOT.message_bytes), INFO),
    _row("too-large-message", _padded(ROOT.message_bytes + 1), CLOSED, ("success",), _SMALL),
    _row("largest-message-of-sd-varlink", _padded(16 * _MIB), CLOSED, ("success",), _SMALL),
    _row("too-large-for-all", _padded(20 * _MIB), CLOSED),
    _row("endless-message", b"x" * 20 * _MIB, CLOSED),
)

# --- the stream -----------------------------------------------------------------------------------------------------

_HALF = _BARE[:20]
_DESCRIBE_UNKNOWN = _describe("a.b")

_STREAM = (
    _row("byte-by-byte", tuple(bytes([byte]) for byte in _BARE), INFO),
    _row("byte-by-byte-utf-8", tuple(bytes([byte]) for byte in _describe("ä€😀")), _no_interface("ä€😀")),
    _row("nul-by-itself", (_UNFINISHED, b"\0"), INFO),
    _row("many-in-one-packet", _BARE * 100, Outcome((_INFO,) * 100)),
    _row(
        "in-order",
        _DESCRIBE_UNKNOWN + _BARE + _call("org.varlink.service.Nope") + _BARE,
        Outcome((*_no_interface("a.b").replies, _INFO, *_no_method("org.varlink.service.Nope").replies, _INFO)),
    ),
    _row(
        "oneway-among-others",
        _BARE + _get_info(',"oneway":true') + _DESCRIBE_UNKNOWN,
        Outcome((_INFO, *_no_interface("a.b").replies)),
    ),
    _row("across-packets", (_BARE + _HALF, _BARE[20:] + _BARE[:-1], b"\0"), Outcome((_INFO,) * 3)),
    _row("good-then-bad", _BARE + b"x\0", Outcome((_INFO,), closed=True)),
    _row("good-then-empty", _BARE + b"\0", Outcome((_INFO,), closed=True)),
    _row("good-then-bad-later", (_BARE, b"x\0"), Outcome((_INFO,), closed=True)),
    _row("bad-then-good", b"x\0" + _BARE, CLOSED),
    _row("half-then-half-close", _HALF, CLOSED, ending=Ending.HALF_CLOSE),
    _row("no-nul-then-half-close", _UNFINISHED, CLOSED, ending=Ending.HALF_CLOSE),
    _row("whole-then-half-close", _BARE, Outcome((_INFO,), closed=True), ending=Ending.HALF_CLOSE),
    _row("two-then-half-close", _BARE * 2, Outcome((_INFO, _INFO), closed=True), ending=Ending.HALF_CLOSE),
    _row("whole-and-half-then-half-close", _BARE + _HALF, Outcome((_INFO,), closed=True), ending=Ending.HALF_CLOSE),
    _row("nothing-then-half-close", b"", CLOSED, ending=Ending.HALF_CLOSE),
    _row("nothing-then-close", b"", NOTHING, ending=Ending.CLOSE),
    _row("half-then-close", _HALF, NOTHING, ending=Ending.CLOSE),
    _row("whole-then-close", _BARE, NOTHING, ending=Ending.CLOSE),
    _row("many-then-close", _BARE * 100, NOTHING, ending=Ending.CLOSE),
    _row("one-file-descriptor", _BARE, INFO, fds=1),
    _row("most-file-descriptors", _BARE, INFO, fds=253),
    _row("file-descriptor-with-half-a-message", _HALF, CLOSED, fds=1, ending=Ending.HALF_CLOSE),
    _row("file-descriptors-with-a-bad-message", b"x\0", CLOSED, fds=253),
    _row("file-descriptors-then-close", _BARE, NOTHING, fds=253, ending=Ending.CLOSE),
)

ROWS = (*_SHAPES, *_ENVELOPE, *_FLAGS, *_METHODS, *_TEXTS, *_NUMBERS, *_SIZES, *_STREAM)
