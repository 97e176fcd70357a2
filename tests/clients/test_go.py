# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Go client: it is what the generator makes, its own tests pass, and its program is the twin of Python's."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit import test_shell as twin

# What `machine1-bridge shell` is held to is held against this program too: pytest finds these here, with the fixtures
# of this module.
from tests.unit.test_shell import (  # noqa: F401
    Service,
    Typist,
    test_a_machine_that_does_not_read_keeps_nobody,
    test_a_service_that_hangs_up_is_an_error,
    test_a_service_that_makes_no_sense_is_an_error,
    test_a_shell_is_one_of_this_terminal,
    test_a_signal_leaves_the_terminal_as_it_was,
    test_a_terminal_that_goes_away_ends_it,
    test_an_end_of_input_that_a_program_has_thrown_away_comes_again,
    test_much_output_comes_whole,
    test_output_that_nobody_reads_ends_it,
    test_three_times_the_key_but_slowly_is_typing,
    test_three_times_the_key_leaves_and_what_runs_there_is_hung_up_on,
    test_three_times_the_key_leaves_whatever_is_typed_around_it,
    test_what_a_machine_says_in_an_error_can_only_be_read,
    test_what_is_typed_waits_until_the_terminal_has_been_emptied,
    test_who_is_gone_at_once_leaves_when_the_program_can_be_told,
    test_without_a_terminal_input_is_that_of_the_command_and_ends_it,
    test_without_a_terminal_output_is_that_of_the_command,
    typist,
)
from tests.unit.test_shell import run as run_shell

from .go import MODULE, README, program, run

pytestmark = pytest.mark.generators

METHOD = """
# Watch a machine.
method WatchMachine(name: string) -> (name: string)
"""


# --- the module -----------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Of the module, where it can be generated again."""
    return shutil.copytree(MODULE, tmp_path / "go")


def test_what_is_generated_is_what_the_interface_says(copy: Path) -> None:
    generated = MODULE / "iomachine1" / "iomachine1.go"
    again = copy / "iomachine1" / "iomachine1.go"
    again.unlink()
    run("go", "generate", "./...", folder=copy)
    assert again.read_bytes() == generated.read_bytes(), "`make clients` generates again"
    with (copy / "iomachine1" / "io.machine1.varlink").open("a") as file:
        file.write(METHOD)
    run("go", "generate", "./...", folder=copy)
    assert "func WatchMachine()" in again.read_text()


@pytest.fixture
def methods() -> list[tuple[str, str, str]]:
    """Of the interface: name, parameters, reply."""
    interface = re.sub(r"#.*", "", (MODULE / "iomachine1" / "io.machine1.varlink").read_text())
    method = r"^method (\w+)\((.*?)\) -> \((.*?)\)$(?=\n\n|\s*\Z)"
    return re.findall(method, interface, re.MULTILINE | re.DOTALL)


FILE_DESCRIPTOR = re.compile(r"\w_fd: int")


def test_each_method_that_takes_a_file_descriptor_can_be_given_a_file(methods: list[tuple[str, str, str]]) -> None:
    """By hand: what is generated sends none."""
    take = [name for name, parameters, _ in methods if FILE_DESCRIPTOR.search(parameters)]
    assert {"ImportTar", "ExportRaw"} <= set(take)
    by_hand = (MODULE / "iomachine1" / "transfer.go").read_text()
    for name in take:
        assert f"func ({name}_methods) WithFile(" in by_hand
        assert f'FileCall{{"io.machine1.{name}", ' in by_hand


def test_each_method_that_returns_a_file_descriptor_has_a_function_that_opens_it(
    methods: list[tuple[str, str, str]],
) -> None:
    """By hand: what is generated closes it."""
    return_one = [name for name, _, reply in methods if FILE_DESCRIPTOR.search(reply)]
    assert {"OpenMachineShell", "OpenMachinePTY"} <= set(return_one)
    by_hand = (MODULE / "iomachine1" / "shell.go").read_text()
    for name in return_one:
        assert f"\nfunc {name.replace('Machine', '')}(" in by_hand
        assert f'"io.machine1.{name}", ' in by_hand


def test_the_generator_is_named_where_it_is_said_what_made_the_package() -> None:
    version = run("go", "list", "-m", "-f", "{{.Version}}", "github.com/varlink/go").strip()
    assert f"varlink/go\n{version}," in README.read_text()


def test_the_modules_own_tests_pass() -> None:
    said = run("go", "test", "-count=1", "./...")
    assert len(re.findall(r"^ok ", said, re.MULTILINE)) == 2, said


def test_it_is_well_formed() -> None:
    assert run("gofmt", "-l", ".") == ""
    run("go", "vet", "./...")
    run("go", "mod", "verify")
    run("go", "mod", "tidy", "-diff")


# --- the program ----------------------------------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """For the tests of the Python program, which are imported above: here they run this one."""
    built = str(program())
    monkeypatch.setattr(twin, "command", lambda service, *arguments: [built, "--socket", service.path, *arguments])
    service = Service(tmp_path / "service")
    yield service
    service.close()


def test_it_is_one_static_file() -> None:
    def readelf(option: str) -> str:
        command = ["readelf", option, "--wide", str(program())]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout

    assert "LOAD" in readelf("--program-headers")
    assert "INTERP" not in readelf("--program-headers")
    assert "(NEEDED)" not in readelf("--dynamic")
    assert program().stat().st_size < 4_000_000


def test_an_error_is_one_line(service: Service) -> None:
    service.fails("io.machine1.NoSuchMachine", name="web")
    done = run_shell(service, "web")
    assert (done.returncode, done.stderr) == (1, b"machine1-shell: NoSuchMachine: web\n")
    service.fails("io.machine1.Failed", dbus_error="System.Error.EIO", message="Input/output error")
    assert run_shell(service, "web").stderr == b"machine1-shell: Failed: System.Error.EIO, Input/output error\n"
    service.fails("io.machine1.Timeout")
    assert run_shell(service, "web").stderr == b"machine1-shell: Timeout\n"
    service.fails("io.systemd.InteractiveAuthenticationRequired")
    assert run_shell(service, "web").stderr == b"machine1-shell: InteractiveAuthenticationRequired\n"
    done = run_shell(service, "web", "ls")
    assert (done.returncode, done.stderr) == (1, b"machine1-shell: COMMAND must be an absolute path: ls\n")


def test_no_service_is_an_error(tmp_path: Path) -> None:
    path = f"{tmp_path}/none"
    done = subprocess.run(
        [program(), "web"], env={"MACHINE1_SOCKET": path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, f"machine1-shell: {path}: no such file or directory\n")


def test_what_is_not_understood_is_said() -> None:
    for arguments in ([], ["--user"], ["--nope", "web"]):
        done = subprocess.run([program(), *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        usage, reason = done.stderr.splitlines()
        assert usage.startswith("usage: machine1-shell ")
        assert reason.startswith("machine1-shell: ")
    done = subprocess.run([program(), "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: machine1-shell ")
    assert "^]" in done.stdout


def test_a_signal_while_the_service_thinks_ends_it(service: Service) -> None:
    """As one does later, and the terminal is not touched."""
    service.answer = lambda client: time.sleep(2)
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen([program(), "--socket", service.path, "web"], stdin=theirs, stdout=theirs, stderr=theirs)
    deadline = time.monotonic() + 20
    while not service.calls:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_a_program_that_does_not_read_keeps_nobody(service: Service, typist: Typist) -> None:  # noqa: F811
    typist.type(b"stty raw -echo; echo ready; exec sleep 60\r")
    typist.sees(b"\nready")
    for _ in range(20):
        typist.type(b"x" * 1000)
        time.sleep(0.01)
    typist.type(b"\x1d\x1d\x1d")
    assert typist.ends() == 0
    assert service.programs_end() == [-signal.SIGHUP]
