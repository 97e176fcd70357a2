# SPDX-License-Identifier: LGPL-2.1-or-later
"""Methods about machines: which there are, whose users theirs are, and to begin and end them."""

import os
import signal
from collections.abc import Mapping
from typing import Any

from .bus import DBusError
from .details import details
from .errors import (
    NoMachineForPID,
    NoSuchGroupMapping,
    NoSuchImage,
    NoSuchMachine,
    NoSuchUserMapping,
    NotSupported,
    StartFailed,
)
from .listed import Machine
from .machined import Machined
from .messages import Parameters, Reply
from .replies import OneByOne, shared
from .shapes import machine_of

HOST = ".host"
# As machinectl(1) asks an init system: systemd(1), "Signals". SIGRTMIN is 34 for all that use the C library.
POWEROFF = 34 + 4
REBOOT = signal.SIGINT.value
INVALID = "org.freedesktop.DBus.Error.InvalidArgs"


async def list_machines(machined: Machined, parameters: Parameters) -> Reply:
    if parameters.get("details", False):
        found = await _shown(machined, parameters)
        return Reply({"machines": [await _describe(machined, entry, True) for entry in found]})
    machines = await machined.machines()

    def listed() -> dict[str, Any]:
        return {"machines": [machine_of(entry) for entry in _matching(machines, parameters)]}

    if "class" in parameters or "service" in parameters:
        return Reply(listed())
    return shared(machined, machines, parameters.get("all", False), listed)


async def stream_machines(machined: Machined, parameters: Parameters) -> Reply:
    detailed = parameters.get("details", False)
    found = await _shown(machined, parameters)
    return await OneByOne("machines", found, lambda entry: _describe(machined, entry, detailed)).next()


async def get_machine(machined: Machined, parameters: Parameters) -> Reply:
    """From the list, in one round trip: the path that D-Bus GetMachine returns says neither class nor service.

    Nor could the object be asked by its path, since the one of a machine called `self` is that of the caller's own.
    """
    name = parameters["name"]
    machines = await machined.machines()
    if name not in machines:
        raise NoSuchMachine(name)
    if parameters.get("details", False):
        return Reply({"machine": await _describe(machined, machines[name], True)})
    return shared(machined, machines, name, lambda: {"machine": machine_of(machines[name])})


async def get_machine_by_pid(machined: Machined, parameters: Parameters) -> Reply:
    """A machine that is not shown has no processes. PID 0 would be this process, as it is who asks machined.

    The list is read either way: the time that it takes would tell a process of a hidden machine from one of none.
    """
    pid = parameters["pid"]
    if pid == os.getpid():
        raise NoMachineForPID(pid)
    try:
        (path,) = await machined.call("GetMachineByPID", "u", pid, reply="o")
    except DBusError as error:
        if error.name != "org.freedesktop.machine1.NoMachineForPID":
            raise
        path = ""
    for entry in (await machined.machines()).values():
        if entry[3] == path and machined.shown.shows_machine(entry[0]):
            return Reply({"machine": await _describe(machined, entry, parameters.get("details", False))})
    raise NoMachineForPID(pid)


async def terminate_machine(machined: Machined, parameters: Parameters) -> Reply:
    await machined.call("TerminateMachine", "s", parameters["name"])
    return Reply()


async def kill_machine(machined: Machined, parameters: Parameters) -> Reply:
    whom, number = parameters.get("who", "all"), parameters.get("signal", signal.SIGTERM.value)
    await machined.call("KillMachine", "ssi", parameters["name"], whom, number)
    return Reply()


async def unregister_machine(machined: Machined, parameters: Parameters) -> Reply:
    await machined.call("UnregisterMachine", "s", _not_the_host(parameters["name"]))
    return Reply()


async def poweroff_machine(machined: Machined, parameters: Parameters) -> Reply:
    await machined.call("KillMachine", "ssi", _not_the_host(parameters["name"]), "leader", POWEROFF)
    return Reply()


async def reboot_machine(machined: Machined, parameters: Parameters) -> Reply:
    await machined.call("KillMachine", "ssi", _not_the_host(parameters["name"]), "leader", REBOOT)
    return Reply()


async def start_machine(machined: Machined, parameters: Parameters) -> Reply:
    """machinectl(1) escapes nothing in the unit's name either: the template has %i, and a host name needs it not."""
    name = _not_the_host(parameters["name"])
    if await machined.image(name) is None:
        raise NoSuchImage(name)
    result = await machined.start_unit(f"systemd-nspawn@{name}.service")
    if result != "done":
        raise StartFailed(name, result)
    return Reply()


async def map_from_machine_user(machined: Machined, parameters: Parameters) -> Reply:
    return await _map_from(machined, "MapFromMachineUser", "uid", parameters)


async def map_from_machine_group(machined: Machined, parameters: Parameters) -> Reply:
    return await _map_from(machined, "MapFromMachineGroup", "gid", parameters)


async def map_to_machine_user(machined: Machined, parameters: Parameters) -> Reply:
    return await _map_to(machined, "MapToMachineUser", "uid", parameters)


async def map_to_machine_group(machined: Machined, parameters: Parameters) -> Reply:
    return await _map_to(machined, "MapToMachineGroup", "gid", parameters)


def _no_mapping(kind: str, number: int) -> NoSuchUserMapping | NoSuchGroupMapping:
    return NoSuchUserMapping(number) if kind == "uid" else NoSuchGroupMapping(number)


_NO_MAPPING = ("org.freedesktop.machine1.NoSuchUserMapping", "org.freedesktop.machine1.NoSuchGroupMapping")


async def _map_from(machined: Machined, member: str, kind: str, parameters: Parameters) -> Reply:
    try:
        (number,) = await machined.call(member, "su", parameters["name"], parameters[kind], reply="u")
    except DBusError as error:
        if error.name in _NO_MAPPING:
            raise _no_mapping(kind, parameters[kind]) from error
        if error.name == INVALID:
            raise NotSupported(error.message) from error
        raise
    return Reply({kind: number})


async def _map_to(machined: Machined, member: str, kind: str, parameters: Parameters) -> Reply:
    """A machine that is not shown has no users."""
    try:
        name, _, number = await machined.call(member, "u", parameters[kind], reply="sou")
    except DBusError as error:
        if error.name not in _NO_MAPPING:
            raise
        raise _no_mapping(kind, parameters[kind]) from error
    if not machined.shown.shows_machine(name):
        raise _no_mapping(kind, parameters[kind])
    return Reply({"name": name, kind: number})


def _not_the_host(name: str) -> str:
    if name == HOST:
        raise NotSupported("the host itself is not started, ended or forgotten here")
    return name


async def _shown(machined: Machined, parameters: Parameters) -> list[Machine]:
    """Those that the call asks for and the client is shown: the others cost no time that could tell of them."""
    found = _matching(await machined.machines(), parameters)
    return [entry for entry in found if machined.shown.shows_machine(entry[0])]


def _matching(machines: Mapping[str, Machine], parameters: Parameters) -> list[Machine]:
    """Those that the call asks for, in their order."""
    everything = parameters.get("all", False)
    wanted = {index: parameters[name] for index, name in ((1, "class"), (2, "service")) if name in parameters}
    return [
        entry
        for entry in machines.values()
        if (everything or entry[1] != "host") and all(entry[index] == value for index, value in wanted.items())
    ]


async def _describe(machined: Machined, entry: Machine, detailed: bool) -> dict[str, Any]:
    return machine_of(entry) | ({"details": await details(machined, entry)} if detailed else {})
