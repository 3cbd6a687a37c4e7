"""Pictures of a filter: its areas, its baselines, a panel for each kind of noise, its bins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from seen_in_pictures import bins, curve, kind_of_noise, places_of, words

from capfilt.reports.drawing import SERIES
from capfilt.reports.filter_charts import Bin, ScoreCurve, by_kind, reliability, roc_and_precision

NAN = math.nan


def test_the_areas_stand_beside_their_score() -> None:
    drawn = words(roc_and_precision([curve("ITM"), curve("random", baseline=True)], "T", right_share=0.4))
    assert all(f"<!-- {word} -->" in drawn for word in ("ITM", "random", "AUROC", "0.850", "0.700"))
    assert drawn.count("<!-- 0.850 -->") == 2


def test_an_area_that_is_not_known_is_said_to_be() -> None:
    unknown = ScoreCurve("a", [], [], NAN, NAN)
    assert words(roc_and_precision([unknown], "T")).count("<!-- not known -->") == 2


def test_a_baseline_is_dashed() -> None:
    solid, dashed = (
        len(places_of(SERIES[0], roc_and_precision([curve("a", way)], "T"))) for way in (False, True)
    )
    assert dashed < 0.9 * solid


def test_bins_without_pairs_are_left_out() -> None:
    with_empty = [*bins(), Bin(0.2, 0.3, NAN, NAN, 0)]
    assert reliability(with_empty, "T").as_bytes() == reliability(bins(), "T").as_bytes()


def test_a_bin_without_an_interval_is_a_point() -> None:
    assert len(places_of(SERIES[0], reliability([Bin(0, 1, 0.5, 0.5, 7)], "T"))) > 50


@pytest.mark.parametrize(("drawn", "area"), [("roc", "ITM 0.850"), ("precision", "ITM 0.700")])
def test_a_kind_has_its_name_its_pairs_and_the_area_of_the_models_own_score(drawn: str, area: str) -> None:
    kinds = [kind_of_noise("swap", wrong=1234), kind_of_noise("junk", wrong=7)]
    found = words(by_kind(kinds, "T", drawn))
    for word in ("swap", "junk", "1,234 wrong", "7 wrong"):
        assert found.count(f"<!-- {word} -->") == 1
    assert found.count(f"<!-- {area} -->") == 2
    # The lines are named once for all panels.
    assert found.count("<!-- random -->") == found.count("<!-- ITM -->") == 1


def test_each_kind_has_a_panel_three_side_by_side() -> None:
    def panels(count: int) -> tuple[int, int]:
        """Pieces of the first line's colour from left to right, and the picture's height."""
        chart = by_kind([kind_of_noise(f"k{n}") for n in range(count)], "T", "roc")
        places = places_of(SERIES[0], chart)
        columns = np.unique(places[places[:, 0] < 400][:, 1])
        return 1 + int((np.diff(columns) > 40).sum()), round(chart.figure.bbox.height)

    found = {count: panels(count) for count in (1, 2, 3, 4, 7)}
    assert [across for across, _ in found.values()] == [1, 2, 3, 3, 3]
    heights = [height for _, height in found.values()]
    assert heights[0] == heights[1] == heights[2] < heights[3]
    assert heights[4] - heights[3] == heights[3] - heights[2]


def test_an_area_of_a_kind_that_is_not_known_is_a_dash() -> None:
    kind = kind_of_noise("swap")
    unknown = type(kind)("junk", 3, 2, [ScoreCurve("ITM", [], [], NAN, NAN)])
    assert "<!-- ITM - -->" in words(by_kind([kind, unknown], "T", "precision"))


@pytest.mark.parametrize(
    ("right", "wrong", "ticks"),
    [(970, 30, ["0.94", "0.97"]), (75, 25, ["0.5", "0.75"]), (20, 80, ["0", "0.5"])],
)
def test_precision_among_few_wrong_pairs_is_drawn_with_chance_in_the_middle(
    right: int, wrong: int, ticks: list[str]
) -> None:
    kind = kind_of_noise("swap", right=right, wrong=wrong)
    axes = by_kind([kind], "T", "precision").figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [*ticks, "1"]
    bottom, top = axes.get_ylim()
    assert bottom < float(ticks[0]) < 1 < top
    chance = axes.lines[0].get_ydata()
    assert list(chance) == [right / (right + wrong)] * 2
