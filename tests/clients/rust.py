# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Rust client of contrib/rust, built once a session in $XDG_CACHE_HOME/machine1-bridge/clients, and kept there."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

CRATE = Path(__file__).resolve().parents[2] / "contrib" / "rust"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "machine1-bridge" / "clients"
BUILT = CACHE / "rust"


def unavailable(reason: str) -> NoReturn:
    """Skip with the reason; in CI a test that did not run is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"the Rust client cannot be built: {reason}", pytrace=False)
    pytest.skip(f"the Rust client cannot be built: {reason}")


def cargo(*arguments: str, **environment: str) -> str:
    """Run cargo on the crate to the end; what it says becomes the message of a failed test."""
    if shutil.which("cargo") is None:
        unavailable("cargo is not installed")
    BUILT.mkdir(parents=True, exist_ok=True)
    # What only a debugger and an editor want is left out: it is most of what would be kept.
    small = {"CARGO_INCREMENTAL": "0", "CARGO_PROFILE_DEV_DEBUG": "false", "CARGO_TERM_COLOR": "never"}
    every = {**os.environ, "CARGO_TARGET_DIR": str(BUILT), **small, **environment}
    command = ["nice", "cargo", *arguments]
    done = subprocess.run(command, cwd=CRATE, env=every, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def has_component(name: str) -> bool:
    """Whether cargo has this subcommand, `fmt` or `clippy`: not every installation of Rust does."""
    return subprocess.run(["cargo", name, "--version"], cwd=CRATE, capture_output=True, check=False).returncode == 0


@functools.cache
def target() -> tuple[str, str]:
    """For static programs: musl's target if rustup has it or can get it, else glibc's; and the compiler's flags."""
    machine = platform.machine()
    musl = f"{machine}-unknown-linux-musl"
    if shutil.which("rustup") is not None:
        added = subprocess.run(["rustup", "target", "add", musl], cwd=CRATE, capture_output=True, check=False)
        if added.returncode == 0:
            return musl, ""
    return f"{machine}-unknown-linux-gnu", "-C target-feature=+crt-static"


@functools.cache
def build() -> Path:
    """The folder with the static program machine1-shell and the example `machines` in examples/."""
    if shutil.which("cargo") is None:
        unavailable("cargo is not installed")
    triple, flags = target()
    arguments = ["build", "--release", "--locked", "--bins", "--examples", "--target", triple]
    cargo(*arguments, RUSTFLAGS=f"-D warnings {flags}".strip())
    return BUILT / triple / "release"
