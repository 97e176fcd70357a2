# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the service writes is what clients read: generated ones in Go and Rust, and Python's, against the real process.

machined is a fake one, on a bus of its own, so that each kind of reply comes. The programs are client.go and client.rs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import varlink

from tests.integration.conftest import Bridge
from tests.integration.fake_machined import Bus, FakeMachined

from .conftest import go_program, run, varlink_go_package, zlink_program

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root, whom alone the service lets change something")

MACHINES = [
    ("web", "container", "systemd-nspawn", "/org/freedesktop/machine1/machine/web"),
    ("new", "hologram", "somewhere", "/org/freedesktop/machine1/machine/new"),
    ("db", "vm", "libvirt", "/org/freedesktop/machine1/machine/db"),
]


@pytest.fixture
def socket_path(tmp_path: Path) -> Iterator[str]:
    """The service's socket, and behind it a machined that answers, fails in several ways and knows no images."""
    bus = Bus(tmp_path)
    bus.start()
    machined = FakeMachined(bus)
    machined.returns("ListMachines", "a(ssso)", MACHINES)
    machined.returns("ListImages", "a(ssbttto)", [])
    machined.returns("TerminateMachine")
    machined.fails("CopyFromMachine", "org.freedesktop.DBus.Error.LimitsExceeded", "Too many ongoing operations.")
    machined.fails("KillMachine", "System.Error.ETIMEDOUT", "Connection timed out")
    machined.fails("RemoveImage", "org.freedesktop.machine1.NoSuchImage", "No image 'debian' known")
    machined.fails("RenameImage", "System.Error.EIO", "Input/output error")
    machined.fails("CloneImage", "org.freedesktop.DBus.Error.AccessDenied", "Access denied")
    bridge = Bridge(tmp_path, bus.address)
    yield bridge.path
    bridge.stop()
    machined.stop()
    bus.stop()


# What client.go and client.rs print. Where they differ, there is a column for each.
PRINTED = """\
ListMachines: done
  db vm libvirt
  new - somewhere
  web container systemd-nspawn
GetMachine: done web container /org/freedesktop/machine1/machine/web
GetMachine: NoSuchMachine nope
TerminateMachine: done
CopyFromMachine: {}
CopyToMachine: InvalidParameter src
KillMachine: {}
RemoveImage: NoSuchImage debian
RenameImage: Failed System.Error.EIO Input/output error
CloneImage: {}
ListImages: done 0
Check: done true ""
Check: InvalidParameter parameters.name
"""


@pytest.mark.generators
def test_varlink_go_client(go: Path, socket_path: str) -> None:
    """An error without parameters comes as *varlink.Error with its name: varlink/go makes its own type only of {}."""
    varlink_go_package(go)
    client = go_program(go, Path(__file__).with_name("client.go"))
    errors = ("io.machine1.TooManyOperations", "io.machine1.Timeout", "org.varlink.service.PermissionDenied")
    assert run(client, socket_path) == PRINTED.format(*(f"untyped {error}" for error in errors))


@pytest.mark.generators
def test_zlink_client(cargo: Path, socket_path: str) -> None:
    printed = run(zlink_program(cargo, Path(__file__).with_name("client.rs")), socket_path)
    assert printed == PRINTED.format("TooManyOperations", "Timeout", "PermissionDenied")


@pytest.mark.parametrize("namespaced", [False, True], ids=["plain", "namespaced"])
def test_python_varlink_client(socket_path: str, namespaced: bool) -> None:
    with (
        varlink.Client(address=f"unix:{socket_path}") as client,
        client.open("io.machine1", namespaced=namespaced) as connection,
    ):

        def struct(**members: object) -> object:
            return SimpleNamespace(**members) if namespaced else members

        def error(call: Callable[..., Any], *arguments: object) -> tuple[str, object]:
            with pytest.raises(varlink.VarlinkError) as caught:
                call(*arguments)
            return caught.value.error(), caught.value.parameters(namespaced)

        def nothing(error: object) -> bool:
            return error in (None, {}, SimpleNamespace())

        db, new, web = (
            dict(zip(("name", "class", "service", "object_path"), entry, strict=True)) for entry in sorted(MACHINES)
        )
        del new["class"]
        listed = connection.ListMachines()
        assert listed == struct(machines=[struct(**machine) for machine in (db, new, web)])
        assert connection.GetMachine("web") == struct(machine=struct(**web))
        assert error(connection.GetMachine, "nope") == ("io.machine1.NoSuchMachine", struct(name="nope"))
        assert nothing(connection.TerminateMachine("web"))
        assert connection.ListImages() == struct(images=[])
        assert connection.Check("GetMachine", {"name": "web"}) == struct(allowed=True, reason="")
        if namespaced:
            # varlink 31 cannot make the exceptions of org.varlink.service for such a client, whatever the reply.
            with pytest.raises((varlink.InvalidParameter, AttributeError)):
                connection.CopyToMachine("web", "relative")
        else:
            # The exception keeps the standard's own parameter alone, and not `reason`.
            name, parameters = error(connection.CopyToMachine, "web", "relative")
            assert (name, parameters) == ("org.varlink.service.InvalidParameter", {"parameter": "src"})
        for call, arguments, expected in (
            (connection.CopyFromMachine, ("web", "/etc/hostname"), "io.machine1.TooManyOperations"),
            (connection.KillMachine, ("web",), "io.machine1.Timeout"),
            (connection.CloneImage, ("debian", "copy"), "org.varlink.service.PermissionDenied"),
        ):
            name, parameters = error(call, *arguments)
            assert name == expected
            assert nothing(parameters)
        failed = struct(dbus_error="System.Error.EIO", message="Input/output error")
        assert error(connection.RenameImage, "debian", "old") == ("io.machine1.Failed", failed)
