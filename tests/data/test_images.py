"""Pictures of every kind that the web holds come out as a person would see them, or refused by name."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.data.images import RefusedImage, decode, flattened, normalise, to_square
from capfilt.data.sources import find_shards, read_shard
from capfilt.records import Refusal
from capfilt.settings import Images, Input

if TYPE_CHECKING:
    from collections.abc import Sequence

REAL = Path(__file__).parent / "real"
PHOTOS = [sample.image for sample in read_shard(find_shards(REAL / "photos.tar")[0], Input())]
DRAWINGS = [sample.image for sample in read_shard(find_shards(REAL / "noisy.tar")[0], Input())]
MOST = 1_000_000
EXIF_ORIENTATION = 0x0112


def encoded(
    image: PIL.Image.Image, form: str = "PNG", *, more: Sequence[PIL.Image.Image] = (), **options: object
) -> bytes:
    """One file; `more` are the frames behind the first."""
    buffer = io.BytesIO()
    if more:
        options |= {"save_all": True, "append_images": [frame.copy() for frame in more]}
    # Copies, since saving as JPEG leaves its settings in the image, and other formats stumble over them.
    image.copy().save(buffer, form, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = flattened(decode(data, max_pixels=MOST))
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(data: bytes, max_pixels: int = MOST) -> Refusal:
    with pytest.raises(RefusedImage) as caught:
        decode(data, max_pixels=max_pixels)
    return caught.value.reason


def corners() -> PIL.Image.Image:
    """3 wide and 2 high, every pixel another colour."""
    colours = np.array(
        [[(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(255, 255, 0), (0, 255, 255), (255, 0, 255)]], np.uint8
    )
    return PIL.Image.fromarray(colours)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand, for what Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    between = b"".join(chunk(*given) for given in chunks)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + between + body


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF"])
def test_a_picture_stored_without_loss_comes_out_as_it_was(form):
    assert (pixels(encoded(corners(), form)) == np.asarray(corners())).all()


def test_a_lossless_webp_comes_out_as_it_was():
    assert (pixels(encoded(corners(), "WEBP", lossless=True)) == np.asarray(corners())).all()


@pytest.mark.parametrize("data", PHOTOS + DRAWINGS)
def test_a_real_picture_is_what_pillow_makes_of_it(data):
    assert (pixels(data) == np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))).all()


# Where the corner pixels of a stored picture stand when it is shown, by EXIF's table: (row, column) shown
# for the stored top left and the stored bottom right.
SHOWN = {
    1: ((0, 0), (1, 2)),
    2: ((0, 2), (1, 0)),
    3: ((1, 2), (0, 0)),
    4: ((1, 0), (0, 2)),
    5: ((0, 0), (2, 1)),
    6: ((0, 1), (2, 0)),
    7: ((2, 1), (0, 0)),
    8: ((2, 0), (0, 1)),
}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_a_rotated_picture_is_turned_upright(orientation, form):
    exif = PIL.Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    shown = pixels(encoded(corners(), form, exif=exif, **({"lossless": True} if form == "WEBP" else {})))

    top_left, bottom_right = SHOWN[orientation]
    assert tuple(shown[top_left]) == (255, 0, 0)
    assert tuple(shown[bottom_right]) == (255, 0, 255)
    assert shown.shape == ((2, 3, 3) if orientation < 5 else (3, 2, 3))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"x"]
)
def test_a_broken_exif_block_costs_the_orientation_alone(exif):
    assert pixels(encoded(corners(), "JPEG", exif=exif)).shape == (2, 3, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(orientation):
    exif = PIL.Image.Exif()
    exif[EXIF_ORIENTATION] = orientation

    assert (pixels(encoded(corners(), exif=exif)) == np.asarray(corners())).all()


def test_transparency_is_shown_on_white():
    image = PIL.Image.new("RGBA", (3, 1))
    image.putdata([(200, 0, 0, 0), (200, 0, 0, 255), (0, 0, 0, 51)])

    for form, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert pixels(encoded(image, form, **options))[0].tolist() == [[255] * 3, [200, 0, 0], [204] * 3]


def test_grey_with_alpha_is_shown_on_white():
    image = PIL.Image.new("LA", (2, 1))
    image.putdata([(10, 0), (10, 255)])

    assert pixels(encoded(image))[0].tolist() == [[255] * 3, [10] * 3]


@pytest.mark.parametrize(
    ("colour", "row", "transparent", "shown"),
    [
        (0, b"\x0a\x14", b"\x00\x0a", [[255] * 3, [20] * 3]),
        (2, b"\x01\x02\x03\x04\x05\x06", b"\0\x01\0\x02\0\x03", [[255] * 3, [4, 5, 6]]),
    ],
)
def test_a_colour_declared_transparent_is_shown_white(colour, row, transparent, shown):
    data = png(2, 1, 8, colour, b"\0" + row, (b"tRNS", transparent))

    assert pixels(data)[0].tolist() == shown


def test_a_palette_is_looked_up_and_its_transparent_entries_are_shown_on_white():
    palette = bytes((10, 20, 30, 40, 50, 60, 70, 80, 90))
    data = png(3, 1, 8, 3, b"\0\0\1\2", (b"PLTE", palette), (b"tRNS", b"\xff\x00"))

    assert pixels(data)[0].tolist() == [[10, 20, 30], [255] * 3, [70, 80, 90]]


def see_through() -> dict[str, bytes]:
    """A file of 16 x 16 for each way in which a picture can have transparency, colours hidden under it."""
    rng = np.random.default_rng(0)
    colours = PIL.Image.fromarray(rng.integers(0, 256, (16, 16, 4), dtype=np.uint8), "RGBA")
    palette = colours.convert("RGB").quantize(8)
    grey = colours.convert("L").quantize(8).convert("L")
    black = PIL.Image.fromarray(rng.integers(0, 2, (16, 16), dtype=np.uint8) * 255).convert("1")
    flat = PIL.Image.fromarray(rng.integers(0, 2, (16, 16, 3), dtype=np.uint8) * 200)
    return {
        "RGBA PNG": encoded(colours),
        "RGBA TIFF": encoded(colours, "TIFF"),
        "RGBA WEBP": encoded(colours, "WEBP", lossless=True, exact=True),
        "LA PNG": encoded(colours.convert("LA")),
        "LA TIFF": encoded(colours.convert("LA"), "TIFF"),
        "P PNG, an alpha for each entry": encoded(palette, transparency=bytes([0, 255, 77, 0, 1])),
        "P PNG, one entry": encoded(palette, transparency=3),
        "P GIF": encoded(palette, "GIF", transparency=3),
        "L PNG, one grey": encoded(grey, transparency=grey.getpixel((3, 3))),
        "RGB PNG, one colour": encoded(flat, transparency=flat.getpixel((5, 5))),
        "1 PNG, black": encoded(black, transparency=0),
    }


SEE_THROUGH = see_through()


@pytest.mark.parametrize("kind", SEE_THROUGH)
def test_dropped_transparency_shows_the_colours_that_pillow_finds_under_it(kind):
    data = SEE_THROUGH[kind]
    picture = decode(data, max_pixels=MOST)

    # A square of its own size is not resampled.
    shown = to_square(picture, Images(size_px=16, transparency="drop")).transpose(1, 2, 0)
    assert (shown == np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))).all()


@pytest.mark.parametrize("kind", SEE_THROUGH)
def test_one_decoded_picture_serves_both_ways_of_taking_transparency(kind):
    data = SEE_THROUGH[kind]
    picture = decode(data, max_pixels=MOST)
    before = picture.tobytes()

    as_seen = to_square(picture, Images(size_px=16)).transpose(1, 2, 0)
    dropped = to_square(picture, Images(size_px=16, transparency="drop")).transpose(1, 2, 0)

    alpha = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGBA"))[..., 3:] / 255
    assert picture.mode == "RGBA"
    assert picture.tobytes() == before
    assert np.abs(as_seen - (dropped * alpha + 255 * (1 - alpha))).max() <= 1
    assert (as_seen == pixels(data)).all()
    assert np.abs(as_seen.astype(int) - dropped).max() > 50


def test_a_picture_that_could_be_transparent_and_is_not_is_kept_without_an_alpha():
    opaque = corners().convert("RGBA")
    palette = corners().quantize(6)
    shown = {encoded(opaque), encoded(opaque.convert("LA")), encoded(palette, transparency=b"\xff" * 6)}

    assert {decode(data, max_pixels=MOST).mode for data in shown} == {"RGB"}


@pytest.mark.parametrize("orientation", SHOWN)
def test_a_rotated_picture_is_turned_with_its_transparency(orientation):
    exif = PIL.Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    image = corners().convert("RGBA")
    image.putpixel((0, 0), (255, 0, 0, 10))

    turned = np.asarray(decode(encoded(image, exif=exif), max_pixels=MOST))
    row, column = SHOWN[orientation][0]
    assert turned[row, column].tolist() == [255, 0, 0, 10]
    assert (turned[..., 3] == 10).sum() == 1


def test_a_gif_shows_its_first_frame_on_white():
    frames = [PIL.Image.new("RGBA", (4, 4), colour) for colour in ("#ff0000ff", "#00ff00ff")]
    frames[0].putpixel((0, 0), (0, 0, 0, 0))
    data = encoded(frames[0], "GIF", more=frames[1:], disposal=2)

    shown = pixels(data)
    assert shown[0, 0].tolist() == [255] * 3
    assert shown[3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("form", ["WEBP", "PNG", "TIFF"])
def test_an_animation_shows_its_first_frame(form):
    first, second = PIL.Image.new("RGB", (8, 8), (255, 0, 0)), PIL.Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if form == "WEBP" else {}

    shown = pixels(encoded(first, form, more=[second], **options))
    assert (shown == np.asarray(first)).all()


def test_a_multi_picture_jpeg_shows_its_first():
    first, second = PIL.Image.new("RGB", (8, 8), (255, 0, 0)), PIL.Image.new("RGB", (8, 8), (0, 0, 255))

    shown = pixels(encoded(first, "MPO", more=[second]))
    assert np.abs(shown.astype(int) - (255, 0, 0)).max() <= 2


def test_16_bit_grey_is_scaled_and_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    for data in (
        png(4, 1, 16, 0, b"\0" + values.astype(">u2").tobytes()),
        encoded(PIL.Image.fromarray(values), "TIFF"),
    ):
        assert pixels(data)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_16_bit_grey_declared_transparent_is_shown_white():
    values = np.array([[0, 1000]], ">u2")
    data = png(2, 1, 16, 0, b"\0" + values.tobytes(), (b"tRNS", struct.pack(">H", 1000)))

    assert pixels(data)[0, :, 0].tolist() == [0, 255]
    assert np.asarray(decode(data, max_pixels=MOST))[0].tolist() == [[0, 0, 0, 255], [4, 4, 4, 0]]


def test_16_bit_colour_and_alpha_are_scaled():
    colour = np.array([[[0, 32768, 65535]]], ">u2")
    alpha = np.array([[[0, 65535], [65535, 0]]], ">u2")

    assert (
        np.abs(pixels(png(1, 1, 16, 2, b"\0" + colour.tobytes()))[0, 0].astype(int) - (0, 128, 255)).max()
        <= 1
    )
    assert pixels(png(2, 1, 16, 4, b"\0" + alpha.tobytes()))[0].tolist() == [[0] * 3, [255] * 3]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_grey_without_a_range_of_its_own_goes_from_its_lowest_to_its_highest(kind):
    values = np.array([[-1000, 0, 1000]], kind)

    assert pixels(encoded(PIL.Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    assert pixels(encoded(PIL.Image.fromarray(values * 0), "TIFF")).max() == 0


def test_a_float_picture_with_nan_in_it_is_shown():
    values = np.array([[0, np.nan, np.inf, 1]], np.float32)

    assert pixels(encoded(PIL.Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 0, 0, 255]


def test_cmyk_is_shown_in_its_colours():
    red = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))

    for form in ("JPEG", "TIFF"):
        assert np.abs(pixels(encoded(red, form)).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L"])
def test_black_and_white_and_grey_are_three_equal_channels(mode):
    shown = pixels(encoded(PIL.Image.linear_gradient("L").convert(mode)))

    assert (shown[..., 0] == shown[..., 1]).all()
    assert (shown[0, 0, 0], shown[-1, -1, 0]) == (0, 255)


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (1, 1)])
def test_extreme_shapes_become_squares(size):
    image = decode(encoded(PIL.Image.new("RGB", size, (1, 2, 3))), max_pixels=MOST)

    square = to_square(image, Images(size_px=32))
    assert square.shape == (3, 32, 32)
    assert [int(channel.max()) for channel in square] == [1, 2, 3]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_size_is_compared_before_anything_is_decoded(form, monkeypatch):
    data = encoded(PIL.Image.new("RGB", (50, 20)), form)
    assert decode(data, max_pixels=1000).size == (50, 20)

    monkeypatch.setattr(PIL.Image.Image, "load", lambda _: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    assert refusal(data, max_pixels=999) is Refusal.TOO_MANY_PIXELS


def test_a_picture_of_a_billion_pixels_in_a_kilobyte_is_refused_by_its_size():
    assert refusal(png(40_000, 40_000, 8, 2, b""), max_pixels=100_000_000) is Refusal.TOO_MANY_PIXELS


def test_a_gif_frame_larger_than_its_screen_counts_by_the_frame():
    data = bytearray(encoded(PIL.Image.new("L", (50, 20)), "GIF"))
    data[6:10] = struct.pack("<HH", 1, 1)

    assert refusal(bytes(data), max_pixels=999) is Refusal.TOO_MANY_PIXELS


def test_our_own_limit_holds_whatever_pillows_is(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    data = encoded(PIL.Image.new("RGB", (50, 20)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        assert decode(data, max_pixels=1000).size == (50, 20)
        assert warnings.filters == before
    assert PIL.Image.MAX_IMAGE_PIXELS == 10


def test_threads_that_decode_together_leave_pillow_as_it_was(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    before = list(warnings.filters)
    data = encoded(PIL.Image.new("RGB", (50, 20)))
    failures = []

    def work() -> None:
        for i in range(40):
            try:
                decode(data if i % 3 else data[:40], max_pixels=1000)
            except RefusedImage as refused:
                if refused.reason is not Refusal.UNREADABLE_IMAGE:
                    failures.append(refused)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert PIL.Image.MAX_IMAGE_PIXELS == 10
    assert warnings.filters == before


def test_no_bytes_are_an_empty_image():
    assert refusal(b"") is Refusal.EMPTY_IMAGE


@pytest.mark.parametrize(
    "data", [b"<html>404</html>", b"\0" * 100, b"%PDF-1.4", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBP"]
)
def test_bytes_that_no_decoder_knows_are_unreadable(data):
    assert refusal(data) is Refusal.UNREADABLE_IMAGE


def test_formats_off_the_list_are_unreadable():
    assert refusal(encoded(corners(), "PPM")) is Refusal.UNREADABLE_IMAGE
    assert refusal(encoded(corners(), "TGA")) is Refusal.UNREADABLE_IMAGE


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_cut_off_in_the_middle_is_unreadable(form):
    data = encoded(PIL.Image.open(io.BytesIO(PHOTOS[0])).convert("RGB"), form)

    for share in (0.3, 0.6, 0.9):
        assert refusal(data[: int(len(data) * share)]) is Refusal.UNREADABLE_IMAGE


def variants() -> list[bytes]:
    photo = PIL.Image.open(io.BytesIO(PHOTOS[2])).convert("RGB").resize((40, 30))
    exif = PIL.Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    frames = [photo, photo.rotate(180)]
    return [
        encoded(photo, "JPEG", exif=exif),
        encoded(photo, "JPEG", progressive=True),
        encoded(photo, "MPO", more=frames[1:]),
        encoded(photo.convert("CMYK"), "JPEG"),
        encoded(photo, "PNG", exif=exif),
        encoded(photo.quantize(16), "PNG", transparency=3),
        encoded(photo.convert("RGBA"), "WEBP", exif=exif),
        *(encoded(photo, form, more=frames[1:]) for form in ("GIF", "WEBP", "TIFF", "PNG")),
        *(
            encoded(photo, "TIFF", compression=name)
            for name in ("tiff_lzw", "jpeg", "tiff_deflate", "packbits")
        ),
        encoded(photo, "BMP"),
        encoded(photo.quantize(16), "BMP"),
        png(4, 1, 16, 0, bytes(9), (b"tRNS", b"\0\1")),
        *DRAWINGS[:2],
    ]


VARIANTS = variants()


@settings(max_examples=800)
@given(st.data())
def test_a_mutated_picture_is_decoded_or_refused_and_nothing_else(data):
    mutated = bytearray(data.draw(st.sampled_from(VARIANTS)))
    for _ in range(data.draw(st.integers(1, 6))):
        # Headers are short, and most of what can go wrong goes wrong there.
        limit = data.draw(st.sampled_from([64, len(mutated)]))
        at = data.draw(st.integers(0, min(limit, len(mutated)) - 1))
        mutated[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del mutated[data.draw(st.integers(0, len(mutated))) :]

    try:
        image = decode(bytes(mutated), max_pixels=200_000)
    except RefusedImage:
        pass
    else:
        assert image.mode in ("RGB", "RGBA")
        assert image.width * image.height <= 200_000


@settings(max_examples=200)
@given(
    st.sampled_from(
        [
            b"",
            b"\xff\xd8\xff\xe1",
            b"\x89PNG\r\n\x1a\n",
            b"GIF89a",
            b"BM",
            b"II*\0",
            b"MM\0*",
            b"RIFF\0\0\0\0WEBP",
        ]
    ),
    st.binary(max_size=200),
)
def test_random_bytes_are_refused_or_decoded_and_nothing_else(magic, junk):
    with suppress(RefusedImage):
        assert decode(magic + junk, max_pixels=10_000).mode in ("RGB", "RGBA")


def test_a_batch_is_normalised_like_its_pictures():
    import torch

    pixels = torch.randint(0, 256, (2, 5, 3, 4, 4), dtype=torch.uint8)
    images = Images(mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))

    batch = normalise(pixels, images)

    assert torch.equal(batch[1, 3], normalise(pixels[1, 3], images))
    assert torch.allclose(batch[..., 0, :, :], pixels[..., 0, :, :] / 255)
    assert torch.allclose(batch[..., 1, :, :], pixels[..., 1, :, :] / 127.5 - 1, atol=1e-6)
    assert torch.allclose(batch[..., 2, :, :], (pixels[..., 2, :, :] / 255 - 1) * 4, atol=1e-6)
