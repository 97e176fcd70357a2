# SPDX-License-Identifier: LGPL-2.1-or-later
"""Faults on a real host: machined killed, stopped and masked, the bus gone, no space, no descriptors, clients that go.

After each the next call works, and nothing was done twice: programs in the guest leave a line each time that they run.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.client import Client

from .conftest import GUEST, SOCKET
from .host import Account, Host
from .test_machines import eventually
from .test_service import UNIT
from .varlink import call, error, images, machines

LINES = "/run/lines"
UNAVAILABLE = "io.machine1.Unavailable"
TIMEOUT = 25.0
MACHINED = "systemd-machined.service"


def main_pid(host: Host, unit: str = MACHINED) -> int:
    return int(host.run(["systemctl", "show", "--property=MainPID", "--value", unit]).stdout)


def shell(seconds: int = 4711) -> dict[str, object]:
    """Parameters of a shell that says that it runs, and does, until its terminal is closed."""
    return {"name": GUEST, "path": "/bin/sh", "args": ["sh", "-c", f"echo ran >>{LINES}; echo said; sleep {seconds}"]}


def wait_until_it_runs(client: Client) -> None:
    """The shell whose terminal the client has got says so on it."""
    said = b""
    while b"said" not in said:
        assert select.select([client.fds[0]], [], [], 15)[0], said
        said += os.read(client.fds[0], 100)


def ran(host: Host) -> int:
    """How many shells there were."""
    return host.run_in_guest(GUEST, ["cat", LINES], check=False).stdout.count("ran\n")


def runs(host: Host) -> bool:
    """Whether there is one still."""
    return host.run_in_guest(GUEST, ["pgrep", "-f", "slee[p] 4711"], check=False).returncode == 0


def in_guest(host: Host, script: str) -> None:
    host.run_in_guest(GUEST, ["sh", "-euc", script])


def forget_failures(host: Host) -> None:
    """systemd starts a service five times in ten seconds and not once more."""
    host.run(["systemctl", "reset-failed", MACHINED], check=False)


@pytest.fixture
def guest(host: Host) -> Iterator[Host]:
    """The shared host with machined running; what a test leaves in the guest is gone after it."""
    forget_failures(host)
    call(host, "GetMachine", {"name": GUEST})
    in_guest(host, f"rm -f {LINES}")
    yield host
    forget_failures(host)
    assert call(host, "GetMachine", {"name": GUEST})["machine"]["name"] == GUEST, "the next call"
    assert GUEST in [image["name"] for image in call(host, "ListImages")["images"]]
    in_guest(host, "systemctl stop 'container-shell@*'")
    pid = host.bridge_pid()
    status = (host.path / f"proc/{pid}/status").read_text()
    assert "\nThreads:\t1\n" in status
    assert (host.path / f"proc/{pid}/task/{pid}/children").read_text() == ""


# --- machined -------------------------------------------------------------------------------------------------------


def test_machined_is_killed_before_it_opened_a_shell(guest: Host) -> None:
    """It is stopped, gets the calls, and never reads them: nothing is done, neither then nor when it comes again."""
    pid = main_pid(guest)

    def conversation() -> list[str]:
        with Client(SOCKET) as client, Client(SOCKET) as other:
            os.kill(pid, signal.SIGSTOP)
            client.send("OpenMachineShell", shell())
            other.send("ListImages")
            time.sleep(0.1)  # for the bus to have them
            os.kill(pid, signal.SIGKILL)
            replies = [client.receive(), other.receive()]
            assert client.call("GetMachine", {"name": GUEST})["machine"]
            assert other.call("GetMachine", {"name": GUEST})["machine"]
            assert all(reply["parameters"]["reason"] for reply in replies)
            return [reply["error"] for reply in replies]

    assert guest.inside(conversation) == [UNAVAILABLE] * 2
    assert ran(guest) == 0


def test_machined_is_killed_at_any_moment_of_a_shell(guest: Host) -> None:
    """And while another client lists without a pause: an answer or Unavailable, and the program ran once at most."""
    for delay in (0.0, 0.001, 0.003, 0.01, 0.03):
        in_guest(guest, f"rm -f {LINES}")
        forget_failures(guest)
        call(guest, "ListMachines")
        outcome, others = guest.inside(_shell_and_kill, main_pid(guest), delay)
        assert outcome in ("opened", UNAVAILABLE)
        assert others <= {"listed", UNAVAILABLE}
        assert call(guest, "GetMachine", {"name": GUEST})["machine"]["name"] == GUEST
        # Where machined had the only end of the terminal, it took it along before the program ran, which then runs on
        # without one: a matter of the two systemds.
        assert outcome == UNAVAILABLE or eventually(lambda: not runs(guest)), "a program without a terminal"
        assert ran(guest) <= 1
        assert outcome == UNAVAILABLE or ran(guest) == 1
        in_guest(guest, "systemctl stop 'container-shell@*'")


def _shell_and_kill(machined: int, delay: float) -> tuple[str, set[str]]:
    others: set[str] = set()
    end = threading.Event()

    def list_on() -> None:
        with Client(SOCKET) as client:
            while not end.is_set():
                client.send("ListMachines")
                others.add(client.receive().get("error", "listed"))

    thread = threading.Thread(target=list_on)
    thread.start()
    with Client(SOCKET) as client:
        client.send("OpenMachineShell", shell())
        time.sleep(delay)
        os.kill(machined, signal.SIGKILL)
        outcome = client.receive().get("error", "opened")
        if outcome == "opened":
            wait_until_it_runs(client)
    end.set()
    thread.join()
    return outcome, others


def test_machined_is_killed_in_the_middle_of_a_copy(guest: Host) -> None:
    guest.run(["sh", "-euc", "mkdir /run/tree; head -c 400M /dev/zero >/run/tree/big"])
    pid = main_pid(guest)

    def conversation() -> tuple[str, bool]:
        children = Path(f"/proc/{pid}/task/{pid}/children")
        with Client(SOCKET) as client:
            client.send("CopyToMachine", {"name": GUEST, "src": "/run/tree", "dest": "/run/tree"})
            assert eventually(lambda: children.read_text() != "")
            os.kill(pid, signal.SIGKILL)
            outcome = client.receive()["error"]
            return outcome, bool(client.call("GetMachine", {"name": GUEST})["machine"])

    try:
        assert guest.inside(conversation) == (UNAVAILABLE, True)
        in_guest(guest, "rm -rf /run/tree")
        time.sleep(0.3)
        assert guest.run_in_guest(GUEST, ["ls", "/run/tree"], check=False).returncode != 0, "nobody goes on with it"
    finally:
        guest.run(["rm", "-r", "/run/tree"])
        in_guest(guest, "rm -rf /run/tree")


def test_machined_hangs_and_goes_on(guest: Host) -> None:
    """Half a minute long: the deadline of calls. Who needs no machined is answered; a shell that comes late ends."""
    pid = main_pid(guest)

    def conversation() -> tuple[list[str], list[float], float]:
        with Client(SOCKET, timeout=40) as client, Client(SOCKET, timeout=40) as other, Client(SOCKET) as third:
            started = time.monotonic()
            os.kill(pid, signal.SIGSTOP)
            try:
                client.send("OpenMachineShell", shell())
                other.send("ListImages")
                longest = 0.0
                while time.monotonic() - started < TIMEOUT - 1:
                    asked = time.monotonic()
                    third.call("org.varlink.service.GetInfo")
                    longest = max(longest, time.monotonic() - asked)
                    time.sleep(0.5)
                errors = [client.receive()["error"], other.receive()["error"]]
                took = time.monotonic() - started
            finally:
                os.kill(pid, signal.SIGCONT)
            assert client.call("GetMachine", {"name": GUEST})["machine"]
            return errors, [took], longest

    errors, (took,), longest = guest.inside(conversation)
    assert errors == ["io.machine1.Timeout"] * 2
    assert TIMEOUT <= took < TIMEOUT + 3
    assert longest < 1
    assert eventually(lambda: ran(guest) == 1), "machined does what it was asked, late"
    assert eventually(lambda: not runs(guest)), "a program whose terminal nobody has"


def test_machined_is_masked(guest: Host) -> None:
    guest.run(["systemctl", "mask", "--runtime", "--now", MACHINED])
    try:
        for method, parameters in (("ListMachines", {}), ("OpenMachineShell", shell())):
            name, details = error(guest, method, parameters)
            assert name == UNAVAILABLE, details
            # "Unit systemd-machined.service is masked.", or for 262 that it "failed to load properly".
            assert "machine" in details["reason"]
    finally:
        guest.run(["systemctl", "unmask", "--runtime", MACHINED])
    assert call(guest, "GetMachine", {"name": GUEST})["machine"]["name"] == GUEST
    assert ran(guest) == 0


# --- the bus --------------------------------------------------------------------------------------------------------


def test_the_bus_is_restarted_and_killed_in_the_middle_of_calls(fresh_host: Host) -> None:
    """What waits ends at once; the service is the same process, and works as soon as the bus and machined do."""
    fresh_host.image("kept")
    call(fresh_host, "ListMachines")
    bridge = fresh_host.bridge_pid()
    for command in (["restart"], ["kill", "--signal=KILL"]):
        machined = main_pid(fresh_host)
        errors = fresh_host.inside(_calls_while_the_bus_goes, machined, command)
        assert errors == [UNAVAILABLE] * 2, command
        # Of the rest of the host, only the bus and machined are needed. They come by themselves.
        assert eventually(lambda: _works(fresh_host), 30), command
        assert fresh_host.bridge_pid() == bridge
        assert "kept" in images(fresh_host), "removed after all"
    assert call(fresh_host, "RemoveImage", {"name": "kept"}) == {}


def _calls_while_the_bus_goes(machined: int, command: list[str]) -> list[str]:
    with Client(SOCKET) as client, Client(SOCKET) as other:
        os.kill(machined, signal.SIGSTOP)
        client.send("RemoveImage", {"name": "kept"})
        other.send("ListImages")
        time.sleep(0.1)
        pid = os.posix_spawn("/usr/bin/systemctl", ["systemctl", *command, "dbus.service"], {})
        errors = [client.receive()["error"], other.receive()["error"]]
        os.kill(machined, signal.SIGKILL)
        os.waitpid(pid, 0)
        return errors


def _works(host: Host) -> bool:
    try:
        return "machines" in call(host, "ListMachines") and "machines" in {"machines": machines(host)}
    except Exception:
        return False


# --- no space -------------------------------------------------------------------------------------------------------


def test_no_space_for_a_copy(guest: Host) -> None:
    prepare = "mkdir /run/small /run/tree; mount -t tmpfs -o size=1M tmpfs /run/small; head -c 3M /dev/zero >/run/big"
    prepare += "; cp /run/big /run/tree/big; echo small >/run/little"
    clean = "umount /run/small; rm -r /run/small /run/tree /run/big /run/little"
    guest.run(["sh", "-euc", prepare])
    in_guest(guest, prepare)
    try:
        for method in ("CopyToMachine", "CopyFromMachine"):
            for source in ("/run/big", "/run/tree"):
                name, details = error(guest, method, {"name": GUEST, "src": source, "dest": "/run/small/copy"})
                assert (name, details["dbus_error"]) == ("io.machine1.Failed", "System.Error.ENOSPC"), details
                assert "No space left" in details["message"]
            assert call(guest, method, {"name": GUEST, "src": "/run/little", "dest": "/run/small/little"}) == {}
        assert guest.run(["cat", "/run/small/little"]).stdout == "small\n"
        assert guest.run_in_guest(GUEST, ["cat", "/run/small/little"]).stdout == "small\n"
    finally:
        guest.run(["sh", "-euc", clean])
        in_guest(guest, clean)


# --- no descriptors -------------------------------------------------------------------------------------------------


@contextmanager
def room_for(pid: int, user: Account, descriptors: int) -> Iterator[None]:
    """Inside a host: the process may open so many more. Its own user may say so, who is not root in every way."""
    used = {int(number) for number in os.listdir(f"/proc/{pid}/fd")}
    free = (number for number in itertools.count() if number not in used)
    highest = [next(free) for _ in range(descriptors + 1)][-1]
    before, hard = next(
        (int(words[3]), int(words[4]))
        for words in map(str.split, Path(f"/proc/{pid}/limits").read_text().splitlines())
        if words[:3] == ["Max", "open", "files"]
    )
    _as(user, lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest, hard)))
    try:
        yield
    finally:
        _as(user, lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (before, hard)))


def _as(user: Account, function: Callable[[], object]) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            function()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_clients_that_find_no_descriptor_wait_and_none_is_lost(guest: Host) -> None:
    pid, user = guest.bridge_pid(), guest.account("machine1-bridge")
    assert pid is not None

    def conversation() -> tuple[int, float, int]:
        with contextlib.ExitStack() as stack:
            # Three for the first, with its user's; two for each of the others; three have to be free to let one in.
            with room_for(pid, user, 12):
                clients = [stack.enter_context(Client(SOCKET)) for _ in range(50)]
                for client in clients:
                    client.send("ListMachines")
                for client in clients[:5]:
                    client.reply()
                before, end = cpu_seconds(pid), time.monotonic() + 1
                served = 5
                for client in clients[5:]:
                    client.socket.settimeout(max(0.001, end - time.monotonic()))
                    with contextlib.suppress(TimeoutError):
                        client.reply()
                        served += 1
                used = cpu_seconds(pid) - before
            for client in clients[5:]:
                client.socket.settimeout(15)
                client.reply()
            return served, used, len(clients)

    served, used, everybody = guest.inside(conversation)
    assert (served, everybody) == (5, 50)
    assert used < 0.2


def test_no_descriptor_for_the_terminal_of_a_shell(guest: Host) -> None:
    """It is lost on the way: the client is told, and machined was asked once. The next shell opens."""
    pid, user = guest.bridge_pid(), guest.account("machine1-bridge")
    assert pid is not None

    def conversation() -> tuple[str, int]:
        with Client(SOCKET) as client:
            with room_for(pid, user, 0):
                name, _ = client.error("OpenMachineShell", shell(1))
            fds = len(client.fds)
            client.call("OpenMachineShell", shell(1))
            wait_until_it_runs(client)  # who leaves before may end it before it has said so
            return name, fds

    assert guest.inside(conversation) == (UNAVAILABLE, 0)
    assert eventually(lambda: ran(guest) == 2)
    time.sleep(0.2)
    assert ran(guest) == 2


# --- clients that go ------------------------------------------------------------------------------------------------


def before_the_reply(client: Client) -> None:
    pass


def after_the_reply(client: Client) -> None:
    assert client.reply()["pty_fd"] == 0
    wait_until_it_runs(client)


@pytest.mark.parametrize("leave", [before_the_reply, after_the_reply])
def test_a_client_leaves_its_shell(guest: Host, leave: Callable[[Client], None]) -> None:
    """The program ran once and ends: nobody has its terminal any more."""

    def conversation() -> None:
        with Client(SOCKET) as client:
            client.send("OpenMachineShell", shell())
            leave(client)

    guest.inside(conversation)
    assert eventually(lambda: ran(guest) == 1)
    assert eventually(lambda: not runs(guest)), "the program outlived its client"
    assert ran(guest) == 1


def test_a_client_is_killed_with_calls_in_the_pipeline(guest: Host) -> None:
    """What it had sent is done, each call once and in order: the last needs the first, and a second would fail."""
    guest.image("pipelined")
    renames = [f"pipelined{number or ''}" for number in range(8)]

    def conversation() -> int:
        child = os.fork()
        if child == 0:
            client = Client(SOCKET)
            calls = [
                {"method": "io.machine1.RenameImage", "parameters": {"name": name, "dest": dest}}
                for name, dest in itertools.pairwise(renames)
            ]
            client.send_bytes(b"".join(json.dumps(call).encode() + b"\0" for call in calls))
            os.kill(os.getpid(), signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    try:
        assert guest.inside(conversation) == -signal.SIGKILL
        assert eventually(lambda: renames[-1] in images(guest))
        assert not set(renames[:-1]) & images(guest).keys()
    finally:
        guest.run(["sh", "-c", "rm -rf /var/lib/machines/pipelined*"])


def test_a_client_leaves_a_copy(guest: Host) -> None:
    """It goes on without its client, once: the target did not exist, and a second copy would fail for that."""
    guest.run(["sh", "-euc", "head -c 20M /dev/urandom >/run/big"])

    def conversation() -> None:
        with Client(SOCKET) as client:
            client.send("CopyToMachine", {"name": GUEST, "src": "/run/big", "dest": "/run/big"})

    def copied() -> bool:
        done = guest.run_in_guest(GUEST, ["sha256sum", "/run/big"], check=False).stdout
        return done == guest.run(["sha256sum", "/run/big"]).stdout

    try:
        guest.inside(conversation)
        assert eventually(copied)
    finally:
        guest.run(["rm", "-f", "/run/big"])
        in_guest(guest, "rm -f /run/big")


# --- the end --------------------------------------------------------------------------------------------------------


class Caller(threading.Thread):
    """Inside a host: calls in a loop, and connects again when it is hung up on, until it was so twice served."""

    def __init__(self, number: int, stop: threading.Event) -> None:
        super().__init__()
        self._number, self._end = number, stop
        self.replies, self.hung_up, self.served_again = 0, 0, 0
        self.failure = ""

    def run(self) -> None:
        try:
            while not self._end.is_set() or not self.served_again:
                self._converse()
        except BaseException as error:
            self.failure = repr(error)

    def _converse(self) -> None:
        """One connection, to its end. A reply that is not whole or none of its own is a failure."""
        with Client(SOCKET, timeout=30) as client:
            try:
                while not self._end.is_set() or not self.served_again:
                    self._call(client)
                    self.replies += 1
                    self.served_again += bool(self.hung_up)
            except (EOFError, ConnectionResetError, BrokenPipeError):
                assert client.rest() == b"", "half a reply"
                self.hung_up += 1

    def _call(self, client: Client) -> None:
        if self._number % 20 == 0:
            reply = client.call("OpenMachineShell", {"name": GUEST, "path": "/bin/true"})
            assert reply["pty_fd"] == 0
            os.close(client.take_fd())
            assert client.fds == []
        elif self._number % 2:
            assert client.error("GetMachine", {"name": f"nope{self._number}"})[1] == {"name": f"nope{self._number}"}
        else:
            assert GUEST in [machine["name"] for machine in client.call("ListMachines")["machines"]]


def test_sigterm_under_load(guest: Host) -> None:
    """100 clients: each reply is whole and its own, nobody is refused, everybody is served by the next process."""
    before = guest.bridge_pid()
    assert before is not None

    def conversation() -> list[tuple[int, int, int, str]]:
        end = threading.Event()
        callers = [Caller(number, end) for number in range(100)]
        for caller in callers:
            caller.start()
        assert eventually(lambda: all(caller.replies or caller.failure for caller in callers), 30)
        os.kill(before, signal.SIGTERM)
        assert eventually(lambda: all(caller.served_again or caller.failure for caller in callers), 30)
        end.set()
        for caller in callers:
            caller.join()
        return [(caller.replies, caller.hung_up, caller.served_again, caller.failure) for caller in callers]

    for _, hung_up, served_again, failure in guest.inside(conversation):
        assert failure == ""
        assert hung_up == 1
        assert served_again
    after = guest.bridge_pid()
    assert after is not None
    assert after != before
    # systemd tells of the process that ended: by its own will, with status 0.
    ended = guest.run(["journalctl", f"--unit={UNIT}", "--output=cat", "--no-pager"]).stdout.splitlines()[-20:]
    assert not [line for line in ended if "Failed with result" in line or "Main process exited" in line], ended
