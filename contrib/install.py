# SPDX-License-Identifier: LGPL-2.1-or-later
"""Puts machine1-bridge with its Python packages into a system, or takes it out again.

    python contrib/install.py install   --destdir D --prefix /usr [--python-version X.Y]
    python contrib/install.py uninstall --destdir D --prefix /usr
    python contrib/install.py stage     --destdir D --prefix /usr --packages DIR...
    python contrib/install.py lock      writes contrib/requirements.txt anew from pyproject.toml

The packages are for the Python of the system under DESTDIR, not for the one that runs this: wheels come with pip (which
checks the hashes in contrib/requirements.txt), are kept in a cache and are unpacked here. An installation whose wheels
are in the cache needs no network and no pip. What can fail happens in a folder beside the target, which is renamed at
the end; everything that was written is listed in the manifest, and `uninstall` removes that and nothing else.

`stage` is for makers of packages: it lays the same files into an empty DESTDIR, for the Python packages of the system,
which are in DIR.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

NAME = "machine1-bridge"
TREE = Path(__file__).resolve().parent.parent
REQUIREMENTS = TREE / "contrib" / "requirements.txt"
MINIMUM = (3, 11)
# Needed by the packages only below a version of Python. They say so in markers, but pip evaluates those for the Python
# that runs it, whatever --python-version says.
BACKPORTS = {"typing-extensions": "3.13"}
LOCKED_VERSIONS = ((3, 11), (3, 12), (3, 13), (3, 14))
ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
SERVICE_SUFFIXES = {".py", ".json", ".varlink"}
PRUNED_FOLDERS = {"tests", "benchmarks", "__pycache__"}
PRUNED_SUFFIXES = {".pyi", ".typed"}
KEPT_OF_DIST_INFO = re.compile(r"^(METADATA|LICEN[CS]E.*|COPYING.*|NOTICE.*|AUTHORS.*|licenses/.*|sboms/.*)$")
# where each file of contrib/ goes, below PREFIX; packages get theirs from here too
DATA_FILES = {
    "contrib/systemd/machine1-bridge.socket": "lib/systemd/system/machine1-bridge.socket",
    "contrib/systemd/machine1-bridge.service": "lib/systemd/system/machine1-bridge.service",
    "contrib/systemd/machine1-bridge@.socket": "lib/systemd/system/machine1-bridge@.socket",
    "contrib/systemd/machine1-bridge@.service": "lib/systemd/system/machine1-bridge@.service",
    "contrib/sysusers/machine1-bridge.conf": "lib/sysusers.d/machine1-bridge.conf",
    "contrib/polkit/10-machine1-bridge.rules": "share/polkit-1/rules.d/10-machine1-bridge.rules",
    "contrib/polkit/io.machine1.policy": "share/polkit-1/actions/io.machine1.policy",
    "contrib/dbus/machine1-bridge.conf": "share/dbus-1/system.d/machine1-bridge.conf",
    "contrib/man/machine1-bridge.8": "share/man/man8/machine1-bridge.8",
    "contrib/man/machine1-bridge-shell.1": "share/man/man1/machine1-bridge-shell.1",
    "contrib/man/machine1-bridge.toml.5": "share/man/man5/machine1-bridge.toml.5",
    "contrib/completion/machine1-bridge": "share/bash-completion/completions/machine1-bridge",
    "contrib/man/io.machine1.7": "share/man/man7/io.machine1.7",
    "LICENSE": "share/doc/machine1-bridge/LICENSE",
    "contrib/security.md": "share/doc/machine1-bridge/security.md",
    "contrib/migration.md": "share/doc/machine1-bridge/migration.md",
    "contrib/policy/example-sandbox.toml": "share/doc/machine1-bridge/example-sandbox.toml",
    "contrib/systemd/no-polkit.conf": "share/doc/machine1-bridge/no-polkit.conf",
    "contrib/polkit/example.rules": "share/doc/machine1-bridge/example.rules",
}


class InstallError(Exception):
    """Something the person who installs has to know, in one line."""


@dataclass(frozen=True)
class Target:
    """The system that is installed into. `interpreter` is its path inside `root`; None where it has no Python yet."""

    root: Path
    prefix: str
    python: tuple[int, int]
    architecture: str
    interpreter: str | None

    @property
    def tag(self) -> str:
        return f"cp{self.python[0]}{self.python[1]}"

    def path(self, *below_prefix: str) -> Path:
        """Where a path below PREFIX lies, seen from this machine.

        A system under DESTDIR may have links that lead out of it, for example an absolute /usr/lib: nothing is written
        there, since this program runs as root of another system.
        """
        path = self.root.joinpath(self.prefix.lstrip("/"), *below_prefix)
        if not path.parent.resolve().is_relative_to(self.root.resolve()):
            raise InstallError(f"{path} leads out of {self.root} by a symbolic link")
        return path


def find_interpreter(root: Path) -> str | None:
    """The path inside `root` of the file behind /usr/bin/python3; links are followed as the system in `root` would."""
    inside = "/usr/bin/python3"
    for _ in range(16):
        outside = root / inside.lstrip("/")
        if outside.is_symlink():
            inside = os.path.normpath(os.path.join(os.path.dirname(inside), os.readlink(outside)))
        else:
            return inside if outside.is_file() else None
    raise InstallError(f"{root}/usr/bin/python3 is a loop of symbolic links")


def version_of(interpreter: str) -> tuple[int, int] | None:
    """(3, 13) of /usr/bin/python3.13; None where the name does not tell."""
    match = re.fullmatch(r"python(\d+)\.(\d+)", os.path.basename(interpreter))
    return (int(match[1]), int(match[2])) if match else None


def architecture_of(program: Path) -> str | None:
    """The architecture in wheel names of an ELF program; None where it is no ELF program of one that has wheels."""
    with program.open("rb") as file:
        header = file.read(20)
    if len(header) < 20 or header[:4] != b"\x7fELF":
        return None
    return ELF_MACHINES.get(struct.unpack("<H" if header[5] == 1 else ">H", header[18:20])[0])


def parse_version(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)\.(\d+)", text)
    if match is None:
        raise InstallError(f"--python-version {text!r}: expected a version such as 3.13")
    return int(match[1]), int(match[2])


def find_target(destdir: str, prefix: str, wanted: str | None) -> Target:
    """Looks at DESTDIR: empty is this system; one without Python is staged for a package, for `wanted` or ours."""
    if not prefix.startswith("/") or os.path.normpath(prefix) == "/" or not re.fullmatch(r"[A-Za-z0-9._/+-]+", prefix):
        raise InstallError(f"PREFIX {prefix!r} is not the absolute path of a plain folder such as /usr")
    root = Path(destdir or "/").absolute()
    if not root.is_dir():
        raise InstallError(f"DESTDIR {destdir}: no such folder")
    interpreter = find_interpreter(root)
    version = parse_version(wanted) if wanted else None
    if interpreter is not None:
        found = version_of(interpreter)
        if version is None and found is None:
            raise InstallError(f"{root}{interpreter}: its name has no version; give --python-version")
        if version and found and version != found:
            raise InstallError(
                f"--python-version {wanted}, but the system in {root} has {os.path.basename(interpreter)}"
            )
        version = version or found
    version = version or sys.version_info[:2]
    if version < MINIMUM:
        raise InstallError(
            f"Python {version[0]}.{version[1]} is too old; {NAME} needs {MINIMUM[0]}.{MINIMUM[1]} or later"
        )
    architecture = (architecture_of(root / interpreter.lstrip("/")) if interpreter else None) or platform.machine()
    return Target(root, os.path.normpath(prefix), version, architecture, interpreter)


# --- the packages


def locked(python: tuple[int, int]) -> list[str]:
    """The lines of requirements.txt for a version of Python.

    The one marker in use is evaluated here (see BACKPORTS).
    """
    lines = []
    for line in REQUIREMENTS.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        marker = re.search(r""";\s*python_version\s*<\s*["'](\d+)\.(\d+)["']""", line)
        if marker is None or python < (int(marker[1]), int(marker[2])):
            lines.append(line.replace(marker[0], "") if marker else line)
    return lines


def platform_options(python: tuple[int, int], architecture: str) -> list[str]:
    """pip's options for wheels of a Python and an architecture; hosts with systemd 252 have a glibc later than 2.28."""
    abi = f"cp{python[0]}{python[1]}"
    options = ["--only-binary=:all:", "--implementation", "cp"]
    options += ["--python-version", f"{python[0]}.{python[1]}", "--abi", abi, "--abi", "abi3", "--abi", "none"]
    for glibc in ("manylinux_2_28", "manylinux_2_17", "manylinux2014"):
        options += ["--platform", f"{glibc}_{architecture}"]
    return options


def pip_download(requirements: Iterable[str], folder: Path, options: list[str]) -> None:
    listing = folder / "requirements.txt"
    listing.write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--dest", str(folder)]
    result = subprocess.run([*command, *options, "-r", str(listing)], capture_output=True, text=True, check=False)
    listing.unlink()
    if result.returncode != 0:
        said = [line for line in result.stderr.splitlines() if line.strip()] or ["pip failed and said nothing"]
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
        raise InstallError(f"cannot get the Python packages: {(errors or said)[-1].strip()}")


def wheels_for(target: Target) -> dict[str, bytes]:
    """The wheels of the target's packages, from the cache or, for the first time, through pip.

    The cache is only a cache: each wheel's SHA-256 has to be in requirements.txt every time.
    """
    lines = locked(target.python)
    key = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / NAME / "wheels"
    folder = cache / f"{key}-{target.tag}-{target.architecture}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            download = Path(temporary) / "wheels"
            download.mkdir()
            pip_download(
                lines,
                download,
                ["--require-hashes", "--no-deps", *platform_options(target.python, target.architecture)],
            )
            download.rename(folder)
    wheels = {wheel.name: wheel.read_bytes() for wheel in sorted(folder.glob("*.whl"))}
    hashes = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", "\n".join(lines)))
    for name, content in wheels.items():
        if hashlib.sha256(content).hexdigest() not in hashes:
            raise InstallError(f"{name} is not what requirements.txt names; remove {folder}")
    if len(wheels) != len(lines):
        raise InstallError(f"{len(wheels)} wheels for {len(lines)} packages; remove {folder}")
    return wheels


def is_kept(name: str) -> bool:
    """Whether a file of a wheel is installed: modules, data and licences are; tests, type stubs and scripts are not."""
    *folders, file = name.split("/")
    if folders and folders[0].endswith(".dist-info"):
        return KEPT_OF_DIST_INFO.match("/".join([*folders[1:], file])) is not None
    return not PRUNED_FOLDERS.intersection(folders) and Path(file).suffix not in PRUNED_SUFFIXES


def unpack(name: str, content: bytes, folder: Path) -> None:
    """A wheel is a ZIP file whose members lie as they are imported; nothing that would lie elsewhere is accepted."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            parts = member.filename.split("/")
            if ".." in parts or member.filename.startswith("/") or parts[0].endswith(".data"):
                raise InstallError(f"{name}: {member.filename} would not lie beside the package")
            if not member.is_dir() and is_kept(member.filename):
                write(folder / member.filename, archive.read(member))


# --- files


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Writes a file at once or not at all."""
    make_folders(path.parent)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.chmod(file.name, mode)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def make_folders(folder: Path) -> list[Path]:
    """Makes a folder and the ones above it; returns the ones that were not there, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    for path in missing:
        path.mkdir()
    return missing


def files_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path


def read_manifest(target: Target) -> tuple[list[str], list[str]]:
    """(files, folders) that an earlier installation wrote, as absolute paths inside the system; empty without one."""
    try:
        lines = target.path("lib", NAME, "MANIFEST").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return [], []
    for line in lines:
        inside = f"{line[2:]}/".startswith(f"{target.prefix}/")
        # a staged PREFIX itself was made too, and what is above it
        above = line[0] == "d" and f"{target.prefix}/".startswith(f"{line[2:]}/")
        if not re.match(r"[fd] /", line) or ".." in line.split("/") or not (inside or above):
            raise InstallError(f"{target.path('lib', NAME, 'MANIFEST')}: unexpected line {line!r}")
    return [line[2:] for line in lines if line[0] == "f"], [line[2:] for line in lines if line[0] == "d"]


def remove(target: Target, files: Iterable[str], folders: Iterable[str]) -> None:
    """Removes files, then those of the folders that are empty, innermost first."""
    for file in files:
        (target.root / file.lstrip("/")).unlink(missing_ok=True)
    for folder in sorted(folders, reverse=True):
        try:
            (target.root / folder.lstrip("/")).rmdir()
        except OSError:
            continue  # someone else's files are in it, or it is gone


def adapted(source: Path, target: Target, packages: Sequence[str] = ()) -> bytes:
    """A file of contrib/ with the paths of another PREFIX and the version of the target's Python.

    Where its Python packages are `packages` of the system, its package manager keeps them and Python together.
    """
    text = source.read_text(encoding="utf-8")
    if packages:
        text = text.replace("!= (3, 0)", f"< {MINIMUM}")
        text = text.replace("*sys.path]", f"*sys.path, {', '.join(map(json.dumps, packages))}]")
    text = text.replace(f"/usr/lib/{NAME}", f"{target.prefix}/lib/{NAME}")
    return text.replace("(3, 0)", f"({target.python[0]}, {target.python[1]})").encode()


# --- install and uninstall


def build(target: Target, folder: Path, packages: Sequence[str] = ()) -> None:
    """Makes the contents of PREFIX/lib/machine1-bridge in another folder of the same file system."""
    if not packages:
        for name, content in wheels_for(target).items():
            unpack(name, content, folder)
    for path in files_below(TREE / "bridge"):
        inside = path.relative_to(TREE / "bridge")
        if path.suffix in SERVICE_SUFFIXES and not PRUNED_FOLDERS.intersection(inside.parts):
            write(folder / "bridge" / inside, path.read_bytes())
    write(folder / "default.toml", (TREE / "contrib/policy/default.toml").read_bytes())
    write(folder / NAME, adapted(TREE / "contrib" / NAME, target, packages), 0o755)


def compile_modules(target: Target, folder: Path) -> str | None:
    """Compiles all modules in `folder`; returns why that was not possible, or None.

    The service's user cannot write byte code, so it would compile everything at each start. Byte code is the same for
    every build of X.Y: this Python compiles for its own version, otherwise the target's does, in a chroot.
    `unchecked-hash`: Python neither looks at the time stamps nor reads the sources, which only a new installation
    changes, and that replaces the byte code with them. The path of the folder's final place is compiled in.
    """
    final = f"{target.prefix}/lib/{NAME}"
    options = ["-I", "-S", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    if target.python == sys.version_info[:2]:
        command = [sys.executable, *options, "-s", str(folder), "-p", final, str(folder)]
    elif target.interpreter is None:
        return f"there is no Python {target.python[0]}.{target.python[1]} here"
    elif os.geteuid() != 0:
        return "only root can run the target's Python"
    else:
        inside = f"/{folder.relative_to(target.root)}"
        chroot = [] if target.root == Path("/") else ["chroot", str(target.root)]
        command = [*chroot, target.interpreter, *options, "-s", inside, "-p", final, inside]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    if result.returncode != 0:
        return f"the compiler failed: {' '.join((result.stderr + result.stdout).split())[:200]}"
    return None


def swap(new: Path, place: Path) -> None:
    """Puts `new` in the place of an older folder. Should the second rename fail, the older one comes back."""
    old = new.with_name(f".{NAME}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    try:
        new.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_tree() -> None:
    required = (f"contrib/{NAME}", "contrib/policy/default.toml", "bridge/__main__.py", "bridge/contract.json")
    for source in (*DATA_FILES, *required):
        if not (TREE / source).is_file():
            raise InstallError(f"{source} is missing in {TREE}")


def install(target: Target) -> None:
    check_tree()
    old_files, old_folders = read_manifest(target)
    place = target.path("lib", NAME)
    if not old_files and (place / NAME).exists():
        raise InstallError(f"{place} is from a package of the system; remove that first")
    folders = make_folders(place.parent)
    new = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{NAME}.new-"))
    try:
        new.chmod(0o755)
        build(target, new)
        uncompiled = compile_modules(target, new)
        files = [str(place / path.relative_to(new)) for path in files_below(new)]
        library = [str(place / path.relative_to(new)) for path in new.rglob("*") if path.is_dir()]
        outside = [target.path(inside) for inside in DATA_FILES.values()]
        link = target.path("bin", NAME)
        for path in (*outside, link):
            folders += make_folders(path.parent)
        files += [str(path) for path in (place / "MANIFEST", *outside, link)]
        inside_files = [below(target, file) for file in files]
        # what an earlier installation made for files that are there still, is still this program's to remove
        needed = [folder for folder in old_folders if any(file.startswith(f"{folder}/") for file in inside_files)]
        inside_folders = {below(target, str(path)) for path in (*folders, place, *library)}.union(needed)
        listing = [f"f {file}\n" for file in inside_files] + [f"d {folder}\n" for folder in sorted(inside_folders)]
        write(new / "MANIFEST", "".join(listing).encode())
        swap(new, place)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        remove(target, [], [below(target, str(folder)) for folder in folders])
        raise
    for source, path in zip(DATA_FILES, outside, strict=True):
        write(path, adapted(TREE / source, target))
    if not (link.is_symlink() and os.readlink(link) == f"../lib/{NAME}/{NAME}"):
        link.unlink(missing_ok=True)
        link.symlink_to(f"../lib/{NAME}/{NAME}")
    remove(target, set(old_files) - set(inside_files), set(old_folders) - inside_folders)
    report(target, uncompiled)


def stage(target: Target, packages: Sequence[str]) -> None:
    """Lays the files of a package into an empty DESTDIR, and prints those outside of PREFIX/lib/machine1-bridge.

    Without byte code and manifest, which the package manager makes, and without the licence, which has its own place in
    each kind of package.
    """
    check_tree()
    if any(target.root.iterdir()):
        raise InstallError(f"{target.root} is not empty")
    build(target, target.path("lib", NAME), packages)
    outside = {source: target.path(inside) for source, inside in DATA_FILES.items() if source != "LICENSE"}
    link = target.path("bin", NAME)
    for source, path in outside.items():
        write(path, adapted(TREE / source, target))
    make_folders(link.parent)
    link.symlink_to(f"../lib/{NAME}/{NAME}")
    print(*sorted(below(target, str(path)) for path in (*outside.values(), link)), sep="\n")


def below(target: Target, path: str) -> str:
    """The path inside the system of a path on this machine."""
    return f"/{Path(path).relative_to(target.root)}"


def report(target: Target, uncompiled: str | None) -> None:
    """What a person has to do now. Nothing is started here: packages and images are installed with the same program."""
    version = f"{target.python[0]}.{target.python[1]}"
    where = "" if target.root == Path("/") else f" in {target.root}"
    print(f"{NAME} for Python {version} on {target.architecture} is in {target.prefix}/lib/{NAME}{where}")
    if uncompiled is not None:
        print(f"note: no byte code, each start takes longer: {uncompiled}; on the system itself run")
        print(f"    python{version} -IS -m compileall -q --invalidation-mode unchecked-hash {target.prefix}/lib/{NAME}")
    if target.prefix != "/usr":
        print(f"note: not every system reads {target.prefix}/share/polkit-1 and /share/dbus-1; link the files")
        print("    from /etc/polkit-1/rules.d and /etc/dbus-1/system.d where it does not")
    if target.root == Path("/"):
        print("next, as root:")
        print("    systemd-sysusers && systemctl daemon-reload && systemctl reload dbus.service")
        print(f"    systemctl try-restart {NAME}.service && systemctl enable --now {NAME}.socket")


def uninstall(target: Target) -> None:
    files, folders = read_manifest(target)
    if not files:
        raise InstallError(f"{target.path('lib', NAME)} has no manifest: {NAME} is not installed there")
    # byte code that was made after the installation, as its note says
    late = [
        below(target, str(cached))
        for file in files
        if file.endswith(".py")
        for path in (target.root / file.lstrip("/"),)
        for cached in path.parent.glob(f"__pycache__/{path.stem}.cpython-*.pyc")
    ]
    caches = {os.path.dirname(file) for file in late}
    remove(target, [*files, *late], caches.union(folders))
    where = "" if target.root == Path("/") else f" in {target.root}"
    print(f"{NAME} was removed from {target.prefix}{where}; the user {NAME} stays, as the journal names it")
    if target.root == Path("/"):
        print(f"next, as root: systemctl disable --now {NAME}.socket {NAME}.service; systemctl daemon-reload")


# --- lock


def lock() -> None:
    """Writes requirements.txt: the newest packages that pyproject.toml allows, and the hash of each of their wheels."""
    with (TREE / "pyproject.toml").open("rb") as file:
        wanted: list[str] = tomllib.load(file)["project"]["dependencies"]
    hashes: dict[str, set[str]] = {}
    for python, architecture in product(LOCKED_VERSIONS, ELF_MACHINES.values()):
        with tempfile.TemporaryDirectory() as temporary:
            pip_download([*wanted, *BACKPORTS], Path(temporary), platform_options(python, architecture))
            for wheel in Path(temporary).glob("*.whl"):
                name, version = wheel.name.split("-")[:2]
                name = name.lower().replace("_", "-")
                marker = f'; python_version < "{BACKPORTS[name]}"' if name in BACKPORTS else ""
                digests = hashes.setdefault(f"{name}=={version}{marker}", set())
                digests.add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    text = "# What `make install` puts beside the service. From pyproject.toml, by `python contrib/install.py lock`.\n"
    for line, digests in sorted(hashes.items()):
        text += " \\\n    ".join([line, *(f"--hash=sha256:{digest}" for digest in sorted(digests))]) + "\n"
    REQUIREMENTS.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=f"Install, remove or package {NAME}.")
    parser.add_argument("action", choices=("install", "uninstall", "stage", "lock"))
    parser.add_argument("--destdir", default="", help="root of the system to install into (default: this system)")
    parser.add_argument("--prefix", default="/usr")
    parser.add_argument("--python-version", metavar="X.Y", help="for a DESTDIR without Python (default: this one's)")
    parser.add_argument("--packages", metavar="DIR", nargs="+", help="stage: where the system has its Python packages")
    options = parser.parse_args(arguments)
    if (options.action == "stage") != (options.packages is not None):
        parser.error("--packages belongs to stage, which needs it")
    os.umask(0o022)  # the service's user has to read all of it, byte code too
    try:
        if options.action == "lock":
            lock()
        else:
            if options.action == "stage":
                Path(options.destdir).mkdir(parents=True, exist_ok=True)
            target = find_target(options.destdir, options.prefix, options.python_version)
            if options.action == "stage":
                stage(target, options.packages)
            else:
                (install if options.action == "install" else uninstall)(target)
    except InstallError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{NAME}: {error.filename or 'error'}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
