# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether images may have come or gone: a look at the directories that machined searches.

machined tells of no change of an image. inotify(7) needs the right to read a directory, and /var/lib/machines is
root's alone; but whoever may pass its parent sees when an entry was last added, removed or renamed (stat(2)).
"""

import os
import time
from collections.abc import Sequence
from typing import TypeAlias

from .remembered import SETTLED

# systemd's image_search_path, the same in 252, 257 and 262 (machinectl(1), "Files and Directories").
DIRECTORIES = (
    "/etc/machines",
    "/run/machines",
    "/var/lib/machines",
    "/usr/local/lib/machines",
    "/usr/lib/machines",
)

Stamp: TypeAlias = tuple[tuple[int, int, int, int] | None, ...]


class Pool:
    """The directories. A file system that is mounted on one of them later is another directory."""

    def __init__(self, directories: Sequence[str] = DIRECTORIES) -> None:
        self._directories = directories

    def look(self) -> Stamp | None:
        """To be called before machined is asked. None if a change that comes right after could look the same."""
        stamp = self._look()
        now = time.time_ns()
        young = any(status is not None and now - max(status[2:]) < SETTLED for status in stamp)
        return None if young else stamp

    def has_changed(self, stamp: Stamp | None) -> bool:
        """Whether images may be others than when the stamp was taken."""
        return stamp is None or stamp != self._look()

    def _look(self) -> Stamp:
        return tuple(_status(directory) for directory in self._directories)


def _status(directory: str) -> tuple[int, int, int, int] | None:
    try:
        status = os.stat(directory)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
