# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's hosts for these tests, of their own: a host of each suite for the truth, the newest for load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.conftest import host, nothing_left, suite

__all__ = ["host", "nothing_left", "suite"]

NEWEST = "forky"
ON_ALL = "test_truth.py"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and "host" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.lab)
    elsewhere = [item for item in items if here in item.path.parents and _is_of_an_older_suite(item)]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]


def _is_of_an_older_suite(item: pytest.Item) -> bool:
    """What is about the bridge's own speed and size needs one version of machined."""
    callspec = getattr(item, "callspec", None)
    return item.path.name != ON_ALL and callspec is not None and callspec.params.get("suite", NEWEST) != NEWEST
