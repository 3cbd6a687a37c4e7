"""A small drawn world, from scratch in minutes on two cores: what `make demo` runs.

Captioner and filter are trained for themselves, side by side. With so few steps a joint model for both
leaves half of its kept captions wrong, and fine-tuning after a joint pre-training comes too late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.settings import Bootstrap, Compute, Decoding, Images, Judge, Model, Phase, Text, Training, Vision
from capfilt.stages.export import ExportPairs
from capfilt.stages.judge import JudgePairs
from capfilt.stages.process import RecaptionAndScore
from capfilt.stages.train import models_to_train

if TYPE_CHECKING:
    from capfilt.stages.context import Stage


class Choices(Bootstrap):
    """A ViT behind a convolutional stem at 32 px, two text layers, some 2,000 steps."""

    model: Model = Model(
        images=Images(size_px=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        vision=Vision(patch_px=8, width=96, layers=3, heads=4, stem="convolution"),
        text=Text(width=96, layers=2, heads=4, feed_forward=384, vocabulary=400, dropout=0.0),
        embed=64,
    )
    # Small batches: for equal time more and smaller steps teach ITM sooner.
    captioner_training: Training = Training(
        phases=(Phase(lm=1.0, steps=2200, batch_size=32, learning_rate=1e-3),)
    )
    # ITM waits until ITC's similarities make its negatives hard, and no longer: it learns slowest.
    filter_training: Training = Training(
        phases=(Phase(itc=1.0, itm=1.0, itm_from=0.2, steps=1700, batch_size=32, learning_rate=1e-3),)
    )
    # What a next round starts from, and what the arms of `evaluate gain` are: one model for all three losses.
    next_round: Training | None = Training(
        phases=(
            Phase(itc=1.0, itm=1.0, lm=1.0, itm_from=0.2, steps=2000, batch_size=32, learning_rate=1e-3),
        ),
        validate_every=200,
    )
    # 90% of held-out clean pairs pass: the paper's 0.5 is strict after one right pair to two wrong ones.
    judge: Judge = Judge(itm="auto:recall=0.9")
    decoding: Decoding = Decoding(min_tokens=5, max_tokens=20)
    # bf16 is slower than fp32 for widths of about 100.
    compute: Compute = Compute(precision="fp32")


def stages(choices: Choices) -> list[Stage]:
    """Train what is not given, go over the web shards once, judge, export."""
    return [
        *models_to_train(choices),
        RecaptionAndScore(choices.recaption, choices.score),
        JudgePairs(),
        ExportPairs(),
    ]
