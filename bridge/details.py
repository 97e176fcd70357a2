# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is known of one machine beside what the list has: MachineDetails of the contract.

It takes several calls, each of which may fail for itself, as a guest may be slow, or have no network of its own.
"""

import socket
from collections.abc import Callable
from typing import Any

from .bus import DBusError
from .errors import VarlinkError
from .listed import Machine
from .machined import Machined
from .shapes import INT_MAX

STATES = ("opening", "running", "closing")
UNKNOWN = 2**32 - 1  # of a UID, and of an address in AF_VSOCK
UNKNOWN_PROPERTY = "org.freedesktop.DBus.Error.UnknownProperty"

# From which version of systemd on a machine has the property: org.freedesktop.machine1(5), "History".
SINCE = {"SSHAddress": 256, "SSHPrivateKeyPath": 256, "VSockCID": 256, "Supervisor": 258, "UID": 258}


def _text(value: str) -> str | None:
    return value or None


def _pid(value: int) -> int | None:
    return value if 0 < value < 2**31 else None


def _known(value: int) -> int | None:
    return value if value != UNKNOWN else None


# Field, property, and the field's value; None for what the machine does not have.
_PROPERTIES: tuple[tuple[str, str, Callable[[Any], object]], ...] = (
    ("id", "Id", lambda value: bytes(value).hex() if any(value) else None),
    ("leader", "Leader", _pid),
    ("unit", "Unit", _text),
    ("root_directory", "RootDirectory", _text),
    ("timestamp", "Timestamp", lambda value: value if 0 < value <= INT_MAX else None),
    ("state", "State", lambda value: value if value in STATES else None),
    ("network_interfaces", "NetworkInterfaces", lambda value: [index for index in value if index > 0]),
    ("ssh_address", "SSHAddress", _text),
    ("ssh_private_key_path", "SSHPrivateKeyPath", _text),
    ("vsock_cid", "VSockCID", _known),
    ("supervisor", "Supervisor", _pid),
    ("owner_uid", "UID", _known),
)


def _addresses(found: list[tuple[int, bytes]]) -> list[dict[str, str]]:
    """Those of families that this interface knows."""
    families = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
    return [
        {"family": families[socket.AddressFamily(family)], "address": socket.inet_ntop(family, bytes(address))}
        for family, address in found
        if family in families
    ]


# Field, member of the manager, its reply, and the field's value.
_MEMBERS: tuple[tuple[str, str, str, Callable[[Any], object]], ...] = (
    ("addresses", "GetMachineAddresses", "a(iay)", _addresses),
    ("os_release", "GetMachineOSRelease", "a{ss}", lambda found: [f"{name}={text}" for name, text in found.items()]),
    ("uid_shift", "GetMachineUIDShift", "u", _known),
)


async def details(machined: Machined, machine: Machine) -> dict[str, Any]:
    """All that machined says of it. Does not raise what machined says, but Unavailable when the client has left."""
    machined.require_client()
    name, _, _, path = machine
    found: dict[str, Any] = {}
    missing: list[dict[str, str]] = []
    try:
        properties = await machined.machine_properties(name, path)
    except (DBusError, VarlinkError) as error:
        missing += [missing_piece(field, error) for field, _, _ in _PROPERTIES]
    else:
        for field, member, shape in _PROPERTIES:
            if member in properties:
                found[field] = shape(properties[member])
            else:
                reason = f"known from systemd {SINCE[member]} on" if member in SINCE else "unknown to this systemd"
                missing.append({"piece": field, "error": UNKNOWN_PROPERTY, "reason": reason})
    for field, member, reply, shape in _MEMBERS:
        machined.require_client()
        try:
            (value,) = await machined.call(member, "s", name, reply=reply)
            found[field] = shape(value)
        except (DBusError, VarlinkError) as error:
            missing.append(missing_piece(field, error))
    return {field: value for field, value in found.items() if value is not None} | {"missing": missing}


def missing_piece(piece: str, error: DBusError | VarlinkError) -> dict[str, str]:
    if isinstance(error, DBusError):
        return {"piece": piece, "error": error.name, "reason": error.message}
    return {"piece": piece, "error": error.name, "reason": str(error.parameters.get("reason", ""))}
