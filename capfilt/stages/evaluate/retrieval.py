"""Image-text retrieval: ITC finds candidates, ITM orders the best of them (BLIP, section 5.1).

The pairs that both directions ask of ITM are gathered first, and each is scored once, picture by picture: all
texts that a picture is a candidate for stand side by side over its states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from capfilt.errors import CapfiltError
from capfilt.evaluation.intervals import Figure, bootstrap
from capfilt.evaluation.retrieval import chance_recall, most_similar, ranks, recall_at, reranked
from capfilt.evaluation.similarities import similarities
from capfilt.stages.evaluate.results import Findings, Measured
from capfilt.stages.evaluate.scoring import Encoded

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from capfilt.models.protocols import FeatureFilter
    from capfilt.stages.context import Tell
    from capfilt.stages.evaluate.dual_encoder import DualEncoder
    from capfilt.stages.evaluate.pairs import Pairs
    from capfilt.stages.evaluate.scoring import Features

    Numbers = NDArray[np.float64]
    Indices = NDArray[np.int64]
    Block = Callable[[slice], Numbers]

Rerank = Literal["itm", "sum"]
AT = (1, 5, 10)
"""Recall is measured at these."""
MOST_PICTURES, MOST_TEXTS = 20_000, 100_000
"""Every picture is compared with every text: beyond, that is no evaluation but an index."""
MOST_PAIRS_OF_ITM_ALONE = 2000
"""Without ITC there are no candidates, and ITM is asked of every pair."""
_SCORES_AT_ONCE = 1 << 21
"""Scores that are held at a time, of some queries with all candidates."""


@dataclass(frozen=True)
class RetrievalChoices:
    """How texts and pictures are ranked."""

    top_k: int = 128
    """Candidates of a query that ITM orders (BLIP, section 5.1: 256 on COCO, 128 on Flickr30K)."""
    rerank: Rerank = "itm"
    """What orders them: the probability of a match, as the paper has it, or the logit of a match plus the
    cosine, as the released code has."""


@dataclass(frozen=True)
class _Direction:
    """Queries and their candidates."""

    name: str
    candidates: int
    right: list[list[int]]
    """Of each query, the candidates that are right."""
    owners: Indices
    """The picture of each query: queries of one picture are resampled together."""

    @property
    def queries(self) -> int:
        """How many there are."""
        return len(self.right)


def measure_retrieval(
    pairs: Pairs,
    filter_: FeatureFilter,
    choices: RetrievalChoices,
    *,
    batch_size: int,
    seed: int,
    clip: DualEncoder | None,
    tell: Tell,
) -> Findings:
    """Measure recall in both directions, by every score there is; CapfiltError where the set is too large."""
    _check_size(pairs, filter_)
    both = _directions(pairs)
    measured: list[Measured] = []
    items: list[dict[str, Any]] = []
    with Encoded(pairs, filter_, batch_size=batch_size, clip=clip, tell=tell) as encoded:
        rankings = _rankings(encoded, both, choices)
    for way, direction in enumerate(both):
        found: dict[str, Indices] = {}
        for ranking in rankings:
            places, best = _ranked(direction, ranking.blocks[way])
            found |= {f"rank_{ranking.name}": places, f"best_{ranking.name}": best}
            measured += [
                Measured(direction.name, ranking.words, f"R@{k}", _recall(direction, places, k, seed))
                for k in AT
            ]
        measured += [Measured(direction.name, "chance", f"R@{k}", _chance(direction, k)) for k in AT]
        items += _items(pairs, way, found)
    return Findings(
        measured=measured,
        items=items,
        notes=_notes(choices, filter_),
        facts={"top_k": choices.top_k, "rerank": choices.rerank},
    )


def _check_size(pairs: Pairs, filter_: FeatureFilter) -> None:
    pictures, texts = pairs.pictures, len(pairs.texts)
    if pictures > MOST_PICTURES or texts > MOST_TEXTS:
        raise CapfiltError(
            f"{pictures:,} pictures and {texts:,} texts would all be compared with each other; at most "
            f"{MOST_PICTURES:,} and {MOST_TEXTS:,} are",
            fix="evaluate the first of them, e.g. --limit 5000",
        )
    if not filter_.has_itc and pictures * texts > MOST_PAIRS_OF_ITM_ALONE:
        raise CapfiltError(
            f"the model has no ITC to find candidates by, and ITM would be asked of all {pictures * texts:,} "
            "pairs",
            fix="give a filter that was trained for ITC as well, or evaluate few pictures, e.g. --limit 40",
        )


def _directions(pairs: Pairs) -> tuple[_Direction, _Direction]:
    """Return image to text and text to image."""
    import numpy as np

    right = pairs.right_texts()
    pictures_of: list[list[int]] = [[] for _ in pairs.texts]
    for picture, mine in enumerate(right):
        for text in mine:
            pictures_of[text].append(picture)
    texts, pictures = len(pairs.texts), pairs.pictures
    return (
        _Direction("image to text", texts, right, np.arange(pictures)),
        _Direction("text to image", pictures, pictures_of, np.array([mine[0] for mine in pictures_of])),
    )


# -- what ranks


@dataclass(frozen=True)
class _Ranking:
    """A way of ranking, in both directions."""

    name: str
    """In the columns of the items."""
    words: str
    blocks: tuple[Block, Block]
    """Scores of some queries, shape (queries, candidates): image to text, text to image."""


def _rankings(
    encoded: Encoded, both: tuple[_Direction, _Direction], choices: RetrievalChoices
) -> list[_Ranking]:
    rankings = []
    if encoded.itc is not None:
        rankings.append(_Ranking("itc", "ITC", _cosines(encoded.itc)))
        if encoded.has_itm:
            rankings.append(_reranking(encoded, encoded.itc, both, choices))
    else:
        rankings.append(_Ranking("itm", "ITM", _itm_alone(encoded, both)))
    if encoded.clip is not None:
        rankings.append(_Ranking("clip", "dual encoder", _cosines(encoded.clip)))
    return rankings


def _cosines(features: Features) -> tuple[Block, Block]:
    import numpy as np

    def image_to_text(rows: slice) -> Numbers:
        return similarities(features.pictures[rows], features.texts).astype(np.float64)

    def text_to_image(rows: slice) -> Numbers:
        return similarities(features.pictures, features.texts[rows]).T.astype(np.float64)

    return image_to_text, text_to_image


def _itm_alone(encoded: Encoded, both: tuple[_Direction, _Direction]) -> tuple[Block, Block]:
    import numpy as np

    shape = both[0].queries, both[1].queries
    pictures, texts = (numbers.ravel() for numbers in np.indices(shape))
    logits = encoded.itm_logits(pictures, texts)
    odds = (logits[:, 1] - logits[:, 0]).reshape(shape)
    return (lambda rows: odds[rows]), (lambda rows: odds.T[rows])


def _reranking(
    encoded: Encoded, features: Features, both: tuple[_Direction, _Direction], choices: RetrievalChoices
) -> _Ranking:
    """Return the ranking of ITC whose first candidates are ordered by ITM."""
    import numpy as np

    cosines = _cosines(features)
    tops = [
        np.concatenate([most_similar(block(rows), choices.top_k) for rows in _rows(one)])
        for one, block in zip(both, cosines, strict=True)
    ]
    # A pair is one number, so that what both directions ask for is asked once.
    texts = both[1].queries
    named = [
        np.arange(both[0].queries)[:, None] * texts + tops[0],
        tops[1] * texts + np.arange(texts)[:, None],
    ]
    asked = np.unique(np.concatenate([numbers.ravel() for numbers in named]))
    logits = encoded.itm_logits(asked // texts, asked % texts)
    if choices.rerank == "itm":
        scores = logits[:, 1] - logits[:, 0]
    else:
        scores = logits[:, 1] + features.cosines(asked // texts, asked % texts)
    seconds = [scores[np.searchsorted(asked, numbers)] for numbers in named]
    blocks = [_reordered(*parts) for parts in zip(cosines, tops, seconds, strict=True)]
    return _Ranking("itm", "ITC, then ITM", (blocks[0], blocks[1]))


def _reordered(first: Block, top: Indices, second: Numbers) -> Block:
    return lambda rows: reranked(first(rows), top[rows], second[rows])


# -- what is measured


def _ranked(direction: _Direction, block: Block) -> tuple[Indices, Indices]:
    """Return the rank of each query's best right candidate, from 0, and its first candidate."""
    import numpy as np

    places, best = [], []
    for rows in _rows(direction):
        scores = block(rows)
        places.append(ranks(scores, _right(direction, rows)))
        best.append(scores.argmax(1))
    return np.concatenate(places), np.concatenate(best)


def _rows(direction: _Direction) -> list[slice]:
    """Cut the queries so that their scores fit into memory."""
    some = max(1, _SCORES_AT_ONCE // direction.candidates)
    return [slice(first, first + some) for first in range(0, direction.queries, some)]


def _right(direction: _Direction, rows: slice) -> NDArray[np.bool_]:
    import numpy as np

    mine = direction.right[rows]
    right = np.zeros((len(mine), direction.candidates), dtype=bool)
    for row, candidates in enumerate(mine):
        right[row, candidates] = True
    return right


def _recall(direction: _Direction, places: Indices, k: int, seed: int) -> Figure:
    """Return recall at k and its interval over pictures."""
    import numpy as np

    count = int(direction.owners.max()) + 1
    queries = np.bincount(direction.owners, minlength=count)
    hits = np.bincount(direction.owners, weights=places < k, minlength=count)

    def share(pictures: Indices) -> float:
        all_of_them = queries[pictures].sum()
        return float(hits[pictures].sum() / all_of_them) if all_of_them else float("nan")

    figure = bootstrap(count, share, seed=seed, key=f"retrieval {direction.name} {k}")
    return Figure(recall_at(places, k), figure.low, figure.high)


def _chance(direction: _Direction, k: int) -> Figure:
    """Return the recall that a random order is expected to have: it is known, and has no interval."""
    whole = 0.0
    for rows in _rows(direction):
        right = _right(direction, rows)
        whole += chance_recall(right, k) * len(right)
    value = whole / direction.queries
    return Figure(value, value, value)


def _items(pairs: Pairs, way: int, found: dict[str, Indices]) -> list[dict[str, Any]]:
    """Return a row for each query: where its best right candidate stands, from 1, and what stands first."""
    count = pairs.pictures if way == 0 else len(pairs.texts)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        row: dict[str, Any] = {
            "direction": "image to text" if way == 0 else "text to image",
            "key": pairs.key(number) if way == 0 else None,
            "image_sha256": pairs.sha256(number) if way == 0 else None,
            "text": None if way == 0 else pairs.texts[number],
        }
        for name, values in found.items():
            value = int(values[number])
            if name.startswith("rank_"):
                row[name] = value + 1
            else:
                row[name] = pairs.texts[value] if way == 0 else pairs.key(value)
        rows.append(row)
    return rows


def _notes(choices: RetrievalChoices, filter_: FeatureFilter) -> list[str]:
    notes = [
        "Equal pictures are one, and so are texts that differ in nothing but case and white space; all texts "
        "of a picture are right for it, and all pictures of a text.",
    ]
    if filter_.has_itc and filter_.has_itm:
        by = (
            "the probability of a match (BLIP, section 5.1)"
            if choices.rerank == "itm"
            else "the logit of a match plus the cosine (BLIP's released code)"
        )
        notes.append(f"ITM orders the {choices.top_k} best candidates of ITC by {by}.")
    return notes
