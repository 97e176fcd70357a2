# SPDX-License-Identifier: LGPL-2.1-or-later
"""From times to figures: medians, percentiles, and ratios with their spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

# Microseconds of each call, by block.
Blocks = list[list[float]]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that is not exceeded by so many of them."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True)
class Latency:
    """Of all calls; `first` is the median of those that began a block, when nobody was awake."""

    median: float
    p99: float
    first: float

    @classmethod
    def of(cls, blocks: Blocks) -> Latency:
        values = [value for block in blocks for value in block]
        return cls(statistics.median(values), percentile(values, 99), statistics.median(block[0] for block in blocks))


@dataclass(frozen=True)
class Ratio:
    """The median of ratios, and what nine of ten were above and below."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        return cls(statistics.median(ratios), percentile(ratios, 10), percentile(ratios, 90))

    @classmethod
    def between(cls, work: Blocks, beside: Blocks) -> Ratio:
        """Of the medians of blocks that were measured one after the other."""
        return cls.of(
            [statistics.median(one) / statistics.median(other) for one, other in zip(work, beside, strict=True)]
        )

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def as_json(value: Latency | Ratio) -> dict[str, float]:
    return {key: round(number, 3) for key, number in asdict(value).items()}
