from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "backends"))
import small_folders
from qformer_folders import prompted_folder
from small_models import SMALL, WORDS, small_med, small_packed
from small_qformer import small_qformer
from theirs import transformers_folder

from capfilt.models.bundle import load_bundle
from capfilt.models.cards import read_card
from capfilt.models.checkpoints.lavis_names import LavisNaming
from capfilt.models.checkpoints.names import Naming
from capfilt.models.med import MED
from capfilt.models.qformer_bundle import load_qformer_bundle
from capfilt.models.structures import structure
from capfilt.models.vocabulary import Vocabulary, train_vocabulary
from capfilt.settings import Model, Vision

if TYPE_CHECKING:
    from typed_commands import Capfilt


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return train_vocabulary(WORDS, 160)


@pytest.fixture(scope="module")
def models(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints: theirs, ours, one that transformers cannot build, and a .pth."""
    folder = tmp_path_factory.mktemp("models")
    transformers_folder(folder / "theirs", "BlipForImageTextRetrieval", vocabulary)
    joint = small_med(["itc", "itm", "lm"], len(vocabulary))
    small_packed(folder / "joint", "joint", joint, vocabulary).write()
    stem = SMALL.model_copy(update={"vision": SMALL.vision.model_copy(update={"stem": "convolution"})})
    small_packed(
        folder / "stem", "captioner", small_med(["lm"], len(vocabulary), stem), vocabulary, stem
    ).write()
    weights = MED(SMALL, len(vocabulary), ["itc", "itm"]).state_dict()
    weights.pop("temperature")
    odd = {"visual_encoder_m.cls_token": torch.zeros(1), "temp": torch.tensor(0.05)}
    torch.save({"model": Naming("filter", "released").write(weights) | odd}, folder / "matcher.pth")
    (folder / "words").mkdir()
    vocabulary.save(folder / "words")
    return folder


def told(ended: Any) -> dict[str, Any]:
    assert ended.exit_code == 0, ended.stderr
    value: dict[str, Any] = json.loads(ended.stdout)
    return value


def test_a_checkpoint_of_transformers_is_told_with_its_class_and_its_parity(
    capfilt: Capfilt, models: Path
) -> None:
    found = told(capfilt("models", "check", models / "theirs", "--json"))

    assert (found["format"], found["kind"], found["objectives"]) == ("transformers", "filter", ["itc", "itm"])
    assert found["transformers"] == {"filter": "BlipForImageTextRetrieval"}
    assert found["parity"]["filter"]["holds"] is True
    assert max(found["parity"]["filter"]["differences"].values()) < 1e-5
    assert found["conventions"]["match_token"] == "cls"
    assert found["origin"]["source"] == str(models / "theirs")
    shown = capfilt("models", "check", models / "theirs")
    assert "parity of the filter: largest differences image_states" in shown.stdout
    assert shown.stdout.splitlines()[-1] == f"capfilt score WEB --filter {models / 'theirs'} --out RUN"


def test_a_joint_bundle_is_told_half_by_half(capfilt: Capfilt, models: Path) -> None:
    found = told(capfilt("models", "check", models / "joint", "--json"))

    assert (found["format"], found["kind"]) == ("bundle", "joint")
    assert found["weights"] == read_card(models / "joint").weights
    assert found["transformers"] == {
        "captioner": "BlipForConditionalGeneration",
        "filter": "BlipForImageTextRetrieval",
    }
    assert [found["parity"][kind]["holds"] for kind in ("captioner", "filter")] == [True, True]
    assert found["structure"]["name"] == "other"


def test_what_transformers_cannot_build_is_never_offered_to_it(capfilt: Capfilt, models: Path) -> None:
    found = told(capfilt("models", "check", models / "stem", "--json"))

    assert (found["transformers"], found["parity"]) == ({}, {})
    assert "convolution stem" in found["not_in_transformers"]
    assert "transformers cannot load it" in capfilt("models", "check", models / "stem").stdout


def test_a_pth_is_told_with_what_is_not_read_and_the_way_to_a_folder(capfilt: Capfilt, models: Path) -> None:
    words = ["models", "check", models / "matcher.pth", "--vocabulary", models / "words", "--heads", "4,4"]
    found = told(capfilt(*words, "--json"))

    assert (found["format"], found["kind"], found["transformers"]) == ("pth", "filter", {})
    assert found["origin"]["left_out"] == {"visual_encoder_m.*": "momentum copy of the image encoder"}
    assert found["conventions"]["clean_up"] == "blip"
    given = f"--vocabulary {models / 'words'} --heads 4,4"
    assert found["next_command"] == f"capfilt models convert {models / 'matcher.pth'} {given} --out BUNDLE"
    shown = capfilt(*words).stdout
    assert "not read: visual_encoder_m.*: momentum copy of the image encoder" in shown


def test_a_pth_of_lavis_is_told_and_converted_with_the_image_encoder_that_it_lacks(
    capfilt: Capfilt, models: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    own = small_qformer(("itc", "itm", "lm"), len(vocabulary))
    state = LavisNaming("").write(own.state_dict())
    frozen = {name: tensor for name, tensor in state.items() if name.startswith("visual_encoder.")}
    torch.save(
        {name.removeprefix("visual_encoder."): one for name, one in frozen.items()}, tmp_path / "eva.pth"
    )
    torch.save({"model": {n: t for n, t in state.items() if n not in frozen}}, tmp_path / "blip2.pth")
    words = ["--vocabulary", models / "words", "--heads", "4,4"]
    alone = capfilt("models", "check", "blip2.pth", *words)
    assert alone.exit_code == 2
    assert "--vision FOLDER --out BUNDLE" in alone.stderr
    words += ["--vision", "eva.pth"]
    found = told(capfilt("models", "check", "blip2.pth", *words, "--json"))
    assert (found["format"], found["family"], found["kind"]) == ("pth", "blip2", "joint")
    typed = " ".join(map(str, words))
    assert found["next_command"] == f"capfilt models convert blip2.pth {typed} --out BUNDLE"
    made = told(capfilt("models", "convert", "blip2.pth", *words, "--out", "bundle", "--json"))
    assert made["weights"] == found["weights"]
    start = "--init bundle --pipeline blip2_opt --set bundles.language=MODEL"
    assert made["next_command"] == f"capfilt bootstrap WEB --clean CLEAN {start} --out RUN"
    bundle = load_qformer_bundle(tmp_path / "bundle").model.state_dict()
    for name, tensor in own.state_dict().items():
        if name.endswith("self_attn.qkv.bias"):
            tensor[32:64] = 0  # LAVIS's ViT has none on the keys
        assert torch.equal(bundle[name], tensor), name


def test_a_pth_is_converted_to_a_folder_that_transformers_computes_alike(
    capfilt: Capfilt, models: Path, tmp_path: Path
) -> None:
    words = ["--vocabulary", models / "words", "--heads", "4,4"]
    made = told(
        capfilt("models", "convert", models / "matcher.pth", "--out", tmp_path / "b", *words, "--json")
    )

    card = load_bundle(tmp_path / "b").card
    assert (made["kind"], made["weights"], made["fresh"]) == ("filter", card.weights, [])
    found = told(capfilt("models", "check", tmp_path / "b", "--json"))
    assert found["parity"]["filter"]["holds"] is True
    assert found["conventions"]["prompt"] == "a picture of "


def test_one_half_and_another_side_can_be_asked_for(capfilt: Capfilt, models: Path, tmp_path: Path) -> None:
    made = capfilt("models", "convert", models / "theirs", "--out", tmp_path / "b", "--size-px", 48)
    assert made.exit_code == 0
    assert "interpolated from 32 px" in made.stdout
    card = read_card(tmp_path / "b")
    assert (card.model.images.size_px, card.resized_from_px) == (48, 32)
    refused = capfilt("models", "convert", models / "theirs", "--out", tmp_path / "c", "--role", "captioner")
    assert refused.exit_code == 2
    assert "is a filter and cannot write captions" in refused.stderr
    assert not (tmp_path / "c").exists()


def test_a_bundle_of_ours_is_converted_to_itself(capfilt: Capfilt, models: Path, tmp_path: Path) -> None:
    assert capfilt("models", "convert", models / "joint", "--out", tmp_path / "b").exit_code == 0
    names = {path.relative_to(models / "joint") for path in (models / "joint").rglob("*") if path.is_file()}
    copied = {path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*") if path.is_file()}
    assert copied == names
    assert all((tmp_path / "b" / n).read_bytes() == (models / "joint" / n).read_bytes() for n in names)


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (["check", "nowhere"], "there is no nowhere", "a hub id such as NAME/MODEL"),
        (["check", "joint", "--heads", "12"], "--heads 12 is not two numbers", "--heads 12,12"),
        (["convert", "joint", "--out", "stem"], "stem is there already", "a new or an empty folder"),
        (["check", "matcher.pth", "--vocabulary", "words"], "attention heads", "--heads V,T"),
    ],
)
def test_what_is_wrong_is_two_lines_with_the_mend(
    capfilt: Capfilt, models: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], what: str, fix: str
) -> None:
    monkeypatch.chdir(models)
    ended = capfilt("models", *words)
    assert ended.exit_code == 2
    told, mend = ended.stderr.splitlines()
    assert what in told
    assert fix in mend


def test_weights_that_transformers_reads_otherwise_end_with_1(
    capfilt: Capfilt, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """A configuration that says less than it means: only transformers believes what follows from it."""
    small_packed(tmp_path / "b", "filter", small_med(["itc", "itm"], len(vocabulary)), vocabulary).write()
    config = json.loads((tmp_path / "b/config.json").read_text())
    config["text_config"]["num_attention_heads"] = 2
    (tmp_path / "b/config.json").write_text(json.dumps(config))
    card = json.loads((tmp_path / "b/capfilt.json").read_text())
    card["files"]["config.json"] = hashlib.sha256((tmp_path / "b/config.json").read_bytes()).hexdigest()
    (tmp_path / "b/capfilt.json").write_text(json.dumps(card))

    ended = capfilt("models", "check", tmp_path / "b")

    assert ended.exit_code == 1
    assert "transformers computes something else of its filter" in ended.stderr
    assert "itm_logits" in ended.stdout


def test_the_released_structures_are_known_by_name() -> None:
    assert structure(Model())["name"] == "base"
    large = Model(vision=Vision(width=1024, layers=24, heads=16))
    assert structure(large)["name"] == "large"
    assert structure(Model(vision=Vision(timm="vit_base_patch16_384")))["name"] == "other"
    assert structure(Model(vision=Vision(patch_px=32)))["name"] == "other"


def test_models_of_other_families_are_told_in_their_own_words(capfilt: Capfilt, tmp_path: Path) -> None:
    prompted_folder("t5", tmp_path / "flan", "instructblip")
    small_folders.clip(tmp_path / "clip")

    told = capfilt("models", "check", tmp_path / "flan").stdout
    for said in (
        "captioner (lm), a bundle of capfilt",
        "structure: InstructBLIP, other, 16 px, image width 32, 2 layers, 3 queries, Q-Former width 32",
        "language model: t5, width 32, 2 layers",
        "transformers: captioner by InstructBlipForConditionalGeneration",
        "parity of the captioner: largest differences image_states",
        ", the same",
    ):
        assert said in told
    assert told.splitlines()[-1] == f"capfilt recaption WEB --captioner {tmp_path / 'flan'} --out RUN"

    told = capfilt("models", "check", tmp_path / "clip").stdout
    assert "filter (itc), a transformers folder" in told
    assert "run by: the backend dual_encoder" in told
    assert "nothing is converted" in told
    assert told.splitlines()[-1] == f"capfilt score WEB --filter {tmp_path / 'clip'} --out RUN"
    made = capfilt("models", "convert", tmp_path / "clip", "--out", tmp_path / "bundle")
    assert made.exit_code == 0
    assert (tmp_path / "bundle" / "model.safetensors").read_bytes() == (
        tmp_path / "clip" / "model.safetensors"
    ).read_bytes()
