from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.evaluation.calibration import auroc, precision_recall
from capfilt.evaluation.filtering import (
    BestFraction,
    average_precision,
    best_fraction,
    calibration_error,
    precision_recall_curve,
    roc,
)

# Few different values, so that ties are common; none is 0, so that a logarithm orders them too.
some_scores = st.lists(st.integers(1, 9).map(lambda n: n / 8), min_size=1, max_size=25)
noise_rates = st.integers(1, 9).map(lambda n: n / 10)


def _average_precision_in_steps(right: list[float], wrong: list[float]) -> float:
    """Area under the steps of the precision-recall curve, threshold by threshold."""
    area, recall_before = 0.0, 0.0
    for threshold in sorted({*right, *wrong}, reverse=True):
        kept_right = sum(score >= threshold for score in right)
        kept_wrong = sum(score >= threshold for score in wrong)
        recall = kept_right / len(right)
        area += kept_right / (kept_right + kept_wrong) * (recall - recall_before)
        recall_before = recall
    return area


# -- ROC


@given(right=some_scores, wrong=some_scores)
def test_the_area_under_the_roc_curve_is_the_auroc(right: list[float], wrong: list[float]) -> None:
    false, true = roc(np.array(right), np.array(wrong))

    assert (false[0], true[0]) == (0, 0)
    assert (false[-1], true[-1]) == (1, 1)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    area = float((np.diff(false) * (true[1:] + true[:-1]) / 2).sum())
    assert area == pytest.approx(auroc(np.array(right), np.array(wrong)), abs=1e-12)


def test_the_roc_curve_worked_out_by_hand() -> None:
    # From the top: one right, then a right and a wrong one that tie, then a wrong one.
    false, true = roc(np.array([0.9, 0.5]), np.array([0.5, 0.1]))

    assert false.tolist() == [0, 0, 0.5, 1]
    assert true.tolist() == [0, 0.5, 1, 1]
    false, true = roc(np.array([0.9]), np.array([]))
    assert np.isnan(false).all()
    assert true.tolist() == [0, 1]


# -- precision, recall and their area


@given(right=some_scores, wrong=some_scores, noise=noise_rates)
def test_the_curve_passes_through_precision_and_recall_of_every_threshold(
    right: list[float], wrong: list[float], noise: float
) -> None:
    precision, recall, thresholds = precision_recall_curve(np.array(right), np.array(wrong), noise_rate=noise)

    assert thresholds.tolist() == sorted({*right, *wrong}, reverse=True)
    for *point, threshold in zip(precision, recall, thresholds, strict=True):
        expected = precision_recall(np.array(right), np.array(wrong), float(threshold), noise)
        assert point == pytest.approx(expected, abs=1e-12)


@given(right=some_scores, wrong=some_scores)
def test_average_precision_is_the_area_under_the_steps(right: list[float], wrong: list[float]) -> None:
    expected = _average_precision_in_steps(right, wrong)

    assert average_precision(np.array(right), np.array(wrong)) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.booleans(), min_size=2, max_size=30).filter(lambda marks: 0 < sum(marks) < len(marks)))
def test_average_precision_without_ties_is_the_mean_precision_where_right_pairs_stand(
    marks: list[bool],
) -> None:
    # In a list from best to worst: precision of the list down to each right pair.
    expected = np.mean([sum(marks[: place + 1]) / (place + 1) for place, mark in enumerate(marks) if mark])
    scores = -np.arange(len(marks), dtype=np.float64)
    is_right = np.array(marks)

    assert average_precision(scores[is_right], scores[~is_right]) == pytest.approx(float(expected), abs=1e-12)


@given(right=some_scores, wrong=some_scores, noise=noise_rates)
def test_a_noise_rate_gives_the_average_precision_of_a_set_with_so_many_wrong_pairs(
    right: list[float], wrong: list[float], noise: float
) -> None:
    # So many copies of each pair that the share is met exactly.
    many_right = right * (round((1 - noise) * 10) * len(wrong))
    many_wrong = wrong * (round(noise * 10) * len(right))

    weighed = average_precision(np.array(right), np.array(wrong), noise_rate=noise)

    assert weighed == pytest.approx(average_precision(np.array(many_right), np.array(many_wrong)), abs=1e-9)


@given(right=some_scores, wrong=some_scores)
def test_areas_stay_when_scores_are_transformed_monotonely(right: list[float], wrong: list[float]) -> None:
    scores, others = np.array(right), np.array(wrong)
    moved, moved_others = np.log(scores) * 3 - 7, np.log(others) * 3 - 7

    assert average_precision(moved, moved_others) == average_precision(scores, others)
    assert auroc(moved, moved_others) == auroc(scores, others)
    assert np.array_equal(roc(moved, moved_others), roc(scores, others))


@given(right=some_scores, wrong=some_scores)
def test_perfect_separation_is_1_and_no_separation_the_share_of_right_pairs(
    right: list[float], wrong: list[float]
) -> None:
    above, ties = np.array(right) + 10, np.zeros(len(right))

    assert average_precision(above, np.array(wrong)) == pytest.approx(1.0)
    assert average_precision(above, np.array(wrong), noise_rate=0.9) == pytest.approx(1.0)
    share = len(right) / (len(right) + len(wrong))
    assert average_precision(ties, np.zeros(len(wrong))) == pytest.approx(share)
    assert average_precision(ties, np.zeros(len(wrong)), noise_rate=0.8) == pytest.approx(0.2)


def test_what_cannot_be_measured_is_nan_and_what_is_no_score_is_refused() -> None:
    some, none = np.array([0.5]), np.array([])
    assert math.isnan(average_precision(some, none))
    assert math.isnan(average_precision(none, some))
    assert math.isnan(best_fraction(none, some, 0.3).precision)
    with pytest.raises(ValueError, match="NaN"):
        average_precision(np.array([math.nan]), some)
    for rate in (0.0, 1.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="noise rate"):
            average_precision(some, some, noise_rate=rate)
    for fraction in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="fraction"):
            best_fraction(some, some, fraction)


# -- calibration


def test_the_calibration_error_worked_out_by_hand() -> None:
    # Two bins. Low: 0.2 and 0.4, one of them right: 0.5 against 0.3. High: 0.6, 0.8, 1.0, all right: 1.0
    # against 0.8.
    probabilities = np.array([0.2, 0.6, 0.4, 0.8, 1.0])
    error, table = calibration_error(probabilities, np.array([True, True, False, True, True]), bins=2)

    assert error == pytest.approx(2 / 5 * 0.2 + 3 / 5 * 0.2)
    assert [(one.low, one.high, one.count) for one in table] == [(0, 0.5, 2), (0.5, 1, 3)]
    assert [one.mean_probability for one in table] == pytest.approx([0.3, 0.8])
    assert [one.share_right for one in table] == [0.5, 1.0]


@given(
    st.lists(st.tuples(st.integers(0, 30).map(lambda n: n / 30), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 15),
)
def test_the_calibration_error_is_the_weighted_gap_of_bins_that_hold_their_upper_edge(
    pairs: list[tuple[float, bool]], bins: int
) -> None:
    expected = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        mine = [(p, r) for p, r in pairs if low < p <= high or (number == 0 and p == 0)]
        if mine:
            gap = sum(r for _, r in mine) / len(mine) - sum(p for p, _ in mine) / len(mine)
            expected += len(mine) / len(pairs) * abs(gap)

    error, table = calibration_error(np.array([p for p, _ in pairs]), np.array([r for _, r in pairs]), bins)

    assert error == pytest.approx(expected, abs=1e-12)
    assert len(table) == bins
    assert sum(one.count for one in table) == len(pairs)


def test_probabilities_that_are_true_have_a_small_error_and_overconfident_ones_a_large_one() -> None:
    random = np.random.Generator(np.random.PCG64(4))
    probabilities = random.uniform(0, 1, 20_000)
    is_right = random.uniform(0, 1, 20_000) < probabilities
    sharpened = np.where(probabilities > 0.5, 0.99, 0.01)

    assert calibration_error(probabilities, is_right)[0] < 0.02
    # Where it says 0.99, three quarters are right.
    assert calibration_error(sharpened, is_right)[0] == pytest.approx(0.24, abs=0.01)


def test_a_bin_without_pairs_has_no_shares_and_a_probability_lies_between_0_and_1() -> None:
    error, table = calibration_error(np.array([0.9]), np.array([True]), bins=2)
    assert error == pytest.approx(0.1)
    assert (table[0].count, math.isnan(table[0].share_right)) == (0, True)
    assert math.isnan(calibration_error(np.array([]), np.array([], dtype=bool))[0])
    for bad in (1.01, -0.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            calibration_error(np.array([bad]), np.array([True]))
    with pytest.raises(ValueError, match="1 probabilities for 2 pairs"):
        calibration_error(np.array([0.5]), np.array([True, False]))


# -- the best fraction


def test_the_best_fraction_worked_out_by_hand() -> None:
    right, wrong = np.array([0.9, 0.8, 0.3]), np.array([0.5, 0.2, 0.1])

    assert best_fraction(right, wrong, 1 / 3) == BestFraction(0.8, pytest.approx(1.0), pytest.approx(2 / 3))
    assert best_fraction(right, wrong, 2 / 3) == BestFraction(0.3, pytest.approx(3 / 4), pytest.approx(1.0))
    assert best_fraction(right, wrong, 1.0) == BestFraction(0.1, pytest.approx(0.5), pytest.approx(1.0))
    # In a set of which 3 in 4 are wrong, a quarter right: the two best are 1/6 of it, the next wrong one 1/4.
    weighed = best_fraction(right, wrong, 1 / 6 + 1 / 4, noise_rate=0.75)
    assert weighed == BestFraction(0.5, pytest.approx((1 / 6) / (5 / 12)), pytest.approx(2 / 3))


@settings(max_examples=40)
@given(
    right=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    wrong=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    data=st.data(),
)
def test_ties_at_the_cut_are_kept_as_drawing_among_them_does_on_average(
    right: list[int], wrong: list[int], data: st.DataObject
) -> None:
    pairs = [(score, True) for score in right] + [(score, False) for score in wrong]
    kept = data.draw(st.integers(1, len(pairs)))

    counts = []
    for order in permutations(pairs):
        # Sorting is stable, so every order of equal ones comes equally often.
        best = sorted(order, key=lambda pair: -pair[0])[:kept]
        counts.append(sum(is_right for _, is_right in best))
    mean = sum(counts) / len(counts)

    found = best_fraction(np.array(right, float), np.array(wrong, float), kept / len(pairs))

    assert found.precision == pytest.approx(mean / kept, abs=1e-9)
    assert found.recall == pytest.approx(mean / len(right), abs=1e-9)
    assert found.threshold == sorted((score for score, _ in pairs), reverse=True)[kept - 1]
