# SPDX-License-Identifier: LGPL-2.1-or-later
"""The objects that make up the service, and its arguments: see dispatch.py for what it does with a call."""

import gc
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from . import __version__, activation, fds, journal
from .activation import ActivationError, Listener
from .authorize import Authorizer
from .bus import Bus
from .contract import Contract
from .dispatch import Dispatcher
from .limits import within_open_files
from .loop import READ, Loop
from .machined import Machined
from .policy import DEFAULT, Policy, PolicyError, load
from .polkit import AT_ONCE, Polkit
from .server import Server

IDLE_TIMEOUT = 600.0


def main(arguments: list[str], client: socket.socket | None = None) -> int:
    """Serve until told to stop; with `client`, until it has left. Returns 0, or 1 with a reason in the journal."""
    options = _parse(arguments)
    journal.open_journal()
    try:
        with ExitStack() as cleanup:
            listeners = activation.inherited(os.environ)
            if client is not None:
                listeners.append(Listener(client, "stdio", connected=True))
            policy = load(options.policy)
            for path in options.listen:
                listeners.append(activation.listen(path))
                cleanup.callback(os.unlink, path)
            for listener in listeners:
                cleanup.enter_context(listener.socket)
            if not listeners:
                raise ActivationError("no socket to serve: start machine1-bridge.socket, or use --listen PATH")
            serve(listeners, policy, options.idle_timeout)
    except (ActivationError, PolicyError) as error:
        journal.log(journal.ERROR, str(error))
        return 1
    return 0


def serve(listeners: list[Listener], policy: Policy, idle_timeout: float) -> None:
    """Serve these sockets until SIGTERM, SIGINT or idleness, or until nobody is there and nobody can come."""
    loop = Loop()
    journal.use_timers(loop.call_later)
    limits = within_open_files(policy.limits)
    if limits.connections < policy.limits.connections:
        journal.log(journal.WARNING, f"The limit of open files leaves room for {limits.connections} connections")
    machined = Machined(loop, limits)
    quick, patient = Bus(loop, AT_ONCE, limits.waiting_calls), Bus(loop, limits.calls_per_user, limits.waiting_calls)
    server = Server(
        loop,
        Dispatcher(Contract(), Authorizer(policy, Polkit(quick, patient)), machined),
        listeners,
        idle_timeout,
        limits,
        stopping=lambda: activation.notify("STOPPING=1", os.environ),
    )
    with _signals(loop, server):
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


@contextmanager
def _signals(loop: Loop, server: Server) -> Iterator[None]:
    """SIGTERM and SIGINT stop the server. They arrive as bytes on a socket, since epoll_wait(2) resumes after them."""
    receiver, sender = socket.socketpair()
    receiver.setblocking(False)
    sender.setblocking(False)
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.set_wakeup_fd(sender.fileno())

    def stop(_: int) -> None:
        receiver.recv(16)
        server.stop()

    loop.watch(receiver.fileno(), READ, stop)
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in previous.items():
            signal.signal(number, handler)
        receiver.close()
        sender.close()


@dataclass
class Options:
    """Where to listen beside what is handed over, which policy to follow, when to leave (seconds)."""

    listen: list[str] = field(default_factory=list)
    policy: str = DEFAULT
    idle_timeout: float = IDLE_TIMEOUT


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
