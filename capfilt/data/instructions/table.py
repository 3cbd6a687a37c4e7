"""Examples of a data set in a file that is mapped, not loaded: web captions come by the ten million.

A file of Arrow's IPC format has a row an example. The system keeps what is read of it in memory while there
is room, once for all processes of a machine, and drops it when there is none.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, overload

from capfilt.data.instructions.example import Example

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

_ROWS = 4096
"""Rows of a batch of the file; the last one may have fewer."""


def write_table(path: Path, examples: Iterable[Example], images: Path) -> None:
    """Write examples of one data set, whose pictures lie in the folder `images`.

    The columns are `kind`, the number of the example's combination of parts in the order of their coming, and
    `example`, all of it as a JSON list, in which a lone surrogate out of somebody's JSON is kept as well.
    """
    import pyarrow as pa

    schema = pa.schema([("kind", pa.int32()), ("example", pa.string())])
    kinds: dict[frozenset[str], int] = {}
    left = iter(examples)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        while some := list(islice(left, _ROWS)):
            numbers = [kinds.setdefault(frozenset(one.parts), len(kinds)) for one in some]
            texts = [_packed(one, images) for one in some]
            writer.write_batch(pa.record_batch([pa.array(numbers, pa.int32()), texts], schema=schema))


class MappedExamples(Sequence[Example]):
    """The examples of a file that `write_table` wrote, or some of them; each is made when it is asked for."""

    def __init__(self, path: Path, dataset: str, images: Path) -> None:
        """Map the examples of the data set of this name, whose pictures lie in the folder `images`."""
        import pyarrow as pa

        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._batches: list[pa.StringArray] = table.column("example").chunks
        self._kinds = table.column("kind")
        self._dataset, self._images = dataset, images
        self._rows: NDArray[np.int64] | None = None
        """Which rows of the file are meant; None: all."""

    def __len__(self) -> int:
        return len(self._kinds) if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, number: int) -> Example: ...

    @overload
    def __getitem__(self, number: slice) -> MappedExamples: ...

    def __getitem__(self, number: int | slice) -> Example | MappedExamples:
        if isinstance(number, slice):
            import numpy as np

            return self.choose(np.arange(len(self))[number])
        place = range(len(self))[number]
        row = place if self._rows is None else int(self._rows[place])
        return self._unpacked(self._batches[row // _ROWS][row % _ROWS].as_py())

    def choose(self, numbers: NDArray[np.int64]) -> MappedExamples:
        """Return the examples of these numbers, in their order."""
        some = copy.copy(self)
        some._rows = numbers if self._rows is None else self._rows[numbers]
        return some

    def one_of_each_kind(self) -> list[Example]:
        """Return an example of every combination of parts that there is."""
        import numpy as np

        kinds = self._kinds.to_numpy()
        firsts = np.unique(kinds if self._rows is None else kinds[self._rows], return_index=True)[1]
        return [self[int(number)] for number in firsts]

    def _unpacked(self, text: str) -> Example:
        name, image, parts, outputs, answers, candidates, right = json.loads(text)
        return Example(
            self._dataset,
            name,
            self._images / image,
            parts,
            tuple(outputs),
            tuple(answers),
            tuple(candidates),
            right,
        )


def choose(examples: Sequence[Example], numbers: NDArray[np.int64]) -> Sequence[Example]:
    """Return the examples of these numbers, in their order; of mapped ones without reading them."""
    if isinstance(examples, MappedExamples):
        return examples.choose(numbers)
    return [examples[number] for number in numbers]


def one_of_each_kind(examples: Sequence[Example]) -> list[Example]:
    """Return an example of every combination of parts that there is; of mapped ones without reading all."""
    if isinstance(examples, MappedExamples):
        return examples.one_of_each_kind()
    return list({frozenset(example.parts): example for example in examples}.values())


def _packed(one: Example, images: Path) -> str:
    image = one.image.relative_to(images).as_posix()
    return json.dumps(
        [one.id, image, dict(one.parts), one.outputs, one.answers, one.candidates, one.right],
        separators=(",", ":"),
    )
