# SPDX-License-Identifier: LGPL-2.1-or-later
"""Archives in and out by the clients in Go and in Rust, which send their own standard input and output.

The programs are tests/clients/images.go and contrib/rust/examples/images.rs: they are called alike and say the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients import go, rust

from .conftest import GUEST, SOCKET
from .host import SUITES, Host
from .test_machines import eventually
from .test_transfers import (
    ARCHIVE,
    add_socket,
    contents,
    name,  # noqa: F401  a fixture
    path_of,
    remove_socket,
    transfer,
)
from .varlink import busctl, images

PROGRAM = "/run/images"


@pytest.fixture(params=["go", "rust"])
def client(host: Host, request: pytest.FixtureRequest) -> Iterator[Host]:
    """The host with a client's program in it, and an archive."""
    built = go.images() if request.param == "go" else rust.build() / "examples" / "images"
    shutil.copy(built, host.path / PROGRAM[1:])
    pack(host)
    yield host
    (host.path / PROGRAM[1:]).unlink()


def pack(host: Host) -> None:
    odd = "echo there >file; ln file hard; ln -s file link; chown 1234:4321 file; chmod 4751 file"
    odd += "; head -c 300000 /dev/urandom >noise"
    host.run(["sh", "-euc", f"mkdir -p /run/tree/d; cd /run/tree/d; {odd}; tar -C /run/tree -cf {ARCHIVE} ."])
    host.run(["rm", "-r", "/run/tree"])


def run(host: Host, name: str, command: str, **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: F811,ANN401
    """The program on a socket of the template, or on another one by its path; a line of shell."""
    path = name if name.startswith("/") else path_of(name)
    return host.run(["sh", "-c", command.replace("images", PROGRAM)], environment={"MACHINE1_SOCKET": path}, **options)


def nothing_goes_on(host: Host, name: str) -> bool:  # noqa: F811
    (listed,) = host.inside(transfer, name, "ListTransfers", {}, "", os.O_RDONLY, False)
    return listed == {"parameters": {"transfers": []}}


def test_an_archive_comes_back_as_it_went(client: Host, name: str) -> None:  # noqa: F811
    said = run(client, name, f"images import new-1 <{ARCHIVE}").stderr.splitlines()
    assert said[-1] == "100.0 %"
    assert images(client)["new-1"]["type"] in ("directory", "subvolume")
    said = run(client, name, f"images export new-1 >{ARCHIVE}.out").stderr.splitlines()
    assert said[-1] == "100.0 %"
    before, after = client.inside(contents, ARCHIVE), client.inside(contents, f"{ARCHIVE}.out")
    assert before["d/file"][1:4] == ("0o4751", 1234, 4321)
    assert before == after


def test_a_transfer_goes_on_when_its_client_has_left(client: Host, name: str) -> None:  # noqa: F811
    """Its pipes are open elsewhere then."""
    begun = run(client, name, f"cat {ARCHIVE} | images import --no-wait new-1")
    assert int(begun.stderr) > 0
    assert eventually(lambda: nothing_goes_on(client, name))
    begun = run(client, name, f"images export --no-wait new-1 | cat >{ARCHIVE}.out")
    assert int(begun.stderr) > 0
    assert eventually(lambda: nothing_goes_on(client, name))
    assert client.inside(contents, f"{ARCHIVE}.out") == client.inside(contents, ARCHIVE)


def test_an_error_is_typed(client: Host, name: str) -> None:  # noqa: F811
    def error(command: str, user: str | None = None) -> str:
        done = run(client, name, command, user=user, check=False)
        assert done.returncode == 1
        return done.stderr

    run(client, name, f"images import new-1 <{ARCHIVE}")
    assert error(f"images import new-1 <{ARCHIVE}") == "There is an image new-1 already.\n"
    assert error("head -c 100000 /dev/urandom | images import new-2").splitlines()[-1].startswith("It has failed: ")
    assert "InteractiveAuthenticationRequired" in error(f"images import new-2 <{ARCHIVE}", user="nobody")
    assert "new-2" not in images(client)


def test_a_socket_that_does_not_accept_files(client: Host) -> None:
    """By its policy, or by its unit as well: with that, from 258 on, the kernel refuses to send them."""
    name = add_socket(client, accepts=False)  # noqa: F811
    try:
        for socket in (name, SOCKET):
            for command in ("import", "import --no-wait", "export"):
                done = run(client, socket, f"images {command} {GUEST} <{ARCHIVE} >{ARCHIVE}.out", check=False)
                assert (done.returncode, done.stderr) == (1, "You may not do this, or not on this socket.\n")
    finally:
        remove_socket(client, name)
        client.run(["sh", "-c", f"rm {ARCHIVE}*"])


def test_a_policy_that_accepts_files_and_a_unit_that_does_not(client: Host) -> None:
    """What a client is told then names the parameter: the call has come without its file."""
    name = add_socket(client, unit="AcceptFileDescriptors=no")  # noqa: F811
    try:
        done = run(client, name, f"images import --no-wait new-1 <{ARCHIVE}", check=False)
        if SUITES[client.suite] < 258:  # which do not know the setting
            assert done.returncode == 0
            assert eventually(lambda: nothing_goes_on(client, name))
            busctl(client, "RemoveImage", "s", "new-1")
        else:
            assert done.returncode == 1
            assert "image_fd" in done.stderr
            assert "new-1" not in images(client)
    finally:
        remove_socket(client, name)
        client.run(["sh", "-c", f"rm {ARCHIVE}*"])


def test_the_example_in_gos_readme_imports_an_archive(host: Host, name: str) -> None:  # noqa: F811
    pack(host)
    shutil.copy(go.importing(), host.path / PROGRAM[1:])
    said = host.run(["sh", "-c", f"{PROGRAM} {path_of(name)} new-1 <{ARCHIVE}"]).stdout.splitlines()
    (host.path / PROGRAM[1:]).unlink()
    assert said[-1] == "1000 of 1000"
    assert host.run(["cat", "/var/lib/machines/new-1/d/link"]).stdout == "there\n"
