# SPDX-License-Identifier: LGPL-2.1-or-later
"""polkit's answer to: may this client do that? org.freedesktop.PolicyKit1.Authority.CheckAuthorization().

The service may ask about others since the actions of contrib/polkit/io.machine1.policy name its user as their owner.
polkit believes what an owner says of the subject, so all of it comes from the kernel (`Peer`).
"""

from collections.abc import Mapping
from itertools import count
from pathlib import Path

from jeepney import DBusAddress, new_method_call

from . import journal
from .bus import DEADLINE, Bus, DBusError, GivenUp
from .errors import Busy, InteractiveAuthenticationRequired, PermissionDenied, Refusal, Timeout, Unavailable
from .messages import Peer

_AUTHORITY = DBusAddress(
    "/org/freedesktop/PolicyKit1/Authority",
    "org.freedesktop.PolicyKit1",
    "org.freedesktop.PolicyKit1.Authority",
)
_ALLOW_USER_INTERACTION = 1

# Questions about one user at a time that polkit answers on its own: more would only be in others' way.
AT_ONCE = 2


class Polkit:
    """Questions to polkit, each of them about one peer and one action."""

    def __init__(self, quick: Bus, patient: Bus) -> None:
        """Connections of its own, the second for questions that may wait for a password: they hold up no others."""
        self._quick, self._patient = quick, patient
        self._pidfd = True  # polkit 124 and newer take one; older ones say that they miss the PID
        self._identifiers = count(1)

    async def check(self, peer: Peer, action: str, details: Mapping[str, str], interactive: bool) -> None:
        """Return if polkit says yes.

        With `interactive` it may ask the user, which may take for ever, and ends when the client leaves. Raises
        PermissionDenied (also if there is no polkit), InteractiveAuthenticationRequired, TooManyOperations and, where
        too many questions wait for an answer already, Busy.
        """
        if interactive and not self._patient.turns.has_place(peer.uid):
            # Nobody knows when somebody else will have typed a password.
            raise Busy("too many questions to polkit wait for an answer")
        try:
            allowed, challenge = await self._ask(peer, action, details, interactive)
        except GivenUp as error:
            raise PermissionDenied().refused(Refusal("kernel", "the client has left")) from error
        except (DBusError, Timeout, Unavailable) as error:
            journal.refusal(peer.uid, f"polkit gave no answer about {action}, so it is no: {error}")
            raise PermissionDenied().refused(Refusal("polkit", "polkit gave no answer")) from error
        if not allowed and challenge and not interactive:
            raise InteractiveAuthenticationRequired().refused(Refusal("polkit", "polkit would ask for a password"))
        if not allowed:
            raise PermissionDenied().refused(Refusal("polkit", "polkit says no"))

    async def _ask(
        self, peer: Peer, action: str, details: Mapping[str, str], interactive: bool
    ) -> tuple[bool, bool]:
        """Whether the peer is authorized, and whether it could be by authenticating."""
        if self._pidfd and peer.pidfd is not None:
            subject = {"pidfd": ("h", peer.pidfd), "uid": ("i", _signed(peer.uid))}
            try:
                return await self._check_authorization(peer, subject, action, details, interactive)
            except DBusError as error:
                if "`pid'" not in error.message:
                    raise
                self._pidfd = False
        return await self._check_authorization(peer, _process(peer), action, details, interactive)

    async def _check_authorization(
        self,
        peer: Peer,
        subject: Mapping[str, tuple[str, object]],
        action: str,
        details: Mapping[str, str],
        interactive: bool,
    ) -> tuple[bool, bool]:
        identifier = f"machine1-bridge-{next(self._identifiers)}"
        flags = _ALLOW_USER_INTERACTION if interactive else 0
        body = (("unix-process", subject), action, details, flags, identifier)
        message = new_method_call(_AUTHORITY, "CheckAuthorization", "(sa{sv})sa{ss}us", body)

        bus, deadline = (self._patient, None) if interactive else (self._quick, DEADLINE)
        try:
            ((allowed, challenge, _),) = await bus.call(message, "(bba{ss})", deadline, peer.left, peer.uid)
        except GivenUp:
            bus.send(new_method_call(_AUTHORITY, "CancelCheckAuthorization", "s", (identifier,)))
            raise
        return allowed, challenge


def _process(peer: Peer) -> Mapping[str, tuple[str, object]]:
    """A subject by PID and start time, for a polkit that knows no pidfd.

    The PID may have been given to another process since the client connected; so that it is the client's as long as its
    pidfd says that it lives, after the start time was read. Raises PermissionDenied if it does not live any more.
    """
    try:
        # The name in parentheses may hold anything, proc_pid_stat(5); the start time is field 22.
        status = Path(f"/proc/{peer.pid}/stat").read_text()
        start_time = int(status.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        start_time = None
    if start_time is None or not peer.lives():
        raise PermissionDenied().refused(Refusal("kernel", "the process that connected has ended"))
    return {"pid": ("u", peer.pid), "start-time": ("t", start_time), "uid": ("i", _signed(peer.uid))}


def _signed(uid: int) -> int:
    """polkit takes a UID as 32 bits with a sign, and looks at the bits."""
    return uid - 2**32 if uid >= 2**31 else uid
