"""Our configuration files against transformers' own objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.errors import CapfiltError
from capfilt.models.checkpoints.configs import (
    TEXT_DEFAULTS,
    VISION_DEFAULTS,
    blip_config,
    is_blip,
    mlp_ratio,
    model_of,
    preprocessor_config,
)
from capfilt.settings import Images, Model, Text, Vision

if TYPE_CHECKING:
    from capfilt.models.vocabulary import Vocabulary

FILE = Path("there/config.json")
ODD = Model(
    images=Images(size_px=40, mean=(0.5, 0.25, 0.125), std=(0.75, 0.5, 0.25), transparency="drop"),
    vision=Vision(patch_px=8, width=20, layers=3, heads=5, mlp_ratio=2.2, norm_epsilon=1e-5),
    text=Text(
        width=36,
        layers=4,
        heads=12,
        feed_forward=50,
        vocabulary=100,
        places=40,
        norm_epsilon=1e-11,
        dropout=0.25,
    ),
    embed=7,
)


def read_by_transformers(folder: Path, config: dict[str, Any]) -> Any:
    from transformers import BlipConfig

    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return BlipConfig.from_pretrained(folder)


@pytest.mark.parametrize("half", ["captioner", "filter"])
def test_our_configuration_is_in_full_and_transformers_reads_it_as_it_stands(
    tmp_path: Path, vocabulary: Vocabulary, half: Any
) -> None:
    written = blip_config(ODD, vocabulary, half, "float32")
    read = read_by_transformers(tmp_path, written)
    again = json.loads(read.to_json_string(use_diff=False))
    # Nothing of it is left to a default that another version may have, and nothing is unknown to it.
    from transformers import BlipConfig

    for part, ours, theirs in (
        ("", written, again),
        ("text_config", written["text_config"], again["text_config"]),
        ("vision_config", written["vision_config"], again["vision_config"]),
    ):
        for name, value in ours.items():
            if not isinstance(value, dict):
                assert theirs[name] == value, (part, name)
    saved = json.loads(read.to_json_string())
    plain = json.loads(BlipConfig().to_json_string())
    for part in ("text_config", "vision_config"):
        assert set(plain[part]) - {"dtype"} <= set(written[part])
        assert set(saved[part]) - {"dtype", "transformers_version"} == set(written[part])
    assert set(saved) - {"transformers_version"} == set(written)


def test_what_a_configuration_leaves_open_is_what_transformers_takes(tmp_path: Path) -> None:
    plain = read_by_transformers(tmp_path, {"model_type": "blip"})
    for name, value in TEXT_DEFAULTS.items():
        assert getattr(plain.text_config, name) == value, name
    for name, value in VISION_DEFAULTS.items():
        assert getattr(plain.vision_config, name) == value, name
    model = model_of({"model_type": "blip"}, None, FILE)
    assert (model.text.heads, model.vision.norm_epsilon, model.images.size_px) == (8, 1e-5, 384)
    assert model.images == Images(transparency="drop")
    assert model.embed == plain.image_text_hidden_size


def test_a_configuration_of_ours_reads_as_the_model_it_was_written_for(vocabulary: Vocabulary) -> None:
    read = model_of(blip_config(ODD, vocabulary, "filter", "float32"), preprocessor_config(ODD.images), FILE)
    text = ODD.text.model_copy(update={"vocabulary": len(vocabulary)})
    assert int(read.vision.width * read.vision.mlp_ratio) == 44
    vision = read.vision.model_copy(update={"mlp_ratio": 2.2})
    assert read.model_copy(update={"vision": vision}) == ODD.model_copy(update={"text": text})


@given(st.integers(1, 5000), st.integers(1, 20000))
def test_a_ratio_gives_back_exactly_its_size(width: int, hidden: int) -> None:
    assert int(width * mlp_ratio(width, hidden)) == hidden


def test_our_image_processing_is_what_transformers_reads(tmp_path: Path) -> None:
    from transformers import BlipImageProcessor

    written = preprocessor_config(ODD.images)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written), encoding="utf-8")
    BlipImageProcessor.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again/preprocessor_config.json").read_text())
    assert saved == written


@pytest.mark.parametrize(
    ("vision", "expected"),
    [
        ({}, True),
        ({"stem": "convolution"}, False),
        ({"timm": "vit_base_patch16_224"}, False),
    ],
)
def test_only_blips_own_encoder_is_offered_to_transformers(vision: dict[str, Any], expected: bool) -> None:
    assert is_blip(Model(vision=Vision(**vision))) is expected


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"text_config": {"hidden_act": "relu"}}, "hidden_act is 'relu', and BLIP's is 'gelu'"),
        ({"vision_config": {"hidden_act": "quick_gelu"}}, "hidden_act is 'quick_gelu'"),
        ({"text_config": {"is_decoder": False}}, "is_decoder is False"),
        ({"vision_config": {"image_size": [384, 256]}}, r"\[384, 256\] is no square"),
        ({"vision_config": {"hidden_size": 0}}, "config.json is damaged: division by zero"),
        ({"text_config": {"num_attention_heads": 7}}, "text.width must be a multiple of text.heads"),
        ({"vision_config": {"num_hidden_layers": "many"}}, "vision.layers"),
    ],
)
def test_a_configuration_of_something_else_is_refused_by_name(config: dict[str, Any], told: str) -> None:
    with pytest.raises(CapfiltError, match=told) as refused:
        model_of(config, None, FILE)
    assert "there/config.json" in refused.value.what


@pytest.mark.parametrize(
    "change",
    [
        {"resample": 2},
        {"do_resize": False},
        {"do_rescale": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"size": {"shortest_edge": 40}},
        {"size": {"height": 48, "width": 48}},
    ],
)
def test_another_image_processing_is_refused(vocabulary: Vocabulary, change: dict[str, Any]) -> None:
    config = blip_config(ODD, vocabulary, "filter", "float32")
    with pytest.raises(CapfiltError, match=r"preprocessor_config\.json|is no square"):
        model_of(config, {**preprocessor_config(ODD.images), **change}, FILE)


@pytest.mark.parametrize("size", [40, {"height": 40, "width": 40}])
def test_a_side_is_read_in_each_of_its_forms(vocabulary: Vocabulary, size: Any) -> None:
    config = blip_config(ODD, vocabulary, "filter", "float32")
    read = model_of(config, {**preprocessor_config(ODD.images), "size": size}, FILE)
    assert read.images == ODD.images
