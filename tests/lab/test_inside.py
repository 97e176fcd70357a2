# SPDX-License-Identifier: LGPL-2.1-or-later
"""What reaches into a machine, on real hosts: terminals, its root directory, mounts, users; and its details."""

from __future__ import annotations

import fcntl
import os
import select
import time
from typing import Any

from tests.client import Client

from .conftest import GUEST, SOCKET
from .host import SUITES, Host
from .test_machines import eventually
from .varlink import busctl, call, error, machines

# From which version on machined lets others than root open a terminal on which nothing runs.
OPEN_PTY = 258


def opened(method: str) -> tuple[dict[str, Any], int]:
    """The reply and its one descriptor, which the kernel closes at the next exec. For use inside a host."""
    with Client(SOCKET) as client:
        reply = client.call(method, {"name": GUEST})
        assert len(client.fds) == 1
        return reply, client.take_fd()


def _login() -> str:
    """What comes on the terminal until the prompt is complete."""
    reply, fd = opened("OpenMachineLogin")
    assert reply.keys() == {"pty_fd", "pty_path"}
    output, end = "", time.monotonic() + 20
    while "login: " not in output:
        assert select.select([fd], [], [], max(0.0, end - time.monotonic()))[0], output
        try:
            output += os.read(fd, 4096).decode()
        except OSError:
            time.sleep(0.05)  # getty(8) hangs the terminal up (vhangup(2)) before it opens it again
    os.close(fd)
    return output


def test_a_login_asks_who_it_is(host: Host) -> None:
    assert f"{GUEST} login: " in host.inside(_login)


def _pty() -> bool:
    reply, fd = opened("OpenMachinePTY")
    try:
        return os.isatty(fd) and reply["pty_path"].startswith("/dev/pts/")
    finally:
        os.close(fd)


def test_a_terminal_comes_without_a_program(host: Host) -> None:
    if SUITES[host.suite] >= OPEN_PTY:
        assert host.inside(_pty)
    else:
        name, parameters = error(host, "OpenMachinePTY", {"name": GUEST})
        assert (name, parameters) == ("io.machine1.NotSupported", {"reason": "systemd does this from version 258 on"})


def _root_directory() -> tuple[str, bool, bool]:
    """A file of the machine's, whether the way up ends there, and whether a descriptor says that it is for reading."""
    reply, fd = opened("OpenMachineRootDirectory")
    assert reply == {"directory_fd": 0}
    with open("etc/hostname", opener=lambda path, flags: os.open(path, flags, dir_fd=fd)) as file:
        hostname = file.read().strip()
    up = os.stat("..", dir_fd=fd)
    here = os.fstat(fd)
    same = (up.st_dev, up.st_ino) == (here.st_dev, here.st_ino)
    reading = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    os.close(fd)
    return hostname, same, reading


def test_the_root_directory_is_the_machines(host: Host) -> None:
    assert host.inside(_root_directory) == (GUEST, True, True)


def test_nobody_gets_into_the_host(host: Host) -> None:
    """Not even root, by the bridge's own check and, were it taken over, by the rule for its user."""
    for method in ("OpenMachineRootDirectory", "OpenMachineLogin", "OpenMachinePTY"):
        assert error(host, method, {"name": ".host"}) == ("org.varlink.service.PermissionDenied", {})
    for member in ("OpenMachineRootDirectory", "OpenMachineLogin", "OpenMachinePTY"):
        machine1 = ["org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager"]
        done = host.run(["busctl", "call", *machine1, member, "s", ".host"], user="machine1-bridge", check=False)
        assert done.returncode != 0, member
        assert "denied" in done.stderr or "uthenti" in done.stderr, done.stderr


def test_a_start_is_answered_when_the_machine_is_there_or_will_not_be(fresh_host: Host) -> None:
    host = fresh_host
    host.guest("other")
    host.startable("other")
    assert eventually(lambda: "other" not in machines(host))
    call(host, "StartMachine", {"name": "other"})
    assert "other" in machines(host)
    call(host, "StartMachine", {"name": "other"})  # which runs already
    host.run(["systemctl", "kill", "--signal=KILL", "systemd-nspawn@other.service"])
    host.image("broken")
    script = "mkdir $0 && printf '[Service]\\nExecStartPre=false\\n' >$0/broken.conf && systemctl daemon-reload"
    host.run(["sh", "-c", script, "/run/systemd/system/systemd-nspawn@broken.service.d"])
    assert error(host, "StartMachine", {"name": "broken"}) == (
        "io.machine1.StartFailed",
        {"name": "broken", "result": "failed"},
    )
    host.run(["systemctl", "mask", "--runtime", "systemd-nspawn@broken.service"])
    name, parameters = error(host, "StartMachine", {"name": "broken"})
    assert (name, parameters["dbus_error"]) == ("io.machine1.Failed", "org.freedesktop.systemd1.UnitMasked")


def test_no_unit_is_started_but_a_containers(host: Host) -> None:
    """By the bridge's user itself."""
    systemd1 = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]
    for unit in ("poweroff.target", "dbus.service", "x-systemd-nspawn@x.service", "systemd-nspawn@x.socket"):
        start = ["busctl", "call", *systemd1, "StartUnit", "ss", unit, "fail"]
        done = host.run(start, user="machine1-bridge", check=False)
        assert done.returncode != 0, unit
        assert "denied" in done.stderr or "uthenti" in done.stderr, done.stderr


def test_a_file_is_replaced_if_that_is_asked_for(host: Host) -> None:
    host.run(["sh", "-c", "echo one >/root/one && echo two >/root/two"])
    there = {"name": GUEST, "dest": "/tmp/copied"}
    call(host, "CopyToMachine", there | {"src": "/root/one"})
    name, parameters = error(host, "CopyToMachine", there | {"src": "/root/two"})
    assert (name, parameters["dbus_error"]) == ("io.machine1.Failed", "org.freedesktop.DBus.Error.FileExists")
    assert host.run_in_guest(GUEST, ["cat", "/tmp/copied"]).stdout == "one\n"
    call(host, "CopyToMachine", there | {"src": "/root/two", "replace": True})
    assert host.run_in_guest(GUEST, ["cat", "/tmp/copied"]).stdout == "two\n"
    back = {"name": GUEST, "src": "/tmp/copied", "dest": "/root/one"}
    assert error(host, "CopyFromMachine", back)[0] == "io.machine1.Failed"
    call(host, "CopyFromMachine", back | {"replace": True})
    assert host.run(["cat", "/root/one"]).stdout == "two\n"
    host.run_in_guest(GUEST, ["rm", "/tmp/copied"])
    host.run(["rm", "/root/one", "/root/two"])


def test_a_directory_of_the_host_is_mounted(fresh_host: Host) -> None:
    host = fresh_host
    host.guest("other")
    host.run(["sh", "-c", "mkdir -p /srv/shared && echo seen >/srv/shared/file"])
    parameters = {"name": "other", "src": "/srv/shared", "dest": "/mnt/shared", "read_only": True}
    assert error(host, "BindMountMachine", parameters)[0] == "io.machine1.Failed", "there is no such directory"
    if SUITES[host.suite] < 257:
        # machined of 252 cannot mount where this host's own root is an overlay: machinectl bind fails alike.
        assert host.run(["machinectl", "bind", "--mkdir", "other", "/srv/shared"], check=False).returncode != 0
        return
    call(host, "BindMountMachine", parameters | {"mkdir": True})
    assert host.run_in_guest("other", ["cat", "/mnt/shared/file"]).stdout == "seen\n"
    assert host.run_in_guest("other", ["touch", "/mnt/shared/new"], check=False).returncode != 0
    assert error(host, "BindMountMachine", parameters | {"src": "/srv/none"})[0] == "io.machine1.Failed"


def test_users_are_mapped(host: Host) -> None:
    """The guest has the host's own UIDs, so each is itself, and none of the host is one of a machine."""
    for kind, key in (("User", "uid"), ("Group", "gid")):
        assert call(host, f"MapFromMachine{kind}", {"name": GUEST, key: 7}) == {key: 7}
        assert error(host, f"MapFromMachine{kind}", {"name": ".host", key: 7})[0] == "io.machine1.NotSupported"
        assert error(host, f"MapFromMachine{kind}", {"name": "nope", key: 7})[0] == "io.machine1.NoSuchMachine"
        for number in (0, 70000):
            assert error(host, f"MapToMachine{kind}", {key: number}) == (
                f"io.machine1.NoSuch{kind}Mapping",
                {key: number},
            )


# --- details --------------------------------------------------------------------------------------------------------


def test_the_details_are_those_of_machinectl(host: Host) -> None:
    shown = host.run(["machinectl", "show", GUEST]).stdout
    truth = dict(line.split("=", 1) for line in shown.splitlines())
    machine = call(host, "GetMachine", {"name": GUEST, "details": True})["machine"]
    details = machine["details"]
    assert details["leader"] == int(truth["Leader"])
    assert (details["unit"], details["root_directory"]) == (truth["Unit"], truth["RootDirectory"])
    assert (details["state"], details["id"]) == (truth["State"], truth["Id"].replace("-", ""))
    assert f'PRETTY_NAME={busctl(host, "GetMachineOSRelease", "s", GUEST)[0]["PRETTY_NAME"]}' in details["os_release"]
    assert details["uid_shift"] == 0
    missing = {entry["piece"]: entry for entry in details["missing"]}
    # It has the network of the host.
    assert missing.pop("addresses")["error"] == "org.freedesktop.machine1.NoPrivateNetworking"
    known = {"ssh_address": 256, "ssh_private_key_path": 256, "vsock_cid": 256, "owner_uid": 258, "supervisor": 258}
    assert missing.keys() == {field for field, since in known.items() if SUITES[host.suite] < since}
    assert all(f"from systemd {known[field]} on" in entry["reason"] for field, entry in missing.items())


def test_details_are_for_who_may_have_them(host: Host) -> None:
    """On every version, as machined itself does it from 261 on."""
    plain = {"name": GUEST}
    assert call(host, "GetMachine", plain, user="nobody")["machine"]["name"] == GUEST
    for method, parameters in (("GetMachine", plain), ("ListMachines", {}), ("GetMachineByPID", {"pid": 2})):
        name, _ = error(host, method, parameters | {"details": True}, user="nobody")
        assert name == "io.systemd.InteractiveAuthenticationRequired", method


def test_a_machine_is_found_by_a_process_of_it(host: Host) -> None:
    leader = call(host, "GetMachine", {"name": GUEST, "details": True})["machine"]["details"]["leader"]
    assert call(host, "GetMachineByPID", {"pid": leader})["machine"]["name"] == GUEST
    # Neither the service manager, nor this service, nor no process at all is in a machine.
    for pid in (1, host.bridge_pid(), 2**31 - 1):
        assert error(host, "GetMachineByPID", {"pid": pid}) == ("io.machine1.NoMachineForPID", {"pid": pid})
    assert error(host, "GetMachineByPID", {"pid": 0})[0] == "org.varlink.service.InvalidParameter"


def _one_by_one() -> list[tuple[list[str], bool]]:
    with Client(SOCKET) as client:
        client.send("ListMachines", {"all": True, "details": True}, more=True)
        replies = []
        while True:
            reply = client.receive()
            names = [machine["name"] for machine in reply["parameters"]["machines"]]
            replies.append((names, reply.get("continues", False)))
            if not replies[-1][1]:
                return replies


def test_machines_come_one_by_one(host: Host) -> None:
    assert host.inside(_one_by_one) == [([".host"], True), ([GUEST], False)]


# --- beginning and ending -------------------------------------------------------------------------------------------


def test_a_machine_is_forgotten_and_runs_on(host: Host) -> None:
    leader = host.register_fake("forgotten")
    call(host, "UnregisterMachine", {"name": "forgotten"})
    assert error(host, "GetMachine", {"name": "forgotten"})[0] == "io.machine1.NoSuchMachine"
    host.run(["kill", "-0", str(leader)])
    host.run(["kill", "-9", str(leader)])
    host.run(["systemctl", "stop", "machine-forgotten.scope"], check=False)  # which machined does not end any more


def test_the_host_is_not_ended(host: Host) -> None:
    for method in ("PoweroffMachine", "RebootMachine", "UnregisterMachine", "StartMachine"):
        assert error(host, method, {"name": ".host"})[0] == "io.machine1.NotSupported"
