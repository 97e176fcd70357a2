# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Rust client: it is what the generator makes, its own tests pass, and its program is the twin of Python's."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import termios
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit import test_shell as twin

# What `machine1-bridge shell` does, this program does: pytest finds these here, with the fixtures of this module.
from tests.unit.test_shell import (  # noqa: F401
    Service,
    run,
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

from .rust import CRATE, build, cargo, has_component, unavailable

pytestmark = pytest.mark.generators


# --- the crate ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """contrib/rust/generate.py."""
    if shutil.which("cargo") is None:
        unavailable("cargo is not installed")
    specification = importlib.util.spec_from_file_location("machine1_rust_generate", CRATE / "generate.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_what_is_generated_is_what_the_interface_says(generate: ModuleType) -> None:
    assert generate.GENERATED.read_text() == generate.derive(generate.codegen()), "`make clients` generates again"


METHOD = """
# Watch A Machine.
method WatchMachine(
    # Its name.
    name: string,
    # An index.
    notes_fd: int,
    # A word of Rust's.
    type: ?string
) -> (
    # An index.
    log_fd: int,
    # A path, as in paths[2].
    path: string
)
"""


def test_a_method_with_a_file_descriptor_sends_or_returns_it(generate: ModuleType, tmp_path: Path) -> None:
    changed = tmp_path / "io.machine1.varlink"
    changed.write_text(generate.VARLINK.read_text() + METHOD)
    text = generate.derive(generate.codegen(changed), changed)
    assert text != generate.GENERATED.read_text()
    assert (
        "pub async fn watch_machine(&mut self, name: &str, notes_fd: impl AsFd, r#type: Option<&str>)"
        " -> crate::Result<(WatchMachineOutput, Vec<OwnedFd>)> {" in text
    )
    assert "self.connection.watch_machine(name, 0, r#type, fds).await" in text
    assert 'json!({"name": name, "notes_fd": 0, "type": r#type})' in text
    assert text.count("#[zlink(fds)] fds: Vec<OwnedFd>") == text.count("_more(&mut self, ") == 5
    assert len(re.findall(r"#\[zlink\(.*return_fds\)\]", text)) == 5
    assert "&'a" not in text


def test_methods_and_errors_have_the_names_that_they_have_in_the_interface(generate: ModuleType) -> None:
    """zlink makes them of Rust's names: GetMachineByPid of get_machine_by_pid."""
    text = generate.GENERATED.read_text()
    (trait,) = re.findall(r"pub\(crate\) trait Machine1 {\n(.*?)^}", text, re.MULTILINE | re.DOTALL)
    methods = re.findall(r'(?:#\[zlink\((?:rename = "(\w+)")?.*\)\]\n)? *async fn (\w+)', trait)
    (errors,) = re.findall(r"pub enum Machine1Error {\n(.*?)^}", text, re.MULTILINE | re.DOTALL)
    variants = re.findall(r'(?:^    #\[zlink\(rename = "(\w+)"\)\]\n)?^    (\w+)(?: {|,)$', errors, re.MULTILINE)
    interface = generate.VARLINK.read_text()
    called = [renamed or name.title().replace("_", "") for renamed, name in methods]
    assert called == re.findall(r"^method (\w+)", interface, re.MULTILINE)
    assert [renamed or name for renamed, name in variants] == re.findall(r"^error (\w+)", interface, re.MULTILINE)


def test_the_generator_is_named_where_it_is_said_what_made_the_crate(generate: ModuleType) -> None:
    locked = tomllib.loads((CRATE / "Cargo.lock").read_text())["package"]
    assert {package["version"] for package in locked if package["name"] == "zlink"} == {generate.ZLINK}
    assert f"zlink-codegen {generate.ZLINK}" in (CRATE / "README.md").read_text()
    manifest = tomllib.loads((CRATE / "Cargo.toml").read_text())
    for needed in (*manifest["dependencies"].values(), *manifest["dev-dependencies"].values()):
        assert (needed if isinstance(needed, str) else needed["version"]).startswith("=")


def test_the_crates_own_tests_pass() -> None:
    said = cargo("test", "--locked", RUSTFLAGS="-D warnings")
    assert len(re.findall(r"test result: ok\. [1-9]", said)) == 4, f"program, client, descriptors, README\n{said}"


def test_the_library_does_without_what_is_the_programs() -> None:
    cargo("check", "--locked", "--lib", "--no-default-features", RUSTFLAGS="-D warnings")


def test_it_is_well_formed() -> None:
    """As rustfmt, clippy and rustdoc see it."""
    cargo("doc", "--locked", "--no-deps", RUSTDOCFLAGS="-D warnings")
    if has_component("fmt"):
        cargo("fmt", "--check")
    if has_component("clippy"):
        cargo("clippy", "--locked", "--all-targets", "--", "-D", "warnings")


# --- the program ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program() -> Path:
    return build() / "machine1-shell"


@pytest.fixture
def service(tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """For the tests of the Python program, which are imported above: here they run this one."""
    monkeypatch.setattr(
        twin, "command", lambda service, *arguments: [str(program), "--socket", service.path, *arguments]
    )
    service = Service(tmp_path / "service")
    yield service
    service.close()


def test_it_is_one_static_file(program: Path) -> None:
    def readelf(option: str) -> str:
        return subprocess.run(["readelf", option, "--wide", program], capture_output=True, text=True, check=True).stdout

    assert "LOAD" in readelf("--program-headers")
    assert "INTERP" not in readelf("--program-headers")
    assert "(NEEDED)" not in readelf("--dynamic")
    # ldd says it on one of two ways, and neither names a library.
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    assert re.search("statically linked|not a dynamic executable", said.stdout + said.stderr)
    assert program.stat().st_size < 3_000_000


def test_an_error_is_one_line(service: Service) -> None:
    service.fails("io.machine1.NoSuchMachine", name="web")
    done = run(service, "web")
    assert (done.returncode, done.stderr) == (1, b"machine1-shell: NoSuchMachine: web\n")
    service.fails("io.machine1.Timeout")
    assert run(service, "web").stderr == b"machine1-shell: Timeout\n"
    service.fails("org.varlink.service.InvalidParameter", parameter="path", reason="must be an absolute path")
    assert run(service, "web", "ls").stderr == b"machine1-shell: InvalidParameter: path, must be an absolute path\n"
    service.fails("io.systemd.InteractiveAuthenticationRequired")
    assert run(service, "web").stderr == b"machine1-shell: InteractiveAuthenticationRequired\n"


def test_no_service_is_an_error(program: Path, tmp_path: Path) -> None:
    path = f"{tmp_path}/none"
    environment = {"MACHINE1_SOCKET": path}
    done = subprocess.run([program, "web"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"machine1-shell: {path}: No such file or directory\n")


def test_who_cannot_be_told_of_an_error_gets_its_status(program: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command: list[str | Path] = [program, "--socket", tmp_path / "none", "web"]
    assert subprocess.run(command, stdout=writer, stderr=writer, check=False).returncode == 1
    assert subprocess.run([program, "--nope"], stdout=writer, stderr=writer, check=False).returncode == 2
    assert subprocess.run([program, "--help"], stdout=writer, stderr=writer, check=False).returncode == 1
    os.close(writer)


def test_what_is_not_understood_is_said(program: Path) -> None:
    for arguments in ([], ["--user"], ["--nope", "web"], ["web", "--user", "bob"]):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        usage, reason = done.stderr.splitlines()
        assert usage.startswith("usage: machine1-shell ")
        assert reason.startswith("machine1-shell: ")
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    assert "^]" in done.stdout


def test_a_terminal_that_got_lost_is_an_error(service: Service, program: Path) -> None:
    """Too many open files: whatever the limit, there is one line that says why, and no panic."""
    said = set()
    for limit in range(4, 24):
        done = subprocess.run(
            [program, "--socket", service.path, "web", "/bin/true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),  # type: ignore[misc]
        )
        assert done.stderr.count("\n") == (done.returncode != 0), done.stderr
        assert done.returncode in (0, 1), done.stderr
        said.add(done.stderr)
    assert "" in said
    assert any("lost on the way: too many open files" in each for each in said), said
    service.programs_end()


def test_a_signal_while_the_service_thinks_ends_it(service: Service, program: Path) -> None:
    """As one does later, and the terminal is not touched."""
    service.answer = lambda client: time.sleep(2)
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen([program, "--socket", service.path, "web"], stdin=theirs, stdout=theirs, stderr=theirs)
    deadline = time.monotonic() + 20
    while not service.calls:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_what_is_in_the_way_does_not_keep_anybody(service: Service, typist: twin.Typist) -> None:  # noqa: F811
    """A program that does not read what is typed cannot keep who types from leaving."""
    typist.type(b"exec sleep 60\r")
    typist.sees(b"sleep 60")
    time.sleep(0.2)
    for _ in range(50):
        typist.type(b"x" * 1000)
        time.sleep(0.01)
    typist.type(b"\x1d\x1d\x1d")
    assert typist.ends() == 0
    assert service.programs_end() == [-signal.SIGHUP]
