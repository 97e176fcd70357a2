# SPDX-License-Identifier: LGPL-2.1-or-later
"""The transport of the bridge and varlinkctl: systemd's client makes the calls of org.varlink.certification, too."""

from __future__ import annotations

import json
from typing import Any

from tests.conformance.certification import FLAGS, INTERFACE, REPLIES
from tests.conformance.conftest import serving

from .host import Host
from .varlink import has_varlinkctl

# Inside the host; the service is outside.
SOCKET = "/tmp/certification"


def test_varlinkctl_is_certified(host: Host) -> None:
    if not has_varlinkctl(host):
        assert host.run(["varlinkctl", "--version"], check=False).returncode != 0
        return
    with serving(f"{host.path}{SOCKET}"):
        assert INTERFACE in host.run(["varlinkctl", "list-interfaces", SOCKET]).stdout.split()
        client_id = call(host, "Start", {})[0]["client_id"]
        parameters: dict[str, Any] = {}
        for name in list(REPLIES)[1:]:
            replies = call(host, name, parameters | {"client_id": client_id})
            assert len(replies) == {"Test10": 10, "Test11": 0}.get(name, 1)
            parameters = replies[0] if replies else {}
            if name == "Test10":
                parameters = {"last_more_replies": [reply["string"] for reply in replies]}
        assert parameters == {"all_ok": True}
        refused = host.run(["varlinkctl", "call", SOCKET, f"{INTERFACE}.Test10", "{}"], check=False)
        assert refused.returncode != 0
        assert "InvalidParameter" in refused.stderr or "Invalid argument" in refused.stderr


def call(host: Host, name: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    flags = [f"--{flag}" for flag in FLAGS.get(name, ())]
    arguments = [SOCKET, f"{INTERFACE}.{name}", json.dumps(parameters)]
    printed = host.run(["varlinkctl", "call", "--json=short", *flags, *arguments]).stdout
    # Several replies are a JSON text sequence (RFC 7464), each after a record separator.
    return [json.loads(line.lstrip("\x1e")) for line in printed.split("\n") if line]
