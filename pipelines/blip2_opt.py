"""BLIP-2 as captioner and filter, on a language model that continues text (OPT, Llama).

Stage 1 trains a Q-Former on the clean pairs between a frozen image encoder and text; the filter goes on from
it, and the captioner puts the same Q-Former before a frozen language model (Li et al., BLIP-2, 2023).

    capfilt bootstrap WEB --clean CLEAN --out RUN --pipeline blip2_opt \\
        --set bundles.vision=MODEL --set bundles.language=facebook/opt-125m
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.settings import Blip2, Bootstrap, Language, Phase, Trainable, Training
from capfilt.stages.export import ExportPairs
from capfilt.stages.judge import JudgePairs
from capfilt.stages.process import RecaptionAndScore
from capfilt.stages.train import models_to_train

if TYPE_CHECKING:
    from capfilt.stages.context import Stage


class Choices(Bootstrap):
    """Stage 1 from scratch, or from `--init STAGE1`, which a pre-training on more pairs made."""

    model: Trainable = Blip2(language=Language(ends_with="\n"))
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
