# SPDX-License-Identifier: LGPL-2.1-or-later
"""The transport of the bridge passes org.varlink.certification, with a client in Python, Go and Rust each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.client import CallError, Client
from tests.generators.conftest import run, varlink_rust_program

from .certification import INTERFACE, REPLIES, VARLINK

STRINGS = REPLIES["Test10"]["last_more_replies"]


def test_python(service: str) -> None:
    """The client that the varlink package has among its tests."""
    printed = run(sys.executable, "-m", "varlink.tests.test_certification", "--client", f"--varlink=unix:{service}")
    assert [line for line in printed.splitlines() if line.startswith("Test10")] == [
        f"Test10: {{'string': '{text}'}}" for text in STRINGS
    ]
    assert printed.endswith("End: {'all_ok': True}\nCertification passed\n")


@pytest.mark.generators
def test_go(varlink_go_certification: Path, service: str) -> None:
    """varlink/go's own client, which ends with 0 however far it came."""
    printed = run(varlink_go_certification, "-client", "-varlink", f"unix:{service}").splitlines()
    assert f"Test10: '[{' '.join(STRINGS)}]'" in printed
    assert printed[-2:] == ["Test11: ''", "End: 'true'"]


@pytest.mark.generators
def test_rust(cargo: Path, service: str) -> None:
    client = varlink_rust_program(cargo, "certification", Path(__file__).with_name("client.rs"), VARLINK)
    printed = run(client, f"unix:{service}").splitlines()
    assert [line.split()[0] for line in printed] == list(REPLIES)
    assert printed[-3:] == ["Test10 10", "Test11", "End true"]


# --- that a client can fail -----------------------------------------------------------------------------------------


class Certified:
    """A client that passes unless it is told to do something else."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._parameters: dict[str, object] = {"client_id": self.call("Start")["client_id"]}

    def until(self, last: str) -> dict[str, object]:
        """Make the calls before this one, and return the parameters that it takes."""
        client_id = self._parameters["client_id"]
        for name in list(REPLIES)[1:]:
            if name == last:
                break
            if name == "Test11":
                self._client.send(f"{INTERFACE}.{name}", self._parameters, oneway=True)
                self._parameters = {"client_id": client_id}
                continue
            more = name == "Test10"
            self._client.send(f"{INTERFACE}.{name}", self._parameters, **({"more": True} if more else {}))
            replies = [self._client.receive()]
            while replies[-1].get("continues"):
                replies.append(self._client.receive())
            assert len(replies) == (10 if more else 1)
            returned = {"last_more_replies": [each["parameters"]["string"] for each in replies]} if more else None
            self._parameters = (returned or replies[0]["parameters"]) | {"client_id": client_id}
        return self._parameters

    def call(self, name: str, parameters: dict[str, object] | None = None, **flags: bool) -> dict[str, object]:
        self._client.send(f"{INTERFACE}.{name}", parameters or {}, **flags)
        return self._client.reply()


def refused(certified: Certified, name: str, parameters: dict[str, object], **flags: bool) -> str:
    with pytest.raises(CallError) as caught:
        certified.call(name, parameters, **flags)
    return caught.value.name


CERTIFICATION_ERROR = f"{INTERFACE}.CertificationError"


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("Test02", {"bool": False}, CERTIFICATION_ERROR),
        ("Test02", {"bool": 1}, "org.varlink.service.InvalidParameter"),
        ("Test03", {"int": True}, "org.varlink.service.InvalidParameter"),
        ("Test03", {"client_id": "nobody"}, f"{INTERFACE}.ClientIdError"),
        ("Test07", {"struct": {}}, "org.varlink.service.InvalidParameter"),
        ("Test08", {"map": {"foo": "Foo"}}, CERTIFICATION_ERROR),
        ("Test09", {"set": {}}, CERTIFICATION_ERROR),
        ("Test10", {}, "org.varlink.service.ExpectedMore"),
        ("End", {"client_id": 1}, "org.varlink.service.InvalidParameter"),
        ("End", {"x": 1}, "org.varlink.service.InvalidParameter"),
    ],
)
def test_what_a_client_does_wrong_is_noticed(
    service: str, name: str, change: dict[str, object], error: str
) -> None:
    with Client(service) as client:
        certified = Certified(client)
        assert refused(certified, name, certified.until(name) | change) == error


def test_no_step_may_be_left_out_and_none_comes_twice(service: str) -> None:
    with Client(service) as client:
        certified = Certified(client)
        again = {"client_id": certified.until("Test03")["client_id"], "bool": True}
        assert refused(certified, "Test02", again) == CERTIFICATION_ERROR
        certified = Certified(client)
        assert refused(certified, "End", certified.until("Test01")) == CERTIFICATION_ERROR
        assert Certified(client).until("Test11")["last_more_replies"] == STRINGS


def test_the_oneway_call_is_part_of_it(service: str) -> None:
    with Client(service) as client:
        certified = Certified(client)
        parameters = certified.until("Test11")
        client.send(f"{INTERFACE}.Test11", parameters | {"last_more_replies": STRINGS[:9]}, oneway=True)
        assert refused(certified, "End", {"client_id": parameters["client_id"]}) == f"{INTERFACE}.ClientIdError"
        certified = Certified(client)
        assert refused(certified, "Test11", certified.until("Test11")) == CERTIFICATION_ERROR
        certified = Certified(client)
        assert certified.call("End", certified.until("End")) == {"all_ok": True}
