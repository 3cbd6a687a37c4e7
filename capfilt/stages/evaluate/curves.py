"""What a score keeps at every threshold, thinned to what can be drawn: ROC and precision-recall in one.

Both curves are of the same thresholds, so each is kept once, with what it keeps. Plain values: they go from
a worker into JSON and into pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.evaluation.calibration import auroc
from capfilt.evaluation.filtering import average_precision, precision_recall_curve, roc

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

MOST_POINTS = 200
"""Of a curve; more cannot be told apart in a picture."""


@dataclass(frozen=True, slots=True)
class Curve:
    """How one score tells right pairs from wrong ones, a point for each threshold, the highest first.

    ROC is `right_kept` over `wrong_kept`, and begins at (0, 0), which no threshold of a score reaches;
    precision-recall is `precision` over `right_kept`.
    """

    kind: str
    """What is wrong with the wrong pairs."""
    row: str
    """The model's function, or the baseline."""
    right_pairs: int
    wrong_pairs: int
    auroc: float
    average_precision: float
    threshold: list[float]
    """Pairs of at least this score are kept."""
    right_kept: list[float]
    """Share of the right pairs that is kept: recall, the rate of true positives."""
    wrong_kept: list[float]
    """Share of the wrong pairs that is kept: the rate of false positives."""
    precision: list[float]
    """Share of what is kept that is right."""


def score_curve(kind: str, row: str, right: Numbers, wrong: Numbers) -> Curve:
    """Return the curve of a score against one kind of wrong pairs; areas are those of all thresholds.

    Both sides have pairs. Where there are more than `MOST_POINTS` different scores, thresholds are taken
    evenly by their rank, the highest and the lowest among them.
    """
    import numpy as np

    precision, recall, thresholds = precision_recall_curve(right, wrong)
    wrong_kept = roc(right, wrong)[0][1:]
    points = min(len(thresholds), MOST_POINTS)
    some = np.linspace(0, len(thresholds) - 1, points).round().astype(np.int64)
    return Curve(
        kind=kind,
        row=row,
        right_pairs=len(right),
        wrong_pairs=len(wrong),
        auroc=auroc(right, wrong),
        average_precision=average_precision(right, wrong),
        threshold=thresholds[some].tolist(),
        right_kept=recall[some].tolist(),
        wrong_kept=wrong_kept[some].tolist(),
        precision=precision[some].tolist(),
    )
