"""A measured number and how far it can be trusted.

Within one evaluation the items (images, pairs) are what was drawn from the world, so they are resampled;
between trainings the seeds are, and there are too few of them to resample, so a t interval is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.draws import uniforms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number with its 95% interval; NaN where nothing can be measured."""

    value: float
    low: float
    high: float


NOTHING = Figure(math.nan, math.nan, math.nan)
"""The figure of what could not be measured."""


def bootstrap(
    count: int,
    statistic: Callable[[NDArray[np.int64]], float],
    *,
    seed: int,
    key: str,
    resamples: int = 1000,
) -> Figure:
    """Measure a statistic of `count` items and its 95% interval, by resampling the items.

    `statistic(indices)` gives the number for the items at `indices`, int64, shape (count,), in which an item
    may come several times. Items should be what is independent: with several captions for an image, images.
    The interval is that of percentiles (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
    chapter 13), over draws that `seed` and `key` name. Resamples whose statistic is NaN are left out.

    One item tells nothing of the spread: its interval is NaN. And a statistic that all items agree on has an
    interval without width, however few they are: nothing was seen to vary.
    """
    import numpy as np

    if count == 0:
        return NOTHING
    value = statistic(np.arange(count, dtype=np.int64))
    if count == 1 or math.isnan(value):
        return Figure(value, math.nan, math.nan)
    drawn = np.array(
        [
            statistic((uniforms(count, "bootstrap", key, seed, number) * count).astype(np.int64))
            for number in range(resamples)
        ]
    )
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) == 0:
        return Figure(value, math.nan, math.nan)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Figure(value, float(low), float(high))


def mean_interval(values: Sequence[float]) -> Figure:
    """Return the mean over a few seeds and Student's 95% interval of it (Student, 1908).

    One value has no interval: low and high are NaN. A value that is NaN makes all of it NaN, since a mean
    over the seeds that happened to work would flatter.
    """
    count = len(values)
    if count == 0 or any(math.isnan(value) for value in values):
        return NOTHING
    mean = math.fsum(values) / count
    if count == 1:
        return Figure(mean, math.nan, math.nan)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = t_quantile(count - 1) * math.sqrt(variance / count)
    return Figure(mean, mean - half, mean + half)


def t_quantile(degrees: int) -> float:
    """Return the t that Student's distribution stays within, on both sides, 95% of the time.

    `degrees` of freedom are at least 1. Found by bisection, to the precision of a float.
    """
    low, high = 0.0, 13.0  # One degree of freedom has 12.7, and none has more.
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 0.95 else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """Chance that Student's distribution lies between -t and t, exactly.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, 26.7.3 and 26.7.4: a finite sum
    of powers of a cosine for whole degrees of freedom.
    """
    angle = math.atan2(t, math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
