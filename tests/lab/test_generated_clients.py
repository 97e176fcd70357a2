# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each generator makes of io.machine1.varlink makes real calls: tests/generators/get, built here, run in hosts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.generators import conftest
from tests.generators.conftest import ROOT, cargo, go

from .conftest import GUEST, SOCKET
from .host import Host
from .varlink import machines

__all__ = ["cargo", "go"]

PROGRAMS = ROOT / "tests" / "generators" / "get"


@cache
def varlink_go(module: Path) -> Path:
    conftest.varlink_go_package(module)
    return conftest.go_program(module, PROGRAMS / "varlink_go.go")


@cache
def emersion(module: Path) -> Path:
    conftest.emersion_package(module)
    return conftest.go_program(module, PROGRAMS / "emersion.go")


@cache
def varlink_rust(folder: Path) -> Path:
    return conftest.varlink_rust_program(folder, "client-varlink", PROGRAMS / "varlink_rust.rs")


@cache
def zlink(folder: Path) -> Path:
    return conftest.zlink_program(folder, PROGRAMS / "zlink.rs")


@pytest.mark.generators
@pytest.mark.parametrize(
    ("toolchain", "build"),
    [("go", varlink_go), ("go", emersion), ("cargo", varlink_rust), ("cargo", zlink)],
    ids=["varlink/go", "emersion/go-varlink", "varlink-rust", "zlink"],
)
@pytest.mark.parametrize("user", ["root", "nobody"])
def test_a_generated_client_lists_and_gets_machines(
    host: Host, request: pytest.FixtureRequest, toolchain: str, build: Callable[[Path], Path], user: str
) -> None:
    program = build(request.getfixturevalue(toolchain))
    there = Path("tmp") / program.name
    (host.path / there).write_bytes(program.read_bytes())
    (host.path / there).chmod(0o755)
    printed = host.run([f"/{there}", SOCKET, GUEST], user=user).stdout
    (host.path / there).unlink()
    _, service, object_path = machines(host)[GUEST]
    assert printed.splitlines() == [
        f"{GUEST} container {service}",
        f"there is {GUEST} {object_path}",
        "there is no nope",
    ]
