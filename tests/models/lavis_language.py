"""The recorded losses of LAVIS's second stage and of InstructBLIP, computed by our code."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lavis_golden import WORDS

from capfilt.models.prompted import SoftPrompted, Words
from capfilt.settings import Phase
from capfilt.training.language import InstructedBatch, language_losses, prompted
from capfilt.training.objectives import Batch, Losses, Setting

if TYPE_CHECKING:
    from collections.abc import Callable

    from lavis_golden import Golden
    from torch import Tensor

STAGE2 = Phase(lm=1, label_smoothing=0)
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
    model = SoftPrompted(recorded.structure, WORDS).to(dtype)
    model.load_state_dict(recorded.weights)
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
