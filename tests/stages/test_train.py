from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import scenes
import torch
import world

from capfilt.data.sources import find_shards
from capfilt.errors import CapfiltError, RunFailedError
from capfilt.models.bundle import load_bundle
from capfilt.models.cards import read_calibration, read_card
from capfilt.settings import Bootstrap, Clean, Input, Phase, Training
from capfilt.stages.train import models_to_train
from capfilt.stages.training_job import TrainingJob, train_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

JOINT = Training(phases=(Phase(itc=1.0, itm=1.0, lm=1.0, steps=6, batch_size=8, learning_rate=3e-3),))
LM = Training(phases=(Phase(lm=1.0, steps=4, batch_size=8, learning_rate=3e-3),), checkpoint_every=2)
MATCHING = Training(phases=(Phase(itc=1.0, itm=1.0, steps=4, batch_size=8, learning_rate=3e-3),))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 clean and 12 web pairs."""
    folder = tmp_path_factory.mktemp("drawn")
    scenes.make(folder, seed=1, clean=40, web=12)
    return folder


@pytest.fixture(scope="module")
def joint(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint model of a few steps."""
    out = tmp_path_factory.mktemp("joint") / "bundle"
    train_model(_job(drawn, out, kind="joint", training=JOINT), "cpu", world.nobody)
    return out


def _job(drawn: Path, out: Path, **changes: Any) -> TrainingJob:
    values: dict[str, Any] = {
        "kind": "captioner",
        "out": out,
        "checkpoint": out.parent / f"{out.name}.pt",
        "model": world.TINY,
        "training": LM,
        "clean_shards": tuple(find_shards(drawn / "clean")),
        "web_shards": (),
        "init": None,
        "clean": Clean(held_out=0.2),
        "input": Input(),
        "seed": 0,
        "precision": "fp32",
        "threads": 1,
    }
    return TrainingJob(**{**values, **changes})


def _weights(bundle: Path) -> dict[str, Tensor]:
    return load_bundle(bundle).model.state_dict()


def _parts(bundle: Path) -> dict[str, bool]:
    names = " ".join(_weights(bundle))
    patterns = {
        "encoder": r"attention\.encoder",
        "decoder": r"attention\.decoder",
        "projections": "_projection",
        "temperature": "temperature",
        "itm_head": "itm_head",
        "word_head": "word_head",
    }
    return {part: bool(re.search(pattern, names)) for part, pattern in patterns.items()}


# -- which parts a bundle has


@pytest.mark.parametrize("from_joint", [False, True])
def test_a_captioner_holds_no_part_of_a_filter_and_a_filter_none_of_a_captioner(
    drawn: Path, joint: Path, tmp_path: Path, from_joint: bool
) -> None:
    init = joint if from_joint else None
    captioner, matcher = tmp_path / "captioner", tmp_path / "filter"

    train_model(_job(drawn, captioner, init=init), "cpu", world.nobody)
    train_model(_job(drawn, matcher, kind="filter", training=MATCHING, init=init), "cpu", world.nobody)

    reads = {"encoder", "projections", "temperature", "itm_head"}
    writes = {"decoder", "word_head"}
    assert {part for part, there in _parts(captioner).items() if there} == writes
    assert {part for part, there in _parts(matcher).items() if there} == reads
    assert {part for part, there in _parts(joint).items() if there} == reads | writes
    for bundle in (captioner, matcher):
        card = read_card(bundle)
        assert card.parent == (read_card(joint).weights if from_joint else None)
        assert load_bundle(bundle).card == card


def test_a_loss_that_only_helped_the_training_stays_behind(drawn: Path, tmp_path: Path) -> None:
    train_model(_job(drawn, tmp_path / "f", kind="filter", training=JOINT), "cpu", world.nobody)

    assert read_card(tmp_path / "f").objectives == ("itc", "itm")
    assert not _parts(tmp_path / "f")["word_head"]
    metrics = json.loads((tmp_path / "f" / "metrics.json").read_text())
    assert "lm" in {row["name"] for row in metrics}


def test_what_starts_from_a_joint_model_takes_over_its_weights_and_words(
    drawn: Path, joint: Path, tmp_path: Path
) -> None:
    """With a learning rate of next to nothing, what was taken over is what comes out."""
    still = Training(phases=(Phase(lm=1.0, steps=1, learning_rate=1e-12, batch_size=8),))
    train_model(_job(drawn, tmp_path / "c", init=joint, training=still), "cpu", world.nobody)

    mine, theirs = _weights(tmp_path / "c"), _weights(joint)
    assert mine.keys() < theirs.keys()
    for name, weights in mine.items():
        torch.testing.assert_close(weights, theirs[name], atol=1e-6, rtol=1e-6)
    assert (tmp_path / "c/vocab.txt").read_bytes() == (joint / "captioner/vocab.txt").read_bytes()


def test_the_size_of_the_model_comes_with_what_it_starts_from(
    drawn: Path, joint: Path, tmp_path: Path
) -> None:
    other = world.TINY.model_copy(update={"embed": 99})

    train_model(_job(drawn, tmp_path / "c", init=joint, model=other), "cpu", world.nobody)

    assert read_card(tmp_path / "c").model == world.TINY


# -- done once, and the same every time


def test_the_same_training_gives_the_same_bytes_and_is_not_done_twice(drawn: Path, tmp_path: Path) -> None:
    first = train_model(_job(drawn, tmp_path / "a"), "cpu", world.nobody)
    torch.manual_seed(77)
    second = train_model(_job(drawn, tmp_path / "b"), "cpu", world.nobody)
    said: list[int] = []
    again = train_model(_job(drawn, tmp_path / "a"), "cpu", lambda done, _: said.append(done))
    seeded = train_model(_job(drawn, tmp_path / "c", seed=1), "cpu", world.nobody)

    assert (first.is_new, second.is_new, again.is_new) == (True, True, False)
    assert first.weights == second.weights == again.weights != seeded.weights
    assert said == []
    files = world.digests(tmp_path / "a")
    files.pop("metrics.json")  # it holds times
    assert files.items() <= world.digests(tmp_path / "b").items()
    assert not (tmp_path / "a.pt").exists(), "a checkpoint of a training that is done"


def test_another_training_replaces_the_bundle(drawn: Path, tmp_path: Path) -> None:
    first = train_model(_job(drawn, tmp_path / "a"), "cpu", world.nobody)
    other = train_model(
        _job(drawn, tmp_path / "a", training=LM.model_copy(update={"phases": JOINT.phases})),
        "cpu",
        world.nobody,
    )

    assert other.is_new
    assert other.weights != first.weights
    assert read_card(tmp_path / "a").weights == other.weights


def test_a_training_killed_in_the_middle_ends_with_the_same_bundle(drawn: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, _: int) -> None:
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        train_model(_job(drawn, tmp_path / "a"), "cpu", kill)
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "a.pt").exists()
    said: list[int] = []
    resumed = train_model(_job(drawn, tmp_path / "a"), "cpu", lambda done, _: said.append(done))
    whole = train_model(_job(drawn, tmp_path / "b"), "cpu", world.nobody)

    assert said == [3, 4]
    assert resumed.weights == whole.weights


def test_how_often_something_is_written_does_not_move_the_weights(drawn: Path, tmp_path: Path) -> None:
    rarely = LM.model_copy(update={"checkpoint_every": 100, "validate_every": 1, "log_every": 3})

    results = {
        train_model(_job(drawn, tmp_path / name, training=training, clean=clean), "cpu", world.nobody).weights
        for name, training, clean in (
            ("a", LM, Clean(held_out=0.2)),
            ("b", rarely, Clean(held_out=0.2, cache_mb=0)),
        )
    }

    assert len(results) == 1


# -- on what


def test_web_pairs_are_trained_on_and_never_held_out(drawn: Path, tmp_path: Path) -> None:
    web = tuple(find_shards(drawn / "web"))

    alone = train_model(_job(drawn, tmp_path / "a", kind="joint", training=JOINT), "cpu", world.nobody)
    both = train_model(
        _job(drawn, tmp_path / "b", kind="joint", training=JOINT, web_shards=web), "cpu", world.nobody
    )

    assert alone.pairs + alone.held_out == 40
    assert 0 < both.held_out <= alone.held_out
    # Empty texts cannot be trained on, and pairs like those held out must not be.
    assert alone.pairs < both.pairs <= alone.pairs + 12
    assert both.refused.get("empty_text", 0) + both.pairs + both.held_out <= 52
    assert alone.weights != both.weights


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_clean_pairs_are_refused_with_what_was_refused(tmp_path: Path, count: int) -> None:
    picture = next(data for name, data in world.members(world.REAL / "clean.tar").items() if "png" in name)
    good = [member for n in range(count) for member in ((f"{n}.png", picture), (f"{n}.txt", "a good pair"))]
    world.write_tar(
        tmp_path / "clean" / "0.tar", [*good, ("x.png", b"junk"), ("x.txt", "a"), ("y.png", picture)]
    )

    with pytest.raises(CapfiltError, match=f"holds {count} clean pairs that can be used") as caught:
        train_model(_job(tmp_path, tmp_path / "out"), "cpu", world.nobody)

    assert "1 missing_text, 1 unreadable_image" in caught.value.what
    assert "at least two clean pairs" in caught.value.fix
    assert not (tmp_path / "out").exists()


def test_web_pairs_do_not_stand_in_for_clean_ones(drawn: Path, tmp_path: Path) -> None:
    picture = next(data for name, data in world.members(world.REAL / "clean.tar").items() if "png" in name)
    world.write_tar(tmp_path / "clean" / "0.tar", [("0.png", picture), ("0.txt", "one pair")])

    with pytest.raises(CapfiltError, match="holds 1 clean pairs"):
        train_model(
            _job(tmp_path, tmp_path / "out", web_shards=tuple(find_shards(drawn / "web"))),
            "cpu",
            world.nobody,
        )


def test_two_pairs_are_enough_and_their_filter_is_weak(drawn: Path, tmp_path: Path) -> None:
    members = world.members(drawn / "clean" / "00000.tar")
    two = [(name, data) for name, data in members.items() if name.startswith(("000000.", "000001."))]
    world.write_tar(tmp_path / "clean" / "0.tar", two)
    lonely = Training(phases=(Phase(itc=1.0, steps=2, batch_size=4),))

    result = train_model(
        _job(tmp_path, tmp_path / "out", kind="filter", training=lonely), "cpu", world.nobody
    )

    assert (result.pairs, result.held_out) == (1, 1)
    calibration = read_calibration(tmp_path / "out")
    assert calibration is not None
    assert [(row["score"], row["auroc"], row["weak"]) for row in calibration["rows"]] == [
        ("itc", None, True),
        ("itc", None, None),
    ]


def test_a_filter_is_measured_on_pairs_it_did_not_see(drawn: Path, tmp_path: Path) -> None:
    result = train_model(_job(drawn, tmp_path / "f", kind="filter", training=MATCHING), "cpu", world.nobody)

    calibration = read_calibration(tmp_path / "f")
    assert calibration is not None
    assert {(row["score"], row["negatives"], row["positives"]) for row in calibration["rows"]} == {
        (score, negatives, result.held_out) for score in ("itc", "itm") for negatives in ("shuffled", "hard")
    }
    assert 0 < result.held_out <= 8
    for values in calibration["values"].values():
        assert len(values["right"]) == len(values["hard"]) == result.held_out
        assert result.held_out < len(values["shuffled"]) <= 4 * result.held_out
    assert read_card(tmp_path / "f").training["held_out"] == result.held_out


def test_a_training_that_goes_astray_leaves_no_bundle(drawn: Path, tmp_path: Path) -> None:
    wild = Training(phases=(Phase(lm=1.0, steps=3, learning_rate=1e38, weight_decay=1e3, warmup=0.0),))

    with pytest.raises(RunFailedError, match="training the captioner"):
        train_model(_job(drawn, tmp_path / "c", training=wild), "cpu", world.nobody)

    assert list(tmp_path.iterdir()) == []


# -- which trainings a run needs


def test_nothing_is_trained_that_is_given_or_not_used(tmp_path: Path) -> None:
    def names(**changes: Any) -> list[str]:
        return [stage.name for stage in models_to_train(Bootstrap(pretrain=JOINT, **changes))]

    given = tmp_path / "bundle"
    assert names() == ["train_joint", "train_captioner_and_filter"]
    assert names(recaption=False) == ["train_joint", "train_filter"]
    assert names(score=False) == ["train_joint", "train_captioner"]
    assert names(bundles={"captioner": given}) == ["train_joint", "train_filter"]
    assert names(bundles={"captioner": given, "filter": given}) == []
    assert names(bundles={"init": given}) == ["train_captioner_and_filter"]
    assert names(recaption=False, score=False) == []
    assert [s.name for s in models_to_train(Bootstrap())] == ["train_captioner_and_filter"]


def test_the_facts_of_a_training_move_with_everything_its_weights_depend_on(
    drawn: Path, tmp_path: Path
) -> None:
    base = _job(drawn, tmp_path / "a")
    changes = [
        {"seed": 5},
        {"threads": 2},
        {"clean": Clean(held_out=0.3)},
        {"model": world.TINY.model_copy(update={"embed": 4})},
        {"training": LM.model_copy(update={"phases": (LM.phases[0].model_copy(update={"clip_norm": 0.1}),)})},
    ]
    train_model(base, "cpu", world.nobody)
    fingerprint = read_card(tmp_path / "a").training["fingerprint"]

    found = {fingerprint}
    for number, change in enumerate(changes):
        out = tmp_path / f"{number}"
        train_model(replace(base, out=out, checkpoint=out.with_suffix(".pt"), **change), "cpu", world.nobody)
        found.add(read_card(out).training["fingerprint"])

    assert len(found) == len(changes) + 1
