from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from bundle_writer import packed
from safetensors.torch import load_file, save
from small_models import SMALL, WORDS, small_med, small_packed

from capfilt.canonical import canonical_json
from capfilt.errors import CapfiltError
from capfilt.models.bundle import load_bundle, pack
from capfilt.models.cards import read_calibration, read_card
from capfilt.models.vocabulary import train_vocabulary
from capfilt.settings import Vision

if TYPE_CHECKING:
    from collections.abc import Callable

    from capfilt.models.cards import Kind, Objective
    from capfilt.models.med import MED
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings import Model


def write_bundle(
    path: Path,
    vocabulary: Vocabulary,
    kind: Kind = "joint",
    objectives: tuple[Objective, ...] = ("itc", "itm", "lm"),
) -> Path:
    pack(
        path,
        kind=kind,
        model=small_med(objectives, len(vocabulary)),
        settings=SMALL,
        vocabulary=vocabulary,
        parent="p" * 64,
        data="d" * 64,
        training={"steps": 3, "loss": 0.25},
        versions={"torch": "2"},
    ).write({"rows": [{"auroc": 0.9}]}, [{"name": "itc", "value": 1.5}])
    return path


@pytest.fixture
def bundle(tmp_path: Path, vocabulary: Vocabulary) -> Path:
    return write_bundle(tmp_path / "bundle", vocabulary, "filter", ("itc", "itm"))


@pytest.fixture
def joint(tmp_path: Path, vocabulary: Vocabulary) -> Path:
    return write_bundle(tmp_path / "joint", vocabulary)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): digest(file) for file in files}


def with_tensors(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a file of tensors and let the cards name it: only what is in it is left to be found wrong."""
    weights = load_file(file)
    change(weights)
    file.write_bytes(save(weights))
    named(file)


def named(file: Path) -> None:
    """Let the card beside a file name it as it is now, and the card of the joint model that card."""
    card = file.parent / "capfilt.json"
    values = json.loads(card.read_text(encoding="utf-8"))
    if file.name == "model.safetensors":
        with_card(file.parent, {"weights": digest(file)})
    else:
        with_card(file.parent, {"files": {**values["files"], file.name: digest(file)}})
    above = file.parent.parent
    if (above / "capfilt.json").exists():
        files = json.loads((above / "capfilt.json").read_text(encoding="utf-8"))["files"]
        with_card(above, {"files": {**files, f"{card.parent.name}/capfilt.json": digest(card)}})


def with_card(path: Path, changes: dict[str, Any]) -> None:
    values = json.loads((path / "capfilt.json").read_text(encoding="utf-8"))
    (path / "capfilt.json").write_text(json.dumps({**values, **changes}), encoding="utf-8")


# -- a whole one


MADE: list[tuple[Kind, tuple[Objective, ...]]] = [
    ("captioner", ("lm",)),
    ("filter", ("itc", "itm")),
    ("filter", ("itc",)),
    ("filter", ("itm",)),
    ("joint", ("itc", "itm", "lm")),
    ("joint", ("itc", "lm")),
    ("joint", ("itc", "itm")),
]


@pytest.mark.parametrize(("kind", "objectives"), MADE, ids=str)
def test_a_bundle_reads_as_it_was_written(
    tmp_path: Path, vocabulary: Vocabulary, kind: Kind, objectives: tuple[Objective, ...]
) -> None:
    read = load_bundle(write_bundle(tmp_path / "b", vocabulary, kind, objectives))
    model = small_med(objectives, len(vocabulary))
    if "itc" in objectives:
        with torch.no_grad():
            model.temperature.fill_(0.07)
    assert read.model.objectives == objectives
    assert set(read.model.state_dict()) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.model.state_dict()[name], tensor), name
    assert all(parameter.requires_grad for parameter in read.model.parameters())
    assert read.card.model == SMALL
    assert (read.card.kind, read.card.parent, read.card.data) == (kind, "p" * 64, "d" * 64)
    assert read.card.training == {"steps": 3, "loss": 0.25}
    assert read.calibration == {"rows": [{"auroc": 0.9}]}
    texts = ["a red cat", "[SEP]"]
    assert (
        read.vocabulary.encode(texts, "cls", 9)[0].tolist() == vocabulary.encode(texts, "cls", 9)[0].tolist()
    )


def test_a_learnt_temperature_is_kept_for_the_next_training(tmp_path: Path, vocabulary: Vocabulary) -> None:
    made: list[tuple[Kind, tuple[Objective, ...]]] = [
        ("filter", ("itc", "itm")),
        ("joint", ("itc", "itm", "lm")),
    ]
    for kind, objectives in made:
        model = small_med(objectives, len(vocabulary))
        with torch.no_grad():
            model.temperature.fill_(0.125)
        small_packed(tmp_path / kind, kind, model, vocabulary).write()
        assert load_bundle(tmp_path / kind).model.temperature.item() == 0.125
    # What scores a pair does not change with it.
    first = read_card(tmp_path / "filter").weights
    with torch.no_grad():
        model = small_med(("itc", "itm"), len(vocabulary))
        model.temperature.fill_(0.25)
    small_packed(tmp_path / "filter", "filter", model, vocabulary).write()
    assert read_card(tmp_path / "filter").weights == first


def test_a_joint_model_is_two_bundles_and_what_serves_training(joint: Path, vocabulary: Vocabulary) -> None:
    parts = {name.partition("/")[0] for name in digests(joint)}
    assert parts == {
        "capfilt.json",
        "captioner",
        "filter",
        "training.safetensors",
        "calibration.json",
        "metrics.json",
    }
    whole = small_med(("itc", "itm", "lm"), len(vocabulary)).state_dict()
    for kind, objectives in (("captioner", ("lm",)), ("filter", ("itc", "itm"))):
        half = load_bundle(joint / kind)
        assert (half.card.kind, half.card.objectives) == (kind, objectives)
        assert half.card.image_encoder == read_card(joint).image_encoder
        own = small_med(objectives, len(vocabulary)).state_dict()
        assert set(half.model.state_dict()) == set(own)
        for name, tensor in half.model.state_dict().items():
            assert torch.equal(tensor, whole[name]), name


def test_the_card_names_every_file_that_numbers_depend_on(bundle: Path) -> None:
    text = (bundle / "capfilt.json").read_text(encoding="utf-8")
    values = json.loads(text)
    found = digests(bundle)
    assert values["weights"] == found["model.safetensors"]
    assert set(found) - set(values["files"]) == {
        "capfilt.json",
        "model.safetensors",
        "calibration.json",
        "metrics.json",
    }
    assert values["files"] == {name: found[name] for name in values["files"]}
    assert text == canonical_json(values) + "\n"
    assert text == json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    assert read_card(bundle).weights == values["weights"]


def test_a_joint_card_names_its_parts_and_changes_with_each(joint: Path, vocabulary: Vocabulary) -> None:
    found, card = digests(joint), read_card(joint)
    assert card.files == {
        name: found[name]
        for name in ("captioner/capfilt.json", "filter/capfilt.json", "training.safetensors")
    }
    model = small_med(("itc", "itm", "lm"), len(vocabulary))
    seen = {card.weights}
    for name in ("temperature", "itm_head.bias", "word_head.bias", "image.vit.cls_token"):
        with torch.no_grad():
            model.get_parameter(name).add_(1.0)
        seen.add(small_packed(joint, "joint", model, vocabulary).bundle.card.weights)
    assert len(seen) == 5


def test_the_image_encoders_digest_names_all_that_its_states_depend_on(vocabulary: Vocabulary) -> None:
    def encoder(model: MED, settings: Model = SMALL, kind: Kind = "filter") -> str:
        return small_packed(Path("nowhere"), kind, model, vocabulary, settings).bundle.card.image_encoder

    first = encoder(small_med(("itc", "itm"), len(vocabulary)))
    captioner = small_med(("lm",), len(vocabulary), seed=9)
    assert encoder(captioner, kind="captioner") != first
    captioner.image.load_state_dict(small_med(("itc", "itm"), len(vocabulary)).image.state_dict())
    assert encoder(captioner, kind="captioner") == first  # whatever the text part is
    for changes in (
        {"images": SMALL.images.model_copy(update={"transparency": "drop"})},
        {"images": SMALL.images.model_copy(update={"std": (0.5, 0.5, 0.5)})},
        {"vision": SMALL.vision.model_copy(update={"norm_epsilon": 1e-5})},
        {"vision": SMALL.vision.model_copy(update={"heads": 8})},
    ):
        assert encoder(captioner, SMALL.model_copy(update=changes), "captioner") != first
    with torch.no_grad():
        captioner.image.vit.blocks[1].mlp.fc2.bias[3] += 1e-6
    assert encoder(captioner, kind="captioner") != first


def test_the_same_model_gives_the_same_bytes(joint: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    assert digests(write_bundle(tmp_path / "again", vocabulary)) == digests(joint)


def test_a_bundle_without_calibration_has_none(tmp_path: Path) -> None:
    packed(tmp_path / "b", 0).write()
    assert {"calibration.json", "metrics.json"}.isdisjoint(digests(tmp_path / "b"))
    assert load_bundle(tmp_path / "b").calibration is None


def test_one_objective_of_a_bundle_may_be_asked_for(
    joint: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    for objective in ("itc", "itm", "lm"):
        load_bundle(joint, needs=objective)
    captioner = write_bundle(tmp_path / "c", vocabulary, "captioner", ("lm",))
    scorer = write_bundle(tmp_path / "f", vocabulary, "filter", ("itc", "itm"))
    with pytest.raises(CapfiltError, match="cannot score pairs: it is a captioner trained for lm") as refused:
        load_bundle(captioner, needs="itm")
    assert refused.value.fix == "give a bundle trained for itm"
    with pytest.raises(CapfiltError, match="cannot write captions: it is a filter trained for itc, itm"):
        load_bundle(scorer, needs="lm")


def test_a_kind_does_not_serve_what_another_does(tmp_path: Path, vocabulary: Vocabulary) -> None:
    for kind, objectives in (("captioner", ("itc", "lm")), ("filter", ("itm", "lm"))):
        with pytest.raises(ValueError, match=f"a {kind} does not serve"):
            small_packed(tmp_path, kind, small_med(objectives, len(vocabulary)), vocabulary)


# -- another image encoder


def not_offered(path: Path) -> None:
    """transformers must refuse the folder; it would build what it can and draw the rest at random."""
    from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

    assert {"config.json", "preprocessor_config.json", "model.safetensors"}.isdisjoint(digests(path))
    for model in (BlipForConditionalGeneration, BlipForImageTextRetrieval):
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            model.from_pretrained(path)


@pytest.mark.parametrize(
    "vision",
    [
        Vision(patch_px=8, width=32, layers=1, heads=4, stem="convolution"),
        Vision(timm="vit_tiny_patch16_224"),
    ],
    ids=["convolution", "timm"],
)
def test_an_encoder_that_transformers_lacks_keeps_its_own_names_and_is_not_offered_to_it(
    tmp_path: Path, vocabulary: Vocabulary, vision: Vision
) -> None:
    settings = SMALL.model_copy(update={"vision": vision})
    model = small_med(("lm",), len(vocabulary), settings)
    small_packed(tmp_path / "b", "captioner", model, vocabulary, settings).write()
    not_offered(tmp_path / "b")
    names = set(load_file(tmp_path / "b/capfilt.safetensors"))
    own = {n.replace("image.", "vision_model.") for n in model.state_dict() if n.startswith("image.")}
    assert own == {name for name in names if not name.startswith("text_decoder.")}
    read = load_bundle(tmp_path / "b")
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("objectives", [("itc",), ("itm",)])
def test_a_filter_without_all_heads_is_not_offered_to_transformers(
    tmp_path: Path, vocabulary: Vocabulary, objectives: tuple[Objective, ...]
) -> None:
    not_offered(write_bundle(tmp_path / "b", vocabulary, "filter", objectives))


# -- a broken one


def test_what_is_no_bundle_is_refused_with_its_mend(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "there is no such folder"), (tmp_path, "it has no capfilt.json")):
        with pytest.raises(CapfiltError, match=why) as refused:
            load_bundle(path)
        assert "capfilt train" in refused.value.fix


VOCABULARY_FILES = ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
NAMED = [
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "training.safetensors",
    *VOCABULARY_FILES,
]


@pytest.mark.parametrize("name", NAMED)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(CapfiltError, match=f"{name} cannot be read") as refused:
        load_bundle(bundle)
    assert "whole" in refused.value.fix


@pytest.mark.parametrize("name", NAMED)
def test_one_other_bit_in_a_file_is_noticed(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[-5] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(CapfiltError, match=f"{name} is not the file .* its digest differs") as refused:
        load_bundle(bundle)
    assert "copy the bundle again" in refused.value.fix


def test_one_other_bit_in_a_half_of_a_joint_model_is_noticed(joint: Path) -> None:
    for name in ("captioner/model.safetensors", "filter/vocab.txt", "filter/capfilt.json"):
        data = (joint / name).read_bytes()
        (joint / name).write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
        with pytest.raises(CapfiltError, match=f"{name} is not the file"):
            load_bundle(joint)
        (joint / name).write_bytes(data)
    load_bundle(joint)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("capfilt.json", b""),
        ("capfilt.json", b'{"format": 1'),
        ("capfilt.json", b"\xff"),
        ("calibration.json", b'{"rows": ['),
        ("calibration.json", b"\xff"),
    ],
)
def test_a_broken_file_is_named_with_its_mend(bundle: Path, name: str, content: bytes) -> None:
    (bundle / name).write_bytes(content)
    with pytest.raises(CapfiltError, match=f"{name} cannot be read") as refused:
        load_bundle(bundle)
    assert "whole" in refused.value.fix


@pytest.mark.parametrize("content", [b"", b"\x00" * 40])
def test_weights_that_are_none_are_refused_even_where_the_card_names_them(
    bundle: Path, content: bytes
) -> None:
    (bundle / "model.safetensors").write_bytes(content)
    named(bundle / "model.safetensors")
    with pytest.raises(CapfiltError, match=r"model\.safetensors cannot be read"):
        load_bundle(bundle)


def test_weights_that_do_not_fit_the_card_are_named(bundle: Path) -> None:
    file = bundle / "model.safetensors"
    with_tensors(file, lambda weights: weights.pop("itm_head.bias"))
    with pytest.raises(CapfiltError, match=r"does not fit its model; missing: itm_head.bias\n"):
        load_bundle(bundle)
    many = {f"extra.{n}": torch.zeros(1) for n in range(5)}
    with_tensors(file, lambda weights: weights.update({"itm_head.bias": torch.zeros(2), **many}))
    with pytest.raises(CapfiltError, match=r"model; surplus: extra\.0, extra\.1, extra\.2 and 2 more\n"):
        load_bundle(bundle)
    with_tensors(file, lambda weights: [weights.pop(name) for name in many])  # type: ignore[arg-type, return-value]
    load_bundle(bundle)
    with_tensors(file, lambda weights: weights.update({"itm_head.bias": torch.zeros(3)}))
    with pytest.raises(CapfiltError, match=r"of another shape: itm_head.bias"):
        load_bundle(bundle)


def test_a_training_file_without_the_temperature_is_refused(bundle: Path) -> None:
    with_tensors(bundle / "training.safetensors", lambda weights: weights.update(queue=torch.zeros(2)))
    with pytest.raises(CapfiltError, match=r"training\.safetensors does not fit its model; surplus: queue"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "name", ["vision_model.encoder.layers.1.mlp.fc1.bias", "text_decoder.bert.embeddings.LayerNorm.bias"]
)
def test_halves_that_do_not_share_what_they_must_are_refused_by_name(joint: Path, name: str) -> None:
    def change(weights: dict[str, Any]) -> None:
        weights[name][0] += 1

    with_tensors(joint / "captioner/model.safetensors", change)
    ours = {"v": "image.vit.blocks.1.mlp.fc1.bias", "t": "text.norm.bias"}[name[0]]
    with pytest.raises(CapfiltError, match=f"captioner and filter do not share {ours},"):
        load_bundle(joint)


def test_halves_of_two_models_are_refused(joint: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    other = train_vocabulary([*WORDS[1:], "other words here"], len(vocabulary))
    small_packed(tmp_path / "other", "joint", small_med(("itc", "itm", "lm"), len(other)), other).write()
    shutil.rmtree(joint / "filter")
    shutil.copytree(tmp_path / "other/filter", joint / "filter")
    named(joint / "filter/vocab.txt")
    with pytest.raises(CapfiltError, match=r"filter is no half of .*: their cards differ"):
        load_bundle(joint)


def test_a_vocabulary_of_another_bundle_is_noticed(bundle: Path) -> None:
    train_vocabulary(["other words"], 60).save(bundle)
    for name in VOCABULARY_FILES:
        named(bundle / name)
    with pytest.raises(CapfiltError, match="the model has embeddings for") as refused:
        load_bundle(bundle)
    assert "tokenizer" in refused.value.fix


def test_a_vocabulary_of_the_same_size_and_other_words_is_noticed(bundle: Path) -> None:
    words = (bundle / "vocab.txt").read_text(encoding="utf-8").split("\n")
    words[20], words[21] = words[21], words[20]
    (bundle / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    named(bundle / "vocab.txt")
    with_card(bundle, {"files": {"vocab.txt": digest(bundle / "vocab.txt")}})
    (bundle / "tokenizer.json").unlink()  # the card names it no more, and it would be read first
    with pytest.raises(CapfiltError, match="its vocabulary is not the one that"):
        load_bundle(bundle)


def test_a_card_cannot_name_a_file_elsewhere(bundle: Path) -> None:
    for name in ("../vocab.txt", "/etc/hostname", "captioner/../vocab.txt", "a/vocab.txt"):
        with_card(bundle, {"files": {name: "0" * 64}})
        with pytest.raises(CapfiltError, match="is damaged: setting files"):
            load_bundle(bundle)


def test_a_card_of_the_first_format_says_what_to_do(bundle: Path) -> None:
    with_card(bundle, {"format": 1})
    with pytest.raises(CapfiltError, match=r"format of capfilt 0\.1") as refused:
        read_card(bundle)
    assert "train the model again" in refused.value.fix


@pytest.mark.parametrize("changes", [{"format": 3}, {"format": None}])
def test_a_card_of_another_format_asks_for_another_version(bundle: Path, changes: dict[str, Any]) -> None:
    with_card(bundle, changes)
    with pytest.raises(CapfiltError, match="format that this version does not know") as refused:
        read_card(bundle)
    assert refused.value.fix == "update capfilt"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "poet"}, "kind"),
        ({"objectives": ["itc", "mlm"]}, "objectives"),
        ({"model": {"text": {"width": 50, "heads": 4}}}, "model"),
        ({"weights": 5}, "weights"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_damaged_card_is_named_with_what_is_wrong(
    bundle: Path, changes: dict[str, Any], named: str
) -> None:
    with_card(bundle, changes)
    with pytest.raises(CapfiltError, match=rf"capfilt\.json is damaged: .*{named}") as refused:
        read_card(bundle)
    assert "--set" not in refused.value.fix  # a card is no setting


def test_a_bundle_without_a_calibration_file_has_no_calibration(tmp_path: Path) -> None:
    assert read_calibration(tmp_path) is None


# -- a killed writer


def test_a_writer_killed_at_any_moment_leaves_a_whole_bundle_or_none(tmp_path: Path) -> None:
    path, program = tmp_path / "bundle", Path(__file__).with_name("bundle_writer.py")
    with subprocess.Popen(
        [sys.executable, str(program), str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        time.sleep(0.05)
        process.kill()
    seen = {load_bundle(path).card.training["seed"]} if path.exists() else set()
    packed(path, 1).write()  # what was left behind is in nobody's way
    seen.add(load_bundle(path).card.training["seed"])
    assert seen <= {0, 1}
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]
