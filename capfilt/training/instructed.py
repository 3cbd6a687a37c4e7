"""Instruction data as batches: examples of many data sets, mixed by their weights, put into words when met.

Which example stands in a row, and in which words, is a function of the seed and the row's number alone. So
the batch of a step is the same for any number of processes, and a resumed training sees what an undisturbed
one would.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import torch

from capfilt.data.ahead import in_order
from capfilt.data.augment import augmented, numbers_needed
from capfilt.data.images import RefusedImage, decode, normalise, to_square
from capfilt.data.instructions.table import choose, one_of_each_kind
from capfilt.data.instructions.templates import instruct
from capfilt.draws import permutation, uniforms
from capfilt.errors import CapfiltError
from capfilt.models.devices import sent
from capfilt.models.prompted import Words, read_instructions, read_questions
from capfilt.records import Refusal
from capfilt.training.language import InstructedBatch
from capfilt.training.parallel import ALONE, World

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from capfilt.data.instructions.example import Example
    from capfilt.data.instructions.templates import Instruction, Template
    from capfilt.models.language_vocabulary import LanguageVocabulary
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings import Augment, Clean, Images, Input

_STEPS_AHEAD = 2
"""Steps whose pictures are decoded before they are asked for, where there are threads for it: at least so
many, and as many as threads, which take a step each."""


@dataclass(frozen=True)
class Task:
    """Examples of one data set, and the templates that put them into words."""

    name: str
    examples: Sequence[Example]
    templates: Sequence[Template]


def split_tasks(
    tasks: Sequence[Task], settings: Clean, pictures: Sequence[NDArray[np.int64]], *, seed: int
) -> tuple[list[Task], list[Task]]:
    """Return what is trained on and what is held out; all examples of a picture are on one side.

    `pictures` hold, for each example of each task, the place of its picture's digest among those of all
    pictures, sorted (`KeptSet`): so one picture in two folders is one, and the split is the same wherever the
    folders lie. They are held out in a drawn order until their examples reach the share that `settings` asks
    for. Of two pictures or more at least one is held out and one is not; a task may be empty on one side.
    """
    count = max((int(numbers.max()) + 1 for numbers in pictures if len(numbers)), default=0)
    every = np.zeros(count, np.int64)
    for numbers in pictures:
        every += np.bincount(numbers, minlength=count)
    wanted = min(settings.held_out_most, max(1, round(int(every.sum()) * settings.held_out)))
    drawn = permutation(count, "held out instructions", seed)[: max(0, count - 1)]
    found_before = np.cumsum(every[drawn]) - every[drawn]
    outside = np.zeros(count, bool)
    outside[drawn[found_before < wanted]] = True

    def side(is_outside: bool) -> list[Task]:
        return [
            Task(
                task.name,
                choose(task.examples, np.flatnonzero(outside[numbers] == is_outside)),
                task.templates,
            )
            for task, numbers in zip(tasks, pictures, strict=True)
        ]

    return side(False), side(True)


class Mixture:
    """Which example of which task stands in each row of a training.

    In a pass, which has as many rows as there are examples, every task has its share of the rows, spread by
    chance; each task goes through its own examples in a drawn order, and meets none again before all are met.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float]) -> None:
        """`sizes` are the examples of each task, at least one; `weights` their shares of any sum."""
        self._sizes = sizes
        whole = sum(weights)
        self._rows = np.array([max(1, round(sum(sizes) * weight / whole)) for weight in weights])
        self._ends = np.cumsum(self._rows)
        # Each task is in its own pass, and the mixture in one.
        self._order = lru_cache(maxsize=2 * len(sizes) + 2)(permutation)

    def __len__(self) -> int:
        """Return the rows of a pass."""
        return int(self._ends[-1])

    def at(self, row: int, *key: str | int) -> tuple[int, int]:
        """Return the task of a row, counted from 0 over all passes, and the example's number in it."""
        number, place = divmod(row, len(self))
        slot = int(self._order(len(self), "tasks", *key, number)[place])
        task = int(np.searchsorted(self._ends, slot, side="right"))
        rows, size = int(self._rows[task]), self._sizes[task]
        met = number * rows + slot - int(self._ends[task]) + rows
        again, place = divmod(met, size)
        return task, int(self._order(size, "examples", task, *key, again)[place])


@dataclass(frozen=True)
class InstructionReader:
    """Turns instructions and pictures into the numbers that a model trains on."""

    language: LanguageVocabulary
    qformer: Vocabulary | None
    """What the Q-Former reads instructions with; None where it reads none (BLIP-2)."""
    images: Images
    qformer_tokens: int
    """Longest instruction of the Q-Former, in tokens with the first and last one."""
    language_tokens: int
    """Longest instruction of the language model, and longest output, each."""
    device: torch.device
    limits: Input
    augment: Augment | None = None
    """How pictures are varied; not at all without."""

    def picture(self, example: Example, *key: str | int) -> NDArray[np.uint8]:
        """Return a picture's pixels, (3, side, side), varied where there is a key, which names the row.

        Raises RefusedImage for a picture that cannot be used or is not there.
        """
        try:
            data = example.image.read_bytes()
        except OSError as error:
            raise RefusedImage(Refusal.MISSING_IMAGE) from error
        picture = decode(data, max_pixels=self.limits.max_pixels)
        if key and self.augment is not None and self.augment.is_on:
            picture = augmented(
                picture,
                self.augment,
                side=self.images.size_px,
                numbers=uniforms(numbers_needed(self.augment), "augment", *key),
                transparency=self.images.transparency,
            )
        return to_square(picture, self.images)

    def batch(self, said: Sequence[Instruction], squares: Sequence[NDArray[np.uint8]]) -> InstructedBatch:
        """Return examples that were put into words, with their pictures, as a batch.

        A text that is too long loses its beginning as an instruction, which asks at its end, and its end as
        an output (LAVIS: truncation_side).
        """
        asked = None
        if self.qformer is not None:
            asked = read_instructions(self.qformer, [one.text for one in said], self.qformer_tokens)
        outputs = [f"{self.language.blank}{one.output}" for one in said]
        pixels = torch.from_numpy(np.stack(squares))
        return InstructedBatch(
            pixels=normalise(sent(pixels, self.device), self.images),
            asked=None if asked is None else self._sent(asked),
            read=self._sent(read_questions(self.language, [one.text for one in said], self.language_tokens)),
            output=self._sent(Words(*self.language.encode_output(outputs, self.language_tokens))),
        )

    def _sent(self, words: Words) -> Words:
        return Words(sent(words.ids, self.device), sent(words.real, self.device))


class InstructedBatches:
    """The batches of a training on instruction data, step after step."""

    def __init__(
        self,
        tasks: Sequence[Task],
        weights: Mapping[str, float],
        reader: InstructionReader,
        *,
        world: World = ALONE,
        threads: int = 0,
    ) -> None:
        """`weights` are by task; a task without examples takes no part.

        Raises CapfiltError where none has any, and where no template of a task fits one of its examples: at
        once, and not when that is met.
        """
        self.refused: Counter[str] = Counter()
        """Pictures of this process's rows that could not be used, counted by reason each time one is met."""
        self._tasks = [task for task in tasks if task.examples]
        if not self._tasks:
            raise CapfiltError(
                "no data set has an example to train on", fix="name data sets whose files can be read"
            )
        for task in self._tasks:
            for example in one_of_each_kind(task.examples):
                instruct(example, task.templates)
        sizes = [len(task.examples) for task in self._tasks]
        self._mixture = Mixture(sizes, [weights[task.name] for task in self._tasks])
        self._reader, self._world, self._threads = reader, world, threads
        self._next: tuple[object, int] | None = None
        """What the batches in hand were asked for, and the step that comes next."""
        self._batches: Iterator[InstructedBatch] = iter(())

    def __len__(self) -> int:
        return len(self._mixture)

    def steps_in_epoch(self, batch_size: int) -> int:
        """Return how many batches a pass begins; a batch may end in the next pass."""
        return max(1, round(len(self) / batch_size))

    def at(self, step: int, batch_size: int, parts: int, *key: str | int) -> InstructedBatch:
        """Return this process's rows of a step; in order, pictures of further steps are decoded meanwhile."""
        asked = (batch_size, parts, *key)
        if self._next != (asked, step):
            self._batches = self._from(step, batch_size, parts, *key)
        self._next = (asked, step + 1)
        return next(self._batches)

    def _from(self, first: int, batch_size: int, parts: int, *key: str | int) -> Iterator[InstructedBatch]:
        part = batch_size // parts
        mine = [number * part + row for number in range(parts) for row in range(part)[self._world.mine(part)]]

        def load(step: list[tuple[int, int, int]]) -> tuple[InstructedBatch, Counter[str]]:
            refused: Counter[str] = Counter()
            found = [self._row(*row, refused, *key) for row in step]
            return self._reader.batch([said for said, _ in found], [square for _, square in found]), refused

        steps = (
            [(row, *self._mixture.at(row, *key)) for row in (step * batch_size + one for one in mine)]
            for step in count(first)
        )
        ahead = max(_STEPS_AHEAD, self._threads) if self._threads else 0
        for batch, refused in in_order(load, steps, threads=self._threads, ahead=ahead):
            self.refused.update(refused)
            yield batch

    def _row(
        self, row: int, task: int, number: int, refused: Counter[str], *key: str | int
    ) -> tuple[Instruction, NDArray[np.uint8]]:
        """Return what stands in a row, and its picture."""
        found = self._tasks[task]
        taken, square = _usable(found.examples, number, self._reader, refused, *key, row)
        return instruct(found.examples[taken], found.templates, *key, row), square


class HeldOutInstructions:
    """Examples that are measured and not trained on, in a drawn order, whole in every process."""

    def __init__(self, tasks: Sequence[Task], reader: InstructionReader, *, seed: int) -> None:
        every = [(example, task.templates) for task in tasks for example in task.examples]
        order = permutation(len(every), "held out order", seed)
        self._examples = [every[number][0] for number in order]
        self._templates = [every[number][1] for number in order]
        self._reader, self._seed = reader, seed

    def __len__(self) -> int:
        return len(self._examples)

    def rows(self, rows: range) -> InstructedBatch:
        """Return the batch of these examples; the next stands for one whose picture cannot be used."""
        said, squares = [], []
        for row in rows:
            taken, square = _usable(self._examples, row, self._reader, Counter())
            said.append(instruct(self._examples[taken], self._templates[taken], "held out", self._seed))
            squares.append(square)
        return self._reader.batch(said, squares)


def _usable(
    examples: Sequence[Example],
    number: int,
    reader: InstructionReader,
    refused: Counter[str],
    *key: str | int,
) -> tuple[int, NDArray[np.uint8]]:
    """Return the number of an example and its picture, or of the next one whose picture can be used.

    What is replaced is counted in `refused`, by its reason. Raises CapfiltError where no picture can be used.
    """
    reason = ""
    for step in range(len(examples)):
        taken = (number + step) % len(examples)
        try:
            return taken, reader.picture(examples[taken], *key)
        except RefusedImage as error:
            if step == 0:
                reason = error.reason.value
                refused[reason] += 1
    example = examples[number]
    raise CapfiltError(
        f"none of the {len(examples)} pictures of {example.dataset} can be used; {example.image} is refused"
        f" as {reason}",
        fix="look at the folder of pictures that the data set's row names",
    )
