# SPDX-License-Identifier: LGPL-2.1-or-later
"""Methods that reach into a machine: terminals, files, mounts."""

from collections.abc import Sequence

from .errors import InvalidParameter, PermissionDenied
from .machined import Machined
from .machines import HOST
from .messages import Parameters, Reply

# MACHINE_COPY_REPLACE of org.freedesktop.machine1(5).
REPLACE = 1


async def open_machine_shell(machined: Machined, parameters: Parameters) -> Reply:
    """Arguments arrive in the program as they are written.

    machined makes them an ExecStart= of the guest's systemd, which replaces `$NAME` in them unless the dollar is
    doubled (systemd.service(5), "Command lines").
    """
    environment = parameters.get("env", [])
    _check_environment(environment)
    return await _open_terminal(
        machined,
        "OpenMachineShell",
        "sssasas",
        parameters["name"],
        parameters.get("user", ""),
        parameters.get("path", ""),
        [argument.replace("$", "$$") for argument in parameters.get("args", [])],
        environment,
    )


async def open_machine_login(machined: Machined, parameters: Parameters) -> Reply:
    return await _open_terminal(machined, "OpenMachineLogin", "s", _not_the_host(parameters["name"]))


async def open_machine_pty(machined: Machined, parameters: Parameters) -> Reply:
    return await _open_terminal(machined, "OpenMachinePTY", "s", _not_the_host(parameters["name"]))


async def open_machine_root_directory(machined: Machined, parameters: Parameters) -> Reply:
    name = _not_the_host(parameters["name"])
    (directory,) = await machined.call("OpenMachineRootDirectory", "s", name, reply="h")
    return Reply({"directory_fd": 0}, fds=(directory,))


async def copy_from_machine(machined: Machined, parameters: Parameters) -> Reply:
    return await _copy(machined, "CopyFromMachine", parameters)


async def copy_to_machine(machined: Machined, parameters: Parameters) -> Reply:
    return await _copy(machined, "CopyToMachine", parameters)


async def bind_mount_machine(machined: Machined, parameters: Parameters) -> Reply:
    source = parameters["src"]
    await machined.call(
        "BindMountMachine",
        "sssbb",
        parameters["name"],
        source,
        parameters.get("dest") or source,
        parameters.get("read_only", False),
        parameters.get("mkdir", False),
    )
    return Reply()


async def _open_terminal(machined: Machined, member: str, signature: str, *arguments: object) -> Reply:
    pty, path = await machined.call(member, signature, *arguments, reply="hs")
    return Reply({"pty_fd": 0, "pty_path": path}, fds=(pty,))


async def _copy(machined: Machined, member: str, parameters: Parameters) -> Reply:
    source = parameters["src"]
    paths = parameters["name"], source, parameters.get("dest") or source
    if parameters.get("replace", False):
        await machined.call(f"{member}WithFlags", "ssst", *paths, REPLACE, deadline=None)
    else:
        await machined.call(member, "sss", *paths, deadline=None)
    return Reply()


def _not_the_host(name: str) -> str:
    """machined would hand out the root directory of the host to whoever may manage machines."""
    if name == HOST:
        raise PermissionDenied()
    return name


def _check_environment(assignments: Sequence[str]) -> None:
    """machined takes no variable twice, which a schema cannot say."""
    names: set[str] = set()
    for index, assignment in enumerate(assignments):
        name = assignment.partition("=")[0]
        if name in names:
            raise InvalidParameter(f"env[{index}]", "must not assign a variable for the second time")
        names.add(name)
