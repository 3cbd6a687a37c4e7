"""Whole steps against losses worked out pair by pair in plain Python, from the papers' definitions.

ITC with queues and soft labels: Li et al., ALBEF, 2021, sections 3.2 and 3.3; ITM and LM: BLIP, section 3.2.
Of the code under test only the encoders are used, one unpadded text or picture at a time.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from steps import FIRST, Words, double_model, double_momentum, joint_phase, random_batch

from capfilt.models import losses
from capfilt.training.momentum import Momentum
from capfilt.training.objectives import Batch, Losses, Setting, step_losses

if TYPE_CHECKING:
    from torch import Tensor

    from capfilt.models.med import MED
    from capfilt.settings import Phase

Vector = list[float]
WORDS: Any = Words()


@dataclass(frozen=True)
class Pair:
    """What ITC knows of a pair."""

    image: Vector
    text: Vector
    image_id: int
    caption_id: int

    def is_same(self, other: Pair, negatives: str) -> bool:
        equal = self.image_id == other.image_id
        return equal or (negatives == "distinct" and self.caption_id == other.caption_id)


@torch.no_grad()
def pairs_of(model: MED, batch: Batch) -> list[Pair]:
    found = []
    for row, length in enumerate(batch.real.sum(1).tolist()):
        image = model.image_features(model.encode_image(batch.pixels[row : row + 1]))[0]
        ids = batch.ids[row : row + 1, :length]
        text = model.text_features(ids, torch.ones_like(ids, dtype=torch.bool))[0]
        found.append(
            Pair(image.tolist(), text.tolist(), int(batch.image_ids[row]), int(batch.caption_ids[row]))
        )
    return found


def cosine(one: Vector, other: Vector) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def softmax(values: Vector) -> Vector:
    highest = max(values)
    parts = [math.exp(value - highest) for value in values]
    return [part / sum(parts) for part in parts]


def plain_itc(
    mine: list[Pair],
    followed: list[Pair],
    past: list[Pair],
    *,
    temperature: float,
    alpha: float,
    negatives: str,
) -> float:
    """Each pair against the momentum features of the batch and of the past, in both directions."""
    total = 0.0
    for online, slow in zip(mine, followed, strict=True):
        columns = [*followed, *past]
        right = [1.0 if online.is_same(column, negatives) else 0.0 for column in columns]
        for query, soft_query, keys in (
            (online.image, slow.image, [column.text for column in columns]),
            (online.text, slow.text, [column.image for column in columns]),
        ):
            chances = softmax([cosine(query, key) / temperature for key in keys])
            labels = softmax([cosine(soft_query, key) / temperature for key in keys])
            for chance, label, one in zip(chances, labels, right, strict=True):
                total -= (alpha * label + (1 - alpha) * one / sum(right)) * math.log(chance) / 2
    return total / len(mine)


def plain_negatives(
    mine: list[Pair], others: list[Pair], *, temperature: float, negatives: str, floor: float
) -> tuple[list[Vector], list[Vector]]:
    """How likely each column is, rows of texts for images and of images for texts, adding up to 1."""
    tables: tuple[list[Vector], list[Vector]] = ([], [])
    for one in mine:
        for table, query, keys in (
            (tables[0], one.image, [other.text for other in others]),
            (tables[1], one.text, [other.image for other in others]),
        ):
            chances = softmax([cosine(query, key) / temperature for key in keys])
            weights = [
                0.0 if one.is_same(other, negatives) else chance + floor
                for chance, other in zip(chances, others, strict=True)
            ]
            table.append([weight / (sum(weights) or 1.0) for weight in weights])
    return tables


@torch.no_grad()
def plain_itm(model: MED, batch: Batch, wrong_texts: list[int], wrong_images: list[int]) -> float:
    rows = range(len(batch.ids))
    texts_of_negatives = [(row, text) for row, text in zip(rows, wrong_texts, strict=True) if text >= 0]
    images_of_negatives = [(image, row) for row, image in zip(rows, wrong_images, strict=True) if image >= 0]
    terms = []
    for match, some in (
        (True, [(row, row) for row in rows]),
        (False, [*texts_of_negatives, *images_of_negatives]),
    ):
        for image, text in some:
            ids = batch.ids[text : text + 1, : int(batch.real[text].sum())].clone()
            ids[:, 0] = FIRST["enc"]
            memory = model.memory(model.encode_image(batch.pixels[image : image + 1]))
            logits = model.itm_logits(ids, torch.ones_like(ids, dtype=torch.bool), memory)[0].tolist()
            terms.append(-math.log(softmax(logits)[1 if match else 0]))
    return sum(terms) / len(terms)


@torch.no_grad()
def plain_lm(model: MED, batch: Batch, smoothing: float) -> float:
    terms = []
    for row, length in enumerate(batch.real.sum(1).tolist()):
        ids = batch.ids[row : row + 1, :length].clone()
        ids[:, 0] = FIRST["dec"]
        memory = model.memory(model.encode_image(batch.pixels[row : row + 1]))
        for position in range(1, length):
            # The words before it are all that there is.
            logits = model.lm_logits(ids[:, :position], memory)[0, -1].tolist()
            costs = [-math.log(chance) for chance in softmax(logits)]
            right = costs[int(ids[0, position])]
            terms.append((1 - smoothing) * right + smoothing * sum(costs) / len(costs))
    return sum(terms) / len(terms)


@dataclass
class Drawn:
    """The negatives of one step: weights, and what was drawn, of texts and of images."""

    weights: list[Tensor]
    columns: list[list[int]]


def step(
    model: MED, batch: Batch, phase: Phase, momentum: Momentum | None = None, **changes: Any
) -> tuple[Losses, Drawn]:
    drawn, draw = Drawn([], []), losses.drawn

    def watched(weights: Tensor, numbers: Tensor) -> Tensor:
        columns = draw(weights, numbers)
        drawn.weights.append(weights)
        drawn.columns.append(columns.tolist())
        return columns

    setting = Setting(with_itm=phase.itm > 0, key=("by hand",), momentum=momentum, alpha=phase.alpha)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "drawn", watched)
        return step_losses(model, WORDS, batch, phase, replace(setting, **changes)), drawn


# Batches of 3, 3, 3 and 2 whose pictures and captions come again, within a batch and in later ones.
HISTORY = [
    random_batch(3, 1, images=[1, 2, 3], captions=[1, 2, 2]),
    random_batch(3, 2, images=[4, 1, 4], captions=[3, 4, 5]),
    random_batch(3, 3, images=[5, 6, 7], captions=[6, 1, 7]),
    random_batch(2, 4, images=[8, 4], captions=[2, 8]),
]


@pytest.mark.parametrize("queue", [0, 2, 7, 24], ids="queue of {}".format)
@pytest.mark.parametrize(("negatives", "alpha"), [("distinct", 0.4), ("released", 0.4), ("distinct", 0.0)])
def test_steps_with_momentum_and_queue_are_those_worked_out_pair_by_pair(
    queue: int, negatives: str, alpha: float
) -> None:
    """A queue longer than all, one that no batch divides, one shorter than a batch, and none."""
    model = double_model()
    momentum = double_momentum(model, keep=0.9, queue=queue)
    phase = joint_phase(itm=0.0, lm=0.0, momentum=0.9, queue=queue, alpha=alpha, negatives=negatives)
    past: deque[Pair] = deque(maxlen=queue)
    copied = {name: weights.clone() for name, weights in momentum.encoder.named_parameters()}

    for batch in HISTORY:
        momentum.follow(model)
        found, _ = step(model, batch, phase, momentum)

        trained = dict(model.named_parameters())
        for name, weights in momentum.encoder.named_parameters():
            copied[name] = 0.9 * copied[name] + 0.1 * trained[name].detach()
            torch.testing.assert_close(weights, copied[name], atol=1e-14, rtol=0)
        followed = pairs_of(momentum.encoder, batch)
        expected = plain_itc(
            pairs_of(model, batch),
            followed,
            list(past),
            temperature=model.temperature.item(),
            alpha=alpha,
            negatives=negatives,
        )
        assert float(found.parts["itc"]) == pytest.approx(expected, abs=1e-12)
        past.extend(followed)
        with torch.no_grad():  # as after an optimizer's step
            for number, weights in enumerate(model.parameters()):
                weights.mul_(1 + 0.01 * ((number % 3) - 1))


@pytest.mark.parametrize("negatives", ["distinct", "released"])
@pytest.mark.parametrize(("by", "floor"), [("online", 0.0), ("momentum", 1e-2)])
def test_a_whole_step_is_the_one_worked_out_pair_by_pair(negatives: str, by: str, floor: float) -> None:
    model = double_model()
    momentum = double_momentum(model, queue=5)
    phase = joint_phase(
        momentum=0.9, queue=5, alpha=0.3, negatives=negatives, negatives_by=by, negatives_floor=floor
    )
    batch = random_batch(5, 7, images=[1, 2, 3, 1, 4], captions=[1, 2, 3, 4, 2])

    found, drawn = step(model, batch, phase, momentum)

    mine = pairs_of(model, batch)
    temperature = model.temperature.item()
    others = pairs_of(momentum.encoder, batch) if by == "momentum" else mine
    tables = plain_negatives(mine, others, temperature=temperature, negatives=negatives, floor=floor)
    for weights, table in zip(drawn.weights, tables, strict=True):
        share = weights / weights.sum(1, keepdim=True)
        torch.testing.assert_close(share, torch.tensor(table, dtype=torch.float64), atol=1e-12, rtol=0)
    assert float(found.parts["itm"]) == pytest.approx(plain_itm(model, batch, *drawn.columns), abs=1e-11)
    assert float(found.parts["lm"]) == pytest.approx(plain_lm(model, batch, 0.1), abs=1e-11)
    assert float(found.total.detach()) == pytest.approx(
        sum(float(found.parts[name]) for name in ("itc", "itm", "lm")), abs=1e-11
    )


few_ids = st.lists(st.integers(0, 3), min_size=6, max_size=6)


@settings(max_examples=15)
@given(few_ids, few_ids, st.integers(1, 6), st.sampled_from([0.0, 1e-4, 0.5]), st.booleans())
def test_an_equal_image_or_caption_is_never_drawn_and_all_others_may_be(
    images: list[int], captions: list[int], pairs: int, floor: float, is_released: bool
) -> None:
    negatives = "released" if is_released else "distinct"
    batch = random_batch(pairs, 0, images[:pairs], captions[:pairs])

    found, drawn = step(
        MODEL, batch, joint_phase(itc=0.0, lm=0.0, negatives=negatives, negatives_floor=floor)
    )

    for weights, columns in zip(drawn.weights, drawn.columns, strict=True):
        for row, column in enumerate(columns):
            admissible = {
                other
                for other in range(pairs)
                if images[row] != images[other] and (is_released or captions[row] != captions[other])
            }
            assert column in (admissible or {-1})
            assert {other for other in range(pairs) if weights[row, other] > 0} == admissible
    assert found.negatives == sum(column >= 0 for columns in drawn.columns for column in columns)
    expected = plain_itm(MODEL, batch, *drawn.columns)
    assert float(found.parts["itm"]) == pytest.approx(expected, abs=1e-11)


MODEL = double_model()


# -- what is switched off


def test_without_momentum_there_is_the_plain_loss_of_the_batch() -> None:
    batch = HISTORY[0]
    found, _ = step(MODEL, batch, joint_phase(itm=0.0, lm=0.0))

    mine = pairs_of(MODEL, batch)
    expected = plain_itc(
        mine, mine, [], temperature=MODEL.temperature.item(), alpha=0.0, negatives="distinct"
    )
    assert float(found.parts["itc"]) == pytest.approx(expected, abs=1e-12)


def test_a_momentum_encoder_that_is_the_model_still_gives_the_plain_loss() -> None:
    fresh = Momentum(MODEL, keep=0.995, queue=0)

    with_it, _ = step(MODEL, HISTORY[1], joint_phase(momentum=0.995), fresh)
    without, _ = step(MODEL, HISTORY[1], joint_phase())

    torch.testing.assert_close(with_it.parts["itc"], without.parts["itc"], atol=1e-13, rtol=0)
    assert with_it.parts["itm"] == without.parts["itm"]
    assert with_it.parts["lm"] == without.parts["lm"]


def test_each_option_moves_the_loss() -> None:
    momentum = double_momentum(MODEL, queue=7)
    momentum.queue.add(*momentum.features(HISTORY[2].pixels, HISTORY[2].ids, HISTORY[2].real), *_ids(2))
    chosen = {"itm": 0.0, "lm": 0.0, "momentum": 0.9}
    found = [
        float(step(MODEL, HISTORY[0], joint_phase(**chosen, **options), held)[0].parts["itc"])
        for options, held in (
            ({}, double_momentum(MODEL)),
            ({"alpha": 0.4}, double_momentum(MODEL)),
            ({"queue": 7}, copy.deepcopy(momentum)),
            ({"queue": 7, "alpha": 0.4}, copy.deepcopy(momentum)),
            ({"queue": 7, "negatives": "released"}, copy.deepcopy(momentum)),
        )
    ]
    assert len(set(found)) == 5


def _ids(number: int) -> tuple[Tensor, Tensor]:
    return HISTORY[number].image_ids, HISTORY[number].caption_ids
