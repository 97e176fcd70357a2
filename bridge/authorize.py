# SPDX-License-Identifier: LGPL-2.1-or-later
"""May this peer make this call? The one place that decides.

For now the kernel alone is asked: what changes something or opens a shell is for uid 0. That needs no parameters, so it
comes before they are looked at: who may not call a method has no claim to the time that validating takes. Policies of
sockets belong before validation too, as far as they are about methods, and polkit after it.
"""

from .errors import PermissionDenied
from .messages import Peer
from .methods import Method


def authorize(peer: Peer, method: Method) -> None:
    """Return if the peer may go on. Raises PermissionDenied."""
    if method.guarded and peer.uid != 0:
        raise PermissionDenied
