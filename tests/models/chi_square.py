"""Do counts follow probabilities? Pearson's test, so strict that a right draw fails once in a million."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def follows(counts: Sequence[int], probabilities: Sequence[float], *, z: float = 4.75) -> bool:
    """Whether draws with these counts may come from these probabilities.

    Cells of fewer than five expected draws are put together. The bound is Wilson and Hilferty's
    approximation of the chi-square quantile at `z` standard deviations.
    """
    total = sum(counts)
    if any(count and not p for count, p in zip(counts, probabilities, strict=True)):
        return False
    cells = [(count, total * p) for count, p in zip(counts, probabilities, strict=True)]
    large = [cell for cell in cells if cell[1] >= 5]
    rest = [cell for cell in cells if cell[1] < 5]
    if sum(expected for _, expected in rest) > 0:
        large.append((sum(count for count, _ in rest), sum(expected for _, expected in rest)))
    statistic = sum((count - expected) ** 2 / expected for count, expected in large)
    freedom = len(large) - 1
    if freedom == 0:
        return True
    return statistic <= freedom * (1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3
