"""The way of a batch through a model on a GPU, without a GPU: tensors of no numbers on a device of that name.

An operation on tensors of two devices raises, and so does anything that asks a tensor for its numbers,
which on a real GPU would make the program wait.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import torch
from small_models import SMALL
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)

from capfilt.data.images import normalise
from capfilt.models.captioner import _Writing
from capfilt.models.decoding import beam, write
from capfilt.models.losses import draw_hard_negatives
from capfilt.models.med import MED
from capfilt.settings import Phase, SettledDecoding
from capfilt.training.objectives import Batch, step_losses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from capfilt.models.cards import Objective
    from capfilt.models.vocabulary import Vocabulary

SIDE = SMALL.images.size_px


@contextmanager
def without_a_gpu() -> Iterator[torch.device]:
    # Numbers made on the host (draws, means of colours) may come in, as tensors of the CPU.
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cuda")


def model_on(device: torch.device, objectives: list[Objective], size: int, dtype: torch.dtype) -> MED:
    with unset_fake_temporarily():  # building a ViT asks for numbers, on the CPU
        model = MED(SMALL, size, objectives)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(
                name, torch.nn.Parameter(torch.empty_like(parameter, device=device, dtype=dtype))
            )
    assert model.device.type == device.type
    assert not list(model.buffers())
    return model.eval()


def encoded(model: MED, device: torch.device, images: int) -> Tensor:
    pixels = torch.zeros(images, 3, SIDE, SIDE, dtype=torch.uint8, device=device)
    return model.encode_image(normalise(pixels, SMALL.images).to(model.text.words.weight.dtype))


def pairs_on(device: torch.device) -> Batch:
    return Batch(
        pixels=torch.zeros(6, 3, SIDE, SIDE, device=device),
        ids=torch.zeros(6, 9, dtype=torch.long, device=device),
        real=torch.ones(6, 9, dtype=torch.bool, device=device),
        same=torch.eye(6, dtype=torch.bool, device=device),
    )


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@dtypes
@pytest.mark.parametrize("method", ["nucleus", "greedy", "beam"])
def test_captions_are_written_on_the_gpu_without_waiting_for_it(method: str, dtype: torch.dtype) -> None:
    decoding = SettledDecoding.model_validate(
        {"method": method, "min_tokens": 2, "max_tokens": 6, "top_k": 20, "repetition_penalty": 1.1}
    )
    with without_a_gpu() as device, torch.inference_mode():
        model = model_on(device, ["lm"], 40, dtype)
        writing = _Writing(model, model.memory(encoded(model, device, 4)))
        if method == "beam":
            start = torch.zeros(4, 3, dtype=torch.long, device=device)
            ids = beam(writing.next_logits, writing.reorder, start, decoding, 3)
            rows = 4
        else:
            rows = 4 * (3 if method == "nucleus" else 1)
            start = torch.zeros(rows, 3, dtype=torch.long, device=device)
            numbers = (
                torch.zeros(rows, 6, dtype=torch.float64, device=device) if method == "nucleus" else None
            )
            ids = write(writing.next_logits, start, decoding, 3, numbers)
        assert ids.device.type == "cuda"
        assert ids.shape == (rows, 6)


@dtypes
def test_pairs_are_scored_on_the_gpu_without_waiting_for_it(
    vocabulary: Vocabulary, dtype: torch.dtype
) -> None:
    ids, real = vocabulary.encode(["a cat", "two dogs run", "", "a red square"], "cls", 16)
    with without_a_gpu() as device, torch.inference_mode():
        model = model_on(device, ["itc", "itm"], len(vocabulary), dtype)
        on_gpu = torch.zeros_like(ids, device=device), torch.ones_like(real, device=device)
        states = encoded(model, device, 2)
        logits = model.itm_logits(*on_gpu, model.memory(states))
        cosines = model.image_features(states).repeat_interleave(2, 0) * model.text_features(*on_gpu)
        for found in (logits, cosines):
            assert found.device.type == "cuda"
            assert len(found) == 4


@pytest.mark.parametrize("objectives", [["itc", "itm", "lm"], ["itc", "itm"], ["lm"]], ids="+".join)
def test_a_training_step_runs_on_the_gpu_without_waiting_for_it(
    vocabulary: Vocabulary, objectives: list[Objective]
) -> None:
    phase = Phase.model_validate(dict.fromkeys(objectives, 1.0))
    with without_a_gpu() as device:
        model = model_on(device, objectives, len(vocabulary), torch.float32).train()
        losses = step_losses(
            model, vocabulary, pairs_on(device), phase, with_itm="itm" in objectives, key=("test", 0)
        )
        assert set(losses.parts) == set(objectives)
        assert {loss.device.type for loss in (losses.total, *losses.parts.values())} == {"cuda"}
        model.clamp_temperature()


@pytest.mark.parametrize("objectives", [["itc", "itm", "lm"], ["itc", "itm"], ["lm"]], ids="+".join)
def test_a_gradient_reaches_every_weight_without_asking_for_a_number(
    vocabulary: Vocabulary, objectives: list[Objective]
) -> None:
    # Going backwards asks a driver for its device, so here the tensors without numbers are the CPU's.
    phase = Phase.model_validate(dict.fromkeys(objectives, 1.0))
    with without_a_gpu():
        device = torch.device("cpu")
        model = model_on(device, objectives, len(vocabulary), torch.float32).train()
        losses = step_losses(
            model, vocabulary, pairs_on(device), phase, with_itm="itm" in objectives, key=("test", 0)
        )
        losses.total.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_planted_mistakes_are_found() -> None:
    with without_a_gpu() as device:
        on_gpu = torch.zeros(3, device=device)
        with pytest.raises((RuntimeError, ValueError), match="device"):
            on_gpu + torch.zeros(3, device="cpu")
        with pytest.raises(DataDependentOutputException):
            bool((on_gpu > 0).all())
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            on_gpu.tolist()
        with pytest.raises(DynamicOutputShapeException):
            on_gpu[on_gpu > 0]
        negatives = draw_hard_negatives(
            torch.zeros(3, 3, device=device),
            torch.eye(3, dtype=torch.bool, device=device),
            torch.tensor(0.1, device=device),
            on_gpu,
        )
        assert negatives.device.type == "cuda"
