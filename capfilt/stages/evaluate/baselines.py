"""What a filter is compared with that does not look: a classifier that reads the text alone.

Where it does well, wrong texts give themselves away (junk, file names, a style of their own), and to have
found them proves nothing of the picture.
"""

from __future__ import annotations

import itertools
import zlib
from typing import TYPE_CHECKING

from capfilt.draws import permutation
from capfilt.evaluation.caption_metrics import tokenised

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Numbers = NDArray[np.float64]
    Indices = NDArray[np.int64]

FOLDS = 5
BUCKETS = 1 << 14
"""Places that n-grams are hashed to; two that share one are one to the classifier."""
PENALTY = 1.0
"""Of half the squared weights, beside the sum of the losses over texts."""


def text_alone(texts: Sequence[str], is_right: Sequence[bool], same: Sequence[int], *, seed: int) -> Numbers:
    """Return, for each pair, how likely its text is a right one, by a classifier that never saw that text.

    Logistic regression over hashed words and pairs of words, cross-validated over `FOLDS` folds: pairs with
    equal numbers in `same` (equal texts) are on one side of every fold. Shape (pairs,). A fold whose training
    side has texts of one kind alone gets that kind's share.
    """
    import numpy as np

    labels = np.array(is_right, dtype=np.float64)
    grams = [_hashed(text) for text in texts]
    numbers = np.unique(np.array(same), return_inverse=True)[1]
    fold_of = permutation(int(numbers.max()) + 1, "text alone", seed)[numbers] % FOLDS
    scores = np.zeros(len(texts))
    for fold in range(FOLDS):
        judged, learnt = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        if len(judged) == 0:
            continue
        if len(set(labels[learnt])) < 2:
            scores[judged] = labels[learnt].mean() if len(learnt) else labels.mean()
            continue
        classifier = Classifier([grams[n] for n in learnt], labels[learnt])
        scores[judged] = classifier.probabilities([grams[n] for n in judged])
    return scores


class Classifier:
    """Logistic regression over bags of hashed n-grams, fitted to the end: there is one answer."""

    def __init__(self, grams: Sequence[Indices], labels: Numbers) -> None:
        import torch

        self.weights = torch.zeros(BUCKETS, 1, dtype=torch.float64, requires_grad=True)
        self.bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        self._wanted = torch.from_numpy(labels)
        self._bags = _bags(grams)
        optimizer = torch.optim.LBFGS(
            [self.weights, self.bias],
            max_iter=200,
            tolerance_grad=1e-6,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)

    def loss(self) -> Tensor:
        """Return what was made as small as it can be: log losses of all texts, and the penalty."""
        from torch.nn import functional

        logits = self._logits(self._bags)
        fit = functional.binary_cross_entropy_with_logits(logits, self._wanted, reduction="sum")
        return fit + PENALTY / 2 * self.weights.square().sum()

    def probabilities(self, grams: Sequence[Indices]) -> Numbers:
        """Return the probability of each text to be right, shape (texts,)."""
        import torch

        with torch.no_grad():
            found: Numbers = self._logits(_bags(grams)).sigmoid().numpy()
        return found

    def _logits(self, bags: tuple[Tensor, Tensor]) -> Tensor:
        from torch.nn import functional

        return functional.embedding_bag(bags[0], self.weights, bags[1], mode="sum")[:, 0] + self.bias


def _hashed(text: str) -> Indices:
    """Return the places of a text's different words and pairs of neighbours, ends of the text included."""
    import numpy as np

    words = ["", *tokenised(text), ""]
    grams = {word for word in words if word} | {f"{one} {two}" for one, two in itertools.pairwise(words)}
    places = {zlib.crc32(gram.encode("utf-8", "surrogatepass")) % BUCKETS for gram in grams}
    return np.array(sorted(places), dtype=np.int64)


def _bags(grams: Sequence[Indices]) -> tuple[Tensor, Tensor]:
    """Return all places in one row, and where each text's begin."""
    import numpy as np
    import torch

    ends = np.cumsum([len(mine) for mine in grams])
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    return torch.from_numpy(np.concatenate(grams)), torch.from_numpy(starts)
