"""Clean pairs as batches, in an order keyed by seed and epoch, so that a resumed training sees the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from capfilt.data.augment import augmented, numbers_needed
from capfilt.data.images import normalise, to_square
from capfilt.draws import permutation, uniforms
from capfilt.models.devices import sent
from capfilt.training.objectives import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from capfilt.data.clean import CleanSet
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings import Augment, Images


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
        augment: Augment | None = None,
    ) -> None:
        """`augment` says how the pictures of a step are varied; without, not at all."""
        self._augment = augment
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
        return self._batch(rows[: max(parts, len(rows) // parts * parts)], *key, step)

    def rows(self, rows: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
        """Return the batch of these pairs, their pictures as they are."""
        return self._batch(rows)

    def _batch(
        self, rows: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]], *key: str | int
    ) -> Batch:
        """Return the batch of these pairs; with a key, which names the step, their pictures are varied."""
        picked = torch.as_tensor(np.asarray(rows))
        real = self._real[picked]
        longest = int(real.sum(1).max())
        squares = torch.from_numpy(self._squares(self._indices[picked.numpy()].tolist(), *key))
        pixels = normalise(sent(squares, self._device), self._images)
        return Batch(
            pixels=pixels,
            ids=sent(self._ids[picked, :longest], self._device),
            real=sent(real[:, :longest], self._device),
            image_ids=sent(self._image_ids[picked], self._device),
            caption_ids=sent(self._caption_ids[picked], self._device),
        )

    def _squares(self, indices: list[int], *key: str | int) -> NDArray[np.uint8]:
        if self._augment is None or not self._augment.is_on or not key:
            return self._clean.squares(indices, self._images)
        needed = numbers_needed(self._augment)
        varied = [
            augmented(
                self._clean.picture(index),
                self._augment,
                side=self._images.size_px,
                numbers=uniforms(needed, "augment", *key, row),
                transparency=self._images.transparency,
            )
            for row, index in enumerate(indices)
        ]
        return np.stack([to_square(picture, self._images) for picture in varied])
