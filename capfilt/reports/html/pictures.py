"""Small pictures for the page, read from the shards by the byte and never unpacked.

A picture is shown only where the shard still holds the very bytes that were judged; everywhere else stands
why it is not shown.
"""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from capfilt.data.images import RefusedImage, decode, flattened
from capfilt.data.sources import read_bytes
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE_PX = 320
"""Longer side of a picture on the page."""
_SMALL_PX = 96
"""Pictures up to this size are shown larger than they are, in sharp pixels."""
_QUALITIES = (80, 65, 50, 35)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture lies, and what it was when it was judged."""

    path: str
    """Of the shard."""
    offset: int | None
    size: int | None
    sha256: str | None
    width: int | None
    height: int | None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the page shows it, or why it does not."""

    url: Markup
    """A data URL, which holds nothing to escape; empty where there is no picture."""
    width: int
    height: int
    is_small: bool = False
    """Whether it has so few pixels that they are shown as squares."""
    problem: str = ""


def picture(place: Place, most_bytes: int) -> Picture:
    """Return a small JPEG of at most `most_bytes`, or the reason why there is none."""
    if place.offset is None or place.size is None or not place.width or not place.height:
        return _none("the run does not know where its picture lies")
    if not Path(place.path).is_file():
        return _none(f"the shard is not at {place.path}")
    try:
        data = read_bytes(Path(place.path), place.offset, place.size)
    except (CapfiltError, OSError):
        return _none(f"the picture cannot be read from {place.path}")
    if hashlib.sha256(data).hexdigest() != place.sha256:
        return _none(f"{place.path} changed since it was judged: other bytes stand there")
    try:
        image = flattened(decode(data, max_pixels=place.width * place.height))
    except RefusedImage as refused:
        return _none(f"the picture cannot be decoded: {refused.reason}")
    return _shown(image, most_bytes)


def _none(problem: str) -> Picture:
    return Picture(Markup(), 0, 0, problem=problem)


def _shown(image: Image, most_bytes: int) -> Picture:
    """Return the picture as large and as good as fits."""
    is_small = max(image.size) <= _SMALL_PX
    side = SIDE_PX
    while True:
        small = image.copy()
        small.thumbnail((side, side))
        for quality in _QUALITIES:
            out = io.BytesIO()
            # Neither a profile nor a comment of a stranger's file goes into the page.
            small.info.clear()
            small.save(out, "JPEG", quality=quality, optimize=True)
            if out.tell() <= most_bytes or side <= _SMALL_PX // 4:
                return Picture(_data_url(out.getvalue()), small.width, small.height, is_small)
        side //= 2


def _data_url(jpeg: bytes) -> Markup:
    # Letters, digits and + / = alone.
    return Markup("data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii"))
