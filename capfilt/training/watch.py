"""Early warnings: the known ways in which a training goes wrong, read from its measurements.

A pure function of the rows that the loop writes: it asks no model, draws nothing and keeps nothing, so a
training that was killed and goes on is judged like one that never stopped. What was once seen in the first
rows stays seen in more of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

RIGHT_SHARE = 1 / 3
"""Right pairs among those that ITM sees: each has a wrong text and a wrong image beside it."""
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.001, 0.5
"""The model's clamp; written here again because models need torch and this does not."""

ITM_MARGIN = 0.01
"""Nats around the loss of the base rate within which ITM has learnt next to nothing."""
ITM_GAP = 0.1
"""Least difference between the mean probabilities of right and of wrong pairs that counts as learnt."""
ITC_MARGIN = 0.02
"""Part of the loss of chance within which ITC has learnt next to nothing."""
FEW_CAPTIONS = 0.05
"""Share of different captions at which they are all but constant: one for twenty pictures."""
RISE = 0.02
"""Part by which a validation loss must have risen before it is more than noise."""

VALIDATIONS = 3
"""Validations in a row that must agree."""
CAPTION_VALIDATIONS = 2
"""Those of captions: a captioner that says one thing of everything is beyond chance."""
TEMPERATURE_ROWS = 5
"""Training rows in a row with the temperature at its clamp."""

Row = Mapping[str, Any]
"""One measurement: phase, step, split, name, value."""
Point = tuple[int, float]
"""A step and what was measured there."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that went wrong before in trainings that looked like this one."""

    name: str
    """itm_stuck, constant_captions, temperature_clamped, itc_at_chance or overfitting."""
    phase: str
    since: int
    """Step from which on it can be seen."""
    step: int
    """Step at which there was enough of it to speak."""
    words: str
    """What is seen."""
    fix: str
    """What to try, with the setting to change."""
    collapse: bool = True
    """False for a remark: the model learns, and this part of its time is wasted."""


class Watch:
    """Tells each alarm once.

    It holds no more than what it has told. After a restart, `look` at the rows of the checkpoint tells
    again what they show, once.
    """

    def __init__(self, *, steps: Mapping[str, int], setting: str, right_share: float = RIGHT_SHARE) -> None:
        self._steps = steps
        self._setting = setting
        self._right_share = right_share
        self._told: set[tuple[str, str]] = set()

    def look(self, rows: Sequence[Row]) -> list[Alarm]:
        """Return the alarms of all rows so far that were not returned before."""
        found = alarms(rows, steps=self._steps, setting=self._setting, right_share=self._right_share)
        new = [alarm for alarm in found if (alarm.phase, alarm.name) not in self._told]
        self._told.update((alarm.phase, alarm.name) for alarm in new)
        return new


def alarms(
    rows: Sequence[Row], *, steps: Mapping[str, int], setting: str, right_share: float = RIGHT_SHARE
) -> list[Alarm]:
    """Return every known fault that the rows of one training show, at most one of a kind in a phase.

    `steps` says how long each phase is in all, by its name in the rows; `setting` where the training's
    phases stand in the settings, e.g. filter_training. Rows of other measurements change nothing.
    """
    by_phase: dict[str, dict[tuple[str, str], list[Point]]] = {}
    for row in rows:
        curves = by_phase.setdefault(row["phase"], {})
        curves.setdefault((row["split"], row["name"]), []).append((row["step"], row["value"]))
    found: list[Alarm] = []
    for name, curves in by_phase.items():
        phase = _Phase(name, steps[name], setting, {key: sorted(points) for key, points in curves.items()})
        seen = (
            _itm_stuck(phase, right_share),
            _constant_captions(phase),
            _temperature_clamped(phase),
            _itc_at_chance(phase),
            _overfitting(phase),
        )
        found += sorted((alarm for alarm in seen if alarm), key=lambda alarm: alarm.step)
    return found


@dataclass(frozen=True, slots=True)
class _Phase:
    """The measurements of one phase."""

    name: str
    steps: int
    setting: str
    curves: Mapping[tuple[str, str], Sequence[Point]]

    def train(self, name: str) -> Sequence[Point]:
        return self.curves.get(("train", name), ())

    def validation(self, name: str) -> Sequence[Point]:
        return self.curves.get(("validation", name), ())

    def at(self, choice: str) -> str:
        """Return the flag that changes a choice of this phase."""
        number = int(self.name.partition(":")[0]) - 1
        return f"--set {self.setting}.phases.{number}.{choice}"

    def has(self, objective: str) -> bool:
        """Say whether the phase trains with a loss; its name lists them."""
        return objective in self.name.partition(":")[2].strip().split("+")


def _itm_stuck(phase: _Phase, right_share: float) -> Alarm | None:
    """ITM answers the base rate to every pair, though a third of its own time has passed."""
    trained = phase.train("itm")
    if not trained:
        return None
    start = trained[0][0]
    floor = -sum(share * math.log(share) for share in (right_share, 1 - right_share))
    right, wrong = dict(phase.validation("itm_positive")), dict(phase.validation("itm_negative"))

    def stuck(point: Point) -> bool:
        step, loss = point
        # A model too sure of itself may have this loss and tell right from wrong all the same.
        told_apart = step in right and step in wrong and right[step] - wrong[step] >= ITM_GAP
        return abs(loss - floor) <= ITM_MARGIN and not told_apart

    points = [point for point in phase.validation("itm") if point[0] >= start]
    run = _first_run(points, stuck, VALIDATIONS, start + (phase.steps - start) / 3)
    if run is None:
        return None
    last = run[-1][0]
    answers = ""
    if last in right and last in wrong:
        answers = f" (a right pair gets {right[last]:.2f}, a wrong one {wrong[last]:.2f})"
    beside = "" if phase.has("itc") else f", or train ITC beside it ({phase.at('itc=1')})"
    return Alarm(
        "itm_stuck",
        phase.name,
        run[0][0],
        last,
        f"ITM is stuck at the base rate since step {run[0][0]:,}: its loss on held-out pairs is "
        f"{run[-1][1]:.3f}, and the same answer for every pair would give {floor:.3f}{answers}",
        "let ITM begin later, when similarities make its negatives hard "
        f"({phase.at('itm_from=0.5')}), or lower the learning rate ({phase.at('learning_rate=...')})"
        f"{beside}; if it stays, judge by ITC",
    )


def _constant_captions(phase: _Phase) -> Alarm | None:
    """The captioner says much the same of every picture, a third of the phase being over."""
    points = [point for point in phase.validation("distinct_captions") if 3 * point[0] >= phase.steps]
    run = _first_run(points, lambda point: point[1] <= FEW_CAPTIONS, CAPTION_VALIDATIONS)
    if run is None:
        return None
    return Alarm(
        "constant_captions",
        phase.name,
        run[0][0],
        run[-1][0],
        f"the captions are all but constant since step {run[0][0]:,}: of those for held-out pictures "
        f"{run[-1][1]:.0%} differ, so they say nothing of the picture",
        f"lower the learning rate ({phase.at('learning_rate=...')}) or train longer "
        f"({phase.at(f'steps={2 * phase.steps}')}); see too that the clean captions differ and belong to "
        "their pictures",
    )


def _temperature_clamped(phase: _Phase) -> Alarm | None:
    """The learned temperature of ITC wants to leave its bounds."""
    runs = [
        (bound, run)
        for bound in (LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE)
        if (run := _first_run(phase.train("temperature"), _near(bound), TEMPERATURE_ROWS))
    ]
    if not runs:
        return None
    bound, run = min(runs, key=lambda found: found[1][-1][0])
    if bound == LOWEST_TEMPERATURE:
        meaning = "lowest bound, and ITC is surer of itself than it can be"
        also = "see whether the same pictures and captions stand in the clean set again and again"
    else:
        meaning = "highest bound, and ITC finds nothing to tell pairs apart by"
        also = f"give ITC more pairs to compare ({phase.at('batch_size=...')})"
    return Alarm(
        "temperature_clamped",
        phase.name,
        run[0][0],
        run[-1][0],
        f"the temperature has been {bound:g} since step {run[0][0]:,}: that is its {meaning}",
        f"lower the learning rate ({phase.at('learning_rate=...')}), or {also}",
    )


def _itc_at_chance(phase: _Phase) -> Alarm | None:
    """ITC picks the right text of a batch no better than blindly, a third of the phase being over."""
    chance = dict(phase.validation("itc_chance"))

    def blind(point: Point) -> bool:
        blindly = chance.get(point[0], 0.0)
        return blindly > 0 and abs(point[1] - blindly) <= ITC_MARGIN * blindly

    run = _first_run(phase.validation("itc"), blind, VALIDATIONS, phase.steps / 3)
    if run is None:
        return None
    return Alarm(
        "itc_at_chance",
        phase.name,
        run[0][0],
        run[-1][0],
        f"ITC is at chance since step {run[0][0]:,}: its loss on held-out pairs is {run[-1][1]:.2f}, and "
        f"choosing blindly gives {chance[run[-1][0]]:.2f}",
        f"lower the learning rate or warm it up for longer ({phase.at('learning_rate=...')}, "
        f"{phase.at('warmup=0.1')}), or begin from trained weights (--init MODEL); see too that the captions "
        "belong to their pictures",
    )


def _overfitting(phase: _Phase) -> Alarm | None:
    """A loss falls in training and rises on held-out pairs, validation after validation."""
    found = [
        (run, objective)
        for objective in ("itc", "itm", "lm")
        if (run := _parting(phase.train(objective), phase.validation(objective)))
    ]
    if not found:
        return None
    run, objective = min(found, key=lambda pair: pair[0][-1][0])
    (best, lowest), (last, now) = run[0], run[-1]
    return Alarm(
        "overfitting",
        phase.name,
        best,
        last,
        f"{objective.upper()} has learnt its pairs by heart since step {best:,}: in training its loss falls, "
        f"on held-out pairs it rose from {lowest:.3g} to {now:.3g}",
        f"end the phase there ({phase.at(f'steps={best}')}), give more clean pairs, or raise the weight "
        f"decay ({phase.at('weight_decay=...')})",
        collapse=False,
    )


def _parting(train: Sequence[Point], validation: Sequence[Point]) -> Sequence[Point] | None:
    """Return the first validations that rise one after the other while the training loss falls."""
    for run in _windows(validation, VALIDATIONS + 1):
        rises = all(before[1] < after[1] for before, after in pairwise(run))
        if not rises or run[-1][1] - run[0][1] < RISE * abs(run[0][1]):
            continue
        first, last = (_latest(train, step) for step in (run[0][0], run[-1][0]))
        if first is not None and last is not None and last < first:
            return run
    return None


def _first_run(
    points: Sequence[Point], holds: Callable[[Point], bool], least: int, not_before: float = 0.0
) -> Sequence[Point] | None:
    """Return the first run of at least `least` points that all hold, once it reaches step `not_before`."""
    run: list[Point] = []
    for point in points:
        if not holds(point):
            run.clear()
            continue
        run.append(point)
        if len(run) >= least and point[0] >= not_before:
            return run
    return None


def _windows(points: Sequence[Point], length: int) -> Iterator[Sequence[Point]]:
    return (points[start : start + length] for start in range(len(points) - length + 1))


def _latest(points: Sequence[Point], step: int) -> float | None:
    """Return what was measured last, up to a step."""
    return next((value for at, value in reversed(points) if at <= step), None)


def _near(bound: float) -> Callable[[Point], bool]:
    """Return whether a point is at a bound, as far as fp32 and bf16 can tell."""
    return lambda point: math.isclose(point[1], bound, rel_tol=1e-2)
