"""The charts of calibration: what a threshold lets pass of held-out pairs, and what it promises."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt.evaluation.calibration import precision_recall
from capfilt.records import SCORES
from capfilt.reports.drawing import INK, QUIET, line, plain_numbers
from capfilt.reports.html.panels import (
    CHOSEN,
    HARD,
    RIGHT,
    SHUFFLED,
    Panel,
    Table,
    percent,
    sheet,
    upright_threshold,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.records import Measure

EVEN = 0.5
"""Share of wrong pairs that precision is told for, where the policy names no other."""
_STEPS = 100
"""Thresholds at which shares are drawn."""
_ROWS = 10
"""Steps of the tables behind the curves."""
_KINDS = (
    ("right", "right captions", RIGHT, "-"),
    ("shuffled", "shuffled captions", SHUFFLED, (0, (5, 2))),
    ("hard", "hard wrong captions", HARD, (0, (1.5, 1.5))),
)
_NOISE = re.compile(r"at noise rate ([\d.e-]+)")


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A score on held-out clean pairs and on wrong ones, and the threshold that was chosen."""

    measure: Measure
    values: dict[str, list[float]]
    """Scores of `right`, `shuffled` and `hard` pairs; `right` is not empty."""
    threshold: float | None
    noise_rate: float = EVEN

    @classmethod
    def of(
        cls, measure: Measure, values: dict[str, list[float]], threshold: float | None, chosen: str
    ) -> Calibrated:
        """Return it with the noise rate that the policy's own words name, if they do."""
        named = _NOISE.search(chosen)
        return cls(measure, values, threshold, float(named[1]) if named else EVEN)

    @property
    def ends(self) -> tuple[float, float]:
        """What the axis of the score goes from and to."""
        if SCORES[self.measure.score].is_probability:
            return 0.0, 1.0
        every = [value for values in self.values.values() for value in values]
        return math.floor(min(every) * 20) / 20, math.ceil(max(every) * 20) / 20


def passing_chart(one: Calibrated) -> Panel:
    """Draw which share of right and of wrong captions passes a threshold, over all thresholds."""
    name, (low, high) = one.measure.words, one.ends
    kinds = [(key, words, colour, dash) for key, words, colour, dash in _KINDS if one.values.get(key)]
    with sheet() as drawn:
        axes = drawn.figure.subplots()
        axes.set_xlim(low, high)
        axes.set_ylim(-0.02, 1.02)
        steps = [low + (high - low) * step / _STEPS for step in range(_STEPS + 1)]
        for key, words, colour, dash in kinds:
            shares = [_share(one.values[key], step) for step in steps]
            label = words.removesuffix(" captions")
            line(axes, steps, shares, color=colour, linestyle=dash, linewidth=1.7, label=label)
        if one.threshold is not None:
            upright_threshold(axes, one.threshold)
            for key, _, colour, _ in kinds:
                axes.plot(
                    [one.threshold],
                    [_share(one.values[key], one.threshold)],
                    "o",
                    color=colour,
                    markersize=5,
                    zorder=5,
                )
        axes.set_xlabel(f"threshold of {name}")
        axes.set_title("share that passes", color=QUIET, fontsize=8.5)
        drawn.legend(axes)
        plain_numbers(axes)
        at = (
            ""
            if one.threshold is None
            else "; ".join(
                f"{percent(_share(one.values[key], one.threshold), 1)} of {words}" for key, words, *_ in kinds
            )
        )
        thresholds = [low + (high - low) * step / _ROWS for step in range(_ROWS + 1)]
        if one.threshold is not None:
            thresholds = sorted({*thresholds, one.threshold})
        return drawn.panel(
            f"passing-{one.measure.column}",
            f"What passes a threshold of {name}",
            alt="Three falling lines over the threshold, for held-out clean captions and two kinds of wrong "
            "ones." + (f" At the policy's {one.threshold:.3g} pass {at}." if at else ""),
            table=Table(
                (f"{name} of at least", *(words for _, words, *_ in kinds)),
                [
                    (
                        f"{t:.3g}" + (" (chosen)" if t == one.threshold else ""),
                        *(round(_share(one.values[key], t), 3) for key, *_ in kinds),
                    )
                    for t in thresholds
                ],
            ),
            note=f"At the policy's {one.threshold:.3g} pass {at}."
            if at
            else "The policy has no threshold on this score.",
        )


def precision_chart(one: Calibrated) -> Panel:
    """Draw precision over recall against shuffled captions, with the chosen point."""
    import numpy as np

    right, wrong = np.array(one.values["right"]), np.array(one.values.get("shuffled", []))
    known = [(float(t), *precision_recall(right, wrong, float(t), one.noise_rate)) for t in _thresholds(one)]
    with sheet() as drawn:
        axes = drawn.figure.subplots()
        xs, ys = [recall for _, _, recall in known], [precision for _, precision, _ in known]
        bottom = min(1 - one.noise_rate, *(y for y in ys if not math.isnan(y)))
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(bottom - 0.04 * (1 - bottom) - 0.005, 1 + 0.04 * (1 - bottom) + 0.005)
        axes.axhline(1 - one.noise_rate, color="#9A9A9A", linewidth=1)
        write(axes, "keeping all", (0, 1 - one.noise_rate), move=(2, 3))
        line(axes, xs, ys, color=RIGHT, linewidth=1.7)
        chosen = ""
        if one.threshold is not None:
            precision, recall = precision_recall(right, wrong, one.threshold, one.noise_rate)
            if not math.isnan(precision):
                chosen = f"precision {precision:.2f}, recall {recall:.2f}"
                axes.plot([recall], [precision], "o", color=CHOSEN, markersize=7, zorder=5)
                side = "right" if recall > 0.5 else "left"
                down = precision > (1 + bottom) / 2
                write(
                    axes,
                    f"chosen: {one.threshold:.3g}",
                    (recall, precision),
                    color=INK,
                    ha=side,
                    va="top" if down else "bottom",
                    move=(0, -8 if down else 8),
                )
        axes.set_xlabel("right captions kept (recall)")
        axes.set_title("right among the kept (precision)", color=QUIET, fontsize=8.5)
        plain_numbers(axes)
        every = max(1, len(known) // (2 * _ROWS))
        noise = f"were {one.noise_rate:.0%} of pairs wrong"
        return drawn.panel(
            f"precision-{one.measure.column}",
            f"What a threshold of {one.measure.words} promises",
            alt=f"Precision over recall on {len(right):,} held-out pairs, {noise}."
            + (f" The policy's point: {chosen}." if chosen else ""),
            table=Table(
                (f"{one.measure.words} of at least", "precision", "recall"),
                [(f"{t:.3g}", _number(p), round(r, 3)) for t, p, r in known[::every]],
            ),
            note=(f"The policy: {chosen}, {noise}" if chosen else f"On held-out pairs, {noise}")
            + ". Shuffled captions are easier to find than real noise.",
        )


def _share(values: Sequence[float], threshold: float) -> float:
    return sum(value >= threshold for value in values) / len(values)


def _thresholds(one: Calibrated) -> Sequence[float]:
    """Return thresholds that a curve is drawn through: at most a hundred of the right pairs' own scores."""
    import numpy as np

    found: Any = np.unique(one.values["right"])
    return [float(found[place]) for place in np.unique(np.linspace(0, len(found) - 1, _STEPS).astype(int))]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)
