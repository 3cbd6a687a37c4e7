"""How well a filter keeps right pairs and drops wrong ones, at every threshold at once.

A filter is two lists of scores, of right pairs and of wrong ones, larger for better; what made the wrong ones
wrong is told by whoever calls. Equal scores are never parted: a threshold keeps all of them or none.
The area under the ROC curve and its interval are in `capfilt.evaluation.calibration`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Pairs whose probability lies above `low` and is at most `high`, and how many of them are right."""

    low: float
    high: float
    count: int
    mean_probability: float
    """NaN without pairs."""
    share_right: float
    """NaN without pairs."""


@dataclass(frozen=True, slots=True)
class BestFraction:
    """What keeping the best share of a set keeps."""

    threshold: float
    """Lowest score of which anything is kept."""
    precision: float
    """Share of what is kept that is right."""
    recall: float
    """Share of what is right that is kept."""


def roc(right: Numbers, wrong: Numbers) -> tuple[Numbers, Numbers]:
    """Return the ROC curve: false and true positive rates from (0, 0) to (1, 1), a point for each score.

    Joined by straight lines they enclose the AUROC. An axis without pairs is NaN.
    """
    import numpy as np

    _, kept_right, kept_wrong = _kept(right, wrong)
    return (
        _rates(np.concatenate([[0], kept_wrong]), len(wrong)),
        _rates(np.concatenate([[0], kept_right]), len(right)),
    )


def precision_recall_curve(
    right: Numbers, wrong: Numbers, *, noise_rate: float | None = None
) -> tuple[Numbers, Numbers, Numbers]:
    """Return precision, recall and thresholds, the highest threshold first: three arrays of one length.

    Each different score is a threshold, and scores of at least that are kept. Precision is that of the pairs
    given or, with a `noise_rate`, of a set with that share of wrong pairs.

    Raises ValueError for a score that is NaN, and for a noise rate that is not between 0 and 1.
    """
    thresholds, kept_right, kept_wrong = _kept(right, wrong)
    each_right, each_wrong = _weights(len(right), len(wrong), noise_rate)
    mass_right, mass_wrong = kept_right * each_right, kept_wrong * each_wrong
    return mass_right / (mass_right + mass_wrong), _rates(kept_right, len(right)), thresholds


def average_precision(right: Numbers, wrong: Numbers, *, noise_rate: float | None = None) -> float:
    """Return AP, the mean of the precisions at which right pairs are kept; NaN without right or wrong pairs.

    The sum over thresholds of precision times the recall gained there, not of trapezia, which would promise
    precisions between thresholds that no threshold gives (Davis and Goadrich, "The relationship between
    precision-recall and ROC curves", 2006). It depends on the share of wrong pairs, unlike AUROC: a random
    filter has that of the right ones. With a `noise_rate` it is that of a set with that share of wrong pairs.

    Raises ValueError for a score that is NaN, and for a noise rate that is not between 0 and 1.
    """
    import numpy as np

    if len(right) == 0 or len(wrong) == 0:
        return math.nan
    precision, recall, _ = precision_recall_curve(right, wrong, noise_rate=noise_rate)
    return float((precision * np.diff(recall, prepend=0.0)).sum())


def calibration_error(
    probabilities: Numbers, is_right: NDArray[np.bool_], bins: int = 15
) -> tuple[float, list[ReliabilityBin]]:
    """Return how far probabilities of being right are from shares of right pairs, and the table behind it.

    The expected calibration error of Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural
    networks", 2017, section 2, for the probability of one class: |share right - mean probability|, averaged
    over bins of equal width by their pairs. NaN without pairs. It speaks of the share of wrong pairs it was
    measured with: against another share a calibrated filter is not.

    Raises ValueError for a probability outside 0 to 1.
    """
    import numpy as np

    if len(probabilities) != len(is_right):
        raise ValueError(f"{len(probabilities)} probabilities for {len(is_right)} pairs")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("a probability is not between 0 and 1")
    edges = np.arange(bins + 1) / bins
    # Bins hold their upper edge, as in the paper, and the first one 0 as well.
    place = np.searchsorted(edges[1:-1], probabilities, side="left")
    counts = np.bincount(place, minlength=bins)
    sums = np.bincount(place, weights=probabilities, minlength=bins)
    rights = np.bincount(place, weights=is_right, minlength=bins)
    table = [
        ReliabilityBin(
            low=float(edges[number]),
            high=float(edges[number + 1]),
            count=int(count),
            mean_probability=float(sums[number] / count) if count else math.nan,
            share_right=float(rights[number] / count) if count else math.nan,
        )
        for number, count in enumerate(counts)
    ]
    error = float(np.abs(rights - sums).sum() / len(probabilities)) if len(probabilities) else math.nan
    return error, table


def best_fraction(
    right: Numbers, wrong: Numbers, fraction: float, *, noise_rate: float | None = None
) -> BestFraction:
    """Keep the best `fraction` of a set by score, as DataComp's baselines do by the similarity of CLIP.

    Of pairs that tie at the cut, right and wrong ones are kept in proportion: what a draw among them keeps on
    average. With a `noise_rate` the set has that share of wrong pairs, else the pairs given are the set.
    All is NaN without right or wrong pairs. No rule that keeps this fraction does better than one that keeps
    right pairs only: at best, precision is the share of right pairs divided by the fraction, or 1.

    Source: Gadre et al., "DataComp: in search of the next generation of multimodal datasets", 2023, section
    3.4; the best fraction by CLIP ViT-L/14 was 0.3.

    Raises ValueError for a fraction that is not above 0 and at most 1, and as the curve does.
    """
    import numpy as np

    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction of {fraction}; it is above 0 and at most 1")
    thresholds, kept_right, kept_wrong = _kept(right, wrong)
    if len(right) == 0 or len(wrong) == 0:
        return BestFraction(math.nan, math.nan, math.nan)
    each_right, each_wrong = _weights(len(right), len(wrong), noise_rate)
    mass_right = np.concatenate([[0.0], kept_right * each_right])
    mass = mass_right + np.concatenate([[0.0], kept_wrong * each_wrong])
    mass_right, mass = mass_right / mass[-1], mass / mass[-1]
    kept = float(np.interp(fraction, mass, mass_right))
    # The last score reaches 1 but for rounding.
    cut = min(int(np.searchsorted(mass[1:], fraction - 1e-12)), len(thresholds) - 1)
    return BestFraction(float(thresholds[cut]), kept / fraction, kept / float(mass_right[-1]))


def _kept(right: Numbers, wrong: Numbers) -> tuple[Numbers, NDArray[np.int64], NDArray[np.int64]]:
    """Return each different score, highest first, and how many right and wrong pairs have that or more."""
    import numpy as np

    thresholds = np.unique(np.concatenate([right, wrong]))[::-1].astype(np.float64)
    if np.isnan(thresholds).any():
        raise ValueError("a score is NaN")
    return (
        thresholds,
        len(right) - np.searchsorted(np.sort(right), thresholds, side="left"),
        len(wrong) - np.searchsorted(np.sort(wrong), thresholds, side="left"),
    )


def _weights(right: int, wrong: int, noise_rate: float | None) -> tuple[float, float]:
    """Weight of one right and of one wrong pair in the set that is meant."""
    if noise_rate is None:
        return 1.0, 1.0
    if not 0 < noise_rate < 1:
        raise ValueError(f"a noise rate of {noise_rate}; it is above 0 and below 1")
    return (1 - noise_rate) / max(1, right), noise_rate / max(1, wrong)


def _rates(kept: NDArray[np.int64], total: int) -> Numbers:
    import numpy as np

    return kept / total if total else np.full(len(kept), np.nan)
