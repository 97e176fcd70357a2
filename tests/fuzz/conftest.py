# SPDX-License-Identifier: LGPL-2.1-or-later
"""How hypothesis runs: in CI the same examples each time; nothing is left in the tree."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

# The real process on a real bus is tests/integration's.
from tests.integration.conftest import bridge, bus, client, machined  # noqa: F401

# What it remembers of Unicode; `make clean` takes it away.
set_hypothesis_home_dir(Path(__file__).parents[2] / "build" / "hypothesis")
# Machines are slow at times, which is no finding; a failing example is printed and needs no database.
_ALWAYS = settings(
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("ci", _ALWAYS, derandomize=True)
settings.register_profile("developer", _ALWAYS)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "developer")
