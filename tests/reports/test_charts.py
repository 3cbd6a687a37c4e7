"""What must be in the pictures, found in their pixels and in the SVG's words."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seen_in_pictures import bins, curve, kind_of_noise, pixels, places_of, words

from capfilt.reports.charts import _apart, bars_with_intervals, lines_with_bands
from capfilt.reports.drawing import SERIES, Chart
from capfilt.reports.filter_charts import Bin, by_kind, reliability, roc_and_precision

if TYPE_CHECKING:
    from collections.abc import Callable

NAN = math.nan
HOSTILE = "$x_1^{2}$ _a\n\x1b[31m \\frac{1}{0} 日本 <b>&-- \u202e{} %s"


KINDS: dict[str, Callable[[str], Chart]] = {
    "bars": lambda text: bars_with_intervals([(text, 0.5, 0.4, 0.6)], text, text),
    "lines": lambda text: lines_with_bands({text: [(0, 1, 0, 2), (9, 2, 1, 3)]}, text, text, text),
    "roc": lambda text: roc_and_precision([curve(text)], text),
    "by kind": lambda text: by_kind([kind_of_noise(text, text)] * 2, text, "roc"),
    "reliability": lambda text: reliability(bins(), text),
}
EMPTY: dict[str, Chart] = {
    "bars": bars_with_intervals([], "T", "u"),
    "lines": lines_with_bands({}, "x", "y", "T"),
    "lines of nothing": lines_with_bands({"a": [], "b": []}, "x", "y", "T"),
    "roc": roc_and_precision([], "T"),
    "by kind": by_kind([], "T", "precision"),
    "reliability": reliability([Bin(0, 1, 0.5, NAN, 0)], "T"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_white_with_something_in_it(kind: str) -> None:
    image = pixels(KINDS[kind]("plain"))
    assert image.shape[1] == 1200
    assert (image[[0, -1]] == 255).all()
    assert (image == 255).all(axis=-1).mean() > 0.5
    assert len(places_of(SERIES[0], KINDS[kind]("plain"))) > 50


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_text_is_drawn_as_it_stands_and_without_a_warning(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = words(KINDS[kind](HOSTILE))
    assert "$x_1^{2}$ _a\\n\\x1b[31m" in drawn
    assert "\x1b" not in drawn
    assert "\u202e" not in drawn


@pytest.mark.parametrize("kind", EMPTY)
def test_where_there_is_nothing_to_show_the_picture_says_so(kind: str) -> None:
    assert (pixels(EMPTY[kind]) < 128).any()
    assert "Nothing was measured." in words(EMPTY[kind]) or "No " in words(EMPTY[kind])


def test_estimates_stand_from_above_to_below_and_further_right_for_more() -> None:
    chart = bars_with_intervals([("a", 0.9, 0.8, 1.0), ("b", 0.1, 0.05, 0.2)], "T", "u")
    places = places_of(SERIES[0], chart)
    middle = (places[:, 0].min() + places[:, 0].max()) / 2
    above, below = places[places[:, 0] < middle], places[places[:, 0] > middle]
    assert above[:, 1].mean() > below[:, 1].mean() + 400


@pytest.mark.parametrize(
    ("row", "written"),
    [
        (("a", 0.47, 0.43, 0.51), "0.470  [0.430, 0.510]"),
        (("a", 85.25, 80, 90), "85.2  [80.0, 90.0]"),
        (("a", -3, -4, 12345), "\N{MINUS SIGN}3  [\N{MINUS SIGN}4, 12,345]"),
        (("a", 0.5, NAN, NAN), "0.500"),
        (("a", NAN, NAN, NAN), "not measured"),
        (("a", math.inf, NAN, NAN), "not measured"),
    ],
)
def test_the_numbers_stand_beside_the_interval(row: Any, written: str) -> None:
    assert f"<!-- {written} -->" in words(bars_with_intervals([row], "T", "u"))


def test_a_row_that_was_not_measured_leaves_its_place_empty() -> None:
    chart = bars_with_intervals([("a", NAN, NAN, NAN), ("b", 0.5, 0.4, 0.6)], "T", "u")
    assert "<!-- a -->" in words(chart)
    rows = places_of(SERIES[0], chart)[:, 0]
    assert rows.max() - rows.min() < 30


def test_shares_begin_at_zero_unless_zero_is_far() -> None:
    assert "<!-- 0 -->" in words(bars_with_intervals([("a", 0.5, 0.2, 0.6)], "T", "u"))
    assert "<!-- 0 -->" not in words(bars_with_intervals([("a", 0.97, 0.95, 0.98)], "T", "u"))


def test_each_line_has_its_colour_and_its_name() -> None:
    series = {f"arm {n}": [(x, n + x / 10, n, n + 1) for x in range(5)] for n in range(5)}
    chart = lines_with_bands(series, "steps", "R@1", "T")
    for place, name in enumerate(series):
        assert len(places_of(SERIES[place], chart)) > 100
        assert f"<!-- {name} -->" in words(chart)


def test_a_gap_in_a_line_is_left_open_and_a_point_between_gaps_is_a_dot() -> None:
    whole = [(x, 1.0, NAN, NAN) for x in range(7)]
    gaps = [(x, 1.0 if x in (0, 1, 3, 5, 6) else NAN, NAN, NAN) for x in range(7)]
    base = [(0, 0.0, NAN, NAN), (6, 2.0, NAN, NAN)]
    full, broken = (
        places_of(SERIES[1], lines_with_bands({"base": base, "a": points}, "x", "y", "T"))
        for points in (whole, gaps)
    )
    assert 200 < len(broken) < len(full)
    columns = np.unique(broken[:, 1])
    pieces = 1 + int((np.diff(columns) > 20).sum())
    assert pieces == 3  # 0 to 1, the dot at 3, 5 to 6 with the name's sample beside it


def test_one_point_is_seen() -> None:
    chart = lines_with_bands({"a": [(100, 0.5, 0.4, 0.6)]}, "x", "y", "T")
    columns = places_of(SERIES[0], chart)[:, 1]
    assert (columns < 900).any()  # the dot itself, left of the name's sample


def test_points_may_come_in_any_order() -> None:
    points = [(0, 1.0, 0.9, 1.1), (1, 2.0, 1.9, 2.1), (2, 1.5, 1.4, 1.6)]
    forth, back = (
        lines_with_bands({"a": order}, "x", "y", "T").as_bytes() for order in (points, points[::-1])
    )
    assert forth == back


HEIGHTS = st.lists(st.floats(0, 1), max_size=9)


@given(heights=HEIGHTS, gap=st.floats(0.01, 0.1))
def test_names_are_kept_apart_in_their_order_and_moved_only_where_they_must(
    heights: list[float], gap: float
) -> None:
    moved = _apart(heights, gap)
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    for low, high in pairwise(order):
        assert moved[high] - moved[low] >= gap - 1e-9
    assert sum(moved) == pytest.approx(sum(heights))
    for place, height in enumerate(heights):
        others = [other for at, other in enumerate(heights) if at != place]
        if all(abs(other - height) > len(heights) * gap for other in others):
            assert moved[place] == pytest.approx(height)
