# SPDX-License-Identifier: LGPL-2.1-or-later
"""The way of every request: validate, authorize, call, reply. Start reading here.

Bytes became a Call in `framing`; the Reply becomes bytes there. A method that `streams` returns its first reply with a
Stream, from which `follow` takes those after it. `_error_reply` is the one place where exceptions turn into error
replies.
"""

from collections.abc import Mapping

from . import journal
from .audit import Entry
from .authorize import Authorizer
from .bus import DBusError
from .contract import Contract
from .control import Control
from .errors import (
    ExpectedMore,
    Failed,
    InterfaceNotFound,
    InvalidParameter,
    MethodNotFound,
    MethodNotImplemented,
    Unavailable,
    VarlinkError,
)
from .introspection import Introspection
from .machined import BRIDGE_DENIED, Machined, to_varlink_error
from .messages import Call, Parameters, Peer, Reply, Stream
from .methods import METHODS, Method
from .policy import INTERFACE, normalize

CHECK = "io.machine1.Check"


class Dispatcher:
    """Answers calls of the contract's `methods`. `machined` is where they go; `control` is for the administrator."""

    def __init__(
        self,
        contract: Contract,
        authorizer: Authorizer,
        machined: Machined,
        control: Control,
        methods: Mapping[str, Method] = METHODS,
    ) -> None:
        self._contract = contract
        self._authorizer = authorizer
        self._machined = machined
        standard = Introspection(contract).methods | control.methods
        self._methods = dict(methods) | standard | {CHECK: Method(_never, False, {})}

    async def answer(self, call: Call, peer: Peer) -> Reply:
        """The reply to a call, the first one if there are several. Never raises: what went wrong is in the reply."""
        entry = Entry(call, peer, self._authorizer.policy.name)
        try:
            method = self._find(call.method).called_with(call.parameters)
            entry.begin(method)
            if peer.left.done and not method.guarded:
                return Reply()  # nobody hears it and it changes nothing
            parameters = self._validate(call.method, call.parameters)
            self._check_fds(method, parameters, call)
            entry.by = await self._authorizer.authorize(peer, call.method, method, parameters)
            if call.upgrade:
                raise MethodNotImplemented(call.method)
            if method.streams and not call.more:
                raise ExpectedMore
            if call.method == CHECK:
                reply = await self._check(peer, parameters, entry)
            else:
                function = method.streamed if call.more and method.streamed else method.function
                machined = self._machined.on_behalf_of(
                    peer.uid, self._authorizer, peer.left, call.fds, more=call.more
                )
                reply = await function(machined, parameters)
            if not reply.message:
                self._authorizer.policy.filter(call.method, reply.parameters)
        except Exception as error:
            reply = _error_reply(error, call, entry)
        entry.write()
        return reply

    async def follow(self, call: Call, peer: Peer, stream: Stream) -> Reply:
        """The reply after one that had this stream, by the policy of now. Never raises."""
        try:
            self._authorizer.policy.decide(call.method, call.parameters)
            reply = await stream.next()
            if peer.left.done:
                reply.close()
                raise Unavailable("machine1-bridge stops")
            self._authorizer.policy.require_method(call.method)  # it may be another one, after a long wait
            self._authorizer.policy.filter(call.method, reply.parameters)
        except Exception as error:
            end = Entry(call, peer, self._authorizer.policy.name)
            end.begin(self._methods[call.method].called_with(call.parameters))
            reply = _error_reply(error, call, end)
            end.write()
        return reply

    def _find(self, name: str) -> Method:
        """The method, if there is one and the policy allows it to anybody."""
        if name not in self._methods:
            raise self._contract.unknown(name)
        self._authorizer.policy.require_method(name)
        return self._methods[name]

    def _validate(self, name: str, parameters: Parameters) -> Parameters:
        return normalize(name, self._contract.check(name, parameters))

    def _check_fds(self, method: Method, parameters: Parameters, call: Call) -> None:
        """What came with the call is what the method takes. Where the policy accepts none, that is what is said."""
        if method.fd is None:
            if call.fds:
                raise InvalidParameter("fds", "this method takes no file descriptor")
        elif self._authorizer.policy.accept_fds and (len(call.fds) != 1 or parameters[method.fd] != 0):
            raise InvalidParameter(method.fd, "must be 0, the index of the file descriptor that comes with the call")

    async def _check(self, peer: Peer, parameters: Parameters, entry: Entry) -> Reply:
        """Whether a call would be authorized, without making it: io.machine1.Check."""
        name = parameters["method"] if "." in parameters["method"] else INTERFACE + parameters["method"]
        try:
            method = self._find(name)
            inner = dict(self._validate(name, parameters.get("parameters", {})))
            inner.pop("allowInteractiveAuthentication", None)  # nobody is asked for a password here
            await self._authorizer.authorize(peer, name, method.called_with(inner), inner)
        except InvalidParameter as error:
            error.parameters["parameter"] = f"parameters.{error.parameters['parameter']}"
            raise
        except (MethodNotFound, InterfaceNotFound):
            raise
        except VarlinkError as error:
            entry.end_in(error)  # who looks for what is allowed leaves a trace, too
            reason = error.refusal.reason if error.refusal else error.parameters.get("reason", error.name)
            return Reply({"allowed": False, "reason": reason})
        return Reply({"allowed": True, "reason": ""})


async def _never(machined: Machined, parameters: Parameters) -> Reply:
    """Check is the dispatcher's own: it asks what the dispatcher asks."""
    raise AssertionError


def _error_reply(error: Exception, call: Call, entry: Entry) -> Reply:
    """What a call that raised this is answered."""
    if isinstance(error, VarlinkError):
        return entry.end_in(error)
    if isinstance(error, DBusError):
        _note_missing_right(call, error)
        return entry.end_in(to_varlink_error(error, entry.objects))
    journal.bug(f"Bug in {call.method}")
    return entry.end_in(Failed("", "internal error of machine1-bridge, see its journal"))


def _note_missing_right(call: Call, error: DBusError) -> None:
    """The client was authorized, the bridge was not: the administrator may want to know why."""
    if error.name in BRIDGE_DENIED:
        journal.log(
            journal.WARNING,
            f"machined does not let this service do {call.method}: {error.message}",
            MACHINE1_METHOD=call.method,
            MACHINE1_DBUS_ERROR=error.name,
        )
