"""Histograms and counts as a template draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.browser.previews import Histogram, Preview

WIDTH, HALF = 500.0, 50.0
"""Of a drawing, in its own units: web texts stand above the middle, synthetic ones hang below it."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of a histogram's bar."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    """Classes: the source, and `below` for what is dropped."""


@dataclass(frozen=True, slots=True)
class BySource:
    """What becomes of the texts of one source."""

    source: str
    kept: int
    texts: int


@dataclass(frozen=True, slots=True)
class ByReason:
    """How many texts were kept, or dropped for one reason."""

    name: str
    texts: int


def bars(histograms: Sequence[Histogram], column: str) -> list[Bar]:
    """Return the bars of one column: kept texts at the middle line, dropped ones beyond them.

    Heights go by the square root of the counts: most scores of a sure filter stand at the ends, and what is
    decided by a threshold lies between.
    """
    mine = [one for one in histograms if one.column == column]
    most = max((k + d for one in mine for k, d in zip(one.kept, one.dropped, strict=True)), default=0)
    found = []
    for one in mine:
        width = WIDTH / len(one.kept)
        for place, (kept, dropped) in enumerate(zip(one.kept, one.dropped, strict=True)):
            inner, outer = (HALF * math.sqrt(count / most) if most else 0 for count in (kept, kept + dropped))
            is_up = one.source == "web"
            ends = ((0, inner, one.source), (inner, outer, f"{one.source} below"))
            for start, end, kind in ends:
                if end > start:
                    y = HALF - end if is_up else HALF + start
                    found.append(Bar(_n(place * width), _n(y), _n(width - 1), _n(end - start), kind))
    return found


def by_source(preview: Preview) -> list[BySource]:
    """Return kept and all texts of each source, web texts first."""
    sums: dict[str, list[int]] = {}
    for one in preview.counts:
        sums.setdefault(one.source, [0, 0])
        sums[one.source][0] += one.texts if one.keep else 0
        sums[one.source][1] += one.texts
    return [BySource(source, *sums[source]) for source in sorted(sums, reverse=True)]


def by_reason(preview: Preview) -> list[ByReason]:
    """Return how many texts there are of each reason, the most first."""
    sums: dict[str, int] = {}
    for one in preview.counts:
        sums[one.reason] = sums.get(one.reason, 0) + one.texts
    return [ByReason(name, texts) for name, texts in sorted(sums.items(), key=lambda item: -item[1])]


def _n(value: float) -> float:
    return round(value, 2)
