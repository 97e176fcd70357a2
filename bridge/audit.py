# SPDX-License-Identifier: LGPL-2.1-or-later
"""One line in the journal for each guarded call and each refusal: who, what, on which object, by whose decision.

Names are in it, and nothing else of the parameters: no path, no argument, no variable.
"""

import re
import time
from collections.abc import Mapping
from pathlib import Path

from . import journal
from .errors import VarlinkError
from .messages import Call, Peer, Reply
from .methods import Method

# The unit of a process is the first service or scope in its cgroup's path: what is below it, the user may have named.
_UNIT = re.compile(r"([^/\n]+\.(?:service|scope))(?:/[^/\n]*)*$", re.MULTILINE)


class Entry:
    """What is known of a call while it is under way."""

    def __init__(self, call: Call, peer: Peer, policy: str) -> None:
        self._call, self._peer, self._policy = call, peer, policy
        self._started = time.monotonic()
        self._method: Method | None = None
        self._unit = ""
        self._refused = False
        self.by = ""
        self._reason = ""
        self._outcome = "done"

    def begin(self, method: Method) -> None:
        """The call is for this method. Its parameters are not validated yet."""
        self._method = method
        if method.guarded:
            # Now, while the client is sure to be there.
            self._unit = unit_of(self._peer)

    @property
    def objects(self) -> Mapping[str, str]:
        """What the call is about, by kind, as far as it says so; see Method."""
        return self._method.objects(self._call.parameters) if self._method is not None else {}

    def end_in(self, error: VarlinkError) -> Reply:
        """The call ends in this error: its reply."""
        self._outcome = error.name
        if error.refusal is not None:
            self._refused = True
            self.by, self._reason = error.refusal.by, error.refusal.reason
        return Reply(error.parameters, error=error.name)

    def write(self) -> None:
        """The call is over."""
        if not self._refused and (self._method is None or not self._method.guarded):
            return
        call, peer, objects = self._call, self._peer, self.objects
        named = ", ".join(objects.values()) or "?"
        message = f"{call.method} on {named} by UID {peer.uid}, PID {peer.pid}: {self._outcome}"
        fields: dict[str, object] = {
            "MACHINE1_METHOD": call.method,
            "MACHINE1_OUTCOME": self._outcome,
            "MACHINE1_DECISION": "refused" if self._refused else "allowed" if self.by else "none",
            "MACHINE1_DECIDED_BY": self.by or "none",
            "MACHINE1_PEER_UID": peer.uid,
            "MACHINE1_PEER_PID": peer.pid,
            "MACHINE1_PEER_UNIT": self._unit,
            "MACHINE1_SOCKET": peer.socket,
            "MACHINE1_POLICY": self._policy,
            "MACHINE1_DURATION_USEC": round((time.monotonic() - self._started) * 1_000_000),
            **{f"MACHINE1_{kind.upper()}": name for kind, name in objects.items()},
        }
        if self._refused:
            fields["MACHINE1_REASON"] = self._reason
            message = f"{message} ({self.by}: {self._reason})"
        if self._refused or not self.by:
            # What was not authorized anybody can make happen, as often as they like.
            journal.refusal(peer.uid, message, **fields)
        else:
            journal.record(journal.INFO, message, **fields)


def unit_of(peer: Peer) -> str:
    """The unit that the client runs in, "" if that cannot be told, for one since its PID may be another's by now."""
    try:
        # A user names groups below their own as they like, in UTF-8 or not.
        text = Path(f"/proc/{peer.pid}/cgroup").read_bytes().decode(errors="replace")
    except OSError:
        return ""
    found = _UNIT.search(text)
    return found[1] if found and peer.lives() else ""
