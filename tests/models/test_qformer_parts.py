"""Models of others around a Q-Former: taken as they are, whatever they came as."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from small_language import KINDS, LanguageKind, language_folder, small_prompted, small_structure
from small_models import SMALL, WORDS, enlarge, pictures, small_med, small_packed
from small_qformer import SMALL_BLIP2, small_qformer

from capfilt.data.images import normalise
from capfilt.errors import CapfiltError
from capfilt.models.bundle import load_bundle
from capfilt.models.checkpoints.hub import Found
from capfilt.models.language_model import build_language_model
from capfilt.models.part_files import folder_digest
from capfilt.models.prompted import SoftPrompted
from capfilt.models.qformer import QFormer
from capfilt.models.qformer_bundle import pack_qformer
from capfilt.models.qformer_parts import (
    find_parts,
    load_parts,
    part_vocabulary,
    recorded_parts,
    settle_parts,
)
from capfilt.models.vision import ImageEncoder
from capfilt.settings import Blip2, Bundles, Images, Vision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from capfilt.models.vocabulary import Vocabulary

OTHER_COLOURS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
TIMM = Vision(timm="test_vit")


def with_vision(source: Path, asked: Blip2 = SMALL_BLIP2) -> tuple[QFormer, Blip2]:
    """Return a Q-Former on an image encoder of others, and how it is built."""
    parts = find_parts(Bundles(vision=str(source)), asked, with_language=False)
    assert parts is not None
    settings = settle_parts(parts, asked)
    model = QFormer(settings, 50, ("itc",))
    load_parts(parts, model, settings)
    return model.eval(), settings


def some(images: Images) -> Tensor:
    return normalise(torch.from_numpy(pictures(3).squares(images)), images)


# -- image encoders; each of these writes one and returns what its states are


def med(folder: Path, vocabulary: Vocabulary, stem: str = "patch") -> Callable[[Tensor], Tensor]:
    vision = Vision(patch_px=8, width=32, layers=2, heads=4, stem=stem)  # type: ignore[arg-type]
    settings = SMALL.model_copy(update={"vision": vision})
    own = small_med(("lm",), len(vocabulary), settings)
    small_packed(folder, "captioner", own, vocabulary, settings).write()
    return load_bundle(folder).model.eval().encode_image


def q_former(folder: Path, vocabulary: Vocabulary) -> Callable[[Tensor], Tensor]:
    own = small_qformer(("itc", "itm"), len(vocabulary))
    about: dict[str, Any] = {"parent": None, "data": None, "training": {}, "versions": {}}
    pack_qformer(
        folder, kind="filter", model=own, settings=SMALL_BLIP2, vocabulary=vocabulary, **about
    ).write()
    return own.vision_model.encoded


def vit(folder: Path, _: Vocabulary) -> Callable[[Tensor], Tensor]:
    theirs = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
            image_size=16, patch_size=8,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    enlarge(theirs)
    theirs.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(OTHER_COLOURS))
    return lambda pixels: theirs.eval()(pixel_values=pixels).last_hidden_state


def clip(folder: Path, _: Vocabulary) -> Callable[[Tensor], Tensor]:
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**tower, "vocab_size": 30, "eos_token_id": 1, "bos_token_id": 0},
            vision_config={**tower, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
    )
    enlarge(theirs)
    theirs.save_pretrained(folder)
    # As newer folders have it.
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": OTHER_COLOURS}))
    return lambda pixels: theirs.vision_model.eval()(pixel_values=pixels).last_hidden_state


def released_blip2(folder: Path, vocabulary: Vocabulary) -> Callable[[Tensor], Tensor]:
    """A folder of transformers as a whole: the card of capfilt is not there."""
    encoded = q_former(folder, vocabulary)
    (folder / "capfilt.json").unlink()
    return encoded


def timm_file(folder: Path, _: Vocabulary) -> Callable[[Tensor], Tensor]:
    folder.mkdir()
    own = ImageEncoder(TIMM, SMALL_BLIP2.images)
    enlarge(own)
    save_file(
        {name.removeprefix("vit."): one for name, one in own.state_dict().items()},
        folder / "model.safetensors",
    )
    return own.eval()


@pytest.mark.parametrize("make", [med, q_former, vit, clip, released_blip2], ids=lambda make: make.__name__)
@torch.inference_mode()
def test_states_of_an_image_encoder_are_those_where_it_came_from(
    make: Callable[[Path, Vocabulary], Callable[[Tensor], Tensor]], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    theirs = make(tmp_path / "model", vocabulary)
    model, settings = with_vision(tmp_path / "model")
    assert settings.images.size_px == 16
    if make in (vit, clip):
        assert (settings.images.mean[0], settings.images.std[0]) == (0.5, 0.25)
        assert settings.vision_config["hidden_size"] == model.vision_model.width
    else:
        assert settings.vision_config == {}
    pixels = some(settings.images)
    found, expected = model.vision_model.encoded(pixels), theirs(pixels)
    assert expected.std() > 0.1
    if make is med:
        # Its own last norm is the one that the Q-Former trains on.
        found = model.vision_model.normed(found)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0.0)
    else:
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0.0)
    assert not any(one.requires_grad for one in model.vision_model.encoder.parameters())


@torch.inference_mode()
def test_a_convolutional_stem_is_taken_with_all_that_it_remembers(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    theirs = med(tmp_path / "model", vocabulary, "convolution")
    model, settings = with_vision(tmp_path / "model")
    pixels = some(settings.images)
    torch.testing.assert_close(model.vision_model.encoded(pixels), theirs(pixels), atol=1e-6, rtol=0.0)
    assert settings.vision.stem == "convolution"


@torch.inference_mode()
def test_weights_of_timm_go_where_a_vit_is_named(vocabulary: Vocabulary, tmp_path: Path) -> None:
    theirs = timm_file(tmp_path / "model", vocabulary)
    asked = SMALL_BLIP2.model_copy(update={"vision": TIMM})
    model, settings = with_vision(tmp_path / "model" / "model.safetensors", asked)
    pixels = some(settings.images)
    torch.testing.assert_close(model.vision_model.encoded(pixels), theirs(pixels), atol=1e-6, rtol=0.0)
    with pytest.raises(CapfiltError, match="weights of timm, and the image encoder is BLIP-2's own"):
        with_vision(tmp_path / "model" / "model.safetensors")


def test_what_sees_no_pictures_is_refused(tmp_path: Path) -> None:
    config = transformers.OPTConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, ffn_dim=8, num_attention_heads=1,
        word_embed_proj_dim=8,
    )  # fmt: skip
    transformers.OPTModel(config).save_pretrained(tmp_path / "opt")
    with pytest.raises(CapfiltError, match="of the type opt, which sees no pictures"):
        with_vision(tmp_path / "opt")


def test_an_image_encoder_inside_of_another_model_is_refused_by_what_is_missing(tmp_path: Path) -> None:
    clip(tmp_path / "clip", None)  # type: ignore[arg-type]
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (tmp_path / "clip" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CapfiltError, match=r"lacks encoder\.layers\.2") as refused:
        with_vision(tmp_path / "clip")
    assert "image encoder by itself" in refused.value.fix


# -- language models


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_language_model_is_taken_as_it_is_with_its_tokenizer(kind: LanguageKind, tmp_path: Path) -> None:
    folder = language_folder(kind, tmp_path / "language")
    config = json.loads((folder / "config.json").read_text())
    half, theirs = build_language_model(config), build_language_model(config)
    enlarge(half)
    half.half().save_pretrained(folder)  # as most are released
    theirs.load_state_dict(half.state_dict())
    asked = small_structure(kind, folder)
    asked = asked.model_copy(update={"language": asked.language.model_copy(update={"config": {"old": 1}})})
    parts = find_parts(Bundles(language=str(folder)), asked, with_language=True)
    assert parts is not None
    settings = settle_parts(parts, asked)
    assert "old" not in settings.language.config
    model = SoftPrompted(settings)
    load_parts(parts, model, settings)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    vocabulary = part_vocabulary(parts, settings)
    ids, real = vocabulary.encode(WORDS[:1], max_tokens=12)
    words = model.language_model.get_input_embeddings()(ids)
    given = {"inputs_embeds": words} | ({"decoder_input_ids": ids} if kind == "t5" else {})
    expected = theirs.eval()(**given).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(model.language_model(**given).logits, expected, atol=1e-5, rtol=0.0)
    assert real.all()


def test_the_digest_is_that_of_the_files_and_a_change_between_two_looks_is_refused(tmp_path: Path) -> None:
    folder = language_folder("opt", tmp_path / "one")
    asked = small_structure("opt", folder)
    small_prompted(asked).language_model.save_pretrained(folder)
    first = find_parts(Bundles(language=str(folder)), asked, with_language=True)
    assert first is not None
    assert first.facts() == {"language": first.language.digest}  # type: ignore[union-attr]
    model = SoftPrompted(settle_parts(first, asked))
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    second = find_parts(Bundles(language=str(folder)), asked, with_language=True)
    assert second is not None
    assert second.facts() != first.facts()
    with pytest.raises(CapfiltError, match="changed while it was read"):
        load_parts(first, model, asked)
    assert find_parts(Bundles(language=str(folder)), asked, with_language=False) is None


def test_a_file_that_nothing_reads_makes_no_other_part(tmp_path: Path) -> None:
    folder = language_folder("opt", tmp_path / "one")
    small_prompted(small_structure("opt", folder)).language_model.save_pretrained(folder)
    before = folder_digest(folder)
    (folder / "README.md").write_text("a model card")
    (folder / "flax_model.msgpack").write_bytes(b"the same weights for other software")
    (folder / "pytorch_model.bin").write_bytes(b"read only where there are no safetensors")
    assert folder_digest(folder) == before
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert folder_digest(folder) != before


def test_a_part_of_the_hub_is_known_by_its_commit_and_found_again_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = language_folder("opt", tmp_path / "c0ffee")
    asked: list[str] = []

    def hub(source: str, **_: object) -> Found:
        asked.append(source)
        return Found(folder, "some/opt", "c0ffee")

    monkeypatch.setattr("capfilt.models.qformer_parts.find_checkpoint", hub)
    found = find_parts(Bundles(language="some/opt"), SMALL_BLIP2, with_language=True)
    assert found is not None
    assert found.facts() == {"language": "some/opt@c0ffee"}
    again = recorded_parts(json.loads(json.dumps(found.record())))
    assert again == found
    # The cache was emptied: the branch may have moved, and the commit is asked for.
    moved = folder.rename(tmp_path / "elsewhere")
    folder = moved
    located = again.located().language
    assert located is not None
    assert located.path == moved
    assert asked == ["some/opt", "some/opt@c0ffee"]


def test_a_folder_without_a_config_is_no_language_model(tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match=r"no language model: it has no config\.json"):
        find_parts(Bundles(language=str(tmp_path)), SMALL_BLIP2, with_language=True)


def test_a_model_without_a_language_model_has_no_tokenizer() -> None:
    with pytest.raises(CapfiltError, match="none is given"):
        part_vocabulary(None, SMALL_BLIP2)
