# SPDX-License-Identifier: LGPL-2.1-or-later
"""Imports inside bridge/ run downward only, and what is dangerous or heavy is imported in one place each."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

BRIDGE = Path(__file__).resolve().parents[2] / "bridge"

# From the top to the bottom: a module may import those after it and no other. A new module needs a place here.
ORDER = [
    "__main__",
    "stdio",
    "service",
    "report",
    "probe",
    "shell",
    "server",
    "activation",
    "framing",
    "dispatch",
    "introspection",
    "control",
    "audit",
    "authorize",
    "polkit",
    "policy",
    "urls",
    "methods",
    "watching",
    "contract",
    "images",
    "transfers",
    "inside",
    "machines",
    "details",
    "replies",
    "shapes",
    "machined",
    "importd",
    "watch",
    "units",
    "pool",
    "ring",
    "reads",
    "remembered",
    "bus",
    "turns",
    "listed",
    "messages",
    "loop",
    "limits",
    "fds",
    "errors",
    "journal",
    "text",
    "__init__",
]

# These know nothing of the bridge.
LEAVES = ["activation", "urls", "ring", "loop", "limits", "fds", "errors", "text", "__init__"]

# Who may import what. `asyncio` costs half a cold start, see loop.py.
ALLOWED = {
    "socket": {"details", "service", "stdio", "probe", "shell", "server", "activation", "bus", "fds", "journal"},
    "jeepney": {
        "stdio", "server", "polkit", "machined", "units", "reads", "remembered", "bus", "fds", "messages", "framing",
        "importd", "transfers",
    },
    "jsonschema": {"contract"},
    "varlink": {"introspection"},
    "tomllib": {"policy"},
    "asyncio": set(),
    # Bring OpenSSL, which is 2 MiB.
    "secrets": set(),
    "hashlib": set(),
    "threading": set(),
    # The service starts no program. The report, which is never part of it, asks those of systemd and polkit.
    "subprocess": {"probe"},
}


def imports(source: str) -> tuple[set[str], set[str]]:
    """The modules of the bridge and the top-level packages of others that a module imports, wherever it does."""
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [f"bridge.{node.module}"] if node.module else [f"bridge.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from bridge import x` names a module in its second half.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "bridge":
                module = rest.partition(".")[0]
                inside.add(module if module in ORDER else "__init__")
            else:
                outside.add(package)
    return inside, outside


IMPORTS = {path.stem: imports(path.read_text(encoding="utf-8")) for path in sorted(BRIDGE.glob("*.py"))}


def test_imports_are_found_wherever_they_are_written() -> None:
    source = """
from __future__ import annotations
import os.path, bridge.fds
from . import journal, __version__
from .loop import Loop
from bridge import errors
from bridge.contract import Contract
if TYPE_CHECKING:
    import varlink
def function():
    from jeepney.fds import FileDescriptor
"""
    assert imports(source) == (
        {"fds", "journal", "__init__", "loop", "errors", "contract"},
        {"__future__", "os", "varlink", "jeepney"},
    )


def test_every_module_has_its_place_in_the_order() -> None:
    assert IMPORTS.keys() == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


def test_there_are_no_packages_inside_the_package() -> None:
    """They would escape the tests here."""
    assert [path.name for path in BRIDGE.iterdir() if path.is_dir() and path.name != "__pycache__"] == []


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_what_is_below_it(module: str) -> None:
    inside, _ = IMPORTS[module]
    assert inside <= set(ORDER[ORDER.index(module) + 1 :])


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_knows_nothing_of_the_bridge(leaf: str) -> None:
    inside, _ = IMPORTS[leaf]
    assert inside == set()


def test_messages_know_what_comes_later_and_nothing_else() -> None:
    inside, _ = IMPORTS["messages"]
    assert inside == {"loop"}


def test_the_policy_reaches_nobody() -> None:
    """It decides by what it was given: no bus, no machined, no polkit, no client."""
    inside, outside = IMPORTS["policy"]
    assert inside == {"errors", "limits", "machines", "messages", "methods", "urls"}
    assert not outside & {"socket", "jeepney", "subprocess", "select"}


def test_polkit_is_asked_by_the_authorizer_alone() -> None:
    """And it knows neither policies nor methods."""
    assert {module for module, (inside, _) in IMPORTS.items() if "polkit" in inside} == {"service", "authorize"}
    inside, _ = IMPORTS["polkit"]
    assert inside == {"bus", "errors", "journal", "messages"}


def test_the_server_does_not_know_what_is_behind_the_dispatcher() -> None:
    """It gets one; so a test or another service can give it another."""
    inside, _ = IMPORTS["server"]
    assert inside == {"activation", "framing", "loop", "messages", "fds", "journal", "limits"}


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_is_imported_only_where_it_belongs(package: str) -> None:
    assert {module for module, (_, outside) in IMPORTS.items() if package in outside} <= ALLOWED[package]


def test_nothing_else_from_outside_of_the_standard_library_is_imported() -> None:
    foreign = {package for _, outside in IMPORTS.values() for package in outside - sys.stdlib_module_names}
    assert foreign == {"jeepney", "jsonschema", "varlink"}


@pytest.mark.parametrize("module", ["machined", "reads", "polkit", "server", "fds", "messages"])
def test_only_the_bus_takes_more_of_jeepney_than_messages_and_file_descriptors(module: str) -> None:
    """How bytes become messages, and what is said before the first one, is known in one place."""
    tree = ast.parse((BRIDGE / f"{module}.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    taken = {name for name in imported if name.startswith("jeepney")}
    if module == "machined":
        assert taken == {"jeepney", "jeepney.bus_messages", "jeepney.fds"}
    else:
        assert taken == ({"jeepney"} if module in ("reads", "polkit") else {"jeepney.fds"})
