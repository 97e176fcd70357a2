# SPDX-License-Identifier: LGPL-2.1-or-later
"""What systemd-importd is asked, which files it gets, and what is made of its answers."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney.fds import FileDescriptor
from jsonschema import Draft202012Validator

from bridge.bus import DBusError
from bridge.contract import Contract
from bridge.errors import (
    Busy,
    InvalidParameter,
    NameTaken,
    NoSuchImage,
    NoSuchTransfer,
    NotSupported,
    TooManyOperations,
    VarlinkError,
)
from bridge.importd import Listed
from bridge.listed import Images
from bridge.machined import Shown
from bridge.messages import Reply
from bridge.methods import METHODS

from .conftest import FakeMachined, result_of

CONTRACT = Contract()
TREE = ("tree", "directory", False, 1, 2, 3, "/x")
DISK = ("disk", "raw", False, 1, 2, 3, "/x")
LISTED: list[Listed] = [
    (3, "import-tar", "", "web", -1.8e308),
    (4, "pull-raw", "http://a/b", "web-2", 0.5),
    (5, "pull-oci", "http://a/b", "hidden", 0.5),
    (6, "export-moon", "", "web-3", 1.0),
]


class Importd(FakeMachined):
    """Begins transfers at once; each is number 7."""

    def __init__(self, *, error: Exception | None = None) -> None:
        super().__init__()
        self.begun: list[tuple[object, ...]] = []
        self.canceled: list[int] = []
        self.failure = error

    async def images(self) -> Images:
        return Images([TREE, DISK])

    async def transfer(self, image: str, member: str, signature: str, *arguments: object) -> Reply:
        self.begun.append((image, member, signature, *arguments))
        if self.failure is not None:
            raise self.failure
        return Reply({"transfer": 7})

    async def transfers(self) -> list[Listed]:
        return LISTED

    async def cancel_transfer(self, number: int) -> None:
        self.canceled.append(number)
        if self.failure is not None:
            raise self.failure


class ShownWeb(Shown):
    def shows_machine(self, name: str) -> bool:
        return False

    def shows_image(self, name: str) -> bool:
        return name.startswith("web")


def call(machined: Importd, method: str, **parameters: object) -> Reply:
    """The reply to a call of io.machine1, which keeps the contract as does the call."""
    name = f"io.machine1.{method}"
    reply = result_of(METHODS[name].function(machined, CONTRACT.check(name, parameters)))
    Draft202012Validator(CONTRACT.methods[name]["reply"]).validate(reply.parameters)
    return reply


def failure(machined: Importd, method: str, **parameters: object) -> Exception:
    with pytest.raises((VarlinkError, DBusError)) as caught:
        call(machined, method, **parameters)
    return caught.value


Opened = Callable[..., FileDescriptor]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Opens a file, which is there."""
    everything: list[FileDescriptor] = []
    (tmp_path / "file").touch()

    def open_(flags: int, path: Path = tmp_path / "file") -> FileDescriptor:
        everything.append(FileDescriptor(os.open(path, flags | os.O_CLOEXEC)))
        return everything[-1]

    yield open_
    for fd in everything:
        fd.close()


# --- what is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Tar", "Raw"])
def test_importd_is_asked_for_what_the_call_says(opened: Opened, kind: str) -> None:
    machined = Importd()
    source, target = opened(os.O_RDONLY), opened(os.O_WRONLY)
    machined.fds = (source,)
    assert call(machined, f"Import{kind}", name="new", image_fd=0) == Reply({"transfer": 7})
    call(machined, f"Import{kind}", name="tree", image_fd=0, force=True, read_only=True)
    machined.fds = (target,)
    image = "tree" if kind == "Tar" else "disk"
    call(machined, f"Export{kind}", name=image, image_fd=0)
    call(machined, f"Export{kind}", name=image, image_fd=0, format="xz")
    machined.fds = ()
    call(machined, f"Pull{kind}", name="new", url="http://a/b")
    call(machined, f"Pull{kind}", name="tree", url="http://a/b", verify="no", force=True)
    assert machined.begun == [
        ("new", f"Import{kind}", "hsbb", source, "new", False, False),
        ("tree", f"Import{kind}", "hsbb", source, "tree", True, True),
        (image, f"Export{kind}", "shs", image, target, "uncompressed"),
        (image, f"Export{kind}", "shs", image, target, "xz"),
        ("new", f"Pull{kind}", "sssb", "http://a/b", "new", "signature", False),
        ("tree", f"Pull{kind}", "sssb", "http://a/b", "tree", "no", True),
    ]


@pytest.mark.parametrize("method", ["ImportTar", "ImportRaw", "PullTar", "PullRaw"])
def test_a_name_that_is_taken_is_said_to_be(opened: Opened, method: str) -> None:
    machined = Importd()
    machined.fds = (opened(os.O_RDONLY),)
    rest: dict[str, Any] = {"image_fd": 0} if method.startswith("Import") else {"url": "http://a/b"}
    assert isinstance(failure(machined, method, name="tree", **rest), NameTaken)
    assert machined.begun == []


def test_what_is_exported_is_there_and_of_the_kind(opened: Opened) -> None:
    machined = Importd()
    machined.fds = (opened(os.O_WRONLY),)
    assert isinstance(failure(machined, "ExportTar", name="nope", image_fd=0), NoSuchImage)
    for method, name in (("ExportTar", "disk"), ("ExportRaw", "tree")):
        error = failure(machined, method, name=name, image_fd=0)
        assert isinstance(error, InvalidParameter)
        assert error.parameters["parameter"] == "name"
    assert machined.begun == []


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ImportTar", "ExportTar"])
def test_a_file_or_a_pipe_is_taken(opened: Opened, tmp_path: Path, method: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    machined = Importd()
    keeper = os.open(tmp_path / "fifo", os.O_RDWR)
    access = os.O_RDONLY if method == "ImportTar" else os.O_WRONLY
    for fd in (opened(access), opened(os.O_RDWR), opened(access | os.O_NOFOLLOW), opened(access, tmp_path / "fifo")):
        machined.fds = (fd,)
        call(machined, method, name="new" if method == "ImportTar" else "tree", image_fd=0)
    os.close(keeper)
    assert len(machined.begun) == 4


@pytest.mark.parametrize(
    ("method", "flags", "path"),
    [
        ("ImportTar", os.O_WRONLY, None),
        ("ExportTar", os.O_RDONLY, None),
        *(
            (method, flags, None)
            for method in ("ImportTar", "ExportTar")
            for flags in (
                os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_NONBLOCK, os.O_PATH, os.O_RDWR | os.O_SYNC,
                os.O_RDWR | os.O_DSYNC, os.O_RDWR | os.O_NOATIME,
            )
        ),
        ("ImportRaw", os.O_RDONLY, "/"),
        ("ImportRaw", os.O_RDONLY, "/dev/null"),
        ("ExportRaw", os.O_WRONLY, "/dev/null"),
    ],
)  # fmt: skip
def test_what_importd_would_not_take_is_refused(opened: Opened, method: str, flags: int, path: str | None) -> None:
    machined = Importd()
    machined.fds = (opened(flags, Path(path)) if path else opened(flags),)
    error = failure(machined, method, name="new", image_fd=0)
    assert isinstance(error, InvalidParameter)
    assert error.parameters["parameter"] == "image_fd"
    assert machined.begun == []


def test_a_socket_is_refused() -> None:
    machined = Importd()
    here, there = socket.socketpair()
    with here, there:
        machined.fds = (FileDescriptor(os.dup(here.fileno())),)
    error = failure(machined, "ImportTar", name="new", image_fd=0)
    assert isinstance(error, InvalidParameter)
    machined.fds[0].close()


def test_a_file_that_others_may_not_look_at_is_refused(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of fuse(4) without allow_other."""
    machined = Importd()
    machined.fds = (opened(os.O_RDONLY),)

    def fstat(_: int) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        error = failure(machined, "ImportTar", name="new", image_fd=0)
    assert isinstance(error, InvalidParameter)
    assert "Permission denied" in str(error.parameters)
    assert machined.begun == []


# --- what importd says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message", "expected"),
    [
        ("System.Error.E2BIG", "", TooManyOperations),
        ("org.freedesktop.import1.TransferInProgress", "Transfer for x already in progress.", Busy),
        ("System.Error.EREMOTEIO", "Remote I/O error", InvalidParameter),
        ("org.freedesktop.DBus.Error.InvalidArgs", "Local name a b is invalid", NotSupported),
        ("org.freedesktop.DBus.Error.InvalidArgs", "something else", DBusError),
        ("System.Error.EIO", "", DBusError),
    ],
)
def test_errors_are_what_they_mean(name: str, message: str, expected: type[Exception]) -> None:
    machined = Importd(error=DBusError(name, message))
    assert type(failure(machined, "PullTar", name="new", url="http://a/b")) is expected


def test_transfers_are_listed_as_far_as_they_are_shown() -> None:
    machined = Importd()
    machined.shown = ShownWeb()
    assert call(machined, "ListTransfers").parameters["transfers"] == [
        {"transfer": 3, "name": "web", "type": "import_tar"},
        {"transfer": 4, "name": "web-2", "type": "pull_raw", "remote": "http://a/b", "progress": 500},
        {"transfer": 6, "name": "web-3", "progress": 1000},
    ]


def test_a_transfer_that_is_not_shown_looks_like_none() -> None:
    machined = Importd()
    machined.shown = ShownWeb()
    for number in (5, 8):
        error = failure(machined, "CancelTransfer", transfer=number)
        assert isinstance(error, NoSuchTransfer)
        assert error.parameters == {"transfer": number}
    assert machined.canceled == []
    assert call(machined, "CancelTransfer", transfer=4) == Reply()
    assert machined.canceled == [4]


@pytest.mark.parametrize(
    ("name", "expected"), [("org.freedesktop.import1.NoSuchTransfer", NoSuchTransfer), ("System.Error.EIO", DBusError)]
)
def test_a_transfer_that_ends_meanwhile_is_none_any_more(name: str, expected: type[Exception]) -> None:
    assert type(failure(Importd(error=DBusError(name, "")), "CancelTransfer", transfer=4)) is expected
