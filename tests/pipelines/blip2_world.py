"""What small runs of BLIP-2 are made of: parts that somebody trained, and commands in this process."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
import world
from safetensors.torch import load_file
from small_language import ENDING, LanguageKind, language_folder
from small_models import enlarge
from whole_runs import Ended, capfilt

from capfilt.data.sources import find_shards
from capfilt.models.language_model import build_language_model
from capfilt.models.language_vocabulary import load_language_vocabulary
from capfilt.settings import Clean, Input, Language, Model, Phase, Training, Vision
from capfilt.stages.training_job import TrainingJob, train_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

CONVOLUTIONAL = world.TINY.model_copy(
    update={"vision": Vision(patch_px=8, width=16, layers=1, heads=2, stem="convolution")}
)
SMALL: dict[str, Any] = {
    "compute.batch_size": 8,
    "compute.workers": 1,
    "compute.device": "cpu",
    "compute.precision": "fp32",
    "model.qformer.queries": 3,
    "model.qformer.width": 24,
    "model.qformer.layers": 2,
    "model.qformer.heads": 2,
    "model.qformer.feed_forward": 32,
    "model.qformer.vocabulary": 120,
    "model.qformer.max_tokens": 24,
    "model.qformer.places": 24,
    "model.embed": 8,
    "model.language.max_tokens": 24,
    "clean.held_out": 0.2,
    "decoding.min_tokens": 2,
    "decoding.max_tokens": 8,
}
"""Settings of every command here."""
STEPS = {"joint": 4, "captioner": 3, "filter": 3}
LEARNING_RATE = 1e-3
TRAINED: dict[str, Any] = {
    f"{group}.phases.0.{name}": value
    for group, steps in (
        ("pretrain", STEPS["joint"]),
        ("captioner_training", STEPS["captioner"]),
        ("filter_training", STEPS["filter"]),
    )
    for name, value in (("steps", steps), ("batch_size", 8), ("learning_rate", LEARNING_RATE))
}
KEEP = ("--itm", "0", "--accept-weak-filter")
"""A policy that any filter allows."""


def language_model(kind: LanguageKind, folder: Path) -> Path:
    """Write a language model as transformers does, whose large weights make much of what is before a text."""
    language_folder(kind, folder)
    config = json.loads((folder / "config.json").read_text())
    model = build_language_model(config)
    enlarge(model)
    end = load_language_vocabulary(folder, Language(config=config)).sep
    with torch.no_grad():  # or captions of random weights hardly ever end
        model.get_output_embeddings().weight[end].mul_(ENDING)
    model.save_pretrained(folder)
    return folder


def image_encoder(drawn: Path, out: Path, model: Model = world.TINY) -> Path:
    """Train a MED for two steps: a bundle whose image encoder is somebody's."""
    job = TrainingJob(
        kind="captioner",
        out=out,
        checkpoint=out.parent / f"{out.name}.pt",
        model=model,
        training=Training(phases=(Phase(lm=1.0, steps=2, batch_size=8),)),
        clean_shards=tuple(find_shards(drawn / "clean")),
        web_shards=(),
        init=None,
        clean=Clean(held_out=0.2),
        input=Input(),
        seed=0,
        precision="fp32",
        threads=1,
    )
    train_model(job, "cpu", world.nobody)
    return out


def sets(*layers: dict[str, Any]) -> list[str]:
    """Return settings as the words of a command."""
    chosen = {name: value for layer in layers for name, value in layer.items()}
    return [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]


def bootstrap(drawn: Path, out: Path, *more: object) -> list[str]:
    """Return the words of a run over the drawn world; `more` says with which models."""
    words = ["bootstrap", drawn / "web", "--clean", drawn / "clean", "--out", out, *KEEP, *more]
    return [str(word) for word in (*words, *sets(SMALL))]


@contextmanager
def engine(made: Any = None) -> Iterator[None]:
    """Have the workers' work done in this process, or by another engine; nobody draws curves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("capfilt.cli.running.write_run_curves", lambda _: None)
        patch.setattr("capfilt.engines.local.LocalEngine", lambda *_, **__: made or world.InProcess())
        yield


def here(*words: object) -> Ended:
    """Run a command without any other process, to its good end."""
    with engine():
        ended = capfilt(*words)
    assert ended.code == 0, ended.err
    return ended


def weights(bundle: Path) -> dict[str, Tensor]:
    """Return the tensors in a folder's file of weights, whichever it is called."""
    (file,) = [
        bundle / name for name in ("model.safetensors", "capfilt.safetensors") if (bundle / name).is_file()
    ]
    return load_file(file)
