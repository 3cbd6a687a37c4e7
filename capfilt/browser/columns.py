"""Every pair of a run as arrays, and the orders in which rules rank them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from capfilt.browser.shards import Column, ShardRows

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]


_PAIR_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Columns:
    """Pairs by number of sample, then by number; arrays of one length, a row a pair."""

    numbers: Indices
    sample: Indices
    """Number of each pair's sample."""
    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    """Both halves of each pair_id."""
    is_web: NDArray[np.bool_]
    is_blank: NDArray[np.bool_]
    twin: NDArray[np.int32]
    """A number that the texts of a picture share that are equal; -1 where no other one is."""
    scores: Mapping[Column, Floats]
    """NaN where a pair lacks one."""
    planted: NDArray[np.int32]
    """Place in `kinds` of what the metadata says of a web text; -1 where it says nothing."""
    kinds: tuple[str, ...] = ()
    orders: dict[str, Indices] = field(default_factory=dict)
    """Rankings that were asked for, by their names."""
    extremes: dict[Column, tuple[float, float] | None] = field(default_factory=dict)
    """The least and the most of columns that were asked for."""
    bins: dict[Column, tuple[NDArray[np.uint8], float, float]] = field(default_factory=dict)
    """Bars of histograms that were asked for, with the ends of the first and the last one."""

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def picture(self) -> Indices:
        """Number of each pair's picture among those that have a text, from 0."""
        import numpy as np

        return np.concatenate(([0], np.cumsum(self.sample[1:] != self.sample[:-1])))[: len(self)]

    @property
    def pictures(self) -> int:
        """Pictures that have a text."""
        return int(self.picture[-1]) + 1 if len(self) else 0

    @cached_property
    def by_name(self) -> Indices:
        """Rows in the order of pair_id."""
        import numpy as np

        return np.lexsort((self.low, self.high))

    def places(self, pair_ids: Sequence[str]) -> Indices:
        """Return the row of each pair, -1 for one that is not there.

        A name comes from a label, whose file may be another run's: it need not look like one of ours.
        """
        import numpy as np

        is_name = [_PAIR_ID.fullmatch(name) is not None for name in pair_ids]
        wanted = [int(name, 16) if known else 0 for name, known in zip(pair_ids, is_name, strict=True)]
        high = np.array([number >> 64 for number in wanted], np.uint64)
        low = np.array([number & (2**64 - 1) for number in wanted], np.uint64)
        first = np.searchsorted(self.high, high, sorter=self.by_name)
        found = np.full(len(wanted), -1, np.int64)
        for place, start in enumerate(first.tolist()):
            if not is_name[place]:
                continue
            # Of names with one first half there is hardly ever more than one.
            for row in self.by_name[start : start + 16].tolist():
                if self.high[row] == high[place] and self.low[row] == low[place]:
                    found[place] = row
        return found

    def ends(self, column: Column) -> tuple[float, float] | None:
        """Return the least and the most of a column; None where no pair has that score."""
        import numpy as np

        if column not in self.extremes:
            values = self.scores[column]
            values = values[np.isfinite(values)]
            self.extremes[column] = (float(values.min()), float(values.max())) if len(values) else None
        return self.extremes[column]

    def row(self, number: int, sample: int) -> int:
        """Return the row of a pair by its number and that of its sample."""
        import numpy as np

        start, end = np.searchsorted(self.sample, [sample, sample + 1])
        return int(start + np.flatnonzero(self.numbers[start:end] == number)[0])

    def pair_id(self, row: int) -> str:
        """Return the name of a pair."""
        return f"{int(self.high[row]):016x}{int(self.low[row]):016x}"

    def with_planted(self, samples: pa.ChunkedArray, said: pa.ChunkedArray) -> Columns:
        """Return the columns with what the metadata says of samples, by the ascending numbers of these."""
        import numpy as np

        if not len(samples):
            return self
        known = samples.to_numpy()
        told = said.combine_chunks().dictionary_encode()
        codes = told.indices.to_numpy().astype(np.int32)
        at = np.minimum(np.searchsorted(known, self.sample), len(known) - 1)
        is_told = self.is_web & (known[at] == self.sample)
        planted = np.where(is_told, codes[at], -1).astype(np.int32)
        return replace(self, planted=planted, kinds=tuple(told.dictionary.to_pylist()))


def joined(loaded: Mapping[int, ShardRows]) -> tuple[Columns, dict[int, ShardRows]]:
    """Return the pairs of several shards as one, and the shards with their arrays as parts of it.

    So everything is in memory once.
    """
    import numpy as np

    shards = [loaded[ordinal] for ordinal in sorted(loaded)]
    columns = list(dict.fromkeys(column for rows in shards for column in rows.scores))
    ends = np.cumsum([0, *(len(rows.numbers) for rows in shards)])

    def whole(name: str, kind: type) -> NDArray[Any]:
        return np.concatenate([np.zeros(0, kind), *(getattr(rows, name) for rows in shards)]).astype(kind)

    empty = np.zeros(0)
    scores = {
        column: np.concatenate(
            [empty, *(rows.scores.get(column, np.full(len(rows.numbers), np.nan)) for rows in shards)]
        )
        for column in columns
    }
    found = Columns(
        numbers=whole("numbers", np.int64),
        sample=whole("sample", np.int64),
        high=whole("high", np.uint64),
        low=whole("low", np.uint64),
        is_web=whole("is_web", np.bool_),
        is_blank=whole("is_blank", np.bool_),
        twin=whole("twin", np.int32),
        scores=scores,
        planted=np.full(int(ends[-1]), -1, np.int32),
    )
    parts = {}
    for ordinal, rows, start, end in zip(sorted(loaded), shards, ends[:-1], ends[1:], strict=True):
        names = ("numbers", "sample", "high", "low", "is_web", "is_blank", "twin")
        slices = {name: getattr(found, name)[start:end] for name in names}
        mine = {column: scores[column][start:end] for column in rows.scores}
        parts[ordinal] = replace(rows, **slices, scores=mine)
    return found, parts
