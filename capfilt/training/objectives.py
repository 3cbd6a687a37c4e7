"""One step's losses: a batch of pairs through MED's three functions (BLIP, section 3.2).

The image is encoded once and serves ITC, ITM and LM alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from capfilt.draws import uniforms
from capfilt.models.losses import draw_hard_negatives, itc_loss, itm_loss, lm_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.models.med import MED
    from capfilt.models.memory import Memory
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings import Phase


@dataclass(frozen=True, slots=True)
class Batch:
    """Training pairs, side by side on the model's device."""

    pixels: Tensor
    """Normalised, shape (pairs, 3, side, side)."""
    ids: Tensor
    """Token ids that begin with [CLS], shape (pairs, tokens)."""
    real: Tensor
    """True where a token is no padding, shape (pairs, tokens)."""
    same: Tensor
    """True for the pair itself and for pairs with an equal image or caption, shape (pairs, pairs)."""


@dataclass(slots=True)
class Losses:
    """The weighted sum to descend, and its parts as numbers to record."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    negatives: Tensor | None = None
    """Hard negatives that ITM saw, images and texts together, shape (); None without ITM."""


def with_first(ids: Tensor, first: int) -> Tensor:
    """Return ids, shape (rows, tokens), whose first token is `first`."""
    return torch.cat([torch.full_like(ids[:, :1], first), ids[:, 1:]], dim=1)


def step_losses(
    model: MED,
    vocabulary: Vocabulary,
    batch: Batch,
    phase: Phase,
    *,
    with_itm: bool,
    key: tuple[str | int, ...],
) -> Losses:
    """Return the losses of one batch; draws of hard negatives are keyed by `key` and the row."""
    states = model.encode_image(batch.pixels)
    losses = Losses(states.new_zeros(()))

    def add(name: str, weight: float, loss: Tensor) -> None:
        losses.parts[name] = loss.detach()
        losses.total = losses.total + weight * loss

    memory = model.memory(states) if phase.lm or with_itm else []
    if phase.itc or with_itm:
        images, texts = model.image_features(states), model.text_features(batch.ids, batch.real)
        # A cosine in bf16 has three digits, too few to be divided by a temperature of 0.07.
        with torch.autocast(states.device.type, enabled=False):
            similarities = images @ texts.T
        if phase.itc:
            add("itc", phase.itc, itc_loss(similarities, batch.same, model.temperature))
        if with_itm:
            numbers = torch.from_numpy(uniforms(2 * len(states), "negatives", *key)).to(states.device)
            loss, losses.negatives = _matching(model, vocabulary, batch, memory, similarities, numbers)
            add("itm", phase.itm, loss)
    if phase.lm:
        ids = with_first(batch.ids, vocabulary.first_id("dec"))
        logits = model.lm_logits(ids, memory)
        add("lm", phase.lm, lm_loss(logits, ids, batch.real, label_smoothing=phase.label_smoothing))
    return losses


def _matching(
    model: MED,
    vocabulary: Vocabulary,
    batch: Batch,
    memory: Sequence[Memory],
    similarities: Tensor,
    numbers: Tensor,
) -> tuple[Tensor, Tensor]:
    """ITM over the pairs, each text with a wrong image and each image with a wrong text.

    Returns the loss and how many negatives it saw. Where nothing in the batch may serve as a negative
    the row is computed and does not count: to leave it out, its number would have to be asked of the
    GPU, which would wait at every step.
    """
    pairs = len(similarities)
    rows = torch.arange(pairs, device=similarities.device)
    wrong_text = draw_hard_negatives(similarities, batch.same, model.temperature, numbers[:pairs])
    wrong_image = draw_hard_negatives(similarities.T, batch.same.T, model.temperature, numbers[pairs:])
    images = torch.cat([rows, wrong_image.clamp(min=0), rows])
    texts = torch.cat([rows, rows, wrong_text.clamp(min=0)])
    counts = torch.cat([rows, wrong_image, wrong_text]) >= 0
    ids = with_first(batch.ids, vocabulary.first_id("enc"))
    logits = model.itm_logits(ids[texts], batch.real[texts], [layer.take(images) for layer in memory])
    matches = torch.arange(3 * pairs, device=rows.device) < pairs
    return itm_loss(logits, matches, counts), counts.sum() - pairs
