# SPDX-License-Identifier: LGPL-2.1-or-later
"""`machine1-bridge report` where things are not as they should be. On real hosts it is tested in the lab."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge import __version__, policy, probe, report
from bridge.policy import PRESETS, PolicyError, parse
from bridge.probe import Program

REPOSITORY = Path(__file__).resolve().parents[2]
SECTIONS = ["wrong", "versions", "units", "socket", "service", "policies", "bus", "rights", "limits"]
PROGRAMS = ("systemctl", "busctl", "pkaction", "getent", "journalctl", "pkcheck")
PRIVATE = "honeypot"
INFO = {"vendor": "v", "product": "machine1-bridge", "version": __version__, "url": "u", "interfaces": ["io.machine1"]}
REPLIES = {
    "org.varlink.service.GetInfo": {"parameters": INFO},
    "io.systemd.service.Ping": {},
    "io.machine1.ListMachines": {"parameters": {"machines": [{"name": PRIVATE}, {"name": "b"}]}},
}


class Service:
    """Answers each call with what is in `replies`; where there is nothing, it is silent."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.replies: dict[str, object] = dict(REPLIES)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client:
                while data := client.recv(65536):
                    if data == b"end":
                        return
                    reply = self.replies.get(json.loads(data[:-1])["method"])
                    if reply == "hang up":
                        break
                    if reply is not None:
                        client.sendall((reply if isinstance(reply, str) else json.dumps(reply)).encode() + b"\0")

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self.path)
            last.sendall(b"end")
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "service")
    yield service
    service.close()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Programs of this test instead of the system's: each a shell script, given as keyword."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(**scripts: str) -> None:
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
            (folder / name).chmod(0o755)

    return make


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where policies are looked for; they may be this user's."""
    folder = tmp_path / "policies"
    folder.mkdir(mode=0o755)
    shipped = REPOSITORY / "contrib/policy"
    load = policy.load
    monkeypatch.setattr(policy, "DIRECTORIES", (folder, shipped))
    monkeypatch.setattr(policy, "load", lambda name: load(name, (folder, shipped), owner=os.geteuid()))
    return folder


def run(capfdbinary: pytest.CaptureFixture[bytes], *arguments: str) -> dict[str, list[str]]:
    """The lines of each section."""
    before = os.listdir("/proc/self/fd")
    assert report.main([*arguments]) == 0
    deadline = time.monotonic() + 5  # the service is a thread here, and has its end of the connection
    while len(os.listdir("/proc/self/fd")) > len(before):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    said = capfdbinary.readouterr()
    assert said.err == b""
    sections: dict[str, list[str]] = {"": []}
    title = ""
    for line in said.out.decode().splitlines():
        if line.startswith("["):
            title = line.strip("[]")
            sections[title] = []
        elif line:
            sections[title].append(line)
    return sections


def show(**units: dict[str, str]) -> str:
    """A script that is `systemctl show`."""
    usual: dict[str, str] = dict.fromkeys(report.PROPERTIES, "") | {
        "LoadState": "loaded",
        "ActiveState": "active",
        "SubState": "running",
    }
    blocks = []
    both: dict[str, dict[str, str]] = {"socket": {}, "service": {}}
    for unit, properties in (both | units).items():
        values = usual | {"Id": f"machine1-bridge.{unit}", "User": "machine1-bridge", "MainPID": "0"} | properties
        blocks.append("\n".join(f"{key}={value}" for key, value in values.items()))
    text = "\n\n".join(blocks)
    return f"cat <<'EOF'\n{text}\nEOF"


def test_where_there_is_nothing_each_thing_is_said_to_be_missing(
    tmp_path: Path, programs: Callable[..., None], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    text = run(capfdbinary, "--socket", f"{tmp_path}/none")
    assert list(text) == ["", *SECTIONS]
    assert "! connecting to the service: No such file or directory" in text["wrong"]
    assert "! units: systemctl is not installed" in text["wrong"]
    assert "! machined on the bus: busctl is not installed" in text["wrong"]
    assert "not by root" if os.geteuid() else "by root" in text[""][0]


def test_a_service_that_answers(
    service: Service, programs: Callable[..., None], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    text = run(capfdbinary, "--socket", service.path)
    info, ping, machines = text["service"]
    assert f"machine1-bridge {__version__}, io.machine1, after" in info
    assert "answers, after" in ping
    assert "2 machines, after" in machines
    assert PRIVATE not in str(text)


@pytest.mark.parametrize(
    ("method", "reply", "said"),
    [
        ("io.machine1.ListMachines", None, "no reply within 0.5 s"),
        ("org.varlink.service.GetInfo", None, "no reply within 0.5 s"),
        ("io.systemd.service.Ping", "hang up", "the service closed the connection"),
        ("io.systemd.service.Ping", "no JSON", "a reply that makes no sense"),
        ("io.machine1.ListMachines", [], "a reply that makes no sense"),
        ("io.machine1.ListMachines", {"parameters": []}, "a reply that makes no sense"),
        ("io.machine1.ListMachines", {"parameters": {"machines": 1}}, "a reply that makes no sense"),
        ("org.varlink.service.GetInfo", {"parameters": {"version": __version__}}, "a reply that makes no sense"),
        ("io.machine1.ListMachines", {"error": "io.machine1.Timeout"}, "Timeout"),
    ],
)
def test_a_service_that_does_not(
    service: Service,
    programs: Callable[..., None],
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    reply: object,
    said: str,
) -> None:
    monkeypatch.setattr(probe, "SECONDS", 0.5)
    service.replies[method] = reply
    (problem,) = [line for line in run(capfdbinary, "--socket", service.path)["wrong"] if method in line]
    assert problem.startswith(f"! {method}: {said}")


@pytest.mark.parametrize("interface", ["", " (io.machine1 1.0)"])
def test_a_service_of_another_version(
    service: Service, programs: Callable[..., None], capfdbinary: pytest.CaptureFixture[bytes], interface: str
) -> None:
    problem = f"! the service that runs is 0.0.9, installed is {__version__}: restart it"
    for version, told in (("0.0.9", True), (__version__, False)):
        service.replies["org.varlink.service.GetInfo"] = {"parameters": INFO | {"version": version + interface}}
        assert (problem in run(capfdbinary, "--socket", service.path)["wrong"]) is told


def test_programs_that_hang_hold_nobody_up_and_none_is_left(
    service: Service,
    programs: Callable[..., None],
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(probe, "SECONDS", 1.0)
    # The shell waits for a child, which has to end as well.
    programs(**dict.fromkeys(PROGRAMS, f"sleep 4711 & echo $! >>{tmp_path}/children; wait"))
    begin = time.monotonic()
    text = run(capfdbinary, "--socket", service.path, "--journal")
    assert time.monotonic() - begin < 5
    assert "! units: systemctl did not end within 1 s" in text["wrong"]
    assert text["journal"] == ["journalctl did not end within 1 s"]
    children = (tmp_path / "children").read_text().split()
    assert len(children) >= len(PROGRAMS) - 1
    assert [child for child in children if _runs(child)] == []


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("units", "problem"),
    [
        (
            {"socket": {"ActiveState": "inactive"}},
            "machine1-bridge.socket is inactive: systemctl enable --now machine1-bridge.socket",
        ),
        ({"socket": {"LoadState": "not-found", "ActiveState": "inactive"}}, "machine1-bridge.socket is not-found"),
        (
            {"service": {"ActiveState": "failed", "Result": "exit-code", "ExecMainCode": "1", "ExecMainStatus": "1"}},
            "machine1-bridge.service has failed: exit-code, exit status 1; see --journal",
        ),
        (
            {"service": {"NeedDaemonReload": "yes"}},
            "machine1-bridge.service was changed on disk: systemctl daemon-reload",
        ),
        (
            {"x": {"Id": f"machine1-bridge@{PRIVATE}.socket", "ActiveState": "failed", "Result": "resources"}},
            "machine1-bridge@NAME1.socket has failed: resources; see --journal",
        ),
        ({"x": {"Id": "systemd-machined.service", "LoadState": "masked"}}, "systemd-machined.service is masked"),
        ({"x": {"Id": "polkit.service", "LoadState": "not-found"}}, "polkit.service is not-found"),
    ],
)
def test_units_that_are_not_as_they_should_be(
    service: Service,
    programs: Callable[..., None],
    capfdbinary: pytest.CaptureFixture[bytes],
    units: dict[str, dict[str, str]],
    problem: str,
) -> None:
    programs(systemctl=show(**units))
    text = run(capfdbinary, "--socket", service.path)
    assert f"! {problem}" in text["wrong"]
    assert PRIVATE not in str(text)


def test_units_that_are_as_they_should_be(
    service: Service, programs: Callable[..., None], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    own = "/etc/systemd/system/machine1-bridge.service.d/own.conf"
    drop_in = f"/etc/systemd/system/machine1-bridge@{PRIVATE}.socket.d/own.conf"
    box = {"Id": f"machine1-bridge@{PRIVATE}.socket", "DropInPaths": drop_in}
    programs(systemctl=show(service={"DropInPaths": own}, box=box))
    text = run(capfdbinary, "--socket", service.path)
    assert not [problem for problem in text["wrong"] if problem.startswith("! machine1-bridge")]
    assert own in [line.strip() for line in text["units"]]
    assert drop_in.replace(PRIVATE, "NAME1") in [line.strip() for line in text["units"]]
    assert PRIVATE in str(run(capfdbinary, "--socket", service.path, "--names"))


def test_a_service_of_root_needs_no_rights(
    service: Service, programs: Callable[..., None], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """As no-polkit.conf makes it."""
    polkit = {"Id": "polkit.service", "LoadState": "not-found"}
    programs(systemctl=show(service={"User": "root"}, polkit=polkit))
    text = run(capfdbinary, "--socket", service.path)
    assert len(text["rights"]) == 1
    assert not [problem for problem in text["wrong"] if "polkit.service" in problem]


def test_policies_are_told_of_but_not_told(
    service: Service, programs: Callable[..., None], capfdbinary: pytest.CaptureFixture[bytes], folder: Path
) -> None:
    (folder / f"{PRIVATE}.toml").write_text(f'preset = "read-only"\nmachines = ["{PRIVATE}"]\nlimits.depth = 16\n')
    (folder / "wrong.toml").write_text(f'preset = "read-only"\nmachines = ["{PRIVATE}["]\n')
    (folder / "notes.txt").write_text(PRIVATE)
    text = run(capfdbinary, "--socket", service.path)
    shipped, good, bad = text["policies"][1:]
    assert shipped.startswith("default.toml:")
    loads = f"loads: {len(PRESETS['all'])} methods, polkit required, host-paths"
    assert f"the one that comes with the program, {loads}" in shipped
    assert good == f"{'NAME1.toml:':<28} loads: {len(PRESETS['read-only'])} methods, polkit required, depth 16"
    mistake = "does not load, so its service does not start: line 2: machines[0]: '...' has a [ without its ]; [[] is"
    assert bad.startswith(f"{'NAME2.toml:':<28} {mistake}")
    assert [problem for problem in text["wrong"] if problem.startswith(f"! NAME2.toml: {mistake}")]
    assert PRIVATE not in str(text)
    text = run(capfdbinary, "--socket", service.path, "--names")
    assert [problem for problem in text["wrong"] if "! wrong.toml: does not load" in problem and PRIVATE in problem]


def test_a_policy_that_is_newer_than_its_service(
    service: Service, programs: Callable[..., None], capfdbinary: pytest.CaptureFixture[bytes], folder: Path
) -> None:
    (folder / "default.toml").write_text('preset = "read-only"\n')
    problem = "! default.toml is newer than the service that follows it: reload machine1-bridge.service"
    for started, newer in ((time.time() - 100, True), (time.time() + 100, False)):
        programs(systemctl=show(service={"StateChangeTimestamp": f"@{started:.0f}"}))
        assert (problem in run(capfdbinary, "--socket", service.path)["wrong"]) is newer


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('machines = ["honeypot["]', "machines[0]: '...' has a [ without its ]; [[] is the character"),
        ('machines = ["honey\'pot\\"["]', "machines[0]: '...' has a [ without its ]; [[] is the character"),
        ('honeypot = ["x"]', "... is no key of a policy; there are preset, "),
        ("[limits]\nhoneypot = 1", "... is no key of a policy; there are connections, "),
        ("[honeypot]\nx = 1", "... is no key of a policy; there are preset, "),
        ('methods = ["honeypot"]', "methods[0]: no method of io.machine1 is called '...'"),
        ('environment = ["honeypot=1"]', "environment[0]: '...' has a =, must be a variable's name alone"),
        ('programs = [["honeypot"]]', "programs[0][0]: '...' must be the absolute path of a program"),
        ('x = "honeypot', "is not TOML"),
        ("honeypot.x = 1\nhoneypot = 2", "is not TOML"),
        ("[honeypot]\n[honeypot]", "is not TOML"),
        ('"honeypot" = 1\n"honeypot" = 2', "is not TOML"),
        ("limits.depth = 1", "limits.depth must be a number from 8 to 256"),
    ],
)
def test_a_mistake_is_said_without_the_words_of_the_file(text: str, shown: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse(text.encode(), "box", "box.toml")
    mistake = report.Names(False).mistake(str(caught.value))
    assert shown in mistake
    assert "honey" not in mistake
    assert report.Names(True).mistake(str(caught.value)) == str(caught.value)


def test_a_link_is_said_without_where_it_leads(folder: Path) -> None:
    (folder / "box.toml").symlink_to("honeypot.toml")
    with pytest.raises(PolicyError) as caught:
        policy.load("box")
    assert "honeypot" in str(caught.value)
    assert (
        report.Names(False).mistake(str(caught.value)).endswith("is a symbolic link to ...: No such file or directory")
    )


def test_names_of_users_in_paths() -> None:
    names = report.Names(False)
    assert names.text("0.1.0 in /home/joe/bridge\n/var/home/joe") == "0.1.0 in /home/.../bridge\n/var/home/..."
    assert names.socket("/run/machine1/sandbox/joe") == "/run/machine1/sandbox/NAME1"
    assert names.socket("/run/machine1/io.machine1") == "/run/machine1/io.machine1"
    assert report.Names(True).text("/home/joe") == "/home/joe"


def test_a_defect_of_one_section_is_said_in_it(
    service: Service,
    programs: Callable[..., None],
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report, "_described", lambda *_: 1 / 0)
    text = run(capfdbinary, "--socket", service.path)
    assert "! socket: this report has a defect: ZeroDivisionError('division by zero')" in text["wrong"]
    assert list(text) == ["", *SECTIONS]


def test_journal(service: Service, programs: Callable[..., None], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    programs(journalctl='echo "$*"')
    assert "journal" not in run(capfdbinary, "--socket", service.path)
    assert "--lines=50 " in run(capfdbinary, "--socket", service.path, "--journal")["journal"][0]
    assert "--lines=7 " in run(capfdbinary, "--socket", service.path, "--journal=7")["journal"][0]


def test_a_program_says_what_it_says(programs: Callable[..., None]) -> None:
    programs(good="echo out; echo err >&2", bad="echo out; echo err >&2; exit 3", silent="exit 3", cat="exec cat")
    for command, output, failure in (
        ("good", "out\n", ""),
        ("bad", "out\n", "bad: err"),
        ("silent", "", "silent: exit status 3"),
        ("cat", "", ""),
        ("none", "", "none is not installed"),
    ):
        program = Program(command)
        outcome = program.outcome()
        program.close()
        assert (outcome.output, outcome.failure) == (output, failure)


@pytest.mark.skipif(os.geteuid() != 0, reason="not root, who alone can be somebody else")
def test_whom_a_program_runs_as_gets_nothing_of_roots_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    for user, told in ((None, True), ("daemon", False)):
        program = Program("env", user=user)
        output = program.outcome().output
        program.close()
        assert ("SECRET=hunter2" in output) is told
        assert "LC_ALL=C.UTF-8" in output


def test_the_command_says_it_all_and_nothing_else(service: Service) -> None:
    """Not a warning either, and no output half-way to somebody who has read enough."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-m", "bridge", "report", "--socket", service.path]
    done = subprocess.run(command, capture_output=True, cwd=REPOSITORY, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line[1:-1] for line in done.stdout.splitlines() if line.startswith("[")] == SECTIONS
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_it_loads_nothing_of_the_service() -> None:
    """So it tells of an installation in which that fails."""
    code = "import sys, bridge.report; print(sorted({'jsonschema', 'jeepney', 'bridge.service'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=REPOSITORY, text=True, check=True)
    assert done.stdout == "[]\n"
