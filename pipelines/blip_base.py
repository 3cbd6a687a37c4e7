"""BLIP's base model (ViT-B/16, 384 px, 12 layers; BLIP, section 4.1) as captioner and filter: the default.

Such a model is not trained from scratch on a few thousand pairs, so models are given, ours or those that
were released: a captioner and a filter to use, or one model to fine-tune both from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError
from capfilt.settings import Bootstrap, Phase, Training
from capfilt.stages.export import ExportPairs
from capfilt.stages.judge import JudgePairs
from capfilt.stages.process import RecaptionAndScore
from capfilt.stages.train import models_to_train

if TYPE_CHECKING:
    from capfilt.stages.context import Stage


class Choices(Bootstrap):
    """The paper's fine-tuning: captioning at 1e-5, matching and contrast at 1e-5, a few epochs."""

    captioner_training: Training = Training(
        phases=(Phase(lm=1.0, epochs=5, batch_size=32, learning_rate=1e-5),)
    )
    filter_training: Training = Training(
        phases=(Phase(itc=1.0, itm=1.0, epochs=6, batch_size=32, learning_rate=1e-5),)
    )


def stages(choices: Choices) -> list[Stage]:
    """Fine-tune what is not given, go over the web shards once, judge, export."""
    trained = models_to_train(choices)
    if trained and choices.bundles.init is None:
        missing = " and ".join(f"--{kind} MODEL" for kind in trained[-1].kinds)
        raise CapfiltError(
            "pipeline blip_base takes trained models, and none is given",
            fix=f"give {missing}, or --init MODEL to fine-tune from; or train small models from scratch "
            "with --pipeline small",
        )
    return [
        *trained,
        RecaptionAndScore(choices.recaption, choices.score),
        JudgePairs(),
        ExportPairs(),
    ]
