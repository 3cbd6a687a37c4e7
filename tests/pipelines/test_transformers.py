"""A captioner trained here on plain patches writes in transformers what it writes here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from typer.testing import CliRunner
from whole_runs import TINY

from capfilt.cli.main import app
from capfilt.data.images import decode, normalise
from capfilt.data.sources import find_shards, read_shard
from capfilt.models.bundle import load_bundle
from capfilt.models.captioner import MedCaptioner
from capfilt.models.protocols import ImageBatch
from capfilt.settings import Input, SettledDecoding

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

PICTURES = 64
TOKENS = 12


@pytest.fixture(scope="module")
def trained(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "captioner"
    chosen = {
        **TINY,
        "model.images.size_px": 32,
        "model.vision.patch_px": 8,
        "model.text.vocabulary": 120,
        "pretrain": "none",
        "captioner_training.phases.0.steps": 150,
        "captioner_training.phases.0.learning_rate": 3e-3,
    }
    sets = [
        word
        for name, value in chosen.items()
        if not name.startswith("pretrain.")
        for word in ("--set", f"{name}={value}")
    ]
    words = ["train", "captioner", drawn / "clean", "--out", out, "--pipeline", "small", *sets, "--json"]
    ended = CliRunner().invoke(app, [str(word) for word in words])
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["kind"] == "captioner"
    return out


def test_greedy_captions_of_a_captioner_trained_here_are_the_same_in_transformers(
    trained: Path, drawn: Path
) -> None:
    from transformers import AutoTokenizer, BlipForConditionalGeneration

    pictures, names = _pictures(drawn)
    bundle = load_bundle(trained)
    images = bundle.card.model.images
    decoding = SettledDecoding(method="greedy", min_tokens=0, max_tokens=TOKENS)
    captioner = MedCaptioner(bundle, torch.device("cpu"))
    batch = ImageBatch(pictures, names)
    ours = [caption for [caption] in captioner.caption(batch, decoding, seed=0, candidates=1)]

    model, report = BlipForConditionalGeneration.from_pretrained(trained, output_loading_info=True)
    assert not any(report.values()), report
    pixels = normalise(torch.from_numpy(batch.squares(images)), images)
    ids = model.eval().generate(pixel_values=pixels, max_new_tokens=TOKENS, do_sample=False)
    theirs = AutoTokenizer.from_pretrained(trained).batch_decode(ids, skip_special_tokens=True)

    assert ours == theirs
    assert len(set(ours)) > 2  # it looks at the pictures


def _pictures(drawn: Path) -> tuple[list[Image], list[str]]:
    samples = [
        sample
        for shard in find_shards(str(drawn / "web"))
        for sample in read_shard(shard, Input())
        if sample.image is not None
    ][:PICTURES]
    assert len(samples) == PICTURES
    return (
        [decode(sample.image or b"", max_pixels=10**6) for sample in samples],
        [sample.image_sha256 or "" for sample in samples],
    )
