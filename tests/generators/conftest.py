# SPDX-License-Identifier: LGPL-2.1-or-later
"""The generators of Go and Rust clients and where they build: $XDG_CACHE_HOME/machine1-bridge/generators, kept.

Programs are static, so that they run in any host of the lab, too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
VARLINK = ROOT / "io.machine1.varlink"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "machine1-bridge" / "generators"

# The pins, all in this place, but those of varlink/go and zlink, which are the ones of contrib/go and contrib/rust. A
# generator has the version of the library that its output is compiled with.
GO_MOD = (ROOT / "contrib" / "go" / "go.mod").read_text()
VARLINK_GO = re.findall(r"^require github\.com/varlink/go (\S+)", GO_MOD, re.MULTILINE)[0]
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
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "CARGO_TERM_COLOR": "never", "CGO_ENABLED": "0"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def missing(program: str) -> NoReturn:
    """Skip with the reason; in CI a test that did not run is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{program} is not installed", pytrace=False)
    pytest.skip(f"{program} is not installed")


@pytest.fixture(scope="module")
def go() -> Path:
    """A Go module of the cache that requires both libraries; generated packages are folders in it."""
    if shutil.which("go") is None:
        missing("go")
    module = CACHE / f"go-{VARLINK_GO}-{EMERSION_GO_VARLINK}"
    module.mkdir(parents=True, exist_ok=True)
    if not (module / "go.mod").exists():
        (module / "go.mod").write_text(GO_MODULE)
    return module


@pytest.fixture(scope="module")
def cargo() -> Path:
    """Where cargo keeps what it installs and builds."""
    if shutil.which("cargo") is None:
        missing("cargo")
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


def emersion_package(module: Path) -> Path:
    """The package that emersion/go-varlink makes of the interface."""
    generator = go_generator(module, "github.com/emersion/go-varlink/cmd/varlinkgen")
    package = fresh(module / "machine1api")
    run(generator, "-i", VARLINK, "-n", "machine1api", "-o", package / "machine1api.go")
    return package


def go_program(module: Path, source: Path) -> Path:
    """A program of one file, built in the module; its name is the file's."""
    folder = fresh(module / "programs" / source.stem)
    shutil.copy(source, folder / "main.go")
    run("go", "build", "-o", f"{module}/bin/", f"./programs/{source.stem}", cwd=module)
    return module / "bin" / source.stem


def zlink_source(cache: Path) -> str:
    """What zlink-codegen makes of the interface."""
    generator = cargo_generator(cache, "zlink-codegen", ZLINK, "zlink-codegen")
    generated = cache / f"zlink-codegen-{ZLINK}" / "generated.rs"
    run(generator, VARLINK, "--output", generated)
    return generated.read_text()


def varlink_rust_source(cache: Path, interface: Path = VARLINK) -> str:
    """What varlink-rust-generator makes of an interface."""
    generator = cargo_generator(cache, "varlink_generator", VARLINK_RUST, "varlink-rust-generator")
    return run(generator, interface)


def zlink_program(cache: Path, source: Path) -> Path:
    """A program of one file with what zlink-codegen makes of the interface; its name is the file's."""
    tokio = 'tokio = { version = "1", features = ["macros", "rt"] }\n'
    sources = {"lib.rs": zlink_source(cache), f"bin/{source.stem}.rs": source.read_text()}
    return cargo_program(write_crate(cache, "client-zlink", f'zlink = "={ZLINK}"\n{tokio}', sources), source.stem)


def varlink_rust_program(cache: Path, crate: str, source: Path, interface: Path = VARLINK) -> Path:
    """The same with varlink-rust."""
    sources = {"lib.rs": varlink_rust_source(cache, interface), f"bin/{source.stem}.rs": source.read_text()}
    return cargo_program(write_crate(cache, crate, f'varlink = "={VARLINK_RUST}"\n', sources), source.stem)


def cargo_program(crate: Path, name: str) -> Path:
    """A static program of a crate. With a target of its own, macros are not made static, which they cannot be."""
    target = next(line.split()[1] for line in run("rustc", "-vV").splitlines() if line.startswith("host:"))
    flags = f'target.{target}.rustflags=["-C","target-feature=+crt-static"]'
    run("cargo", "build", "--quiet", "--bin", name, "--target", target, "--config", flags, cwd=crate)
    return crate / "target" / target / "debug" / name


def write_crate(cache: Path, name: str, dependencies: str, sources: dict[str, str]) -> Path:
    """A crate of these sources. Its target folder stays, so that dependencies are built once."""
    crate = cache / f"crate-{name}"
    (crate / "src").mkdir(parents=True, exist_ok=True)
    package = CARGO_PACKAGE.replace("NAME", name).replace("DEPENDENCIES", dependencies + SERDE)
    for path, text in {"Cargo.toml": package, **{f"src/{name}": text for name, text in sources.items()}}.items():
        (crate / path).parent.mkdir(exist_ok=True)
        if not (crate / path).exists() or (crate / path).read_text() != text:
            (crate / path).write_text(text)
    return crate
