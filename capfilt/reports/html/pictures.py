"""Small pictures for the page, each a JPEG of our own making in a data URL, or why there is none."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from capfilt.data.judged import LostPicture, judged_picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from capfilt.data.judged import Place

SIDE_PX = 320
"""Longer side of a picture on the page."""
_SMALL_PX = 96
"""Pictures up to this size are shown larger than they are, in sharp pixels."""
_QUALITIES = (80, 65, 50, 35)


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
    try:
        return _shown(judged_picture(place), most_bytes)
    except LostPicture as lost:
        return Picture(Markup(), 0, 0, problem=f"{lost.words} ({place.shard})")


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
