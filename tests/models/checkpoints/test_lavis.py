"""LAVIS's own files of BLIP-2 and InstructBLIP: its numbers through them, and what they lack."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from lavis_files import (
    LANGUAGE_PARTS,
    VISION,
    converted,
    eva_file,
    lavis_file,
    recorded_language,
    without,
)
from lavis_golden import Golden, golden
from lavis_language import CASES, Seen, as_their_llama, losses
from safetensors.torch import load_file

from capfilt.errors import CapfiltError
from capfilt.models.cards import INSTRUCTION, read_card
from capfilt.models.checkpoints.lavis_sizes import settings_of, vision_settings_of
from capfilt.models.loading import open_bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LANGUAGE = {"blip2_opt": "opt", "blip2_t5": "t5", "instructblip_t5": "t5", "instructblip_vicuna": "llama"}
FILES = {
    "blip2_opt": "caption_coco_opt2.7b.pth",
    "blip2_t5": "caption_coco_flant5xl.pth",
    "instructblip_t5": "instruct_blip_flanxl.pth",
    "instructblip_vicuna": "instruct_blip_vicuna7b.pth",
}


@pytest.fixture(scope="module")
def bundles(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a recorded model, whose file holds image encoder and language model; made once."""
    folder = tmp_path_factory.mktemp("lavis")

    def made(kind: str) -> Path:
        bundle, recorded = folder / kind, shared / "golden" / kind
        if bundle.exists():
            return bundle
        given: dict[str, Any] = {"vocabulary": shared / "golden/tokenizer"}
        if kind in LANGUAGE:
            given["language"] = recorded_language(folder / f"{kind}-language", LANGUAGE[kind], recorded)
        file = lavis_file(folder / FILES.get(kind, "blip2_pretrained.pth"), recorded)
        converted(file, bundle, **given)
        return bundle

    return made


@pytest.fixture(scope="module")
def recorded(shared: Path) -> Callable[[str], Golden]:
    return lambda kind: golden(shared / "golden" / kind)


def captioner(bundle: Path) -> Any:
    """The model of a bundle in double precision."""
    model = open_bundle(bundle).model.double().eval()
    if model.language_model.config.model_type == "llama":
        as_their_llama(model.language_model)
    return model


# -- the recorded numbers, through a file of LAVIS and the bundle that is made of it


@torch.no_grad()
def test_a_first_stage_out_of_a_file_gives_the_released_codes_numbers(
    bundles: Callable[[str], Path], recorded: Callable[[str], Golden]
) -> None:
    known = recorded("blip2_qformer")
    model = open_bundle(bundles("blip2_qformer")).model.double().eval()
    ids, real = known.inputs["input_ids"], known.inputs["attention_mask"].bool()
    states = model.encode_image(known.inputs["images"])
    known.close(states, "image_embeds")
    known.close(model.query_states(states), "query_output")
    images, texts = model.image_features(states), model.text_features(ids, real)
    known.close(images, "image_feats")
    known.close(texts, "text_feat")
    known.close(model.similarity(images, texts) / model.temperature, "sim_i2t")
    pairs = [model.itm_logits(ids, real, model.memory(states[[n]])) for n in range(6)]
    known.close(torch.stack(pairs), "itm_head.logits")
    written = torch.cat([torch.full_like(ids[:, :1], 200), ids[:, 1:]], 1)  # [DEC] first
    logits = model.lm_logits(written, model.memory(states))
    known.close(logits, "lm_unilm_logits", real)


@pytest.mark.parametrize(("kind", "mark"), CASES)
def test_a_captioner_out_of_a_file_gives_the_released_codes_numbers(
    bundles: Callable[[str], Path], recorded: Callable[[str], Golden], kind: str, mark: str
) -> None:
    known = recorded(kind)
    seen = Seen(captioner(bundles(kind)))
    with torch.no_grad():
        found = losses(seen.model, known, mark)
    known.close(seen.prompts[0], f"{mark}lm_query_inputs")
    known.close(found.parts["lm"], f"{mark}loss")
    mask = "decoder_attention_mask" if seen.model.is_encoder_decoder else "attention_mask"
    known.close(seen.logits[0], f"{mark}logits", known.expected[f"{mark}{mask}"].bool())


@pytest.mark.parametrize("kind", ["blip2_qformer", *LANGUAGE])
def test_the_same_model_as_a_folder_of_transformers_becomes_the_same_bundle(
    bundles: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    bundle = bundles(kind)
    card = read_card(bundle)
    architecture = json.loads((bundle / "config.json").read_text())["architectures"][0]
    theirs, info = getattr(transformers, architecture).from_pretrained(bundle, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    theirs.save_pretrained(tmp_path / "theirs")
    for file in bundle.iterdir():
        if file.name not in {"capfilt.json", "training.safetensors", "model.safetensors", "config.json"}:
            copy = shutil.copytree if file.is_dir() else shutil.copyfile
            copy(file, tmp_path / "theirs" / file.name)
    role = "filter" if kind == "blip2_qformer" else "captioner"
    again = converted(tmp_path / "theirs", tmp_path / "again", role=role, heads=None)
    one, other = open_bundle(bundle), open_bundle(tmp_path / "again")
    assert again.image_encoder == card.image_encoder
    assert again.conventions == card.conventions
    assert again.vocabulary_digest == card.vocabulary_digest
    assert again.model.qformer == card.model.qformer
    if kind in LANGUAGE:
        assert again.model.language == card.model.language.model_copy(
            update={"config": again.model.language.config}
        )
    weights = one.model.state_dict()
    for name, tensor in other.model.state_dict().items():
        if name != "temperature":  # it has none there
            assert torch.equal(tensor, weights[name]), name
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        states = [m.model.eval().encode_image(pixels) for m in (one, other)]
        assert torch.equal(*(m.model.query_states(s) for m, s in zip((one, other), states, strict=True)))


# -- what a file comes to


def test_a_first_stage_is_a_model_to_train_on_from_or_a_filter(
    bundles: Callable[[str], Path], shared: Path, tmp_path: Path
) -> None:
    card = read_card(bundles("blip2_qformer"))
    assert (card.kind, card.objectives) == ("joint", ("itc", "itm", "lm"))
    assert card.origin is not None
    assert card.origin.kind == "pth"
    assert set(card.origin.left_out) == {
        "*.position_ids",
        "Qformer.cls.predictions.decoder.weight",
        "Qformer.cls.predictions.decoder.bias",
    }
    assert card.model.qformer.norm_epsilon == 1e-12
    assert card.model.vision.norm_epsilon == 1e-6
    weights = shared / "golden/blip2_qformer"
    assert open_bundle(bundles("blip2_qformer")).model.temperature.item() == pytest.approx(
        float(load_file(weights / "weights.safetensors")["temp"])
    )
    file = lavis_file(tmp_path / "blip2_finetune_coco.pth", weights)
    words = shared / "golden/tokenizer"
    alone = converted(file, tmp_path / "filter", role="filter", vocabulary=words)
    assert (alone.kind, alone.objectives) == ("filter", ("itc", "itm"))
    assert alone.origin is not None
    assert alone.origin.left_out["Qformer.cls.*"] == "language head of the first stage"
    with pytest.raises(CapfiltError, match="is a filter") as refused:
        converted(file, tmp_path / "captioner", role="captioner", vocabulary=words)
    assert "second stage" in refused.value.fix


def test_captioners_have_the_structure_that_lavis_gives_them(bundles: Callable[[str], Path]) -> None:
    opt, t5 = read_card(bundles("blip2_opt")), read_card(bundles("blip2_t5"))
    asked, vicuna = read_card(bundles("instructblip_t5")), read_card(bundles("instructblip_vicuna"))
    assert [card.family for card in (opt, t5, asked, vicuna)] == ["blip2"] * 2 + ["instructblip"] * 2
    assert [card.model.language.ends_with for card in (opt, t5, asked, vicuna)] == ["\n", "", "", ""]
    assert [card.model.language.max_tokens for card in (opt, t5, asked, vicuna)] == [32, 32, 128, 128]
    assert [card.conventions.prompt for card in (opt, asked)] == ["", INSTRUCTION]
    assert {card.model.language.config.get("dense_act_fn") for card in (t5, asked)} == {"gelu"}
    assert (opt.vocabulary, vicuna.vocabulary) == (10, 201)
    # The pad token that LAVIS adds has a row in its file, and none in the config of Vicuna.
    assert vicuna.model.language.config["vocab_size"] == 121
    assert set(vicuna.origin.parts) == {"language"}  # type: ignore[union-attr]


def test_vicunas_texts_begin_with_the_token_that_ends_them_as_in_lavis(
    bundles: Callable[[str], Path],
) -> None:
    words = open_bundle(bundles("instructblip_vicuna")).vocabulary
    assert (words.begin, words.sep) == ([2], 2)
    assert words.prompt("a cat") == [2, 4, 5]


def published() -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that say sizes, in a file of LAVIS fine-tuned on COCO at 364 px."""
    layer = "Qformer.bert.encoder.layer."
    return {
        "query_tokens": (1, 32, 768),
        "opt_proj.weight": (2560, 768),
        **{f"{layer}{n}.attention.self.query.weight": (768, 768) for n in range(12)},
        **{f"{layer}{n}.crossattention.self.query.weight": (768, 768) for n in range(0, 12, 2)},
        f"{layer}0.intermediate_query.dense.weight": (3072, 768),
        f"{VISION}patch_embed.proj.weight": (1408, 3, 14, 14),
        f"{VISION}pos_embed": (1, 677, 1408),
        **{f"{VISION}blocks.{n}.mlp.fc1.weight": (6144, 1408) for n in range(39)},
    }


def test_the_sizes_of_published_files_are_read_from_their_shapes() -> None:
    qformer = settings_of("opt", published(), None, "x.pth")["qformer"]
    sizes = [qformer[name] for name in ("queries", "width", "layers", "heads", "feed_forward", "cross_every")]
    assert sizes == [32, 768, 12, 12, 3072, 2]
    sees = vision_settings_of(published(), None, "x.pth")
    assert sees["images"] == {"size_px": 364}
    vision = sees["vision"]
    assert (vision["layers"], vision["heads"], int(1408 * vision["mlp_ratio"])) == (39, 16, 6144)
    # EVA-CLIP's own file has a layer that LAVIS leaves out.
    whole = published() | {f"{VISION}blocks.39.mlp.fc1.weight": (6144, 1408)}
    assert vision_settings_of(whole, None, "x.pth")["vision"]["layers"] == 39


def test_layers_that_look_at_the_picture_at_uneven_distances_are_refused() -> None:
    odd = published() | {"Qformer.bert.encoder.layer.5.crossattention.self.query.weight": (768, 768)}
    with pytest.raises(CapfiltError, match="in layers 0, 2, 4, 5, 6 and 2 more of 12"):
        settings_of("opt", odd, None, "x.pth")


# -- parts that a file lacks


def halved(state: dict[str, Any]) -> None:
    """LAVIS keeps its frozen image encoder in half precision, norms apart."""
    for name, tensor in state.items():
        if name.startswith(VISION) and tensor.ndim > 1:
            state[name] = tensor.half()


def test_an_image_encoder_that_was_frozen_is_taken_from_where_it_is_named(
    bundles: Callable[[str], Path], shared: Path, tmp_path: Path
) -> None:
    weights, words = shared / "golden/blip2_qformer", shared / "golden/tokenizer"
    file = lavis_file(tmp_path / "blip2_pretrained.pth", weights, without(VISION))
    with pytest.raises(CapfiltError, match="holds no image encoder") as refused:
        converted(file, tmp_path / "none", vocabulary=words)
    assert "--vision FOLDER --out BUNDLE" in refused.value.fix
    assert "eva_vit_g.pth" in refused.value.fix
    eva = eva_file(tmp_path / "eva_vit_g.pth", weights)
    tuned = lavis_file(tmp_path / "blip2_finetune_coco.pth", weights)
    whole = read_card(bundles("blip2_qformer"))
    for number, vision in enumerate((eva, tuned, bundles("blip2_qformer"))):
        card = converted(file, tmp_path / f"b{number}", vocabulary=words, vision=vision)
        assert (card.weights, card.image_encoder) == (whole.weights, whole.image_encoder), vision
        assert card.origin is not None
        assert set(card.origin.parts) == {"vision"}


def test_halves_of_precision_are_widened(shared: Path, tmp_path: Path) -> None:
    weights, words = shared / "golden/blip2_qformer", shared / "golden/tokenizer"
    file = lavis_file(tmp_path / "halved.pth", weights, halved)
    converted(file, tmp_path / "bundle", vocabulary=words)
    found = open_bundle(tmp_path / "bundle").model.state_dict()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    own = load_file(weights / "weights.safetensors")[f"{VISION}blocks.1.mlp.fc1.weight"]
    assert torch.equal(found["vision_model.encoder.layers.1.mlp.fc1.weight"], own.half().float())


@pytest.mark.parametrize("kind", LANGUAGE)
def test_a_language_model_that_was_frozen_is_taken_from_its_folder(
    bundles: Callable[[str], Path], shared: Path, tmp_path: Path, kind: str
) -> None:
    weights, words = shared / "golden" / kind, shared / "golden/tokenizer"
    file = lavis_file(tmp_path / FILES[kind], weights, without(*LANGUAGE_PARTS))
    with pytest.raises(CapfiltError, match="holds no language model: ") as refused:
        converted(file, tmp_path / "none", vocabulary=words)
    assert refused.value.fix == f"name it: capfilt models convert {file} --language FOLDER --out BUNDLE"
    whole = open_bundle(bundles(kind))
    language = recorded_language(tmp_path / "language", LANGUAGE[kind], weights)
    with pytest.raises(CapfiltError, match="language cannot be loaded"):
        converted(file, tmp_path / "none", vocabulary=words, language=language)
    config = json.loads((language / "config.json").read_text())
    whole.model.language_model.save_pretrained(language)  # with the weights, a config of its own
    config["vocab_size"] = whole.card.model.language.config["vocab_size"]
    (language / "config.json").write_text(json.dumps(config))
    converted(file, tmp_path / "bundle", vocabulary=words, language=language)
    found = open_bundle(tmp_path / "bundle")
    assert found.card.weights == whole.card.weights
    assert found.card.model == whole.card.model
    assert found.vocabulary.digest == whole.vocabulary.digest


def test_clips_vit_is_taken_without_its_last_layer(shared: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_hidden_layers": 24}
    clip = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(image_size=28, patch_size=7, **sizes)
    ).eval()
    clip.save_pretrained(tmp_path / "clip")
    file = lavis_file(
        tmp_path / "blip2_pretrained_vitL.pth", shared / "golden/blip2_qformer", without(VISION)
    )
    given = {"vocabulary": shared / "golden/tokenizer", "vision": tmp_path / "clip"}
    converted(file, tmp_path / "bundle", **given)
    pixels = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        found = open_bundle(tmp_path / "bundle").model.vision_model.encoded(pixels)
        expected = clip(pixels, output_hidden_states=True).hidden_states
    assert len(expected) == 25
    torch.testing.assert_close(found, expected[23], atol=1e-5, rtol=0.0)
