"""Streamed pairs as batches: the pictures of a step are read and decoded when the step is near.

Every process walks the whole stream, which has no pictures in it, and reads the pictures of its own rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from capfilt.data.ahead import in_order
from capfilt.data.augment import augmented, numbers_needed
from capfilt.data.clean import same_caption
from capfilt.data.images import RefusedImage, decode, normalise, to_square
from capfilt.data.sources import read_bytes
from capfilt.draws import seed_of, uniforms
from capfilt.errors import CapfiltError
from capfilt.models.devices import sent
from capfilt.training.objectives import Batch
from capfilt.training.parallel import ALONE, World

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from capfilt.data.stream import Drawn, Stream
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings import Augment, Images, Input

_STEPS_AHEAD = 2
"""Steps whose pictures are decoded before they are asked for, where there are threads for it: at least so
many, and as many as threads, which take a step each."""
_PASSES_OF_A_PHASE = 1 << 20
"""Passes are numbered on from phase to phase, so that no two phases see the pairs in one order."""


@dataclass(frozen=True)
class Reader:
    """Turns places in shards into the numbers that a model trains on."""

    vocabulary: Vocabulary
    images: Images
    max_tokens: int
    device: torch.device
    limits: Input
    augment: Augment | None = None
    """How pictures are varied; not at all without."""

    def batch(
        self,
        pairs: Sequence[Drawn],
        rows: Sequence[int],
        refused: Counter[str],
        *key: str | int,
        spare: Sequence[Drawn] = (),
    ) -> Batch:
        """Return some rows of a batch of pairs, as long as the batch's longest text.

        A pair whose picture cannot be used gives its place to the next one of the batch whose picture can,
        whichever process has that: it is counted in `refused`, by its reason. After the last of the batch
        come those of `spare`, then the first of the batch. Raises CapfiltError where none can be used.
        """
        every = [*pairs, *spare]
        loaded = [self._picture(every, row, refused, *key) for row in rows]
        taken = [number for number, _, _ in loaded]
        numbers = sorted({*range(len(pairs)), *taken})
        ids, real = self.vocabulary.encode([every[n].text for n in numbers], "cls", self.max_tokens)
        longest = int(real.sum(1).max())
        place_of = {number: place for place, number in enumerate(numbers)}
        places = [place_of[number] for number in taken]
        squares = torch.from_numpy(np.stack([square for _, square, _ in loaded]))
        captions = torch.tensor([seed_of(same_caption(every[number].text)) for number in taken])
        return Batch(
            pixels=normalise(sent(squares, self.device), self.images),
            ids=sent(ids[places, :longest], self.device),
            real=sent(real[places, :longest], self.device),
            image_ids=sent(torch.tensor([image for _, _, image in loaded]), self.device),
            caption_ids=sent(captions, self.device),
        )

    def _picture(
        self, pairs: Sequence[Drawn], row: int, refused: Counter[str], *key: str | int
    ) -> tuple[int, NDArray[np.uint8], int]:
        """Return which pair stands in a row, its pixels (3, side, side), and a number for its picture."""
        reason = ""
        for step in range(len(pairs)):
            number = (row + step) % len(pairs)
            reference = pairs[number].reference
            data = read_bytes(reference.path, reference.offset, reference.size)
            try:
                picture = decode(data, max_pixels=self.limits.max_pixels)
            except RefusedImage as error:
                if step == 0:
                    reason = error.reason.value
                    refused[reason] += 1
                continue
            if self.augment is not None and self.augment.is_on:
                picture = augmented(
                    picture,
                    self.augment,
                    side=self.images.size_px,
                    numbers=uniforms(numbers_needed(self.augment), "augment", *key, row),
                    transparency=self.images.transparency,
                )
            image = int.from_bytes(hashlib.sha256(data).digest()[:8], "little") >> 1
            return number, to_square(picture, self.images), image
        first = pairs[row].reference
        raise CapfiltError(
            f"none of the {len(pairs)} pictures of a batch can be used; that of {first.key} in {first.path} "
            f"is refused as {reason}",
            fix="look at the shards: these may hold no pictures, or only damaged ones",
        )


class StreamBatches:
    """The batches of a training, step after step, of pass after pass of a stream."""

    def __init__(self, stream: Stream, reader: Reader, *, world: World = ALONE, threads: int = 0) -> None:
        self.refused: Counter[str] = Counter()
        """Pictures of this process's rows that could not be used, counted by reason each time one is met."""
        self._stream, self._reader, self._world, self._threads = stream, reader, world, threads
        self._next: tuple[object, int] | None = None
        """What the batches in hand were asked for, and the step that comes next."""
        self._batches: Iterator[Batch] = iter(())

    def __len__(self) -> int:
        return self._stream.survey().pairs

    def steps_in_epoch(self, batch_size: int) -> int:
        """Return how many batches one pass begins; a batch may end in the next pass."""
        return max(1, round(len(self) / batch_size))

    def at(self, step: int, batch_size: int, parts: int, *key: str | int) -> Batch:
        """Return this process's rows of a step; steps in order are quick, any other walks its pass anew.

        The last of `key` is the number of the phase.
        """
        asked = (batch_size, parts, *key)
        if self._next != (asked, step):
            self._batches = self._from(step, batch_size, parts, *key)
        self._next = (asked, step + 1)
        return next(self._batches)

    def _from(self, first: int, batch_size: int, parts: int, *key: str | int) -> Iterator[Batch]:
        passes, met = divmod(first * batch_size, len(self))  # every pass is equally long
        pairs = self._pairs(int(key[-1]) * _PASSES_OF_A_PHASE + passes)
        for _ in islice(pairs, met):
            pass
        part = batch_size // parts
        rows = [number * part + row for number in range(parts) for row in range(part)[self._world.mine(part)]]

        def load(numbered: tuple[int, list[Drawn]]) -> tuple[Batch, Counter[str]]:
            step, drawn = numbered
            refused: Counter[str] = Counter()
            return self._reader.batch(drawn, rows, refused, *key, step), refused

        steps = ((step, list(islice(pairs, batch_size))) for step in count(first))
        ahead = max(_STEPS_AHEAD, self._threads) if self._threads else 0
        for batch, refused in in_order(load, steps, threads=self._threads, ahead=ahead):
            self.refused.update(refused)
            yield batch

    def _pairs(self, first_pass: int) -> Iterator[Drawn]:
        """Yield pairs without end."""
        return chain.from_iterable(self._stream.epoch(number) for number in count(first_pass))


class HeldOutPairs:
    """The held-out pairs of a stream, whole in every process."""

    def __init__(self, stream: Stream, reader: Reader) -> None:
        self._pairs, self._reader = stream.survey().held_out, reader

    def __len__(self) -> int:
        return len(self._pairs)

    def rows(self, rows: range) -> Batch:
        """Return the batch of these pairs; a picture that cannot be used is replaced by any that can."""
        some = self._pairs[rows.start : rows.stop]
        others = self._pairs[rows.stop :] + self._pairs[: rows.start]
        return self._reader.batch(some, range(len(some)), Counter(), spare=others)
