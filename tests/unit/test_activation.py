# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sockets that are handed over or made by hand, and notifications."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bridge import activation
from bridge.activation import ActivationError, Listener, inherited, listen, notify

FIRST = 100  # instead of 3, which is pytest's


def unix(path: Path | None = None, kind: int = socket.SOCK_STREAM, backlog: int | None = 5) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, kind)
    if path is not None:
        made.bind(str(path))
        if backlog is not None:
            made.listen(backlog)
    return made


@pytest.fixture
def hand_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """What systemd does: descriptors from a certain number on, open across exec. They belong to who takes them."""
    monkeypatch.setattr(activation, "FIRST_FD", FIRST)
    used: list[int] = []

    def hand_over(*sockets: socket.socket) -> None:
        for number, each in enumerate(sockets, FIRST):
            os.dup2(each.fileno(), number, inheritable=True)
            each.close()
            used.append(number)

    yield hand_over
    for number in used:
        try:
            os.close(number)
        except OSError:
            pass  # the test closed it as a socket


def environment(number: object, names: str | None = None, pid: object = None) -> dict[str, str]:
    made = {"LISTEN_PID": str(os.getpid() if pid is None else pid), "LISTEN_FDS": str(number), "OTHER": "kept"}
    return made if names is None else made | {"LISTEN_FDNAMES": names}


def close(listeners: list[Listener]) -> None:
    for listener in listeners:
        listener.socket.close()


def test_sockets_come_in_order_with_their_names(tmp_path: Path, hand_over: Callable[..., None]) -> None:
    hand_over(unix(tmp_path / "a"), unix(tmp_path / "b"))
    listeners = inherited(environment(2, "first:second"))
    assert not any(listener.connected for listener in listeners)
    assert [(each.name, each.socket.fileno()) for each in listeners] == [("first", FIRST), ("second", FIRST + 1)]
    assert [each.socket.getsockname() for each in listeners] == [str(tmp_path / "a"), str(tmp_path / "b")]
    close(listeners)


def test_they_do_not_block_and_are_not_inherited_further(tmp_path: Path, hand_over: Callable[..., None]) -> None:
    hand_over(unix(tmp_path / "a"))
    (listener,) = inherited(environment(1))
    assert not os.get_inheritable(FIRST)
    with pytest.raises(BlockingIOError):
        listener.socket.accept()
    listener.socket.close()


@pytest.mark.parametrize(
    ("names", "expected"),
    [(None, ["unknown"] * 2), ("", ["unknown"] * 2), ("a", ["a", "unknown"]), ("a:", ["a", ""]), ("a:b:c", ["a", "b"])],
)
def test_names_may_be_missing(
    tmp_path: Path, hand_over: Callable[..., None], names: str | None, expected: list[str]
) -> None:
    hand_over(unix(tmp_path / "a"), unix(tmp_path / "b"))
    listeners = inherited(environment(2, names))
    assert [each.name for each in listeners] == expected
    close(listeners)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid())},
        environment(1, pid=os.getpid() + 1),
        environment(1, pid=""),
        environment(1, pid=f"{os.getpid()}x"),
        environment(0),
        environment(""),
        environment("x"),
        environment("-1"),
        environment("1.0"),
    ],
)
def test_what_is_not_meant_for_this_process_is_not_touched(
    tmp_path: Path, hand_over: Callable[..., None], variables: dict[str, str]
) -> None:
    """Programs pass on their environment; the number of a process says whom it is for."""
    hand_over(unix(tmp_path / "a"))
    assert inherited(dict(variables)) == []
    assert os.get_inheritable(FIRST)


@pytest.mark.parametrize("pid", [None, 1])
def test_the_variables_are_not_handed_on(tmp_path: Path, hand_over: Callable[..., None], pid: int | None) -> None:
    hand_over(unix(tmp_path / "a"))
    variables = environment(1, "a", pid)
    close(inherited(variables))
    assert variables == {"OTHER": "kept"}


def test_a_number_without_a_descriptor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "FIRST_FD", FIRST)
    with pytest.raises(ActivationError, match=rf"file descriptor {FIRST} \(unknown\) is no socket"):
        inherited(environment(1))


def test_a_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setattr(activation, "FIRST_FD", file.fileno())
        with pytest.raises(ActivationError, match=rf"file descriptor {file.fileno()} \(web\) is no socket"):
            inherited(environment(1, "web"))


# The refused socket is not closed before the process ends, which it does at once.
@pytest.mark.parametrize(
    "make",
    [
        lambda _: unix(),
        lambda path: unix(path, backlog=None),
        lambda path: unix(path, socket.SOCK_SEQPACKET),
        lambda path: unix(path, socket.SOCK_DGRAM, None),
        lambda _: socket.create_server(("127.0.0.1", 0)),
    ],
    ids=["unbound", "not listening", "seqpacket", "datagram", "tcp"],
)
def test_another_kind_of_socket_is_refused_by_name(
    tmp_path: Path, hand_over: Callable[..., None], make: Callable[[Path], socket.socket]
) -> None:
    hand_over(make(tmp_path / "a"))
    refused = rf"{FIRST} \(web\) is no UNIX stream socket that listens or is connected"
    with pytest.raises(ActivationError, match=refused):
        inherited(environment(1, "web"))


def test_a_client_that_is_connected_already_is_served(hand_over: Callable[..., None]) -> None:
    """Of a unit with Accept=yes, or of varlinkctl's `exec:`."""
    here, there = socket.socketpair()
    hand_over(here)
    (client,) = inherited(environment(1, "varlink"))
    assert (client.name, client.connected, client.socket.getblocking()) == ("varlink", True, False)
    close([client])
    assert there.recv(1) == b""
    there.close()


# --- a socket made by hand ------------------------------------------------------------------------------------------


def test_everybody_may_connect(tmp_path: Path) -> None:
    """The kernel asks for the right to write. What a client may do is decided for each call."""
    path = tmp_path / "socket"
    umask = os.umask(0o077)
    try:
        listener = listen(str(path))
        assert os.umask(0o077) == 0o077, "the umask is not put back"
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert listener.name == str(path)
    with unix() as client:
        client.connect(str(path))
        connection, _ = listener.socket.accept()
        connection.close()
    with pytest.raises(BlockingIOError):
        listener.socket.accept()
    assert not listener.socket.get_inheritable()
    listener.socket.close()


def test_a_burst_of_clients_waits_in_line(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    listener = listen(path)
    clients = [unix() for _ in range(200)]
    for client in clients:
        client.setblocking(False)
        client.connect(path)
    for client in clients:
        client.close()
    listener.socket.close()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    unix(path).close()
    assert path.is_socket()
    listener = listen(str(path))
    with unix() as client:
        client.connect(str(path))
    listener.socket.close()


def test_a_socket_that_somebody_listens_on_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with unix(path) as other:
        with pytest.raises(ActivationError, match=r"cannot listen on .*/socket: somebody listens there already"):
            listen(str(path))
        with unix() as client:
            client.connect(str(path))
            connection, _ = other.accept()
            connection.close()


def test_a_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "socket").mkdir()
    with pytest.raises(ActivationError, match="cannot listen on"):
        listen(str(tmp_path / "socket"))
    assert (tmp_path / "socket").is_dir()


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("missing/socket", "No such file or directory"), ("file/socket", "Not a directory"), ("x" * 108, "too long")],
)
def test_a_place_where_no_socket_can_be_is_a_reason_in_words(tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ActivationError, match=f"cannot listen on .*: .*{complaint}"):
        listen(str(tmp_path / name))


# --- notifications --------------------------------------------------------------------------------------------------


def test_the_service_manager_is_told_at_a_path(tmp_path: Path) -> None:
    with unix(tmp_path / "notify", socket.SOCK_DGRAM, None) as manager:
        manager.setblocking(False)
        notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert manager.recv(100) == b"READY=1"


def test_the_service_manager_is_told_at_an_abstract_address() -> None:
    name = f"machine1-bridge-test-{os.getpid()}"
    with unix(kind=socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.setblocking(False)
        notify("STOPPING=1", {"NOTIFY_SOCKET": f"@{name}"})
        assert manager.recv(100) == b"STOPPING=1"


def test_the_service_manager_is_told_of_its_own_process_alone(tmp_path: Path) -> None:
    """One that a service starts, as varlinkctl's `exec:` does, would say that the service is ready, and stops."""
    with unix(tmp_path / "notify", socket.SOCK_DGRAM, None) as manager:
        manager.setblocking(False)
        variables = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        notify("READY=1", variables | {"SYSTEMD_EXEC_PID": str(os.getppid())})
        with pytest.raises(BlockingIOError):
            manager.recv(100)
        notify("READY=1", variables | {"SYSTEMD_EXEC_PID": str(os.getpid())})
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("variables", [{}, {"NOTIFY_SOCKET": ""}, {"OTHER": "x"}])
def test_without_a_service_manager_nobody_is_told(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_: sys.exit("told somebody"))
    notify("READY=1", variables)


@pytest.mark.parametrize("address", ["missing", "@machine1-bridge-nobody"])
def test_a_service_manager_that_went_away_is_no_reason_to_stop(tmp_path: Path, address: str) -> None:
    notify("READY=1", {"NOTIFY_SOCKET": address if address.startswith("@") else str(tmp_path / address)})


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    """The kernel refuses a connection to it just as to a socket that nobody listens on."""
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ActivationError):
        listen(str(path))
    assert path.read_text() == "data"


def test_a_busy_listener_is_a_listener(tmp_path: Path) -> None:
    """Its backlog is full, so connecting would wait for it: nothing here may."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as busy, ExitStack() as clients:
        busy.bind(path)
        busy.listen(0)
        for _ in range(5):
            client = clients.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            client.connect_ex(path)
        with pytest.raises(ActivationError, match="somebody listens"):
            listen(path)
