# SPDX-License-Identifier: LGPL-2.1-or-later
"""Figures are those of what was measured; the picture shows them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import pytest

from .figures import Latency, Ratio, as_json, percentile
from .picture import draw


@pytest.mark.parametrize(("percent", "value"), [(1, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)])
def test_a_percentile_is_one_of_the_values(percent: float, value: float) -> None:
    assert percentile(range(100, 0, -1), percent) == value


def test_a_latency_is_of_all_calls_and_of_those_that_began_a_block() -> None:
    latency = Latency.of([[9.0, 1.0, 1.0], [8.0, 2.0, 1.0], [7.0, 1.0, 50.0]])
    assert as_json(latency) == {"median": 2.0, "p99": 50.0, "first": 8.0}


def test_a_ratio_is_of_blocks_that_were_measured_at_one_time() -> None:
    """A slow moment is one of both."""
    ratio = Ratio.between([[2.0], [20.0], [200.0]], [[1.0], [10.0], [100.0]])
    assert str(ratio) == "2.00 (2.00 to 2.00)"
    ratio = Ratio.of([float(number) for number in range(1, 11)])
    assert (ratio.median, ratio.low, ratio.high) == (5.5, 1.0, 9.0)


def test_as_many_blocks_of_both() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Ratio.between([[1.0], [2.0]], [[1.0]])


SVG = "{http://www.w3.org/2000/svg}"


def drawn(title: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> ElementTree.Element:
    return ElementTree.fromstring(draw(title, lines))  # noqa: S314  our own


def test_the_picture_has_a_line_for_each_way_and_a_point_for_each_number() -> None:
    picture = drawn("a < b", {"one": [(2, 10.0), (500, 10.0)], "two": [(2, 10.0), (500, 900.0)]})
    first, second = (
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in picture.iter(f"{SVG}polyline")
    )
    assert first[0] == second[0]
    assert first[0][0] < first[1][0] == second[1][0]
    # More is higher up.
    assert first[0][1] == first[1][1] > second[1][1]
    assert len(list(picture.iter(f"{SVG}circle"))) == 4
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert {"a < b", "one", "two", "2", "500", "10 µs", "100 µs", "1 ms"} <= set(texts)


def test_labels_do_not_cover_each_other() -> None:
    lines = {name: [(2, 10.0), (500, 50.0 + number)] for number, name in enumerate("abc")}
    picture = drawn("x", lines)
    places = sorted(float(text.attrib["y"]) for text in picture.iter(f"{SVG}text") if text.text in lines)
    assert all(later - earlier >= 16 for earlier, later in itertools.pairwise(places))
