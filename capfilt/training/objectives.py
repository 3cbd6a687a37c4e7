"""One step's losses: a batch of pairs through ITC, ITM and LM (BLIP, section 3.2; BLIP-2, section 3.2).

The image is encoded once and serves ITC, ITM and LM alike. Where several processes train, each has some rows
of the batch and meets the others' as columns: every loss here is a share that adds up over the processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from capfilt.draws import uniforms
from capfilt.models.devices import sent
from capfilt.models.losses import draw_hard_negatives, itc_loss, itm_loss, lm_loss
from capfilt.models.memory import joined
from capfilt.training.parallel import ALONE, World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from capfilt.models.learner import PairLearner
    from capfilt.models.memory import Seen
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings import Phase
    from capfilt.training.momentum import Momentum


@dataclass(frozen=True, slots=True)
class Batch:
    """Training pairs, side by side on the model's device: the rows of this process."""

    pixels: Tensor
    """Normalised, shape (pairs, 3, side, side)."""
    ids: Tensor
    """Token ids that begin with [CLS], shape (pairs, tokens); as long in every process."""
    real: Tensor
    """True where a token is no padding, shape (pairs, tokens)."""
    image_ids: Tensor
    """Equal for equal images and never negative, shape (pairs,)."""
    caption_ids: Tensor
    """Equal for equal captions and never negative, shape (pairs,)."""

    def part(self, number: int, parts: int) -> Batch:
        """Return one of several equal parts, in order."""
        rows = len(self.ids) // parts
        some = slice(number * rows, (number + 1) * rows)
        return Batch(
            self.pixels[some], self.ids[some], self.real[some], self.image_ids[some], self.caption_ids[some]
        )


@dataclass(slots=True)
class Losses:
    """The weighted sum to descend, and its parts as numbers to record."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    negatives: Tensor | None = None
    """Hard negatives that ITM saw, images and texts, of all processes, shape (); None without ITM."""


@dataclass(frozen=True)
class Setting:
    """What a step's losses depend on beside model, batch and phase."""

    with_itm: bool
    key: tuple[str | int, ...]
    """Draws of hard negatives are keyed by it and by a row's number in the whole batch."""
    world: World = ALONE
    momentum: Momentum | None = None
    alpha: float = 0.0
    """Share of the momentum encoder's soft labels, ramped."""
    tokens: Tensor | None = None
    """Targets of LM in the step, over all parts and processes, shape (); this batch's own by default."""
    share: float = 1.0
    """Of ITC and ITM in the step, where that is computed in parts; LM's follows from `tokens`."""


def with_first(ids: Tensor, first: int) -> Tensor:
    """Return ids, shape (rows, tokens), whose first token is `first`."""
    return torch.cat([torch.full_like(ids[:, :1], first), ids[:, 1:]], dim=1)


def step_losses(
    model: PairLearner, vocabulary: Vocabulary, batch: Batch, phase: Phase, setting: Setting
) -> Losses:
    """Return the losses of one batch, or of one part of a step's; the momentum queue takes it in.

    `total` and `parts` are this process's shares, which add up over the processes.
    """
    states = model.encode_image(batch.pixels)
    losses = Losses(states.new_zeros(()))

    def add(name: str, weight: float, loss: Tensor) -> None:
        losses.parts[name] = loss.detach()
        losses.total = losses.total + weight * loss

    memory = model.memory(states) if phase.lm or setting.with_itm else []
    if phase.itc or setting.with_itm:
        pairs = _Pairs.of(model, batch, states, phase, setting)
        if phase.itc:
            add("itc", phase.itc, setting.share * _contrast(model, pairs, phase, setting))
        if setting.with_itm:
            wrong = _wrong_pairs(model, pairs, phase, setting)
            loss, measured = _matching(model, vocabulary, batch, states, memory, wrong, setting.world)
            add("itm", phase.itm, setting.share * loss)
            losses.negatives = measured.pop("negatives")
            losses.parts |= {name: setting.share * value for name, value in measured.items()}
        if setting.momentum is not None:
            pairs.enqueue(setting.momentum)
    if phase.lm:
        ids = with_first(batch.ids, vocabulary.first_id("dec"))
        logits = model.lm_logits(ids, memory)
        tokens = setting.tokens
        if tokens is None:
            tokens = setting.world.total(targets_in(batch))
        add(
            "lm", phase.lm, lm_loss(logits, ids, batch.real, label_smoothing=phase.label_smoothing, of=tokens)
        )
    return losses


def targets_in(batch: Batch) -> Tensor:
    """Return how many tokens LM has to guess in these rows, shape ()."""
    return batch.real[:, 1:].sum()


def greedy_ids(model: PairLearner, vocabulary: Vocabulary, batch: Batch, tokens: int) -> Tensor:
    """Return the likeliest captions of a batch's pictures, ids (pictures, 1 + tokens) from [DEC] on."""
    memory = model.memory(model.encode_image(batch.pixels))
    ids = torch.full_like(batch.ids[:, :1], vocabulary.first_id("dec"))
    ended = torch.zeros_like(ids[:, 0], dtype=torch.bool)
    for _ in range(tokens):
        # A few pictures and tokens now and then: caches would be quicker and longer to read.
        following = model.lm_logits(ids, memory)[:, -1].argmax(-1).masked_fill(ended, vocabulary.sep)
        ended = ended | (following == vocabulary.sep)
        ids = torch.cat([ids, following[:, None]], 1)
    return ids


@dataclass(frozen=True)
class Objective:
    """What a kind of model is trained for, as the training loop asks for it."""

    losses: Callable[[Any, Any, Any, Phase, Setting], Losses]
    """Given (model, vocabulary, batch, phase, setting)."""
    targets_in: Callable[[Any, Any, Any, Sequence[tuple[str | int, ...]], World], Tensor]
    """Given (model, vocabulary, batch, keys of its parts, world): how many tokens LM has to guess there."""
    greedy_ids: Callable[[Any, Any, Any, int], Tensor]
    """Given (model, vocabulary, batch, tokens): the likeliest captions."""


PAIRS = Objective(step_losses, lambda _, __, batch, *___: targets_in(batch), greedy_ids)
"""Of MED and the Q-Former."""


@dataclass(frozen=True)
class _Pairs:
    """Features of a batch: of my rows, and of the columns they are compared with."""

    rows: slice
    """My rows among the batch's columns."""
    images: Tensor
    """Mine, with a gradient, (rows, embed)."""
    texts: Tensor
    all_images: Tensor
    """Of the whole batch, with a gradient, (batch, embed)."""
    all_texts: Tensor
    image_ids: Tensor
    """Of the whole batch, (batch,)."""
    caption_ids: Tensor
    same: Tensor
    """(rows, batch): pairs that are no negatives of each other."""
    momentum: _MomentumPairs | None

    @classmethod
    def of(cls, model: PairLearner, batch: Batch, states: Tensor, phase: Phase, setting: Setting) -> _Pairs:
        world = setting.world
        images, texts = model.image_features(states), model.text_features(batch.ids, batch.real)
        image_ids, caption_ids = world.gather(batch.image_ids), world.gather(batch.caption_ids)

        def same(others_images: Tensor, others_captions: Tensor) -> Tensor:
            equal = batch.image_ids[:, None] == others_images[None, :]
            if phase.negatives == "distinct":
                equal = equal | (batch.caption_ids[:, None] == others_captions[None, :])
            return equal

        followed = None
        if setting.momentum is not None:
            queue, held = setting.momentum.queue, slice(setting.momentum.queue.filled)
            mine = setting.momentum.features(batch.pixels, batch.ids, batch.real)
            everybody = world.gather(mine[0]), world.gather(mine[1])
            followed = _MomentumPairs(
                *mine,
                *everybody,
                torch.cat([everybody[0], queue.images[held].to(everybody[0].dtype)]),
                torch.cat([everybody[1], queue.texts[held].to(everybody[1].dtype)]),
                same(
                    torch.cat([image_ids, queue.image_ids[held]]),
                    torch.cat([caption_ids, queue.caption_ids[held]]),
                ),
            )
        return cls(
            world.mine(len(image_ids)),
            images,
            texts,
            world.gather_with_gradient(images),
            world.gather_with_gradient(texts),
            image_ids,
            caption_ids,
            same(image_ids, caption_ids),
            followed,
        )

    def enqueue(self, momentum: Momentum) -> None:
        """Have the queues take the batch in, once nothing of this step is compared any more."""
        assert self.momentum is not None
        momentum.queue.add(
            self.momentum.batch_images, self.momentum.batch_texts, self.image_ids, self.caption_ids
        )


@dataclass(frozen=True)
class _MomentumPairs:
    """Features by the momentum encoder."""

    images: Tensor
    """Mine, (rows, embed)."""
    texts: Tensor
    batch_images: Tensor
    """The whole batch's, (batch, embed)."""
    batch_texts: Tensor
    all_images: Tensor
    """The whole batch's, then the queue's, (batch + queue, embed)."""
    all_texts: Tensor
    right: Tensor
    """(rows, batch + queue): columns with an equal image or caption."""


def _contrast(model: PairLearner, pairs: _Pairs, phase: Phase, setting: Setting) -> Tensor:
    """ITC of my rows: against the momentum features where there are some, else against the batch's own."""
    # A cosine in bf16 has three digits, too few to be divided by a temperature of 0.07.
    with torch.autocast(pairs.images.device.type, enabled=False):
        if pairs.momentum is None:
            return itc_loss(
                model.similarity(pairs.images, pairs.all_texts),
                pairs.same,
                model.temperature,
                to_image=model.similarity(pairs.all_images, pairs.texts).T,
                smoothing=phase.itc_smoothing,
                of=len(pairs.image_ids),
            )
        followed = pairs.momentum
        return itc_loss(
            pairs.images @ followed.all_texts.T,
            followed.right,
            model.temperature,
            to_image=pairs.texts @ followed.all_images.T,
            soft=(followed.images @ followed.all_texts.T, followed.texts @ followed.all_images.T),
            alpha=setting.alpha,
            smoothing=phase.itc_smoothing,
            of=len(pairs.image_ids),
        )


def _wrong_pairs(model: PairLearner, pairs: _Pairs, phase: Phase, setting: Setting) -> tuple[Tensor, Tensor]:
    """Draw hard negatives of my rows among the whole batch: wrong texts for images, wrong images for texts.

    Both are (rows,), -1 where the batch has none.
    """
    texts, images = pairs.all_texts, pairs.all_images
    if phase.negatives_by == "momentum" and pairs.momentum is not None:
        texts, images = pairs.momentum.batch_texts, pairs.momentum.batch_images
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        to_text, to_image = model.similarity(pairs.images, texts), model.similarity(images, pairs.texts).T
    if phase.negatives_by == "chance":
        to_text, to_image = torch.zeros_like(to_text), torch.zeros_like(to_image)
    batch = len(pairs.image_ids)
    numbers = sent(torch.from_numpy(uniforms(2 * batch, "negatives", *setting.key)), images.device)
    of_text, of_image = numbers[:batch][pairs.rows], numbers[batch:][pairs.rows]
    floor = phase.negatives_floor
    return (
        draw_hard_negatives(to_text, pairs.same, model.temperature, of_text, floor),
        draw_hard_negatives(to_image, pairs.same, model.temperature, of_image, floor),
    )


def _matching(
    model: PairLearner,
    vocabulary: Vocabulary,
    batch: Batch,
    states: Tensor,
    memory: Sequence[Seen],
    wrong: tuple[Tensor, Tensor],
    world: World,
) -> tuple[Tensor, dict[str, Tensor]]:
    """ITM over the pairs, each text with a wrong image and each image with a wrong text.

    Returns the loss and what is measured of it, among that how many negatives there were. Where nothing in
    the batch may serve as a negative the row is computed and does not count: to leave it out, its number
    would have to be asked of the GPU, which would wait at every step.
    """
    pairs = len(states)
    rows = torch.arange(pairs, device=states.device)
    wrong_text, wrong_image = (drawn.clamp(min=0) for drawn in wrong)
    counts = torch.cat([rows, wrong[1], wrong[0]]) >= 0
    ids = with_first(batch.ids, vocabulary.first_id(model.match_token))
    if world.size == 1:
        wrong_ids, wrong_real = ids[wrong_text], batch.real[wrong_text]
        seen = [layer.take(torch.cat([rows, wrong_image, rows])) for layer in memory]
    else:
        wrong_ids = world.gather(ids)[wrong_text]
        wrong_real = world.gather(batch.real.to(torch.uint8))[wrong_text].bool()
        theirs = world.gather_with_gradient(states)[wrong_image]
        order = torch.cat([rows, rows + pairs, rows])
        seen = [
            joined(mine, other).take(order) for mine, other in zip(memory, model.memory(theirs), strict=True)
        ]
    logits = model.itm_logits(
        torch.cat([ids, ids, wrong_ids]), torch.cat([batch.real, batch.real, wrong_real]), seen
    )
    matches = torch.arange(3 * pairs, device=rows.device) < pairs
    of = world.total(counts.sum())
    loss = itm_loss(logits, matches, counts, of=of)
    everybody, negatives = pairs * world.size, of - pairs * world.size
    with torch.no_grad():
        match = logits.float().softmax(1)[:, 1] * counts
        measured = {
            "negatives": negatives,
            "itm_positive": match[:pairs].sum() / everybody,
            "itm_negative": match[pairs:].sum() / negatives.clamp(min=1),
        }
    return loss, measured
