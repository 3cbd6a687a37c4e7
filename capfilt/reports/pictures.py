"""Pictures of samples for a terminal, with the reason where there is none to show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from capfilt.data.judged import LostPicture, Place, judged_picture
from capfilt.provenance.catalog import open_catalog

if TYPE_CHECKING:
    from collections.abc import Collection

    from PIL.Image import Image

    from capfilt.provenance.rundir import RunDir

Sample = tuple[str, str]
"""Shard and key."""

_PLACES = """
    SELECT shard, key, path, image_offset, image_size, image_sha256, width, height
    FROM (SELECT * FROM samples WHERE status = 'ok')
        JOIN (SELECT shard, path FROM shards) USING (shard)
        JOIN (SELECT DISTINCT unnest(?::VARCHAR[]) AS shard, unnest(?::VARCHAR[]) AS key) USING (shard, key)
"""


def small_pictures(run: RunDir, samples: Collection[Sample], side_px: int) -> dict[Sample, Image | str]:
    """Return pictures of samples in RGB, no side longer than `side_px` pixels, or why there is none.

    Left out are samples whose picture was never used.
    """
    shards, keys = [list(part) for part in zip(*samples, strict=True)] or [[], []]
    with open_catalog(run) as catalog:
        places = catalog.execute(_PLACES, [shards, keys]).fetchall()
    found: dict[Sample, Image | str] = {}
    for shard, key, path, *rest in places:
        try:
            picture = judged_picture(Place(Path(path), *rest))
        except LostPicture as lost:
            found[shard, key] = lost.words
            continue
        picture.thumbnail((side_px, side_px))
        found[shard, key] = picture
    return found
