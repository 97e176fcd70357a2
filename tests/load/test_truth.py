# SPDX-License-Identifier: LGPL-2.1-or-later
"""No stale answer: the short form of `make truth`."""

from __future__ import annotations

import pytest

from tests.lab.host import Host

from .truth import STALE_SHOWN, Question, judge, subject

MACHINES, IMAGES = 250, 50


def test_no_stale_answer(host: Host) -> None:
    verdicts = judge(host, MACHINES, IMAGES)
    assert {what: verdict.untrue[:STALE_SHOWN] for what, verdict in verdicts.items()} == {
        "machines": [],
        "machines_now_and_then": [],
        "images": [],
    }
    # After each change the one who made it asks for the list, and of machines for the one.
    assert verdicts["machines"].answers >= 2 * MACHINES * 2
    assert verdicts["images"].answers >= 2 * IMAGES


def test_changes_by_number() -> None:
    """0 is nothing yet; then each machine comes, and goes."""
    assert [subject(number) for number in range(5)] == [
        ("truth0", False),
        ("truth1", True),
        ("truth1", False),
        ("truth2", True),
        ("truth2", False),
    ]


@pytest.mark.parametrize(
    ("about", "after", "until", "names", "true"),
    [
        (None, 1, 1, {"truth1"}, True),
        (None, 1, 1, set(), False),  # a list of before the addition
        (None, 2, 2, set(), True),
        (None, 2, 2, {"truth1"}, False),  # a list of before the removal
        (None, 1, 2, {"truth1"}, True),  # the removal was begun: both are true
        (None, 1, 2, set(), True),
        (None, 2, 4, {"truth2"}, True),
        (None, 2, 4, {"truth1"}, False),
        (None, 2, 2, {"truth2"}, False),  # a list of what is yet to come
        (None, 2, 3, {"truth1", "truth2"}, False),  # two truths in one
        ("truth1", 1, 1, {"truth1"}, True),
        ("truth1", 1, 1, set(), False),
        ("truth1", 2, 2, {"truth1"}, False),
        ("truth1", 1, 2, set(), True),
        ("truth1", 2, 9, {"truth1"}, False),
    ],
)
def test_what_counts_as_stale(about: str | None, after: int, until: int, names: set[str], true: bool) -> None:
    """The test itself: an answer to what was sent after one change and heard before the end of another."""
    question = Question("ListMachines" if about is None else "GetMachine", None, about, after)
    assert (question.check(names, until) is None) is true
