"""BLIP's pre-training of the base model (ViT-B/16, 224 px, 20 passes): for `capfilt pretrain`, on GPUs.

Figures are the paper's (Li et al., BLIP, 2022, section 4.1) where it gives one, else the released code's
(salesforce/BLIP, configs/pretrain.yaml, pretrain.py, utils.py). Where the two differ both are named. The
code also cleans captions (lower case, no punctuation, 30 words); here they are trained on as they stand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError
from capfilt.settings import Augment, Bootstrap, Images, Model, Phase, Text, Training, Vision

if TYPE_CHECKING:
    from capfilt.stages.context import Stage


class Choices(Bootstrap):
    """ViT-B/16 and a BERT base with cross-attention, from scratch unless `bundles` says what to start from.

    The paper starts the image encoder from a ViT pre-trained on ImageNet and the text from BERT base:
    --set bundles.vision=timm --set model.vision=vit_base_patch16_224 --set bundles.text=bert-base-uncased
    """

    model: Model = Model(
        images=Images(size_px=224),  # paper: 224 in pre-training, 384 in fine-tuning
        vision=Vision(patch_px=16, width=768, layers=12, heads=12),
        text=Text(max_tokens=30, dropout=0.1),  # code: 30 tokens in pre-training
        embed=256,  # code
        temperature=0.07,  # code
    )
    pretrain: Training | None = Training(
        phases=(
            Phase(
                itc=1.0,
                itm=1.0,
                lm=1.0,  # paper: the three are summed
                epochs=20,  # paper
                batch_size=2880,  # paper; the code's configuration gives 75 a GPU, 600 on eight of them
                learning_rate=3e-4,  # paper
                first_learning_rate=1e-6,  # code: warmup_lr
                warmup_steps=3000,  # code, where it ends with the first pass
                decay=0.85,  # paper; code: lr_decay_rate 0.9
                final_learning_rate=1e-6,  # code: min_lr
                weight_decay=0.05,  # paper; what decays it does not say, and the code decays everything
                decays="everything",
                clip_norm=1e6,  # neither clips gradients
                label_smoothing=0.1,  # paper: LM
                momentum=0.995,  # code
                queue=57600,  # code
                alpha=0.4,  # code
                alpha_epochs=1.0,  # ALBEF, whose soft labels these are; BLIP's code takes 2
                negatives_by="momentum",  # code
                negatives_floor=1e-4,  # code
            ),
        ),
        # paper: random crops and RandAugment; code: 0.2 of the area, two operations of strength 5, flips
        augment=Augment(crop_least=0.2, flip=0.5, operations=2, magnitude=5),
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
