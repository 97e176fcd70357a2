# SPDX-License-Identifier: LGPL-2.1-or-later
"""May this peer make this call? The one place that decides; it comes after validation and before the method.

For now the kernel alone is asked: what changes something or opens a shell is for uid 0. Polkit and the policies
of sockets belong here, in the order that design calls for: socket policy first, then polkit.
"""

from .errors import PermissionDenied
from .messages import Peer
from .methods import Method, Parameters


async def authorize(peer: Peer, method: Method, parameters: Parameters) -> None:
    """Return if the peer may go on. Raises PermissionDenied."""
    if method.guarded and peer.uid != 0:
        raise PermissionDenied
