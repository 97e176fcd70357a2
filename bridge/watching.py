# SPDX-License-Identifier: LGPL-2.1-or-later
"""The methods that wait for machines and images to come and go."""

from .machined import Machined
from .messages import Parameters, Reply
from .shapes import image_of, machine_of


async def watch_machines(machined: Machined, parameters: Parameters) -> Reply:
    changes = machined.machine_changes(machine_of, everything=parameters.get("all", False))
    return await changes.first(parameters.get("cursor"), machined.left)


async def watch_images(machined: Machined, parameters: Parameters) -> Reply:
    changes = machined.image_changes(image_of, everything=parameters.get("all", False))
    return await changes.first(parameters.get("cursor"), machined.left)


async def wait_machine(machined: Machined, parameters: Parameters) -> Reply:
    machine = await machined.wait_for_machine(
        parameters["name"], there=parameters["state"] == "running", microseconds=parameters.get("timeout")
    )
    return Reply({"machine": machine_of(machine)} if machine is not None else {})
