# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each limit of a policy on the real process: below it, at it, above it, and that nobody else notices."""

from __future__ import annotations

import json
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.framing import ROOT
from tests.client import Client

from .conftest import HERE, Bridge, eventually, open_fds
from .fake_machined import Bus, FakeMachined
from .fake_polkit import FakePolkit
from .test_polkit import INTERACTIVE, NOBODY, SOMEBODY, Connect, connections

TOO_MANY: tuple[str, dict[str, str]] = ("io.machine1.TooManyOperations", {})
MACHINE = {"class": "vm", "service": "s", "object_path": "/m"}
POLICY = """
preset = "manage"
machines = ["*"]
images = ["*"]
users = ["*"]
programs = ["**"]
environment = ["*"]
polkit = "{polkit}"
[limits]
{limits}
"""


class LimitedBridge(Bridge):
    """The service with a policy of the test's own, and with so many open files at most."""

    def __init__(self, directory: Path, bus_address: str, policy: str, files: tuple[int, int] | None) -> None:
        self._policies = directory / "policies"
        self._policies.mkdir(mode=0o755)
        (self._policies / "default.toml").write_text(policy)
        self._files = files
        super().__init__(directory, bus_address)

    def command(self) -> list[str]:
        files = f"resource.setrlimit(resource.RLIMIT_NOFILE, {self._files})" if self._files else ""
        return ["-c", f"""if True:
            import os, pathlib, resource, sys
            {HERE.strip().replace(chr(10), "; ")}
            import bridge.__main__ as main, bridge.policy as policy
            {files}
            policy.load.__defaults__ = ((pathlib.Path({str(self._policies)!r}),),)
            policy.load.__kwdefaults__["owner"] = os.geteuid()
            sys.exit(main.main())
        """]  # fmt: skip


class Service:
    """The service, who is in, and a user and root that stay all the time: they are the others that notice nothing."""

    def __init__(self, bridge: LimitedBridge, connect: Connect) -> None:
        self.bridge, self._connect = bridge, connect
        self.root = self.bridge.client()
        self.other = connect(4999)

    def client(self, uid: int = NOBODY) -> Client:
        return self.bridge.client() if uid == 0 else self._connect(uid)

    def clients(self, number: int, uid: int = NOBODY) -> list[Client]:
        return [self.client(uid) for _ in range(number)]

    def others_notice_nothing(self) -> None:
        assert works(self.other)
        assert works(self.root)


def works(client: Client) -> bool:
    return client.call("GetMachine", {"name": "m"}) == {"machine": {"name": "m", **MACHINE}}


def stays(client: Client, seconds: float = 0.1) -> bool:
    """Whether nothing comes for a while, neither a reply nor the end."""
    client.socket.settimeout(seconds)
    try:
        client._read()
    except TimeoutError:
        return True
    except EOFError:
        return False
    finally:
        client.socket.settimeout(15)
    return False


Serve = Callable[..., Service]


@pytest.fixture(autouse=True)
def _reachable(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # so that other users reach the socket


@pytest.fixture
def machined(machined: FakeMachined) -> FakeMachined:
    machined.returns("ListMachines", "a(ssso)", [("m", "vm", "s", "/m")])
    machined.returns("TerminateMachine")
    return machined


@pytest.fixture
def serve(tmp_path: Path, bus: Bus, machined: FakeMachined) -> Iterator[Serve]:
    """Start the service with these limits; the rest is as it is by default."""
    services: list[LimitedBridge] = []

    def start(polkit: str = "off", files: tuple[int, int] | None = None, **limits: int) -> Service:
        table = "\n".join(f"{name.replace('_', '-')} = {value}" for name, value in limits.items())
        services.append(LimitedBridge(tmp_path, bus.address, POLICY.format(polkit=polkit, limits=table), files))
        context = connections(services[-1])
        contexts.append(context)
        return Service(services[-1], context.__enter__())

    contexts: list[Any] = []
    yield start
    for context in contexts:
        context.__exit__(None, None, None)
    for service in services:
        service.stop()


# --- connections ----------------------------------------------------------------------------------------------------


def test_connections(serve: Serve) -> None:
    """A quarter is root's. Users beyond theirs are refused; beyond all, everybody waits."""
    service = serve(connections=12)
    users = [service.client(uid) for uid in range(5000, 5008)]  # with the one that stays: nine
    assert all(works(user) for user in users)
    assert service.client(5008).is_closed()
    service.others_notice_nothing()
    admins = service.clients(2, 0)  # with the one that stays: three
    assert all(works(admin) for admin in admins)
    waiting = service.client(0)
    waiting.send("GetMachine", {"name": "m"})
    assert stays(waiting)
    service.others_notice_nothing()
    admins[0].close()
    assert waiting.reply()["machine"]["class"] == "vm"
    users[0].close()
    # It is free for another user once the service has seen that one leave.
    assert eventually(lambda: enters(service, 5009))
    service.others_notice_nothing()
    assert all(works(client) for client in (*users[1:], admins[1], waiting))


def enters(service: Service, uid: int) -> bool:
    with service.client(uid) as client:
        try:
            return works(client)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return False


def test_connections_per_user(serve: Serve) -> None:
    most = 3
    service = serve(connections_per_user=most)
    clients = service.clients(most)
    assert all(works(client) for client in clients)
    assert service.client().is_closed()
    service.others_notice_nothing()
    # Another user has as many of its own, and root has any number.
    assert all(works(client) for client in service.clients(most, SOMEBODY))
    assert service.client(SOMEBODY).is_closed()
    assert all(works(client) for client in service.clients(most + 4, 0))
    assert all(works(client) for client in clients)
    clients.pop().close()
    assert eventually(lambda: enters(service, NOBODY))
    service.others_notice_nothing()
    assert "Too many connections" in service.bridge.log.read_text()


def test_open_files(serve: Serve) -> None:
    """Room for nine connections, four files each, beside the service's own 640. All of them are of use."""
    service = serve(files=(600, 640 + 4 * 9 + 3))
    assert "The limit of open files leaves room for 9 connections" in service.bridge.log.read_text()
    assert resource.prlimit(service.bridge.process.pid, resource.RLIMIT_NOFILE) == (679, 679)
    users = [service.client(uid) for uid in range(5000, 5005)]  # with the one that stays: six
    assert all(works(user) for user in users)
    assert service.client(5005).is_closed()
    admins = service.clients(2, 0)
    assert all(works(admin) for admin in admins)
    late = service.client(0)
    late.send("GetMachine", {"name": "m"})
    assert stays(late)
    service.others_notice_nothing()
    admins[0].close()
    assert late.reply()["machine"]["class"] == "vm"
    assert "Cannot accept" not in service.bridge.log.read_text()


def test_open_files_for_a_shell_of_each_connection(serve: Serve, machined: FakeMachined) -> None:
    """As many files as a connection can have: its own, its process, its user's, and a shell that it does not take."""
    service = serve(files=(679, 679))
    ours, theirs = os.pipe()
    machined.returns("OpenMachineShell", "hs", theirs, "/dev/pts/0")
    users = [service.client(uid) for uid in range(5000, 5005)]
    clients = [service.root, service.other, *users, *service.clients(2, 0)]
    for client in clients:
        client.send("GetMachine", {"name": "m"})
        client.send("OpenMachineShell", {"name": "m", "path": "/bin/sh"})
    machined.wait_for(len(clients) + 1)
    assert eventually(lambda: sum("pipe:" in target for target in open_fds(service.bridge.process.pid).values()) == 9)
    os.close(theirs)
    for client in clients:
        assert client.reply()["machine"]
        assert client.reply()["pty_path"] == "/dev/pts/0"
        os.close(client.take_fd())
    machined.returns("OpenMachineShell")
    os.close(ours)
    assert "Cannot accept" not in service.bridge.log.read_text()


def test_open_files_that_are_enough(serve: Serve) -> None:
    """Only what a policy asks for in vain is said."""
    service = serve(files=(600, 640 + 4 * 100), connections=100)
    service.others_notice_nothing()
    assert service.bridge.log.read_text() == ""


# --- a call ---------------------------------------------------------------------------------------------------------


def of_size(size: int) -> bytes:
    """A call of so many bytes without its NUL."""
    call = b'{"method":"io.machine1.GetMachine","parameters":{"name":"m"}'
    return call.ljust(size - 1) + b"}"


def test_message_bytes(serve: Serve) -> None:
    limit = 4096
    service = serve(message_bytes=limit)
    user = service.client()
    for size in (limit - 1, limit):
        user.send_bytes(of_size(size) + b"\0")
        assert user.reply()["machine"]
    try:
        user.send_bytes(of_size(limit + 1) + b"\0")
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert user.is_closed()
    service.others_notice_nothing()
    # It is not waited for the end of one that is too long already.
    endless = service.client()
    try:
        endless.send_bytes(b" " * (limit + 1))
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert endless.is_closed()
    # Root is held to its own.
    admin = service.client(0)
    for size in (limit + 1, ROOT.message_bytes):
        admin.send_bytes(of_size(size) + b"\0")
        assert admin.reply()["machine"]
    try:
        admin.send_bytes(of_size(ROOT.message_bytes + 1) + b"\0")
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert admin.is_closed()
    service.others_notice_nothing()


def nested(levels: int) -> bytes:
    lists = levels - 2
    return b'{"method":"io.machine1.GetMachine","parameters":{"x":' + b"[" * lists + b"]" * lists + b"}}\0"


def with_items(number: int) -> bytes:
    """So many commas and opening brackets outside of texts."""
    return b'{"method":"io.machine1.GetMachine","parameters":{"x":[' + b",".join([b"1"] * (number - 3)) + b"]}}\0"


@pytest.mark.parametrize(
    ("name", "limit", "call", "of_root"),
    [("depth", 8, nested, ROOT.depth), ("items", 64, with_items, ROOT.items)],
)
def test_depth_and_items(serve: Serve, name: str, limit: int, call: Callable[[int], bytes], of_root: int) -> None:
    """What a call may be like, whatever it asks for: it is answered as a call that is wrong, or ends its connection."""
    service = serve(**{name: limit})
    for client, most in ((service.client(), limit), (service.client(0), of_root)):
        for number in (most - 1, most):
            client.send_bytes(call(number))
            assert client.receive()["error"] == "org.varlink.service.InvalidParameter"
        client.send_bytes(call(most + 1))
        assert client.is_closed()
        service.others_notice_nothing()


# --- what waits -----------------------------------------------------------------------------------------------------


MIB = 1024 * 1024


def test_buffered_bytes_of_a_user(serve: Serve) -> None:
    """A quarter of all. The one whose bytes are too much goes, also if others of its user hold more."""
    service = serve(buffered_bytes=4 * MIB, message_bytes=2 * MIB)
    first, second = service.clients(2)
    call = of_size(300_000)
    first.send_bytes(call[:200_000])
    assert stays(first)
    second.send_bytes(b" " * (MIB - 200_000))
    assert stays(second)
    second.send_bytes(b" ")
    assert second.is_closed()
    service.others_notice_nothing()
    first.send_bytes(call[200_000:] + b"\0")
    assert first.reply()["machine"]
    third = service.client()
    third.send_bytes(b" " * MIB)
    assert stays(third)
    admin = service.client(0)
    admin.send_bytes(b" " * 2 * MIB)
    assert stays(admin)
    service.others_notice_nothing()


def test_buffered_bytes_of_a_call_under_way(serve: Serve, machined: FakeMachined) -> None:
    """It is text by then, which takes more than its bytes: twice, or eight times with characters beyond 8 bits."""
    machined.hangs("RemoveImage")
    service = serve(buffered_bytes=4 * MIB, message_bytes=2 * MIB)

    def call(size: int, name: str) -> bytes:
        return json.dumps({"method": "io.machine1.RemoveImage", "parameters": {"name": name}}).ljust(size).encode()

    for name, factor in (("a", 2), ("\u20ac", 8)):
        fits, other = service.clients(2)
        fits.send_bytes(call(MIB // factor, name) + b"\0")
        assert stays(fits)
        other.send_bytes(call(1000, name) + b"\0")
        assert other.is_closed()
        machined.wait_for(1)
        machined.answer()
        assert fits.reply() == {}
        machined.calls.clear()
    service.others_notice_nothing()


def test_buffered_bytes_of_all_users(serve: Serve) -> None:
    """Who filled it goes, as soon as it sends more; not who comes next."""
    service = serve(buffered_bytes=4 * MIB, message_bytes=2 * MIB)
    *filling, late = (service.client(5000 + number) for number in range(5))
    for user in filling:
        user.send_bytes(b" " * (MIB - 1))
    assert all(stays(user) for user in filling)
    late.send_bytes(b" " * 4)
    assert stays(late)
    late.send_bytes(b" " * 1000)
    assert stays(late)
    filling[2].send_bytes(b" ")
    assert filling[2].is_closed()
    service.root.send_bytes(of_size(100_000) + b"\0")
    assert service.root.reply()["machine"]
    late.send_bytes(of_size(1000) + b"\0")
    assert late.reply()["machine"]
    service.others_notice_nothing()


# --- calls at machined and polkit -----------------------------------------------------------------------------------


def remove(client: Client, name: str) -> None:
    """A call that may take long."""
    client.send("RemoveImage", {"name": name})


def removed(machined: FakeMachined) -> list[str]:
    return [body[0] for member, body in machined.calls if member == "RemoveImage"]


def test_calls_per_user(serve: Serve, machined: FakeMachined) -> None:
    most = 3
    machined.hangs("RemoveImage")
    service = serve(calls_per_user=most)
    clients, others = service.clients(most + 2), service.clients(most, SOMEBODY)
    for number, client in enumerate(clients):
        remove(client, f"a{number}")
    machined.wait_for(most)
    # Theirs come though the first user's wait, and so do reads and quick calls.
    for client in others:
        remove(client, "b")
    for client in service.clients(most + 1, 0):
        remove(client, "root")
    machined.wait_for(most + most + most + 1)
    service.others_notice_nothing()
    assert service.client().call("TerminateMachine", {"name": "m"}) == {}
    assert sorted(removed(machined)) == sorted([f"a{n}" for n in range(most)] + ["b"] * most + ["root"] * (most + 1))
    # One that is answered makes room for one.
    machined.answer()
    assert clients[0].reply() == {}
    assert eventually(lambda: f"a{most}" in removed(machined))
    assert stays(clients[most], 0.1)
    assert f"a{most + 1}" not in removed(machined)
    machined.returns("RemoveImage")
    while machined.unanswered:
        machined.answer()
    for client in (*clients[1:], *others):
        assert client.reply() == {}


def test_calls_per_user_are_also_questions_for_a_password(serve: Serve, machined: FakeMachined, bus: Bus) -> None:
    most = 3
    polkit = FakePolkit(bus)
    polkit.hangs(1)
    service = serve("required", calls_per_user=most)
    clients = service.clients(most)
    for client in clients:
        client.send("TerminateMachine", {"name": "m", **INTERACTIVE})
    polkit.wait_for(most)
    assert service.client().error("TerminateMachine", {"name": "m", **INTERACTIVE})[0] == "io.machine1.Busy"
    assert len(polkit.questions) == most
    service.others_notice_nothing()
    assert service.other.call("TerminateMachine", {"name": "m"}) == {}
    while polkit.waiting:
        polkit.answer(True)
    for client in clients:
        assert client.reply() == {}
    polkit.stop()


def test_waiting_calls(serve: Serve, machined: FakeMachined) -> None:
    most = 3
    machined.hangs("RemoveImage")
    service = serve(calls_per_user=1, waiting_calls=most)
    first, *waiting = service.clients(1 + most)
    remove(first, "a")
    machined.wait_for(1)
    for number, client in enumerate(waiting):
        remove(client, f"a{number}")
    assert stays(waiting[-1])
    more = service.client()
    assert more.error("RemoveImage", {"name": "more"}) == TOO_MANY
    # It is one call that ends. And who has not to wait is none of those.
    assert works(more)
    other = service.client(SOMEBODY)
    remove(other, "other")
    machined.wait_for(2 + 1)
    # One call of each user may wait in any case, so that nobody has all of that to himself.
    patient = service.client(SOMEBODY)
    remove(patient, "patient")
    assert stays(patient)
    assert service.client(SOMEBODY).error("RemoveImage", {"name": "more"}) == TOO_MANY
    service.others_notice_nothing()
    assert removed(machined) == ["a", "other"]
    machined.returns("RemoveImage")
    while machined.unanswered:
        machined.answer()
    for client in (first, *waiting, other, patient):
        assert client.reply() == {}
    assert more.call("RemoveImage", {"name": "more"}) == {}


def test_waiting_calls_are_not_roots(serve: Serve, machined: FakeMachined) -> None:
    """However many of its calls wait, for want of places at machined: none ends in an error."""
    machined.hangs("RemoveImage")
    service = serve(waiting_calls=1, calls_per_user=1)
    admins = service.clients(100, 0)
    for admin in admins:
        remove(admin, "a")
    machined.wait_for(96)
    user = service.client()
    remove(user, "user")
    assert stays(user)
    assert service.client().error("RemoveImage", {"name": "more"}) == TOO_MANY
    service.others_notice_nothing()
    assert len(removed(machined)) == 96
    machined.returns("RemoveImage")
    while machined.unanswered:
        machined.answer()
    for admin in admins:
        assert admin.reply() == {}
    assert user.reply() == {}


def test_waiting_calls_of_quick_ones_and_of_questions(serve: Serve, machined: FakeMachined, bus: Bus) -> None:
    """At machined, and at polkit, which is asked about two of a user at a time."""
    polkit = FakePolkit(bus)
    service = serve("required", waiting_calls=1)
    for slow in ("polkit", "machined"):
        if slow == "polkit":
            polkit.hangs()
        else:
            machined.hangs("TerminateMachine")
        clients = service.clients(3)
        for client in clients:
            client.send("TerminateMachine", {"name": "m"})
            assert stays(client)
        assert len(polkit.waiting) + len(machined.unanswered) == 2
        assert service.client().error("TerminateMachine", {"name": "m"}) == TOO_MANY
        service.others_notice_nothing()
        polkit.says(True)
        machined.returns("TerminateMachine")
        while polkit.waiting:
            polkit.answer(True)
        while machined.unanswered:
            machined.answer()
        for client in clients:
            assert client.reply() == {}
    polkit.stop()


# --- time -----------------------------------------------------------------------------------------------------------


def test_request_seconds(serve: Serve, machined: FakeMachined) -> None:
    """At the same time, to be quick: who is done in time, who is not, who trickles, and who has a call under way."""
    machined.hangs("RemoveImage")
    service = serve(request_seconds=2)
    in_time, late, trickling, waiting, silent = service.clients(5)
    root = service.client(0)
    call = of_size(100) + b"\0"
    waiting.send_bytes(b'{"method":"io.machine1.RemoveImage","parameters":{"name":"i"}}\0' + call[:50])
    machined.wait_for(1)
    begin = time.monotonic()
    for client in (in_time, late, root):
        client.send_bytes(call[:50])
    ends: list[float] = []

    def note(client: Client) -> None:
        assert client.is_closed()
        ends.append(time.monotonic() - begin)

    watchers = [threading.Thread(target=note, args=(client,)) for client in (late, root, trickling)]
    for watcher in watchers:
        watcher.start()
    for number in range(70):
        try:
            trickling.send_bytes(call[number : number + 1])
        except (BrokenPipeError, ConnectionResetError):
            break
        if number == 5:
            in_time.send_bytes(call[50:])
            assert in_time.reply()["machine"]
        time.sleep(0.1)
    for watcher in watchers:
        watcher.join()
    assert len(ends) == 3
    assert all(2 <= seconds < 6 for seconds in ends), ends
    service.others_notice_nothing()
    assert works(silent)
    assert works(in_time)
    # Its time begins when the call before is answered.
    machined.answer()
    assert waiting.reply() == {}
    assert stays(waiting)
    waiting.send_bytes(call[50:])
    assert waiting.reply()["machine"]


def test_reply_seconds(serve: Serve, machined: FakeMachined) -> None:
    """Of those who read nothing, and of one who takes its time; each of replies that fill the socket."""
    service = serve(reply_seconds=2)
    late, root, in_time, calls = service.client(), service.client(0), service.client(), len(machined.calls)
    entries = [(f"m{number}", "vm", "s", f"/m{number}") for number in range(5000)]
    machined.returns("ListMachines", "a(ssso)", entries)
    begin = time.monotonic()
    for client in (late, root, in_time):
        client.send("ListMachines")
    # So many clients ask one by one: the third is not answered by the first one's call.
    machined.wait_for(calls + 3)
    machined.returns("ListMachines", "a(ssso)", [("m", "vm", "s", "/m")])
    service.others_notice_nothing()
    time.sleep(0.5)
    assert len(in_time.reply()["machines"]) == 5000
    assert eventually(lambda: clients_of(service) == 3, 5)
    assert time.monotonic() - begin >= 2
    for client in (late, root):
        with pytest.raises((EOFError, ConnectionResetError)):
            client.receive()
    assert works(in_time)
    service.others_notice_nothing()


def clients_of(service: Service) -> int:
    """How many connections the service has: each with a pidfd."""
    return sum("pidfd" in target for target in open_fds(service.bridge.process.pid).values())


def test_a_flood_of_one_user_delays_nobody(serve: Serve) -> None:
    """With all defaults. What it takes to be slower is a second process that wants the processor."""
    service = serve()
    flood, ended = service.clients(8), threading.Event()
    call = json.dumps({"method": "io.machine1.GetMachine", "parameters": {"name": 5}}).encode() + b"\0"

    def pour(client: Client) -> None:
        client.socket.settimeout(0.05)
        while not ended.is_set():
            for step in (lambda: client.socket.send(call * 20), lambda: client.socket.recv(1 << 20)):
                try:
                    step()
                except TimeoutError:
                    pass

    threads = [threading.Thread(target=pour, args=(client,)) for client in flood]
    for thread in threads:
        thread.start()
    times = []
    for _ in range(20):
        begin = time.monotonic()
        service.others_notice_nothing()
        times.append(time.monotonic() - begin)
        time.sleep(0.01)
    ended.set()
    for thread in threads:
        thread.join()
    assert sorted(times)[10] < 0.25, times
