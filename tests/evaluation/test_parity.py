"""The parity that `capfilt models check` tells: it holds where it should, and every part of it can fail."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from small_models import WORDS, small_med, small_packed
from theirs import transformers_folder

from capfilt.evaluation.parity import WITHIN, Parity, built_in_picture, parity
from capfilt.models.bundle import load_bundle
from capfilt.models.checkpoints.foreign import import_checkpoint
from capfilt.models.vocabulary import Vocabulary, train_vocabulary

if TYPE_CHECKING:
    from capfilt.models.bundle import Bundle
    from capfilt.models.cards import Kind


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return train_vocabulary(WORDS, 160)


@pytest.fixture(params=["captioner", "filter"])
def ours(request: pytest.FixtureRequest, vocabulary: Vocabulary, tmp_path: Path) -> Path:
    """A bundle of a model whose numbers are large."""
    kind: Kind = request.param
    model = small_med(["lm"] if kind == "captioner" else ["itc", "itm"], len(vocabulary))
    small_packed(tmp_path / "ours", kind, model, vocabulary).write()
    return tmp_path / "ours"


def test_it_holds_for_a_bundle_of_ours(ours: Path) -> None:
    found = parity(load_bundle(ours), ours)

    assert found.holds, found
    assert set(found.differences) in ({"image_states", "lm_logits"}, {"image_states", "itc", "itm_logits"})
    assert found.pixels is not None
    if found.captions is not None:
        assert len(found.captions[0].split()) >= 1
    assert json.loads(json.dumps(found.record()))["holds"] is True


@pytest.mark.parametrize("architecture", ["BlipForConditionalGeneration", "BlipForImageTextRetrieval"])
def test_it_holds_for_a_folder_of_transformers(
    architecture: str, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    transformers_folder(tmp_path, architecture, vocabulary)
    found = parity(import_checkpoint(tmp_path, tmp_path, role="init").bundle, tmp_path)
    assert found.holds, found
    assert found.architecture == architecture


def changed(bundle: Bundle, part: str) -> Bundle:
    """Return the bundle with one weight of that part a little off."""
    with torch.no_grad():
        for name, weight in bundle.model.named_parameters():
            if part in name:
                weight[..., 0] += 0.05
    return bundle


@pytest.mark.parametrize(
    ("ours", "part", "difference"),
    [
        ("captioner", "image.vit.norm.bias", "image_states"),
        ("captioner", "word_head.bias", "lm_logits"),
        ("filter", "itm_head.bias", "itm_logits"),
        ("filter", "text_projection.bias", "itc"),
    ],
    indirect=["ours"],
)
def test_one_weight_that_is_off_is_seen_where_it_matters(ours: Path, part: str, difference: str) -> None:
    found = parity(changed(load_bundle(ours), part), ours)
    assert found.differences[difference] > 10 * WITHIN
    assert not found.holds


def test_another_image_processing_and_another_tokenizer_are_seen(ours: Path) -> None:
    file = ours / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "resample": 0}))
    words = json.loads((ours / "tokenizer.json").read_text())
    pieces = words["model"]["vocab"]
    pieces["circle"], pieces["square"] = pieces["square"], pieces["circle"]
    (ours / "tokenizer.json").write_text(json.dumps(words))
    bundle = load_bundle_as_it_was(ours)

    found = parity(bundle, ours)

    assert found.pixels is not None
    assert found.pixels > 1
    assert not found.tokens_are_equal
    assert max(found.differences.values()) <= WITHIN


def load_bundle_as_it_was(path: Path) -> Bundle:
    """Read a bundle whose other files were changed behind the card's back."""
    card = json.loads((path / "capfilt.json").read_text())
    vocabulary = train_vocabulary(WORDS, 160)
    model = small_med(card["objectives"], len(vocabulary))
    return small_packed(path, card["kind"], model, vocabulary).bundle


FINE = Parity("Blip", {"image_states": 1e-6}, 0.5, tokens_are_equal=True, captions=("a", "a"))


@pytest.mark.parametrize(
    "change",
    [
        {"differences": {"image_states": 1e-6, "lm_logits": 2 * WITHIN}},
        {"pixels": 1.5},
        {"tokens_are_equal": False},
        {"captions": ("a", "b")},
        {"not_loaded": ("itm_head.weight",)},
        {"differences": {"image_states": float("nan")}},
    ],
)
def test_every_part_counts(change: dict[str, object]) -> None:
    assert FINE.holds
    assert not replace(FINE, **change).holds  # type: ignore[arg-type]


def test_the_built_in_picture_has_slopes_and_edges_and_is_the_same_every_time() -> None:
    pixels = np.asarray(built_in_picture()).astype(int)
    assert (pixels == np.asarray(built_in_picture())).all()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000
    assert np.abs(np.diff(pixels, axis=1)).max() > 100
