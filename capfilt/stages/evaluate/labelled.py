"""Pairs of which it is known whether they are right: the data says so, or wrong ones are made of right ones.

Made ones are of two kinds: a text drawn from the others, and the hardest by ITC, which a filter is there for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError
from capfilt.evaluation.calibration import hardest_captions, wrong_captions
from capfilt.stages.evaluate.pairs import RIGHT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from capfilt.stages.evaluate.pairs import Pairs
    from capfilt.stages.evaluate.scoring import Encoded

    Indices = NDArray[np.int64]

MOST_PAIRS = 50_000
"""Of right pairs that wrong ones are made of: the hardest are looked for among all."""
MOST_KINDS = 50
"""Of noise: each is measured by itself, with its own intervals."""


@dataclass(frozen=True)
class Labelled:
    """Pairs of a picture and a text, and what they are."""

    pictures: Indices
    texts: Indices
    kinds: NDArray[np.str_]

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """Whether each is right."""
        right: NDArray[np.bool_] = self.kinds == RIGHT
        return right

    @property
    def noise(self) -> list[str]:
        """Return the kinds of wrong pairs."""
        return sorted(set(self.kinds.tolist()) - {RIGHT})


def check_labels(pairs: Pairs, kind_field: str | None) -> None:
    """Refuse, before anything is scored, too many pairs to make wrong ones of, and too many kinds."""
    if kind_field is None:
        if len(pairs.pairs) > MOST_PAIRS:
            raise CapfiltError(
                f"wrong pairs would be made of {len(pairs.pairs):,} right ones; at most of {MOST_PAIRS:,}",
                fix="evaluate the first pictures, e.g. --limit 5000",
            )
        return
    kinds = len(set(pairs.kinds) - {RIGHT})
    if kinds > MOST_KINDS:
        raise CapfiltError(
            f'{kind_field} has {kinds:,} values beside "{RIGHT}", and each would be measured as a kind of '
            f"noise; at most {MOST_KINDS}",
            fix=f'name a field that says "{RIGHT}" or one of a few kinds of noise, such as noise_kind',
        )


def labelled(pairs: Pairs, encoded: Encoded, kind_field: str | None, *, seed: int) -> Labelled:
    """Return pairs as the field of their metadata names them or, without one, right ones and made wrong ones.

    Raises CapfiltError where there is no right or no wrong pair.
    """
    found = _as_named(pairs) if kind_field is not None else _made(pairs, encoded, seed)
    if found.is_right.any() and found.noise:
        return found
    missing = "wrong" if found.is_right.any() else "right"
    if kind_field is None:
        fix = "give more pairs, of different pictures with different texts"
    else:
        fix = f'say "{RIGHT}" in {kind_field} of right pairs, and the kind of noise in that of others'
    raise CapfiltError(f"there is no {missing} pair to measure with", fix=fix)


def _as_named(pairs: Pairs) -> Labelled:
    """Return the pairs as their metadata names them."""
    import numpy as np

    return Labelled(
        np.array([pair.image_id for pair in pairs.pairs]),
        np.array([pair.caption_id for pair in pairs.pairs]),
        np.array(pairs.kinds),
    )


def _made(pairs: Pairs, encoded: Encoded, seed: int) -> Labelled:
    """Return the right pairs, and as many wrong ones of each kind made of them."""
    import numpy as np

    rows = [(pair.image_id, pair.caption_id, RIGHT) for pair in pairs.pairs]
    for pair, drawn in zip(pairs.pairs, wrong_captions(pairs.pairs, seed=seed, count=1), strict=True):
        rows += [(pair.image_id, pairs.pairs[other].caption_id, "shuffled texts") for other in drawn]
    if encoded.itc is not None:
        pictures = np.array([pair.image_id for pair in pairs.pairs])
        texts = np.array([pair.caption_id for pair in pairs.pairs])
        seen = (encoded.itc.pictures[picture] for picture in pictures)
        hardest = hardest_captions(seen, encoded.itc.texts[texts].astype(np.float64), pairs.pairs)
        for pair, hard in zip(pairs.pairs, hardest, strict=True):
            if hard is not None:
                rows.append((pair.image_id, pairs.pairs[hard].caption_id, "the hardest by ITC"))
    # Two right pairs of a picture may have one hardest text: it is one wrong pair.
    rows = list(dict.fromkeys(rows))
    pictures, texts = (np.array([row[part] for row in rows], dtype=np.int64) for part in (0, 1))
    return Labelled(pictures, texts, np.array([row[2] for row in rows]))
