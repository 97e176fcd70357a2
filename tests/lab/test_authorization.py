# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what, on a real host with a real polkit: every method, every preset, every kind of client."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.client import CallError, Client

from .conftest import GUEST, SOCKET
from .host import Host
from .test_machines import eventually
from .test_service import journal
from .varlink import call, error

REPOSITORY = Path(__file__).parents[2]

# no: the policy refuses the method to everybody. yes: it goes on to machined, and nobody is asked. ask: see SUBJECTS.
TABLE = """
    method              none   read-only  manage  all
    ListMachines        no     yes        yes     yes
    GetMachine          no     yes        yes     yes
    ListImages          no     yes        yes     yes
    WatchMachines            no     yes        yes     yes
    WatchImages              no     yes        yes     yes
    WaitMachine              no     yes        yes     yes
    Check               yes    yes        yes     yes
    GetMachineByPID          no     yes        yes     yes
    MapFromMachineUser       no     yes        yes     yes
    MapFromMachineGroup      no     yes        yes     yes
    MapToMachineUser         no     yes        yes     yes
    MapToMachineGroup        no     yes        yes     yes
    PoweroffMachine          no     no         ask     ask
    RebootMachine            no     no         ask     ask
    StartMachine             no     no         ask     ask
    UnregisterMachine        no     no         ask     ask
    OpenMachineLogin         no     no         ask     ask
    OpenMachinePTY           no     no         ask     ask
    OpenMachineRootDirectory no     no         no      ask
    BindMountMachine         no     no         no      ask
    TerminateMachine    no     no         ask     ask
    KillMachine         no     no         ask     ask
    OpenMachineShell    no     no         ask     ask
    CopyFromMachine     no     no         no      ask
    CopyToMachine       no     no         no      ask
    RemoveImage         no     no         ask     ask
    CloneImage          no     no         ask     ask
    RenameImage         no     no         ask     ask
    GetImage            no     yes        yes     yes
    MarkImageReadOnly   no     no         ask     ask
    SetImageLimit       no     no         ask     ask
    GetPool             no     yes        yes     yes
    SetPoolLimit        no     no         no      ask
    CleanPool           no     no         no      ask
    ImportTar           no     no         no      no
    ImportRaw           no     no         no      no
    ExportTar           no     no         no      no
    ExportRaw           no     no         no      no
    PullTar             no     no         no      no
    PullRaw             no     no         no      no
    ListTransfers       no     yes        yes     yes
    CancelTransfer      no     no         no      ask
"""
PASSES, DENIED, PASSWORD = (
    "passes",
    "org.varlink.service.PermissionDenied",
    "io.systemd.InteractiveAuthenticationRequired",
)
# What becomes of "ask": by user, with polkit there and without it. nobody is anybody; a rule lets www-data do all; the
# bridge's own user owns the actions, and its polkit rule says no to all but what it does at machined.
SUBJECTS = {
    "root": (PASSES, PASSES),
    "nobody": (PASSWORD, DENIED),
    "www-data": (PASSES, DENIED),
    "machine1-bridge": (DENIED, DENIED),
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "GetMachineByPID": {"pid": 2**31 - 1},
    "MapFromMachineUser": {"name": "nope", "uid": 7},
    "MapFromMachineGroup": {"name": "nope", "gid": 7},
    "MapToMachineUser": {"uid": 70000},
    "MapToMachineGroup": {"gid": 70000},
    "BindMountMachine": {"name": "nope", "src": "/etc"},
    "ListMachines": {},
    "ListImages": {},
    "MarkImageReadOnly": {"name": "nope", "read_only": True},
    "GetPool": {},
    "SetPoolLimit": {},
    "CleanPool": {"mode": "hidden"},
    "WatchMachines": {},
    "WatchImages": {},
    "WaitMachine": {"name": "nope", "state": "gone"},
    # These policies accept no file descriptors and name no URLs; for others see test_transfers.py.
    **{name: {"name": "nope", "image_fd": 0} for name in ("ImportTar", "ImportRaw", "ExportTar", "ExportRaw")},
    **{name: {"name": "nope", "url": "http://nowhere/x"} for name in ("PullTar", "PullRaw")},
    "ListTransfers": {},
    "CancelTransfer": {"transfer": 2**32 - 1},
    "Check": {"method": "ListMachines"},
    "CopyFromMachine": {"name": "nope", "src": "/etc/passwd", "dest": "/run/nothing"},
    "CopyToMachine": {"name": "nope", "src": "/etc/passwd", "dest": "/run/nothing"},
    "CloneImage": {"name": "nope", "dest": "other"},
    "RenameImage": {"name": "nope", "dest": "other"},
}
# Passed means that machined was asked, about what does not exist; of OpenMachinePTY before 258, what it does not do; or
# that a watch only lacks the flag `more`.
NO_SUCH_MACHINE = "io.machine1.NoSuchMachine"
MISSING = {f"io.machine1.NoSuch{what}" for what in ("Machine", "Image", "UserMapping", "GroupMapping")}
MISSING |= {"io.machine1.NoMachineForPID", "io.machine1.NotSupported", "org.varlink.service.ExpectedMore"}
MISSING |= {"io.machine1.NoSuchTransfer"}
RULE = """
polkit.addRule(function(action, subject) {
    if (action.id.indexOf("io.machine1.") == 0 && subject.user == "www-data")
        return polkit.Result.YES;
    return polkit.Result.NOT_HANDLED;
});
"""


def table() -> dict[tuple[str, str], str]:
    header, *rows = (line.split() for line in TABLE.strip().splitlines())
    return {(row[0], preset): cell for row in rows for preset, cell in zip(header[1:], row[1:], strict=True)}


def add_rule(host: Host, text: str) -> None:
    file = host.path / "etc/polkit-1/rules.d/20-test.rules"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o644)
    file.parent.chmod(0o755)
    host.run(["systemctl", "restart", "polkit.service"])


def add_socket(host: Host, name: str, policy: str, mode: str = "0666") -> str:
    """A socket of the template with this policy; its path. With another mode than 0600 by a drop-in."""
    directory = host.path / "etc/machine1-bridge"
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.toml").write_text(policy)
    (directory / f"{name}.toml").chmod(0o644)
    drop_in = host.path / f"run/systemd/system/machine1-bridge@{name}.socket.d"
    drop_in.mkdir(parents=True)
    (drop_in / "mode.conf").write_text(f"[Socket]\nSocketMode={mode}\n")
    host.run(["systemctl", "daemon-reload"])
    host.run(["systemctl", "start", f"machine1-bridge@{name}.socket"])
    return f"/run/machine1/sandbox/{name}"


def outcomes(path: str, methods: list[str]) -> dict[str, str]:
    """Inside a host: what becomes of each method on this socket."""
    found = {}
    with Client(path) as client:
        for method in methods:
            client.send(method, ARGUMENTS.get(method, {"name": "nope"}), more=method == "CleanPool")
            try:
                client.reply()
                found[method] = PASSES
            except CallError as error:
                found[method] = PASSES if error.name in MISSING else error.name
    return found


def test_every_method_of_the_interface_has_a_row() -> None:
    text = (REPOSITORY / "io.machine1.varlink").read_text()
    assert {method for method, _ in table()} == set(re.findall(r"^method (\w+)\(", text, re.MULTILINE))


def test_every_method_every_preset_every_client(fresh_host: Host) -> None:
    host, expected = fresh_host, table()
    methods = sorted({method for method, _ in expected})
    add_rule(host, RULE)
    visible = 'machines = ["*"]\nimages = ["*"]\nusers = ["*"]\nprograms = ["**"]\nenvironment = ["*"]\n'
    sockets = {"all": SOCKET, "none": add_socket(host, "none", visible)}
    for preset in ("read-only", "manage"):
        sockets[preset] = add_socket(host, preset, f'preset = "{preset}"\n{visible}')
    for without_polkit in (False, True):
        if without_polkit:
            host.run(["systemctl", "mask", "--now", "polkit.service"])
        for user, asked in SUBJECTS.items():
            cells = {"no": DENIED, "yes": PASSES, "ask": asked[without_polkit]}
            account = host.account(user)
            for preset, path in sockets.items():
                found = host.inside(outcomes, path, methods, uid=account.uid, gid=account.gid)
                wanted = {method: cells[expected[method, preset]] for method in methods}
                if without_polkit and user == "root":
                    # machined asks polkit about the bridge, so what changes something is refused then.
                    wanted = {m: found[m] if expected[m, preset] == "ask" else cell for m, cell in wanted.items()}
                assert found == wanted, (user, preset, without_polkit)


def test_polkit_is_told_what_would_be_done(fresh_host: Host) -> None:
    """A rule that says yes to exactly these details and to nothing else."""
    cases: list[tuple[str, dict[str, Any], str, dict[str, str]]] = [
        ("TerminateMachine", {"name": "nope"}, "manage-machines", {"verb": "terminate", "machine": "nope"}),
        (
            "KillMachine",
            {"name": "nope", "who": "leader", "signal": 9},
            "manage-machines",
            {"verb": "kill", "machine": "nope", "who": "leader", "signal": "9"},
        ),
        (
            "OpenMachineShell",
            {"name": "nope", "path": "/bin/sh", "args": ["sh", "-c", "a b"], "env": ["A=1"]},
            "open-shell",
            {
                "verb": "open-shell",
                "machine": "nope",
                "user": "root",
                "program": "/bin/sh",
                "argv": '["sh", "-c", "a b"]',
                "environment": '["A=1"]',
            },
        ),
        (
            "OpenMachineShell",
            {"name": ".host"},
            "open-host-shell",
            {"machine": ".host", "user": "root", "program": "", "argv": "[]", "environment": "[]"},
        ),
        (
            "CopyFromMachine",
            {"name": "nope", "src": "/a", "dest": "//b/./c/"},
            "copy",
            {"machine": "nope", "src": "/a", "dest": "/b/c", "direction": "out", "verb": "copy-from"},
        ),
        (
            "CopyToMachine",
            {"name": "nope", "src": "/a"},
            "copy",
            {"machine": "nope", "src": "/a", "dest": "/a", "direction": "in", "verb": "copy-to"},
        ),
        ("RemoveImage", {"name": "nope"}, "manage-images", {"verb": "remove", "image": "nope"}),
        (
            "CloneImage",
            {"name": "nope", "dest": "j", "read_only": True},
            "manage-images",
            {"verb": "clone", "image": "nope", "new_name": "j", "read_only": "true"},
        ),
        (
            "RenameImage",
            {"name": "nope", "dest": "j"},
            "manage-images",
            {"verb": "rename", "image": "nope", "new_name": "j"},
        ),
    ]
    accepted = [{"id": f"io.machine1.{action}", "details": details} for _, _, action, details in cases]
    add_rule(
        fresh_host,
        f"var accepted = {json.dumps(accepted)};"
        """
        polkit.addRule(function(action, subject) {
            if (subject.user != "nobody" || action.id.indexOf("io.machine1.") != 0)
                return polkit.Result.NOT_HANDLED;
            for (var i in accepted) {
                var same = accepted[i].id == action.id;
                for (var key in accepted[i].details)
                    same = same && action.lookup(key) === accepted[i].details[key];
                if (same)
                    return polkit.Result.YES;
            }
            return polkit.Result.NO;
        });
        """,
    )
    denied: tuple[str, dict[str, str]] = (DENIED, {})
    for method, parameters, action, _ in cases:
        passed = error(fresh_host, method, parameters, user="nobody")
        if action == "open-host-shell":
            # polkit let the client pass; the bridge itself has no right to it. So the journal has to tell.
            assert passed == denied
            entries = journal(fresh_host, "MACHINE1_MACHINE=.host", "MACHINE1_DECIDED_BY=polkit")
            assert entries[-1]["MACHINE1_DECISION"] == "allowed"
        else:
            assert passed[0] in MISSING, (method, passed)
        other = parameters | {"name": "another"}
        assert error(fresh_host, method, other, user="nobody") == denied, method
    # One argument more or one variable: not what the rule says.
    shell = {"name": "nope", "path": "/bin/sh", "args": ["sh", "-c", "a", "b"], "env": ["A=1"]}
    assert error(fresh_host, "OpenMachineShell", shell, user="nobody") == denied
    shell = {"name": "nope", "path": "/bin/sh", "args": ["sh", "-c", "a b"], "env": ["A=1", "LD_PRELOAD=/x"]}
    assert error(fresh_host, "OpenMachineShell", shell, user="nobody") == denied


def test_the_example_rule(fresh_host: Host) -> None:
    add_rule(fresh_host, (REPOSITORY / "contrib/polkit/example.rules").read_text())
    fresh_host.run(["groupadd", "web"])
    fresh_host.run(["useradd", "--groups", "web", "developer"])

    def shell(client: str, **parameters: Any) -> str:  # noqa: ANN401
        return error(fresh_host, "OpenMachineShell", {"path": "/bin/sh", **parameters}, user=client)[0]

    missing = NO_SUCH_MACHINE
    assert shell("developer", name="web-1", user="www-data") == missing
    assert shell("developer", name="web-1") == PASSWORD
    assert shell("developer", name="web-x", user="www-data") == PASSWORD
    assert shell("developer", name="web-1", user="www-data", env=["LD_PRELOAD=/x"]) == PASSWORD
    assert shell("nobody", name="web-1", user="www-data") == PASSWORD
    assert shell("backup", name="m", path="/usr/bin/make-backup") == missing
    assert shell("backup", name="m", path="/usr/bin/make-backup", args=["make-backup", "x"]) == PASSWORD


def test_interactive_authentication_without_an_agent_is_denied(host: Host) -> None:
    asked = {"name": "nope", "allowInteractiveAuthentication": True}
    assert error(host, "TerminateMachine", {"name": "nope"}, user="nobody") == (PASSWORD, {})
    assert error(host, "TerminateMachine", asked, user="nobody") == (DENIED, {})


def test_check_tells_without_doing(host: Host) -> None:
    def checks() -> list[dict[str, Any]]:
        with Client(SOCKET) as client:
            return [
                client.call("Check", {"method": "TerminateMachine", "parameters": {"name": GUEST}}),
                client.call("Check", {"method": "io.machine1.ListMachines"}),
            ]

    assert host.inside(checks) == [{"allowed": True, "reason": ""}] * 2
    nobody = host.account("nobody")
    terminate, listing = host.inside(checks, uid=nobody.uid, gid=nobody.gid)
    assert (terminate["allowed"], listing["allowed"]) == (False, True)
    assert "password" in terminate["reason"]
    assert call(host, "GetMachine", {"name": GUEST})["machine"]["name"] == GUEST


def test_a_host_without_polkit_runs_it_as_root(fresh_host: Host) -> None:
    """By the drop-in that comes with it. Everybody but root stays denied."""
    fresh_host.run(["systemctl", "mask", "--now", "polkit.service"])
    drop_in = fresh_host.path / "etc/systemd/system/machine1-bridge.service.d"
    drop_in.mkdir(parents=True)
    (drop_in / "no-polkit.conf").write_text((REPOSITORY / "contrib/systemd/no-polkit.conf").read_text())
    fresh_host.run(["systemctl", "daemon-reload"])
    fresh_host.image("kept")
    assert error(fresh_host, "RemoveImage", {"name": "kept"}, user="nobody") == (DENIED, {})
    assert call(fresh_host, "RemoveImage", {"name": "kept"}) == {}
    assert call(fresh_host, "ListImages", user="nobody") == {"images": []}


SANDBOX = """
methods = ["ListMachines", "GetMachine", "OpenMachineShell"]
machines = ["guest1"]
users = ["root"]
programs = [["/bin/cat", "/etc/hostname"]]
environment = ["TERM"]
polkit = "off"
"""
# Runs inside bubblewrap, with nothing but Python's standard library and the socket.
IN_SANDBOX = '''
import array, json, os, socket, sys
def call(called, **parameters):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("/socket")
        client.sendall(json.dumps({"method": called, "parameters": parameters}).encode() + b"\\0")
        message, fds = b"", []
        while not message.endswith(b"\\0"):
            data, received, _, _ = socket.recv_fds(client, 65536, 8)
            assert data
            message += data
            fds += received
    reply = json.loads(message[:-1])
    return reply.get("error"), reply.get("parameters") or {}, fds
def outcome(called, **parameters):
    error, reply, fds = call("io.machine1." + called, **parameters)
    return error or reply
cat = {"path": "/bin/cat", "args": ["cat", "/etc/hostname"]}
error, reply, (pty,) = call("io.machine1.OpenMachineShell", name="guest1", **cat)
output = b""
while True:
    try:
        output += os.read(pty, 100)
    except OSError:
        break
copy = {"src": "/etc/passwd", "dest": "/etc/passwd"}
shell = {"name": "guest1", "path": "/bin/cat"}
print(json.dumps({
    "files": sorted(os.listdir("/")) + sorted(os.listdir("/run")),
    "shell": output.decode().strip(),
    "list": outcome("ListMachines", all=True),
    "get": outcome("GetMachine", name="guest1")["machine"]["name"],
    "hidden": outcome("GetMachine", name="guest2"),
    "missing": outcome("GetMachine", name="nope"),
    "host": outcome("GetMachine", name=".host"),
    "other shells": [
        outcome("OpenMachineShell", name="guest1"),
        outcome("OpenMachineShell", **shell, args=["cat", "/etc/shadow"]),
        outcome("OpenMachineShell", **shell, args=["sh", "/etc/hostname"]),
        outcome("OpenMachineShell", **shell, args=["cat", "/etc/hostname"], user="nobody"),
        outcome("OpenMachineShell", **shell, args=["cat", "/etc/hostname"], env=["LD_PRELOAD=/x"]),
    ],
    "hidden shells": [outcome("OpenMachineShell", name=name) for name in ("guest2", "nope", ".host")],
    "other methods": {method: outcome(method, name="guest1", **more) for method, more in {
        "TerminateMachine": {}, "KillMachine": {}, "CopyFromMachine": copy, "CopyToMachine": copy, "RemoveImage": {},
        "CloneImage": {"dest": "x"}, "RenameImage": {"dest": "x"}}.items()} | {"ListImages": outcome("ListImages")},
    "check": outcome("Check", method="TerminateMachine", parameters={"name": "guest1"})["allowed"],
}))
'''


def test_a_sandbox_with_one_socket_and_nothing_else(host: Host) -> None:
    """No network, no /run, no /proc of the host, no D-Bus: it sees one machine, runs one program, and nothing else."""
    path = add_socket(host, "box", SANDBOX, mode="0600")
    host.guest("guest2")
    try:
        sandbox = ["bwrap", "--unshare-all", "--die-with-parent", "--clearenv", "--ro-bind", "/usr", "/usr"]
        sandbox += ["--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--symlink", "usr/bin", "/bin"]
        sandbox += ["--proc", "/proc", "--dev", "/dev", "--dir", "/run", "--bind", path, "/socket"]
        done = host.run([*sandbox, "/usr/bin/python3", "-I", "-c", IN_SANDBOX])
    finally:
        host.end_guest("guest2")
    found = json.loads(done.stdout)
    assert "run" in found["files"]
    assert not {"dbus", "systemd", "machine1", "etc", "var"} & set(found["files"])
    assert found["shell"] == GUEST
    assert [machine["name"] for machine in found["list"]["machines"]] == [GUEST]
    assert found["get"] == GUEST
    assert found["hidden"] == found["missing"] == found["host"] == NO_SUCH_MACHINE
    assert found["other shells"] == [DENIED] * 5
    assert found["hidden shells"] == [NO_SUCH_MACHINE] * 3
    assert found["other methods"] == dict.fromkeys(found["other methods"], DENIED)
    assert found["check"] is False
    refused = journal(host, "MACHINE1_SOCKET=box", "MACHINE1_DECISION=refused")
    assert {entry["MACHINE1_DECIDED_BY"] for entry in refused} == {"policy"}
    allowed = journal(host, "MACHINE1_SOCKET=box", "MACHINE1_DECISION=allowed")
    assert [entry["MACHINE1_METHOD"] for entry in allowed] == ["io.machine1.OpenMachineShell"]
    status = ["systemctl", "show", "--property=ActiveState", "--value"]
    assert host.run([*status, "machine1-bridge@box.service"]).stdout.strip() == "active"


def test_a_sandboxs_socket_is_closed_to_others(host: Host) -> None:
    path = add_socket(host, "closed", SANDBOX, mode="0600")

    def connect() -> None:
        Client(path).close()

    nobody = host.account("nobody")
    with pytest.raises(PermissionError):
        host.inside(connect, uid=nobody.uid, gid=nobody.gid)


@pytest.mark.parametrize(
    ("policy", "line", "what"),
    [
        ('preset = "manage"\ncolour = "red"\n', 2, "colour"),
        ('machines = ["web-["]\n', 1, "web-["),
        ("machines = [\n", 1, "TOML"),
        ("host-paths = true\n", 1, "host-paths"),
    ],
)
def test_a_bad_policy_refuses_to_start_and_says_where(host: Host, policy: str, line: int, what: str) -> None:
    name = f"bad{abs(hash(policy)) % 10**6}"
    path = add_socket(host, name, policy)

    def hung_up() -> bool:
        with Client(path) as client:
            client.send("ListMachines")
            return client.is_closed()

    host.run(["systemctl", "start", f"machine1-bridge@{name}.service"], check=False)
    state = ["systemctl", "show", "--property=Result", "--value", f"machine1-bridge@{name}.service"]
    assert eventually(lambda: host.run(state).stdout.strip() == "exit-code")
    messages = [entry["MESSAGE"] for entry in journal(host, f"_SYSTEMD_UNIT=machine1-bridge@{name}.service")]
    assert any(f"{name}.toml:{line}" in message and what in message for message in messages), messages
    host.run(["systemctl", "stop", f"machine1-bridge@{name}.socket"])


def test_a_policy_that_others_may_write_refuses_to_start(host: Host) -> None:
    add_socket(host, "writable", SANDBOX)
    (host.path / "etc/machine1-bridge/writable.toml").chmod(0o666)
    done = host.run(["systemctl", "start", "machine1-bridge@writable.service"], check=False)
    assert done.returncode != 0
    messages = [entry["MESSAGE"] for entry in journal(host, "_SYSTEMD_UNIT=machine1-bridge@writable.service")]
    assert any("can be written by others" in message for message in messages), messages
    host.run(["systemctl", "stop", "machine1-bridge@writable.socket"])


def test_an_entry_says_who_and_by_whose_decision(host: Host) -> None:
    """From the journal alone: user, process, unit, socket, policy, method, machine, decision, and how long it took."""
    terminate = {"method": "io.machine1.TerminateMachine", "parameters": {"name": "audit-me"}}
    message = json.dumps(terminate).encode() + b"\0"
    connect = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({SOCKET!r})"
    client = f"{connect}; s.sendall({message!r}); s.recv(1)"
    run = ["systemd-run", "--quiet", "--wait", "--collect", "--unit=somebody", "--uid=nobody"]
    host.run([*run, "python3", "-c", client])
    (entry,) = journal(host, "MACHINE1_MACHINE=audit-me")
    assert entry["MACHINE1_PEER_UID"] == str(host.account("nobody").uid)
    assert int(entry["MACHINE1_PEER_PID"]) > 0
    assert entry["MACHINE1_PEER_UNIT"] == "somebody.service"
    assert (entry["MACHINE1_SOCKET"], entry["MACHINE1_POLICY"]) == ("varlink", "default")
    assert (entry["MACHINE1_DECISION"], entry["MACHINE1_DECIDED_BY"]) == ("refused", "polkit")
    assert entry["MACHINE1_OUTCOME"] == PASSWORD
    assert int(entry["MACHINE1_DURATION_USEC"]) > 0


def test_the_template_is_as_closed_as_the_service(host: Host) -> None:
    add_socket(host, "measured", SANDBOX)
    unit = "machine1-bridge@measured.service"
    output = host.run(["systemd-analyze", "security", "--no-pager", unit]).stdout
    level = float(output.split(f"Overall exposure level for {unit}: ")[1].split()[0])
    assert level <= 0.5
