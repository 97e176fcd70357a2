# SPDX-License-Identifier: LGPL-2.1-or-later
"""`machine1-bridge report`: what somebody who is to help has to know of this host, as one text.

It is for hosts on which something is wrong. So it needs nothing of the service and waits for nobody for long, see
probe.py, and what cannot be found out is a line like any other.

A report is given away, so it names no machine, user or sandbox unless it is told to: see Names.
"""

import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from . import DEFAULT_SOCKET, __version__
from .probe import Outcome, Program, Service, SilentError
from .text import printable

LINES = 50

USER = "machine1-bridge"
PACKAGES = ("varlink", "jeepney", "jsonschema")
MAIN, MACHINED, BUS, POLKIT = "machine1-bridge.service", "systemd-machined.service", "dbus.service", "polkit.service"
SOCKET_UNIT = "machine1-bridge.socket"
UNITS = (SOCKET_UNIT, MAIN, "machine1-bridge@*", MACHINED, BUS, POLKIT)
PROPERTIES = (
    "Id", "LoadState", "ActiveState", "SubState", "UnitFileState", "Result", "FragmentPath", "DropInPaths", "MainPID",
    "NeedDaemonReload", "LimitNOFILE", "LimitNOFILESoft", "User", "StateChangeTimestamp", "ExecMainCode",
    "ExecMainStatus",
)  # fmt: skip
REGISTRY = Path("/run/varlink/registry/io.machine1")
SANDBOXES = Path("/run/machine1/sandbox")
# Below /usr, /usr/local and /etc, whichever the installation's prefix is.
SHARED = (Path("/etc"), Path("/usr/local/share"), Path("/usr/share"))
RULE = "polkit-1/rules.d/10-machine1-bridge.rules"
ACTIONS = "polkit-1/actions/io.machine1.policy"
BUS_POLICY = "dbus-1/system.d/machine1-bridge.conf"
# As the bus itself says it, and as sd-bus does.
DENIED = ("Access denied", "AccessDenied", "not authorized")


def main(arguments: list[str]) -> int:
    """Returns 0, whatever it finds."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="machine1-bridge report",
        description="Tell what matters about the service on this host, for an issue. Root sees more than others.",
        epilog="The service is asked, and so is started if it does not run. Nothing else is changed.",
    )
    parser.add_argument("--socket", metavar="PATH", default=os.environ.get("MACHINE1_SOCKET", DEFAULT_SOCKET))
    parser.add_argument(
        "--names", action="store_true", help="with the names of sandboxes' policies, and mistakes in policies in full"
    )
    parser.add_argument(
        "--journal",
        metavar="LINES",
        nargs="?",
        type=int,
        const=LINES,
        default=0,
        help=f"with the last lines of the journal, {LINES} if it is not said; they name machines and users",
    )
    options = parser.parse_args(arguments)
    report = Report(Names(options.names), options.socket, max(0, options.journal))
    try:
        text = report.write()
        sys.stdout.buffer.write(report.names.text(printable(text, keep="\n")).encode())
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Python would say so once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        report.close()
    return 0


class Names:
    """A sandbox bears the name of a machine or of a person as often as not: NAME1, NAME2, ... stand for them."""

    def __init__(self, told: bool) -> None:
        self._told = told
        self._numbers: dict[str, int] = {}

    def policy(self, name: str) -> str:
        if self._told or name == "default":
            return name
        return f"NAME{self._numbers.setdefault(name, len(self._numbers) + 1)}"

    def unit(self, unit: str) -> str:
        """machine1-bridge@NAME.socket; drop-ins are in a directory of this name."""
        return re.sub(
            r"machine1-bridge@(.+?)(\.(?:socket|service))", lambda found: self._instance(found[1], found[2]), unit
        )

    def _instance(self, name: str, suffix: str) -> str:
        return f"machine1-bridge@{self.policy(name)}{suffix}"

    def text(self, text: str) -> str:
        """All of it: a source tree or a socket may be in somebody's home."""
        return text if self._told else re.sub(r"(/home/)[^/\s]+", r"\1...", text)

    def socket(self, path: str) -> str:
        folder, name = os.path.split(path)
        return os.path.join(folder, self.policy(name)) if Path(folder) == SANDBOXES else path

    def mistake(self, message: str) -> str:
        """Of a policy, without the line's own words: they are names of machines, users and programs."""
        if self._told:
            return message
        message = re.sub(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""", "'...'", message)
        message = re.sub(r"\S.* is no key of a policy", "... is no key of a policy", message)
        return re.sub(r"(is a symbolic link to ).*(: )", r"\1...\2", message)


@dataclass
class Report:
    """One section after the other; what is wrong is at the beginning of the text."""

    names: Names
    socket: str
    journal: int
    _problems: list[str] = field(default_factory=list)
    _lines: list[str] = field(default_factory=list)
    _programs: list[Program] = field(default_factory=list)
    _units: dict[str, dict[str, str]] = field(default_factory=dict)
    _root: bool = field(default_factory=lambda: os.geteuid() == 0)

    def write(self) -> str:
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        systemd = self._start("systemctl", "--version")
        # Starts polkit and machined where the bus does that.
        polkit = self._start(
            *("busctl", "--system", "get-property", "org.freedesktop.PolicyKit1"),
            *("/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority", "BackendVersion"),
        )
        machined = self._start(
            *("busctl", "--system", "call", "org.freedesktop.machine1", "/org/freedesktop/machine1"),
            *("org.freedesktop.DBus.Peer", "Ping"),
        )
        itself = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
        bus = self._start("busctl", "--system", "call", *itself, "GetId")
        actions = self._start("pkaction")
        account = self._start("getent", "passwd", USER)
        # The service may not call this: it is told so once the bus has read the policy for its user.
        refused = None
        if self._root:
            refused = self._start("busctl", "--system", "call", *itself, "ListNames", user=USER)
        asked: list[str] = []
        self._section("service", self._ask, into=asked)
        # Only now: what was asked has started what can be started.
        show = self._start("systemctl", "show", "--timestamp=unix", f"--property={','.join(PROPERTIES)}", "--", *UNITS)
        journal = self._start(
            *("journalctl", "--no-pager", "--no-hostname", "--output=short-iso", f"--lines={self.journal}"),
            *("--unit=machine1-bridge.socket", "--unit=machine1-bridge.service", "--unit=machine1-bridge@*"),
        ) if self.journal else None  # fmt: skip
        self._section("versions", lambda: self._versions(systemd.outcome(), polkit.outcome()))
        self._section("units", lambda: self._show(show.outcome()))
        self._section("socket", self._socket)
        self._lines += asked
        self._section("policies", self._policies)
        self._section("bus", lambda: self._answers(bus.outcome(), machined.outcome()))
        self._section("rights", lambda: self._rights(account, actions, refused))
        self._section("limits", self._limits)
        if journal is not None:
            self._section("journal", lambda: self._journal(journal.outcome()))
        who = "root" if self._root else "a user who is not root, so some things cannot be seen"
        found = [f"! {problem}" for problem in self._problems] or ["nothing"]
        return "\n".join([f"machine1-bridge report of {now}, by {who}", "", "[wrong]", *found, *self._lines, ""])

    def close(self) -> None:
        for program in self._programs:
            program.close()

    # --- what the text is made of

    def _start(self, *command: str, user: str | None = None) -> Program:
        program = Program(*command, user=user)
        self._programs.append(program)
        return program

    def _section(self, title: str, fill: Callable[[], None], into: list[str] | None = None) -> None:
        """What goes wrong in one section is said in it, and the others follow."""
        before, self._lines = self._lines, ["", f"[{title}]"]
        try:
            fill()
        except Exception as error:
            self._wrong(f"{title}: this report has a defect: {error!r}")
        section, self._lines = self._lines, before
        (self._lines if into is None else into).extend(section)

    def _say(self, what: str, value: object) -> None:
        self._lines.append(f"{what + ':':<28} {value}")

    def _wrong(self, problem: str) -> None:
        self._problems.append(problem)

    def _fails(self, what: str, failure: str) -> None:
        self._say(what, failure)
        self._wrong(f"{what}: {failure}")

    # --- sections

    def _ask(self) -> None:
        try:
            service = Service(self.socket)
        except SilentError as error:
            return self._fails("connecting to the service", str(error))
        try:
            for method, told in (
                ("org.varlink.service.GetInfo", self._info),
                ("io.systemd.service.Ping", lambda reply: "answers"),
                ("io.machine1.ListMachines", lambda reply: f"{len(reply['machines'])} machines"),
            ):
                begin = time.monotonic()
                try:
                    value = told(service.call(method))
                except SilentError as error:
                    return self._fails(method, str(error))
                except (LookupError, TypeError):
                    self._fails(method, "a reply that makes no sense")
                else:
                    self._say(method, f"{value}, after {(time.monotonic() - begin) * 1000:.0f} ms")
        finally:
            service.close()

    def _info(self, reply: Mapping[str, Any]) -> str:
        # The interface's may follow it, in parentheses.
        runs, _, _ = str(reply["version"]).partition(" ")
        if runs != __version__:
            self._wrong(f"the service that runs is {runs}, installed is {__version__}: restart it")
        return f"{reply['product']} {reply['version']}, {', '.join(reply['interfaces'])}"

    def _versions(self, systemd: Outcome, polkit: Outcome) -> None:
        self._say("machine1-bridge", f"{__version__} in {Path(__file__).resolve().parent.parent}")
        self._say("Python", f"{sys.version.split()[0]}, {sys.executable}")
        for package in PACKAGES:
            try:
                self._say(package, metadata.version(package))
            except metadata.PackageNotFoundError:
                self._fails(package, "is not installed")
        self._say("systemd", systemd.failure or systemd.output.split("\n")[0].removeprefix("systemd "))
        self._say("polkit", polkit.failure or polkit.output.strip().removeprefix("s ").strip('"'))
        if polkit.failure:
            self._wrong(f"polkit does not answer, so only root may change anything: {polkit.failure}")
        kernel = os.uname()
        self._say("kernel", f"{kernel.release} {kernel.machine}")
        self._say("security modules", _first_line("/sys/kernel/security/lsm"))
        found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _text("/etc/os-release"), re.MULTILINE)
        self._say("distribution", found[1] if found else "not known")

    def _show(self, shown: Outcome) -> None:
        if shown.failure:
            self._fails("units", shown.failure)
        for block in shown.output.split("\n\n"):
            properties = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
            if "Id" in properties:
                self._units[properties["Id"]] = properties
        for unit, state in self._units.items():
            name, load, active = self.names.unit(unit), state["LoadState"], state["ActiveState"]
            self._say(name, ", ".join(filter(None, (load, f"{active} ({state['SubState']})", state["UnitFileState"]))))
            for path in [state["FragmentPath"], *state["DropInPaths"].split()]:
                if path and unit.startswith("machine1-bridge"):
                    self._lines.append(f"{'':28} {self.names.unit(path)}")
            if state["NeedDaemonReload"] == "yes":
                self._wrong(f"{name} was changed on disk: systemctl daemon-reload")
            if load != "loaded":
                if unit != POLKIT or self._is_of_its_user():
                    self._wrong(f"{name} is {load}")
            elif active == "failed":
                ended = f", exit status {state['ExecMainStatus']}" if state.get("ExecMainCode") == "1" else ""
                self._wrong(f"{name} has failed: {state['Result']}{ended}; see --journal")
            elif unit.endswith(".socket") and active != "active":
                self._wrong(f"{name} is {active}: systemctl enable --now {name}")

    def _is_of_its_user(self) -> bool:
        """Not as no-polkit.conf makes it."""
        return self._units.get(MAIN, {}).get("User", USER) == USER

    def _socket(self) -> None:
        self._say("directory", _described(os.path.dirname(self.socket)))
        self._say("socket", _described(self.socket, self.names.socket(self.socket)))
        try:
            if not stat.S_ISSOCK(os.stat(self.socket).st_mode):
                self._wrong("the socket is another kind of file")
        except OSError as error:
            self._wrong(f"the socket: {error.strerror}")
        try:
            target = os.path.join(REGISTRY.parent, os.readlink(REGISTRY))
            leads = os.path.realpath(target) == os.path.realpath(DEFAULT_SOCKET)
            self._say("registry link", f"to {DEFAULT_SOCKET}" if leads else "leads elsewhere")
            if not leads:
                self._wrong(f"{REGISTRY} does not lead to {DEFAULT_SOCKET}")
        except OSError as error:
            self._say("registry link", error.strerror)
        try:
            self._say("sockets of sandboxes", len(os.listdir(SANDBOXES)))
        except OSError as error:
            self._say("sockets of sandboxes", error.strerror)

    def _policies(self) -> None:
        # Another reader of policies would be another truth, so this is the service's, and only here.
        from .policy import DEFAULT, DIRECTORIES

        folder = DIRECTORIES[0]
        self._say("directory", _described(str(folder)))
        names = {DEFAULT}
        try:
            names |= {path.stem for path in folder.iterdir() if path.suffix == ".toml"}
        except FileNotFoundError:
            pass
        except OSError as error:
            self._say("files", error.strerror)
        for name in sorted(names, key=lambda name: (name != DEFAULT, name)):
            self._policy(name, folder / f"{name}.toml")

    def _policy(self, name: str, path: Path) -> None:
        from dataclasses import asdict

        from .limits import Limits
        from .policy import PolicyError, load

        shown = f"{self.names.policy(name)}.toml"
        try:
            policy = load(name)
        except PolicyError as error:
            if isinstance(error.__cause__, PermissionError):
                return self._say(shown, "cannot be read by this user")
            what = str(error).removeprefix(str(path)).removeprefix(":").strip()
            what = self.names.mistake(re.sub(r"^(\d+): ", r"line \1: ", what))
            return self._fails(shown, f"does not load, so its service does not start: {what}")
        told = [f"{len(policy.methods)} methods", f"polkit {'required' if policy.polkit_required else 'off'}"]
        told += ["host-paths"] if policy.host_paths else []
        told += ["details"] if policy.details else []
        told += ["accept-fds"] if policy.accept_fds else []
        usual = asdict(Limits())
        limits = asdict(policy.limits)
        told += [f"{key.replace('_', '-')} {value}" for key, value in limits.items() if value != usual[key]]
        try:
            written = path.stat().st_mtime
        except FileNotFoundError:
            return self._say(shown, f"the one that comes with the program, loads: {', '.join(told)}")
        self._say(shown, f"loads: {', '.join(told)}")
        unit = self._units.get(MAIN if name == "default" else f"machine1-bridge@{name}.service", {})
        read = unit.get("StateChangeTimestamp", "").removeprefix("@")  # started or reloaded
        if unit.get("ActiveState") == "active" and read.isdecimal() and written > int(read) + 1:
            self._wrong(f"{shown} is newer than the service that follows it: reload {self.names.unit(unit['Id'])}")
        return None

    def _answers(self, bus: Outcome, machined: Outcome) -> None:
        for what, outcome in (("system bus", bus), ("machined on the bus", machined)):
            if outcome.failure:
                self._fails(what, outcome.failure)
            else:
                self._say(what, "answers")

    def _rights(self, account: Program, actions: Program, refused: Program | None) -> None:
        """Is there what lets the service do its work, and has it been read?"""
        if not self._is_of_its_user():
            return self._say("user", "the service runs as another user than its own, so it needs none of these")
        entry = account.outcome()
        there = bool(entry.output)
        self._say("user", f"{USER} exists" if there else f"{USER} does not exist; {entry.failure}")
        if not there:
            self._wrong(f"there is no user {USER}: systemd-sysusers, then systemctl reload {BUS}")
        for what, inside in (("polkit rule", RULE), ("polkit actions", ACTIONS), ("D-Bus policy", BUS_POLICY)):
            self._find(what, inside)
        known = actions.outcome()
        number = len(re.findall(r"^io\.machine1\.", known.output, re.MULTILINE))
        self._say("polkit knows", known.failure or f"{number} actions of io.machine1")
        if not known.failure and not number:
            self._wrong("polkit knows no action of io.machine1, so only root may change anything")
        self._say("polkit follows the rule", self._rule())
        if there:
            self._say("the bus follows the policy", self._bus_policy(refused))
        return None

    def _find(self, what: str, inside: str) -> None:
        places = [place / inside for place in SHARED]
        hidden = None
        for place in places:
            try:
                os.stat(place)
                return self._say(what, place)
            except PermissionError:
                hidden = hidden or place.parent
            except OSError:
                pass
        if hidden is not None:
            return self._say(what, f"not seen, and this user may not look into {hidden}")
        return self._fails(what, f"no {Path(inside).name} in {', '.join(str(place.parent) for place in places)}")

    def _rule(self) -> str:
        """Asked of polkit about the process of the service itself, which only root may."""
        pid = self._units.get(MAIN, {}).get("MainPID", "0")
        if not self._root:
            return "only root can ask"
        if pid == "0":
            return "cannot be asked while the service does not run"
        fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
        try:
            subject = f"{pid},{fields[19]},{os.stat(f'/proc/{pid}').st_uid}"
        except (OSError, IndexError):
            return "cannot be asked, as the service has just ended"
        action = "org.freedesktop.machine1.shell"
        failure = self._start("pkcheck", "--action-id", action, "--process", subject).outcome().failure
        if failure:
            self._wrong(f"polkit does not follow the rule for {USER}, so that shells cannot be opened: {failure}")
        return failure or "yes"

    def _bus_policy(self, refused: Program | None) -> str:
        if refused is None:
            return "only root can see"
        outcome = refused.outcome()
        if any(word in outcome.failure for word in DENIED):
            return "yes"
        if not outcome.failure:
            self._wrong(f"the bus does not follow the policy for {USER}: systemctl reload {BUS}")
        return outcome.failure or "no"

    def _limits(self) -> None:
        for unit in (MAIN, MACHINED):
            state = self._units.get(unit)
            if state is not None:
                self._say(f"open files, {unit.removesuffix('.service')}", self._files(state))
        self._say("fs.nr_open", _first_line("/proc/sys/fs/nr_open"))
        self._say("fs.file-nr", " ".join(_first_line("/proc/sys/fs/file-nr").split()))

    def _files(self, state: Mapping[str, str]) -> str:
        limit = f"limit {state['LimitNOFILE']}, at first {state['LimitNOFILESoft']}"
        if state.get("MainPID", "0") == "0":
            return f"{limit}, does not run"
        try:
            number = len(os.listdir(f"/proc/{state['MainPID']}/fd"))
        except OSError as error:
            return f"{limit}, open: {error.strerror}"
        return f"{limit}, {number} open"

    def _journal(self, lines: Outcome) -> None:
        self._lines += (lines.output.rstrip("\n") or lines.failure or "empty for this user").split("\n")


def _text(path: str) -> str:
    """The file's, or why there is none, which is no more than another text."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError as error:
        return error.strerror or str(error)


def _first_line(path: str) -> str:
    return _text(path).split("\n")[0]


def _described(path: str, shown: str = "") -> str:
    """Who may what. Users are numbers."""
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{shown or path}: {error.strerror}"
    return f"{shown or path}, {stat.filemode(status.st_mode)}, UID {status.st_uid}, GID {status.st_gid}"
