"""Plain captions as answers to one instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from prompted_steps import pixels
from small_language import language_folder, small_prompted_bundle

from capfilt.models.prompted import Words, read_instructions
from capfilt.models.vocabulary import train_vocabulary
from capfilt.settings import Phase
from capfilt.training.language import InstructedBatch, asked_for, language_losses
from capfilt.training.objectives import Batch, Setting

if TYPE_CHECKING:
    from pathlib import Path

PHASE = Phase(lm=1.0, label_smoothing=0.0)
INSTRUCTION = "a short description"
CAPTIONS = ["a red circle", "a blue square and a circle", "two"]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_plain_captions_are_learnt_as_answers_to_the_instruction(kind: str, tmp_path: Path) -> None:
    reader = train_vocabulary([INSTRUCTION, *CAPTIONS], 120)
    folder = language_folder(kind, tmp_path / "language")  # type: ignore[arg-type]
    bundle = small_prompted_bundle(kind, folder, "instructblip", reader)  # type: ignore[arg-type]
    model, words = bundle.model.double(), bundle.vocabulary
    images = pixels(3, 0)
    ids, real = words.encode(CAPTIONS, "", 16)
    batch = Batch(images, ids, real, torch.arange(3), torch.arange(3))
    asked = read_instructions(reader, [INSTRUCTION] * 3, 12)
    prompt = torch.tensor([words.prompt(INSTRUCTION)] * 3)
    by_hand = InstructedBatch(
        images,
        asked,
        Words(prompt, torch.ones_like(prompt, dtype=torch.bool)),
        Words(*words.encode_output(CAPTIONS, 16)),
    )
    setting = Setting(with_itm=False, key=(0,))
    objective = asked_for(INSTRUCTION, reader, words, 12)
    expected = language_losses(model, words, by_hand, PHASE, setting).total
    assert float(objective.losses(model, words, batch, PHASE, setting).total) == pytest.approx(
        float(expected), rel=1e-9
    )
    # Instructions of data sets are taken as they are.
    assert float(objective.losses(model, words, by_hand, PHASE, setting).total) == float(expected)
    assert objective.greedy_ids(model, words, batch, 4).shape == (3, 4)
