# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a machine and an image look like in a reply."""

from .listed import Image, Machine

MACHINE_CLASSES = ("vm", "container", "host")
IMAGE_TYPES = ("directory", "subvolume", "raw", "block")
INT_MAX = 2**63 - 1


def machine_of(entry: Machine) -> dict[str, object]:
    """A class that a later machined may add is left out, so that the list holds for clients that know but these."""
    name, machine_class, service, object_path = entry
    known = {"class": machine_class} if machine_class in MACHINE_CLASSES else {}
    return {"name": name, **known, "service": service, "object_path": object_path}


def image_of(entry: Image) -> dict[str, object]:
    """Unknown is 0 for a time and UINT64_MAX for a size in machined; here both are absent, as is what no int holds."""
    name, image_type, read_only, ctime, mtime, usage, object_path = entry
    image: dict[str, object] = {"name": name}
    if image_type in IMAGE_TYPES:
        image["type"] = image_type
    image["read_only"] = read_only
    for key, value, smallest in (("ctime", ctime, 1), ("mtime", mtime, 1), ("usage", usage, 0)):
        if smallest <= value <= INT_MAX:
            image[key] = value
    image["object_path"] = object_path
    return image
