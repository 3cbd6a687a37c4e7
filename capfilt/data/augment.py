"""Training pictures, varied: a random crop, a mirror, and RandAugment without changes of colour.

Sources: BLIP, section 4.1, and what its released code puts in place: RandomResizedCrop, a mirror, and two
operations of RandAugment (Cubuk et al., 2020, "RandAugment: Practical automated data augmentation with a
reduced search space") out of the ten below, each done with a chance of one half. Everything here is a
function of numbers that are given, so that a picture is varied the same wherever and whenever it is read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from capfilt.data.images import flattened

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from capfilt.settings import Augment

TRIES = 10
"""Crops that are tried before the middle of the picture is taken (torchvision's RandomResizedCrop)."""
ASPECT = (3 / 4, 4 / 3)
"""Width to height of a crop, at least and at most (torchvision's RandomResizedCrop)."""
GREY = (128, 128, 128)
"""What stands where an operation has moved the picture away: BLIP's released code, and without a hue."""
HIGHEST_MAGNITUDE = 10
CHANCE = 0.5
"""Chance that a drawn operation is done: of BLIP's released code; the paper on RandAugment does each."""

_SCALES = 0
_ASPECTS = _SCALES + TRIES
_PLACES = _ASPECTS + TRIES
_MIRROR = _PLACES + 2
_OPERATIONS = _MIRROR + 1
_EACH = 3
"""Numbers of an operation: which one, whether it is done, its sign."""


def numbers_needed(augment: Augment) -> int:
    """Return how many numbers one picture takes.

    Each stands for one thing whatever else is varied: the crop is the same with a mirror and without.
    """
    return _OPERATIONS + _EACH * augment.operations


def augmented(
    picture: Image,
    augment: Augment,
    *,
    side: int,
    numbers: NDArray[np.float64],
    transparency: Literal["white", "drop"] = "white",
) -> Image:
    """Return a decoded picture in RGB, varied: a square of `side` pixels, as to_square takes it.

    `numbers` are uniform in [0, 1), float64, shape (numbers_needed(augment),) or longer; the result depends
    on nothing else. `transparency` is that of Images. No operation is there to change hue or saturation, but
    AutoContrast and Equalize stretch each channel by itself, as in BLIP's released code, and so shift both;
    Brightness and Sharpness do where a channel ends at 0 or 255.
    Raises ValueError for too few numbers.
    """
    from PIL.Image import Resampling, Transpose

    if len(numbers) < numbers_needed(augment):
        raise ValueError(f"{len(numbers)} numbers were given, {numbers_needed(augment)} are needed")
    given = [float(number) for number in numbers]
    square = flattened(picture) if transparency == "white" else picture.convert("RGB")
    if augment.crop_least < 1:
        square = square.crop(crop_box(square.size, augment.crop_least, given))
    square = square.resize((side, side), Resampling.BICUBIC)
    if given[_MIRROR] < augment.flip:
        square = square.transpose(Transpose.FLIP_LEFT_RIGHT)
    for number in range(augment.operations):
        which, done, sign = given[_OPERATIONS + _EACH * number :][:_EACH]
        if done < CHANCE:
            operation = tuple(OPERATIONS.values())[int(which * len(OPERATIONS))]
            square = operation(square, augment.magnitude / HIGHEST_MAGNITUDE, 1 if sign < 0.5 else -1)
    return square


def crop_box(size: tuple[int, int], least: float, numbers: list[float]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a crop of a picture of (width, height), by the first 22 numbers.

    Its share of the area is uniform between `least` and 1, its aspect ratio uniform in its logarithm. Where
    none of ten tries fits in, the largest crop in the middle whose aspect ratio is allowed.
    Source: torchvision's RandomResizedCrop.
    """
    width, height = size
    low, high = (math.log(ratio) for ratio in ASPECT)
    for number in range(TRIES):
        area = width * height * (least + (1 - least) * numbers[_SCALES + number])
        aspect = math.exp(low + (high - low) * numbers[_ASPECTS + number])
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            left = int(numbers[_PLACES] * (width - wide + 1))
            top = int(numbers[_PLACES + 1] * (height - tall + 1))
            return left, top, left + wide, top + tall
    wide = min(width, max(1, round(height * ASPECT[1])))
    tall = min(height, max(1, round(width / ASPECT[0])))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


# An operation takes a square in RGB, its strength from 0 to 1, and a sign for what has two directions.


def identity(square: Image, strength: float, sign: int) -> Image:  # noqa: ARG001
    """Return the picture as it is."""
    return square


def auto_contrast(square: Image, strength: float, sign: int) -> Image:  # noqa: ARG001
    """Stretch each channel from 0 to 255; a channel of one value stays."""
    from PIL import ImageOps

    return ImageOps.autocontrast(square)


def equalize(square: Image, strength: float, sign: int) -> Image:  # noqa: ARG001
    """Make the values of each channel as frequent as each other, as nearly as they can be."""
    from PIL import ImageOps

    return ImageOps.equalize(square)


def brightness(square: Image, strength: float, sign: int) -> Image:  # noqa: ARG001
    """Multiply every value by 0.1 (nearly black) to 1.9; by 1 at magnitude 5, that of BLIP."""
    from PIL import ImageEnhance

    return ImageEnhance.Brightness(square).enhance(_factor(strength))


def sharpness(square: Image, strength: float, sign: int) -> Image:  # noqa: ARG001
    """Blur (0.1) or sharpen (1.9), to and from the mean of 3 x 3 pixels; nothing at magnitude 5."""
    from PIL import ImageEnhance

    return ImageEnhance.Sharpness(square).enhance(_factor(strength))


def shear_x(square: Image, strength: float, sign: int) -> Image:
    """Move each row by up to 0.3 of its distance from the top."""
    return _moved(square, (1, sign * 0.3 * strength, 0, 0, 1, 0))


def shear_y(square: Image, strength: float, sign: int) -> Image:
    """Move each column by up to 0.3 of its distance from the left."""
    return _moved(square, (1, 0, 0, sign * 0.3 * strength, 1, 0))


def translate_x(square: Image, strength: float, sign: int) -> Image:
    """Move to the left or the right by up to 10 of 224 pixels, and by the same share of any other side."""
    return _moved(square, (1, 0, sign * strength * _farthest(square), 0, 1, 0))


def translate_y(square: Image, strength: float, sign: int) -> Image:
    """Move up or down by up to 10 of 224 pixels, and by the same share of any other side."""
    return _moved(square, (1, 0, 0, 0, 1, sign * strength * _farthest(square)))


def rotate(square: Image, strength: float, sign: int) -> Image:
    """Turn about the middle by up to 30 degrees; counterclockwise where the sign is positive."""
    from PIL.Image import Resampling

    return square.rotate(sign * 30 * strength, Resampling.BILINEAR, fillcolor=GREY)


OPERATIONS: dict[str, Callable[[Image, float, int], Image]] = {
    "Identity": identity,
    "AutoContrast": auto_contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
    "Equalize": equalize,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
}
"""By the names of the paper: those that BLIP's released pre-training draws from, each as often as another."""


def _factor(strength: float) -> float:
    return 0.1 + 1.8 * strength


def _farthest(square: Image) -> float:
    """Return the pixels of the farthest translation: BLIP's released code has 10 at 224 pixels."""
    return square.width * 10 / 224


def _moved(square: Image, places: tuple[float, ...]) -> Image:
    """Return what stands at (a x + b y + c, d x + e y + f) for each pixel (x, y), between pixels linearly."""
    from PIL.Image import Resampling, Transform

    return square.transform(square.size, Transform.AFFINE, places, Resampling.BILINEAR, fillcolor=GREY)
