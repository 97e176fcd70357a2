# SPDX-License-Identifier: LGPL-2.1-or-later
"""Log lines: fields to the journal, text to standard error, and never an exception."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge import journal


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


def test_debug_lines_are_for_the_journal(connected: socket.socket) -> None:
    journal.log(journal.DEBUG, "detail")
    assert b"PRIORITY=7\n" in connected.recv(4096)


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


def test_standard_error_is_spared_the_details(daemon: socket.socket, capsys: pytest.CaptureFixture[str]) -> None:
    journal.log(journal.DEBUG, "detail")
    assert capsys.readouterr().err == ""


def test_a_line_that_the_journal_does_not_take_goes_to_standard_error(
    connected: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be restarting. The service goes on, and so does the next line when it is back."""
    connected.close()
    journal.log(journal.ERROR, "it happened")
    assert capsys.readouterr().err == "machine1-bridge: it happened\n"


def test_a_journal_that_is_full_does_not_block(connected: socket.socket, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(10_000):
        journal.log(journal.INFO, "line")
        if capsys.readouterr().err:
            break
    else:
        pytest.fail("it took everything")
    assert b"MESSAGE=line\n" in connected.recv(4096)


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
