# SPDX-License-Identifier: LGPL-2.1-or-later
"""contrib/completion: what bash offers after words of a command line, divided as bash divides them."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
COMPLETION = REPOSITORY / "contrib/completion/machine1-bridge"
ASK = """
source "$1"
complete -p machine1-bridge
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_machine1_bridge
printf '%s\\n' "${COMPREPLY[@]}"
"""
# As it comes from the service, and with what no machine is called.
REPLY = (
    b'{"parameters":{"machines":[{"name":"web-1","class":"container","service":"name"},'
    b'{"name":"web.2","class":"vm"},{"name":"db","class":"vm"},{"name":"$(reboot)"}]}}\0'
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PATH with machine1-bridge in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "machine1-bridge"
    program.write_text(f'#!/bin/sh\ncd {REPOSITORY} && exec {sys.executable} -W error -m bridge "$@"\n')
    program.chmod(0o755)
    return folder


@pytest.fixture
def offered(path: Path, tmp_path: Path) -> Iterator[str]:
    """The socket of a service with machines; it answers as many as ask."""
    address = f"{tmp_path}/service"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()

        def serve() -> None:
            while True:
                client, _ = listener.accept()
                with client:
                    if b"ListMachines" not in client.recv(65536):
                        return
                    client.sendall(REPLY)

        thread = threading.Thread(target=serve)
        thread.start()
        yield address
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(address)
        thread.join(10)


def complete(path: Path, *words: str, **environment: str) -> list[str]:
    command = ["bash", "--norc", "-c", ASK, "bash", str(COMPLETION), "machine1-bridge", *words]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={"PATH": f"{path}:/usr/bin:/bin", **environment},
    )
    registered, *offers = done.stdout.splitlines()
    assert registered == "complete -F _machine1_bridge machine1-bridge"
    assert done.stderr == ""
    return sorted(offer for offer in offers if offer)


def helped(*arguments: str) -> set[str]:
    """The long options that --help tells of."""
    command = [sys.executable, "-m", "bridge", *arguments, "--help"]
    text = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True).stdout
    return set(re.findall(r"^ {2}(?:-\w, )?(--[a-z-]+)", text, re.MULTILINE))


@pytest.mark.parametrize("command", [[], ["shell"], ["report"], ["--stdio"]])
def test_the_options_are_those_that_the_help_tells_of(path: Path, command: list[str]) -> None:
    # With --stdio and without a command, options are all that there is.
    beside = {"--stdio"} if not command else set()
    assert set(complete(path, *command, "--")) == helped(*command) | beside


def test_the_first_word(path: Path) -> None:
    assert complete(path, "s") == ["shell"]
    assert complete(path, "re") == ["report"]
    assert {"shell", "report", "--stdio", "--policy"} <= set(complete(path, ""))
    # Beside options of the service, there are no commands.
    assert complete(path, "--idle-timeout", "3", "s") == []


def test_machines_for_a_shell(path: Path, offered: str) -> None:
    for words in (["--socket", offered], ["--socket", "=", offered]):
        assert complete(path, "shell", *words, "") == ["db", "web-1", "web.2"]
    assert complete(path, "shell", "w", MACHINE1_SOCKET=offered) == ["web-1", "web.2"]
    for words in (["--user", "joe"], ["--env", "A", "=", "b"], ["--env", "=", "A", "=", "b"], ["--user", "=", "joe"]):
        assert complete(path, "shell", *words, "d", MACHINE1_SOCKET=offered) == ["db"], words
    # What comes after one is in the machine.
    assert complete(path, "shell", "db", "", MACHINE1_SOCKET=offered) == []
    assert complete(path, "shell", "db", "--", MACHINE1_SOCKET=offered) == []


@pytest.mark.parametrize("words", [["--user", ""], ["--env", "A", "="], ["--env", "A", "=", "b"], ["--env", ""]])
def test_nothing_where_nothing_is_known(path: Path, offered: str, words: list[str]) -> None:
    assert complete(path, "shell", *words, MACHINE1_SOCKET=offered) == []


def test_paths_of_sockets(path: Path, tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    for words in (["shell"], ["report"], ["--stdio"]):
        assert complete(path, *words, "--socket", f"{tmp_path}/o") == [f"{tmp_path}/one"]
        assert complete(path, *words, "--socket", "=", f"{tmp_path}/o") == [f"{tmp_path}/one"]
    assert complete(path, "--listen", f"{tmp_path}/o") == [f"{tmp_path}/one"]


def test_silence_without_a_service(path: Path, tmp_path: Path) -> None:
    begin = time.monotonic()
    assert complete(path, "shell", "", MACHINE1_SOCKET=f"{tmp_path}/none") == []
    assert complete(tmp_path, "shell", "", MACHINE1_SOCKET=f"{tmp_path}/none") == []  # without the program
    assert time.monotonic() - begin < 5


def test_silence_of_a_service(path: Path, tmp_path: Path) -> None:
    """One that hangs holds nobody at the prompt."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/hangs")
        listener.listen()
        begin = time.monotonic()
        assert complete(path, "shell", "", MACHINE1_SOCKET=f"{tmp_path}/hangs") == []
        assert time.monotonic() - begin < 8
