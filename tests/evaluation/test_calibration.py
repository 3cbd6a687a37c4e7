from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from capfilt.data.clean import CleanPair
from capfilt.errors import CapfiltError
from capfilt.evaluation.calibration import (
    auroc,
    auroc_interval,
    choose_threshold,
    hardest_captions,
    measure,
    precision_recall,
    weak_scores,
    wrong_captions,
)
from capfilt.models.protocols import ImageBatch
from capfilt.records import Scores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Few different values, so that ties are common.
some_scores = st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=1, max_size=25)
groups = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=25)


def _pair(number: int, group: int, caption: int | None = None) -> CleanPair:
    caption = number if caption is None else caption
    return CleanPair(Path("c.tar"), 0, 1, f"{number:064d}", f"text {caption}", number, caption, group)


def _calibration(right: Sequence[float], wrong: Sequence[float], score: str = "itm") -> dict[str, Any]:
    return {"rows": [], "values": {score: {"right": list(right), "shuffled": list(wrong), "hard": []}}}


# -- AUROC


@given(right=some_scores, wrong=some_scores)
def test_auroc_is_the_share_of_couples_in_order_and_half_of_the_ties(
    right: list[float], wrong: list[float]
) -> None:
    expected = sum((r > w) + (r == w) / 2 for r in right for w in wrong) / (len(right) * len(wrong))

    assert auroc(np.array(right), np.array(wrong)) == pytest.approx(expected, abs=1e-12)


def test_auroc_of_cases_worked_out_by_hand() -> None:
    assert auroc(np.array([0.9, 0.8]), np.array([0.1, 0.2, 0.3])) == 1.0
    assert auroc(np.array([0.1]), np.array([0.9])) == 0.0
    assert auroc(np.array([0.5, 0.5]), np.array([0.5])) == 0.5
    # Above both, above one and level with the other, below both.
    assert auroc(np.array([0.9, 0.5, 0.1]), np.array([0.5, 0.3])) == pytest.approx((2 + 1.5 + 0) / 6)
    assert math.isnan(auroc(np.array([]), np.array([0.3])))
    assert math.isnan(auroc(np.array([0.3]), np.array([])))


@given(area=st.floats(0, 1), right=st.integers(1, 300), wrong=st.integers(1, 300))
def test_the_interval_holds_the_estimate_and_stays_within_0_and_1(
    area: float, right: int, wrong: int
) -> None:
    low, high = auroc_interval(area, right, wrong)

    assert 0 <= low <= area <= high <= 1
    assert high - low > 0
    mirrored = auroc_interval(1 - area, right, wrong)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


@given(area=st.floats(0.02, 0.98), count=st.integers(3, 200))
def test_more_pairs_give_a_narrower_interval(area: float, count: int) -> None:
    few, many = auroc_interval(area, count, count), auroc_interval(area, 4 * count, 4 * count)

    assert many[1] - many[0] < few[1] - few[0]


def test_a_perfect_separation_of_few_pairs_is_no_proof() -> None:
    lows = {count: auroc_interval(1.0, count, count)[0] for count in (1, 3, 10, 100, 1000)}

    assert lows[1] < 0.5
    assert lows[3] < 0.7
    assert lows[10] < 0.9
    assert lows[100] > 0.95
    assert lows[1000] > 0.99
    assert auroc_interval(math.nan, 0, 5) == (0.0, 1.0)


@pytest.mark.parametrize(("shift", "count"), [(0.0, 12), (1.0, 15), (2.0, 40)])
def test_the_interval_covers_the_truth_as_often_as_it_says(shift: float, count: int) -> None:
    # For two normals a shift apart the area is known: Phi(shift / sqrt(2)).
    truth = (1 + math.erf(shift / 2)) / 2
    random = np.random.Generator(np.random.PCG64(11))
    covered = 0
    for _ in range(600):
        area = auroc(random.normal(shift, 1, count), random.normal(0, 1, count))
        low, high = auroc_interval(area, count, count)
        covered += low <= truth <= high

    # 95% is promised; four standard errors of 600 trials are 3.6%.
    assert 0.914 <= covered / 600 <= 0.99


# -- precision and recall


@given(
    right=some_scores,
    wrong=some_scores,
    threshold=st.floats(0, 1),
    noise=st.integers(1, 9).map(lambda n: n / 10),
)
def test_precision_is_that_of_a_set_with_this_share_of_wrong_pairs(
    right: list[float], wrong: list[float], threshold: float, noise: float
) -> None:
    # A set of so many copies of each right and wrong pair that the share is met exactly.
    weights = (round((1 - noise) * 10) * len(wrong), round(noise * 10) * len(right))
    kept_right = weights[0] * sum(value >= threshold for value in right)
    kept_wrong = weights[1] * sum(value >= threshold for value in wrong)

    precision, recall = precision_recall(np.array(right), np.array(wrong), threshold, noise)

    assert recall == pytest.approx(sum(value >= threshold for value in right) / len(right))
    if kept_right + kept_wrong == 0:
        assert math.isnan(precision)
    else:
        assert precision == pytest.approx(kept_right / (kept_right + kept_wrong))


# -- thresholds


@given(right=some_scores, wrong=some_scores, wish=st.integers(1, 100))
def test_auto_recall_is_met_by_the_highest_threshold_that_does(
    right: list[float], wrong: list[float], wish: int
) -> None:
    chosen = choose_threshold("itm", f"auto:recall={wish / 100}", _calibration(right, wrong), noise_rate=0.5)

    passing = sum(value >= chosen.threshold for value in right)
    assert 100 * passing >= wish * len(right)
    higher = [value for value in right if value > chosen.threshold]
    assert 100 * len(higher) < wish * len(right)
    assert chosen.words.startswith(f"auto:recall={wish / 100}")


@given(right=some_scores, wrong=some_scores, wish=st.integers(1, 100), noise=st.sampled_from([0.1, 0.5, 0.8]))
def test_auto_precision_is_met_by_the_lowest_threshold_that_does(
    right: list[float], wrong: list[float], wish: int, noise: float
) -> None:
    def precision(threshold: float) -> float:
        return precision_recall(np.array(right), np.array(wrong), threshold, noise)[0]

    reachable = [value for value in right if precision(value) > wish / 100 - 1e-9]
    asked = f"auto:precision={wish / 100}"

    if reachable:
        chosen = choose_threshold("itm", asked, _calibration(right, wrong), noise_rate=noise)
        assert chosen.threshold == min(reachable)
        assert f"noise rate {noise:g}" in chosen.words
    else:
        with pytest.raises(CapfiltError, match="no threshold reaches it") as caught:
            choose_threshold("itm", asked, _calibration(right, wrong), noise_rate=noise)
        offered = float(caught.value.fix.partition("auto:precision=")[2].partition(",")[0])
        assert offered <= max(precision(value) for value in right) + 1e-9 < wish / 100
        again = choose_threshold(
            "itm", f"auto:precision={offered}", _calibration(right, wrong), noise_rate=noise
        )
        assert precision(again.threshold) > offered - 1e-9


def test_a_cosine_may_be_negative_and_a_probability_may_not() -> None:
    assert choose_threshold("itc", "-0.2", None, noise_rate=0.5).threshold == -0.2
    assert choose_threshold("itm", "1", None, noise_rate=0.5).threshold == 1.0
    assert choose_threshold("itm", "0.6", None, noise_rate=0.5).words == ""
    for score, wish in [("itm", "-0.2"), ("itm", "1.01"), ("itc", "-1.5"), ("itc", "2"), ("vqa", "-0.2")]:
        with pytest.raises(CapfiltError, match=f"--{score} {wish}") as caught:
            choose_threshold(score, wish, None, noise_rate=0.5)
        assert f"--{score} 0.5" in caught.value.fix


def test_what_is_asked_of_a_further_filter_is_refused_in_the_words_it_was_asked_in() -> None:
    for wish, what in (
        ("2", "ITC is a cosine"),
        ("auto:recall=0.9", "uncalibrated"),
        ("auto:f1=1", "not understood"),
    ):
        with pytest.raises(CapfiltError, match=what) as caught:
            choose_threshold("itc", wish, None, noise_rate=0.5, of="1a2b")
        assert caught.value.what.startswith(f"--also 1a2b:itc={wish}")
        assert "--also 1a2b:itc=" in caught.value.fix


@pytest.mark.parametrize("wish", ["nan", "inf", "half", "", "auto", "0.5 "[:3] + "x"])
def test_what_is_no_number_is_refused(wish: str) -> None:
    with pytest.raises(CapfiltError, match="ITM is a probability"):
        choose_threshold("itm", wish, _calibration([0.9], [0.1]), noise_rate=0.5)


@pytest.mark.parametrize(
    "wish", ["auto:", "auto:precision", "auto:precision=", "auto:recall=0", "auto:recall=1.2", "auto:f1=0.5"]
)
def test_a_wish_that_is_not_understood_is_refused_with_one_that_is(wish: str) -> None:
    with pytest.raises(CapfiltError, match="is not understood") as caught:
        choose_threshold("itm", wish, _calibration([0.9], [0.1]), noise_rate=0.5)
    assert "auto:precision=0.95" in caught.value.fix


def test_a_wish_needs_the_calibration_of_that_very_score() -> None:
    with pytest.raises(CapfiltError, match="uncalibrated") as caught:
        choose_threshold("itm", "auto:recall=0.9", None, noise_rate=0.5)
    assert "--itm 0.5" in caught.value.fix
    with pytest.raises(CapfiltError, match="holds no calibration of ITC"):
        choose_threshold("itc", "auto:recall=0.9", _calibration([0.9], [0.1]), noise_rate=0.5)
    with pytest.raises(CapfiltError, match="holds no calibration of ITM"):
        choose_threshold("itm", "auto:recall=0.9", _calibration([], []), noise_rate=0.5)


# -- wrong captions


@given(rows=groups, seed=st.integers(0, 3))
def test_a_wrong_caption_is_another_groups_and_none_comes_twice(
    rows: list[tuple[int, int]], seed: int
) -> None:
    # A caption never stands in two groups: that is what a group is.
    pairs = [_pair(n, group, 10 * group + caption) for n, (group, caption) in enumerate(rows)]

    drawn = wrong_captions(pairs, seed=seed)

    assert drawn == wrong_captions(pairs, seed=seed)
    for pair, others in zip(pairs, drawn, strict=True):
        captions = [pairs[other].caption_id for other in others]
        possible = {other.caption_id for other in pairs if other.group_id != pair.group_id}
        assert set(captions) <= possible
        assert len(set(captions)) == len(captions) == min(4, len(possible))


def test_wrong_captions_are_drawn_from_all_pairs_alike() -> None:
    pairs = [_pair(n, n) for n in range(10)]

    taken = [other for seed in range(300) for other in wrong_captions(pairs, seed=seed)[0]]

    # 1,200 draws over nine others: 133 each, with a standard deviation of about 9.
    counts = np.bincount(taken, minlength=10)
    assert counts[0] == 0
    assert counts[1:].min() > 85
    assert counts[1:].max() < 185


def test_the_hardest_caption_is_the_most_similar_one_of_another_group() -> None:
    images = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    texts = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    apart = [_pair(0, 0), _pair(1, 1), _pair(2, 2)]
    near = [_pair(0, 0), _pair(1, 0), _pair(2, 2)]

    assert hardest_captions(images, texts, apart) == [1, 2, 1]
    assert hardest_captions(images, texts, near) == [2, 2, 1]
    assert hardest_captions(images[:1], texts[:1], apart[:1]) == [None]


# -- measuring a filter


class Knowing:
    """A filter that knows the truth: a text fits the picture whose number it names."""

    digest = "k" * 64
    has_itc = False

    def __init__(self) -> None:
        self.pictures_seen = 0

    def score(self, batch: ImageBatch, texts: Sequence[Sequence[str]]) -> list[list[Scores]]:
        self.pictures_seen += len(batch)
        return [
            [Scores(itm=0.9 if text == f"text {int(sha)}" else 0.2) for text in mine]
            for sha, mine in zip(batch.sha256, texts, strict=True)
        ]


def _batches(pairs: list[CleanPair]) -> Iterator[ImageBatch]:
    for start in range(0, len(pairs), 4):
        some = pairs[start : start + 4]
        yield ImageBatch([Image.new("RGB", (2, 2)) for _ in some], [pair.image_sha256 for pair in some])


def test_a_filter_that_knows_the_truth_is_measured_as_one() -> None:
    pairs = [_pair(n, n) for n in range(30)]
    knowing = Knowing()

    found = measure(knowing, lambda: _batches(pairs), pairs, scores=["itm"], seed=0)

    assert knowing.pictures_seen == 30
    [shuffled, hard] = found["rows"]
    assert (shuffled["score"], shuffled["negatives"], shuffled["auroc"]) == ("itm", "shuffled", 1.0)
    assert (shuffled["positives"], shuffled["negatives_count"]) == (30, 120)
    assert (shuffled["precision_at_half"], shuffled["recall_at_half"]) == (1.0, 1.0)
    # Four wrong captions of one image are no four independent pairs.
    assert (shuffled["auroc_low"], shuffled["auroc_high"]) == auroc_interval(1.0, 30, 30)
    assert shuffled["weak"] is False
    assert (hard["auroc"], hard["weak"]) == (None, None)
    assert found["values"]["itm"] == {"right": [0.9] * 30, "shuffled": [0.2] * 120, "hard": []}
    assert weak_scores(found) == set()


@pytest.mark.parametrize("count", [0, 1])
def test_a_filter_that_could_not_be_measured_is_weak(count: int) -> None:
    pairs = [_pair(n, n) for n in range(count)]

    found = measure(Knowing(), lambda: _batches(pairs), pairs, scores=["itm"], seed=0)

    assert weak_scores(found) == {"itm"}
    assert {row["auroc"] for row in found["rows"]} == {None}
    assert {(row["auroc_low"], row["auroc_high"]) for row in found["rows"]} == {(0.0, 1.0)}


@given(low=st.floats(0, 1))
def test_a_score_is_weak_at_one_half_and_below(low: float) -> None:
    rows = [
        {"score": "itm", "negatives": "shuffled", "auroc_low": low, "weak": low <= 0.5},
        {"score": "itm", "negatives": "hard", "auroc_low": 0.1, "weak": None},
    ]

    assert weak_scores({"rows": rows}) == ({"itm"} if low <= 0.5 else set())


class Blind(Knowing):
    """A filter whose right pairs score above wrong ones in `ups` of 40 cases."""

    def __init__(self, ups: int) -> None:
        super().__init__()
        self.ups = ups

    def score(self, batch: ImageBatch, texts: Sequence[Sequence[str]]) -> list[list[Scores]]:
        return [
            [Scores(itm=(0.8 if int(sha) < self.ups else 0.2) if n == 0 else 0.5) for n, _ in enumerate(mine)]
            for sha, mine in zip(batch.sha256, texts, strict=True)
        ]


@settings(max_examples=15)
@given(ups=st.integers(0, 40))
def test_the_edge_of_weakness_is_the_interval_of_the_measured_area(ups: int) -> None:
    pairs = [_pair(n, n) for n in range(40)]

    found = measure(Blind(ups), lambda: _batches(pairs), pairs, scores=["itm"], seed=0)

    [shuffled, _] = found["rows"]
    assert shuffled["auroc"] == pytest.approx(ups / 40)
    assert shuffled["weak"] == (auroc_interval(ups / 40, 40, 40)[0] <= 0.5)
    # 20 of 40 is chance, and so is everything below; 27 of 40 is the first that is not, or near it.
    assert shuffled["weak"] or ups > 22
    assert not shuffled["weak"] or ups < 30


def test_an_uncalibrated_filter_is_not_called_weak() -> None:
    assert weak_scores(None) == set()
