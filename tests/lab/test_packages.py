# SPDX-License-Identifier: LGPL-2.1-or-later
"""The packages: built and looked at, and the Debian one installed, upgraded, removed and purged on real hosts."""

from __future__ import annotations

import itertools
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bridge import __version__
from tests.client import Client

from .conftest import GUEST, SOCKET, unavailable
from .host import REPOSITORY, Host, Unavailable
from .packages import build_deb, build_rpm, build_wheel, run_in_build_system
from .test_shell import Shell
from .varlink import call, error

T = TypeVar("T")

OLDER = "0.0.9"
DEBIAN = {"trixie": "257", "forky": "262"}
SANDBOX = "/run/machine1/sandbox/web"
# Where apt, dpkg and services that have nothing to do with the package write.
ELSEWHERE = re.compile(
    r"/var/(log|tmp|cache|lib/(apt|dpkg|systemd/(timers|random-seed|catalog)))|/etc/(passwd|group|g?shadow)-?$"
)
# Settings of the units that say so themselves; 262 knows all of them.
UNKNOWN_BEFORE_262 = re.compile("Unknown key '(AcceptFileDescriptors|XAttrEntryPoint|XAttrListen)'")

# systemctl enable makes it on a host where no other socket is enabled.
WANTS = {"/etc/systemd/system/sockets.target.wants"}


def or_unavailable(function: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401  whatever it takes
    try:
        return function(*arguments)
    except Unavailable as reason:
        unavailable(reason)


@pytest.fixture(scope="session")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return or_unavailable(build_deb, tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="session")
def older_deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return or_unavailable(build_deb, tmp_path_factory.mktemp("older"), OLDER)


def boot(suite: str, kind: str) -> Host:
    name = f"{suite}-{kind}-{os.getpid()}-{next(_numbers)}"
    host: Host = or_unavailable(lambda: Host.boot(suite, name, kind=kind))
    # The lab's hosts leave out documentation; a user's do not.
    for file in (host.path / "etc/dpkg/dpkg.cfg.d").iterdir():
        file.unlink()
    return host


_numbers = itertools.count(1)


@pytest.fixture(params=list(DEBIAN), ids=list(DEBIAN.values()))
def debian(request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host with what the package depends on, for one test alone."""
    with boot(request.param, "debian") as host:
        yield host


def apt(host: Host, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    return host.run(["apt-get", "-q", "-y", *arguments], check=check, environment=environment)


def put(host: Host, package: Path) -> str:
    """Lay a package into a host; its path there."""
    shutil.copyfile(package, host.path / "srv" / package.name)
    return f"/srv/{package.name}"


def install(host: Host, package: Path) -> str:
    return apt(host, "install", put(host, package)).stdout


def files(host: Host) -> dict[str, str]:
    """All that is on its disks, with type, mode and owner."""
    command = ["find", "/", "-xdev", "-printf", r"%p\t%y %m %u:%g %l\n"]
    found = dict(line.split("\t") for line in host.run(command).stdout.splitlines())
    return {path: what for path, what in found.items() if not ELSEWHERE.match(path) and not path.startswith("/srv/")}


def units(host: Host) -> set[str]:
    command = ["systemctl", "list-units", "--plain", "--no-legend", "machine1-bridge*"]
    return {line.split()[0] for line in host.run(command).stdout.splitlines()}


def version(path: str = SOCKET) -> str:
    with Client(path, timeout=60) as client:
        answer: str = client.call("org.varlink.service.GetInfo")["version"]
        return answer.partition(" ")[0]  # the interface's follows


# --- without a host


def test_lintian_finds_nothing(deb: Path, tmp_path: Path) -> None:
    for file in deb.parent.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    command = "lintian --display-info --pedantic --fail-on=pedantic *.changes"
    assert or_unavailable(run_in_build_system, tmp_path, command) == ""


def test_the_same_sources_are_the_same_package(deb: Path, tmp_path: Path) -> None:
    again = build_deb(tmp_path)
    assert again.read_bytes() == deb.read_bytes()


# Where each kind of package has its texts, and which compresses what.
TEXTS = re.compile(r"/usr/share/(doc|licenses)/.*")


def listed(names: Iterable[str]) -> set[str]:
    """The files of a package that are its own affair in no kind of package."""
    files = {name.rstrip("/").removeprefix(".").removesuffix(".gz") for name in names}
    return {name for name in files if not TEXTS.fullmatch(name) and not name.endswith("__pycache__")} - {""}


@pytest.fixture(scope="session")
def rpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return or_unavailable(build_rpm, tmp_path_factory.mktemp("rpm"))


def test_the_rpm_has_the_files_of_the_debian_package(rpm: Path, deb: Path, tmp_path: Path) -> None:
    shutil.copyfile(rpm, tmp_path / "package.rpm")
    shutil.copyfile(deb, tmp_path / "package.deb")
    of_rpm = run_in_build_system(tmp_path, "rpm -qlp package.rpm 2>/dev/null").splitlines()
    lines = run_in_build_system(tmp_path, "dpkg -c package.deb").splitlines()
    of_deb = {line.split()[5] for line in lines if not line.startswith("d")}
    folders = {"/usr/lib/machine1-bridge", "/usr/lib/machine1-bridge/bridge"}  # rpm lists what it owns
    own = {"/usr/share/lintian/overrides/machine1-bridge", "/usr/share/python3/runtime.d/machine1-bridge.rtupdate"}
    assert listed(of_rpm) - folders == listed(of_deb) - own
    data = runpy.run_path(str(REPOSITORY / "contrib/install.py"))["DATA_FILES"].values()
    assert {f"/usr/{inside}" for inside in data if "/doc/" not in inside} <= listed(of_rpm)


def test_the_rpm_says_what_it_needs(rpm: Path, tmp_path: Path) -> None:
    shutil.copyfile(rpm, tmp_path / "package.rpm")
    query = "rpm -qp --requires --provides package.rpm; rpm -qp --queryformat '%{VERSION} %{ARCH}' package.rpm"
    said = run_in_build_system(tmp_path, query)
    needs = ("python3-jeepney >= 0.9", "python3-jsonschema >= 4.19", "python3-varlink >= 31", "systemd-container")
    assert all(needed in said for needed in needs), said
    assert said.endswith(f"{__version__} noarch")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_has_the_service_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    modules = {f"bridge/{path.name}" for path in (REPOSITORY / "bridge").iterdir() if path.suffix in (".py", ".json")}
    assert {name for name in names if ".dist-info/" not in name} == modules
    fields = [line.split(": ", 1) for line in metadata.partition("\n\n")[0].splitlines()]
    assert ["Name", "machine1-bridge"] in fields
    assert ["Version", __version__] in fields
    needs = {value for key, value in fields if key == "Requires-Dist" and "extra ==" not in value}
    assert needs == {"varlink>=31", "jeepney>=0.9", "jsonschema>=4.19"}


def test_the_wheel_installs_the_command(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--prefix", str(place), str(wheel)], check=True)
    (library,) = place.glob("lib/python*/site-packages")
    environment = {"PYTHONPATH": str(library), "PATH": os.environ["PATH"]}
    command = [str(place / "bin/machine1-bridge"), "--version"]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"machine1-bridge {__version__}\n"


# --- on hosts


def test_it_works_as_installed(debian: Host, deb: Path) -> None:
    install(debian, deb)
    debian.guest(GUEST)
    assert [machine["name"] for machine in call(debian, "ListMachines", user="nobody")["machines"]] == [GUEST]
    assert debian.inside(version) == __version__
    assert error(debian, "TerminateMachine", {"name": GUEST}, user="nobody")[0].endswith("AuthenticationRequired")
    words = debian.run(["machine1-bridge", "shell", GUEST, "/bin/echo", "in", "the", "guest"]).stdout.split()
    assert words == ["in", "the", "guest"]
    call(debian, "TerminateMachine", {"name": GUEST})
    assert debian.run(["systemctl", "is-enabled", "machine1-bridge.socket"]).stdout == "enabled\n"
    names = [f"machine1-bridge{instance}.{kind}" for instance in ("", "@x") for kind in ("socket", "service")]
    verified = debian.run(["systemd-analyze", "verify", "--man=no", *names])
    complaints = [line for line in verified.stderr.splitlines() if not UNKNOWN_BEFORE_262.search(line)]
    assert (verified.stdout, complaints) == ("", [])
    # byte code is there for all, since the service cannot write it
    library = debian.path / "usr/lib/machine1-bridge/bridge"
    assert len(list(library.glob("__pycache__/*.pyc"))) == len(list(library.glob("*.py")))
    assert debian.run(["dpkg", "--verify", "machine1-bridge"]).stdout == ""


def under_load(command: list[str]) -> dict[str, Any]:
    """Inside a host: run a command that changes the package, while clients call. What the clients saw."""
    seen: dict[str, Any] = {"versions": [], "slowest": 0.0}
    idle = Client(SOCKET, timeout=60)
    assert idle.call("org.varlink.service.GetInfo")["version"].startswith(OLDER)
    shell = Shell(path="/bin/sh", args=["sh"])
    shell.write("before=42\n")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None:
        begun = time.monotonic()
        seen["versions"].append(version())
        seen["versions"].append(version(SANDBOX))
        seen["slowest"] = max(seen["slowest"], time.monotonic() - begun)
    assert process.stdout is not None
    seen["output"], seen["status"] = process.stdout.read(), process.returncode
    process.stdout.close()
    seen["closed"] = idle.is_closed()
    idle.close()
    shell.write('echo "it was $before"\nexit\n')
    seen["shell"] = "it was 42" in shell.to_the_end()
    return seen


def test_upgrade_keeps_the_socket_and_the_shells(debian: Host, older_deb: Path, deb: Path) -> None:
    """Each new connection is answered, by the old service or the new; a shell goes on; an idle connection is closed."""
    install(debian, older_deb)
    debian.guest(GUEST)
    (debian.path / "etc/machine1-bridge").mkdir()
    (debian.path / "etc/machine1-bridge/web.toml").write_text('preset = "read-only"\nmachines = ["*"]\n')
    debian.run(["systemctl", "enable", "--now", "--quiet", "machine1-bridge@web.socket"])
    sockets = ["machine1-bridge.socket", "machine1-bridge@web.socket"]
    state = ["systemctl", "show", "--property=Id,InvocationID,ActiveEnterTimestampMonotonic", *sockets]
    before = debian.run(state).stdout
    command = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "install", put(debian, deb)]
    seen = debian.inside(under_load, command)
    assert seen["status"] == 0, seen["output"]
    assert set(seen["versions"]) == {OLDER, __version__}
    assert seen["closed"]
    assert seen["shell"]
    assert seen["slowest"] < 10
    assert debian.run(state).stdout == before, "a socket was closed"
    assert (debian.inside(version), debian.inside(version, SANDBOX)) == (__version__, __version__)
    call(debian, "TerminateMachine", {"name": GUEST})
    assert (
        debian.run(["systemctl", "--failed", "--plain", "--no-legend", "list-units", "machine1-bridge*"]).stdout == ""
    )


def test_remove_and_purge_leave_nothing(debian: Host, deb: Path) -> None:
    before = files(debian)
    install(debian, deb)
    uid = debian.account("machine1-bridge").uid
    (debian.path / "etc/machine1-bridge").mkdir()
    policy = debian.path / "etc/machine1-bridge/web.toml"
    policy.write_text('preset = "read-only"\nmachines = ["*"]\n')
    debian.run(["systemctl", "enable", "--now", "--quiet", "machine1-bridge@web.socket"])
    assert [debian.inside(version), debian.inside(version, SANDBOX)] == [__version__, __version__]
    installed = files(debian)

    apt(debian, "remove", "machine1-bridge")
    assert units(debian) == set()
    assert debian.run(["pgrep", "-u", str(uid)], check=False).stdout == ""
    assert not (debian.path / "run/machine1").exists()
    assert not (debian.path / "run/varlink/registry/io.machine1").is_symlink()
    enabled = {f"/etc/systemd/system/sockets.target.wants/machine1-bridge{name}.socket" for name in ("", "@web")}
    kept = {path for path in files(debian).keys() - before.keys() if not path.startswith("/var/lib/systemd/")}
    assert kept - WANTS == enabled | {"/etc/machine1-bridge", "/etc/machine1-bridge/web.toml"}

    # it comes back as it was
    install(debian, deb)
    debian.run(["systemctl", "start", "machine1-bridge@web.socket"])
    assert [debian.inside(version), debian.inside(version, SANDBOX)] == [__version__, __version__]
    assert files(debian) == installed

    apt(debian, "purge", "machine1-bridge")
    assert units(debian) == set()
    # the administrator's policy and the user, whom the journal names
    assert files(debian).keys() - before.keys() == {"/etc/machine1-bridge", "/etc/machine1-bridge/web.toml"}
    assert debian.account("machine1-bridge").uid == uid
    install(debian, deb)
    policy.unlink()
    apt(debian, "purge", "machine1-bridge")
    assert files(debian) == before
    assert debian.run(["dpkg", "--audit"]).stdout == ""
    assert debian.run(["systemctl", "--failed", "--plain", "--no-legend"]).stdout == ""


def test_make_install_and_the_package_do_not_mix(debian: Host, deb: Path) -> None:
    debian.install()
    package = put(debian, deb)
    done = apt(debian, "install", package, check=False)
    assert done.returncode != 0
    assert "take it out with 'make uninstall' first" in done.stderr + done.stdout
    call(debian, "ListMachines")


def test_debian_12_is_refused(deb: Path) -> None:
    with boot("bookworm", "plain") as host:
        done = apt(host, "install", put(host, deb), check=False)
        assert done.returncode == 100
        assert "Depends: python3-jeepney (>= 0.9)" in done.stdout + done.stderr
        assert host.run(["dpkg", "--list", "machine1-bridge"], check=False).returncode != 0
        assert host.run(["dpkg", "--audit"]).stdout == ""
