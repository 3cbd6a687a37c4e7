"""What a stage is given: the run, its choices, its inputs, somebody to do the work, somebody to tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from capfilt.stages.parts import FoundParts

if TYPE_CHECKING:
    from capfilt.provenance.rundir import RunDir
    from capfilt.records import Shard
    from capfilt.settings import Bootstrap

Item = TypeVar("Item")
Result = TypeVar("Result")


class Tell(Protocol):
    """A worker's word on its item."""

    def __call__(self, done: int, total: int, words: str = "") -> None:
        """Say how much is done, in units that the stage knows; or a sentence, without numbers."""
        ...


Work = Callable[[Item, str, Tell], Result]
"""What a worker does with one item on one device; importable by name, since it crosses processes."""


class Engine(Protocol):
    """Hands out items to workers."""

    def run(
        self,
        work: Work[Item, Result],
        items: Sequence[Item],
        *,
        devices: Sequence[str],
        threads: int,
        hear: Callable[[int, int, int], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Yield (number of the item, its result) as they come; one worker for each device.

        `hear` is told (number of the item, done, in all), `say` the sentences of workers. An exception in
        a worker stops all and is raised.
        """
        ...


class Progress(Protocol):
    """Shows how far a stage is."""

    def begin(self, task: str, unit: str, total: int | None = None) -> None:
        """Show a task, with what is counted."""
        ...

    def update(self, task: str, done: int, total: int | None = None) -> None:
        """Say how much of a task is done."""
        ...

    def end(self, task: str) -> None:
        """Show a task as done."""
        ...

    def say(self, text: str) -> None:
        """Say a sentence that stays."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a stage ended."""

    status: Literal["done", "withheld"] = "done"
    detail: str = ""
    """What it made, or why it was withheld."""
    count: int | None = None
    """Images, steps or pairs."""
    next_command: str = ""
    """What to type after a stage that was withheld."""


@dataclass
class Context:
    """One start of a run."""

    run: RunDir
    settings: Bootstrap
    web: list[Shard]
    clean: list[Shard]
    engine: Engine
    progress: Progress
    devices: list[str]
    """Device of each worker."""
    precision: str
    """fp32, bf16 or int8, resolved."""
    start: int = 1
    """Which start of the run, from 1."""
    round: int = 1
    """Round of bootstrapping."""
    parts: FoundParts = field(default_factory=FoundParts)
    """What models from nothing are begun with."""

    def say_precision(self) -> None:
        """Say in which numbers models caption and score, where these are not the ones they were made in."""
        if self.precision != "fp32":
            device = self.devices[0].partition(":")[0]
            self.progress.say(f"models compute in {self.precision} on {device}; --precision fp32 is exact")


class Stage(Protocol):
    """A verb of a pipeline."""

    @property
    def name(self) -> str:
        """Name in the record."""
        ...

    def settings(self, context: Context) -> dict[str, Any]:
        """Return the choices it acts on, for the record."""
        ...

    def run(self, context: Context) -> Outcome:
        """Do it; what is already done is not done again."""
        ...
