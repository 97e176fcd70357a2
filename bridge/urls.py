# SPDX-License-Identifier: LGPL-2.1-or-later
"""URLs that images may be pulled from: one spelling for each (RFC 3986), and globs that no other spelling passes by."""

import fnmatch
import re
from collections.abc import Collection
from dataclasses import dataclass

# A name or an IPv4 address, or an IPv6 address without a zone. No user: whose name it is nobody reads to the end.
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]"
_CHARACTERS = r"[A-Za-z0-9\-._~!$&'()*+,;=:@%/]"
_URL = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?"
    rf"(?P<path>/{_CHARACTERS}*)?(?P<query>\?(?:{_CHARACTERS}|\?)*)?"
)
_ESCAPE = re.compile("%(.{0,2})")
_HEXADECIMAL = re.compile("[0-9A-Fa-f]{2}")
_UNRESERVED = re.compile(r"[A-Za-z0-9\-._~]")
_PORTS = {"http": 80, "https": 443}

# What begins a glob: the scheme, written out, then the host.
_GLOB = re.compile(r"(https?)://([^/]+)(/.*)")
# What is written as in a URL, and stands for one of its characters in a glob: the host 1 for [::1].
_ADDRESS = re.compile(r"\[[^\[\]]*:")


def normalize(url: str) -> str:
    """The one spelling of a URL. Raises ValueError: what it must be."""
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError("must be http:// or https://, a host without a user, perhaps a port, and a path, no fragment")
    scheme, host, port = found["scheme"], found["host"].lower(), found["port"]
    if port is not None and not 0 < int(port) < 65536:
        raise ValueError("must have a port from 1 to 65535")
    if port is not None and int(port) != _PORTS[scheme]:
        host += f":{int(port)}"
    path, query = _unescape(found["path"] or "/"), _unescape(found["query"] or "")
    if any(step in (".", "..") for step in path.split("/")):
        raise ValueError("must not contain . or .. as a step of its path")
    return f"{scheme}://{host}{path}{query}"


def _unescape(text: str) -> str:
    """As far as it changes no meaning. A slash is written as such: servers do not agree on what another one means."""

    def one(escape: re.Match[str]) -> str:
        if not _HEXADECIMAL.fullmatch(escape[1]):
            raise ValueError("must have two hexadecimal digits after each %")
        character = chr(int(escape[1], 16))
        if character < " " or character in "\x7f/\\":
            raise ValueError("must not have control characters, slashes and backslashes that are escaped")
        return character if _UNRESERVED.fullmatch(character) else escape[0].upper()

    return _ESCAPE.sub(one, text)


@dataclass(frozen=True, slots=True)
class URLGlob:
    """One of a policy. What it says of the host is held against the host alone, whatever comes after it."""

    scheme: str
    host: re.Pattern[str]
    path: re.Pattern[str]

    @classmethod
    def of(cls, glob: str) -> "URLGlob":
        """The glob must have no flaw."""
        found = _GLOB.fullmatch(glob)
        assert found is not None
        host, path = (re.compile(fnmatch.translate(part)) for part in found.groups()[1:])
        return cls(found[1], host, path)

    def match(self, url: str) -> bool:
        """Of a normalized URL."""
        scheme, _, rest = url.partition("://")
        host, slash, path = rest.partition("/")
        return scheme == self.scheme and bool(self.host.match(host) and self.path.match(slash + path))


def matches(globs: Collection[URLGlob], url: str) -> bool:
    return any(glob.match(url) for glob in globs)


def flaw(glob: str) -> str | None:
    """What is wrong with a glob, beside what may be wrong with any."""
    found = _GLOB.fullmatch(glob)
    if found is None:
        return "is not http:// or https://, a host and a path: https://images.example/*"
    scheme, host, path = found.groups()
    if host != host.lower():
        return "has upper case in its host, which is compared in lower case"
    if "@" in host:
        return "has a user, which no URL may have"
    if _ADDRESS.search(host):
        return "has the characters of an IPv6 address as a set; [[] is the character: https://[[]2001:db8::1]/*"
    if host.endswith(f":{_PORTS[scheme]}"):
        return f"has the port {_PORTS[scheme]}, which is left out of URLs of {scheme}"
    if "#" in path:
        return "has a fragment, which no URL may have"
    return None
