# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a call can end in besides a reply: one exception for each error of the interface.

The names and parameters are those of the contract (schema/machine1.openapi.yaml) and of the Varlink standard;
a test holds the two against each other.
"""

import errno
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self


@dataclass(frozen=True, slots=True)
class Refusal:
    """Who said no, and why: for the journal and for Check. Names the parameter, never repeats its value."""

    by: Literal["policy", "polkit", "kernel"]
    reason: str


class VarlinkError(Exception):
    """An error that goes to the client as it is: a qualified name and parameters.

    `refusal` stays here: it tells a hidden machine from a missing one.
    """

    name: ClassVar[str]
    refusal: Refusal | None = None

    def __init__(self, **parameters: str | int) -> None:
        super().__init__(parameters)
        self.parameters: dict[str, Any] = {**parameters}

    def refused(self, refusal: Refusal) -> Self:
        """The same error, as the outcome of a decision: `raise PermissionDenied().refused(Refusal(...))`."""
        self.refusal = refusal
        return self


class InterfaceNotFound(VarlinkError):
    name = "org.varlink.service.InterfaceNotFound"

    def __init__(self, interface: str) -> None:
        super().__init__(interface=interface)


class MethodNotFound(VarlinkError):
    name = "org.varlink.service.MethodNotFound"

    def __init__(self, method: str) -> None:
        super().__init__(method=method)


class MethodNotImplemented(VarlinkError):
    name = "org.varlink.service.MethodNotImplemented"

    def __init__(self, method: str) -> None:
        super().__init__(method=method)


class ExpectedMore(VarlinkError):
    """The method may have several replies, and the call did not say that it takes more than one."""

    name = "org.varlink.service.ExpectedMore"


class InvalidParameter(VarlinkError):
    """`parameter` is a path such as `args[2]`; `reason` is for people, the standard has no such field."""

    name = "org.varlink.service.InvalidParameter"

    def __init__(self, parameter: str, reason: str) -> None:
        super().__init__(parameter=parameter, reason=reason)


class PermissionDenied(VarlinkError):
    name = "org.varlink.service.PermissionDenied"


class InteractiveAuthenticationRequired(VarlinkError):
    """systemd's own: a password would help, and the call did not allow to ask for one."""

    name = "io.systemd.InteractiveAuthenticationRequired"


class System(VarlinkError):
    """systemd's own: an errno(3), EINVAL here. `reason` is for people, systemd has no such field."""

    name = "io.systemd.System"

    def __init__(self, reason: str) -> None:
        super().__init__(origin="linux", errno=errno.EINVAL, errnoName="EINVAL", reason=reason)


class InconsistentEnvironment(VarlinkError):
    """A variable of this process is not UTF-8."""

    name = "io.systemd.service.InconsistentEnvironment"


class NoSuchMachine(VarlinkError):
    name = "io.machine1.NoSuchMachine"

    def __init__(self, machine: str) -> None:
        super().__init__(name=machine)


class NoMachineForPID(VarlinkError):
    name = "io.machine1.NoMachineForPID"

    def __init__(self, pid: int) -> None:
        super().__init__(pid=pid)


class NoSuchUserMapping(VarlinkError):
    name = "io.machine1.NoSuchUserMapping"

    def __init__(self, uid: int) -> None:
        super().__init__(uid=uid)


class NoSuchGroupMapping(VarlinkError):
    name = "io.machine1.NoSuchGroupMapping"

    def __init__(self, gid: int) -> None:
        super().__init__(gid=gid)


class NoSuchImage(VarlinkError):
    name = "io.machine1.NoSuchImage"

    def __init__(self, image: str) -> None:
        super().__init__(name=image)


class NameTaken(VarlinkError):
    name = "io.machine1.NameTaken"

    def __init__(self, image: str) -> None:
        super().__init__(name=image)


class StartFailed(VarlinkError):
    """`result` is that of systemd's job."""

    name = "io.machine1.StartFailed"

    def __init__(self, image: str, result: str) -> None:
        super().__init__(name=image, result=result)


class NoSuchTransfer(VarlinkError):
    name = "io.machine1.NoSuchTransfer"

    def __init__(self, transfer: int) -> None:
        super().__init__(transfer=transfer)


class TransferFailed(VarlinkError):
    """`reason` is what systemd-importd said last."""

    name = "io.machine1.TransferFailed"

    def __init__(self, transfer: int, reason: str) -> None:
        super().__init__(transfer=transfer, reason=reason)


class TransferCanceled(VarlinkError):
    name = "io.machine1.TransferCanceled"

    def __init__(self, transfer: int) -> None:
        super().__init__(transfer=transfer)


class NotSupported(VarlinkError):
    name = "io.machine1.NotSupported"

    def __init__(self, reason: str) -> None:
        super().__init__(reason=reason)


class Busy(VarlinkError):
    name = "io.machine1.Busy"

    def __init__(self, reason: str) -> None:
        super().__init__(reason=reason)


class ReadOnly(VarlinkError):
    name = "io.machine1.ReadOnly"

    def __init__(self, image: str) -> None:
        super().__init__(name=image)


class TooManyOperations(VarlinkError):
    name = "io.machine1.TooManyOperations"


class Timeout(VarlinkError):
    name = "io.machine1.Timeout"


class Unavailable(VarlinkError):
    name = "io.machine1.Unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(reason=reason)


class Failed(VarlinkError):
    """Whatever has no error of its own: the D-Bus error's name (empty: the bridge's own failure) and its message."""

    name = "io.machine1.Failed"

    def __init__(self, dbus_error: str, message: str) -> None:
        super().__init__(dbus_error=dbus_error, message=message)
