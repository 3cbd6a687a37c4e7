"""BLIP-2 as captioner and filter, on a language model that reads and answers (FlanT5).

As blip2_opt, with prefix language modelling: the encoder reads queries and the beginning of a caption, the
decoder writes the rest (Li et al., BLIP-2, 2023, section 3.3).

    capfilt bootstrap WEB --clean CLEAN --out RUN --pipeline blip2_t5 \\
        --set bundles.vision=MODEL --set bundles.language=google/flan-t5-base
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.settings import Blip2, Bootstrap, Phase, Trainable, Training
from capfilt.stages.export import ExportPairs
from capfilt.stages.judge import JudgePairs
from capfilt.stages.process import RecaptionAndScore
from capfilt.stages.train import models_to_train

if TYPE_CHECKING:
    from capfilt.stages.context import Stage


class Choices(Bootstrap):
    """Stage 1 from scratch, or from `--init STAGE1`, which a pre-training on more pairs made."""

    model: Trainable = Blip2()
    pretrain: Training | None = Training(
        phases=(
            Phase(
                itc=1.0,
                itm=1.0,
                lm=1.0,
                itm_from=0.1,
                epochs=10,
                batch_size=64,
                learning_rate=1e-4,
                itc_smoothing=0.1,
            ),
        )
    )
    captioner_training: Training = Training(
        phases=(Phase(lm=1.0, epochs=5, batch_size=64, learning_rate=1e-4, label_smoothing=0.0),)
    )
    filter_training: Training = Training(
        phases=(Phase(itc=1.0, itm=1.0, epochs=5, batch_size=64, learning_rate=1e-5, itc_smoothing=0.1),)
    )


def stages(choices: Choices) -> list[Stage]:
    """Train what is not given, go over the web shards once, judge, export."""
    return [
        *models_to_train(choices),
        RecaptionAndScore(choices.recaption, choices.score),
        JudgePairs(),
        ExportPairs(),
    ]
