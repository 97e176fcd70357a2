# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tries to catch the bridge lying: `python -m tests.load.truth [SUITE...]`, or `make truth`.

A machine is registered and removed over D-Bus, past the bridge, again and again; so are images. Each change has a
number. A call that is sent after change 7 was confirmed, and answered before change 8 was begun, has to say what change
7 made: neither an older truth (a stale answer) nor a newer. In general, the answer has to be one of the changes from
the last one confirmed when the call was sent to the last one begun when the reply had come.

Confirmed is an addition by the reply to it, a removal when machined itself says that it is gone: 262 answers
UnregisterMachine a moment before it forgets the machine.

Who asks: the process that made the change, at once, on one connection that is always open; and other processes which
never stop asking, with several calls under way each, so that there is always an answer on its way that is about to
become stale.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from jeepney import DBusAddress, MessageType, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from tests.client import CallError, Client
from tests.lab.conftest import SOCKET
from tests.lab.host import SUITES, Host

from .inside import Tally, Worker

MANAGER = DBusAddress(
    "/org/freedesktop/machine1", "org.freedesktop.machine1", "org.freedesktop.machine1.Manager"
)
MACHINES, IMAGES = 10_000, 1_000
ASKING, AT_ONCE = 4, 4
STALE_SHOWN = 5

# Seconds: more and less than bridge.remembered.SETTLED.
PAUSE = 0.4

class Machined:
    """machined itself, over D-Bus."""

    def __init__(self) -> None:
        self._bus: DBusConnection = open_dbus_connection("SYSTEM")

    def call(self, member: str, signature: str | None = None, *arguments: object) -> Any:  # noqa: ANN401  any body
        reply = self._bus.send_and_get_reply(new_method_call(MANAGER, member, signature, arguments), timeout=25)
        if reply.header.message_type == MessageType.error:
            raise CallError(f"D-Bus {member}", {"body": reply.body})
        return reply.body

    def names(self, member: str) -> set[str]:
        """What ListMachines or ListImages lists."""
        (entries,) = self.call(member)
        return {entry[0] for entry in entries}

    def ping(self) -> None:
        """The bus alone."""
        bus = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus.Peer")
        self._bus.send_and_get_reply(new_method_call(bus, "Ping"), timeout=25)

    def close(self) -> None:
        self._bus.close()


def subject(number: int) -> tuple[str, bool]:
    """What the change of this number is about, and whether that is there after it."""
    return f"truth{(number + 1) // 2}", number % 2 == 1


class Ledger:
    """Which changes were begun and which are confirmed: the numbers of the last ones."""

    def __init__(self) -> None:
        self._tally = Tally("begun", "confirmed", "over")

    def change(self, make: Callable[[str, bool], None]) -> int:
        """Make the next change; its number."""
        number = self._tally["begun"] + 1
        self._tally["begun"] = number
        make(*subject(number))
        self._tally["confirmed"] = number
        return number

    @property
    def begun(self) -> int:
        return self._tally["begun"]

    @property
    def confirmed(self) -> int:
        return self._tally["confirmed"]

    @property
    def over(self) -> bool:
        return bool(self._tally["over"])

    def end(self) -> None:
        self._tally["over"] = 1


@dataclass
class Verdict:
    """How many answers were looked at, and those that were not true, each as a line."""

    answers: int = 0
    untrue: list[str] = field(default_factory=list)

    def __iadd__(self, other: Verdict) -> Verdict:
        self.answers += other.answers
        self.untrue += other.untrue
        return self


@dataclass(frozen=True)
class Question:
    """A call about what is called `truth` and a number: about all that there are, or about one."""

    method: str
    parameters: Mapping[str, Any] | None
    about: str | None  # the one that is asked for; None: a list
    after: int  # the last change confirmed when it was sent

    def check(self, names: set[str], until: int) -> str | None:
        """What is wrong with the answer, if anything. `until` is the last change begun when it had come."""
        for number in range(self.after, until + 1):
            name, there = subject(number)
            truth = {name} if there else set()
            if names == (truth if self.about is None else truth & {self.about}):
                return None
        kind = f"{self.method} {self.about or ''}"
        return f"{kind} sent after change {self.after} {subject(self.after)} and answered before {until + 1}: {names}"


class Asker:
    """One connection to the bridge, whose answers are held against the ledger."""

    def __init__(self, ledger: Ledger, listing: str) -> None:
        self._ledger = ledger
        self._listing = listing
        self._client = Client(SOCKET, timeout=30)
        self._waiting: deque[Question] = deque()
        self.verdict = Verdict()

    def ask(self, *, one: bool) -> None:
        """Send a question: for the list, or for the one machine that the last change was about."""
        after = self._ledger.confirmed
        name = subject(after)[0]
        question = (
            Question("GetMachine", {"name": name}, name, after) if one else Question(self._listing, None, None, after)
        )
        self._waiting.append(question)
        self._client.send(question.method, question.parameters)

    def hear(self) -> None:
        """Take the answer to the oldest question and check it."""
        question = self._waiting.popleft()
        try:
            reply = self._client.reply()
        except CallError as error:
            if error.name != "io.machine1.NoSuchMachine":
                raise
            reply = {}
        until = self._ledger.begun
        entries = [reply["machine"]] if "machine" in reply else reply.get("machines") or reply.get("images") or []
        names = {entry["name"] for entry in entries if entry["name"].startswith("truth")}
        self.verdict.answers += 1
        if wrong := question.check(names, until):
            self.verdict.untrue.append(wrong)

    def close(self) -> None:
        while self._waiting:
            self.hear()
        self._client.close()


def keep_asking(ledger: Ledger, listing: str) -> Verdict:
    """Until the ledger is over, with several questions under way."""
    asker = Asker(ledger, listing)
    one = listing == "ListMachines"
    for number in range(AT_ONCE):
        asker.ask(one=one and number % 2 == 0)
    number = 0
    while not ledger.over:
        asker.hear()
        number += 1
        asker.ask(one=one and number % 2 == 0)
    asker.close()
    return asker.verdict


def _changes(
    ledger: Ledger, listing: str, count: int, make: Callable[[str, bool], None], pause: float = 0
) -> Verdict:
    """Make so many changes and ask at once after each, while others keep asking; `pause` seconds after each at most."""
    verdict = Verdict()
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(keep_asking, ledger, listing)) for _ in range(ASKING)]
        asker = Asker(ledger, listing)
        for _ in range(count):
            ledger.change(make)
            asker.ask(one=False)
            if listing == "ListMachines":
                asker.ask(one=True)
                asker.hear()
            asker.hear()
            time.sleep(random.uniform(0, pause))  # noqa: S311
        asker.close()
        verdict += asker.verdict
        ledger.end()
        for worker in workers:
            verdict += worker.result()
    return verdict


def machines_now_and_then(count: int) -> Verdict:
    """The same with pauses, after which an answer may be remembered that is not true any more."""
    return machines(count, PAUSE)


def machines(count: int, pause: float = 0) -> Verdict:
    """Inside a host, as root: so many machines registered and removed, two changes each."""
    unit = "truth-leader.service"
    subprocess.run(["systemd-run", "--quiet", "--collect", f"--unit={unit}", "sleep", "infinity"], check=True)
    show = ["systemctl", "show", "--property=MainPID", "--value", unit]
    leader = int(subprocess.run(show, check=True, capture_output=True, text=True).stdout)
    machined = Machined()

    def make(name: str, there: bool) -> None:
        if there:
            machined.call("RegisterMachine", "sayssus", name, b"", "truth", "container", leader, "")
            return
        machined.call("UnregisterMachine", "s", name)
        while name in machined.names("ListMachines"):
            pass

    try:
        return _changes(Ledger(), "ListMachines", 2 * count, make, pause)
    finally:
        machined.close()
        subprocess.run(["systemctl", "stop", unit], check=True)


def images(count: int) -> Verdict:
    """Inside a host, as root: so many images cloned and removed. There is an image called `base`."""
    machined = Machined()

    def make(name: str, there: bool) -> None:
        if there:
            machined.call("CloneImage", "ssb", "base", name, False)
        else:
            machined.call("RemoveImage", "s", name)

    try:
        return _changes(Ledger(), "ListImages", 2 * count, make)
    finally:
        machined.close()


def judge(host: Host, machine_count: int, image_count: int) -> dict[str, Verdict]:
    """All on a host with the bridge, and a line for each."""
    host.image("base")
    verdicts = {}
    try:
        now_and_then = max(10, machine_count // 40)
        for function, count in (
            (machines, machine_count), (machines_now_and_then, now_and_then), (images, image_count)
        ):  # fmt: skip
            started = time.monotonic()
            verdict = verdicts[function.__name__] = host.inside(function, count, timeout=60 + count)
            seconds = time.monotonic() - started
            print(
                f"systemd {SUITES[host.suite]}: {count} {function.__name__} added and removed in {seconds:.0f} s,"
                f" stale answers: {len(verdict.untrue)} of {verdict.answers}",
                *verdict.untrue[:STALE_SHOWN],
                sep="\n    ",
                flush=True,
            )
    finally:
        host.run(["rm", "-r", "/var/lib/machines/base"])
    return verdicts


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load.truth", description=__doc__.partition("\n")[0])
    parser.add_argument("suites", nargs="*", default=list(SUITES), metavar="SUITE")
    parser.add_argument("--machines", type=int, default=MACHINES, help="so many (default: %(default)s)")
    parser.add_argument("--images", type=int, default=IMAGES, help="so many (default: %(default)s)")
    options = parser.parse_args(arguments)
    untrue = 0
    for suite in options.suites:
        with Host.boot(suite, f"truth-{suite}-{os.getpid()}") as host:
            host.install()
            verdicts = judge(host, options.machines, options.images)
            untrue += sum(len(verdict.untrue) for verdict in verdicts.values())
    return 1 if untrue else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
