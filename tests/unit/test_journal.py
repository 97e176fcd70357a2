# SPDX-License-Identifier: LGPL-2.1-or-later
"""Log lines: fields to the journal, text to standard error, and never an exception."""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge import journal

from .conftest import Line


@pytest.mark.parametrize(
    ("fields", "entry"),
    [
        ({}, b""),
        ({"MESSAGE": "hello"}, b"MESSAGE=hello\n"),
        ({"MESSAGE": ""}, b"MESSAGE=\n"),
        ({"A": 1, "B": None, "C": "d=e"}, b"A=1\nB=None\nC=d=e\n"),
        ({"MESSAGE": "ä"}, b"MESSAGE=\xc3\xa4\n"),
        # With a line break a value could pass for another field, so its length comes first.
        ({"MESSAGE": "a\nUID=0"}, b"MESSAGE\n" + b"\x07\0\0\0\0\0\0\0" + b"a\nUID=0\n"),
        ({"A": "x\n", "B": 2}, b"A\n" + b"\x02\0\0\0\0\0\0\0" + b"x\n\nB=2\n"),
        # The length is that of the bytes.
        ({"A": "ä\n"}, b"A\n" + b"\x03\0\0\0\0\0\0\0" + b"\xc3\xa4\n\n"),
        ({"A": "\n" * 300}, b"A\n" + (300).to_bytes(8, "little") + b"\n" * 300 + b"\n"),
        # What is no text is still an entry.
        ({"A": "\ud800"}, b"A=?\n"),
    ],
)
def test_an_entry_is_encoded(fields: dict[str, object], entry: bytes) -> None:
    assert journal.encode(fields) == entry


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A journal to write to. Standard error is not connected to it yet."""
    monkeypatch.setattr(journal, "SOCKET", str(tmp_path / "journal"))
    monkeypatch.setattr(journal, "_journal", None)
    monkeypatch.setattr(journal, "_standard_error", True)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(journal.SOCKET)
        daemon.setblocking(False)
        yield daemon
        if journal._journal is not None:
            journal._journal.close()


@pytest.fixture
def connected(daemon: socket.socket, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """The same with standard error said to be connected to it."""
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    monkeypatch.setattr(journal, "_waiting", deque())
    monkeypatch.setattr(journal, "_lost", 0)
    journal.open_journal()
    return daemon


def test_with_a_journal_a_line_goes_there_and_nowhere_else(
    connected: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    journal.log(journal.NOTICE, "it happened", MACHINE1_PEER_UID=7)
    assert connected.recv(4096) == (
        b"MESSAGE=it happened\nPRIORITY=5\nSYSLOG_IDENTIFIER=machine1-bridge\nMACHINE1_PEER_UID=7\n"
    )
    assert capsys.readouterr().err == ""


@pytest.fixture
def _level() -> Iterator[None]:
    yield
    journal.set_level(journal.INFO)


@pytest.mark.usefixtures("_level")
def test_what_is_logged_is_what_is_asked_for(connected: socket.socket) -> None:
    assert journal.level() == journal.INFO
    journal.log(journal.DEBUG, "detail")
    journal.fault(7, "first")
    journal.set_level(journal.DEBUG)
    assert journal.level() == journal.DEBUG
    journal.log(journal.DEBUG, "second")
    journal.log(journal.INFO, "third")
    journal.set_level(journal.CRITICAL)
    journal.log(journal.ERROR, "no more")
    journal.fault(7, "no more")
    journal.set_level(journal.INFO)
    assert journal.level() == journal.INFO
    journal.log(journal.INFO, "last")
    lines = [connected.recv(4096).splitlines()[:2] for _ in range(4)]
    assert lines == [
        [b"MESSAGE=first", b"PRIORITY=6"],
        [b"MESSAGE=second", b"PRIORITY=7"],
        [b"MESSAGE=third", b"PRIORITY=6"],
        [b"MESSAGE=last", b"PRIORITY=6"],
    ]
    with pytest.raises(BlockingIOError):
        connected.recv(4096)


@pytest.mark.usefixtures("_level")
def test_who_was_refused_what_is_written_whatever_is_logged(connected: socket.socket) -> None:
    """Nobody does something unseen after lowering the level."""
    journal.set_level(0)
    journal.refusal(7, "refused")
    journal.record(journal.INFO, "done")
    assert [connected.recv(4096).splitlines()[0] for _ in range(2)] == [b"MESSAGE=refused", b"MESSAGE=done"]


@pytest.mark.parametrize("stream", [None, "", "1:2", "nonsense"])
def test_standard_error_that_is_not_the_journal_is_used_itself(
    daemon: socket.socket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stream: str | None
) -> None:
    """Somebody redirected it: the variable is inherited, and the line is wanted where it was redirected to."""
    if stream is not None:
        monkeypatch.setenv("JOURNAL_STREAM", stream)
    journal.open_journal()
    journal.log(journal.INFO, "it happened", MACHINE1_PEER_UID=7)
    assert capsys.readouterr().err == "machine1-bridge: it happened\n"
    with pytest.raises(BlockingIOError):
        daemon.recv(4096)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("kind", ["socket", "closed"])
def test_standard_error_that_is_the_clients_or_closed_gets_nothing(
    daemon: socket.socket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, there: bool
) -> None:
    """inetd makes the client's socket all three. With it closed, print(file=None) would write to standard output."""
    if not there:
        monkeypatch.setattr(journal, "SOCKET", f"{journal.SOCKET}-of-nobody")
    client, ours = socket.socketpair()
    with client, ours:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", lambda _: os.stat(client.fileno() if kind == "socket" else 1_000_000))
            journal.open_journal()
        journal.record(journal.INFO, "it happened")
    assert capsys.readouterr() == ("", "")
    if there:
        assert daemon.recv(4096).startswith(b"MESSAGE=it happened\n")


@pytest.mark.usefixtures("_level")
def test_that_lines_were_lost_is_said_whatever_is_logged(connected: socket.socket) -> None:
    """They may have been of the audit trail."""
    journal.set_level(0)
    for _ in range(10_000):
        journal.record(journal.INFO, "line")
    lost = False
    while not lost:
        journal._flush()
        lost = b"lines were lost" in connected.recv(4096)


def test_standard_error_is_spared_the_details(daemon: socket.socket, capsys: pytest.CaptureFixture[str]) -> None:
    journal.log(journal.DEBUG, "detail")
    assert capsys.readouterr().err == ""


def test_a_line_that_the_journal_does_not_take_is_lost(
    connected: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be gone. Standard error is a stream to the same journal, on which writing blocks when it is full."""
    connected.close()
    journal.log(journal.ERROR, "it happened")
    assert capsys.readouterr().err == ""


def test_a_journal_that_is_full_does_not_block(connected: socket.socket, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(10_000):
        journal.log(journal.INFO, "line")
    assert capsys.readouterr().err == ""
    # What waits is written when there is room again, in order, and then how many lines there was no room for.
    received: list[bytes] = []
    later: list[Callable[[], object]] = []
    journal.use_timers(lambda _, callback: later.append(callback))
    for _ in range(10_000):
        while select.select([connected], [], [], 0)[0]:
            received.append(connected.recv(4096))
        if not journal._waiting:
            break
        journal._flush()
    while select.select([connected], [], [], 0)[0]:
        received.append(connected.recv(4096))
    assert later, "it tries again by itself"
    *lines, lost = received
    assert all(b"MESSAGE=line\n" in line for line in lines)
    assert journal.WAITING_MAX < len(lines) < 10_000
    assert f"MESSAGE={10_000 - len(lines)} lines were lost".encode() in lost
    journal.close()


def test_a_burst_of_refusals_is_summed_up_even_if_no_other_follows(logged: list[Line]) -> None:
    later: list[Callable[[], object]] = []
    journal.use_timers(lambda _, callback: later.append(callback))
    for _ in range(30):
        journal.refusal(1000, "no")
    assert [line.message for line in logged] == ["no"] * 20
    (summarize,) = later
    summarize()
    assert logged[-1].message == "10 more refusals of UID 1000"
    journal.close()


@pytest.mark.parametrize(
    ("message", "written"),
    [
        ("Bäume, 木, ½ and \\", "Bäume, 木, ½ and \\"),
        ("a\nb", "a\nb"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\r\t\x07\x7f\x9b", "\\r\\t\\x07\\x7f\\x9b"),
        # It would turn the rest of the line around.
        ("\u202etxt", "\\u202etxt"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_a_line_on_a_terminal_can_only_be_read(
    daemon: socket.socket, capsys: pytest.CaptureFixture[str], message: str, written: str
) -> None:
    journal.log(journal.INFO, message)
    assert capsys.readouterr().err == f"machine1-bridge: {written}\n"


def test_the_journal_gets_a_line_as_it_is(connected: socket.socket) -> None:
    """Who shows it escapes it."""
    journal.log(journal.INFO, "\x1b[2J")
    assert b"MESSAGE=\x1b[2J\n" in connected.recv(4096)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(logged: list[Line], monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(journal, "time", clock)
    return clock


def refuse(uid: int, times: int) -> None:
    for number in range(times):
        journal.refusal(uid, f"no {number}", MACHINE1_PEER_UID=uid)


def test_a_refusal_is_a_line(clock: Clock, logged: list[Line]) -> None:
    journal.refusal(7, "no", MACHINE1_PEER_UID=7, MACHINE1_METHOD="x")
    assert logged == [Line(journal.NOTICE, "no", {"MACHINE1_PEER_UID": 7, "MACHINE1_METHOD": "x"})]


def test_so_many_refusals_of_one_user_are_said_and_the_others_counted(clock: Clock, logged: list[Line]) -> None:
    refuse(7, 15)
    clock.now += 9
    refuse(7, 100)
    assert [line.message for line in logged] == [f"no {n}" for n in [*range(15), *range(5)]]
    logged.clear()
    clock.now += 2
    refuse(7, 1)
    assert logged == [
        Line(journal.NOTICE, "95 more refusals of UID 7", {"MACHINE1_PEER_UID": 7}),
        Line(journal.NOTICE, "no 0", {"MACHINE1_PEER_UID": 7}),
    ]
    # And from here on anew.
    logged.clear()
    refuse(7, 30)
    assert len(logged) == 19


def test_who_is_refused_often_does_not_hide_that_others_are(clock: Clock, logged: list[Line]) -> None:
    refuse(7, 1000)
    refuse(8, 21)
    refuse(9, 20)
    assert [line.fields["MACHINE1_PEER_UID"] for line in logged] == [7] * 20 + [8] * 20 + [9] * 20
    logged.clear()
    clock.now += 10.5
    refuse(10, 1)
    # Nothing was left out of user 9.
    assert [line.message for line in logged] == ["980 more refusals of UID 7", "1 more refusals of UID 8", "no 0"]
    logged.clear()
    clock.now += 10.5
    refuse(10, 1)
    assert [line.message for line in logged] == ["no 0"]


def test_refused_users_are_not_remembered_for_ever(clock: Clock, logged: list[Line]) -> None:
    for uid in range(100):
        refuse(uid, 1)
    clock.now += 11
    refuse(7, 1)
    assert dict(journal._refusals._counts) == {7: 1}


@pytest.mark.parametrize("state", ["closed", "full"])
def test_a_standard_error_that_is_gone_is_no_reason_to_stop(
    daemon: socket.socket, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError if state == "closed" else BlockingIOError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    journal.log(journal.ERROR, "it happened")
