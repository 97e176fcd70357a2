# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that leave at the wrong time, a process out of descriptors, a clock that jumps, the end in mid-flight."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.client import Client

from .conftest import REPOSITORY, Bridge, Patched, Terminal, eventually, open_fds
from .fake_machined import Bus, FakeMachined
from .fake_polkit import FakePolkit
from .test_faults import ShortDeadline, works
from .test_polkit import UserClient

MANY = [(f"machine-{number:05}", "container", "service", f"/m/{number}") for number in range(10_000)]
CLIENTS = 30


def names(machined: FakeMachined, member: str) -> list[str]:
    return [body[0] for called, body in machined.calls if called == member]


# --- clients that leave ---------------------------------------------------------------------------------------------


def before_the_reply(client: Client, machined: FakeMachined) -> None:
    client.close()


def in_the_middle_of_the_reply(client: Client, machined: FakeMachined) -> None:
    assert client.socket.recv(1)
    client.close()


def after_the_reply(client: Client, machined: FakeMachined) -> None:
    client.receive()
    client.close()


LEAVING = [before_the_reply, in_the_middle_of_the_reply, after_the_reply]
Leave = Callable[[Client, FakeMachined], None]


@pytest.mark.parametrize("leave", LEAVING)
def test_a_client_leaves_a_large_list(bridge: Bridge, machined: FakeMachined, leave: Leave) -> None:
    machined.returns("ListMachines", "a(ssso)", MANY)
    other = bridge.client()
    for _ in range(3):
        client = bridge.client()
        client.send("ListMachines")
        leave(client, machined)
    assert len(other.call("ListMachines")["machines"]) == len(MANY)
    works(other, machined)


@pytest.mark.parametrize("leave", LEAVING)
def test_a_client_leaves_a_shell(
    bridge: Bridge, machined: FakeMachined, terminal: Terminal, leave: Leave
) -> None:
    """The terminal is closed everywhere, and one shell was opened."""
    machined.returns("OpenMachineShell", "hs", terminal.theirs, "/dev/pts/0")
    client = bridge.client()
    client.send("OpenMachineShell", {"name": "m"})
    leave(client, machined)
    assert eventually(lambda: names(machined, "OpenMachineShell") == ["m"])
    works(bridge.client(), machined)
    assert terminal.is_closed()
    assert names(machined, "OpenMachineShell") == ["m"]


@pytest.mark.parametrize("answered", [False, True])
def test_a_client_leaves_a_copy(bridge: Bridge, machined: FakeMachined, answered: bool) -> None:
    """It goes on without it, once."""
    machined.hangs("CopyToMachine")
    client, other = bridge.client(), bridge.client()
    client.send("CopyToMachine", {"name": "m", "src": "/a"})
    machined.wait_for(1)
    if answered:
        machined.answer()
        assert client.reply() == {}
    client.close()
    works(other, machined)
    if not answered:
        machined.answer()
    works(other, machined)
    assert names(machined, "CopyToMachine") == ["m"]


def test_a_client_is_killed_with_calls_in_the_pipeline(bridge: Bridge, machined: FakeMachined) -> None:
    """What it said before its end is done, in order and once each, though nobody hears the replies."""
    machined.returns("TerminateMachine")
    wanted = [f"m{number}" for number in range(50)]
    calls = [{"method": "io.machine1.TerminateMachine", "parameters": {"name": name}} for name in wanted]
    child = os.fork()
    if child == 0:
        client = Client(bridge.path)
        client.send_bytes(b"".join(json.dumps(call).encode() + b"\0" for call in calls))
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    machined.wait_for(len(wanted))
    works(bridge.client(), machined)
    assert names(machined, "TerminateMachine") == wanted


# --- no room for more -----------------------------------------------------------------------------------------------


@contextmanager
def room_for(bridge: Bridge, descriptors: int) -> Iterator[None]:
    """The service may open so many more."""
    pid = bridge.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(number) for number in open_fds(pid)}
    free = (number for number in range(1 << 20) if number not in used)
    highest = [next(free) for _ in range(descriptors + 1)][-1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def test_clients_that_find_no_descriptor_wait_and_none_is_lost(bridge: Bridge, machined: FakeMachined) -> None:
    """A client takes two, its connection and its pidfd, and one more if it is its user's first."""
    other = bridge.client()
    works(other, machined)
    with room_for(bridge, 11):
        clients = [bridge.client() for _ in range(50)]
        for client in clients:
            client.send("ListMachines")
        served, waiting = clients[:5], clients[5:]
        for client in served:
            assert client.reply()["machines"]
        before = bridge.cpu_seconds()
        waiting[0].socket.settimeout(1)
        with pytest.raises(TimeoutError):
            waiting[0].receive()
        assert bridge.cpu_seconds() - before < 0.2
        works(other, machined)
        served[0].close()
        waiting[0].socket.settimeout(10)
        assert waiting[0].reply()["machines"], "the next one gets the place of who left"
    for client in waiting[1:]:
        assert client.reply()["machines"]
    assert bridge.log.read_text().count("Cannot accept connections") == 2, "once before and once after one got in"


@pytest.mark.parametrize("room", [0, 1])
def test_a_user_who_comes_when_descriptors_are_scarce_is_known_all_the_same(
    bridge: Bridge, bus: Bus, machined: FakeMachined, tmp_path: Path, room: int
) -> None:
    """A client that was accepted without its pidfd could not do anything guarded for as long as it stays."""
    tmp_path.chmod(0o755)
    machined.returns("TerminateMachine")
    works(bridge.client(), machined)
    polkit = FakePolkit(bus)
    polkit.says(True)
    with ExitStack() as stack:
        stack.callback(polkit.stop)
        with room_for(bridge, room):
            user = UserClient(bridge.path, 65534)
            stack.callback(user.close)
            user.send("TerminateMachine", {"name": "m"})
            user.socket.settimeout(0.3)
            with pytest.raises(TimeoutError):
                user.receive()
        user.socket.settimeout(10)
        assert user.reply() == {}
        assert names(machined, "TerminateMachine") == ["m"]


def test_no_descriptor_for_a_question_to_polkit_is_a_no(
    bridge: Bridge, bus: Bus, machined: FakeMachined, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    machined.returns("TerminateMachine")
    polkit = FakePolkit(bus)
    polkit.says(True)
    user = UserClient(bridge.path, 65534)
    try:
        assert user.call("TerminateMachine", {"name": "m"}) == {}
        with room_for(bridge, 0):
            for _ in range(3):
                assert user.error("TerminateMachine", {"name": "m"}) == ("org.varlink.service.PermissionDenied", {})
        assert user.call("TerminateMachine", {"name": "m"}) == {}
        assert names(machined, "TerminateMachine") == ["m", "m"]
    finally:
        user.close()
        polkit.stop()


def test_no_descriptor_for_the_bus(bridge: Bridge, bus: Bus, machined: FakeMachined) -> None:
    client = bridge.client()
    client.call("org.varlink.service.GetInfo")
    with room_for(bridge, 0):
        name, parameters = client.error("ListMachines")
        assert name == "io.machine1.Unavailable"
        assert "Too many open files" in parameters["reason"]
    works(client, machined)


def test_no_descriptor_for_a_terminal(bridge: Bridge, machined: FakeMachined, terminal: Terminal) -> None:
    """The kernel drops it on the way (MSG_CTRUNC): the client is told, the shell is closed, the next one works."""
    client = bridge.client()
    works(client, machined)
    machined.returns("RemoveImage")
    client.call("RemoveImage", {"name": "i"})
    machined.returns("OpenMachineShell", "hs", terminal.theirs, "/dev/pts/0")
    with room_for(bridge, 0):
        name, parameters = client.error("OpenMachineShell", {"name": "m"})
        assert (name, client.fds) == ("io.machine1.Unavailable", [])
        assert "file descriptors" in parameters["reason"]
    assert client.call("OpenMachineShell", {"name": "m"})["pty_fd"] == 0
    os.close(client.take_fd())
    assert terminal.is_closed()
    assert names(machined, "OpenMachineShell") == ["m", "m"], "each was asked for, none was repeated"


class FailingAccept(Patched):
    """accept(2) fails in every way that it may fail in, each twice, before it works."""

    errors = (
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ECONNABORTED,
        errno.EINTR,
        errno.EPERM,
        errno.EPROTO,
    )
    patch = f"""
        import os, socket
        import bridge.server
        bridge.server.ACCEPT_PAUSE = 0.02
        errors, accept = 2 * list({tuple(map(int, errors))}), socket.socket.accept
        def fail(listener):
            if errors:
                number = errors.pop()
                raise OSError(number, os.strerror(number))
            return accept(listener)
        socket.socket.accept = fail
    """


def test_accept_may_fail_in_any_way(tmp_path: Path, bus: Bus, machined: FakeMachined) -> None:
    bridge = FailingAccept(tmp_path, bus.address)
    assert bridge.log.read_text().count("Cannot accept connections") == 1, "said once, until it works"
    works(bridge.client(), machined)
    bridge.stop()


class FailingWatch(Patched):
    """epoll_ctl(2) has no room for the third and fourth of the clients: ENOSPC (max_user_watches) and ENOMEM."""

    patch = """
        import errno, os
        import bridge.server
        from bridge.loop import Share
        watch, clients = Share.watch, []
        def fail(share, fd, events, handler):
            if isinstance(getattr(handler, "__self__", None), bridge.server.Connection):
                clients.append(fd)
                number = {3: errno.ENOSPC, 4: errno.ENOMEM}.get(len(clients))
                if number is not None:
                    raise OSError(number, os.strerror(number))
            watch(share, fd, events, handler)
        Share.watch = fail
    """


def test_a_client_that_cannot_be_watched_is_let_go_and_no_other(
    tmp_path: Path, bus: Bus, machined: FakeMachined
) -> None:
    bridge = FailingWatch(tmp_path, bus.address)  # it lets two in to see that it works
    lost, too = bridge.client(), bridge.client()
    assert lost.is_closed()
    assert too.is_closed()
    works(bridge.client(), machined)
    assert "Bug" not in bridge.stop()


# --- the clock ------------------------------------------------------------------------------------------------------


class JumpingClock(ShortDeadline):
    """The time of day is ten years off, now ahead and now behind, each time that anybody asks."""

    patch = (
        ShortDeadline.patch
        + """
        import itertools, sys, time
        import bridge.journal
        years, now, log = itertools.cycle((10, -10)), time.time, bridge.journal.record
        time.time = lambda: now() + next(years) * 31_557_600
        time.time_ns = lambda: int(time.time() * 1e9)
        def verbose(priority, message, **fields):
            log(priority, f"{message} {fields}", **fields)
        bridge.journal.record = verbose
    """
    )


def test_the_time_of_day_decides_nothing(tmp_path: Path, bus: Bus, machined: FakeMachined) -> None:
    bridge = JumpingClock(tmp_path, bus.address, "--idle-timeout", "5")
    client = bridge.client()
    machined.hangs("TerminateMachine")
    for _ in range(2):
        assert client.error("TerminateMachine", {"name": "m"}) == ("io.machine1.Timeout", {})
    machined.returns("TerminateMachine")
    assert client.call("TerminateMachine", {"name": "m"}) == {}
    works(client, machined)
    durations = [int(number) for number in re.findall(r"'MACHINE1_DURATION_USEC': (-?\d+)", bridge.stop())]
    assert len(durations) == 3
    assert all(500_000 <= duration < 5_000_000 for duration in durations[:2]), durations
    assert 0 <= durations[2] < 500_000


def test_nobody_asks_for_the_time_of_day() -> None:
    """But to compare it with the times of files, which are such, and to date a report. What has ended may sleep."""
    asked: dict[str, set[str]] = {}
    for path in (REPOSITORY / "bridge").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
                asked.setdefault(path.stem, set()).add(node.attr)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                imported = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not imported & {"datetime", "time_ns", "localtime", "gmtime"}, path
                assert getattr(node, "module", None) != "time", path
    assert asked.pop("remembered") == asked.pop("pool") == {"time_ns"}
    assert asked.pop("report") == {"strftime", "gmtime", "monotonic"}
    assert {module for module, names in asked.items() if "sleep" in names} == {"shell", "stdio", "fds"}
    assert set.union(*asked.values()) == {"monotonic", "monotonic_ns", "sleep"}


# --- the end --------------------------------------------------------------------------------------------------------


class Caller(threading.Thread):
    """Calls in a loop until it is hung up on: every second call changes something, under a name of its own."""

    def __init__(self, client: Client, number: int) -> None:
        super().__init__()
        self.client, self.number = client, number
        self.asked: list[str] = []
        self.answered: list[str] = []
        self.listed = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while True:
                name = f"m{self.number}-{len(self.asked)}"
                self.asked.append(name)
                self.client.send("TerminateMachine", {"name": name})
                assert self.client.reply() == {}
                self.answered.append(name)
                assert len(self.client.call("ListMachines")["machines"]) == 100
                self.listed += 1
        except (EOFError, ConnectionResetError, BrokenPipeError):
            pass
        except BaseException as error:
            self.failure = error


def test_sigterm_under_load(bridge: Bridge, machined: FakeMachined) -> None:
    """What machined was asked, it was asked once, and the client got its reply; what it was not asked got none."""
    machined.returns("TerminateMachine")
    machined.returns("ListMachines", "a(ssso)", MANY[:100])
    callers = [Caller(bridge.client(), number) for number in range(CLIENTS)]
    for caller in callers:
        caller.start()
    assert eventually(lambda: all(caller.listed for caller in callers))
    bridge.process.send_signal(signal.SIGTERM)
    assert bridge.process.wait(timeout=10) == 0, bridge.log.read_text()
    for caller in callers:
        caller.join()
        assert caller.failure is None
        assert caller.client.rest() == b"", "half a reply"
        assert len(caller.asked) - len(caller.answered) in (0, 1)
    done = names(machined, "TerminateMachine")
    assert len(done) == len(set(done)), "done twice"
    assert {name for caller in callers for name in caller.answered} == set(done)
