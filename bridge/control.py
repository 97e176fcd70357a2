# SPDX-License-Identifier: LGPL-2.1-or-later
"""io.systemd.service: what systemd's own services let their administrator see and set, with the same rules.

Everybody may ask whether the service runs and how much it logs; the rest is for root and the service's own user.
Nothing is read again while it runs: a restart is what takes a new policy, and the socket waits meanwhile.
"""

import os

from . import journal
from .errors import InconsistentEnvironment, MethodNotImplemented
from .machined import Machined
from .messages import Reply
from .methods import Method, Parameters


async def ping(machined: Machined, parameters: Parameters) -> Reply:
    return Reply()


async def reload(machined: Machined, parameters: Parameters) -> Reply:
    raise MethodNotImplemented("io.systemd.service.Reload")


async def set_log_level(machined: Machined, parameters: Parameters) -> Reply:
    """Without one: what it was at the start."""
    journal.set_level(parameters.get("level"))
    return Reply()


async def get_log_level(machined: Machined, parameters: Parameters) -> Reply:
    return Reply({"level": journal.level()})


async def get_environment(machined: Machined, parameters: Parameters) -> Reply:
    try:
        return Reply({"environment": [(name + b"=" + value).decode() for name, value in os.environb.items()]})
    except UnicodeDecodeError as error:
        raise InconsistentEnvironment from error


METHODS: dict[str, Method] = {
    "io.systemd.service.Ping": Method(ping, False, {}),
    "io.systemd.service.Reload": Method(reload, True, {}, own=True),
    "io.systemd.service.SetLogLevel": Method(set_log_level, True, {}, own=True),
    "io.systemd.service.GetLogLevel": Method(get_log_level, False, {}),
    "io.systemd.service.GetEnvironment": Method(get_environment, False, {}, own=True),
}
