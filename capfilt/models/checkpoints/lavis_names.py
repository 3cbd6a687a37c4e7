"""Names of weights in LAVIS's .pth files of BLIP-2 and InstructBLIP, in one table that is read both ways.

Ours are transformers'. LAVIS leaves out of its files what it did not train, so that a file may lack the image
encoder and the language model, and a name says which part it is of. Source: LAVIS (salesforce/LAVIS),
lavis/models/blip2_models and lavis/models/eva_vit.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, TypeVar

import torch

from capfilt.errors import CapfiltError
from capfilt.models.checkpoints.names import TEMPERATURE, counts, timm_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

T = TypeVar("T")

Stack = Literal["", "opt", "t5", "llm"]
"""Before which language model a Q-Former writes, as LAVIS calls it; none in the first stage."""
VISION = "visual_encoder."
WORDS = "Qformer.bert.embeddings.word_embeddings.weight"
PLACES = "Qformer.bert.embeddings.position_embeddings.weight"
LANGUAGE_HEAD = "Qformer.cls."
"""How the names of a part begin, or what its weight is called."""

_OURS_VISION = "vision_model."
_QKV = ".self_attn.qkv.bias"
_PREFIXES = {
    "vision_model.post_layernorm.": "ln_vision.",
    "vision_projection.": "vision_proj.",
    "text_projection.": "text_proj.",
    "itm_head.": "itm_head.",
    "word_head.dense.": "Qformer.cls.predictions.transform.dense.",
    "word_head.norm.": "Qformer.cls.predictions.transform.LayerNorm.",
    "word_head.": "Qformer.cls.predictions.",
    "qformer.embeddings.layernorm.": "Qformer.bert.embeddings.LayerNorm.",
    "qformer.layernorm.": "Qformer.bert.embeddings.LayerNorm.",
    "qformer.": "Qformer.bert.",
    "embeddings.": "Qformer.bert.embeddings.",
}
"""How names begin here and there; the first one that fits counts."""
_WHOLE = {"query_tokens": "query_tokens", TEMPERATURE: "temp"}
_ATTENTION = "attention.attention.", "attention.self."
TIED = {
    "Qformer.cls.predictions.decoder.weight": WORDS,
    "Qformer.cls.predictions.decoder.bias": "Qformer.cls.predictions.bias",
}
"""Weights that a file holds twice, and the name under which they are read."""
_SERVES_NO_NUMBER = {
    "*.position_ids": "places of tokens, counted from 0",
    "*.rotary_emb.inv_freq": "what rotations are computed from",
}
_FIRST_STAGE = {
    "vision_proj.*": "ITC projection of the first stage",
    "text_proj.*": "ITC projection of the first stage",
    "itm_head.*": "ITM head of the first stage",
    "temp": "temperature of ITC",
}
_LANGUAGE_HEAD = {f"{LANGUAGE_HEAD}*": "language head of the first stage"}
_READING = {
    WORDS: "words of the Q-Former, which reads nothing here",
    PLACES: "places of the Q-Former's words, which reads nothing here",
    "Qformer.bert.encoder.layer.*.intermediate.*": "text side of the Q-Former, which reads nothing here",
    "Qformer.bert.encoder.layer.*.output.*": "text side of the Q-Former, which reads nothing here",
}
"""What a file may hold that its model has no use for (names, or patterns of names), and what it is."""
_MODEL_PARTS = (".attention.", ".crossattention.")
"""Parts of a layer that every Q-Former has."""


def stack_of(names: Iterable[str]) -> Stack:
    """Return before which language model the Q-Former of a file writes, by the name of its projection."""
    parts = {name.partition(".")[0] for name in names}
    found: Iterable[Stack] = ("opt", "t5", "llm")
    return next((stack for stack in found if f"{stack}_proj" in parts), "")


@dataclass(frozen=True)
class LavisNaming:
    """How the weights of a model with a Q-Former are called in LAVIS."""

    stack: Stack

    def theirs(self, ours: str) -> tuple[str, ...]:
        """Return their names for one weight of ours; a bias of attention is two, of queries and of values.

        LAVIS's ViT has none on the keys.
        """
        if ours in _WHOLE:
            return (_WHOLE[ours],)
        if ours.startswith(_OURS_VISION) and not ours.startswith("vision_model.post_layernorm."):
            name = VISION + timm_name(ours)
            if ours.endswith(_QKV):
                layer = name.removesuffix("qkv.bias")
                return f"{layer}q_bias", f"{layer}v_bias"
            return (name,)
        for here, there in self._prefixes().items():
            if ours.startswith(here):
                return (there + ours.removeprefix(here).replace(*_ATTENTION),)
        raise KeyError(ours)

    def read(self, theirs: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
        """Return the weights of ours that are called `names`; one of theirs that lacks is left out."""
        found = {}
        for ours in names:
            parts = [theirs[name] for name in self.theirs(ours) if name in theirs]
            if len(parts) == len(self.theirs(ours)):
                found[ours] = parts[0] if len(parts) == 1 else _three(*parts)
        return found

    def write(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our weights under their names."""
        found: dict[str, Tensor] = {}
        for ours, tensor in weights.items():
            names = self.theirs(ours)
            queries_and_values = tensor.chunk(3)[::2] if len(names) > 1 else (tensor,)
            found.update(zip(names, queries_and_values, strict=True))
        return found

    def _prefixes(self) -> dict[str, str]:
        if not self.stack:
            return _PREFIXES
        language = {
            "language_model.": f"{self.stack}_model.",
            "language_projection.": f"{self.stack}_proj.",
        }
        return language | _PREFIXES


def _three(queries: Tensor, values: Tensor) -> Tensor:
    return torch.cat([queries, torch.zeros_like(queries), values])


def as_lavis_vision(weights: Mapping[str, T]) -> dict[str, T]:
    """Return those of a file's weights, or shapes, that are its image encoder's, by their names in a model.

    LAVIS's own file of EVA-CLIP's ViT names them without the encoder before them. Empty for a file of
    another kind.
    """
    inside = {name: tensor for name, tensor in weights.items() if name.startswith(VISION)}
    if not inside and "cls_token" in weights:
        inside = {VISION + name: tensor for name, tensor in weights.items()}
    return inside if is_lavis_vision(inside) else {}


def is_lavis_vision(names: Iterable[str]) -> bool:
    """Return whether names are those of LAVIS's ViT, or hold them: no other ViT has these biases."""
    return any(re.fullmatch(rf"({re.escape(VISION)})?blocks\.\d+\.attn\.q_bias", name) for name in names)


def no_use(*, is_first_stage: bool, reads: bool, writes: bool) -> dict[str, str]:
    """Return what a model has no use for, a pattern of names -> what it is.

    `reads` says whether its Q-Former reads texts, `writes` whether that has the language head.
    """
    first = {} if is_first_stage else _FIRST_STAGE
    return _SERVES_NO_NUMBER | first | ({} if writes else _LANGUAGE_HEAD) | ({} if reads else _READING)


def left_out(
    weights: Mapping[str, Tensor], names: Iterable[str], patterns: Mapping[str, str], where: str
) -> tuple[dict[str, str], list[str]]:
    """Tell weights that are not read apart: (pattern or name -> what it is, names that nobody knows).

    What is tied must equal what it is tied to, and places must count from 0; else the numbers differ.
    """
    known: dict[str, str] = {}
    unknown = []
    for name in names:
        if name in TIED and TIED[name] in weights:
            check_same(weights, name, TIED[name], where)
            known[name] = f"the same as {TIED[name]}"
            continue
        pattern = next((one for one in patterns if fnmatchcase(name, one)), None)
        if pattern is None or any(part in name for part in _MODEL_PARTS):
            unknown.append(name)
            continue
        if name.endswith(".position_ids") and not counts(weights[name]):
            raise CapfiltError(
                f"{where}: {name} does not count from 0", fix="give a checkpoint with positions as LAVIS's"
            )
        known[pattern] = patterns[pattern]
    return known, unknown


def check_same(weights: Mapping[str, Tensor], name: str, first: str, where: str) -> None:
    """Refuse two weights that the model has as one and that differ."""
    if not torch.equal(weights[name], weights[first]):
        raise CapfiltError(
            f"{where}: {name} differs from {first}, and the model has one matrix for both",
            fix="give a checkpoint as LAVIS wrote it",
        )
