# SPDX-License-Identifier: LGPL-2.1-or-later
"""One line for each guarded call and each refusal: who, what, by whose decision, and no more of the parameters."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney.fds import FileDescriptor

from bridge import audit, journal
from bridge.audit import Entry, unit_of
from bridge.errors import Busy, Failed, InvalidParameter, NoSuchMachine, PermissionDenied, Refusal, VarlinkError
from bridge.loop import Future, Loop
from bridge.messages import Call, Peer
from bridge.methods import METHODS

from .conftest import Line

KILL = "io.machine1.KillMachine"
ALWAYS = {
    "MACHINE1_METHOD", "MACHINE1_OUTCOME", "MACHINE1_DECISION", "MACHINE1_DECIDED_BY", "MACHINE1_PEER_UID",
    "MACHINE1_PEER_PID", "MACHINE1_PEER_UNIT", "MACHINE1_SOCKET", "MACHINE1_POLICY", "MACHINE1_DURATION_USEC",
}  # fmt: skip


@pytest.fixture(autouse=True)
def lines(logged: list[Line], monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    monkeypatch.setattr(journal, "_refusals", journal._Refusals())
    monkeypatch.setattr(audit, "unit_of", lambda _: "some.service")
    return logged


def peer(pid: int = 4711, pidfd: FileDescriptor | None = None) -> Peer:
    loop = Loop()
    loop.close()
    return Peer(pid, 1000, 100, Future(loop), pidfd, "varlink")


def entry_of(name: str, parameters: dict[str, Any] | None = None, begin: bool = True) -> Entry:
    entry = Entry(Call(name, parameters or {}), peer(), "web")
    if begin:
        entry.begin(METHODS[name])
    return entry


def fields_of(lines: list[Line]) -> dict[str, object]:
    (line,) = lines
    duration = line.fields["MACHINE1_DURATION_USEC"]
    assert isinstance(duration, int)
    assert 0 <= duration < 5_000_000
    return {name: value for name, value in line.fields.items() if name != "MACHINE1_DURATION_USEC"}


# --- the four ways of a call -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["policy", "kernel", "polkit"])
def test_a_call_that_was_allowed(lines: list[Line], by: str) -> None:
    entry = entry_of(KILL, {"name": "web-1", "signal": 9})
    entry.by = by
    entry.write()
    assert fields_of(lines) == {
        "MACHINE1_METHOD": KILL,
        "MACHINE1_OUTCOME": "done",
        "MACHINE1_DECISION": "allowed",
        "MACHINE1_DECIDED_BY": by,
        "MACHINE1_PEER_UID": 1000,
        "MACHINE1_PEER_PID": 4711,
        "MACHINE1_PEER_UNIT": "some.service",
        "MACHINE1_SOCKET": "varlink",
        "MACHINE1_POLICY": "web",
        "MACHINE1_MACHINE": "web-1",
    }
    assert lines[0].priority == journal.INFO
    assert lines[0].message == f"{KILL} on web-1 by UID 1000, PID 4711: done"


@pytest.mark.parametrize("by", ["policy", "kernel", "polkit"])
def test_a_call_that_was_refused(lines: list[Line], by: Any) -> None:  # noqa: ANN401
    entry = entry_of(KILL, {"name": "web-1"})
    reply = entry.end_in(NoSuchMachine("web-1").refused(Refusal(by, "the reason")))
    entry.write()
    assert (reply.error, reply.parameters) == ("io.machine1.NoSuchMachine", {"name": "web-1"})
    fields = fields_of(lines)
    assert fields["MACHINE1_OUTCOME"] == "io.machine1.NoSuchMachine"
    assert (fields["MACHINE1_DECISION"], fields["MACHINE1_DECIDED_BY"]) == ("refused", by)
    assert fields["MACHINE1_REASON"] == "the reason"
    assert fields["MACHINE1_MACHINE"] == "web-1"
    assert set(lines[0].fields) == ALWAYS | {"MACHINE1_REASON", "MACHINE1_MACHINE"}
    assert lines[0].priority == journal.NOTICE
    assert lines[0].message.endswith(f": io.machine1.NoSuchMachine ({by}: the reason)")


def test_a_call_that_was_allowed_and_failed(lines: list[Line]) -> None:
    """Whose decision it was is no matter of what machined makes of it. A denial without a refusal is machined's."""
    for error in (Failed("x.Y", "secret"), PermissionDenied()):
        entry = entry_of(KILL, {"name": "web-1"})
        entry.by = "polkit"
        entry.end_in(error)
        entry.write()
        fields = fields_of(lines)
        lines.clear()
        assert fields["MACHINE1_OUTCOME"] == error.name
        assert (fields["MACHINE1_DECISION"], fields["MACHINE1_DECIDED_BY"]) == ("allowed", "polkit")
        assert "MACHINE1_REASON" not in fields
        assert "secret" not in repr(fields)


@pytest.mark.parametrize("error", [InvalidParameter("signal", "must be at least 1"), Busy("later")])
def test_a_guarded_call_that_nobody_decided_about(lines: list[Line], error: VarlinkError) -> None:
    entry = entry_of(KILL, {"name": "web-1", "signal": 0})
    entry.end_in(error)
    entry.write()
    fields = fields_of(lines)
    assert (fields["MACHINE1_DECISION"], fields["MACHINE1_DECIDED_BY"]) == ("none", "none")
    assert fields["MACHINE1_OUTCOME"] == error.name


@pytest.mark.parametrize("error", [None, NoSuchMachine("m"), InvalidParameter("name", "is required")])
def test_what_is_not_guarded_leaves_no_line(lines: list[Line], error: VarlinkError | None) -> None:
    entry = entry_of("io.machine1.GetMachine", {"name": "m"})
    entry.by = "policy"
    if error is not None:
        entry.end_in(error)
    entry.write()
    assert lines == []


def test_unless_it_is_refused(lines: list[Line]) -> None:
    entry = entry_of("io.machine1.GetMachine", {"name": "m"})
    entry.end_in(NoSuchMachine("m").refused(Refusal("policy", "hidden")))
    entry.write()
    fields = fields_of(lines)
    assert (fields["MACHINE1_DECISION"], fields["MACHINE1_MACHINE"]) == ("refused", "m")


def test_a_method_that_the_policy_refuses_before_anything_is_known_of_it(lines: list[Line]) -> None:
    entry = entry_of(KILL, {"name": "web-1"}, begin=False)
    entry.end_in(PermissionDenied().refused(Refusal("policy", "the policy does not allow this method")))
    entry.write()
    assert set(lines[0].fields) == ALWAYS | {"MACHINE1_REASON"}
    assert lines[0].message.startswith(f"{KILL} on ? by UID 1000, PID 4711: ")


def test_the_refusals_of_one_user_do_not_flood_out_others(lines: list[Line]) -> None:
    for _ in range(100):
        entry = entry_of(KILL, {"name": "m"})
        entry.end_in(PermissionDenied().refused(Refusal("polkit", "no")))
        entry.write()
    assert len(lines) == 20


# --- what is in it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "parameters", "objects"),
    [
        ("TerminateMachine", {"name": "m"}, {"MACHINE1_MACHINE": "m"}),
        ("RemoveImage", {"name": "i"}, {"MACHINE1_IMAGE": "i"}),
        ("CloneImage", {"name": "i", "dest": "j"}, {"MACHINE1_IMAGE": "i", "MACHINE1_NEW": "j"}),
        ("RenameImage", {"name": "ä b", "dest": "j"}, {"MACHINE1_IMAGE": "ä b", "MACHINE1_NEW": "j"}),
        ("TerminateMachine", {"name": "x" * 255}, {"MACHINE1_MACHINE": "x" * 255}),
        # What can be no name may be anything.
        ("TerminateMachine", {"name": "x" * 256}, {}),
        ("TerminateMachine", {"name": "a\nMESSAGE=b"}, {}),
        ("TerminateMachine", {"name": "a\0"}, {}),
        ("TerminateMachine", {"name": "a\x1b[2J"}, {}),
        ("TerminateMachine", {"name": "a\u202eb"}, {}),
        ("TerminateMachine", {"name": "a\ud800"}, {}),
        ("TerminateMachine", {"name": 5}, {}),
        ("TerminateMachine", {"name": ["m"]}, {}),
        ("TerminateMachine", {"name": {"m": "m"}}, {}),
        ("TerminateMachine", {"name": None}, {}),
        ("TerminateMachine", {"Name": "m"}, {}),
        ("TerminateMachine", {}, {}),
        ("RenameImage", {"name": "i\n", "dest": "j"}, {"MACHINE1_NEW": "j"}),
    ],
)
def test_names_are_in_it_if_they_can_be_names(
    lines: list[Line], method: str, parameters: dict[str, Any], objects: dict[str, str]
) -> None:
    entry = entry_of(f"io.machine1.{method}", parameters)
    entry.end_in(InvalidParameter("name", "whatever"))
    entry.write()
    assert {name: value for name, value in lines[0].fields.items() if name not in ALWAYS} == objects
    assert lines[0].message.startswith(f"io.machine1.{method} on {', '.join(objects.values()) or '?'} by UID ")


@pytest.mark.parametrize("way", ["done", "refused", "failed"])
@pytest.mark.parametrize("method", sorted(name for name, method in METHODS.items() if method.guarded))
def test_nothing_else_of_the_parameters_is_in_any_field(lines: list[Line], method: str, way: str) -> None:
    named = {parameter: f"name-{parameter}" for parameter in METHODS[method].about.values()}
    secret: dict[str, Any] = {
        key: f"/s3cret-{key}" for key in ("user", "path", "src", "dest", "who", "signal", "read_only", "other")
    }
    secret |= {"args": ["s3cret-arg"], "env": ["S3CRET=s3cret"], "s3cret": "s3cret"}
    entry = entry_of(method, secret | named)
    entry.by = "polkit"
    if way == "refused":
        entry.end_in(PermissionDenied().refused(Refusal("polkit", "polkit says no")))
    elif way == "failed":
        entry.end_in(Failed("s3cret.Error", "s3cret"))
    entry.write()
    (line,) = lines
    for name, value in [("MESSAGE", line.message), *line.fields.items()]:
        assert "s3cret" not in f"{name}={value}".lower(), name
        assert isinstance(value, (str, int)), name
    assert set(line.fields) <= ALWAYS | {"MACHINE1_REASON", "MACHINE1_MACHINE", "MACHINE1_IMAGE", "MACHINE1_NEW"}


def test_the_fields_are_names_that_the_journal_takes(lines: list[Line]) -> None:
    """Upper case, digits and underscores, not at the beginning, 64 bytes at most; others are dropped."""
    entry = entry_of("io.machine1.CloneImage", {"name": "i", "dest": "j"})
    entry.end_in(PermissionDenied().refused(Refusal("policy", "no")))
    entry.write()
    for name in lines[0].fields:
        assert len(name) <= 64
        assert name.replace("_", "").isalnum()
        assert name == name.upper()
        assert name.startswith("MACHINE1_")


# --- the unit --------------------------------------------------------------------------------------------------------


@pytest.fixture
def child() -> Iterator[Peer]:
    process = subprocess.Popen(["sleep", "60"])
    pidfd = FileDescriptor(os.pidfd_open(process.pid))
    yield peer(process.pid, pidfd)
    pidfd.close()
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/web.service\n", "web.service"),
        ("0::/system.slice/system-getty.slice/getty@tty1.service\n", "getty@tty1.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"),
        # The system's unit, not one of the user's own manager: the user gives those any name, that of a service, too.
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service\n", "user@1000.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-x-12.scope\n", "user@1000.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/init.scope\n", "user@1000.service"),
        # Groups that a service made for itself.
        ("0::/system.slice/docker.service/pool/7\n", "docker.service"),
        ("0::/system.slice/a.service/b.service.d\n", "a.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/\udcff\udcfe\n", "user@1000.service"),
        ("0::/machine.slice/machine-web.scope/payload/system.slice/nginx.service\n", "machine-web.scope"),
        ("0::/init.scope\n", "init.scope"),
        (r"0::/system.slice/a\x2db.service" + "\n", r"a\x2db.service"),
        # The first two hierarchies of cgroup v1 beside the one of v2.
        ("12:pids:/user.slice\n1:name=systemd:/system.slice/web.service\n0::/\n", "web.service"),
        ("0::/\n", ""),
        ("0::/system.slice\n", ""),
        ("0::/web.service.slice\n", ""),
        ("0::/.service\n", ""),
        ("", ""),
    ],
)
def test_the_unit_of_a_client(child: Peer, cgroup: str, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def read(path: Path) -> bytes:
        asked.append(str(path))
        return os.fsencode(cgroup)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert unit_of(child) == unit
    assert asked == [f"/proc/{child.pid}/cgroup"]


def test_the_unit_of_a_client_that_ended_is_unknown(child: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its PID may be another's by now."""
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"0::/system.slice/web.service\n")
    assert unit_of(child) == "web.service"
    os.kill(child.pid, 9)
    assert child.pidfd is not None
    select.select([child.pidfd], [], [], 10)
    assert unit_of(child) == ""
    assert unit_of(peer(1)) == "", "nobody can tell whether it lives"


def test_the_unit_of_a_process_that_is_not_there() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert unit_of(peer(process.pid)) == ""
