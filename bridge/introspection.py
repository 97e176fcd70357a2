# SPDX-License-Identifier: LGPL-2.1-or-later
"""org.varlink.service: what every Varlink service says of itself, answered by the varlink package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import __version__
from .contract import Contract
from .errors import InterfaceNotFound
from .machined import Machined
from .messages import Parameters, Reply
from .methods import Method

if TYPE_CHECKING:
    import varlink


class Introspection:
    """GetInfo and GetInterfaceDescription."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._cached: varlink.Service | None = None

    @property
    def methods(self) -> dict[str, Method]:
        return {
            "org.varlink.service.GetInfo": Method(self.get_info, False, {}),
            "org.varlink.service.GetInterfaceDescription": Method(self.get_interface_description, False, {}),
        }

    async def get_info(self, machined: Machined, parameters: Parameters) -> Reply:
        return Reply(self._service.GetInfo())

    async def get_interface_description(self, machined: Machined, parameters: Parameters) -> Reply:
        interface = parameters["interface"]
        if interface not in self._service.interfaces:
            raise InterfaceNotFound(interface)
        return Reply(self._service.GetInterfaceDescription(interface))

    @property
    def _service(self) -> varlink.Service:
        """Made when first asked for: the package takes a fifth of the cold start, and few clients introspect."""
        if self._cached is None:
            import varlink

            self._cached = varlink.Service(
                vendor="machine1-bridge",
                product="machine1-bridge",
                # Two versions in one field, as systemd has them, since no client knows a field beside these.
                version=f"{__version__} (io.machine1 {self._contract.version})",
                url="man:machine1-bridge(8)",
            )
            for name, text in self._contract.interfaces.items():
                self._cached.interfaces[name] = varlink.Interface(text)
        return self._cached
