"""How well a score tells right pairs from wrong ones, and the threshold that follows.

Right pairs are held-out clean ones; wrong pairs are made from them: shuffled (another pair's caption)
and hard (the most similar wrong caption). Real noise is harder than shuffled captions, so whatever
is promised here is promised against those, and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt.draws import uniforms
from capfilt.errors import CapfiltError
from capfilt.evaluation.similarities import similarities
from capfilt.models.protocols import FeatureFilter
from capfilt.records import BEST_FIRST, SCORES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from capfilt.data.clean import CleanPair
    from capfilt.models.protocols import Filter, ImageBatch

    Numbers = NDArray[np.float64]

TEXTS_AT_ONCE = 256
"""Texts whose features are computed side by side."""
SHUFFLES = 4
"""Shuffled captions measured for each held-out pair."""
Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95% interval."""


def wrong_captions(pairs: Sequence[CleanPair], *, seed: int, count: int = SHUFFLES) -> list[list[int]]:
    """Draw, for each pair, up to `count` different other pairs whose caption is wrong for its image.

    Right are the captions of the pair's group: equal images, equal captions and near copies. Few
    pairs may offer fewer wrong ones.
    """
    total = len(pairs)
    drawn: list[list[int]] = []
    for number, pair in enumerate(pairs):
        mine: list[int] = []
        seen: set[int] = set()
        # Most draws are admissible; where few are, all pairs are looked through in a drawn order.
        tries = [int(u * total) for u in uniforms(4 * count, "wrong captions", seed, number)]
        start = int(uniforms(1, "wrong captions from", seed, number)[0] * total)
        for other in (*tries, *((start + step) % total for step in range(min(total, 1000)))):
            if len(mine) == count:
                break
            caption = pairs[other].caption_id
            if pairs[other].group_id != pair.group_id and caption not in seen:
                mine.append(other)
                seen.add(caption)
        drawn.append(mine)
    return drawn


def hardest_captions(
    image_features: Iterable[Numbers], text_features: Numbers, pairs: Sequence[CleanPair]
) -> list[int | None]:
    """Return, for each pair, the pair whose wrong caption is most similar by ITC; None without one.

    Features are of unit length, of each pair the picture's, (embed,) or (queries, embed), and its caption's,
    `text_features` (pairs, embed): see `similarities`.
    """
    import numpy as np

    groups = np.array([pair.group_id for pair in pairs])
    hardest: list[int | None] = []
    for number, features in enumerate(image_features):
        [alike] = similarities(features[None], text_features)
        alike[groups == groups[number]] = -np.inf
        best = int(alike.argmax())
        hardest.append(best if np.isfinite(alike[best]) else None)
    return hardest


def auroc(right: Numbers, wrong: Numbers) -> float:
    """Chance that a right pair scores above a wrong one, a tie counting half (Mann and Whitney, 1947)."""
    import numpy as np

    if len(right) == 0 or len(wrong) == 0:
        return math.nan
    ordered = np.sort(wrong)
    below = np.searchsorted(ordered, right, "left") + np.searchsorted(ordered, right, "right")
    return float(below.sum() / (2 * len(right) * len(wrong)))


def auroc_interval(area: float, right: int, wrong: int) -> tuple[float, float]:
    """95% interval of an AUROC from `right` and `wrong` independent pairs.

    Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic",
    2006, method 5: the areas whose own standard error reaches the measured one. Unlike intervals
    around the measured area it stays honest for few pairs and for a perfect separation.
    """
    if math.isnan(area) or right == 0 or wrong == 0:
        return 0.0, 1.0

    def error(theta: float) -> float:
        half = (right + wrong) / 2 - 1
        spread = 1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)
        return Z95 * math.sqrt(max(0.0, theta * (1 - theta) * spread) / (right * wrong))

    def edge(low: float, high: float, outside: Callable[[float], bool]) -> float:
        """Bisect between `low`, which is outside, and `high`, which is not."""
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if outside(middle) else (low, middle)
        return high

    lower = 0.0 if area == 0 else edge(0.0, area, lambda theta: area - theta > error(theta))
    upper = 1.0 if area == 1 else edge(1.0, area, lambda theta: theta - area > error(theta))
    return lower, upper


def precision_recall(
    right: Numbers, wrong: Numbers, threshold: float, noise_rate: float
) -> tuple[float, float]:
    """Precision and recall of keeping scores of at least `threshold`, were `noise_rate` of pairs wrong.

    Precision is NaN where nothing would be kept.
    """
    recall = float((right >= threshold).mean()) if len(right) else math.nan
    passing = float((wrong >= threshold).mean()) if len(wrong) else 0.0
    kept = (1 - noise_rate) * recall + noise_rate * passing
    return ((1 - noise_rate) * recall / kept if kept > 0 else math.nan), recall


def measure(
    model: Filter,
    batches: Callable[[], Iterator[ImageBatch]],
    pairs: Sequence[CleanPair],
    *,
    scores: Collection[str],
    seed: int,
) -> dict[str, Any]:
    """Measure a filter on held-out pairs; `batches()` gives their pictures, in order, as often as asked.

    `scores` are those that the filter gives: each has its rows even where no pair could be measured.

    Returns what calibration.json holds: `rows` (as in the catalog's calibration view, without the
    model) and `values` (by score: lists `right`, `shuffled`, `hard`).
    """
    import numpy as np

    wrong = wrong_captions(pairs, seed=seed)
    hard: list[int | None] = [None] * len(pairs)
    if isinstance(model, FeatureFilter) and model.has_itc and pairs:
        images = (row for batch in batches() for row in _host(model.image_features(batch)))
        texts = [
            _host(model.text_features([pair.text for pair in pairs[first : first + TEXTS_AT_ONCE]]))
            for first in range(0, len(pairs), TEXTS_AT_ONCE)
        ]
        hard = hardest_captions(images, np.concatenate(texts), pairs)
    values: dict[str, dict[str, list[float]]] = {
        name: {"right": [], "shuffled": [], "hard": []} for name in BEST_FIRST if name in scores
    }
    start = 0
    for batch in batches():
        numbers = range(start, start + len(batch))
        start += len(batch)
        kinds = [
            [
                ("right", n),
                *(("shuffled", o) for o in wrong[n]),
                *(("hard", o) for o in (hard[n],) if o is not None),
            ]
            for n in numbers
        ]
        scored = model.score(batch, [[pairs[other].text for _, other in mine] for mine in kinds])
        for mine, given in zip(kinds, scored, strict=True):
            for (kind, _), score in zip(mine, given, strict=True):
                for name, lists in values.items():
                    lists[kind].append(getattr(score, name))
    return {"rows": [row for name, lists in values.items() for row in _rows(name, lists)], "values": values}


def _host(features: Tensor) -> Numbers:
    found: Numbers = features.double().cpu().numpy()
    return found


def _rows(name: str, values: dict[str, list[float]]) -> list[dict[str, Any]]:
    import numpy as np

    right = np.array(values["right"], dtype=np.float64)
    rows: list[dict[str, Any]] = []
    for kind in ("shuffled", "hard"):
        wrong = np.array(values[kind], dtype=np.float64)
        area = auroc(right, wrong)
        # Several wrong captions of one image are not independent: each image counts once.
        low, high = auroc_interval(area, len(right), min(len(right), len(wrong)))
        precision, recall = (
            precision_recall(right, wrong, 0.5, 0.5) if SCORES[name].is_probability else (math.nan, math.nan)
        )
        rows.append(
            {
                "score": name,
                "negatives": kind,
                "positives": len(right),
                "negatives_count": len(wrong),
                "auroc": _number(area),
                "auroc_low": low,
                "auroc_high": high,
                "precision_at_half": _number(precision),
                "recall_at_half": _number(recall),
                "weak": low <= 0.5 if kind == "shuffled" else None,
            }
        )
    return rows


def weak_scores(calibration: dict[str, Any] | None) -> set[str]:
    """Return the scores that do not tell right from shuffled captions; none for an uncalibrated filter."""
    if calibration is None:
        return set()
    return {row["score"] for row in calibration["rows"] if row["weak"]}


@dataclass(frozen=True, slots=True)
class Chosen:
    """A threshold and how it was chosen."""

    threshold: float
    words: str
    """Empty for a number that was given."""


def choose_threshold(
    score: str, wish: str, calibration: dict[str, Any] | None, *, noise_rate: float, of: str = ""
) -> Chosen:
    """Turn `0.6`, `auto:precision=P` or `auto:recall=R` into a threshold.

    `auto:precision` takes the lowest threshold whose precision against shuffled captions, at the noise
    rate, is at least P; `auto:recall` the highest that R of the held-out clean pairs pass. `of` is what a
    further filter is called, for the words of an error.
    """
    import numpy as np

    scale = SCORES[score]
    kind = f"{scale.kind}, between {scale.low:g} and {scale.high:g}"

    def typed(value: str) -> str:
        return f"--also {of}:{score}={value}" if of else f"--{score} {value}"

    if not wish.startswith("auto:"):
        value = _parsed(wish)
        if value is None or not scale.low <= value <= scale.high:
            raise CapfiltError(
                f"{typed(wish)}: {score.upper()} is {kind}",
                fix=f"give such a number, e.g. {typed('0.5')}, or {typed('auto:precision=0.95')}, or "
                f"{typed('auto:recall=0.85')}",
            )
        return Chosen(value, "")
    aim, _, text = wish.removeprefix("auto:").partition("=")
    target = _parsed(text)
    if aim not in ("precision", "recall") or target is None or not 0 < target <= 1:
        raise CapfiltError(
            f"{typed(wish)} is not understood",
            fix=f"write {typed('auto:precision=0.95')} or {typed('auto:recall=0.85')}",
        )
    if calibration is None:
        raise CapfiltError(
            f"{typed(wish)} needs a calibrated filter, and this one is uncalibrated",
            fix=f"give a number, e.g. {typed('0.5' if scale.is_probability else '0.25')}; what it keeps is "
            "measured on labelled pairs by `capfilt labels measure RUN`. A filter that capfilt trains by ITC "
            "or ITM is calibrated",
        )
    values = calibration["values"].get(score)
    if values is None or not values["right"]:
        raise CapfiltError(
            f"{typed(wish)}: the filter's bundle holds no calibration of {score.upper()}",
            fix="put the bundle back where it was, choose by another score, or give a number: "
            f"{typed('0.5')}",
        )
    right, wrong = np.array(values["right"]), np.array(values["shuffled"])
    if aim == "recall":
        allowed = math.floor((1 - target) * len(right) + 1e-9)
        return Chosen(float(np.sort(right)[allowed]), f"{wish} of held-out clean pairs")
    best = math.nan
    for threshold in np.unique(right):
        precision, _ = precision_recall(right, wrong, float(threshold), noise_rate)
        if precision >= target - 1e-12:  # 0.2 is 0.19999999999999998 by the arithmetic of a share
            return Chosen(
                float(threshold),
                f"{wish} at noise rate {noise_rate:g}, against shuffled captions, easier than real noise",
            )
        best = max(precision, best) if not math.isnan(best) else precision
    raise CapfiltError(
        f"{typed(wish)}: no threshold reaches it on held-out pairs at noise rate {noise_rate:g}; "
        f"the best is {best:.3f}",
        fix=f"ask for less, e.g. {typed(f'auto:precision={math.floor(best * 100) / 100:g}')}, or give a "
        "lower --noise-rate",
    )


def _parsed(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
