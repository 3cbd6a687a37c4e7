"""Data sets as they were read, in a folder beside the training that they are for.

They are read, and their pictures' bytes looked at, once: a training that goes on after it was killed, and the
other processes of one that several do together, find them here. The folder is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json, digest_of, digest_of_rows
from capfilt.data.instructions.pictures import Digests, PictureFiles, are_as_before, digests_of
from capfilt.data.instructions.reading import Reading, examples_in
from capfilt.data.instructions.table import MappedExamples, write_table
from capfilt.errors import CapfiltError
from capfilt.files import whole_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from capfilt.data.instructions.example import Example
    from capfilt.data.instructions.registry import Dataset

_LAYOUT = 1
"""Counts what the files of a folder are; a folder of another number is read anew."""
_RECORD = "record.json"
_PICTURES = "pictures.npy"
"""Number of the picture of each example, of all data sets in turn."""
_FILES = "files.npy"
"""Of each picture file: the example that it comes first in, its length and its time of change."""


@dataclass(frozen=True)
class KeptSet:
    """A data set that was read."""

    dataset: Dataset
    examples: MappedExamples
    pictures: NDArray[np.int64]
    """Number of the picture of each example: its place among the digests of all pictures, sorted."""
    refused: Counter[str]
    """Rows that cannot be used, by reason."""
    digest: str
    """Of what is learnt: texts, and the bytes of pictures."""


def keep_sets(folder: Path, datasets: Sequence[Dataset], *, threads: int = 0) -> None:
    """Read data sets into a folder, unless it holds them as they are now.

    It does where annotation files have the same bytes and picture files the same length and time of change. A
    picture that was missing stays out. Without an annotation file, rows lie among pictures: read anew.

    Raises CapfiltError as reading does.
    """
    key = _key(datasets)
    if _is_kept(folder, datasets, key, threads):
        return
    shutil.rmtree(folder, ignore_errors=True)  # other data: room for this
    with whole_folder(folder) as new:
        _write(new, datasets, key, threads)


def open_sets(folder: Path, datasets: Sequence[Dataset]) -> list[KeptSet]:
    """Return the data sets of a folder; other ones than are asked for, or none, are a CapfiltError."""
    import numpy as np

    record = _record(folder)
    if record is None or record["rows"] != _rows(datasets):
        raise CapfiltError(
            f"{folder} does not hold the data sets of this process",
            fix="give all machines the same command and files, and --out on a disk that they share",
        )
    pictures = np.load(folder / _PICTURES, mmap_mode="r")
    found, start = [], 0
    for dataset, kept in zip(datasets, record["sets"], strict=True):
        examples = _mapped(folder, dataset)
        mine = pictures[start : start + len(examples)]
        found.append(KeptSet(dataset, examples, mine, Counter(kept["refused"]), kept["digest"]))
        start += len(examples)
    return found


def _write(new: Path, datasets: Sequence[Dataset], key: str, threads: int) -> None:
    import numpy as np

    seen, readings = PictureFiles(), []
    for dataset in datasets:
        readings.append(Reading())
        coming = seen.noting(examples_in(dataset, readings[-1]))
        write_table(_table(new, dataset), coming, _images(dataset))
    sets = [_mapped(new, dataset) for dataset in datasets]
    firsts, files = seen.numbered()
    digests = digests_of(len(firsts), _paths(sets, firsts), threads=threads)
    np.save(new / _PICTURES, digests.numbers[files])
    np.save(new / _FILES, np.column_stack([firsts, digests.stamps]))
    kept: list[dict[str, Any]] = []
    start = 0
    for examples, reading in zip(sets, readings, strict=True):
        digest = _learnt(examples, digests, files[start : start + len(examples)])
        kept.append({"refused": dict(reading.refused), "digest": digest})
        start += len(examples)
    record = {"key": key, "rows": _rows(datasets), "sets": kept}
    (new / _RECORD).write_text(canonical_json(record), encoding="utf-8")


def _learnt(examples: Sequence[Example], digests: Digests, files: NDArray[np.int64]) -> str:
    """Return the digest of what is learnt of a data set."""
    return digest_of_rows(
        [one.id, digests.name(file), sorted(one.parts.items()), list(one.outputs)]
        for one, file in zip(examples, map(int, files), strict=True)
    )


def _is_kept(folder: Path, datasets: Sequence[Dataset], key: str, threads: int) -> bool:
    import numpy as np

    record = _record(folder)
    if record is None or record["key"] != key or not all(one.annotations for one in datasets):
        return False
    sets = [_mapped(folder, dataset) for dataset in datasets]
    files = np.load(folder / _FILES, mmap_mode="r")
    return are_as_before(files[:, 1:], _paths(sets, files[:, 0]), threads=threads)


def _paths(sets: Sequence[MappedExamples], firsts: NDArray[np.int64]) -> Callable[[int], Path]:
    """Return what tells where the picture file of a number lies."""
    starts = [0, *accumulate(map(len, sets))]

    def path(file: int) -> Path:
        row = int(firsts[file])
        number = bisect_right(starts, row) - 1
        return sets[number][row - starts[number]].image

    return path


def _key(datasets: Sequence[Dataset]) -> str:
    """Return what the files of a folder depend on, but for the pictures."""
    from capfilt import __version__

    files = [[_bytes_digest(path) for path in one.annotations] for one in datasets]
    return digest_of([_LAYOUT, __version__, _rows(datasets), files])


def _bytes_digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""  # what is wrong with it, its reader says


def _rows(datasets: Sequence[Dataset]) -> list[list[str | None]]:
    """Return what of the registry the examples depend on."""
    return [[one.name, one.reader, one.learns, one.split, str(one.images)] for one in datasets]


def _record(folder: Path) -> Any:
    try:
        return json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _mapped(folder: Path, dataset: Dataset) -> MappedExamples:
    return MappedExamples(_table(folder, dataset), dataset.name, _images(dataset))


def _table(folder: Path, dataset: Dataset) -> Path:
    return folder / f"{dataset.name}.arrow"


def _images(dataset: Dataset) -> Path:
    """Return the folder of a data set's pictures; to read one that names none is refused."""
    return dataset.images or Path()
