# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab itself: hosts are what they claim to be, and leave nothing."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from . import host as lab
from .conftest import unavailable
from .host import SUITES, Host, LabError, Process, Remote, Unavailable

# --- booted hosts


def test_init_is_systemd_of_the_suites_version(bare_host: Host) -> None:
    assert (bare_host.path / "proc/1/comm").read_text() == "systemd\n"
    version = int(bare_host.run(["systemctl", "--version"]).stdout.split()[1])
    # forky moves on: the suite's own version is the least
    assert version == SUITES[bare_host.suite] or (bare_host.suite == "forky" and version > SUITES["forky"])


def test_everything_runs(bare_host: Host) -> None:
    assert bare_host.run(["systemctl", "is-system-running"]).stdout == "running\n"
    assert bare_host.run(["machinectl", "list", "--no-legend"]).stdout == ""
    units = ["dbus.service", "polkit.service"]
    bare_host.run(["systemctl", "start", *units])
    assert bare_host.run(["systemctl", "is-active", *units]).stdout.split() == ["active", "active"]


def test_root_has_python_and_nothing_of_the_bridges_own(bare_host: Host) -> None:
    look = "import importlib.util, sys; print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
    names = ["json", "varlink", "jeepney", "jsonschema", "pip", "ensurepip"]
    assert bare_host.run(["python3", "-c", look, *names]).stdout == "['json']\n"


def test_hosts_do_not_see_each_other(bare_host: Host, suite: str) -> None:
    with Host.boot(suite, f"{suite}-{os.getpid()}-other") as other:
        other.register_fake("neighbour")
        assert "neighbour" in other.run(["machinectl", "list"]).stdout
        assert "neighbour" not in bare_host.run(["machinectl", "list"]).stdout
        other.run(["touch", "/etc/other"])
        assert not (bare_host.path / "etc/other").exists()
        assert not (lab.root_path(suite, lab.HOST_PACKAGES) / "etc/other").exists()
        groups = [host.cgroup.stat().st_ino for host in (bare_host, other)]
        assert groups[0] != groups[1]
    assert bare_host.run(["systemctl", "is-system-running"]).stdout == "running\n"


def test_boot_leaves_the_machines_settings(suite: str) -> None:
    # what systemd, its sysctl.d files and a change of host name would write
    names = ["kernel/core_pattern", "kernel/pid_max", "kernel/core_uses_pid", "kernel/printk", "kernel/hostname"]
    names += ["fs/file-max", "fs/nr_open", "fs/inotify/max_user_instances", "fs/protected_symlinks"]

    def settings() -> list[str]:
        return [Path("/proc/sys", name).read_text() for name in names]

    before = settings()
    with Host.boot(suite, f"{suite}-{os.getpid()}-settings"):
        assert settings() == before


# --- run


def test_run_takes_nothing_of_this_environment(bare_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_SECRET", "leaked")
    lines = bare_host.run(["env"]).stdout.splitlines()
    assert {line.partition("=")[0] for line in lines} <= {"PATH", "HOME", "LANG", "PWD"}
    assert "HOME=/root" in lines
    assert "LAB_SECRET" not in (bare_host.path / "proc/1/environ").read_text()
    assert "LAB_SECRET" not in bare_host.inside(os.environ.copy)


def test_run_as_a_user(bare_host: Host) -> None:
    done = bare_host.run(["sh", "-c", "id -un; id -G; cat"], user="daemon", stdin="typed")
    assert done.stdout == "daemon\n1\ntyped"


def test_run_says_what_failed(bare_host: Host) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        bare_host.run(["sh", "-c", "echo reason >&2; exit 3"])
    assert caught.value.returncode == 3
    assert "reason" in caught.value.__notes__[0]
    assert bare_host.run(["false"], check=False).returncode == 1


def test_run_kills_what_is_late_with_its_children(bare_host: Host) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        bare_host.run(["sh", "-c", "setsid sleep 1000 & sleep 1000"], timeout=0.5)
    _wait_for(lambda: bare_host.left_behind() == [])


def test_what_stays_behind_is_found(bare_host: Host) -> None:
    pid = bare_host.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!"]).stdout.strip()
    try:
        assert ["sleep 1000" in line for line in bare_host.left_behind()] == [True]
    finally:
        bare_host.run(["kill", pid])
    _wait_for(lambda: bare_host.left_behind() == [])


# --- inside


def test_inside_is_a_process_of_the_host(bare_host: Host) -> None:
    def look() -> tuple[str, str, int, str]:
        return Path("/proc/1/comm").read_text(), socket.gethostname(), os.getpid(), os.readlink("/proc/self")

    comm, hostname, pid, in_proc = bare_host.inside(look)
    assert (comm, hostname) == ("systemd\n", bare_host.name)
    assert str(pid) == in_proc


def test_inside_has_the_credentials_asked_for(bare_host: Host) -> None:
    def credentials() -> tuple[int, int, int, int, list[int]]:
        """By the kernel's word, as a service in the host gets it: the peer of a socket."""
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(f"\0lab-{os.getpid()}")
            server.listen()
            client.connect(server.getsockname())
            with server.accept()[0] as peer:
                pid, uid, gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return pid, os.getpid(), uid, gid, os.getgroups()

    pid, own, *rest = bare_host.inside(credentials)
    assert (pid, rest[:2]) == (own, [0, 0])
    pid, own, *rest = bare_host.inside(credentials, uid=65534, gid=1)
    assert (pid, rest) == (own, [65534, 1, [1]])


def test_inside_passes_arguments_values_and_exceptions(bare_host: Host) -> None:
    def fails() -> None:
        numbers = [1]
        assert numbers == [2], "not the same"

    def raises_local() -> None:
        class Local(Exception):
            pass

        raise Local("detail")

    assert bare_host.inside(divmod, 7, 2) == (3, 1)
    with pytest.raises(AssertionError, match="not the same") as caught:
        bare_host.inside(fails)
    assert "in fails" in caught.value.__notes__[0]
    assert "assert numbers == [2]" in caught.value.__notes__[0]
    with pytest.raises(Remote, match="Local: detail"):
        bare_host.inside(raises_local)
    with pytest.raises(TypeError, match="cannot be pickled"):
        bare_host.inside(threading.Lock)
    with pytest.raises(SystemExit):
        bare_host.inside(sys.exit, 3)


def test_inside_large_value(bare_host: Host) -> None:
    assert len(bare_host.inside(bytes, 5_000_000)) == 5_000_000


def test_inside_refuses_imports(bare_host: Host) -> None:
    def imports() -> None:
        import this  # noqa: F401

    assert "this" not in sys.modules
    with pytest.raises(ImportError, match="import it before"):
        bare_host.inside(imports)


def test_inside_ends_what_is_late(bare_host: Host) -> None:
    def late() -> None:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
        time.sleep(1000)

    start = time.monotonic()
    with pytest.raises(TimeoutError):
        bare_host.inside(late, timeout=0.5)
    assert time.monotonic() - start < 10
    _wait_for(lambda: bare_host.left_behind() == [])


def test_inside_that_dies_is_an_error(bare_host: Host) -> None:
    with pytest.raises(LabError, match="without an answer"):
        bare_host.inside(os._exit, 0)


def test_calls_leave_no_file_descriptors_or_children(bare_host: Host) -> None:
    def descriptors() -> list[str]:
        return sorted(os.listdir("/proc/self/fd"))

    before = descriptors()
    for _ in range(3):
        bare_host.inside(os.getpid)
        bare_host.run(["true"])
        with pytest.raises(ZeroDivisionError):
            bare_host.inside(divmod, 1, 0)
    assert descriptors() == before


# --- machines


def test_guests_and_fakes(suite: str) -> None:
    with Host.boot(suite, f"{suite}-{os.getpid()}-guests") as host:
        host.guest("with-bus")
        host.guest("without-bus", bus=False)
        host.register_fake("machine", "vm")
        host.image("still")
        listed = host.run(["machinectl", "list", "--no-legend"]).stdout.splitlines()
        assert [line.split()[:3] for line in sorted(listed)] == [
            ["machine", "vm", "lab"],
            ["with-bus", "container", "systemd-nspawn"],
            ["without-bus", "container", "systemd-nspawn"],
        ]
        images = host.run(["machinectl", "list-images", "--no-legend"]).stdout.splitlines()
        assert [line.split()[:2] for line in sorted(images)] == [
            ["still", "directory"],
            ["with-bus", "directory"],
            ["without-bus", "directory"],
        ]
        assert host.run_in_guest("with-bus", ["systemctl", "is-system-running"]).stdout == "running\n"
        assert host.run(["machinectl", "shell", "with-bus", "/bin/hostname"]).stdout == "with-bus\n"
        failed = host.run(["machinectl", "shell", "without-bus", "/bin/hostname"], check=False)
        assert failed.returncode != 0
        assert "no system bus" in failed.stderr
        host.run(["machinectl", "clone", "still", "copy"])
        host.run(["machinectl", "rename", "copy", "renamed"])
        host.run(["machinectl", "remove", "renamed"])
        host.end_guest("with-bus")
        host.end_guest("without-bus")
        host.run(["machinectl", "terminate", "machine"])
        _wait_for(lambda: host.run(["machinectl", "list", "--no-legend"]).stdout == "")
        assert host.run(["ls", "/var/lib/machines"]).stdout == "still\n"
        assert host.run(["systemctl", "is-system-running"]).stdout == "running\n"


# --- the end


def _traces(name: str, namespace: str) -> list[str]:
    """What is left of a host on this machine: processes, mounts, cgroups, files."""
    pids = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if _namespace(pid) == namespace]
    # not zombies: an init whose parent was killed is one until this machine's own PID 1 cares to reap it
    found = [f"process {pid}" for pid in pids if _lives(int(pid))]
    state = lab.cache() / "hosts" / name
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(state) in line]
    found += [str(state)] if state.exists() else []
    script = "mount -t cgroup2 cgroup2 /mnt && ls /mnt"
    groups = subprocess.run(["unshare", "--mount", "sh", "-ec", script], check=True, capture_output=True, text=True)
    return found + [line for line in groups.stdout.split() if line.endswith(f"-{name}")]


def _lives(pid: int) -> bool:
    try:
        return Process.of(pid).alive()
    except ProcessLookupError:
        return False


def _namespace(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def test_down_leaves_nothing(suite: str) -> None:
    name = f"{suite}-{os.getpid()}-down"
    before = sorted(os.listdir("/proc/self/fd"))
    host = Host.boot(suite, name)
    namespace = _namespace(str(host.init.pid))
    host.guest("guest")
    host.image("immutable")
    host.run(["machinectl", "read-only", "immutable"])
    assert any(trace.startswith("process") for trace in _traces(name, namespace))
    assert Host.find(name) == host
    with pytest.raises(LabError, match="already"):
        Host.boot(suite, name)
    assert host.init.alive()
    host.down()
    assert _traces(name, namespace) == []
    assert sorted(os.listdir("/proc/self/fd")) == before
    host.down()
    with pytest.raises(LabError, match="no host"):
        Host.find(name)


def test_a_host_ends_with_the_process_that_booted_it(suite: str) -> None:
    name = f"{suite}-{os.getpid()}-orphan"
    code = "import sys, time; from tests.lab.host import Host; Host.boot(*sys.argv[1:]); print('up', flush=True)"
    command = [sys.executable, "-c", f"{code}; time.sleep(1000)", suite, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=lab.REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        host = Host.find(name)
        namespace = _namespace(str(host.init.pid))
        process.kill()
    _wait_for(lambda: not host.init.alive() and not host.console.alive())
    assert not any(trace.startswith("process") for trace in _traces(name, namespace))
    with Host.boot(suite, name):  # what a killed process could not remove is no hindrance
        pass
    assert _traces(name, namespace) == []


def test_a_failed_boot_says_why_and_leaves_nothing(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{suite}-{os.getpid()}-failed"
    monkeypatch.setattr(lab, "_INNER", "echo the reason; exit 1")
    with pytest.raises(LabError, match="the reason"):
        Host.boot(suite, name)
    assert _traces(name, "none") == []


def test_a_pid_used_again_is_not_killed() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        real = Process.of(process.pid)
        stale = Process(real.pid, real.started - 1)
        assert real.alive()
        assert not stale.alive()
        stale.kill()
        assert process.poll() is None
        real.kill()
        assert process.wait() == -signal.SIGKILL
    assert not real.alive()
    real.kill()


# --- builds, with an mmdebstrap that only pretends


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what `mmdebstrap` does: a shell script, with the target folder in $target. The cache is an empty folder."""
    try:
        lab.check_machine()
    except Unavailable as reason:
        unavailable(reason)
    program = tmp_path / "bin" / "mmdebstrap"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("MACHINE1_LAB", str(tmp_path / "cache"))
    monkeypatch.setenv("MACHINE1_LAB_MIRROR", "mirror:of-this-test")

    def pretend(script: str) -> None:
        program.write_text(f"#!/bin/sh -e\nfor target; do case $target in *.part) break;; esac; done\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return pretend


def test_a_build_that_failed_does_not_count(pretended: Callable[[str], None]) -> None:
    pretended('mkdir "$target"; echo half >"$target/file"; echo "Unable to locate package no-such"; exit 1')
    with pytest.raises(LabError, match="no-such") as caught:
        lab.build("trixie", ["some"])
    assert not isinstance(caught.value, Unavailable)
    pretended('mkdir "$target"; echo whole >"$target/file"')
    root = lab.build("trixie", ["some"])
    assert (root / "file").read_text() == "whole\n"
    assert [entry.name for entry in root.parent.iterdir()] == [root.name]
    pretended("exit 1")
    assert lab.build("trixie", ["some"]) == root


def test_a_build_without_a_mirror_is_unavailable(pretended: Callable[[str], None]) -> None:
    pretended('echo "E: Failed to fetch mirror:of-this-test  Could not connect"; exit 1')
    with pytest.raises(Unavailable, match="Could not connect"):
        lab.build("trixie", ["some"])


def test_a_changed_list_is_built_anew_and_the_old_one_removed(pretended: Callable[[str], None]) -> None:
    pretended('mkdir "$target"; echo "$@" >"$target/words"')
    old = lab.build("trixie", ["one"])
    folder = os.open(old, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_SH)  # as a host does that stands on it
        lab.build("trixie", ["three"])
        assert old.exists()
    finally:
        os.close(folder)
    new = lab.build("trixie", ["one", "two"])
    assert new != old
    assert "--include=one,two" in (new / "words").read_text()
    assert (new / "words").read_text().split()[-1] == "mirror:of-this-test"
    assert not old.exists()
    assert lab.root_path("trixie", ["two", "one"]) == new
    assert lab.root_path("forky", ["one", "two"]) != new


def test_two_builds_at_once_are_one(pretended: Callable[[str], None]) -> None:
    pretended('mkdir "$target"; echo built >>"$target/../../count"; sleep 0.5')
    threads = [threading.Thread(target=lab.build, args=("trixie", ["some"])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (lab.cache() / "count").read_text() == "built\n"


def test_apt_sources_in_both_formats() -> None:
    new = """
# Types: deb
Types: deb deb-src
URIs: mirror:one
  mirror:two
Suites: trixie
 trixie-updates
Components: main contrib
Signed-By: /some/key

Types: deb-src
URIs: mirror:three
Suites: trixie
Components: main

Enabled: no
Types: deb
URIs: mirror:four
Suites: trixie
Components: main
"""
    both = ["main", "contrib"]
    assert list(lab.apt_sources(new, one_line=False)) == [
        ("mirror:one", "trixie", both),
        ("mirror:one", "trixie-updates", both),
        ("mirror:two", "trixie", both),
        ("mirror:two", "trixie-updates", both),
    ]
    old = "# deb mirror:no a main\ndeb [arch=amd64 signed-by=/k] mirror:one trixie main contrib\ndeb-src mirror:x y z\n"
    assert list(lab.apt_sources(old, one_line=True)) == [("mirror:one", "trixie", both)]


def _wait_for(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
