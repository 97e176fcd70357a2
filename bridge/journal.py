# SPDX-License-Identifier: LGPL-2.1-or-later
"""Log lines with fields, to the journal where there is one and to standard error otherwise.

The journal's native protocol (systemd.io, "Journal Native Protocol"): one datagram an entry, `FIELD=value` lines.
No environment, no arguments and no parameters of a call belong here but those that name an object.
"""

import os
import socket
import sys
import time
from collections import Counter

CRITICAL, ERROR, WARNING, NOTICE, INFO, DEBUG = 2, 3, 4, 5, 6, 7

IDENTIFIER = "machine1-bridge"
SOCKET = "/run/systemd/journal/socket"
_journal: socket.socket | None = None


def open_journal() -> None:
    """Use the journal if standard error is connected to it ($JOURNAL_STREAM, systemd.exec(5))."""
    global _journal
    try:
        status = os.fstat(2)
        if os.environ.get("JOURNAL_STREAM") != f"{status.st_dev}:{status.st_ino}":
            return
    except OSError:
        return
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sender.connect(SOCKET)
    except OSError:
        sender.close()
    else:
        _journal = sender


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


class _Refusals:
    """At most BURST lines of refusals about one user in INTERVAL seconds, so that none floods out what others did."""

    BURST, INTERVAL = 20, 10.0

    def __init__(self) -> None:
        self._since = 0.0
        self._counts: Counter[int] = Counter()

    def allows(self, uid: int) -> bool:
        now = time.monotonic()
        if now - self._since > self.INTERVAL:
            for refused, number in self._counts.items():
                if number > self.BURST:
                    log(NOTICE, f"{number - self.BURST} more refusals of UID {refused}", MACHINE1_PEER_UID=refused)
            self._counts.clear()
            self._since = now
        self._counts[uid] += 1
        return self._counts[uid] <= self.BURST


_refusals = _Refusals()


def refusal(uid: int, message: str, **fields: object) -> None:
    """Write that something was refused to a user, unless that was said too often lately; then how often, later."""
    if _refusals.allows(uid):
        log(NOTICE, message, **fields)


def log(priority: int, message: str, **fields: object) -> None:
    """Write one line. A journal that does not take it must not stop the service: then the line is lost."""
    if _journal is not None:
        try:
            _journal.send(encode({"MESSAGE": message, "PRIORITY": priority, "SYSLOG_IDENTIFIER": IDENTIFIER} | fields))
        except OSError:
            pass
    elif priority < DEBUG:
        # On a terminal no name of an image may do more than be read.
        text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in message)
        try:
            print(f"{IDENTIFIER}: {text}", file=sys.stderr, flush=True)
        except OSError:
            pass
