# SPDX-License-Identifier: LGPL-2.1-or-later
"""The programs of schema/, which is a folder of tools and not a package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parents[1] / "schema"


def load_tool(name: str) -> ModuleType:
    """Each is loaded once, by the name that the others import it by."""
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module  # dataclasses look their module up
        specification.loader.exec_module(module)
    return sys.modules[name]
