"""What a score keeps at each threshold, against pairs counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.draws import uniforms
from capfilt.evaluation.calibration import auroc
from capfilt.evaluation.filtering import average_precision
from capfilt.stages.evaluate.curves import MOST_POINTS, Curve, score_curve

SCORES = st.lists(st.integers(0, 9), min_size=1, max_size=12)


def check_by_counting(curve: Curve, right: list[float], wrong: list[float]) -> None:
    """Count what each threshold of a curve keeps."""
    for number, threshold in enumerate(curve.threshold):
        kept_right = sum(score >= threshold for score in right)
        kept_wrong = sum(score >= threshold for score in wrong)
        assert curve.right_kept[number] == pytest.approx(kept_right / len(right))
        assert curve.wrong_kept[number] == pytest.approx(kept_wrong / len(wrong))
        assert curve.precision[number] == pytest.approx(kept_right / (kept_right + kept_wrong))


@given(right=SCORES, wrong=SCORES)
def test_a_threshold_keeps_what_scores_at_least_that(right: list[float], wrong: list[float]) -> None:
    curve = score_curve("swap", "ITM", np.array(right, dtype=float), np.array(wrong, dtype=float))
    assert curve.threshold == sorted({float(score) for score in (*right, *wrong)}, reverse=True)
    check_by_counting(curve, right, wrong)
    assert (curve.right_kept[-1], curve.wrong_kept[-1]) == (1, 1)
    assert (curve.right_pairs, curve.wrong_pairs) == (len(right), len(wrong))


def test_a_long_curve_is_thinned_and_its_points_and_areas_are_those_of_the_whole() -> None:
    right, wrong = uniforms(700, "right") ** 0.5, uniforms(3000, "wrong")
    curve = score_curve("swap", "ITM", right, wrong)
    assert len(curve.threshold) == MOST_POINTS == 200
    assert (curve.threshold[0], curve.threshold[-1]) == (max(*right, *wrong), min(*right, *wrong))
    assert curve.threshold == sorted(set(curve.threshold), reverse=True)
    check_by_counting(curve, right.tolist(), wrong.tolist())
    assert (curve.auroc, curve.average_precision) == (auroc(right, wrong), average_precision(right, wrong))
    # What is between the points is lost, and it is little.
    right_kept, wrong_kept = (np.array([0, *kept]) for kept in (curve.right_kept, curve.wrong_kept))
    of_the_points = (np.diff(wrong_kept) * (right_kept[1:] + right_kept[:-1]) / 2).sum()
    assert of_the_points == pytest.approx(curve.auroc, abs=0.002)
