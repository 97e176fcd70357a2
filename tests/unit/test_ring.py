# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store of changes: what can be followed, and what a cursor is worth."""

from __future__ import annotations

import pytest

from bridge.ring import Ring


def test_each_change_has_its_position() -> None:
    ring: Ring[str] = Ring(3)
    assert (ring.begin, ring.end) == (0, 0)
    for change in "abcde":
        ring.append(change)
    assert (ring.begin, ring.end) == (2, 5)
    assert [ring[position] for position in range(2, 5)] == ["c", "d", "e"]


def test_a_cursor_is_good_in_its_epoch_alone() -> None:
    ring: Ring[str] = Ring(3)
    ring.append("a")
    cursor = ring.cursor(1)
    assert ring.position(cursor) == 1
    ring.renew()
    assert ring.position(cursor) is None
    assert ring.position(ring.cursor(0)) == 0


def test_a_cursor_outlives_what_it_points_to() -> None:
    """So that it can be said how much was missed."""
    ring: Ring[str] = Ring(2)
    cursor = ring.cursor(0)
    for change in "abc":
        ring.append(change)
    position = ring.position(cursor)
    assert position == 0
    assert position < ring.begin


@pytest.mark.parametrize("cursor", ["", "x", "{0}", "{0}-", "{0}-01", "{0}--1", "{0}-2", "{0}-1 ", "{0}-\u0661", "0-1"])
def test_what_is_no_cursor(cursor: str) -> None:
    ring: Ring[str] = Ring()
    ring.append("a")
    assert ring.position(cursor.format(ring.epoch)) is None


def test_nobody_follows_across_an_interruption() -> None:
    ring: Ring[str] = Ring()
    ring.append("a")
    before = ring.position(ring.cursor(1))
    ring.interrupt()
    assert before is not None
    assert before < ring.broken == ring.begin == ring.end
    ring.append("b")
    assert ring[ring.broken] == "b"
