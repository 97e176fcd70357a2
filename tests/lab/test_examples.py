# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every example of io.machine1(7), as it stands on the page, on real hosts.

Where systemd has no varlinkctl yet (252), the same call is made by the client that is at hand.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import boot
from .host import SUITES, Host
from .test_machines import eventually
from .varlink import busctl, call, has_varlinkctl, images, machines

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "contrib/man/io.machine1.7"
CONTRACT = REPOSITORY / "schema/machine1.openapi.yaml"

GUEST = "web"  # the container that the examples presume


@dataclass(frozen=True)
class Example:
    #: the lines of the page, as a reader would copy them
    command: str
    method: str
    #: the same example in the contract
    contract: dict[str, Any]


@functools.cache
def examples() -> dict[str, Example]:
    """By method, in the order of the page, which test_the_page_has_each_example holds."""
    operations = [
        operation
        for item in yaml.safe_load(CONTRACT.read_text())["paths"].values()
        for operation in item.values()
        if isinstance(operation, dict)
    ]
    written = {operation["operationId"]: operation.get("x-examples", []) for operation in operations}
    found = {}
    for block in re.findall(r"^\.nf$\n(varlinkctl.*?)^\.fi$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        command = unescaped(block)
        (method,) = re.findall(r"\bio\.machine1\.(\w+) \\$", command, re.MULTILINE)
        (contract,) = written[method]
        found[method] = Example(command, method, contract)
    return found


def unescaped(roff: str) -> str:
    for escape, character in ((r"\-", "-"), (r"\(aq", "'"), (r"\(dq", '"'), (r"\&", ""), (r"\e", "\\")):
        roff = roff.replace(escape, character)
    return roff


@pytest.fixture(scope="module")
def page_host(suite: str) -> Iterator[Host]:
    """A host of these tests alone, which may do to it what they like."""
    with boot(suite) as host:
        host.install()
        yield host


@pytest.fixture
def presumed(page_host: Host) -> Host:
    """The host that the page presumes: the container `web` runs, and there are the images that are named."""
    if GUEST not in machines(page_host):
        if (page_host.path / "var/lib/machines" / GUEST).exists():
            page_host.end_guest(GUEST)  # the rest of what an example ended
        page_host.guest(GUEST)
    return page_host


def runs(host: Host, example: Example) -> str:
    """What the example prints. Its status is not 0 where a program reads a terminal to the end, which is an EIO."""
    if has_varlinkctl(host):
        return host.run(["sh", "-euc", example.command], check="exec" not in example.contract).stdout
    return json.dumps(call(host, example.method, example.contract["parameters"]))


# --- what each has to do -------------------------------------------------------------------------------------------


def same(printed: object, written: object) -> None:
    """What is printed is what the page says, but for the numbers, which are another machine's."""
    assert re.sub(r"\d{2,}", "0", json.dumps(printed)) == re.sub(r"\d{2,}", "0", json.dumps(written))


def printed_as_written(host: Host, example: Example) -> None:
    same(json.loads(runs(host, example)), example.contract["reply"])


def terminates(host: Host, example: Example) -> None:
    assert runs(host, example) in ("", "{}")
    assert eventually(lambda: GUEST not in machines(host))


def opens_a_shell(host: Host, example: Example) -> None:
    if SUITES[host.suite] >= example.contract["systemd"]:
        assert runs(host, example).splitlines() == example.contract["prints"].splitlines()
    else:
        assert "--exec" in example.command
        assert not has_varlinkctl(host) or host.run(["sh", "-c", example.command], check=False).returncode != 0


def copies_from(host: Host, example: Example) -> None:
    dest = example.contract["parameters"]["dest"]
    host.run(["rm", "-f", dest])
    assert runs(host, example) in ("", "{}")
    truth = host.run_in_guest(GUEST, ["cat", example.contract["parameters"]["src"]]).stdout
    assert host.run(["cat", dest]).stdout == truth != ""


def copies_to(host: Host, example: Example) -> None:
    parameters = example.contract["parameters"]
    assert runs(host, example) in ("", "{}")
    truth = host.run(["cat", parameters["src"]]).stdout
    assert host.run_in_guest(GUEST, ["cat", parameters["dest"]]).stdout == truth != ""


def lists_images(host: Host, example: Example) -> None:
    (image,) = example.contract["reply"]["images"]
    host.image(image["name"])
    printed = json.loads(runs(host, example))
    (entry,) = (entry for entry in printed["images"] if entry["name"] == image["name"])
    same(entry, image)


def removes_an_image(host: Host, example: Example) -> None:
    name = example.contract["parameters"]["name"]
    host.image(name)
    assert name in images(host)
    assert runs(host, example) in ("", "{}")
    assert name not in images(host)


def clones_an_image(host: Host, example: Example) -> None:
    parameters = example.contract["parameters"]
    host.image(parameters["name"])
    assert runs(host, example) in ("", "{}")
    assert {parameters["name"], parameters["dest"]} <= images(host).keys()


def renames_an_image(host: Host, example: Example) -> None:
    parameters = example.contract["parameters"]
    host.image(parameters["name"])
    assert runs(host, example) in ("", "{}")
    assert images(host).keys() & set(parameters.values()) == {parameters["dest"]}


def gets_an_image(host: Host, example: Example) -> None:
    host.image(example.contract["parameters"]["name"])
    printed, image = json.loads(runs(host, example)), example.contract["reply"]["image"]
    same(printed["image"], image)


def marks_an_image(host: Host, example: Example) -> None:
    parameters = example.contract["parameters"]
    host.image(parameters["name"])
    assert runs(host, example) in ("", "{}")
    assert images(host)[parameters["name"]]["read_only"] is parameters["read_only"]
    busctl(host, "MarkImageReadOnly", "sb", parameters["name"], "false")


def forgets(host: Host, example: Example) -> None:
    terminates(host, example)
    host.end_guest(GUEST)


def reboots(host: Host, example: Example) -> None:
    """Its unit is not one that starts it again."""
    assert runs(host, example) in ("", "{}")
    assert eventually(lambda: GUEST not in machines(host))


def starts(host: Host, example: Example) -> None:
    host.startable(GUEST)
    assert eventually(lambda: GUEST not in machines(host))
    assert runs(host, example) in ("", "{}")
    assert GUEST in machines(host), "it is there when the reply comes"
    host.run(["systemctl", "kill", "--signal=KILL", f"systemd-nspawn@{GUEST}.service"])
    assert eventually(lambda: GUEST not in machines(host))
    # What nspawn of 257 mounts here stays when it is killed, and then keeps the next one from starting.
    host.run(["umount", "--quiet", f"/run/systemd/nspawn/unix-export/{GUEST}"], check=False)


def mounts(host: Host, example: Example) -> None:
    """machined of 252 cannot, where the host's own root is an overlay; see test_inside."""
    if SUITES[host.suite] < 257:
        with pytest.raises(subprocess.CalledProcessError):
            runs(host, example)
        return
    host.run(["sh", "-c", "mkdir -p /srv && echo mounted >/srv/seen"])
    assert runs(host, example) in ("", "{}")
    assert host.run_in_guest(GUEST, ["cat", "/srv/seen"]).stdout == "mounted\n"


EFFECTS: dict[str, Callable[[Host, Example], None]] = {
    "ListMachines": printed_as_written,
    "GetMachine": printed_as_written,
    "TerminateMachine": terminates,
    "KillMachine": terminates,
    "OpenMachineShell": opens_a_shell,
    "CopyFromMachine": copies_from,
    "CopyToMachine": copies_to,
    "OpenMachineRootDirectory": opens_a_shell,
    "BindMountMachine": mounts,
    "UnregisterMachine": forgets,
    "PoweroffMachine": terminates,
    "RebootMachine": reboots,
    "MapFromMachineUser": printed_as_written,
    "MapFromMachineGroup": printed_as_written,
    "ListImages": lists_images,
    "GetImage": gets_an_image,
    "RemoveImage": removes_an_image,
    "CloneImage": clones_an_image,
    "RenameImage": renames_an_image,
    "StartMachine": starts,
    "WaitMachine": printed_as_written,
    "MarkImageReadOnly": marks_an_image,
    "GetPool": printed_as_written,
    "ListTransfers": printed_as_written,
    "Check": printed_as_written,
}


def test_the_page_has_each_example() -> None:
    assert list(examples()) == list(EFFECTS)
    for example in examples().values():
        assert json.dumps(example.contract["parameters"]) in example.command


@pytest.mark.parametrize("method", EFFECTS)
def test_an_example_of_the_page(presumed: Host, method: str) -> None:
    EFFECTS[method](presumed, examples()[method])
