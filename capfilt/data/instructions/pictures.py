"""Which examples are about the same picture: told by the bytes of its file, wherever that lies.

What is known of a picture file takes some dozen bytes, in arrays: web captions have a picture each.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.data.ahead import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from capfilt.data.instructions.example import Example

_SOME = 256
"""Files that a thread takes at once."""
_NAME_BYTES = 16


class PictureFiles:
    """The picture files of examples that go by, told apart by 16 bytes of a digest of their path."""

    def __init__(self) -> None:
        self._names = bytearray()

    def noting(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Give the examples as they come, and note what each is about."""
        for example in examples:
            path = str(example.image).encode("utf-8", "surrogatepass")
            self._names += hashlib.blake2b(path, digest_size=_NAME_BYTES).digest()
            yield example

    def numbered(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the row at which each file came first, and the number of its file for each row.

        Files are numbered in the order of their coming. What was noted is gone afterwards.
        """
        import numpy as np

        names = np.frombuffer(self._names, dtype=f"S{_NAME_BYTES}")
        self._names = bytearray()
        _, firsts, numbers = np.unique(names, return_index=True, return_inverse=True)
        order = np.argsort(firsts)
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        return firsts[order], places[numbers]


@dataclass(frozen=True)
class Digests:
    """The sha256 of the bytes of picture files, by the file's number.

    A file that cannot be read, which a training counts when it is met, is known by its name.
    """

    stamps: NDArray[np.int64]
    """Length and time of change (ns) of each file, shape (files, 2); -1 of one that cannot be read."""
    numbers: NDArray[np.int64]
    """The number of each file's picture, shape (files,): its place among all different digests, sorted."""
    _digests: NDArray[np.uint8]
    _unreadable: dict[int, str]

    def name(self, file: int) -> str:
        """Return the digest of a file, or what stands for it."""
        found = self._unreadable.get(file)
        return self._digests[file].tobytes().hex() if found is None else found


def digests_of(count: int, path: Callable[[int], Path], *, threads: int = 0) -> Digests:
    """Read `count` picture files, each once; `path` tells where the file of a number lies."""
    import numpy as np

    digests = np.zeros((count, 32), np.uint8)
    stamps = np.full((count, 2), -1, np.int64)

    def read(some: range) -> dict[int, str]:
        unreadable = {}
        for number in some:
            file = path(number)
            try:
                with file.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").digest()
                    stamps[number] = _stamp(os.fstat(stream.fileno()))
                    digests[number] = np.frombuffer(digest, np.uint8)
            except OSError:
                unreadable[number] = f"unreadable {file.name}"
        return unreadable

    unreadable: dict[int, str] = {}
    for found in in_order(read, _slices(count), threads=threads, ahead=4 * threads):
        unreadable.update(found)
    return Digests(stamps, _ranks(digests, unreadable), digests, unreadable)


def are_as_before(stamps: NDArray[np.int64], path: Callable[[int], Path], *, threads: int = 0) -> bool:
    """Return whether all picture files have the length and the time of change that they had."""

    def are_same(some: range) -> bool:
        for number in some:
            try:
                found = _stamp(path(number).stat())
            except OSError:
                found = (-1, -1)
            if found != tuple(stamps[number]):
                return False
        return True

    return all(in_order(are_same, _slices(len(stamps)), threads=threads, ahead=4 * threads))


def _ranks(digests: NDArray[np.uint8], unreadable: dict[int, str]) -> NDArray[np.int64]:
    """Return each file's place among the different digests; behind them come names of unreadable files."""
    import numpy as np

    ranks = np.empty(len(digests), np.int64)
    is_read = np.ones(len(digests), bool)
    is_read[list(unreadable)] = False
    different, ranks[is_read] = np.unique(digests[is_read].view("S32")[:, 0], return_inverse=True)
    places = {name: len(different) + place for place, name in enumerate(sorted(set(unreadable.values())))}
    for number, name in unreadable.items():
        ranks[number] = places[name]
    return ranks


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _slices(count: int) -> Iterator[range]:
    return (range(start, min(start + _SOME, count)) for start in range(0, count, _SOME))
