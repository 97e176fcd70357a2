# SPDX-License-Identifier: LGPL-2.1-or-later
"""One client on standard input and output, or on a socket that is connected already."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import REPOSITORY, Bridge, Terminal, eventually
from .fake_machined import Bus, FakeMachined

LIST = b'{"method":"io.machine1.ListMachines"}\0'
NOBODY = 65534


PROGRAM = [sys.executable, "-X", "dev", "-W", "error", "-m", "bridge"]


def through_pipes(path: str) -> subprocess.Popen[bytes]:
    """`machine1-bridge --stdio`."""
    command, pipe = [*PROGRAM, "--stdio", "--socket", path], subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, stderr=pipe)


@pytest.fixture
def relay(bridge: Bridge) -> Iterator[subprocess.Popen[bytes]]:
    with through_pipes(bridge.path) as process:
        yield process
        process.kill()


def receive(read: Callable[[], bytes], number: int = 1) -> list[dict[str, Any]]:
    """So many replies."""
    data, missing = bytearray(), number
    while missing:
        more = read()
        assert more, data
        missing -= more.count(b"\0")
        data += more
    return [json.loads(each) for each in data.split(b"\0")[:-1]]


def ask(process: subprocess.Popen[bytes], *calls: bytes) -> list[dict[str, Any]]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"".join(calls))
    process.stdin.flush()
    output = process.stdout.fileno()
    return receive(lambda: os.read(output, 65536), len(calls))


def ends(process: subprocess.Popen[bytes], status: int = 0) -> bytes:
    """When it gets no more: what it said on standard error."""
    if process.stdin is not None:
        process.stdin.close()
    assert process.wait(15) == status
    if process.stdout is not None:
        process.stdout.close()
    assert process.stderr is not None
    with process.stderr as errors:
        said: bytes = errors.read()
    return said


def test_calls_go_through_pipes_to_the_service(relay: subprocess.Popen[bytes], machined: FakeMachined) -> None:
    machined.returns("ListMachines", "a(ssso)", [("web", "container", "nspawn", "/x")])
    replies = ask(relay, LIST, LIST, b'{"method":"org.varlink.service.GetInfo"}\0')
    assert replies[0] == replies[1]
    assert replies[0]["parameters"]["machines"][0]["name"] == "web"
    assert replies[2]["parameters"]["product"] == "machine1-bridge"
    assert ends(relay) == b""


def test_who_asks_and_says_that_it_was_all_is_answered(bridge: Bridge, machined: FakeMachined) -> None:
    """As in `echo ... | ssh host machine1-bridge --stdio`."""
    machined.returns("ListMachines", "a(ssso)", [])
    process = through_pipes(bridge.path)
    output, errors = process.communicate(LIST * 100, timeout=15)
    assert output == b'{"parameters":{"machines":[]}}\0' * 100
    assert (process.returncode, errors) == (0, b"")


def test_much_goes_both_ways_at_its_own_pace(bridge: Bridge, machined: FakeMachined) -> None:
    names = [(f"m{number}", "container", "x" * 200, "/x") for number in range(2000)]
    machined.returns("ListMachines", "a(ssso)", names)
    process = through_pipes(bridge.path)
    assert process.stdout is not None
    sender = subprocess.Popen([sys.executable, "-c", f"import os; os.write(1, {LIST!r} * 50)"], stdout=process.stdin)
    time.sleep(0.5)  # nobody reads, and it waits
    output = process.stdout.fileno()
    replies = receive(lambda: os.read(output, 1000), 50)
    assert all(len(reply["parameters"]["machines"]) == 2000 for reply in replies)
    assert sender.wait(10) == 0
    assert ends(process) == b""


def used(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_who_waits_takes_no_time(relay: subprocess.Popen[bytes], machined: FakeMachined) -> None:
    machined.returns("ListMachines", "a(ssso)", [])
    ask(relay, LIST)
    before = used(relay)
    time.sleep(0.5)
    assert used(relay) - before < 0.1
    ends(relay)


def test_a_client_that_reads_no_more_ends_it_though_what_it_sent_is_done(
    bridge: Bridge, relay: subprocess.Popen[bytes], machined: FakeMachined
) -> None:
    machined.returns("TerminateMachine")
    assert relay.stdin is not None
    assert relay.stdout is not None
    relay.stdout.close()
    relay.stdin.write(b'{"method":"io.machine1.TerminateMachine","parameters":{"name":"web"}}\0')
    relay.stdin.flush()
    assert relay.wait(15) == 0
    assert eventually(lambda: [call[0] for call in machined.calls] == ["TerminateMachine"]), machined.calls


def test_the_end_of_the_service_is_the_end(bridge: Bridge, relay: subprocess.Popen[bytes]) -> None:
    ask(relay, b'{"method":"org.varlink.service.GetInfo"}\0')
    bridge.process.send_signal(signal.SIGTERM)
    assert relay.wait(15) == 0
    assert relay.stdout is not None
    assert relay.stdout.read() == b""


def test_a_shell_does_not_go_this_way_and_is_closed(
    relay: subprocess.Popen[bytes], machined: FakeMachined, terminal: Terminal
) -> None:
    machined.returns("OpenMachineShell", "hs", terminal.theirs, "/dev/pts/0")
    ask(relay, b'{"method":"io.machine1.OpenMachineShell","parameters":{"name":"web"}}\0')
    started = time.monotonic()
    assert ends(relay) == b""
    assert time.monotonic() - started > 1  # its program has to have noticed
    assert terminal.is_closed()


def test_shells_are_closed_while_it_goes_on(
    relay: subprocess.Popen[bytes], machined: FakeMachined, terminal: Terminal
) -> None:
    machined.returns("OpenMachineShell", "hs", terminal.theirs, "/dev/pts/0")
    ask(relay, b'{"method":"io.machine1.OpenMachineShell","parameters":{"name":"web"}}\0')
    assert terminal.is_closed()
    assert relay.poll() is None
    assert ends(relay) == b""


def test_no_service_is_an_error(tmp_path: Path) -> None:
    process = through_pipes(f"{tmp_path}/none")
    assert ends(process, 1) == f"machine1-bridge: {tmp_path}/none: No such file or directory\n".encode()


def test_it_loads_nothing_of_the_service() -> None:
    code = "import sys, bridge.stdio; print(sorted({'jsonschema', 'bridge.service'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=REPOSITORY, text=True, check=True)
    assert done.stdout == "[]\n"


# --- clients that are connected already -----------------------------------------------------------------------------


def as_user(make: Callable[[], tuple[socket.socket, socket.socket]], uid: int) -> tuple[socket.socket, socket.socket]:
    os.seteuid(uid)
    try:
        return make()
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="not root, who alone can be somebody else")
def test_a_socket_of_another_user_is_served_here_as_that_users(bus: Bus, machined: FakeMachined) -> None:
    """inetd-style: no service runs, and none is asked."""
    machined.returns("ListMachines", "a(ssso)", [])
    here, there = as_user(socket.socketpair, NOBODY)
    environment = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": bus.address}
    command, client = [*PROGRAM, "--stdio", "--socket", "/nonexistent"], there.fileno()
    with (
        here,
        subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdin=client, stdout=client, stderr=subprocess.PIPE
        ) as process,
    ):
        there.close()
        here.settimeout(15)
        here.sendall(LIST)
        assert receive(lambda: here.recv(65536)) == [{"parameters": {"machines": []}}]
        here.sendall(b'{"method":"io.machine1.TerminateMachine","parameters":{"name":"web"}}\0')
        (refused,) = receive(lambda: here.recv(65536))
        assert refused["error"] == "org.varlink.service.PermissionDenied"
        here.shutdown(socket.SHUT_WR)
        assert f"by UID {NOBODY}" in ends(process).decode()


KINDS: dict[str, Callable[[], tuple[socket.socket, socket.socket]]] = {
    "packets": lambda: socket.socketpair(type=socket.SOCK_SEQPACKET),
    "datagrams": lambda: socket.socketpair(type=socket.SOCK_DGRAM),
    "TCP": lambda: tcp(),
    "not connected": lambda: (socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)),
}


def tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        return here, listener.accept()[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_socket_that_does_not_say_whose_it_is_is_refused(bridge: Bridge, kind: str) -> None:
    """Who is at its other end would be taken for who runs this: in a unit of root's, for root."""
    here, there = KINDS[kind]()
    command = [*PROGRAM, "--stdio", "--socket", bridge.path]
    with here, there:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            stdin=there.fileno(),
            stdout=there.fileno(),
            stderr=subprocess.PIPE,
            check=False,
            timeout=15,
        )
    assert done.returncode == 1
    assert done.stderr == b"machine1-bridge: standard input is a socket, but no connected UNIX stream socket\n"


def test_standard_input_that_is_closed_is_an_error(bridge: Bridge) -> None:
    line = "exec 0<&-; exec " + shlex.join([*PROGRAM, "--stdio", "--socket", bridge.path])
    done = subprocess.run(["sh", "-c", line], cwd=REPOSITORY, capture_output=True, check=False, timeout=15)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"machine1-bridge: [Errno 9] Bad file descriptor\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="not root, who alone can be somebody else")
def test_a_pair_that_root_made_for_who_runs_this_is_not_root(bridge: Bridge, machined: FakeMachined) -> None:
    """As sshd(8) and socat(1) may make one, drop their rights, and pass on what others say."""
    os.chmod(os.path.dirname(bridge.path), 0o755)  # noqa: S103  so that nobody reaches the socket
    here, there = socket.socketpair()
    name = os.path.basename(bridge.path)
    become = f"import os; os.chdir({os.path.dirname(bridge.path)!r}); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})"
    code = f"import sys, bridge.stdio as s; {become}; s.DEFAULT_SOCKET = {name!r}; sys.exit(s.main([]))"
    command, end = [sys.executable, "-X", "dev", "-W", "error", "-c", code], there.fileno()
    with (
        here,
        subprocess.Popen(command, cwd=REPOSITORY, stdin=end, stdout=end, stderr=subprocess.PIPE) as process,
    ):
        there.close()
        here.settimeout(15)
        here.sendall(b'{"method":"io.machine1.TerminateMachine","parameters":{"name":"web"}}\0')
        (refused,) = receive(lambda: here.recv(65536))
        assert refused["error"] == "org.varlink.service.PermissionDenied"
        here.shutdown(socket.SHUT_WR)
        assert ends(process) == b""
    assert f"by UID {NOBODY}" in bridge.log.read_text()
    assert machined.calls == []


def test_a_shell_of_who_leaves_at_once_is_closed_when_its_program_has_noticed(
    bus: Bus, machined: FakeMachined, terminal: Terminal
) -> None:
    """Its only client has left, and still the process stays for that."""
    machined.returns("OpenMachineShell", "hs", terminal.theirs, "/dev/pts/0")
    here, there = socket.socketpair()
    with handed_over(there, bus) as process:
        here.sendall(b'{"method":"io.machine1.OpenMachineShell","parameters":{"name":"web"}}\0')
        here.close()
        started = time.monotonic()
        assert b"OpenMachineShell on web" in ends(process)
        assert time.monotonic() - started > 1
    assert terminal.is_closed()


def handed_over(there: socket.socket, bus: Bus) -> subprocess.Popen[bytes]:
    """The service with a connection as descriptor 3, which is closed here."""
    environment: dict[str, str] = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address}
    environment |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "varlink"}
    hand_over = f"import os; os.dup2({there.fileno()}, 3); os.environ['LISTEN_PID'] = str(os.getpid())"
    code = f"{hand_over}; os.execv({sys.executable!r}, {PROGRAM!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=environment,
        pass_fds=[there.fileno()],
        stderr=subprocess.PIPE,
    )
    there.close()
    return process


@pytest.mark.parametrize("leaves", [True, False])
def test_a_connection_that_is_handed_over_is_served_until_it_ends(
    bus: Bus, machined: FakeMachined, terminal: Terminal, leaves: bool
) -> None:
    """As varlinkctl does it with `exec:`, and systemd for Accept=yes; shells go this way."""
    machined.returns("OpenMachineShell", "hs", terminal.theirs, "/dev/pts/0")
    here, there = socket.socketpair()
    with here, handed_over(there, bus) as process:
        here.settimeout(15)
        here.sendall(b'{"method":"io.machine1.OpenMachineShell","parameters":{"name":"web"}}\0')
        data, descriptors, _, _ = socket.recv_fds(here, 65536, 4)
        assert json.loads(data[:-1])["parameters"]["pty_fd"] == 0
        assert len(descriptors) == 1
        os.close(descriptors[0])
        if leaves:
            here.close()
        else:
            here.shutdown(socket.SHUT_WR)
        assert b"OpenMachineShell on web" in ends(process)
    assert terminal.is_closed()
