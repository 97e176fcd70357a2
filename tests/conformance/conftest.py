# SPDX-License-Identifier: LGPL-2.1-or-later
"""A service of org.varlink.certification, and where its clients in Go and Rust are built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.generators.conftest import CACHE, ROOT, VARLINK_GO, cargo, go, run

__all__ = ["cargo", "go"]


@contextmanager
def serving(path: str) -> Iterator[None]:
    """A service on this socket, which is to be there until the end, and to log no bug."""
    command = [sys.executable, "-m", "tests.conformance.certification", path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "listening\n"
            yield
            assert process.poll() is None
        finally:
            process.terminate()
            os.unlink(path)
        assert "Bug" not in process.stdout.read()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "socket")
    with serving(path):
        yield path


@pytest.fixture
def varlink_go_certification(go: Path) -> Path:
    """The program of varlink/go's own. What it generates it has to generate beside its source: that is copied."""
    source = CACHE / f"varlink-go-{VARLINK_GO}"
    program = source / "varlink-go-certification"
    if not program.exists():
        module = json.loads(run("go", "mod", "download", "-json", f"github.com/varlink/go@{VARLINK_GO}", cwd=go))
        run("cp", "-rT", "--no-preserve=mode", module["Dir"], source)
        run("go", "generate", "./cmd/varlink-go-certification/...", cwd=source)
        run("go", "build", "-o", program, "./cmd/varlink-go-certification", cwd=source)
    return program
