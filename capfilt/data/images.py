"""From the bytes of a stranger's picture to the pixels a model sees.

Every caller decodes through here, so a picture that one stage uses no other stage refuses: upright, its
transparency kept, and either whole or refused for a reason that goes into the record. What shows where it is
transparent is for each model to say, and a picture is decoded once for all of them.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from capfilt.records import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image
    from torch import Tensor

    from capfilt.settings import Images

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are tried, JPEG with MPO: Pillow knows some forty, and defects hide in the rare ones."""

# Pillow promises no set of exceptions for hostile bytes. Its plugins raise OSError for what is unknown or
# cut off, SyntaxError for broken chunks, ValueError, struct.error and zlib.error for lengths and streams and
# EOFError where there is no frame. The others come from fields whose value or type a plugin never checked,
# and MemoryError from a header that asks for what nobody has.
_REFUSES = (
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    zlib.error,
    EOFError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    MemoryError,
)
_ORIENTATION = 0x0112
_WHITE = (255, 255, 255, 255)


class RefusedImage(Exception):
    """A picture that cannot be used; `reason` is what the record says of it."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason.value)
        self.reason = reason


def decode(data: bytes, *, max_pixels: int) -> Image:
    """Return the picture upright, the first frame of an animation: RGB, or RGBA where a pixel is transparent.

    The size is compared with `max_pixels` (width times height) before any pixel is decoded. Raises
    RefusedImage with EMPTY_IMAGE, TOO_MANY_PIXELS, or UNREADABLE_IMAGE for unknown or truncated bytes.
    A broken EXIF block costs the picture its orientation, not its place.
    """
    import PIL.Image

    if not data:
        raise RefusedImage(Refusal.EMPTY_IMAGE)
    with _our_own_limits():
        try:
            with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise RefusedImage(Refusal.TOO_MANY_PIXELS)
                image.load()
                return _upright(_in_colour(image), _orientation(image))
        except PIL.Image.DecompressionBombError as error:
            raise RefusedImage(Refusal.TOO_MANY_PIXELS) from error
        except _REFUSES as error:
            raise RefusedImage(Refusal.UNREADABLE_IMAGE) from error


def flattened(picture: Image) -> Image:
    """Return a decoded picture in RGB as a person sees it, transparency on white."""
    import PIL.Image

    if picture.mode == "RGB":
        return picture
    white = PIL.Image.new("RGBA", picture.size, _WHITE)
    return PIL.Image.alpha_composite(white, picture).convert("RGB")


def to_square(picture: Image, images: Images) -> npt.NDArray[np.uint8]:
    """Return a decoded picture as uint8 of shape (3, size_px, size_px), the sides stretched to fit.

    Where it is transparent, white shows or the colour that the file hides there, as `images` says.
    Source: the processing of BLIP's released code, convert("RGB") and Resize((size, size), BICUBIC) on
    the Pillow image.
    """
    import numpy as np
    from PIL.Image import Resampling

    colours = flattened(picture) if images.transparency == "white" else picture.convert("RGB")
    square = colours.resize((images.size_px, images.size_px), Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))


def normalise(pixels: Tensor, images: Images) -> Tensor:
    """Return float32 (x / 255 - mean) / std of uint8 pixels of shape (..., 3, height, width).

    The work is done on the device that holds the pixels, so that a quarter of the bytes travel there.
    """
    import torch

    mean = torch.tensor(images.mean, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(images.std, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
    return (pixels.to(torch.float32) / 255 - mean) / std


_inside = 0
_inside_lock = threading.Lock()
_outside: tuple[warnings.catch_warnings[None], int | None] | None = None


@contextmanager
def _our_own_limits() -> Iterator[None]:
    """Set Pillow's limit on pixels and its warnings aside while any thread decodes.

    Both are global. Threads overlap, so the first one in sets them aside and the last one out puts
    them back; a lock around the decoding would make threads useless.
    """
    import PIL.Image

    global _inside, _outside
    with _inside_lock:
        _inside += 1
        if _inside == 1:
            quiet = warnings.catch_warnings()
            _outside = (quiet, PIL.Image.MAX_IMAGE_PIXELS)
            quiet.__enter__()
            warnings.simplefilter("ignore")
            PIL.Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _inside_lock:
            _inside -= 1
            if _inside == 0 and _outside is not None:
                quiet, PIL.Image.MAX_IMAGE_PIXELS = _outside
                quiet.__exit__(None, None, None)
                _outside = None


def _in_colour(image: Image) -> Image:
    """Return the loaded picture in RGBA if a pixel of it is transparent, else in RGB.

    Pillow's convert("RGB") gives the same colours after its convert("RGBA") as without it, whatever the
    mode: both look a palette up, and neither changes the colour under an alpha.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _from_deep_grey(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    with_alpha = image.convert("RGBA")
    return with_alpha if _some_transparent(with_alpha) else with_alpha.convert("RGB")


def _some_transparent(with_alpha: Image) -> bool:
    least, _ = with_alpha.getchannel("A").getextrema()
    return isinstance(least, (int, float)) and least < 255


def _from_deep_grey(image: Image) -> Image:
    """Scale grey of more than 8 bits to 8, where Pillow's own conversion would clip it at 255.

    16 bits go by their full range. 32 bits and floats have no range of their own: the picture's
    lowest and highest value become black and white.
    """
    import numpy as np
    import PIL.Image

    if image.mode.startswith("I;"):
        values = np.asarray(image).astype(np.uint32)
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int) and (values == transparent).any():
            alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
            return PIL.Image.fromarray(np.stack([grey, grey, grey, alpha], axis=-1))
    else:
        depth = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = float(depth.min()), float(depth.max())
        scale = 255 / (high - low) if high - low > 0 else 0.0
        grey = np.rint((depth - low) * scale).clip(0, 255).astype(np.uint8)
    return PIL.Image.fromarray(grey).convert("RGB")


def _orientation(image: Image) -> int:
    """Return EXIF's orientation, 1 to 8; 1, upright, where there is none that can be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _REFUSES:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image
