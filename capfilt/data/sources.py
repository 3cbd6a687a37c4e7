"""Strangers' tars as shards of samples: which files there are, and every sample in each.

A shard is read twice: its headers first, so that the parts of a sample may stand anywhere in the tar, then
one sample at a time, so that memory holds an index and never a shard. Whatever is wrong with a sample
becomes a reason in its row; only what the user can mend before the run is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from capfilt.data.patterns import find_files
from capfilt.data.tars import Damage, Member, scan
from capfilt.errors import CapfiltError
from capfilt.records import Refusal, Sample, Shard, Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from capfilt.settings import Input

KINDS = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"), "image"),
    "txt": "text",
    "json": "json",
}
"""What a member is by its extension, in any case; others belong to no sample of ours."""

_DIGEST_BYTES = 64 * 1024
_MOST_METADATA_BYTES = 1 << 20
_MOST_METADATA_DEPTH = 64
_IMAGE_BYTES_PER_PIXEL = 8
_IMAGE_BYTES_BESIDE_PIXELS = 16 << 20
"""An encoded image beyond 8 bytes for each allowed pixel, and 16 MB for metadata, is not read into memory."""


def find_shards(where: str | Path | Sequence[str | Path]) -> list[Shard]:
    """Return the tars of a file, a folder (searched to the bottom), a glob with braces, or several of these.

    Their names are unique, and their order is that of their paths. Raises CapfiltError where nothing is
    found, or something other than plain tars, with the way from there to tars.
    """
    files = find_files(where)
    common = Path(os.path.commonpath([file.parent for file in files]))
    names = [_shard_name(file, common) for file in files]
    shards = []
    for ordinal, (file, name) in enumerate(zip(files, _unique(names), strict=True)):
        size, digest = _size_and_digest(file)
        shards.append(Shard(name=name, path=file, ordinal=ordinal, size=size, digest=digest))
    return shards


def read_shard(shard: Shard, limits: Input) -> Iterator[Sample]:
    """Yield every sample of a tar, its image's bytes included, in the order of each key's first member.

    A key is the member's path up to the first dot of its file name (WebDataset's rule). Where a key has two
    members of one kind the second begins another sample, which is refused. The last sample may stand for
    the damaged rest of the tar; its `member` is "bytes A-B", B being one past the last byte.
    Raises CapfiltError if the tar cannot be read or changes meanwhile.
    """
    return _samples(shard, limits, with_images=True)


def read_without_images(shard: Shard, limits: Input) -> Iterator[Sample]:
    """Yield what read_shard yields, but for the bytes of the images, which are not read.

    `image` is None in each; `image_offset` and `image_size` say where it lies, for read_bytes.
    """
    return _samples(shard, limits, with_images=False)


def _samples(shard: Shard, limits: Input, *, with_images: bool) -> Iterator[Sample]:
    with _opened(shard.path) as file:
        index = _index(file, os.fstat(file.fileno()).st_size)
        for parts in index.samples:
            yield _sample(file, shard, parts, limits, with_image=with_images)
    if index.damage is not None:
        yield Sample(
            shard=shard.name,
            key="",
            status=Status.REFUSED,
            reason=Refusal.DAMAGED_SHARD,
            member=f"bytes {index.damage.first}-{index.damage.end}",
        )


class ChangedShardError(CapfiltError):
    """Where a picture was found earlier stands another one, or none."""


def read_bytes(path: Path, offset: int, size: int) -> bytes:
    """Return what stands where a picture was found earlier.

    CapfiltError where the shard cannot be read, ChangedShardError where it ends before.
    """
    with _opened(path) as file:
        return _read(file, path, offset, size)


@dataclass(slots=True)
class _Parts:
    """The members of one sample."""

    key: str
    is_repeated: bool = False
    members: dict[str, Member] = field(default_factory=dict)
    """By kind: image, text, json."""


@dataclass(slots=True)
class _Index:
    samples: list[_Parts] = field(default_factory=list)
    damage: Damage | None = None


def _index(file: BinaryIO, size: int) -> _Index:
    """Group the members of a tar by key, from its headers alone."""
    index = _Index()
    newest: dict[bytes, _Parts] = {}
    taken: set[str] = set()
    for found in scan(file, size):
        if isinstance(found, Damage):
            index.damage = found
            break
        raw_key, kind = _key_and_kind(found.name)
        if kind is None:
            continue
        parts = newest.get(raw_key)
        if parts is None:
            parts = _Parts(_distinct(_readable(raw_key), taken))
        elif kind in parts.members:
            parts = _Parts(parts.key, is_repeated=True)
        if not parts.members:
            newest[raw_key] = parts
            index.samples.append(parts)
        parts.members[kind] = found
    return index


def _key_and_kind(name: bytes) -> tuple[bytes, str | None]:
    folder, slash, base = name.rpartition(b"/")
    stem, _, extension = base.partition(b".")
    if not stem:
        return b"", None
    return folder + slash + stem, KINDS.get(extension.decode("ascii", "replace").lower())


def _sample(file: BinaryIO, shard: Shard, parts: _Parts, limits: Input, *, with_image: bool) -> Sample:
    text, text_trouble, metadata = _words(file, shard.path, parts, limits)
    image = parts.members.get("image")
    refusal: Refusal | None = None
    data: bytes | None = None
    if image is None:
        refusal = Refusal.MISSING_IMAGE
    elif image.size == 0:
        refusal = Refusal.EMPTY_IMAGE
    elif image.size > _IMAGE_BYTES_PER_PIXEL * limits.max_pixels + _IMAGE_BYTES_BESIDE_PIXELS:
        refusal = Refusal.TOO_MANY_PIXELS
    elif with_image:
        data = _read(file, shard.path, image.offset, image.size)
    if parts.is_repeated:
        refusal = Refusal.REPEATED_KEY
    return Sample(
        shard=shard.name,
        key=parts.key,
        status=Status.OK if refusal is None else Status.REFUSED,
        reason=refusal or text_trouble,
        member="" if image is None else _readable(image.name),
        image=data,
        image_offset=None if image is None else image.offset,
        image_size=None if image is None else image.size,
        web_text=text,
        metadata=metadata,
    )


def _words(
    file: BinaryIO, path: Path, parts: _Parts, limits: Input
) -> tuple[str | None, Refusal | None, dict[str, Any]]:
    """Return the web text, or why there is none, and the metadata; its caption stands in for KEY.txt."""
    metadata: dict[str, Any] = {}
    member = parts.members.get("json")
    if member is not None and member.size <= _MOST_METADATA_BYTES:
        metadata = _metadata(_read(file, path, member.offset, member.size))
    member = parts.members.get("text")
    if member is not None:
        if member.size > limits.max_text_bytes:
            return None, Refusal.TEXT_TOO_LONG, metadata
        return *_text(_read(file, path, member.offset, member.size), limits), metadata
    caption = metadata.get("caption")
    if not isinstance(caption, str):
        return None, Refusal.MISSING_TEXT, metadata
    return *_text(caption.encode("utf-8", "surrogatepass"), limits), metadata


def _text(data: bytes, limits: Input) -> tuple[str | None, Refusal | None]:
    """Return the text as it stands, outer white space and a byte order mark apart."""
    if len(data) > limits.max_text_bytes:
        return None, Refusal.TEXT_TOO_LONG
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return None, Refusal.TEXT_NOT_UTF8
    return (text, None) if text else (None, Refusal.EMPTY_TEXT)


def _metadata(data: bytes) -> dict[str, Any]:
    """Parse KEY.json; {} unless it is an object that can also be written again."""
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text)
    except (ValueError, RecursionError):
        # ValueError is UTF-8's, JSON's, and that of a number with thousands of digits.
        return {}
    if not isinstance(value, dict) or _is_deeper(value, _MOST_METADATA_DEPTH):
        return {}
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects stand more than so many deep in one another."""
    layer = [value]
    for _ in range(levels):
        inner: list[Any] = []
        for item in layer:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        layer = inner
        if not layer:
            return False
    return any(isinstance(item, (dict, list)) for item in layer)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise CapfiltError(
            f"shard {path} cannot be read: {error.strerror}",
            fix="put it back, or make it readable, and give the same command again",
        ) from error


def _read(file: BinaryIO, path: Path, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise ChangedShardError(
            f"shard {path} has changed: it ends before byte {offset + size}",
            fix="leave input shards as they are while a run uses them; start a new run for new ones",
        )
    return data


def _shard_name(file: Path, common: Path) -> str:
    name = PurePosixPath(file.relative_to(common).as_posix())
    stem = str(name)[: -len(".tar")] if name.suffix.lower() == ".tar" else str(name)
    return _readable(os.fsencode(stem))


def _unique(names: list[str]) -> list[str]:
    taken: set[str] = set()
    return [_distinct(name, taken) for name in names]


def _distinct(name: str, taken: set[str]) -> str:
    """Return the name, numbered if another one already reads the same, and note it."""
    number, distinct = 1, name
    while distinct in taken:
        number += 1
        distinct = f"{name}~{number}"
    taken.add(distinct)
    return distinct


def _readable(name: bytes) -> str:
    r"""Return a name as text; bytes that are not UTF-8 are shown as \xff, so that it can be written."""
    return name.decode("utf-8", "backslashreplace")


def _size_and_digest(path: Path) -> tuple[int, str]:
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(_DIGEST_BYTES)
        file.seek(max(0, size - _DIGEST_BYTES))
        last = file.read(_DIGEST_BYTES)
    return size, hashlib.sha256(f"{size}\n".encode() + first + last).hexdigest()
