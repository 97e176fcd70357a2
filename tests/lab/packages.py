# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds the packages, each with its distribution's own tools in a file system made for it, and without a network.

    python3 -m tests.lab.packages deb      build/machine1-bridge_VERSION_all.deb, of contrib/debian
    python3 -m tests.lab.packages wheel    build/machine1_bridge-VERSION-py3-none-any.whl, of pyproject.toml

This machine has to have neither debhelper nor the suite that the package is for. What comes from the same sources is
the same file, byte for byte.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bridge import __version__

from .host import BUILD_PACKAGES, BUILD_SUITE, ENVIRONMENT, REPOSITORY, LabError, build, cache, check_machine

RESULTS = REPOSITORY / "build"
# What the packages are made of. The clients in other languages are packages of their own.
SOURCES = ["bridge", "contrib", "io.machine1.varlink", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"]
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "go", "rust", "target")

# A user without rights builds, on a copy of the file system that is thrown away.
# $1 an empty folder, $2 the file system, $3 what is /build inside, $4 what is run there
_INSIDE = """
umask 022
mount -t tmpfs -o mode=755 tmpfs "$1"
cd "$1"
mkdir lower upper work root
mount --bind "$2" lower
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work root
mkdir root/build
mount --bind "$3" root/build
mount -t proc proc root/proc
exec chroot root setpriv --reuid=65534 --regid=65534 --clear-groups -- sh -euc "cd /build; $4"
"""


def copy_sources(folder: Path, version: str = __version__) -> None:
    """The sources in a new folder, as `version`: what a release of this name would be."""
    folder.mkdir()
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, folder / name, ignore=IGNORED)
        else:
            shutil.copy2(REPOSITORY / name, folder / name)
    if version != __version__:
        replace_once(folder / "bridge/__init__.py", f'__version__ = "{__version__}"', f'__version__ = "{version}"')
        replace_once(folder / "contrib/debian/changelog", f"({__version__}-", f"({version}-")


def replace_once(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    if text.count(old) != 1:
        raise LabError(f"{file}: {old!r} is there {text.count(old)} times")
    file.write_text(text.replace(old, new))


def run_in_build_system(folder: Path, script: str) -> str:
    """Run a script where debhelper, lintian and rpm are, in `folder`, which its user may write; what it printed."""
    check_machine()
    root = build(BUILD_SUITE, BUILD_PACKAGES)
    subprocess.run(["chown", "-R", "65534:65534", str(folder)], check=True)
    with tempfile.TemporaryDirectory(prefix="package-", dir=cache()) as place:
        command = ["setpriv", "--pdeathsig", "KILL", "--", "unshare", "--mount", "--propagation", "private"]
        command += ["--pid", "--net", "--ipc", "--fork", "--kill-child", "--"]
        command += ["sh", "-euc", _INSIDE, "sh", place, str(root), str(folder), script]
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**ENVIRONMENT, "HOME": "/tmp", "LC_ALL": "C.UTF-8"},
            timeout=300,
        )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-30:])
        raise LabError(f"{script.strip()}\nfailed in the build system:\n{tail}")
    return done.stdout


def build_deb(results: Path, version: str = __version__) -> Path:
    """The Debian package, with what dpkg-buildpackage writes beside it."""
    found = re.match(r"machine1-bridge \((.+)-[^-]+\)", (REPOSITORY / "contrib/debian/changelog").read_text())
    if found is None or found[1] != __version__:
        raise LabError(f"contrib/debian/changelog: the first entry is not of {__version__}, the program's version")
    with tempfile.TemporaryDirectory(prefix="deb-", dir=cache()) as place:
        folder = Path(place)
        tree = folder / f"machine1-bridge-{version}"
        copy_sources(tree, version)
        shutil.copytree(tree / "contrib/debian", tree / "debian")
        # dpkg would have compilers too, for the sake of build-essential
        command = "dpkg-buildpackage --build=binary --no-check-builddeps --no-sign"
        run_in_build_system(folder, f"cd {tree.name}; {command}")
        return collect(folder, results, "*.deb", "*.changes", "*.buildinfo")


# What Debian's rpm knows of Fedora's macros is nothing; byte code is made where the package is installed for real.
MACROS = {
    "python3": "/usr/bin/python3",
    "python3_sitelib": "/usr/lib/python3.13/site-packages",
    "python3_sitearch": "/usr/lib64/python3.13/site-packages",
    "python3_version": "3.13",
    "py_byte_compile()": "true",
    "systemd_post()": "true",
    "systemd_preun()": "true",
    "systemd_postun_with_restart()": "true",
}


def build_rpm(results: Path, version: str = __version__) -> Path:
    """The RPM package, with rpmbuild of another distribution than it is for: to see that the spec is whole."""
    with tempfile.TemporaryDirectory(prefix="rpm-", dir=cache()) as place:
        folder = Path(place)
        copy_sources(folder / f"machine1-bridge-{version}", version)
        shutil.copy(REPOSITORY / "contrib/rpm/machine1-bridge.spec", folder)
        defined = " ".join(f"--define {shlex.quote(f'{name} {value}')}" for name, value in MACROS.items())
        script = f"""
            tar -cf machine1-bridge-{version}.tar.gz machine1-bridge-{version}
            set -- --define '_topdir /build/rpm' --define '_sourcedir /build' {defined}
            rpmbuild -bb --nodeps "$@" machine1-bridge.spec
            cp rpm/RPMS/noarch/*.rpm .
        """
        run_in_build_system(folder, script)
        return collect(folder, results, "*.rpm")


def collect(folder: Path, results: Path, *patterns: str) -> Path:
    """Move what was built, in place of an earlier build's; the first."""
    results.mkdir(parents=True, exist_ok=True)
    built = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    for file in built:
        shutil.copyfile(file, results / f".{file.name}.new")
        (results / f".{file.name}.new").rename(results / file.name)
    return results / built[0].name


def build_wheel(results: Path) -> Path:
    """The wheel. It is built from a copy: setuptools writes among the sources, and takes stale files from there."""
    with tempfile.TemporaryDirectory(prefix="wheel-") as place:
        tree = Path(place, "tree")
        copy_sources(tree)
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--wheel-dir", place, str(tree)], check=False, capture_output=True, text=True, timeout=300
        )
        if done.returncode != 0:
            raise LabError(f"pip wheel failed:\n{done.stderr.strip()}")
        return collect(Path(place), results, "*.whl")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab.packages", description="Build packages into build/.")
    parser.add_argument("kind", choices=("deb", "wheel"))
    builders = {"deb": build_deb, "wheel": build_wheel}
    try:
        print(builders[parser.parse_args(arguments).kind](RESULTS).relative_to(REPOSITORY))
    except (LabError, subprocess.SubprocessError) as error:
        print(f"packages: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
