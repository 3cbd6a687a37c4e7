"""BLIP's pre-training of the large model (ViT-L/16, 224 px, 20 passes): for `capfilt pretrain`, on GPUs.

What it does not name is as in pretrain_blip_base; figures and sources are given there. The released code
drops a tenth of the ViT's residual branches (stochastic depth); the paper does not speak of it, and it is
not done here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError
from capfilt.settings import Augment, Bootstrap, Images, Model, Phase, Text, Training, Vision

if TYPE_CHECKING:
    from capfilt.stages.context import Stage


class Choices(Bootstrap):
    """ViT-L/16 and a BERT base with cross-attention; see pretrain_blip_base for what to start from."""

    model: Model = Model(
        images=Images(size_px=224),
        vision=Vision(patch_px=16, width=1024, layers=24, heads=16),  # ViT-L/16
        text=Text(max_tokens=30, dropout=0.1),
        embed=256,
        temperature=0.07,
    )
    pretrain: Training | None = Training(
        phases=(
            Phase(
                itc=1.0,
                itm=1.0,
                lm=1.0,
                epochs=20,
                batch_size=2400,  # paper
                learning_rate=2e-4,  # paper
                first_learning_rate=1e-6,
                warmup_steps=3000,
                decay=0.85,  # paper; code: 0.9
                final_learning_rate=1e-6,
                weight_decay=0.05,
                decays="everything",
                clip_norm=1e6,
                label_smoothing=0.1,
                momentum=0.995,
                queue=57600,
                alpha=0.4,
                alpha_epochs=1.0,
                negatives_by="momentum",
                negatives_floor=1e-4,
            ),
        ),
        augment=Augment(crop_least=0.2, flip=0.5, operations=2, magnitude=5),
        gradient_checkpointing=True,  # code: vit_grad_ckpt for the large model
        checkpoint_every=1000,
        validate_every=1000,
        log_every=50,
    )


def stages(choices: Choices) -> list[Stage]:
    """Refuse: nobody bootstraps with a model that is not trained yet."""
    raise CapfiltError(
        f"pipeline {choices.pipeline} is a pre-training and bootstraps nothing",
        fix="give it to `capfilt pretrain DATA --out BUNDLE`, and then the bundle as --init to `capfilt "
        "bootstrap --pipeline blip_base`",
    )
