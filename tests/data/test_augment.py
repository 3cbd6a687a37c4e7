"""Varied pictures: each operation beside another computation of it, and numbers as the only chance."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.data import augment
from capfilt.data.augment import GREY, OPERATIONS, augmented, crop_box, numbers_needed
from capfilt.data.images import decode, to_square
from capfilt.data.sources import find_shards, read_shard
from capfilt.draws import uniforms
from capfilt.settings import Augment, Images, Input

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[Any]

REAL = Path(__file__).parent / "real"
BLIP = Augment(crop_least=0.2, flip=0.5, operations=2, magnitude=5)
STRONG = Augment(crop_least=0.2, flip=0.5, operations=4, magnitude=9)
PER_CHANNEL = ("AutoContrast", "Equalize")
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def photos() -> list[PIL.Image.Image]:
    [shard] = find_shards(REAL / "photos.tar")
    return [decode(sample.image, max_pixels=10**8) for sample in read_shard(shard, Input()) if sample.image]


PHOTOS = photos()


def square(side: int = 224, photo: int = 0) -> PIL.Image.Image:
    return PHOTOS[photo].convert("RGB").resize((side, side))


def noise(width: int, height: int, *key: Any, mode: str = "RGB") -> PIL.Image.Image:
    values = uniforms(width * height * len(mode), "noise", *key) * 256
    return PIL.Image.fromarray(values.astype(np.uint8).reshape(height, width, len(mode)))


def pixels(picture: PIL.Image.Image) -> Pixels:
    return np.asarray(picture).astype(np.float64)


def one(name: str, magnitude: int, sign: float = 0.0, done: float = 0.0) -> tuple[Augment, Pixels]:
    """Settings and numbers that do this one operation and nothing else."""
    settings = Augment(operations=1, magnitude=magnitude)
    which = (list(OPERATIONS).index(name) + 0.5) / len(OPERATIONS)
    return settings, np.array([0.0] * (numbers_needed(settings) - 3) + [which, done, sign])


def done(name: str, picture: PIL.Image.Image, magnitude: int, sign: float = 0.0) -> Pixels:
    settings, numbers = one(name, magnitude, sign)
    return pixels(augmented(picture, settings, side=picture.width, numbers=numbers))


def test_the_operations_are_those_of_blips_released_pre_training():
    """RandomAugment(2, 5, augs=...) in its data module; none of Color, Contrast, Posterize, Solarize."""
    assert set(OPERATIONS) == {
        "Identity",
        "AutoContrast",
        "Equalize",
        "Brightness",
        "Sharpness",
        "ShearX",
        "ShearY",
        "TranslateX",
        "TranslateY",
        "Rotate",
    }


@pytest.mark.parametrize("transparency", ["white", "drop"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_settings_that_vary_nothing_give_the_square_a_model_sees(transparency, mode):
    picture = noise(50, 37, mode, mode=mode)

    varied = augmented(
        picture, Augment(), side=24, numbers=uniforms(numbers_needed(Augment())), transparency=transparency
    )

    plain = to_square(picture, Images(size_px=24, transparency=transparency))
    assert np.array_equal(np.asarray(varied).transpose(2, 0, 1), plain)


@pytest.mark.parametrize("settings", [BLIP, STRONG])
def test_the_same_numbers_give_the_same_bytes_and_others_other_bytes(settings):
    def varied(seed: int) -> bytes:
        np.random.seed(seed)  # which nobody may look at
        numbers = uniforms(numbers_needed(settings), "picture", seed)
        return augmented(PHOTOS[0], settings, side=64, numbers=numbers).tobytes()

    first = varied(0)
    varied(1)
    assert varied(0) == first
    assert len({varied(seed) for seed in range(8)}) == 8


def test_more_numbers_than_are_needed_change_nothing_and_fewer_are_refused():
    needed = numbers_needed(STRONG)
    few, many = uniforms(needed, "x"), uniforms(needed + 9, "x")

    assert (
        augmented(PHOTOS[1], STRONG, side=48, numbers=few).tobytes()
        == augmented(PHOTOS[1], STRONG, side=48, numbers=many).tobytes()
    )
    with pytest.raises(ValueError, match=f"{needed - 1} numbers were given, {needed} are needed"):
        augmented(PHOTOS[1], STRONG, side=48, numbers=few[:-1])


def test_the_picture_that_is_given_is_left_as_it_was():
    picture = noise(40, 40)
    before = picture.tobytes()

    for name in OPERATIONS:
        done(name, picture, 9)

    assert picture.tobytes() == before


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    mode=st.sampled_from(["RGB", "RGBA"]),
    seed=st.integers(0, 10**6),
    settings=st.builds(
        Augment,
        crop_least=st.floats(0.01, 1),
        flip=st.floats(0, 1),
        operations=st.integers(0, 4),
        magnitude=st.integers(0, 10),
    ),
)
def test_a_picture_of_any_size_becomes_a_square(width, height, mode, seed, settings):
    numbers = uniforms(numbers_needed(settings), seed)

    varied = augmented(noise(width, height, seed, mode=mode), settings, side=16, numbers=numbers)

    assert (varied.size, varied.mode) == ((16, 16), "RGB")


@given(
    width=st.integers(1, 2000),
    height=st.integers(1, 2000),
    least=st.floats(0.01, 1, exclude_max=True),
    seed=st.integers(0, 10**6),
)
def test_a_crop_lies_in_the_picture_and_keeps_what_it_must(width, height, least, seed):
    left, top, right, bottom = crop_box((width, height), least, list(uniforms(22, seed)))

    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    wide, tall = right - left, bottom - top
    # A pixel more or less by rounding on each side.
    assert (wide + 1) / (tall - 1 or 0.5) >= 3 / 4
    assert (wide - 1) / (tall + 1) <= 4 / 3
    if 3 / 4 <= width / height <= 4 / 3:
        assert (wide + 1) * (tall + 1) >= least * width * height


def test_crops_have_the_areas_and_the_shapes_of_torchvision():
    """Two samples of 4,000 crops each: their quantiles lie together."""
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms")
    torch.manual_seed(0)
    picture = PIL.Image.new("RGB", (400, 300))

    def measured(boxes: list[tuple[int, int, int, int]]) -> Pixels:
        """Left, top, area and logarithm of the aspect ratio, deciles of each."""
        a = np.array(boxes, dtype=np.float64)
        values = [a[:, 0], a[:, 1], a[:, 2] * a[:, 3] / 120_000, np.log(a[:, 2] / a[:, 3])]
        spans = [400, 300, 1, 1]
        return np.array(
            [np.quantile(v, np.arange(1, 10) / 10) / span for v, span in zip(values, spans, strict=True)]
        )

    theirs = []
    for _ in range(4000):
        top, left, tall, wide = transforms.RandomResizedCrop.get_params(picture, (0.2, 1.0), (3 / 4, 4 / 3))
        theirs.append((left, top, wide, tall))
    ours = []
    for seed in range(4000):
        left, top, right, bottom = crop_box(picture.size, 0.2, list(uniforms(22, "crop", seed)))
        ours.append((left, top, right - left, bottom - top))

    assert np.abs(measured(ours) - measured(theirs)).max() < 0.03
    # Where a crop stands across says nothing of where it stands up and down.
    room = np.array([(left / (401 - wide), top / (301 - tall)) for left, top, wide, tall in ours])
    assert abs(np.corrcoef(room.T)[0, 1]) < 0.06  # the standard error is 0.016


@pytest.mark.parametrize("size", [(1, 90), (90, 1), (7, 200), (333, 10), (1, 1)])
def test_where_no_crop_fits_the_middle_is_taken_as_torchvision_does(size):
    transforms = pytest.importorskip("torchvision.transforms")
    top, left, tall, wide = transforms.RandomResizedCrop.get_params(
        PIL.Image.new("RGB", size), (0.999999, 1.0), (3 / 4, 4 / 3)
    )

    assert crop_box(size, 0.999999, list(uniforms(22, "any"))) == (left, top, left + wide, top + tall)


def test_the_crop_comes_before_the_square_and_the_mirror_after_it():
    picture = noise(60, 50)
    settings = Augment(crop_least=0.3, flip=1.0)
    numbers = uniforms(numbers_needed(settings), "order")

    varied = augmented(picture, settings, side=20, numbers=numbers)

    inside = picture.crop(crop_box(picture.size, 0.3, list(numbers)))
    expected = to_square(inside, Images(size_px=20)).transpose(1, 2, 0)[:, ::-1]
    assert np.array_equal(np.asarray(varied), expected)


def test_the_mirror_comes_as_often_as_its_chance_says():
    settings = Augment(flip=0.3)
    picture = noise(8, 8)
    as_it_is = augmented(picture, Augment(), side=8, numbers=uniforms(23)).tobytes()

    mirrored = sum(
        augmented(picture, settings, side=8, numbers=uniforms(23, seed)).tobytes() != as_it_is
        for seed in range(1000)
    )

    assert mirrored / 1000 == pytest.approx(0.3, abs=0.06)  # the standard error is 0.0145


def test_each_operation_is_drawn_as_often_as_another_and_done_half_the_time(monkeypatch):
    counts = dict.fromkeys(OPERATIONS, 0)

    def counted(name: str) -> Any:
        def operation(picture: Any, strength: float, sign: int) -> Any:
            assert (strength, abs(sign)) == (0.7, 1)
            counts[name] += 1
            return picture

        return operation

    monkeypatch.setattr(augment, "OPERATIONS", {name: counted(name) for name in OPERATIONS})
    settings = Augment(operations=2, magnitude=7)
    for seed in range(2000):
        augmented(noise(2, 2), settings, side=2, numbers=uniforms(numbers_needed(settings), seed))

    # 4,000 draws, half of them done: 200 of each expected; 99.9% of chi-square with nine degrees of freedom.
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 27.9


def test_an_operation_that_is_not_done_changes_nothing():
    picture = square(32)
    settings, numbers = one("Rotate", 9, done=0.5)

    assert augmented(picture, settings, side=32, numbers=numbers).tobytes() == picture.tobytes()


@pytest.mark.parametrize("magnitude", [0, 3, 5, 8, 10])
@pytest.mark.parametrize("name", ["Brightness", "Sharpness", *PER_CHANNEL])
def test_values_are_those_of_torchvisions_own_kernels(name, magnitude):
    """Tensors go through other code than Pillow's: rounding apart, they agree."""
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchvision.transforms.functional")
    factor = 0.1 + 0.18 * magnitude
    kernels: dict[str, Any] = {
        "Brightness": lambda tensor: functional.adjust_brightness(tensor, factor),
        "Sharpness": lambda tensor: functional.adjust_sharpness(tensor, factor),
        "AutoContrast": functional.autocontrast,
        "Equalize": functional.equalize,
    }
    picture = square(96, photo=1).point(lambda value: 20 + value * 0.7)
    tensor = torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())

    expected = kernels[name](tensor).numpy().transpose(1, 2, 0)

    assert np.abs(done(name, picture, magnitude) - expected).max() <= 1


@pytest.mark.parametrize("name", ["Brightness", "Sharpness"])
def test_the_middle_magnitude_of_blip_changes_no_value(name):
    picture = square(64)

    assert np.array_equal(done(name, picture, 5), pixels(picture))


@pytest.mark.parametrize("name", ["Identity", *GEOMETRIC])
def test_magnitude_0_moves_nothing(name):
    picture = square(64)

    for sign in (0.0, 0.9):
        assert np.array_equal(done(name, picture, 0, sign), pixels(picture))


def linearly(values: Pixels, at: Pixels) -> Pixels:
    """Values of a row at places between its pixels, grey where both neighbours are not there."""
    low = np.floor(at).astype(int)
    part = (at - low)[:, None]
    held = np.clip(low, 0, len(values) - 1), np.clip(low + 1, 0, len(values) - 1)
    between = values[held[0]] * (1 - part) + values[held[1]] * part
    outside = (at < -0.5) | (at >= len(values) - 0.5)
    return np.where(outside[:, None], np.array(GREY, dtype=float), between)


@pytest.mark.parametrize("sign", [0.0, 0.9])
@pytest.mark.parametrize("magnitude", [4, 10])
@pytest.mark.parametrize("along", ["X", "Y"])
def test_a_shear_moves_each_row_by_its_distance_from_the_top(along, magnitude, sign):
    picture = square(40)
    values = pixels(picture) if along == "X" else pixels(picture).swapaxes(0, 1)
    slope = 0.03 * magnitude * (1 if sign < 0.5 else -1)

    # The middle of row n stands n + 0.5 below the top.
    expected = np.stack([linearly(row, np.arange(40) + slope * (n + 0.5)) for n, row in enumerate(values)])

    sheared = done(f"Shear{along}", picture, magnitude, sign)
    assert np.abs(sheared - (expected if along == "X" else expected.swapaxes(0, 1))).max() < 1.01


@pytest.mark.parametrize(("sign", "step"), [(0.0, 1), (0.9, -1)])
@pytest.mark.parametrize("along", ["X", "Y"])
def test_a_translation_at_224_pixels_is_blips_ten(along, sign, step):
    picture = square(224)
    values = pixels(picture)

    moved = done(f"Translate{along}", picture, 10, sign)

    axis = 1 if along == "X" else 0
    expected = np.roll(values, -10 * step, axis)
    edge = slice(-10, None) if step == 1 else slice(None, 10)
    expected[(slice(None), edge) if along == "X" else (edge,)] = GREY
    assert np.array_equal(moved, expected)


def test_a_translation_is_the_same_share_of_any_side():
    moved = done("TranslateX", square(448), 10)

    assert (moved[:, -20:] == GREY).all()
    assert not (moved[:, -21] == GREY).all()


@pytest.mark.parametrize(("sign", "turn"), [(0.0, 30), (0.9, -30)])
def test_a_rotation_turns_about_the_middle(sign, turn):
    """Each pixel is looked up by hand where the inverse rotation takes it."""
    side, picture = 61, square(61)
    values = pixels(picture)
    turned = done("Rotate", picture, 10, sign)

    angle, middle = np.deg2rad(turn), (side - 1) / 2
    for y, x in ((30, 30), (10, 30), (30, 50), (18, 22), (45, 40)):
        # Rows run downwards, so that counterclockwise is the other way around in pixels.
        dx, dy = x - middle, y - middle
        ax = np.cos(angle) * dx - np.sin(angle) * dy + middle
        ay = np.sin(angle) * dx + np.cos(angle) * dy + middle
        left, top = int(ax), int(ay)
        px, py = ax - left, ay - top
        corners = values[top : top + 2, left : left + 2]
        expected = np.einsum("y,x,yxc->c", [1 - py, py], [1 - px, px], corners)
        assert np.abs(turned[y, x] - expected).max() < 1.01
    assert (turned[0, 0] == GREY).all()


def mean_hue(values: Pixels) -> float:
    """Hue in turns, that of the mean colour: -0.5 to 0.5, red at 0."""
    red, green, blue = values.reshape(-1, 3).mean(axis=0) / 255
    hue = colorsys.rgb_to_hsv(red, green, blue)[0]
    return hue if hue <= 0.5 else hue - 1


@given(
    name=st.sampled_from(["Brightness", "Sharpness", *GEOMETRIC]),
    magnitude=st.integers(0, 10),
    sign=st.sampled_from([0.0, 0.9]),
    seed=st.integers(0, 100),
)
def test_a_red_picture_stays_red(name, magnitude, sign, seed):
    light = 0.3 + 0.7 * uniforms(32 * 32, "light", seed).reshape(32, 32, 1)
    picture = PIL.Image.fromarray((light * [200, 20, 20]).astype(np.uint8))

    assert abs(mean_hue(done(name, picture, magnitude, sign))) < 0.01
