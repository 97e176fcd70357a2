# SPDX-License-Identifier: LGPL-2.1-or-later
"""io.machine1.varlink goes through the generators of Go and Rust clients, and what they write compiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import (
    VARLINK_RUST,
    ZLINK,
    emersion_package,
    run,
    varlink_go_package,
    varlink_rust_source,
    write_crate,
    zlink_source,
)

pytestmark = pytest.mark.generators


def test_varlink_go(go: Path) -> None:
    generated = (varlink_go_package(go) / "iomachine1.go").read_text()
    assert "Pty_fd" in generated
    assert "type NoSuchMachine struct" in generated
    run("go", "vet", "./iomachine1", cwd=go)


def test_emersion_go_varlink(go: Path) -> None:
    generated = (emersion_package(go) / "machine1api.go").read_text()
    assert "type OpenMachineShellOut struct" in generated
    assert "type NoSuchMachineError struct" in generated
    run("go", "vet", "./machine1api", cwd=go)


def test_zlink(cargo: Path) -> None:
    generated = zlink_source(cargo)
    assert "async fn open_machine_shell" in generated
    assert "pub enum Machine1Error" in generated
    assert "///\n" not in generated, "no comment was lost on the way"
    crate = write_crate(cargo, "with-zlink", f'zlink = "={ZLINK}"\n', {"lib.rs": generated})
    run("cargo", "check", "--quiet", cwd=crate)


def test_varlink_rust(cargo: Path) -> None:
    generated = varlink_rust_source(cargo)
    assert "fn open_machine_shell" in generated
    assert "NoSuchMachine_Args" in generated
    crate = write_crate(cargo, "with-varlink", f'varlink = "={VARLINK_RUST}"\n', {"lib.rs": generated})
    run("cargo", "check", "--quiet", cwd=crate)
