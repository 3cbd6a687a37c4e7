from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import pytest
from escape_sequences import from_iterm2, from_kitty, from_sixel
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.reports.inline_images import Box, at, sequence

BOX = Box(12, 5, 8, 16)


def noise(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values)


def pixels(picture: PIL.Image.Image) -> Any:
    return np.asarray(picture.convert("RGB"), dtype=np.int64)


def test_kitty_is_given_the_very_pixels_in_chunks_and_asked_for_no_answer() -> None:
    picture = noise(90, 60)
    text = sequence(picture, BOX, "kitty")
    keys, drawn = from_kitty(text)
    assert text.count("\x1b_G") > 3  # noise does not compress: several chunks
    assert (pixels(drawn) == pixels(picture)).all()
    assert (keys["a"], keys["f"], keys["q"], keys["C"]) == ("T", "100", "2", "1")


@pytest.mark.parametrize(
    ("size", "side"), [((300, 100), ("c", "12")), ((100, 300), ("r", "5")), ((96, 80), ("r", "5"))]
)
def test_kitty_is_told_the_side_that_fills_the_box(size: tuple[int, int], side: tuple[str, str]) -> None:
    keys, _ = from_kitty(sequence(noise(*size), BOX, "kitty"))
    assert {name: value for name, value in keys.items() if name in "cr"} == dict([side])


def test_iterm2_is_given_the_very_pixels_and_a_box_to_fit_them_in() -> None:
    picture = noise(40, 30)
    keys, drawn = from_iterm2(sequence(picture, BOX, "iterm2"))
    assert (pixels(drawn) == pixels(picture)).all()
    assert (keys["inline"], keys["width"], keys["height"], keys["preserveAspectRatio"]) == (
        "1",
        "12",
        "5",
        "1",
    )


def test_sixels_are_the_picture_in_the_size_of_its_box() -> None:
    # Few colours and the very size: nothing is resized, and no colour is lost but to percents.
    blocks = np.zeros((80, 96, 3), dtype=np.uint8)
    blocks[:40, :50], blocks[40:, 50:], blocks[7, :] = (200, 30, 40), (10, 220, 90), (255, 255, 255)
    drawn = from_sixel(sequence(PIL.Image.fromarray(blocks), BOX, "sixel"))
    assert drawn.shape == blocks.shape
    assert np.abs(drawn.astype(int) - blocks).max() <= 2


@settings(max_examples=30)
@given(width=st.integers(1, 200), height=st.integers(1, 200), seed=st.integers(0, 9))
def test_sixels_of_any_picture_fit_the_box_keep_its_shape_and_look_like_it(
    width: int, height: int, seed: int
) -> None:
    picture = noise(width, height, seed)
    drawn = from_sixel(sequence(picture, BOX, "sixel"))
    rows, columns = drawn.shape[:2]
    assert columns <= 96
    assert rows <= 80
    assert columns == 96 or rows == 80
    # As broad as it was, up to the pixel that was rounded off.
    assert abs(columns / rows - width / height) <= (width / height) * (1 / rows + 1 / columns) + 1e-9
    wanted = pixels(picture.resize((columns, rows)))
    assert np.abs(drawn.astype(int) - wanted).mean() < 20


@pytest.mark.parametrize("protocol", ["kitty", "iterm2", "sixel"])
def test_nothing_but_the_sequences_own_letters_reaches_the_terminal(protocol: Any) -> None:
    picture = noise(30, 20)
    picture.info["comment"] = "\x1b]0;owned\x07"
    picture.info["icc_profile"] = b"\x1b]0;owned\x07" * 100
    text = sequence(picture, BOX, protocol)
    assert text.count("\x1b") == (2 * text.count("\x1b\\") or 1)
    assert all(" " <= letter <= "~" for letter in text.replace("\x1b", "").removesuffix("\x07"))
    assert sequence(noise(30, 20), BOX, protocol) == text


def test_a_drawing_begins_above_the_cursor_which_stays_where_it_is() -> None:
    assert at(14, 5, "drawn") == "\x1b7\x1b[5A\x1b[15Gdrawn\x1b8"
