# SPDX-License-Identifier: LGPL-2.1-or-later
"""The interface against its releases: what an existing client would notice is refused, and what it would not is taken.

The table below has each kind of change. Where a change is to what a call takes, it has a witness: parameters that fit
the interface before it, and after it only if the change is one to be taken.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.schema import load_tool

derive = load_tool("derive")
released = load_tool("released")

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / derive.CONTRACT).read_text(encoding="utf-8")
NOW: dict[str, Any] = released.surface(TEXT)
RELEASES: dict[str, dict[str, Any]] = released.releases(ROOT)


# --- this interface ------------------------------------------------------------------------------------------------


def test_no_existing_client_notices_a_change() -> None:
    assert list(released.objections(ROOT, NOW)) == []


@pytest.mark.parametrize("version", RELEASES)
def test_a_release_is_whole(version: str) -> None:
    old = RELEASES[version]
    assert old["version"] == version
    assert len(old["methods"]) >= 19
    assert len(old["errors"]) >= 10
    assert old["types"][:2] == ["io.machine1.Machine", "io.machine1.Image"]
    assert old["methods"]["io.machine1.KillMachine"]["parameters"]["properties"]["signal"]["default"] == 15


def test_the_schemas_are_those_of_the_service() -> None:
    contract = json.loads((ROOT / derive.SCHEMAS).read_text(encoding="utf-8"))
    methods = copy.deepcopy(NOW["methods"])
    for method in methods.values():
        method.pop("errors", None)
        for parameter in method["parameters"]["properties"].values():
            parameter.pop("default", None)
    assert methods == contract["methods"]
    assert NOW["errors"] == contract["errors"]
    assert NOW["interfaces"] == list(contract["interfaces"])


# --- each kind of change -------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], None]
# parts of paths in a surface
SHORT = {
    "kill": ("methods", "io.machine1.KillMachine"),
    "shell": ("methods", "io.machine1.OpenMachineShell"),
    "clone": ("methods", "io.machine1.CloneImage"),
    "get": ("methods", "io.machine1.GetMachine"),
    "check": ("methods", "io.machine1.Check"),
    "takes": ("parameters", "properties"),
    "says": ("reply", "properties"),
    "machine": ("methods", "io.machine1.GetMachine", "reply", "properties", "machine"),
    "images": ("methods", "io.machine1.ListImages", "reply", "properties", "images"),
    "failed": ("errors", "io.machine1.Failed"),
    "fields": ("properties",),
}
STRING = {"type": "string"}
MAYBE = {"type": ["string", "null"]}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def find(surface: dict[str, Any], path: str) -> tuple[Any, str]:
    """What holds the last part of a path, and that part."""
    *parents, last = [part for short in path.split() for part in SHORT.get(short, (short,))]
    node: Any = surface
    for part in parents:
        node = node[part]
    return node, last


def put(path: str, value: object) -> Change:
    """Set what is at the path; the ellipsis removes it."""

    def change(surface: dict[str, Any]) -> None:
        node, last = find(surface, path)
        if value is ...:
            del node[last]
        else:
            node[last] = value

    return change


def rename(path: str, to: str) -> Change:
    """In its place, so that nothing but the name is another one."""

    def change(surface: dict[str, Any]) -> None:
        node, last = find(surface, path)
        renamed = {to if name == last else name: member for name, member in node.items()}
        node.clear()
        node.update(renamed)

    return change


def more(path: str, *values: object) -> Change:
    """Add to a list."""

    def change(surface: dict[str, Any]) -> None:
        node, last = find(surface, path)
        node[last] = [*node.get(last, []), *values]

    return change


def less(path: str, value: object) -> Change:
    """Remove from a list."""

    def change(surface: dict[str, Any]) -> None:
        node, last = find(surface, path)
        node[last] = [item for item in node[last] if item != value]

    return change


def order(path: str, *names: str) -> Change:
    """These first."""

    def change(surface: dict[str, Any]) -> None:
        node, last = find(surface, path)
        node[last] = {**{name: node[last][name] for name in names}, **node[last]}

    return change


def both(*changes: Change) -> Change:
    def change(surface: dict[str, Any]) -> None:
        for one in changes:
            one(surface)

    return change


@dataclass(frozen=True)
class Row:
    change: Change
    #: What it is refused with, after "io.machine1." where that begins it; None for a change to be taken.
    refused: str | None = None
    #: A method and parameters that it takes before the change.
    witness: tuple[str, dict[str, Any]] | None = None


def kill(**more: object) -> tuple[str, dict[str, Any]]:
    return "io.machine1.KillMachine", {"name": "web", **more}


def shell(**more: object) -> tuple[str, dict[str, Any]]:
    return "io.machine1.OpenMachineShell", {"name": "web", **more}


FAR = 9223372036854775807
TAKEN = {
    "nothing": Row(lambda surface: None),
    "new interface": Row(more("interfaces", "io.systemd.other")),
    "new type": Row(more("types", "io.machine1.Address")),
    "new method": Row(put("methods io.machine1.Freeze", {"parameters": NOTHING, "reply": NOTHING, "errors": []})),
    "new error": Row(put("errors io.machine1.Frozen", NOTHING)),
    "new error of a method": Row(more("kill errors", "io.machine1.Frozen")),
    "new optional parameter": Row(put("kill takes value", MAYBE), witness=kill(signal=9)),
    "new optional parameter, first": Row(
        both(put("kill takes value", MAYBE), order("kill takes", "value")), witness=kill()
    ),
    "new optional field of a reply": Row(put("shell says unit", MAYBE)),
    "new optional field of a type": Row(put("machine fields unit", MAYBE)),
    "new optional field in a list": Row(put("images items fields limit", MAYBE)),
    "new optional field of an error": Row(put("failed fields errno", {"type": ["integer", "null"]})),
    "new field in the reply to nothing": Row(put("kill says count", MAYBE)),
    "required parameter is optional": Row(
        both(less("clone parameters required", "dest"), put("clone takes dest type", ["string", "null"])),
        witness=("io.machine1.CloneImage", {"name": "a", "dest": "b"}),
    ),
    "parameter in an enum": Row(more("kill takes who enum", "supervisor"), witness=kill(who="leader")),
    "enum in another order": Row(put("kill takes who enum", ["leader", "all", None]), witness=kill(who="all")),
    "parameter: lower minimum": Row(put("kill takes signal minimum", 0), witness=kill(signal=1)),
    "parameter: higher maximum": Row(put("kill takes signal maximum", 128), witness=kill(signal=64)),
    "parameter: no maximum": Row(put("kill takes signal maximum", ...), witness=kill(signal=64)),
    "parameter: shorter minimum": Row(put("kill takes name minLength", ...), witness=kill()),
    "parameter: longer maximum": Row(put("kill takes name maxLength", 65), witness=kill()),
    "parameter: more items": Row(put("shell takes args maxItems", 65536), witness=shell(args=["a"])),
    "parameter: longer items": Row(put("shell takes args items maxLength", ...), witness=shell(args=["a"])),
    "parameter: no pattern": Row(put("shell takes path pattern", ...), witness=shell(path="/bin/sh")),
    "reply: higher minimum": Row(put("images items fields usage minimum", 1)),
    "reply: lower maximum": Row(put("shell says pty_fd maximum", 0)),
    "reply: a maximum": Row(put("shell says pty_path maxLength", 4095)),
    "reply: a pattern": Row(put("shell says pty_path pattern", "^/")),
    "another rule for people": Row(put("kill takes name $comment", "a name")),
}
REFUSED = {
    "interface gone": Row(less("interfaces", "io.systemd.service"), "interface io.systemd.service is gone"),
    "type gone": Row(less("types", "io.machine1.Image"), "type io.machine1.Image is gone"),
    "method gone": Row(put("kill", ...), "method io.machine1.KillMachine is gone"),
    "method renamed": Row(rename("kill", "io.machine1.Kill"), "method io.machine1.KillMachine is gone"),
    "method of another interface gone": Row(
        put("methods io.systemd.service.Ping", ...), "method io.systemd.service.Ping is gone"
    ),
    "error gone": Row(put("errors io.machine1.Busy", ...), "error io.machine1.Busy is gone"),
    "error renamed": Row(rename("errors io.machine1.Busy", "io.machine1.InUse"), "error io.machine1.Busy is gone"),
    "error of a method gone": Row(
        less("kill errors", "io.machine1.NoSuchMachine"),
        "KillMachine: error io.machine1.NoSuchMachine is no longer what it ends in",
    ),
    "parameter gone": Row(
        put("kill takes signal", ...), "KillMachine: parameter signal is gone", witness=kill(signal=9)
    ),
    "parameter renamed": Row(
        rename("kill takes who", "whom"), "KillMachine: parameter who is gone", witness=kill(who="all")
    ),
    "parameters in another order": Row(
        order("clone takes", "dest", "name"),
        "CloneImage: parameter order was name, dest, read_only, allowInteractiveAuthentication and is now "
        "dest, name, read_only, allowInteractiveAuthentication",
    ),
    "new required parameter": Row(
        both(put("kill takes why", STRING), more("kill parameters required", "why")),
        "KillMachine: parameter why is new and has to be optional: existing clients do not send it",
        witness=kill(),
    ),
    "optional parameter is required": Row(
        more("kill parameters required", "signal"),
        "KillMachine: parameter signal was optional and is now required",
        witness=kill(),
    ),
    "parameter may not be null": Row(
        put("kill takes signal type", "integer"),
        "KillMachine: parameter signal may no longer be null",
        witness=kill(signal=None),
    ),
    "parameter of another type": Row(
        put("kill takes signal", {"type": ["string", "null"], "default": 15}),
        "KillMachine: parameter signal was integer and is now string",
        witness=kill(signal=9),
    ),
    "parameter: enum for a text": Row(
        put("shell takes user enum", ["root", "nobody", None]),
        "OpenMachineShell: parameter user was string and is now enum",
        witness=shell(user="me"),
    ),
    "parameter: text for an enum": Row(
        put("kill takes who enum", ...), "KillMachine: parameter who was enum and is now string"
    ),
    "parameter: object for any object": Row(
        put("check takes parameters", {**NOTHING, "type": ["object", "null"]}),
        "Check: parameter parameters was any object and is now object",
        witness=("io.machine1.Check", {"method": "KillMachine", "parameters": {"name": "web"}}),
    ),
    "parameter: items of another type": Row(
        put("shell takes args items", {"type": "integer"}),
        "OpenMachineShell: parameter args[] was string and is now integer",
        witness=shell(args=["a"]),
    ),
    "parameter: value of an enum gone": Row(
        less("kill takes who enum", "all"),
        "KillMachine: parameter who has no value all any more",
        witness=kill(who="all"),
    ),
    "parameter: higher minimum": Row(
        put("kill takes signal minimum", 2), "KillMachine: parameter signal had minimum 1 and has now 2", kill(signal=1)
    ),
    "parameter: lower maximum": Row(
        put("kill takes signal maximum", 31),
        "KillMachine: parameter signal had maximum 64 and has now 31",
        witness=kill(signal=37),
    ),
    "parameter: minimum length": Row(
        put("shell takes user minLength", 1),
        "OpenMachineShell: parameter user had minLength 0 and has now 1",
        shell(user=""),
    ),
    "parameter: shorter maximum": Row(
        put("kill takes name maxLength", 63),
        "KillMachine: parameter name had maxLength 64 and has now 63",
        witness=("io.machine1.KillMachine", {"name": "a" * 64}),
    ),
    "parameter: fewer items": Row(
        put("shell takes args maxItems", 1),
        "OpenMachineShell: parameter args had maxItems 16384 and has now 1",
        witness=shell(args=["a", "b"]),
    ),
    "parameter: some items": Row(
        put("shell takes env minItems", 1),
        "OpenMachineShell: parameter env had minItems 0 and has now 1",
        shell(env=[]),
    ),
    "parameter: shorter items": Row(
        put("shell takes args items maxLength", 3),
        "OpenMachineShell: parameter args[] had maxLength 131071 and has now 3",
        witness=shell(args=["long"]),
    ),
    "parameter: another pattern": Row(
        put("shell takes path pattern", "^/.*"),
        "OpenMachineShell: parameter path has another pattern, and nobody can tell what it takes: ^/.*",
        witness=shell(path=""),
    ),
    "parameter: a pattern": Row(
        put("check takes method pattern", "^io"),
        "Check: parameter method has another pattern, and nobody can tell what it takes: ^io",
        witness=("io.machine1.Check", {"method": "KillMachine"}),
    ),
    "parameter: another default": Row(
        put("kill takes signal default", 9), "KillMachine: parameter signal was 15 when left out and is now 9"
    ),
    "parameter: no default": Row(
        put("clone takes read_only default", ...),
        "CloneImage: parameter read_only was False when left out and is now None",
    ),
    "field of a reply gone": Row(put("shell says pty_path", ...), "OpenMachineShell: reply field pty_path is gone"),
    "field of a reply renamed": Row(rename("shell says pty_fd", "fd"), "OpenMachineShell: reply field pty_fd is gone"),
    "fields of a reply in another order": Row(
        order("shell says", "pty_path"),
        "OpenMachineShell: reply field order was pty_fd, pty_path and is now pty_path, pty_fd",
    ),
    "field of a reply is optional": Row(
        less("shell reply required", "pty_path"),
        "OpenMachineShell: reply field pty_path was always there and is now optional",
    ),
    "field of a reply may be null": Row(
        put("shell says pty_path type", ["string", "null"]),
        "OpenMachineShell: reply field pty_path may now be null",
    ),
    "field of a reply is required": Row(
        more("machine required", "class"),
        "GetMachine: reply field machine: field class was optional and is now required: "
        "clients built with this would refuse older services",
    ),
    "new required field of a reply": Row(
        both(put("shell says unit", STRING), more("shell reply required", "unit")),
        "OpenMachineShell: reply field unit is new and has to be optional: "
        "clients built with this would refuse older services",
    ),
    "field of a reply of another type": Row(
        put("shell says pty_fd", STRING), "OpenMachineShell: reply field pty_fd was integer and is now string"
    ),
    "field of a type gone": Row(
        put("machine fields service", ...), "GetMachine: reply field machine: field service is gone"
    ),
    "field in a list gone": Row(
        put("images items fields usage", ...), "ListImages: reply field images[]: field usage is gone"
    ),
    "reply: new value of an enum": Row(
        more("machine fields class enum", "pod"),
        "GetMachine: reply field machine: field class has a new value pod, on which existing clients fail",
    ),
    "reply: value of an enum gone": Row(
        less("machine fields class enum", "host"),
        "GetMachine: reply field machine: field class has no value host any more",
    ),
    "reply: enum for a text": Row(
        put("machine fields service enum", ["systemd-nspawn", "libvirt"]),
        "GetMachine: reply field machine: field service was string and is now enum",
    ),
    "reply: lower minimum": Row(
        put("images items fields ctime minimum", 0),
        "ListImages: reply field images[]: field ctime had minimum 1 and has now 0",
    ),
    "reply: higher maximum": Row(
        put("shell says pty_fd maximum", FAR),
        f"OpenMachineShell: reply field pty_fd had maximum 252 and has now {FAR}",
    ),
    "reply: no maximum": Row(
        put("shell says pty_fd maximum", ...),
        "OpenMachineShell: reply field pty_fd had maximum 252 and has now inf",
    ),
    "field of an error gone": Row(put("failed fields message", ...), "Failed: field message is gone"),
    "field of an error is optional": Row(
        less("failed required", "message"), "Failed: field message was always there and is now optional"
    ),
    "new required field of an error": Row(
        both(put("failed fields errno", STRING), more("failed required", "errno")),
        "Failed: field errno is new and has to be optional: clients built with this would refuse older services",
    ),
    "field of an error of another type": Row(
        put("failed fields message type", "integer"), "Failed: field message was string and is now integer"
    ),
    "any parameter": Row(
        put("kill parameters additionalProperties", True),
        "KillMachine: parameter of another name was refused and is now taken",
    ),
    "something else of a method": Row(put("get more", True), "GetMachine: more was None and is now True"),
    "keyword without a rule": Row(
        put("kill takes signal multipleOf", 2),
        "KillMachine: parameter signal has multipleOf, about which there is no rule yet",
        witness=kill(signal=37),
    ),
}


def changed(row: Row) -> dict[str, Any]:
    surface = copy.deepcopy(NOW)
    row.change(surface)
    return surface


def fits(surface: dict[str, Any], row: Row) -> bool:
    assert row.witness is not None
    method, parameters = row.witness
    return Draft202012Validator(surface["methods"][method]["parameters"]).is_valid(parameters)


@pytest.mark.parametrize("case", TAKEN)
def test_what_no_existing_client_notices_is_taken(case: str) -> None:
    row = TAKEN[case]
    assert list(released.noticed(NOW, changed(row))) == []
    assert (changed(row) == NOW) == (case == "nothing"), "the change is one"
    assert row.witness is None or (fits(NOW, row) and fits(changed(row), row))


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_existing_client_notices_is_refused(case: str) -> None:
    row = REFUSED[case]
    assert row.refused is not None
    assert row.refused in [change.removeprefix("io.machine1.") for change in released.noticed(NOW, changed(row))]
    assert row.witness is None or (fits(NOW, row) and not fits(changed(row), row))


def test_each_rule_has_a_row() -> None:
    source = (ROOT / "schema/released.py").read_text(encoding="utf-8")
    code = source[source.index("def noticed") : source.index("def kind")]
    rules = re.findall(r'yield f"(.*)"$', code, re.MULTILINE)
    assert len(rules) == code.count("yield ") - code.count("yield from ") > 0
    for rule in rules:
        words = ".*".join(re.escape(part) for part in re.split(r"\{.*?\}", rule))
        given = [text for row in REFUSED.values() for text in (row.refused, f"io.machine1.{row.refused}")]
        assert any(re.fullmatch(words, str(text)) for text in given), rule


# --- versions and releases -----------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the contract and of its releases."""
    shutil.copytree(ROOT / "schema", tmp_path / "schema", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return tmp_path


def edit(tree: Path, *replacements: tuple[str, str]) -> None:
    text = TEXT
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    (tree / derive.CONTRACT).write_text(text, encoding="utf-8")


def objections(tree: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    status = released.main(["--root", str(tree)])
    lines = capsys.readouterr().err.splitlines()
    assert status == bool(lines)
    return lines


LAST = list(RELEASES)[-1]
MAJOR, MINOR = released.number(LAST)
NEXT, AFTER = f"{MAJOR}.{MINOR + 1}", f"{MAJOR}.{MINOR + 2}"
VERSION = f"version: '{NOW['version']}'"
WIDER = ("maximum: 64\n", "maximum: 128\n")
NARROWER = ("maximum: 64\n", "maximum: 31\n")
SIGNAL = "io.machine1.KillMachine: parameter signal had maximum 64 and has now 31"


def test_the_contract_as_it_is_passes(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert objections(tree, capsys) == []


def test_other_words_are_no_change(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(
        tree,
        ("Name of the machine, unique on this host.", "Its name."),
        ("x-rule: a text without NUL", "x-rule: a text"),
    )
    assert objections(tree, capsys) == []


def test_a_change_of_the_contract_is_refused_since_each_release(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(tree, NARROWER, (VERSION, f"version: '{AFTER}'"))
    assert objections(tree, capsys) == [f"since {version}: {SIGNAL}" for version in RELEASES]


def test_what_is_new_needs_a_new_version(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(tree, WIDER, (VERSION, f"version: '{LAST}'"))
    assert objections(tree, capsys) == [f"something is new since {LAST}: in the contract, set info.version to '{NEXT}'"]
    edit(tree, WIDER, (VERSION, f"version: '{NEXT}'"))
    assert objections(tree, capsys) == []


def test_a_field_may_have_the_name_of_a_key() -> None:
    surface = copy.deepcopy(NOW)
    put("shell says version", MAYBE)(surface)
    assert not released.same(NOW, surface)
    assert released.same(NOW, {**NOW, "version": AFTER})


def test_a_version_goes_up_and_keeps_its_first_number(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(tree, (VERSION, f"version: '{MAJOR + 1}.0'"))
    assert objections(tree, capsys) == [
        f"version {MAJOR + 1}.0 after {LAST}: what existing clients cannot use has another name"
    ]
    (tree / released.RELEASES / f"{AFTER}.json").write_text(json.dumps(NOW | {"version": AFTER}))
    edit(tree, (VERSION, f"version: '{NEXT}'"))
    assert objections(tree, capsys) == [f"version {NEXT} after {AFTER}"]


def test_a_release_is_kept_and_counts_from_then_on(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(tree, WIDER, (VERSION, f"version: '{NEXT}'"))
    assert released.main(["--root", str(tree), "--release"]) == 0
    assert capsys.readouterr().out == f"wrote schema/released/{NEXT}.json\n"
    edit(tree, (VERSION, f"version: '{AFTER}'"))
    problem = "io.machine1.KillMachine: parameter signal had maximum 128 and has now 64"
    assert objections(tree, capsys) == [f"since {NEXT}: {problem}"]


def test_a_release_is_made_once(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tree / released.RELEASES / f"{NEXT}.json"
    edit(tree, (VERSION, f"version: '{NEXT}'"))
    assert released.main(["--root", str(tree), "--release"]) == 0
    before = path.read_bytes()
    assert released.main(["--root", str(tree), "--release"]) == 1
    assert capsys.readouterr().err == f"version {NEXT} is released, and nothing is new since\n"
    edit(tree, NARROWER, (VERSION, f"version: '{NEXT}'"))
    assert released.main(["--root", str(tree), "--release"]) == 1
    assert SIGNAL in capsys.readouterr().err
    assert path.read_bytes() == before


def test_the_first_release_is_made_of_what_there_is(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tree / released.RELEASES)
    assert objections(tree, capsys) == ["schema/released has no release"]
    assert released.main(["--root", str(tree), "--release"]) == 0
    assert objections(tree, capsys) == []
    assert json.loads((tree / released.RELEASES / f"{NOW['version']}.json").read_text()) == NOW


def test_a_contract_that_derive_refuses_is_refused(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(tree, (VERSION, "version: 1"))
    assert objections(tree, capsys) == [
        "schema/machine1.openapi.yaml: info: the version has to be a text such as '1.0', not 1"
    ]
