# SPDX-License-Identifier: LGPL-2.1-or-later
"""The methods of io.machine1: one function each, and the table that says which is which.

A function gets machined and the validated parameters, without those that were null, and returns a Reply. What the
parameters mean is in the contract; what machined makes of them is in org.freedesktop.machine1(5).
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from . import images, inside, machines, transfers, watching
from .machined import Machined
from .messages import Parameters, Reply

Function: TypeAlias = Callable[[Machined, Parameters], Awaitable[Reply]]

NAME_MAX = 255


def _can_be_a_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= NAME_MAX and value.isprintable()


@dataclass(frozen=True, slots=True)
class Method:
    """A function, and whether it is guarded: it changes something or opens a shell.

    `about` says which parameter names which object, `machine`, `image` or `new` (the name that an image is to get). One
    of the service's `own` is for root and the user that the service runs as, whatever polkit would say. One that
    `streams` may have several replies, so it can be called with `more` alone; see messages.Stream. One that has another
    function `streamed` takes both: that one makes the replies to a call with `more`. One with `details` is guarded when
    these are asked for, as machined guards them from systemd 261 on. `fd` is the parameter that is the index of a file
    descriptor which comes with the call.
    """

    function: Function
    guarded: bool
    about: Mapping[str, str]
    own: bool = False
    streams: bool = False
    streamed: Function | None = None
    details: bool = False
    fd: str | None = None

    def called_with(self, parameters: Parameters) -> "Method":
        """The same, guarded if these parameters make it so. They need not be validated yet."""
        return replace(self, guarded=True) if self.details and parameters.get("details") is True else self

    def objects(self, parameters: Parameters) -> dict[str, str]:
        """The objects that a call is about, by kind. Of parameters that are not validated, what can be a name."""
        named: dict[str, Any] = {kind: parameters.get(parameter) for kind, parameter in self.about.items()}
        return {kind: name for kind, name in named.items() if _can_be_a_name(name)}


_MACHINE = {"machine": "name"}
_IMAGE = {"image": "name"}
_NEW_IMAGE = {"image": "name", "new": "dest"}
_NEW = {"new": "name"}
_FD = "image_fd"

METHODS: dict[str, Method] = {
    "io.machine1.ListMachines": Method(
        machines.list_machines, False, {}, streamed=machines.stream_machines, details=True
    ),
    "io.machine1.GetMachine": Method(machines.get_machine, False, _MACHINE, details=True),
    "io.machine1.GetMachineByPID": Method(machines.get_machine_by_pid, False, {}, details=True),
    "io.machine1.TerminateMachine": Method(machines.terminate_machine, True, _MACHINE),
    "io.machine1.KillMachine": Method(machines.kill_machine, True, _MACHINE),
    "io.machine1.PoweroffMachine": Method(machines.poweroff_machine, True, _MACHINE),
    "io.machine1.RebootMachine": Method(machines.reboot_machine, True, _MACHINE),
    "io.machine1.StartMachine": Method(machines.start_machine, True, _IMAGE),
    "io.machine1.UnregisterMachine": Method(machines.unregister_machine, True, _MACHINE),
    "io.machine1.MapFromMachineUser": Method(machines.map_from_machine_user, False, _MACHINE),
    "io.machine1.MapFromMachineGroup": Method(machines.map_from_machine_group, False, _MACHINE),
    "io.machine1.MapToMachineUser": Method(machines.map_to_machine_user, False, {}),
    "io.machine1.MapToMachineGroup": Method(machines.map_to_machine_group, False, {}),
    "io.machine1.OpenMachineShell": Method(inside.open_machine_shell, True, _MACHINE),
    "io.machine1.OpenMachineLogin": Method(inside.open_machine_login, True, _MACHINE),
    "io.machine1.OpenMachinePTY": Method(inside.open_machine_pty, True, _MACHINE),
    "io.machine1.OpenMachineRootDirectory": Method(inside.open_machine_root_directory, True, _MACHINE),
    "io.machine1.CopyFromMachine": Method(inside.copy_from_machine, True, _MACHINE),
    "io.machine1.CopyToMachine": Method(inside.copy_to_machine, True, _MACHINE),
    "io.machine1.BindMountMachine": Method(inside.bind_mount_machine, True, _MACHINE),
    "io.machine1.WatchMachines": Method(watching.watch_machines, False, {}, streams=True),
    # Not about the machine: one that is not shown is one that does not come.
    "io.machine1.WaitMachine": Method(watching.wait_machine, False, {}),
    "io.machine1.ListImages": Method(images.list_images, False, {}, streamed=images.stream_images, details=True),
    "io.machine1.WatchImages": Method(watching.watch_images, False, {}, streams=True),
    "io.machine1.GetImage": Method(images.get_image, False, _IMAGE, details=True),
    "io.machine1.RemoveImage": Method(images.remove_image, True, _IMAGE),
    "io.machine1.CloneImage": Method(images.clone_image, True, _NEW_IMAGE),
    "io.machine1.RenameImage": Method(images.rename_image, True, _NEW_IMAGE),
    "io.machine1.MarkImageReadOnly": Method(images.mark_image_read_only, True, _IMAGE),
    "io.machine1.SetImageLimit": Method(images.set_image_limit, True, _IMAGE),
    "io.machine1.GetPool": Method(images.get_pool, False, {}),
    "io.machine1.SetPoolLimit": Method(images.set_pool_limit, True, {}),
    "io.machine1.CleanPool": Method(images.clean_pool, True, {}, streams=True),
    "io.machine1.ImportTar": Method(transfers.import_tar, True, _NEW, fd=_FD),
    "io.machine1.ImportRaw": Method(transfers.import_raw, True, _NEW, fd=_FD),
    "io.machine1.ExportTar": Method(transfers.export_tar, True, _IMAGE, fd=_FD),
    "io.machine1.ExportRaw": Method(transfers.export_raw, True, _IMAGE, fd=_FD),
    "io.machine1.PullTar": Method(transfers.pull_tar, True, _NEW),
    "io.machine1.PullRaw": Method(transfers.pull_raw, True, _NEW),
    "io.machine1.ListTransfers": Method(transfers.list_transfers, False, {}),
    "io.machine1.CancelTransfer": Method(transfers.cancel_transfer, True, {}),
}
