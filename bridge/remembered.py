# SPDX-License-Identifier: LGPL-2.1-or-later
"""machined's list of machines, remembered for as long as it is true without asking.

machined keeps a file for each machine in one directory: it is written before anybody is told of the machine, and
removed before the machine is. (libsystemd's sd_login_monitor_new(3) watches the same directory.) So a list is what
machined would say now if the directory has not changed since machined was asked, the list had just the machines with a
file, and the machined that has to take out those that end is alive. That is looked at each time; nobody has to send
signals here, and none can come late.
"""

import os
import select
import time
from pathlib import Path
from typing import TypeAlias

from jeepney.fds import FileDescriptor

from .listed import Machines

DIRECTORY = Path("/run/systemd/machines")
HOST = ".host"
# Nanoseconds. The clock of files goes in steps of at most 10 ms (CONFIG_HZ), so two changes can have one time; what is
# older than this has another one after any change.
SETTLED = 100_000_000

Stamp: TypeAlias = tuple[int, int, int, int]


class Remembered:
    """One list, and when it is true."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = os.fspath(DIRECTORY if directory is None else directory)
        self._machines: Machines | None = None
        self._stamp: Stamp | None = None
        self._process: FileDescriptor | None = None
        self._poll = select.poll()
        self._searching = False

    def recall(self) -> Machines | None:
        """The list, if it is true."""
        if self._machines is None:
            return None
        if self._stamp_now() == self._stamp and self.lives():
            return self._machines
        self._machines = None
        return None

    def look(self) -> Stamp | None:
        """To be called before machined is asked: what `keep` needs. None if the answer cannot be remembered."""
        stamp = self._stamp_now()
        return stamp if stamp is not None and time.time_ns() - stamp[-1] >= SETTLED and self.lives() else None

    def keep(self, stamp: Stamp, machines: Machines) -> None:
        """Remember what machined answered, unless something has changed since."""
        try:
            files = {name for name in os.listdir(self._directory) if not name.startswith("unit:")}
        except OSError:
            return
        if files == machines.keys() - {HOST} and self._stamp_now() == stamp:
            self._machines, self._stamp = machines, stamp

    def lives(self) -> bool:
        """Whether the process is alive that was said to be machined's."""
        return self._process is not None and not self._poll.poll(0)

    def wants_process(self) -> bool:
        """Whether it has to be found out which process machined is; then `watch` is to be called."""
        if self._searching or self.lives() or self._stamp_now() is None:
            return False
        self._searching = True
        return True

    def watch(self, process: FileDescriptor | None) -> None:
        """This is machined's process (pidfd_open(2)), from now on this object's; None if it was not found."""
        self.close()
        self._searching = False
        self._process = process
        if process is not None:
            self._poll.register(process, select.POLLIN)

    def close(self) -> None:
        self._machines = None
        if self._process is not None:
            self._poll.unregister(self._process)
            self._process.close()
            self._process = None

    def _stamp_now(self) -> Stamp | None:
        try:
            status = os.stat(self._directory)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_ctime_ns, status.st_mtime_ns
