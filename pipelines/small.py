"""From scratch in minutes on a CPU: a small MED, pre-trained jointly, then fine-tuned twice.

The order is the paper's (BLIP, figure 3); the sizes are for a few thousand clean pairs and two cores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.settings import Bootstrap, Compute, Decoding, Images, Model, Phase, Text, Training, Vision
from capfilt.stages.export import ExportPairs
from capfilt.stages.judge import JudgePairs
from capfilt.stages.process import RecaptionAndScore
from capfilt.stages.train import models_to_train

if TYPE_CHECKING:
    from capfilt.stages.context import Stage


class Choices(Bootstrap):
    """A ViT behind a convolutional stem at 48 px, two text layers."""

    model: Model = Model(
        images=Images(size_px=48),
        vision=Vision(patch_px=8, width=128, layers=3, heads=4, stem="convolution"),
        text=Text(width=128, layers=2, heads=4, feed_forward=512, vocabulary=2000, max_tokens=24),
        embed=64,
    )
    pretrain: Training | None = Training(
        phases=(Phase(itc=1.0, itm=1.0, lm=1.0, itm_from=0.2, steps=800, batch_size=32, learning_rate=1e-3),)
    )
    captioner_training: Training = Training(
        phases=(Phase(lm=1.0, steps=300, batch_size=32, learning_rate=3e-4),)
    )
    filter_training: Training = Training(
        phases=(Phase(itc=1.0, itm=1.0, steps=300, batch_size=32, learning_rate=3e-4),)
    )
    # Clean captions may be two words long; the default of 5 tokens would make such a captioner babble.
    decoding: Decoding = Decoding(min_tokens=2)
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
