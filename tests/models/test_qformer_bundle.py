"""Bundles of models with a Q-Former: written and read back bit for bit, here and in transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from small_language import KINDS, LanguageKind, language_folder, small_prompted, small_structure
from small_models import WORDS, pictures
from small_qformer import SMALL_BLIP2, small_qformer

from capfilt.data.images import normalise
from capfilt.errors import CapfiltError
from capfilt.models.bundle_files import BundleOf
from capfilt.models.language_vocabulary import load_language_vocabulary
from capfilt.models.prompted import SoftPrompted, Words, read_instructions
from capfilt.models.prompted_captioner import PromptedCaptioner
from capfilt.models.qformer import QFormer
from capfilt.models.qformer_bundle import adopt, load_qformer_bundle, pack_qformer
from capfilt.models.qformer_filter import QFormerFilter
from capfilt.settings import SettledDecoding, Vision

if TYPE_CHECKING:
    from pathlib import Path

    from small_language import Family
    from torch import Tensor

    from capfilt.models.cards import Card, Objective
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings import Blip2

FAMILIES: tuple[Family, ...] = ("blip2", "instructblip")
CAPTIONERS = [pytest.param(family, kind, id=f"{family}-{kind}") for family in FAMILIES for kind in KINDS]
TOKENS = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("language models")
    return {kind: language_folder(kind, root / kind) for kind in KINDS}


def packed(path: Path, model: QFormer | SoftPrompted, settings: Blip2, vocabulary: Any, **more: Any) -> Card:
    """Write a bundle and return its card."""
    values: dict[str, Any] = {
        "kind": "captioner" if isinstance(model, SoftPrompted) else "filter",
        "parent": None,
        "data": None,
        "training": {"steps": 3},
        "versions": {},
    }
    bundle = pack_qformer(path, model=model, settings=settings, vocabulary=vocabulary, **values | more)
    bundle.write()
    return bundle.bundle.card


def filter_bundle(
    path: Path, vocabulary: Vocabulary, objectives: tuple[Objective, ...] = ("itc", "itm"), **more: Any
) -> QFormer:
    model = small_qformer(objectives, len(vocabulary))
    packed(path, model, SMALL_BLIP2, vocabulary, **more)
    return model


def captioner_bundle(
    path: Path, family: Family, kind: LanguageKind, folder: Path, reader: Vocabulary
) -> SoftPrompted:
    settings = small_structure(kind, folder, family)
    words = reader if family == "instructblip" else None
    model = small_prompted(settings, len(reader) if words is not None else None)
    packed(path, model, settings, load_language_vocabulary(folder, settings.language), reader=words)
    return model


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


# -- written and read back


@pytest.mark.parametrize(
    ("kind", "objectives"),
    [("joint", ("itc", "itm", "lm")), ("filter", ("itc", "itm")), ("filter", ("itm",))],
)
def test_stage_1_comes_back_bit_for_bit(
    kind: str, objectives: tuple[Objective, ...], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    model = filter_bundle(tmp_path / "bundle", vocabulary, objectives, kind=kind)
    again = load_qformer_bundle(tmp_path / "bundle")
    assert isinstance(again.model, QFormer)
    assert again.model.objectives == objectives
    assert equal(again.model, model)
    assert again.vocabulary.digest == vocabulary.digest
    assert (again.card.kind, again.card.training, again.reader) == (kind, {"steps": 3}, None)
    if kind == "filter":
        texts = [[WORDS[0], "two dogs"], [WORDS[2]]]
        before, after = (
            QFormerFilter(BundleOf(tmp_path, again.card, one, vocabulary), torch.device("cpu")).score(
                pictures(2), texts
            )
            for one in (model, again.model)
        )
        assert before == after


@pytest.mark.parametrize(("family", "kind"), CAPTIONERS)
def test_a_captioner_comes_back_bit_for_bit(
    family: Family, kind: LanguageKind, folders: dict[str, Path], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    model = captioner_bundle(tmp_path / "bundle", family, kind, folders[kind], vocabulary)
    again = load_qformer_bundle(tmp_path / "bundle")
    assert isinstance(again.model, SoftPrompted)
    assert equal(again.model, model)
    assert not any(p.requires_grad for p in again.model.language_model.parameters())
    if family == "instructblip":
        assert again.reader is not None
        assert again.reader.digest == vocabulary.digest
        assert (tmp_path / "bundle" / "qformer_tokenizer" / "vocab.txt").is_file()
    else:
        assert again.reader is None
    # The card names every file but itself and the weights, whose digest it has apart.
    files = {
        f.relative_to(tmp_path / "bundle").as_posix() for f in (tmp_path / "bundle").rglob("*") if f.is_file()
    }
    assert files == {*again.card.files, "capfilt.json", "model.safetensors"}


def test_a_bundle_is_the_same_bytes_every_time(
    folders: dict[str, Path], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        captioner_bundle(tmp_path / name, "instructblip", "llama", folders["llama"], vocabulary)
    for file in (tmp_path / "one").rglob("*"):
        if file.is_file():
            assert (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes() == file.read_bytes()


def test_a_tensor_with_two_names_is_written_once_and_is_one_again(
    folders: dict[str, Path], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    captioner_bundle(tmp_path / "tied", "blip2", "opt", folders["opt"], vocabulary)
    captioner_bundle(tmp_path / "apart", "blip2", "t5", folders["t5"], vocabulary)
    output = "language_model.lm_head.weight"
    assert output not in load_file(tmp_path / "tied" / "model.safetensors")
    assert output in load_file(tmp_path / "apart" / "model.safetensors")
    tied, apart = (load_qformer_bundle(tmp_path / name).model.language_model for name in ("tied", "apart"))
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert apart.get_output_embeddings().weight is not apart.get_input_embeddings().weight
    # An encoder-decoder has its words in three places.
    assert apart.encoder.embed_tokens.weight is apart.decoder.embed_tokens.weight


def test_what_serves_training_alone_lies_in_a_file_of_its_own(vocabulary: Vocabulary, tmp_path: Path) -> None:
    filter_bundle(tmp_path / "joint", vocabulary, ("itc", "itm", "lm"), kind="joint")
    apart = load_file(tmp_path / "joint" / "training.safetensors")
    assert {name.partition(".")[0] for name in apart} == {"temperature", "word_head"}
    assert not set(apart) & set(load_file(tmp_path / "joint" / "model.safetensors"))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "training.safetensors", "vocab.txt", "config.json", "tokenizer.json"]
)
def test_a_damaged_file_is_named(name: str, vocabulary: Vocabulary, tmp_path: Path) -> None:
    filter_bundle(tmp_path / "bundle", vocabulary)
    file = tmp_path / "bundle" / name
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(CapfiltError, match=f"{name} is not the file that"):
        load_qformer_bundle(tmp_path / "bundle")
    file.unlink()
    with pytest.raises(CapfiltError, match=f"{name} cannot be read"):
        load_qformer_bundle(tmp_path / "bundle")


def test_a_damaged_file_of_the_reader_is_named(
    folders: dict[str, Path], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    captioner_bundle(tmp_path / "bundle", "instructblip", "opt", folders["opt"], vocabulary)
    with (tmp_path / "bundle" / "qformer_tokenizer" / "vocab.txt").open("a") as file:
        file.write("words\n")
    with pytest.raises(CapfiltError, match=r"qformer_tokenizer/vocab\.txt is not the file"):
        load_qformer_bundle(tmp_path / "bundle")


def test_what_a_bundle_was_not_trained_for_it_cannot_be_asked(
    folders: dict[str, Path], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    filter_bundle(tmp_path / "filter", vocabulary)
    captioner_bundle(tmp_path / "captioner", "blip2", "opt", folders["opt"], vocabulary)
    with pytest.raises(CapfiltError, match="cannot write captions: it is a filter"):
        load_qformer_bundle(tmp_path / "filter", needs="lm")
    with pytest.raises(CapfiltError, match="cannot score pairs: it is a captioner"):
        load_qformer_bundle(tmp_path / "captioner", needs="itm")


def test_another_image_encoder_is_another_digest_and_another_norm_is_not(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    model = small_qformer(("itc", "itm"), len(vocabulary))
    before = packed(tmp_path / "one", model, SMALL_BLIP2, vocabulary)
    with torch.no_grad():
        model.vision_model.post_layernorm.weight.add_(0.1)
    normed = packed(tmp_path / "two", model, SMALL_BLIP2, vocabulary)
    with torch.no_grad():
        next(model.vision_model.encoder.parameters()).add_(0.1)
    other = packed(tmp_path / "three", model, SMALL_BLIP2, vocabulary)
    assert before.image_encoder == normed.image_encoder != other.image_encoder
    assert len({before.weights, normed.weights, other.weights}) == 3


def test_what_transformers_cannot_build_it_does_not_find(vocabulary: Vocabulary, tmp_path: Path) -> None:
    other = SMALL_BLIP2.model_copy(
        update={"vision": Vision(patch_px=8, width=32, layers=1, heads=4, stem="convolution")}
    )
    model = small_qformer(("itc", "itm"), len(vocabulary), other)
    packed(tmp_path / "stem", model, other, vocabulary)
    filter_bundle(tmp_path / "itm", vocabulary, ("itm",))
    for name in ("stem", "itm"):
        files = {file.name for file in (tmp_path / name).iterdir()}
        assert "capfilt.safetensors" in files
        assert not files & {"model.safetensors", "config.json", "preprocessor_config.json"}
    assert equal(load_qformer_bundle(tmp_path / "stem").model, model)


# -- a model that starts from another


def test_names_of_the_two_families_are_read_as_one_anothers(
    folders: dict[str, Path], vocabulary: Vocabulary
) -> None:
    settings = small_structure("opt", folders["opt"], "instructblip")
    stage_1 = small_qformer(("itc", "itm", "lm"), len(vocabulary), settings)
    captioner = SoftPrompted(settings, len(vocabulary))
    lacking = adopt(captioner, stage_1.state_dict())
    assert {name.partition(".")[0] for name in lacking} == {"language_model", "language_projection"}
    read = captioner.state_dict()
    assert torch.equal(
        read["qformer.embeddings.word_embeddings.weight"], stage_1.embeddings.word_embeddings.weight
    )
    assert torch.equal(read["qformer.embeddings.layernorm.weight"], stage_1.qformer.layernorm.weight)


def test_weights_of_another_size_are_refused_by_name(vocabulary: Vocabulary) -> None:
    wider = SMALL_BLIP2.model_copy(update={"embed": 8})
    with pytest.raises(
        CapfiltError, match=r"vision_projection.weight is \(16, 48\) there and \(8, 48\) here"
    ):
        adopt(
            QFormer(wider, len(vocabulary), ("itc",)),
            small_qformer(("itc",), len(vocabulary)).state_dict(),
        )


# -- in transformers


def in_transformers(kind: type[Any], bundle: Path) -> Any:
    """Return what transformers makes of a bundle, every weight of which it must have found."""
    model, report = kind.from_pretrained(bundle, output_loading_info=True)
    assert not any(report[one] for one in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def some_pixels(settings: Blip2) -> Tensor:
    return normalise(torch.from_numpy(pictures(3).squares(settings.images)), settings.images)


@torch.inference_mode()
def test_a_filter_has_the_same_scores_in_transformers(vocabulary: Vocabulary, tmp_path: Path) -> None:
    model = filter_bundle(tmp_path / "bundle", vocabulary)
    theirs = in_transformers(transformers.Blip2ForImageTextRetrieval, tmp_path / "bundle")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "bundle")
    pixels = some_pixels(SMALL_BLIP2)
    texts = tokenizer(WORDS, padding=True, return_tensors="pt")
    ids, real = texts.input_ids, texts.attention_mask
    states = model.encode_image(pixels)
    matches = theirs(
        pixel_values=pixels, input_ids=ids, attention_mask=real, use_image_text_matching_head=True
    )
    found = model.itm_logits(ids, real.bool(), model.memory(states))
    assert found.std() > 0.1
    torch.testing.assert_close(found, matches.logits_per_image, atol=1e-4, rtol=0.0)
    cosines = theirs(pixel_values=pixels, input_ids=ids, attention_mask=real).logits_per_image
    found = model.similarity(model.image_features(states), model.text_features(ids, real.bool()))
    torch.testing.assert_close(found, cosines, atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(("family", "kind"), CAPTIONERS)
@torch.inference_mode()
def test_a_captioner_writes_the_same_through_transformers_processor(
    family: Family, kind: LanguageKind, folders: dict[str, Path], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    is_instructed = family == "instructblip"
    model = captioner_bundle(tmp_path / "bundle", family, kind, folders[kind], vocabulary)
    made = (
        transformers.InstructBlipForConditionalGeneration
        if is_instructed
        else transformers.Blip2ForConditionalGeneration
    )
    theirs = in_transformers(made, tmp_path / "bundle")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "bundle")
    batch, prompt = pictures(3), "a red circle"
    inputs = processor(images=batch.pictures, text=[prompt] * 3, return_tensors="pt")
    bundle: Any = load_qformer_bundle(tmp_path / "bundle")
    words = torch.tensor([bundle.vocabulary.prompt(prompt)] * 3)
    queries = inputs.input_ids[:, : model.queries]
    assert (queries == theirs.config.image_token_id).all()
    assert torch.equal(inputs.input_ids[:, model.queries :], words)
    pixels = some_pixels(bundle.card.blip2)
    # Two libraries may round a pixel between two whole numbers differently: a step of 255.
    torch.testing.assert_close(inputs.pixel_values, pixels, atol=1.01 / 255 / 0.258, rtol=0.0)
    inputs["pixel_values"] = pixels

    asked = read_instructions(vocabulary, [prompt] * 3, 12) if is_instructed else None
    prompts = model.soft_prompts(model.encode_image(pixels), asked)
    read = Words(words, torch.ones_like(words, dtype=torch.bool))
    if kind == "t5":
        start = torch.zeros(3, 1, dtype=torch.long)
        found = model.target_logits(prompts, read, start)
        expected = theirs(**inputs, decoder_input_ids=start).logits
    else:
        found, expected = model.logits(prompts, read), theirs(**inputs).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0.0)

    ids = theirs.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    decoding = SettledDecoding(method="greedy", min_tokens=0, max_tokens=TOKENS, prompt=prompt)
    captioner = PromptedCaptioner(bundle, torch.device("cpu"))
    ours = [caption for [caption] in captioner.caption(batch, decoding, seed=0, candidates=1)]
    written = [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
    assert ours == [text.removeprefix(prompt).strip() for text in written]


def test_transformers_reads_weights_in_fp32_whatever_the_language_model_came_in(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    settings = small_structure("opt", folders["opt"])
    config = settings.language.config | {"dtype": "float16", "torch_dtype": "float16"}
    half = settings.model_copy(update={"language": settings.language.model_copy(update={"config": config})})
    model = small_prompted(half)
    packed(tmp_path / "bundle", model, half, load_language_vocabulary(folders["opt"], half.language))
    theirs = in_transformers(transformers.Blip2ForConditionalGeneration, tmp_path / "bundle")
    assert {tensor.dtype for tensor in theirs.state_dict().values()} == {torch.float32}


def test_frozen_parts_out_of_halves_are_written_in_halves_and_read_the_same(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    settings = small_structure("t5", folders["t5"])
    model = small_prompted(settings)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if not weights.requires_grad:
                weights.copy_(weights.bfloat16() if name.startswith("language_model.") else weights.half())
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    words = load_language_vocabulary(folders["t5"], settings.language)
    packed(tmp_path / "bundle", model, settings, words)
    written = load_file(tmp_path / "bundle/model.safetensors")
    halved = {name for name, tensor in written.items() if tensor.dtype != torch.float32}
    assert {
        name for name, one in model.named_parameters() if not one.requires_grad and one.ndim > 1
    } == halved
    found = load_qformer_bundle(tmp_path / "bundle").model.state_dict()
    theirs = in_transformers(transformers.Blip2ForConditionalGeneration, tmp_path / "bundle").state_dict()
    for name, tensor in expected.items():
        assert found[name].dtype == theirs[name].dtype == torch.float32
        assert torch.equal(found[name], tensor), name
        assert torch.equal(theirs[name], tensor), name


def test_a_language_model_without_an_embedding_to_spare_gives_the_padding_for_pictures(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    settings = small_structure("llama", folders["llama"])
    words = load_language_vocabulary(folders["llama"], settings.language)
    assert words.image_token == len(words) < settings.language.config["vocab_size"]
    config = settings.language.config | {"vocab_size": len(words)}
    tight = settings.language.model_copy(update={"config": config})
    assert load_language_vocabulary(folders["llama"], tight).image_token == words.pad
    with_image = tmp_path / "with image"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["llama"])
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(with_image)
    again = load_language_vocabulary(with_image, settings.language)
    assert again.image_token == len(words) == len(again) - 1
