# SPDX-License-Identifier: LGPL-2.1-or-later
"""The contract: what is derived is current, says what the issue asks for, and takes what systemd-machined takes.

The tables of names and values below were tried on machined of systemd 252, 257 and 262.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import varlink
import yaml
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate as validate_openapi

from bridge import bus, errors, machined
from bridge import contract as bridge_contract
from bridge import methods as bridge_methods
from tests.schema import load_tool

ROOT = Path(__file__).resolve().parents[2]


derive = load_tool("derive")
CONTRACT_TEXT = (ROOT / derive.CONTRACT).read_text(encoding="utf-8")
CONTRACT: dict[str, Any] = json.loads((ROOT / derive.SCHEMAS).read_text(encoding="utf-8"))
METHODS: dict[str, Any] = CONTRACT["methods"]


# --- the derived files are current --------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the contract and of what is derived from it."""
    for path in (derive.CONTRACT, derive.VARLINK, derive.SCHEMAS):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def test_derived_files_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert derive.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", [derive.VARLINK, derive.SCHEMAS])
def test_check_sees_an_edited_file(tree: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited = (tree / path).read_text().replace("read_only", "read_write")
    (tree / path).write_text(edited)
    assert derive.main(["--check", "--root", str(tree)]) == 1
    message = capsys.readouterr().err
    assert f"{path} is out of date; run: python schema/derive.py" in message
    assert re.search(r"^-.*read_write", message, re.MULTILINE)
    assert re.search(r"^\+.*read_only", message, re.MULTILINE)
    assert (tree / path).read_text() == edited, "--check must not write"


def test_check_sees_a_missing_file(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / derive.VARLINK).unlink()
    assert derive.main(["--check", "--root", str(tree)]) == 1
    assert str(derive.VARLINK) in capsys.readouterr().err


def test_an_edited_contract_is_written_to_both(tree: Path) -> None:
    (tree / derive.CONTRACT).write_text(CONTRACT_TEXT.replace("maximum: 64", "maximum: 63"))
    (tree / derive.VARLINK).unlink()
    assert derive.main(["--root", str(tree)]) == 0
    assert (tree / derive.VARLINK).read_text() == (ROOT / derive.VARLINK).read_text()
    signal = json.loads((tree / derive.SCHEMAS).read_text())["methods"]["io.machine1.KillMachine"]
    assert signal["parameters"]["properties"]["signal"]["maximum"] == 63
    assert derive.main(["--check", "--root", str(tree)]) == 0


def test_a_refused_contract_is_an_error_and_writes_nothing(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / derive.CONTRACT).write_text(CONTRACT_TEXT.replace("enum: [all, leader]", "enum: [all]"))
    before = (tree / derive.SCHEMAS).read_bytes()
    assert derive.main(["--root", str(tree)]) == 1
    assert "paths./machines/{name}/kill.post.requestBody.who: an enum of one value" in capsys.readouterr().err
    assert (tree / derive.SCHEMAS).read_bytes() == before


# --- the contract says what it has to say -------------------------------------------------------------------------


def test_openapi_is_valid() -> None:
    validate_openapi(yaml.safe_load(CONTRACT_TEXT))


# The document that the project started from: operation, where it is, and the parameters and enums it had.
SEED = {
    "ListMachines": ("/machines", "get", ()),
    "GetMachine": ("/machines/{name}", "get", ("name",)),
    "TerminateMachine": ("/machines/{name}/terminate", "post", ("name",)),
    "KillMachine": ("/machines/{name}/kill", "post", ("name", "who", "signal")),
    "OpenMachineShell": ("/machines/{name}/open-shell", "post", ("name",)),
    "CopyFromMachine": ("/machines/{name}/copy-from", "post", ("name",)),
    "CopyToMachine": ("/machines/{name}/copy-to", "post", ("name",)),
    "ListImages": ("/images", "get", ()),
    "RemoveImage": ("/images/{name}", "delete", ("name",)),
    "CloneImage": ("/images/{name}/clone", "post", ("name", "dest", "read_only")),
    "RenameImage": ("/images/{name}/rename", "post", ("name",)),
}


def test_the_seed_is_kept() -> None:
    paths = yaml.safe_load(CONTRACT_TEXT)["paths"]
    for operation, (path, verb, parameters) in SEED.items():
        assert paths[path][verb]["operationId"] == operation
        assert set(parameters) <= set(METHODS[f"io.machine1.{operation}"]["parameters"]["properties"])
    machine = METHODS["io.machine1.GetMachine"]["reply"]["properties"]["machine"]["properties"]
    image = METHODS["io.machine1.ListImages"]["reply"]["properties"]["images"]["items"]["properties"]
    assert {"vm", "container"} <= set(machine["class"]["enum"])
    assert set(image["type"]["enum"]) == {"directory", "subvolume", "raw", "block", None}
    assert set(machine) == {"name", "class", "service", "object_path", "details"}
    assert set(image) == {"name", "type", "read_only", "ctime", "mtime", "usage", "object_path", "details"}


INTERACTIVE = "allowInteractiveAuthentication: ?bool"
EVENT = "event: (snapshot, resumed, added, removed, changed)"
CURSOR = "cursor: string, gap: ?(cursor, lagged, restarted, policy), missed: ?int"
TRANSFER = "(transfer: int, progress: ?int, done: ?bool)"
SURFACE = {
    "ListMachines": "(all: ?bool, class: ?(vm, container, host), service: ?string, details: ?bool, "
    f"{INTERACTIVE}) -> (machines: []Machine)",
    "GetMachine": f"(name: string, details: ?bool, {INTERACTIVE}) -> (machine: Machine)",
    "GetMachineByPID": f"(pid: int, details: ?bool, {INTERACTIVE}) -> (machine: Machine)",
    "WatchMachines": f"(cursor: ?string, all: ?bool) -> ({EVENT}, machines: []Machine, {CURSOR})",
    "WatchImages": f"(cursor: ?string, all: ?bool) -> ({EVENT}, images: []Image, {CURSOR})",
    "WaitMachine": "(name: string, state: (running, gone), timeout: ?int) -> (machine: ?Machine)",
    "UnregisterMachine": f"(name: string, {INTERACTIVE}) -> ()",
    "PoweroffMachine": f"(name: string, {INTERACTIVE}) -> ()",
    "RebootMachine": f"(name: string, {INTERACTIVE}) -> ()",
    "StartMachine": f"(name: string, {INTERACTIVE}) -> ()",
    "OpenMachineLogin": f"(name: string, {INTERACTIVE}) -> (pty_fd: int, pty_path: string)",
    "OpenMachinePTY": f"(name: string, {INTERACTIVE}) -> (pty_fd: int, pty_path: string)",
    "OpenMachineRootDirectory": f"(name: string, {INTERACTIVE}) -> (directory_fd: int)",
    "BindMountMachine": "(name: string, src: string, dest: ?string, read_only: ?bool, mkdir: ?bool, "
    f"{INTERACTIVE}) -> ()",
    "MapFromMachineUser": "(name: string, uid: int) -> (uid: int)",
    "MapFromMachineGroup": "(name: string, gid: int) -> (gid: int)",
    "MapToMachineUser": "(uid: int) -> (name: string, uid: int)",
    "MapToMachineGroup": "(gid: int) -> (name: string, gid: int)",
    "TerminateMachine": f"(name: string, {INTERACTIVE}) -> ()",
    "KillMachine": f"(name: string, who: ?(all, leader), signal: ?int, {INTERACTIVE}) -> ()",
    "OpenMachineShell": "(name: string, user: ?string, path: ?string, args: ?[]string, env: ?[]string, "
    f"{INTERACTIVE}) -> (pty_fd: int, pty_path: string)",
    "CopyFromMachine": f"(name: string, src: string, dest: ?string, replace: ?bool, {INTERACTIVE}) -> ()",
    "CopyToMachine": f"(name: string, src: string, dest: ?string, replace: ?bool, {INTERACTIVE}) -> ()",
    "ListImages": "(all: ?bool, type: ?(directory, subvolume, raw, block), read_only: ?bool, details: ?bool, "
    f"{INTERACTIVE}) -> (images: []Image)",
    "GetImage": f"(name: string, details: ?bool, {INTERACTIVE}) -> (image: Image)",
    "RemoveImage": f"(name: string, {INTERACTIVE}) -> ()",
    "CloneImage": f"(name: string, dest: string, read_only: ?bool, {INTERACTIVE}) -> ()",
    "RenameImage": f"(name: string, dest: string, {INTERACTIVE}) -> ()",
    "MarkImageReadOnly": f"(name: string, read_only: bool, {INTERACTIVE}) -> ()",
    "SetImageLimit": f"(name: string, limit: ?int, {INTERACTIVE}) -> ()",
    "GetPool": "() -> (path: string, usage: ?int, limit: ?int)",
    "SetPoolLimit": f"(limit: ?int, {INTERACTIVE}) -> ()",
    "CleanPool": f"(mode: (hidden, all), {INTERACTIVE}) -> (name: ?string, usage: ?int)",
    **dict.fromkeys(
        ("ImportTar", "ImportRaw"),
        f"(name: string, image_fd: int, force: ?bool, read_only: ?bool, {INTERACTIVE}) -> {TRANSFER}",
    ),
    **dict.fromkeys(
        ("ExportTar", "ExportRaw"),
        f"(name: string, image_fd: int, format: ?(uncompressed, xz, gzip, bzip2), {INTERACTIVE}) -> {TRANSFER}",
    ),
    **dict.fromkeys(
        ("PullTar", "PullRaw"),
        "(name: string, url: string, verify: ?(no, checksum, signature), force: ?bool, "
        f"{INTERACTIVE}) -> {TRANSFER}",
    ),
    "ListTransfers": "() -> (transfers: []Transfer)",
    "CancelTransfer": f"(transfer: int, {INTERACTIVE}) -> ()",
    "Check": "(method: string, parameters: ?object) -> (allowed: bool, reason: string)",
}
TYPES = {
    "Machine": "(name: string, class: ?(vm, container, host), service: string, object_path: string, "
    "details: ?MachineDetails)",
    "MachineDetails": "(id: ?string, leader: ?int, unit: ?string, root_directory: ?string, timestamp: ?int, "
    "state: ?(opening, running, closing), network_interfaces: ?[]int, addresses: ?[]Address, os_release: ?[]string, "
    "uid_shift: ?int, ssh_address: ?string, ssh_private_key_path: ?string, vsock_cid: ?int, supervisor: ?int, "
    "owner_uid: ?int, missing: []Missing)",
    "Address": "(family: (ipv4, ipv6), address: string)",
    "Image": "(name: string, type: ?(directory, subvolume, raw, block), read_only: bool, "
    "ctime: ?int, mtime: ?int, usage: ?int, object_path: string, details: ?ImageDetails)",
    "ImageDetails": "(path: ?string, limit: ?int, usage_exclusive: ?int, limit_exclusive: ?int, hostname: ?string, "
    "machine_id: ?string, machine_info: ?[]string, os_release: ?[]string, missing: []Missing)",
    "Missing": "(piece: string, error: string, reason: string)",
    "Transfer": "(transfer: int, name: string, type: ?(import_tar, import_raw, export_tar, export_raw, pull_tar, "
    "pull_raw), remote: ?string, progress: ?int)",
}
ERRORS = {
    "NoSuchMachine": "(name: string)",
    "NoMachineForPID": "(pid: int)",
    "NoSuchUserMapping": "(uid: int)",
    "NoSuchGroupMapping": "(gid: int)",
    "NoSuchImage": "(name: string)",
    "NameTaken": "(name: string)",
    "StartFailed": "(name: string, result: string)",
    "NoSuchTransfer": "(transfer: int)",
    "TransferFailed": "(transfer: int, reason: string)",
    "TransferCanceled": "(transfer: int)",
    "NotSupported": "(reason: string)",
    "Busy": "(reason: string)",
    "ReadOnly": "(name: string)",
    "TooManyOperations": "()",
    "Timeout": "()",
    "Unavailable": "(reason: string)",
    "Failed": "(dbus_error: string, message: string)",
}


def test_the_public_surface_is_exactly_this() -> None:
    text = (ROOT / derive.VARLINK).read_text(encoding="utf-8")
    bare = " ".join(line.strip() for line in text.splitlines() if not line.strip().startswith("#"))
    bare = bare.replace("( ", "(").replace(" )", ")")
    members = re.findall(r"(type|method|error) (\w+) ?(.*?)(?= (?:type|method|error) [A-Z]|$)", " ".join(bare.split()))
    expected = {"type": TYPES, "method": SURFACE, "error": ERRORS}
    found: dict[str, dict[str, str]] = {"type": {}, "method": {}, "error": {}}
    for kind, name, rest in members:
        found[kind][name] = rest
    assert found == expected
    assert set(METHODS) == {f"io.machine1.{name}" for name in SURFACE} | {
        "org.varlink.service.GetInfo",
        "org.varlink.service.GetInterfaceDescription",
        *(f"io.systemd.service.{name}" for name in ("Ping", "Reload", "SetLogLevel", "GetLogLevel", "GetEnvironment")),
    }
    assert set(CONTRACT["errors"]) == {f"io.machine1.{name}" for name in ERRORS}
    service = (ROOT / "schema/io.systemd.service.varlink").read_text(encoding="utf-8")
    assert CONTRACT["interfaces"] == {"io.machine1": text, "io.systemd.service": service}


def test_python_varlink_parses_the_interface() -> None:
    interface = varlink.Interface(CONTRACT["interfaces"]["io.machine1"])
    assert interface.name == "io.machine1"
    assert set(interface.members) == set(SURFACE) | set(TYPES) | set(ERRORS)
    assert interface.get_method("OpenMachineShell").name == "OpenMachineShell"


FROM_MACHINED = [name for name in SURFACE if name != "Check"]
# What a D-Bus error would mean by bridge.machined.ERRORS, but machined never says of these methods.
LISTS = {"ListMachines", "ListImages"}
WATCHES = {"WatchMachines", "WatchImages", "WaitMachine"}
MAPS = {f"Map{way}Machine{kind}" for way in ("From", "To") for kind in ("User", "Group")}
TRANSFERS = {f"{way}{kind}" for way in ("Import", "Export", "Pull") for kind in ("Tar", "Raw")}
READS = {*LISTS, *WATCHES, "ListTransfers", "GetMachine", "GetMachineByPID", "GetImage", "GetPool", *MAPS}
# Of reads, those with details are asked about.
UNASKED = {"GetPool", "ListTransfers", *WATCHES, *MAPS}
UNHEARD_OF = {
    "NotSupported": (READS | {"CancelTransfer"}) - {"MapFromMachineUser", "MapFromMachineGroup"},
    "ReadOnly": {"StartMachine", "GetImage", "ExportTar", "ExportRaw"},
    # Images are locked, machines are not; but there can be too many questions to polkit about either.
    "Busy": UNASKED,
    # What runs in a child of machined counts as an operation.
    "TooManyOperations": set(SURFACE)
    - {"CopyFromMachine", "CopyToMachine", "RemoveImage", "CloneImage", "CleanPool", *TRANSFERS},
}


# What the method itself makes of what machined says.
MADE = {
    "GetMachineByPID": {"NoMachineForPID"},
    "MapFromMachineUser": {"NoSuchUserMapping"},
    "MapToMachineUser": {"NoSuchUserMapping"},
    "MapFromMachineGroup": {"NoSuchGroupMapping"},
    "MapToMachineGroup": {"NoSuchGroupMapping"},
    "StartMachine": {"StartFailed"},
    **{name: {"TransferFailed", "TransferCanceled"} for name in TRANSFERS},
    "CancelTransfer": {"NoSuchTransfer"},
}


def listed_errors(name: str) -> set[str]:
    interface = derive.Reader(yaml.safe_load(CONTRACT_TEXT)).read()
    (listed,) = (set(method.errors) for method in interface.methods if method.name == name)
    return listed


def test_check_ends_in_an_answer() -> None:
    """It asks machined nothing, and says of whatever would keep the call from being made that it would."""
    assert listed_errors("Check") == {"Failed"}
    assert set(yaml.safe_load(CONTRACT_TEXT)["paths"]["/check"]["post"]["responses"]) == {"200", "400", "404", "500"}


@pytest.mark.parametrize("name", FROM_MACHINED)
def test_each_operation_lists_the_errors_that_it_can_end_in(name: str) -> None:
    listed = listed_errors(name)
    objects = dict.fromkeys(bridge_methods.METHODS[f"io.machine1.{name}"].about, "x")
    names = [machined.to_varlink_error(bus.DBusError(error, ""), objects).name for error in machined.ERRORS]
    possible = {error.removeprefix("io.machine1.") for error in names if error.startswith("io.machine1.")}
    never = {error for error, methods in UNHEARD_OF.items() if name in methods}
    assert listed == (possible | {"Failed"} | MADE.get(name, set())) - never
    responses = [
        operation["responses"]
        for item in yaml.safe_load(CONTRACT_TEXT)["paths"].values()
        for operation in item.values()
        if isinstance(operation, dict) and operation.get("operationId") == name
    ]
    assert [("400" in found, "403" in found, "401" in found) for found in responses] == [
        (True, True, name not in UNASKED)
    ]


def test_the_text_is_what_every_parser_takes() -> None:
    text = (ROOT / derive.VARLINK).read_text(encoding="utf-8")
    assert text.isascii()
    assert text.endswith(")\n")
    for line in text.splitlines():
        assert len(line) <= derive.WIDTH
        assert line == line.rstrip()
        assert line.strip() != "#", "varlink/go swallows the line after a bare #"
        assert "#" not in line or line.strip().startswith("# "), "comments stand on lines of their own"


def test_schemas_are_valid_and_strict() -> None:
    anything = METHODS["io.machine1.Check"]["parameters"]["properties"]["parameters"]
    assert anything == {"type": ["object", "null"]}, "the schema of the method that they belong to says more"

    level = METHODS["io.systemd.service.GetLogLevel"]["reply"]["properties"]["level"]
    assert level == {"type": "integer"}, "the service's own reply"

    def check(schema: dict[str, Any]) -> None:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert set(schema) <= {
            *("type", "enum", "pattern", "$comment", "minLength", "maxLength", "minimum", "maximum"),
            *("items", "maxItems", "properties", "required", "additionalProperties"),
        }
        assert ("pattern" in schema) == ("$comment" in schema), "a pattern is explained, and nothing else is"
        if "object" in kinds and schema is not anything:
            assert schema["additionalProperties"] is False
            for property_ in schema["properties"].values():
                check(property_)
        if "integer" in kinds and schema is not level:
            assert -(2**63) <= schema["minimum"] <= schema["maximum"] < 2**63
        if "array" in kinds:
            check(schema["items"])
            keywords = list(schema)
            if "maxItems" in schema:
                assert keywords.index("maxItems") < keywords.index("items"), (
                    "too many are refused before any is looked at"
                )

    schemas = [schema for method in METHODS.values() for schema in method.values()] + list(CONTRACT["errors"].values())
    for schema in schemas:
        Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
        check(schema)


# --- what the schemas take and refuse -----------------------------------------------------------------------------

REQUIRED: dict[str, dict[str, Any]] = {
    "ListMachines": {},
    "GetMachine": {"name": "web1"},
    "TerminateMachine": {"name": "web1"},
    "KillMachine": {"name": "web1"},
    "OpenMachineShell": {"name": "web1"},
    "CopyFromMachine": {"name": "web1", "src": "/etc/hostname"},
    "CopyToMachine": {"name": "web1", "src": "/etc/hostname"},
    "WatchMachines": {},
    "WaitMachine": {"name": "web1", "state": "gone"},
    "ListImages": {},
    "WatchImages": {},
    "RemoveImage": {"name": "debian"},
    "CloneImage": {"name": "debian", "dest": "copy"},
    "RenameImage": {"name": "debian", "dest": "copy"},
    "GetImage": {"name": "debian"},
    "MarkImageReadOnly": {"name": "debian", "read_only": True},
    "SetImageLimit": {"name": "debian"},
    "GetPool": {},
    "SetPoolLimit": {},
    "CleanPool": {"mode": "hidden"},
    "Check": {"method": "KillMachine"},
}
OF_MACHINES = [name for name, parameters in REQUIRED.items() if parameters.get("name") == "web1"]
OF_IMAGES = [name for name, parameters in REQUIRED.items() if parameters.get("name") == "debian"]


def takes(method: str, /, **parameters: Any) -> bool:  # noqa: ANN401 - any JSON value is the point
    schema = METHODS[f"io.machine1.{method}"]["parameters"]
    return Draft202012Validator(schema).is_valid({**REQUIRED[method], **parameters})


@pytest.mark.parametrize("method", REQUIRED)
def test_parameters_required_optional_and_unknown(method: str) -> None:
    schema = METHODS[f"io.machine1.{method}"]["parameters"]
    assert takes(method)
    assert not takes(method, unknown=1)
    for name in schema["properties"]:
        if name in REQUIRED[method]:
            rest = {key: value for key, value in REQUIRED[method].items() if key != name}
            assert not Draft202012Validator(schema).is_valid(rest), f"{name} is required"
            assert not takes(method, **{name: None})
        else:
            assert takes(method, **{name: None}), f"null is the same as absent for {name}"
        assert takes(method, **{name: {}}) is ((method, name) == ("Check", "parameters"))
        assert not takes(method, **{name: 1.5})


def test_check_takes_any_parameters() -> None:
    fit: list[Any] = [{}, {"name": 1.5}, {"": [{"deep": None}]}, None]
    unfit: list[Any] = [[], [{}], "{}", True, 0]
    assert all(takes("Check", parameters=value) for value in fit)
    assert not any(takes("Check", parameters=value) for value in unfit)


# machined's CreateMachine took the first and refused the second with "Invalid machine name" on all three versions;
# .host is the host, which CreateMachine refuses and GetMachine knows.
MACHINE_NAMES = ["a", "9", "A9", "a.b", "a-b", "a--b", "9.9", "1-1.2-2", "a" * 64, "a" * 60 + ".b.c", ".host"]
NOT_MACHINE_NAMES = [
    *("", "a" * 65, "a..b", ".a", "a.", "a.b.", "a-", "-a", "a.-b", "a-.b", "a-.", "a_b", "a b", "a/b", "é", "?", "$"),
    *(
        ".",
        "..",
        "host..",
        "..host",
        ".hosts",
        "x.host.",
        "a\n",
        "\na",
        ".host\n",
        "a\0",
        "\0",
        "a\0b",
        "a\r",
        "\uff41",
    ),
    *("\u0663", "xn--\u00fc"),
]


@pytest.mark.parametrize("method", OF_MACHINES)
def test_machine_names(method: str) -> None:
    assert [name for name in MACHINE_NAMES if not takes(method, name=name)] == []
    assert [name for name in NOT_MACHINE_NAMES if takes(method, name=name)] == []


# machined's CloneImage took the first as new names (255 bytes pass its check of names; the file system may refuse them)
# and refused the second as invalid names on all three versions; .host is the host's own image.
IMAGE_NAMES = [
    *("ok", "a b", "-dash", "é", "x" * 255, "é" * 127, ".hidden", "...", "..#", "a\u0085b", "a.raw", "a:b", "a_b", "*"),
    *("😀", ".a#", "#", "a#", "..a", ".host", "a\\b", "\u2028", " "),
]
NOT_IMAGE_NAMES = [
    *("", ".", "..", ".#tmp", ".#", "/", "a/b", "../a", "a/", "a\nb", "a\n", "..\n", ".\n", "\n", "a\x7fb", "a\x01"),
    *("a\0", "\0", "x" * 256),
]


@pytest.mark.parametrize(
    ("method", "parameter"),
    [*((method, "name") for method in OF_IMAGES), ("CloneImage", "dest"), ("RenameImage", "dest")],
)
def test_image_names(method: str, parameter: str) -> None:
    assert [name for name in IMAGE_NAMES if not takes(method, **{parameter: name})] == []
    assert [name for name in NOT_IMAGE_NAMES if takes(method, **{parameter: name})] == []


LONGEST = 131071  # bytes of one argument or assignment: MAX_ARG_STRLEN without its NUL byte; one more fails to execute
ITEMS = 16384  # of args and of env: what systemd 262 takes of env, and what is checked in a moment
SHELL: dict[str, tuple[list[Any], list[Any]]] = {
    "user": (
        ["", "root", "0", "nobody99", "é", "DOMAIN\\user", "user@domain", "a b", "x" * 256],
        ["a:b", "a/b", "ro\not", "root\n", "root\0", "\x7f", 0, ["root"]],
    ),
    "path": (
        ["", "/", "/bin/sh", "/bin/../bin/sh", "//bin//sh", "/no such\n", "/é", "/" + "a" * 4094],
        ["bin/sh", "./sh", "~/sh", " /bin/sh", "\n", "\n/", "/bin/sh\0", "/" + "a" * 4095, 1],
    ),
    "args": (
        [[], [""], ["sh", "-c", "a\nb"], ["é", "\x01", "a\n"], ["a" * LONGEST], ["x"] * ITEMS],
        ["sh", [1], [None], ["a\0"], [["a"]], ["a" * (LONGEST + 1)], {"0": "sh"}, ["x"] * (ITEMS + 1)],
    ),
    "env": (
        [
            *([], ["A="], ["A=b", "_C=d e\nf"], ["A=\x01"], ["a1=é"], ["A==="], ["A=\n"]),
            *(["A=" + "b" * (LONGEST - 2)], ["A="] * ITEMS),
        ],
        [
            *(["A"], ["=x"], ["1A=x"], ["a-b=x"], ["é=x"], ["a.b=x"], [" A=x"], ["A =x"], ["\nA=x"], ["A\n=x"], [""]),
            *(["A=\0"], ["A=" + "b" * (LONGEST - 1)], "A=b", [None], ["A="] * (ITEMS + 1)),
        ],
    ),
    "allowInteractiveAuthentication": ([True, False], ["true", 0, 1, []]),
}


@pytest.mark.parametrize("parameter", SHELL)
def test_shell_parameters(parameter: str) -> None:
    good, bad = SHELL[parameter]
    assert [repr(value)[:60] for value in good if not takes("OpenMachineShell", **{parameter: value})] == []
    assert [repr(value)[:60] for value in bad if takes("OpenMachineShell", **{parameter: value})] == []


@pytest.mark.parametrize("method", ["CopyFromMachine", "CopyToMachine"])
def test_paths_to_copy(method: str) -> None:
    taken = ["/", "/etc/hostname", "/a/../b", "//a//", "/a b", "/é", "/a\nb", "/a\n", "/" + "a" * 4094]
    refused = ["a", "./a", "../a", "~", "\n/a", "/a\0", "\0", "/" + "a" * 4095]
    for parameter in ("src", "dest"):
        assert [path for path in taken if not takes(method, **{parameter: path})] == []
        assert [path for path in refused if takes(method, **{parameter: path})] == []
    assert not takes(method, src="")
    assert takes(method, dest=""), "machined takes an empty dest for src"
    assert not takes(method, dest="\n")


def test_signals() -> None:
    assert all(takes("KillMachine", signal=number) for number in range(1, 65))
    for value in (0, 65, -1, 2**31, 2**64, 10**400, True, "15", 15.5, [15]):
        assert not takes("KillMachine", signal=value)
    assert all(takes("KillMachine", who=who) for who in ("all", "leader", None))
    for who in ("", "ALL", "all\n", "supervisor", ["all"], False):
        assert not takes("KillMachine", who=who)


def test_replies_leave_out_what_is_not_known() -> None:
    machine = {"name": "a", "service": "", "object_path": "/a"}
    reply = Draft202012Validator(METHODS["io.machine1.GetMachine"]["reply"])
    assert reply.is_valid({"machine": machine})
    assert reply.is_valid({"machine": {**machine, "class": "host"}})
    assert not reply.is_valid({"machine": {**machine, "class": "pod"}})
    assert not reply.is_valid({"machine": {"name": "a", "object_path": "/a"}})
    image = {"name": "a", "read_only": True, "object_path": "/a"}
    images = Draft202012Validator(METHODS["io.machine1.ListImages"]["reply"])
    assert images.is_valid({"images": [image, {**image, "type": "raw", "ctime": 1, "mtime": 2, "usage": 0}]})
    for name, value in (("usage", 2**64 - 1), ("usage", -1), ("ctime", 0), ("mtime", 0), ("type", "tarball")):
        assert not images.is_valid({"images": [{**image, name: value}]})
    empty = Draft202012Validator(METHODS["io.machine1.TerminateMachine"]["reply"])
    assert empty.is_valid({})
    assert not empty.is_valid({"machine": machine})


@pytest.mark.parametrize(
    ("method", "parameters", "parameter", "reason"),
    [
        ("GetMachine", {"name": "a_b"}, "name", "must be a host name such as web-1 or web-1.example, or .host"),
        ("RemoveImage", {"name": "."}, "name", "must be an image name: no slash, no control characters, "),
        ("CopyToMachine", {"name": "a", "src": "b"}, "src", "must be an absolute path without NUL"),
        (
            "CopyToMachine",
            {"name": "a", "src": "/b", "dest": "c"},
            "dest",
            "must be an absolute path without NUL, or empty",
        ),
        ("OpenMachineShell", {"name": "a", "env": ["A=", "B"]}, "env[1]", "must be an assignment NAME=VALUE, "),
        ("OpenMachineShell", {"name": "a", "user": "b:c"}, "user", "must be a user name or UID, "),
        ("OpenMachineShell", {"name": "a", "args": ["", "\0"]}, "args[1]", "must be a text without NUL"),
        ("OpenMachineShell", {"name": "a", "args": [""] * (ITEMS + 1)}, "args", "must have at most 16384 items"),
        ("Check", {"method": "KillMachine", "parameters": []}, "parameters", "must be an object"),
    ],
)
def test_a_reason_is_for_people(method: str, parameters: dict[str, Any], parameter: str, reason: str) -> None:
    with pytest.raises(errors.InvalidParameter) as caught:
        bridge_contract.Contract().check(f"io.machine1.{method}", parameters)
    assert caught.value.parameters["parameter"] == parameter
    assert caught.value.parameters["reason"].startswith(reason)


def test_no_pattern_backtracks_catastrophically() -> None:
    """Each pattern against long strings that almost match, longer than the schema would even let through."""
    patterns = set(re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', json.dumps(METHODS)))
    assert len(patterns) >= 6
    start = time.monotonic()
    for pattern in (re.compile(json.loads(quoted)) for quoted in patterns):
        for piece in ("a", "-", ".", "a-", "a.", "a--a.", "/", "=", "A=", "\\", " ", "..#"):
            for text in (piece * 20000 + "\0", piece * 20000, "a" + piece * 20000 + "\n"):
                pattern.search(text)
    assert time.monotonic() - start < 10


# --- what derive.py refuses ---------------------------------------------------------------------------------------


def minimal() -> dict[str, Any]:
    """The smallest document with everything in it that the refusals below change."""
    properties = {
        "text": {**STRING, "maxLength": 9, "pattern": "^[a-z]*$", "x-rule": "a word"},
        "number": {"description": "D.", "type": "integer", "minimum": 0, "maximum": 9},
        "choice": {"description": "D.", "type": "string", "enum": ["one", "two"]},
        "list": {"description": "D.", "type": "array", "items": {"type": "string"}},
        "thing": {"$ref": "#/components/schemas/Thing"},
        "open": {"description": "D.", "type": "object", "additionalProperties": True},
    }
    body = {"type": "object", "required": ["text"], "properties": properties}
    thing = {"description": "D.", "type": "object", "properties": {"flag": {"description": "D.", "type": "boolean"}}}
    why = {"type": "object", "required": ["why"], "properties": {"why": {"description": "D.", "type": "string"}}}
    where = {"name": "where", "in": "query", "description": "D.", "schema": {"type": "boolean"}}
    return {
        "info": {"description": "D.", "version": "1.0"},
        "paths": {
            "/things": {
                "post": {
                    "operationId": "Do",
                    "summary": "S",
                    "description": "D.",
                    "parameters": [where],
                    "requestBody": {"content": {"application/json": {"schema": body}}},
                    "responses": {"204": {"description": "D."}, "400": {"$ref": "#/components/responses/Bad"}},
                }
            }
        },
        "components": {
            "schemas": {"Thing": thing},
            "responses": {"Bad": {"description": "D.", "content": {"application/json": {"schema": why}}}},
        },
    }


def put(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """A change of the minimal document; the ellipsis removes. Parts of the path are shortened by SHORT."""

    def change(document: dict[str, Any]) -> None:
        *parents, last = [part for long in path.split(" ") for part in SHORT.get(long, (long,))]
        node: Any = document
        for part in parents:
            node = node[int(part) if isinstance(node, list) else part]
        if value is ...:
            del node[last]
        else:
            node[last] = value

    return change


def without(node: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name != key}


OPERATION = ("paths", "/things", "post")
SHORT = {
    "operation": OPERATION,
    "body": (*OPERATION, "requestBody", "content", "application/json", "schema"),
    "fields": (*OPERATION, "requestBody", "content", "application/json", "schema", "properties"),
    "named": ("components", "schemas", "Thing"),
    "bad": ("components", "responses", "Bad", "content", "application/json", "schema"),
}
STRING = {"description": "D.", "type": "string"}
OBJECT = {"description": "D.", "type": "object", "properties": {"a": STRING}}
OPEN = {"description": "D.", "type": "object", "additionalProperties": True}
REFUSED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "unknown type": (put("fields text type", "number"), r"requestBody\.text: type 'number'"),
    "no type": (put("fields text type", ...), r"requestBody\.text: type None"),
    "type list": (put("fields text", {**STRING, "type": "null"}), r"requestBody\.text: type 'null'"),
    "unknown keyword": (put("fields text format", "uri"), r"requestBody\.text: not for type string here: format"),
    "object keyword": (put("body oneOf", []), r"requestBody: not for type object here: oneOf"),
    "empty struct": (put("named properties", {}), r"components\.schemas\.Thing: an empty struct"),
    "empty body": (put("fields", {}), r"requestBody: an empty struct"),
    "struct in place": (put("fields thing", OBJECT), r"requestBody\.thing: an anonymous struct"),
    "array of arrays": (put("fields list items", {"type": "array", "items": STRING}), r"list: an array of arrays"),
    "struct, perhaps open": (put("fields thing", without(OPEN, "additionalProperties")), r"thing: an anonymous struct"),
    "struct, not open": (put("fields thing", OPEN | {"additionalProperties": False}), r"thing: not for .*: additional"),
    "open as a number": (put("fields thing", OPEN | {"additionalProperties": 1}), r"thing: not for .*: additional"),
    "open for a type": (put("fields thing", OPEN | {"additionalProperties": STRING}), r"thing: not for .*: additional"),
    "open with properties": (put("fields thing", OPEN | OBJECT), r"thing: not for type object here: additional"),
    "open, not empty": (put("fields thing", OPEN | {"minProperties": 1}), r"thing: not for .*: additional.*, minProp"),
    "open as a type": (put("named", OPEN), r"schemas\.Thing: not for type object here: additionalProperties"),
    "open body": (put("body", OPEN), r"requestBody: not for type object here: additionalProperties"),
    "open in an array": (put("fields list items", OPEN), r"requestBody\.list: an array of open objects"),
    "open in a query": (put("operation parameters 0 schema", OPEN), r"where: an open object in a path or query"),
    "open, no description": (put("fields thing", without(OPEN, "description")), r"thing: a description is needed"),
    "array of anything": (put("fields list items", ...), r"requestBody\.list\.items: type None"),
    "enum of one": (put("fields choice enum", ["one"]), r"requestBody\.choice: an enum of one value"),
    "enum in capitals": (put("fields choice enum", ["one", "Two"]), r"choice: enum value 'Two'"),
    "enum of numbers": (put("fields choice enum", [1, 2]), r"choice: enum value 1"),
    "enum with null": (put("fields choice enum", ["one", None]), r"choice: enum value None"),
    "enum twice": (put("fields choice enum", ["one", "one"]), r"choice: an enum with a value that is there twice"),
    "field in capitals": (put("fields Text", STRING), r"requestBody\.Text: field name 'Text'"),
    "field with dash": (put("fields a-b", STRING), r"requestBody\.a-b: field name 'a-b'"),
    "no range": (put("fields number maximum", ...), r"requestBody\.number: an integer needs minimum and maximum"),
    "range too wide": (put("fields number maximum", 2**63), r"requestBody\.number: .* not a range of 64-bit"),
    "range reversed": (put("fields number maximum", -1), r"requestBody\.number: .* not a range of 64-bit"),
    "length not a number": (put("fields text maxLength", "9"), r"requestBody\.text: maxLength has to be"),
    "pattern not anchored": (put("fields text pattern", "[a-z]"), r"text: the pattern .* has to be anchored"),
    "pattern end escaped": (put("fields text pattern", r"^[a-z]\$"), r"text: the pattern .* has to be anchored"),
    "pattern alternatives": (put("fields text pattern", "^a|b$"), r"text: the pattern .* has \| where"),
    "pattern dot": (put("fields text pattern", "^.*$"), r"text: the pattern .* has \. where"),
    "pattern end inside": (put("fields text pattern", "^(a$|b)$"), r"text: the pattern .* has \$ where"),
    "pattern class": (put("fields text pattern", r"^\d$"), r"text: the pattern .* has \\d, which differs"),
    "pattern class in set": (put("fields text pattern", r"^[\w-]$"), r"text: .* which differs"),
    "pattern broken": (put("fields text pattern", "^(a$"), r"text: the pattern .*: missing \)"),
    "pattern unexplained": (put("fields text x-rule", ...), r"text: the pattern \^\[a-z\]\*\$ needs an x-rule"),
    "rule as a sentence": (put("fields text x-rule", "A word."), r"text: the pattern .* needs an x-rule"),
    "rule of two lines": (put("fields text x-rule", "a\nb"), r"text: the pattern .* needs an x-rule"),
    "rule without pattern": (put("fields text pattern", ...), r"text: x-rule explains a pattern, and here is none"),
    "rule of a number": (put("fields number x-rule", "a"), r"number: not for type integer here: x-rule"),
    "no description": (put("fields text description", ...), r"requestBody\.text: a description is needed"),
    "no comment": (put("named description", " \n"), r"Thing: a description is needed"),
    "no version": (put("info version", ...), r"info: the version has to be a text such as '1.0', not None"),
    "version of a number": (put("info version", 1.0), r"info: the version .*, not 1\.0"),
    "version of three": (put("info version", "1.0.0"), r"info: the version .*, not '1\.0\.0'"),
    "version with a zero": (put("info version", "1.01"), r"info: the version .*, not '1\.01'"),
    "comment not ASCII": (put("info description", "µs"), r"info: a description has to be ASCII"),
    "required but missing": (put("body required", ["nothing"]), r"requestBody: required, but not .*: nothing"),
    "error field": (put("bad properties error", STRING), r"responses\.Bad: a parameter .* cannot be named error"),
    "error in place": (put("operation responses 404", {"description": "D."}), r"responses\.404: an error is a \$ref"),
    "error unused": (
        put("components responses Odd", {"description": "D."}),
        r"components\.responses\.Odd: an error that no operation returns",
    ),
    "dangling reference": (put("fields thing $ref", "#/components/schemas/No"), r"no such component: .*/No"),
    "foreign reference": (put("fields thing $ref", "other.yaml#/Thing"), r"no such component: other\.yaml"),
    "no 2xx": (put("operation responses 204", ...), r"paths\./things\.post: one 2xx response is needed, here are 0"),
    "two 2xx": (put("operation responses 202", {"description": "D."}), r"one 2xx response is needed, here are 2"),
    "reply of a string": (
        put("operation responses 204", {"description": "D.", "content": {"application/json": {"schema": STRING}}}),
        r"responses\.204: type object is needed here",
    ),
    "other content": (
        put("operation responses 204", {"description": "D.", "content": {"text/plain": {"schema": STRING}}}),
        r"responses\.204: the content has to be application/json",
    ),
    "no operationId": (put("operation operationId", ...), r"paths\./things\.post: an operation needs an operationId"),
    "method in lower case": (put("operation operationId", "do"), r"^do: a type, method or error: upper-case first"),
    "header parameter": (put("operation parameters 0 in", "header"), r"where: a parameter in header has no"),
    "parameter twice": (put("operation parameters 0 name", "text"), r"post: the parameter text is there twice"),
    "name twice": (put("operation operationId", "Thing"), r"^Thing: a name that is there twice"),
}


def test_the_minimal_document_is_taken() -> None:
    derived = derive.derive(yaml.safe_dump(minimal(), sort_keys=False))
    text = derived[derive.VARLINK]
    assert "# D.\n# This is version 1.0 of the interface.\ninterface io.machine1\n" in text
    assert json.loads(derived[derive.SCHEMAS])["version"] == "1.0"
    assert "type Thing (\n    # D.\n    flag: ?bool\n)" in text
    assert "    choice: ?(one, two),\n" in text
    assert "    list: ?[]string,\n" in text
    assert "    thing: ?Thing,\n" in text
    assert "    open: ?object,\n" in text
    assert "    where: ?bool\n) -> ()" in text
    assert "error Bad (\n    # D.\n    why: string\n)" in text
    properties = json.loads(derived[derive.SCHEMAS])["methods"]["io.machine1.Do"]["parameters"]["properties"]
    assert properties["choice"] == {"type": ["string", "null"], "enum": ["one", "two", None]}
    assert properties["thing"]["type"] == ["object", "null"]
    assert properties["open"] == {"type": ["object", "null"]}
    assert properties["text"]["pattern"] == r"^[a-z]*(?![\s\S])"
    assert properties["text"]["$comment"] == "a word"


@pytest.mark.parametrize("case", REFUSED)
def test_outside_of_the_subset_is_refused(case: str) -> None:
    change, message = REFUSED[case]
    document = minimal()
    change(document)
    with pytest.raises(derive.ContractError, match=message):
        derive.derive(yaml.safe_dump(document, sort_keys=False))


@pytest.mark.parametrize(
    "name", ["Error", "Result", "Option", "Vec", "String", "Client", "Backend", "Handler", "DoIn", "DoOut"]
)
def test_names_that_generators_use_are_refused(name: str) -> None:
    document = minimal()
    document["components"]["schemas"][name] = copy.deepcopy(OBJECT)
    with pytest.raises(derive.ContractError, match=f"^{name}: a name that generators use themselves"):
        derive.derive(yaml.safe_dump(document, sort_keys=False))


def test_a_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(derive.ContractError, match="line 2: key 'a' is there twice"):
        derive.derive("info:\n  a: 1\n  a: 2\n")


def test_an_error_of_another_interface_is_not_derived() -> None:
    document = minimal()
    document["components"]["responses"]["Foreign"] = {"description": "D.", "x-varlink-error": "org.example.Foreign"}
    document["paths"]["/things"]["post"]["responses"]["403"] = {"$ref": "#/components/responses/Foreign"}
    derived = derive.derive(yaml.safe_dump(document, sort_keys=False))
    assert "Foreign" not in derived[derive.VARLINK]
    assert list(json.loads(derived[derive.SCHEMAS])["errors"]) == ["io.machine1.Bad"]
