"""What is told of checkpoints of every family, and what becomes of them as bundles."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import world
from qformer_folders import prompted_folder, qformer_folder
from small_qformer import SMALL_BLIP2

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "backends"))

import small_folders
from chat_server import VLLM, chat_server
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from capfilt.errors import CapfiltError
from capfilt.models.cards import CARD_FILE, read_card
from capfilt.models.structures import structure
from capfilt.settings import Blip2, Language, QFormer, Vision
from capfilt.stages.checkpoint import Checkpoint, check_checkpoint, convert_checkpoint
from capfilt.stages.given import described

if TYPE_CHECKING:
    from capfilt.models.cards import Card

OWN = """
SCORES = ("itm",)
def filter(device, precision): ...
"""
BOTH = OWN + "def captioner(device, precision): ...\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of BLIP-2 and InstructBLIP, and what other software runs."""
    folder = tmp_path_factory.mktemp("models")
    qformer_folder(folder / "stage1", "joint", ("itc", "itm", "lm"))
    stem = SMALL_BLIP2.model_copy(update={"vision": Vision(patch_px=8, width=32, layers=1, heads=2)})
    stem = stem.model_copy(update={"vision": stem.vision.model_copy(update={"stem": "convolution"})})
    qformer_folder(folder / "stem", "filter", ("itc", "itm"), settings=stem)
    qformer_folder(folder / "itc", "filter", ("itc",))
    prompted_folder("opt", folder / "opt")
    prompted_folder("t5", folder / "flan")
    prompted_folder("llama", folder / "vicuna", "instructblip")
    small_folders.clip(folder / "clip")
    small_folders.llava(folder / "llava")
    (folder / "own.py").write_text(OWN)
    (folder / "both.py").write_text(BOTH)
    return folder


def check(source: Path | str, **more: Any) -> dict[str, Any]:
    found = check_checkpoint(Checkpoint(str(source), "nowhere", **more), "cpu", world.nobody)
    return dict(json.loads(json.dumps(found)))  # it goes into JSON as it is


def convert(source: Path | str, out: Path, **more: Any) -> Card:
    return convert_checkpoint((Checkpoint(str(source), "nowhere", **more), out), "cpu", world.nobody)


def theirs(bundle: Path, to: Path) -> Path:
    """A folder of transformers, as others publish it: the bundle's without a card."""
    shutil.copytree(bundle, to)
    (to / CARD_FILE).unlink()
    (to / "training.safetensors").unlink(missing_ok=True)
    return to


# -- BLIP-2 and InstructBLIP


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_stage_1_is_told_and_computes_what_transformers_computes(
    models: Path, tmp_path: Path, whose: str
) -> None:
    folder = models / "stage1" if whose == "ours" else theirs(models / "stage1", tmp_path / "theirs")
    found = check(folder)
    assert (found["family"], found["format"]) == ("blip2", "bundle" if whose == "ours" else "transformers")
    kind = "joint" if whose == "ours" else "filter"
    assert found["transformers"] == {kind: "Blip2ForImageTextRetrieval"}
    parity = found["parity"][kind]
    assert parity["holds"], parity
    assert set(parity["differences"]) == {"image_states", "itc", "itm_logits"}
    assert all(0 < value < 1e-4 for value in parity["differences"].values())
    assert (parity["tokens_are_equal"], parity["captions"], parity["not_loaded"]) == (True, None, [])
    built = found["structure"]
    assert (built["queries"], built["qformer_width"], built["qformer_layers"]) == (3, 48, 3)
    assert (built["image_width"], built["language_model"], built["name"]) == (32, None, "other")


@pytest.mark.parametrize("whose", ["ours", "theirs"])
@pytest.mark.parametrize(
    ("name", "architecture", "language"),
    [
        ("opt", "Blip2ForConditionalGeneration", "opt"),
        ("flan", "Blip2ForConditionalGeneration", "t5"),
        ("vicuna", "InstructBlipForConditionalGeneration", "llama"),
    ],
)
def test_a_captioner_is_told_and_writes_what_transformers_writes(
    models: Path, tmp_path: Path, name: str, architecture: str, language: str, whose: str
) -> None:
    folder = models / name if whose == "ours" else theirs(models / name, tmp_path / "theirs")
    found = check(folder)
    assert found["transformers"] == {"captioner": architecture}
    parity = found["parity"]["captioner"]
    assert parity["holds"], parity
    assert set(parity["differences"]) == {"image_states", "first_token_logits"}
    assert parity["captions"][0] == parity["captions"][1] != ""
    assert found["structure"]["language_model"]["type"] == language
    assert found["structure"]["language_model"]["width"] == 32
    if whose == "theirs":
        assert found["origin"]["source"] == str(folder)
        assert found["conventions"]["prompt"] == (
            "Write a short description of the image." if name == "vicuna" else ""
        )


@pytest.mark.parametrize(
    ("name", "weight", "seen"),
    [
        ("stage1", "itm_head.weight", "itm_logits"),
        ("stage1", "vision_projection.weight", "itc"),
        ("opt", "language_projection.weight", "first_token_logits"),
        ("flan", "vision_model.embeddings.position_embedding", "image_states"),
    ],
)
def test_a_weight_that_transformers_reads_otherwise_is_seen(
    models: Path, tmp_path: Path, name: str, weight: str, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    from capfilt.evaluation.qformer_parity import architecture_of

    changed = theirs(models / name, tmp_path / "changed")
    tensors = load_file(changed / "model.safetensors")
    tensors[weight] = tensors[weight] + 0.01 * torch.randn_like(tensors[weight])
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})
    loaded_by = getattr(transformers, architecture_of(read_card(models / name)))
    load = loaded_by.from_pretrained
    monkeypatch.setattr(loaded_by, "from_pretrained", lambda _, **how: load(changed, **how))
    [parity] = check(models / name)["parity"].values()
    assert not parity["holds"]
    assert parity["differences"][seen] > parity["within"]


@pytest.mark.parametrize("folder", ["", "qformer_tokenizer"])
def test_a_tokenizer_that_reads_otherwise_there_is_seen(models: Path, tmp_path: Path, folder: str) -> None:
    from capfilt.evaluation.qformer_parity import _tokens_are_equal
    from capfilt.models.qformer_bundle import load_qformer_bundle

    bundle: Any = load_qformer_bundle(models / "vicuna")
    assert _tokens_are_equal(bundle, models / "vicuna")
    there = theirs(models / "vicuna", tmp_path / "there")
    if folder:
        shutil.rmtree(there / folder)
    AutoTokenizer.from_pretrained(models / "opt").save_pretrained(there / folder)
    assert not _tokens_are_equal(bundle, there)


def test_what_transformers_cannot_build_says_why(models: Path) -> None:
    found = check(models / "stem")
    assert (found["transformers"], found["parity"]) == ({}, {})
    assert "convolution stem, and transformers' BLIP-2 has none" in found["not_in_transformers"]
    assert "it serves itc alone" in check(models / "itc")["not_in_transformers"]


def test_a_folder_of_transformers_becomes_a_bundle_that_computes_the_same(
    models: Path, tmp_path: Path
) -> None:
    for name in ("stage1", "vicuna"):
        folder = theirs(models / name, tmp_path / f"{name} theirs")
        card = convert(folder, tmp_path / name)
        assert card == read_card(tmp_path / name)
        before, after = (load_file(path / "model.safetensors") for path in (models / name, tmp_path / name))
        assert all(torch.equal(before[one], after[one]) for one in before)
        assert f"{card.kind} out of a transformers checkpoint" in described(card, str(folder))
        assert check(tmp_path / name)["parity"][card.kind]["holds"]
    with pytest.raises(CapfiltError, match="is a filter"):
        convert(tmp_path / "stage1 theirs", tmp_path / "no", role="captioner")
    with pytest.raises(CapfiltError, match="--size-px is for BLIP alone"):
        convert(tmp_path / "stage1 theirs", tmp_path / "no", size_px=32)
    with pytest.raises(CapfiltError, match="says itself how many attention heads"):
        check(tmp_path / "stage1 theirs", heads=(4, 4))
    assert not (tmp_path / "no").exists()


def test_a_bundle_is_converted_to_itself_with_its_calibration(models: Path, tmp_path: Path) -> None:
    for name in ("stage1", "vicuna"):
        source = shutil.copytree(models / name, tmp_path / f"{name} before")
        (source / "calibration.json").write_text('{"rows": [], "values": {}}')
        convert(source, tmp_path / name)
        files = {f.relative_to(source): f.read_bytes() for f in source.rglob("*") if f.is_file()}
        made = tmp_path / name
        assert files == {f.relative_to(made): f.read_bytes() for f in made.rglob("*") if f.is_file()}


# -- what other software runs


def test_what_other_software_runs_is_told_by_its_backend(models: Path, tmp_path: Path) -> None:
    for name, form, family, roles, objectives in (
        ("clip", "transformers", "dual_encoder", ["filter"], ["itc"]),
        ("llava", "transformers", "chat", ["captioner"], ["lm"]),
        ("own.py", "python", "python", ["filter"], ["itm"]),
        ("both.py", "python", "python", ["captioner", "filter"], ["lm"]),
    ):
        found = check(models / name)
        assert (found["format"], found["family"]) == (form, family)
        assert (found["roles"], found["objectives"]) == (roles, objectives)
        assert (found["structure"], found["transformers"], found["parity"]) == (None, {}, {})
        if len(roles) == 1:
            card = convert(models / name, tmp_path / name)
            again = check(tmp_path / name)
            assert (again["format"], again["family"], again["roles"]) == ("bundle", family, roles)
            assert again["weights"] == card.weights == found["weights"]
            assert described(card, "it") == f"it: {roles[0]}, run by {family}"


def test_a_server_is_told_by_the_model_it_serves(tmp_path: Path) -> None:
    with chat_server() as server:
        found = check(server.url)
        card = convert(server.url, tmp_path / "bundle")
        again = check(tmp_path / "bundle")
    assert (found["format"], found["family"], found["roles"]) == ("server", "server", ["captioner"])
    assert found["options"]["model"] == VLLM["id"]
    assert found["options"]["url"] == server.url
    assert found["weights"] == card.weights == again["weights"]
    assert [file.name for file in (tmp_path / "bundle").iterdir()] == [CARD_FILE]


def test_a_file_that_can_be_both_is_asked_which(models: Path, tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match="captioner and a filter") as refused:
        convert(models / "both.py", tmp_path / "bundle")
    assert refused.value.fix == "say which: --role captioner or --role filter"
    assert convert(models / "both.py", tmp_path / "bundle", role="filter").kind == "filter"


def test_a_damaged_bundle_of_other_software_is_not_told_as_a_whole_one(models: Path, tmp_path: Path) -> None:
    convert(models / "clip", tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").write_text("{}")
    with pytest.raises(CapfiltError, match=r"tokenizer\.json is not the file"):
        check(tmp_path / "clip")


# -- sizes


def test_the_released_structure_of_blip_2_is_known() -> None:
    vit = Vision(width=1408, layers=39, heads=16, patch_px=14, mlp_ratio=6144 / 1408)
    config = {"model_type": "t5", "d_model": 2048, "num_layers": 24, "vocab_size": 32128}
    built = structure(Blip2(vision=vit, language=Language(config=config)))
    assert (built["name"], built["size_px"]) == ("ViT-g", 224)
    assert built["language_model"] == {"type": "t5", "width": 2048, "layers": 24, "entries": 32128}
    assert structure(Blip2(vision=vit, qformer=QFormer(queries=64)))["name"] == "other"
    clip = {"model_type": "clip", "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024}}
    built = structure(Blip2(vision_config=clip))
    assert (built["image_encoder"], built["image_width"], built["image_layers"]) == (
        "clip_vision_model",
        1024,
        None,
    )
    assert structure(Blip2(vision=Vision(timm="vit_tiny_patch16_224")))["image_encoder"] == (
        "vit_tiny_patch16_224"
    )
