# SPDX-License-Identifier: LGPL-2.1-or-later
"""What travels through the pipeline: who asks, what is asked, what is answered."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jeepney.fds import FileDescriptor


@dataclass(frozen=True, slots=True)
class Peer:
    """A client as the kernel knows it (SO_PEERCRED, taken at connect time), never as it describes itself."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `method` is qualified; `parameters` are as they came, not validated."""

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    more: bool = False
    oneway: bool = False
    upgrade: bool = False


@dataclass(slots=True)
class Reply:
    """One answer: parameters, or an error's name and its parameters. Owns its file descriptors until they are sent."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    fds: tuple[FileDescriptor, ...] = ()

    def close(self) -> None:
        """Close what was not sent."""
        for fd in self.fds:
            fd.close()
