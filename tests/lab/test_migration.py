# SPDX-License-Identifier: LGPL-2.1-or-later
"""contrib/migration.md: it has all of machinectl and of systemd's own interfaces, and what it says differs, differs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.schema import load_tool

from .conftest import GUEST
from .host import SUITES, Host
from .test_machines import eventually
from .varlink import busctl, call, error, has_varlinkctl, images

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "contrib/migration.md").read_text()
NATIVE = "/run/systemd/machine/io.systemd.Machine"
INTERFACES = ("io.systemd.Machine", "io.systemd.MachineImage")

derive = load_tool("derive")


def rows(heading: str) -> list[list[str]]:
    """The rows of the table below a heading."""
    part = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    table = [line.strip("|").split(" |") for line in part.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in table]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`{]+)`", cell)


VERBS = {names(verb)[0]: (versions, ours) for verb, versions, ours, _ in rows("machinectl")}
METHODS = {names(method)[0]: (versions, ours) for method, versions, ours, _ in rows(" and ".join(INTERFACES))}
ERRORS = [(names(error)[0], names(ours)) for error, ours, _ in rows("Errors")]
THEIR_ERRORS = {name for name, _ in ERRORS}


def of_version(table: Mapping[str, tuple[str, str]], version: int) -> set[str]:
    return {name for name, (versions, _) in table.items() if str(version) in versions.split(", ")}


def introspect(host: Host, kind: str) -> set[str]:
    """The qualified methods or errors that systemd's interfaces have here."""
    busctl(host, "ListMachines")  # so that machined runs, which in 257 makes the socket
    found = set()
    for interface in INTERFACES:
        text = host.run(["varlinkctl", "introspect", NATIVE, interface]).stdout
        found |= {f"{interface}.{name}" for name in re.findall(rf"^{kind} (\w+)", text, re.MULTILINE)}
    return found


# --- the page is whole ---------------------------------------------------------------------------------------------


def test_each_method_and_error_of_ours_is_on_the_page() -> None:
    contract = (REPOSITORY / derive.CONTRACT).read_text()
    interface = derive.Reader(derive.UniqueKeyLoader(contract).get_single_data()).read()
    methods = {method.name for method in interface.methods}
    mapped = {name for table in (VERBS, METHODS) for _, ours in table.values() for name in names(ours)}
    without = {"Check", "WatchMachines", "WatchImages", "WaitMachine"}
    assert mapped | without == methods
    assert not mapped & without
    sentence = PAGE[PAGE.index("`Check`, which says") :].partition("##")[0]
    assert set(names(sentence)) == without
    new = {"Timeout", "Unavailable", "NoMachineForPID", "StartFailed"}
    new |= {"NoSuchTransfer", "TransferFailed", "TransferCanceled"}
    assert {name for _, ours in ERRORS for name in ours} | new == {error.name for error in interface.errors}


@pytest.mark.parametrize("heading", ["machinectl", " and ".join(INTERFACES)])
def test_each_row_is_mapped_or_says_why_not(heading: str) -> None:
    known = {names(row[0])[0] for row in rows(heading)}
    assert len(known) == len(rows(heading)), "none is there twice"
    for name, _, ours, differs in rows(heading):
        assert names(ours) or (ours == "not offered" and differs), name
        # A row that refers to another refers to one of its table.
        for other in re.findall(r"^as `(\w[\w-]*)`$", differs):
            assert {other, f"io.systemd.Machine.{other}"} & known, name


def test_each_verb_of_machinectl_is_on_the_page(host: Host) -> None:
    text = host.run(["machinectl", "--help"]).stdout.partition("Options:")[0]
    verbs = set(re.findall(r"^  \[?([a-z][a-z-]+)\b", text, re.MULTILINE))
    assert len(verbs) > 20
    assert verbs == of_version(VERBS, SUITES[host.suite])


def test_each_method_and_error_of_systemds_is_on_the_page(host: Host) -> None:
    version = SUITES[host.suite]
    if not has_varlinkctl(host):
        assert of_version(METHODS, version) == set()
        busctl(host, "ListMachines")
        assert host.run(["test", "-e", NATIVE], check=False).returncode != 0
        return
    assert introspect(host, "method") == of_version(METHODS, version)
    assert introspect(host, "error") <= THEIR_ERRORS
    if version == max(SUITES.values()):
        assert introspect(host, "error") == THEIR_ERRORS - {"io.systemd.System"}, "none that is no more"


# --- machined's and importd's own interfaces on D-Bus ----------------------------------------------------------------

BUS_NAMES = ("org.freedesktop.machine1", "org.freedesktop.import1")
MEMBERS = {
    service: {names(member)[0]: (versions, ours) for member, versions, ours, _ in rows(service)}
    for service in BUS_NAMES
}


def members(host: Host, service: str, objects: Mapping[str, str]) -> set[str]:
    """All that a service says of itself, by kinds of objects and a path of each."""
    found = set()
    for kind, path in objects.items():
        object_path = f"/{service.replace('.', '/')}{path}"
        text = host.run(["busctl", "introspect", "--xml-interface", service, object_path]).stdout
        (interface,) = ElementTree.fromstring(text).iterfind(f"interface[@name='{service}.{kind}']")  # noqa: S314  its own
        found |= {f"{kind}.{member.attrib['name']}" for member in interface if member.tag != "annotation"}
    return found


def test_each_member_of_machined_is_offered_or_says_why_not(host: Host) -> None:
    """The manager's members, and those of a machine and an image."""
    objects = {"Manager": "", "Machine": f"/machine/{GUEST}", "Image": "/image/_2ehost"}
    found = members(host, "org.freedesktop.machine1", objects)
    assert len(found) > 80
    assert found == of_version(MEMBERS["org.freedesktop.machine1"], SUITES[host.suite])


def test_each_member_of_importd_is_offered_or_says_why_not(host: Host) -> None:
    """The manager's members, and those of a transfer, which waits for an archive here."""
    service = "org.freedesktop.import1"
    tool = "machinectl" if SUITES[host.suite] < 256 else "importctl --class=machine"
    unit = ["--quiet", "--unit=held", "--", "sh", "-c", f"sleep 60 | {tool} import-tar - held"]
    host.run(["systemd-run", *unit])
    manager = [service, f"/{service.replace('.', '/')}", f"{service}.Manager"]

    def transfers() -> list[str]:
        return re.findall(r"/transfer/_\d+", host.run(["busctl", "call", *manager, "ListTransfers"]).stdout)

    try:
        assert eventually(lambda: bool(transfers()))
        found = members(host, service, {"Manager": "", "Transfer": transfers()[0]})
    finally:
        host.run(["systemctl", "stop", "held.service"])
        for path in transfers():
            number = path.rpartition("_")[2]
            host.run(["busctl", "call", *manager, "CancelTransfer", "u", number], check=False)
    assert len(found) > 15
    assert found == of_version(MEMBERS[service], SUITES[host.suite])


@pytest.mark.parametrize("service", BUS_NAMES)
def test_each_row_of_a_member_is_mapped_or_says_why_not(service: str) -> None:
    contract = (REPOSITORY / derive.CONTRACT).read_text()
    interface = derive.Reader(derive.UniqueKeyLoader(contract).get_single_data()).read()
    methods = {method.name for method in interface.methods}
    assert len(MEMBERS[service]) == len(rows(service)), "none is there twice"
    for name, _, ours, differs in rows(service):
        assert set(names(ours)) <= methods, name
        assert names(ours) or (ours == "not offered" and differs), name


# --- what differs --------------------------------------------------------------------------------------------------


def native(host: Host, method: str, parameters: Mapping[str, Any], *options: str) -> list[dict[str, Any]]:
    """The replies of systemd's own method."""
    arguments = [NATIVE, f"io.systemd.{method}", json.dumps(parameters)]
    done = host.run(["varlinkctl", "call", "-j", *options, *arguments], check=False)
    assert done.returncode == 0, done.stderr
    # RFC 7464 has a separator before each.
    return [json.loads(text) for text in done.stdout.replace("\x1e", "").splitlines() if text]


def native_error(host: Host, method: str, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Its error: what varlinkctl calls it, and its parameters, as far as it shows any."""
    arguments = [NATIVE, f"io.systemd.{method}", json.dumps(parameters)]
    done = host.run(["varlinkctl", "call", "-j", *arguments], check=False)
    assert done.returncode != 0
    return done.stderr.strip().rpartition(": ")[2], json.loads(done.stdout or "{}")


@pytest.fixture
def image(host: Host) -> Iterator[str]:
    host.image("base")
    host.run(["mkdir", "-p", "/var/lib/machines/.hidden"])
    yield "base"
    for name in images(host).keys() - {GUEST, ".host"}:
        busctl(host, "RemoveImage", "s", name)


def test_lists_have_the_same_machines(host: Host) -> None:
    ours = {machine["name"]: machine for machine in call(host, "ListMachines", {"all": True})["machines"]}
    assert ours[".host"]["class"] == "host"
    assert {machine["name"] for machine in call(host, "ListMachines")["machines"]} == ours.keys() - {".host"}
    listed = host.run(["machinectl", "list", "--no-legend", "--all"]).stdout
    assert {line.split()[0] for line in listed.splitlines()} == ours.keys()
    listed = host.run(["machinectl", "list", "--no-legend"]).stdout
    assert {line.split()[0] for line in listed.splitlines()} == ours.keys() - {".host"}
    if not has_varlinkctl(host):
        return
    theirs = {machine["name"]: machine for machine in native(host, "Machine.List", {}, "--more")}
    assert theirs.keys() == ours.keys()
    for name, machine in theirs.items():
        assert (ours[name]["class"], ours[name]["service"]) == (machine["class"], machine.get("service", ""))
    assert native(host, "Machine.List", {"name": GUEST}) == [theirs[GUEST]]
    assert "ore" in native_error(host, "Machine.List", {})[0], "it wants the flag `more`"


def test_lists_have_the_same_images(host: Host, image: str) -> None:
    ours = {entry["name"]: entry for entry in call(host, "ListImages", {"all": True})["images"]}
    without_host = {entry["name"] for entry in call(host, "ListImages")["images"]}
    assert without_host == {GUEST, image, ".hidden"} == ours.keys() - {".host"}
    listed = host.run(["machinectl", "list-images", "--no-legend"]).stdout
    assert {line.split()[0] for line in listed.splitlines()} == {GUEST, image}
    listed = host.run(["machinectl", "list-images", "--no-legend", "--all"]).stdout
    assert {line.split()[0] for line in listed.splitlines()} == ours.keys()
    if not has_varlinkctl(host):
        return
    fields = {
        "name": "name",
        "type": "type",
        "readOnly": "read_only",
        "creationTimestamp": "ctime",
        "modificationTimestamp": "mtime",
        "usage": "usage",
    }
    theirs = native(host, "MachineImage.List", {}, "--more")
    assert {entry["name"] for entry in theirs} == ours.keys()
    for entry in theirs:
        mine = {key: value for key, value in ours[entry["name"]].items() if key != "object_path"}
        assert mine == {mine: entry[name] for name, mine in fields.items() if name in entry}


def test_errors_have_their_counterparts(host: Host, image: str) -> None:
    if not has_varlinkctl(host):
        return
    for theirs, parameters, code, ours, own in (
        ("Machine.Terminate", {"name": "nope"}, None, "TerminateMachine", "NoSuchMachine"),
        ("MachineImage.Remove", {"name": "nope"}, None, "RemoveImage", "NoSuchImage"),
        ("MachineImage.Clone", {"name": image, "newName": GUEST}, 17, "CloneImage", "NameTaken"),
        ("MachineImage.Remove", {"name": GUEST}, 16, "RemoveImage", "Busy"),
        ("MachineImage.Remove", {"name": ".host"}, 30, "RemoveImage", "ReadOnly"),
    ):
        name, fields = native_error(host, theirs, parameters)
        if code is None:
            full = f"io.systemd.{theirs.partition('.')[0]}.{own}"
            assert (name, fields) == (full, {})
        else:
            full = "io.systemd.System"
            assert fields["errno"] == code, theirs
            assert ("errnoName" in fields) == (SUITES[host.suite] >= 262)
        renamed = {"dest" if key == "newName" else key: value for key, value in parameters.items()}
        found = error(host, ours, renamed)
        assert found[0] == f"io.machine1.{own}"
        assert found[1].keys() == ({"reason"} if own == "Busy" else {"name"})
        assert (full, [own]) in ERRORS


def test_a_dollar_is_doubled_no_more(host: Host) -> None:
    """What `machinectl shell` prints of $HOME and $$x; ours arrives as it is in tests/lab/test_shell.py."""
    done = host.run(["machinectl", "shell", GUEST, "/bin/echo", "$HOME", "$$x"])
    assert "/root $x" in done.stdout
    done = host.run(["machine1-bridge", "shell", GUEST, "/bin/echo", "$HOME", "$$x"])
    assert "$HOME $$x" in done.stdout


def test_a_terminal_is_a_vt220_unless_it_is_said(host: Host) -> None:
    shell = ["shell", GUEST, "/bin/printenv", "TERM"]
    assert host.run(["machine1-bridge", *shell], environment={"TERM": "odd"}).stdout.strip() == "vt220"
    assert host.run(["machine1-bridge", "shell", "--env", "TERM=odd", *shell[1:]]).stdout.strip() == "odd"
    theirs = host.run(["machinectl", *shell], environment={"TERM": "odd"}).stdout.strip()
    assert theirs == ("odd" if SUITES[host.suite] < 262 else "dumb"), "262 sees that it has no terminal itself"


def test_a_machine_without_a_bus(host: Host) -> None:
    host.guest("nobus", bus=False)
    try:
        name, parameters = error(host, "OpenMachineShell", {"name": "nobus"})
        assert (name, parameters["dbus_error"]) == (
            "io.machine1.Failed",
            "org.freedesktop.DBus.Error.FileNotFound",
        )
        if has_varlinkctl(host):
            found = native_error(host, "Machine.Open", {"name": "nobus", "mode": "shell"})
            assert found == ("io.systemd.Machine.NoIPC", {})
    finally:
        host.end_guest("nobus")


def test_a_copy_replaces_nothing(host: Host) -> None:
    host.run(["sh", "-c", "echo ours >/root/there"])
    done = host.run(["machinectl", "copy-from", GUEST, "/etc/hostname", "/root/there"], check=False)
    assert done.returncode != 0
    name, parameters = error(host, "CopyFromMachine", {"name": GUEST, "src": "/etc/hostname", "dest": "/root/there"})
    assert (name, parameters["dbus_error"]) == ("io.machine1.Failed", "org.freedesktop.DBus.Error.FileExists")
    assert host.run(["cat", "/root/there"]).stdout == "ours\n"
    host.run(["machinectl", "copy-from", "--force", GUEST, "/etc/hostname", "/root/there"])
    assert host.run(["cat", "/root/there"]).stdout == f"{GUEST}\n"
    host.run(["rm", "/root/there"])


def test_a_signal_may_be_left_out(host: Host) -> None:
    """Not sent: a policy says what would become of it, and the contract has the default."""
    assert call(host, "Check", {"method": "KillMachine", "parameters": {"name": GUEST}})["allowed"]
    if has_varlinkctl(host):
        assert native_error(host, "Machine.Kill", {"name": GUEST})[1] == {"parameter": "signal"}


@pytest.mark.parametrize(("verb", "last_words"), [("poweroff", "Powering off."), ("reboot", "Rebooting.")])
def test_machinectl_ends_a_machine_as_we_do(host: Host, verb: str, last_words: str) -> None:
    """By the parameters in the row, and by what the machine's systemd says last."""
    (row,) = (row for row in rows("machinectl") if names(row[0]) == [verb])
    (parameters,) = re.findall(r"`(\{.*?\})`", row[3])
    for way in ("theirs", "ours"):
        name = f"{verb}-{way}"
        log = ["journalctl", "--no-pager", "--output=cat", "--lines=20", f"--unit=guest-{name}.service"]

        def is_said(log: list[str] = log) -> bool:
            return last_words in host.run(log).stdout.splitlines()

        host.guest(name)
        try:
            if way == "theirs":
                host.run(["machinectl", verb, name])
            else:
                (method,) = names(row[2])
                call(host, method, json.loads(parameters.replace("NAME", f'"{name}"')))
            assert eventually(is_said), way
        finally:
            host.end_guest(name)
