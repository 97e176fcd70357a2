# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service as the system sees it: its units, its rights, its life and its journal."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from bridge import __version__
from tests.client import Client

from .conftest import GUEST, SOCKET
from .host import SUITES, Host
from .test_machines import eventually
from .varlink import call, error, has_varlinkctl, machines

REPOSITORY = Path(__file__).parents[2]
UNIT = "machine1-bridge.service"


def show(host: Host, *properties: str) -> dict[str, str]:
    lines = host.run(["systemctl", "show", f"--property={','.join(properties)}", UNIT]).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def journal(host: Host, *match: str) -> list[dict[str, str]]:
    output = host.run(["journalctl", "--output=json", "--no-pager", *match]).stdout
    return [json.loads(line) for line in output.splitlines()]


def test_the_interface_is_described(host: Host) -> None:
    def describe() -> tuple[dict[str, object], str]:
        with Client(SOCKET) as client:
            info = client.call("org.varlink.service.GetInfo")
            text = client.call("org.varlink.service.GetInterfaceDescription", {"interface": "io.machine1"})
            return info, text["description"]

    info, description = host.inside(describe)
    assert info["interfaces"] == ["org.varlink.service", "io.machine1", "io.systemd.service"]
    assert info["product"] == "machine1-bridge"
    contract = json.loads((REPOSITORY / "bridge/contract.json").read_text())
    assert info["version"] == f"{__version__} (io.machine1 {contract['version']})"
    assert description == (REPOSITORY / "io.machine1.varlink").read_text()


def test_varlinkctl_understands_it(host: Host) -> None:
    if not has_varlinkctl(host):
        assert host.run(["varlinkctl", "--version"], check=False).returncode != 0
        return
    text = (REPOSITORY / "io.machine1.varlink").read_text()
    assert host.run(["varlinkctl", "validate-idl", "/dev/stdin"], stdin=text).stderr == ""
    assert "io.machine1" in host.run(["varlinkctl", "list-interfaces", SOCKET]).stdout.split()
    assert re.search(r"^ *Version: \S+ \(io\.machine1 1\.\d+\)$", host.run(["varlinkctl", "info", SOCKET]).stdout, re.M)
    introspection = host.run(["varlinkctl", "introspect", SOCKET, "io.machine1"])
    assert "method OpenMachineShell" in introspection.stdout
    done = host.run(["varlinkctl", "call", SOCKET, "io.machine1.KillMachine", '{"name":"x","signal":0}'], check=False)
    assert done.returncode != 0
    assert '"parameter"' in done.stdout
    assert '"signal"' in done.stdout


def test_it_runs_as_its_own_user_and_says_that_it_is_ready(host: Host) -> None:
    call(host, "ListMachines")
    expected = {"User": "machine1-bridge", "Type": "notify", "SubState": "running"}
    assert show(host, *expected) == expected
    pid = host.bridge_pid()
    assert pid is not None
    status = (host.path / "proc" / str(pid) / "status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split()[0] == str(host.account("machine1-bridge").uid) != "0"
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert fields["Threads"] == "1"


def test_it_is_closed_as_far_as_it_goes(host: Host) -> None:
    output = host.run(["systemd-analyze", "security", "--no-pager", UNIT]).stdout
    level = float(output.split(f"Overall exposure level for {UNIT}: ")[1].split()[0])
    assert level <= 0.5


def test_the_socket_is_for_everybody_and_registered(host: Host) -> None:
    assert host.run(["stat", "--format=%a %U", SOCKET]).stdout.split() == ["666", "root"]
    assert host.run(["readlink", "-f", "/run/varlink/registry/io.machine1"]).stdout.strip() == SOCKET
    if SUITES[host.suite] >= 260:
        assert "io.machine1" in host.run(["varlinkctl", "list-registry"]).stdout


def test_the_bridges_user_may_do_what_it_offers_and_no_more(host: Host) -> None:
    """Past the bridge, as its user: what a bridge that was taken over could do."""
    manager = ["org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager"]
    for arguments in (
        ["OpenMachineLogin", "s", ".host"],
        ["OpenMachinePTY", "s", ".host"],
        ["OpenMachineShell", "sssasas", ".host", "", "", "0", "0"],
        ["OpenMachineRootDirectory", "s", ".host"],
        ["RegisterMachine", "sayssus", "x", "0", "x", "container", "1", "/"],
        ["CreateMachine", "sayssusa(sv)", "x", "0", "x", "container", "1", "/", "0"],
        ["GetMachineSSHInfo", "s", GUEST],
    ):
        done = host.run(["busctl", "call", *manager, *arguments], user="machine1-bridge", check=False)
        assert done.returncode != 0, arguments
        assert "denied" in done.stderr.lower() or "authentication" in done.stderr.lower(), (arguments, done.stderr)
    systemd = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]
    done = host.run(["busctl", "call", *systemd, "ListUnits"], user="machine1-bridge", check=False)
    assert done.returncode != 0
    listed = host.run(["busctl", "call", *manager, "ListMachines"], user="machine1-bridge").stdout
    assert GUEST in listed


def test_of_machineds_members_the_bridges_user_reaches_those_it_needs(host: Host) -> None:
    """All that machined has, from its own introspection, so that what a new version adds is closed as well."""
    path = "/org/freedesktop/machine1"
    machine = machines(host)[GUEST][2]
    reached = set()
    for place in (path, machine):
        listing = host.run(["busctl", "introspect", "org.freedesktop.machine1", place]).stdout
        interface = ""
        for line in listing.splitlines():
            name, kind, *_ = line.split()
            if kind == "interface":
                interface = name
            elif kind == "method":
                # Without arguments: the bus decides before machined looks at any.
                call_it = ["busctl", "call", "org.freedesktop.machine1", place, interface, name.removeprefix(".")]
                done = host.run(call_it, user="machine1-bridge", check=False)
                if "Access denied" not in done.stderr and "AccessDenied" not in done.stderr:
                    reached.add((interface, name.removeprefix(".")))
    # The file that tests/unit/test_install.py holds against what the service calls.
    rule = re.compile(r'send_destination="org.freedesktop.machine1" send_interface="([\w.]+)"\s+send_member="(\w+)"')
    needed = set(rule.findall((REPOSITORY / "contrib/dbus/machine1-bridge.conf").read_text()))
    if SUITES[host.suite] < 258:
        needed.remove(("org.freedesktop.machine1.Manager", "OpenMachinePTY"))  # machined says no itself
    assert reached == needed


def test_of_importds_members_the_bridges_user_reaches_those_it_needs(host: Host) -> None:
    """Its polkit rule cannot tell what they are about, so this is what keeps it to machines' images."""
    service, path, manager = "org.freedesktop.import1", "/org/freedesktop/import1", "org.freedesktop.import1.Manager"
    listing = host.run(["busctl", "introspect", service, path, manager]).stdout
    members = re.findall(r"^\.(\w+)\s+method", listing, re.MULTILINE)
    reached = set()
    for member in members:
        # Without arguments: the bus decides before importd looks at any.
        call_it = ["busctl", "call", service, path, manager, member]
        done = host.run(call_it, user="machine1-bridge", check=False)
        if "Access denied" not in done.stderr and "AccessDenied" not in done.stderr:
            reached.add(member)
    rule = re.compile(r'send_destination="org.freedesktop.import1" send_interface="[\w.]+"\s+send_member="(\w+)"')
    needed = set(rule.findall((REPOSITORY / "contrib/dbus/machine1-bridge.conf").read_text()))
    assert reached == needed & set(members)
    assert needed - set(members) <= ({"ListTransfersEx"} if SUITES[host.suite] < 256 else set())
    assert "ImportFileSystem" in set(members) - reached


def test_guarded_calls_are_in_the_journal_by_field(host: Host) -> None:
    host.image("audited")
    call(host, "RemoveImage", {"name": "audited"})
    error(host, "RemoveImage", {"name": "audited"}, user="nobody")

    def entries() -> list[dict[str, str]]:
        return journal(host, "MACHINE1_METHOD=io.machine1.RemoveImage", "MACHINE1_IMAGE=audited")

    assert eventually(lambda: len(entries()) == 2)
    done, refused = entries()
    assert (done["MACHINE1_OUTCOME"], done["MACHINE1_PEER_UID"], done["PRIORITY"]) == ("done", "0", "6")
    assert int(done["MACHINE1_DURATION_USEC"]) > 0
    assert int(done["MACHINE1_PEER_PID"]) > 0
    assert done["_SYSTEMD_UNIT"] == UNIT
    nobody = str(host.account("nobody").uid)
    assert refused["MACHINE1_OUTCOME"] == "io.systemd.InteractiveAuthenticationRequired"
    assert (refused["MACHINE1_PEER_UID"], refused["PRIORITY"]) == (nobody, "5")


def test_no_secret_is_in_the_journal(host: Host) -> None:
    def open_shell() -> None:
        with Client(SOCKET) as client:
            client.call("OpenMachineShell", {"name": GUEST, "path": "/bin/true", "env": ["TOKEN=hunter2"]})
            client.error("OpenMachineShell", {"name": GUEST, "env": ["TOKEN=hunter2", "hunter2"]})

    host.inside(open_shell)
    host.run(["journalctl", "--sync"])
    entries = journal(host, f"_SYSTEMD_UNIT={UNIT}", "MACHINE1_METHOD=io.machine1.OpenMachineShell")
    assert entries
    assert "hunter2" not in json.dumps(entries)


def test_machined_may_be_killed_and_restarted(host: Host) -> None:
    assert call(host, "GetMachine", {"name": GUEST})
    host.run(["systemctl", "kill", "--signal=KILL", "systemd-machined.service"])
    assert eventually(lambda: _works(host))
    host.run(["systemctl", "restart", "systemd-machined.service"])
    assert call(host, "GetMachine", {"name": GUEST})["machine"]["name"] == GUEST
    host.run(["systemctl", "stop", "systemd-machined.service"])
    assert call(host, "GetMachine", {"name": GUEST})["machine"]["name"] == GUEST, "the bus starts machined again"


def _works(host: Host) -> bool:
    try:
        return bool(call(host, "GetMachine", {"name": GUEST})["machine"]["name"] == GUEST)
    except Exception:
        return False


def test_no_answer_is_stale(host: Host) -> None:
    """A machine is there as soon as machined says so, and gone as soon as machined says so."""
    for number in range(5):
        name = f"brief{number}"
        host.register_fake(name)
        assert call(host, "GetMachine", {"name": name})["machine"]["name"] == name
        call(host, "TerminateMachine", {"name": name})
        assert eventually(lambda name=name: name not in machines(host))  # type: ignore[misc]
        assert error(host, "GetMachine", {"name": name}) == ("io.machine1.NoSuchMachine", {"name": name})


def test_what_machined_said_is_remembered_while_it_is_true(host: Host) -> None:
    """As long as machined lives and no machine came or went, nobody is asked: not even one who cannot answer now."""
    machined = int(host.run(["systemctl", "show", "--property=MainPID", "--value", "systemd-machined"]).stdout)

    def conversation() -> None:
        with Client(SOCKET) as client:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                client.call("GetMachine", {"name": GUEST})
                time.sleep(0.05)
                os.kill(machined, signal.SIGSTOP)
                try:
                    client.socket.settimeout(0.5)
                    assert client.call("GetMachine", {"name": GUEST})["machine"]["name"] == GUEST
                    assert client.call("ListMachines")["machines"]
                    return
                except TimeoutError:
                    # Something changed a moment ago.
                    client.socket.settimeout(15)
                finally:
                    os.kill(machined, signal.SIGCONT)
                client.receive()
            raise AssertionError("nothing is remembered")

    host.inside(conversation)


def test_stopping_finishes_the_call_under_way(fresh_host: Host) -> None:
    """SIGTERM in the middle of a copy: the client still gets its reply, then the service is gone, and comes again."""
    fresh_host.guest(GUEST)
    fresh_host.run(["sh", "-c", "mkdir /run/tree && head -c 300M /dev/zero >/run/tree/big"])

    def copy_while_stopping() -> dict[str, object]:
        with Client(SOCKET, timeout=60) as client:
            client.call("ListMachines")
            client.send("CopyToMachine", {"name": GUEST, "src": "/run/tree", "dest": "/root/tree"})
            time.sleep(0.05)
            _systemctl("stop", "--no-block", UNIT)
            return client.reply()

    assert fresh_host.inside(copy_while_stopping) == {}
    assert eventually(lambda: show(fresh_host, "ActiveState")["ActiveState"] == "inactive")
    assert show(fresh_host, "Result")["Result"] == "success"
    assert call(fresh_host, "GetMachine", {"name": GUEST})["machine"]["name"] == GUEST


def _systemctl(*arguments: str) -> None:
    """Inside a host, where no module can be imported any more."""
    import os

    pid = os.posix_spawn("/usr/bin/systemctl", ["systemctl", *arguments], {})
    assert os.waitpid(pid, 0)[1] == 0


def test_idle_exit_and_return(fresh_host: Host) -> None:
    drop_in = fresh_host.path / "run/systemd/system/machine1-bridge.service.d"
    drop_in.mkdir(parents=True)
    command = "/usr/lib/machine1-bridge/machine1-bridge --idle-timeout=1"
    (drop_in / "idle.conf").write_text(f"[Service]\nExecStart=\nExecStart={command}\n")
    fresh_host.run(["systemctl", "daemon-reload"])
    assert "machines" in call(fresh_host, "ListMachines")
    assert fresh_host.bridge_pid() is not None
    assert eventually(lambda: fresh_host.bridge_pid() is None)
    assert show(fresh_host, "Result", "ActiveState") == {"Result": "success", "ActiveState": "inactive"}
    assert "machines" in call(fresh_host, "ListMachines")


def test_a_host_without_polkit_is_refused_what_polkit_would_have_to_allow(fresh_host: Host) -> None:
    fresh_host.run(["systemctl", "mask", "--now", "polkit.service"])
    fresh_host.image("kept")
    assert error(fresh_host, "RemoveImage", {"name": "kept"})[0] in (
        "org.varlink.service.PermissionDenied",
        "io.machine1.Failed",
    )
    assert "kept" in [image["name"] for image in call(fresh_host, "ListImages")["images"]]


def test_the_bus_may_be_restarted(fresh_host: Host) -> None:
    call(fresh_host, "ListMachines")
    before = fresh_host.bridge_pid()
    fresh_host.run(["systemctl", "restart", "dbus.service"])
    fresh_host.run(["systemctl", "restart", "systemd-machined.service"])
    assert eventually(lambda: _lists(fresh_host))
    assert fresh_host.bridge_pid() == before


def _lists(host: Host) -> bool:
    try:
        return "machines" in call(host, "ListMachines")
    except Exception:
        return False


@pytest.mark.parametrize("arguments", [["--listen", "/nope/socket"], ["--idle-timeout", "-1"], []])
def test_a_start_that_cannot_work_says_why(host: Host, arguments: list[str]) -> None:
    done = host.run(["/usr/bin/machine1-bridge", *arguments], check=False)
    assert done.returncode in (1, 2)
    assert "machine1-bridge: " in done.stderr
    assert "Traceback" not in done.stderr
