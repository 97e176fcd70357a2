# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the service writes is what clients read: generated ones in Go and Rust, and Python's, against the real process.

machined is a fake one, on a bus of its own, so that each kind of reply comes. The programs are client.go and client.rs.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

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


@pytest.fixture
def newer_socket_path(socket_path: str, tmp_path: Path) -> Iterator[str]:
    """The same service with a field more in each reply, each struct of a list and each error: a later one, to a client.

    schema/released.py lets such fields be added, since clients that were built before them read past them.
    """
    path = str(tmp_path / "newer")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    thread = threading.Thread(target=_relay, args=(listener, socket_path))
    thread.start()
    yield path
    thread.join(10)
    assert not thread.is_alive()


def _relay(listener: socket.socket, path: str) -> None:
    """One client's calls as they are, and the replies with more in them. A client has one call under way at a time."""
    with listener, listener.accept()[0] as client, socket.socket(socket.AF_UNIX) as service:
        service.connect(path)
        calls, replies = client.makefile("rb"), service.makefile("rb")
        with calls, replies:
            while call := _message(calls):
                service.sendall(call)
                reply = json.loads(_message(replies)[:-1])
                client.sendall(json.dumps(_with_more(reply)).encode() + b"\0")


def _message(stream: BinaryIO) -> bytes:
    data = b""
    while not data.endswith(b"\0") and (byte := stream.read(1)):
        data += byte
    return data


def _with_more(value: object, *, top: bool = True) -> object:
    if isinstance(value, list):
        return [_with_more(item, top=False) for item in value]
    if not isinstance(value, dict):
        return value
    more = {key: _with_more(member, top=False) for key, member in value.items()}
    return more if top or not more else {**more, "added_later": {"by": ["a", "later", "version"]}}


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


@pytest.fixture(scope="module")
def go_client(go: Path) -> Path:
    varlink_go_package(go)
    return go_program(go, Path(__file__).with_name("client.go"))


@pytest.fixture(scope="module")
def zlink_client(cargo: Path) -> Path:
    return zlink_program(cargo, Path(__file__).with_name("client.rs"))


@pytest.mark.generators
@pytest.mark.parametrize("service", ["socket_path", "newer_socket_path"])
def test_varlink_go_client(go_client: Path, service: str, request: pytest.FixtureRequest) -> None:
    """An error without parameters comes as *varlink.Error with its name: varlink/go makes its own type only of {}."""
    errors = ("io.machine1.TooManyOperations", "io.machine1.Timeout", "org.varlink.service.PermissionDenied")
    printed = run(go_client, request.getfixturevalue(service))
    assert printed == PRINTED.format(*(f"untyped {error}" for error in errors))


@pytest.mark.generators
@pytest.mark.parametrize("service", ["socket_path", "newer_socket_path"])
def test_zlink_client(zlink_client: Path, service: str, request: pytest.FixtureRequest) -> None:
    printed = run(zlink_client, request.getfixturevalue(service))
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
