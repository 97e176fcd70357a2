# SPDX-License-Identifier: LGPL-2.1-or-later
"""systemd-machined as this service sees it: org.freedesktop.machine1(5), and what its errors mean to a client."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from jeepney import DBusAddress, HeaderFields, new_method_call
from jeepney.bus_messages import message_bus
from jeepney.fds import FileDescriptor

from . import errors
from .bus import DEADLINE, MESSAGE_MAX, Bus, DBusError, Signal, listen
from .importd import Importd, Listed
from .limits import Limits
from .listed import Image, Images, Machine, Machines
from .loop import Future, Loop
from .messages import Reply
from .pool import Pool
from .reads import Read
from .remembered import Remembered
from .turns import ROOT
from .units import Units
from .watch import Changes, ImageWatch, MachineWatch, Told, wait_for_machine

_MANAGER = DBusAddress(
    "/org/freedesktop/machine1", "org.freedesktop.machine1", "org.freedesktop.machine1.Manager"
)

_MACHINE = "org.freedesktop.machine1.Machine"
_PROPERTIES = "org.freedesktop.DBus.Properties"

# Members without parameters that change nothing, and their replies.
READS = {"ListMachines": "a(ssso)", "ListImages": "a(ssbttto)"}
# What a guest or a disk has to do first, so that it may take long.
SLOW = (
    "OpenMachineShell", "OpenMachineLogin", "OpenMachinePTY", "OpenMachineRootDirectory", "BindMountMachine",
    "CopyFromMachine", "CopyToMachine", "CopyFromMachineWithFlags", "CopyToMachineWithFlags",
    "GetMachineAddresses", "GetMachineOSRelease", "GetMachineUIDShift", "CloneImage", "RemoveImage", "CleanPool",
    "GetImageHostname", "GetImageMachineID", "GetImageMachineInfo", "GetImageOSRelease",
)  # fmt: skip
# What a guest or a disk says, as long as it likes: so many bytes are taken of it, and of the properties of a machine,
# some of which are texts of who registered it. They are decoded on the one thread.
SAID_INSIDE = (
    "GetMachineAddresses", "GetMachineOSRelease",
    "GetImageHostname", "GetImageMachineID", "GetImageMachineInfo", "GetImageOSRelease",
)  # fmt: skip
SAID_INSIDE_MAX = 64 * 1024
# After these images are others, or may be.
CHANGE_IMAGES = (
    "CloneImage", "RemoveImage", "RenameImage", "MarkImageReadOnly", "SetImageLimit", "SetPoolLimit", "CleanPool",
)  # fmt: skip
# From which version of systemd on machined does it for others than root: org.freedesktop.machine1(5), "History".
SINCE = {"OpenMachinePTY": 258}
# Other calls of one user at a time: machined does one after the other, so more would only be in others' way.
AT_ONCE = 2

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


def _is_too_old(error: DBusError) -> bool:
    """Whether machined has no such member, or not for this user: sd-bus then says so itself, before polkit is asked."""
    return error.name == "org.freedesktop.DBus.Error.UnknownMethod" or (
        error.name == "org.freedesktop.DBus.Error.AccessDenied" and error.message.startswith("Access to ")
    )


class Shown(Protocol):
    """Which objects there are for a client, by the policy of now. Hidden and missing look the same."""

    def shows_machine(self, name: str) -> bool: ...

    def shows_image(self, name: str) -> bool: ...


class _Everything:
    def shows_machine(self, name: str) -> bool:
        return True

    def shows_image(self, name: str) -> bool:
        return True


@dataclass(slots=True)
class Rules:
    """How often another policy came. All views of a Machined have the same."""

    changes: int = 0


class Signals:
    """What machined says by itself of machines, and its list: over a connection of their own, in one order."""

    def __init__(self, loop: Loop, told: Told) -> None:
        self._bus = Bus(loop, listener=self)
        self._told = told
        self._owner = ""  # of machined's name: anybody may send signals that say they are machined's
        self._closed = False

    async def open(self) -> None:
        """From now on machined's signals come. Raises what Bus.call raises."""
        signals = ((_MANAGER.interface, member) for member in ("MachineNew", "MachineRemoved"))
        await listen(self._bus, _MANAGER.bus_name, *signals)

    async def machines(self) -> Machines:
        """What machined lists, after all the signals that it sent before. Raises what Bus.call raises."""
        answer = await self._bus.ask(new_method_call(_MANAGER, "ListMachines"), READS["ListMachines"])
        self._owner = answer.header.fields.get(HeaderFields.sender, "")
        return machines_by_name(answer.body())

    def close(self) -> None:
        self._closed = True
        self._bus.close()

    def heard(self, signal: Signal) -> None:
        if self._closed:
            return
        match signal.interface, signal.member, signal.body:
            case message_bus.interface, "NameOwnerChanged", (_MANAGER.bus_name, str(old), str(new)):
                if signal.sender == message_bus.bus_name:
                    self._owner = new
                    if old:
                        self._told.moved(False)
                    if new:
                        self._told.moved(True)
            case _MANAGER.interface, "MachineNew", (str(name), str(path)) if signal.sender == self._owner:
                self._told.added(name, path)
            case _MANAGER.interface, "MachineRemoved", (str(name), _) if signal.sender == self._owner:
                self._told.removed(name)

    def broke(self) -> None:
        if not self._closed:
            self._told.broke()


class Machined:
    """Calls to systemd-machined's manager object.

    Each kind has a connection of its own: reads are everybody's, and however many there are and however long machined
    takes for them, they keep no change from machined; nor does a slow one keep a machine from being terminated.
    """

    shown: Shown = _Everything()
    # Resolved when the client leaves that is called for.
    left: Future[None] | None = None
    # What came with its call, and stays the server's.
    fds: tuple[FileDescriptor, ...] = ()
    # Whether it takes several replies.
    more: bool = False

    def __init__(self, loop: Loop, limits: Limits = Limits()) -> None:  # noqa: B008  immutable
        self._loop = loop
        self._reads = Bus(loop)
        self._machines = Read(
            loop, self._reads, new_method_call(_MANAGER, "ListMachines"), READS["ListMachines"], machines_by_name
        )
        self._images = Read(
            loop, self._reads, new_method_call(_MANAGER, "ListImages"), READS["ListImages"], images_by_name
        )
        self._remembered = Remembered()
        self._machine_watch = MachineWatch(loop, lambda told: Signals(loop, told))
        self._image_watch = ImageWatch(loop, self.images, Pool())
        self._quick = Bus(loop, AT_ONCE, limits.waiting_calls)
        self._slow = Bus(loop, limits.calls_per_user, limits.waiting_calls)
        self._units = Units(loop, AT_ONCE, limits.waiting_calls)
        self._importd = Importd(loop, AT_ONCE, limits)
        self._user = ROOT
        self._rules = Rules()

    def on_behalf_of(
        self,
        user: int,
        shown: Shown,
        left: Future[None] | None = None,
        fds: tuple[FileDescriptor, ...] = (),
        *,
        more: bool = False,
    ) -> "Machined":
        """The same, for a call of this user, for whom there is what is shown, until the client has `left`."""
        view = object.__new__(type(self))
        view.__dict__ = self.__dict__ | {"_user": user, "shown": shown, "left": left, "fds": fds, "more": more}
        return view

    def require_client(self) -> None:
        """Raise Unavailable if nobody is there any more for whom the next of many calls would be made."""
        if self.left is not None and self.left.done:
            raise errors.Unavailable("the client has left, or machine1-bridge stops")

    @property
    def rules(self) -> int:
        """Which policy's: what was shared under one is not shared under the next."""
        return self._rules.changes

    def change_rules(self, limits: Limits) -> None:
        """Those of another policy, for calls that do not wait yet."""
        self._rules.changes += 1
        self._machine_watch.renew()
        self._image_watch.renew()
        self._quick.turns.limit(AT_ONCE, limits.waiting_calls)
        self._slow.turns.limit(limits.calls_per_user, limits.waiting_calls)
        self._importd.limit(AT_ONCE, limits)

    async def machines(self) -> Machines:
        """What machined would list now. Many may share it. Raises what Bus.call raises."""
        remembered = self._remembered.recall()
        if remembered is not None:
            return remembered
        stamp = self._remembered.look()
        machines = await self._machines.answer()
        if stamp is not None:
            self._remembered.keep(stamp, machines)
        elif self._remembered.wants_process():
            self._loop.start(self._find_process(), self._remembered.watch)
        return machines

    async def images(self) -> Images:
        """What machined lists now. Many may share it. Raises what Bus.call raises."""
        return await self._images.answer()

    async def image(self, name: str) -> Image | None:
        """The one of this name that machined lists now. Raises what Bus.call raises."""
        return next((entry for entry in await self.images() if entry[0] == name), None)

    async def call(
        self, member: str, signature: str, *arguments: object, reply: str = "", deadline: float | None = DEADLINE
    ) -> tuple[Any, ...]:
        """The body of machined's reply, whose signature has to be `reply`; see Bus.call.

        Raises NotSupported for what this version of machined does not do for this service.
        """
        bus = self._slow if member in SLOW else self._quick
        message = new_method_call(_MANAGER, member, signature, arguments)
        most = SAID_INSIDE_MAX if member in SAID_INSIDE else MESSAGE_MAX
        try:
            return await bus.call(message, reply, deadline, user=self._user, most=most)
        except DBusError as error:
            if member in SINCE and _is_too_old(error):
                raise errors.NotSupported(f"systemd does this from version {SINCE[member]} on") from error
            raise
        finally:
            if member in CHANGE_IMAGES:
                self._image_watch.hint()

    async def machine_properties(self, name: str, path: str) -> dict[str, Any]:
        """The properties of a machine's object by name. Raises what Bus.call raises.

        The object of a machine called `self` would be that of the one that this service runs in.
        """
        found = await self.properties(path, _MACHINE)
        if found["Name"] != name:
            raise DBusError("org.freedesktop.DBus.Error.UnknownObject", "the object is that of another machine")
        return found

    async def properties(
        self, path: str = _MANAGER.object_path, interface: str = "org.freedesktop.machine1.Manager"
    ) -> dict[str, Any]:
        """Those of an object of machined's, by name. Raises what Bus.call raises."""
        message = new_method_call(DBusAddress(path, _MANAGER.bus_name, _PROPERTIES), "GetAll", "s", (interface,))
        (found,) = await self._quick.call(message, "a{sv}", DEADLINE, user=self._user, most=SAID_INSIDE_MAX)
        return {name: value for name, (_, value) in found.items()}

    async def start_unit(self, unit: str) -> str:
        """Have systemd start it; the result of that as Units.start has it. Raises what Bus.call raises."""
        return await self._units.start(unit, self._user, self.left)

    async def transfer(self, image: str, member: str, signature: str, *arguments: object) -> Reply:
        """Have systemd-importd begin one of this image, and tell of it where the client takes several replies.

        Raises what Importd.follow raises.
        """
        if self.more:
            return await self._importd.follow(
                self._user, lambda: self.shown.shows_image(image), member, signature, *arguments
            )
        number, _ = await self._importd.call(self._user, member, signature, *arguments, reply="uo")
        return Reply({"transfer": number})

    async def transfers(self) -> list[Listed]:
        """Those of images, whoever began them. Raises what Bus.call raises."""
        return await self._importd.transfers(self._user)

    async def cancel_transfer(self, number: int) -> None:
        """Raises what Bus.call raises."""
        await self._importd.call(self._user, "CancelTransfer", "u", number, reply="")

    def machine_changes(
        self, shape: Callable[[Machine], dict[str, object]], *, everything: bool
    ) -> Changes[Machine]:
        """The machines and what becomes of them, each in this shape; with the host itself if `everything`."""
        return Changes(self._machine_watch, self.shown.shows_machine, "machines", shape, everything=everything)

    def image_changes(self, shape: Callable[[Image], dict[str, object]], *, everything: bool) -> Changes[Image]:
        """As machine_changes."""
        return Changes(self._image_watch, self.shown.shows_image, "images", shape, everything=everything)

    async def wait_for_machine(self, name: str, *, there: bool, microseconds: int | None) -> Machine | None:
        """The machine when it is there, or None when it is not. Raises Timeout, and what Bus.call raises."""
        seconds = None if microseconds is None else microseconds / 1_000_000
        return await wait_for_machine(
            self._machine_watch, self.shown.shows_machine, name, there=there, seconds=seconds, left=self.left
        )

    def close(self) -> None:
        self._machine_watch.end()
        self._image_watch.end()
        self._units.close()
        self._importd.close()
        self._remembered.close()
        for bus in (self._reads, self._quick, self._slow):
            bus.close()

    async def _find_process(self) -> FileDescriptor | None:
        """machined's process; None if it cannot be told which one it is.

        The name has the same owner before and after, so the PID is not another's yet.
        """
        process = None
        try:
            (owner,) = await self._reads.call(message_bus.GetNameOwner(_MANAGER.bus_name), "s")
            (pid,) = await self._reads.call(message_bus.GetConnectionUnixProcessID(owner), "u")
            process = FileDescriptor(os.pidfd_open(pid))
            (still,) = await self._reads.call(message_bus.GetNameOwner(_MANAGER.bus_name), "s")
            if still == owner:
                return process
        except (DBusError, errors.VarlinkError, OSError):
            pass
        if process is not None:
            process.close()
        return None


def images_by_name(body: tuple[Any, ...]) -> Images:
    """The reply of ListImages."""
    return Images(body[0])


def machines_by_name(body: tuple[Any, ...]) -> Machines:
    """The reply of ListMachines."""
    return Machines(body[0])
