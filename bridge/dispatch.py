# SPDX-License-Identifier: LGPL-2.1-or-later
"""The way of every request: validate, authorize, call, reply. Start reading here.

Bytes became a Call in `framing`; the Reply becomes bytes there. `Dispatcher.answer` is the one place where exceptions
turn into error replies.
"""

import time
import traceback
from collections.abc import Mapping

from . import journal
from .authorize import authorize
from .bus import DBusError
from .contract import Contract
from .errors import Failed, MethodNotImplemented, PermissionDenied, VarlinkError
from .introspection import Introspection
from .machined import BRIDGE_DENIED, Machined, to_varlink_error
from .messages import Call, Peer, Reply
from .methods import METHODS


class Dispatcher:
    """Answers calls. `machined` is where they go."""

    def __init__(self, contract: Contract, machined: Machined) -> None:
        self._contract = contract
        self._machined = machined
        self._methods = METHODS | Introspection(contract).methods

    async def answer(self, call: Call, peer: Peer) -> Reply:
        """The reply to a call. Never raises: what went wrong is in the reply."""
        objects: Mapping[str, str] = {}
        method = None
        started = time.monotonic()
        try:
            method = self._methods.get(call.method)
            if method is None:
                raise self._contract.unknown(call.method)
            objects = method.objects(call.parameters)
            authorize(peer, method)
            parameters = self._contract.check(call.method, call.parameters)
            if call.upgrade:
                raise MethodNotImplemented(call.method)
            reply = await method.function(self._machined, parameters)
        except VarlinkError as error:
            reply = _failure(error)
        except DBusError as error:
            reply = _failure(to_varlink_error(error, objects))
            _note_missing_right(call, error)
        except Exception:
            journal.log(journal.ERROR, f"Bug in {call.method}: {traceback.format_exc()}")
            reply = _failure(Failed("", "internal error of machine1-bridge, see its journal"))
        if method is not None and method.guarded:
            _record(call, peer, objects, reply, time.monotonic() - started)
        return reply


def _failure(error: VarlinkError) -> Reply:
    return Reply(error.parameters, error=error.name)


def _note_missing_right(call: Call, error: DBusError) -> None:
    """The client was authorized, the bridge was not: the administrator may want to know why."""
    if error.name in BRIDGE_DENIED:
        journal.log(
            journal.WARNING,
            f"machined does not let this service do {call.method}: {error.message}",
            MACHINE1_METHOD=call.method,
            MACHINE1_DBUS_ERROR=error.name,
        )


def _record(call: Call, peer: Peer, objects: Mapping[str, str], reply: Reply, seconds: float) -> None:
    """One line for each guarded call, refused or not: who, what, on which object, with what outcome."""
    outcome = reply.error or "done"
    message = f"{call.method} on {', '.join(objects.values()) or '?'} by UID {peer.uid}, PID {peer.pid}: {outcome}"
    fields = {
        "MACHINE1_METHOD": call.method,
        "MACHINE1_OUTCOME": outcome,
        "MACHINE1_PEER_UID": peer.uid,
        "MACHINE1_PEER_PID": peer.pid,
        "MACHINE1_DURATION_USEC": round(seconds * 1_000_000),
        **{f"MACHINE1_{kind.upper()}": name for kind, name in objects.items()},
    }
    if reply.error == PermissionDenied.name:
        journal.refusal(peer.uid, message, **fields)
    else:
        journal.log(journal.INFO, message, **fields)
