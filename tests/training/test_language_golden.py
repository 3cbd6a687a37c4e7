"""Stage 2 of BLIP-2 and InstructBLIP against LAVIS's numbers; golden/README.md says where they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from lavis_golden import KINDS, Golden, golden
from lavis_language import CASES, PADS, Seen, batch_of, built, losses

from capfilt.models.prompted import Words
from capfilt.training.language import InstructedBatch, one_row

if TYPE_CHECKING:
    from pathlib import Path

MODULES = {
    "ln_vision": "vision_model.post_layernorm.",
    "Qformer": "qformer.",
    "query_tokens": "query_tokens",
    "_proj": "language_projection.",
    "_model": "language_model.",
    "visual_encoder": "vision_model.e",
}
"""How the names of their modules end, and how our names of the same weights begin."""


@pytest.fixture(scope="module")
def recorded(shared: Path) -> dict[str, Golden]:
    return {kind: golden(shared / "golden" / kind) for kind in KINDS}


@pytest.mark.parametrize(("kind", "mark"), CASES)
def test_what_the_language_model_gets_and_its_loss_are_those_of_the_released_code(
    recorded: dict[str, Golden], kind: str, mark: str
) -> None:
    known = recorded[kind]
    seen = Seen(built(known))
    found = losses(seen.model, known, mark)
    known.close(seen.prompts[0].detach(), f"{mark}lm_query_inputs")
    known.close(found.parts["lm"], f"{mark}loss")
    assert float(found.total.detach()) == float(found.parts["lm"])
    # Where they computed nothing of meaning, neither do we; their logits are over the queries too.
    mask = "decoder_attention_mask" if seen.model.is_encoder_decoder else "attention_mask"
    known.close(seen.logits[0].detach(), f"{mark}logits", known.expected[f"{mark}{mask}"].bool())


@pytest.mark.parametrize(("kind", "mark"), CASES)
def test_losses_in_float32_are_as_close_as_those_of_the_released_code(
    recorded: dict[str, Golden], kind: str, mark: str
) -> None:
    known = recorded[kind]
    found = losses(built(known, torch.float32), known, mark)
    assert float(found.parts["lm"]) == pytest.approx(float(known.expected[f"{mark}loss"]), abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_released_code(recorded: dict[str, Golden], kind: str) -> None:
    known = recorded[kind]
    model = built(known)
    losses(model, known, "prompted." if kind == "blip2_opt" else "").total.backward()
    found = {name: weights.grad for name, weights in model.named_parameters() if weights.grad is not None}
    expected = known.gradients()
    assert len(expected) > 20
    for name, theirs in expected.items():
        mine = found[name]
        if name.endswith("key.bias"):
            # A bias of keys has no effect, so its gradient is nothing but rounding.
            assert float(mine.abs().max()) < 1e-12
            continue
        # They were recorded in float32.
        assert float((mine - theirs).abs().max()) <= 5e-6 * float(theirs.abs().max()), name
    for module, norm in known.record["grad_norms"].items():
        begins = next(ours for ending, ours in MODULES.items() if module.endswith(ending))
        squares = [float(g.square().sum()) for name, g in found.items() if name.startswith(begins)]
        assert bool(squares) == (norm > 0), module
        assert sum(squares) ** 0.5 == pytest.approx(norm, rel=1e-5), module


def test_rows_of_instruction_and_output_are_laid_out_as_in_the_released_code(
    recorded: dict[str, Golden],
) -> None:
    known = recorded["instructblip_vicuna"]
    batch = batch_of(known, "")
    assert isinstance(batch, InstructedBatch)
    words, targets = one_row(batch.read, batch.output, PADS["instructblip_vicuna"])
    assert torch.equal(words.ids, known.inputs["llm_ids"])
    assert torch.equal(words.real, known.inputs["llm_mask"].bool())
    labels = words.ids.masked_fill(~targets, -100)
    assert torch.equal(labels, known.expected["labels"][:, 4:])  # after the queries
    assert not (known.expected["labels"][:, :4] + 100).any()


def test_targets_of_captions_are_those_of_the_released_code(recorded: dict[str, Golden]) -> None:
    known = recorded["blip2_opt"]
    for mark in ("prompted.", "no_prompt."):
        batch, labels = batch_of(known, mark), known.expected[f"{mark}labels"][:, 4:]
        if isinstance(batch, InstructedBatch):
            words, targets = one_row(batch.read, batch.output, PADS["blip2_opt"])
        else:
            words, targets = Words(batch.ids, batch.real), batch.real
        assert torch.equal(words.ids.masked_fill(~targets, -100), labels)
    # Without a prompt the begin token is one of them.
    assert (labels[:, 0] == 2).all()
