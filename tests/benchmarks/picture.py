# SPDX-License-Identifier: LGPL-2.1-or-later
"""Latency against the number of machines, as SVG: both axes logarithmic, colours for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 50, 50
COLOURS = ("#2a78d6", "#e07b39", "#2a9d6f", "#b0509e", "#8a8a3a")
STYLE = (
    "text{font:13px sans-serif;fill:#333}.grid{stroke:#8884}.line{fill:none;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)


def draw(title: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Lines of (machines, µs)."""
    points = [point for line in lines.values() for point in line]
    machines = sorted({point[0] for point in points})
    low = 10 ** math.floor(math.log10(min(point[1] for point in points)))
    high = 10 ** math.ceil(math.log10(max(point[1] for point in points)))

    def x(number: float) -> float:
        share = math.log(number / machines[0]) / math.log(machines[-1] / machines[0])
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(microseconds: float) -> float:
        share = math.log(microseconds / low) / math.log(high / low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text x="{LEFT}" y="24" font-weight="bold">{escape(title)}</text>',
    ]
    step = low
    while step <= high:
        unit = f"{step / 1000:g} ms" if step >= 1000 else f"{step:g} µs"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(step)}" y2="{y(step)}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(step) + 4}" text-anchor="end">{unit}</text>')
        step *= 10
    for number in machines:
        parts.append(f'<text x="{x(number)}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{number}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">machines</text>')
    labels = _apart({name: y(line[-1][1]) + 4 for name, line in lines.items()})
    for (name, line), colour in zip(lines.items(), COLOURS, strict=False):
        path = " ".join(f"{x(number)},{y(value)}" for number, value in line)
        parts.append(f'<polyline class="line" stroke="{colour}" points="{path}"/>')
        parts += [f'<circle cx="{x(number)}" cy="{y(value)}" r="3" fill="{colour}"/>' for number, value in line]
        parts.append(f'<text x="{WIDTH - RIGHT + 10}" y="{labels[name]}" style="fill:{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _apart(places: Mapping[str, float], distance: float = 16) -> dict[str, float]:
    """The same places, moved down where a label would cover another."""
    moved: dict[str, float] = {}
    last = -math.inf
    for name, place in sorted(places.items(), key=lambda entry: entry[1]):
        last = moved[name] = max(place, last + distance)
    return moved
