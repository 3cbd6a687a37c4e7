"""Models that are small and random but not degenerate: other pictures and other texts give other answers.

Freshly initialised weights are so small that every picture gets the same caption, and a test on them
passes whatever the code does.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from capfilt.models.bundle import Bundle, Packed, pack
from capfilt.models.med import MED
from capfilt.models.protocols import ImageBatch
from capfilt.settings import Images, Model, Text, Vision

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from capfilt.models.cards import Kind, Objective
    from capfilt.models.vocabulary import Vocabulary

WORDS = [
    "a red circle above a blue square",
    "the small green cat sleeps under the table",
    "two dogs run slowly on the long beach",
]
SMALL = Model(
    images=Images(size_px=16),
    vision=Vision(patch_px=8, width=32, layers=2, heads=4),
    text=Text(width=48, layers=2, heads=4, feed_forward=96, vocabulary=160, max_tokens=16, dropout=0.0),
    embed=16,
)


def small_med(objectives: Iterable[Objective], size: int, settings: Model = SMALL, *, seed: int = 0) -> MED:
    """Return a model with large random weights, in evaluation mode, fp32 on the CPU."""
    model = MED(settings, size, objectives)
    enlarge(model, seed=seed)
    return model.eval()


@torch.no_grad()
def enlarge(model: torch.nn.Module, *, seed: int = 0) -> None:
    """Draw all weights anew, so large that every part of the model matters."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
        if name.endswith("temperature"):
            continue
        if "cross." in name and parameter.ndim > 1:
            parameter.copy_(noise * 0.4)  # or captions hardly depend on the picture
        elif "words" in name or "positions" in name or "pos_embed" in name or "cls_token" in name:
            parameter.copy_(noise * 0.3)
        elif parameter.ndim > 1:
            parameter.copy_(noise * 0.15)
        elif name.endswith("weight"):
            parameter.copy_(1 + noise * 0.1)
        else:
            parameter.copy_(noise * 0.05)


def small_packed(
    path: Path, kind: Kind, model: MED, vocabulary: Vocabulary, settings: Model = SMALL
) -> Packed:
    """Return a model as a bundle that is not written yet."""
    return pack(
        path,
        kind=kind,
        model=model,
        settings=settings,
        vocabulary=vocabulary,
        parent=None,
        data="d" * 64,
        training={"steps": 3},
        versions={"torch": "none"},
    )


def small_bundle(path: Path, kind: Kind, objectives: Iterable[Objective], vocabulary: Vocabulary) -> Bundle:
    """Return a bundle of a small model; nothing is written."""
    return small_packed(path, kind, small_med(objectives, len(vocabulary)), vocabulary).bundle


def pictures(count: int, *, seed: int = 0) -> ImageBatch:
    """Return pictures of coarse random colours and various sizes, each with a digest of its own."""
    generator = np.random.Generator(np.random.PCG64(seed))
    made = []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        width, height = (int(side) for side in generator.integers(12, 40, 2))
        made.append(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return ImageBatch(made, [hashlib.sha256(f"{seed} {n}".encode()).hexdigest() for n in range(count)])


def part(batch: ImageBatch, rows: Iterable[int]) -> ImageBatch:
    """Return some pictures of a batch, in this order."""
    rows = list(rows)
    return ImageBatch([batch.pictures[row] for row in rows], [batch.sha256[row] for row in rows])
