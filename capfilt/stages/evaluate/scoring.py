"""Every picture encoded once, and any of its texts scored at any later time.

Which pairs ITM is asked of is known only when all features are (the candidates of ITC, the hardest wrong
captions), and encoding a picture costs more than reading many texts beside it. So image states are kept, in
memory while they fit and in a file beyond.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError, RunFailedError
from capfilt.evaluation.similarities import similarities_of_pairs
from capfilt.models.protocols import ImageBatch, PairFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from capfilt.models.protocols import FeatureFilter
    from capfilt.stages.evaluate.dual_encoder import DualEncoder
    from capfilt.stages.evaluate.pairs import Pairs

    Numbers32 = NDArray[np.float32]
    Numbers = NDArray[np.float64]
    Indices = NDArray[np.int64]

TEXTS_AT_ONCE = 256
"""Texts whose features are computed side by side."""
_PAIRS_AT_ONCE = 4096
STATES_IN_MEMORY = 2 << 30
"""Bytes of image states beyond which they are kept in a file."""


@dataclass
class EncodedBatch(ImageBatch):
    """Pictures whose image states can be taken away and given back: one filter asks for them, none other."""

    kept: Tensor | None = None

    def states(self, encoder: tuple[str, ...], encode: Callable[[], Tensor]) -> Tensor:  # noqa: ARG002
        """Return the states that were given back, or make them."""
        if self.kept is None:
            self.kept = encode()
        return self.kept


@dataclass(frozen=True)
class Features:
    """Features of unit length of all pictures and all texts, on the host."""

    pictures: Numbers32
    """Shape (pictures, embed) or (pictures, queries, embed)."""
    texts: Numbers32
    """Shape (texts, embed)."""

    def cosines(self, pictures: Indices, texts: Indices) -> Numbers:
        """Return the cosines of these pairs, shape (pairs,)."""
        import numpy as np

        found: Numbers = np.zeros(len(pictures))
        for start in range(0, len(pictures), _PAIRS_AT_ONCE):
            some = slice(start, start + _PAIRS_AT_ONCE)
            found[some] = similarities_of_pairs(self.pictures[pictures[some]], self.texts[texts[some]])
        return found


class Encoded:
    """All pictures of an evaluation, encoded once by a filter, and by a dual encoder where one is given."""

    def __init__(
        self,
        pairs: Pairs,
        filter_: FeatureFilter,
        *,
        batch_size: int,
        clip: DualEncoder | None = None,
        tell: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        """Encode; `tell` hears (pictures done, in all), where ITM comes to each picture once more."""
        self._pairs, self._filter, self._batch_size, self._tell = pairs, filter_, batch_size, tell
        self._matcher = filter_ if isinstance(filter_, PairFilter) and filter_.has_itm else None
        self._states: Tensor | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._total = pairs.pictures * (2 if self.has_itm else 1)
        self.itc: Features | None = None
        """None where the filter has no ITC."""
        self.clip: Features | None = None
        """None where no dual encoder is given."""
        self._encode(clip)

    @property
    def has_itm(self) -> bool:
        """Whether pairs can be asked for ITM."""
        return self._matcher is not None

    def __enter__(self) -> Encoded:
        return self

    def __exit__(self, *_: object) -> None:
        self._states = None
        if self._folder is not None:
            self._folder.cleanup()

    def _encode(self, clip: DualEncoder | None) -> None:
        import numpy as np

        ours, theirs = [], []
        count = self._pairs.pictures
        for numbers in _cut(np.arange(count), self._batch_size):
            plain = self._pairs.batch(numbers.tolist())
            batch = EncodedBatch(plain.pictures, plain.sha256)
            if self._filter.has_itc:
                ours.append(_host(self._filter.image_features(batch)))
            if self._matcher is not None:
                self._keep(numbers, self._matcher.image_states(batch))
            if clip is not None:
                theirs.append(clip.image_features(batch.pictures))
            self._tell(int(numbers[-1]) + 1, self._total)
        texts = self._pairs.texts
        some = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
        if ours:
            read = [_host(self._filter.text_features(few)) for few in some]
            self.itc = _checked(np.concatenate(ours), np.concatenate(read), "the filter")
        if clip is not None:
            read = [clip.text_features(few) for few in some]
            self.clip = _checked(np.concatenate(theirs), np.concatenate(read), "the dual encoder")

    def _keep(self, numbers: Indices, states: Tensor) -> None:
        if self._states is None:
            self._states = self._room((self._pairs.pictures, *states.shape[1:]), states)
        self._states[int(numbers[0]) : int(numbers[-1]) + 1] = states.to("cpu")

    def _room(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return room for the states of all pictures: memory, or a file that is gone with this process."""
        import torch

        size = math.prod(shape)
        needed = size * like.element_size()
        if needed <= STATES_IN_MEMORY:
            return torch.empty(shape, dtype=like.dtype)
        self._folder = tempfile.TemporaryDirectory(prefix="capfilt-evaluate-")
        free = shutil.disk_usage(self._folder.name).free
        if free < needed:
            raise CapfiltError(
                f"{shape[0]:,} encoded pictures take {needed / 2**30:.1f} GiB, and {self._folder.name} has "
                f"{free / 2**30:.1f} GiB left",
                fix="evaluate fewer pictures, e.g. --limit 1000, or name a larger disk in TMPDIR",
            )
        file = Path(self._folder.name) / "states"
        return torch.from_file(str(file), shared=True, size=size, dtype=like.dtype).view(shape)

    def itm_logits(self, pictures: Indices, texts: Indices) -> Numbers:
        """Return ITM's logits of different pairs, shape (pairs, 2), column 1 for a match."""
        import numpy as np

        logits = np.zeros((len(pictures), 2))
        order = np.argsort(pictures, kind="stable")
        names, firsts, counts = np.unique(pictures[order], return_index=True, return_counts=True)
        done = 0
        # Pictures with about as many texts stand side by side, so that few places in a row are empty.
        for some in _cut(np.argsort(counts, kind="stable"), self._batch_size):
            mine = [order[firsts[n] : firsts[n] + counts[n]] for n in some]
            found = self._logits_of(names[some], [[self._pairs.texts[t] for t in texts[m]] for m in mine])
            for row, places in zip(found, mine, strict=True):
                logits[places] = row[: len(places)]
            done += len(some)
            self._tell(self._pairs.pictures + done, self._total)
        if not np.isfinite(logits).all():
            raise _not_finite("the filter")
        return logits

    def _logits_of(self, pictures: Indices, texts: list[list[str]]) -> Numbers:
        import torch

        assert self._states is not None
        assert self._matcher is not None
        kept = self._states[torch.from_numpy(pictures)].to(self._filter.device)
        batch = EncodedBatch([], [self._pairs.sha256(int(n)) for n in pictures], kept=kept)
        found: Numbers = self._matcher.itm_logits(batch, texts).double().cpu().numpy()
        return found


def match_probability(logits: Numbers) -> Numbers:
    """Return the probability of a match, shape (pairs,), of logits (pairs, 2)."""
    import numpy as np

    found: Numbers = np.exp(-np.logaddexp(0.0, logits[:, 0] - logits[:, 1]))
    return found


def _cut(numbers: Indices, most: int) -> Iterator[Indices]:
    return (numbers[start : start + most] for start in range(0, len(numbers), most))


def _host(features: Tensor) -> Numbers32:
    found: Numbers32 = features.float().cpu().numpy()
    return found


def _checked(pictures: Numbers32, texts: Numbers32, whose: str) -> Features:
    import numpy as np

    if not (np.isfinite(pictures).all() and np.isfinite(texts).all()):
        raise _not_finite(whose)
    return Features(pictures, texts)


def _not_finite(whose: str) -> RunFailedError:
    return RunFailedError(
        f"the scores of {whose} are no finite numbers",
        fix="give a model whose training did not diverge, or try --precision fp32",
    )
