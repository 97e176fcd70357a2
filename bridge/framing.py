# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bytes to calls and replies to bytes (UAPI.20, "Varlink"). No I/O happens here.

Whatever is not a well-formed call raises ProtocolError, after which nothing on that connection can be trusted:
the caller closes it, as sd-varlink does. Well-formed calls for the wrong thing are answered, elsewhere.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jeepney.fds import FileDescriptor

from .messages import Call, Reply


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large a call may be: its bytes, its levels of objects and lists, and the items and members of all of them.

    The defaults are root's. A shell's arguments can amount to 2 MiB (ARG_MAX, execve(2)), and there may be twice 16384
    of them; the deepest call has five levels, Check of a shell. sd-varlink takes 16 MiB and 2048 levels.
    """

    message_bytes: int = 4 * 1024 * 1024
    depth: int = 32
    items: int = 40_000


ROOT = Bounds()

# Of one call. No method takes more.
FDS_MAX = 1

# A string of JSON, also one that never ends, so that the search is linear whatever comes.
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_AS_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")

# Errors that generated clients have types for.
_TYPED = ("io.machine1.", "org.varlink.service.", "io.systemd.service.")
_FLAGS = ("more", "oneway", "upgrade")
_KEYS = frozenset(("method", "parameters", *_FLAGS))

# What no text may hold: NUL, which ends strings everywhere behind this service; halves of surrogate pairs, which are no
# characters; and Unicode's noncharacters, which sd-bus, and so machined, cannot read. Those beyond 16 bits are looked
# at only where there may be one: a set that holds them all takes three times as long.
_BEYOND = "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(1, 17))
_NEVER = re.compile(f"[\0\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]|[\U0001fffe-\U0010ffff](?<=[{_BEYOND}])")


class ProtocolError(Exception):
    """The client does not speak Varlink, or not well enough."""


class Reader:
    """Cuts a stream of bytes at the NUL that ends each message. File descriptors in it are its own until taken."""

    def __init__(self, message_max: int = ROOT.message_bytes) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._message_max = message_max
        self._taken = 0  # messages
        self._fds: dict[int, list[FileDescriptor]] = {}  # by the number of their message

    def feed(self, data: bytes, received: Sequence[FileDescriptor] = ()) -> None:
        """What one recvmsg(2) returned. Raises ProtocolError if a message has more file descriptors than it may.

        The kernel ends a read with what file descriptors came with, and before that there may be what was sent earlier
        (unix(7)). So they are of the message that begins last, or, where none does, of the one that goes on.
        """
        self._buffer += data
        if received:
            number = self._taken + self._buffer.count(0) - self._buffer.endswith(b"\0")
            of_message = self._fds.setdefault(number, [])
            of_message += received
            if len(of_message) > FDS_MAX:
                raise ProtocolError("more file descriptors than a call takes")

    def next_message(self) -> bytes | None:
        """The next whole message without its NUL, or None. Raises ProtocolError when one grows too long."""
        end = self._buffer.find(0, self._searched)
        if (end if end >= 0 else len(self._buffer)) > self._message_max:
            raise ProtocolError(f"message of more than {self._message_max} bytes")
        if end < 0:
            self._searched = len(self._buffer)
            return None
        message = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        self._taken += 1
        return message

    def take_fds(self) -> tuple[FileDescriptor, ...]:
        """Those of the message that was returned last, from now on the caller's."""
        return tuple(self._fds.pop(self._taken - 1, ())) if self._fds else ()

    def take_all_fds(self) -> list[FileDescriptor]:
        """Those of messages that nobody wants any more, too."""
        left, self._fds = self._fds, {}
        return [fd for of_message in left.values() for fd in of_message]

    @property
    def size(self) -> int:
        """Bytes that wait here."""
        return len(self._buffer)


def parse_call(message: bytes, bounds: Bounds = ROOT) -> Call:
    """A call from one message. Raises ProtocolError."""
    brackets = message.count(b"{") + message.count(b"[")
    if brackets > bounds.depth or brackets + message.count(b",") > bounds.items:
        _check_shape(message, bounds)
    try:
        text = message.decode("utf-8")
        envelope = _decoder.decode(text)
    except ValueError as error:
        raise ProtocolError(f"not JSON: {error}") from error
    if not text.isascii():
        _check_text(text)
    if b"\\u" in message:
        _check_text(envelope)
    if not isinstance(envelope, dict):
        raise ProtocolError("not an object")
    for key in envelope:
        # Objects of vendors, under a key with a dot, are for those who know them.
        if key not in _KEYS and not ("." in key and isinstance(envelope[key], dict)):
            raise ProtocolError(f"unknown key in a call: {key[:50]!r}")
    method = envelope.get("method")
    if not isinstance(method, str):
        raise ProtocolError("no method")
    parameters = envelope.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise ProtocolError("parameters are not an object")
    flags = {name: envelope[name] for name in _FLAGS if name in envelope}
    if flags:
        if not all(isinstance(value, bool) for value in flags.values()):
            raise ProtocolError("a flag that is no boolean")
        if sum(flags.values()) > 1:
            raise ProtocolError("more than one of more, oneway, upgrade")
    return Call(method, parameters, **flags)


def serialise_reply(reply: Reply) -> bytes:
    """One message, its NUL included. A shared reply is serialised once.

    Parameters that are absent, null and {} mean the same (UAPI.20), but not every client library knows. A reply
    without parameters has to leave them out for zlink 0.7. An error of the interface without parameters has to have
    null: zlink fails on {}, emersion/go-varlink where they are absent. Any other error has to have {}, or zlink takes
    it for success. sd-json takes no DEL in a text unless it is escaped, though JSON (RFC 8259) does.
    """
    if reply.message:
        return reply.message
    envelope: dict[str, object] = {}
    if reply.error is not None:
        nothing: dict[str, object] | None = None if reply.error.startswith(_TYPED) else {}
        envelope = {"error": reply.error, "parameters": reply.parameters or nothing}
    elif reply.parameters:
        envelope = {"parameters": reply.parameters}
    if reply.stream is not None:
        envelope["continues"] = True
    message = _encode(envelope).encode().replace(b"\x7f", b"\\u007f") + b"\0"
    if reply.shared:
        reply.message = message
    return message


def _object(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ProtocolError("a key twice in one object")
    return members


def _no_such_number(text: str) -> float:
    raise ProtocolError(f"{text} is no number of JSON")


def _number(text: str) -> int | float:
    """An integer, or what does not fit 64 bits as a float: a number of JSON, but no `int` of Varlink."""
    return int(text) if len(text) <= 20 and -(2**63) <= int(text) < 2**64 else float(text)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_such_number, parse_int=_number)


def _check_shape(message: bytes, bounds: Bounds) -> None:
    """Count items and levels before the recursive parser makes objects of them, in time linear in the message's size.

    There are as many items and members as commas and as lists and objects, or fewer if one is empty.
    """
    # Each has a key and a text at most, so the search for texts is not for those that have many more.
    if message.count(b'"') - message.count(b'\\"') > 4 * bounds.items + 4:
        raise ProtocolError(f"more than {bounds.items} items and members")
    bare = _STRINGS.sub(b"", message)
    if bare.count(b",") + bare.count(b"[") + bare.count(b"{") > bounds.items:
        raise ProtocolError(f"more than {bounds.items} items and members")
    brackets = bare.translate(_AS_SQUARE, _NO_BRACKETS)
    for _ in range(bounds.depth):
        # Each turn takes away the innermost level. Whether brackets match in kind is the parser's to say.
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return
    if brackets:
        raise ProtocolError(f"nested more than {bounds.depth} levels deep, or not closed")


def _check_text(value: object) -> None:
    if isinstance(value, str):
        if _NEVER.search(value):
            raise ProtocolError("a string with NUL, half a surrogate pair or a noncharacter")
    elif isinstance(value, dict):
        for key, member in value.items():
            _check_text(key)
            _check_text(member)
    elif isinstance(value, list):
        for item in value:
            _check_text(item)
