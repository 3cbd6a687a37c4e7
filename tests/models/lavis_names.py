"""Weights under the names of LAVIS's released checkpoints, as weights of our Q-Former models.

Ours are transformers' names. Written from state dicts alone: a map that shared code with ours would repeat
its mistakes. `golden(folder)` reads a recorded model: its structure, its weights, its numbers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file

from capfilt.settings import Blip2, Images, Language, QFormer, Vision

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

Weights = dict[str, "Tensor"]
CLS, SEP, DEC = 2, 3, 200
"""Ids of the recorded vocabulary."""

_VISION_TOP = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
}
_VISION_LAYER = {
    "attn.qkv.weight": "self_attn.qkv.weight",
    "attn.proj": "self_attn.projection",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_HEADS = {
    "vision_proj": "vision_projection",
    "text_proj": "text_projection",
    "itm_head": "itm_head",
    "Qformer.cls.predictions.transform.dense": "word_head.dense",
    "Qformer.cls.predictions.transform.LayerNorm": "word_head.norm",
    "Qformer.cls.predictions": "word_head",
    "opt_proj": "language_projection",
    "t5_proj": "language_projection",
    "llm_proj": "language_projection",
}
_TIED = ("Qformer.cls.predictions.decoder.weight", "Qformer.cls.predictions.decoder.bias")
_BERT, _VIT = "Qformer.bert.", "visual_encoder."


def renamed(theirs: Weights, family: Literal["blip2", "instructblip"] = "blip2") -> Weights:
    """Return weights or gradients under transformers' names; what is tied stands once."""
    found: Weights = {}
    for name, tensor in theirs.items():
        if name in _TIED or name.endswith(("position_ids", "q_bias", "v_bias")):
            continue
        found[_ours(name, family)] = tensor
    for name, tensor in theirs.items():
        if name.endswith("attn.q_bias"):
            layer = name.removesuffix("attn.q_bias")
            bias = torch.cat([tensor, torch.zeros_like(tensor), theirs[f"{layer}attn.v_bias"]])
            found[f"{_vision(layer + 'attn.qkv.weight').removesuffix('weight')}bias"] = bias
    return found


def _ours(name: str, family: str) -> str:
    if name in ("query_tokens", "temp"):
        return {"temp": "temperature"}.get(name, name)
    if name.startswith("ln_vision."):
        return name.replace("ln_vision", "vision_model.post_layernorm")
    if name.startswith(_VIT):
        return _vision(name)
    if name.startswith(_BERT):
        return _qformer(name.removeprefix(_BERT), family)
    if (start := re.match(r"(opt|t5|llm)_model\.", name)) is not None:
        return f"language_model.{name[start.end() :]}"
    head, _, kind = name.rpartition(".")
    return f"{_HEADS[head]}.{kind}"


def _vision(name: str) -> str:
    name = name.removeprefix(_VIT)
    if name in _VISION_TOP:
        return f"vision_model.{_VISION_TOP[name]}"
    layer = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    assert layer is not None, name
    part, _, kind = layer[2].rpartition(".")
    ours = _VISION_LAYER[layer[2]] if layer[2] in _VISION_LAYER else f"{_VISION_LAYER[part]}.{kind}"
    return f"vision_model.encoder.layers.{layer[1]}.{ours}"


def _qformer(name: str, family: str) -> str:
    norm = re.fullmatch(r"embeddings\.LayerNorm\.(weight|bias)", name)
    if norm is not None:
        return f"qformer.{'embeddings.' if family == 'instructblip' else ''}layernorm.{norm[1]}"
    if name.startswith("embeddings."):
        return f"qformer.{name}" if family == "instructblip" else name
    return "qformer." + name.replace("attention.self.", "attention.attention.")


@dataclass(frozen=True)
class Golden:
    """A recorded model of LAVIS."""

    structure: Blip2
    """`language.config` is the recorded `lm_config`."""
    weights: Weights
    """Under our names, float64."""
    inputs: Weights
    expected: Weights
    """float64 where it was recorded so, float32 (as double) elsewhere."""
    record: dict[str, Any]
    """expected.json."""
    folder: Path

    def gradients(self, name: str = "grads.safetensors") -> Weights:
        """Return recorded gradients under our names, float64 (of float32 runs)."""
        return renamed(_doubles(self.folder / name), self.structure.family)

    def close(self, found: Tensor, name: str, rows: Tensor | None = None) -> None:
        """Check numbers computed in float64 against recorded ones: to 1e-9 where those are in float64."""
        exact = name in _recorded_exactly(self.folder)
        mine, theirs = (
            (found, self.expected[name]) if rows is None else (found[rows], self.expected[name][rows])
        )
        torch.testing.assert_close(mine, theirs, atol=1e-9 if exact else 2e-5, rtol=0.0)


def golden(folder: Path) -> Golden:
    """Read one of the folders blip2_* and instructblip_* of the golden numbers."""
    record = json.loads((folder / "expected.json").read_text())
    family: Literal["blip2", "instructblip"] = "instructblip" if "instruct" in folder.name else "blip2"
    vision, qformer = record["vision_config"], record["qformer_config"]
    structure = Blip2(
        family=family,
        images=Images(size_px=vision["img_size"]),
        vision=Vision(
            patch_px=vision["patch_size"],
            width=vision["embed_dim"],
            layers=vision["depth"],
            heads=vision["num_heads"],
            mlp_ratio=vision["mlp_ratio"],
            norm_epsilon=vision["layer_norm_eps"],
        ),
        qformer=QFormer(
            queries=qformer["num_query_token"],
            width=qformer["hidden_size"],
            layers=qformer["num_hidden_layers"],
            heads=qformer["num_attention_heads"],
            feed_forward=qformer["intermediate_size"],
            cross_every=qformer["cross_attention_freq"],
            max_tokens=32,
            places=qformer["max_position_embeddings"],
            norm_epsilon=qformer["layer_norm_eps"],
            dropout=0.0,
        ),
        language=Language(config=record.get("lm_config", {})),
        embed=16,
    )
    return Golden(
        structure,
        renamed(_doubles(folder / "weights.safetensors"), family),
        _doubles(folder / "inputs.safetensors"),
        _doubles(folder / "expected.safetensors") | _doubles(folder / "expected_f64.safetensors"),
        record,
        folder,
    )


def _doubles(path: Path) -> Weights:
    return {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(path).items()
    }


def _recorded_exactly(folder: Path) -> set[str]:
    return {n for n, t in load_file(folder / "expected_f64.safetensors").items() if t.dtype == torch.float64}
