# SPDX-License-Identifier: LGPL-2.1-or-later
"""The objects that make up the service, and its arguments: see dispatch.py for what it does with a call."""

import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from . import __version__, activation, fds, journal
from .activation import ActivationError, Listener
from .authorize import Authorizer
from .bus import Bus
from .contract import Contract
from .control import Control
from .dispatch import Dispatcher
from .limits import Limits, within_open_files
from .loop import READ, Loop
from .machined import Machined
from .policy import DEFAULT, Policy, PolicyError, load
from .polkit import AT_ONCE, Polkit
from .server import Server

IDLE_TIMEOUT = 600.0


@dataclass
class Options:
    """Where to listen beside what is handed over, which policy to follow, when to leave (seconds)."""

    listen: list[str] = field(default_factory=list)
    policy: str = DEFAULT
    idle_timeout: float = IDLE_TIMEOUT


def main(arguments: list[str], client: socket.socket | None = None) -> int:
    """Serve until told to stop; with `client`, until it has left. Returns 0, or 1 with a reason in the journal."""
    options = _parse(arguments)
    journal.open_journal()
    try:
        with ExitStack() as cleanup:
            listeners = activation.inherited(os.environ)
            if client is not None:
                listeners.append(Listener(client, "stdio", connected=True))
            policy = load(options.policy)  # before there is a socket to connect to
            for path in options.listen:
                listeners.append(activation.listen(path))
                cleanup.callback(os.unlink, path)
            for listener in listeners:
                cleanup.enter_context(listener.socket)
            if not listeners:
                raise ActivationError("no socket to serve: start machine1-bridge.socket, or use --listen PATH")
            serve(listeners, policy, options)
    except (ActivationError, PolicyError) as error:
        journal.log(journal.ERROR, str(error))
        return 1
    return 0


def serve(listeners: list[Listener], policy: Policy, options: Options) -> None:
    """Serve these sockets until SIGTERM, SIGINT or idleness, or until nobody is there and nobody can come.

    SIGHUP and io.systemd.service.Reload take the policy's file as it is then: for the next call of each client. Its
    limits of a connection hold for new connections.
    """
    loop = Loop()
    journal.use_timers(loop.call_later)
    limits = _limits(policy)
    machined = Machined(loop, limits)
    quick, patient = Bus(loop, AT_ONCE, limits.waiting_calls), Bus(loop, limits.calls_per_user, limits.waiting_calls)
    authorizer = Authorizer(policy, Polkit(quick, patient))

    def reload() -> None:
        """Raises PolicyError, and then all is as it was."""
        activation.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", os.environ)
        try:
            policy = load(options.policy)
            limits = _limits(policy)
        except PolicyError as error:
            journal.log(journal.ERROR, f"Not reloaded: {error}")
            raise
        else:
            authorizer.policy = policy
            server.limit(limits)
            server.accepts_fds = policy.accept_fds
            machined.change_rules(limits)
            quick.turns.limit(AT_ONCE, limits.waiting_calls)
            patient.turns.limit(limits.calls_per_user, limits.waiting_calls)
            journal.log(journal.NOTICE, f"Reloaded the policy {policy.name}")
        finally:
            activation.notify("READY=1", os.environ)

    server = Server(
        loop,
        Dispatcher(Contract(), authorizer, machined, Control(reload)),
        listeners,
        options.idle_timeout,
        limits,
        stopping=lambda: activation.notify("STOPPING=1", os.environ),
        accepts_fds=policy.accept_fds,
    )
    with _signals(loop, server, reload):
        server.start()
        activation.notify("READY=1", os.environ)
        # What is there now stays. Not to look through it again and again keeps calls from waiting for that.
        gc.freeze()
        gc.enable()
        loop.run()
    machined.close()
    quick.close()
    patient.close()
    fds.close_all_untaken()
    journal.close()
    loop.close()


def _limits(policy: Policy) -> Limits:
    limits = within_open_files(policy.limits, accepts_fds=policy.accept_fds)
    if limits.connections < policy.limits.connections:
        journal.log(journal.WARNING, f"The limit of open files leaves room for {limits.connections} connections")
    return limits


@contextmanager
def _signals(loop: Loop, server: Server, reload: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT stop the server, SIGHUP reloads the policy.

    They arrive as bytes on a socket, their numbers, since epoll_wait(2) resumes after them.
    """
    receiver, sender = socket.socketpair()
    receiver.setblocking(False)
    sender.setblocking(False)
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    previous = {number: signal.signal(number, lambda *_: None) for number in handled}
    signal.set_wakeup_fd(sender.fileno())

    def received(_: int) -> None:
        numbers = receiver.recv(16)
        if signal.SIGHUP in numbers:
            with suppress(PolicyError):  # which the journal has
                reload()
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            server.stop()

    loop.watch(receiver.fileno(), READ, received)
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in previous.items():
            signal.signal(number, handler)
        receiver.close()
        sender.close()


def _parse(arguments: list[str]) -> Options:
    """The service of the main socket has no arguments, so it does not pay for a parser of them."""
    if not arguments:
        return Options()
    import argparse

    parser = argparse.ArgumentParser(
        prog="machine1-bridge",
        usage="%(prog)s [OPTION...] | --stdio [--socket PATH] | shell [OPTION...] NAME [COMMAND [ARGUMENT...]] |"
        " report [OPTION...]",
        description="Offer systemd-machined as the Varlink interface io.machine1.",
        epilog="Without --listen, the sockets come from the service manager. With --stdio, speak for one client on"
        " standard input and output. `shell --help` tells of shells, `report --help` of reports of what is wrong. See"
        " machine1-bridge(8).",
    )
    parser.add_argument("--listen", metavar="PATH", action="append", default=[], help="listen on a UNIX socket at PATH")
    parser.add_argument(
        "--idle-timeout",
        metavar="SECONDS",
        type=_seconds,
        default=IDLE_TIMEOUT,
        help="exit after so long without a connection; 0 means never (default: %(default)g)",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--policy", metavar="NAME", default=DEFAULT, help="follow /etc/machine1-bridge/NAME.toml (default: %(default)s)"
    )
    return parser.parse_args(arguments, Options())


def _seconds(text: str) -> float:
    """A finite number of seconds, not negative. Raises ValueError, which argparse reports."""
    seconds = float(text)
    if not 0 <= seconds <= 1e9:
        raise ValueError(text)
    return seconds
