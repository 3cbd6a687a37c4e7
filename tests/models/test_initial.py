"""Starts from a ViT and a BERT, made on the spot by timm and by transformers and saved as they save them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from small_models import SMALL, enlarge, small_med

from capfilt.errors import CapfiltError
from capfilt.layers import changed
from capfilt.models.checkpoints.bert import DEFAULTS
from capfilt.models.initial import Start, find_start, load_start, settle, start_vocabulary
from capfilt.models.med import MED
from capfilt.models.vision import interpolated
from capfilt.settings import Bundles, Model, Text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from capfilt.models.vocabulary import Vocabulary

ALL = ("itc", "itm", "lm")
PIXELS = torch.randn(3, 3, 160, 160, generator=torch.Generator().manual_seed(1))
NAMED = changed(SMALL, {"vision": "test_vit", "images": {"size_px": 160}})
"""A ViT of timm with 10 x 10 patches, for pictures of its own side."""
PLAIN = changed(SMALL, {"vision": {"patch_px": 8, "width": 32, "layers": 2, "heads": 4}})
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##s", "cat", "dog"]


def started(model: Model, words: int | None = None, *, vision: Any = None, text: Any = None) -> MED:
    """Return a model that was started, as a caller does it."""
    start = found(model, vision=vision, text=text)
    settled = settle(start, model)
    vocabulary = start_vocabulary(start)
    torch.manual_seed(5)
    med = MED(settled, len(vocabulary) if vocabulary is not None else words or 40, ALL)
    load_start(start, med, settled)
    return med.eval()


def found(model: Model, *, vision: Any = None, text: Any = None) -> Start:
    start = find_start(
        Bundles(vision=None if vision is None else str(vision), text=None if text is None else str(text)),
        model,
    )
    assert start is not None
    return start


# -- the image encoder


@pytest.fixture(scope="module")
def vit() -> Any:
    """A small ViT of timm with its classifier, its weights large and random."""
    model = timm.create_model("test_vit")
    enlarge(model)
    return model.eval()


def as_safetensors(weights: dict[str, Tensor], folder: Path) -> Path:
    save_file(weights, folder / "vit.safetensors")
    return folder / "vit.safetensors"


def as_folder(weights: dict[str, Tensor], folder: Path) -> Path:
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "test_vit", "num_classes": 1000}))
    return folder


def as_training(weights: dict[str, Tensor], folder: Path) -> Path:
    """As DeiT's, which BLIP's released code starts its base model from."""
    torch.save({"model": weights, "epoch": 3}, folder / "vit.pth")
    return folder / "vit.pth"


def as_parallel(weights: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"state_dict": {f"module.{name}": one for name, one in weights.items()}}, folder / "vit.pt")
    return folder / "vit.pt"


def as_part(weights: dict[str, Tensor], folder: Path) -> Path:
    torch.save({f"module.model.{name}": one for name, one in weights.items()}, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("written", [as_safetensors, as_folder, as_training, as_parallel, as_part])
@torch.no_grad()
def test_image_states_are_those_of_the_vit_of_timm_however_it_was_written(
    vit: Any, tmp_path: Path, written: Callable[[dict[str, Tensor], Path], Path]
) -> None:
    start = found(NAMED, vision=written(vit.state_dict(), tmp_path))
    med = MED(NAMED, 40, ALL).eval()
    assert load_start(start, med, NAMED) == {"head.*": "classifier"}
    expected = vit.forward_features(PIXELS)
    assert expected.std(0).mean() > 0.05  # the pictures differ
    torch.testing.assert_close(med.image(PIXELS), expected, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("side", [96, 224])
@torch.no_grad()
def test_at_another_side_they_are_those_of_timm_with_interpolated_positions(
    vit: Any, tmp_path: Path, side: int
) -> None:
    model = changed(NAMED, {"images": {"size_px": side}})
    med = started(model, vision=as_safetensors(vit.state_dict(), tmp_path))
    theirs = timm.create_model("test_vit", img_size=side).eval()
    positions = interpolated(vit.pos_embed, 100, (side // 16) ** 2)
    theirs.load_state_dict({**vit.state_dict(), "pos_embed": positions})
    pixels = torch.nn.functional.interpolate(PIXELS, side)
    torch.testing.assert_close(med.image(pixels), theirs.forward_features(pixels), atol=1e-6, rtol=0.0)


@torch.no_grad()
def test_the_plain_vit_starts_from_a_vit_of_timm_of_its_sizes(tmp_path: Path) -> None:
    from timm.models.vision_transformer import VisionTransformer

    theirs = VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=7)
    enlarge(theirs)
    med = started(PLAIN, vision=as_training(theirs.state_dict(), tmp_path))
    pixels = PIXELS[:, :, :16, :16]
    expected = theirs.eval().forward_features(pixels)
    torch.testing.assert_close(med.image(pixels), expected, atol=1e-6, rtol=0.0)


def other_vits() -> list[tuple[Model, dict[str, Any], str]]:
    """Return models, what makes the ViT another one than theirs, and the weight that is named."""
    return [
        (PLAIN, {"embed_dim": 48}, "of another shape: cls_token"),
        (PLAIN, {"depth": 3}, "surplus: blocks.2.attn.proj.bias"),
        (PLAIN, {"depth": 1}, "missing: blocks.1.norm1.weight"),
        (PLAIN, {"patch_size": 4}, "of another shape: patch_embed.proj.weight"),
        (PLAIN, {"init_values": 1e-5}, "surplus: blocks.0.ls1.gamma"),
        (PLAIN, {"reg_tokens": 2}, "surplus: reg_token"),
        (PLAIN, {"fc_norm": True, "global_pool": "avg"}, "missing: norm.weight"),
        (changed(PLAIN, {"vision": {"stem": "convolution"}}), {}, "surplus: patch_embed.proj.bias"),
    ]


@pytest.mark.parametrize(("model", "sizes", "named"), other_vits())
def test_a_vit_that_is_built_differently_is_refused_by_what_differs(
    tmp_path: Path, model: Model, sizes: dict[str, Any], named: str
) -> None:
    from timm.models.vision_transformer import VisionTransformer

    like: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    theirs = VisionTransformer(**{**like, **sizes})
    file = as_safetensors(theirs.state_dict(), tmp_path)
    with pytest.raises(CapfiltError) as refused:
        started(model, vision=file)
    assert named in refused.value.what
    assert str(file) in refused.value.what
    assert "--set model.vision=NAME" in refused.value.fix


def test_a_distilled_vit_is_refused_by_its_second_token(tmp_path: Path) -> None:
    from timm.models.deit import VisionTransformerDistilled

    theirs = VisionTransformerDistilled(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=4)
    with pytest.raises(CapfiltError, match="surplus: dist_token"):
        started(PLAIN, vision=as_safetensors(theirs.state_dict(), tmp_path))


def test_a_folder_that_names_a_vit_with_other_heads_is_refused(vit: Any, tmp_path: Path) -> None:
    """Its weights have the same shapes."""
    sizes = {"patch_px": 16, "width": 64, "layers": 6, "mlp_ratio": 3.0}
    plain = changed(NAMED, {"vision": {"timm": None, **sizes, "heads": 4}})
    folder = as_folder(vit.state_dict(), tmp_path)
    with pytest.raises(
        CapfiltError, match="whose width 2 attention heads share; the image encoder has 4"
    ) as no:
        started(plain, vision=folder)
    assert "--set model.vision.heads=2" in no.value.fix
    alike = changed(plain, {"vision": {"heads": 2}})
    with torch.no_grad():
        states = started(alike, vision=folder).image(PIXELS)
        torch.testing.assert_close(states, vit.forward_features(PIXELS), atol=1e-6, rtol=0.0)


@pytest.mark.parametrize(
    ("name", "why"),
    [(None, "none is named"), ("no_such_vit", "has no weights"), ("test_vit.no_tag", "no_tag")],
)
def test_the_word_timm_needs_a_name_that_timm_has_weights_for(name: str | None, why: str) -> None:
    with pytest.raises(CapfiltError, match=why) as refused:
        find_start(Bundles(vision="timm"), changed(SMALL, {"vision": {"timm": name}}))
    assert "vit_" in refused.value.fix


# -- text


@pytest.fixture(scope="module")
def bert() -> Any:
    """A small BERT with its heads for pre-training, large random weights, both types of sentences apart."""
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=24,
        layer_norm_eps=1e-6,
        initializer_range=0.3,
    )
    model = BertForPreTraining(config)
    enlarge(model)
    return model.eval()


@pytest.fixture
def folder(bert: Any, tmp_path: Path) -> Path:
    """The BERT in transformers' layout, with its vocabulary."""
    return with_words(bert, tmp_path / "bert")


def with_words(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    return folder


def texts() -> tuple[Tensor, Tensor]:
    """Return ids of texts of several lengths, padded, and where they are real."""
    lengths = torch.tensor([12, 3, 24, 7])
    real = torch.arange(24) < lengths[:, None]
    ids = torch.randint(5, len(WORDS), (4, 24), generator=torch.Generator().manual_seed(4))
    return ids * real, real


@torch.no_grad()
def test_text_states_are_berts_own_hidden_states_on_padded_texts(bert: Any, folder: Path) -> None:
    med = started(SMALL, text=folder)
    ids, real = texts()
    expected = bert.bert(input_ids=ids, attention_mask=real.long()).last_hidden_state
    states = med.text.read(ids, real)
    assert expected[real].std(0).mean() > 0.3
    torch.testing.assert_close(states[real], expected[real], atol=1e-5, rtol=0.0)


@torch.no_grad()
def test_the_written_direction_is_bert_that_sees_what_came_before(bert: Any, folder: Path) -> None:
    """Cross-attention, which is fresh, is taken out."""
    med = started(SMALL, text=folder)
    for layer in med.text.layers:
        layer.cross = None
    ids, _ = texts()
    causal = torch.ones(24, 24, dtype=torch.bool).tril().expand(4, 1, -1, -1)
    expected = bert.bert(input_ids=ids, attention_mask=causal).last_hidden_state
    written = med.text.write(ids, [None] * 3)  # type: ignore[list-item]
    torch.testing.assert_close(written, expected, atol=1e-5, rtol=0.0)
    words = len(WORDS)
    logits = med.word_head(written, med.text.words)[..., :words]
    torch.testing.assert_close(logits, bert.cls.predictions(expected), atol=5e-5, rtol=0.0)


def test_what_bert_lacks_stays_as_it_was_drawn_under_the_seed(folder: Path) -> None:
    start = found(SMALL, text=folder)
    settled = settle(start, SMALL)
    torch.manual_seed(9)
    drawn = MED(settled, len(WORDS) + 2, ALL).state_dict()
    torch.manual_seed(9)
    med = MED(settled, len(WORDS) + 2, ALL)
    left = load_start(start, med, settled)
    made = med.state_dict()
    fresh = [name for name in made if torch.equal(made[name], drawn[name])]
    assert [name for name in fresh if name.startswith("text.") and ".cross." not in name] == []
    assert all(name in fresh for name in made if name.startswith("image.") or ".cross." in name)
    assert {"temperature", "itm_head.weight", "text_projection.weight"} < set(fresh)
    for name in ("text.words.weight", "word_head.bias"):
        assert torch.equal(made[name][-2:], drawn[name][-2:])  # [DEC] and [ENC]
    assert made["text.words.weight"][-2:].std().item() == pytest.approx(0.02, rel=0.4)
    assert left == {
        "bert.pooler.*": "pooler, which nothing here reads",
        "cls.seq_relationship.*": "judge of whether one sentence follows another",
    }


@torch.no_grad()
def test_every_layout_of_the_same_bert_gives_the_same_start(bert: Any, folder: Path, tmp_path: Path) -> None:
    """Without the upper level, as BertModel is saved; pickled; with the norms' old names; in two files."""
    whole = started(SMALL, text=folder).state_dict()
    plain = with_words(bert.bert, tmp_path / "plain")
    assert "embeddings.LayerNorm.weight" in load_file(plain / "model.safetensors")
    pickled = with_words(bert, tmp_path / "pickled")
    weights = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): one
        for name, one in weights.items()
    }
    old["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = old.pop("cls.predictions.bias")
    old["bert.embeddings.position_ids"] = torch.arange(24)[None]
    torch.save(old, pickled / "pytorch_model.bin")
    parts = tmp_path / "parts"
    bert.save_pretrained(parts, max_shard_size="20KB")
    shutil.copy(folder / "vocab.txt", parts)
    assert (parts / "model.safetensors.index.json").exists()
    for place in (plain, pickled, parts):
        made = started(SMALL, text=place).state_dict()
        differing = [name for name in whole if not torch.equal(made[name], whole[name])]
        head = [name for name in whole if name.startswith("word_head.")]
        assert set(differing) == (set(head) if place == plain else set()), place


def test_a_model_that_only_scores_leaves_the_lm_head_out(folder: Path) -> None:
    start = found(SMALL, text=folder)
    settled = settle(start, SMALL)
    med = MED(settled, len(WORDS) + 2, ("itc",))
    left = load_start(start, med, settled)
    assert left["cls.predictions.*"] == "LM head, and the model writes nothing"


def test_sizes_are_berts_and_length_and_dropout_ours(folder: Path) -> None:
    ours = changed(SMALL, {"text": {"max_tokens": 9, "dropout": 0.25}})
    settled = settle(found(ours, text=folder), ours)
    assert settled.text == Text(
        width=32,
        layers=3,
        heads=4,
        feed_forward=48,
        places=24,
        norm_epsilon=1e-6,
        vocabulary=SMALL.text.vocabulary,
        max_tokens=9,
        dropout=0.25,
    )
    assert changed(settled, {"text": ours.text.model_dump()}) == ours


def test_what_a_configuration_does_not_say_is_what_transformers_takes_it_for() -> None:
    from transformers import BertConfig

    theirs = BertConfig().to_dict()
    assert {name: theirs[name] for name in DEFAULTS} == DEFAULTS


def test_the_vocabulary_is_berts_with_dec_and_enc_after_it(folder: Path) -> None:
    from transformers import AutoTokenizer

    vocabulary = start_vocabulary(found(SMALL, text=folder))
    assert vocabulary is not None
    assert (len(vocabulary), vocabulary.dec, vocabulary.enc) == (len(WORDS) + 2, len(WORDS), len(WORDS) + 1)
    ids, _ = vocabulary.encode(["Cats, dog"], "cls", 20)
    assert ids[0].tolist() == AutoTokenizer.from_pretrained(folder)("Cats, dog")["input_ids"]


def test_a_vocabulary_that_has_dec_and_enc_already_grows_no_more(
    folder: Path, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig.from_pretrained(folder, vocab_size=len(vocabulary))
    BertModel(config).save_pretrained(tmp_path / "grown")
    vocabulary.save(tmp_path / "grown")
    med = started(SMALL, text=tmp_path / "grown")
    words = load_file(tmp_path / "grown/model.safetensors")["embeddings.word_embeddings.weight"]
    assert torch.equal(med.text.words.weight, words)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta', and BERT's is 'bert'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"hidden_size": "wide"}, "config.json: setting width"),
        ({"max_position_embeddings": 8}, "has 8 places, and model.text.max_tokens is 16"),
        ({"vocab_size": 99}, f"has {len(WORDS)} entries; the model has embeddings for 99"),
    ],
)
def test_a_configuration_that_asks_for_something_else_is_refused(
    folder: Path, config: dict[str, Any], why: str
) -> None:
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **config}))
    with pytest.raises(CapfiltError) as refused:
        find_start(Bundles(text=str(folder)), SMALL)
    assert why in refused.value.what
    assert str(folder) in refused.value.what
    assert refused.value.fix


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.pop("bert.encoder.layer.1.output.dense.bias"), "missing: bert.encoder.layer.1.output.d"),
        (lambda w: w.pop("cls.predictions.bias"), "missing: cls.predictions.bias"),
        (
            lambda w: w.update({"bert.encoder.layer.3.output.dense.bias": torch.zeros(32)}),
            "surplus: bert.encoder.layer.3.output.dense.bias",
        ),
        (
            lambda w: w.update({"bert.embeddings.token_type_embeddings.weight": torch.zeros(2, 31)}),
            "of another shape: bert.embeddings.token_type_embeddings.weight",
        ),
        (
            lambda w: w.update({"bert.embeddings.word_embeddings.weight": torch.zeros(len(WORDS) - 1, 32)}),
            "of another shape: bert.embeddings.word_embeddings.weight",
        ),
        (
            lambda w: w.update({"cls.predictions.decoder.weight": torch.zeros(len(WORDS), 32)}),
            "cls.predictions.decoder.weight differs from bert.embeddings.word_embeddings.weight",
        ),
    ],
)
def test_weights_that_are_not_a_whole_bert_are_refused_by_name(
    folder: Path, change: Callable[[dict[str, Tensor]], object], named: str
) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CapfiltError) as refused:
        started(SMALL, text=folder)
    assert named in refused.value.what
    assert str(folder) in refused.value.what


def test_another_tasks_head_is_left_out_by_its_name(folder: Path) -> None:
    weights = {**load_file(folder / "model.safetensors"), "qa_outputs.weight": torch.zeros(2, 32)}
    save_file(weights, folder / "model.safetensors")
    start = found(SMALL, text=folder)
    settled = settle(start, SMALL)
    left = load_start(start, MED(settled, len(WORDS) + 2, ALL), settled)
    assert left["qa_outputs.*"] == "serves a task that nothing here has"


# -- both


def test_where_nothing_is_named_there_is_no_start() -> None:
    assert find_start(Bundles(), SMALL) is None
    assert settle(None, SMALL) == SMALL
    assert start_vocabulary(None) is None


def test_a_start_crosses_processes_and_is_known_by_what_the_files_hold(
    vit: Any, folder: Path, tmp_path: Path
) -> None:
    start = found(NAMED, vision=as_safetensors(vit.state_dict(), tmp_path), text=folder)
    assert pickle.loads(pickle.dumps(start)) == start
    shutil.copytree(folder, tmp_path / "elsewhere")
    moved = found(NAMED, vision=tmp_path / "vit.safetensors", text=tmp_path / "elsewhere")
    assert moved.facts() == start.facts()
    assert moved.described() != start.described()
    words = (tmp_path / "elsewhere/vocab.txt").read_text()
    (tmp_path / "elsewhere/vocab.txt").write_text(words.replace("cat", "cow"))
    changes = found(NAMED, vision=tmp_path / "vit.safetensors", text=tmp_path / "elsewhere").facts()
    assert {name for name in changes if changes[name] != start.facts()[name]} == {"vocabulary"}


def test_files_that_change_after_they_were_found_are_refused(vit: Any, folder: Path, tmp_path: Path) -> None:
    file = as_safetensors(vit.state_dict(), tmp_path)
    start = found(NAMED, vision=file, text=folder)
    settled = settle(start, NAMED)
    med = MED(settled, len(WORDS) + 2, ALL)
    save_file({name: tensor + 1 for name, tensor in vit.state_dict().items()}, file)
    with pytest.raises(CapfiltError, match=r"vit\.safetensors changed while it was read"):
        load_start(start, med, settled)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in [*WORDS[:-1], "cow"]))
    with pytest.raises(CapfiltError, match="bert changed while it was read"):
        start_vocabulary(start)


def test_a_model_of_other_sizes_than_its_start_asks_for_is_a_defect(folder: Path) -> None:
    with pytest.raises(ValueError, match="settle"):
        load_start(found(SMALL, text=folder), small_med(ALL, 40), SMALL)


@pytest.mark.parametrize("part", ["vision", "text"])
def test_what_is_not_there_is_refused_with_its_mend(part: str) -> None:
    with pytest.raises(CapfiltError, match="there is no /no/such/model") as refused:
        find_start(Bundles.model_validate({part: "/no/such/model"}), SMALL)
    assert "hub id" in refused.value.fix


def test_a_file_and_an_empty_folder_are_no_bert(tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match="is a file, and a BERT is a folder"):
        find_start(Bundles(text=str(as_safetensors({"a": torch.zeros(2)}, tmp_path))), SMALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CapfiltError, match="holds no weights"):
        find_start(Bundles(text=str(tmp_path / "empty")), SMALL)


# -- the hub, by a cache laid out as it lays out its own

PROGRAM = """
import json, sys
from capfilt.models.initial import find_start
from capfilt.settings import Bundles, Model, Text, Vision
model = Model(vision=Vision(timm="test_vit"), text=Text(max_tokens=16))
for bundles in json.loads(sys.argv[1]):
    start = find_start(Bundles.model_validate(bundles), model)
    print(json.dumps([start.described(), start.facts()]))
"""


def cached(cache: Path, name: str, folder: Path, commit: str) -> None:
    """Put a folder into the hub's cache, as a download does."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(commit, encoding="utf-8")
    shutil.copytree(folder, place / "snapshots" / commit)


def test_hub_ids_are_found_in_the_cache_by_an_owner_or_none_or_timms_own_name(
    vit: Any, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "vit").mkdir()
    as_folder(vit.state_dict(), tmp_path / "vit")
    cached(tmp_path / "cache", "timm/test_vit.r160_in1k", tmp_path / "vit", "1" * 40)
    cached(tmp_path / "cache", "bert-base-uncased", folder, "2" * 40)
    asked = [{"vision": "timm"}, {"vision": "timm/test_vit.r160_in1k"}, {"text": "bert-base-uncased"}]
    done = subprocess.run(  # a process of its own: the hub's code reads the environment once
        [sys.executable, "-c", PROGRAM, json.dumps(asked)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        check=True,
        cwd=tmp_path,
    )
    here = [found(NAMED, vision=tmp_path / "vit").facts(), found(NAMED, text=folder).facts()]
    image = ["image encoder from timm/test_vit.r160_in1k, commit 111111111111", here[0]]
    text = ["text from bert-base-uncased, commit 222222222222", here[1]]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [image, image, text]
