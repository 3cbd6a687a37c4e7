"""Pictures as a server gets them, and the plain one that tells a refused picture from a refused request."""

from __future__ import annotations

import base64
import io
import threading
from typing import TYPE_CHECKING

from capfilt.data.images import flattened
from capfilt.models.api_client import RefusedRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

    from capfilt.settings import Server

LEAST_SIDE_PX = 32
"""A picture is stretched to at least this. The web has pictures of one pixel, and of one row of them, and
models of patches refuse them (Qwen2-VL: sides below 28 pixels, one side 200 times the other)."""
JPEG_QUALITY = 90


def data_url(picture: Image, settings: Server) -> str:
    """Return a picture as it is sent: upright, in RGB, transparency on white, no side too long.

    It was decoded by `data.images`, so that the server's own decoder meets no strange format and no
    orientation, and larger sides are for nothing: models reduce what is above about 1,000 pixels, and a
    photograph of 24 megapixels would travel as 10 MB.
    """
    from PIL.Image import Resampling

    image = flattened(picture)
    scale = max(1.0, LEAST_SIDE_PX / min(image.size))
    scale = min(scale, settings.image_px / max(image.size))
    size = (
        max(LEAST_SIDE_PX, round(image.width * scale)),
        max(LEAST_SIDE_PX, round(image.height * scale)),
    )
    if size != image.size:
        image = image.resize(size, Resampling.BICUBIC, reducing_gap=3.0)
    file = io.BytesIO()
    kind = settings.image_format
    # Without subsampling: half the resolution of colour is what small pictures and letters cannot spare.
    image.save(file, kind, **({"quality": JPEG_QUALITY, "subsampling": 0} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


class PlainPicture:
    """Whether a server answers a request with a plain picture in place of one that it refuses.

    It is asked once for a batch: what the other pictures of the batch are asked is the same but for a seed.
    """

    def __init__(self, settings: Server) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._is_taken: bool | None = None

    def is_taken(self, refused: Image, ask: Callable[[str], object]) -> bool:
        """Put a grey picture to `ask`, as its URL, unless that was done.

        It is as long as the refused one, and of the shape of a photograph, so that a server for which all
        such pictures are too large refuses it, too. Raises RunFailedError where the server does not answer.
        """
        from PIL import Image

        with self._lock:
            if self._is_taken is None:
                longest = max(refused.size)
                plain = Image.new("RGB", (longest, max(1, longest * 3 // 4)), "gray")
                try:
                    ask(data_url(plain, self._settings))
                except RefusedRequestError:
                    self._is_taken = False
                else:
                    self._is_taken = True
            return self._is_taken
