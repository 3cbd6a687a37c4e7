"""Precision and recall of a policy from labels, with intervals that few labels do not make too narrow.

The verdict of every pair is known, so the pairs are cells: source, part by score, kept or not; of each cell
the size is known and a few labels. Precision is a weighted sum of the kept cells' shares of matches, with the
score interval, which is Wilson's where there is one cell (Martín Andrés, Álvarez Hernández and Herranz
Tejedor, "Inferences about a linear combination of proportions", 2011). Recall is the matches kept over those
kept and dropped, whose intervals are joined by the method of variance estimates recovery (Donner and Zou,
"Closed-form confidence intervals for functions of the normal mean and standard deviation", 2012). Both keep a
width where all labels agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95% interval."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Pairs of one source and one part by score that share a verdict, and what was said of some of them."""

    source: str
    stratum: int
    keep: bool
    pairs: int
    matches: int
    mismatches: int

    @property
    def labels(self) -> int:
        """Labels that say something."""
        return self.matches + self.mismatches


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share with its 95% interval; without a value where labels are missing that it would need."""

    value: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What labels say of a policy."""

    precision: Estimate
    """Share of the kept pairs that match."""
    recall: Estimate
    """Share of the matching pairs that are kept."""
    kept: int
    """Pairs that the policy keeps."""
    pairs: int
    """Pairs with words."""
    matches: int
    mismatches: int
    unsure: int = 0
    """Pairs nobody was sure of, or on which as many say match as mismatch; they count for nothing."""
    stale: int = 0
    """Labels of a text that was written anew since."""
    outside: int = 0
    """Labelled pairs that were not drawn, and are left out."""
    is_drawn: bool = True
    """Whether the labels are of drawn samples. Others are taken as if they were drawn within their part."""


def precision_and_recall(cells: Sequence[Cell]) -> tuple[Estimate, Estimate]:
    """Return precision and recall of keeping the cells that are kept."""
    kept = _total([cell for cell in cells if cell.keep])
    dropped = _total([cell for cell in cells if not cell.keep])
    if kept.size == 0:
        return Estimate(None, 0.0, 1.0), _recall(kept, dropped)
    value = None if kept.value is None else kept.value / kept.size
    return Estimate(value, kept.low / kept.size, kept.high / kept.size), _recall(kept, dropped)


@dataclass(frozen=True, slots=True)
class _Total:
    """Matches among `size` pairs, estimated."""

    size: int
    value: float | None
    low: float
    high: float


def _total(cells: Sequence[Cell]) -> _Total:
    """Return how many matches some cells hold."""
    groups, unknown = _collapsed(cells)
    size = sum(cell.pairs for cell in cells)
    if not groups:
        return _Total(size, 0.0 if size == 0 else None, 0.0, float(size))
    value = sum(group.pairs * group.matches / group.labels for group in groups)
    low = _lowest([(group.pairs, _effective(group), group.matches / group.labels) for group in groups])
    wrong = _lowest([(group.pairs, _effective(group), group.mismatches / group.labels) for group in groups])
    high = sum(group.pairs for group in groups) - wrong
    # What was labelled is certain, however few it is.
    low = max(low, sum(group.matches for group in groups))
    high = min(high + unknown, size - sum(group.mismatches for group in groups))
    return _Total(size, value if not unknown else None, low, high)


def _collapsed(cells: Sequence[Cell]) -> tuple[list[Cell], int]:
    """Join cells without a label to a neighbour by score; return the cells and how many pairs have none.

    Neighbours are of one source and verdict (Cochran, "Sampling Techniques", 1977, section 5A.12). A source
    without any label stays unknown: web and synthetic texts are not alike.
    """
    joined: list[Cell] = []
    unknown = 0
    for source in dict.fromkeys(cell.source for cell in cells):
        mine = sorted((cell for cell in cells if cell.source == source), key=lambda cell: cell.stratum)
        labelled = [cell for cell in mine if cell.labels]
        if not labelled:
            unknown += sum(cell.pairs for cell in mine)
            continue
        more = dict.fromkeys((cell.stratum for cell in labelled), 0)
        for cell in mine:
            if not cell.labels:
                more[min(more, key=lambda other: abs(other - cell.stratum))] += cell.pairs
        joined += [
            Cell(c.source, c.stratum, c.keep, c.pairs + more[c.stratum], c.matches, c.mismatches)
            for c in labelled
        ]
    return joined, unknown


def _effective(cell: Cell) -> float:
    """Return how many labels drawn from endlessly many pairs would say as much; inf where all have one."""
    if cell.labels >= cell.pairs:
        return math.inf
    return cell.labels * (cell.pairs - 1) / (cell.pairs - cell.labels)


def _lowest(cells: Sequence[tuple[int, float, float]]) -> float:
    """Return the lower end of the interval of a weighted sum of shares, each (weight, labels, share).

    It is the least sum that is not refused: the shares that are likeliest where the sum is held to a lower
    value (a Lagrange multiplier draws each of them down) give a variance, and the measured sum lies 1.96 of
    its roots above it. For one cell that is Wilson's interval.
    """
    most = sum(weight * share for weight, _, share in cells)

    def is_refused(multiplier: float) -> bool:
        total = variance = 0.0
        for weight, count, share in cells:
            drawn = _drawn_down(share, multiplier * weight / count)
            total += weight * drawn
            variance += weight**2 * drawn * (1 - drawn) / count
        return most - total > Z95 * math.sqrt(variance)

    if all(share == 0 or math.isinf(count) for _, count, share in cells):
        return most  # Nothing that is uncertain could be lower.
    refused = 1.0
    while not is_refused(refused):
        refused *= 4
    kept = 0.0
    for _ in range(50):
        middle = (kept + refused) / 2
        kept, refused = (kept, middle) if is_refused(middle) else (middle, refused)
    return sum(weight * _drawn_down(share, kept * weight / count) for weight, count, share in cells)


def _drawn_down(share: float, pull: float) -> float:
    """Return the p of (share - p) / (p (1 - p)) = pull: where the likelihood resists as much as is pulled."""
    if share == 1:  # Exactly, since one that is nearly 1 would have a variance.
        return min(1.0, 1 / pull) if pull > 0 else 1.0
    return 2 * share / (1 + pull + math.sqrt((1 + pull) ** 2 - 4 * pull * share))


def _recall(kept: _Total, dropped: _Total) -> Estimate:
    """Return kept / (kept + dropped) by the interval of dropped / kept (Donner and Zou, 2012)."""
    value = None
    if kept.value is not None and dropped.value is not None and kept.value + dropped.value > 0:
        value = kept.value / (kept.value + dropped.value)
    if value is None:
        # Without estimates the ends are those of the worst and the best case.
        low = kept.low / (kept.low + dropped.high) if kept.low + dropped.high > 0 else 0.0
        high = kept.high / (kept.high + dropped.low) if kept.high + dropped.low > 0 else 1.0
        return Estimate(None, low, high)
    assert kept.value is not None
    assert dropped.value is not None
    most = _highest_ratio(dropped.value, dropped.high, kept.value, kept.low)
    most_kept = _highest_ratio(kept.value, kept.high, dropped.value, dropped.low)
    low = 0.0 if math.isinf(most) else 1 / (1 + most)
    high = 1.0 if math.isinf(most_kept) else most_kept / (1 + most_kept)
    return Estimate(value, min(low, value), max(high, value))


def _highest_ratio(above: float, above_high: float, below: float, below_low: float) -> float:
    """Return the upper end of above / below, of which the upper and the lower end are known."""
    divisor = below_low * (2 * below - below_low)
    if divisor <= 0:
        return math.inf
    product = above * below
    spread = product**2 - above_high * below_low * (2 * above - above_high) * (2 * below - below_low)
    return (product + math.sqrt(max(0.0, spread))) / divisor
