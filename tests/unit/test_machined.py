# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a D-Bus error means to a client. The conversation itself is in tests/integration."""

from __future__ import annotations

import pytest

from bridge.bus import DBusError
from bridge.errors import (
    Busy,
    Failed,
    NameTaken,
    NoSuchImage,
    NoSuchMachine,
    NotSupported,
    PermissionDenied,
    ReadOnly,
    Timeout,
    TooManyOperations,
    Unavailable,
    VarlinkError,
)
from bridge.machined import BRIDGE_DENIED, ERRORS, to_varlink_error

NAMES = {"machine": "web1", "image": "old", "new": "fresh"}
DBUS = "org.freedesktop.DBus.Error"

# Every D-Bus error that has a meaning of its own here, and what the client is told.
TABLE: list[tuple[str, VarlinkError]] = [
    ("org.freedesktop.machine1.NoSuchMachine", NoSuchMachine("web1")),
    ("org.freedesktop.machine1.NoSuchImage", NoSuchImage("old")),
    (f"{DBUS}.FileExists", NameTaken("fresh")),
    ("System.Error.EEXIST", NameTaken("fresh")),
    ("System.Error.EROFS", ReadOnly("old")),
    ("System.Error.EBUSY", Busy("it says so")),
    (f"{DBUS}.NotSupported", NotSupported("it says so")),
    (f"{DBUS}.UnknownMethod", NotSupported("it says so")),
    ("System.Error.EOPNOTSUPP", NotSupported("it says so")),
    (f"{DBUS}.LimitsExceeded", TooManyOperations()),
    (f"{DBUS}.Timeout", Timeout()),
    ("System.Error.ETIMEDOUT", Timeout()),
    (f"{DBUS}.ServiceUnknown", Unavailable("it says so")),
    (f"{DBUS}.NameHasNoOwner", Unavailable("it says so")),
    (f"{DBUS}.NoReply", Unavailable("it says so")),
    (f"{DBUS}.TimedOut", Unavailable("it says so")),
    (f"{DBUS}.AccessDenied", PermissionDenied()),
    (f"{DBUS}.InteractiveAuthorizationRequired", PermissionDenied()),
]

# All that machined could not be started for (dbus-daemon(1), org.freedesktop.DBus.Error.Spawn.*).
SPAWN = ["Failed", "ServiceNotValid", "ExecFailed", "ChildExited", "ChildSignaled", "FileInvalid", "PermissionsInvalid"]


def told(name: str, names: dict[str, str]) -> tuple[type[VarlinkError], dict[str, str]]:
    error = to_varlink_error(DBusError(name, "it says so"), names)
    return type(error), error.parameters


@pytest.mark.parametrize(("name", "expected"), TABLE, ids=[name for name, _ in TABLE])
def test_a_known_error_has_a_meaning(name: str, expected: VarlinkError) -> None:
    assert told(name, NAMES) == (type(expected), expected.parameters)


def test_no_row_of_the_table_goes_untested() -> None:
    assert sorted(ERRORS) == sorted(name for name, _ in TABLE)


@pytest.mark.parametrize("reason", SPAWN)
def test_machined_that_does_not_start_is_unavailable(reason: str) -> None:
    assert told(f"{DBUS}.Spawn.{reason}", NAMES) == (Unavailable, {"reason": "it says so"})


@pytest.mark.parametrize(
    "name",
    [
        "org.example.Unheard.Of",
        f"{DBUS}.Failed",
        f"{DBUS}.Spawn",  # not one of the Spawn errors, all of which have another word
        "System.Error.EIO",
        # Names are compared as a whole.
        "System.Error.EBUSYX",
        "Xorg.freedesktop.machine1.NoSuchMachine",
        "",
    ],
)
def test_any_other_error_is_handed_on_with_its_name(name: str) -> None:
    assert told(name, NAMES) == (Failed, {"dbus_error": name, "message": "it says so"})


@pytest.mark.parametrize(
    "name",
    [
        "org.freedesktop.machine1.NoSuchMachine",
        "org.freedesktop.machine1.NoSuchImage",
        f"{DBUS}.FileExists",
        "System.Error.EEXIST",
        "System.Error.EROFS",
    ],
)
def test_an_error_about_an_object_that_the_call_does_not_have_is_handed_on(name: str) -> None:
    """CopyToMachine can end in EEXIST, and no image name was taken then."""
    assert told(name, {}) == (Failed, {"dbus_error": name, "message": "it says so"})


def test_the_bridges_own_missing_rights_are_told_as_a_refusal() -> None:
    for name in BRIDGE_DENIED:
        assert told(name, NAMES) == (PermissionDenied, {})
