"""BLIP-2's first stage, whose pictures have a feature of each query, against its model asked pair by pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import drawn
import pytest
import torch
import world
from qformer_folders import qformer_folder
from small_models import WORDS
from small_qformer import SMALL_BLIP2

from capfilt.data.clean import read_clean
from capfilt.data.images import normalise
from capfilt.data.sources import find_shards
from capfilt.models.cards import read_calibration
from capfilt.models.qformer_bundle import load_qformer_bundle
from capfilt.settings import Bootstrap, Input, Phase, Trainable, Training
from capfilt.stages.calibrate import calibrate
from capfilt.stages.evaluate.filtering import FilterChoices
from capfilt.stages.evaluate.retrieval import RetrievalChoices
from capfilt.stages.train_one import train_one

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capfilt.models.cards import Kind, Objective

TOP = 4
MATCHING = Training(phases=(Phase(itc=1.0, itm=1.0, steps=2, batch_size=6, learning_rate=1e-3),))


class OfQFormers(Bootstrap):
    """Settings as BLIP-2's pipelines have them."""

    model: Trainable = SMALL_BLIP2


def bundle(path: Path, kind: Kind, objectives: tuple[Objective, ...]) -> Path:
    """Write a Q-Former that reads the words of the drawn set."""
    return qformer_folder(path, kind, objectives, [*WORDS, *(drawn.text(n) for n in range(144))])


@pytest.fixture(scope="module")
def qformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(tmp_path_factory.mktemp("qformer") / "filter", "filter", ("itc", "itm"))


@torch.inference_mode()
def alone(path: Path, pairs: Any) -> tuple[list[list[float]], list[list[list[float]]]]:
    """Ask the model itself, a picture and a text at a time: cosines of the best query, and ITM's logits."""
    read = load_qformer_bundle(path)
    model: Any = read.model.eval()
    vocabulary: Any = read.vocabulary
    cosines, logits = [], []
    for picture in range(pairs.pictures):
        squares = torch.from_numpy(pairs.batch([picture]).squares(SMALL_BLIP2.images))
        states = model.encode_image(normalise(squares, SMALL_BLIP2.images))
        queries = list(model.image_features(states)[0])
        cosine_row, logit_row = [], []
        for text in pairs.texts:
            ids, real = vocabulary.encode([text], "cls", 16)
            feature = model.text_features(ids, real)[0]
            cosine_row.append(max(float(query @ feature) for query in queries))
            logit_row.append(model.itm_logits(ids, real, model.memory(states))[0].tolist())
        cosines.append(cosine_row)
        logits.append(logit_row)
    return cosines, logits


def place(scores: list[float], right: set[int]) -> int:
    """Where the best right candidate stands, from 1, before which all stand that score as high or higher."""
    best = max(scores[n] for n in right)
    return 1 + sum(score >= best for n, score in enumerate(scores) if n not in right)


def first_then(first: list[float], then: list[float]) -> list[float]:
    top = sorted(range(len(first)), key=lambda n: -first[n])[:TOP]
    return [1000 + then[n] if n in top else first[n] for n in range(len(first))]


def turned(table: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*table, strict=True)]


@pytest.mark.parametrize("rerank", ["itm", "sum"])
def test_every_query_of_a_retrieval_ranks_as_pairs_asked_alone(
    qformer: Path, test_set: Path, rerank: Any
) -> None:
    pairs = drawn.pairs(test_set)
    cosines, logits = alone(qformer, pairs)
    odds = [[two[1] - two[0] for two in row] for row in logits]
    both = [
        [c + two[1] for c, two in zip(mine, row, strict=True)]
        for mine, row in zip(cosines, logits, strict=True)
    ]
    second = odds if rerank == "itm" else both
    texts_of = [set(mine) for mine in pairs.right_texts()]
    pictures_of = [{p for p, mine in enumerate(texts_of) if t in mine} for t in range(len(pairs.texts))]

    evaluation = drawn.evaluated("retrieval", qformer, test_set, RetrievalChoices(TOP, rerank))

    items = evaluation.found.items
    ways: list[tuple[list[Any], list[set[int]], Callable[[Any], Any]]] = [
        (items[: pairs.pictures], texts_of, lambda table: table),
        (items[pairs.pictures :], pictures_of, turned),
    ]
    for rows, right, way in ways:
        tables = zip(way(cosines), way(second), strict=True)
        for row, answers, (first, then) in zip(rows, right, tables, strict=True):
            assert row["rank_itc"] == place(first, answers)
            assert row["rank_itm"] == place(first_then(first, then), answers)
    assert evaluation.found.facts["encoder_passes"] == pairs.pictures
    assert len({row["rank_itc"] for row in items}) > 3


def test_scores_and_the_hardest_wrong_texts_are_those_of_pairs_asked_alone(
    qformer: Path, test_set: Path
) -> None:
    pairs = drawn.pairs(test_set)
    cosines, logits = alone(qformer, pairs)
    pictures = {pairs.sha256(n): n for n in range(pairs.pictures)}
    evaluation = drawn.evaluated("filter", qformer, test_set, FilterChoices())
    kinds = []
    for row in evaluation.found.items:
        picture, text = pictures[row["image_sha256"]], pairs.texts.index(row["text"])
        match = torch.tensor(logits[picture][text]).softmax(0)[1].item()
        assert (row["itc"], row["itm"]) == pytest.approx((cosines[picture][text], match), abs=1e-5)
        kinds.append(row["kind"])
        if row["kind"] == "the hardest by ITC":
            own = {pair.group_id for pair in pairs.pairs if pair.image_id == picture}
            wrong = {pair.caption_id for pair in pairs.pairs if pair.group_id not in own}
            assert cosines[picture][text] == pytest.approx(max(cosines[picture][t] for t in wrong), abs=1e-6)
    assert set(kinds) == {"right", "shuffled texts", "the hardest by ITC"}
    assert evaluation.found.facts["encoder_passes"] == pairs.pictures


def test_a_joint_model_of_stage_1_is_measured_as_the_filter_it_is(test_set: Path, tmp_path: Path) -> None:
    joint = bundle(tmp_path / "joint", "joint", ("itc", "itm", "lm"))
    rows = drawn.figures(drawn.evaluated("retrieval", joint, test_set, RetrievalChoices(TOP)))
    assert {row for _, row, _ in rows} == {"ITC", "ITC, then ITM", "chance"}


def test_a_calibration_is_what_the_model_says_of_held_out_pairs_and_of_the_hardest_wrong_texts(
    qformer: Path, tmp_path: Path
) -> None:
    members = [part for n in range(12) for part in drawn.sample(f"k{n:02}", n, drawn.text(n))]
    data = world.write_tar(tmp_path / "clean.tar", members)
    cosines, logits = alone(qformer, drawn.pairs(data))
    clean = read_clean(find_shards(data), Input(), SMALL_BLIP2.images, cache_mb=0)
    held_out = [1, 4, 5, 9, 11]

    found = calibrate(load_qformer_bundle(qformer), clean, held_out, device="cpu", precision="fp32", seed=0)

    values = found["values"]
    match = torch.tensor(logits).softmax(-1)[..., 1]
    hardest = [max((t for t in held_out if t != n), key=lambda t, n=n: cosines[n][t]) for n in held_out]
    assert values["itc"]["right"] == pytest.approx([cosines[n][n] for n in held_out], abs=1e-5)
    assert values["itm"]["right"] == pytest.approx([match[n, n].item() for n in held_out], abs=1e-5)
    pairs = list(zip(held_out, hardest, strict=True))
    assert values["itc"]["hard"] == pytest.approx([cosines[n][t] for n, t in pairs], abs=1e-5)
    assert values["itm"]["hard"] == pytest.approx([match[n, t].item() for n, t in pairs], abs=1e-5)
    assert len(set(hardest)) > 1
    assert {(row["score"], row["negatives"]) for row in found["rows"]} == {
        (score, kind) for score in ("itc", "itm") for kind in ("shuffled", "hard")
    }


def test_a_filter_that_starts_from_stage_1_is_trained_and_calibrated(test_set: Path, tmp_path: Path) -> None:
    init = bundle(tmp_path / "stage1", "joint", ("itc", "itm", "lm"))
    settings = world.changed(
        OfQFormers(filter_training=MATCHING),
        {"bundles": {"init": init}, "compute": {"device": "cpu", "precision": "fp32"}},
    )
    card = train_one("filter", str(test_set), tmp_path / "trained", settings, world.InProcess(), world.QUIET)
    calibration = read_calibration(tmp_path / "trained")
    assert calibration is not None
    assert (card.family, card.objectives) == ("blip2", ("itc", "itm"))
    held_out = {len(values["right"]) for values in calibration["values"].values()}
    assert set(calibration["values"]) == {"itc", "itm"}
    assert held_out == {row["positives"] for row in calibration["rows"]} != {0}
