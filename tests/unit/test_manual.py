# SPDX-License-Identifier: LGPL-2.1-or-later
"""The manual pages: io.machine1(7) says all that the contract says, and each page is good roff.

tests/lab/test_examples.py runs its examples.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from bridge import authorize
from bridge import contract as bridge_contract
from bridge.methods import METHODS
from tests.schema import load_tool

derive = load_tool("derive")
manual = load_tool("manual")

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / derive.CONTRACT).read_text(encoding="utf-8")
PAGE = manual.Page(TEXT)
METHOD_NAMES = [method.name for method in PAGE.interface.methods]


def rendered(page: Path) -> str:
    """What a reader sees, without the bold."""
    need("groff")
    command = ["groff", "-t", "-man", "-ww", "-Tutf8", "-P-cbou", "-rLL=200n", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def need(program: str) -> None:
    """Skip without the program, whose package the Makefile installs; in CI that is a failure."""
    if shutil.which(program) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{program} is not installed", pytrace=False)
        pytest.skip(f"{program} is not installed")


def section(text: str, name: str) -> str:
    """A section of a rendered page, or a part of one where the name is indented."""
    indent = re.match(" *", name).group() if name.startswith(" ") else ""  # type: ignore[union-attr]
    found = re.search(rf"^{re.escape(name)}$(.*?)(?=^{indent}\S|^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return found[1]


# --- every page ----------------------------------------------------------------------------------------------------

PAGES = sorted((ROOT / "contrib/man").glob("*.[1-9]"))


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_groff_has_no_warning(page: Path) -> None:
    assert rendered(page)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_mandoc_has_no_warning(page: Path) -> None:
    """Of the matters of style, which mandoc counts as less, a page that a program writes has none either."""
    need("mandoc")
    level = "style" if page.name == manual.PAGE.name else "warning"
    done = subprocess.run(["mandoc", "-T", "lint", "-W", level, page], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_each_page_is_installed() -> None:
    source = (ROOT / "contrib/install.py").read_text()
    for page in PAGES:
        assert f'"contrib/man/{page.name}": "share/man/man{page.suffix[1:]}/{page.name}"' in source


# --- io.machine1(7) ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text() -> str:
    return rendered(ROOT / manual.PAGE)


def words(text: str) -> str:
    return " ".join(text.replace("\N{HYPHEN}", "-").split())


def test_the_page_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert manual.main(["--check"]) == 0, capsys.readouterr().err


def test_check_sees_an_edited_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (derive.CONTRACT, manual.PAGE):
        (tmp_path / path).parent.mkdir(parents=True)
        shutil.copy(ROOT / path, tmp_path / path)
    (tmp_path / manual.PAGE).write_text((ROOT / manual.PAGE).read_text().replace("read_only", "read_write"))
    assert manual.main(["--check", "--root", str(tmp_path)]) == 1
    assert "contrib/man/io.machine1.7 is out of date; run: python schema/manual.py" in capsys.readouterr().err
    assert manual.main(["--root", str(tmp_path)]) == 0
    assert manual.main(["--check", "--root", str(tmp_path)]) == 0


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_each_method_is_described(text: str, name: str) -> None:
    (method,) = (method for method in PAGE.interface.methods if method.name == name)
    part = section(section(text, "METHODS"), f"   {name}")
    for field in (*method.parameters.fields, *method.reply.fields):
        assert re.search(rf"^ +{field.name} \(.*\)$", part, re.MULTILINE), field.name
        assert words(field.comment) in words(part)
    errors = words(part).partition("Errors: ")[2].partition(".  ")[0]
    for error in method.errors:
        assert re.search(rf"\b{error}\b", errors), error
    if "x-no-example" not in PAGE.operations[name]:
        assert "varlinkctl" in part
        assert f"io.machine1.{name} \\" in part


def test_types_ranges_and_defaults_are_said(text: str) -> None:
    methods = section(text, "METHODS")
    for method, line in (
        ("KillMachine", "who (all or leader, optional, default all)"),
        ("KillMachine", "signal (int, 1 to 64, optional, default 15)"),
        ("OpenMachineShell", "args ([]string, at most 16384 items, optional)"),
        ("OpenMachineShell", "pty_fd (int, 0 to 252)"),
        ("CloneImage", "dest (string)"),
        ("CloneImage", "read_only (bool, optional, default false)"),
        ("Check", "parameters (object, optional)"),
        ("ListMachines", "machines ([]Machine)"),
    ):
        assert f"\n       {line}\n" in section(methods, f"   {method}")
    assert "Must be an absolute path without NUL, or empty, with at most 4095 characters." in words(methods)
    assert "Each must be a text without NUL, with at most 131071 characters." in words(methods)
    types = section(text, "TYPES")
    assert "class (vm, container or host, optional)" in section(types, "   Machine")
    assert "ctime (int, 1 or more, optional)" in section(types, "   Image")


def test_each_error_is_described(text: str) -> None:
    part = section(text, "ERRORS")
    for name, response in PAGE.responses.items():
        full = response.get("x-varlink-error", f"io.machine1.{name}")
        assert f"\n       {full}\n" in part
        assert words(response["description"]) in words(part)


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_the_action_is_the_one_that_polkit_is_asked_about(text: str, name: str) -> None:
    full, operation = f"io.machine1.{name}", PAGE.operations[name]
    part = words(section(section(text, "METHODS"), f"   {name}"))
    if full in METHODS and METHODS[full].details:
        action, _ = authorize.question(full, METHODS[full], {"name": "web"})
        assert {key: operation[key] for key in operation if key.startswith("x-polkit")} == {
            "x-polkit-action-details": action
        }
        assert f"Guarded by the polkit action {action} with details" in part
        return
    if full not in METHODS or not METHODS[full].guarded:
        assert not [key for key in operation if key.startswith("x-polkit")]
        assert "Not guarded: the policy of the socket alone decides." in part
        return
    actions = {
        key: authorize.question(full, METHODS[full], {"name": machine, "src": "/a", "dest": "b"})[0]
        for key, machine in (("x-polkit-action", "web"), ("x-polkit-action-host", ".host"))
    }
    assert operation["x-polkit-action"] == actions["x-polkit-action"]
    assert operation.get("x-polkit-action-host", operation["x-polkit-action"]) == actions["x-polkit-action-host"]
    for action in set(actions.values()):
        assert re.search(rf"Guarded by [^.]*.*\b{re.escape(action)}\b", part)
        assert f'<action id="{action}">' in (ROOT / "contrib/polkit/io.machine1.policy").read_text()


def test_each_unit_and_socket_is_named(text: str) -> None:
    units, files = section(text, "UNITS"), section(text, "FILES")
    for path in (ROOT / "contrib/systemd").glob("machine1-bridge*"):
        assert f"\n       {path.name.replace('@.', '@NAME.')}\n" in units
        for setting in re.findall(r"^(?:ListenStream|Symlinks)=(.*)$", path.read_text(), re.MULTILINE):
            assert f"\n       {setting.replace('%i', 'NAME')}\n" in files
    for path_of_installed in re.findall(r"^ +/usr/(\S+)$", files, re.MULTILINE):
        assert f'"{path_of_installed}"' in (ROOT / "contrib/install.py").read_text()


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_an_example_fits_the_contract(name: str) -> None:
    full = f"io.machine1.{name}"
    for example in PAGE.operations[name].get("x-examples", []):
        assert bridge_contract.Contract().check(full, example["parameters"]) == example["parameters"]
        if name == "Check":
            inner = f"io.machine1.{example['parameters']['method']}"
            bridge_contract.Contract().check(inner, example["parameters"]["parameters"])
        if "reply" in example:
            Draft202012Validator(bridge_contract.Contract().methods[full]["reply"]).validate(example["reply"])


def test_what_the_page_lacks_is_refused() -> None:
    document = yaml.safe_load(TEXT)

    def page(change: str, value: object = None) -> str:
        changed = copy.deepcopy(document)
        node: Any = changed
        *parents, last = change.split(" ")
        for part in parents:
            node = node[int(part) if part.isdigit() else part]
        if value is None:
            del node[last]
        else:
            node[last] = value
        text: str = manual.Page(yaml.safe_dump(changed, sort_keys=False, allow_unicode=True)).text()
        return text

    example = "paths /machines/{name}/kill post x-examples"
    assert "Its name." in page("components schemas Machine properties name description", "Its name.")
    with pytest.raises(derive.ContractError, match="info: the page needs an x-date"):
        page("info x-date")
    with pytest.raises(derive.ContractError, match="operation KillMachine: the page needs an example"):
        page(example)
    # Nor both of them.
    with pytest.raises(derive.ContractError, match="operation KillMachine: the page needs an example"):
        page("paths /machines/{name}/kill post x-no-example", "none")
    with pytest.raises(derive.ContractError, match="operation KillMachine: an example has description, param"):
        page(f"{example} 0 reply")
    with pytest.raises(derive.ContractError, match="operation KillMachine: an example has description, param"):
        page(f"{example} 0 prints", "hello")


@pytest.mark.parametrize(
    ("written", "roff"),
    [
        (".host is the host.", [r"\&.host is the host."]),
        ("It's a \\ of \"two-words\".", [r"It\(aqs a \e of \(dqtwo\-words\(dq."]),
        ("~ and ^ and `", [r"\(ti and \(ha and \(ga"]),
        ("One. Two.\n\nThree", ["One.", "Two.", ".PP", "Three"]),
        ("a" * 70 + " .b.", ["a" * 70 + " .b."]),
        ("a" * 76 + " .b.", ["a" * 76, r"\&.b."]),
    ],
)
def test_a_text_is_roff_that_says_the_same(written: str, roff: list[str]) -> None:
    assert list(manual.prose(written)) == roff
