"""One item of work, done by one worker, whose result is waited for.

A stage never loads torch itself: even one question about a model is put to a worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capfilt.stages.context import Engine, Item, Progress, Result, Work


def in_a_worker(
    engine: Engine, work: Work[Item, Result], item: Item, *, device: str = "cpu", threads: int = 1
) -> Result:
    """Have a worker do one item, and return what came of it."""
    [(_, result)] = list(engine.run(work, [item], devices=[device], threads=threads))
    return result


def seen_in_a_worker(
    engine: Engine,
    work: Work[Item, Result],
    item: Item,
    progress: Progress,
    task: str,
    *,
    device: str,
    threads: int,
    unit: str = "steps",
    total: int | None = None,
) -> Result:
    """Have a worker do one item, show how far it is and what it says, and return what came of it."""

    def hear(_: int, done: int, total: int) -> None:
        progress.update(task, done, total)

    progress.begin(task, unit, total)
    [(_, result)] = list(
        engine.run(work, [item], devices=[device], threads=threads, hear=hear, say=progress.say)
    )
    progress.end(task)
    return result
