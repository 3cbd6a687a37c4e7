"""A very small training on drawn pictures, that can be started, stopped and started again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import scenes
import torch

from capfilt.data.clean import CleanSet, read_clean
from capfilt.data.sources import find_shards
from capfilt.models.med import MED
from capfilt.models.vocabulary import Vocabulary, train_vocabulary
from capfilt.settings import Images, Input, Model, Phase, Text, Training, Vision
from capfilt.training.batches import PairBatches
from capfilt.training.loop import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from capfilt.models.cards import Objective
    from capfilt.training.objectives import Batch

TINY = Model(
    images=Images(size_px=16),
    vision=Vision(patch_px=8, width=16, layers=1, heads=2),
    text=Text(width=16, layers=1, heads=2, feed_forward=32, vocabulary=80, max_tokens=16, dropout=0.2),
    embed=8,
)
ALL: tuple[Objective, ...] = ("itc", "itm", "lm")


def drawn_pairs(folder: Path, count: int, *, cache_mb: int = 64) -> CleanSet:
    """Draw pictures with right captions and read them."""
    scenes.make(folder, seed=3, clean=count, web=0, per_shard=12)
    return read_clean(find_shards(folder / "clean"), Input(), TINY.images, cache_mb=cache_mb)


def words_of(pairs: CleanSet) -> Vocabulary:
    return train_vocabulary((pair.text for pair in pairs.pairs), TINY.text.vocabulary)


def batches(pairs: CleanSet, indices: Sequence[int], vocabulary: Vocabulary) -> PairBatches:
    return PairBatches(
        pairs,
        indices,
        vocabulary=vocabulary,
        images=TINY.images,
        max_tokens=TINY.text.max_tokens,
        device=torch.device("cpu"),
    )


def phase(**changes: Any) -> Phase:
    values: dict[str, Any] = {"itc": 1.0, "itm": 1.0, "lm": 1.0, "batch_size": 8, "learning_rate": 1e-2}
    return Phase(**{**values, **changes})


def training(*phases: Phase, every: int = 2) -> Training:
    return Training(phases=phases, checkpoint_every=every, validate_every=3, log_every=2)


def trainer(
    pairs: CleanSet,
    checkpoint: Path,
    training: Training,
    *,
    train: Sequence[int] | None = None,
    held_out: Sequence[int] = (),
    objectives: Sequence[Objective] = ALL,
    fingerprint: str = "print",
    progress: Callable[[int, int, int], None] = lambda *_: None,
    model: MED | None = None,
) -> Trainer:
    """Return a training that is about to begin or to go on; equal arguments give equal first weights."""
    vocabulary = words_of(pairs)
    torch.manual_seed(5)
    return Trainer(
        model=model or MED(TINY, len(vocabulary), objectives),
        vocabulary=vocabulary,
        training=training,
        train=batches(pairs, range(len(pairs.pairs)) if train is None else train, vocabulary),
        held_out=batches(pairs, held_out, vocabulary),
        name="joint",
        seed=7,
        autocast=None,
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        progress=progress,
    )


def same_pairs(batch: Batch) -> torch.Tensor:
    """(pairs, pairs): true for a pair itself and for pairs with an equal image or caption."""
    images, captions = batch.image_ids, batch.caption_ids
    return (images[:, None] == images[None]) | (captions[:, None] == captions[None])


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


def values_of(rows: list[dict[str, Any]], name: str, split: str = "train") -> list[float]:
    return [row["value"] for row in rows if row["name"] == name and row["split"] == split]
