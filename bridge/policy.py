# SPDX-License-Identifier: LGPL-2.1-or-later
"""What clients of one socket may ask for at all: a file, read once at the start, and the decisions that follow from it.

Default deny: a method, a name, a parameter that nothing here knows is refused. A file with a mistake is refused as a
whole, with the line; contrib/policy/default.toml explains the keys, contrib/security.md what they are for. Nothing here
does I/O after `load`, and nothing asks whether a machine exists: hidden and missing cannot but look the same.
"""

import errno
import fnmatch
import os
import re
import signal
import stat
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from . import urls
from .errors import InvalidParameter, NoSuchImage, NoSuchMachine, PermissionDenied, Refusal
from .limits import RANGES, Limits
from .machines import HOST
from .messages import Parameters
from .methods import METHODS
from .urls import URLGlob

DEFAULT = "default"
INTERFACE = "io.machine1."
# The administrator's, then, for DEFAULT alone, that of the program: beside the package, or in its sources.
_PROGRAM = Path(__file__).resolve().parent.parent
DIRECTORIES = (Path("/etc/machine1-bridge"), _PROGRAM, _PROGRAM / "contrib" / "policy")

SIZE_MAX = 64 * 1024
GLOB_MAX = 4096
# Each one is a search through the text. Without a bound a file could make a check of a long argument slow.
STARS_MAX = 16

# --- what there is to decide ----------------------------------------------------------------------------------------

# Written out, not computed: a new method is in no preset until somebody puts it there.
_READ_ONLY = frozenset({
    "ListMachines", "GetMachine", "GetMachineByPID", "MapFromMachineUser", "MapFromMachineGroup", "MapToMachineUser",
    "MapToMachineGroup", "WatchMachines", "WaitMachine", "ListImages", "GetImage", "WatchImages", "GetPool",
    "ListTransfers",
})  # fmt: skip
_MANAGE = _READ_ONLY | {
    "TerminateMachine", "KillMachine", "PoweroffMachine", "RebootMachine", "StartMachine", "UnregisterMachine",
    "OpenMachineShell", "OpenMachineLogin", "OpenMachinePTY", "RemoveImage", "CloneImage", "RenameImage",
    "MarkImageReadOnly", "SetImageLimit",
}  # fmt: skip
_HOST_PATHS = frozenset({"CopyFromMachine", "CopyToMachine", "BindMountMachine"})
# And all files of a machine, whatever `users` and `programs` say.
_FILES = _HOST_PATHS | {"OpenMachineRootDirectory"}
# Of all images at once.
_POOL = frozenset({"SetPoolLimit", "CleanPool"})
# Whole images, from outside and to outside.
_TRANSFERS = frozenset({
    "ImportTar", "ImportRaw", "ExportTar", "ExportRaw", "PullTar", "PullRaw", "CancelTransfer",
})  # fmt: skip
# To systemd, what ends in these is no image of this name, but belongs to the one that is named before. In a directory
# of versions (systemd.v(7)) or of layers that image is where a symbolic link leads, so who makes the archive makes what
# is on the host an image. The others are files, which an import with `force` would replace by a directory.
_OF_ANOTHER = (
    ".v", ".mstack", ".raw", ".nspawn", ".roothash", ".roothash.p7s", ".usrhash", ".usrhash.p7s", ".verity"
)  # fmt: skip
# Of the service itself, for root and its own user: nothing for a sandbox whose user is 0.
_SERVICE = frozenset(f"io.systemd.service.{method}" for method in ("Reload", "SetLogLevel", "GetEnvironment"))
PRESETS = {"read-only": _READ_ONLY, "manage": _MANAGE, "all": _MANAGE | _FILES | _POOL | _TRANSFERS | _SERVICE}

# What says but what the policy itself shows.
ALWAYS = frozenset({
    "org.varlink.service.GetInfo", "org.varlink.service.GetInterfaceDescription", "io.machine1.Check",
    "io.systemd.service.Ping", "io.systemd.service.GetLogLevel",
})  # fmt: skip

# What is about every image, whatever its name, is for a policy that shows them all: even the space that they take would
# tell of the others.
_EVERY_IMAGE = frozenset(INTERFACE + method for method in _POOL | {"GetPool"})

# What each parameter is that METHODS does not already say to be a machine, an image or a new image. `free` needs no
# decision, nor does `guest-path`; `arguments` are decided with `program`. Whatever is not here is refused.
_ASK = {"allowInteractiveAuthentication": "free"}
_IMPORT = {"image_fd": "fd", "force": "free", "read_only": "free"} | _ASK
_EXPORT = {"image_fd": "fd", "format": "free"} | _ASK
_PULL = {"url": "url", "verify": "free", "force": "free"} | _ASK
_MORE: dict[str, dict[str, str]] = {
    "ListMachines": {"all": "free", "class": "free", "service": "free", "details": "details"} | _ASK,
    "GetMachine": {"details": "details"} | _ASK,
    "GetMachineByPID": {"pid": "free", "details": "details"} | _ASK,
    "MapFromMachineUser": {"uid": "free"},
    "MapFromMachineGroup": {"gid": "free"},
    "MapToMachineUser": {"uid": "free"},
    "MapToMachineGroup": {"gid": "free"},
    "TerminateMachine": _ASK,
    "PoweroffMachine": _ASK,
    "RebootMachine": _ASK,
    "StartMachine": {"name": "start"} | _ASK,
    "UnregisterMachine": _ASK,
    "OpenMachineLogin": _ASK,
    "OpenMachinePTY": _ASK,
    "OpenMachineRootDirectory": _ASK,
    "KillMachine": {"who": "free", "signal": "free"} | _ASK,
    "OpenMachineShell": {"user": "user", "path": "program", "args": "arguments", "env": "environment"} | _ASK,
    "CopyFromMachine": {"src": "guest-path", "dest": "host-path", "replace": "free"} | _ASK,
    "CopyToMachine": {"src": "host-path", "dest": "guest-path", "replace": "free"} | _ASK,
    "BindMountMachine": {"src": "host-path", "dest": "guest-path", "read_only": "free", "mkdir": "free"} | _ASK,
    "WatchMachines": {"cursor": "free", "all": "free"},
    # One that is not shown never comes: that needs no decision, and a refusal would end the wait.
    "WaitMachine": {"name": "free", "state": "free", "timeout": "free"},
    "ListImages": {"all": "free", "type": "free", "read_only": "free", "details": "details"} | _ASK,
    "GetImage": {"details": "details"} | _ASK,
    "WatchImages": {"cursor": "free", "all": "free"},
    "RemoveImage": _ASK,
    "CloneImage": {"read_only": "free"} | _ASK,
    "RenameImage": _ASK,
    "MarkImageReadOnly": {"read_only": "free"} | _ASK,
    "SetImageLimit": {"limit": "free"} | _ASK,
    "GetPool": {},
    "SetPoolLimit": {"limit": "free"} | _ASK,
    "CleanPool": {"mode": "free"} | _ASK,
    "ImportTar": _IMPORT,
    "ImportRaw": _IMPORT,
    "ExportTar": _EXPORT,
    "ExportRaw": _EXPORT,
    "PullTar": _PULL,
    "PullRaw": _PULL,
    "ListTransfers": {},
    "CancelTransfer": {"transfer": "free"} | _ASK,
}
# Machines and images first: that one is not shown is said before anything else.
PARAMETERS: dict[str, dict[str, str]] = {
    INTERFACE + method: {
        parameter: kind
        for kind, parameter in sorted(METHODS[INTERFACE + method].about.items(), key=lambda about: about[0] == "new")
    }
    | more
    for method, more in _MORE.items()
} | {
    "io.systemd.service.Reload": _ASK,
    "io.systemd.service.SetLogLevel": {"level": "free"},
    "io.systemd.service.GetEnvironment": {},
}


def normalize(method: str, parameters: Parameters) -> dict[str, Any]:
    """The values that the policy and polkit see and that machined gets, of validated parameters.

    Nobody has to know what an empty one means: the user, the argument vector and the target of a copy are written out.
    Paths of the host have one spelling; those in a guest are its own affair. Raises InvalidParameter.
    """
    values = dict(parameters)
    change = _NORMALIZED.get(method)
    if change is not None:
        change(values)
    return values


def _normalize_shell(values: dict[str, Any]) -> None:
    """As machined itself reads them: an empty user is root, an empty path the login shell, which takes no arguments."""
    path = values.get("path", "")
    if path:
        path = _one_spelling(path)
    user = values.get("user", "")
    values["user"] = "root" if user in ("", "0") else user
    values["path"] = path
    values["args"] = (values.get("args") or [path]) if path else []
    values["env"] = values.get("env", [])


def _normalize_kill(values: dict[str, Any]) -> None:
    values["who"] = values.get("who", "all")
    values["signal"] = values.get("signal", signal.SIGTERM.value)


def _normalize_clone(values: dict[str, Any]) -> None:
    values["read_only"] = values.get("read_only", False)


def _normalize_copy_from(values: dict[str, Any]) -> None:
    values["replace"] = values.get("replace", False)
    values["dest"] = _host_path("dest", values.get("dest") or values["src"])


def _normalize_copy_to(values: dict[str, Any]) -> None:
    values["replace"] = values.get("replace", False)
    _normalize_into_a_machine(values)


def _normalize_bind_mount(values: dict[str, Any]) -> None:
    _normalize_into_a_machine(values)
    values["read_only"], values["mkdir"] = values.get("read_only", False), values.get("mkdir", False)


def _normalize_into_a_machine(values: dict[str, Any]) -> None:
    values["src"] = _host_path("src", values["src"])
    values["dest"] = values.get("dest") or values["src"]


def _normalize_import(values: dict[str, Any]) -> None:
    values["force"], values["read_only"] = values.get("force", False), values.get("read_only", False)


def _normalize_export(values: dict[str, Any]) -> None:
    values["format"] = values.get("format", "uncompressed")


def _normalize_pull(values: dict[str, Any]) -> None:
    try:
        values["url"] = urls.normalize(values["url"])
    except ValueError as error:
        raise InvalidParameter("url", str(error)) from error
    values["verify"], values["force"] = values.get("verify", "signature"), values.get("force", False)


_NORMALIZED: dict[str, Callable[[dict[str, Any]], None]] = {
    "io.machine1.KillMachine": _normalize_kill,
    "io.machine1.CloneImage": _normalize_clone,
    "io.machine1.OpenMachineShell": _normalize_shell,
    "io.machine1.CopyFromMachine": _normalize_copy_from,
    "io.machine1.CopyToMachine": _normalize_copy_to,
    "io.machine1.BindMountMachine": _normalize_bind_mount,
    "io.machine1.ImportTar": _normalize_import,
    "io.machine1.ImportRaw": _normalize_import,
    "io.machine1.ExportTar": _normalize_export,
    "io.machine1.ExportRaw": _normalize_export,
    "io.machine1.PullTar": _normalize_pull,
    "io.machine1.PullRaw": _normalize_pull,
}


def _host_path(parameter: str, path: str) -> str:
    """One spelling for a path. Symbolic links are not looked at: they may be others when machined opens the path."""
    if not path.startswith("/"):
        raise InvalidParameter(parameter, "must be an absolute path")
    if ".." in path.split("/"):
        raise InvalidParameter(parameter, "must not contain .. as this is a path of the host")
    return _one_spelling(path)


def _one_spelling(path: str) -> str:
    """An absolute path without what means nothing: `//`, `/./`, a slash at its end."""
    return "/" + "/".join(step for step in path.split("/") if step not in ("", "."))


# --- deciding -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Globs:
    """Texts, those with wildcards compiled to one expression. Case counts; `*` and `?` match any character there is.

    `everything`: one of them is the glob `*`.
    """

    exact: frozenset[str] = frozenset()
    pattern: re.Pattern[str] | None = None
    everything: bool = False

    @classmethod
    def of(cls, globs: Collection[str]) -> "Globs":
        """The globs must have no flaw. Python makes each `*` an atomic group, which never tries twice."""
        wild = [glob for glob in globs if any(character in glob for character in "*?[")]
        return cls(
            frozenset(globs) - frozenset(wild),
            re.compile("|".join(fnmatch.translate(glob) for glob in wild)) if wild else None,
            "*" in wild,
        )

    def match(self, text: str) -> bool:
        return text in self.exact or (self.pattern is not None and self.pattern.match(text) is not None)

    def match_object(self, name: str) -> bool:
        """The same for a machine or an image: the host only where written out. Machined takes "" for the host, too."""
        return name in self.exact if name in ("", HOST) else self.match(name)


@dataclass(frozen=True, slots=True)
class Program:
    """One program, and its arguments after argv[0]; `rest`: any more of them."""

    path: str
    arguments: tuple[Globs, ...] = ()
    rest: bool = False

    def match(self, path: str, argv: Sequence[str]) -> bool:
        """argv[0] may be no other program's name: some programs are many, and look at it to know which to be."""
        if path != self.path:
            return False
        if not path:
            return True
        arguments = argv[1:]
        return (
            argv[0] in (path, path.rpartition("/")[2])
            and (len(arguments) == len(self.arguments) or (self.rest and len(arguments) > len(self.arguments)))
            and all(glob.match(argument) for glob, argument in zip(self.arguments, arguments, strict=False))
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """What one file says. Without it: nothing is allowed. `methods` are qualified; `programs` None means any."""

    name: str
    methods: frozenset[str] = frozenset()
    machines: Globs = Globs()
    images: Globs = Globs()
    users: Globs = Globs()
    programs: tuple[Program, ...] | None = ()
    environment: Globs = Globs()
    host_paths: bool = False
    details: bool = False
    accept_fds: bool = False
    pull: tuple[URLGlob, ...] = ()
    polkit_required: bool = True
    limits: Limits = Limits()  # noqa: RUF009  immutable

    def allows_method(self, method: str) -> bool:
        return method in self.methods or method in ALWAYS

    def shows_machine(self, name: str) -> bool:
        return self.machines.match_object(name)

    def shows_image(self, name: str) -> bool:
        return self.images.match_object(name)

    def filter(self, method: str, reply: dict[str, Any]) -> None:
        """Take out of a list what the policy does not show."""
        key, shows = {
            "io.machine1.ListMachines": ("machines", self.shows_machine),
            "io.machine1.WatchMachines": ("machines", self.shows_machine),
            "io.machine1.ListImages": ("images", self.shows_image),
            "io.machine1.WatchImages": ("images", self.shows_image),
        }.get(method, ("", None))
        if shows is not None:
            reply[key] = [entry for entry in reply[key] if shows(entry["name"])]

    def require_method(self, method: str) -> None:
        """Before the parameters are looked at. Raises PermissionDenied."""
        if not self.allows_method(method):
            _deny("the policy does not allow this method")

    def decide(self, method: str, parameters: Parameters) -> None:
        """Return if the call may go on, with what `normalize` makes of it. The parameters have been validated.

        Raises NoSuchMachine and NoSuchImage for what is not shown, before anything else could tell that it exists;
        PermissionDenied for all other refusals. Each carries its `refusal`.
        """
        self.require_method(method)
        if method in ALWAYS:
            return
        kinds = PARAMETERS.get(method)
        if kinds is None:
            _deny("the policy has no rule for this method")
        if method in _EVERY_IMAGE and not self.images.everything:
            _deny("this method is about every image, so images of the policy need the glob *")
        values = normalize(method, parameters)
        for parameter, kind in kinds.items():
            self._decide_one(kind, parameter, values)
        for parameter in values:
            if parameter not in kinds:
                _deny(f"the policy has no rule for the parameter {parameter}")

    def _decide_one(self, kind: str, parameter: str, values: Mapping[str, Any]) -> None:
        """An absent value is an empty one here, which no object matches."""
        value = values.get(parameter, "")
        match kind:
            case "machine":
                if not self.shows_machine(value):
                    raise NoSuchMachine(value).refused(Refusal("policy", "the policy shows no machine of this name"))
            case "image":
                if not self.shows_image(value):
                    raise NoSuchImage(value).refused(Refusal("policy", "the policy shows no image of this name"))
            case "start":
                self._decide_one("image", parameter, values)
                if not self.shows_machine(value):
                    _deny(f"{parameter} is no name that the policy allows for a machine")
            case "new":
                if not self.shows_image(value):
                    _deny(f"{parameter} is no name that the policy allows for an image")
                if value.endswith(_OF_ANOTHER):
                    _deny(f"{parameter} ends in .{value.rpartition('.')[2]}, as what belongs to another image")
            case "user":
                if not self.users.match(value):
                    _deny(f"{parameter} is no user that the policy allows")
            case "program":
                if not self._runs(value, values["args"]):
                    _deny(f"{parameter} and args are no program that the policy allows")
            case "environment":
                for index, assignment in enumerate(value):
                    if not self.environment.match(assignment.partition("=")[0]):
                        _deny(f"{parameter}[{index}] is no variable that the policy allows")
            case "host-path":
                if not self.host_paths:
                    _deny(f"{parameter} is a path of the host, which the policy does not allow")
            case "details":
                if value and not self.details:
                    _deny(f"{parameter} is true, and the policy allows no details")
            case "fd":
                if not self.accept_fds:
                    _deny(f"{parameter} is a file descriptor, which the policy does not accept")
            case "url":
                if not urls.matches(self.pull, value):
                    _deny(f"{parameter} is no URL that the policy allows to pull from")
            case "guest-path" | "arguments" | "free":
                pass
            case _:
                _deny(f"the policy has no rule for a {kind}")

    def _runs(self, path: str, argv: Sequence[str]) -> bool:
        return self.programs is None or any(program.match(path, argv) for program in self.programs)


def _deny(reason: str) -> NoReturn:
    raise PermissionDenied().refused(Refusal("policy", reason))


# --- reading --------------------------------------------------------------------------------------------------------


class PolicyError(Exception):
    """A policy that cannot be used. The message has the file, the line where it can be told, and what is wrong."""


_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")


def load(name: str, directories: Sequence[Path] = DIRECTORIES, *, owner: int = 0) -> Policy:
    """The policy of this name, from the first directory. Those after it are looked into for `default` alone.

    What decides about root's rights must be root's: the file and its directory belong to `owner` (root, except in
    tests) and nobody else may write them. Only the file that comes with the program may belong to the user that this
    runs as instead, as in a source tree: who owns that could as well change this function.
    """
    if not _NAME.fullmatch(name):
        raise PolicyError(
            f"{name!r} is no name of a policy: letters, digits, '_', '-' and '.', not at the beginning"
        )
    for index, directory in enumerate(directories if name == DEFAULT else directories[:1]):
        path = directory / f"{name}.toml"
        data = _read(path, owner, shipped=index > 0)
        if data is not None:
            return parse(data, name, str(path))
    raise PolicyError(f"{directories[0] / name}.toml: no such file")


def _read(path: Path, owner: int, *, shipped: bool) -> bytes | None:
    """None where there is none. Everything is checked on what was opened, so nothing can be exchanged afterwards."""
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PolicyError(f"{path.parent}: {error.strerror}") from error
    try:
        _check_owner(path.parent, os.fstat(folder), owner, shipped=shipped)
        fd = _open(folder, path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}") from error
    finally:
        os.close(folder)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise PolicyError(f"{path}: is no regular file")
        _check_owner(path, status, owner, shipped=shipped)
        with open(fd, "rb", closefd=False) as file:
            data = file.read(SIZE_MAX + 1)
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}") from error
    finally:
        os.close(fd)
    if len(data) > SIZE_MAX:
        raise PolicyError(f"{path}: is larger than {SIZE_MAX} bytes")
    return data


def _open(folder: int, path: Path) -> int:
    """A link may name another file of the same directory, and nothing else. One that leads nowhere is a mistake."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(path.name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    target = os.readlink(path.name, dir_fd=folder)
    if "/" in target:
        raise PolicyError(f"{path}: is a symbolic link that leads out of its directory")
    try:
        return os.open(target, flags, dir_fd=folder)
    except OSError as error:
        raise PolicyError(f"{path}: is a symbolic link to {target}: {error.strerror}") from error


def _check_owner(path: Path, status: os.stat_result, owner: int, *, shipped: bool) -> None:
    if shipped and status.st_uid == os.geteuid() != owner:
        return
    if status.st_uid != owner:
        raise PolicyError(f"{path}: belongs to UID {status.st_uid}, must belong to UID {owner}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PolicyError(f"{path}: can be written by others than its owner: chmod go-w")


def parse(data: bytes, name: str, path: str) -> Policy:
    """The policy that these bytes are. `path` is for messages."""
    return _File(data, name, path).policy()


# The keys of TOML that begin a line, and the headers of tables (without quotes: ["/bin/sh"] is a line of a list).
_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_ENTRY = re.compile(
    rf"[ \t]*(?:\[[ \t]*(?P<header>[A-Za-z0-9_.-]+)[ \t]*\][ \t]*(?:#.*)?$"
    rf"|(?P<key>{_KEY}(?:[ \t]*\.[ \t]*{_KEY})*)[ \t]*=)"
)
_STRING = re.compile(r"""#[^\n]*|\"{3}(?s:.*?)\"{3}|'{3}(?s:.*?)'{3}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_LINE = re.compile(r"\(?at line (\d+), column \d+\)?")

_KEYS = (
    "preset", "methods", "machines", "images", "users", "programs", "environment", "host-paths", "details",
    "accept-fds", "pull", "polkit", "limits",
)  # fmt: skip
_LIMITS = {field.replace("_", "-"): field for field in RANGES}


class _File:
    """Turns a file into a policy, key by key; whatever is wrong ends it with the line."""

    def __init__(self, data: bytes, name: str, path: str) -> None:
        self._name, self._path = name, path
        try:
            self._text = data.decode().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise self._error_at(data[: error.start].count(b"\n") + 1, "is not UTF-8") from error
        try:
            self._document = tomllib.loads(self._text)
        except ValueError as error:
            # Also what int() says of a number with thousands of digits.
            found = _LINE.search(str(error))
            what = _LINE.sub("", str(error)).strip()
            end = self._text.rstrip("\n").count("\n") + 1 if "at end of document" in what else None
            raise self._error_at(int(found[1]) if found else end, f"is not TOML: {what}") from error
        except RecursionError as error:
            raise self._error_at(None, "is nested too deeply") from error

    def policy(self) -> Policy:
        self._check_keys(self._document, (), _KEYS)
        host_paths = self._boolean("host-paths")
        polkit_required = self._choice("polkit", ("required", "off"), "required") == "required"
        if host_paths and self._name != DEFAULT:
            raise self._error(f'can be true in the policy "{DEFAULT}" alone', "host-paths")
        if host_paths and not polkit_required:
            raise self._error(
                'cannot be "off" with host-paths = true: everybody could read and write the files of the host as root',
                "polkit",
            )
        return Policy(
            name=self._name,
            methods=self._methods(host_paths),
            machines=self._objects("machines"),
            images=self._objects("images"),
            users=self._users(),
            programs=self._programs(),
            environment=self._environment(),
            host_paths=host_paths,
            details=self._boolean("details"),
            accept_fds=self._boolean("accept-fds"),
            pull=self._pull(),
            polkit_required=polkit_required,
            limits=self._limits(),
        )

    def _methods(self, host_paths: bool) -> frozenset[str]:
        preset = self._choice("preset", tuple(PRESETS), None)
        methods = PRESETS[preset] if preset is not None else frozenset()
        if methods & _HOST_PATHS and not host_paths:
            raise self._error(
                f'"{preset}" has {", ".join(sorted(_HOST_PATHS))}, which need host-paths = true; "manage" is the rest',
                "preset",
            )
        for index, method in enumerate(self._texts("methods")):
            if method not in _MORE:
                raise self._error(f"[{index}]: no method of io.machine1 is called {method!r}", "methods", string=index)
            if method in _HOST_PATHS and not host_paths:
                raise self._error(f"[{index}]: {method} needs host-paths = true", "methods", string=index)
            methods |= {method}
        return frozenset(method if "." in method else INTERFACE + method for method in methods)

    def _objects(self, key: str) -> Globs:
        def flaw(glob: str) -> str | None:
            if glob == HOST or not glob.startswith((".", "[.")):
                return None
            if key == "machines" or Globs.of([glob]).match(HOST):
                return f'is not "{HOST}": the host has to be written out, a wildcard never matches it'
            return None

        return self._globs(key, flaw)

    def _users(self) -> Globs:
        return self._globs("users", lambda glob: 'is "root" here: write that' if glob == "0" else None)

    def _environment(self) -> Globs:
        return self._globs(
            "environment", lambda glob: "has a =, must be a variable's name alone" if "=" in glob else None
        )

    def _pull(self) -> tuple[URLGlob, ...]:
        return tuple(URLGlob.of(glob) for glob in self._sound_globs("pull", urls.flaw))

    def _programs(self) -> tuple[Program, ...] | None:
        entries = self._list("programs")
        if entries == ["**"]:
            return None
        programs, strings = [], 0
        for index, entry in enumerate(entries):
            where = f"[{index}]"
            if entry in ("**", ["**"]):
                raise self._error(
                    f'{where}: any program is programs = ["**"], with nothing beside', "programs", string=strings
                )
            if not isinstance(entry, list) or not entry or not all(isinstance(text, str) for text in entry):
                raise self._error(
                    f"{where}: must be a list of texts, a program's path and its arguments", "programs", string=strings
                )
            programs.append(self._program(where, entry, strings))
            strings += len(entry)
        return tuple(programs)

    def _program(self, where: str, entry: list[str], strings: int) -> Program:
        path, *arguments = entry
        flaw = _path_flaw(path)
        if flaw is None and not path and arguments:
            flaw = "is the login shell, which takes no arguments"
        if flaw is not None:
            raise self._error(f"{where}[0]: {path!r} {flaw}", "programs", string=strings)
        rest = arguments[-1:] == ["**"]
        if rest:
            arguments.pop()
        for index, argument in enumerate(arguments, 1):
            # An empty argument is one, too.
            flaw = _glob_flaw(argument) if argument else None
            if argument == "**":
                flaw = "means any further arguments, so it must be the last"
            if flaw is not None:
                raise self._error(f"{where}[{index}]: {argument!r} {flaw}", "programs", string=strings + index)
        return Program(path, tuple(Globs.of([argument]) for argument in arguments), rest)

    def _limits(self) -> Limits:
        table = self._document.get("limits", {})
        if not isinstance(table, dict):
            raise self._error("must be a table, [limits]", "limits")
        self._check_keys(table, ("limits",), _LIMITS)
        for key, value in table.items():
            smallest, largest = RANGES[_LIMITS[key]]
            if type(value) is not int or not smallest <= value <= largest:
                raise self._error(f"must be a number from {smallest} to {largest}", "limits", key)
        return Limits(**{_LIMITS[key]: value for key, value in table.items()})

    def _check_keys(self, table: Mapping[str, object], above: tuple[str, ...], known: Collection[str]) -> None:
        for key in table:
            if key not in known:
                raise self._error(f"is no key of a policy; there are {', '.join(known)}", *above, key)

    def _boolean(self, key: str) -> bool:
        value = self._document.get(key, False)
        if not isinstance(value, bool):
            raise self._error("must be true or false", key)
        return value

    def _choice(self, key: str, choices: tuple[str, ...], default: str | None) -> str | None:
        if key not in self._document:
            return default
        value = self._document[key]
        if not isinstance(value, str) or value not in choices:
            raise self._error(f"must be one of {', '.join(choices)}", key)
        return value

    def _list(self, key: str) -> list[Any]:
        if key not in self._document:
            return []
        value = self._document[key]
        if not isinstance(value, list):
            raise self._error("must be a list", key)
        if not value and key != "environment":
            raise self._error("is empty; to allow none, leave it out", key)
        return value

    def _texts(self, key: str) -> list[str]:
        values = self._list(key)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self._error(f"[{index}]: must be a text", key)
        return values

    def _globs(self, key: str, flaw_here: Callable[[str], str | None]) -> Globs:
        return Globs.of(self._sound_globs(key, flaw_here))

    def _sound_globs(self, key: str, flaw_here: Callable[[str], str | None]) -> list[str]:
        globs = self._texts(key)
        for index, glob in enumerate(globs):
            flaw = _glob_flaw(glob) or flaw_here(glob)
            if flaw is not None:
                raise self._error(f"[{index}]: {glob!r} {flaw}", key, string=index)
        return globs

    def _error(self, what: str, *keys: str, string: int | None = None) -> PolicyError:
        """`string` counts the texts of the key's value up to the one that is wrong."""
        separator = "" if what.startswith("[") else " "
        return self._error_at(self._find(keys, string), f"{'.'.join(keys)}{separator}{what}")

    def _error_at(self, line: int | None, what: str) -> PolicyError:
        return PolicyError(f"{self._path}:{line}: {what}" if line is not None else f"{self._path}: {what}")

    def _find(self, keys: tuple[str, ...], string: int | None) -> int | None:
        """The line of a key, or of a text in its value. A search: tomllib does not say where a value came from."""
        header: tuple[str, ...] = ()
        best, best_depth = None, 0
        lines = self._text.split("\n")
        for index, line in enumerate(lines):
            entry = _ENTRY.match(line)
            if entry is None:
                continue
            path = tuple(part.strip("\"'") for part in re.findall(_KEY, entry["header"] or entry["key"]))
            if entry["header"]:
                header = path
            else:
                path = header + path
            depth = max(depth for depth in range(len(keys) + 1) if path[:depth] == keys[:depth])
            if depth > best_depth:
                best, best_depth = index, depth
        if best is None:
            return None
        if string is not None:
            rest = "\n".join(lines[best:]).partition("=")[2]
            found = [match for match in _STRING.finditer(rest) if not match[0].startswith("#")]
            if string < len(found):
                best += rest.count("\n", 0, found[string].start())
        return best + 1


def _glob_flaw(glob: str) -> str | None:
    """What is wrong with a glob: what it would mean must be beyond doubt."""
    if not glob:
        return "is empty"
    if len(glob) > GLOB_MAX:
        return f"is longer than {GLOB_MAX} characters"
    if _has_control(glob):
        return "has a control character"
    if "**" in glob:
        return "has **; a single * stands for any text"
    if glob.count("*") > STARS_MAX:
        return f"has more than {STARS_MAX} *"
    return _bracket_flaw(glob)


def _bracket_flaw(glob: str) -> str | None:
    """The same reading as fnmatch's: a ] that comes first, or after !, is one of the characters."""
    at = glob.find("[")
    while at >= 0:
        begin = at + 1 + (glob[at + 1 : at + 2] == "!")
        end = glob.find("]", begin + 1)
        if end < 0:
            return "has a [ without its ]; [[] is the character"
        characters = glob[begin:end]
        if begin == at + 1 and characters.startswith("^"):
            return "has [^...], which is written [!...]"
        if any(low > high for low, high in re.findall(r"(?s)(.)-(.)", characters)):
            return "has a range that runs backwards"
        at = glob.find("[", end + 1)
    return None


def _path_flaw(path: str) -> str | None:
    """A program's path is taken literally; empty means the login shell."""
    if not path:
        return None
    if not path.startswith("/") or path.endswith("/"):
        return "must be the absolute path of a program"
    if _has_control(path):
        return "has a control character"
    if "*" in path or "?" in path:
        return "has a wildcard, but a path is taken literally"
    return None


def _has_control(text: str) -> bool:
    return any(character < " " or "\x7f" <= character <= "\x9f" for character in text)
