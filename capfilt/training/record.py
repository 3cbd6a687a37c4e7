"""What a training measures, as rows: losses all along, held-out losses now and then, warnings of both."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch

from capfilt.training.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.settings import Phase

Row = dict[str, Any]
"""One measurement, as in the catalog's metrics view, without the model's name."""


class Record:
    """The rows of a training; losses wait on the device until they are written."""

    def __init__(self, phases: Sequence[tuple[Phase, int]], setting: str) -> None:
        """`phases` come with their steps; `setting` is the name of the setting that holds them."""
        self.rows: list[Row] = []
        self._waiting: list[tuple[int, dict[str, torch.Tensor], torch.Tensor | None, float]] = []
        self._names = [_name(number, phase) for number, (phase, _) in enumerate(phases)]
        self._phase = self._names[0]
        steps = dict(zip(self._names, (steps for _, steps in phases), strict=True))
        self._watch = Watch(steps=steps, setting=setting)

    def begin(self, number: int) -> None:
        """Begin, or go on with, a phase."""
        self._phase = self._names[number]

    def resume(self, rows: list[Row]) -> None:
        """Take up the rows of a training that goes on; what was wrong in them has been said."""
        self.rows = rows
        self._watch.look(rows)

    def step(
        self, step: int, parts: dict[str, torch.Tensor], negatives: torch.Tensor | None, rate: float
    ) -> None:
        """Note what a step measured, without asking the device for it; steps are counted from 1."""
        self._waiting.append((step, parts, negatives, rate))

    def write(self, temperature: torch.Tensor | None) -> str:
        """Turn the losses since the last time into rows: their means, and each step without negatives.

        Returns what is wrong where a loss is no number; else nothing.
        """
        if not self._waiting:
            return ""
        last = self._waiting[-1][0]
        for name in self._waiting[-1][1]:
            values = [(step, parts[name]) for step, parts, _, _ in self._waiting if name in parts]
            numbers = torch.stack([value.float() for _, value in values]).tolist()
            for (step, _), number in zip(values, numbers, strict=True):
                if not math.isfinite(number):
                    return f"{name} is {number} at step {step}"
            self._row(last, "train", name, sum(numbers) / len(numbers))
        counted = [(step, count) for step, _, count, _ in self._waiting if count is not None]
        counts = torch.stack([count for _, count in counted]).tolist() if counted else []
        for (step, _), count in zip(counted, counts, strict=True):
            if count == 0 or step == last:
                self._row(step, "train", "negatives", float(count))
        self._row(last, "train", "learning_rate", self._waiting[-1][3])
        if temperature is not None:
            self._row(last, "train", "temperature", float(temperature))
        self._waiting.clear()
        return ""

    def validation(self, step: int, measured: dict[str, float]) -> None:
        """Note what was measured on held-out pairs."""
        for name, value in measured.items():
            self._row(step, "validation", name, value)

    def warnings(self) -> list[str]:
        """Return what looks wrong in the rows, and was not said before."""
        return [f"{alarm.words}; {alarm.fix}" for alarm in self._watch.look(self.rows)]

    def _row(self, step: int, split: str, name: str, value: float) -> None:
        self.rows.append(
            {
                "phase": self._phase,
                "step": step,
                "split": split,
                "name": name,
                "value": value,
                "time": time.time(),
            }
        )


def _name(number: int, phase: Phase) -> str:
    """Return a phase's name: its number, from 1, and its losses."""
    return f"{number + 1}: " + "+".join(o for o in ("itc", "itm", "lm") if getattr(phase, o))
