from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from capfilt.reports.training_curves import HELD_OUT, TRAINING, training_curves

if TYPE_CHECKING:
    from capfilt.reports.drawing import Chart

FIRST, SECOND = "1: itc+itm+lm", "2: itm"


def rows(name: str, values: Any, split: str = "train", phase: str = FIRST) -> list[dict[str, Any]]:
    return [
        {"phase": phase, "step": 20 * (n + 1), "split": split, "name": name, "value": value, "time": 0.0}
        for n, value in enumerate(values)
    ]


def whole() -> list[dict[str, Any]]:
    made = [row for name in ("itc", "itm", "lm") for row in rows(name, np.geomspace(4, 1, 30))]
    made += [row for name in ("itc", "itm", "lm") for row in rows(name, np.geomspace(4, 2, 6), "validation")]
    made += rows("itc_chance", [math.log(32)] * 6, "validation") + rows("temperature", [0.07] * 30)
    made += rows("itm_positive", [0.5] * 6, "validation") + rows("itm_negative", [0.2] * 6, "validation")
    return (
        made
        + rows("learning_rate", np.linspace(1e-3, 0, 30))
        + rows("gradient_norm", np.geomspace(1e4, 1, 30))
    )


def words(chart: Chart) -> str:
    return chart.as_bytes("svg").decode("utf-8")


def count(colour: str, chart: Chart) -> int:
    with Image.open(io.BytesIO(chart.as_bytes())) as image:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return int((np.asarray(image.convert("RGB")) == rgb).all(axis=-1).sum())


LEGEND = count(TRAINING, training_curves(rows("lm", [math.nan]), "T"))
"""Pixels of a colour that the legend alone has."""


def test_every_measurement_has_its_panel() -> None:
    chart = training_curves(whole(), "Training of the filter")
    drawn = words(chart)
    titles = ("ITC loss", "ITM loss", "LM loss", "ITM probability", "ITC temperature", "Gradient norm")
    assert all(f"<!-- {title} -->" in drawn for title in (*titles, "Training of the filter"))
    assert "Learning rate, \N{MULTIPLICATION SIGN} 10\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT THREE}" in drawn
    assert "Different captions" not in drawn
    written = {text.get_text() for text in chart.figure.findobj(Text)}
    assert {"choosing blindly", "right pairs", "wrong pairs"} <= written


def test_training_and_held_out_pairs_have_their_colours() -> None:
    both = rows("lm", [3, 2, 1]) + rows("lm", [3, 2.5, 2], "validation")
    chart = training_curves(both, "T")
    assert count(TRAINING, chart) > LEGEND + 300
    assert count(HELD_OUT, chart) > LEGEND + 300
    assert count(TRAINING, training_curves(both[3:], "T")) == LEGEND


def test_equal_rows_in_another_order_give_equal_bytes() -> None:
    assert training_curves(whole()[::-1], "T").as_bytes() == training_curves(whole(), "T").as_bytes()


def test_the_clock_is_not_in_the_picture() -> None:
    later = [{**row, "time": 1e9} for row in whole()]
    assert training_curves(later, "T").as_bytes() == training_curves(whole(), "T").as_bytes()


def test_phases_follow_one_another_and_their_border_is_marked() -> None:
    one = rows("lm", [3.0] * 10)
    two = rows("lm", [3.0] * 10, phase=SECOND)
    drawn = words(training_curves(one + two, "T"))
    assert "<!-- over optimizer steps; phases 1: itc+itm+lm, 2: itm -->" in drawn
    assert "<!-- 400 -->" in drawn  # twice 200 steps
    assert "<!-- 400 -->" not in words(training_curves(one, "T"))


def test_what_one_phase_measured_does_not_lead_to_what_the_next_did() -> None:
    # Without a gap, the steep way from 1 to 3 would be drawn across the second phase.
    one, two = rows("lm", [1.0, 1.0]), rows("lm", [3.0], phase=SECOND)
    apart = count(TRAINING, training_curves(one + two, "T"))
    joined = count(TRAINING, training_curves(rows("lm", [1.0, 1.0, 3.0]), "T"))
    assert apart < joined - 300


def test_an_unknown_measurement_is_drawn_and_its_name_shown_safely() -> None:
    drawn = words(training_curves(rows("$new_{loss}\x1b", [1, 2]), "T"))
    assert "<!-- $new_{loss}\\x1b -->" in drawn


@pytest.mark.parametrize("made", [[], rows("lm", [])])
def test_a_training_without_measurements_is_said_to_have_none(made: Any) -> None:
    assert "Nothing was measured in this training." in words(training_curves(made, "T"))


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_value_that_cannot_be_drawn_is_a_gap(value: Any) -> None:
    chart = training_curves(rows("lm", [3, 3, value, 2, 2]), "T")
    plain = training_curves(rows("lm", [3, 3, 2.5, 2, 2]), "T")
    assert LEGEND < count(TRAINING, chart) < count(TRAINING, plain)


def test_a_single_measurement_is_a_dot() -> None:
    assert count(TRAINING, training_curves(rows("lm", [3]), "T")) > LEGEND + 20


def test_gradients_far_apart_are_on_a_logarithmic_axis() -> None:
    drawn = words(training_curves(rows("gradient_norm", [1, 10, 100, 1000, 10000]), "T"))
    assert all(f"<!-- {tick} -->" in drawn for tick in ("1", "100", "10,000"))
