"""Pictures that were judged, read again from their shards by the byte; nothing is unpacked.

What stands beside a verdict is what it was given for. A shard may be moved, cut off or replaced later, so a
picture is shown only where the very bytes stand whose digest the record has, and elsewhere the reason is.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.data.images import RefusedImage, decode, flattened
from capfilt.data.sources import ChangedShardError, read_bytes
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

GONE = "its shard is gone"
UNREADABLE = "its shard cannot be read"
CHANGED = "its shard changed since it was judged"
UNPLACED = "the run does not know where its picture lies"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture lies, and what it was when it was judged, as the record has it."""

    shard: Path
    offset: int | None
    """Of its first byte."""
    size: int | None
    """Encoded, in bytes."""
    sha256: str | None
    """Of these bytes."""
    width: int | None
    """In pixels, as the height."""
    height: int | None


class LostPicture(Exception):
    """The picture that was judged can no longer be shown; `words` say why, and hold no stranger's."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words


def judged_bytes(shard: Path, offset: int, size: int, sha256: str) -> bytes:
    """Return the encoded picture that was judged.

    CapfiltError where the shard cannot be read, ChangedShardError where other bytes stand there.
    """
    data = read_bytes(shard, offset, size)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ChangedShardError(
            f"shard {shard} has changed: another picture stands at byte {offset}",
            fix="restore the shard, or start a new run on the changed input",
        )
    return data


def judged_picture(place: Place, *, max_pixels: int | None = None) -> Image:
    """Return the picture that was judged, upright and in RGB; no other one stands in for it.

    It has no more pixels than it had then, and no more than `max_pixels`. Raises LostPicture.
    """
    data, pixels = _encoded(place)
    try:
        return flattened(decode(data, max_pixels=pixels if max_pixels is None else min(pixels, max_pixels)))
    except RefusedImage as refused:
        raise LostPicture(f"it cannot be decoded: {refused.reason.value.replace('_', ' ')}") from refused


def _encoded(place: Place) -> tuple[bytes, int]:
    """Return the encoded picture, and its pixels when it was judged."""
    offset, size, pixels = place.offset, place.size, (place.width or 0) * (place.height or 0)
    if offset is None or size is None or place.sha256 is None or min(offset, size) < 0 or pixels <= 0:
        raise LostPicture(UNPLACED)
    try:
        found = place.shard.stat()
    except (OSError, ValueError) as error:
        raise LostPicture(GONE) from error
    if not stat.S_ISREG(found.st_mode):  # a pipe would have its reader wait for ever
        raise LostPicture(GONE)
    if found.st_size < offset + size:  # before memory is taken for it
        raise LostPicture(CHANGED)
    try:
        return judged_bytes(place.shard, offset, size, place.sha256), pixels
    except ChangedShardError as error:
        raise LostPicture(CHANGED) from error
    except (CapfiltError, OSError) as error:
        raise LostPicture(UNREADABLE) from error
