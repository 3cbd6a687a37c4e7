"""Whole steps of ITC, ITM and LM against BLIP's released code; golden/README.md says where they come from.

Their hard negatives are the likeliest columns instead of drawn ones, and so are they here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import torch
from blip_names import (
    Weights,
    projection_weights,
    take,
    text_weights,
    timm_weights,
    word_head_weights,
)
from safetensors.torch import load_file

from capfilt.models import losses
from capfilt.models.med import MED
from capfilt.settings import Images, Model, Phase, Text, Vision
from capfilt.training.momentum import Momentum
from capfilt.training.objectives import Batch, Losses, Setting, step_losses

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from capfilt.models.cards import Objective
    from capfilt.models.vocabulary import First

SETTINGS = Model(
    images=Images(size_px=32),
    vision=Vision(patch_px=8, width=32, layers=3, heads=4),
    text=Text(width=48, layers=3, heads=4, feed_forward=96, dropout=0.0),
    embed=16,
)
QUEUE, NEVER_MET = 24, 1_000_000
"""Length of the queues; an id that no picture of these batches has."""
PRETRAINING = Phase(
    itc=1,
    itm=1,
    lm=1,
    momentum=0.995,
    queue=QUEUE,
    alpha=0.4,
    negatives="released",
    negatives_by="momentum",
    negatives_floor=1e-4,
)
RETRIEVAL = Phase(itc=1, itm=1, momentum=0.995, queue=QUEUE, alpha=0.4, negatives="released")
CLOSE = {"atol": 1e-9, "rtol": 0.0}


class Theirs:
    """The vocabulary of the golden captions, as far as a step asks for it."""

    def first_id(self, first: First) -> int:
        return {"cls": 2, "dec": 200, "enc": 201}[first]


@dataclass
class Step:
    """What one step gave, and what the hard negatives were picked from."""

    losses: Losses
    weights: list[Tensor] = field(default_factory=list)
    """Of texts for images, then of images for texts."""
    picked: list[Tensor] = field(default_factory=list)
    momentum: Weights = field(default_factory=dict)
    images: Tensor | None = None
    """The queue after it."""
    texts: Tensor | None = None
    seen: int = 0
    gradients: Weights = field(default_factory=dict)


def doubles(path: Path) -> Weights:
    return {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(path).items()
    }


def with_shared_parts(theirs: Weights) -> Weights:
    """Give the decoder's name too to what it shares with the encoder: all but self-attention and head."""
    mark = "text_encoder."
    twins = {f"text_decoder.bert.{n.removeprefix(mark)}": w for n, w in theirs.items() if n.startswith(mark)}
    return {**{n: w for n, w in twins.items() if ".attention." not in n}, **theirs}


def ours(theirs: Weights, *, writes: bool) -> list[Weights]:
    parts = [
        timm_weights(theirs, "visual_encoder."),
        text_weights(theirs, "text_encoder.", "encoder"),
        projection_weights(theirs),
        {"temperature": theirs["temp"].view(())},
    ]
    if writes:
        parts += [
            text_weights(theirs, "text_decoder.bert.", "decoder"),
            word_head_weights(theirs, "text_decoder."),
        ]
    return parts


def momentum_names(theirs: Weights) -> Weights:
    """Their momentum copies, under the names of our weights."""
    marked = {
        name.replace("_m.", ".", 1): tensor
        for name, tensor in theirs.items()
        if name.split(".")[0] in ("visual_encoder_m", "text_encoder_m", "vision_proj_m", "text_proj_m")
    }
    found = timm_weights(marked, "visual_encoder.")
    for name, mine in (("vision_proj", "image_projection"), ("text_proj", "text_projection")):
        found |= {f"{mine}.{kind}": marked[f"{name}.{kind}"] for kind in ("weight", "bias")}
    return found | text_weights(marked, "text_encoder.", "encoder")


def model_of(theirs: Weights, objectives: list[Objective]) -> MED:
    model = MED(SETTINGS, 202, objectives).double()
    return take(model, *ours(theirs, writes="lm" in objectives)).train()


def momentum_of(model: MED, theirs: Weights, image_ids: Tensor) -> Momentum:
    """A momentum encoder and full queues as they stood, with the ids of what the queues hold."""
    momentum = Momentum(model, keep=0.995, queue=QUEUE)
    found, own = momentum_names(theirs), dict(momentum.encoder.named_parameters())
    assert set(own) - {"temperature"} == {n for n in found if ".cross." not in n}
    with torch.no_grad():
        for name, weights in own.items():
            if name != "temperature":
                weights[: len(found[name])] = found[name]
    queue = momentum.queue.double()
    queue.images.copy_(theirs["image_queue"].T)
    queue.texts.copy_(theirs["text_queue"].T)
    queue.image_ids.copy_(image_ids)
    queue.caption_ids.fill_(NEVER_MET)
    pointer = theirs.get("queue_ptr", theirs.get("ptr_queue"))
    assert pointer is not None
    queue.seen = QUEUE + int(pointer)
    return momentum


def step(model: MED, momentum: Momentum, batch: Batch, phase: Phase, alpha: float) -> Step:
    weights: list[Tensor] = []
    picked: list[Tensor] = []

    def likeliest(some: Tensor, _: Tensor) -> Tensor:
        weights.append(some)
        picked.append(some.argmax(1))
        return picked[-1]

    model.zero_grad()
    momentum.follow(model)
    setting = Setting(with_itm=True, key=("golden",), momentum=momentum, alpha=alpha)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "drawn", likeliest)
        done = step_losses(model, Theirs(), batch, phase, setting)  # type: ignore[arg-type]
    done.total.backward()
    return Step(
        done,
        weights,
        picked,
        {name: tensor.clone() for name, tensor in momentum.encoder.state_dict().items()},
        momentum.queue.images.clone(),
        momentum.queue.texts.clone(),
        momentum.queue.seen,
        {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
    )


def batch_of(inputs: Weights, image_ids: Tensor) -> Batch:
    return Batch(
        inputs["images"],
        inputs["input_ids"],
        inputs["attention_mask"].bool(),
        image_ids,
        torch.zeros(8, dtype=torch.long),  # equal captions, which the released code does not see
    )


def expect(found: Step, expected: Weights, parts: list[str]) -> None:
    """The losses, the weights of the negatives, which were picked, and the queues."""
    for mine, name in zip(("itc", "itm", "lm"), parts, strict=False):
        torch.testing.assert_close(found.losses.parts[mine], expected[name], **CLOSE)
    total = sum(expected[name] for name in parts)
    torch.testing.assert_close(found.losses.total.detach(), total, **CLOSE)
    assert found.losses.negatives == 16
    for weights, name in zip(found.weights, ("neg_weights_i2t", "neg_weights_t2i"), strict=True):
        recorded = expected[name]
        assert (weights == 0).equal(recorded == 0)
        torch.testing.assert_close(
            weights / weights.sum(1, keepdim=True), recorded / recorded.sum(1, keepdim=True), **CLOSE
        )
    for picked, name in zip(found.picked, ("neg_text_for_image", "neg_image_for_text"), strict=True):
        assert picked.tolist() == expected[name].tolist()
    assert found.images is not None
    assert found.texts is not None
    torch.testing.assert_close(found.images.T, expected["after.image_queue"], **CLOSE)
    torch.testing.assert_close(found.texts.T, expected["after.text_queue"], **CLOSE)


# -- pre-training: two steps without one of the optimizer between them


@dataclass
class Pretraining:
    folder: Path
    expected: list[Weights]
    found: list[Step]


@pytest.fixture(scope="module")
def pretraining(shared: Path) -> Pretraining:
    folder = shared / "golden/blip_pretrain"
    theirs, inputs = doubles(folder / "weights.safetensors"), doubles(folder / "inputs.safetensors")
    recorded = doubles(folder / "expected_f64.safetensors")
    alpha = json.loads((folder / "expected.json").read_text())["alpha"]
    model = model_of(theirs, ["itc", "itm", "lm"])
    momentum = momentum_of(model, theirs, torch.full((QUEUE,), NEVER_MET))
    expected, found = [], []
    for number in ("step1", "step2"):
        some = {n.removeprefix(f"{number}."): t for n, t in inputs.items() if n.startswith(number)}
        expected.append(
            {n.removeprefix(f"{number}."): t for n, t in recorded.items() if n.startswith(number)}
        )
        batch = batch_of(some, torch.arange(8) + 8 * len(found))
        found.append(step(model, momentum, batch, PRETRAINING, alpha[number]))
    return Pretraining(folder, expected, found)


@pytest.mark.parametrize("number", [0, 1])
def test_a_step_of_pretraining_is_that_of_the_released_code(pretraining: Pretraining, number: int) -> None:
    found, expected = pretraining.found[number], pretraining.expected[number]
    expect(found, expected, ["loss_ita", "loss_itm", "loss_lm"])
    # The weights themselves too: the floor stands over a softmax of all columns.
    torch.testing.assert_close(found.weights[0], expected["neg_weights_i2t"], **CLOSE)
    torch.testing.assert_close(found.weights[1], expected["neg_weights_t2i"], **CLOSE)
    assert found.seen % QUEUE == int(expected["after.queue_ptr"])


def test_the_momentum_encoder_follows_as_in_the_released_code(pretraining: Pretraining) -> None:
    expected, found = pretraining.expected[0], pretraining.found[0].momentum
    vision = timm_weights(
        {n.removeprefix("after.").replace("_m.", ".", 1): t for n, t in expected.items()}, "visual_encoder."
    )
    assert len(vision) == 2
    for name, weights in vision.items():
        torch.testing.assert_close(found[name], weights, **CLOSE)
    for name, mine in (("vision_proj_m", "image_projection"), ("text_proj_m", "text_projection")):
        for kind in ("weight", "bias"):
            torch.testing.assert_close(found[f"{mine}.{kind}"], expected[f"after.{name}.{kind}"], **CLOSE)
    for kind in ("weight", "bias"):
        query = expected[f"after.text_encoder_m.encoder.layer.1.attention.self.query.{kind}"]
        torch.testing.assert_close(found[f"text.layers.1.attention.encoder.qkv.{kind}"][:48], query, **CLOSE)


def test_gradients_of_pretraining_are_those_of_the_released_code(pretraining: Pretraining) -> None:
    recorded = with_shared_parts(load_file(pretraining.folder / "grads_step1.safetensors"))
    expected: Weights = {}
    for part in ours(recorded, writes=True):
        expected |= part
    found = pretraining.found[0].gradients
    assert set(found) == set(expected)
    for name, gradient in found.items():
        theirs, mine = expected[name], gradient[: len(expected[name])] if gradient.ndim else gradient
        if gradient.ndim and len(gradient) > len(mine):
            assert name == "text.positions.weight"
            assert not gradient[len(mine) :].any()
        counts = torch.ones(len(theirs) if theirs.ndim else 1, dtype=torch.bool)
        if name.endswith(("qkv.bias", "key_value.bias")):
            # A bias of keys has no effect, so its gradient is nothing but rounding.
            start = 0 if "key_value" in name else mine.shape[0] // 3
            keys = slice(start, start + mine.shape[0] // (2 if "key_value" in name else 3))
            counts[keys] = False
            assert float(mine[keys].abs().max()) < 1e-12
        error = (mine - theirs.double()).reshape(len(counts), -1)[counts].abs().max()
        assert float(error) <= 5e-6 * float(theirs.abs().max()), name


def test_the_gradients_norm_is_that_of_the_released_code_in_float64(pretraining: Pretraining) -> None:
    norms = json.loads((pretraining.folder / "expected_f64.json").read_text())["grad_norms_step1"]["sum"]
    found = pretraining.found[0].gradients

    def norm(*beginnings: str) -> float:
        return sum(float(g.square().sum()) for n, g in found.items() if n.startswith(beginnings)) ** 0.5

    assert norm("") == pytest.approx(norms["total_unique"], rel=1e-9)
    assert norm("image.") == pytest.approx(norms["visual_encoder"], rel=1e-9)
    assert norm("image_projection") == pytest.approx(norms["vision_proj"], rel=1e-9)
    assert norm("text_projection") == pytest.approx(norms["text_proj"], rel=1e-9)
    assert norm("itm_head") == pytest.approx(norms["itm_head"], rel=1e-9)
    assert norm("temperature") == pytest.approx(norms["temp"], rel=1e-9)


# -- fine-tuning for retrieval: equal pictures in the batch and in the queues


@dataclass
class Retrieval:
    folder: Path
    expected: Weights
    found: Step
    queued: list[int]


@pytest.fixture(scope="module")
def retrieval(shared: Path) -> Retrieval:
    folder = shared / "golden/blip_retrieval"
    theirs, inputs = doubles(folder / "weights.safetensors"), doubles(folder / "inputs.safetensors")
    model = model_of(theirs, ["itc", "itm"])
    # Their empty places hold random features, and count: -100 is the picture of nobody.
    momentum = momentum_of(model, theirs, theirs["idx_queue"][0])
    found = step(model, momentum, batch_of(inputs, inputs["idx"]), RETRIEVAL, 0.4)
    return Retrieval(
        folder, doubles(folder / "expected_f64.safetensors"), found, momentum.queue.image_ids.tolist()
    )


def test_a_step_of_retrieval_is_that_of_the_released_code(retrieval: Retrieval) -> None:
    expect(retrieval.found, retrieval.expected, ["loss_ita", "loss_itm"])
    assert retrieval.queued == retrieval.expected["after.idx_queue"][0].tolist()
    assert retrieval.found.seen % QUEUE == int(retrieval.expected["after.ptr_queue"])


def test_the_gradients_norm_of_retrieval_is_that_of_the_released_code(retrieval: Retrieval) -> None:
    # Norms of a run in float32 are all that was kept of this one.
    norms = json.loads((retrieval.folder / "expected.json").read_text())["grad_norms"]
    squares = {n: float(g.square().sum()) for n, g in retrieval.found.gradients.items()}

    def norm(beginning: str) -> float:
        return sum(square for name, square in squares.items() if name.startswith(beginning)) ** 0.5

    for mine, name in (
        ("image.", "visual_encoder"),
        ("text.", "text_encoder"),
        ("image_projection", "vision_proj"),
        ("text_projection", "text_proj"),
        ("itm_head", "itm_head"),
        ("temperature", "temp"),
    ):
        assert norm(mine) == pytest.approx(norms[name], rel=1e-6), name
