"""A pool of clean pairs without those that a later training is measured on.

A pre-training and a fine-tuning hold out pairs of the same clean set, each by its own rule. A filter that was
fine-tuned from a model that has seen its held-out pairs would be calibrated too well, so these are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt.canonical import digest_of
from capfilt.data.clean import read_clean, split
from capfilt.settings import Images

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Sequence

    from capfilt.data.stream import Pool, Reference
    from capfilt.records import Shard
    from capfilt.settings import Clean, Input

Place = tuple[int, int]
"""Number of a shard, and the first byte of a picture in it."""


@dataclass(frozen=True)
class Apart:
    """A pool without some of its pictures; see `data.stream.Pool`."""

    pool: Pool
    left_out: frozenset[Place]

    def __len__(self) -> int:
        return len(self.pool)

    def read(self, shard: int, refused: Counter[str]) -> Iterator[Reference]:
        """Yield the pictures of one shard that are not left out."""
        for reference in self.pool.read(shard, refused):
            if (shard, reference.offset) not in self.left_out:
                yield reference

    @property
    def facts(self) -> list[dict[str, Any]]:
        """What the pairs depend on: the pool's own facts, and what is left out of it."""
        return [*self.pool.facts, {"left_out": digest_of(sorted(self.left_out))}]


def held_out_places(shards: Sequence[Shard], limits: Input, clean: Clean, *, seed: int) -> frozenset[Place]:
    """Return where the pairs lie that a training on these clean shards holds out (`data.clean.split`)."""
    pairs = read_clean(shards, limits, Images(), cache_mb=0)
    numbers = {shard.path: number for number, shard in enumerate(shards)}
    _, held_out = split(pairs, clean, seed=seed)
    chosen = (pairs.pairs[index] for index in held_out)
    return frozenset((numbers[pair.path], pair.offset) for pair in chosen)
