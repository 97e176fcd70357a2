# SPDX-License-Identifier: LGPL-2.1-or-later
"""Directories of images, looked at from outside."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.pool import DIRECTORIES, Pool
from bridge.remembered import SETTLED


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """Of a directory with an image, `machines`, and one that is not there. It is as old as it says."""
    (tmp_path / "machines" / "old").mkdir(parents=True)
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 10 * SETTLED)
    return Pool([str(tmp_path / "machines"), str(tmp_path / "late")])


def test_the_directories_are_absolute() -> None:
    assert all(os.path.isabs(directory) for directory in DIRECTORIES)
    assert "/var/lib/machines" in DIRECTORIES


def test_nothing_has_changed(pool: Pool) -> None:
    stamp = pool.look()
    assert stamp is not None
    assert not pool.has_changed(stamp)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "machines" / "new").mkdir(),
        lambda path: (path / "machines" / "new.raw").touch(),
        lambda path: (path / "machines" / "old").rmdir(),
        lambda path: (path / "machines" / "old").rename(path / "machines" / "other"),
        lambda path: (path / "machines").rename(path / "gone"),
        lambda path: (path / "late").mkdir(),
    ],
)
def test_what_comes_and_goes_is_seen(pool: Pool, tmp_path: Path, change: Callable[[Path], None]) -> None:
    stamp = pool.look()
    time.sleep(0.02)  # a step of the clock of files
    change(tmp_path)
    assert pool.has_changed(stamp)


def test_one_that_has_just_changed_is_looked_at_again(tmp_path: Path) -> None:
    """Another change in the same step of the clock would look the same."""
    directory = tmp_path / "machines"
    directory.mkdir()
    pool = Pool([str(directory)])
    assert pool.look() is None
    assert pool.has_changed(None)
