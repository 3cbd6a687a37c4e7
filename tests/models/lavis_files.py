"""Files of LAVIS, made of recorded weights as LAVIS's trainings write them, and what they are given with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from lavis_golden import KINDS
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from capfilt.stages.checkpoint import Checkpoint, convert_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capfilt.models.cards import Card

State = dict[str, Any]
VISION = "visual_encoder."
LANGUAGE_PARTS = ("opt_model.", "t5_model.", "llm_model.")
"""How the names of parts begin that LAVIS does not train, and so does not write."""
HEADS = (4, 4)
"""Attention heads of the recorded image encoder and Q-Former: their widths do not say them."""
_SPECIAL = {
    "opt": ["<s>", "<pad>", "</s>", "<unk>"],
    "t5": ["<pad>", "</s>", "<unk>"],
    "llama": ["<unk>", "<s>", "</s>"],
}
_BEGINS = {"opt": "</s>", "llama": "<s>"}


def lavis_file(path: Path, weights: Path, change: Callable[[State], object] | None = None) -> Path:
    """Write a .pth as LAVIS's runner does: the weights under `model`, beside optimizer, scaler and epoch."""
    state: State = load_file(weights / "weights.safetensors")
    if change is not None:
        change(state)
    beside = {"optimizer": {"state": {}}, "config": {"run": {"seed": 42}}, "scaler": None, "epoch": 9}
    torch.save({"model": state, **beside}, path)
    return path


def without(*starts: str) -> Callable[[State], None]:
    """Leave out weights, as LAVIS does what it did not train."""

    def change(state: State) -> None:
        for name in [name for name in state if name.startswith(starts)]:
            del state[name]

    return change


def eva_file(path: Path, weights: Path) -> Path:
    """Write a recorded image encoder alone, by the names that LAVIS's file of EVA-CLIP's has."""
    theirs = load_file(weights / "weights.safetensors")
    state = {name.removeprefix(VISION): one for name, one in theirs.items() if name.startswith(VISION)}
    state["norm.weight"] = torch.ones(32)  # a norm that LAVIS leaves out
    torch.save(state, path)
    return path


def recorded_language(folder: Path, kind: str, recorded: Path) -> Path:
    """Write config.json and a tokenizer for the language model of a recorded model; no weights."""
    folder.mkdir()
    config = json.loads((recorded / "expected.json").read_text())["lm_config"] | KINDS[recorded.name]
    special = _SPECIAL[kind]
    words = [*special, "\n", "a", "cat", "dog", "red", "blue"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.add_special_tokens(special)
    if kind in _BEGINS:
        begin = _BEGINS[kind]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, special.index(begin))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "</s>", "unk_token": "<unk>", "bos_token": _BEGINS.get(kind)}
    written = {"tokenizer_class": "PreTrainedTokenizerFast", **{n: one for n, one in named.items() if one}}
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    # What is wrong here is mended by the importer: FlanT5's own file has the other GELU.
    if kind == "t5":
        config.pop("dense_act_fn")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def converted(file: Path, to: Path, **given: Any) -> Card:
    """Do what `capfilt models convert FILE --out TO` has a worker do."""
    given = {"vocabulary": "no/words", "heads": HEADS, **given}
    plain = {
        name: str(one) if name in ("vocabulary", "vision", "language") else one for name, one in given.items()
    }
    return convert_checkpoint((Checkpoint(str(file), **plain), to), "cpu", lambda *_: None)
