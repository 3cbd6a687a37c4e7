"""Checkpoints of others: what they come to, what they are refused for, and the released code's numbers."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from blip_names import take, text_weights, timm_weights, word_head_weights
from safetensors.torch import load_file, save_file
from small_models import small_med, small_packed
from theirs import pth, transformers_folder

from capfilt.errors import CapfiltError
from capfilt.models.bundle import load_bundle
from capfilt.models.cards import Conventions
from capfilt.models.checkpoints.foreign import import_checkpoint
from capfilt.models.med import MED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capfilt.models.bundle import Packed
    from capfilt.models.cards import Kind
    from capfilt.models.checkpoints.foreign import Role
    from capfilt.models.vocabulary import Vocabulary

CLOSE = {"atol": 1e-9, "rtol": 0.0}
HEADS = (4, 4)
LEFT_OUT_OF_PRETRAINING = {
    "*.position_ids": "places of tokens, counted from 0",
    "image_queue": "queue of momentum features",
    "queue_ptr": "where the queue is filled next",
    "text_decoder.cls.predictions.decoder.bias": "the same as text_decoder.cls.predictions.bias",
    "text_decoder.cls.predictions.decoder.weight": (
        "the same as text_decoder.bert.embeddings.word_embeddings.weight"
    ),
    "text_encoder_m.*": "momentum copy of the text encoder",
    "text_proj_m.*": "momentum copy of a projection",
    "text_queue": "queue of momentum features",
    "vision_proj_m.*": "momentum copy of a projection",
    "visual_encoder_m.*": "momentum copy of the image encoder",
}


@pytest.fixture
def golden(shared: Path, tmp_path: Path) -> Callable[..., Packed]:
    """Read a golden model of the released code out of a .pth."""

    def read(
        name: str, role: Role, change: Callable[[dict[str, Any]], object] | None = None, **more: Any
    ) -> Packed:
        file = pth(tmp_path / f"{name}.pth", shared / f"golden/{name}/weights.safetensors", change)
        given = {"vocabulary": shared / "golden/tokenizer", "heads": HEADS, **more}
        return import_checkpoint(file, tmp_path / "bundle", role=role, **given)

    return read


def doubles(path: Path) -> dict[str, Any]:
    return {n: t.double() if t.is_floating_point() else t for n, t in load_file(path).items()}


# -- the released code's numbers, through its own files


@torch.no_grad()
def test_a_matcher_out_of_a_pth_gives_the_released_codes_numbers(
    shared: Path, golden: Callable[..., Packed], tmp_path: Path
) -> None:
    golden("blip_itm", "filter").write()
    model = load_bundle(tmp_path / "bundle").model.double().eval()
    given = doubles(shared / "golden/blip_itm/inputs.safetensors")
    expected = doubles(shared / "golden/blip_itm/expected_f64.safetensors")
    states = model.encode_image(given["images"])
    real = given["attention_mask"].bool()
    for first, name in ((2, "itm_logits_cls"), (201, "itm_logits_enc")):
        ids = torch.cat([torch.full_like(given["input_ids"][:, :1], first), given["input_ids"][:, 1:]], 1)
        logits = model.itm_logits(ids.repeat(8, 1), real.repeat(8, 1), model.memory(states))
        torch.testing.assert_close(logits.view(8, 8, 2), expected[name], **CLOSE)
    cosines = model.image_features(states) @ model.text_features(given["input_ids"], real).T
    torch.testing.assert_close(cosines, expected["itc_sim"], **CLOSE)


@torch.no_grad()
def test_a_captioner_out_of_a_pth_gives_the_released_codes_numbers(
    repository: Path, shared: Path, golden: Callable[..., Packed], tmp_path: Path
) -> None:
    golden("blip_decoder", "captioner").write()
    model = load_bundle(tmp_path / "bundle").model.double().eval()
    given = doubles(repository / "tests/models/golden/blip_decoder.safetensors")
    states = model.encode_image(given["images"])
    torch.testing.assert_close(states, given["image_embeds"], **CLOSE)
    # Logits with the weights that `test_med` holds against the released code's captions and losses.
    theirs = doubles(shared / "golden/blip_decoder/weights.safetensors")
    hand = take(
        MED(load_bundle(tmp_path / "bundle").card.model, 202, ["lm"]).double(),
        timm_weights(theirs, "visual_encoder."),
        text_weights(theirs, "text_decoder.bert.", "decoder"),
        word_head_weights(theirs, "text_decoder."),
    )
    ids = given["greedy_coco.sequences"]
    logits = model.lm_logits(ids, model.memory(states))
    torch.testing.assert_close(logits, hand.lm_logits(ids, hand.memory(states)), **CLOSE)
    steps = given["greedy_coco.step_logits"]
    torch.testing.assert_close(logits[:, 3:9].transpose(0, 1), steps, atol=2e-5, rtol=0.0)


# -- what a .pth comes to


def test_a_pretrained_model_is_all_three_with_the_released_conventions(golden: Callable[..., Packed]) -> None:
    card = golden("blip_pretrain", "init").bundle.card
    assert (card.kind, card.objectives) == ("joint", ("itc", "itm", "lm"))
    assert card.origin is not None
    assert (card.origin.kind, card.origin.revision, card.origin.fresh) == ("pth", None, ())
    assert card.origin.left_out == LEFT_OUT_OF_PRETRAINING
    assert card.conventions == Conventions(
        match_token="enc",
        clean_up="blip",
        prompt="a picture of ",
        min_tokens=1,
        max_tokens=16,
        length_counts="whole",
    )
    vision, text = card.model.vision, card.model.text
    assert (vision.width, vision.layers, vision.heads, vision.patch_px, vision.norm_epsilon) == (
        32,
        3,
        4,
        8,
        1e-6,
    )
    assert (text.width, text.layers, text.heads, text.feed_forward, text.places) == (48, 3, 4, 96, 64)
    assert (text.norm_epsilon, text.max_tokens, card.model.embed) == (1e-12, 35, 16)
    assert (card.model.images.size_px, card.model.images.transparency) == (32, "drop")


def test_its_temperature_goes_on_from_where_it_was(golden: Callable[..., Packed], shared: Path) -> None:
    expected = load_file(shared / "golden/blip_pretrain/weights.safetensors")["temp"]
    for role in ("init", "filter"):
        assert golden("blip_pretrain", role).bundle.model.temperature == expected


@pytest.mark.parametrize(
    ("role", "kind", "unread"),
    [
        (
            "captioner",
            "captioner",
            {"text_encoder.*", "vision_proj.*", "text_proj.*", "itm_head.*", "temp"},
        ),
        ("filter", "filter", {"text_decoder.*"}),
    ],
)
def test_one_half_of_a_pretrained_model_is_that_half_and_names_the_other(
    golden: Callable[..., Packed], role: Role, kind: Kind, unread: set[str]
) -> None:
    whole, half = golden("blip_pretrain", "init").bundle, golden("blip_pretrain", role).bundle
    assert half.card.kind == kind
    assert half.card.origin is not None
    assert set(half.card.origin.left_out) == set(LEFT_OUT_OF_PRETRAINING) | unread
    for name, tensor in half.model.state_dict().items():
        assert torch.equal(tensor, whole.model.state_dict()[name]), name


def test_a_retrieval_training_is_a_filter(golden: Callable[..., Packed]) -> None:
    card = golden("blip_retrieval", "filter").bundle.card
    assert card.origin is not None
    assert {"idx_queue", "ptr_queue", "image_queue", "visual_encoder_m.*"} <= set(card.origin.left_out)


def test_a_bundle_out_of_a_pth_is_a_transformers_checkpoint(
    golden: Callable[..., Packed], tmp_path: Path
) -> None:
    from transformers import BlipForConditionalGeneration

    golden("blip_decoder", "captioner").write()
    theirs, info = BlipForConditionalGeneration.from_pretrained(tmp_path / "bundle", output_loading_info=True)
    assert not any(info.values())
    assert theirs.config.vision_config.layer_norm_eps == 1e-6


def test_heads_that_nothing_says_must_be_given(golden: Callable[..., Packed]) -> None:
    with pytest.raises(CapfiltError, match=r"32 \(image\) and 48 \(text\) wide") as refused:
        golden("blip_decoder", "captioner", heads=None)
    assert "numbers of heads" in refused.value.fix


def wide(state: dict[str, Any], image: int, text: int) -> None:
    """Leave of a captioner what says its widths."""
    state.clear()
    state.update(
        {
            "visual_encoder.cls_token": torch.zeros(1, 1, image),
            "visual_encoder.pos_embed": torch.zeros(1, 5, image),
            "visual_encoder.patch_embed.proj.weight": torch.zeros(image, 3, 16, 16),
            "visual_encoder.blocks.0.mlp.fc1.weight": torch.zeros(4 * image, 1),
            "text_decoder.bert.embeddings.word_embeddings.weight": torch.zeros(202, text),
            "text_decoder.bert.embeddings.position_embeddings.weight": torch.zeros(512, text),
            "text_decoder.bert.embeddings.LayerNorm.weight": torch.zeros(text),
            "text_decoder.bert.encoder.layer.0.intermediate.dense.weight": torch.zeros(8, text),
        }
    )


@pytest.mark.parametrize(("image", "heads"), [(768, (12, 12)), (1024, (16, 12))])
def test_both_released_widths_say_their_heads(
    golden: Callable[..., Packed], image: int, heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from capfilt.models.checkpoints import foreign

    found: list[Any] = []
    own = foreign.model_of_shapes
    monkeypatch.setattr(
        foreign,
        "model_of_shapes",
        lambda *given: found.append(given[2]) or own(*given),  # type: ignore[func-returns-value]
    )
    with pytest.raises(CapfiltError, match="does not fit its model; missing: "):
        golden("blip_decoder", "captioner", lambda state: wide(state, image, 768), heads=None)
    assert found == [heads]


# -- what is refused


@pytest.mark.parametrize(
    ("name", "role", "told"),
    [
        ("blip_decoder", "filter", "is a captioner and cannot score pairs"),
        ("blip_itm", "captioner", "is a filter and cannot write captions"),
    ],
)
def test_what_cannot_do_what_it_is_given_for_is_refused(
    golden: Callable[..., Packed], name: str, role: Role, told: str
) -> None:
    with pytest.raises(CapfiltError, match=told) as refused:
        golden(name, role)
    assert refused.value.fix == f"give a {role}, or a pre-trained model"


def renamed(before: str, after: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for name in [name for name in state if name.startswith(before)]:
            state[name.replace(before, after, 1)] = state.pop(name)

    return change


def without(*starts: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: [state.pop(name) for name in list(state) if name.startswith(starts)] and None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("vision_proj.", "text_proj.", "itm_head.", "temp"), "answers questions"),
        (renamed("itm_head", "cls_head"), "a classifier of BLIP"),
        (renamed("text_encoder.encoder", "Qformer.encoder"), "BLIP-2 or InstructBLIP"),
        (renamed("visual_encoder.", "backbone."), "no BLIP: its parts are backbone"),
        (without("text_"), "no BLIP"),
    ],
)
def test_another_model_is_refused_as_what_it_is(
    golden: Callable[..., Packed], change: Callable[[dict[str, Any]], None], told: str
) -> None:
    with pytest.raises(CapfiltError, match=f"holds .*{told}") as refused:
        golden("blip_pretrain", "init", change)
    assert "BLIP_Decoder" in refused.value.fix


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.update(mystery=torch.zeros(1)), "surplus: mystery\n"),
        (without("visual_encoder.norm."), "missing: visual_encoder.norm.weight, visual_encoder.norm.bias\n"),
        (
            without("text_encoder.encoder.layer.1.crossattention.self.key"),
            r"missing: text_encoder\.encoder\.layer\.1\.crossattention\.self\.key\.weight, ",
        ),
        (lambda state: state.update({"itm_head.bias": torch.zeros(3)}), "of another shape: itm_head.bias\n"),
        (without("vision_proj"), "missing: vision_proj.weight, vision_proj.bias\n"),
        (without("text_encoder.encoder.layer.0.intermediate"), "lacks text_encoder.encoder.layer.0.inter"),
        (without("visual_encoder.pos_embed"), "lacks visual_encoder.pos_embed, which BLIP has"),
    ],
)
def test_a_weight_that_is_missing_or_unknown_or_of_another_shape_is_named(
    golden: Callable[..., Packed], change: Callable[[dict[str, Any]], None], told: str
) -> None:
    with pytest.raises(CapfiltError, match=told):
        golden("blip_itm", "filter", change)


def test_a_pretrained_model_whose_halves_differ_is_refused(golden: Callable[..., Packed]) -> None:
    name = "text_decoder.bert.encoder.layer.2.output.dense.weight"
    with pytest.raises(CapfiltError, match=r"do not share text\.layers\.2\.feed_forward\.down\.weight"):
        golden("blip_pretrain", "captioner", lambda state: state[name].add_(1))


def test_a_vocabulary_of_another_size_is_refused(golden: Callable[..., Packed], tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"]
    (tmp_path / "words/vocab.txt").write_text("\n".join(words), encoding="utf-8")
    with pytest.raises(CapfiltError, match="the model has embeddings for 202"):
        golden("blip_itm", "filter", vocabulary=tmp_path / "words")


# -- heads drawn anew


@pytest.mark.parametrize("heads", [("itm_head.",), ("vision_proj.", "text_proj.", "itm_head.")])
def test_a_filter_without_heads_starts_a_training_and_names_what_is_fresh(
    golden: Callable[..., Packed], heads: tuple[str, ...]
) -> None:
    first = golden("blip_itm", "init", without(*heads)).bundle
    again = golden("blip_itm", "init", without(*heads)).bundle
    names = {"vision_proj.": "image_projection", "text_proj.": "text_projection", "itm_head.": "itm_head"}
    expected = {f"{names[head]}.{kind}" for head in heads for kind in ("weight", "bias")}
    assert first.card.origin is not None
    assert set(first.card.origin.fresh) == expected
    for name in expected:
        drawn = first.model.state_dict()[name]
        assert torch.equal(drawn, again.model.state_dict()[name])
        assert (drawn == 0).all() if name.endswith("bias") else 0.01 < drawn.std() < 0.03
    with pytest.raises(CapfiltError, match=f"missing: {heads[0]}"):
        golden("blip_itm", "filter", without(*heads))


# -- transformers folders


@pytest.fixture
def theirs(tmp_path: Path, vocabulary: Vocabulary) -> Path:
    """A filter as transformers saved it."""
    transformers_folder(tmp_path / "theirs", "BlipForImageTextRetrieval", vocabulary)
    return tmp_path / "theirs"


def test_a_transformers_folder_is_read_with_its_sizes_and_epsilons(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    from transformers import BlipImageProcessor

    path = tmp_path / "theirs"
    transformers_folder(path, "BlipForConditionalGeneration", vocabulary, layer_norm_eps=3e-5, image_size=40)
    (path / "processor_config.json").unlink()
    pictures = BlipImageProcessor(
        size={"height": 40, "width": 40}, image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25]
    )
    pictures.save_pretrained(path)
    card = import_checkpoint(path, tmp_path / "b", role="captioner").bundle.card
    assert card.origin is not None
    assert (card.origin.kind, card.origin.source, card.origin.left_out) == ("transformers", str(path), {})
    assert card.model.vision.norm_epsilon == 3e-5
    assert (card.model.text.heads, card.model.text.max_tokens, card.model.text.places) == (12, 35, 48)
    images = card.model.images
    assert (images.size_px, images.mean, images.std) == (40, (0.5,) * 3, (0.25,) * 3)
    assert images.transparency == "drop"
    assert card.first_id == vocabulary.dec


def test_half_precision_and_pickled_weights_are_read_too(theirs: Path, tmp_path: Path) -> None:
    weights = load_file(theirs / "model.safetensors")
    (theirs / "model.safetensors").unlink()
    halved = {name: tensor.half() for name, tensor in weights.items()}
    old = {"text_encoder.embeddings.position_ids": torch.arange(48)[None]}  # as older versions saved it
    torch.save({**halved, **old}, theirs / "pytorch_model.bin")
    read = import_checkpoint(theirs, tmp_path / "b", role="filter").bundle
    own = read.model.state_dict()["itm_head.weight"]
    assert own.dtype == torch.float32
    assert torch.equal(own, halved["itm_head.weight"].float())
    assert read.card.origin is not None
    assert set(read.card.origin.left_out) == {"*.position_ids"}


def test_a_folder_without_a_tokenizer_takes_the_vocabulary_that_is_given(
    theirs: Path, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (theirs / name).unlink(missing_ok=True)
    read = import_checkpoint(theirs, tmp_path / "b", role="filter", vocabulary=theirs / "words")
    assert read.bundle.card.vocabulary_digest == vocabulary.digest
    with pytest.raises(CapfiltError, match="there is no vocabulary /no/words"):
        import_checkpoint(theirs, tmp_path / "b", role="filter", vocabulary="/no/words")


def configured(folder: Path, change: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name, value in change.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))


def test_captions_that_end_elsewhere_are_refused(tmp_path: Path, vocabulary: Vocabulary) -> None:
    transformers_folder(tmp_path / "theirs", "BlipForConditionalGeneration", vocabulary)
    configured(tmp_path / "theirs", {"text_config": {"sep_token_id": 7}})
    with pytest.raises(CapfiltError, match=r"captions end with id 7; its tokenizer has \[SEP\] at 3"):
        import_checkpoint(tmp_path / "theirs", tmp_path / "b", role="captioner")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "blip-2"}, "holds a model of the type blip-2, not BLIP"),
        ({"text_config": {"num_hidden_layers": 1}}, "surplus: text_encoder.encoder.layer.1"),
        ({"text_config": {"vocab_size": 7}}, "the model has embeddings for 7"),
        (
            {"vision_config": {"hidden_size": 128}},
            "of another shape: vision_model.embeddings.class_embedding",
        ),
    ],
)
def test_a_configuration_and_weights_that_part_are_refused(
    theirs: Path, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    configured(theirs, change)
    with pytest.raises(CapfiltError, match=told):
        import_checkpoint(theirs, tmp_path / "b", role="filter")


@pytest.mark.parametrize(
    ("architecture", "told"),
    [("BlipForQuestionAnswering", "answers questions"), ("BlipModel", "a BlipModel")],
)
def test_other_models_of_transformers_are_refused_as_what_they_are(
    tmp_path: Path, vocabulary: Vocabulary, architecture: str, told: str
) -> None:
    transformers_folder(tmp_path / "theirs", architecture, vocabulary)
    with pytest.raises(CapfiltError, match=told):
        import_checkpoint(tmp_path / "theirs", tmp_path / "b", role="init")


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match=r"it holds neither capfilt\.json nor config\.json") as refused:
        import_checkpoint(tmp_path, tmp_path / "b", role="init")
    assert "hub id" in refused.value.fix


# -- another side, and bundles of ours


def test_a_checkpoint_is_read_for_pictures_of_another_side(theirs: Path, tmp_path: Path) -> None:
    from transformers import BlipForImageTextRetrieval

    import_checkpoint(theirs, tmp_path / "b", role="filter", size_px=48).write()
    card = load_bundle(tmp_path / "b").card
    assert (card.model.images.size_px, card.resized_from_px) == (48, 32)
    same = import_checkpoint(theirs, tmp_path / "c", role="filter", size_px=32).bundle.card
    assert same.resized_from_px is None
    # transformers interpolates on the way; its states of the same pictures are those of our copy.
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    before = BlipForImageTextRetrieval.from_pretrained(theirs).eval().vision_model
    after = BlipForImageTextRetrieval.from_pretrained(tmp_path / "b").eval().vision_model
    with torch.no_grad():
        expected = before(pixels, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(after(pixels).last_hidden_state, expected, atol=1e-5, rtol=0.0)
        ours = load_bundle(tmp_path / "b").model.eval().encode_image(pixels)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0.0)


def test_a_bundle_of_ours_comes_back_as_it_is_or_for_another_side(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    model = small_med(["itc", "itm"], len(vocabulary))
    small_packed(tmp_path / "ours", "filter", model, vocabulary).write()
    first = load_bundle(tmp_path / "ours").card
    assert import_checkpoint(tmp_path / "ours", tmp_path / "b", role="filter").bundle.card == first
    resized = import_checkpoint(tmp_path / "ours", tmp_path / "b", role="init", size_px=24).bundle.card
    assert (resized.resized_from_px, resized.parent) == (16, first.weights)
    with pytest.raises(CapfiltError, match="ours is a filter and cannot write captions"):
        import_checkpoint(tmp_path / "ours", tmp_path / "b", role="captioner")


def test_what_was_imported_and_saved_by_transformers_again_reads_the_same(
    theirs: Path, tmp_path: Path
) -> None:
    from transformers import BlipForImageTextRetrieval

    first = import_checkpoint(theirs, tmp_path / "b", role="filter")
    first.write()
    BlipForImageTextRetrieval.from_pretrained(tmp_path / "b").save_pretrained(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(tmp_path / "b" / name, tmp_path / "again" / name)
    again = import_checkpoint(tmp_path / "again", tmp_path / "c", role="filter").bundle.card
    assert again.image_encoder == first.bundle.card.image_encoder
    assert (again.weights, again.model) == (first.bundle.card.weights, first.bundle.card.model)


def test_a_checkpoint_in_several_files_is_read(theirs: Path, tmp_path: Path) -> None:
    whole = import_checkpoint(theirs, tmp_path / "b", role="filter").bundle.card
    weights = load_file(theirs / "model.safetensors")
    (theirs / "model.safetensors").unlink()
    places = {}
    for number, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in names}, theirs / file)
        places |= dict.fromkeys(names, file)
    (theirs / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    parts = import_checkpoint(theirs, tmp_path / "b", role="filter").bundle.card
    assert parts.weights == whole.weights
    assert parts.origin is not None
    assert whole.origin is not None
    assert parts.origin.sha256 != whole.origin.sha256


def test_heads_are_asked_of_nobody_who_says_them(theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match="says itself how many attention heads") as refused:
        import_checkpoint(theirs, tmp_path / "out", role="captioner", heads=(3, 3))
    assert "--heads" in refused.value.fix
