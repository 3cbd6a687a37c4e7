"""Retrieval against every pair scored one by one and sorted in plain Python."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import drawn
import pytest
import torch
import world

from capfilt.errors import CapfiltError, RunFailedError
from capfilt.models.cards import CARD_FILE
from capfilt.models.med import MED
from capfilt.settings import Matching
from capfilt.stages.evaluate import retrieval, scoring
from capfilt.stages.evaluate.retrieval import RetrievalChoices
from capfilt.stages.shard import load_filter

if TYPE_CHECKING:
    from pathlib import Path

Table = list[list[float]]
"""A score for each picture and text."""


def one_by_one(model: Path, test_set: Path) -> tuple[Table, Table, Table]:
    """Score every pair alone: ITC, ITM's probability, ITM's logit of a match without packing."""
    pairs = drawn.pairs(test_set)
    filter_ = load_filter(model, "cpu", "fp32", Matching(), False)
    itc, itm, logit = [], [], []
    for picture in range(pairs.pictures):
        scores = [filter_.score(pairs.batch([picture]), [[text]])[0][0] for text in pairs.texts]
        itc.append([one.itc or 0.0 for one in scores])
        itm.append([one.itm or 0.0 for one in scores])
        with torch.inference_mode():
            states = filter_.image_states(pairs.batch([picture]))
            row = []
            for text in pairs.texts:
                ids, real = filter_._vocabulary.encode([text], "enc", 24)
                row.append(filter_.model.itm_logits(ids, real, filter_.model.memory(states))[0, 1].item())
        logit.append(row)
    return itc, itm, logit


def recall(scores: Table, right: list[set[int]], k: int) -> float:
    """Sort every query's candidates and look for a right one among the first k."""
    hits = 0
    for mine, answers in zip(scores, right, strict=True):
        order = sorted(range(len(mine)), key=lambda candidate: -mine[candidate])
        hits += bool(answers & set(order[:k]))
    return hits / len(scores)


def reordered(first: Table, second: Table, k: int) -> Table:
    """Put the k best by `first` above all others, in the order of `second`."""
    rows = []
    for mine, theirs in zip(first, second, strict=True):
        top = sorted(range(len(mine)), key=lambda candidate: -mine[candidate])[:k]
        rows.append([1000 + theirs[n] if n in top else mine[n] for n in range(len(mine))])
    return rows


def turned(scores: Table) -> Table:
    return [list(column) for column in zip(*scores, strict=True)]


@pytest.fixture(scope="module")
def alone(bundles: dict[str, Path], test_set: Path) -> tuple[Table, Table, Table]:
    return one_by_one(bundles["filter"], test_set)


@pytest.fixture(scope="module")
def right(test_set: Path) -> tuple[list[set[int]], list[set[int]]]:
    of_pictures = [set(mine) for mine in drawn.pairs(test_set).right_texts()]
    texts = range(len(drawn.pairs(test_set).texts))
    return of_pictures, [{p for p, mine in enumerate(of_pictures) if text in mine} for text in texts]


@pytest.mark.parametrize("rerank", ["itm", "sum"])
@pytest.mark.parametrize("top_k", [3, 7, 128])
def test_recall_is_that_of_every_pair_scored_alone_and_sorted(
    bundles: dict[str, Path],
    test_set: Path,
    alone: tuple[Table, Table, Table],
    right: tuple[list[set[int]], list[set[int]]],
    rerank: retrieval.Rerank,
    top_k: int,
) -> None:
    itc, itm, logit = alone
    both = [[x + y for x, y in zip(*rows, strict=True)] for rows in zip(itc, logit, strict=True)]
    second = itm if rerank == "itm" else both

    found = drawn.figures(
        drawn.evaluated("retrieval", bundles["filter"], test_set, RetrievalChoices(top_k, rerank))
    )

    for way, (table, first, then) in enumerate(
        (("image to text", itc, second), ("text to image", turned(itc), turned(second)))
    ):
        for k in (1, 5, 10):
            assert found[table, "ITC", f"R@{k}"].value == pytest.approx(recall(first, right[way], k))
            wanted = recall(reordered(first, then, top_k), right[way], k)
            assert found[table, "ITC, then ITM", f"R@{k}"].value == pytest.approx(wanted)
            assert found[table, "ITC, then ITM", f"R@{k}"].low <= wanted


def test_every_picture_is_encoded_once_for_both_directions(bundles: dict[str, Path], test_set: Path) -> None:
    evaluation = drawn.evaluated("retrieval", bundles["filter"], test_set, RetrievalChoices(top_k=4))
    assert evaluation.found.facts["encoder_passes"] == evaluation.found.facts["pictures"] == 20


def test_states_kept_in_a_file_and_scores_taken_a_row_at_a_time_change_nothing(
    bundles: dict[str, Path], test_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = RetrievalChoices(top_k=4)
    plain = drawn.evaluated("retrieval", bundles["filter"], test_set, choices)
    monkeypatch.setattr(scoring, "STATES_IN_MEMORY", 0)
    monkeypatch.setattr(retrieval, "_SCORES_AT_ONCE", 1)
    found = drawn.evaluated("retrieval", bundles["filter"], test_set, choices)
    assert found.found.items == plain.found.items
    figures = drawn.figures(plain)
    for place, figure in drawn.figures(found).items():
        assert (figure.value, figure.low) == pytest.approx((figures[place].value, figures[place].low))


def test_states_that_no_disk_has_room_for_are_refused_before_they_are_written(
    bundles: dict[str, Path], test_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "STATES_IN_MEMORY", 0)
    monkeypatch.setattr(scoring.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(CapfiltError, match="20 encoded pictures take"):
        drawn.evaluated("retrieval", bundles["filter"], test_set)


def test_chance_is_worked_out_exactly(bundles: dict[str, Path], test_set: Path) -> None:
    found = drawn.figures(drawn.evaluated("retrieval", bundles["filter"], test_set))
    # 23 texts: one picture has three right ones, two have two, the others one.
    assert found["image to text", "chance", "R@1"].value == pytest.approx((3 + 2 * 2 + 17) / 20 / 23)
    # 20 pictures: one text is right for two.
    assert found["text to image", "chance", "R@1"].value == pytest.approx((2 + 22) / 23 / 20)


def test_items_say_where_the_best_right_candidate_stands_and_what_stands_first(
    bundles: dict[str, Path], test_set: Path, alone: tuple[Table, Table, Table]
) -> None:
    pairs = drawn.pairs(test_set)
    items = drawn.evaluated("retrieval", bundles["filter"], test_set).found.items
    assert len(items) == 20 + 23
    for picture, (row, scores) in enumerate(zip(items, alone[0], strict=False)):
        order = sorted(range(23), key=lambda text, scores=scores: -scores[text])
        answers = pairs.right_texts()[picture]
        wrong_before = next(place for place, text in enumerate(order) if text in answers)
        assert (row["rank_itc"], row["best_itc"]) == (wrong_before + 1, pairs.texts[order[0]])
        assert (row["key"], row["image_sha256"]) == (pairs.key(picture), pairs.sha256(picture))


def test_a_joint_model_and_a_transformers_folder_do_as_well(
    joint: Path, test_set: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(joint / "filter", tmp_path / "theirs")
    for name in (CARD_FILE, "training.safetensors"):
        (folder / name).unlink(missing_ok=True)
    # A folder of transformers is read as transformers would read it, unless it is told otherwise.
    ours = {"filter": {"match_token": "enc", "clean_up": "none"}}
    found = [drawn.evaluated("retrieval", model, test_set, settings=ours).found for model in (joint, folder)]
    assert found[0].measured == found[1].measured
    assert found[0].items == found[1].items


def test_a_model_without_itm_is_ranked_by_itc_and_one_without_itc_by_itm(
    test_set: Path, tmp_path: Path, right: tuple[list[set[int]], list[set[int]]]
) -> None:
    itc = world.bundle(tmp_path / "itc", "filter", ("itc",), seed=5)
    itm = world.bundle(tmp_path / "itm", "filter", ("itm",), seed=5)
    rows = {row for _, row, _ in drawn.figures(drawn.evaluated("retrieval", itc, test_set))}
    assert rows == {"ITC", "chance"}
    found = drawn.figures(drawn.evaluated("retrieval", itm, test_set))
    assert {row for _, row, _ in found} == {"ITM", "chance"}
    scores = one_by_one_itm(itm, test_set)
    assert found["image to text", "ITM", "R@5"].value == pytest.approx(recall(scores, right[0], 5))
    assert found["text to image", "ITM", "R@5"].value == pytest.approx(recall(turned(scores), right[1], 5))


def one_by_one_itm(model: Path, test_set: Path) -> Table:
    pairs = drawn.pairs(test_set)
    filter_ = load_filter(model, "cpu", "fp32", Matching(), False)
    return [
        [filter_.score(pairs.batch([picture]), [[text]])[0][0].itm or 0.0 for text in pairs.texts]
        for picture in range(pairs.pictures)
    ]


def test_sets_that_are_too_large_are_refused_with_the_way_out(
    bundles: dict[str, Path], test_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    itm = world.bundle(tmp_path / "itm", "filter", ("itm",))
    monkeypatch.setattr(retrieval, "MOST_PAIRS_OF_ITM_ALONE", 459)
    with pytest.raises(CapfiltError, match="all 460 pairs") as refused:
        drawn.evaluated("retrieval", itm, test_set)
    assert "--limit" in refused.value.fix
    monkeypatch.setattr(retrieval, "MOST_PICTURES", 19)
    with pytest.raises(CapfiltError, match="20 pictures and 23 texts") as refused:
        drawn.evaluated("retrieval", bundles["filter"], test_set)
    assert "--limit" in refused.value.fix
    assert drawn.evaluated("retrieval", bundles["filter"], test_set, limit=19).found.facts["is_cut"]


def test_a_model_that_diverged_is_no_ranking(
    test_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = world.bundle(tmp_path / "filter", "filter", ("itc", "itm"), seed=7)
    monkeypatch.setattr(MED, "image_features", lambda _, states: torch.full((len(states), 8), torch.nan))
    with pytest.raises(RunFailedError, match="no finite numbers"):
        drawn.evaluated("retrieval", model, test_set)


def test_a_captioner_cannot_be_evaluated_so(bundles: dict[str, Path], test_set: Path) -> None:
    with pytest.raises(CapfiltError, match="cannot score pairs"):
        drawn.evaluated("retrieval", bundles["captioner"], test_set)
