"""Names of weights: ours, those of transformers and those of BLIP's released code, in one table.

The table is read in both directions, so that what was written can be read. A model of theirs is one half
of ours, the captioner or the filter; text goes by the same names in transformers and in the released code,
the image encoder by transformers' names or by timm's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

import torch

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from capfilt.models.cards import Kind, Objective

Half = Literal["captioner", "filter"]
ImageNames = Literal["transformers", "timm", "released"]
"""transformers' own names for BLIP's ViT; timm's, for any other encoder of a bundle; timm's, as in a .pth."""
TEMPERATURE = "temperature"


def _modules(table: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the rows of the weight and the bias of each module."""
    return {
        f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in theirs)
        for ours, theirs in table.items()
        for kind in ("weight", "bias")
    }


# N stands for the number of a layer. Where ours has several of theirs, they lie one below the other.
_IMAGE = {
    "cls_token": ("embeddings.class_embedding",),
    "pos_embed": ("embeddings.position_embedding",),
    **_modules(
        {
            "patch_embed.proj": ("embeddings.patch_embedding",),
            "blocks.N.norm1": ("encoder.layers.N.layer_norm1",),
            "blocks.N.attn.qkv": ("encoder.layers.N.self_attn.qkv",),
            "blocks.N.attn.proj": ("encoder.layers.N.self_attn.projection",),
            "blocks.N.norm2": ("encoder.layers.N.layer_norm2",),
            "blocks.N.mlp.fc1": ("encoder.layers.N.mlp.fc1",),
            "blocks.N.mlp.fc2": ("encoder.layers.N.mlp.fc2",),
            "norm": ("post_layernorm",),
        }
    ),
}
_TEXT = {
    "words.weight": ("embeddings.word_embeddings.weight",),
    "positions.weight": ("embeddings.position_embeddings.weight",),
    **_modules(
        {
            "norm": ("embeddings.LayerNorm",),
            "layers.N.attention.DIRECTION.qkv": (
                "encoder.layer.N.attention.self.query",
                "encoder.layer.N.attention.self.key",
                "encoder.layer.N.attention.self.value",
            ),
            "layers.N.attention.DIRECTION.out": ("encoder.layer.N.attention.output.dense",),
            "layers.N.attention.DIRECTION.norm": ("encoder.layer.N.attention.output.LayerNorm",),
            "layers.N.cross.query": ("encoder.layer.N.crossattention.self.query",),
            "layers.N.cross.key_value": (
                "encoder.layer.N.crossattention.self.key",
                "encoder.layer.N.crossattention.self.value",
            ),
            "layers.N.cross.out": ("encoder.layer.N.crossattention.output.dense",),
            "layers.N.cross.norm": ("encoder.layer.N.crossattention.output.LayerNorm",),
            "layers.N.feed_forward.up": ("encoder.layer.N.intermediate.dense",),
            "layers.N.feed_forward.down": ("encoder.layer.N.output.dense",),
            "layers.N.feed_forward.norm": ("encoder.layer.N.output.LayerNorm",),
        }
    ),
}
_HEADS = {
    "word_head.bias": ("text_decoder.cls.predictions.bias",),
    **_modules(
        {
            "word_head.dense": ("text_decoder.cls.predictions.transform.dense",),
            "word_head.norm": ("text_decoder.cls.predictions.transform.LayerNorm",),
            "image_projection": ("vision_proj",),
            "text_projection": ("text_proj",),
            "itm_head": ("itm_head",),
        }
    ),
}
_IMAGE_PREFIX = {
    "transformers": "vision_model.",
    "timm": "vision_model.vit.",
    "released": "visual_encoder.",
}
_TEXT_PREFIX = {"captioner": "text_decoder.bert.", "filter": "text_encoder."}
_DIRECTION = {"captioner": "decoder", "filter": "encoder"}
_NOT_OF = {
    "captioner": (".attention.encoder.", "image_projection.", "text_projection.", "itm_head.", TEMPERATURE),
    "filter": (".attention.decoder.", "word_head.", TEMPERATURE),
}

TIED = {
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}
"""Weights that a checkpoint may hold twice, and the name under which they are read."""
FRESH_HEADS = ("vision_proj.", "text_proj.", "itm_head.")
"""Heads that a filter may lack where it only starts a training."""
PART_OF: dict[Half, dict[str, str]] = {
    "captioner": {"text_decoder.*": "decoder of the captioner"},
    "filter": {
        "text_encoder.*": "text encoder of the filter",
        "vision_proj.*": "ITC projection of the filter",
        "text_proj.*": "ITC projection of the filter",
        "itm_head.*": "ITM head of the filter",
    },
}
"""What a half has that the other one has not."""
_LEFT_OUT = {
    "visual_encoder_m.*": "momentum copy of the image encoder",
    "text_encoder_m.*": "momentum copy of the text encoder",
    "vision_proj_m.*": "momentum copy of a projection",
    "text_proj_m.*": "momentum copy of a projection",
    "image_queue": "queue of momentum features",
    "text_queue": "queue of momentum features",
    "idx_queue": "images of the queue",
    "queue_ptr": "where the queue is filled next",
    "ptr_queue": "where the queue is filled next",
    "temp": "temperature of ITC",
    "*.position_ids": "places of tokens, counted from 0",
    "*.pooler.*": "pooler, which nothing here reads",
}


@dataclass(frozen=True)
class Naming:
    """How the weights of one half are called elsewhere."""

    half: Half
    images: ImageNames

    def theirs(self, ours: str) -> tuple[str, ...]:
        """Return their names for one weight of ours; several lie one below the other in it."""
        if ours.startswith("image.vit."):
            name, prefix = ours.removeprefix("image.vit."), _IMAGE_PREFIX[self.images]
            if self.images != "transformers":
                return (prefix + name,)
            return tuple(prefix + one for one in _looked_up(_IMAGE, name))
        if ours.startswith("text."):
            name = ours.removeprefix("text.").replace(
                f".attention.{_DIRECTION[self.half]}.", ".attention.DIRECTION."
            )
            return tuple(_TEXT_PREFIX[self.half] + one for one in _looked_up(_TEXT, name))
        return _HEADS[ours]

    def write(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our weights under their names."""
        written: dict[str, Tensor] = {}
        for ours, tensor in weights.items():
            names = self.theirs(ours)
            parts = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
            written.update(zip(names, parts, strict=True))
        return {name: tensor.contiguous() for name, tensor in written.items()}

    def read(self, theirs: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
        """Return the weights of ours that are called `names`; one of theirs that lacks is left out."""
        read = {}
        for ours in names:
            parts = [theirs[name] for name in self.theirs(ours) if name in theirs]
            if len(parts) == len(self.theirs(ours)):
                read[ours] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return read


def _looked_up(table: dict[str, tuple[str, ...]], name: str) -> tuple[str, ...]:
    number = re.search(r"\.(\d+)\.", name)
    if number is None:
        return table[name]
    return tuple(
        theirs.replace(".N.", number[0]) for theirs in table[re.sub(r"\.\d+\.", ".N.", name, count=1)]
    )


def timm_name(theirs: str) -> str:
    """Return the name in timm of a weight of an image encoder of the family, vision_model.* in transformers.

    Raises KeyError for a weight that it has not.
    """
    inverse: dict[str, tuple[str, ...]] = {names[0]: (ours,) for ours, names in _IMAGE.items()}
    return _looked_up(inverse, theirs.removeprefix(_IMAGE_PREFIX["transformers"]))[0]


def halves(kind: Kind, objectives: Iterable[Objective]) -> tuple[Half, ...]:
    """Return the halves that a model of this kind is written as."""
    if kind != "joint":
        return (kind,)
    served = set(objectives)
    captioner: tuple[Half, ...] = ("captioner",) if "lm" in served else ()
    return (*captioner, "filter") if served & {"itc", "itm"} else captioner


def objectives_of(half: Half, objectives: Iterable[Objective]) -> tuple[Objective, ...]:
    """Return the objectives that a half of a model serves."""
    return tuple(one for one in objectives if (one == "lm") == (half == "captioner"))


def names_of(half: Half, names: Iterable[str], objectives: Iterable[Objective]) -> list[str]:
    """Return those of a model's weights that its half has; the temperature serves training alone."""
    absent = _NOT_OF[half]
    if half == "filter" and "itm" not in objectives:
        absent = (*absent, ".cross.")  # nothing of it looks at the image
    return [name for name in names if not any(part in name for part in absent)]


def joined(parts: Mapping[Half, Mapping[str, Tensor]], where: str) -> dict[str, Tensor]:
    """Return the weights of both halves together; what both have must be the same."""
    whole: dict[str, Tensor] = {}
    differing = []
    for weights in parts.values():
        for name, tensor in weights.items():
            if name in whole and not torch.equal(whole[name], tensor):
                differing.append(name)
            whole[name] = tensor
    if differing:
        raise CapfiltError(
            f"{where}: captioner and filter do not share {few(differing)}, as they must in one model",
            fix="give a joint model as it was written, or its captioner and its filter one by one",
        )
    return whole


def check_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str, fix: str) -> None:
    """Refuse weights that are not the expected ones by name and shape."""
    wrong = {
        "missing": [name for name in expected if name not in found],
        "surplus": [name for name in found if name not in expected],
        "of another shape": [
            name for name, one in expected.items() if name in found and found[name].shape != one.shape
        ],
    }
    if any(wrong.values()):
        told = "; ".join(f"{what}: {few(names)}" for what, names in wrong.items() if names)
        raise CapfiltError(f"{where} does not fit its model; {told}", fix=fix)


def left_out(
    weights: Mapping[str, Tensor], names: Iterable[str], where: str
) -> tuple[dict[str, str], list[str]]:
    """Tell weights that are not read apart: (pattern or name -> what it is, names that nobody knows).

    What is tied must equal what it is tied to, and places must count from 0; else the numbers differ.
    """
    known: dict[str, str] = {}
    unknown = []
    for name in names:
        if name in TIED and TIED[name] in weights:
            if not torch.equal(weights[name], weights[TIED[name]]):
                raise CapfiltError(
                    f"{where}: {name} differs from {TIED[name]}, and BLIP has one matrix for both",
                    fix="give a checkpoint whose word embeddings are tied, as BLIP's are",
                )
            known[name] = f"the same as {TIED[name]}"
            continue
        pattern = next((one for one in _LEFT_OUT if fnmatchcase(name, one)), None)
        copied = name.replace("_m.", ".", 1)
        if pattern is None or (pattern.endswith("_m.*") and copied not in weights):
            unknown.append(name)
            continue
        if name.endswith(".position_ids") and not counts(weights[name]):
            raise CapfiltError(
                f"{where}: {name} does not count from 0", fix="give a checkpoint with positions as BLIP's"
            )
        known[pattern] = _LEFT_OUT[pattern]
    return known, unknown


def counts(places: Tensor) -> bool:
    """Return whether places of tokens are counted from 0."""
    return torch.equal(places.flatten().long(), torch.arange(places.numel()))


def few(names: Iterable[str], most: int = 3) -> str:
    """Return the first few names, and how many more there are."""
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
