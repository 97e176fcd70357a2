# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is measured: calls by way of the bridge, of machined's own Varlink sockets and of D-Bus; and the targets."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from jeepney import DBusAddress, new_method_call

from tests.lab.conftest import GUEST, SOCKET

MANAGER = DBusAddress("/org/freedesktop/machine1", "org.freedesktop.machine1", "org.freedesktop.machine1.Manager")
SIGWINCH = 28
PROGRAM = "/bin/true"


@dataclass(frozen=True)
class Way:
    """A call as bytes, where they go, and the user who connects there. The name is one word."""

    name: str
    framing: str
    socket: str
    request: bytes
    uid: int = 0

    def by(self, uid: int) -> Way:
        """The same as this service makes it, which machined asks polkit about: of root's calls it does not."""
        return replace(self, name=f"{self.name}-by-service", uid=uid)

    @property
    def line(self) -> str:
        """As client.c reads it."""
        return f"{self.name} {self.framing} {self.uid} {self.socket} {self.request.hex()}\n"


def _varlink(name: str, socket: str, method: str, parameters: dict[str, object] | None, *, more: bool = False) -> Way:
    call: dict[str, object] = {"method": method}
    if parameters is not None:
        call["parameters"] = parameters
    if more:
        call["more"] = True
    return Way(name, "varlink", socket, json.dumps(call).encode() + b"\0")


def _bridge(method: str, parameters: dict[str, object] | None = None) -> Way:
    return _varlink(f"bridge.{method}", SOCKET, f"io.machine1.{method}", parameters)


def _native(name: str, interface: str, method: str, parameters: dict[str, object] | None, *, more: bool = False) -> Way:
    return _varlink(name, f"/run/systemd/machine/{interface}", f"{interface}.{method}", parameters, more=more)


def _bus(method: str, signature: str = "", *arguments: object) -> Way:
    message = new_method_call(MANAGER, method, signature, arguments)
    return Way(f"dbus.{method}", "dbus", "/run/dbus/system_bus_socket", message.serialise(serial=2))


GET_MACHINE = _bridge("GetMachine", {"name": GUEST})
LIST_BY_NAME = _native("native.List-name", "io.systemd.Machine", "List", {"name": GUEST})
READS = (
    GET_MACHINE,
    LIST_BY_NAME,
    _bridge("ListMachines"),
    _native("native.List-more", "io.systemd.Machine", "List", None, more=True),
    _bus("ListMachines"),
)
GET_INFO = _varlink("bridge.GetInfo", SOCKET, "org.varlink.service.GetInfo", None)
# The same bytes come back from a process that does nothing else: what the client and the kernel take.
ECHO = Way("echo", "echo", "-", GET_MACHINE.request)
IMAGES = (
    _bridge("ListImages"),
    _bus("ListImages"),
    _native("native.ListImages-more", "io.systemd.MachineImage", "List", None, more=True),
)
# A signal that no PID 1 minds.
KILLS = (
    _bridge("KillMachine", {"name": GUEST, "who": "leader", "signal": SIGWINCH}),
    _bus("KillMachine", "ssi", GUEST, "leader", SIGWINCH),
)
SHELLS = (
    _bridge("OpenMachineShell", {"name": GUEST, "user": "root", "path": PROGRAM}),
    _native(
        "native.Open-shell",
        "io.systemd.Machine",
        "Open",
        {"name": GUEST, "mode": "shell", "user": "root", "path": PROGRAM},
    ),
    _bus("OpenMachineShell", "sssasas", GUEST, "root", PROGRAM, [], []),
)


@dataclass(frozen=True)
class Target:
    """One figure beside another, with so many machines: what their ratio is to be at most.

    Reads are on one processor, with the client, or each `apart` on its own. Of all else the kernel decides where it is.

    `guard` is where CI fails: generous, since it has noisy neighbours, and below what a grave mistake costs.
    """

    work: str
    beside: str
    at_most: float
    machines: int = 2
    beside_machines: int = 2
    guard: float | None = None
    apart: bool = False


RATIOS = (
    Target("bridge.GetMachine", "native.List-name", 1.0, guard=3.5),
    Target("bridge.GetMachine", "native.List-name", 1.0, guard=3.5, apart=True),
    Target("bridge.ListMachines", "native.List-more", 1.0, guard=3.5),
    Target("bridge.ListMachines", "native.List-more", 1.0, guard=3.5, apart=True),
    Target("bridge.ListMachines", "native.List-more", 0.1, 500, 500),
    Target("bridge.ListMachines", "dbus.ListMachines", 0.5, 500, 500),
    Target("bridge.GetMachine", "bridge.GetMachine", 1.1, 500, 2),
    Target("bridge.OpenMachineShell", "native.Open-shell", 1.1, guard=2.5),
    Target("bridge.OpenMachineShell", "dbus.OpenMachineShell-by-service", 1.1),
    Target("bridge.KillMachine", "dbus.KillMachine", 1.3),
    Target("bridge.KillMachine", "dbus.KillMachine-by-service", 1.3, guard=2.5),
    Target("bridge.ListImages", "dbus.ListImages", 1.3, guard=3.5),
)
