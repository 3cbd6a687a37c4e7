from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from capfilt.models.protocols import ImageBatch
from capfilt.records import Caption, Scores, Source
from capfilt.stages.score import score

if TYPE_CHECKING:
    from collections.abc import Sequence


class Measuring:
    """A filter that measures the length of a text, and remembers what it was given."""

    digest = "m" * 64

    def score(self, batch: ImageBatch, texts: Sequence[Sequence[str]]) -> list[list[Scores]]:
        self.given = list(zip(batch.sha256, texts, strict=True))
        return [[Scores(itm=len(text) / 10) for text in mine] for mine in texts]


def test_all_captions_of_a_picture_are_scored_with_it_in_their_order() -> None:
    measuring = Measuring()
    batch = ImageBatch([Image.new("RGB", (2, 2))] * 2, ["a", "b"])

    scores = score(measuring, batch, [[Caption("abc", Source.WEB), Caption("a", Source.SYNTHETIC)], []])

    assert measuring.given == [("a", ["abc", "a"]), ("b", [])]
    assert scores == [[Scores(itm=0.3), Scores(itm=0.1)], []]
