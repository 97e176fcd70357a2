# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a real polkit does but rarely: wait for a password, fail, lie, be old. The lab runs a real one."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.client import Client

from .conftest import Bridge, eventually, open_fds
from .fake_machined import Bus, FakeMachined
from .fake_polkit import FAILED, RESULT, FakePolkit, Question

NOBODY, SOMEBODY = 65534, 4711
QUESTIONS_MAX = 8
PLACES = 72  # of users' questions at one time
INTERACTIVE = {"allowInteractiveAuthentication": True}
DENIED: tuple[str, dict[str, str]] = ("org.varlink.service.PermissionDenied", {})
PASSWORD: tuple[str, dict[str, str]] = ("io.systemd.InteractiveAuthenticationRequired", {})
BUSY = "io.machine1.Busy"


class UserClient(Client):
    """The connection of another user's process, which `end` ends without hanging up: the socket is held here, too."""

    def __init__(self, path: str, uid: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(15)
        self._buffer = b""
        self.fds = []
        ready, connected = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._close_others(connected)
                # From inside: another session of pytest closes the directories above it to other users.
                os.chdir(os.path.dirname(path))
                os.setresuid(uid, uid, uid)
                self.socket.connect(os.path.basename(path))
                os.write(connected, b"!")
                signal.pause()
            finally:
                os._exit(1)
        os.close(connected)
        self._alive = True
        started = os.read(ready, 1)
        os.close(ready)
        assert started == b"!"

    def _close_others(self, kept: int) -> None:
        """What a fork inherits: other clients' connections would not end before this one."""
        for fd in open_fds():
            if int(fd) not in (0, 1, 2, kept, self.socket.fileno()):
                try:
                    os.close(int(fd))
                except OSError:
                    pass

    def end(self) -> None:
        """The process, not the connection."""
        if self._alive:
            self._alive = False
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def close(self) -> None:
        self.end()
        super().close()


@pytest.fixture(autouse=True)
def _reachable(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # so that other users reach the socket


@pytest.fixture
def polkit(bus: Bus) -> Iterator[FakePolkit]:
    polkit = FakePolkit(bus)
    yield polkit
    polkit.stop()


@pytest.fixture
def machined(machined: FakeMachined) -> FakeMachined:
    machined.returns("ListMachines", "a(ssso)", [("m", "vm", "s", "/m")])
    for member in ("TerminateMachine", "KillMachine", "CopyFromMachine", "CopyToMachine", "RemoveImage", "CloneImage"):
        machined.returns(member)
    machined.returns("RenameImage")
    return machined


Connect = Callable[..., UserClient]


@pytest.fixture
def connect(bridge: Bridge) -> Iterator[Connect]:
    """Connections of other users, nobody if not told. Closed before the bridge is looked at for what stays open."""
    with connections(bridge) as connect:
        yield connect


@contextmanager
def connections(bridge: Bridge) -> Iterator[Connect]:
    clients: list[UserClient] = []

    def connect(uid: int = NOBODY) -> UserClient:
        clients.append(UserClient(bridge.path, uid))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def terminate(client: Client, name: str = "m", /, **more: bool) -> None:
    client.send("TerminateMachine", {"name": name, **more})


def terminated(machined: FakeMachined) -> list[str]:
    return [body[0] for member, body in machined.calls if member == "TerminateMachine"]


def start_time(pid: int) -> int:
    """proc_pid_stat(5), field 22."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[22 - 3])


# --- who is asked about ----------------------------------------------------------------------------------------------


def test_the_subject_is_the_process_that_the_kernel_names(
    connect: Connect, polkit: FakePolkit, machined: FakeMachined
) -> None:
    polkit.says(True)
    for uid in (NOBODY, SOMEBODY):
        client = connect(uid)
        assert client.call("TerminateMachine", {"name": "m"}) == {}
        question = polkit.questions[-1]
        assert question.kind == "unix-process"
        assert set(question.subject) == {"pidfd", "uid"}
        assert question.subject["uid"] == ("i", uid)
        assert question.process == client.pid
        assert question.action == "io.machine1.manage-machines"
        assert question.details == {"verb": "terminate", "machine": "m"}
    assert len({question.identifier for question in polkit.questions}) == 2
    assert terminated(machined) == ["m", "m"]


def test_an_old_polkit_is_asked_by_pid_and_start_time_from_then_on(
    connect: Connect, polkit: FakePolkit, machined: FakeMachined
) -> None:
    polkit.says(True)
    polkit.knows_pidfds = False
    first, second = connect(NOBODY), connect(SOMEBODY)
    assert first.call("TerminateMachine", {"name": "a"}) == {}
    assert second.call("TerminateMachine", {"name": "b"}) == {}
    assert [set(question.subject) for question in polkit.questions] == [
        {"pidfd", "uid"},
        {"pid", "start-time", "uid"},
        {"pid", "start-time", "uid"},
    ]
    for question, client, uid in zip(polkit.questions[1:], (first, second), (NOBODY, SOMEBODY), strict=True):
        assert question.subject == {
            "pid": ("u", client.pid),
            "start-time": ("t", start_time(client.pid)),
            "uid": ("i", uid),
        }
    assert terminated(machined) == ["a", "b"]


def test_a_client_that_ended_before_its_start_time_was_read_is_refused(
    bridge: Bridge, connect: Connect, polkit: FakePolkit, machined: FakeMachined
) -> None:
    polkit.knows_pidfds = False
    client, other = connect(), connect()

    def end_it(question: Question) -> tuple[str, tuple[Any, ...]]:
        """By the time that the bridge hears of it, the process is gone."""
        client.end()
        return RESULT, ((True, False, {}),)

    polkit.handler = end_it
    assert client.error("TerminateMachine", {"name": "m"}) == DENIED
    # And at once, without a question, when it is known that polkit is old.
    assert client.error("TerminateMachine", {"name": "m"}) == DENIED
    assert len(polkit.questions) == 1
    assert terminated(machined) == []
    assert bridge.log.read_text().count("(kernel: the process that connected has ended)") == 2
    polkit.says(True)
    assert other.call("TerminateMachine", {"name": "m"}) == {}


def test_another_error_is_no_reason_to_ask_in_another_way(connect: Connect, polkit: FakePolkit) -> None:
    polkit.fails(FAILED, "no action of this name")
    client = connect()
    for _ in range(2):
        assert client.error("TerminateMachine", {"name": "m"}) == DENIED
    assert [set(question.subject) for question in polkit.questions] == [{"pidfd", "uid"}] * 2


def test_root_is_never_asked_about(bridge: Bridge, polkit: FakePolkit, machined: FakeMachined) -> None:
    client = bridge.client()
    polkit.says(False)
    assert client.call("TerminateMachine", {"name": "m"}) == {}
    assert client.call("TerminateMachine", {"name": "m", **INTERACTIVE}) == {}
    assert client.call("Check", {"method": "TerminateMachine", "parameters": {"name": "m"}})["allowed"]
    assert polkit.questions == []


def test_reads_and_what_is_no_valid_call_ask_nobody(
    connect: Connect, polkit: FakePolkit, machined: FakeMachined
) -> None:
    client = connect()
    assert client.call("ListMachines")["machines"]
    invalid = "org.varlink.service.InvalidParameter"
    assert client.error("TerminateMachine", {"name": 5})[0] == invalid
    assert client.error("CopyFromMachine", {"name": "m", "src": "/a", "dest": "/a/../b"})[0] == invalid
    assert client.error("TerminateEverything")[0] == "org.varlink.service.MethodNotFound"
    assert client.error("TerminateMachine", {"name": ""})[0] == invalid
    assert polkit.questions == []


# --- what it answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "flags"), [({}, 0), ({"allowInteractiveAuthentication": False}, 0), (INTERACTIVE, 1)]
)
def test_a_user_is_asked_only_if_the_call_allows_it(
    connect: Connect, polkit: FakePolkit, machined: FakeMachined, parameters: Mapping[str, bool], flags: int
) -> None:
    polkit.says(True)
    assert connect().call("TerminateMachine", {"name": "m", **parameters}) == {}
    (question,) = polkit.questions
    assert question.flags == flags
    assert "allowInteractiveAuthentication" not in question.details


def test_check_never_asks_a_user(connect: Connect, polkit: FakePolkit, machined: FakeMachined) -> None:
    client = connect()
    inner = {"method": "TerminateMachine", "parameters": {"name": "m", **INTERACTIVE}}
    polkit.says(False, challenge=True)
    assert client.call("Check", inner) == {"allowed": False, "reason": "polkit would ask for a password"}
    polkit.says(False)
    assert client.call("Check", inner) == {"allowed": False, "reason": "polkit says no"}
    polkit.says(True)
    assert client.call("Check", inner) == {"allowed": True, "reason": ""}
    assert [question.flags for question in polkit.questions] == [0, 0, 0]
    assert terminated(machined) == []


@pytest.mark.parametrize(
    ("allowed", "challenge", "interactive", "expected"),
    [
        (False, False, False, DENIED),
        (False, True, False, PASSWORD),
        (False, False, True, DENIED),
        # Who was asked for a password and gave a wrong one need not be told that one would help.
        (False, True, True, DENIED),
        (True, True, False, None),
        (True, True, True, None),
    ],
)
def test_what_polkit_says_is_what_becomes_of_the_call(
    connect: Connect,
    polkit: FakePolkit,
    machined: FakeMachined,
    allowed: bool,
    challenge: bool,
    interactive: bool,
    expected: tuple[str, dict[str, str]] | None,
) -> None:
    polkit.says(allowed, challenge)
    client = connect()
    terminate(client, allowInteractiveAuthentication=interactive)
    reply = client.receive()
    if expected is None:
        assert reply.get("parameters", {}) == {}
        assert "error" not in reply
    else:
        # Present and empty for systemd's own error, as systemd's own services answer; for others see framing.py.
        assert (reply["error"], reply["parameters"] or {}) == expected
        assert expected != PASSWORD or reply["parameters"] == {}
    assert terminated(machined) == ([] if expected else ["m"])


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        FAILED,
        "org.freedesktop.PolicyKit1.Error.NotAuthorized",
        "org.freedesktop.PolicyKit1.Error.Cancelled",
        "org.freedesktop.DBus.Error.AccessDenied",
        "org.freedesktop.DBus.Error.NoReply",
        "org.freedesktop.DBus.Error.LimitsExceeded",
    ],
)
def test_an_error_is_a_no(
    connect: Connect, polkit: FakePolkit, machined: FakeMachined, name: str, interactive: bool
) -> None:
    polkit.fails(name, "as it says")
    client = connect()
    assert client.error("TerminateMachine", {"name": "m", "allowInteractiveAuthentication": interactive}) == DENIED
    assert terminated(machined) == []
    polkit.says(True)
    assert client.call("TerminateMachine", {"name": "m"}) == {}


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("", ()),
        ("b", (True,)),
        ("bba{ss}", (True, True, {})),
        ("(bb)", ((True, True),)),
        ("(iba{ss})", ((1, True, {}),)),
        ("(bba{ss})s", ((True, True, {}), "more")),
        ("s", ("yes",)),
    ],
)
def test_an_answer_of_the_wrong_type_is_a_no(
    bridge: Bridge,
    connect: Connect,
    polkit: FakePolkit,
    machined: FakeMachined,
    signature: str,
    body: tuple[object, ...],
) -> None:
    polkit.returns(signature, *body)
    client = connect()
    assert client.error("TerminateMachine", {"name": "m"}) == DENIED
    assert terminated(machined) == []
    assert "polkit gave no answer about io.machine1.manage-machines, so it is no" in bridge.log.read_text()
    polkit.says(True)
    assert client.call("TerminateMachine", {"name": "m"}) == {}


def test_descriptors_in_an_answer_are_closed(
    bridge: Bridge, connect: Connect, polkit: FakePolkit, machined: FakeMachined
) -> None:
    client = connect()
    ours, theirs = os.pipe()
    polkit.returns("h", theirs)
    assert client.error("TerminateMachine", {"name": "m"}) == DENIED
    os.close(theirs)
    assert os.read(ours, 1) == b""
    os.close(ours)


class ShortDeadline(Bridge):
    """The service with a deadline of half a second for polkit's answers."""

    patch = "import bridge.polkit as p; p.DEADLINE = 0.5"


def test_no_answer_in_time_is_a_no_but_a_person_has_all_the_time(
    tmp_path: Path, bus: Bus, polkit: FakePolkit, machined: FakeMachined
) -> None:
    bridge = ShortDeadline(tmp_path, bus.address)
    polkit.handler = lambda _: None
    with connections(bridge) as connect:
        late, slow, root = connect(), connect(SOMEBODY), bridge.client()
        terminate(slow, "slow", **INTERACTIVE)
        polkit.wait_for(1)
        began = time.monotonic()
        assert late.error("TerminateMachine", {"name": "late"}) == DENIED
        assert 0.4 < time.monotonic() - began < 5
        assert root.call("TerminateMachine", {"name": "root"}) == {}
        # The one that comes too late is nobody's.
        polkit.answer(True, 1)
        polkit.answer(True, 0)
        assert slow.reply() == {}
        assert terminated(machined) == ["root", "slow"]
        polkit.says(True)
        assert late.call("TerminateMachine", {"name": "again"}) == {}
    bridge.stop()


def test_polkit_comes_goes_and_comes_back(connect: Connect, bus: Bus, machined: FakeMachined) -> None:
    client, waiting = connect(), connect(SOMEBODY)
    assert client.error("TerminateMachine", {"name": "m"}) == DENIED
    assert client.error("TerminateMachine", {"name": "m", **INTERACTIVE}) == DENIED
    polkit = FakePolkit(bus)
    polkit.hangs(1)
    assert client.call("TerminateMachine", {"name": "m"}) == {}
    terminate(waiting, **INTERACTIVE)
    polkit.wait_for(2)
    polkit.stop()
    assert waiting.receive()["error"] == DENIED[0]
    assert client.error("TerminateMachine", {"name": "m"}) == DENIED
    back = FakePolkit(bus)
    back.says(True)
    assert waiting.call("TerminateMachine", {"name": "n"}) == {}
    assert terminated(machined) == ["m", "n"]
    back.stop()


# --- a question that waits -------------------------------------------------------------------------------------------


def test_a_question_that_waits_holds_up_nobody_else(
    bridge: Bridge, connect: Connect, polkit: FakePolkit, machined: FakeMachined
) -> None:
    polkit.hangs(1)
    asked, same, other, root = connect(), connect(), connect(SOMEBODY), bridge.client()
    terminate(asked, "asked", **INTERACTIVE)
    polkit.wait_for(1)
    began = time.monotonic()
    assert same.call("ListMachines")["machines"]
    assert other.call("ListMachines")["machines"]
    assert root.call("TerminateMachine", {"name": "root"}) == {}
    assert same.call("TerminateMachine", {"name": "same"}) == {}
    assert other.call("TerminateMachine", {"name": "other"}) == {}
    terminate(other, "later", **INTERACTIVE)
    polkit.wait_for(4)
    # Answered in another order than asked.
    polkit.answer(True, 1)
    assert other.reply() == {}
    assert time.monotonic() - began < 5
    assert terminated(machined) == ["root", "same", "other", "later"]
    assert polkit.cancelled == []
    polkit.answer(True)
    assert asked.reply() == {}
    assert terminated(machined)[-1] == "asked"


def test_it_ends_when_the_client_leaves(
    bridge: Bridge, connect: Connect, polkit: FakePolkit, machined: FakeMachined
) -> None:
    with connect() as first:
        polkit.says(True)
        assert first.call("TerminateMachine", {"name": "first", **INTERACTIVE}) == {}
    bridge.fds_without_clients(0)
    before = len(open_fds(bridge.process.pid))
    polkit.hangs(1)
    leaving, staying = connect(), connect()
    terminate(leaving, "leaving", **INTERACTIVE)
    polkit.wait_for(2)
    terminate(staying, "staying", **INTERACTIVE)
    polkit.wait_for(3)
    leaving.close()
    polkit.wait_for(cancelled=1)
    assert polkit.cancelled == [polkit.questions[1].identifier]
    polkit.answer(True)
    assert staying.reply() == {}
    staying.close()
    assert eventually(lambda: len(open_fds(bridge.process.pid)) == before), open_fds(bridge.process.pid)
    # Who was answered leaves without a word about it.
    assert len(polkit.cancelled) == 1
    assert terminated(machined) == ["first", "staying"]


def test_a_process_that_ends_leaves(connect: Connect, polkit: FakePolkit, machined: FakeMachined) -> None:
    """As a client does whose user pressed Ctrl-C: the kernel hangs up."""
    polkit.hangs(1)
    client = connect()
    terminate(client, **INTERACTIVE)
    polkit.wait_for(1)
    client.socket.close()
    assert polkit.cancelled == []
    client.end()
    polkit.wait_for(cancelled=1)
    assert terminated(machined) == []


def test_what_was_sent_before_leaving_asks_nobody_for_a_password_for_long(
    bridge: Bridge, connect: Connect, polkit: FakePolkit, machined: FakeMachined
) -> None:
    """More calls of a client that left: each of their questions is cancelled as well."""
    polkit.hangs(1)
    client = connect()
    for name in ("a", "b", "c"):
        terminate(client, name, **INTERACTIVE)
    polkit.wait_for(1)
    client.close()
    polkit.wait_for(3, cancelled=3)
    assert polkit.cancelled == [question.identifier for question in polkit.questions]
    assert bridge.fds_without_clients(0) <= bridge.fds_at_start + 2
    assert terminated(machined) == []


def test_one_who_leaves_before_the_bus_has_greeted_spoils_it_for_nobody(
    bridge: Bridge, connect: Connect, polkit: FakePolkit, machined: FakeMachined
) -> None:
    """The connection for questions is opened by the first one. Its client may be gone before it is ready."""
    polkit.handler = lambda question: None if question.details["machine"] == "gone" else (RESULT, ((True, False, {}),))
    leaving, other = connect(), connect(SOMEBODY)
    os.kill(bridge.process.pid, signal.SIGSTOP)
    terminate(leaving, "gone", **INTERACTIVE)
    leaving.close()
    terminate(other, "other")
    os.kill(bridge.process.pid, signal.SIGCONT)
    assert other.reply() == {}
    assert terminated(machined) == ["other"]
    # Whether it was asked or not: nobody's question goes on.
    assert eventually(lambda: not polkit.waiting)
    # The other client with its pidfd and its user, and three connections to the bus: for changes and for both kinds of
    # questions.
    assert bridge.fds_without_clients(1) <= bridge.fds_at_start + 3 + 3


def test_a_user_has_so_many_questions_at_a_time(
    bridge: Bridge, connect: Connect, polkit: FakePolkit, machined: FakeMachined
) -> None:
    polkit.hangs(1)
    clients = [connect() for _ in range(QUESTIONS_MAX)]
    for number, client in enumerate(clients):
        terminate(client, f"m{number}", **INTERACTIVE)
    polkit.wait_for(QUESTIONS_MAX)
    more, other, root = connect(), connect(SOMEBODY), bridge.client()
    name, reason = more.error("TerminateMachine", {"name": "more", **INTERACTIVE})
    assert (name, set(reason)) == (BUSY, {"reason"})
    assert len(polkit.questions) == QUESTIONS_MAX
    # A call that asks nobody goes on.
    assert more.call("TerminateMachine", {"name": "more"}) == {}
    # Reads go on, and others' calls.
    assert more.call("ListMachines")["machines"]
    assert other.call("TerminateMachine", {"name": "other"}) == {}
    assert root.call("TerminateMachine", {"name": "root"}) == {}
    # One that is answered makes room, and so does one whose client leaves.
    polkit.answer(False)
    assert eventually(lambda: more.call("Check", {"method": "RemoveImage", "parameters": {"name": "i"}})["allowed"])
    terminate(more, "again", **INTERACTIVE)
    polkit.wait_for(QUESTIONS_MAX + 4)
    last = connect()
    assert last.error("TerminateMachine", {"name": "last", **INTERACTIVE})[0] == BUSY
    clients[5].close()
    polkit.wait_for(cancelled=1)
    assert eventually(lambda: last.call("Check", {"method": "RemoveImage", "parameters": {"name": "i"}})["allowed"])
    assert last.call("TerminateMachine", {"name": "last"}) == {}
    assert terminated(machined) == ["more", "other", "root", "last"]


def test_many_users_hold_up_nobody_else(
    bridge: Bridge, connect: Connect, polkit: FakePolkit, machined: FakeMachined
) -> None:
    """One person can have many UIDs (subuid(5)); all their questions together leave room for others'."""
    polkit.hangs(1)
    for uid in range(100000, 100014):
        for _ in range(QUESTIONS_MAX):
            terminate(connect(uid), **INTERACTIVE)
    time.sleep(1)
    other = connect()
    other.socket.settimeout(5)
    assert other.call("TerminateMachine", {"name": "other"}) == {}


def test_who_would_have_to_wait_for_others_passwords_is_told(
    bridge: Bridge, connect: Connect, polkit: FakePolkit, machined: FakeMachined
) -> None:
    polkit.hangs(1)
    for number in range(PLACES):
        terminate(connect(100000 + number // QUESTIONS_MAX), **INTERACTIVE)
    polkit.wait_for(PLACES)
    assert connect().error("TerminateMachine", {"name": "m", **INTERACTIVE})[0] == BUSY
    assert connect().call("TerminateMachine", {"name": "m"}) == {}
    assert bridge.client().call("TerminateMachine", {"name": "root"}) == {}


def test_who_asks_and_leaves_again_and_again_is_in_nobodys_way(
    bridge: Bridge, connect: Connect, polkit: FakePolkit, machined: FakeMachined
) -> None:
    """A question that nobody waits for is still worked on: until it has ended it has its user's place."""
    polkit.hangs(0)
    leaving = [connect() for _ in range(60)]
    for client in leaving:
        terminate(client, "left")
    polkit.wait_for(2)
    for client in leaving:
        client.close()
        time.sleep(0.005)
        assert len(polkit.questions) <= len(polkit.cancelled) + 2
    polkit.hangs(1)
    assert connect(SOMEBODY).call("TerminateMachine", {"name": "other"}) == {}
    assert terminated(machined) == ["other"]


def test_sigterm_ends_a_question(tmp_path: Path, bus: Bus, polkit: FakePolkit, machined: FakeMachined) -> None:
    """A password prompt that nobody answers keeps the service from stopping for minutes."""
    polkit.hangs(1)
    bridge = Bridge(tmp_path, bus.address)
    with connections(bridge) as connect:
        client = connect()
        terminate(client, **INTERACTIVE)
        polkit.wait_for(1)
        bridge.process.send_signal(signal.SIGTERM)
        ended = eventually(lambda: bridge.process.poll() is not None, 3)
    assert bridge.process.wait(timeout=10) == 0
    bridge.stop()
    assert ended


# --- what was asked is what is done ----------------------------------------------------------------------------------

SHELL = {"verb": "open-shell", "machine": "m", "user": "root", "program": "", "argv": "[]", "environment": "[]"}
IN = {"verb": "copy-to", "direction": "in", "machine": "m", "replace": "false"}
OUT = {"verb": "copy-from", "direction": "out", "machine": "m", "replace": "false"}
# Method and parameters; the details that polkit gets; the arguments that machined gets.
SAME: list[tuple[str, dict[str, Any], dict[str, str], tuple[Any, ...]]] = [
    ("OpenMachineShell", {}, SHELL, ("m", "root", "", [], [])),
    ("OpenMachineShell", {"user": ""}, SHELL, ("m", "root", "", [], [])),
    ("OpenMachineShell", {"user": "0"}, SHELL, ("m", "root", "", [], [])),
    ("OpenMachineShell", {"user": None, "path": None, "args": None, "env": None}, SHELL, ("m", "root", "", [], [])),
    # The login shell takes no arguments, so none are shown.
    ("OpenMachineShell", {"path": "", "args": ["sh", "-c", "x"]}, SHELL, ("m", "root", "", [], [])),
    (
        "OpenMachineShell",
        {"user": "joe", "path": "/bin/ls"},
        SHELL | {"user": "joe", "program": "/bin/ls", "argv": '["/bin/ls"]'},
        ("m", "joe", "/bin/ls", ["/bin/ls"], []),
    ),
    (
        "OpenMachineShell",
        {"path": "/bin/ls", "args": []},
        SHELL | {"program": "/bin/ls", "argv": '["/bin/ls"]'},
        ("m", "root", "/bin/ls", ["/bin/ls"], []),
    ),
    (
        "OpenMachineShell",
        {"path": "/bin/sh", "args": ["sh", "-c", 'echo "a b" ä'], "env": ["A=1 2", "B="]},
        SHELL
        | {
            "program": "/bin/sh",
            "argv": '["sh", "-c", "echo \\"a b\\" ä"]',
            "environment": '["A=1 2", "B="]',
        },
        ("m", "root", "/bin/sh", ["sh", "-c", 'echo "a b" ä'], ["A=1 2", "B="]),
    ),
    # machined undoes the doubling, so that the program gets what polkit was shown.
    (
        "OpenMachineShell",
        {"path": "/bin/sh", "args": ["sh", "$X"]},
        SHELL | {"program": "/bin/sh", "argv": '["sh", "$X"]'},
        ("m", "root", "/bin/sh", ["sh", "$$X"], []),
    ),
    ("CopyToMachine", {"src": "//a/.//b/"}, IN | {"src": "/a/b", "dest": "/a/b"}, ("m", "/a/b", "/a/b")),
    ("CopyToMachine", {"src": "/a//b", "dest": ""}, IN | {"src": "/a/b", "dest": "/a/b"}, ("m", "/a/b", "/a/b")),
    # A path in the guest stays as it is.
    ("CopyToMachine", {"src": "/a", "dest": "/x//../y"},
     IN | {"src": "/a", "dest": "/x//../y"}, ("m", "/a", "/x//../y")),
    ("CopyFromMachine", {"src": "/a//b"}, OUT | {"src": "/a//b", "dest": "/a/b"}, ("m", "/a//b", "/a/b")),
    ("CopyFromMachine", {"src": "/a", "dest": "//b//"}, OUT | {"src": "/a", "dest": "/b"}, ("m", "/a", "/b")),
    ("KillMachine", {"who": "leader", "signal": 9}, {"verb": "kill", "machine": "m", "who": "leader", "signal": "9"},
     ("m", "leader", 9)),
    ("KillMachine", {}, {"verb": "kill", "machine": "m", "who": "all", "signal": "15"}, ("m", "all", 15)),
    ("RemoveImage", {}, {"verb": "remove", "image": "m"}, ("m",)),
    (
        "CloneImage",
        {"dest": "j", "read_only": True},
        {"verb": "clone", "image": "m", "new_name": "j", "read_only": "true"},
        ("m", "j", True),
    ),
    ("RenameImage", {"dest": "j"}, {"verb": "rename", "image": "m", "new_name": "j"}, ("m", "j")),
]  # fmt: skip


@pytest.mark.parametrize(("method", "parameters", "details", "arguments"), SAME)
def test_what_was_asked_is_what_is_done(
    connect: Connect,
    polkit: FakePolkit,
    machined: FakeMachined,
    method: str,
    parameters: dict[str, Any],
    details: dict[str, str],
    arguments: tuple[Any, ...],
) -> None:
    polkit.says(True)
    ours, theirs = os.pipe()
    machined.returns("OpenMachineShell", "hs", theirs, "/dev/pts/0")
    client = connect()
    client.call(method, {"name": "m", **parameters})
    os.close(theirs)
    os.close(ours)
    assert [question.details for question in polkit.questions] == [details]
    assert machined.calls == [(method, arguments)]


def test_a_shell_on_the_host_is_another_action(connect: Connect, polkit: FakePolkit, machined: FakeMachined) -> None:
    client = connect()
    for name, action in (("m", "io.machine1.open-shell"), (".host", "io.machine1.open-host-shell")):
        assert client.error("OpenMachineShell", {"name": name}) == DENIED
        assert (polkit.questions[-1].action, polkit.questions[-1].details["machine"]) == (action, name)
    assert machined.calls == []


def test_a_large_uid_is_itself(connect: Connect, polkit: FakePolkit, machined: FakeMachined, bridge: Bridge) -> None:
    """UIDs have 32 bits without a sign: directories and user namespaces give out such."""
    polkit.says(False)
    assert connect(3_000_000_000).error("TerminateMachine", {"name": "m"}) == DENIED
    assert "by UID 3000000000," in bridge.log.read_text()
