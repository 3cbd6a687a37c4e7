"""The way of a batch through a model on a GPU, without a GPU: tensors of no numbers on a device of that name.

An operation on tensors of two devices raises, and so does anything that asks a tensor for its numbers,
which on a real GPU would make the program wait.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

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
from capfilt.models.captioner import Writing
from capfilt.models.decoding import beam, write
from capfilt.models.losses import draw_hard_negatives
from capfilt.models.med import MED
from capfilt.models.text import Packed
from capfilt.settings import Phase, SettledDecoding
from capfilt.training.momentum import Momentum
from capfilt.training.objectives import Batch, Setting, step_losses
from capfilt.training.optim import optimizer_of, update

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from capfilt.models.cards import Objective
    from capfilt.models.vocabulary import Vocabulary

SIDE = SMALL.images.size_px


@contextmanager
def without_a_gpu() -> Iterator[torch.device]:
    # Numbers made on the host (draws, means of colours) may come in, as tensors of the CPU; to pin them, so
    # that they travel without anybody's waiting, takes a driver.
    with FakeTensorMode(allow_non_fake_inputs=True), patch.object(torch.Tensor, "pin_memory", lambda it: it):
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
        image_ids=torch.arange(6, device=device),
        caption_ids=torch.arange(6, device=device),
    )


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@dtypes
@pytest.mark.parametrize("method", ["nucleus", "greedy", "beam"])
@pytest.mark.parametrize("absorbed", [True, False], ids=["absorbed", "keys and values"])
def test_captions_are_written_on_the_gpu_without_waiting_for_it(
    method: str, dtype: torch.dtype, absorbed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding = SettledDecoding.model_validate(
        {"method": method, "min_tokens": 2, "max_tokens": 9, "top_k": 20, "repetition_penalty": 1.1}
    )
    each = {"nucleus": 3, "greedy": 1, "beam": decoding.beams}[method]
    looks = []

    def nothing_has_ended(numbers: Tensor) -> list[int]:
        looks.append(numbers.shape)
        return [0] if numbers.dtype == torch.bool else [each] * len(numbers)

    monkeypatch.setattr("capfilt.models.decoding.on_host", nothing_has_ended)
    with without_a_gpu() as device, torch.inference_mode():
        model = model_on(device, ["lm"], 40, dtype)
        memory = model.memory(encoded(model, device, 4), absorbed=absorbed)
        writing = Writing(model, memory, 12)
        start = torch.zeros(4, 3, dtype=torch.long, device=device)
        if method == "beam":
            ids = beam(writing.next_logits, writing.reorder, start, decoding, 3)
        else:
            numbers = torch.zeros(4 * each, 9, dtype=torch.float64, device=device)
            ids = write(
                writing.next_logits,
                start,
                decoding,
                3,
                numbers if method == "nucleus" else None,
                each=each,
                keep=writing.keep,
            )
        assert ids.device.type == "cuda"
        assert ids.shape == (4 * (each if method == "nucleus" else 1), 9)
    # The host looks at what has ended every few tokens and at the end, in this one place.
    assert len(looks) == (1 if method == "beam" else 3)


@dtypes
@pytest.mark.parametrize("absorbed", [True, False], ids=["absorbed", "keys and values"])
def test_packed_texts_are_scored_on_the_gpu_without_waiting_for_it(
    vocabulary: Vocabulary, dtype: torch.dtype, absorbed: bool
) -> None:
    with without_a_gpu() as device, torch.inference_mode():
        model = model_on(device, ["itc", "itm"], len(vocabulary), dtype)
        whole = torch.zeros(2, 9, dtype=torch.long, device=device)
        packed = Packed(whole, whole, whole, whole[:, :3])
        states = encoded(model, device, 2)
        logits = model.packed_itm_logits(packed, model.memory(states, absorbed=absorbed))
        cosines = model.image_features(states)[:, None] * model.packed_features(packed)
        for found in (logits, cosines):
            assert found.device.type == "cuda"
            assert found.shape[:2] == (2, 3)


@pytest.mark.parametrize("objectives", [["itc", "itm", "lm"], ["itc", "itm"], ["lm"]], ids="+".join)
def test_a_training_step_runs_on_the_gpu_without_waiting_for_it(
    vocabulary: Vocabulary, objectives: list[Objective]
) -> None:
    phase = Phase.model_validate(dict.fromkeys(objectives, 1.0))
    with without_a_gpu() as device:
        model = model_on(device, objectives, len(vocabulary), torch.float32).train()
        losses = step_losses(
            model, vocabulary, pairs_on(device), phase, Setting("itm" in objectives, key=("test", 0))
        )
        assert set(objectives) <= set(losses.parts)
        assert {loss.device.type for loss in (losses.total, *losses.parts.values())} == {"cuda"}
        model.clamp_temperature()


@pytest.mark.parametrize("objectives", [["itc", "itm", "lm"], ["itc", "itm"], ["lm"]], ids="+".join)
def test_a_whole_training_step_reaches_every_weight_without_asking_for_a_number(
    vocabulary: Vocabulary, objectives: list[Objective]
) -> None:
    # Going backwards asks a driver for its device, so here the tensors without numbers are the CPU's.
    phase = Phase.model_validate(dict.fromkeys(objectives, 1.0))
    with without_a_gpu():
        device = torch.device("cpu")
        model = model_on(device, objectives, len(vocabulary), torch.float32).train()
        losses = step_losses(
            model, vocabulary, pairs_on(device), phase, Setting("itm" in objectives, key=("test", 0))
        )
        optimizer = optimizer_of(model, phase)
        for _ in range(2):
            optimizer.zero_grad()
            losses.total.backward()
            norm = update(model, optimizer, phase.clip_norm)
            model.clamp_temperature()
            assert norm.shape == ()
            assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
            losses = step_losses(
                model, vocabulary, pairs_on(device), phase, Setting("itm" in objectives, key=("test", 1))
            )


# Copying the model asks tensors without numbers where they would have them.
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")
@pytest.mark.parametrize("by", ["online", "momentum"])
def test_steps_with_momentum_and_queue_run_on_the_gpu_without_waiting_for_it(
    vocabulary: Vocabulary, by: str
) -> None:
    phase = Phase.model_validate(
        {"itc": 1, "itm": 1, "lm": 1, "momentum": 0.995, "queue": 10, "alpha": 0.4, "negatives_by": by}
    )
    with without_a_gpu() as device:
        model = model_on(device, ["itc", "itm", "lm"], len(vocabulary), torch.float32).train()
        momentum = Momentum(model, keep=phase.momentum, queue=phase.queue)
        filled = []
        for step in range(3):  # the queue is empty, holds a batch, and has wrapped
            momentum.follow(model)
            setting = Setting(True, key=("test", step), momentum=momentum, alpha=0.4)
            losses = step_losses(model, vocabulary, pairs_on(device), phase, setting)
            assert {loss.device.type for loss in (losses.total, *losses.parts.values())} == {"cuda"}
            filled.append(momentum.queue.filled)
        assert filled == [6, 10, 10]
        assert momentum.queue.images.device.type == "cuda"


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
