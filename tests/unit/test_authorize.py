# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who decides, in which order, and what polkit is asked for each guarded method."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import bridge
from bridge.authorize import ACTIONS, Authorizer, question
from bridge.bus import Bus
from bridge.contract import Contract
from bridge.errors import NoSuchImage, NoSuchMachine, PermissionDenied, VarlinkError
from bridge.loop import Future, Loop
from bridge.messages import Peer, Reply
from bridge.methods import METHODS, Method
from bridge.policy import PARAMETERS, Policy, normalize, parse
from bridge.polkit import Polkit

from .conftest import result_of

USER, ROOT = 1000, 0
EVERYTHING = """
preset = "manage"
machines = ["*", ".host"]
images = ["*"]
users = ["*"]
programs = ["**"]
environment = ["*"]
details = true
"""
# What EVERYTHING leaves out.
FILES = ["BindMountMachine", "CopyFromMachine", "CopyToMachine", "OpenMachineRootDirectory"]
POOL = ["SetPoolLimit", "CleanPool"]
TRANSFERS = ["ImportTar", "ImportRaw", "ExportTar", "ExportRaw", "PullTar", "PullRaw", "CancelTransfer"]
COPIES = f"""host-paths = true
accept-fds = true
pull = ["http://a/*"]
methods = {json.dumps(FILES + POOL + TRANSFERS)}
"""


class FakePolkit(Polkit):
    """Says what it is told to, and remembers the questions."""

    def __init__(self, error: VarlinkError | None = None) -> None:
        self.asked: list[tuple[int, str, dict[str, str], bool]] = []
        self._error = error

    async def check(self, peer: Peer, action: str, details: Mapping[str, str], interactive: bool) -> None:
        self.asked.append((peer.uid, action, dict(details), interactive))
        if self._error is not None:
            raise self._error


def policy(more: str = "", base: str = EVERYTHING, name: str = "default") -> Policy:
    return parse((base + more).encode(), name, f"{name}.toml")


def peer_of(uid: int) -> Peer:
    loop = Loop()
    loop.close()
    return Peer(1, uid, uid, Future(loop))


def authorize(decides: Policy, polkit: Polkit, uid: int, name: str, parameters: dict[str, Any]) -> str:
    method = METHODS.get(name, Method(_never, False, {}))
    return result_of(Authorizer(decides, polkit).authorize(peer_of(uid), name, method, normalize(name, parameters)))


class ForgetfulPolkit(FakePolkit):
    """While it asks for a password, the administrator changes the policy."""

    authorizer: Authorizer

    async def check(self, peer: Peer, action: str, details: Mapping[str, str], interactive: bool) -> None:
        await super().check(peer, action, details, interactive)
        self.authorizer.policy = policy(base="")


def test_a_policy_that_changed_meanwhile_is_asked_again() -> None:
    polkit = ForgetfulPolkit()
    polkit.authorizer = Authorizer(policy(), polkit)
    asked = polkit.authorizer.authorize(peer_of(USER), TERMINATE, METHODS[TERMINATE], {"name": "web"})
    with pytest.raises(PermissionDenied):
        result_of(asked)
    assert len(polkit.asked) == 1


async def _never(machined: object, parameters: object) -> Reply:
    raise AssertionError


TERMINATE = "io.machine1.TerminateMachine"
GUARDED = sorted(name for name, method in METHODS.items() if method.guarded)
DETAILED = sorted(name for name, method in METHODS.items() if method.details)
READS = sorted(name for name, method in METHODS.items() if not method.guarded)
LEAST: dict[str, dict[str, Any]] = {
    "io.machine1.CopyFromMachine": {"src": "/a"},
    "io.machine1.CopyToMachine": {"src": "/a"},
    "io.machine1.BindMountMachine": {"src": "/a"},
    "io.machine1.GetMachineByPID": {"pid": 2},
    "io.machine1.MapFromMachineUser": {"uid": 2},
    "io.machine1.MapFromMachineGroup": {"gid": 2},
    "io.machine1.MapToMachineUser": {"uid": 2},
    "io.machine1.MapToMachineGroup": {"gid": 2},
    "io.machine1.WaitMachine": {"state": "gone"},
    "io.machine1.CloneImage": {"dest": "j"},
    "io.machine1.RenameImage": {"dest": "j"},
    "io.machine1.MarkImageReadOnly": {"read_only": True},
    "io.machine1.CleanPool": {"mode": "hidden"},
    "io.machine1.ImportTar": {"image_fd": 0},
    "io.machine1.ImportRaw": {"image_fd": 0},
    "io.machine1.ExportTar": {"image_fd": 0},
    "io.machine1.ExportRaw": {"image_fd": 0},
    "io.machine1.PullTar": {"url": "http://a/b"},
    "io.machine1.PullRaw": {"url": "http://a/b"},
    "io.machine1.CancelTransfer": {"transfer": 1},
}


def least(name: str) -> dict[str, Any]:
    unnamed = name.rpartition(".")[2].startswith(
        ("List", "Watch", "GetMachineBy", "MapTo", "GetPool", "SetPool", "CleanPool", "Cancel")
    )
    return LEAST.get(name, {}) if unnamed else {"name": "m", **LEAST.get(name, {})}


# --- who decides -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GUARDED)
def test_what_is_guarded_is_polkits_to_decide(name: str) -> None:
    polkit = FakePolkit()
    decides = policy(COPIES)
    assert authorize(decides, polkit, USER, name, least(name)) == "polkit"
    assert [asked[0] for asked in polkit.asked] == [USER]
    refuses = FakePolkit(PermissionDenied())
    with pytest.raises(PermissionDenied):
        authorize(decides, refuses, USER, name, least(name))


@pytest.mark.parametrize("name", DETAILED)
def test_details_are_polkits_to_decide(name: str) -> None:
    """As from systemd 261 on machined's own are."""
    for uid, error, expected in ((USER, None, "polkit"), (ROOT, PermissionDenied(), "kernel")):
        polkit = FakePolkit(error)
        parameters = least(name) | {"details": True}
        method = METHODS[name].called_with(parameters)
        authorizer = Authorizer(policy(), polkit)
        assert result_of(authorizer.authorize(peer_of(uid), name, method, normalize(name, parameters))) == expected
        assert len(polkit.asked) == (uid == USER)


@pytest.mark.parametrize("name", GUARDED)
def test_polkit_is_asked_nothing_about_root(name: str) -> None:
    polkit = FakePolkit(PermissionDenied())
    more = {"allowInteractiveAuthentication": True}
    assert authorize(policy(COPIES), polkit, ROOT, name, least(name) | more) == "kernel"
    assert polkit.asked == []


@pytest.mark.parametrize("uid", [ROOT, USER])
@pytest.mark.parametrize("name", [*READS, "io.machine1.Check", "org.varlink.service.GetInfo"])
def test_what_changes_nothing_is_the_policys(name: str, uid: int) -> None:
    polkit = FakePolkit(PermissionDenied())
    parameters = least(name) if name in METHODS else {}
    assert authorize(policy(), polkit, uid, name, parameters) == "policy"
    assert polkit.asked == []


@pytest.mark.parametrize(("uid", "by"), [(ROOT, "kernel"), (USER, "policy")])
@pytest.mark.parametrize("name", [name for name in GUARDED if name.rpartition(".")[2] not in FILES + POOL])
def test_without_polkit_the_policy_decides_alone(name: str, uid: int, by: str) -> None:
    polkit = FakePolkit(PermissionDenied())
    open_to_all = 'polkit = "off"\naccept-fds = true\npull = ["http://a/*"]\n'
    decides = policy(f"{open_to_all}methods = {json.dumps(TRANSFERS)}\n", EVERYTHING.replace(', ".host"', ""), "box")
    assert authorize(decides, polkit, uid, name, least(name)) == by
    assert polkit.asked == []
    about = METHODS[name].about
    if not about:
        return
    # No glob means the host.
    hidden = NoSuchMachine if "machine" in about else NoSuchImage if "image" in about else PermissionDenied
    with pytest.raises(hidden):
        authorize(decides, polkit, uid, name, least(name) | {"name": ".host"})


@pytest.mark.parametrize("uid", [ROOT, USER])
@pytest.mark.parametrize("polkit_is", ["required", "off"])
@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        (TERMINATE, {"name": "hidden"}, NoSuchMachine),
        ("io.machine1.RemoveImage", {"name": "hidden"}, NoSuchImage),
        ("io.machine1.RenameImage", {"name": "web-1", "dest": "hidden"}, PermissionDenied),
        ("io.machine1.OpenMachineShell", {"name": "web-1", "user": "joe"}, PermissionDenied),
        ("io.machine1.OpenMachineShell", {"name": "web-1", "path": "/bin/sh"}, PermissionDenied),
        ("io.machine1.CopyToMachine", {"name": "web-1", "src": "/a"}, PermissionDenied),
        ("io.machine1.KillMachine", {"name": "web-1"}, PermissionDenied),
    ],
)
def test_the_policy_speaks_before_the_kernel_and_polkit(
    name: str, parameters: dict[str, Any], expected: type[VarlinkError], polkit_is: str, uid: int
) -> None:
    """A client that is root inside of a sandbox is UID 0, and polkit says yes to it."""
    decides = parse(
        f"""
        methods = ["TerminateMachine", "RemoveImage", "RenameImage", "OpenMachineShell"]
        machines = ["web-*"]
        images = ["web-*"]
        users = ["root"]
        programs = [["/bin/true"], [""]]
        polkit = "{polkit_is}"
        """.encode(),
        "box",
        "box.toml",
    )
    polkit = FakePolkit()
    with pytest.raises(expected) as raised:
        authorize(decides, polkit, uid, name, parameters)
    assert raised.value.refusal is not None
    assert raised.value.refusal.by == "policy"
    assert polkit.asked == []


@pytest.mark.parametrize(("value", "interactive"), [(None, False), (False, False), (True, True)])
def test_a_user_may_be_asked_if_the_call_says_so(value: bool | None, interactive: bool) -> None:
    polkit = FakePolkit()
    parameters = {"name": "m"} if value is None else {"name": "m", "allowInteractiveAuthentication": value}
    authorize(policy(), polkit, USER, TERMINATE, parameters)
    assert polkit.asked == [(USER, "io.machine1.manage-machines", {"verb": "terminate", "machine": "m"}, interactive)]


def test_a_guarded_method_that_nobody_put_into_the_table_is_refused() -> None:
    """Even if a policy lets it pass."""
    decides = Policy("x", methods=frozenset({"io.machine1.New"}))
    polkit = FakePolkit()
    guarded = Method(_never, True, {})
    with pytest.raises(PermissionDenied):
        result_of(Authorizer(decides, polkit).authorize(peer_of(USER), "io.machine1.New", guarded, {}))
    with pytest.raises(PermissionDenied) as raised:
        question("io.machine1.New", guarded, {})
    assert raised.value.refusal is not None
    assert raised.value.refusal.by == "polkit"
    assert polkit.asked == []


# --- the question ----------------------------------------------------------------------------------------------------

# Method, parameters as they come, action, details.
QUESTIONS: list[tuple[str, dict[str, Any], str, dict[str, str]]] = [
    ("TerminateMachine", {"name": "m"}, "manage-machines", {"verb": "terminate", "machine": "m"}),
    ("TerminateMachine", {"name": "n"}, "manage-machines", {"verb": "terminate", "machine": "n"}),
    (
        "KillMachine",
        {"name": "m", "who": "leader", "signal": 9},
        "manage-machines",
        {"verb": "kill", "machine": "m", "who": "leader", "signal": "9"},
    ),
    (
        "OpenMachineShell",
        {"name": "m"},
        "open-shell",
        {"verb": "open-shell", "machine": "m", "user": "root", "program": "", "argv": "[]", "environment": "[]"},
    ),
    (
        "OpenMachineShell",
        {"name": ".host", "user": "joe", "path": "/bin/sh", "args": ["sh", '-c "x"', "ä,\n"], "env": ["A=b c", "D="]},
        "open-host-shell",
        {
            "verb": "open-shell",
            "machine": ".host",
            "user": "joe",
            "program": "/bin/sh",
            "argv": r'["sh", "-c \"x\"", "ä,\n"]',
            "environment": '["A=b c", "D="]',
        },
    ),
    (
        "CopyFromMachine",
        {"name": "m", "src": "/a//b"},
        "copy",
        {"verb": "copy-from", "direction": "out", "machine": "m", "src": "/a//b", "dest": "/a/b", "replace": "false"},
    ),
    (
        "CopyToMachine",
        {"name": "m", "src": "/a//b", "dest": "/c//d", "replace": True},
        "copy",
        {"verb": "copy-to", "direction": "in", "machine": "m", "src": "/a/b", "dest": "/c//d", "replace": "true"},
    ),
    (
        "BindMountMachine",
        {"name": "m", "src": "/a//b"},
        "bind-mount",
        {"verb": "bind-mount", "machine": "m", "src": "/a/b", "dest": "/a/b", "read_only": "false", "mkdir": "false"},
    ),
    ("PoweroffMachine", {"name": "m"}, "manage-machines", {"verb": "poweroff", "machine": "m"}),
    ("RebootMachine", {"name": "m"}, "manage-machines", {"verb": "reboot", "machine": "m"}),
    ("StartMachine", {"name": "m"}, "manage-machines", {"verb": "start", "image": "m"}),
    ("UnregisterMachine", {"name": "m"}, "manage-machines", {"verb": "unregister", "machine": "m"}),
    ("OpenMachineLogin", {"name": "m"}, "open-login", {"verb": "open-login", "machine": "m"}),
    ("OpenMachinePTY", {"name": "m"}, "open-pty", {"verb": "open-pty", "machine": "m"}),
    (
        "OpenMachineRootDirectory",
        {"name": "m"},
        "open-root-directory",
        {"verb": "open-root-directory", "machine": "m"},
    ),
    (
        "ListMachines",
        {"details": True, "all": True, "class": "vm", "service": "x"},
        "inspect-machines",
        {"verb": "list", "details": "true", "all": "true", "class": "vm", "service": "x"},
    ),
    (
        "GetMachine",
        {"name": "m", "details": True},
        "inspect-machines",
        {"verb": "get", "machine": "m", "details": "true"},
    ),
    (
        "GetMachineByPID",
        {"pid": 7, "details": True},
        "inspect-machines",
        {"verb": "get-by-pid", "pid": "7", "details": "true"},
    ),
    ("RemoveImage", {"name": "i"}, "manage-images", {"verb": "remove", "image": "i"}),
    (
        "CloneImage",
        {"name": "i", "dest": "j", "read_only": False},
        "manage-images",
        {"verb": "clone", "image": "i", "new_name": "j", "read_only": "false"},
    ),
    ("RenameImage", {"name": "i", "dest": "j"}, "manage-images", {"verb": "rename", "image": "i", "new_name": "j"}),
    (
        "MarkImageReadOnly",
        {"name": "i", "read_only": True},
        "manage-images",
        {"verb": "mark-read-only", "image": "i", "read_only": "true"},
    ),
    ("SetImageLimit", {"name": "i"}, "manage-images", {"verb": "set-limit", "image": "i"}),
    ("SetImageLimit", {"name": "i", "limit": 5}, "manage-images", {"verb": "set-limit", "image": "i", "limit": "5"}),
    (
        "GetImage",
        {"name": "i", "details": True},
        "inspect-images",
        {"verb": "get-image", "image": "i", "details": "true"},
    ),
    (
        "ListImages",
        {"all": True, "type": "raw", "read_only": False, "details": True},
        "inspect-images",
        {"verb": "list-images", "all": "true", "type": "raw", "read_only": "false", "details": "true"},
    ),
    ("SetPoolLimit", {}, "manage-pool", {"verb": "set-pool-limit"}),
    ("SetPoolLimit", {"limit": 5}, "manage-pool", {"verb": "set-pool-limit", "limit": "5"}),
    ("CleanPool", {"mode": "all"}, "manage-pool", {"verb": "clean-pool", "mode": "all"}),
    *(
        (
            f"Import{kind.capitalize()}",
            {"name": "i", "image_fd": 0, "force": True},
            "import-images",
            {"verb": f"import-{kind}", "new_name": "i", "force": "true", "read_only": "false"},
        )
        for kind in ("tar", "raw")
    ),
    *(
        (
            f"Export{kind.capitalize()}",
            {"name": "i", "image_fd": 0},
            "export-images",
            {"verb": f"export-{kind}", "image": "i", "format": "uncompressed"},
        )
        for kind in ("tar", "raw")
    ),
    *(
        (
            f"Pull{kind.capitalize()}",
            {"name": "i", "url": "https://A:443/%7Eb"},
            "pull-images",
            {"verb": f"pull-{kind}", "new_name": "i", "url": "https://a/~b", "verify": "signature", "force": "false"},
        )
        for kind in ("tar", "raw")
    ),
    ("CancelTransfer", {"transfer": 7}, "cancel-transfers", {"verb": "cancel", "transfer": "7"}),
]


@pytest.mark.parametrize("interactive", [{}, {"allowInteractiveAuthentication": True}])
@pytest.mark.parametrize(("name", "parameters", "action", "details"), QUESTIONS)
def test_polkit_is_shown_all_that_would_be_done(
    name: str, parameters: dict[str, Any], action: str, details: dict[str, str], interactive: dict[str, bool]
) -> None:
    qualified = f"io.machine1.{name}"
    asked = question(qualified, METHODS[qualified], normalize(qualified, parameters | interactive))
    assert asked == (f"io.machine1.{action}", details)


def test_every_guarded_method_has_an_action_and_a_row_here() -> None:
    assert sorted(ACTIONS) == sorted(GUARDED + DETAILED)
    assert {f"io.machine1.{row[0]}" for row in QUESTIONS} == set(ACTIONS)
    assert len({verb for _, verb in ACTIONS.values()}) == len(ACTIONS)


def test_the_details_are_in_the_page_for_who_writes_rules() -> None:
    text = (Path(bridge.__file__).parents[1] / "contrib/security.md").read_text()
    rows = re.findall(r"^\| `(io\.machine1\.[a-z-]+)` \| ([a-z, -]+) \| (.+) \|$", text, re.MULTILINE)
    told = {
        (action, verb): set(re.findall(r"[a-z_]+", re.sub(r"\(.*?\)", "", keys)))
        for action, verbs, keys in rows
        for verb in verbs.split(", ")
        if action != "io.machine1.open-host-shell"
    }
    shown: dict[tuple[str, str], set[str]] = {}
    for name, parameters, _, _ in QUESTIONS:
        qualified = f"io.machine1.{name}"
        action, details = question(qualified, METHODS[qualified], normalize(qualified, parameters))
        if action != "io.machine1.open-host-shell":
            shown.setdefault((action, details["verb"]), set()).update(details.keys() - {"verb"})
    assert told == shown
    assert "io.machine1.open-host-shell" in {action for action, _, _ in rows}


@pytest.mark.parametrize("name", GUARDED)
def test_no_two_parameters_share_a_detail(name: str) -> None:
    """Nor does one pass for the verb or the direction: each value is shown under a key of its own."""
    values: dict[str, Any] = {"read_only": True, "replace": 1, "mkdir": 2, "signal": 9, "args": ["x"]}
    values["env"] = ["A=value-env"]
    known = Contract().methods[name]["parameters"]["properties"]
    left_out = ("allowInteractiveAuthentication", METHODS[name].fd)
    parameters = {key: values.get(key, f"/value-{key}") for key in known if key not in left_out}
    _, details = question(name, METHODS[name], parameters)
    shown = [value if isinstance(value, str) else json.dumps(value) for value in parameters.values()]
    fixed = [ACTIONS[name][1]] + [details.get("direction", "")] * (ACTIONS[name][0] == "io.machine1.copy")
    assert details["verb"] == ACTIONS[name][1]
    assert sorted(details.values()) == sorted(shown + fixed)


def test_the_actions_are_those_that_are_installed() -> None:
    text = (Path(bridge.__file__).parents[1] / "contrib/polkit/io.machine1.policy").read_text()
    installed = set(re.findall(r'<action id="([^"]+)"', text))
    assert {action for action, _ in ACTIONS.values()} | {"io.machine1.open-host-shell"} == installed
    assert text.count("org.freedesktop.policykit.owner") == len(installed)


# --- what a refusal says ---------------------------------------------------------------------------------------------


def _reasons() -> dict[str, str]:
    """The texts of all refusals, by where they are; what is inserted into them is {}."""
    found = {}
    for path in sorted(Path(bridge.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Refusal", "_deny"):
                text = _text(node.args[-1])
                if text is not None:
                    found[f"{path.name}:{node.lineno}"] = text
    return found


def _text(node: ast.expr) -> str | None:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            texts = [_text(part) if isinstance(part, ast.Constant) else "{}" for part in parts]
            return "".join(text or "" for text in texts)
    return None


def test_the_texts_of_refusals_need_no_escapes() -> None:
    """zlink borrows texts from the message, which it cannot where one has an escape. Nor do names of parameters."""
    reasons = _reasons()
    assert {where.partition(":")[0] for where in reasons} >= {"authorize.py", "policy.py", "polkit.py"}
    for where, text in reasons.items():
        assert text.isascii(), where
        assert text.isprintable(), where
        assert not set(text) & set("\"\\'"), where
    for kinds in PARAMETERS.values():
        for parameter, kind in kinds.items():
            assert re.fullmatch(r"[A-Za-z_]+", parameter)
            assert re.fullmatch(r"[a-z-]+", kind)


def test_a_refusal_repeats_no_value() -> None:
    decides = parse(
        b'preset = "manage"\nmethods = ["KillMachine"]\nmachines = ["m"]\nimages = ["i"]\n', "box", "box.toml"
    )
    values = {"user": 's"1', "path": '/s"2', "args": ['s"3'], "env": ['S4="'], "src": '/s"5', "dest": '/s"6'}
    for name in set(GUARDED) - {f"io.machine1.{method}" for method in TRANSFERS}:
        known = Contract().methods[name]["parameters"]["properties"]
        secret = {key: value for key, value in values.items() if key in known}
        for which in ("m", "i", 's"7'):
            with pytest.raises(VarlinkError) as raised:
                authorize(decides, FakePolkit(PermissionDenied()), USER, name, {"name": which} | secret)
            if raised.value.refusal is not None:
                assert '"' not in raised.value.refusal.reason


def test_a_bus_is_opened_by_questions_alone() -> None:
    """Root's calls and reads work where there is none."""
    loop = Loop()
    bus = Bus(loop)
    polkit = Polkit(bus, bus)
    assert authorize(policy(), polkit, ROOT, TERMINATE, {"name": "m"}) == "kernel"
    assert authorize(policy(), polkit, USER, "io.machine1.ListMachines", {}) == "policy"
    assert bus._connection is None
    loop.close()
