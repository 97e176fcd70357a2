# SPDX-License-Identifier: LGPL-2.1-or-later
"""The generators of Go and Rust clients and where they build: $XDG_CACHE_HOME/machine1-bridge/generators, kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VARLINK = ROOT / "io.machine1.varlink"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "machine1-bridge" / "generators"

# The pins, all in this place, but that of zlink, which is the one of contrib/rust. A generator has the version of the
# library that its output is compiled with.
VARLINK_GO = "v0.4.0"
EMERSION_GO_VARLINK = "v0.1.0"
CRATE = tomllib.loads((ROOT / "contrib" / "rust" / "Cargo.toml").read_text())
ZLINK: str = CRATE["dependencies"]["zlink"]["version"].removeprefix("=")
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


def varlink_go_package(module: Path) -> Path:
    """The package that varlink/go makes of the interface."""
    generator = go_generator(module, "github.com/varlink/go/cmd/varlink-go-interface-generator")
    package = fresh(module / "iomachine1")
    shutil.copy(VARLINK, package)
    run(generator, package / VARLINK.name)
    return package


def zlink_source(cache: Path) -> str:
    """What zlink-codegen makes of the interface."""
    generator = cargo_generator(cache, "zlink-codegen", ZLINK, "zlink-codegen")
    generated = cache / f"zlink-codegen-{ZLINK}" / "generated.rs"
    run(generator, VARLINK, "--output", generated)
    return generated.read_text()


def write_crate(cache: Path, name: str, dependencies: str, sources: dict[str, str]) -> Path:
    """A crate of these sources. Its target folder stays, so that dependencies are built once."""
    crate = cache / f"crate-{name}"
    (crate / "src").mkdir(parents=True, exist_ok=True)
    package = CARGO_PACKAGE.replace("NAME", name).replace("DEPENDENCIES", dependencies + SERDE)
    for path, text in {"Cargo.toml": package, **{f"src/{name}": text for name, text in sources.items()}}.items():
        if not (crate / path).exists() or (crate / path).read_text() != text:
            (crate / path).write_text(text)
    return crate
