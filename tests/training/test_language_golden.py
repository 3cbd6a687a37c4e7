"""Stage 2 of BLIP-2 and InstructBLIP against LAVIS's numbers; golden/README.md says where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lavis_names import Golden, golden

from capfilt.layers import changed
from capfilt.models.prompted import SoftPrompted, Words
from capfilt.settings import Phase
from capfilt.training.language import InstructedBatch, language_losses, one_row, prompted
from capfilt.training.objectives import Batch, Losses, Setting

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

WORDS = 201
"""Entries of the recorded vocabulary of the Q-Former."""
STAGE2 = Phase(lm=1, label_smoothing=0)
KINDS: dict[str, dict[str, Any]] = {
    "blip2_opt": {"model_type": "opt"},
    # They force the exact GELU on FlanT5, whose files name another one.
    "blip2_t5": {"model_type": "t5", "dense_act_fn": "gelu"},
    "instructblip_t5": {"model_type": "t5", "dense_act_fn": "gelu"},
    "instructblip_vicuna": {"model_type": "llama", "vocab_size": 121, "pad_token_id": 120},
}
"""What the recorded structure of the language model leaves open."""
PADS = {"blip2_opt": 1, "blip2_t5": 0, "instructblip_t5": 0, "instructblip_vicuna": 120}
CASES = [
    ("blip2_opt", "prompted."),
    ("blip2_opt", "no_prompt."),
    ("blip2_t5", ""),
    ("instructblip_t5", ""),
    ("instructblip_t5", "no_qformer_text."),
    ("instructblip_vicuna", ""),
    ("instructblip_vicuna", "no_qformer_text."),
]
"""Recorded models, and what the names of one loss's numbers begin with."""
MODULES = {
    "ln_vision": "vision_model.post_layernorm.",
    "Qformer": "qformer.",
    "query_tokens": "query_tokens",
    "_proj": "language_projection.",
    "_model": "language_model.",
    "visual_encoder": "vision_model.e",
}
"""How the names of their modules end, and how our names of the same weights begin."""


@dataclass(frozen=True)
class Theirs:
    """The vocabulary of the recorded texts, as far as a step asks for it."""

    pad: int


@dataclass
class Seen:
    """A model whose calls of the language model are kept."""

    model: SoftPrompted
    prompts: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, into in (
            ("soft_prompts", self.prompts),
            ("logits", self.logits),
            ("target_logits", self.logits),
        ):
            setattr(self.model, name, self._kept(getattr(self.model, name), into))

    def _kept(self, call: Callable[..., Tensor], into: list[Tensor]) -> Callable[..., Tensor]:
        def kept(*given: Any) -> Tensor:
            into.append(call(*given))
            return into[-1]

        return kept


def built(recorded: Golden, dtype: torch.dtype = torch.float64) -> SoftPrompted:
    structure = changed(recorded.structure, {"language": {"config": KINDS[recorded.folder.name]}})
    model = SoftPrompted(structure, WORDS).to(dtype)
    # Their Llama also keeps what its rotations are computed from.
    weights = {name: w for name, w in recorded.weights.items() if not name.endswith("inv_freq")}
    model.load_state_dict(weights)
    if recorded.folder.name == "instructblip_vicuna":
        as_their_llama(model.language_model)
    return model.train()


def as_their_llama(llama: Any) -> None:
    """Have the norms round what LAVIS's own Llama rounds, the variance alone.

    transformers' norms, and LAVIS's attention, compute in single precision whatever the weights are in. In
    double precision the losses are 1e-8 apart for that.
    """
    llama.set_attn_implementation("eager")
    for norm in llama.modules():
        if type(norm).__name__ == "LlamaRMSNorm":
            norm.forward = partial(_their_norm, norm)


def _their_norm(norm: Any, states: Tensor) -> Tensor:
    variance = states.float().square().mean(-1, keepdim=True)
    normed: Tensor = norm.weight * (states * torch.rsqrt(variance + norm.variance_epsilon)).to(states.dtype)
    return normed


def batch_of(recorded: Golden, mark: str, dtype: torch.dtype = torch.float64) -> Batch | InstructedBatch:
    """The recorded texts, laid out as our batches have them."""

    def words(ids: str, mask: str, begin: int = 0) -> Words:
        return Words(recorded.inputs[ids][:, begin:], recorded.inputs[mask][:, begin:].bool())

    pixels, kind = recorded.inputs["images"].to(dtype), recorded.folder.name
    asked = None
    if kind.startswith("instruct") and not mark:
        ids, mask = recorded.inputs["qformer_input_ids"], recorded.inputs["qformer_attention_mask"]
        asked = Words(ids, mask[:, 4:].bool())  # after the queries
    if kind == "blip2_opt":
        text = words(f"{mark}input_ids", f"{mark}attention_mask")
        numbers = torch.arange(len(pixels))
        pairs = Batch(pixels, text.ids, text.real, numbers, numbers)
        return prompted(pairs, recorded.record["prompt_length"]) if mark == "prompted." else pairs
    if kind == "instructblip_vicuna":
        output = words("text_output_ids", "text_output_mask", 1)  # without the begin token
        return InstructedBatch(pixels, asked, words("text_input_ids", "text_input_mask"), output)
    output = words("output_ids", "output_attention_mask")
    return InstructedBatch(pixels, asked, words("input_ids", "attention_mask"), output)


def losses(model: SoftPrompted, recorded: Golden, mark: str) -> Losses:
    vocabulary: Any = Theirs(PADS[recorded.folder.name])
    batch = batch_of(recorded, mark, model.query_tokens.dtype)
    return language_losses(model, vocabulary, batch, STAGE2, Setting(with_itm=False, key=("golden",)))


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
