# SPDX-License-Identifier: LGPL-2.1-or-later
"""One input of the fuzzer: a client of the real Server, over a real socket, and what has to hold afterwards.

An input is four letters, of each of which the low four bits count ("0" to "9" and ":" to "?" are 0 to 15), and the
bytes that the client sends:

    client    1: is not root  2: reads nothing before it has sent everything  4: leaves then, without reading
              8: comes in on the socket with the narrow policy
    machined  0: answers well; else fails with fakes.FAULTS[n - 1]; 15 means 0 as well
    polkit    1: after two turns of the loop  2: polkit itself fails  (n >> 2): 0 and 3 yes, 1 no, 2 asks for a password
    turns     (n >> 2) turns of the loop until machined answers; (n & 3) * 4 machines and images in its lists

The byte 0xFF, which no UTF-8 has, is not sent: it ends what is sent at one time.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
import warnings
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType

from bridge import fds, journal, server
from bridge.activation import Listener
from bridge.authorize import Authorizer
from bridge.contract import Contract
from bridge.control import Control
from bridge.dispatch import Dispatcher
from bridge.errors import NoSuchTransfer, Timeout, TransferCanceled, TransferFailed
from bridge.framing import ROOT, Bounds, ProtocolError, parse_call
from bridge.limits import Limits
from bridge.loop import READ, Loop, Timer
from bridge.machined import Machined
from bridge.messages import Parameters, Peer, Reply
from bridge.methods import METHODS, Function
from bridge.policy import Policy, parse

from . import oracle
from .fakes import FAULTS, FakeBus, Script, machined_on, polkit_on

HEADER = 4
CHUNKS_MAX = 24
USER = 1000
# Users' limits; few inputs are larger.
USERS = Limits(message_bytes=512, items=64)
SECONDS_MAX = 20.0

EVERYTHING = """
preset = "all"
machines = ["*", ".host"]
images = ["*", ".host"]
users = ["*"]
programs = ["**"]
environment = ["*"]
host-paths = true
details = true
accept-fds = true
pull = ["http://*/*", "https://*/*"]
"""
NARROW = """
preset = "manage"
machines = ["web*"]
images = ["web*"]
users = ["root", "www-*"]
programs = [["/bin/ls", "**"], ["/bin/id"]]
environment = ["LANG", "LC_*"]
details = true
"""
# What no narrow policy has.
FILES = {f"io.machine1.{name}" for name in ("CopyFromMachine", "CopyToMachine", "BindMountMachine")}
FILES |= {"io.machine1.OpenMachineRootDirectory"}
FILES |= {f"io.machine1.{name}" for name in ("GetPool", "SetPoolLimit", "CleanPool")}
FILES |= oracle.TRANSFERS.keys() - {"io.machine1.ListTransfers"}
# Errors that no contract lists, and what they say.
STANDARD = {
    "org.varlink.service.InterfaceNotFound": {"interface"},
    "org.varlink.service.MethodNotFound": {"method"},
    "org.varlink.service.MethodNotImplemented": {"method"},
    "org.varlink.service.InvalidParameter": {"parameter", "reason"},
    "org.varlink.service.PermissionDenied": set(),
    "org.varlink.service.ExpectedMore": set(),
    "io.systemd.InteractiveAuthenticationRequired": set(),
}
DENIED = {"org.varlink.service.PermissionDenied", "io.systemd.InteractiveAuthenticationRequired"}
HIDDEN = {"io.machine1.NoSuchMachine", "io.machine1.NoSuchImage", "org.varlink.service.PermissionDenied"}


class Finding(AssertionError):
    """Something that must not be."""


def demand(condition: bool, *what: object) -> None:
    if not condition:
        raise Finding(*what)


@dataclass(frozen=True)
class Input:
    """What the bytes of an input mean."""

    root: bool
    reads_late: bool
    leaves: bool
    narrow: bool
    script: Script
    chunks: tuple[bytes, ...]

    @classmethod
    def of(cls, data: bytes) -> Input:
        client, machined, polkit, turns = (byte & 15 for byte in data[:HEADER].ljust(HEADER, b"0"))
        chunks = data[HEADER:].split(b"\xff")
        script = Script(
            fault=machined if machined <= len(FAULTS) else 0,
            listed=(turns & 3) * 4,
            turns=turns >> 2,
            polkit=(polkit >> 2) % 3,
            polkit_fails=bool(polkit & 2),
            polkit_turns=polkit & 1 and 2,
        )
        sent = (*chunks[: CHUNKS_MAX - 1], b"".join(chunks[CHUNKS_MAX - 1 :]))
        return cls(
            root=not client & 1,
            reads_late=bool(client & 2),
            leaves=bool(client & 4),
            narrow=bool(client & 8),
            script=script,
            chunks=tuple(chunk for chunk in sent if chunk),
        )

    def calls(self) -> list[oracle.Call]:
        """Those that the service has to answer: all before the first message that is none."""
        bounds = ROOT if self.root else Bounds(USERS.message_bytes, USERS.depth, USERS.items)
        calls: list[oracle.Call] = []
        for message in b"".join(self.chunks).split(b"\0")[:-1]:
            call = self._call(message, bounds)
            if call is None or len(message) > bounds.message_bytes:
                break
            calls.append(call)
        return calls

    @staticmethod
    def _call(message: bytes, bounds: Bounds) -> oracle.Call | None:
        """What the oracle makes of a message, and parse_call has to make of it as well."""
        try:
            expected = oracle.read_call(message, bounds.items)
        except oracle.Rejected as error:
            try:
                call = parse_call(message, bounds)
            except ProtocolError:
                return None
            raise Finding(f"the bridge takes what is no call: {error}", message, call) from error
        try:
            call = parse_call(message, bounds)
        except ProtocolError as error:
            raise Finding(f"the bridge does not take a call: {error}", message) from error
        # As text, since 1, 1.0 and True are equal.
        actual = repr((call.method, call.parameters, call.more, call.oneway, call.upgrade))
        wanted = repr((expected.method, expected.parameters, expected.more, expected.oneway, expected.upgrade))
        demand(actual == wanted, "read in two ways", actual, wanted)
        return expected


class WatchedLoop(Loop):
    """Knows the timers that were started, and has no pauses of a second or less: time is not what is tried here."""

    def __init__(self) -> None:
        super().__init__()
        self.timers: list[Timer] = []

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        timer = super().call_later(seconds if seconds > 1 else 0, callback)
        self.timers.append(timer)
        return timer

    def forget_cancelled(self) -> None:
        """Cancelled timers stay for a while, at most as long as the loop has something to do."""
        self._patience()

    def waiting(self) -> int:
        """How many have yet to be called or cancelled."""
        self.timers = [timer for timer in self.timers if timer.callback is not None]
        return len(self.timers)


class WatchedServer(server.Server):
    """Tells when a connection is over."""

    over: Callable[[], None]

    def closed(self, connection: server.Connection) -> None:
        super().closed(connection)
        self.over()


class Client:
    """Sends chunks, a turn of the loop between two of them, and keeps what comes back."""

    def __init__(self, loop: Loop, address: str, given: Input) -> None:
        self.received = bytearray()
        self.fds: list[int] = []  # where in `received` each came
        self.hung_up = False
        self._loop = loop
        self._given = given
        self._chunks = deque(given.chunks)
        self._watched = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.connect(address)
        if not given.reads_late and not given.leaves:
            self._read_on()
        loop.call_soon(self._step)

    def close(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        self.hung_up = True

    def _step(self) -> None:
        if self.hung_up:
            return
        try:
            if self._chunks:
                self._socket.send(self._chunks.popleft(), socket.MSG_NOSIGNAL)
                self._loop.call_soon(self._step)
                return
            if not self._given.leaves:
                self._socket.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            self._chunks.clear()
        if self._given.leaves:
            self.close()
        elif not self._watched:
            self._read_on()

    def _read_on(self) -> None:
        self._watched = True
        self._loop.watch(self._socket.fileno(), READ, lambda _: self._read())

    def _read(self) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(65536, socket.CMSG_SPACE(4 * 8), socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            data, ancillary = b"", []
        for _, _, rights in ancillary:
            for fd in array("i", rights):
                os.close(fd)
                self.fds.append(len(self.received))
        self.received += data
        if not data:
            self.close()


async def _watch(machined: Machined, parameters: Parameters) -> Reply:
    """A watch that is over before it says anything."""
    raise Timeout


def _transfer(error: str | None) -> Function:
    """What is over before it begins."""

    async def function(machined: Machined, parameters: Parameters) -> Reply:
        match error:
            case "io.machine1.TransferFailed":
                raise TransferFailed(1, "x")
            case "io.machine1.TransferCanceled":
                raise TransferCanceled(1)
            case "io.machine1.NoSuchTransfer":
                raise NoSuchTransfer(1)
        return Reply({"transfers": []})

    return function


class Stage:
    """Two servers, one with each policy, on one loop. `run` raises Finding, or what escaped."""

    def __init__(self) -> None:
        self.runs = 0
        self.replies = 0
        self.errors: set[str] = set()  # those that came as replies
        self._loop = WatchedLoop()
        self._bus = FakeBus(self._loop)
        self._listeners: list[Listener] = []
        self._servers = [self._serve(EVERYTHING), self._serve(NARROW)]
        self._peer_of = server.peer_of
        self._uid = 0
        self._log, self._record, self._hook = journal.log, journal.record, sys.unraisablehook
        self._complaints: list[str] = []
        server.peer_of = self._peer
        self._starting, fds.STARTING = fds.STARTING, 0.0
        journal.log = journal.record = self._write
        sys.unraisablehook = lambda raised: self._complaints.append(f"{raised.exc_value!r} in {raised.object!r}")
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("error")
        self.run(b"0000")  # what is opened once is open now
        self._fds = open_fds()

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        server.peer_of, sys.unraisablehook = self._peer_of, self._hook
        journal.log, journal.record = self._log, self._record
        journal.set_level(journal.INFO)
        fds.STARTING = self._starting
        self._caught.__exit__(None, None, None)
        for serving in self._servers:
            serving.stop()
        for listener in self._listeners:
            listener.socket.close()
        self._bus.close()
        self._loop.close()

    def run(self, data: bytes) -> None:
        given = Input.of(data)
        calls = given.calls()
        self._bus.script = given.script
        self._bus.calls.clear()
        self._bus.questions.clear()
        self._uid = 0 if given.root else USER
        journal.set_level(journal.INFO)
        client = self._converse(given)
        demand(not self._complaints, *self._complaints)
        if not given.leaves:
            self._check_replies(given, calls, bytes(client.received), client.fds)
        self._check_messages(given, calls)
        self._check_nothing_left()
        self.runs += 1

    def objects(self) -> int:
        """How many blocks of memory Python's objects take: more after many runs, if something is kept of each."""
        self._loop.forget_cancelled()
        gc.collect()
        return sys.getallocatedblocks()

    def _converse(self, given: Input) -> Client:
        """Until the server has done with the client, and the client with the server."""
        over = False

        def end() -> None:
            nonlocal over
            over = True

        def look() -> None:
            if over and client.hung_up:
                self._loop.stop()
            else:
                self._loop.call_soon(look) if over else None

        index = int(given.narrow)
        self._servers[index].over = lambda: (end(), look())  # type: ignore[assignment, func-returns-value]
        client = Client(self._loop, self._listeners[index].socket.getsockname(), given)
        patience = self._loop.call_later(SECONDS_MAX, self._loop.stop)
        self._loop.run()
        demand(patience.callback is not None, f"not over after {SECONDS_MAX} seconds")
        patience.cancel()
        while any(timer.when <= time.monotonic() for timer in self._loop.timers if timer.callback is not None):
            # A pause whose reason went with the client.
            self._loop.call_soon(self._loop.stop)
            self._loop.run()
        return client

    def _check_replies(self, given: Input, calls: list[oracle.Call], received: bytes, fds: list[int]) -> None:
        *messages, rest = received.split(b"\0")
        demand(not rest, "a reply without its end", rest)
        answered = [call for call in calls if not call.oneway]
        begin, terminals, waiting = 0, [], deque(answered)
        for message in messages:
            demand(bool(waiting), "calls and replies", calls, messages)
            call, reply = waiting[0], oracle.read_json(message)
            if isinstance(reply, dict) and reply.pop("continues", False):
                demand(call.more and call.method in oracle.STREAMED and "error" not in reply, "goes on", call, reply)
            else:
                waiting.popleft()
            if self._check_reply(given, call, reply):
                terminals.append(begin)
            begin += len(message) + 1
        demand(not waiting, "calls and replies", calls, messages)
        demand(fds == terminals, "file descriptors came here, were to come there", fds, terminals)
        self.replies += len(messages)

    def _check_reply(self, given: Input, call: oracle.Call, reply: object) -> bool:
        """Whether a file descriptor belongs to it."""
        if not isinstance(reply, dict) or not reply.keys() <= {"error", "parameters"}:
            raise Finding("no reply", reply)
        error, parameters = reply.get("error"), reply.get("parameters")
        demand("error" in reply or parameters != {}, "zlink wants no parameters then", reply)
        parameters = parameters or {}
        if error is None:
            demand(call.method in oracle.METHODS, "there is no such method", call)
            wrong = oracle.violations(oracle.METHODS[call.method]["reply"], parameters)
        elif error in oracle.ERRORS:
            wrong = oracle.violations(oracle.ERRORS[error], parameters)
        else:
            demand(error in STANDARD, "an error that nobody knows", reply)
            wrong = parameters.keys() ^ STANDARD[error]
        demand(not wrong, "does not fit the contract", reply, wrong)
        expected = self._expected_errors(given, call)
        demand(expected is None or error in expected, "another outcome", call, reply, expected)
        if error is not None:
            self.errors.add(error)
        elif given.narrow:
            listed = parameters.get("machines", []) + parameters.get("images", [])
            hidden = [entry["name"] for entry in listed if not entry["name"].startswith("web")]
            demand(not hidden, "the policy hides these", hidden)
        if error == "org.varlink.service.InvalidParameter":
            self._check_parameter(call, parameters["parameter"])
        return error is None and call.method in oracle.WITH_FD

    def _expected_errors(self, given: Input, call: oracle.Call) -> set[str | None] | None:
        """What the call may end in, None for success; None instead of a set if that is machined's to say."""
        if call.method not in oracle.METHODS:
            interface = call.method.rpartition(".")[0]
            known = any(interface == method.rpartition(".")[0] for method in oracle.METHODS)
            return {f"org.varlink.service.{'Method' if known else 'Interface'}NotFound"}
        if given.narrow and (call.method in FILES or call.method in oracle.ROOTS):
            return {"org.varlink.service.PermissionDenied"}
        if oracle.invalid_parameters(call.method, call.parameters):
            # A variable that is assigned twice is found after authorization.
            first = bool(oracle.violations(oracle.METHODS[call.method]["parameters"], call.parameters))
            late: set[str | None] = set() if first else {*DENIED, *HIDDEN, "org.varlink.service.MethodNotImplemented"}
            return {"org.varlink.service.InvalidParameter"} | late
        if call.method in oracle.OWN:
            return self._expected_own(given, call)
        if given.narrow:
            return None
        guarded = oracle.guarded(call.method, call.parameters)
        if guarded and not given.root and not self._polkit_agrees(given):
            return {*DENIED}
        if call.upgrade:
            return {"org.varlink.service.MethodNotImplemented"}
        if call.method in oracle.WANT_MORE and not call.more:
            return {"org.varlink.service.ExpectedMore"}
        if given.script.fault:
            return None
        if call.method in oracle.TRANSFERS:
            return {oracle.TRANSFERS[call.method]}
        if call.method in oracle.WATCHES:
            more = call.more or not METHODS[call.method].streams
            return {"io.machine1.Timeout" if more else "org.varlink.service.ExpectedMore"}
        return oracle.outcomes(call.method, call.parameters)

    def _expected_own(self, given: Input, call: oracle.Call) -> set[str | None]:
        if call.method in oracle.ROOTS and not given.root:
            return {"org.varlink.service.PermissionDenied"}
        if call.upgrade:
            return {"org.varlink.service.MethodNotImplemented"}
        if call.method.endswith("GetInterfaceDescription"):
            known = call.parameters["interface"] in ("io.machine1", "io.systemd.service", "org.varlink.service")
            return {None} if known else {"org.varlink.service.InterfaceNotFound"}
        if call.method != "io.machine1.Check":
            return {None}
        asked = call.parameters["method"]
        asked = asked if "." in asked else f"io.machine1.{asked}"
        if asked in oracle.METHODS:
            wrong = oracle.violations(oracle.METHODS[asked]["parameters"], call.parameters.get("parameters") or {})
            wrong = wrong or oracle.invalid_parameters(asked, call.parameters.get("parameters") or {})
            return {None, "org.varlink.service.InvalidParameter"} if wrong else {None}
        return {"org.varlink.service.MethodNotFound", "org.varlink.service.InterfaceNotFound"}

    def _check_parameter(self, call: oracle.Call, path: str) -> None:
        wrong = oracle.invalid_parameters(call.method, call.parameters)
        if call.method == "io.machine1.Check" and not wrong:
            asked = call.parameters["method"]
            asked = asked if "." in asked else f"io.machine1.{asked}"
            inner = oracle.invalid_parameters(asked, call.parameters.get("parameters") or {})
            wrong = {f"parameters.{path}" for path in inner}
        demand(path in wrong, "another parameter", call, path, wrong)

    @staticmethod
    def _polkit_agrees(given: Input) -> bool:
        return not given.script.polkit_fails and given.script.polkit == 0

    def _check_messages(self, given: Input, calls: list[oracle.Call]) -> None:
        """What machined got: changes in their order and no other; of reads at most as many as were asked for."""
        reaching = [call for call in calls if self._reaches(given, call)]
        wanted = [message for call in reaching if (message := oracle.message_for(call.method, call.parameters))]
        changes = [message for message in wanted if message[0] not in oracle.READS]
        apart = oracle.READS | oracle.FOLLOWING
        actual = [message for message in self._bus.calls if message[0] not in apart]
        started = [message[2] for message in self._bus.calls if message[0] == "StartUnit"]
        units = {f"systemd-nspawn@{call.parameters['name']}.service" for call in reaching if "name" in call.parameters}
        demand(all(unit in units and mode == "fail" for unit, mode in started), "another unit", started, units)
        if given.leaves or given.narrow:
            remaining = iter(changes)
            demand(all(message in remaining for message in actual), "machined got others", actual, changes)
        else:
            demand(repr(actual) == repr(changes), "machined got others", actual, changes)
        reads = len(self._bus.calls) - len(actual)
        allowed = 0
        for call in reaching:
            if call.method in oracle.UNGUARDED | oracle.TWICE:
                allowed += 2 if call.method in oracle.TWICE else 1
                allowed += given.script.listed * len(oracle.DETAILS) if call.parameters.get("details") else 0
        demand(reads <= allowed, "too many reads", self._bus.calls)
        if given.narrow:
            demand(all(message[2][0].startswith("web") for message in actual), "the policy hides this", actual)
        self._check_questions(given, calls, len(actual))

    def _check_questions(self, given: Input, calls: list[oracle.Call], changes: int) -> None:
        """Polkit is asked about each change that a user's call would make, and about nothing else."""
        asked = len(self._bus.questions)
        wanted = 0 if given.root else sum(self._changes(call) for call in calls)
        if given.leaves or given.narrow:
            demand((0 if given.root else changes) <= asked <= wanted, "questions to polkit", asked, changes, wanted)
        else:
            demand(asked == wanted, "questions to polkit", asked, wanted, calls)

    @classmethod
    def _changes(cls, call: oracle.Call) -> bool:
        """Whether it is asked about: also if it assigns a variable twice, which is found after that."""
        if call.method == "io.machine1.Check" and not oracle.invalid_parameters(call.method, call.parameters):
            # It asks what the call that it is about would ask.
            asked, given = call.parameters["method"], call.parameters.get("parameters") or {}
            inner = oracle.Call(asked if "." in asked else f"io.machine1.{asked}", given, False, False, False)
            return inner.method != call.method and cls._changes(inner)
        if call.method not in oracle.METHODS or call.method in oracle.OWN:
            return False
        wrong = oracle.invalid_parameters(call.method, call.parameters)
        if any(not path.startswith("env[") for path in wrong):
            return False
        if oracle.violations(oracle.METHODS[call.method]["parameters"], call.parameters):
            return False
        return oracle.guarded(call.method, call.parameters)

    def _reaches(self, given: Input, call: oracle.Call) -> bool:
        if call.method not in oracle.METHODS or call.method in oracle.OWN or call.upgrade:
            return False
        if call.method in oracle.WANT_MORE and not call.more:
            return False
        if oracle.invalid_parameters(call.method, call.parameters):
            return False
        guarded = oracle.guarded(call.method, call.parameters)
        return given.root or not guarded or self._polkit_agrees(given)

    def _check_nothing_left(self) -> None:
        demand(not self._complaints, *self._complaints)
        demand(self._loop.waiting() == 0, "timers are left", [timer.callback for timer in self._loop.timers])
        # What a client left unread is closed with its connection in a thread.
        end = time.monotonic() + 10
        while not all(serving.closer.idle for serving in self._servers) and time.monotonic() < end:
            time.sleep(0)
        if self.runs:
            fds = open_fds()
            demand(fds == self._fds, "open file descriptors", sorted(fds ^ self._fds))

    def _serve(self, policy: str) -> WatchedServer:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listening.bind("")  # a name that nobody has, in no directory
        listening.listen()
        listener = Listener(listening, "varlink")
        self._listeners.append(listener)
        authorizer = Authorizer(self._policy(policy), polkit_on(self._bus))
        methods = METHODS | {name: replace(METHODS[name], function=_watch) for name in oracle.WATCHES}
        for name, error in oracle.TRANSFERS.items():
            methods[name] = replace(METHODS[name], function=_transfer(error), fd=None)
        dispatcher = Dispatcher(
            Contract(), authorizer, machined_on(self._bus, self._loop), Control(lambda: None), methods
        )
        serving = WatchedServer(self._loop, dispatcher, [listener], 0, USERS)
        serving.start()
        return serving

    @staticmethod
    def _policy(text: str) -> Policy:
        return parse(text.encode(), "default", "default.toml")

    def _peer(self, client: socket.socket, loop: Loop, name: str = "") -> Peer:
        peer = self._peer_of(client, loop, name)
        peer.uid = peer.gid = self._uid
        return peer

    def _write(self, priority: int, message: str, **fields: object) -> None:
        journal.encode({"MESSAGE": message, "PRIORITY": priority, **fields})
        if priority <= journal.ERROR or "Bug" in message:
            self._complaints.append(message)


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))
