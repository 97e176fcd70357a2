# SPDX-License-Identifier: LGPL-2.1-or-later
"""io.machine1.varlink goes through the generators of Go and Rust clients, and what they write compiles.

Generators and their libraries are built once and kept in $XDG_CACHE_HOME/machine1-bridge/generators.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.generators

ROOT = Path(__file__).resolve().parents[2]
VARLINK = ROOT / "io.machine1.varlink"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "machine1-bridge" / "generators"

# The pins, all in this place. A generator has the version of the library that its output is compiled with.
VARLINK_GO = "v0.4.0"
EMERSION_GO_VARLINK = "v0.1.0"
ZLINK = "0.7.0"
VARLINK_RUST = "13.0.0"

GO_MODULE = f"""\
module machine1.test/generators

go 1.21

require (
\tgithub.com/varlink/go {VARLINK_GO}
\tgithub.com/emersion/go-varlink {EMERSION_GO_VARLINK}
)
"""

CARGO_PACKAGE = """\
[package]
name = "NAME"
version = "0.0.0"
edition = "2021"

[dependencies]
DEPENDENCIES

[workspace]
"""
SERDE = 'serde = { version = "1", features = ["derive"] }\nserde_derive = "1"\nserde_json = "1"\n'


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run to the end; its output becomes the message of a failed test."""
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "CARGO_TERM_COLOR": "never"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def go() -> Path:
    """A Go module of the cache that requires both libraries; generated packages are folders in it."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    module = CACHE / f"go-{VARLINK_GO}-{EMERSION_GO_VARLINK}"
    module.mkdir(parents=True, exist_ok=True)
    if not (module / "go.mod").exists():
        (module / "go.mod").write_text(GO_MODULE)
    return module


@pytest.fixture(scope="module")
def cargo() -> Path:
    """Where cargo keeps what it installs and builds."""
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    CACHE.mkdir(parents=True, exist_ok=True)
    return CACHE


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def go_generator(module: Path, package: str) -> Path:
    run("go", "build", "-o", f"{module}/bin/", package, cwd=module)
    return module / "bin" / package.rpartition("/")[2]


def cargo_generator(cache: Path, package: str, version: str, program: str) -> Path:
    root = cache / f"{package}-{version}"
    if not (root / "bin" / program).exists():
        run("cargo", "install", "--quiet", "--locked", "--root", root, f"{package}@{version}")
    return root / "bin" / program


def check_crate(cache: Path, name: str, dependencies: str, source: str) -> None:
    """Type-check the generated source as a crate. Its target folder stays, so that dependencies are built once."""
    crate = cache / f"crate-{name}"
    (crate / "src").mkdir(parents=True, exist_ok=True)
    package = CARGO_PACKAGE.replace("NAME", name).replace("DEPENDENCIES", dependencies + SERDE)
    (crate / "Cargo.toml").write_text(package)
    (crate / "src" / "lib.rs").write_text(source)
    run("cargo", "check", "--quiet", cwd=crate)


def test_varlink_go(go: Path) -> None:
    generator = go_generator(go, "github.com/varlink/go/cmd/varlink-go-interface-generator")
    package = fresh(go / "iomachine1")
    shutil.copy(VARLINK, package)
    run(generator, package / VARLINK.name)
    generated = (package / "iomachine1.go").read_text()
    assert "Pty_fd" in generated
    assert "type NoSuchMachine struct" in generated
    run("go", "vet", "./iomachine1", cwd=go)


def test_emersion_go_varlink(go: Path) -> None:
    generator = go_generator(go, "github.com/emersion/go-varlink/cmd/varlinkgen")
    package = fresh(go / "machine1api")
    run(generator, "-i", VARLINK, "-n", "machine1api", "-o", package / "machine1api.go")
    generated = (package / "machine1api.go").read_text()
    assert "type OpenMachineShellOut struct" in generated
    assert "type NoSuchMachineError struct" in generated
    run("go", "vet", "./machine1api", cwd=go)


def test_zlink(cargo: Path, tmp_path: Path) -> None:
    generator = cargo_generator(cargo, "zlink-codegen", ZLINK, "zlink-codegen")
    run(generator, VARLINK, "--output", tmp_path / "lib.rs")
    generated = (tmp_path / "lib.rs").read_text()
    assert "async fn open_machine_shell" in generated
    assert "pub enum Machine1Error" in generated
    assert "///\n" not in generated, "no comment was lost on the way"
    check_crate(cargo, "with-zlink", f'zlink = "={ZLINK}"\n', generated)


def test_varlink_rust(cargo: Path) -> None:
    generator = cargo_generator(cargo, "varlink_generator", VARLINK_RUST, "varlink-rust-generator")
    generated = run(generator, VARLINK)
    assert "fn open_machine_shell" in generated
    assert "NoSuchMachine_Args" in generated
    check_crate(cargo, "with-varlink", f'varlink = "={VARLINK_RUST}"\n', generated)
