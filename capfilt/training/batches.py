"""Clean pairs as batches, in an order keyed by seed and epoch, so that a resumed training sees the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from capfilt.data.images import normalise
from capfilt.draws import permutation
from capfilt.training.objectives import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.data.clean import CleanSet
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings import Images


class PairBatches:
    """Batches of some pairs of a clean set, on a device."""

    def __init__(
        self,
        clean: CleanSet,
        indices: Sequence[int],
        *,
        vocabulary: Vocabulary,
        images: Images,
        max_tokens: int,
        device: torch.device,
    ) -> None:
        self._clean, self._indices = clean, np.asarray(indices, dtype=np.int64)
        self._images, self._device = images, device
        pairs = [clean.pairs[index] for index in indices]
        self._ids, self._real = vocabulary.encode([pair.text for pair in pairs], "cls", max_tokens)
        self._image_ids = torch.tensor([pair.image_id for pair in pairs])
        self._caption_ids = torch.tensor([pair.caption_id for pair in pairs])

    def __len__(self) -> int:
        return len(self._indices)

    def steps_in_epoch(self, batch_size: int) -> int:
        """Return how many batches one pass takes, the last and smaller one included."""
        return math.ceil(len(self) / batch_size)

    def at(self, step: int, batch_size: int, parts: int, *key: str | int) -> Batch:
        """Return the batch of a step, counted from 0, in epochs shuffled by the key.

        The last batch of an epoch is smaller, but a multiple of the parts it is computed in.
        """
        epoch, position = divmod(step, self.steps_in_epoch(batch_size))
        order = permutation(len(self), "epoch", *key, epoch)
        rows = order[position * batch_size : (position + 1) * batch_size]
        return self.rows(rows[: max(parts, len(rows) // parts * parts)])

    def rows(self, rows: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
        """Return the batch of these pairs."""
        picked = torch.as_tensor(np.asarray(rows))
        real = self._real[picked]
        longest = int(real.sum(1).max())
        squares = torch.from_numpy(self._clean.squares(self._indices[picked.numpy()].tolist(), self._images))
        pixels = normalise(squares.to(self._device, non_blocking=True), self._images)
        return Batch(
            pixels=pixels,
            ids=self._ids[picked, :longest].to(self._device),
            real=real[:, :longest].to(self._device),
            image_ids=self._image_ids[picked].to(self._device),
            caption_ids=self._caption_ids[picked].to(self._device),
        )
