# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a client may use up: the [limits] of a policy, `connections-per-user` being `connections_per_user` here.

Users are UIDs. Root has the last quarter of what is shared, and none of the limits that are said to be users'.
"""

import resource
from dataclasses import dataclass, fields, replace

# Open files of a connection at most: its socket, its process, a shell's PTY, and its user's epoll.
_FILES_PER_CONNECTION = 4
# And of one whose client may send some.
_FILES_RECEIVED = 2
# Beside the connections': shells that nobody takes (fds.UNTAKEN_MAX), the listeners, the bus, the journal.
_FILES_RESERVED = 640


@dataclass(frozen=True, slots=True)
class Limits:
    """One number each, by its field's name.

    Over a limit a call ends in an error that names it, or, where no reply is possible, the connection is closed.
    """

    connections: int = 4096
    """Connections at one time, a quarter of them root's. More wait until others leave, or are refused if a user's."""
    connections_per_user: int = 128
    """Of one user. More are closed at once."""
    message_bytes: int = 64 * 1024
    """Bytes of a user's call; of root's `framing.ROOT`."""
    depth: int = 32
    """Levels of objects and lists in a call."""
    items: int = 1024
    """Items and members in all lists and objects of a user's call together; of root's `framing.ROOT`."""
    buffered_bytes: int = 64 * 1024 * 1024
    """Bytes of calls and replies of all users that wait; of one user, a quarter of it."""
    calls_per_user: int = 8
    """Calls of a user that may take long, copies, clones, removals and questions for a password, at one time."""
    waiting_calls: int = 1024
    """Calls of all users that wait until machined or polkit is asked."""
    request_seconds: int = 30
    """From the first byte of a call to its last, while the service is ready to read it."""
    reply_seconds: int = 60
    """From a reply that a client does not read at once until it has."""


# The smallest and the largest value. 16 MiB is sd-varlink's limit of a message.
RANGES = {
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
assert RANGES.keys() == {field.name for field in fields(Limits)}


def within_open_files(limits: Limits, *, accepts_fds: bool = False) -> Limits:
    """With no more connections than the process may open files for, RLIMIT_NOFILE, which is raised as far as may be."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now != most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most == resource.RLIM_INFINITY:
        return limits
    each = _FILES_PER_CONNECTION + (_FILES_RECEIVED if accepts_fds else 0)
    fitting = max(1, (most - _FILES_RESERVED) // each)
    return replace(limits, connections=min(limits.connections, fitting))
