"""The pipelines of BLIP's pre-training against the paper, its released code, and sums worked out by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from whole_runs import capfilt

from capfilt.cli.pipelines import load_pipeline
from capfilt.models.med import MED
from capfilt.stages.pretrain import training_of
from capfilt.training.optim import learning_rate

if TYPE_CHECKING:
    from pathlib import Path

BOTH = ("pretrain_blip_base", "pretrain_blip_large")
PAPER = {
    "pretrain_blip_base": {"learning_rate": 3e-4, "batch_size": 2880},
    "pretrain_blip_large": {"learning_rate": 2e-4, "batch_size": 2400},
}
"""Li et al., "BLIP", 2022, section 4.1, where the two differ."""
OF_BOTH = {
    "itc": 1.0,
    "itm": 1.0,
    "lm": 1.0,
    "epochs": 20,
    "steps": None,
    "decay": 0.85,
    "weight_decay": 0.05,
    "warmup_steps": 3000,
    "first_learning_rate": 1e-6,
    "final_learning_rate": 1e-6,
    "label_smoothing": 0.1,
    "momentum": 0.995,
    "queue": 57600,
    "alpha": 0.4,
    "accumulate": 1,
}
"""The paper's, and salesforce/BLIP's configs/pretrain.yaml and models/blip_pretrain.py."""
LAYER = 4 * (768 * 768 + 768) + 2 * 768
"""An attention of the text with its norm."""
TEXT = (
    (30524 + 512) * 768
    + 2 * 768
    + 12 * (2 * LAYER + (768 * 3072 + 3072) + (3072 * 768 + 768) + 2 * 768)  # own attentions of the decoder
)
"""BERT base with [DEC] and [ENC], and a second self-attention for the decoder; without cross-attention."""
HEADS = (768 * 768 + 768) + 2 * 768 + 30524 + (256 * 768 + 256) + (2 * 768 + 2) + 1
"""LM head, whose matrix is the embeddings', projection of texts, ITM head, temperature."""


def vit(width: int, layers: int) -> int:
    """Parameters of a ViT at 224 px with patches of 16."""
    block = 4 * (width * width + width) + (8 * width * width + 5 * width) + 4 * width
    return (3 * 16 * 16 * width + width) + (1 + 197) * width + layers * block + 2 * width


def cross(width: int) -> int:
    """Cross-attention of one layer, whose keys and values come from states of another width."""
    return 2 * (768 * 768 + 768) + 2 * (width * 768 + 768) + 2 * 768


PARAMETERS = {
    "pretrain_blip_base": vit(768, 12) + TEXT + 12 * cross(768) + HEADS + (768 * 256 + 256),
    "pretrain_blip_large": vit(1024, 24) + TEXT + 12 * cross(1024) + HEADS + (1024 * 256 + 256),
}


@pytest.mark.parametrize("name", BOTH)
def test_the_figures_are_the_papers(name: str) -> None:
    choices = load_pipeline(name).choices()
    [phase] = training_of(choices).phases
    expected: dict[str, Any] = {**OF_BOTH, **PAPER[name]}
    assert {figure: getattr(phase, figure) for figure in expected} == expected
    assert choices.model.images.size_px == 224
    assert training_of(choices).augment.operations == 2


@pytest.mark.parametrize("name", BOTH)
def test_the_rate_rises_for_3000_steps_and_falls_by_its_share_every_pass(name: str) -> None:
    [phase] = training_of(load_pipeline(name).choices()).phases
    # 14 million pictures (the paper's smaller set), and what that makes of a pass.
    in_epoch = round(14_000_000 / phase.batch_size)
    rates = [learning_rate(phase, step, 20 * in_epoch, in_epoch) for step in range(0, 20 * in_epoch, 500)]
    highest: float = PAPER[name]["learning_rate"]
    assert rates[0] == pytest.approx(1e-6, abs=highest / 3000)
    assert max(rates) == pytest.approx(highest)
    assert rates[1:6] == sorted(rates[1:6])
    last = learning_rate(phase, 20 * in_epoch - 1, 20 * in_epoch, in_epoch)
    assert last == pytest.approx(highest * 0.85**19, rel=1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_a_model_of_these_sizes_has_blips_parameters(name: str) -> None:
    choices = load_pipeline(name).choices()
    with torch.device("meta"):
        model = MED(choices.model, 30524, ("itc", "itm", "lm"))
    assert sum(weights.numel() for weights in model.parameters()) == PARAMETERS[name]


def test_the_sums_are_those_that_are_known() -> None:
    # timm's vit_base_patch16_224 and vit_large_patch16_224 without classifier, and BertModel.
    assert (vit(768, 12), vit(1024, 24)) == (85_798_656, 303_301_632)
    pooler, types, marks = 768 * 768 + 768, 2 * 768, 2 * 768
    without_decoder = TEXT - 12 * LAYER
    assert without_decoder == 109_482_240 - pooler - types + marks


@pytest.mark.parametrize("name", BOTH)
def test_nobody_bootstraps_with_it(name: str, drawn: Path, tmp_path: Path) -> None:
    ended = capfilt(
        "bootstrap", drawn / "web", "--clean", drawn / "clean", "--out", tmp_path / "run", "--pipeline", name
    )
    assert ended.code == 2
    assert f"pipeline {name} is a pre-training and bootstraps nothing" in ended.err
    assert "capfilt pretrain DATA --out BUNDLE" in ended.err
    assert "--init" in ended.err
    assert not (tmp_path / "run").exists()


def test_they_are_listed_by_what_they_are() -> None:
    listed = capfilt("pipelines").out
    for name in BOTH:
        [line] = [line for line in listed.splitlines() if line.startswith(f"{name} ")]
        assert "pre-training" in line
