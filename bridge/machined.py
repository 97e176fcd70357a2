# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd-machined as this service sees it: org.freedesktop.machine1(5), and what its errors mean to a client."""

from collections.abc import Callable, Mapping
from typing import Any

from jeepney import DBusAddress, new_method_call

from . import errors
from .bus import DEADLINE, Bus, DBusError
from .loop import Loop

_MANAGER = DBusAddress(
    "/org/freedesktop/machine1", "org.freedesktop.machine1", "org.freedesktop.machine1.Manager"
)

READS = ("ListMachines", "ListImages")

# About the bridge's own rights (contrib/polkit, contrib/dbus): the client's were checked before.
BRIDGE_DENIED = (
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
)

# D-Bus error to varlink error. `names` are the objects that the call was about: machine, image, new (a new image name).
# What is not here, or whose object the call does not have, is Failed with the D-Bus error's name and message.
ERRORS: dict[str, Callable[[DBusError, Mapping[str, str]], errors.VarlinkError]] = {
    "org.freedesktop.machine1.NoSuchMachine": lambda _, names: errors.NoSuchMachine(names["machine"]),
    "org.freedesktop.machine1.NoSuchImage": lambda _, names: errors.NoSuchImage(names["image"]),
    "org.freedesktop.DBus.Error.FileExists": lambda _, names: errors.NameTaken(names["new"]),
    "System.Error.EEXIST": lambda _, names: errors.NameTaken(names["new"]),
    "System.Error.EROFS": lambda _, names: errors.ReadOnly(names["image"]),
    "System.Error.EBUSY": lambda error, _: errors.Busy(error.message),
    "org.freedesktop.DBus.Error.NotSupported": lambda error, _: errors.NotSupported(error.message),
    "org.freedesktop.DBus.Error.UnknownMethod": lambda error, _: errors.NotSupported(error.message),
    "System.Error.EOPNOTSUPP": lambda error, _: errors.NotSupported(error.message),
    "org.freedesktop.DBus.Error.LimitsExceeded": lambda *_: errors.TooManyOperations(),
    "org.freedesktop.DBus.Error.Timeout": lambda *_: errors.Timeout(),
    "System.Error.ETIMEDOUT": lambda *_: errors.Timeout(),
    # The bus says these when nobody is there to answer, or left while answering.
    "org.freedesktop.DBus.Error.ServiceUnknown": lambda error, _: errors.Unavailable(error.message),
    "org.freedesktop.DBus.Error.NameHasNoOwner": lambda error, _: errors.Unavailable(error.message),
    "org.freedesktop.DBus.Error.NoReply": lambda error, _: errors.Unavailable(error.message),
    "org.freedesktop.DBus.Error.TimedOut": lambda error, _: errors.Unavailable(error.message),
    **dict.fromkeys(BRIDGE_DENIED, lambda *_: errors.PermissionDenied()),
}


def to_varlink_error(error: DBusError, names: Mapping[str, str]) -> errors.VarlinkError:
    """What the client is told of a D-Bus error, given the names of the objects that its call was about."""
    if error.name.startswith("org.freedesktop.DBus.Error.Spawn."):
        return errors.Unavailable(error.message)
    translate = ERRORS.get(error.name)
    try:
        return translate(error, names) if translate else errors.Failed(error.name, error.message)
    except KeyError:
        return errors.Failed(error.name, error.message)


class Machined:
    """Calls to systemd-machined's manager object."""

    def __init__(self, loop: Loop) -> None:
        # Everybody may read, so reads have a connection of their own: however many there are and however long machined
        # takes for them, they keep no call that changes something from machined.
        self._reads, self._changes = Bus(loop), Bus(loop)

    async def call(
        self, member: str, signature: str = "", *arguments: object, reply: str = "", deadline: float | None = DEADLINE
    ) -> tuple[Any, ...]:
        """The body of machined's reply, whose signature has to be `reply`; see Bus.call."""
        bus = self._reads if member in READS else self._changes
        return await bus.call(new_method_call(_MANAGER, member, signature or None, arguments), reply, deadline)

    def close(self) -> None:
        self._reads.close()
        self._changes.close()
