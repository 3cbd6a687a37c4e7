"""Finding the right captions of an image among many, and the right images of a caption.

What is right is a table of its own beside the scores: equal images and equal captions are right for each
other, and an image with five captions is found by any of them. All scores are larger for better.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Indices = NDArray[np.int64]


def ranks(scores: Numbers, right: NDArray[np.bool_]) -> Indices:
    """Return how many wrong candidates come before the best right one: 0 is found at once. Shape (queries,).

    `scores` and `right` have the shape (queries, candidates). A wrong candidate that ties with the best right
    one comes before it: a model that gives everything the same score finds nothing.

    Raises ValueError for a query without a right candidate, and for a score that is NaN.
    """
    import numpy as np

    _check(right)
    if scores.shape != right.shape:
        raise ValueError(f"scores of shape {scores.shape}, but right of shape {right.shape}")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    best = np.where(right, scores, -np.inf).max(axis=1, initial=-np.inf)
    before = ~right & (scores >= best[:, None])
    found: Indices = before.sum(axis=1, dtype=np.int64)
    return found


def most_similar(scores: Numbers, k: int) -> Indices:
    """Return the k best candidates of each query, best first: shape (queries, min(k, candidates)).

    Of equal ones the first comes first.
    """
    import numpy as np

    order: Indices = np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int64)
    return order


def reranked(scores: Numbers, top: Indices, second: Numbers) -> Numbers:
    """Order the candidates `top` of each query by `second`, all others below them as they were.

    `scores` (queries, candidates) are similarities by ITC, `top` (queries, k) are the most similar candidates
    (see `most_similar`), and `second` (queries, k) is what ITM says of them. Returns scores that sort so, of
    shape (queries, candidates); their values mean nothing beyond that, and ties stay ties.

    Source: BLIP, section 5.1, with k = 256 for COCO and 128 for Flickr30K. The released code orders them by
    the sum of ITM logit and cosine, which can be given as `second`, and gives all others one score; how those
    are ordered makes no difference to recall at k or fewer.

    Raises ValueError where `top` names a candidate twice or one that is not there.
    """
    import numpy as np

    queries, candidates = scores.shape
    if top.shape != second.shape or len(top) != queries:
        raise ValueError(f"{queries} queries, but top is {top.shape} and second is {second.shape}")
    ordered = np.sort(top, axis=1)
    if top.size and (ordered.min() < 0 or ordered.max() >= candidates or (np.diff(ordered) == 0).any()):
        raise ValueError(f"top does not name different candidates, from 0 to {candidates - 1}")
    # Places in the order, not sums: the two kinds of scores have no common unit, and sums would make ties.
    result = _places(scores)
    np.put_along_axis(result, top, candidates + _places(second), axis=1)
    return result


def recall_at(ranks: Indices, k: int) -> float:
    """Share of queries with a right candidate among the first k; NaN without queries."""
    return float((ranks < k).mean()) if len(ranks) else math.nan


def chance_recall(right: NDArray[np.bool_], k: int) -> float:
    """Recall at k that a random order is expected to have; NaN without queries.

    For a query with r right ones among n candidates it is 1 - C(n - r, k) / C(n, k): one less the chance that
    k drawn without putting back are all wrong (hypergeometric).

    Raises ValueError for a query without a right candidate.
    """
    import numpy as np

    _check(right)
    queries, candidates = right.shape
    if queries == 0:
        return math.nan
    wrong = candidates - right.sum(axis=1)
    all_wrong = np.ones(queries)
    for drawn in range(min(k, candidates)):
        all_wrong *= np.maximum(wrong - drawn, 0) / (candidates - drawn)
    return float(1 - all_wrong.mean())


def _check(right: NDArray[np.bool_]) -> None:
    import numpy as np

    lost = np.flatnonzero(~right.any(axis=1))
    if len(lost):
        raise ValueError(
            f"{len(lost)} of {len(right)} queries have no right candidate, the first is {lost[0]}"
        )


def _places(scores: Numbers) -> Numbers:
    """Replace each score by the number of different lower ones in its row."""
    import numpy as np

    order = np.argsort(scores, axis=1, kind="stable")
    rises = np.diff(np.take_along_axis(scores, order, axis=1), axis=1) > 0
    places = np.zeros(scores.shape)
    np.put_along_axis(places, order[:, 1:], np.cumsum(rises, axis=1, dtype=np.float64), axis=1)
    return places
