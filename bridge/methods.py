# SPDX-License-Identifier: LGPL-2.1-or-later
"""The methods of io.machine1: one function each, and the table that says which is which.

A function gets machined and the validated parameters, without those that were null, and returns a Reply. What the
parameters mean is in the contract; what machined makes of them is in org.freedesktop.machine1(5).
"""

import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .errors import InvalidParameter, NoSuchMachine
from .listed import Images, Machines
from .machined import Machined
from .messages import Reply

Parameters: TypeAlias = Mapping[str, Any]
Function: TypeAlias = Callable[[Machined, Parameters], Awaitable[Reply]]

HOST = ".host"
MACHINE_CLASSES = ("vm", "container", "host")
IMAGE_TYPES = ("directory", "subvolume", "raw", "block")
INT_MAX = 2**63 - 1
NAME_MAX = 255


async def list_machines(machined: Machined, parameters: Parameters) -> Reply:
    machines = await machined.machines()
    everything = parameters.get("all", False)

    def listed() -> list[dict[str, object]]:
        return [_machine(*entry) for entry in machines.values() if everything or entry[1] != "host"]

    return _shared(machined, machines, everything, lambda: {"machines": listed()})


async def get_machine(machined: Machined, parameters: Parameters) -> Reply:
    """From the list, in one round trip: the path that D-Bus GetMachine returns says neither class nor service.

    Nor could the object be asked by its path, since the one of a machine called `self` is that of the caller's own.
    """
    name = parameters["name"]
    machines = await machined.machines()
    if name not in machines:
        raise NoSuchMachine(name)
    return _shared(machined, machines, name, lambda: {"machine": _machine(*machines[name])})


async def terminate_machine(machined: Machined, parameters: Parameters) -> Reply:
    await machined.call("TerminateMachine", "s", parameters["name"])
    return Reply()


async def kill_machine(machined: Machined, parameters: Parameters) -> Reply:
    whom, number = parameters.get("who", "all"), parameters.get("signal", signal.SIGTERM.value)
    await machined.call("KillMachine", "ssi", parameters["name"], whom, number)
    return Reply()


async def open_machine_shell(machined: Machined, parameters: Parameters) -> Reply:
    """Arguments arrive in the program as they are written.

    machined makes them an ExecStart= of the guest's systemd, which replaces `$NAME` in them unless the dollar is
    doubled (systemd.service(5), "Command lines").
    """
    environment = parameters.get("env", [])
    _check_environment(environment)
    pty, path = await machined.call(
        "OpenMachineShell",
        "sssasas",
        parameters["name"],
        parameters.get("user", ""),
        parameters.get("path", ""),
        [argument.replace("$", "$$") for argument in parameters.get("args", [])],
        environment,
        reply="hs",
    )
    return Reply({"pty_fd": 0, "pty_path": path}, fds=(pty,))


async def copy_from_machine(machined: Machined, parameters: Parameters) -> Reply:
    return await _copy(machined, "CopyFromMachine", parameters)


async def copy_to_machine(machined: Machined, parameters: Parameters) -> Reply:
    return await _copy(machined, "CopyToMachine", parameters)


async def list_images(machined: Machined, parameters: Parameters) -> Reply:
    images = await machined.images()
    everything = parameters.get("all", False)

    def listed() -> list[dict[str, object]]:
        return [_image(*entry) for entry in images if everything or entry[0] != HOST]

    return _shared(machined, images, everything, lambda: {"images": listed()})


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


async def _copy(machined: Machined, member: str, parameters: Parameters) -> Reply:
    source = parameters["src"]
    await machined.call(member, "sss", parameters["name"], source, parameters.get("dest") or source, deadline=None)
    return Reply()


def _shared(
    machined: Machined, listed: Machines | Images, about: str | bool, parameters: Callable[[], dict[str, Any]]
) -> Reply:
    """The one reply about this, as long as this is what is listed and what the policy shows."""
    key = (machined.rules, about)
    reply = listed.replies.get(key)
    if reply is None:
        reply = listed.replies[key] = Reply(parameters(), shared=True)
    return reply


def _check_environment(assignments: Sequence[str]) -> None:
    """machined takes no variable twice, which a schema cannot say."""
    names: set[str] = set()
    for index, assignment in enumerate(assignments):
        name = assignment.partition("=")[0]
        if name in names:
            raise InvalidParameter(f"env[{index}]", "must not assign a variable for the second time")
        names.add(name)


def _can_be_a_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= NAME_MAX and value.isprintable()


def _machine(name: str, machine_class: str, service: str, object_path: str) -> dict[str, object]:
    """A class that a later machined may add is left out, so that the list holds for clients that know but these."""
    known = {"class": machine_class} if machine_class in MACHINE_CLASSES else {}
    return {"name": name, **known, "service": service, "object_path": object_path}


def _image(
    name: str, image_type: str, read_only: bool, ctime: int, mtime: int, usage: int, object_path: str
) -> dict[str, object]:
    """Unknown is 0 for a time and UINT64_MAX for a size in machined; here both are absent, as is what no int holds."""
    image: dict[str, object] = {"name": name}
    if image_type in IMAGE_TYPES:
        image["type"] = image_type
    image["read_only"] = read_only
    for key, value, smallest in (("ctime", ctime, 1), ("mtime", mtime, 1), ("usage", usage, 0)):
        if smallest <= value <= INT_MAX:
            image[key] = value
    image["object_path"] = object_path
    return image


@dataclass(frozen=True, slots=True)
class Method:
    """A function, and whether it is guarded: it changes something or opens a shell.

    `about` says which parameter names which object, `machine`, `image` or `new` (the name that an image is to get). One
    of the service's `own` is for root and the user that the service runs as, whatever polkit would say. One that
    `streams` may have several replies, so it can be called with `more` alone; see messages.Stream. One that has another
    function `streamed` takes both: that one makes the replies to a call with `more`.
    """

    function: Function
    guarded: bool
    about: Mapping[str, str]
    own: bool = False
    streams: bool = False
    streamed: Function | None = None

    def objects(self, parameters: Parameters) -> dict[str, str]:
        """The objects that a call is about, by kind. Of parameters that are not validated, what can be a name."""
        named: dict[str, Any] = {kind: parameters.get(parameter) for kind, parameter in self.about.items()}
        return {kind: name for kind, name in named.items() if _can_be_a_name(name)}


_MACHINE = {"machine": "name"}
_IMAGE = {"image": "name"}
_NEW_IMAGE = {"image": "name", "new": "dest"}

METHODS: dict[str, Method] = {
    "io.machine1.ListMachines": Method(list_machines, False, {}),
    "io.machine1.GetMachine": Method(get_machine, False, _MACHINE),
    "io.machine1.TerminateMachine": Method(terminate_machine, True, _MACHINE),
    "io.machine1.KillMachine": Method(kill_machine, True, _MACHINE),
    "io.machine1.OpenMachineShell": Method(open_machine_shell, True, _MACHINE),
    "io.machine1.CopyFromMachine": Method(copy_from_machine, True, _MACHINE),
    "io.machine1.CopyToMachine": Method(copy_to_machine, True, _MACHINE),
    "io.machine1.ListImages": Method(list_images, False, {}),
    "io.machine1.RemoveImage": Method(remove_image, True, _IMAGE),
    "io.machine1.CloneImage": Method(clone_image, True, _NEW_IMAGE),
    "io.machine1.RenameImage": Method(rename_image, True, _NEW_IMAGE),
}
