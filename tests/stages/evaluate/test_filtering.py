"""A filter's figures against pairs scored one by one and counted in plain Python."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import drawn
import pytest
import world

from capfilt.errors import CapfiltError
from capfilt.settings import Matching
from capfilt.stages.evaluate import filtering, labelled
from capfilt.stages.evaluate.filtering import AT_HALF, FilterChoices
from capfilt.stages.evaluate.labelled import check_labels
from capfilt.stages.shard import load_filter

if TYPE_CHECKING:
    from pathlib import Path

KINDS = FilterChoices(kind_field="noise_kind")
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def made(bundles: dict[str, Path], test_set: Path) -> Any:
    return drawn.evaluated("filter", bundles["filter"], test_set, FilterChoices())


@pytest.fixture(scope="module")
def named(bundles: dict[str, Path], noisy_set: Path) -> Any:
    return drawn.evaluated("filter", bundles["filter"], noisy_set, KINDS)


def above(right: list[float], wrong: list[float]) -> float:
    """How often a right pair scores above a wrong one, a tie counting half."""
    pairs = list(itertools.product(right, wrong))
    return sum((r > w) + (r == w) / 2 for r, w in pairs) / len(pairs)


def values(rows: Rows, kind: str, score: str) -> list[float]:
    return [row[score] for row in rows if row["kind"] == kind]


def test_scores_are_those_of_each_pair_alone(made: Any, bundles: dict[str, Path], test_set: Path) -> None:
    pairs = drawn.pairs(test_set)
    filter_ = load_filter(bundles["filter"], "cpu", "fp32", Matching(), False)
    number = {pairs.sha256(n): n for n in range(pairs.pictures)}
    for row in made.found.items:
        [[alone]] = filter_.score(pairs.batch([number[row["image_sha256"]]]), [[row["text"]]])
        assert (row["itc"], row["itm"]) == pytest.approx((alone.itc, alone.itm), abs=2e-6)


def test_wrong_pairs_are_wrong_and_the_hardest_is_the_most_similar_one(made: Any, test_set: Path) -> None:
    pairs = drawn.pairs(test_set)
    right = {
        (pairs.sha256(n), pairs.texts[text]) for n, mine in enumerate(pairs.right_texts()) for text in mine
    }
    rows = made.found.items
    kinds = [row["kind"] for row in rows]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == made.found.facts["kinds"]
    assert kinds.count("right") == kinds.count("shuffled texts") == 24
    for row in rows:
        assert ((row["image_sha256"], row["text"]) in right) == (row["kind"] == "right")
    hardest = {row["image_sha256"]: row["itc"] for row in rows if row["kind"] == "the hardest by ITC"}
    assert all(
        row["itc"] <= hardest[row["image_sha256"]] + 1e-6 for row in rows if row["kind"] == "shuffled texts"
    )


def test_every_picture_is_encoded_once(made: Any) -> None:
    assert made.found.facts["encoder_passes"] == made.found.facts["pictures"] == 20


@pytest.mark.parametrize("kind", ["swap", "junk"])
def test_auroc_by_kind_counts_pairs_of_a_right_and_a_wrong_one(named: Any, kind: str) -> None:
    found = drawn.figures(named)
    rows = named.found.items
    for row, score in (("ITM", "itm"), ("ITC", "itc"), ("text alone", "text_alone"), ("random", "random")):
        figure = found[f"right pairs and {kind}", row, "AUROC"]
        assert figure.value == pytest.approx(above(values(rows, "right", score), values(rows, kind, score)))
        assert figure.low < figure.value < figure.high or figure.value in (0.0, 1.0)


def test_what_is_kept_at_a_half_is_counted_by_kind(named: Any) -> None:
    found, rows = drawn.figures(named), named.found.items
    right = values(rows, "right", "itm")
    for kind in ("swap", "junk"):
        wrong = values(rows, kind, "itm")
        kept, passed = sum(v >= 0.5 for v in right), sum(v >= 0.5 for v in wrong)
        assert found[AT_HALF, kind, "recall"].value == kept / len(right)
        assert found[AT_HALF, kind, "wrong ones dropped"].value == 1 - passed / len(wrong)
        precision = found[AT_HALF, kind, "precision"].value
        assert precision == pytest.approx(kept / (kept + passed)) if kept + passed else math.isnan(precision)


def test_the_best_share_is_kept(named: Any, bundles: dict[str, Path], noisy_set: Path) -> None:
    rows = named.found.items
    best = sorted(rows, key=lambda row: -row["itm"])[:9]  # 30% of 30
    right = sum(row["kind"] == "right" for row in best)
    found = drawn.figures(named)
    table = "right pairs and all wrong ones"
    assert found[table, "ITM", "best 30%: precision"].value == pytest.approx(right / 9)
    assert found[table, "ITM", "best 30%: recall"].value == pytest.approx(right / 15)
    every = FilterChoices("noise_kind", (0.1, 1.0))
    found = drawn.figures(drawn.evaluated("filter", bundles["filter"], noisy_set, every))
    assert found[table, "ITM", "best 100%: precision"].value == pytest.approx(0.5)
    assert (table, "ITM", "best 10%: recall") in found


def test_junk_gives_itself_away_to_who_reads_the_text_alone_and_another_pictures_text_does_not(
    named: Any, made: Any
) -> None:
    assert drawn.figures(named)["right pairs and junk", "text alone", "AUROC"].value > 0.95
    shuffled = drawn.figures(made)["right pairs and shuffled texts", "text alone", "AUROC"]
    assert shuffled.low < 0.5


def test_the_calibration_error_is_that_of_the_bins(made: Any) -> None:
    rows = made.found.items
    assert sum(each.count for each in made.found.reliability) == len(rows)
    error = sum(
        each.count / len(rows) * abs(each.share_right - each.mean_probability)
        for each in made.found.reliability
        if each.count
    )
    assert drawn.figures(made)["calibration", "ITM", "expected error"].value == pytest.approx(error)


@pytest.mark.parametrize("score", ["itm", "itc", "text_alone", "random"])
def test_curves_are_told_by_kind_and_have_the_areas_of_the_tables(named: Any, score: str) -> None:
    figures, rows = drawn.figures(named), named.found.items
    row = {"itm": "ITM", "itc": "ITC", "text_alone": "text alone", "random": "random"}[score]
    curves = {curve.kind: curve for curve in named.found.curves if curve.row == row}
    assert list(curves) == ["junk", "swap", "all wrong ones"]
    right = values(rows, "right", score)
    junk, swap = (values(rows, kind, score) for kind in ("junk", "swap"))
    for kind, wrong in (("junk", junk), ("swap", swap), ("all wrong ones", junk + swap)):
        curve = curves[kind]
        assert (curve.right_pairs, curve.wrong_pairs) == (len(right), len(wrong))
        assert curve.average_precision == figures[f"right pairs and {kind}", row, "AP"].value
        assert curve.auroc == figures[f"right pairs and {kind}", row, "AUROC"].value
        for threshold, kept, precision in zip(
            curve.threshold, curve.right_kept, curve.precision, strict=True
        ):
            of_right, of_wrong = (sum(v >= threshold for v in mine) for mine in (right, wrong))
            assert kept == pytest.approx(of_right / len(right))
            assert precision == pytest.approx(of_right / (of_right + of_wrong))


def test_a_joint_model_is_a_filter_too(joint: Path, test_set: Path) -> None:
    whole = drawn.evaluated("filter", joint, test_set, FilterChoices()).found
    half = drawn.evaluated("filter", joint / "filter", test_set, FilterChoices()).found
    assert whole.items == half.items


def test_a_model_without_itm_has_no_threshold_of_a_half(noisy_set: Path, tmp_path: Path) -> None:
    model = world.bundle(tmp_path / "itc", "filter", ("itc",))
    found = drawn.evaluated("filter", model, noisy_set, KINDS)
    assert AT_HALF not in {table for table, _, _ in drawn.figures(found)}
    assert found.found.reliability == []
    assert "itm" not in found.found.items[0]


def test_a_set_of_one_kind_is_the_users_error(bundles: dict[str, Path], tmp_path: Path) -> None:
    members = [part for n in range(4) for part in drawn.sample(f"k{n}", n, drawn.text(n), kind="right")]
    one_kind = world.write_tar(tmp_path / "set.tar", members)
    with pytest.raises(CapfiltError, match="no wrong pair"):
        drawn.evaluated("filter", bundles["filter"], one_kind, FilterChoices("kind"))
    alone = world.write_tar(tmp_path / "one.tar", drawn.sample("k", 0, "a text"))
    with pytest.raises(CapfiltError, match="no wrong pair"):
        drawn.evaluated("filter", bundles["filter"], alone, FilterChoices())


def test_a_field_of_very_many_values_is_no_kind_of_noise(bundles: dict[str, Path], tmp_path: Path) -> None:
    def of_kinds(count: int) -> Path:
        kinds = ["right", *(f"https://example.org/{n}" for n in range(count))]
        members = [
            part for n, kind in enumerate(kinds) for part in drawn.sample(f"k{n}", n, drawn.text(n), url=kind)
        ]
        return world.write_tar(tmp_path / f"{count}.tar", members)

    with pytest.raises(CapfiltError, match='url has 51 values beside "right"') as refused:
        drawn.evaluated("filter", bundles["filter"], of_kinds(51), FilterChoices("url"))
    assert "noise_kind" in refused.value.fix
    check_labels(drawn.pairs(of_kinds(50), kind_field="url"), "url")


def test_right_pairs_that_are_too_many_are_refused_before_anything_is_scored(
    bundles: dict[str, Path], test_set: Path, noisy_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelled, "MOST_PAIRS", 23)
    monkeypatch.setattr(filtering, "Encoded", None)
    with pytest.raises(CapfiltError, match="made of 24 right ones; at most of 23") as refused:
        drawn.evaluated("filter", bundles["filter"], test_set, FilterChoices())
    assert "--limit" in refused.value.fix
    # Where wrong pairs are named none are made, and there may be any number.
    check_labels(drawn.pairs(noisy_set, kind_field="noise_kind"), "noise_kind")
