# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Go client of contrib/go; its programs are built in $XDG_CACHE_HOME/machine1-bridge/clients and kept there."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

MODULE = Path(__file__).resolve().parents[2] / "contrib" / "go"
README = MODULE / "README.md"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "machine1-bridge" / "clients"
BUILT = CACHE / "go"


def unavailable(reason: str) -> NoReturn:
    """Skip with the reason; in CI a test that did not run is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"the Go client cannot be built: {reason}", pytrace=False)
    pytest.skip(f"the Go client cannot be built: {reason}")


def run(*command: str | Path, folder: Path = MODULE) -> str:
    """Run go or gofmt to the end; what it says becomes the message of a failed test."""
    for program in ("go", "gofmt"):
        if shutil.which(program) is None:
            unavailable(f"{program} is not installed")
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
    done = subprocess.run(
        ["nice", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


@functools.cache
def program() -> Path:
    """machine1-shell, built as the README says."""
    BUILT.mkdir(parents=True, exist_ok=True)
    (line,) = re.findall(r"CGO_ENABLED=0 (go build .*)", README.read_text())
    *build, package = line.split()
    run(*build, "-o", BUILT / "machine1-shell", package)
    return BUILT / "machine1-shell"


@functools.cache
def example() -> Path:
    """The program in the README that opens shells."""
    return _with_the_client("example", _programs()[0])


@functools.cache
def importing() -> Path:
    """The program in the README that imports an archive."""
    return _with_the_client("importing", _programs()[1])


def _programs() -> list[str]:
    found: list[str] = re.findall(r"```go\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(found) == 2
    return found


@functools.cache
def machines() -> Path:
    """machines.go."""
    return _ours("machines")


@functools.cache
def images() -> Path:
    """images.go."""
    return _ours("images")


def _ours(name: str) -> Path:
    here = Path(__file__).parent
    return _with_the_client(name, *((here / file).read_text() for file in (f"{name}.go", "outcome.go")))


def _with_the_client(name: str, *texts: str) -> Path:
    """A program in a module of its own that is made as the README says."""
    folder = BUILT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, text in enumerate(texts):
        (folder / f"file{number}.go").write_text(text)
    run("go", "mod", "init", name, folder=folder)
    for line in re.findall(r"^    (go mod .*)", README.read_text(), re.MULTILINE):
        run(*line.replace("CLONE/contrib/go", str(MODULE)).split(), folder=folder)
    run("gofmt", "-e", "-d", ".", folder=folder)
    run("go", "vet", "./...", folder=folder)
    run("go", "build", folder=folder)
    return folder / name
