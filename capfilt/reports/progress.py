"""Show how far a run is: bars in a terminal, plain lines elsewhere, nothing when asked to be quiet.

All of it goes to stderr, so that stdout holds results alone. Several tasks can be under way at once:
captioner and filter are trained side by side.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from capfilt.reports.rate import Rate, duration, per_second_words
from capfilt.reports.text import terminal, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from rich.console import Console
    from rich.progress import TaskID

    from capfilt.stages.context import Progress

EVERY_S = 10.0
"""Least seconds between two plain lines about work under way."""


@dataclass
class _Task:
    """What is known of one task."""

    name: str
    unit: str
    total: int | None
    began: float
    done: int = 0
    rate: Rate = field(default_factory=Rate)

    def words(self, now: float) -> str:
        """Return count, rate and time left, as far as they are known."""
        total = "" if self.total is None else f"/{self.total:,}"
        parts = [f"{self.done:,}{total} {self.unit}"]
        if (rate := self.rate.per_second(now)) is not None:
            parts.append(per_second_words(rate, self.unit))
        if (left := self.rate.seconds_left(now, self.total)) is not None:
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)

    def last_words(self, now: float) -> str:
        """Return what the task came to."""
        parts = [f"{self.done:,} {self.unit} in {duration(now - self.began)}"]
        if (rate := self.rate.overall(now)) is not None:
            parts.append(per_second_words(rate, self.unit))
        return ", ".join(parts)


class _Tasks:
    """The tasks under way; what both forms of progress share."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.running: dict[str, _Task] = {}

    def begin(self, name: str, unit: str, total: int | None) -> _Task:
        task = _Task(name, unit, total, self.clock())
        self.running[name] = task
        return task

    def update(self, name: str, done: int, total: int | None) -> _Task:
        task = self.running[name]
        task.done = done
        task.total = total if total else task.total
        task.rate.see(self.clock(), done)
        return task


class PlainProgress:
    """Plain lines: one when a task begins, one when it ends, and one every ten seconds at most between."""

    def __init__(self, file: IO[str] | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._tasks = _Tasks(clock)
        self._last_line = float("-inf")

    def begin(self, task: str, unit: str, total: int | None = None) -> None:
        """Show a task, with what is counted."""
        self._tasks.begin(task, unit, total)
        self._last_line = self._tasks.clock()
        self.say(f"{task} ..." if total is None else f"{task}: {total:,} {unit} ...")

    def update(self, task: str, done: int, total: int | None = None) -> None:
        """Say how much of a task is done; all that are under way share the line."""
        self._tasks.update(task, done, total)
        now = self._tasks.clock()
        if now - self._last_line >= EVERY_S:
            self._last_line = now
            self.say("; ".join(f"{known.name}: {known.words(now)}" for known in self._tasks.running.values()))

    def end(self, task: str) -> None:
        """Show a task as done."""
        known = self._tasks.running.pop(task)
        self.say(f"{task}: done, {known.last_words(self._tasks.clock())}")

    def say(self, text: str) -> None:
        """Say a sentence that stays."""
        print(visible(text), file=self._file or sys.stderr, flush=True)


class BarProgress:
    """Bars in a terminal, with count, rate and time left; a context that puts the terminal right again."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._tasks = _Tasks(clock)
        self._ids: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[words]}", markup=False),
            console=console,
        )

    def __enter__(self) -> BarProgress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def begin(self, task: str, unit: str, total: int | None = None) -> None:
        """Show a task, with what is counted."""
        self._tasks.begin(task, unit, total)
        self._ids[task] = self._bars.add_task(visible(task), total=total, words=unit)

    def update(self, task: str, done: int, total: int | None = None) -> None:
        """Say how much of a task is done."""
        known = self._tasks.update(task, done, total)
        words = known.words(self._tasks.clock())
        self._bars.update(self._ids[task], completed=done, total=known.total, words=words)

    def end(self, task: str) -> None:
        """Show a task as done."""
        known = self._tasks.running.pop(task)
        done = max(known.done, 1)
        self._bars.update(
            self._ids.pop(task), completed=done, total=done, words=known.last_words(self._tasks.clock())
        )

    def say(self, text: str) -> None:
        """Say a sentence that stays."""
        self._bars.console.print(visible(text))


class QuietProgress:
    """Says nothing: what must be known is in the result."""

    def begin(self, task: str, unit: str, total: int | None = None) -> None:
        """Show nothing."""

    def update(self, task: str, done: int, total: int | None = None) -> None:
        """Show nothing."""

    def end(self, task: str) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""


@contextmanager
def shown_progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Yield the progress that fits: quiet when asked, bars in a terminal, plain lines elsewhere."""
    if quiet:
        yield QuietProgress()
        return
    console = terminal(stderr=True)
    if not console.is_terminal:
        yield PlainProgress()
        return
    with BarProgress(console) as bars:
        yield bars
