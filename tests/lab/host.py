# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hosts for tests and for the demo: Debian with systemd as PID 1, in namespaces, without a virtual machine.

A host has the real system bus, polkit and systemd-machined of its suite, and can boot nspawn containers (guests). Its
root is an overlay over a file system made once by mmdebstrap and kept in a cache; what it writes goes to a tmpfs. All
its mounts are in its own mount namespace and all its processes in its own PID namespace, so whatever ends its PID 1
ends all of it. It is made for tests: it holds no more than namespaces do, so let nothing hostile run in it.

As a program: `python3 -m tests.lab.host --help`. Needs root, Linux 5.14 or newer, util-linux, and for the build the
Debian mirror that this machine's own apt uses (or MACHINE1_LAB_MIRROR). The cache is MACHINE1_LAB, else machine1-lab
in the user's cache folder. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import functools
import hashlib
import importlib.abc
import importlib.machinery
import itertools
import json
import os
import pickle
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn, Self, TypeVar

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[2]

#: Debian's suites and the version of systemd that each has (forky still moves: its version is the least it can be).
SUITES: Mapping[str, int] = {"bookworm": 252, "trixie": 257, "forky": 262}

#: As little as a host of the bridge has: Python bare, and none of the bridge's own dependencies.
HOST_PACKAGES = ["systemd", "systemd-sysv", "systemd-container", "libpam-systemd", "dbus", "polkitd", "python3"]
HOST_PACKAGES += ["procps", "bubblewrap"]
GUEST_PACKAGES = ["systemd", "systemd-sysv", "dbus", "procps"]
GUEST_SUITE = "trixie"
#: What a host of a kind has beside that.
KINDS: Mapping[str, Sequence[str]] = {
    "plain": [],
    "ssh": ["openssh-client", "openssh-server"],
    "pull": ["libcurl4t64"],  # what importd loads to download images, where it is not linked to it (forky)
    "debian": ["python3-varlink", "python3-jeepney", "python3-jsonschema"],  # what the Debian package depends on
}
#: What packages are made and checked with, in the suite that they are for.
BUILD_SUITE = "trixie"
BUILD_PACKAGES = ["debhelper", "dh-python", "lintian", "python3", "rpm", "rpmlint"]

#: Units that would write to this machine's kernel settings, ask questions on the console, or only cost time.
MASKED_UNITS = [
    "systemd-sysctl.service",
    "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-modules-load.service",
    "systemd-firstboot.service",
    "console-getty.service",
    "getty.target",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
]

ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")  # a host name, also used as a file name and a cgroup's name
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWPID, NEWNET: every namespace that a host has of its own
_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000


class LabError(Exception):
    """The lab did not do what it was asked; the text says what and, as far as known, why."""


class Unavailable(LabError):
    """This machine cannot run the lab (not root, no namespaces, no mirror): a reason to skip, not a defect."""


class Remote(LabError):
    """Stands for an exception raised inside a host that cannot be pickled; its text names the original."""


# --- processes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    """A process by PID *and* start time (clock ticks since boot), so that a PID used again is never taken for it."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this PID now; ProcessLookupError when there is none."""
        return cls(pid, _start_time(pid))

    def alive(self) -> bool:
        try:
            return _start_time(self.pid) == self.started
        except ProcessLookupError:
            return False

    def kill(self, timeout: float = 30.0) -> None:
        """SIGKILL, and wait for its end. A process that has gone already is fine."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if not self.alive():  # checked after the open: from here on the pidfd pins the right process
                return
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            if not select.select([descriptor], [], [], timeout)[0]:
                raise LabError(f"process {self.pid} did not end within {timeout:g} s of SIGKILL")
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)


def _start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat; ProcessLookupError for a zombie or no process. Field 2 may hold any character."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(pid) from None
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return int(fields[19])


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends. A change of uid undoes it, so call this after."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _enter(pidfd: int) -> None:
    """Move this process into the namespaces of another; the PID namespace counts for children from now on."""
    if sys.version_info >= (3, 12):
        os.setns(pidfd, _NAMESPACES)
    elif _LIBC.setns(pidfd, _NAMESPACES) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


# --- built file systems --------------------------------------------------------------------------------------------


def cache() -> Path:
    """The folder that keeps what is built and the state of hosts that are up."""
    if chosen := os.environ.get("MACHINE1_LAB"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "machine1-lab"


def check_machine() -> None:
    """Raise Unavailable with a reason when this machine cannot boot hosts at all (builds are checked by `build`)."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise Unavailable("the lab needs root on Linux")
    for program in ("unshare", "nsenter", "setpriv", "mount", "umount", "pivot_root", "tar"):
        if shutil.which(program, path=ENVIRONMENT["PATH"]) is None:
            raise Unavailable(f"the lab needs the program {program}")
    probe = 'd=$(mktemp -d) && trap \'rmdir "$d"\' EXIT && mount -t tmpfs t "$d" && umount "$d"'
    command = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--net", "--cgroup", "--fork", "sh", "-ec", probe]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=dict(ENVIRONMENT), timeout=30)
    if done.returncode != 0:
        raise Unavailable(f"no namespaces and mounts on this machine: {done.stderr.strip()}")


def mirror() -> str:
    """The Debian mirror of this machine's own apt: of the source whose suite is this very release, component main."""
    if chosen := os.environ.get("MACHINE1_LAB_MIRROR"):
        return chosen
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    if release.get("ID", "").strip('"') != "debian":
        raise Unavailable("this machine is not Debian: set MACHINE1_LAB_MIRROR to a Debian mirror's address")
    suites = {release.get("VERSION_CODENAME", "").strip('"'), "stable", "testing", "unstable", "sid"}
    folder = Path("/etc/apt")
    files = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    for file in filter(Path.is_file, files):
        for address, suite, components in apt_sources(file.read_text(), one_line=file.suffix == ".list"):
            if suite in suites and "main" in components:
                return address
    raise Unavailable("apt has no Debian source for this release: set MACHINE1_LAB_MIRROR to a mirror's address")


def apt_sources(text: str, *, one_line: bool) -> Iterator[tuple[str, str, list[str]]]:
    """(address, suite, components) of each binary source in a file of apt's, by sources.list(5), either format."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    if one_line:
        for line in lines:
            if found := re.match(r"\s*deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+(\S+)\s*(.*)", line):
                yield found[1], found[2], found[3].split()
        return
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {
            key.lower(): value.split()
            for key, value in re.findall(r"^(\S+?):((?:.*)(?:\n[ \t]+.*)*)", stanza, flags=re.MULTILINE)
        }
        if "deb" in fields.get("types", []) and fields.get("enabled", ["yes"]) != ["no"]:
            for address, suite in itertools.product(fields.get("uris", []), fields.get("suites", [])):
                yield address, suite, fields.get("components", [])


def root_path(suite: str, packages: Sequence[str]) -> Path:
    """Where the file system of this suite with these packages is, or will be: a changed list is another folder."""
    digest = hashlib.sha256("\n".join(sorted(packages)).encode()).hexdigest()[:12]
    return cache() / "roots" / f"{suite}-{digest}"


def build(suite: str, packages: Sequence[str]) -> Path:
    """Make the file system unless it is there; its path. Two builds at once wait for each other.

    It is made under another name and renamed when complete, so what was interrupted never counts as built.
    """
    root = root_path(suite, packages)
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with open(cache() / "build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if root.is_dir():
            return root
        for left in root.parent.glob("*.part"):
            shutil.rmtree(left)
        _install_mmdebstrap()
        part = root.with_suffix(".part")
        print(f"lab: building {suite} ({' '.join(packages)})", file=sys.stderr, flush=True)
        # In namespaces, so that none of its processes and mounts outlives an interrupted build
        command = ["setpriv", "--pdeathsig", "KILL", "--", "unshare", "--mount", "--propagation", "private", "--pid"]
        command += ["--fork", "--kill-child", "--mount-proc", "--"]
        command += ["mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}"]
        # Release files of a mirror that was frozen on a date, or of a testing suite, may be past theirs
        command += ['--aptopt=Acquire::Check-Valid-Until "false"']
        command += [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "locale", "info")]
        _setup_command([*command, suite, str(part), mirror()], f"mmdebstrap of {suite}")
        part.rename(root)
        _prune(root)
    return root


def _install_mmdebstrap() -> None:
    if shutil.which("mmdebstrap"):
        return
    if not shutil.which("apt-get"):
        raise Unavailable("the lab is built by mmdebstrap, and there is no apt-get to install it with")
    _setup_command(["apt-get", "update", "-q"], "apt-get update")
    install = ["apt-get", "install", "-q", "-y", "--no-install-recommends"]
    _setup_command([*install, "mmdebstrap", "debian-archive-keyring"], "installing mmdebstrap")


def _setup_command(command: Sequence[str], what: str) -> None:
    """Run a command that downloads. What fails for want of the network is Unavailable, anything else LabError."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    if done.returncode == 0:
        return
    tail = "\n".join(done.stdout.strip().splitlines()[-15:])
    # of apt's, and what mmdebstrap says when the mirror's lists cannot be had
    offline = re.search(r"Could not (connect|resolve)|Failed to fetch|apt-get update .*failed", done.stdout)
    raise (Unavailable if offline else LabError)(f"{what} failed:\n{tail}")


def _prune(root: Path) -> None:
    """Remove what an earlier package list of the same suite and use has left, unless a host stands on it."""
    wanted = {root_path(suite, [*HOST_PACKAGES, *more]) for suite in SUITES for more in KINDS.values()}
    wanted |= {root_path(GUEST_SUITE, GUEST_PACKAGES), root_path(BUILD_SUITE, BUILD_PACKAGES), root}
    for old in set(root.parent.iterdir()) - wanted:
        descriptor = os.open(old, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # hosts hold a shared lock on what they stand on
            shutil.rmtree(old)
        os.close(descriptor)


# --- boot ----------------------------------------------------------------------------------------------------------

# These scripts run with `sh -eu`, each started by the one before it. Paths are relative, so that no character of the
# cache's own path disturbs mount options.
# $1 state folder, $2 cgroup, $3 root to stand on, $4 guest root, $5 host name, $6 machine ID, $7 masked units
_OUTER = """
umask 022
mount -t tmpfs -o mode=755 tmpfs "$1/mount"
cd "$1/mount"
mkdir cgroup lower upper work root
# A cgroup of its own for each host: two systemd on one cgroup tree would stop one another's units. Version 2 is
# mounted here because a machine that uses version 1 has it elsewhere or nowhere.
mount -t cgroup2 cgroup2 cgroup
mkdir "cgroup/$2" "cgroup/$2/lab"
exec unshare --uts --ipc --pid --net --fork --kill-child -- sh -euc "$JOIN" sh "$@"
"""

# PID 1 alone joins the cgroup: a process in it that systemd cannot see would keep it from delegating controllers.
_JOIN = """
echo 0 >"cgroup/$2/cgroup.procs"
umount cgroup
exec unshare --cgroup -- sh -euc "$INNER" sh "$@"
"""

_INNER = """
read -r pid rest </proc/self/stat            # still the machine's /proc: the PID as the machine sees it
echo "$pid" >"$1/init"
mount --bind "$3" lower
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work root
cd root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty fuse; do
    [ -e "/dev/$device" ] || continue
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
: >dev/console
mount --bind "$CONSOLE" dev/console
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,mode=620,gid=5,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p run/lab/guest
mount --bind "$4" run/lab/guest
mount -o remount,bind,ro run/lab/guest
# A plain directory on the tmpfs: machined renames, clones and removes here as on a disk
mkdir ../machines
chmod 700 ../machines
mkdir -p var/lib/machines
mount --bind ../machines var/lib/machines
echo "$5" >etc/hostname
rm -f etc/machine-id
echo "$6" >etc/machine-id                    # present from the start: this is no first boot, which would ask and wait
for unit in $7; do ln -sf /dev/null "etc/systemd/system/$unit"; done
ip link set lo up 2>/dev/null || true        # systemd does it too; some machines have no ip
pivot_root . .
umount -l .
exec env -i container=lab TERM=dumb PATH="$PATH" LANG=C.UTF-8 \\
    /lib/systemd/systemd --log-target=console --log-color=0 --show-status=1
"""


def _console(log: str, command: Sequence[str]) -> int:
    """Run a command with a terminal for its output, kept in a file: systemd logs to a console only if it is one.

    Runs as a process of its own for as long as the host lives. The terminal's path is in CONSOLE.
    """
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 200))
    environment = {**os.environ, "CONSOLE": os.ttyname(slave)}
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    # OSError is EIO: nobody has the terminal open any more
    with open(log, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while data := os.read(master, 65536):
            file.write(data.replace(b"\r", b""))
    return child.wait()


@dataclass(frozen=True)
class Account:
    """A user of a host, as its /etc/passwd and /etc/group say."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True)
class Host:
    """A host that is up. `init` and `console` (it keeps the console's log) are processes as this machine sees them."""

    name: str
    suite: str
    init: Process
    console: Process

    # --- life

    @classmethod
    def boot(cls, suite: str, name: str, *, kind: str = "plain", stay: bool = False, timeout: float = 60.0) -> Host:
        """Build what is missing and boot; returns when systemd says running or degraded. `kind` is one of KINDS.

        The host ends with this process (more exactly: with the calling thread) unless `stay` is set. Raises LabError
        with the end of the console log when it does not come up, or when a host of this name is up.
        """
        if suite not in SUITES:
            raise LabError(f"no such suite: {suite} (there are {', '.join(SUITES)})")
        if not _NAME.fullmatch(name):
            raise LabError(f"not a host name: {name}")
        check_machine()
        root, guest = build(suite, [*HOST_PACKAGES, *KINDS[kind]]), build(GUEST_SUITE, GUEST_PACKAGES)
        state = _claim(name)
        process: subprocess.Popen[bytes] | None = None
        locks = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY) for folder in (root, guest)]
        try:
            for lock in locks:
                fcntl.flock(lock, fcntl.LOCK_SH)  # inherited by the console process; keeps _prune off while it lives
            arguments = [str(state), _cgroup(name), str(root), str(guest), name, uuid.uuid4().hex]
            unshare = ["unshare", "--mount", "--propagation", "private", "--"]
            script = ["sh", "-euc", _OUTER, "sh", *arguments, " ".join(MASKED_UNITS)]
            die_with_parent = ["setpriv", "--pdeathsig", "KILL", "--"]
            keeper = [sys.executable, "-IS", __file__, "_console", str(state / "console.log")]
            process = subprocess.Popen(
                [*([] if stay else die_with_parent), *keeper, *die_with_parent, *unshare, *script],
                env={**ENVIRONMENT, "JOIN": _JOIN, "INNER": _INNER},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=locks,
            )
            host = cls._wait(suite, name, process, time.monotonic() + timeout)
            _write(state / "host.json", json.dumps(asdict(host)))
        except BaseException:
            if process is not None:
                process.kill()
                process.wait()
            _release(name)
            raise
        finally:
            for lock in locks:
                os.close(lock)
        process.returncode = 0  # `down` waits for it; without this, subprocess warns of a child still running
        return host

    @classmethod
    def _wait(cls, suite: str, name: str, process: subprocess.Popen[bytes], deadline: float) -> Host:
        state, answer, host = _state(name), "systemd has not started", None
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                host = host or cls(name, suite, Process.of(int((state / "init").read_text())), Process.of(process.pid))
            if host is not None and Path(f"/proc/{host.init.pid}/root/run/systemd/private").exists():
                answer = host.run(["systemctl", "is-system-running"], check=False, timeout=30).stdout.strip()
                if answer in ("running", "degraded"):
                    return host
            time.sleep(0.05)
        with contextlib.suppress(FileNotFoundError):
            answer += "; the console's last lines:\n" + "\n".join(console_tail(state / "console.log"))
        raise LabError(f"host {name} ({suite}) did not come up: {answer}{_limits(answer)}")

    @classmethod
    def find(cls, name: str) -> Host:
        """The host of this name, up now, whoever booted it; LabError when there is none."""
        host = cls._load(_state(name)) if _NAME.fullmatch(name) else None
        if host is None or not host.init.alive():
            raise LabError(f"no host {name} is up")
        return host

    @classmethod
    def _load(cls, state: Path) -> Host | None:
        try:
            data = json.loads((state / "host.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        if "init" not in data:
            return None
        return cls(data["name"], data["suite"], Process(**data["init"]), Process(**data["console"]))

    @classmethod
    def all(cls) -> list[Host]:
        """Every host that is up."""
        folders = sorted((cache() / "hosts").glob("*"))
        return [host for host in map(cls._load, folders) if host is not None and host.init.alive()]

    def down(self) -> None:
        """End it and all that runs in it, and leave nothing: no process, mount, cgroup or file. Twice is fine."""
        self.init.kill()  # the kernel ends every process of the namespace before this one is gone
        deadline = time.monotonic() + 10
        while self.console.alive() and time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.console.pid, os.WNOHANG)
            time.sleep(0.01)
        self.console.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.console.pid, 0)
        _release(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.down()

    # --- what is in it

    @property
    def path(self) -> Path:
        """Its root as seen from outside, for reading and writing files. Never resolve it: it is a link to `/`."""
        return Path(f"/proc/{self.init.pid}/root")

    def account(self, user: str) -> Account:
        """The host's own idea of a user; KeyError when it has none of this name."""
        for line in (self.path / "etc/passwd").read_text().splitlines():
            name, _, uid, gid, _, home, _ = line.split(":")
            if name == user:
                members = (line.split(":") for line in (self.path / "etc/group").read_text().splitlines())
                groups = [int(group[2]) for group in members if user in group[3].split(",")]
                return Account(int(uid), int(gid), (int(gid), *groups), home)
        raise KeyError(user)

    def run(
        self,
        command: Sequence[str],
        *,
        check: bool = True,
        stdin: str | None = None,
        timeout: float = 60.0,
        user: str | None = None,
        environment: Mapping[str, str] = {},
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, in every namespace of its PID 1, with an environment of its own.

        Raises CalledProcessError (with stdout and stderr as notes) if `check`, TimeoutExpired after `timeout` seconds,
        when the command and all it has started is killed.
        """
        with self._group() as group:
            process = subprocess.Popen(
                self._command(command, group, user),
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env={**self._environment(user), **environment},
                start_new_session=True,
            )
            try:
                output, errors = process.communicate(stdin, timeout)
            except BaseException:
                (group / "cgroup.kill").write_text("1")
                process.communicate()
                raise
        if check and process.returncode != 0:
            error = subprocess.CalledProcessError(process.returncode, list(command), output, errors)
            error.add_note(f"host {self.name} ({self.suite})\nstdout: {output.strip()}\nstderr: {errors.strip()}")
            raise error
        return subprocess.CompletedProcess(list(command), process.returncode, output, errors)

    def shell(self, command: Sequence[str] = ("bash", "--login")) -> NoReturn:
        """Replace this process by a command inside the host, on this process's own terminal."""
        environment = {**ENVIRONMENT, "TERM": os.environ.get("TERM", "linux"), "container": "lab"}
        arguments = ["nsenter", f"--target={self.init.pid}", "--all", "--", *command]
        os.execvpe("nsenter", arguments, environment)  # noqa: S606

    def _command(self, command: Sequence[str], group: Path, user: str | None) -> list[str]:
        # setpriv looks up nothing here: names are resolved above, in the host's files
        identity: list[str] = []
        if user is not None:
            account = self.account(user)
            groups = ",".join(map(str, account.groups))
            identity = [f"--reuid={account.uid}", f"--regid={account.gid}", f"--groups={groups}"]
        # nsenter forks for the PID namespace: without --pdeathsig the command would outlive a killed nsenter
        inside = ["setpriv", *identity, "--pdeathsig", "KILL", "--", *command]
        join = ["sh", "-c", 'echo 0 >"$1" && shift && exec "$@"', "sh", str(group / "cgroup.procs")]
        return [*join, "nsenter", f"--target={self.init.pid}", "--all", "--", *inside]

    def _environment(self, user: str | None) -> dict[str, str]:
        if user is None:
            return dict(ENVIRONMENT)
        return {**ENVIRONMENT, "HOME": self.account(user).home, "USER": user, "LOGNAME": user}

    @property
    def cgroup(self) -> Path:
        """The root of its cgroup tree, as seen from outside."""
        return self.path / "sys/fs/cgroup"

    @contextlib.contextmanager
    def _group(self) -> Iterator[Path]:
        """A cgroup for what one call starts, below `lab`. It stays behind, to be found, if a process stays behind."""
        group = self.cgroup / "lab" / uuid.uuid4().hex
        group.mkdir()
        try:
            yield group
        finally:
            with contextlib.suppress(OSError):
                group.rmdir()

    def left_behind(self) -> list[str]:
        """Processes still there that `run` or `inside` started, or machined for a shell, each as a readable line."""
        found = []
        for folder in [self.cgroup / "lab", *self.cgroup.rglob("container-shell@*.service")]:
            for file in folder.rglob("cgroup.procs"):
                for pid in file.read_text().split():
                    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        found.append(f"{pid} {words.strip()} ({file.parent.name})")
        return found

    def inside(
        self,
        function: Callable[..., T],
        *arguments: object,
        uid: int | None = None,
        gid: int | None = None,
        timeout: float = 60.0,
    ) -> T:
        """Call a Python function in a process inside the host; its value, or its exception with a traceback as a note.

        The process is a fork of this one, so the function is any function of a test, with what is imported now; it
        cannot import more, since the host has other files. Its parent is the host's, so SO_PEERCRED, /proc and paths
        are the host's own. The value comes back pickled: no file descriptors. TimeoutError after `timeout` seconds,
        when the process and all that it started is killed. With `uid` (and `gid`, else the same number) it runs
        as this user, in no other group.
        """
        with self._group() as group:
            reader, writer = os.pipe()
            sys.stdout.flush()
            sys.stderr.flush()
            child = os.fork()
            if child == 0:
                _child(functools.partial(function, *arguments), self.init, group, writer, uid, gid)
            os.close(writer)
            try:
                answer = _read_answer(reader, time.monotonic() + timeout)
            except BaseException:
                (group / "cgroup.kill").write_text("1")
                raise
            finally:
                os.close(reader)
                os.waitpid(child, 0)
        if answer is None:
            raise LabError("the process inside the host ended without an answer")
        succeeded, value, frames = pickle.loads(answer)  # noqa: S301  from this program's own fork
        if succeeded:
            result: T = value
            return result
        # Formatted here, where the source files are
        lines = traceback.StackSummary.from_list(frames).format()
        value.add_note(f"inside host {self.name} ({self.suite}):\n{''.join(lines)}")
        raise value

    # --- machines and images

    def guest(self, name: str, *, bus: bool = True, timeout: float = 60.0) -> None:
        """Boot an nspawn container, image /var/lib/machines/NAME; returns when its systemd says that it is ready.

        Without `bus` the guest has no D-Bus: machined knows it, but can open no shell in it. The image is an overlay
        over a read-only root: for tests that rename or remove images, make some with `image`.
        """
        script = """
            upper=/run/lab/guests/$1/upper scratch=/run/lab/guests/$1/scratch
            mkdir -p "$upper/etc/systemd/system" "$scratch" "/var/lib/machines/$1"
            layers="lowerdir=/run/lab/guest,upperdir=$upper,workdir=$scratch"
            mount -t overlay overlay -o "$layers" "/var/lib/machines/$1"
            cd "/var/lib/machines/$1"
            echo "$1" >etc/hostname
            rm -f etc/machine-id
            echo "$2" >etc/machine-id
            shift 2
            for unit; do ln -sf /dev/null "etc/systemd/system/$unit"; done
        """
        masked = MASKED_UNITS + ([] if bus else ["dbus.socket", "dbus.service", "dbus-broker.service"])
        self.run(["sh", "-euc", script, "sh", name, uuid.uuid4().hex, *masked])
        unit = ["systemd-run", "--quiet", "--collect", f"--unit=guest-{name}", "--slice=machine.slice"]
        unit += ["--property=Type=notify", "--property=KillMode=mixed", "--property=Delegate=yes"]
        nspawn = ["systemd-nspawn", "--quiet", "--boot", "--keep-unit", "--settings=no", "--notify-ready=yes"]
        try:
            self.run([*unit, *nspawn, f"--directory=/var/lib/machines/{name}", f"--machine={name}"], timeout=timeout)
        except subprocess.SubprocessError as error:
            journal = self.run(["journalctl", "--no-pager", f"--unit=guest-{name}"], check=False).stdout
            error.add_note(journal + _limits(journal))
            raise

    def wire(self, address: str, other: Host, other_address: str) -> None:
        """A cable between two hosts that have none: a veth(4) pair, an address such as 192.0.2.1/24 at each end."""
        if shutil.which("ip", path=ENVIRONMENT["PATH"]) is None:
            raise Unavailable("hosts are wired by the program ip, of the package iproute2")
        ends = ((self, address), (other, other_address))
        lines = [f"link add cable0 type veth peer name cable0 netns {other.init.pid}"]
        for host, own in ends:
            enter = ["nsenter", f"--net=/proc/{host.init.pid}/ns/net", "ip", "-batch", "-"]
            lines += [f"address add {own} dev cable0", "link set cable0 up", "link set lo up"]
            subprocess.run(enter, input="\n".join(lines), check=True, text=True, env=dict(ENVIRONMENT), timeout=30)
            lines = []

    def end_guest(self, name: str) -> None:
        """End a guest, whether it still runs or not, and remove its image."""
        self.run(["systemctl", "stop", f"guest-{name}.service"], check=False)
        script = 'umount "/var/lib/machines/$1"; rm -r "/var/lib/machines/$1" "/run/lab/guests/$1"'
        self.run(["sh", "-euc", script, "sh", name])

    def run_in_guest(
        self, name: str, command: Sequence[str], *, check: bool = True, stdin: str | None = None, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a running guest, past machined and the guest's bus: to see what is true there."""
        leader = self.run(["machinectl", "show", "--property=Leader", "--value", name]).stdout.strip()
        enter = ["nsenter", f"--target={leader}", "--all", "--", *command]
        return self.run(enter, check=check, stdin=stdin, timeout=timeout)

    def startable(self, name: str) -> None:
        """End a guest, but keep its image, so that systemd-nspawn@NAME.service can start it; `end_guest` removes it."""
        self.run(["systemctl", "stop", f"guest-{name}.service"])
        self.let_images_start()

    def let_images_start(self) -> None:
        """Have systemd-nspawn@.service leave out what namespaces keep nspawn from: other UIDs, a network of its own."""
        script = """
            mkdir -p /run/systemd/system/systemd-nspawn@.service.d
            cat >/run/systemd/system/systemd-nspawn@.service.d/lab.conf
            systemctl daemon-reload
        """
        start = "systemd-nspawn --quiet --keep-unit --boot --settings=no --machine=%i"
        drop_in = f"[Service]\nExecStart=\nExecStart={start}\nDevicePolicy=auto\n"
        self.run(["sh", "-euc", script], stdin=drop_in)

    def image(self, name: str) -> None:
        """Make a small directory image that no machine runs from."""
        script = (
            'mkdir -p "$1/usr/lib" "$1/etc" && echo ID=lab >"$1/usr/lib/os-release" && echo "$2" >"$1/etc/hostname"'
        )
        self.run(["sh", "-euc", script, "sh", f"/var/lib/machines/{name}", name])

    def register_fake(self, name: str, class_: str = "container") -> int:
        """Register a machine that is no more than a process `sleep`, its leader; the leader's PID inside the host.

        For machines in number (about 40 a second), and for class `vm`, which nspawn has not.
        """
        start = "setsid sleep infinity </dev/null >/dev/null 2>&1 & echo $!"
        leader = self.run(["sh", "-c", start]).stdout.strip()
        machine1 = ["org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager"]
        # name, no ID, service, class, leader, no root directory, no properties of the scope
        values = ["sayssusa(sv)", name, "0", "lab", class_, leader, "", "0"]
        self.run(["busctl", "call", *machine1, "CreateMachine", *values])
        return int(leader)

    # --- the bridge

    def install(self, repository: Path = REPOSITORY) -> None:
        """Install the bridge with the Makefile's own `install`, and do what a package's scripts would do after it."""
        archive = installed_files(self.suite, repository)
        with self._group() as group:
            command = self._command(["tar", "-C", "/", "-x", "--no-overwrite-dir"], group, None)
            subprocess.run(command, input=archive, env=dict(ENVIRONMENT), check=True, timeout=60)
        self.run(["systemd-sysusers"])
        self.run(["systemctl", "daemon-reload"])
        bus = ["org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus"]
        self.run(["busctl", "call", *bus, "ReloadConfig"])
        self.run(["systemctl", "try-restart", "polkit.service"])  # it would see new rules by itself, but later
        self.run(["systemctl", "enable", "--now", "--quiet", "machine1-bridge.socket"])

    def bridge_pid(self) -> int | None:
        """The bridge's PID inside the host, None while it does not run."""
        show = ["systemctl", "show", "--property=MainPID", "--value", "machine1-bridge.service"]
        return int(self.run(show).stdout.strip() or 0) or None

    def open_files(self, pid: int) -> dict[int, str]:
        """The open file descriptors of a process inside the host, and what each is; empty when it has gone."""
        folder, found = self.path / "proc" / str(pid) / "fd", {}
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for entry in os.listdir(folder):
                with contextlib.suppress(FileNotFoundError):
                    found[int(entry)] = os.readlink(folder / entry)
        return found


@functools.cache
def installed_files(suite: str, repository: Path = REPOSITORY) -> bytes:
    """What `make install` puts into a host of this suite, as a tar archive; made once in a process.

    The installation sees the whole file system (it has to find that system's Python) under a path that is a plain
    folder, in a mount namespace of its own; what it wrote is the upper side of an overlay.
    """
    root = build(suite, HOST_PACKAGES)
    script = """
        umask 022
        mount -t tmpfs -o mode=755 tmpfs "$1"
        cd "$1"
        mkdir lower upper work root
        mount --bind "$2" lower
        mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work root
        make --no-print-directory -C "$3" install DESTDIR="$1/root" PREFIX=/usr >&2
        tar -C upper -c .
    """
    with tempfile.TemporaryDirectory(prefix="install-", dir=cache()) as folder:
        unshare = ["unshare", "--mount", "--propagation", "private", "--"]
        command = [*unshare, "sh", "-euc", script, "sh", folder, str(root), str(repository)]
        done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.decode(errors="replace").strip().splitlines()[-20:])
        raise LabError(f"make install for {suite} failed:\n{tail}")
    return done.stdout


def _limits(text: str) -> str:
    """Advice, if a systemd says in this text that it found no inotify instance left: all hosts share root's."""
    if "Too many open files" not in text:
        return ""
    limit = Path("/proc/sys/fs/inotify/max_user_instances").read_text().strip()
    return (
        f"\nfs.inotify.max_user_instances is {limit} on this machine: raise it with sysctl, or run fewer hosts at once"
    )


# --- inside a host: the far side of Host.inside --------------------------------------------------------------------


class _NoImports(importlib.abc.MetaPathFinder):
    """Says clearly why an import fails inside a host, instead of finding another Python's files there."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> NoReturn:
        raise ImportError(
            f"{name}: cannot import inside a host, since the files there are the host's; import it before"
        )


# Both functions catch everything: an exception that left them would go on in a copy of the whole test run.
def _child(
    function: Callable[[], object], init: Process, group: Path, writer: int, uid: int | None, gid: int | None
) -> NoReturn:
    """The process between: enters the namespaces and forks once more, since only a child is in the PID namespace."""
    status = 1
    try:
        _die_with_parent()
        (group / "cgroup.procs").write_text("0")
        pidfd = os.pidfd_open(init.pid)
        if not init.alive():
            raise LabError("the host has ended")
        _enter(pidfd)
        os.close(pidfd)
        child = os.fork()
        if child == 0:
            _grandchild(function, writer, uid, gid)
        os.close(writer)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException as error:
        _answer(writer, error)
    finally:
        os._exit(status & 0xFF)


def _grandchild(function: Callable[[], object], writer: int, uid: int | None, gid: int | None) -> NoReturn:
    try:
        if uid is not None:
            group = uid if gid is None else gid
            os.setgroups([group])
            os.setresgid(group, group, group)
            os.setresuid(uid, uid, uid)
        _die_with_parent()
        sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, _NoImports()]
        os.environ.clear()
        os.environ.update(ENVIRONMENT)
        os.chdir("/")
        value = function()
        try:
            data = pickle.dumps((True, value, []))
        except Exception as error:  # pickling can raise anything
            raise TypeError(f"a value that cannot be pickled came from inside the host: {error}") from None
        _send(writer, data)
    except BaseException as error:
        _answer(writer, error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _answer(writer: int, error: BaseException) -> None:
    """Send an exception: the very object if it survives pickling, else a Remote that names it."""
    frames = [(frame.filename, frame.lineno, frame.name, None) for frame in traceback.extract_tb(error.__traceback__)]
    try:
        data = pickle.dumps((False, error, frames))
        if type(pickle.loads(data)[1]) is not type(error):  # noqa: S301  its own
            raise TypeError
    except Exception:  # as above
        data = pickle.dumps((False, Remote(f"{type(error).__module__}.{type(error).__qualname__}: {error}"), frames))
    _send(writer, data)


def _send(writer: int, data: bytes) -> None:
    with open(writer, "wb", closefd=False) as file:
        file.write(len(data).to_bytes(8, "big") + data)


def _read_answer(reader: int, deadline: float) -> bytes | None:
    """Length and data from the pipe; None if it ends before. By length, since a stray process may hold it open."""
    data = b""
    while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], "big"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            raise TimeoutError("the function inside the host did not return in time; it was killed")
        chunk = os.read(reader, 1 << 20)
        if not chunk:
            return None
        data += chunk
    return data[8:]


# --- state ---------------------------------------------------------------------------------------------------------


def _state(name: str) -> Path:
    return cache() / "hosts" / name


def _cgroup(name: str) -> str:
    """A name of its own for each host, also of another cache folder on this machine."""
    return f"machine1-lab-{hashlib.sha256(str(cache()).encode()).hexdigest()[:8]}-{name}"


def _claim(name: str) -> Path:
    """Make the state folder of a new host: the claim to its name. What dead hosts left is removed first."""
    state = _state(name)
    state.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=state.parent))
    try:
        (fresh / "mount").mkdir()
        _write(fresh / "host.json", json.dumps({"owner": asdict(Process.of(os.getpid()))}))
        _sweep()
        if state.exists():
            raise LabError(f"a host {name} is up or booting already")
        _remove_cgroup(name)
        fresh.rename(state)
    except BaseException:
        shutil.rmtree(fresh)
        raise
    return state


def _sweep() -> None:
    """Remove what hosts left that ended without `down`: their test run was killed, or the machine restarted."""
    for state in (cache() / "hosts").iterdir():
        with contextlib.suppress(FileNotFoundError):
            data = json.loads((state / "host.json").read_text())
            if not Process(**(data.get("init") or data["owner"])).alive():
                _release(state.name)


def _release(name: str) -> None:
    """Remove what a host that has ended leaves: its empty cgroups and its state folder."""
    _remove_cgroup(name)
    shutil.rmtree(_state(name), ignore_errors=True)


def _remove_cgroup(name: str) -> None:
    """Kill what is left in the host's cgroup and remove it, in a mount of our own: the machine's may be anywhere."""
    script = """
        mount -t cgroup2 cgroup2 "$1"
        [ -d "$1/$2" ] || exit 0
        echo 1 >"$1/$2/cgroup.kill"
        for i in $(seq 100); do
            find "$1/$2" -depth -type d -exec rmdir {} + 2>/dev/null && exit 0
            sleep 0.05
        done
        echo "cgroup $2 is still in use" >&2
        exit 1
    """
    with tempfile.TemporaryDirectory(prefix="cgroup-", dir=cache()) as folder:
        command = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-euc", script, "sh", folder]
        done = subprocess.run([*command, _cgroup(name)], check=False, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise LabError(f"what host {name} left cannot be removed: {done.stderr.strip()}")


def _write(file: Path, text: str) -> None:
    """Write a file so that a reader sees it complete or not at all."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


def console_tail(log: Path, count: int = 30) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-count:]


# --- command line --------------------------------------------------------------------------------------------------


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab.host", description="Disposable hosts with systemd.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("build", help="make the file systems of these suites (all of them by default)")
    one.add_argument("suite", nargs="*", choices=[*SUITES, []])
    one = commands.add_parser("boot", help="boot a host that stays up until `down`")
    one.add_argument("suite", choices=SUITES)
    one.add_argument("name", nargs="?", help="its name (default: the suite's)")
    one = commands.add_parser("install", help="install the bridge of this repository")
    one.add_argument("name")
    one = commands.add_parser("guest", help="boot a container in a host")
    one.add_argument("name")
    one.add_argument("guest")
    one.add_argument("--no-bus", action="store_true", help="without D-Bus in it")
    one = commands.add_parser("run", help="run a command in a host, on this terminal")
    one.add_argument("name")
    one.add_argument("words", nargs=argparse.REMAINDER, metavar="command")
    one = commands.add_parser("shell", help="a prompt inside a host")
    one.add_argument("name")
    one = commands.add_parser("log", help="the console log of a host")
    one.add_argument("name")
    one = commands.add_parser("down", help="end hosts and all that runs in them")
    one.add_argument("name", nargs="+")
    commands.add_parser("list", help="hosts that are up")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["_console"]:
        return _console(arguments[1], arguments[2:])
    options = _arguments(arguments)
    try:
        match options.command:
            case "build":
                check_machine()
                for suite in options.suite or SUITES:
                    print(build(suite, HOST_PACKAGES))
                print(build(GUEST_SUITE, GUEST_PACKAGES))
            case "boot":
                print(Host.boot(options.suite, options.name or options.suite, stay=True).init.pid)
            case "install":
                Host.find(options.name).install()
            case "guest":
                Host.find(options.name).guest(options.guest, bus=not options.no_bus)
            case "run":
                Host.find(options.name).shell(options.words[1:] if options.words[:1] == ["--"] else options.words)
            case "shell":
                Host.find(options.name).shell()
            case "log":
                print((_state(options.name) / "console.log").read_text(errors="replace"), end="")
            case "down":
                for name in options.name:
                    Host.find(name).down()
            case "list":
                for host in Host.all():
                    print(f"{host.name:20} {host.suite:10} init {host.init.pid}")
    except (LabError, subprocess.SubprocessError) as error:
        print(f"lab: {error}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
