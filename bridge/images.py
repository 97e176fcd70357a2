# SPDX-License-Identifier: LGPL-2.1-or-later
"""Methods about images, and about the pool that they are in."""

from collections.abc import Mapping
from typing import Any

from .bus import DBusError
from .details import UNKNOWN_PROPERTY, missing_piece
from .errors import NoSuchImage, NotSupported, VarlinkError
from .listed import Image, Images
from .machined import Machined
from .machines import HOST
from .messages import Parameters, Reply
from .replies import OneByOne, shared
from .shapes import INT_MAX, image_of

# What machined says for no limit, and for a size that it does not know.
UINT64_MAX = 2**64 - 1

# The image was removed since it was listed.
GONE = ("org.freedesktop.machine1.NoSuchImage", "org.freedesktop.DBus.Error.UnknownObject")


async def list_images(machined: Machined, parameters: Parameters) -> Reply:
    if parameters.get("details", False):
        found = [await _describe(machined, entry, True) for entry in await _shown(machined, parameters)]
        return Reply({"images": [image for image in found if image is not None]})
    images = await machined.images()

    def listed() -> dict[str, Any]:
        return {"images": [image_of(entry) for entry in _matching(images, parameters)]}

    if _FILTERS.keys() & parameters.keys():
        return Reply(listed())
    return shared(machined, images, parameters.get("all", False), listed)


async def stream_images(machined: Machined, parameters: Parameters) -> Reply:
    detailed = parameters.get("details", False)
    found = await _shown(machined, parameters)
    return await OneByOne("images", found, lambda entry: _describe(machined, entry, detailed)).next()


async def get_image(machined: Machined, parameters: Parameters) -> Reply:
    """From the list, since GetImage() on D-Bus does no more than say whether there is one."""
    name, images = parameters["name"], await machined.images()
    entry = next((entry for entry in images if entry[0] == name), None)
    if entry is None:
        raise NoSuchImage(name)
    if not parameters.get("details", False):
        return shared(machined, images, name, lambda: {"image": image_of(entry)})
    image = await _describe(machined, entry, True)
    if image is None:
        raise NoSuchImage(name)
    return Reply({"image": image})


async def remove_image(machined: Machined, parameters: Parameters) -> Reply:
    await machined.call("RemoveImage", "s", parameters["name"], deadline=None)
    return Reply()


async def clone_image(machined: Machined, parameters: Parameters) -> Reply:
    read_only = parameters.get("read_only", False)
    await machined.call("CloneImage", "ssb", parameters["name"], parameters["dest"], read_only, deadline=None)
    return Reply()


async def rename_image(machined: Machined, parameters: Parameters) -> Reply:
    await machined.call("RenameImage", "ss", parameters["name"], parameters["dest"])
    return Reply()


async def mark_image_read_only(machined: Machined, parameters: Parameters) -> Reply:
    await machined.call("MarkImageReadOnly", "sb", parameters["name"], parameters["read_only"])
    return Reply()


# Errors of which machined says nothing but the name, and what they mean here.
_NO_LIMIT = {
    "org.freedesktop.DBus.Error.NotSupported": "only an image that is a subvolume of btrfs has a limit",
    "System.Error.ENOTCONN": "the quota of this btrfs is off; SetPoolLimit turns it on",
}


async def set_image_limit(machined: Machined, parameters: Parameters) -> Reply:
    try:
        await machined.call("SetImageLimit", "st", parameters["name"], parameters.get("limit", UINT64_MAX))
    except DBusError as error:
        if error.name in _NO_LIMIT:
            raise NotSupported(_NO_LIMIT[error.name]) from error
        raise
    return Reply()


async def get_pool(machined: Machined, parameters: Parameters) -> Reply:
    properties = await machined.properties()
    sizes = {"usage": properties.get("PoolUsage"), "limit": properties.get("PoolLimit")}
    return Reply({"path": _path(properties, "PoolPath"), **_known(sizes)})


async def set_pool_limit(machined: Machined, parameters: Parameters) -> Reply:
    await machined.call("SetPoolLimit", "t", parameters.get("limit", UINT64_MAX))
    return Reply()


async def clean_pool(machined: Machined, parameters: Parameters) -> Reply:
    (removed,) = await machined.call("CleanPool", "s", parameters["mode"], reply="a(st)", deadline=None)
    return await _Removed(sorted(removed)).next()


class _Removed:
    """A reply for each image that was removed, and one if there was none; see messages.Stream."""

    def __init__(self, removed: list[tuple[str, int]]) -> None:
        self._left = removed[::-1]

    async def next(self) -> Reply:
        if not self._left:
            return Reply()
        name, usage = self._left.pop()
        return Reply({"name": name, **_known({"usage": usage})}, stream=self if self._left else None)

    def close(self) -> None:
        self._left.clear()


# Parameters that say which images are wanted, and where each image has that value.
_FILTERS = {"type": 1, "read_only": 2}


async def _shown(machined: Machined, parameters: Parameters) -> list[Image]:
    """Those that the call asks for and the client is shown: the others cost no time that could tell of them."""
    found = _matching(await machined.images(), parameters)
    return [entry for entry in found if machined.shown.shows_image(entry[0])]


def _matching(images: Images, parameters: Parameters) -> list[Image]:
    """Those that the call asks for, in their order."""
    everything = parameters.get("all", False)
    found = [entry for entry in images if everything or entry[0] != HOST]
    for name, place in _FILTERS.items():
        if name in parameters:
            found = [entry for entry in found if entry[place] == parameters[name]]
    return found


def _path(properties: Mapping[str, Any], name: str) -> str:
    if not isinstance(path := properties.get(name), str):
        raise DBusError(UNKNOWN_PROPERTY, f"machined does not say {name}")
    return path


def _known(sizes: Mapping[str, Any]) -> dict[str, int]:
    return {key: size for key, size in sizes.items() if isinstance(size, int) and 0 <= size <= INT_MAX}


# --- details --------------------------------------------------------------------------------------------------------

_SIZES = {"limit": "Limit", "usage_exclusive": "UsageExclusive", "limit_exclusive": "LimitExclusive"}
# Fields, and the member of the manager that says them, with the signature of its reply; of the first ones, which are of
# the image's own object, none.
_PIECES = (
    (("path", *_SIZES), "", ""),
    (("hostname",), "GetImageHostname", "s"),
    (("machine_id",), "GetImageMachineID", "ay"),
    (("machine_info",), "GetImageMachineInfo", "a{ss}"),
    (("os_release",), "GetImageOSRelease", "a{ss}"),
)


async def _describe(machined: Machined, entry: Image, detailed: bool) -> dict[str, Any] | None:
    """The image; None if it has been removed since it was listed. With details if it still is shown by then.

    Raises Unavailable when the client has left before those.
    """
    if not detailed:
        return image_of(entry)
    machined.require_client()
    if not machined.shown.shows_image(entry[0]):
        return None
    details = await _details(machined, entry)
    return None if details is None else {**image_of(entry), "details": details}


async def _details(machined: Machined, entry: Image) -> dict[str, Any] | None:
    """All that machined says of an image. A piece that fails is missing, and the others are there."""
    name, object_path = entry[0], entry[-1]
    found: dict[str, Any] = {}
    missing: list[dict[str, str]] = []
    for fields, member, reply in _PIECES:
        machined.require_client()
        try:
            if member:
                (answer,) = await machined.call(member, "s", name, reply=reply)
            else:
                answer = await machined.properties(object_path, "org.freedesktop.machine1.Image")
            found |= _piece(fields[0], answer)
        except (DBusError, VarlinkError) as error:
            if isinstance(error, DBusError) and error.name in GONE:
                return None
            missing += [missing_piece(field, error) for field in fields]
    return found | {"missing": missing}


def _piece(field: str, answer: Any) -> dict[str, Any]:  # noqa: ANN401  what D-Bus carries
    """The fields that a piece is, by the first of them. With an empty text or list machined says that there is none."""
    if field == "path":
        sizes = {size: answer.get(name) for size, name in _SIZES.items()}
        return {field: _path(answer, "Path"), **_known(sizes)}
    if field in ("machine_info", "os_release"):
        return {field: [f"{name}={text}" for name, text in answer.items()]}
    if not answer:
        return {}
    return {field: bytes(answer).hex() if field == "machine_id" else answer}
