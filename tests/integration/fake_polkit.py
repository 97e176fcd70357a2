# SPDX-License-Identifier: LGPL-2.1-or-later
"""A polkit for what the real one cannot be made to do: wait, fail, lie, be old. On a bus of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jeepney import HeaderFields, Message, new_error, new_method_return

from .fake_machined import Bus, DBusFault, FakeService

NAME = "org.freedesktop.PolicyKit1"
CANCELLED = "org.freedesktop.PolicyKit1.Error.Cancelled"
FAILED = "org.freedesktop.PolicyKit1.Error.Failed"
RESULT = "(bba{ss})"


@dataclass
class Question:
    """One CheckAuthorization. `process` is the one that the received pidfd is of, None without a pidfd."""

    kind: str
    subject: dict[str, tuple[str, Any]]
    process: int | None
    action: str
    details: dict[str, str]
    flags: int
    identifier: str
    message: Message


Answer = tuple[str, tuple[Any, ...]] | DBusFault | None


class FakePolkit(FakeService):
    """Answers each question with what `handler` says: a signature and a body, an error, or None for not yet."""

    def __init__(self, bus: Bus) -> None:
        self.handler: Callable[[Question], Answer] = lambda _: (RESULT, ((False, False, {}),))
        self.knows_pidfds = True
        self.heeds_cancels = True
        self.questions: list[Question] = []
        self.cancelled: list[str] = []
        self.waiting: list[Question] = []
        self.strange: list[str] = []
        super().__init__(bus, NAME)

    def stop(self) -> None:
        super().stop()
        assert self.strange == []

    def says(self, allowed: bool, challenge: bool = False) -> None:
        self.handler = lambda _: (RESULT, ((allowed, challenge, {}),))

    def returns(self, signature: str, *body: object) -> None:
        self.handler = lambda _: (signature, body)

    def fails(self, name: str, text: str = "") -> None:
        self.handler = lambda _: DBusFault(name, text)

    def hangs(self, flags: int = 0) -> None:
        """Questions with these flags wait for `answer`; others are answered yes."""
        self.handler = lambda question: None if question.flags & flags == flags else (RESULT, ((True, False, {}),))

    def answer(self, allowed: bool, index: int = 0) -> None:
        """Answer one of the questions that wait."""
        with self._changed:
            question = self.waiting.pop(index)
            reply = new_method_return(question.message, RESULT, ((allowed, False, {}),))
            self._connection.send_message(reply)

    def wait_for(self, questions: int = 0, cancelled: int = 0) -> None:
        """Until so many questions have come, and so many of them were cancelled."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: len(self.questions) >= questions and len(self.cancelled) >= cancelled, timeout=10
            ), (len(self.questions), self.cancelled)

    def _answer(self, message: Message) -> None:
        with self._changed:
            self._handle(message)
            self._changed.notify_all()

    def _handle(self, message: Message) -> None:
        fields = message.header.fields
        called = (fields.get(HeaderFields.path), fields.get(HeaderFields.interface), fields[HeaderFields.member])
        signature = fields.get(HeaderFields.signature, "")
        authority = ("/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority")
        match (*called, signature):
            case (*where, "CheckAuthorization", "(sa{sv})sa{ss}us") if tuple(where) == authority:
                self._check(message)
            case (*where, "CancelCheckAuthorization", "s") if tuple(where) == authority:
                self._cancel(message.body[0])
            case _:
                self.strange.append(f"{called} {signature}")

    def _check(self, message: Message) -> None:
        (kind, subject), action, details, flags, identifier = message.body
        process = None
        if "pidfd" in subject:
            # The descriptor is ours now: it goes no further.
            with subject["pidfd"][1] as pidfd:
                process = int(re.findall(r"(?m)^Pid:\t(-?\d+)$", _fdinfo(pidfd.fileno()))[0])
        question = Question(kind, subject, process, action, details, flags, identifier, message)
        self.questions.append(question)
        answer = self.handler(question)
        if not self.knows_pidfds and "pid" not in subject:
            answer = DBusFault(FAILED, "Didn't find value for key `pid'")
        if answer is None:
            self.waiting.append(question)
        elif isinstance(answer, DBusFault):
            self._connection.send_message(new_error(message, answer.name, "s", (answer.message,)))
        else:
            self._connection.send_message(new_method_return(message, answer[0] or None, answer[1]))

    def _cancel(self, identifier: str) -> None:
        """As polkitd: the question ends in an error."""
        self.cancelled.append(identifier)
        for question in self.waiting[:]:
            if question.identifier == identifier and self.heeds_cancels:
                self.waiting.remove(question)
                self._connection.send_message(new_error(question.message, CANCELLED, "s", ("cancelled",)))


def _fdinfo(fd: int) -> str:
    return Path(f"/proc/self/fdinfo/{fd}").read_text()
