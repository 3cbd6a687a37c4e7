from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from capfilt.models.protocols import ImageBatch
from capfilt.records import Caption, Source
from capfilt.settings import SettledDecoding
from capfilt.stages.recaption import recaption

if TYPE_CHECKING:
    from collections.abc import Sequence


class Echo:
    """A captioner that says what it was asked."""

    digest = "e" * 64

    def caption(
        self, batch: ImageBatch, decoding: SettledDecoding, *, seed: int, candidates: int
    ) -> Sequence[list[str]]:
        return [[f"{sha} {decoding.top_p} {seed} {n}" for n in range(candidates)] for sha in batch.sha256]


def test_candidates_are_numbered_in_their_order() -> None:
    batch = ImageBatch([Image.new("RGB", (2, 2))] * 2, ["a", "b"])

    captions = recaption(Echo(), batch, SettledDecoding(top_p=0.5), seed=3, candidates=2)

    assert captions == [
        [Caption(f"{sha} 0.5 3 0", Source.SYNTHETIC, 0), Caption(f"{sha} 0.5 3 1", Source.SYNTHETIC, 1)]
        for sha in ("a", "b")
    ]
