"""The three objectives as pure functions: ITC, ITM with hard negatives, LM (BLIP, section 3.2).

They take tensors and give tensors, hold for every batch size down to one, and know no model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from capfilt.models.devices import widened


def itc_loss(similarities: Tensor, same: Tensor, temperature: Tensor) -> Tensor:
    """Image-text contrastive loss of one batch.

    `similarities` (batch, batch) are cosines, images by texts. `same` (batch, batch) is true for the
    pair itself and for pairs with an equal image or caption: the target is spread evenly over them,
    as over one image's captions in BLIP's retrieval. Mean of both directions' cross entropies; 0 for
    a single pair. Source: BLIP, section 3.2, ITC.
    """
    logits = similarities / temperature
    targets = same.to(logits.dtype)
    to_text = -(F.log_softmax(logits, dim=1) * targets / targets.sum(1, keepdim=True)).sum(1).mean()
    to_image = -(F.log_softmax(logits, dim=0) * targets / targets.sum(0, keepdim=True)).sum(0).mean()
    return (to_text + to_image) / 2


def draw_hard_negatives(similarities: Tensor, same: Tensor, temperature: Tensor, numbers: Tensor) -> Tensor:
    """Draw one wrong column for each row, the likelier the more similar it looks.

    `similarities` (rows, columns) are cosines, `same` marks columns that are right for the row and
    never drawn, `numbers` (rows,) are uniform in [0, 1). Weights are the softmax of similarity by
    temperature over the admissible columns. Returns long (rows,): a column, or -1 where none is
    admissible. Source: BLIP, section 3.2, ITM (hard negatives of Li et al., ALBEF, 2021).
    """
    logits = (similarities.detach() / temperature.detach()).double().masked_fill(same, -torch.inf)
    possible = (~same).any(1)
    weights = torch.softmax(logits.masked_fill(~possible[:, None], 0.0), dim=1).masked_fill(same, 0.0)
    edges = weights.cumsum(1)
    # A number times the whole mass never reaches the last edge, so the first edge above it exists.
    drawn = (edges <= (numbers[:, None].double() * edges[:, -1:])).sum(1)
    # Rounding may leave the draw on a column without weight at the very end: step back to the last with one.
    last = weights.shape[1] - 1 - (weights.flip(1) > 0).long().argmax(1)
    return torch.where(possible, torch.minimum(drawn, last), -1)


def itm_loss(logits: Tensor, matches: Tensor, counts: Tensor | None = None) -> Tensor:
    """Image-text matching loss: cross entropy of (rows, 2) logits, column 1 for a match.

    `matches` (rows,) is true for a right pair. The mean is over the rows where `counts` (rows,) is
    true, all of them if it is not given. Source: BLIP, section 3.2, ITM.
    """
    targets = matches.long() if counts is None else matches.long().masked_fill(~counts, -100)
    return F.cross_entropy(widened(logits), targets, ignore_index=-100)


def lm_loss(logits: Tensor, ids: Tensor, real: Tensor, *, label_smoothing: float = 0.1) -> Tensor:
    """Language modelling loss: each token from those before it and the image.

    `logits` (rows, tokens, vocabulary) at the positions of `ids` (rows, tokens), `real` true where a
    token is no padding; the first token starts the text and is not a target. Mean over the tokens
    that count. Source: BLIP, section 3.2, LM, label smoothing 0.1.
    """
    targets = ids[:, 1:].masked_fill(~real[:, 1:], -100)
    return F.cross_entropy(
        widened(logits[:, :-1].flatten(0, 1)),
        targets.flatten(),
        label_smoothing=label_smoothing,
        ignore_index=-100,
    )
