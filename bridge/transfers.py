# SPDX-License-Identifier: LGPL-2.1-or-later
"""Methods that bring images in and out: systemd-importd's transfers.

Each replies when the transfer has begun. It goes on when its client has left.
"""

import fcntl
import os
import stat
from typing import Any

from jeepney.fds import FileDescriptor

from .bus import DBusError
from .errors import Busy, InvalidParameter, NameTaken, NoSuchImage, NoSuchTransfer, NotSupported, TooManyOperations
from .importd import per_mille
from .machined import Machined
from .messages import Parameters, Reply

TYPES = ("import_tar", "import_raw", "export_tar", "export_raw", "pull_tar", "pull_raw")
# What importd takes from 257 on beside the mode of access is O_NOFOLLOW alone, so that nobody's append or wait is its.
_FLAGS = (
    os.O_PATH | os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_DIRECTORY | os.O_ASYNC | os.O_SYNC | os.O_NOATIME
    | os.O_TMPFILE
)  # fmt: skip
INVALID = "org.freedesktop.DBus.Error.InvalidArgs"


async def import_tar(machined: Machined, parameters: Parameters) -> Reply:
    return await _import(machined, "ImportTar", parameters)


async def import_raw(machined: Machined, parameters: Parameters) -> Reply:
    return await _import(machined, "ImportRaw", parameters)


async def export_tar(machined: Machined, parameters: Parameters) -> Reply:
    return await _export(machined, "ExportTar", ("directory", "subvolume"), parameters)


async def export_raw(machined: Machined, parameters: Parameters) -> Reply:
    return await _export(machined, "ExportRaw", ("raw", "block"), parameters)


async def pull_tar(machined: Machined, parameters: Parameters) -> Reply:
    return await _pull(machined, "PullTar", parameters)


async def pull_raw(machined: Machined, parameters: Parameters) -> Reply:
    return await _pull(machined, "PullRaw", parameters)


async def list_transfers(machined: Machined, _: Parameters) -> Reply:
    shown = [entry for entry in await machined.transfers() if machined.shown.shows_image(entry[3])]
    return Reply({"transfers": [_transfer(*entry) for entry in shown]})


async def cancel_transfer(machined: Machined, parameters: Parameters) -> Reply:
    """The list is read either way, so that a transfer of an image that is not shown looks like none."""
    number = parameters["transfer"]
    shown = {entry[0] for entry in await machined.transfers() if machined.shown.shows_image(entry[3])}
    if number not in shown:
        raise NoSuchTransfer(number)
    try:
        await machined.cancel_transfer(number)
    except DBusError as error:
        if error.name != "org.freedesktop.import1.NoSuchTransfer":
            raise
        raise NoSuchTransfer(number) from error
    return Reply()


async def _import(machined: Machined, member: str, parameters: Parameters) -> Reply:
    fd = _file(machined, os.O_RDONLY)
    force = await _may_be_named(machined, parameters)
    arguments = parameters["name"], force, parameters.get("read_only", False)
    return await _begin(machined, parameters, member, "hsbb", fd, *arguments)


async def _export(machined: Machined, member: str, types: tuple[str, ...], parameters: Parameters) -> Reply:
    fd = _file(machined, os.O_WRONLY)
    name = parameters["name"]
    image = await machined.image(name)
    if image is None:
        raise NoSuchImage(name)
    if image[1] not in types:
        raise InvalidParameter("name", f"must be an image of the type {' or '.join(types)} for this method")
    return await _begin(machined, parameters, member, "shs", name, fd, parameters.get("format", "uncompressed"))


async def _pull(machined: Machined, member: str, parameters: Parameters) -> Reply:
    force = await _may_be_named(machined, parameters)
    verify = parameters.get("verify", "signature")
    return await _begin(machined, parameters, member, "sssb", parameters["url"], parameters["name"], verify, force)


async def _may_be_named(machined: Machined, parameters: Parameters) -> bool:
    """Whether an image that has the name is replaced. importd would only log that it is not."""
    name, force = parameters["name"], parameters.get("force", False)
    if not force and await machined.image(name) is not None:
        raise NameTaken(name)
    return bool(force)


def _file(machined: Machined, access: int) -> FileDescriptor:
    """The one that came with the call, if importd can use it. What it cannot it would only log, or call remote I/O.

    Asked after authorization, as a file system of the client's may keep fstat(2) waiting.
    """
    (fd,) = machined.fds
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & _FLAGS:
        raise InvalidParameter("image_fd", "must be opened without O_APPEND, O_NONBLOCK, O_PATH and other flags")
    if flags & os.O_ACCMODE not in (access, os.O_RDWR):
        raise InvalidParameter("image_fd", f"must be open for {'reading' if access == os.O_RDONLY else 'writing'}")
    try:
        mode = os.fstat(fd.fileno()).st_mode
    except OSError as error:
        # Such as one in a file system in user space, which others than its user may not look at.
        raise InvalidParameter("image_fd", f"must be of a file that others may use: {error.strerror}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
        raise InvalidParameter("image_fd", "must be of a regular file or a pipe")
    return fd


async def _begin(
    machined: Machined, parameters: Parameters, member: str, signature: str, *arguments: object
) -> Reply:
    try:
        return await machined.transfer(parameters["name"], member, signature, *arguments)
    except DBusError as error:
        if error.name == "System.Error.E2BIG":
            raise TooManyOperations from error
        if error.name == "org.freedesktop.import1.TransferInProgress":
            raise Busy(error.message) from error
        if error.name == "System.Error.EREMOTEIO":
            raise InvalidParameter("image_fd", "must be opened without such flags") from error
        if error.name == INVALID and error.message.startswith("Local "):
            raise NotSupported("systemd transfers images whose names are no host names from version 256 on") from error
        raise


def _transfer(number: int, kind: str, remote: str, name: str, progress: float) -> dict[str, Any]:
    """A type that a later importd may add is left out, so that the list holds for clients that know but these."""
    transfer: dict[str, Any] = {"transfer": number, "name": name}
    if (known := kind.replace("-", "_")) in TYPES:
        transfer["type"] = known
    if remote:
        transfer["remote"] = remote
    if (done := per_mille(progress)) is not None:
        transfer["progress"] = done
    return transfer
