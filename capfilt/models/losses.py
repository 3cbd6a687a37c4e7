"""The three objectives as pure functions: ITC, ITM with hard negatives, LM (BLIP, section 3.2).

They take tensors and give tensors, hold for every batch size down to one, and know no model and no process.
Who computes a part of a batch says by `of` how much the whole has; the losses of parts then add up.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from capfilt.models.devices import widened


def itc_loss(
    to_text: Tensor,
    right: Tensor,
    temperature: Tensor,
    *,
    to_image: Tensor | None = None,
    soft: tuple[Tensor, Tensor] | None = None,
    alpha: float = 0.0,
    smoothing: float = 0.0,
    of: int | None = None,
) -> Tensor:
    """Image-text contrastive loss: the mean of both directions' cross entropies.

    `to_text` (rows, columns) are cosines of images with texts, `to_image` (rows, columns) of texts with
    images; by default the columns are the rows and one is the transpose of the other. `right`
    (rows, columns) is true for the pair itself and for pairs with an equal image or caption: the hard
    target is spread evenly over them, as over one image's captions in BLIP's retrieval. `soft` are the same
    two tables of cosines by the momentum encoder; their softmax by temperature has the share `alpha` in the
    targets. `smoothing` spreads that share of every target evenly over all columns (LAVIS's BLIP-2). No
    gradient goes through the targets. The sum over rows is divided by `of`, the rows there are.
    0 for a single pair. Source: BLIP, section 3.2, ITC; soft labels: Li et al., ALBEF, 2021, section 3.3.
    """
    tables = (to_text, to_text.T if to_image is None else to_image)
    total = to_text.new_zeros(())
    for number, table in enumerate(tables):
        hard = right.to(table.dtype)
        targets = hard / hard.sum(1, keepdim=True)
        if soft is not None and alpha > 0:
            labels = (soft[number].detach() / temperature.detach()).softmax(1)
            targets = alpha * labels + (1 - alpha) * targets
        if smoothing > 0:
            targets = (1 - smoothing) * targets + smoothing / table.shape[1]
        total = total - (F.log_softmax(table / temperature, dim=1) * targets).sum()
    return total / (2 * (of or len(to_text)))


def negative_weights(similarities: Tensor, same: Tensor, temperature: Tensor, floor: float = 0.0) -> Tensor:
    """Return how likely each column is as a row's hard negative, not normalised, in double precision.

    `similarities` (rows, columns) are cosines, `same` marks columns that are right for the row and never
    drawn. The weights are the softmax of similarity by temperature. With a `floor` the softmax is over all
    columns, and the floor is added to it, as in BLIP's released pre-training; without, it is over the
    columns that may be drawn, which are then in the same proportions. Source: BLIP, section 3.2, ITM (hard
    negatives of Li et al., ALBEF, 2021).
    """
    logits = (similarities.detach() / temperature.detach()).double()
    if floor > 0:
        return (torch.softmax(logits, dim=1) + floor).masked_fill(same, 0.0)
    possible = (~same).any(1, keepdim=True)
    logits = logits.masked_fill(same, -torch.inf).masked_fill(~possible, 0.0)
    return torch.softmax(logits, dim=1).masked_fill(same, 0.0)


def drawn(weights: Tensor, numbers: Tensor) -> Tensor:
    """Return a column for each row of `weights` (rows, columns) by `numbers` (rows,), uniform in [0, 1).

    Long, shape (rows,); -1 where no column has weight.
    """
    edges = weights.cumsum(1)
    # A number times the whole mass never reaches the last edge, so the first edge above it exists.
    found = (edges <= (numbers[:, None].double() * edges[:, -1:])).sum(1)
    # Rounding may leave the draw on a column without weight at the very end: step back to the last with one.
    last = weights.shape[1] - 1 - (weights.flip(1) > 0).long().argmax(1)
    return torch.where(weights.sum(1) > 0, torch.minimum(found, last), -1)


def draw_hard_negatives(
    similarities: Tensor, same: Tensor, temperature: Tensor, numbers: Tensor, floor: float = 0.0
) -> Tensor:
    """Draw one wrong column for each row, the likelier the more similar it looks; see `negative_weights`.

    Returns long (rows,): a column, or -1 where none is admissible.
    """
    return drawn(negative_weights(similarities, same, temperature, floor), numbers)


def itm_loss(
    logits: Tensor, matches: Tensor, counts: Tensor | None = None, *, of: Tensor | None = None
) -> Tensor:
    """Image-text matching loss: cross entropy of (rows, 2) logits, column 1 for a match.

    `matches` (rows,) is true for a right pair. The mean is over the rows where `counts` (rows,) is true,
    all of them if it is not given; `of`, shape (), is their number where other processes have some too.
    Source: BLIP, section 3.2, ITM.
    """
    targets = matches.long() if counts is None else matches.long().masked_fill(~counts, -100)
    total = F.cross_entropy(widened(logits), targets, ignore_index=-100, reduction="sum")
    return total / ((targets >= 0).sum() if of is None else of)


def lm_loss(
    logits: Tensor, ids: Tensor, real: Tensor, *, label_smoothing: float = 0.1, of: Tensor | None = None
) -> Tensor:
    """Language modelling loss: each token from those before it and the image.

    `logits` (rows, tokens, vocabulary) at the positions of `ids` (rows, tokens), `real` true where a
    token is no padding; the first token starts the text and is not a target. Mean over the tokens
    that count; `of`, shape (), is their number where other parts of the batch have some too. Source: BLIP,
    section 3.2, LM, label smoothing 0.1.
    """
    targets = ids[:, 1:].masked_fill(~real[:, 1:], -100)
    total = F.cross_entropy(
        widened(logits[:, :-1].flatten(0, 1)),
        targets.flatten(),
        label_smoothing=label_smoothing,
        ignore_index=-100,
        reduction="sum",
    )
    return total / ((targets >= 0).sum() if of is None else of)
