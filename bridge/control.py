# SPDX-License-Identifier: LGPL-2.1-or-later
"""io.systemd.service: what systemd's own services let their administrator see and set, with the same rules.

Everybody may ask whether the service runs and how much it logs; the rest is for root and the service's own user.
"""

import os
from collections.abc import Callable

from . import journal
from .errors import InconsistentEnvironment, System
from .machined import Machined
from .messages import Parameters, Reply
from .methods import Method
from .policy import PolicyError


class Control:
    """The methods. `reload` takes the policy's file as it is now, or raises PolicyError and changes nothing."""

    def __init__(self, reload: Callable[[], None]) -> None:
        self._reload = reload

    @property
    def methods(self) -> dict[str, Method]:
        return {
            "io.systemd.service.Ping": Method(ping, False, {}),
            "io.systemd.service.Reload": Method(self.reload, True, {}, own=True),
            "io.systemd.service.SetLogLevel": Method(set_log_level, True, {}, own=True),
            "io.systemd.service.GetLogLevel": Method(get_log_level, False, {}),
            "io.systemd.service.GetEnvironment": Method(get_environment, False, {}, own=True),
        }

    async def reload(self, machined: Machined, parameters: Parameters) -> Reply:
        try:
            self._reload()
        except PolicyError as error:
            raise System(str(error)) from error
        return Reply()


async def ping(machined: Machined, parameters: Parameters) -> Reply:
    return Reply()


async def set_log_level(machined: Machined, parameters: Parameters) -> Reply:
    journal.set_level(parameters["level"])
    return Reply()


async def get_log_level(machined: Machined, parameters: Parameters) -> Reply:
    return Reply({"level": journal.level()})


async def get_environment(machined: Machined, parameters: Parameters) -> Reply:
    try:
        return Reply({"environment": [(name + b"=" + value).decode() for name, value in os.environb.items()]})
    except UnicodeDecodeError as error:
        raise InconsistentEnvironment from error

