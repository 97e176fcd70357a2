# SPDX-License-Identifier: LGPL-2.1-or-later
"""Calls from inside a host, by the client its users have: varlinkctl from 257 on, Python varlink before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.client import Client

from .conftest import SOCKET
from .host import SUITES, Host

# The installed packages hold a client too; where systemd has no varlinkctl, it is the one at hand.
PYTHON_CLIENT = """
import json, sys
sys.path.insert(0, "/usr/lib/machine1-bridge")
import varlink
address, method, parameters = sys.argv[1:]
interface, _, name = method.rpartition(".")
with varlink.Client.new_with_address("unix:" + address) as client, client.open(interface) as connection:
    print(json.dumps(getattr(connection, name)(**json.loads(parameters))))
"""


def has_varlinkctl(host: Host) -> bool:
    return SUITES[host.suite] >= 257


def call(host: Host, method: str, parameters: Mapping[str, Any] | None = None, user: str | None = None) -> Any:  # noqa: ANN401  JSON
    """The parameters of the reply. Raises CalledProcessError with what the client printed."""
    arguments = [SOCKET, f"io.machine1.{method}", json.dumps(parameters or {})]
    client = ["varlinkctl", "call", "-j"] if has_varlinkctl(host) else ["python3", "-IS", "-c", PYTHON_CLIENT]
    # varlinkctl prints nothing for a reply without parameters.
    return json.loads(host.run([*client, *arguments], user=user).stdout or "{}")


def error(
    host: Host, method: str, parameters: Mapping[str, Any] | None = None, user: str = "root"
) -> tuple[str, dict[str, Any]]:
    """Name and parameters of the error that the call has to end in, as the bridge sends it.

    Not through varlinkctl, which shows the standard errors as those of errno(3), nor through Python varlink, which
    looks at parameters before it sends them.
    """
    account = host.account(user)
    return host.inside(_error, method, parameters, uid=account.uid, gid=account.gid)


def _error(method: str, parameters: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    with Client(SOCKET) as client:
        return client.error(method, parameters)


def busctl(host: Host, member: str, *arguments: str) -> Any:  # noqa: ANN401  JSON
    """What machined itself answers, the body of its D-Bus reply."""
    manager = ["org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager"]
    output = host.run(["busctl", "--json=short", "call", *manager, member, *arguments]).stdout
    return json.loads(output)["data"] if output else None


def machines(host: Host) -> dict[str, tuple[str, str, str]]:
    """machined's own list: class, service and object path by name."""
    return {name: (kind, service, path) for name, kind, service, path in busctl(host, "ListMachines")[0]}


def images(host: Host) -> dict[str, dict[str, Any]]:
    """machined's own list of images, by name, with its own values for what is unknown."""
    keys = ("type", "read_only", "ctime", "mtime", "usage", "object_path")
    return {name: dict(zip(keys, values, strict=True)) for name, *values in busctl(host, "ListImages")[0]}
