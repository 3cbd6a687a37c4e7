"""Pictures of samples, read again from their shards by the byte; nothing is unpacked.

A picture is shown only where the shard still holds the very bytes that were judged.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from capfilt.data.images import RefusedImage, decode, flattened
from capfilt.data.sources import read_bytes
from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import open_catalog

if TYPE_CHECKING:
    from collections.abc import Collection

    from PIL.Image import Image

    from capfilt.provenance.rundir import RunDir

Sample = tuple[str, str]
"""Shard and key."""

_PLACES = """
    SELECT shard, key, path, image_offset, image_size, image_sha256, width, height
    FROM (SELECT * FROM samples WHERE status = 'ok' AND image_size IS NOT NULL AND width IS NOT NULL)
        JOIN (SELECT shard, path FROM shards) USING (shard)
        JOIN (SELECT DISTINCT unnest(?::VARCHAR[]) AS shard, unnest(?::VARCHAR[]) AS key) USING (shard, key)
"""


def small_pictures(run: RunDir, samples: Collection[Sample], side_px: int) -> dict[Sample, Image]:
    """Return pictures of samples in RGB, no side longer than `side_px` pixels.

    Left out are those that cannot be shown: their shard is gone or has changed, or they were refused.
    """
    shards, keys = [list(part) for part in zip(*samples, strict=True)] or [[], []]
    with open_catalog(run) as catalog:
        places = catalog.execute(_PLACES, [shards, keys]).fetchall()
    found: dict[Sample, Image] = {}
    for shard, key, path, offset, size, sha256, width, height in places:
        picture = _read(Path(path), offset, size, sha256, width * height)
        if picture is not None:
            picture.thumbnail((side_px, side_px))
            found[shard, key] = picture
    return found


def _read(path: Path, offset: int, size: int, sha256: str, pixels: int) -> Image | None:
    """Return the picture that was judged; None where these bytes are no longer it."""
    try:
        data = read_bytes(path, offset, size)
        return flattened(decode(data, max_pixels=pixels)) if _is(data, sha256) else None
    except (CapfiltError, OSError, RefusedImage):
        return None


def _is(data: bytes, sha256: str) -> bool:
    return hashlib.sha256(data).hexdigest() == sha256
