"""The loss of a soft-prompted model on a GPU, without a GPU: nothing asks the device for a number.

What transformers' language models do there is theirs, so one that gives logits of the right shape stands in.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from prompted_steps import CASES, SIZE, Vocabulary, batch_of
from torch._subclasses.fake_tensor import FakeTensorMode

from capfilt.models.prompted import Words
from capfilt.settings import Phase
from capfilt.training.language import InstructedBatch, language_losses, language_targets_in
from capfilt.training.objectives import Batch, Setting

CUDA = torch.device("cuda")
QUERIES = 3


class Shapes:
    """A model as far as shapes go."""

    decoder_start = 0

    def __init__(self, kind: str) -> None:
        self.is_encoder_decoder = kind == "t5"

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1)[:, None]

    def soft_prompts(self, states: torch.Tensor, asked: Words | None) -> torch.Tensor:
        assert asked is None or asked.ids.device.type == "cuda"
        return states[:, :, :8].expand(-1, QUERIES, -1)

    def logits(self, prompts: torch.Tensor, words: Words) -> torch.Tensor:
        assert words.ids.shape == words.real.shape
        return prompts.mean() * torch.ones(len(prompts), QUERIES + words.ids.shape[1], SIZE, device=CUDA)

    def target_logits(self, prompts: torch.Tensor, read: Words, ids: torch.Tensor) -> torch.Tensor:
        assert read.ids.shape == read.real.shape
        return prompts.mean() * torch.ones(*ids.shape, SIZE, device=CUDA)


def on_cuda(batch: Batch | InstructedBatch) -> Any:
    def moved(value: Any) -> Any:
        if isinstance(value, Words):
            return Words(moved(value.ids), moved(value.real))
        return None if value is None else torch.empty_like(value, device=CUDA)

    return type(batch)(**{name: moved(getattr(batch, name)) for name in batch.__slots__})


@pytest.mark.parametrize(("kind", "instructed"), CASES)
def test_a_step_waits_for_no_number_of_the_device(kind: str, instructed: bool) -> None:
    whole = batch_of(kind, 4, instructed=instructed)
    with FakeTensorMode(allow_non_fake_inputs=True), patch.object(torch.Tensor, "pin_memory", lambda it: it):
        model: Any = Shapes(kind)
        known: Any = Vocabulary(kind)
        batch, phase = on_cuda(whole), Phase(lm=1)
        tokens = language_targets_in(model, known, batch, [("key",), ("key", 1)])
        done = language_losses(
            model, known, batch.part(1, 2), phase, Setting(with_itm=False, key=("key", 1), tokens=tokens)
        )
        assert done.total.device.type == tokens.device.type == "cuda"
