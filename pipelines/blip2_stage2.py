"""BLIP-2's second stage: queries as soft prompts of a frozen language model, for `capfilt pretrain`.

Figures are the paper's (Li et al., BLIP-2, 2023, section 3.4) where it gives one, else the released code's
(salesforce/LAVIS, lavis/projects/blip2/train/pretrain_stage2.yaml). What it makes is a captioner:

    capfilt pretrain DATA --clean CLEAN --out CAPTIONER --pipeline blip2_stage2 --init STAGE1 \\
        --set bundles.language=facebook/opt-2.7b --set 'model.language.ends_with="\\n"'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from capfilt.errors import CapfiltError
from capfilt.settings import Augment, Blip2, Bootstrap, Phase, Trainable, Training

if TYPE_CHECKING:
    from capfilt.stages.context import Stage


class Choices(Bootstrap):
    """Language modelling with a decoder (OPT), prefix language modelling with an encoder-decoder (FlanT5)."""

    model: Trainable = Blip2()
    """Built as the first stage's model; the language model as `bundles.language` says."""
    pretrains: Literal["joint", "captioner"] = "captioner"
    pretrain: Training | None = Training(
        phases=(
            Phase(
                lm=1.0,
                steps=80_000,  # paper
                batch_size=1920,  # paper, with OPT (1520 with FlanT5)
                learning_rate=1e-4,  # paper
                final_learning_rate=5e-5,  # paper
                first_learning_rate=1e-6,  # code: warmup_lr
                warmup_steps=2000,  # paper
                weight_decay=0.05,  # paper
                beta2=0.98,  # paper
                clip_norm=1e6,  # neither clips gradients
                label_smoothing=0.0,  # code: the language model's own loss
            ),
        ),
        augment=Augment(crop_least=0.5, flip=0.5),
        checkpoint_every=1000,
        validate_every=1000,
        log_every=50,
    )


def stages(choices: Choices) -> list[Stage]:
    """Refuse: nobody bootstraps with a model that is not trained yet."""
    raise CapfiltError(
        f"pipeline {choices.pipeline} is a pre-training and bootstraps nothing",
        fix="give it to `capfilt pretrain DATA --init STAGE1 --out CAPTIONER`, and then the bundle as "
        "--captioner to `capfilt bootstrap --pipeline blip2_opt`",
    )
