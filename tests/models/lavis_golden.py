"""Recorded models of LAVIS: their structure, their weights under our names, their numbers.

Weights are renamed by the importer's own table; numbers that are met prove it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file

from capfilt.models.checkpoints.lavis_names import LavisNaming
from capfilt.models.prompted import SoftPrompted
from capfilt.models.qformer import QFormer as FirstStage
from capfilt.settings import Blip2, Images, Language, QFormer, Vision

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

Weights = dict[str, "Tensor"]
CLS, SEP, DEC = 2, 3, 200
"""Ids of the recorded vocabulary."""
WORDS = 201
"""Entries of it."""
KINDS: dict[str, dict[str, Any]] = {
    "blip2_opt": {"model_type": "opt"},
    # They force the exact GELU on FlanT5, whose files name another one.
    "blip2_t5": {"model_type": "t5", "dense_act_fn": "gelu"},
    "instructblip_t5": {"model_type": "t5", "dense_act_fn": "gelu"},
    "instructblip_vicuna": {"model_type": "llama", "vocab_size": 121, "pad_token_id": 120},
}
"""What the recorded structure of the language model leaves open."""


@dataclass(frozen=True)
class Golden:
    """A recorded model of LAVIS."""

    structure: Blip2
    """`language.config` is the recorded `lm_config` with what `KINDS` says."""
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
        return _renamed(_doubles(self.folder / name), self.structure)

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
        language=Language(config=record.get("lm_config", {}) | KINDS.get(folder.name, {})),
        embed=16,
    )
    return Golden(
        structure,
        _renamed(_doubles(folder / "weights.safetensors"), structure),
        _doubles(folder / "inputs.safetensors"),
        _doubles(folder / "expected.safetensors") | _doubles(folder / "expected_f64.safetensors"),
        record,
        folder,
    )


def _renamed(theirs: Weights, structure: Blip2) -> Weights:
    """Return weights or gradients under the names they have in a model of ours."""
    with torch.device("meta"):
        model: Any = (
            SoftPrompted(structure, WORDS)
            if structure.language.config
            else FirstStage(structure, WORDS, ["itc", "itm", "lm"])
        )
    stack = {"opt": "opt", "t5": "t5", "llama": "llm"}.get(structure.language.config.get("model_type"), "")
    return LavisNaming(stack).read(theirs, model.state_dict())


def _doubles(path: Path) -> Weights:
    return {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(path).items()
    }


def _recorded_exactly(folder: Path) -> set[str]:
    return {n for n, t in load_file(folder / "expected_f64.safetensors").items() if t.dtype == torch.float64}
