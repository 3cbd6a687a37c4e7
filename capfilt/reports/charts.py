"""Pictures of what was evaluated: estimates with intervals, ROC, reliability, learning curves.

Each takes plain values and says in the picture how sure they are; a value that is missing is a gap, and
where there is nothing to show, the picture says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt.reports.drawing import (
    INK,
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
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

Estimate = tuple[str, float, float, float]
"""A label, its value, and the ends of its interval."""
At = tuple[float, float, float, float]
"""Where on the x-axis, the value there, and the ends of its interval."""


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


def bars_with_intervals(rows: Sequence[Estimate], title: str, unit: str) -> Chart:
    """Draw a point with its interval for each row, from above to below, and the numbers beside it."""
    if not rows:
        return empty_chart(title, "Nothing was measured.")
    with house_style():
        figure = new_figure(title, 1.15 + 0.3 * len(rows))
        axes = figure.subplots()
        ends = [finite(value) for row in rows for value in row[1:]]
        known = [value for value in ends if not math.isnan(value)]
        digits = _digits(known)
        for place, (_, *values) in enumerate(rows):
            value, low, high = map(finite, values)
            axes.plot([low, high], [place, place], color=SERIES[0], linewidth=2, alpha=0.45)
            axes.plot([value], [place], "o", color=SERIES[0], markersize=6)
            axes.annotate(
                _interval_words(value, low, high, digits),
                (1.0, place),
                xycoords=("axes fraction", "data"),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                color=INK if not math.isnan(value) else QUIET,
            )
        axes.set_yticks(range(len(rows)), [shown(row[0]) for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        if known and 0 <= min(known) <= 0.5 * max(known):
            axes.set_xlim(left=0)  # far from it, zero would only press the points together
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(shown(unit, 80))
        axes.locator_params(axis="x", nbins=6)
        plain_numbers(axes, y=False)
    return Chart(figure)


def lines_with_bands(series: Mapping[str, Sequence[At]], x_label: str, y_label: str, title: str) -> Chart:
    """Draw a line for each series with its interval as a band, and its name at the line's end."""
    if not any(series.values()):
        return empty_chart(title, "Nothing was measured.")
    with house_style():
        figure = new_figure(title, max(4.4, 1.2 + 0.22 * len(series)))
        axes = figure.subplots()
        ends: list[tuple[float, int, str]] = []
        for place, (label, points) in enumerate(series.items()):
            ordered = sorted(points)
            xs, values, lows, highs = ([finite(point[i]) for point in ordered] for i in range(4))
            style = style_of(place)
            axes.fill_between(xs, lows, highs, color=style["color"], alpha=0.14, linewidth=0)
            line(axes, xs, values, **style, linewidth=1.8)
            last = next((value for value in reversed(values) if not math.isnan(value)), None)
            if last is not None:
                ends.append((last, place, label))
        axes.margins(x=0.0, y=0.06)
        axes.set_xlabel(shown(x_label, 80))
        axes.set_title(shown(y_label, 80), color=QUIET, fontsize=8.5)
        plain_numbers(axes)
        _name_at_the_end(axes, ends, least_gap=0.23 / figure.get_figheight())
    return Chart(figure)


def roc_and_precision(curves: Sequence[ScoreCurve], title: str, *, right_share: float | None = None) -> Chart:
    """Draw ROC beside precision and recall; `right_share` of right pairs is what chance's precision is."""
    if not curves:
        return empty_chart(title, "No score was compared.")
    with house_style():
        figure = new_figure(title, 4.3 + 0.2 * len(curves))
        grid = figure.add_gridspec(2, 2, height_ratios=[3.7, 0.3 + 0.2 * len(curves)])
        roc, precision = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        roc.plot([0, 1], [0, 1], color="#B0B0B0", linewidth=1)
        if right_share is not None:
            precision.plot([0, 1], [right_share, right_share], color="#B0B0B0", linewidth=1)
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


def reliability(bins: Sequence[Bin], title: str) -> Chart:
    """Draw the share of right pairs over the probability that was given, and how many pairs each bin has."""
    filled = [each for each in bins if each.count > 0]
    if not filled:
        return empty_chart(title, "No pair was scored.")
    with house_style():
        figure = new_figure(title, 6.4)
        axes, counts = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
        axes.plot([0, 1], [0, 1], color="#B0B0B0", linewidth=1)
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


def _digits(values: Sequence[float]) -> int:
    """Return how many decimals give the greatest value three digits."""
    most = max((abs(value) for value in values), default=0.0)
    return min(6, max(0, 2 - math.floor(math.log10(most)))) if most > 0 else 2


def _interval_words(value: float, low: float, high: float, digits: int) -> str:
    if math.isnan(value):
        return "not measured"
    words = f"{value:,.{digits}f}"
    if not math.isnan(low) and not math.isnan(high):
        words += f"  [{low:,.{digits}f}, {high:,.{digits}f}]"
    return words.replace("-", "\N{MINUS SIGN}")


def _name_at_the_end(axes: Axes, ends: Sequence[tuple[float, int, str]], *, least_gap: float) -> None:
    """Write each line's name at the right of its end, moved as far as names would cover each other.

    The gap between two names is a share of the axes' height.
    """
    bottom, top = axes.get_ylim()
    heights = _apart([(value - bottom) / (top - bottom) for value, *_ in ends], least_gap)
    for (_, place, label), height in zip(ends, heights, strict=True):
        style = style_of(place)
        axes.plot(
            [1.015, 1.045], [height] * 2, transform=axes.transAxes, clip_on=False, linewidth=1.8, **style
        )
        axes.text(1.055, height, shown(label), transform=axes.transAxes, va="center")


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return heights in their places, moved as little as keeps them a gap apart, and centred where moved.

    Neighbours that are too near form a block, whose middle is the mean of what its members wanted.
    """
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    blocks: list[list[int]] = []
    for place in order:
        blocks.append([place])
        while len(blocks) > 1 and _bottom(blocks[-1], heights, gap) < _top(blocks[-2], heights, gap) + gap:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    moved = [0.0] * len(heights)
    for block in blocks:
        for number_, place in enumerate(block):
            moved[place] = _bottom(block, heights, gap) + gap * number_
    return moved


def _bottom(block: Sequence[int], heights: Sequence[float], gap: float) -> float:
    return sum(heights[place] for place in block) / len(block) - gap * (len(block) - 1) / 2


def _top(block: Sequence[int], heights: Sequence[float], gap: float) -> float:
    return _bottom(block, heights, gap) + gap * (len(block) - 1)


def _style_of(curve: ScoreCurve, place: int) -> dict[str, Any]:
    return style_of(place) | ({"linestyle": (0, (3, 1.5))} if curve.baseline else {})


def _unit_square(axes: Axes) -> None:
    ticks = [0, 0.25, 0.5, 0.75, 1]
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
