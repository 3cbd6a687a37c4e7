"""Kept pairs as WebDataset tars: the same samples give the same bytes, whoever writes them and when.

Keys are the writer's own numbers. Those of the input may collide between shards, and they are names
that strangers chose; where a sample comes from is said in its metadata.
"""

from __future__ import annotations

import hashlib
import tarfile
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from capfilt.canonical import canonical_json
from capfilt.files import whole_file

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_BLOCK = tarfile.BLOCKSIZE
_RECORD = tarfile.RECORDSIZE
_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II", "tif"),
    (b"MM", "tif"),
)
EXTENSIONS = ("bmp", "gif", "jpg", "png", "tif", "webp")
"""What an image's member can be called."""


def extension_of(data: bytes) -> str:
    """Return the extension of a picture that `images.decode` accepts, by its first bytes.

    Raises ValueError for bytes of no such format.
    """
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    for magic, extension in _MAGIC:
        if data.startswith(magic):
            return extension
    raise ValueError(f"these are the first bytes of no picture: {data[:12]!r}")


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A tar that is whole and on the disk."""

    name: str
    samples: int
    bytes: int
    sha256: str


class ShardWriter:
    """Write samples into tars `00000.tar`, `00001.tar`, ... of a folder; to be used in a `with` block.

    A tar appears under its name when it is full or the block ends, whole and flushed to the disk. If the
    block ends with an error, the tar in hand does not appear. Without samples there is no tar.
    """

    def __init__(self, folder: Path, *, samples_per_shard: int) -> None:
        if samples_per_shard < 1:
            raise ValueError("samples_per_shard must be at least 1")
        self.shards: list[WrittenShard] = []
        """The tars that are done; all of them once the block has ended."""
        self._folder = folder
        self._samples_per_shard = samples_per_shard
        self._samples = 0
        self._tar: _Tar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish()
        elif self._tar is not None:
            self._tar.stack.__exit__(kind, error, traceback)

    def add(self, image: bytes, extension: str, text: str, metadata: dict[str, Any]) -> str:
        """Write one sample and return the key it was given: nine digits, counted through all the tars."""
        if extension not in EXTENSIONS:
            raise ValueError(f"{extension!r} is no extension of an image")
        if self._tar is None:
            self._tar = _Tar(self._folder, f"{len(self.shards):05d}.tar")
        key = f"{self._samples:09d}"
        self._tar.write(f"{key}.{extension}", image)
        self._tar.write(f"{key}.txt", text.encode("utf-8"))
        self._tar.write(f"{key}.json", canonical_json(metadata).encode("utf-8"))
        self._tar.samples += 1
        self._samples += 1
        if self._tar.samples == self._samples_per_shard:
            self._finish()
        return key

    def _finish(self) -> None:
        if self._tar is not None:
            tar, self._tar = self._tar, None
            self.shards.append(tar.finish())


class _Tar:
    """One tar being written, digested on the way so that nothing is read again."""

    def __init__(self, folder: Path, name: str) -> None:
        self.samples = 0
        self._name = name
        self._size = 0
        self._sha256 = hashlib.sha256()
        with ExitStack() as stack:
            self._file: BinaryIO = stack.enter_context(
                stack.enter_context(whole_file(folder / name)).open("wb")
            )
            self.stack = stack.pop_all()

    def write(self, name: str, data: bytes) -> None:
        header = tarfile.TarInfo(name)  # mtime 0, mode 0644, nobody's
        header.size = len(data)
        self._put(header.tobuf(tarfile.USTAR_FORMAT))
        self._put(data)
        self._put(bytes(-len(data) % _BLOCK))

    def finish(self) -> WrittenShard:
        with self.stack:
            self._put(bytes(2 * _BLOCK))
            self._put(bytes(-self._size % _RECORD))
        return WrittenShard(self._name, self.samples, self._size, self._sha256.hexdigest())

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._size += len(data)
