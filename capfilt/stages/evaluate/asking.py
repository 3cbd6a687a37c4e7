"""Examples of a data set put to a captioner: what it answers, or how likely it finds each candidate.

A captioner is asked with one prompt at a time. So an instruction that several pictures share is put to all of
them together, and the questions of one picture follow each other, over one encoding of it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.data.images import RefusedImage, decode
from capfilt.data.instructions.asking import fixed_template
from capfilt.errors import RunFailedError
from capfilt.evaluation.answers import Answered
from capfilt.models.protocols import ImageBatch
from capfilt.records import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from PIL.Image import Image

    from capfilt.data.instructions.example import Example
    from capfilt.data.instructions.registry import Category
    from capfilt.models.answering import Answering
    from capfilt.models.protocols import Captioner
    from capfilt.settings import Input, SettledDecoding


@dataclass(frozen=True)
class Asked:
    """An example in the words that it is put to a model."""

    example: Example
    instruction: str
    template: str


def put_into_words(examples: Sequence[Example], category: Category) -> list[Asked]:
    """Return examples with their instructions; CapfiltError where no template fits one."""
    found = []
    for example in examples:
        template = fixed_template(example, category)
        found.append(Asked(example, template.filled(example.parts), template.text))
    return found


class Pictures:
    """Pictures of a data set, read when they are asked for."""

    def __init__(self, limits: Input) -> None:
        self.refused: dict[Path, str] = {}
        """Those that cannot be used, and the reason."""
        self._limits = limits

    def batch(self, paths: Sequence[Path]) -> tuple[ImageBatch, list[Path]]:
        """Return the pictures that can be used, and their paths."""
        usable: list[tuple[Image, str, Path]] = []
        for path in paths:
            try:
                data = path.read_bytes()
            except OSError:
                self.refused[path] = Refusal.MISSING_IMAGE.value
                continue
            try:
                picture = decode(data, max_pixels=self._limits.max_pixels)
            except RefusedImage as error:
                self.refused[path] = error.reason.value
                continue
            usable.append((picture, hashlib.sha256(data).hexdigest(), path))
        return ImageBatch([one[0] for one in usable], [one[1] for one in usable]), [one[2] for one in usable]


def written(
    asked: Sequence[Asked],
    captioner: Captioner,
    decoding: SettledDecoding,
    pictures: Pictures,
    *,
    batch_size: int,
    seed: int,
    hear: Callable[[int], None],
) -> dict[int, Answered]:
    """Return what the captioner answers, by the number of the example; those without a picture are missing.

    `hear` is told how many more examples are done.
    """
    found: dict[int, Answered] = {}
    for paths, by_instruction in _groups(asked, batch_size):
        batch, usable = pictures.batch(paths)
        for instruction, numbers in by_instruction.items():
            if usable:
                texts = captioner.caption(batch, decoding.of(instruction), seed=seed, candidates=1)
                answers = {path: text for path, (text,) in zip(usable, texts, strict=True)}
                for number in numbers:
                    example = asked[number].example
                    if example.image in answers:
                        found[number] = Answered(
                            str(example.image), answers[example.image].strip(), said=example.answers
                        )
            hear(len(numbers))
    return found


def ranked(
    asked: Sequence[Asked],
    answering: Answering,
    pictures: Pictures,
    *,
    batch_size: int,
    hear: Callable[[int], None],
) -> dict[int, Answered]:
    """Return how likely each candidate is, as `written` returns answers.

    Raises RunFailedError where a likelihood is no finite number.
    """
    places: dict[Path, list[int]] = {}
    for number, one in enumerate(asked):
        places.setdefault(one.example.image, []).append(number)
    paths = list(places)
    found: dict[int, Answered] = {}
    for first in range(0, len(paths), batch_size):
        some = paths[first : first + batch_size]
        batch, usable = pictures.batch(some)
        numbers = [number for path in usable for number in places[path]]
        of = [place for place, path in enumerate(usable) for _ in places[path]]
        mine = [asked[number] for number in numbers]
        scores = answering.log_likelihoods(
            batch, of, [one.instruction for one in mine], [one.example.candidates for one in mine]
        )
        for number, one, values in zip(numbers, mine, scores, strict=True):
            if not all(map(math.isfinite, values)):
                raise RunFailedError(
                    f"the likelihoods of the answers to {one.example.id} are no finite numbers",
                    fix="give a model whose training did not diverge, or try --precision fp32",
                )
            image, right = str(one.example.image), one.example.right
            found[number] = Answered(image, said=one.example.answers, scores=tuple(values), right=right)
        hear(sum(len(places[path]) for path in some))
    return found


def _groups(asked: Sequence[Asked], most: int) -> Iterator[tuple[list[Path], dict[str, list[int]]]]:
    """Yield pictures and, by instruction, the numbers of the examples that are asked of these pictures.

    Several pictures stand together that are asked the same, at most `most`; else all that a picture alone is
    asked.
    """
    sharing: dict[str, dict[Path, list[int]]] = {}
    for number, one in enumerate(asked):
        sharing.setdefault(one.instruction, {}).setdefault(one.example.image, []).append(number)
    alone: dict[Path, dict[str, list[int]]] = {}
    for instruction, by_picture in sharing.items():
        if len(by_picture) == 1:
            [(path, numbers)] = by_picture.items()
            alone.setdefault(path, {})[instruction] = numbers
            continue
        paths = list(by_picture)
        for first in range(0, len(paths), most):
            some = paths[first : first + most]
            yield some, {instruction: [number for path in some for number in by_picture[path]]}
    for path, by_instruction in alone.items():
        yield [path], by_instruction
