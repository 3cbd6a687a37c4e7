"""Write synthetic captions for a batch of decoded pictures; opens no shard, decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.records import Caption, Source

if TYPE_CHECKING:
    from capfilt.models.protocols import Captioner, ImageBatch
    from capfilt.settings import SettledDecoding


def recaption(
    captioner: Captioner, batch: ImageBatch, decoding: SettledDecoding, *, seed: int, candidates: int
) -> list[list[Caption]]:
    """Return the synthetic captions of each picture, in the order of their candidate numbers."""
    texts = captioner.caption(batch, decoding, seed=seed, candidates=candidates)
    return [
        [Caption(text, Source.SYNTHETIC, candidate) for candidate, text in enumerate(mine)] for mine in texts
    ]
