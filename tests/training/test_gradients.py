"""Gradients of whole steps: against finite differences, in parts of a batch, with states computed again."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from steps import PLAIN, Words, double_model, double_momentum, joint_phase, random_batch
from togethers import captured, row_values, together

from capfilt.training.objectives import Setting, step_losses

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.med import MED
    from capfilt.settings import Phase

WORDS: Any = Words()


# -- finite differences


BATCH = random_batch(4, 5, images=[1, 2, 3, 1], captions=[1, 2, 3, 3])


# Soft labels go by the temperature too, and no gradient goes through them: it is checked without.
@pytest.mark.parametrize(("alpha", "names"), [(0.4, "all but temperature"), (0.0, "temperature")])
def test_every_weights_gradient_is_the_difference_that_a_small_step_makes(alpha: float, names: str) -> None:
    model = double_model()
    momentum = double_momentum(model, queue=7)
    phase = joint_phase(itc=0.7, itm=1.3, momentum=0.9, queue=7, alpha=alpha)
    for number in (1, 2):  # the queue holds three of an older batch and wraps with the next
        old = random_batch(3, number)
        features = momentum.features(old.pixels, old.ids, old.real)
        momentum.queue.add(*features, old.image_ids, old.caption_ids)

    def loss() -> torch.Tensor:
        setting = Setting(True, ("differences",), momentum=copy.deepcopy(momentum), alpha=alpha)
        return step_losses(model, WORDS, BATCH, phase, setting).total

    loss().backward()
    generator = torch.Generator().manual_seed(3)
    checked = 0
    for name, weights in model.named_parameters():
        if (name == "temperature") != (names == "temperature"):
            continue
        assert weights.grad is not None, name
        direction = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
        step = 1e-5
        with torch.no_grad():
            before = weights.clone()
            weights.copy_(before + step * direction)
            higher = loss()
            weights.copy_(before - step * direction)
            difference = float(higher - loss()) / (2 * step)
            weights.copy_(before)
        expected = float((weights.grad * direction).sum())
        assert difference == pytest.approx(expected, rel=1e-6, abs=1e-8), name
        checked += 1
    assert checked == (1 if names == "temperature" else len(list(model.parameters())) - 1)


# -- parts of a batch


ONLY_LM = {"itc": 0.0, "itm": 0.0, "lm": 1.0}


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_lm_in_parts_has_the_gradient_of_the_whole_batch(tmp_path: Path, parts: int) -> None:
    """Texts differ in length, so a mean of the parts' means would not do."""
    whole, apart = (
        captured(tmp_path / str(number), joint_phase(**ONLY_LM, steps=1, batch_size=6, accumulate=number))
        for number in (1, parts)
    )

    lengths = {int(part.real.sum()) for part in _parts(6, parts)}
    assert len(lengths) > 1
    assert whole.gradients[0].keys() == apart.gradients[0].keys()
    for name, gradient in whole.gradients[0].items():
        torch.testing.assert_close(apart.gradients[0][name], gradient, atol=1e-12, rtol=0)
    assert row_values(apart.trainer.rows, "lm") == pytest.approx(row_values(whole.trainer.rows, "lm"))


def test_itc_and_itm_in_parts_are_the_means_of_the_parts_and_no_larger_batch(tmp_path: Path) -> None:
    phase = joint_phase(lm=0.0, steps=1, batch_size=8, accumulate=2)
    found = captured(tmp_path, phase)

    model = double_model(["itc", "itm", "lm"])
    keys: list[tuple[str | int, ...]] = [(7, "joint", 0, 0), (7, "joint", 0, 0, 1)]
    own = [
        step_losses(model, WORDS, part, phase, Setting(True, key))
        for part, key in zip(_parts(8, 2), keys, strict=True)
    ]
    torch.stack([losses.total for losses in own]).mean().backward()
    for name in ("itc", "itm"):
        mean = sum(float(losses.parts[name]) for losses in own) / 2
        assert row_values(found.trainer.rows, name) == pytest.approx([mean], rel=1e-6)
    for name, weights in model.named_parameters():
        if weights.grad is not None:
            torch.testing.assert_close(found.gradients[0][name], weights.grad, atol=1e-12, rtol=0)
    at_once = captured(tmp_path / "whole", phase.model_copy(update={"accumulate": 1}))
    for name in ("itc", "itm"):
        assert row_values(found.trainer.rows, name) != pytest.approx(
            row_values(at_once.trainer.rows, name), rel=1e-3
        )


def _parts(pairs: int, parts: int) -> list[Any]:
    batch = random_batch(pairs, 0)
    return [batch.part(number, parts) for number in range(parts)]


# -- states that are computed again


DROPPING = PLAIN.model_copy(update={"text": PLAIN.text.model_copy(update={"dropout": 0.3, "layers": 3})})


def _kept(model: MED, phase: Phase) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss and gradients of a step, and the bytes that were kept for the backward pass."""
    kept: dict[int, int] = {}
    own = {weights.data_ptr() for weights in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    torch.manual_seed(4)
    momentum = double_momentum(model, queue=5)
    setting = Setting(True, ("again",), momentum=momentum, alpha=0.4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = step_losses(model, WORDS, random_batch(6, 1), phase, setting)
        in_use = sum(kept.values())  # what backward computes again, and keeps for a layer, is not counted
        losses.total.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return losses.total.detach(), gradients, in_use


def test_gradient_checkpointing_changes_nothing_but_the_memory() -> None:
    phase = joint_phase(momentum=0.9, queue=5, alpha=0.4)
    plain, again = double_model(settings=DROPPING), double_model(settings=DROPPING)
    again.checkpoint_gradients(True)

    loss, gradients, kept = _kept(plain, phase)
    same_loss, same_gradients, less = _kept(again, phase)

    assert torch.equal(loss, same_loss)
    assert gradients.keys() == same_gradients.keys()
    assert len(gradients) == len(list(plain.parameters()))
    for name, gradient in gradients.items():
        assert torch.equal(gradient, same_gradients[name]), name
    assert less < 0.5 * kept


def test_the_trainer_checkpoints_gradients_while_it_trains_and_not_after(tmp_path: Path) -> None:
    phase = joint_phase(steps=2, batch_size=4)
    seen: list[bool] = []
    one = together(tmp_path / "c.pt", phase)
    one.training = one.training.model_copy(update={"gradient_checkpointing": True})
    one.progress = lambda *_: seen.append(one.model.text.checkpointing)

    one.run()

    assert seen == [True, True]
    assert not one.model.text.checkpointing


def test_the_share_of_a_part_scales_its_loss_and_not_its_negatives() -> None:
    model, phase = double_model(), joint_phase(itc=0.0, lm=0.0)
    whole, half = (
        step_losses(model, WORDS, BATCH, phase, replace(Setting(True, ("key", 1)), share=share)).parts["itm"]
        for share in (1.0, 0.5)
    )
    torch.testing.assert_close(half, whole / 2, atol=1e-15, rtol=0)
