"""`capfilt pretrain` as it is typed: what it trains, what it starts from, what it says, what it refuses."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# The drawn world of the examples, and runs with random models.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "stages"))

import scenes
import world

if TYPE_CHECKING:
    from typed_commands import Capfilt, Result

RECIPE = """\
[model]
embed = 8

[model.images]
size_px = 16

[model.vision]
patch_px = 8
width = 16
layers = 1
heads = 2
stem = "patch"

[model.text]
width = 16
layers = 1
heads = 2
feed_forward = 32
vocabulary = 120
max_tokens = 16

[pretrain]
checkpoint_every = 2
validate_every = 2
log_every = 1

[[pretrain.phases]]
itc = 1.0
itm = 1.0
lm = 1.0
steps = 4
batch_size = 8
learning_rate = 1e-3
"""
EVERYTHING = """
momentum = 0.9
queue = 21
alpha = 0.4
negatives_by = "momentum"
negatives_floor = 1e-4
accumulate = 2
decay = 0.9
warmup_steps = 2
"""
AROUND_IT = """
gradient_checkpointing = true

[pretrain.augment]
crop_least = 0.5
flip = 0.5
operations = 2
"""
ON_A_CPU = ("--device", "cpu", "--pipeline", "small", "--config", "recipe.toml")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 clean and 40 web pairs, in shards of 15; a fraction of the latter have no text."""
    folder = tmp_path_factory.mktemp("drawn")
    scenes.make(folder, seed=2, clean=40, web=40, per_shard=15)
    return folder


@pytest.fixture(scope="module")
def export(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What capfilt exports of a run that keeps every text: web and synthetic ones of one picture."""
    folder = tmp_path_factory.mktemp("exported")
    bundles = world.bundles(folder / "bundles")
    found = world.run(
        folder / "run", drawn / "web", bundles, judge={"itm": "0"}, export={"texts": "all"}, candidates=2
    )
    return found.run.export


@pytest.fixture
def pretrain(capfilt: Capfilt) -> Any:
    """Type a pre-training: `pretrain(DATA, "--clean", CLEAN, "a.b=c")`; words with = are settings."""

    def typed(data: Path, *words: object, out: str = "joint", recipe: str = RECIPE) -> Result:
        Path("recipe.toml").write_text(recipe)
        more = [part for word in words for part in (("--set", word) if "=" in str(word) else (word,))]
        return capfilt("pretrain", data, "--out", out, *ON_A_CPU, *more)

    return typed


def card(out: str = "joint") -> dict[str, Any]:
    read: dict[str, Any] = json.loads((Path(out) / "capfilt.json").read_text())
    return read


def rows(out: str = "joint") -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = json.loads((Path(out) / "metrics.json").read_text())
    return read


def weights(out: str = "joint") -> dict[str, Any]:
    from capfilt.models.bundle import load_bundle

    return dict(load_bundle(Path(out)).model.state_dict())


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }


# -- what it trains


def test_an_export_and_clean_pairs_give_a_joint_bundle(pretrain: Any, drawn: Path, export: Path) -> None:
    ended = pretrain(export, "--clean", drawn / "clean")

    assert ended.exit_code == 0, ended.stderr
    assert (card()["kind"], card()["objectives"]) == ("joint", ["itc", "itm", "lm"])
    training = card()["training"]
    names = {row["name"] for row in rows()}
    assert names >= {"itc", "itm", "lm", "learning_rate", "temperature", "negatives"}
    assert training["held_out"] > 0
    # Every picture is met once, whatever number of its texts was kept.
    assert training["pairs"] <= 80 - training["held_out"]
    assert f"joint: {training['pairs']} pairs in a pass, {training['held_out']} held out" in ended.stderr
    assert (Path("joint") / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert ended.stdout.splitlines()[-1] == (
        f"capfilt bootstrap WEB --clean {drawn / 'clean'} --init joint --out RUN"
    )
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["joint", "recipe.toml"]


def test_every_option_of_the_objective_can_be_switched_on(pretrain: Any, drawn: Path, export: Path) -> None:
    ended = pretrain(export, "--clean", drawn / "clean", "--json", recipe=RECIPE + EVERYTHING)
    plain = json.loads(ended.stdout)["weights"]
    assert ended.exit_code == 0, ended.stderr
    phase = card()["training"]["phases"][0]
    assert [phase[name] for name in ("momentum", "queue", "alpha", "accumulate")] == [0.9, 21, 0.4, 2]

    recipe = RECIPE.replace("log_every = 1\n", "log_every = 1\n" + AROUND_IT, 1) + EVERYTHING
    ended = pretrain(export, "--clean", drawn / "clean", "--json", out="varied", recipe=recipe)

    assert ended.exit_code == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert said["weights"] != plain
    assert (said["kind"], said["bundle"]) == ("joint", "varied")
    assert Path(said["curves"]).read_bytes().startswith(b"\x89PNG")
    assert card("varied")["training"]["augment"]["operations"] == 2
    assert {row["split"] for row in rows("varied")} == {"train", "validation"}


def test_gradient_checkpointing_changes_no_weight(pretrain: Any, drawn: Path) -> None:
    assert pretrain(drawn / "clean").exit_code == 0
    assert pretrain(drawn / "clean", "pretrain.gradient_checkpointing=true", out="again").exit_code == 0
    assert card("again")["weights"] == card()["weights"]


def test_what_is_done_is_not_done_again_and_another_setting_is_another_training(
    pretrain: Any, drawn: Path
) -> None:
    assert "trained before" not in pretrain(drawn / "clean").stderr
    files = digests(Path("joint"))

    again = pretrain(drawn / "clean")

    assert again.exit_code == 0
    assert "trained before" in again.stderr
    assert digests(Path("joint")) == files
    known = {card()["weights"]}
    for setting in ("seed=1", "stream.shuffle_buffer=3", "pretrain.augment.flip=0.5", "clean.held_out=0.2"):
        ended = pretrain(drawn / "clean", setting)
        assert "trained before" not in ended.stderr
        assert card()["weights"] not in known, setting
        known.add(card()["weights"])
    # These say how it is done and not what comes out.
    for setting in ("compute.decoders=2", "pretrain.checkpoint_every=1"):
        ended = pretrain(drawn / "clean", "clean.held_out=0.2", setting)
        assert "trained before" in ended.stderr


# -- what it starts from


def test_a_joint_bundle_is_trained_on(pretrain: Any, drawn: Path) -> None:
    pretrain(drawn / "clean")
    first = card()["weights"]

    ended = pretrain(drawn / "web", "--init", "joint", "--clean", drawn / "clean", out="second")

    assert ended.exit_code == 0, ended.stderr
    assert card("second")["parent"] == first
    assert card("second")["vocabulary"] == card()["vocabulary"]
    unmoved = pretrain(
        drawn / "web", "--init", "joint", "pretrain.phases.0.learning_rate=1e-12", out="unmoved"
    )
    assert unmoved.exit_code == 0, unmoved.stderr
    assert all(tensor.allclose(weights()[name], atol=1e-6) for name, tensor in weights("unmoved").items())


@pytest.fixture
def starts(tmp_path: Path) -> dict[str, Path]:
    """A ViT as timm saves it, and a BERT as transformers does."""
    import timm
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertForPreTraining

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##e", "circle"]
    torch.manual_seed(1)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
    )
    BertForPreTraining(config).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return {"vision": tmp_path / "vit.safetensors", "text": tmp_path / "bert"}


def test_a_vit_and_a_bert_are_what_a_fresh_model_starts_from(
    pretrain: Any, drawn: Path, starts: dict[str, Path]
) -> None:
    from safetensors.torch import load_file, save_file

    recipe = RECIPE.replace("size_px = 16", "size_px = 160")
    recipe = recipe.replace(recipe[recipe.index("[model.vision]") : recipe.index("[model.text]")], "")
    recipe = recipe.replace("learning_rate = 1e-3", "learning_rate = 1e-12")
    words = ("model.vision=test_vit", f"bundles.vision={starts['vision']}", f"bundles.text={starts['text']}")

    ended = pretrain(drawn / "clean", *words, "pretrain.phases.0.steps=2", recipe=recipe)

    assert ended.exit_code == 0, ended.stderr
    vit, bert = load_file(starts["vision"]), load_file(starts["text"] / "model.safetensors")
    trained = weights()
    of_vit = {f"image.{name}" for name in vit if not name.startswith("head.")}
    for name in of_vit:
        [own] = [one for one in trained if one.startswith("image.") and one.endswith(name[len("image.") :])]
        assert trained[own].allclose(vit[name.removeprefix("image.")], atol=1e-6), name
    assert len(of_vit) > 50
    embeddings = bert["bert.embeddings.word_embeddings.weight"]
    assert trained["text.words.weight"][: len(embeddings)].allclose(embeddings, atol=1e-6)
    assert card()["vocabulary"] == len(embeddings) + 2  # BERT's, with [DEC] and [ENC]
    assert set(card()["training"]["start"]) == {"vision", "text", "vocabulary"}
    # Another start is another training, though every setting reads the same.
    first = card()["training"]["fingerprint"]
    save_file({name: tensor + 1 for name, tensor in vit.items()}, starts["vision"])
    pretrain(drawn / "clean", *words, "pretrain.phases.0.steps=2", recipe=recipe)
    assert card()["training"]["fingerprint"] != first


# -- what it says


def test_samples_and_pictures_that_cannot_be_used_are_told(
    pretrain: Any, drawn: Path, tmp_path: Path
) -> None:
    good = [
        (f"{n:02}.{extension}", data)
        for n in range(14)
        for extension, data in (("png", scenes_png(n)), ("txt", f"a picture of number {n}"))
    ]
    odd = [("a.txt", "no picture"), ("b.png", scenes_png(90)), ("c.png", b"no picture"), ("c.txt", "a cat")]
    world.write_tar(tmp_path / "odd.tar", [*good, *odd])

    ended = pretrain(tmp_path / "odd.tar", "--clean", drawn / "clean", "stream.clean=0")

    assert ended.exit_code == 0, ended.stderr
    # 4 steps of 8 are two passes of 15 pairs and two pairs of a third.
    told = "joint: 15 pairs in a pass, 5 held out, refused 1 missing_image, 1 missing_text"
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("joint: ")]
    assert line.startswith(told)
    assert line.removeprefix(told) in (
        "; met pictures that cannot be used, 2 unreadable_image",
        "; met pictures that cannot be used, 3 unreadable_image",
    )


def scenes_png(number: int) -> bytes:
    import random

    rng = random.Random(number)
    return scenes.picture(scenes.draw_scene(rng, unseen=False), rng)


def test_what_looks_wrong_is_told_while_it_trains(pretrain: Any, drawn: Path) -> None:
    still = ("pretrain.phases.0.learning_rate=1e-9", "pretrain.phases.0.steps=12", "clean.held_out=0.3")

    ended = pretrain(drawn / "web", "--clean", drawn / "clean", *still)

    lines = ended.stderr.splitlines()
    warned = [n for n, line in enumerate(lines) if "training the joint: " in line]
    [done] = [n for n, line in enumerate(lines) if line.startswith("pretrain: done")]
    assert warned, lines
    assert max(warned) < done
    assert any("--set pretrain.phases.0." in lines[n] for n in warned)


def test_nothing_is_said_when_asked_to_be_quiet(pretrain: Any, drawn: Path) -> None:
    assert pretrain(drawn / "clean", "--quiet").stderr == ""


# -- what it refuses


def refused(ended: Result, what: str, fix: str) -> None:
    assert ended.exit_code == 2
    lines = ended.stderr.strip().splitlines()
    assert what in lines[-2], lines
    assert lines[-1].startswith("  fix: ")
    assert fix in lines[-1]
    left = {path.name for path in Path.cwd().iterdir()} - {"recipe.toml", "joint", "vit.safetensors", "bert"}
    assert not left, "it leaves something behind"


def test_texts_that_are_never_drawn_are_nothing_to_train_on(pretrain: Any, drawn: Path) -> None:
    ended = pretrain(
        drawn / "web", "--clean", drawn / "clean", "stream.clean=0", "stream.web=0", "stream.synthetic=0"
    )
    refused(ended, "the shards hold 0 pairs to train on", "weights above 0 for their texts")
    assert not Path("joint").exists()


def test_a_hub_id_that_is_not_there_is_refused(pretrain: Any, drawn: Path) -> None:
    ended = pretrain(drawn / "clean", "bundles.text=nobody/no-such-bert")
    refused(ended, "nobody/no-such-bert", "")
    assert "hub" in ended.stderr


def test_a_folder_of_other_things_is_refused_and_left_alone(pretrain: Any, drawn: Path) -> None:
    Path("joint").mkdir()
    Path("joint/thesis.tex").write_text("mine")
    refused(pretrain(drawn / "clean"), "no joint can be written", "a new or an empty folder")
    assert Path("joint/thesis.tex").read_text() == "mine"


def test_a_pipeline_without_a_pre_training_is_told(capfilt: Capfilt, drawn: Path) -> None:
    ended = capfilt("pretrain", drawn / "clean", "--out", "joint", "--pipeline", "blip_base")
    refused(
        ended, "pipeline blip_base says nothing of a pre-training", "--pipeline small or pretrain_blip_base"
    )


def test_data_that_is_not_there_is_refused(pretrain: Any) -> None:
    assert pretrain(Path("nowhere")).exit_code == 2


def test_a_batch_that_its_processes_cannot_share_is_refused(
    pretrain: Any, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    ended = pretrain(drawn / "clean", "compute.processes=3")
    refused(ended, "a batch of 8 pairs cannot be shared out to 3 processes", "multiple of 3")


# -- in how many processes


def test_several_processes_are_started_by_torchrun_and_the_command_is_told(
    pretrain: Any, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ended = pretrain(drawn / "clean", "compute.processes=2")
    refused(
        ended,
        "compute.processes: 2 processes are asked for, and 1 was launched",
        f"torchrun --standalone --nproc_per_node 2 -m capfilt pretrain {drawn / 'clean'} --out joint "
        "--device cpu --pipeline small --config recipe.toml --set compute.processes=2",
    )


def test_processes_that_nobody_asked_for_are_refused(
    pretrain: Any, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun starts each of two: `accelerate launch` was seen to start one, without a word."""
    for rank in ("0", "1"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        ended = pretrain(drawn / "clean")
        refused(ended, "1 process is asked for, and 2 were launched", "--set compute.processes=2")
