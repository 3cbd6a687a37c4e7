"""BLIP-2's own CapFilt: ten captions a picture, ranked with its web text by CLIP; the best two are kept.

What was drawn twice counts once: a sure captioner draws its best caption again and again, and equal texts
have equal cosines, so that copies of it would take both places.

Nothing is trained and no threshold is set (Li et al., BLIP-2, 2023, section 3.4): BLIP's large captioner
writes, CLIP ViT-L/14 compares, and of the two texts that are best a training draws one each time it meets the
picture, as `capfilt pretrain` does with every picture of an export that has several.

    capfilt bootstrap WEB --out RUN --pipeline capfilt_blip2
    capfilt pretrain RUN/export --out MODEL --pipeline blip2_stage1
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.settings import Bootstrap, Bundles, Decoding, Export, Judge
from capfilt.stages.export import ExportPairs
from capfilt.stages.judge import JudgePairs
from capfilt.stages.process import RecaptionAndScore
from capfilt.stages.train import models_to_train

if TYPE_CHECKING:
    from capfilt.stages.context import Stage


class Choices(Bootstrap):
    """The paper's models; `--captioner` and `--filter` take any others that write and that measure ITC."""

    bundles: Bundles = Bundles(
        captioner="Salesforce/blip-image-captioning-large", filter="openai/clip-vit-large-patch14"
    )
    candidates: int = 10
    # The paper does not say how the captions are drawn; BLIP's own CapFilt does (section 3.3).
    decoding: Decoding = Decoding(method="nucleus", top_p=0.9)
    judge: Judge = Judge(per_image=2, by="itc")
    export: Export = Export(texts="all")


def stages(choices: Choices) -> list[Stage]:
    """Go over the web shards once, judge, export; a model that is taken away is trained."""
    return [
        *models_to_train(choices),
        RecaptionAndScore(choices.recaption, choices.score),
        JudgePairs(),
        ExportPairs(),
    ]
