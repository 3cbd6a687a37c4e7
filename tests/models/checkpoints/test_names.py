"""The table of names against transformers' own modules, and against what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_models import SMALL, small_med

from capfilt.errors import CapfiltError
from capfilt.models.bundle import empty
from capfilt.models.checkpoints.configs import blip_config
from capfilt.models.checkpoints.names import Naming, check_fit, few, halves, joined, left_out, names_of
from capfilt.settings import Images, Model, Text, Vision

if TYPE_CHECKING:
    from capfilt.models.cards import Kind, Objective
    from capfilt.models.checkpoints.names import Half

OBJECTIVES: dict[Half, tuple[Objective, ...]] = {"captioner": ("lm",), "filter": ("itc", "itm")}
ARCHITECTURES = {"captioner": "BlipForConditionalGeneration", "filter": "BlipForImageTextRetrieval"}
TIED = {"text_decoder.cls.predictions.decoder.weight", "text_decoder.cls.predictions.decoder.bias"}
ENTRIES = 30524
SIZES = {
    "base": Model(images=Images(size_px=384), vision=Vision(patch_px=16, width=768, layers=12, heads=12)),
    "large": Model(images=Images(size_px=384), vision=Vision(patch_px=16, width=1024, layers=24, heads=16)),
}
# What the hub's configurations of the released checkpoints say, where transformers' defaults differ.
RELEASED: dict[str, dict[str, Any]] = {
    "base": {"vision_config": {}, "text_config": {"num_attention_heads": 12}},
    "large": {
        "vision_config": {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
        "text_config": {"num_attention_heads": 12},
    },
}


class Ids:
    """As much of a vocabulary as a configuration needs: the released one's."""

    dec, sep, pad = 30522, 102, 0

    def __len__(self) -> int:
        return ENTRIES


def theirs(config: Any, half: Half) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of transformers' own module, without its values."""
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, ARCHITECTURES[half])(config)
    return {name: tuple(one.shape) for name, one in model.state_dict().items() if name not in TIED}


@pytest.mark.parametrize("half", ["captioner", "filter"])
@pytest.mark.parametrize("size", ["base", "large"])
def test_the_released_sizes_have_transformers_names_and_shapes_key_by_key(size: str, half: Half) -> None:
    from transformers import BlipConfig

    state = empty(SIZES[size], ENTRIES, OBJECTIVES[half]).state_dict()
    names = names_of(half, state, OBJECTIVES[half])
    written = Naming(half, "transformers").write({name: state[name] for name in names})
    found = {name: tuple(one.shape) for name, one in written.items()}
    expected = theirs(BlipConfig(**RELEASED[size]), half)
    assert found == expected
    # and the configuration that we write builds the same
    ours = blip_config(SIZES[size], Ids(), half, "float32")  # type: ignore[arg-type]
    assert theirs(BlipConfig(**ours), half) == expected


@pytest.mark.parametrize("images", ["transformers", "timm", "released"])
@pytest.mark.parametrize("half", ["captioner", "filter"])
def test_what_is_written_under_other_names_reads_as_it_was(half: Half, images: Any) -> None:
    state = small_med(OBJECTIVES[half], 30).state_dict()
    names = names_of(half, state, OBJECTIVES[half])
    naming = Naming(half, images)
    written = naming.write({name: state[name] for name in names})
    assert all(one.is_contiguous() for one in written.values())
    read = naming.read(written, names)
    assert list(read) == names
    assert set(state) - set(read) == ({"temperature"} if half == "filter" else set())
    for name in names:
        assert torch.equal(read[name], state[name]), name
    # query, key and value lie one below the other, in this order
    prefix = "text_decoder.bert" if half == "captioner" else "text_encoder"
    part = f"{prefix}.encoder.layer.1.attention.self"
    direction = "decoder" if half == "captioner" else "encoder"
    qkv = state[f"text.layers.1.attention.{direction}.qkv.weight"]
    for number, name in enumerate(("query", "key", "value")):
        assert torch.equal(written[f"{part}.{name}.weight"], qkv[48 * number : 48 * (number + 1)])


def test_a_weight_of_which_a_part_is_missing_is_not_read() -> None:
    state = small_med(["lm"], 30).state_dict()
    naming = Naming("captioner", "transformers")
    written = naming.write(state)
    del written["text_decoder.bert.encoder.layer.0.crossattention.self.value.bias"]
    assert set(state) - set(naming.read(written, state)) == {"text.layers.0.cross.key_value.bias"}


def test_halves_of_a_kind() -> None:
    every: list[tuple[Kind, tuple[Objective, ...], tuple[Half, ...]]] = [
        ("captioner", ("lm",), ("captioner",)),
        ("filter", ("itc",), ("filter",)),
        ("joint", ("itc", "itm", "lm"), ("captioner", "filter")),
        ("joint", ("itm",), ("filter",)),
        ("joint", ("lm",), ("captioner",)),
    ]
    for kind, objectives, expected in every:
        assert halves(kind, objectives) == expected


def test_misfits_are_told_by_name_and_count() -> None:
    expected = {f"a{n}": torch.zeros(2) for n in range(5)}
    check_fit(expected, dict(expected), "here", "mend")
    with pytest.raises(CapfiltError, match=r"here does not fit its model; missing: a0, a1, a2 and 2 more\n"):
        check_fit(expected, {}, "here", "mend")
    found = {**expected, "a3": torch.zeros(3), "b": torch.zeros(1)}
    with pytest.raises(CapfiltError, match=r"model; surplus: b; of another shape: a3\n") as refused:
        check_fit(expected, found, "here", "mend")
    assert refused.value.fix == "mend"
    assert few(["x"]) == "x"
    assert few("abcdefg", 5) == "a, b, c, d, e and 2 more"


def test_what_both_halves_have_must_be_the_same() -> None:
    one, other = {"a": torch.zeros(2), "b": torch.ones(1)}, {"a": torch.zeros(2), "c": torch.ones(1)}
    assert set(joined({"captioner": one, "filter": other}, "here")) == {"a", "b", "c"}
    other["a"] = torch.tensor([0.0, 1e-9])
    with pytest.raises(CapfiltError, match="here: captioner and filter do not share a, as they must"):
        joined({"captioner": one, "filter": other}, "here")


def test_weights_that_are_not_read_are_told_by_what_they_are() -> None:
    words = torch.randn(3, 2)
    weights = {
        "text_decoder.bert.embeddings.word_embeddings.weight": words,
        "text_decoder.cls.predictions.decoder.weight": words.clone(),
        "text_encoder.embeddings.position_ids": torch.arange(4)[None],
        "visual_encoder_m.blocks.0.norm1.weight": words,
        "visual_encoder.blocks.0.norm1.weight": words,
        "visual_encoder_m.norm.bias": words,
        "visual_encoder.norm.bias": words,
        "visual_encoder_m.blocks.0.mystery": words,
        "queue_ptr": torch.zeros(1),
        "text_encoder.pooler.dense.bias": words,
        "mystery": words,
    }
    names = [name for name in weights if not name.startswith("visual_encoder.") and "word_emb" not in name]
    known, unknown = left_out(weights, names, "here")
    assert unknown == ["visual_encoder_m.blocks.0.mystery", "mystery"]  # a copy of nothing that is there
    assert known == {
        "text_decoder.cls.predictions.decoder.weight": (
            "the same as text_decoder.bert.embeddings.word_embeddings.weight"
        ),
        "*.position_ids": "places of tokens, counted from 0",
        "visual_encoder_m.*": "momentum copy of the image encoder",
        "queue_ptr": "where the queue is filled next",
        "*.pooler.*": "pooler, which nothing here reads",
    }
    weights["text_encoder.embeddings.position_ids"] = torch.tensor([[0, 2, 1, 3]])
    with pytest.raises(CapfiltError, match="position_ids does not count from 0"):
        left_out(weights, names, "here")
    weights["text_decoder.cls.predictions.decoder.weight"][2, 1] += 1
    with pytest.raises(CapfiltError, match=r"decoder\.weight differs from .*word_embeddings"):
        left_out(weights, names, "here")


def test_no_weight_of_ours_is_without_a_name() -> None:
    model = small_med(["itc", "itm", "lm"], 30, SMALL).state_dict()
    parts: tuple[Half, ...] = ("captioner", "filter")
    written = {name for half in parts for name in names_of(half, model, ["itc", "itm", "lm"])}
    assert set(model) - written == {"temperature"}
    assert "cross" not in " ".join(names_of("filter", model, ["itc", "lm"]))


def test_text_takes_its_sizes_from_the_settings() -> None:
    """Shapes that are no multiples of each other: a split along the wrong side would show."""
    settings = Model(
        images=Images(size_px=24),
        vision=Vision(patch_px=8, width=20, layers=1, heads=2, mlp_ratio=2.2),
        text=Text(width=36, layers=1, heads=12, feed_forward=50, places=40),
        embed=7,
    )
    from transformers import BlipConfig

    for half in ("captioner", "filter"):
        state = empty(settings, ENTRIES, OBJECTIVES[half]).state_dict()  # type: ignore[index]
        names = names_of(half, state, OBJECTIVES[half])  # type: ignore[arg-type, index]
        written = Naming(half, "transformers").write({name: state[name] for name in names})  # type: ignore[arg-type]
        config = BlipConfig(**blip_config(settings, Ids(), half, "float32"))  # type: ignore[arg-type]
        assert {name: tuple(one.shape) for name, one in written.items()} == theirs(config, half)  # type: ignore[arg-type]
