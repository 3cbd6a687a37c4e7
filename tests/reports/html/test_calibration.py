from __future__ import annotations

import pytest

from capfilt.records import Measure
from capfilt.reports.html.calibration import Calibrated, passing_chart, precision_chart

VALUES = {"right": [0.2, 0.6, 0.7, 0.9], "shuffled": [0.1, 0.1, 0.2, 0.65], "hard": [0.5, 0.8]}


def test_what_passes_is_counted_at_the_chosen_threshold() -> None:
    panel = passing_chart(Calibrated(Measure("itm"), VALUES, 0.6))
    [chosen] = [row for row in panel.table.rows if "chosen" in str(row[0])]
    assert chosen == ("0.6 (chosen)", 0.75, 0.25, 0.5)
    assert "pass 75% of right captions; 25% of shuffled captions; 50% of hard wrong captions" in panel.note


def test_the_chosen_point_has_the_precision_and_the_recall_of_the_threshold() -> None:
    """Of as many right as wrong pairs 0.75 and 0.25 pass: three of four kept ones are right."""
    panel = precision_chart(Calibrated(Measure("itm"), VALUES, 0.6))
    assert "precision 0.75, recall 0.75, were 50% of pairs wrong" in panel.note
    assert panel.table.rows[0] == ("0.2", pytest.approx(2 / 3, abs=1e-3), 1.0)


def test_the_noise_rate_is_the_one_that_the_policy_was_chosen_for() -> None:
    """At four wrong pairs to one right one, 0.2 * 0.75 right and 0.8 * 0.25 wrong pairs pass."""
    words = "auto:precision=0.4 at noise rate 0.8, against shuffled captions, easier than real noise"
    panel = precision_chart(Calibrated.of(Measure("itm"), VALUES, 0.6, words))
    assert "precision 0.43, recall 0.75, were 80% of pairs wrong" in panel.note


def test_without_a_threshold_no_point_is_chosen() -> None:
    one = Calibrated(Measure("itc"), {"right": [-0.5, 0.5], "shuffled": [-1.0, 0.0], "hard": []}, None)
    assert "no threshold" in passing_chart(one).note
    assert "chosen" not in precision_chart(one).drawing
