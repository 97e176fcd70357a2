# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo: the bridge at work on a real systemd-machined, shown as a session in a terminal.

    python3 -m tests.lab.demo up       boot a host, install the bridge, start a container, show the main job
    python3 -m tests.lab.demo shell    a prompt inside the host
    python3 -m tests.lab.demo down     end the host; nothing is left of it

Each step checks what came: `up` ends with status 1 at the first that is not as it should be. The host stays up in any
case, so that one can look; the next `up` ends it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .host import Host, LabError

NAME, SUITE, GUEST = "demo", "trixie", "demo1"
SOCKET = "/run/machine1/io.machine1"


class Failed(Exception):
    """A step of the demo did not show what it should."""


def step(title: str) -> None:
    print(f"\n\033[1m## {title}\033[0m" if sys.stdout.isatty() else f"\n## {title}")


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise Failed(what)


class Session:
    """Runs commands in the host, with each command shown before its output."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def show(self, command: Sequence[str], *, stdin: str | None = None, lines: int = 0, fails: bool = False) -> str:
        """The command's standard output, of which `lines` lines are shown (0: all). Failed if its status is wrong."""
        print(f"root@{NAME}:~# {shlex.join(command)}", flush=True)
        done = self.host.run(command, check=False, stdin=stdin)
        shown = done.stdout.splitlines()
        if lines and len(shown) > lines:
            shown = [*shown[:lines], f"... and {len(shown) - lines} lines more"]
        print(*shown, *done.stderr.splitlines(), sep="\n")
        if fails:
            expect(done.returncode != 0, "the command should have failed")
        else:
            expect(done.returncode == 0, f"the command failed with status {done.returncode}")
        return done.stdout + (done.stderr if fails else "")

    def call(self, method: str, parameters: dict[str, object]) -> dict[str, object]:
        """Call a method of io.machine1 with varlinkctl; the parameters of its reply."""
        text = self.show(["varlinkctl", "call", "-j", SOCKET, f"io.machine1.{method}", json.dumps(parameters)])
        reply: dict[str, object] = json.loads(text)
        return reply


def named(reply: dict[str, object], field: str, name: str) -> dict[str, object]:
    """The entry of this name in a reply's list; Failed when there is not exactly one."""
    entries = reply.get(field)
    found = [entry for entry in entries if entry.get("name") == name] if isinstance(entries, list) else []
    expect(len(found) == 1, f"{field} should hold {name} once")
    entry: dict[str, object] = found[0]
    return entry


def main_job(session: Session) -> None:
    step("A contract that can be asked for")
    text = session.show(["varlinkctl", "list-interfaces", SOCKET])
    expect("io.machine1" in text.split(), "io.machine1 should be listed")
    text = session.show(["varlinkctl", "introspect", SOCKET, "io.machine1"], lines=24)
    methods = ["ListMachines", "GetMachine", "TerminateMachine", "KillMachine", "OpenMachineShell", "CopyFromMachine"]
    methods += ["CopyToMachine", "ListImages", "RemoveImage", "CloneImage", "RenameImage"]
    missing = [method for method in methods if f"method {method}" not in text]
    expect(not missing, f"the interface lacks {', '.join(missing)}")

    step("Machines and images")
    machine = named(session.call("ListMachines", {}), "machines", GUEST)
    expect(machine.get("class") == "container", "the machine should be a container")
    reply = session.call("GetMachine", {"name": GUEST})
    expect(reply.get("machine") == machine, "GetMachine should say what ListMachines says")
    image = named(session.call("ListImages", {}), "images", GUEST)
    expect(image.get("type") == "directory", "the image should be a directory")

    step("A request outside the contract is refused before machined sees it")
    call = ["varlinkctl", "call", "-j", SOCKET, "io.machine1.KillMachine"]
    text = session.show([*call, json.dumps({"name": GUEST, "signal": 1000})], fails=True)
    expect("org.varlink.service.InvalidParameter" in text, "the error should be InvalidParameter")
    expect('"signal"' in text, "the error should name the parameter")

    step("A shell, handed over as the file descriptor of its terminal (tests/lab/shell_client.py)")
    words = "echo shell in $(hostname), as $(id -un), on $(tty)"
    client = Path(__file__).with_name("shell_client.py").read_text()
    text = session.show(["python3", "-", SOCKET, GUEST, "/bin/sh", "-c", words], stdin=client)
    expect(f"shell in {GUEST}, as root, on /dev/pts/" in text, "the command should have run in the machine")


def up() -> None:
    down()
    start = time.monotonic()
    step(f"A host: Debian {SUITE} with systemd, the system bus, polkit and systemd-machined")
    host = Host.boot(SUITE, NAME, stay=True)
    session = Session(host)
    print(f"up after {time.monotonic() - start:.1f} s")
    session.show(["systemctl", "--version"], lines=1)
    step("The bridge installed in it (make install), its socket enabled, and a container started")
    host.install()
    host.guest(GUEST)
    host.let_images_start()
    session.show(["systemctl", "is-active", "machine1-bridge.socket"])
    session.show(["machinectl", "list"])
    main_job(session)
    step("And the service behind it, started by the first call")
    text = session.show(["ps", "-o", "user:16,rss,args", "-C", "machine1-bridge"])
    expect("machine1-bridge" in text.partition("\n")[2], "the service should run")
    print(f"\nAll as it should be, {time.monotonic() - start:.1f} s. The host stays up:")
    print(f"    make demo-shell    a prompt inside it: try `varlinkctl introspect {SOCKET} io.machine1`, `machinectl`")
    print("    make demo-down     ends it and leaves nothing")


def down() -> None:
    for host in Host.all():
        if host.name == NAME:
            host.down()


def main(arguments: list[str]) -> int:
    try:
        match arguments:
            case ["up"]:
                up()
            case ["shell"]:
                Host.find(NAME).shell()
            case ["down"]:
                down()
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except (LabError, Failed, subprocess.SubprocessError, json.JSONDecodeError) as error:
        sys.stdout.flush()
        print(f"\ndemo: {error}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `make demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
