"""A filter against pairs known to be right or wrong: at every threshold, at 0.5, and at a share to keep.

Wrong pairs are made of right ones (shuffled, and the hardest by ITC) or named by the data itself. Beside the
filter's own scores stand a classifier that reads the text alone, a dual encoder, and chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from capfilt.draws import uniforms
from capfilt.evaluation.calibration import auroc, auroc_interval
from capfilt.evaluation.filtering import average_precision, best_fraction, calibration_error
from capfilt.evaluation.intervals import Figure, bootstrap
from capfilt.stages.evaluate.baselines import FOLDS, text_alone
from capfilt.stages.evaluate.curves import score_curve
from capfilt.stages.evaluate.labelled import check_labels, labelled
from capfilt.stages.evaluate.pairs import RIGHT
from capfilt.stages.evaluate.results import Findings, Measured
from capfilt.stages.evaluate.scoring import Encoded, match_probability

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from capfilt.evaluation.filtering import ReliabilityBin
    from capfilt.models.protocols import FeatureFilter
    from capfilt.stages.context import Tell
    from capfilt.stages.evaluate.curves import Curve
    from capfilt.stages.evaluate.dual_encoder import DualEncoder
    from capfilt.stages.evaluate.labelled import Labelled
    from capfilt.stages.evaluate.pairs import Pairs

    Numbers = NDArray[np.float64]
    Indices = NDArray[np.int64]

RESAMPLES = 400
"""Of what has to be sorted anew for each."""
AT_HALF = "kept where ITM is 0.5 or more"
ALL_WRONG = "all wrong ones"
ITM, ITC, CLIP, TEXT, RANDOM = "ITM", "ITC", "dual encoder", "text alone", "random"


@dataclass(frozen=True)
class FilterChoices:
    """What a filter is measured against."""

    kind_field: str | None = None
    """Field of the metadata that says whether a text is right; wrong texts are made where it is not given."""
    fractions: tuple[float, ...] = (0.3,)
    """Shares of the pairs that are kept, the best ones (DataComp, section 3.4: 0.3 by CLIP ViT-L/14)."""


def measure_filter(
    pairs: Pairs,
    filter_: FeatureFilter,
    choices: FilterChoices,
    *,
    batch_size: int,
    seed: int,
    clip: DualEncoder | None,
    tell: Tell,
) -> Findings:
    """Measure how a filter tells right pairs from each kind of wrong ones; CapfiltError without either."""
    import numpy as np

    check_labels(pairs, choices.kind_field)
    with Encoded(pairs, filter_, batch_size=batch_size, clip=clip, tell=tell) as encoded:
        judged = labelled(pairs, encoded, choices.kind_field, seed=seed)
        scores = _scores(encoded, judged)
    texts = [pairs.texts[text] for text in judged.texts]
    scores[TEXT] = text_alone(texts, judged.is_right.tolist(), judged.texts.tolist(), seed=seed)
    scores[RANDOM] = uniforms(len(texts), "random scores", seed)
    measured: list[Measured] = []
    curves: list[Curve] = []
    for kind, is_kind in _kinds(judged).items():
        some = np.flatnonzero(judged.is_right | is_kind)
        measured += _told_apart(f"right pairs and {kind}", judged, some, scores, choices, seed)
        curves += [
            score_curve(kind, row, values[judged.is_right], values[is_kind]) for row, values in scores.items()
        ]
    reliability: list[ReliabilityBin] = []
    if ITM in scores:
        measured += _at_half(judged, scores[ITM], seed)
        _, reliability = calibration_error(scores[ITM], judged.is_right)
    return Findings(
        measured=measured,
        items=_items(pairs, judged, scores),
        notes=_notes(judged, choices, has_itm=ITM in scores),
        facts={
            "kind_field": choices.kind_field,
            "fractions": list(choices.fractions),
            "kinds": {kind: int((judged.kinds == kind).sum()) for kind in (RIGHT, *judged.noise)},
        },
        curves=curves,
        reliability=reliability,
    )


def _scores(encoded: Encoded, judged: Labelled) -> dict[str, Numbers]:
    """Return every score of every pair; a pair that stands there twice is scored once."""
    import numpy as np

    scores: dict[str, Numbers] = {}
    if encoded.has_itm:
        both = np.stack([judged.pictures, judged.texts], axis=1)
        asked, places = np.unique(both, axis=0, return_inverse=True)
        logits = encoded.itm_logits(asked[:, 0], asked[:, 1])
        scores[ITM] = match_probability(logits)[places.ravel()]
    if encoded.itc is not None:
        scores[ITC] = encoded.itc.cosines(judged.pictures, judged.texts)
    if encoded.clip is not None:
        scores[CLIP] = encoded.clip.cosines(judged.pictures, judged.texts)
    return scores


# -- what is measured


def _kinds(judged: Labelled) -> dict[str, NDArray[np.bool_]]:
    """Return which pairs are of each kind of noise and, last, where there are several kinds, of any."""
    kinds = {kind: judged.kinds == kind for kind in judged.noise}
    return kinds if len(kinds) == 1 else {**kinds, ALL_WRONG: ~judged.is_right}


class _Resampled:
    """Some of the pairs as their pictures are drawn again: a picture comes with all its pairs."""

    def __init__(self, judged: Labelled, some: Indices) -> None:
        import numpy as np

        self._some = some[np.argsort(judged.pictures[some], kind="stable")]
        _, self._starts, self._counts = np.unique(
            judged.pictures[self._some], return_index=True, return_counts=True
        )
        self._judged = judged

    def measure(
        self, statistic: Callable[[Numbers, Numbers], float], values: Numbers, *, seed: int, key: str
    ) -> Figure:
        """Return a statistic of (values of right pairs, values of wrong ones) with its interval."""
        import numpy as np

        mine = values[self._some]
        right = self._judged.is_right[self._some]

        def of(pictures: Indices) -> float:
            counts = self._counts[pictures]
            befores = np.cumsum(counts) - counts
            places = np.repeat(self._starts[pictures] - befores, counts) + np.arange(counts.sum())
            drawn, is_right = mine[places], right[places]
            if is_right.all() or not is_right.any():
                return math.nan
            return statistic(drawn[is_right], drawn[~is_right])

        return bootstrap(len(self._starts), of, seed=seed, key=f"filter {key}", resamples=RESAMPLES)


def _told_apart(
    table: str,
    judged: Labelled,
    some: Indices,
    scores: dict[str, Numbers],
    choices: FilterChoices,
    seed: int,
) -> list[Measured]:
    """Return a row for each score: AUROC, AP, and what the best fractions keep."""
    resampled = _Resampled(judged, some)
    measured = []
    for row, values in scores.items():
        measured.append(Measured(table, row, "AUROC", _auroc(judged, some, values)))
        figure = resampled.measure(average_precision, values, seed=seed, key=f"{table} AP")
        measured.append(Measured(table, row, "AP", figure))
        for fraction in choices.fractions:
            for part in ("precision", "recall"):
                name = f"best {fraction:.0%}: {part}"
                keeps = partial(_kept, fraction=fraction, part=part)
                figure = resampled.measure(keeps, values, seed=seed, key=f"{table} {name}")
                measured.append(Measured(table, row, name, figure))
    return measured


def _kept(right: Numbers, wrong: Numbers, *, fraction: float, part: str) -> float:
    """Return precision or recall of keeping the best fraction."""
    value: float = getattr(best_fraction(right, wrong, fraction), part)
    return value


def _auroc(judged: Labelled, some: Indices, values: Numbers) -> Figure:
    """Return AUROC and Newcombe's interval; the pairs of one picture are not independent, and count once."""
    right = some[judged.is_right[some]]
    wrong = some[~judged.is_right[some]]
    area = auroc(values[right], values[wrong])
    counts = [len(set(judged.pictures[mine].tolist())) for mine in (right, wrong)]
    return Figure(area, *auroc_interval(area, *counts))


def _at_half(judged: Labelled, probabilities: Numbers, seed: int) -> list[Measured]:
    """Return precision and recall of keeping an ITM of 0.5 or more (BLIP), and how well it is calibrated."""
    import numpy as np

    def precision(right: Numbers, wrong: Numbers) -> float:
        kept = int((right >= 0.5).sum() + (wrong >= 0.5).sum())
        return float((right >= 0.5).sum() / kept) if kept else math.nan

    def error(right: Numbers, wrong: Numbers) -> float:
        labels = np.arange(len(right) + len(wrong)) < len(right)
        return calibration_error(np.concatenate([right, wrong]), labels)[0]

    parts: dict[str, Callable[[Numbers, Numbers], float]] = {
        "precision": precision,
        "recall": lambda right, _: float((right >= 0.5).mean()),
        "wrong ones dropped": lambda _, wrong: float((wrong < 0.5).mean()),
    }
    measured = []
    for kind, mask in _kinds(judged).items():
        resampled = _Resampled(judged, np.flatnonzero(judged.is_right | mask))
        for part, statistic in parts.items():
            figure = resampled.measure(statistic, probabilities, seed=seed, key=f"half {kind} {part}")
            measured.append(Measured(AT_HALF, kind, part, figure))
    figure = _Resampled(judged, np.arange(len(probabilities))).measure(
        error, probabilities, seed=seed, key="error"
    )
    return [*measured, Measured("calibration", ITM, "expected error", figure)]


def _items(pairs: Pairs, judged: Labelled, scores: dict[str, Numbers]) -> list[dict[str, Any]]:
    names = {row: row.lower().replace(" ", "_") for row in scores}
    return [
        {
            "key": pairs.key(picture),
            "image_sha256": pairs.sha256(picture),
            "text": pairs.texts[text],
            "kind": kind,
            **{names[row]: float(values[number]) for row, values in scores.items()},
        }
        for number, (picture, text, kind) in enumerate(
            zip(judged.pictures.tolist(), judged.texts.tolist(), judged.kinds.tolist(), strict=True)
        )
    ]


def _notes(judged: Labelled, choices: FilterChoices, *, has_itm: bool) -> list[str]:
    share = float(judged.is_right.mean())
    notes = []
    if choices.kind_field is None:
        notes.append(
            "Wrong pairs are made of right ones: a text drawn from the others, and the most similar one by "
            "ITC. Noise from the web is of other kinds."
        )
    notes.append(
        f"{TEXT} is a classifier that never sees the picture, nor while it learns any text that it judges "
        f"({FOLDS} folds): what it can tell, no picture is needed for."
    )
    notes.append(
        f"{share:.0%} of all pairs are right here. AP, precision and the calibration error hold for such a "
        "share; AUROC and recall at a threshold do not depend on it."
    )
    if has_itm:
        notes.append("An ITM of 0.5 is BLIP's rule (section 3.3); a share that is kept is DataComp's.")
    return notes
