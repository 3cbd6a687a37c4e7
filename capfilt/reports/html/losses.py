"""The charts of the trainings: how the losses fell, on the pairs that were learnt and on held-out ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.provenance.statistics.reading import rows
from capfilt.reports.drawing import SERIES, line, plain_numbers, shown
from capfilt.reports.html.panels import Panel, Table, sheet, write

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb

LOSSES = ("loss", "itc", "itm", "lm")
"""Measurements of a training that fall as it learns."""
POINTS = 120
"""Points of a phase's curve; a longer training is averaged."""
_MOST_ROWS = 20
"""Rows of the table behind a curve, for each split."""
_ORDER = ("init", "joint", "captioner", "filter", "next")
_WORDS = {"itc": "ITC loss", "itm": "ITM loss", "lm": "LM loss"}
_SPLITS = {"train": (SERIES[0], "training pairs"), "validation": (SERIES[1], "held-out pairs")}
_MEASURED = f"""
    WITH wide AS (
        SELECT *, max(step) OVER (PARTITION BY model, phase) AS last FROM metrics
        WHERE name IN (SELECT unnest(?::VARCHAR[])) AND isfinite(value)
    )
    SELECT model, name, phase, split, avg(step) AS step, avg(value) AS value, any_value(last) AS last
    FROM wide GROUP BY model, name, phase, split, step * {POINTS} // (last + 1)
    ORDER BY model, name, phase, split, step
"""


@dataclass(frozen=True, slots=True)
class Curve:
    """One measurement of one training, over its steps; its phases follow each other."""

    model: str
    name: str
    points: dict[str, list[tuple[float, float]]]
    """(step, value) by split; NaN parts phases."""
    phases: list[tuple[str, float]]
    """Each phase and the step where it began."""


def losses(catalog: duckdb.DuckDBPyConnection) -> list[Curve]:
    """Return the losses of every training, at most POINTS points a phase and split."""
    curves: dict[tuple[str, str], Curve] = {}
    reached: dict[tuple[str, str], float] = {}
    for row in rows(catalog, _MEASURED, list(LOSSES)):
        name = (row["model"], row["name"])
        curve = curves.setdefault(name, Curve(*name, points={}, phases=[]))
        if not curve.phases or curve.phases[-1][0] != row["phase"]:
            curve.phases.append((row["phase"], reached.get(name, 0.0)))
            for points in curve.points.values():
                points.append((curve.phases[-1][1], math.nan))
        start = curve.phases[-1][1]
        curve.points.setdefault(row["split"], []).append((start + row["step"], row["value"]))
        reached[name] = start + row["last"]
    known = {model: place for place, model in enumerate(_ORDER)}
    return sorted(curves.values(), key=lambda one: (known.get(one.model, len(known)), one.model))


def loss_chart(curve: Curve) -> Panel:
    """Draw one loss of one training, on its own pairs and on held-out ones."""
    words = _WORDS.get(curve.name, curve.name)
    last = {
        split: next((value for _, value in reversed(points) if not math.isnan(value)), math.nan)
        for split, points in curve.points.items()
    }
    with sheet(2.4) as drawn:
        axes = drawn.figure.subplots()
        for split, points in curve.points.items():
            colour, label = _SPLITS.get(split, (SERIES[2], split))
            few = {"marker": "o", "markersize": 3.5} if len(points) <= 40 and split != "train" else {}
            xs, ys = zip(*points, strict=True)
            line(axes, xs, ys, color=colour, label=shown(label), **few)
        for phase, start in curve.phases[1:]:
            axes.axvline(start, color="#9A9A9A", linewidth=0.8)
            write(axes, shown(phase, 12), (start, axes.get_ylim()[1]), move=(3, -8))
        axes.set_xlabel("optimizer steps")
        drawn.legend(axes)
        axes.margins(x=0.02, y=0.1)
        plain_numbers(axes)
        ends = ", ".join(
            f"{value:.3g} on {_SPLITS.get(split, ('', split))[1]}" for split, value in last.items()
        )
        rows = [
            (_SPLITS.get(split, ("", split))[1], round(step), value)
            for split, points in curve.points.items()
            for step, value in _some([point for point in points if not math.isnan(point[1])], _MOST_ROWS)
        ]
        return drawn.panel(
            f"loss-{curve.model}-{curve.name}",
            f"{curve.model}: {words}",
            alt=f"Over the steps of the training; it ends at {ends}.",
            table=Table(("measured on", "step", words), rows),
        )


def _some(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Return at most so many points, the last one among them."""
    step = max(1, math.ceil(len(points) / most))
    return list(reversed(points[::-1][::step]))
