# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy of a socket: what each key allows, what nothing allows, and which files are refused with which line."""

from __future__ import annotations

import os
import re
import time
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bridge import policy as module
from bridge.contract import Contract
from bridge.control import Control
from bridge.errors import InvalidParameter, NoSuchImage, NoSuchMachine, PermissionDenied, Refusal, VarlinkError
from bridge.limits import RANGES, Limits
from bridge.methods import METHODS
from bridge.policy import ALWAYS, DIRECTORIES, PARAMETERS, Globs, Policy, PolicyError, load, normalize, parse

CONTRACT = Contract()
SHIPPED = Path(__file__).resolve().parents[2] / "contrib" / "policy"
ME = os.geteuid()


def policy(text: str, name: str = "box") -> Policy:
    return parse(text.encode(), name, "box.toml")


def refusal(what: Policy, method: str, **parameters: object) -> str:
    """Why a call is refused; empty when it is not."""
    caught: VarlinkError | None = None
    try:
        what.decide(f"io.machine1.{method}", parameters)
    except (PermissionDenied, NoSuchMachine, NoSuchImage) as error:
        caught = error
    if caught is None:
        return ""
    assert caught.refusal is not None
    assert caught.refusal.by == "policy"
    return caught.refusal.reason


def test_a_refusal_is_no_affair_of_the_client() -> None:
    error = NoSuchMachine("web").refused(Refusal("policy", "hidden"))
    assert error.parameters == NoSuchMachine("web").parameters
    assert NoSuchMachine("web").refusal is None


# --- methods and presets --------------------------------------------------------------------------------------------

# By hand. A method without a row fails. Columns: read-only, manage, all, no preset.
YES, NO = True, False
ROWS = {
    "io.machine1.ListMachines": (YES, YES, YES, NO),
    "io.machine1.GetMachine": (YES, YES, YES, NO),
    "io.machine1.GetMachineByPID": (YES, YES, YES, NO),
    "io.machine1.WatchMachines": (YES, YES, YES, NO),
    "io.machine1.WaitMachine": (YES, YES, YES, NO),
    "io.machine1.WatchImages": (YES, YES, YES, NO),
    "io.machine1.MapFromMachineUser": (YES, YES, YES, NO),
    "io.machine1.MapFromMachineGroup": (YES, YES, YES, NO),
    "io.machine1.MapToMachineUser": (YES, YES, YES, NO),
    "io.machine1.MapToMachineGroup": (YES, YES, YES, NO),
    "io.machine1.PoweroffMachine": (NO, YES, YES, NO),
    "io.machine1.RebootMachine": (NO, YES, YES, NO),
    "io.machine1.StartMachine": (NO, YES, YES, NO),
    "io.machine1.UnregisterMachine": (NO, YES, YES, NO),
    "io.machine1.OpenMachineLogin": (NO, YES, YES, NO),
    "io.machine1.OpenMachinePTY": (NO, YES, YES, NO),
    "io.machine1.OpenMachineRootDirectory": (NO, NO, YES, NO),
    "io.machine1.BindMountMachine": (NO, NO, YES, NO),
    "io.machine1.TerminateMachine": (NO, YES, YES, NO),
    "io.machine1.KillMachine": (NO, YES, YES, NO),
    "io.machine1.OpenMachineShell": (NO, YES, YES, NO),
    "io.machine1.CopyFromMachine": (NO, NO, YES, NO),
    "io.machine1.CopyToMachine": (NO, NO, YES, NO),
    "io.machine1.ListImages": (YES, YES, YES, NO),
    "io.machine1.RemoveImage": (NO, YES, YES, NO),
    "io.machine1.CloneImage": (NO, YES, YES, NO),
    "io.machine1.RenameImage": (NO, YES, YES, NO),
    "io.machine1.GetImage": (YES, YES, YES, NO),
    "io.machine1.MarkImageReadOnly": (NO, YES, YES, NO),
    "io.machine1.SetImageLimit": (NO, YES, YES, NO),
    "io.machine1.GetPool": (YES, YES, YES, NO),
    "io.machine1.SetPoolLimit": (NO, NO, YES, NO),
    "io.machine1.CleanPool": (NO, NO, YES, NO),
    "io.machine1.ImportTar": (NO, NO, YES, NO),
    "io.machine1.ImportRaw": (NO, NO, YES, NO),
    "io.machine1.ExportTar": (NO, NO, YES, NO),
    "io.machine1.ExportRaw": (NO, NO, YES, NO),
    "io.machine1.PullTar": (NO, NO, YES, NO),
    "io.machine1.PullRaw": (NO, NO, YES, NO),
    "io.machine1.ListTransfers": (YES, YES, YES, NO),
    "io.machine1.CancelTransfer": (NO, NO, YES, NO),
    "org.varlink.service.GetInfo": (YES, YES, YES, YES),
    "org.varlink.service.GetInterfaceDescription": (YES, YES, YES, YES),
    "io.machine1.Check": (YES, YES, YES, YES),
    "io.systemd.service.Ping": (YES, YES, YES, YES),
    "io.systemd.service.GetLogLevel": (YES, YES, YES, YES),
    "io.systemd.service.SetLogLevel": (NO, NO, YES, NO),
    "io.systemd.service.GetEnvironment": (NO, NO, YES, NO),
    "io.systemd.service.Reload": (NO, NO, YES, NO),
}
OPEN = 'machines = ["*", ".host"]\nimages = ["*", ".host"]\nusers = ["*"]\nprograms = ["**"]\nenvironment = ["*"]\n'
PRESETS = [
    policy(f'preset = "read-only"\n{OPEN}'),
    policy(f'preset = "manage"\n{OPEN}'),
    policy(
        f'preset = "all"\nhost-paths = true\ndetails = true\naccept-fds = true\npull = ["http://a/*"]\n{OPEN}',
        "default",
    ),
    policy(OPEN),
]
# Parameters that each method takes at the least.
LEAST: dict[str, dict[str, Any]] = {
    "io.machine1.CopyFromMachine": {"name": "web", "src": "/a"},
    "io.machine1.CopyToMachine": {"name": "web", "src": "/a"},
    "io.machine1.CloneImage": {"name": "web", "dest": "new"},
    "io.machine1.RenameImage": {"name": "web", "dest": "new"},
    "io.machine1.BindMountMachine": {"name": "web", "src": "/a"},
    "io.machine1.GetMachineByPID": {"pid": 2},
    "io.machine1.MapFromMachineUser": {"name": "web", "uid": 2},
    "io.machine1.MapFromMachineGroup": {"name": "web", "gid": 2},
    "io.machine1.MapToMachineUser": {"uid": 2},
    "io.machine1.MapToMachineGroup": {"gid": 2},
    "io.machine1.ListMachines": {},
    "io.machine1.ListImages": {},
    "io.machine1.GetPool": {},
    "io.machine1.SetPoolLimit": {},
    "io.machine1.CleanPool": {"mode": "hidden"},
    "io.machine1.PullTar": {"name": "web", "url": "http://a/b"},
    "io.machine1.PullRaw": {"name": "web", "url": "http://a/b"},
    "io.machine1.ListTransfers": {},
    "io.machine1.CancelTransfer": {"transfer": 1},
    "io.machine1.WatchMachines": {},
    "io.machine1.WatchImages": {},
    "io.machine1.WaitMachine": {"name": "web", "state": "gone"},
    "io.systemd.service.SetLogLevel": {},
    "io.systemd.service.GetEnvironment": {},
    "io.systemd.service.Reload": {},
}


def test_each_method_has_a_row() -> None:
    # Check is allowed before it exists.
    assert ROWS.keys() == CONTRACT.methods.keys() | {"io.machine1.Check"}


@pytest.mark.parametrize("method", ROWS)
@pytest.mark.parametrize("column", range(4))
def test_a_preset_allows_these_methods(method: str, column: int) -> None:
    preset, allowed = PRESETS[column], ROWS[method][column]
    parameters = LEAST.get(method, {"name": "web"})
    assert preset.allows_method(method) is allowed
    if allowed:
        preset.require_method(method)
        preset.decide(method, parameters)
        return
    with pytest.raises(PermissionDenied) as early:
        preset.require_method(method)
    with pytest.raises(PermissionDenied) as late:
        preset.decide(method, parameters)
    assert early.value.refusal == Refusal("policy", "the policy does not allow this method")
    assert late.value.refusal == early.value.refusal


def test_a_method_is_added_to_a_preset_and_to_none() -> None:
    added = policy('preset = "read-only"\nmethods = ["KillMachine"]')
    assert {name.rpartition(".")[2] for name in added.methods} == {
        "ListMachines", "GetMachine", "GetMachineByPID", "MapFromMachineUser", "MapFromMachineGroup",
        "MapToMachineUser", "MapToMachineGroup", "WatchMachines", "WaitMachine", "ListImages", "GetImage",
        "WatchImages", "GetPool", "ListTransfers", "KillMachine",
    }  # fmt: skip
    assert policy('methods = ["KillMachine"]').methods == {"io.machine1.KillMachine"}


def test_a_copy_is_named_where_host_paths_are_true() -> None:
    assert policy('methods = ["CopyToMachine"]\nhost-paths = true', "default").methods == {"io.machine1.CopyToMachine"}


@pytest.mark.parametrize("method", ["org.varlink.service.Other", "io.machine1.Other", "Check", "KillMachine", ""])
def test_what_nobody_knows_is_refused(method: str) -> None:
    for each in PRESETS:
        assert not each.allows_method(method)
        with pytest.raises(PermissionDenied):
            each.decide(method, {})


# --- parameters: each one of the contract has a decision ------------------------------------------------------------

KINDS = {"machine", "image", "new", "start", "user", "program", "arguments", "environment"}
KINDS |= {"host-path", "guest-path", "details", "fd", "url", "free"}
# By hand: which parameters nothing has to be decided for.
FREE = {
    "ListMachines": {"all", "class", "service", "allowInteractiveAuthentication"},
    "GetMachine": {"allowInteractiveAuthentication"},
    "GetMachineByPID": {"pid", "allowInteractiveAuthentication"},
    "MapFromMachineUser": {"uid"},
    "MapFromMachineGroup": {"gid"},
    "MapToMachineUser": {"uid"},
    "MapToMachineGroup": {"gid"},
    "BindMountMachine": {"dest", "read_only", "mkdir", "allowInteractiveAuthentication"},
    "PoweroffMachine": {"allowInteractiveAuthentication"},
    "RebootMachine": {"allowInteractiveAuthentication"},
    "StartMachine": {"allowInteractiveAuthentication"},
    "UnregisterMachine": {"allowInteractiveAuthentication"},
    "OpenMachineLogin": {"allowInteractiveAuthentication"},
    "OpenMachinePTY": {"allowInteractiveAuthentication"},
    "OpenMachineRootDirectory": {"allowInteractiveAuthentication"},
    "TerminateMachine": {"allowInteractiveAuthentication"},
    "KillMachine": {"who", "signal", "allowInteractiveAuthentication"},
    "OpenMachineShell": {"allowInteractiveAuthentication"},
    "CopyFromMachine": {"src", "replace", "allowInteractiveAuthentication"},
    "CopyToMachine": {"dest", "replace", "allowInteractiveAuthentication"},
    "ListImages": {"all", "type", "read_only", "allowInteractiveAuthentication"},
    "GetImage": {"allowInteractiveAuthentication"},
    "MarkImageReadOnly": {"read_only", "allowInteractiveAuthentication"},
    "SetImageLimit": {"limit", "allowInteractiveAuthentication"},
    "SetPoolLimit": {"limit", "allowInteractiveAuthentication"},
    "CleanPool": {"mode", "allowInteractiveAuthentication"},
    "ImportTar": {"force", "read_only", "allowInteractiveAuthentication"},
    "ImportRaw": {"force", "read_only", "allowInteractiveAuthentication"},
    "ExportTar": {"format", "allowInteractiveAuthentication"},
    "ExportRaw": {"format", "allowInteractiveAuthentication"},
    "PullTar": {"verify", "force", "allowInteractiveAuthentication"},
    "PullRaw": {"verify", "force", "allowInteractiveAuthentication"},
    "CancelTransfer": {"transfer", "allowInteractiveAuthentication"},
    "WatchMachines": {"cursor", "all"},
    "WaitMachine": {"name", "state", "timeout"},
    "WatchImages": {"cursor", "all"},
    "RemoveImage": {"allowInteractiveAuthentication"},
    "CloneImage": {"read_only", "allowInteractiveAuthentication"},
    "RenameImage": {"allowInteractiveAuthentication"},
    "Reload": {"allowInteractiveAuthentication"},
    "SetLogLevel": {"level"},
}


@pytest.mark.parametrize("method", CONTRACT.methods)
def test_each_parameter_of_each_method_is_known(method: str) -> None:
    if method in ALWAYS:
        return
    known = PARAMETERS[method]
    assert known.keys() == CONTRACT.methods[method]["parameters"]["properties"].keys()
    assert set(known.values()) <= KINDS
    free = {name for name, kind in known.items() if kind in ("free", "guest-path")}
    assert free == FREE.get(method.rpartition(".")[2], set())
    for kind, parameter in (METHODS | Control(lambda: None).methods)[method].about.items():
        assert known[parameter] == ("start" if method == "io.machine1.StartMachine" else kind)


@pytest.mark.parametrize(
    ("method", "parameters"), [("GetPool", {}), ("SetPoolLimit", {}), ("CleanPool", {"mode": "all"})]
)
def test_what_is_about_every_image_is_for_who_sees_each(method: str, parameters: dict[str, Any]) -> None:
    """Whatever globs come near to it."""
    reason = "this method is about every image, so images of the policy need the glob *"
    for images in ('["web", "*"]', '["*", ".host"]'):
        assert refusal(policy(f'methods = ["{method}"]\nimages = {images}'), method, **parameters) == ""
    for images in ('["web-*"]', '["?*"]', '["[*]"]', '[".host"]', '["[!.]*", "web"]'):
        assert refusal(policy(f'methods = ["{method}"]\nimages = {images}'), method, **parameters) == reason
    assert refusal(policy(f'methods = ["{method}"]\nmachines = ["*"]'), method, **parameters) == reason


@pytest.mark.parametrize("method", ["ListMachines", "GetMachine", "GetMachineByPID", "ListImages", "GetImage"])
def test_details_are_for_who_may_have_them(method: str) -> None:
    least = LEAST.get(f"io.machine1.{method}", {"name": "web"})
    reason = "details is true, and the policy allows no details"
    assert refusal(PRESETS[0], method, **least, details=True) == reason
    assert refusal(PRESETS[0], method, **least, details=False) == ""
    assert refusal(PRESETS[0], method, **least) == ""
    assert refusal(replace(PRESETS[0], details=True), method, **least, details=True) == ""


def test_what_is_hidden_is_missing_before_details_are_refused() -> None:
    with pytest.raises(NoSuchMachine):
        WEB.decide("io.machine1.GetMachine", {"name": "db", "details": True})


@pytest.mark.parametrize("method", ["ImportTar", "ImportRaw", "ExportTar", "ExportRaw"])
def test_what_takes_a_file_descriptor_needs_a_policy_that_accepts_them(method: str) -> None:
    closed = replace(PRESETS[2], accept_fds=False)
    assert refusal(PRESETS[2], method, name="web", image_fd=0) == ""
    reason = "image_fd is a file descriptor, which the policy does not accept"
    assert refusal(closed, method, name="web", image_fd=0) == reason


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("method", "parameters"), [("ImportTar", {"image_fd": 0}), ("PullRaw", {"url": "http://a/b"}), ("PullTar", {})]
)
def test_an_image_that_is_not_shown_is_not_overwritten(method: str, parameters: dict[str, Any], force: bool) -> None:
    """Whether there is one or not: the policy does not know."""
    box = replace(PRESETS[2], images=WEB.images)
    parameters = {"url": "http://a/b"} | parameters if method == "PullTar" else parameters
    assert refusal(box, method, name="web-1", force=force, **parameters) == ""
    for name in ("db", "web", ".host"):
        reason = refusal(box, method, name=name, force=force, **parameters)
        assert reason == "name is no name that the policy allows for an image"
    assert refusal(box, "ExportTar", name="db", image_fd=0) == "the policy shows no image of this name"


@pytest.mark.parametrize("suffix", [".v", ".raw.v", ".mstack", ".raw", ".nspawn", ".roothash.p7s", ".verity"])
@pytest.mark.parametrize("method", ["ImportTar", "ImportRaw", "PullTar", "PullRaw", "CloneImage", "RenameImage"])
def test_what_systemd_takes_for_a_part_of_another_image_is_made_by_nobody(method: str, suffix: str) -> None:
    """With build.v/build_1, a link to the root directory, that was the image `build`, ready to be exported."""
    rest: dict[str, object] = {"name": "build"} if method in ("CloneImage", "RenameImage") else {}
    rest |= {"image_fd": 0} if method.startswith("Import") else {}
    rest |= {"url": "http://a/b"} if method.startswith("Pull") else {}
    parameter = "dest" if "name" in rest else "name"
    box = replace(PRESETS[2], machines=Globs.of(["*"]), images=Globs.of(["*"]))
    for name in ("build", f"build{suffix}-1", "build" + suffix.replace(".", "")):
        assert refusal(box, method, **{**rest, parameter: name}) == ""
    assert " ends in ." in refusal(box, method, **{**rest, parameter: f"build{suffix}"})


def test_images_are_pulled_from_where_the_policy_says() -> None:
    reason = "url is no URL that the policy allows to pull from"
    box = policy('methods = ["PullTar"]\nimages = ["*"]\npull = ["https://a.example/*", "http://*.b/[xy]/*.tar"]')
    nowhere = replace(box, pull=())
    for url in ("https://a.example/", "https://A.example:443/x", "http://c.b/x/y.tar", "http://c.b/y/z/%7e.tar"):
        assert refusal(box, "PullTar", name="i", url=url) == ""
        assert refusal(nowhere, "PullTar", name="i", url=url) == reason
    for url in ("http://a.example/", "https://a.example.b/", "https://b/a.example/", "http://b/x/y.tar"):
        assert refusal(box, "PullTar", name="i", url=url) == reason
    with pytest.raises(InvalidParameter) as caught:
        normalize("io.machine1.PullTar", {"name": "i", "url": "https://a.example@b/"})
    assert caught.value.parameters["parameter"] == "url"


def test_a_method_without_a_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(PARAMETERS, "io.machine1.KillMachine")
    assert refusal(PRESETS[1], "KillMachine", name="web") == "the policy has no rule for this method"


def test_a_parameter_without_a_rule_is_refused() -> None:
    assert refusal(PRESETS[1], "KillMachine", name="web", flags=1) == "the policy has no rule for the parameter flags"


def test_a_kind_without_a_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARAMETERS, "io.machine1.KillMachine", {"name": "machine", "who": "planet"})
    assert refusal(PRESETS[1], "KillMachine", name="web", who="x") == "the policy has no rule for a planet"


def test_a_machine_that_is_not_named_is_refused() -> None:
    assert refusal(PRESETS[1], "KillMachine")
    assert refusal(PRESETS[1], "RemoveImage")


# --- globs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "matched", "others"),
    [
        ("web", ["web"], ["we", "webb", "WEB", "aweb", "web\n", "\nweb", ""]),
        ("web-*", ["web-", "web-1", "web-*", "web-\n"], ["web", "awe-", "xweb-1", "Web-1", "\nweb-1"]),
        ("*", ["a", "", "a\nb", ".hidden", "ä/ö"], []),
        ("?", ["a", "\n", "ä", "?"], ["", "ab"]),
        ("*-db", ["-db", "a-db"], ["a-db1", "a-db\n"]),
        ("[ab]1", ["a1", "b1"], ["c1", "ab1", "A1", "1", "[ab]1"]),
        ("[a-c]", ["a", "b", "c"], ["d", "-", "B"]),
        ("[!a]", ["b", "!", "\n"], ["a", "", "bb"]),
        ("[]]", ["]"], ["[", "[]]"]),
        ("[!]]", ["[", "a"], ["]"]),
        ("[[]", ["["], ["[[]"]),
        ("[*?]", ["*", "?"], ["a", "**"]),
        ("[a-]", ["a", "-"], ["b"]),
        (r"\*", ["\\", r"\*", r"\x"], ["*", "x"]),
        ("a.b", ["a.b"], ["axb"]),
        ("(a|b)+$", ["(a|b)+$"], ["a", "ab"]),
    ],
)
def test_a_glob_matches_this_and_not_that(glob: str, matched: list[str], others: list[str]) -> None:
    globs = Globs.of([glob])
    assert [text for text in matched if not globs.match(text)] == []
    assert [text for text in others if globs.match(text)] == []


def test_several_globs_match_what_one_of_them_does() -> None:
    globs = Globs.of(["a*", "b", "*c", "[xy]"])
    texts = ("a1", "b", "1c", "x", "bb", "c1", "z", "xy")
    assert [text for text in texts if globs.match(text)] == ["a1", "b", "1c", "x"]


@pytest.mark.parametrize("key", ["machines", "images"])
@pytest.mark.parametrize(
    ("globs", "shown"),
    [
        ('["*"]', False),
        ('["*host"]', False),
        ('["?host"]', False),
        ('["[!a]host"]', False),
        ('["*", ".host"]', True),
        ('[".host"]', True),
    ],
)
def test_the_host_is_shown_only_where_it_is_written_out(key: str, globs: str, shown: bool) -> None:
    box = policy(f"{key} = {globs}")
    shows = box.shows_machine if key == "machines" else box.shows_image
    assert shows(".host") is shown
    # machined takes an empty name for the host, too.
    assert not shows("")


@pytest.mark.parametrize("glob", ["*" + "a*" * 15 + "b", "*a?" * 15 + "*b", "a*" * 16 + "b"])
def test_no_text_makes_a_glob_slow(glob: str) -> None:
    globs = policy(f'machines = ["{glob}"]').machines
    started = time.process_time()
    assert not globs.match("a" * 131_070 + "c")
    assert not globs.match("c")
    assert time.process_time() - started < 1


def test_many_globs_are_matched_fast() -> None:
    globs = Globs.of([f"{'*a' * 16}{index}" for index in range(100)])
    started = time.process_time()
    assert not globs.match("a" * 10_000 + "x")
    assert time.process_time() - started < 2


# --- machines and images --------------------------------------------------------------------------------------------

WEB = policy(
    'preset = "manage"\nmachines = ["web-*"]\nimages = ["web-*"]\nusers = ["joe"]\nprograms = [["/bin/sh"]]\n'
    'environment = ["TERM", "LC_*"]'
)
ON_A_MACHINE = ["GetMachine", "TerminateMachine", "KillMachine", "OpenMachineShell"]


@pytest.mark.parametrize("method", [*ON_A_MACHINE, "CopyFromMachine", "CopyToMachine"])
@pytest.mark.parametrize("name", ["db", ".host", "", "WEB-1", "xweb-1"])
def test_a_hidden_machine_is_a_missing_one(method: str, name: str) -> None:
    """The error is the one of a machine that is not there, whatever else would be refused."""
    box = replace(PRESETS[2], machines=WEB.machines, users=Globs(), programs=(), host_paths=False, environment=Globs())
    parameters = {"src": "/a"} if method.startswith("Copy") else {}
    with pytest.raises(NoSuchMachine) as caught:
        box.decide(f"io.machine1.{method}", {"name": name, **parameters})
    assert caught.value.parameters == NoSuchMachine(name).parameters
    assert name not in str(caught.value.refusal) or not name


@pytest.mark.parametrize("method", ["TerminateMachine", "KillMachine", "GetMachine"])
def test_a_machine_that_is_shown_can_be_asked_for(method: str) -> None:
    assert refusal(WEB, method, name="web-1") == ""


@pytest.mark.parametrize("method", ["RemoveImage", "CloneImage", "RenameImage"])
@pytest.mark.parametrize("name", ["db", ".host", ""])
def test_a_hidden_image_is_a_missing_one(method: str, name: str) -> None:
    parameters = {} if method == "RemoveImage" else {"dest": "db-2"}
    with pytest.raises(NoSuchImage) as caught:
        WEB.decide(f"io.machine1.{method}", {"name": name, **parameters})
    assert caught.value.parameters == NoSuchImage(name).parameters


def test_machines_and_images_are_different_lists() -> None:
    box = policy('preset = "manage"\nmachines = ["m"]\nimages = ["i"]')
    assert (box.shows_machine("m"), box.shows_machine("i")) == (True, False)
    assert (box.shows_image("i"), box.shows_image("m")) == (True, False)
    assert refusal(box, "KillMachine", name="i")
    assert refusal(box, "RemoveImage", name="m")


def test_an_image_is_started_as_a_machine_that_is_shown() -> None:
    box = policy('preset = "manage"\nmachines = ["m*"]\nimages = ["*i"]')
    assert refusal(box, "StartMachine", name="mi") == ""
    assert refusal(box, "StartMachine", name="m") == "the policy shows no image of this name"
    assert refusal(box, "StartMachine", name="i") == "name is no name that the policy allows for a machine"
    with pytest.raises(NoSuchImage):
        box.decide("io.machine1.StartMachine", {"name": "x"})


@pytest.mark.parametrize("method", ["CloneImage", "RenameImage"])
def test_an_image_gets_a_name_that_is_shown(method: str) -> None:
    assert refusal(WEB, method, name="web-1", dest="web-2") == ""
    for dest in ("db", ".host", ""):
        with pytest.raises(PermissionDenied):
            WEB.decide(f"io.machine1.{method}", {"name": "web-1", "dest": dest})


# --- shells ---------------------------------------------------------------------------------------------------------


def shell(box: Policy, **parameters: object) -> str:
    return refusal(box, "OpenMachineShell", **({"name": "web-1"} | parameters))


SH = {"user": "joe", "path": "/bin/sh"}


@pytest.mark.parametrize(
    ("users", "user", "allowed"),
    [
        ('["joe"]', "joe", True),
        ('["joe"]', "Joe", False),
        ('["joe"]', "joe2", False),
        ('["joe"]', "1000", False),
        ('["joe"]', "", False),
        ('["joe"]', None, False),
        ('["root"]', "", True),
        ('["root"]', None, True),
        ('["root"]', "0", True),
        ('["root"]', "root", True),
        ('["web-?"]', "web-1", True),
        # The number of root is root, also for a glob that looks like no name.
        ('["[0-9]*"]', "0", False),
        ('["[0-9]*"]', "1000", True),
    ],
)
def test_a_shell_is_opened_for_these_users(users: str, user: str | None, allowed: bool) -> None:
    box = policy(f'preset = "manage"\nmachines = ["*"]\nusers = {users}\nprograms = ["**"]')
    reason = shell(box, **({} if user is None else {"user": user}))
    assert reason == ("" if allowed else "user is no user that the policy allows")


JOURNAL = '["/usr/bin/journalctl", "-u", "*"]'


@pytest.mark.parametrize(
    ("programs", "path", "args", "allowed"),
    [
        ('[["/bin/sh"]]', "/bin/sh", None, True),
        ('[["/bin/sh"]]', "/bin/sh", [], True),
        ('[["/bin/sh"]]', "/bin/sh", ["/bin/sh"], True),
        ('[["/bin/sh"]]', "/bin/sh", ["sh"], True),
        # A program that is many looks here to know which to be; a shell, whether to be a login shell.
        ('[["/bin/busybox"]]', "/bin/busybox", ["rm"], False),
        ('[["/bin/sh"]]', "/bin/sh", ["-sh"], False),
        ('[["/bin/sh"]]', "/bin/sh", ["/usr/bin/sh"], False),
        ('[["/bin/sh"]]', "/bin/sh", [""], False),
        ('[["/bin/sh"]]', "/bin/sh", ["sh", "-c", "x"], False),
        ('[["/bin/sh"]]', "/bin/sh", ["sh", ""], False),
        ('[["/bin/sh"]]', "/bin/bash", None, False),
        ('[["/bin/sh"]]', "/bin//sh", None, True),
        ('[["/bin/sh"]]', "/bin/../bin/sh", None, False),
        ('[["/bin/sh"]]', "", None, False),
        ('[["/bin/sh"]]', None, ["/bin/sh"], False),
        ('[["/usr/bin/["]]', "/usr/bin/[", None, True),
        (f"[{JOURNAL}]", "/usr/bin/journalctl", ["journalctl", "-u", "x"], True),
        (f"[{JOURNAL}]", "/usr/bin/journalctl", ["journalctl", "-u", ""], True),
        (f"[{JOURNAL}]", "/usr/bin/journalctl", ["journalctl", "-u"], False),
        (f"[{JOURNAL}]", "/usr/bin/journalctl", ["journalctl", "-u", "x", "y"], False),
        (f"[{JOURNAL}]", "/usr/bin/journalctl", ["journalctl", "-x", "x"], False),
        (f"[{JOURNAL}]", "/usr/bin/journalctl", ["-u", "-u", "x"], False),
        (f"[{JOURNAL}]", "/usr/bin/journalctl", None, False),
        ('[["/bin/ls", "a b"]]', "/bin/ls", ["ls", "a", "b"], False),
        ('[["/bin/ls", "a b"]]', "/bin/ls", ["ls", "a b"], True),
        ('[["/bin/ls", ""]]', "/bin/ls", ["ls", ""], True),
        ('[["/bin/ls", ""]]', "/bin/ls", ["ls"], False),
        ('[["/bin/ls", "**"]]', "/bin/ls", None, True),
        ('[["/bin/ls", "**"]]', "/bin/ls", ["ls", "a", "b"], True),
        ('[["/bin/ls", "**"]]', "/bin/ls", ["rm", "a", "b"], False),
        ('[["/bin/ls", "-l", "**"]]', "/bin/ls", ["ls", "-l"], True),
        ('[["/bin/ls", "-l", "**"]]', "/bin/ls", ["ls", "-l", "x"], True),
        ('[["/bin/ls", "-l", "**"]]', "/bin/ls", ["ls"], False),
        ('[["/bin/ls", "-l", "**"]]', "/bin/ls", ["ls", "-x", "-l"], False),
        ('[["/bin/a"], ["/bin/b"]]', "/bin/b", None, True),
        ('[[""]]', "", None, True),
        ('[[""]]', None, None, True),
        ('[[""]]', "", ["sh", "-c", "x"], True),  # machined ignores them, and so does everybody before it
        ('[[""]]', "/bin/sh", None, False),
        ('["**"]', "", None, True),
        ('["**"]', "/bin/sh", ["x", "y"], True),
    ],
)
def test_these_programs_are_run(programs: str, path: str | None, args: list[str] | None, allowed: bool) -> None:
    box = policy(f'preset = "manage"\nmachines = ["*"]\nusers = ["joe"]\nprograms = {programs}')
    given = {key: value for key, value in (("path", path), ("args", args)) if value is not None}
    assert shell(box, user="joe", **given) == (
        "" if allowed else "path and args are no program that the policy allows"
    )


@pytest.mark.parametrize(
    ("env", "index"),
    [
        ([], None),
        (["TERM=x"], None),
        (["TERM=", "LC_ALL=C", "LC_=x"], None),
        (["LD_PRELOAD=/x"], 0),
        (["TERM=x", "LD_PRELOAD=/x"], 1),
        (["TERM=x", "LC_ALL=C", "LD_PRELOAD=LC_ALL=C"], 2),
        (["term=x"], 0),
        (["TERM2=x"], 0),
        (["XTERM=x"], 0),
        (["X=TERM"], 0),
        (["LCX=1"], 0),
    ],
)
def test_these_variables_are_set(env: list[str], index: int | None) -> None:
    assert shell(WEB, **SH, env=env) == ("" if index is None else f"env[{index}] is no variable that the policy allows")


def test_no_reason_repeats_a_value() -> None:
    for parameters in (SH | {"env": ["SECRET=1"]}, SH | {"user": "SECRET"}, SH | {"path": "/SECRET"}):
        assert "SECRET" not in shell(WEB, **parameters)


@pytest.mark.parametrize("key", ["users", "programs", "machines"])
def test_without_a_key_there_is_no_shell(key: str) -> None:
    lines = {"users": 'users = ["*"]', "programs": 'programs = ["**"]', "machines": 'machines = ["*"]'}
    assert shell(policy("\n".join(['preset = "manage"', *lines.values()]))) == ""
    del lines[key]
    assert shell(policy("\n".join(['preset = "manage"', *lines.values()])))


def test_without_a_key_no_variable_is_set() -> None:
    box = policy('preset = "manage"\nmachines = ["*"]\nusers = ["*"]\nprograms = ["**"]')
    assert shell(box, env=["A=1"]) == "env[0] is no variable that the policy allows"


# --- paths of the host ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "parameter"), [("CopyFromMachine", "dest"), ("CopyToMachine", "src")])
def test_a_copy_needs_host_paths(method: str, parameter: str) -> None:
    """Whatever the set of methods is: a file could not say this, but code could come to."""
    closed = replace(PRESETS[2], host_paths=False)
    assert refusal(PRESETS[2], method, name="web", src="/a", dest="/b") == ""
    reason = f"{parameter} is a path of the host, which the policy does not allow"
    assert refusal(closed, method, name="web", src="/a", dest="/b") == reason
    assert refusal(closed, method, name="web", src="/a") == reason


# --- normalization --------------------------------------------------------------------------------------------------


KEPT = {"replace": False}
BIND = {"src": "/a", "dest": "/a", "read_only": False, "mkdir": False}


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("BindMountMachine", {"src": "//a/"}, BIND),
        ("BindMountMachine", {"src": "/a", "dest": "/b/.."}, BIND | {"dest": "/b/.."}),
        ("BindMountMachine", {"src": "/a", "mkdir": True}, BIND | {"mkdir": True}),
        ("BindMountMachine", {"src": "/a/../b"}, InvalidParameter("src", "")),
        ("CopyToMachine", {"src": "/a", "replace": True}, {"src": "/a", "dest": "/a", "replace": True}),
        ("OpenMachineShell", {}, {"user": "root", "path": "", "args": [], "env": []}),
        ("OpenMachineShell", {"user": ""}, {"user": "root", "path": "", "args": [], "env": []}),
        ("OpenMachineShell", {"user": "0"}, {"user": "root", "path": "", "args": [], "env": []}),
        ("OpenMachineShell", {"user": "00"}, {"user": "00", "path": "", "args": [], "env": []}),
        ("OpenMachineShell", {"args": ["a"]}, {"user": "root", "path": "", "args": [], "env": []}),
        (
            "OpenMachineShell",
            {"user": "joe", "path": "/bin//../sh/", "env": ["A=1"]},
            {"user": "joe", "path": "/bin/../sh", "args": ["/bin/../sh"], "env": ["A=1"]},
        ),
        ("OpenMachineShell", {"path": "/a", "args": []}, {"user": "root", "path": "/a", "args": ["/a"], "env": []}),
        ("OpenMachineShell", {"path": "/a", "args": ["b"]}, {"user": "root", "path": "/a", "args": ["b"], "env": []}),
        ("CopyFromMachine", {"src": "/a//b/../c/"}, InvalidParameter("dest", "")),
        ("CopyFromMachine", {"src": "/a//b/../c/", "dest": "//x/./y//"}, {"src": "/a//b/../c/", "dest": "/x/y"} | KEPT),
        ("CopyFromMachine", {"src": "/a//b/"}, {"src": "/a//b/", "dest": "/a/b"} | KEPT),
        ("CopyFromMachine", {"src": "/a", "dest": ""}, {"src": "/a", "dest": "/a"} | KEPT),
        ("CopyFromMachine", {"src": "/a", "dest": "/b/.."}, InvalidParameter("dest", "")),
        ("CopyFromMachine", {"src": "/a", "dest": "b"}, InvalidParameter("dest", "")),
        ("CopyFromMachine", {"src": "/a", "dest": "/.../..x/x.."}, {"src": "/a", "dest": "/.../..x/x.."} | KEPT),
        ("CopyToMachine", {"src": "/a/../b", "dest": "/c"}, InvalidParameter("src", "")),
        ("CopyToMachine", {"src": "/..", "dest": "/c"}, InvalidParameter("src", "")),
        ("CopyToMachine", {"src": "//a/./b/", "dest": "//c/../d/"}, {"src": "/a/b", "dest": "//c/../d/"} | KEPT),
        ("CopyToMachine", {"src": "//a/./b/"}, {"src": "/a/b", "dest": "/a/b"} | KEPT),
        ("CopyToMachine", {"src": "/a/", "dest": ""}, {"src": "/a", "dest": "/a"} | KEPT),
        ("CopyToMachine", {"src": "//"}, {"src": "/", "dest": "/"} | KEPT),
        ("CopyToMachine", {"src": "/."}, {"src": "/", "dest": "/"} | KEPT),
        ("KillMachine", {"signal": 9}, {"who": "all", "signal": 9}),
        ("KillMachine", {}, {"who": "all", "signal": 15}),
        ("ListMachines", {"all": True}, {"all": True}),
        ("CloneImage", {"dest": "//x/"}, {"dest": "//x/", "read_only": False}),
    ],
)
def test_values_are_normalized(method: str, given: dict[str, Any], expected: dict[str, Any] | InvalidParameter) -> None:
    name, before = f"io.machine1.{method}", dict(given)
    if isinstance(expected, InvalidParameter):
        with pytest.raises(InvalidParameter) as caught:
            normalize(name, given)
        assert caught.value.parameters["parameter"] == expected.parameters["parameter"]
    else:
        assert normalize(name, given) == expected
        # What was normalized stays as it is.
        assert normalize(name, expected) == expected
    assert given == before


# --- files that are right -------------------------------------------------------------------------------------------


def test_an_empty_file_allows_nothing() -> None:
    assert policy("") == Policy(name="box")


def test_all_limits_and_their_defaults() -> None:
    """A default is changed here on purpose, and in default.toml, the man page and CHANGELOG.md."""
    assert asdict(policy("").limits) == {
        "connections": 4096,
        "connections_per_user": 128,
        "message_bytes": 64 * 1024,
        "depth": 32,
        "items": 1024,
        "buffered_bytes": 64 * 1024 * 1024,
        "calls_per_user": 8,
        "waiting_calls": 1024,
        "request_seconds": 30,
        "reply_seconds": 60,
    }


def test_the_defaults_are_those_that_are_written_where_users_look() -> None:
    """The policy that comes with the program sets each of them, the man page has a table."""
    text = (SHIPPED / "default.toml").read_text()
    table = tomllib.loads(text)["limits"]
    defaults = {name.replace("_", "-"): value for name, value in asdict(Limits()).items()}
    assert table == defaults
    manual = (SHIPPED.parent / "man" / "machine1-bridge.toml.5").read_text().replace("\\-", "-")
    rows = re.findall(r"^([a-z-]+)\t(\d+)\t(\d+) to (\d+)$", manual, re.MULTILINE)
    assert {key: int(value) for key, value, _, _ in rows} == defaults
    ranges = {name.replace("_", "-"): limits for name, limits in RANGES.items()}
    assert {key: (int(smallest), int(largest)) for key, _, smallest, largest in rows} == ranges


@pytest.mark.parametrize("name", RANGES)
def test_each_limit_is_a_key_with_a_range(name: str) -> None:
    key, (smallest, largest) = name.replace("_", "-"), RANGES[name]
    assert smallest <= getattr(Limits(), name) <= largest
    for value in (smallest, largest):
        assert policy(f"limits.{key} = {value}").limits == replace(Limits(), **{name: value})
    for value in (smallest - 1, largest + 1):
        with pytest.raises(PolicyError, match=f"limits.{key} must be a number from {smallest} to {largest}"):
            policy(f"limits.{key} = {value}")


def test_polkit_is_required_unless_it_is_off() -> None:
    assert policy("").polkit_required
    assert policy('polkit = "required"').polkit_required
    assert not policy('polkit = "off"').polkit_required


def test_an_empty_environment_can_be_said() -> None:
    assert policy("environment = []").environment == Globs()


def test_the_shipped_default_holds_nobody_back() -> None:
    shipped = parse((SHIPPED / "default.toml").read_bytes(), "default", "default.toml")
    # But from file descriptors and downloads, which cost each call something, and reach beyond this host.
    assert shipped == replace(PRESETS[2], name="default", accept_fds=False, pull=())
    assert shipped.polkit_required


def test_the_example_of_a_sandbox() -> None:
    box = parse((SHIPPED / "example-sandbox.toml").read_bytes(), "example-sandbox", "example-sandbox.toml")
    assert {name.rpartition(".")[2] for name in box.methods} == {"ListMachines", "GetMachine", "OpenMachineShell"}
    assert [name for name in ("web", "web2", ".host") if box.shows_machine(name)] == ["web"]
    assert not box.shows_image("web")
    assert refusal(box, "OpenMachineShell", name="web", user="www-data", path="/bin/sh", env=["TERM=x"]) == ""
    assert refusal(box, "OpenMachineShell", name="web", path="/bin/sh")
    assert refusal(box, "OpenMachineShell", name="web", user="www-data")
    assert not box.polkit_required


# --- files that are wrong: each with its line -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        # TOML
        ("preset =", 1, "is not TOML"),
        ('\n\npreset = "x', 3, "is not TOML"),
        ('polkit = "off"\npolkit = "off"', 2, "is not TOML"),
        ("machines = [\n", 1, "is not TOML"),
        ('# \u2028\nmachines = ["\x01"]', 2, "is not TOML"),
        ("[limits]\nconnections = " + "9" * 5000, None, "is not TOML"),
        ("machines = " + "[" * 20000, None, "is nested too deeply"),
        # keys
        ('\nmachine = ["a"]', 2, "machine is no key of a policy"),
        ('\n"host_paths" = true', 2, "host_paths is no key of a policy"),
        ('# limit\nmachines = ["a"]\n[limit]\nconnections = 1', 3, "limit is no key of a policy"),
        ("[limits]\n\nconnection = 1", 3, "limits.connection is no key of a policy"),
        ("\nlimits.connection = 1", 2, "limits.connection is no key of a policy"),
        ("\nlimits = {connection = 1}", 2, "limits.connection is no key of a policy"),
        # A key of one table is not that of another, and a line of a list is no table.
        ('users = ["polkit"]\nprograms = [\n  ["/bin/sh"]\n]\npolkit = "of"', 5, "polkit must be one of required, off"),
        # types
        ("preset = 1", 1, "preset must be one of read-only, manage, all"),
        ('preset = ["manage"]', 1, "preset must be one of"),
        ('\npreset = "none"', 2, "preset must be one of"),
        ("polkit = false", 1, "polkit must be one of required, off"),
        ('host-paths = "no"', 1, "host-paths must be true or false"),
        ("host-paths = 0", 1, "host-paths must be true or false"),
        ('accept-fds = "yes"', 1, "accept-fds must be true or false"),
        ("accept-fds = 1", 1, "accept-fds must be true or false"),
        ('pull = ["http://a/*",\n"ftp://a/*"]', 2, "pull[1]: 'ftp://a/*' is not http:// or https://"),
        ('pull = ["https://A/*"]', 1, "pull[0]: 'https://A/*' has upper case in its host"),
        ('pull = ["https://a/**"]', 1, "pull[0]: 'https://a/**' has **"),
        ("pull = []", 1, "pull is empty"),
        ('methods = "KillMachine"', 1, "methods must be a list"),
        ('machines = "*"', 1, "machines must be a list"),
        ('programs = "**"', 1, "programs must be a list"),
        ("users = [1]", 1, "users[0]: must be a text"),
        ('machines = ["a", true]', 1, "machines[1]: must be a text"),
        ("methods = [1]", 1, "methods[0]: must be a text"),
        ("limits = 1", 1, "limits must be a table"),
        ("[limits]\nconnections = true", 2, "limits.connections must be a number from"),
        ("[limits]\nconnections = 0", 2, "limits.connections must be a number from 1"),
        ("[limits]\nconnections = 8001", 2, "to 8000"),
        ("[limits]\nconnections = 1.0", 2, "limits.connections must be a number"),
        ("[limits]\nconnections-per-user = -1", 2, "limits.connections-per-user must be a number"),
        ("[limits]\nmessage-bytes = 1", 2, "limits.message-bytes must be a number"),
        ("[limits]\nmessage-bytes = 16777217", 2, "limits.message-bytes must be a number"),
        # empty lists
        *((f"\n{key} = []", 2, f"{key} is empty") for key in ("methods", "machines", "images", "users", "programs")),
        # methods
        ('methods = [\n  "KillMachine",\n  "Kill",\n]', 3, "methods[1]: no method of io.machine1 is called 'Kill'"),
        ('methods = ["io.machine1.KillMachine"]', 1, "methods[0]: no method"),
        ('methods = ["CopyToMachine"]', 1, "methods[0]: CopyToMachine needs host-paths = true"),
        ('preset = "all"', 1, "which need host-paths = true"),
        # host paths
        ("\nhost-paths = true", 2, 'host-paths can be true in the policy "default" alone'),
        # globs
        ('machines = ["a", ""]', 1, "machines[1]: '' is empty"),
        ('images = ["web["]', 1, "images[0]: 'web[' has a [ without its ]"),
        ('images = ["[]"]', 1, "has a [ without its ]"),
        ('images = ["[!]"]', 1, "has a [ without its ]"),
        ('images = ["[a]["]', 1, "has a [ without its ]"),
        ('images = ["[^a]"]', 1, "is written [!...]"),
        ('images = ["[z-a]"]', 1, "has a range that runs backwards"),
        ('users = ["a\\nb"]', 1, "has a control character"),
        ('users = ["\\u007f"]', 1, "has a control character"),
        ('users = ["\\u0085"]', 1, "has a control character"),
        ('machines = ["**"]', 1, "has **"),
        (f'machines = ["{"*a" * 17}"]', 1, "has more than 16 *"),
        (f'machines = ["{"a" * 4097}"]', 1, "is longer than 4096 characters"),
        ('machines = [\n  "a", # "x["\n  \'b["\',\n  "x[",\n]\nimages = ["x["]', 3, "machines[1]: 'b[\"' has a ["),
        ('images = [\n  "a",\n\n  "x["]', 4, "images[1]: 'x[' has a ["),
        ('environment = ["TERM=x"]', 1, "environment[0]: 'TERM=x' has a ="),
        ('users = ["0"]', 1, "users[0]: '0' is \"root\" here"),
        # .host
        *((f'machines = ["{glob}"]', 1, "the host has to be") for glob in (".*", ".h?st", ".hosts", "[.]host")),
        *((f'images = ["{glob}"]', 1, "the host has to be") for glob in (".*", ".h[o]st", "[.]host")),
        # programs
        ('programs = ["/bin/sh"]', 1, "programs[0]: must be a list of texts"),
        ("programs = [[]]", 1, "programs[0]: must be a list of texts"),
        ('programs = [["/bin/sh", 1]]', 1, "programs[0]: must be a list of texts"),
        ('programs = [\n  ["/bin/a", "b"],\n  ["**"],\n]', 3, "programs[1]: any program is"),
        ('programs = [\n  ["/bin/a", "b"],\n  "**",\n]', 3, "programs[1]: any program is"),
        ('programs = [["bin/sh"]]', 1, "programs[0][0]: 'bin/sh' must be the absolute path"),
        ('programs = [["/"]]', 1, "must be the absolute path"),
        ('programs = [["/bin/"]]', 1, "must be the absolute path"),
        ('programs = [["/bin/*"]]', 1, "has a wildcard"),
        ('programs = [["/bin/?"]]', 1, "has a wildcard"),
        ('programs = [["/bin/a\\n"]]', 1, "has a control character"),
        ('programs = [["", "-c"]]', 1, "is the login shell, which takes no arguments"),
        (
            'programs = [\n  ["/bin/a", "**"],\n  ["/bin/b",\n   "**", "x"],\n]',
            4,
            "programs[1][1]: '**' means any further arguments",
        ),
        ('programs = [\n  ["/bin/a"],\n  ["/bin/b", "["],\n]', 3, "programs[1][1]: '[' has a [ without its ]"),
        ('programs = [["/bin/a", "b**"]]', 1, "has **"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_its_line(text: str, line: int | None, what: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy(text)
    assert str(caught.value).startswith(f"box.toml:{line}: " if line else "box.toml: ")
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_line_break_of_windows_counts_once() -> None:
    with pytest.raises(PolicyError, match=r"^box\.toml:3: x "):
        policy('\r\npolkit = "off"\r\nx = 1')


def test_a_file_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"^box\.toml:2: is not UTF-8$"):
        parse(b"\n\xff", "box", "box.toml")


def test_files_of_the_host_are_never_open_without_polkit() -> None:
    with pytest.raises(PolicyError, match=r'^box\.toml:2: polkit cannot be "off" with host-paths'):
        policy('host-paths = true\npolkit = "off"', "default")


# --- files: where they are, and whose -------------------------------------------------------------------------------


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """The administrator's directory."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    return folder


def put(path: Path, text: str = 'polkit = "off"') -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    return path


def failure(name: str, *directories: Path, owner: int = ME) -> str:
    with pytest.raises(PolicyError) as caught:
        load(name, directories, owner=owner)
    return str(caught.value)


def test_a_policy_is_read_from_the_directory(etc: Path) -> None:
    put(etc / "a-1.b_c.toml")
    assert load("a-1.b_c", [etc], owner=ME) == Policy(name="a-1.b_c", polkit_required=False)


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "a/b", "../a", "a b", "a\n", "ä", "a@b", "a\\x2db", "a" * 201])
def test_a_name_is_plain(etc: Path, name: str) -> None:
    assert "is no name of a policy" in failure(name, etc)


def test_the_message_names_the_file_and_the_line(etc: Path) -> None:
    put(etc / "a.toml", "\nx = 1")
    assert failure("a", etc).startswith(f"{etc}/a.toml:2: x is no key")


def test_a_missing_policy_is_refused(etc: Path) -> None:
    assert failure("a", etc) == f"{etc}/a.toml: no such file"
    assert failure("a", etc / "none") == f"{etc}/none/a.toml: no such file"
    assert failure("default", etc) == f"{etc}/default.toml: no such file"


def test_only_the_default_comes_with_the_program(etc: Path, tmp_path: Path) -> None:
    vendor = tmp_path / "vendor"
    vendor.mkdir(mode=0o755)
    put(vendor / "default.toml")
    put(vendor / "a.toml")
    assert not load("default", [etc, vendor], owner=ME).polkit_required
    assert not load("default", [etc / "none", vendor], owner=ME).polkit_required
    assert failure("a", etc, vendor) == f"{etc}/a.toml: no such file"
    put(etc / "default.toml", "")
    assert load("default", [etc, vendor], owner=ME).polkit_required
    # A wrong file is not passed over.
    put(etc / "default.toml", "x = 1")
    assert "x is no key" in failure("default", etc, vendor)


def test_where_policies_are() -> None:
    assert [str(each) for each in DIRECTORIES[:1]] == ["/etc/machine1-bridge"]
    assert (DIRECTORIES[2] / "default.toml").samefile(SHIPPED / "default.toml")


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_may_write_is_refused(etc: Path, mode: int) -> None:
    put(etc / "a.toml").chmod(mode)
    assert failure("a", etc) == f"{etc}/a.toml: can be written by others than its owner: chmod go-w"


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_directory_that_others_may_write_is_refused(etc: Path, mode: int) -> None:
    put(etc / "a.toml")
    etc.chmod(mode)
    assert failure("a", etc) == f"{etc}: can be written by others than its owner: chmod go-w"
    # Somebody could have removed the file.
    assert failure("default", etc, SHIPPED).startswith(f"{etc}: can be written")


def test_a_directory_of_somebody_else_is_refused(etc: Path) -> None:
    put(etc / "a.toml")
    assert failure("a", etc, owner=ME + 1) == f"{etc}: belongs to UID {ME}, must belong to UID {ME + 1}"


@pytest.mark.skipif(ME != 0, reason="needs chown")
def test_a_file_of_somebody_else_is_refused(etc: Path) -> None:
    os.chown(put(etc / "a.toml"), 65534, 0)
    assert failure("a", etc) == f"{etc}/a.toml: belongs to UID 65534, must belong to UID 0"


def test_root_is_the_owner_unless_a_test_says_otherwise(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the one who runs the service: a service that was taken over could write its own policy."""
    put(etc / "a.toml")
    seen: list[int] = []
    monkeypatch.setattr(module, "_check_owner", lambda _path, _status, owner, *, shipped: seen.append(owner))
    load("a", [etc])
    assert seen == [0, 0]


def test_the_programs_own_policy_may_belong_to_who_runs_it(etc: Path, tmp_path: Path) -> None:
    vendor = tmp_path / "vendor"
    vendor.mkdir()
    put(vendor / "default.toml").chmod(0o664)
    vendor.chmod(0o775)
    assert load("default", [etc / "none", vendor], owner=ME + 1).name == "default"
    # What belongs to root may be written by root alone, there too.
    assert "can be written" in failure("default", etc, vendor)


@pytest.mark.skipif(ME != 0, reason="needs chown")
def test_the_programs_own_policy_may_belong_to_nobody_else(etc: Path, tmp_path: Path) -> None:
    vendor = tmp_path / "vendor"
    vendor.mkdir(mode=0o755)
    os.chown(put(vendor / "default.toml"), 65534, 0)
    assert "belongs to UID 65534" in failure("default", etc, vendor)


def test_a_hidden_image_in_the_shipped_policy_is_fine() -> None:
    assert policy('images = [".snap-*"]').shows_image(".snap-1")


def test_a_link_inside_the_directory_is_followed_once(etc: Path) -> None:
    put(etc / "a.toml")
    (etc / "b.toml").symlink_to("a.toml")
    (etc / "c.toml").symlink_to("b.toml")
    assert load("b", [etc], owner=ME).name == "b"
    assert "is a symbolic link to b.toml" in failure("c", etc)


def test_a_link_out_of_the_directory_is_refused(etc: Path, tmp_path: Path) -> None:
    put(tmp_path / "x.toml")
    (etc / "a.toml").symlink_to("../x.toml")
    (etc / "b.toml").symlink_to(put(etc / "y.toml"))
    for name in ("a", "b"):
        assert failure(name, etc) == f"{etc}/{name}.toml: is a symbolic link that leads out of its directory"


def test_a_link_to_nowhere_is_no_missing_file(etc: Path) -> None:
    (etc / "default.toml").symlink_to("none.toml")
    assert "is a symbolic link to none.toml: No such file" in failure("default", etc, SHIPPED)


def test_a_link_does_not_make_another_name_the_default(etc: Path) -> None:
    put(etc / "default.toml", "host-paths = true")
    (etc / "a.toml").symlink_to("default.toml")
    assert load("default", [etc], owner=ME).host_paths
    assert "host-paths can be true in the policy" in failure("a", etc)


def test_what_is_no_file_is_refused(etc: Path) -> None:
    (etc / "a.toml").mkdir()
    os.mkfifo(etc / "b.toml")
    put(etc / "c")
    assert failure("a", etc) == f"{etc}/a.toml: is no regular file"
    # Nobody waits for a writer.
    assert failure("b", etc) == f"{etc}/b.toml: is no regular file"
    assert failure("a", etc / "c") == f"{etc}/c: Not a directory"


def test_a_file_is_of_a_sensible_size(etc: Path) -> None:
    put(etc / "a.toml", "#" * 65536)
    assert load("a", [etc], owner=ME).name == "a"
    put(etc / "a.toml", "#" * 65537)
    assert failure("a", etc) == f"{etc}/a.toml: is larger than 65536 bytes"
