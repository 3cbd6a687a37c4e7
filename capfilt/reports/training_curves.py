"""A training at a glance: one small panel a measurement, all over the same steps.

Training and held-out pairs share a panel, for what matters is where they part; so do values that are read
against each other, such as ITC's loss and that of choosing blindly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    plain_numbers,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
"""One measurement: phase, step, split, name, value."""
Curve = list[tuple[float, float]]

TRAINING, HELD_OUT = SERIES[0], SERIES[1]
COLUMNS = 3
MOST_PANELS = 15
"""Panels drawn; what a loop does not measure today may come by the dozen tomorrow."""
_DOTTED = 40
"""Held-out measurements up to which each is marked by a dot."""
_WIDE = 100
"""From this ratio of the greatest to the least value on, an axis is logarithmic."""


@dataclass(frozen=True, slots=True)
class _Panel:
    """What is drawn together."""

    title: str
    name: str
    words: str = ""
    """What the line is, where there are two."""
    beside: str | None = None
    """A value that it is read against, drawn dashed."""
    beside_words: str = ""
    logarithmic: bool = False
    """Whether the axis is, where the values lie far apart."""

    @property
    def names(self) -> set[str]:
        return {self.name} if self.beside is None else {self.name, self.beside}


_PANELS = (
    _Panel("ITC loss", "itc", beside="itc_chance", beside_words="choosing blindly"),
    _Panel("ITM loss", "itm"),
    _Panel("LM loss", "lm"),
    _Panel("ITM probability", "itm_positive", "right pairs", "itm_negative", "wrong pairs"),
    _Panel("Different captions, share", "distinct_captions"),
    _Panel("ITC temperature", "temperature"),
    _Panel("Learning rate", "learning_rate"),
    _Panel("Gradient norm", "gradient_norm", logarithmic=True),
    _Panel("Hard negatives in a batch", "negatives"),
)


def training_curves(rows: Sequence[Row], title: str) -> Chart:
    """Draw the measurements of one training, in the order of its phases; borders of phases are marked."""
    curves, phases, steps = _laid_end_to_end(rows)
    panels = _panels_of(curves)
    if not panels:
        return empty_chart(title, "Nothing was measured in this training.")
    with house_style():
        columns = min(COLUMNS, len(panels))
        lines = math.ceil(len(panels) / columns)
        figure = new_figure(title, 0.85 + (2.0 if columns > 1 else 3.2) * lines)
        grid = figure.subplots(lines, columns, squeeze=False)
        cells = [axes for row in grid for axes in row]
        for panel, axes in zip(panels, cells, strict=False):
            _draw(axes, panel, curves)
            axes.set_xlim(-0.02 * steps, 1.02 * steps)
            _mark_phases(axes, [start for _, start in phases])
        for axes in cells[len(panels) :]:
            axes.set_visible(False)
        _explain(figure, [name for name, _ in phases])
    return Chart(figure)


def _laid_end_to_end(
    rows: Iterable[Row],
) -> tuple[dict[tuple[str, str], Curve], list[tuple[str, float]], float]:
    """Return each (split, name)'s points over the steps of all phases, where each begins, and all steps.

    Between two phases a curve has a gap: what one measured does not lead to what the next did.
    """
    by_phase: dict[str, list[Row]] = {}
    for row in rows:
        by_phase.setdefault(row["phase"], []).append(row)
    curves: dict[tuple[str, str], Curve] = {}
    phases: list[tuple[str, float]] = []
    before = 0.0
    for phase, measured in by_phase.items():
        phases.append((phase, before))
        for curve in curves.values():
            curve.append((before, math.nan))
        for row in sorted(measured, key=lambda row: row["step"]):
            point = (before + row["step"], finite(row["value"]))
            curves.setdefault((row["split"], row["name"]), []).append(point)
        before += max(row["step"] for row in measured)
    return curves, phases, max(before, 1.0)


def _panels_of(curves: Mapping[tuple[str, str], Curve]) -> list[_Panel]:
    """Return the panels that have something to show, those of unknown measurements last."""
    measured = {name for _, name in curves}
    panels = [panel for panel in _PANELS if measured & panel.names]
    known = {name for panel in panels for name in panel.names}
    return (panels + [_Panel(name, name) for name in sorted(measured - known)])[:MOST_PANELS]


def _draw(axes: Axes, panel: _Panel, curves: Mapping[tuple[str, str], Curve]) -> None:
    scale, suffix = _scale(curve for (_, name), curve in curves.items() if name in panel.names)
    values: list[float] = []
    for split, colour in (("train", TRAINING), ("validation", HELD_OUT)):
        for name, words in ((panel.name, panel.words), (panel.beside, panel.beside_words)):
            points = [(step, value * scale) for step, value in curves.get((split, str(name)), ())]
            if not points:
                continue
            style: dict[str, Any] = {"color": colour, "linewidth": 1.2}
            if name == panel.beside:
                style["linestyle"] = (0, (4, 2))
            elif split == "validation" and len(points) <= _DOTTED:
                style |= {"marker": "o", "markersize": 3}
            line(axes, *zip(*points, strict=True), **style)
            measured = [point for point in points if not math.isnan(point[1])]
            values += [value for _, value in measured]
            if words and measured:
                below = name == panel.beside
                _write(
                    axes, words, measured[-1], (0, -4 if below else 5), "right", "top" if below else "bottom"
                )
    axes.set_title(shown(panel.title) + suffix)
    if panel.logarithmic and values and min(values) > 0 and max(values) > _WIDE * min(values):
        axes.set_yscale("log")
    axes.margins(y=0.2 if panel.beside else 0.12)
    axes.locator_params(axis="x", nbins=4)
    plain_numbers(axes)


def _scale(curves: Iterable[Curve]) -> tuple[float, str]:
    """Return what small values are multiplied by to be read without zeros, and how the title says so."""
    most = max((abs(value) for curve in curves for _, value in curve if not math.isnan(value)), default=0.0)
    if most == 0 or most >= 1e-2:
        return 1.0, ""
    exponent = math.floor(math.log10(most) + 0.01)  # 0.000999 is as good as 0.001
    power = str(-exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return 10.0**-exponent, f", \N{MULTIPLICATION SIGN} 10⁻{power}"


def _mark_phases(axes: Axes, starts: Sequence[float]) -> None:
    """Draw a thin line where a phase begins after another, with its number."""
    top = axes.get_ylim()[1]
    for number, start in list(enumerate(starts, 1))[1:]:
        axes.axvline(start, color="#9A9A9A", linewidth=0.8, zorder=0.5)
        _write(axes, str(number), (start, top), (3, -2), "left", "top")


def _write(
    axes: Axes,
    words: str,
    at: tuple[float, float],
    offset_pt: tuple[float, float],
    across: Literal["left", "right"],
    upright: Literal["top", "bottom"],
) -> None:
    """Write small words beside a point, with a white rim so that lines do not run through them."""
    from matplotlib.patheffects import withStroke

    axes.annotate(
        words,
        at,
        xytext=offset_pt,
        textcoords="offset points",
        ha=across,
        va=upright,
        fontsize=7.5,
        color=QUIET,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )


def _explain(figure: Figure, phases: Sequence[str]) -> None:
    """Write what the colours are beside the title, and what the phases are below the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=TRAINING, linewidth=1.5, label="training pairs"),
        Line2D([], [], color=HELD_OUT, linewidth=1.5, marker="o", markersize=3, label="held-out pairs"),
    ]
    figure.legend(handles=handles, loc="upper right", ncols=2)
    words = "over optimizer steps" + (f"; phases {', '.join(phases)}" if len(phases) > 1 else "")
    figure.supxlabel(shown(words, 115), x=0.012, ha="left", fontsize=8.5, color=QUIET)
