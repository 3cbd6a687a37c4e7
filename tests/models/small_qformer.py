"""A Q-Former that is small and random but not degenerate; see `small_models`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from small_models import enlarge

from capfilt.models.qformer import QFormer
from capfilt.settings import Blip2, Images, Vision
from capfilt.settings import QFormer as Structure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capfilt.models.cards import Objective

SMALL_BLIP2 = Blip2(
    images=Images(size_px=16),
    vision=Vision(patch_px=8, width=32, layers=2, heads=4),
    qformer=Structure(queries=3, width=48, layers=3, heads=4, feed_forward=96, max_tokens=16, dropout=0.0),
    embed=16,
)


def small_qformer(objectives: Iterable[Objective], size: int, settings: Blip2 = SMALL_BLIP2) -> QFormer:
    """Return a Q-Former with large random weights, in evaluation mode, fp32 on the CPU."""
    model = QFormer(settings, size, objectives)
    enlarge(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "crossattention." in name and parameter.ndim > 1:
                parameter.mul_(3)  # or queries hardly depend on the picture
        if "itm" in model.objectives:
            model.itm_head.weight.mul_(3)
    return model.eval()
