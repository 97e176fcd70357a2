# SPDX-License-Identifier: LGPL-2.1-or-later
"""What travels through the pipeline: who asks, what is asked, what is answered."""

import select
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from jeepney.fds import FileDescriptor

from .loop import Future

Parameters: TypeAlias = Mapping[str, Any]


@dataclass(slots=True, eq=False)
class Peer:
    """A client as the kernel knows it, never as it describes itself: SO_PEERCRED and SO_PEERPIDFD, taken at accept.

    `left` is resolved when the client hangs up, and when the service ends: then nothing is asked for it any more, but
    what is being done for it is. `socket` is the name of the one that it came in on.
    """

    pid: int
    uid: int
    gid: int
    left: Future[None]
    pidfd: FileDescriptor | None = None
    socket: str = ""

    def lives(self) -> bool:
        """Whether the process that connected is there still, so that its PID is no other's yet."""
        if self.pidfd is None:
            return False
        # Not select(2), which takes no descriptor from 1024 on.
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        if self.pidfd is not None:
            self.pidfd.close()


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `method` is qualified; `parameters` are as they came, not validated.

    The file descriptors are the server's, which closes them when there is the first reply.
    """

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    more: bool = False
    oneway: bool = False
    upgrade: bool = False
    fds: tuple[FileDescriptor, ...] = field(default=(), compare=False)


class Stream(Protocol):
    """Makes the replies to a call with `more` that follow its first one: the `stream` of each but the last.

    The next one is asked for when the one before has been sent, so a client that does not read holds one reply. What a
    stream itself keeps for a slow client, such as events, it has to bound.
    """

    async def next(self) -> "Reply":
        """The next reply, however long it takes to come; after `close` soon any, which is not sent."""

    def close(self) -> None:
        """Let go of everything: this was the last reply, the client has left, or the service ends. May come twice."""


@dataclass(slots=True)
class Reply:
    """One answer: parameters, or an error's name and its parameters. Owns its file descriptors until they are sent.

    One with a `stream` is followed by others (`continues`). One that is `shared` answers many calls of one method, and
    so has none. Nobody changes it once it has become a `message`, which all of them get.
    """

    parameters: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    fds: tuple[FileDescriptor, ...] = ()
    stream: Stream | None = None
    shared: bool = field(default=False, compare=False)
    message: bytes = field(default=b"", compare=False)

    def close(self) -> None:
        """Close what was not sent."""
        for fd in self.fds:
            fd.close()
