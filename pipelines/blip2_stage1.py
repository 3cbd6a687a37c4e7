"""BLIP-2's first stage (Q-Former of BERT-base's size on a frozen ViT-g/14, 224 px): for `capfilt pretrain`.

Figures are the paper's (Li et al., BLIP-2, 2023, section 3.4) where it gives one, else the released code's
(salesforce/LAVIS, lavis/projects/blip2/train/pretrain_stage1.yaml). It takes a frozen image encoder, and the
paper starts the Q-Former from BERT base (section 3.1):

    capfilt pretrain DATA --clean CLEAN --out STAGE1 --pipeline blip2_stage1 --set bundles.vision=MODEL \\
        --set bundles.text=bert-base-uncased
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError
from capfilt.settings import Augment, Blip2, Bootstrap, Images, Phase, QFormer, Trainable, Training

if TYPE_CHECKING:
    from capfilt.stages.context import Stage


class Choices(Bootstrap):
    """ITC, ITM and image-grounded text generation, summed; `bundles.vision` says which image encoder."""

    model: Trainable = Blip2(
        images=Images(size_px=224),  # paper
        qformer=QFormer(queries=32, width=768, layers=12, heads=12, feed_forward=3072),  # paper, section 3.1
        embed=256,  # code
        temperature=0.07,  # code
    )
    pretrain: Training | None = Training(
        phases=(
            Phase(
                itc=1.0,
                itm=1.0,
                lm=1.0,
                steps=250_000,  # paper
                batch_size=1680,  # paper, with ViT-g (2320 with ViT-L)
                learning_rate=1e-4,  # paper
                final_learning_rate=1e-5,  # code: min_lr
                first_learning_rate=1e-6,  # code: warmup_lr
                warmup_steps=2000,  # paper
                weight_decay=0.05,  # paper
                beta2=0.98,  # paper
                clip_norm=1e6,  # neither clips gradients
                label_smoothing=0.1,  # code
                itc_smoothing=0.1,  # code
            ),
        ),
        # paper: random resized crops and flips; code: from half of the area on
        augment=Augment(crop_least=0.5, flip=0.5),
        checkpoint_every=1000,
        validate_every=1000,
        log_every=50,
    )


def stages(choices: Choices) -> list[Stage]:
    """Refuse: nobody bootstraps with a model that is not trained yet."""
    raise CapfiltError(
        f"pipeline {choices.pipeline} is a pre-training and bootstraps nothing",
        fix="give it to `capfilt pretrain DATA --out STAGE1`, and then the bundle as --init to `capfilt "
        "bootstrap --pipeline blip2_opt`",
    )
