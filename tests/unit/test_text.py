# SPDX-License-Identifier: LGPL-2.1-or-later
"""What others wrote, on a terminal."""

from __future__ import annotations

import pytest

from bridge.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Bäume, 木, ½ and \\", "Bäume, 木, ½ and \\"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\r\t\x7f\x9b", "a\\nb\\r\\t\\x7f\\x9b"),
        ("\u202etxt\u2028\ud800", "\\u202etxt\\u2028\\ud800"),
    ],
)
def test_it_can_do_no_more_than_be_read(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_may_be_kept() -> None:
    assert printable("a\nb\r", keep="\n") == "a\nb\\r"
