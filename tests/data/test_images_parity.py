"""Pixels as models see them, next to the ones that transformers makes for BLIP out of the same files.

The settings are those of the original checkpoints. Transformers has two processors: one resizes by Pillow,
as BLIP's released code does and as we do; its default resizes by torchvision, which rounds differently.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import pytest

from capfilt.data.images import decode, normalise, to_square
from capfilt.data.sources import find_shards, read_shard
from capfilt.settings import Images, Input

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Process = Callable[[PIL.Image.Image], np.ndarray]

REAL = Path(__file__).parent / "real"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "real"
ORIGINAL = Images(
    size_px=384,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    transparency="drop",
)
STEP = 1 / 255
EXIF_ORIENTATION = 0x0112
DARK = 31
"""The last entry of a palette of 32 that Pillow made."""


def shard(path: Path) -> list[bytes]:
    return [sample.image for sample in read_shard(find_shards(path)[0], Input()) if sample.image]


PHOTOS = shard(REAL / "photos.tar")
DRAWINGS = shard(REAL / "noisy.tar")


def encoded(image: PIL.Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, form, **options)
    return buffer.getvalue()


def turned(photo: PIL.Image.Image, orientation: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return encoded(photo, "JPEG", exif=exif, quality=90)


def files() -> Iterator[tuple[str, bytes]]:
    """Yield real pictures as stored, larger and smaller than the square, and every kind that needs work."""
    for n, data in enumerate(PHOTOS):
        yield f"photo {n}", data
    for n, data in enumerate(DRAWINGS[:4]):
        yield f"drawing {n}", data
    photo = PIL.Image.open(io.BytesIO(PHOTOS[0])).convert("RGB")
    for size in ((40, 30), (1, 400), (384, 384), (300, 900), (1500, 1100)):
        yield f"{size[0]} x {size[1]}", encoded(photo.resize(size))
    for orientation in range(1, 9):
        yield f"turned {orientation}", turned(photo, orientation)
    faded = photo.copy()
    faded.putalpha(PIL.Image.linear_gradient("L").resize(photo.size))
    yield "RGBA", encoded(faded)
    yield "LA", encoded(faded.convert("LA"))
    palette = photo.quantize(32)
    yield "palette", encoded(palette)
    yield "palette, one entry transparent", encoded(palette, transparency=DARK)
    yield "palette with alphas", encoded(palette, transparency=bytes(range(0, 256, 8)))
    yield "GIF", encoded(palette, "GIF", transparency=DARK)
    grey = photo.convert("L")
    yield "grey", encoded(grey, "JPEG")
    yield "grey, one of them transparent", encoded(grey, transparency=grey.getextrema()[0])
    yield "CMYK JPEG", encoded(photo.convert("CMYK"), "JPEG")
    yield "CMYK TIFF", encoded(photo.convert("CMYK"), "TIFF")


FILES = dict(files())


@pytest.fixture(scope="module")
def by_pillow() -> Process:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    processor = BlipImageProcessorPil()
    return lambda image: np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


@pytest.fixture(scope="module")
def by_default() -> Process:
    from transformers import BlipImageProcessor

    processor = BlipImageProcessor()
    return lambda image: np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


def as_transformers_loads(data: bytes, folder: Path) -> PIL.Image.Image:
    from transformers.image_utils import load_image

    (folder / "picture").write_bytes(data)
    return load_image(str(folder / "picture"))


def dropped(data: bytes, folder: Path) -> PIL.Image.Image:
    """Return what transformers loads, nothing transparent left in it.

    A single transparent colour outlives Pillow's convert("RGB") as a note on the picture.
    """
    picture = as_transformers_loads(data, folder)
    picture.info.pop("transparency", None)
    return picture


def apart(data: bytes, theirs: np.ndarray, images: Images = ORIGINAL) -> np.ndarray:
    """Return how far our pixels are from theirs, on the scale of 0 to 1 that comes before normalising."""
    import torch

    square = torch.from_numpy(to_square(decode(data, max_pixels=10_000_000), images))
    ours = normalise(square, images)
    assert ours.dtype == torch.float32
    assert ours.shape == theirs.shape == (3, images.size_px, images.size_px)
    return np.abs(ours.numpy() - theirs) * np.array(images.std).reshape(3, 1, 1)


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_transformers_where_it_resizes_by_pillow(name, by_pillow, tmp_path):
    picture = dropped(FILES[name], tmp_path)

    assert apart(FILES[name], by_pillow(picture)).max() <= 1e-6


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_transformers_default_but_for_its_rounding(name, by_default, tmp_path):
    difference = apart(FILES[name], by_default(dropped(FILES[name], tmp_path)))

    # Torchvision resizes in 8 bits with coarser weights, and a tall picture sideways first where Pillow
    # begins with the larger cut.
    assert difference.max() <= 3 * STEP + 1e-6
    assert (difference > STEP + 1e-6).mean() <= 1e-3


@pytest.mark.parametrize("tar", sorted(SHARED.rglob("*.tar")) or [None], ids=lambda tar: tar and tar.stem)
def test_real_pictures_of_every_source_are_within_one_step_of_transformers(
    tar, by_pillow, by_default, tmp_path
):
    if tar is None:
        pytest.skip("the real pictures are not beside the repository")
    for data in shard(tar)[::60]:
        picture = dropped(data, tmp_path)
        assert apart(data, by_pillow(picture)).max() <= 1e-6
        difference = apart(data, by_default(picture))
        assert difference.max() <= 2 * STEP + 1e-6
        assert (difference > STEP + 1e-6).mean() <= 1e-4


WHITE = ORIGINAL.model_copy(update={"transparency": "white"})
ONE_COLOUR = ["palette, one entry transparent", "GIF", "grey, one of them transparent"]


@pytest.mark.parametrize("name", ["RGBA", "LA", "palette with alphas", *ONE_COLOUR])
def test_on_white_is_what_transformers_makes_of_a_picture_that_still_has_its_transparency(name, by_pillow):
    untouched = by_pillow(PIL.Image.open(io.BytesIO(FILES[name])))

    assert apart(FILES[name], untouched, WHITE).max() <= STEP + 1e-6
    assert apart(FILES[name], untouched, ORIGINAL).max() > 20 * STEP


@pytest.mark.parametrize("name", ONE_COLOUR)
def test_a_single_transparent_colour_is_white_in_transformers_even_when_dropped(name, by_pillow, tmp_path):
    # Its loader drops the transparency and leaves the note of it, and its processor goes by the note.
    # BLIP's released code has no such second step: there the colour shows, as it does here.
    theirs = by_pillow(as_transformers_loads(FILES[name], tmp_path))

    assert apart(FILES[name], theirs, WHITE).max() <= STEP + 1e-6
