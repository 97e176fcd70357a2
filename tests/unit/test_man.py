# SPDX-License-Identifier: LGPL-2.1-or-later
"""The manual pages say what the code does, and have no mistake that groff or mandoc sees."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bridge import policy
from bridge.control import Control
from bridge.errors import NoSuchMachine, PermissionDenied

REPOSITORY = Path(__file__).resolve().parents[2]
MAN = REPOSITORY / "contrib/man"
PAGES = sorted(path.name for path in MAN.iterdir())
SERVICE, SHELL, POLICY = "machine1-bridge.8", "machine1-bridge-shell.1", "machine1-bridge.toml.5"


def text(page: str) -> str:
    """As it is written, with plain hyphens."""
    return (MAN / page).read_text(encoding="utf-8").replace("\\-", "-")


def section(page: str, title: str) -> str:
    found = re.search(rf'^\.SH "?{title}"?\n(.*?)(?=^\.SH |\Z)', text(page), re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def entries(page: str, title: str) -> dict[str, str]:
    """The tagged paragraphs of a section, those whose tag is one word in bold."""
    return dict(
        re.findall(r"^\.TP\n\.B (\S+)\n(.*?)(?=^\.TP|\Z|^\.PP)", section(page, title), re.MULTILINE | re.DOTALL)
    )


def examples(page: str) -> list[str]:
    return re.findall(r"^\.nf\n\.RS 4\n(.*?)^\.RE\n\.fi", text(page).replace("\\e", "\\"), re.MULTILINE | re.DOTALL)


def plain(words: str) -> str:
    return " ".join(re.sub(r"^\.[A-Z]+ ", "", words, flags=re.MULTILINE).split())


# --- the tools ------------------------------------------------------------------------------------------------------


def said_by(*command: str | Path) -> list[str]:
    """Lines. Skips where the tool is missing; in CI a test that did not run is a failure."""
    if shutil.which(command[0]) is None:
        reason = f"{command[0]} is not installed: `make test` installs it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize("page", PAGES)
def test_groff_sees_no_mistake(page: str) -> None:
    assert said_by("groff", "-man", "-t", "-ww", "-z", MAN / page) == []


@pytest.mark.parametrize("page", PAGES)
def test_mandoc_sees_no_mistake(page: str) -> None:
    """But lines longer than 80 bytes: they have 120 everywhere here."""
    said = said_by("mandoc", "-T", "lint", MAN / page)
    assert [line for line in said if "STYLE: input text line longer than 80 bytes" not in line] == []


@pytest.mark.parametrize(("wrong", "tool"), [(".SH X\n.B a\n.FOO b\n", "groff"), (".SH X\n.FOO b\n", "mandoc")])
def test_the_tools_would_see_one(tmp_path: Path, wrong: str, tool: str) -> None:
    page = tmp_path / "wrong.8"
    page.write_text(f'.TH WRONG 8 "November 24, 2026" "x" "x"\n{wrong}')
    command = ["groff", "-man", "-t", "-ww", "-z"] if tool == "groff" else ["mandoc", "-T", "lint"]
    assert [line for line in said_by(*command, page) if "FOO" in line]


# --- all pages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_what_its_name_says(page: str) -> None:
    lines = (MAN / page).read_text(encoding="utf-8").splitlines()
    assert '.\\" SPDX-License-Identifier: LGPL-2.1-or-later' in lines[:2]
    name, _, number = page.rpartition(".")
    (header,) = [line.replace("\\-", "-") for line in lines if line.startswith(".TH ")]
    assert header.split()[1:3] == [name.upper(), number]
    assert re.match(rf"{re.escape(name)}\b.* - \S", section(page, "NAME"))


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_pages_that_there_are(page: str) -> None:
    ours = re.findall(r"\b((?:machine1-bridge|io\.machine1)[\w.-]*) \((\d)\)", text(page))
    assert {f"{name}.{number}" for name, number in ours} <= set(PAGES) | {"io.machine1.7"}
    assert page not in {f"{name}.{number}" for name, number in ours}


# --- the commands ---------------------------------------------------------------------------------------------------


def helped(*arguments: str) -> set[str]:
    command = [sys.executable, "-m", "bridge", *arguments, "--help"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True).stdout
    return set(re.findall(r"^ {2}(?:-\w, )?(--[a-z-]+)", said, re.MULTILINE))


def options(page: str, title: str = "OPTIONS") -> set[str]:
    """Those that have a paragraph."""
    tags = re.findall(r"^\.TP\n(\..*)", section(page, title), re.MULTILINE)
    return set(re.findall(r"--[a-z-]+", " ".join(tags)))


def test_each_option_of_the_service_the_report_and_stdio_is_described() -> None:
    assert options(SERVICE) == helped() | helped("report") | helped("--stdio")
    synopsis = set(re.findall(r"--[a-z-]+", section(SERVICE, "SYNOPSIS")))
    assert synopsis == options(SERVICE) - {"--help", "--version"} | {"--stdio"}


def test_each_option_of_shells_is_described() -> None:
    assert options(SHELL) == helped("shell")
    assert set(re.findall(r"--[a-z-]+", section(SHELL, "SYNOPSIS"))) == helped("shell") - {"--help"}


def test_each_command_is_described() -> None:
    source = (REPOSITORY / "bridge/__main__.py").read_text(encoding="utf-8")
    commands = set(re.findall(r'arguments\[:1\] == \["(.*?)"\]', source))
    assert set(entries(SERVICE, "COMMANDS")) == commands == {"shell", "report", "--stdio"}


def test_each_method_of_service_control_is_described_with_who_may_call_it() -> None:
    rows = re.findall(r"^(\w+)\t(.*?)\t.+$", section(SERVICE, "SERVICE CONTROL"), re.MULTILINE)
    assert {method: who != "everybody" for method, who in rows} == {
        name.rpartition(".")[2]: method.own for name, method in Control(lambda: None).methods.items()
    }


# --- the policy -----------------------------------------------------------------------------------------------------


def test_each_key_is_described_and_no_other() -> None:
    assert tuple(entries(POLICY, "KEYS")) == policy._KEYS


def test_each_key_says_what_is_without_it() -> None:
    """And what it says is so."""
    said = {key: plain(words) for key, words in entries(POLICY, "KEYS").items()}
    empty = policy.parse(b"", "box", "box.toml")
    for key in ("preset", "methods", "machines", "images", "users", "programs", "environment"):
        assert re.search(r"Without it there (is|are) none\.$", said[key]), key
    assert empty == policy.Policy("box")
    assert not empty.methods
    assert empty.programs == ()
    assert said["host-paths"].endswith("Without it, false .")
    assert not empty.host_paths
    assert said["accept-fds"].endswith("Without it, false .")
    assert not empty.accept_fds
    assert said["polkit"].endswith("Without it, required .")
    assert empty.polkit_required


def test_each_preset_lists_its_methods_and_no_other() -> None:
    presets = entries(POLICY, "PRESETS")
    assert list(presets) == list(policy.PRESETS)
    for name, words in presets.items():
        listed = re.findall(r"^\.BR ([\w.]+) [,.]$", words, re.MULTILINE)
        assert set(listed) == policy.PRESETS[name]
        assert len(listed) == len(set(listed))


def test_what_is_always_allowed_is_listed() -> None:
    paragraph = section(POLICY, "DESCRIPTION").partition("Always allowed are")[2]
    assert set(re.findall(r"[a-z]+\.[a-z0-9.]+\.[A-Z]\w+", paragraph)) == policy.ALWAYS


def test_bounds_of_files_and_globs_are_those_of_the_code() -> None:
    assert f"has at most {policy.SIZE_MAX} bytes" in section(POLICY, "FILES AND MISTAKES")
    globs = section(POLICY, "GLOBS")
    assert f"at most {policy.GLOB_MAX} characters and {policy.STARS_MAX} times" in globs


def test_each_example_of_a_policy_loads() -> None:
    names = set()
    for example in examples(POLICY):
        found = re.match(r"# /etc/machine1-bridge/(\S+)\.toml\n", example)
        if found is not None:
            names.add(found[1])
            assert policy.parse(example.encode(), found[1], f"{found[1]}.toml").methods
        else:
            assert "preset" not in example
            assert "methods" not in example
    assert names == {"monitor", "ci", "images", "default"}


def test_the_example_of_a_sandbox_does_what_the_page_says() -> None:
    (example,) = [example for example in examples(POLICY) if "ci.toml" in example]
    box = policy.parse(example.encode(), "ci", "ci.toml")
    shell = {"name": "ci-1", "user": "builder", "path": "/usr/bin/run-tests", "args": ["run-tests", "--suite=all"]}
    box.decide("io.machine1.OpenMachineShell", shell)
    box.decide("io.machine1.KillMachine", {"name": "ci-1"})
    for wrong in ({"name": "web"}, {"name": ".host"}, {"user": "root"}, {"path": "/bin/sh"}, {"env": ["PATH=/x"]}):
        with pytest.raises((PermissionDenied, NoSuchMachine)):
            box.decide("io.machine1.OpenMachineShell", shell | wrong)
    assert not box.polkit_required


def test_globs_are_as_the_page_says() -> None:
    for glob, text, matches in (
        ("*", "", True),
        ("a*", "a/b", True),
        ("a?", "a", False),
        ("[a-z]x", "bx", True),
        ("[!a-z]x", "bx", False),
        ("[*]", "*", True),
        ("[*]", "a", False),
        ("A", "a", False),
    ):
        assert policy.Globs.of([glob]).match(text) is matches
    assert not policy.Globs.of(["*"]).match_object(".host")
    assert policy.Globs.of([".host"]).match_object(".host")


def test_a_mistake_is_said_as_the_page_says() -> None:
    with pytest.raises(policy.PolicyError, match=r"^/etc/machine1-bridge/box\.toml:2: machines is empty"):
        policy.parse(b'preset = "read-only"\nmachines = []\n', "box", "/etc/machine1-bridge/box.toml")
