# SPDX-License-Identifier: LGPL-2.1-or-later
"""The last changes of something, in order: one store for all who follow them, however slowly each does.

Who follows holds no more than a position, so a slow one costs nothing; what it has not taken when its turn comes to be
overwritten, it has missed. A position can be given away as a cursor: it says nothing but how many changes came before
it since the epoch began, and each epoch has a name that is drawn at random.
"""

import os
import re
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

SIZE = 4096

_CURSOR = re.compile(r"([0-9a-f]{16})-(0|[1-9][0-9]{0,17})")


class Ring(Generic[T]):
    """Positions count from 0: the change at a position is the one that follows a cursor of it."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self._changes: deque[T] = deque(maxlen=size)
        self.renew()

    def renew(self) -> None:
        """Another epoch begins: no cursor from before can be resumed."""
        self.epoch = os.urandom(8).hex()
        self._changes.clear()
        self.end = 0
        self.broken = 0

    def interrupt(self) -> None:
        """What happened here is not known in full, so nobody can go on from before."""
        self._changes.clear()
        self.end += 1
        self.broken = self.end

    def append(self, change: T) -> None:
        self._changes.append(change)
        self.end += 1

    @property
    def begin(self) -> int:
        """The oldest position that can be followed."""
        return self.end - len(self._changes)

    def __getitem__(self, position: int) -> T:
        return self._changes[position - self.begin]

    def cursor(self, position: int) -> str:
        return f"{self.epoch}-{position}"

    def position(self, cursor: str) -> int | None:
        """None if the cursor is none of this epoch. It may be older than `begin`."""
        match = _CURSOR.fullmatch(cursor)
        if match is None or match[1] != self.epoch or int(match[2]) > self.end:
            return None
        return int(match[2])
