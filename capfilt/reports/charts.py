"""Pictures of figures and how sure they are: estimates with intervals, learning curves.

Each takes plain values and says in the picture how sure they are; a value that is missing is a gap, and
where there is nothing to show, the picture says so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

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
