"""Weights under the names of BLIP's released code and of transformers, as weights of our MED.

Written from their state dicts alone: a map that shared code with ours would repeat its mistakes. Their
query, key and value (three matrices) stand concatenated in our `qkv`, key and value of the
cross-attention in `key_value`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from capfilt.models.med import MED

Weights = dict[str, "Tensor"]

_LAYER_PARTS = {
    "attention.output.dense": "attention.{direction}.out",
    "attention.output.LayerNorm": "attention.{direction}.norm",
    "crossattention.self.query": "cross.query",
    "crossattention.output.dense": "cross.out",
    "crossattention.output.LayerNorm": "cross.norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward.norm",
}
_FUSED_PARTS = {
    "attention.{direction}.qkv": [f"attention.self.{name}" for name in ("query", "key", "value")],
    "cross.key_value": [f"crossattention.self.{name}" for name in ("key", "value")],
}
_EMBEDDINGS = {
    "word_embeddings.weight": "words.weight",
    "position_embeddings.weight": "positions.weight",
    "LayerNorm.weight": "norm.weight",
    "LayerNorm.bias": "norm.bias",
}
_HEAD = {
    "bias": "bias",
    "transform.dense.weight": "dense.weight",
    "transform.dense.bias": "dense.bias",
    "transform.LayerNorm.weight": "norm.weight",
    "transform.LayerNorm.bias": "norm.bias",
}
_VISION_TOP = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.patch_embedding.bias": "patch_embed.proj.bias",
    "post_layernorm.weight": "norm.weight",
    "post_layernorm.bias": "norm.bias",
}
_VISION_LAYER = {
    "self_attn.qkv": "attn.qkv",
    "self_attn.projection": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def text_weights(theirs: Weights, prefix: str, direction: str) -> Weights:
    """Return our text transformer's weights of a BERT at `prefix` that serves one direction."""
    found = {f"text.{ours}": theirs[f"{prefix}embeddings.{name}"] for name, ours in _EMBEDDINGS.items()}
    layers = {
        int(m[1]) for m in (re.match(rf"{re.escape(prefix)}encoder\.layer\.(\d+)\.", n) for n in theirs) if m
    }
    for number in layers:
        source, target = f"{prefix}encoder.layer.{number}.", f"text.layers.{number}."
        for kind in ("weight", "bias"):
            for name, ours in _LAYER_PARTS.items():
                found[f"{target}{ours.format(direction=direction)}.{kind}"] = theirs[f"{source}{name}.{kind}"]
            for ours, names in _FUSED_PARTS.items():
                found[f"{target}{ours.format(direction=direction)}.{kind}"] = torch.cat(
                    [theirs[f"{source}{name}.{kind}"] for name in names]
                )
    return found


def word_head_weights(theirs: Weights, prefix: str) -> Weights:
    """Return our LM head's weights; its matrix is the word embeddings' and is not kept twice."""
    return {f"word_head.{ours}": theirs[f"{prefix}cls.predictions.{name}"] for name, ours in _HEAD.items()}


def timm_weights(theirs: Weights, prefix: str) -> Weights:
    """Return our image encoder's weights of a ViT with timm's names."""
    return {f"image.vit.{n.removeprefix(prefix)}": w for n, w in theirs.items() if n.startswith(prefix)}


def transformers_vision_weights(theirs: Weights, prefix: str) -> Weights:
    """Return our image encoder's weights of a `BlipVisionModel`."""
    found = {f"image.vit.{ours}": theirs[prefix + name] for name, ours in _VISION_TOP.items()}
    for name, tensor in theirs.items():
        match = re.fullmatch(rf"{re.escape(prefix)}encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if match:
            found[f"image.vit.blocks.{match[1]}.{_VISION_LAYER[match[2]]}.{match[3]}"] = tensor
    return found


def projection_weights(theirs: Weights) -> Weights:
    """Return our ITC projections' and ITM head's weights."""
    names = {"vision_proj": "image_projection", "text_proj": "text_projection", "itm_head": "itm_head"}
    return {f"{ours}.{k}": theirs[f"{name}.{k}"] for name, ours in names.items() for k in ("weight", "bias")}


def take(model: MED, *parts: Weights) -> MED:
    """Put the weights into the model: every one it has, and none that it lacks but the temperature.

    Parts may hold the same weight if they agree on it. Our table of positions may be longer than theirs.
    """
    merged: Weights = {}
    for weights in parts:
        for name, tensor in weights.items():
            assert name not in merged or torch.equal(merged[name], tensor), (
                f"{name} is given twice and differs"
            )
            merged[name] = tensor
    own = model.state_dict()
    assert set(own) - {"temperature"} == set(merged) - {"temperature"}
    positions = merged["text.positions.weight"]
    missing = len(own["text.positions.weight"]) - len(positions)
    merged["text.positions.weight"] = torch.cat([positions, positions.new_zeros(missing, positions.shape[1])])
    merged.setdefault("temperature", torch.tensor(0.07))
    model.load_state_dict({name: merged[name] for name in own})
    return model.eval()
