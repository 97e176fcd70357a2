# SPDX-License-Identifier: LGPL-2.1-or-later
"""When a list of machines is true without asking, and when nobody can know."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jeepney.fds import FileDescriptor

from bridge import remembered as module
from bridge.listed import Machines
from bridge.remembered import Remembered

WEB = ("web", "container", "systemd-nspawn", "/m/web")
HOST = (".host", "host", "", "/m/_2ehost")
LIST = Machines([HOST, WEB])


class Machined:
    """A directory with a file for each machine, and a process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process = subprocess.Popen(["sleep", "60"])
        self.remembered = Remembered(directory)
        assert self.remembered.wants_process()
        self.remembered.watch(FileDescriptor(os.pidfd_open(self.process.pid)))
        self.add("web")
        (directory / "unit:machine-web.scope").symlink_to("web")
        self.settle()

    def add(self, name: str) -> None:
        """As machined does it: a file of another name, which then gets this one."""
        temporary = self.directory / f".#{name}123"
        temporary.write_text("# This is private data. Do not parse.\n")
        temporary.rename(self.directory / name)

    def remove(self, name: str) -> None:
        (self.directory / name).unlink()

    def settle(self) -> None:
        """The last change was long ago."""
        ago = time.time_ns() - 10 * module.SETTLED
        os.utime(self.directory, ns=(ago, ago))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def answers(self, machines: Machines = LIST) -> None:
        """It was asked, and this is what it said."""
        stamp = self.remembered.look()
        if stamp is not None:
            self.remembered.keep(stamp, machines)


@pytest.fixture
def machined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machined]:
    machined = Machined(tmp_path)
    yield machined
    machined.end()
    machined.remembered.close()


def test_what_was_said_is_true_as_long_as_nothing_changes(machined: Machined) -> None:
    assert machined.remembered.recall() is None
    machined.answers()
    for _ in range(3):
        assert machined.remembered.recall() == LIST


def another_came(machined: Machined) -> None:
    machined.add("other")


def it_went(machined: Machined) -> None:
    machined.remove("web")


def it_went_and_came_again(machined: Machined) -> None:
    machined.remove("web")
    machined.add("web")


def its_file_was_written_again(machined: Machined) -> None:
    machined.add("web")


def machined_ended(machined: Machined) -> None:
    machined.end()


def the_directory_went(machined: Machined) -> None:
    for path in machined.directory.iterdir():
        path.unlink()
    machined.directory.rmdir()


def the_directory_is_another(machined: Machined) -> None:
    old = os.stat(machined.directory)
    the_directory_went(machined)
    machined.directory.mkdir()
    machined.add("web")
    os.utime(machined.directory, ns=(old.st_atime_ns, old.st_mtime_ns))


CHANGES = [
    *(another_came, it_went, it_went_and_came_again, its_file_was_written_again),
    *(machined_ended, the_directory_went, the_directory_is_another),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_said_before_a_change_is_forgotten(machined: Machined, change: Callable[[Machined], None]) -> None:
    machined.answers()
    change(machined)
    assert machined.remembered.recall() is None
    assert machined.remembered.recall() is None


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_said_while_something_changes_is_not_remembered(
    machined: Machined, change: Callable[[Machined], None]
) -> None:
    """Before or after machined looked: nobody knows."""
    stamp = machined.remembered.look()
    assert stamp is not None
    change(machined)
    machined.remembered.keep(stamp, LIST)
    assert machined.remembered.recall() is None


@pytest.mark.parametrize(
    "said",
    [
        [HOST],
        [],
        [HOST, WEB, ("going", "vm", "", "/m/going")],
        [HOST, ("other", "container", "", "/m/other")],
    ],
    ids=["less", "nothing", "more", "others"],
)
def test_what_does_not_fit_the_files_is_not_remembered(
    machined: Machined, said: list[tuple[str, str, str, str]]
) -> None:
    """A machine that machined is about to forget has no file any more, and nothing would tell when it is gone."""
    machined.answers(Machines(said))
    assert machined.remembered.recall() is None


def test_soon_after_a_change_nothing_is_remembered(machined: Machined) -> None:
    """The next one could have the same time: the clock of files goes in steps."""
    machined.add("other")
    assert machined.remembered.look() is None
    time.sleep(module.SETTLED / 1e9 + 0.02)
    assert machined.remembered.look() is not None


def test_a_clock_that_was_set_back_makes_nothing_true(machined: Machined) -> None:
    later = time.time_ns() + 3600 * 10**9
    os.utime(machined.directory, ns=(later, later))
    machined.answers()
    assert machined.remembered.recall() is None


def test_without_machineds_process_nothing_is_remembered(tmp_path: Path, machined: Machined) -> None:
    unknown = Remembered(tmp_path)
    assert unknown.look() is None
    assert unknown.wants_process()
    assert not unknown.wants_process(), "somebody is looking for it"
    unknown.watch(None)
    assert unknown.look() is None
    assert unknown.wants_process(), "it was not found"


def test_another_process_makes_the_old_list_no_more_true(machined: Machined) -> None:
    machined.answers()
    assert not machined.remembered.wants_process()
    machined.end()
    assert machined.remembered.wants_process()
    machined.process = subprocess.Popen(["sleep", "60"])
    machined.remembered.watch(FileDescriptor(os.pidfd_open(machined.process.pid)))
    assert machined.remembered.recall() is None
    machined.answers()
    assert machined.remembered.recall() == LIST


def test_without_the_directory_nothing_is_remembered(tmp_path: Path, machined: Machined) -> None:
    machined.remembered._directory = str(tmp_path / "none")
    machined.answers()
    assert machined.remembered.recall() is None
    assert not Remembered(tmp_path / "none").wants_process(), "it would be of no use"
