"""Pictures of a filter: how well its scores tell right pairs from wrong ones, and what they promise.

Noise is of kinds that are found with more or less ease, and one line over all of them is of none: so each
kind has a panel of its own, all with the same lines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from capfilt.reports.drawing import (
    QUIET,
    SERIES,
    Chart,
    empty_chart,
    finite,
    house_style,
    line,
    new_figure,
    number,
    plain_numbers,
    shown,
    style_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
"""Panels side by side."""
_LONGEST_KIND = 28
"""Characters of a kind's name that fit above its panel."""
_EVEN = "#B0B0B0"
"""Colour of what is not measured but expected."""


@dataclass(frozen=True, slots=True)
class ScoreCurve:
    """How well one score, or one baseline, finds the right pairs."""

    label: str
    roc: Sequence[tuple[float, float]]
    """Share of wrong pairs kept, share of right pairs kept; from (0, 0) to (1, 1)."""
    precision: Sequence[tuple[float, float]]
    """Recall and precision."""
    auroc: float
    average_precision: float
    baseline: bool = False
    """Drawn dashed."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The pairs that a score gave much the same probability of a match."""

    low: float
    high: float
    """Ends of the bin on the axis of probabilities."""
    predicted: float
    """Mean probability of a match."""
    observed: float
    """Share of right pairs."""
    count: int
    observed_low: float = math.nan
    observed_high: float = math.nan
    """Ends of the share's interval."""


@dataclass(frozen=True, slots=True)
class KindOfNoise:
    """The same scores against the wrong pairs of one kind."""

    label: str
    right_pairs: int
    wrong_pairs: int
    curves: Sequence[ScoreCurve]
    """In the same order for each kind."""


def roc_and_precision(curves: Sequence[ScoreCurve], title: str, *, right_share: float | None = None) -> Chart:
    """Draw ROC beside precision and recall; `right_share` of right pairs is what chance's precision is."""
    if not curves:
        return empty_chart(title, "No score was compared.")
    with house_style():
        figure = new_figure(title, 4.3 + 0.2 * len(curves))
        grid = figure.add_gridspec(2, 2, height_ratios=[3.7, 0.3 + 0.2 * len(curves)])
        roc, precision = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        roc.plot([0, 1], [0, 1], color=_EVEN, linewidth=1)
        if right_share is not None:
            precision.plot([0, 1], [right_share, right_share], color=_EVEN, linewidth=1)
        for place, curve in reversed(list(enumerate(curves))):
            for axes, points in ((roc, curve.roc), (precision, curve.precision)):
                line(axes, [finite(x) for x, _ in points], [y for _, y in points], **_style_of(curve, place))
        for axes, title_, x, y in (
            (roc, "ROC", "wrong pairs kept", "right pairs kept"),
            (
                precision,
                "Precision and recall",
                "right pairs kept (recall)",
                "right among the kept (precision)",
            ),
        ):
            _unit_square(axes)
            axes.set_box_aspect(1)
            axes.set_title(title_)
            axes.set_xlabel(x)
            axes.set_ylabel(y)
        _table_of_scores(figure.add_subplot(grid[1, :]), curves)
    return Chart(figure)


def by_kind(kinds: Sequence[KindOfNoise], title: str, curve: Literal["roc", "precision"]) -> Chart:
    """Draw one curve of every score, a panel for each kind of noise; above it the areas of the model's own.

    A grey line is what chance comes to: of precision, the share of right pairs among those of the panel.
    """
    if not any(kind.curves for kind in kinds):
        return empty_chart(title, "No score was compared.")
    rows = math.ceil(len(kinds) / COLUMNS)
    with house_style():
        figure = new_figure(title, 0.85 + 2.9 * rows)
        grid = figure.add_gridspec(rows, COLUMNS)
        for place, kind in enumerate(kinds):
            axes = figure.add_subplot(grid[place // COLUMNS, place % COLUMNS])
            if curve == "roc":
                _roc_of_kind(axes, kind)
            else:
                _precision_of_kind(axes, kind)
            axes.set_title(shown(kind.label, _LONGEST_KIND), pad=19)
            if place % COLUMNS == 0:
                axes.set_ylabel("right pairs kept" if curve == "roc" else "right among the kept (precision)")
            if place + COLUMNS >= len(kinds):
                axes.set_xlabel("wrong pairs kept" if curve == "roc" else "right pairs kept (recall)")
        _legend(figure, max((kind.curves for kind in kinds), key=len))
    return Chart(figure)


def reliability(bins: Sequence[Bin], title: str) -> Chart:
    """Draw the share of right pairs over the probability that was given, and how many pairs each bin has."""
    filled = [each for each in bins if each.count > 0]
    if not filled:
        return empty_chart(title, "No pair was scored.")
    with house_style():
        figure = new_figure(title, 6.4)
        axes, counts = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
        axes.plot([0, 1], [0, 1], color=_EVEN, linewidth=1)
        axes.text(
            0.02,
            0.04,
            "as promised",
            rotation=45,
            transform_rotates_text=True,
            rotation_mode="anchor",
            fontsize=7.5,
            color=QUIET,
        )
        ordered = sorted(filled, key=lambda each: each.predicted)
        for each in ordered:
            ends = [finite(each.observed_low), finite(each.observed_high)]
            axes.plot([each.predicted] * 2, ends, color=SERIES[0], linewidth=2, alpha=0.45)
        xs, ys = [each.predicted for each in ordered], [each.observed for each in ordered]
        line(axes, xs, ys, color=SERIES[0], marker="o", markersize=6, clip_on=False, zorder=3)
        _unit_square(axes)
        axes.set_ylabel("share of right pairs")
        counts.bar(
            [each.low for each in filled],
            [each.count for each in filled],
            [each.high - each.low for each in filled],
            align="edge",
            color="#8FBEDB",
            edgecolor="white",
        )
        counts.grid(visible=False, axis="x")
        counts.set_ylabel("pairs")
        counts.set_xlabel("probability of a match")
        counts.locator_params(axis="y", nbins=3)
        plain_numbers(counts)
    return Chart(figure)


def _roc_of_kind(axes: Axes, kind: KindOfNoise) -> None:
    axes.plot([0, 1], [0, 1], color=_EVEN, linewidth=1)
    _lines_of_kind(axes, [(each, each.roc) for each in kind.curves])
    _unit_square(axes, (0, 0.5, 1))
    _above(axes, kind, [(each.label, each.auroc) for each in kind.curves if not each.baseline])


def _precision_of_kind(axes: Axes, kind: KindOfNoise) -> None:
    share = kind.right_pairs / max(1, kind.right_pairs + kind.wrong_pairs)
    axes.plot([0, 1], [share, share], color=_EVEN, linewidth=1)
    _lines_of_kind(axes, [(each, each.precision) for each in kind.curves])
    _unit_square(axes, (0, 0.5, 1))
    # Where few pairs are wrong every precision is near 1: the axis then has chance in its middle.
    if share > 0.5:
        bottom = 2 * share - 1
        axes.set_ylim(bottom - 0.01 * (1 - bottom), 1 + 0.01 * (1 - bottom))
        axes.set_yticks([bottom, share, 1], [f"{tick:.4g}" for tick in (bottom, share, 1)])
    _above(axes, kind, [(each.label, each.average_precision) for each in kind.curves if not each.baseline])


def _lines_of_kind(axes: Axes, lines: Sequence[tuple[ScoreCurve, Sequence[tuple[float, float]]]]) -> None:
    """Draw the scores, the first above the others."""
    for place, (score, points) in reversed(list(enumerate(lines))):
        xs, ys = [finite(x) for x, _ in points], [y for _, y in points]
        line(axes, xs, ys, linewidth=1.3, **_style_of(score, place))
    axes.set_box_aspect(1)


def _above(axes: Axes, kind: KindOfNoise, areas: Sequence[tuple[str, float]]) -> None:
    """Write areas above a panel, and how many wrong pairs it is of."""
    words = ", ".join(
        f"{shown(label, 12)} {'-' if math.isnan(finite(area)) else f'{area:.3f}'}" for label, area in areas
    )
    style: dict[str, Any] = {"transform": axes.transAxes, "va": "bottom", "fontsize": 8, "color": QUIET}
    axes.text(0, 1.03, words, **style)
    axes.text(1, 1.03, f"{kind.wrong_pairs:,} wrong", ha="right", **style)


def _legend(figure: Figure, curves: Sequence[ScoreCurve]) -> None:
    """Write what each line is beneath the panels."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], linewidth=1.8, **_style_of(each, place)) for place, each in enumerate(curves)]
    names = [shown(each.label, 24) for each in curves]
    figure.legend(lines, names, loc="outside lower left", ncols=min(5, len(lines)), handlelength=2.2)


def _style_of(curve: ScoreCurve, place: int) -> dict[str, Any]:
    return style_of(place) | ({"linestyle": (0, (3, 1.5))} if curve.baseline else {})


def _unit_square(axes: Axes, ticks: Sequence[float] = (0, 0.25, 0.5, 0.75, 1)) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_xticks(ticks, [number(tick) for tick in ticks])
    axes.set_yticks(ticks, [number(tick) for tick in ticks])


def _table_of_scores(axes: Axes, curves: Sequence[ScoreCurve]) -> None:
    """Write what each line is and its two areas, in columns."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(curves) - 0.5, -1.5)
    for x, words in ((0.56, "AUROC"), (0.78, "average precision")):
        axes.text(x, -1, words, ha="right", va="center", color=QUIET)
    for place, curve in enumerate(curves):
        axes.plot([0.02, 0.07], [place, place], linewidth=1.8, **_style_of(curve, place))
        axes.text(0.09, place, shown(curve.label), va="center")
        for x, value in ((0.56, curve.auroc), (0.78, curve.average_precision)):
            words = "not known" if math.isnan(finite(value)) else f"{value:.3f}"
            axes.text(x, place, words, ha="right", va="center")
