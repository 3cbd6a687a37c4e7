"""Small pictures of samples, read from the shards by their byte offsets when they are asked for.

Nothing of a stranger's file is handed on: what is shown is a JPEG made here, of pixels that were decoded as
safely as for a model. A picture that cannot be shown is drawn as a plain card with the reason.
"""

from __future__ import annotations

import io
import textwrap
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.data.judged import LostPicture, judged_picture
from capfilt.errors import CapfiltError
from capfilt.provenance.rundir import read_json
from capfilt.settings import Input

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

    from capfilt.data.judged import Place
    from capfilt.provenance.rundir import RunDir

LEAST_PX, MOST_PX = 32, 1024
_MOST_BYTES = 64 << 20
"""JPEGs that are kept in memory, all together."""
_DECODED_AT_ONCE = 4
_QUALITY = 85
_PAPER, _INK = (236, 236, 236), (64, 64, 64)


@dataclass(frozen=True, slots=True)
class Unused:
    """What stands for the place of a picture that was never used."""

    reason: str
    """Why its sample was refused, as the record has it."""

    @property
    def words(self) -> str:
        """The reason in words."""
        return self.reason.replace("_", " ")


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small picture, or the drawing that stands for one that cannot be shown."""

    jpeg: bytes
    words: str = ""
    """Why there is a drawing; empty for a real picture."""
    is_lasting: bool = True
    """Whether it will be the same later; a shard that is gone may come back."""


class Thumbnails:
    """Makes thumbnails and keeps the last ones; its methods may be called from several threads."""

    def __init__(
        self,
        where: Callable[[str, str], Place | Unused],
        *,
        max_pixels: int = Input().max_pixels,
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        """`where` finds a sample's picture by shard and key; one of more than `max_pixels` is not decoded."""
        self._where, self._max_pixels, self._most_bytes = where, max_pixels, most_bytes
        self._kept: OrderedDict[tuple[Place | Unused, int], Thumbnail] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        # A large picture takes hundreds of megabytes while it is decoded.
        self._decoding = threading.BoundedSemaphore(_DECODED_AT_ONCE)

    @property
    def bytes_kept(self) -> int:
        """Bytes of the JPEGs in memory."""
        return self._bytes

    def thumbnail(self, shard: str, key: str, px: int) -> Thumbnail:
        """Return the picture of a sample, at most `px` pixels wide and high and never enlarged.

        CapfiltError where there is no such sample.
        """
        picture = self._where(shard, key)
        px = min(max(px, LEAST_PX), MOST_PX)
        with self._lock:
            if (known := self._kept.get((picture, px))) is not None:
                self._kept.move_to_end((picture, px))
                return known
        made = self._made(picture, px)
        if made.is_lasting:
            self._keep((picture, px), made)
        return made

    def _keep(self, name: tuple[Place | Unused, int], made: Thumbnail) -> None:
        with self._lock:
            if name in self._kept or len(made.jpeg) > self._most_bytes:
                return
            self._kept[name] = made
            self._bytes += len(made.jpeg)
            while self._bytes > self._most_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= len(oldest.jpeg)

    def _made(self, picture: Place | Unused, px: int) -> Thumbnail:
        if isinstance(picture, Unused):
            return Thumbnail(_drawn(picture.words, px), picture.words)
        try:
            with self._decoding:
                return Thumbnail(_small(judged_picture(picture, max_pixels=self._max_pixels), px))
        except LostPicture as lost:
            return Thumbnail(_drawn(lost.words, px), lost.words, is_lasting=False)


def _small(picture: Image, px: int) -> bytes:
    from PIL.Image import Resampling

    scale = min(1.0, px / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Whole steps of averaging first: a large picture is not filtered pixel by pixel.
    return _jpeg(picture.resize(size, Resampling.BICUBIC, reducing_gap=2.0) if scale < 1 else picture)


def _drawn(words: str, px: int) -> bytes:
    """Return a plain card with words that are ours, never a stranger's."""
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    card = PIL.Image.new("RGB", (px, px), _PAPER)
    font = PIL.ImageFont.load_default(max(9, px // 12))
    text = "\n".join(textwrap.wrap(words, 16))
    draw = PIL.ImageDraw.Draw(card)
    draw.multiline_text((px / 2, px / 2), text, fill=_INK, font=font, anchor="mm", align="center")
    return _jpeg(card)


def _jpeg(picture: Image) -> bytes:
    data = io.BytesIO()
    # Pillow writes a comment, a profile and the like of the file that was read; all of them stay behind.
    picture.info.clear()
    picture.save(data, "JPEG", quality=_QUALITY, optimize=True)
    return data.getvalue()


def max_pixels_of(run: RunDir) -> int:
    """Return the largest picture that the run decodes."""
    mend = "restore run.json from a copy, or start a new run elsewhere"
    try:
        record = read_json(run.run_file, mend=mend)
        return int(record["facts"]["input"]["max_pixels"])
    except (OSError, KeyError, TypeError, ValueError, CapfiltError):
        return Input().max_pixels
