# SPDX-License-Identifier: LGPL-2.1-or-later
"""Log lines with fields, to the journal where there is one and to standard error otherwise.

The journal's native protocol (systemd.io, "Journal Native Protocol"): one datagram an entry, `FIELD=value` lines.
No environment, no arguments and no parameters of a call belong here but those that name an object.
"""

import os
import socket
import stat
import sys
import time
from collections import Counter, deque
from collections.abc import Callable

from .text import printable

CRITICAL, ERROR, WARNING, NOTICE, INFO, DEBUG = 2, 3, 4, 5, 6, 7

IDENTIFIER = "machine1-bridge"
SOCKET = "/run/systemd/journal/socket"
_journal: socket.socket | None = None
_standard_error = True  # takes lines where there is no journal
# The highest priority number that is logged, LOG_INFO as with systemd's own services.
_level = INFO


def level() -> int:
    """What is logged: priorities up to this one."""
    return _level


def set_level(level: int) -> None:
    """What is an audit trail is written whatever the level."""
    global _level
    _level = level


def open_journal() -> None:
    """Use the journal if standard error is it ($JOURNAL_STREAM, systemd.exec(5)), or is no place for lines.

    Another socket is the client's: inetd, and StandardError=inherit in a unit with StandardInput=socket, make it all
    three. And where it is closed, standard output would take the lines, which is the client's as well.
    """
    global _journal, _standard_error
    _standard_error = False
    try:
        status = os.fstat(2)
        named = os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
        if not named and not stat.S_ISSOCK(status.st_mode):
            _standard_error = True
            return
    except OSError:
        pass
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sender.connect(SOCKET)
    except OSError:
        sender.close()
    else:
        _journal = sender


def bug(where: str) -> None:
    """Log the exception that is being handled and that nobody expected."""
    import traceback  # takes longer to import than a call to be answered

    log(ERROR, f"{where}: {traceback.format_exc()}")


def encode(fields: dict[str, object]) -> bytes:
    """One entry in the journal's format; a value with a line break is framed by its length."""
    entry = bytearray()
    for name, value in fields.items():
        text = str(value).encode(errors="replace")
        if b"\n" in text:
            entry += name.encode() + b"\n" + len(text).to_bytes(8, "little") + text + b"\n"
        else:
            entry += name.encode() + b"=" + text + b"\n"
    return bytes(entry)


# Lines that the journal has no room for wait here, for a while: anybody on the host can fill its socket, and the trail
# of who did what must not depend on that.
WAITING_MAX = 4096
RETRY = 0.05
_waiting: deque[bytes] = deque()
_lost = 0
_call_later: Callable[[float, Callable[[], object]], object] | None = None


def use_timers(call_later: Callable[[float, Callable[[], object]], object]) -> None:
    """From now on lines that wait are tried again by themselves, with this to be called later."""
    global _call_later
    _call_later = call_later


def close() -> None:
    """Write what waits, as far as the journal takes it now. Nothing is called later any more."""
    global _call_later
    _call_later = None
    _refusals.summarize()
    _flush()


def _flush() -> None:
    """Send what waits, in order; what does not go waits on."""
    global _lost
    if _journal is None:
        return
    try:
        while _waiting:
            _journal.send(_waiting[0])
            _waiting.popleft()
        if _lost:
            lost, _lost = _lost, 0
            record(WARNING, f"{lost} lines were lost, since the journal took none")
    except BlockingIOError:
        if _call_later is not None:
            _call_later(RETRY, _flush)
    except OSError:
        # One that is too long, or no journal any more.
        if _waiting:
            _waiting.popleft()
            _lost += 1


class _Refusals:
    """At most BURST lines about one user, and BURST_OF_ALL about all, in INTERVAL seconds.

    So that none floods out what others did, and nobody who is many users (subuid(5)) does.
    """

    BURST, BURST_OF_ALL, INTERVAL = 20, 1000, 10.0

    def __init__(self) -> None:
        self._since = 0.0
        self._written = 0
        self._counts: Counter[int] = Counter()
        self._timer_runs = False

    def allows(self, uid: int) -> bool:
        if time.monotonic() - self._since > self.INTERVAL:
            self.summarize()
        if not self._timer_runs and _call_later is not None:
            self._timer_runs = True
            _call_later(self.INTERVAL, self._end_interval)
        self._counts[uid] += 1
        if self._counts[uid] > self.BURST or self._written >= self.BURST_OF_ALL:
            return False
        self._written += 1
        return True

    def _end_interval(self) -> None:
        self._timer_runs = False
        self.summarize()

    def summarize(self) -> None:
        """Say how many lines there were not, and begin the next interval."""
        counts, self._counts = self._counts, Counter()
        written, self._written, self._since = self._written, 0, time.monotonic()
        if written >= self.BURST_OF_ALL:
            record(NOTICE, f"{counts.total() - written} more refusals of {len(counts)} users")
            return
        for uid, number in counts.items():
            if number > self.BURST:
                record(NOTICE, f"{number - self.BURST} more refusals of UID {uid}", MACHINE1_PEER_UID=uid)


_refusals = _Refusals()


def refusal(uid: int, message: str, **fields: object) -> None:
    """Write what was refused to a user or did not come about; if there was too much of it lately, how much, later."""
    if _refusals.allows(uid):
        record(NOTICE, message, **fields)


def fault(uid: int, message: str, **fields: object) -> None:
    """Write, for who debugs a client of this user, what is wrong with it; it counts as a refusal."""
    if _level >= INFO and _refusals.allows(uid):
        log(INFO, message, **fields)


def log(priority: int, message: str, **fields: object) -> None:
    """Write one line, if its priority is logged."""
    if priority <= _level:
        record(priority, message, **fields)


def record(priority: int, message: str, **fields: object) -> None:
    """Write one line. A journal that does not take it now must not stop the service: the line waits."""
    global _lost
    if _journal is not None:
        if len(_waiting) >= WAITING_MAX:
            _lost += 1
            return
        idle = not _waiting
        _waiting.append(encode({"MESSAGE": message, "PRIORITY": priority, "SYSLOG_IDENTIFIER": IDENTIFIER} | fields))
        if idle:
            _flush()
    elif priority < DEBUG and _standard_error:
        # On a terminal no name of an image may do more than be read.
        text = printable(message, keep="\n")
        try:
            print(f"{IDENTIFIER}: {text}", file=sys.stderr, flush=True)
        except OSError:
            pass
