"""Steps of a tiny model in double precision, on random pixels and ids: no picture is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from small_models import enlarge

from capfilt.models.med import MED
from capfilt.settings import Images, Model, Phase, Text, Vision
from capfilt.training.momentum import Momentum
from capfilt.training.objectives import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.models.cards import Objective
    from capfilt.models.vocabulary import First

PLAIN = Model(
    images=Images(size_px=16),
    vision=Vision(patch_px=8, width=16, layers=1, heads=2),
    text=Text(width=16, layers=1, heads=2, feed_forward=32, max_tokens=16, dropout=0.0),
    embed=8,
)
SIZE, LONGEST = 24, 9
"""Words of the vocabulary; tokens of the longest text, which every batch has."""
FIRST: dict[First, int] = {"cls": 2, "dec": 5, "enc": 6}
SEP = 3


class Words:
    """A vocabulary as far as a step asks for it."""

    sep = SEP

    def first_id(self, first: First) -> int:
        return FIRST[first]


def double_model(
    objectives: Sequence[Objective] = ("itc", "itm", "lm"), *, seed: int = 0, settings: Model = PLAIN
) -> MED:
    """Return a model with large random weights that trains."""
    model = MED(settings, SIZE, objectives).double()
    enlarge(model, seed=seed)
    with torch.no_grad():
        if "itc" in objectives:
            model.temperature.fill_(0.2)
    return model.train()


def random_batch(
    pairs: int, seed: int, images: Sequence[int] | None = None, captions: Sequence[int] | None = None
) -> Batch:
    """Return pairs of various lengths, the last of them the longest; equal ids are equal pixels and texts."""
    images = range(1000 * seed, 1000 * seed + pairs) if images is None else images
    captions = range(1000 * seed, 1000 * seed + pairs) if captions is None else captions
    ids, lengths = [], []
    for caption in captions:
        generator = torch.Generator().manual_seed(caption)
        lengths.append(int(torch.randint(4, LONGEST + 1, (), generator=generator)))
        words = torch.randint(7, SIZE, (LONGEST,), generator=generator)
        words[0], words[lengths[-1] - 1], words[lengths[-1] :] = FIRST["cls"], SEP, 0
        ids.append(words)
    pixels = [
        torch.randn(3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(image))
        for image in images
    ]
    return Batch(
        torch.stack(pixels),
        torch.stack(ids),
        torch.arange(LONGEST) < torch.tensor(lengths)[:, None],
        torch.tensor(list(images)),
        torch.tensor(list(captions)),
    )


def double_momentum(model: MED, *, keep: float = 0.9, queue: int = 0) -> Momentum:
    """Return a momentum encoder that is not the model any more, its queues in double precision."""
    momentum = Momentum(model, keep=keep, queue=queue)
    momentum.queue.double()
    generator = torch.Generator().manual_seed(77)
    with torch.no_grad():
        for weights in momentum.encoder.parameters():
            weights.add_(0.05 * torch.randn(weights.shape, generator=generator, dtype=torch.float64))
    return momentum


def joint_phase(**changes: Any) -> Phase:
    return Phase.model_validate({"itc": 1.0, "itm": 1.0, "lm": 1.0, **changes})
