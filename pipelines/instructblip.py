"""InstructBLIP's instruction tuning: for `capfilt pretrain` on a registry of instruction data.

Figures are the paper's (Dai et al., InstructBLIP, 2023, section 2.6). The instruction goes to the Q-Former,
too. What it makes is a captioner that can be asked anything, given with --prompt:

    capfilt pretrain REGISTRY.toml --out CAPTIONER --pipeline instructblip --init STAGE1 \\
        --set bundles.language=lmsys/vicuna-7b-v1.1
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from capfilt.errors import CapfiltError
from capfilt.settings import Augment, Blip2, Bootstrap, Language, Phase, QFormer, Trainable, Training

if TYPE_CHECKING:
    from capfilt.stages.context import Stage


class Choices(Bootstrap):
    """Language modelling of the answers of the data sets that are held in, sampled by their sizes."""

    model: Trainable = Blip2(
        family="instructblip",
        qformer=QFormer(max_tokens=128),  # code: max_txt_len, of what the Q-Former reads
        language=Language(max_tokens=128),  # code, of what the language model reads
    )
    pretrains: Literal["joint", "captioner"] = "captioner"
    pretrain: Training | None = Training(
        phases=(
            Phase(
                lm=1.0,
                steps=60_000,  # paper: at most
                batch_size=128,  # paper, with a language model of 7B (192 with 3B, 64 with 11 or 13B)
                learning_rate=1e-5,  # paper
                first_learning_rate=1e-8,  # paper
                warmup_steps=1000,  # paper
                weight_decay=0.05,  # paper
                clip_norm=1e6,  # not said
                label_smoothing=0.0,
            ),
        ),
        augment=Augment(crop_least=0.5),  # code: crops, and no flips, which change what is left and right
        checkpoint_every=1000,
        validate_every=3000,  # paper
        log_every=50,
    )


def stages(choices: Choices) -> list[Stage]:
    """Refuse: nobody bootstraps with a model that is not trained yet."""
    raise CapfiltError(
        f"pipeline {choices.pipeline} is a training and bootstraps nothing",
        fix="give it to `capfilt pretrain REGISTRY.toml --init STAGE1 --out CAPTIONER`, and then the bundle "
        "as --captioner to `capfilt bootstrap`",
    )
