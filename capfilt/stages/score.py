"""Score the captions of a batch of decoded pictures; opens no shard, decides nothing.

A picture is encoded once, and its web text and all its candidates are scored together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.models.protocols import Filter, ImageBatch
    from capfilt.records import Caption, Scores


def score(model: Filter, batch: ImageBatch, captions: Sequence[Sequence[Caption]]) -> list[list[Scores]]:
    """Return the scores of each picture's captions, in their order."""
    return model.score(batch, [[caption.text for caption in mine] for mine in captions])
