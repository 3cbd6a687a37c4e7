"""The example of a captioner and filter of one's own, by hand and as capfilt runs it."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import own_filter
import pytest
import scenes
from own_filter import ColourCaptioner, ColourFilter, colours_of, lab, seen, shares
from PIL import Image

from capfilt.models import foreign_bundle
from capfilt.models.loading import captioner_of, filter_of
from capfilt.models.protocols import ImageBatch
from capfilt.settings import SettledDecoding

if TYPE_CHECKING:
    from capfilt.records import Scores

GREEDY = SettledDecoding(method="greedy")
NUCLEUS = SettledDecoding()


def on_black(colour: str, parts: float) -> Image.Image:
    """A black picture of which a colour covers the left part."""
    picture = Image.new("RGB", (100, 40), (0, 0, 0))
    picture.paste(own_filter.COLOURS[colour], (0, 0, round(100 * parts), 40))
    return picture


def alone(picture: Image.Image, *texts: str) -> list[Scores]:
    return ColourFilter().score(ImageBatch([picture], ["0"]), [texts])[0]


def test_colours_in_lab_are_those_of_the_standard() -> None:
    # White is the white point; sRGB's red and blue as Lindbloom's calculator and CSS Color 4 have them.
    expected = [[100.0, 0.0, 0.0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [0.0, 0.0, 0.0]]
    given = np.array([[255, 255, 255], [255, 0, 0], [0, 0, 255], [0, 0, 0]], dtype=np.float64)
    assert lab(given) == pytest.approx(np.array(expected), abs=0.02)


@pytest.mark.parametrize("colour", [name for name in own_filter.COLOURS if name != "black"])
def test_a_colour_covers_the_part_that_was_painted(colour: str) -> None:
    found = shares(on_black(colour, 0.25))
    assert sum(found.values()) == pytest.approx(1)
    assert found[colour] == pytest.approx(0.25, abs=0.03)  # where they meet a resized pixel is a mixture
    assert found["black"] == pytest.approx(0.75, abs=0.03)


def test_a_text_is_as_likely_as_the_least_likely_of_its_colours() -> None:
    red, both, wrong, silent, gray = alone(
        on_black("red", 0.5),
        "a red car",
        "A RED car, and a black road",
        "a red and green flag",
        "a nice day",
        "a gray sky",
    )
    assert red.itm == pytest.approx(1 / (1 + (0.02 / shares(on_black("red", 0.5))["red"]) ** 2))
    assert both.itm is not None
    assert 0.99 < both.itm < 1
    assert wrong.itm == gray.itm == 0.0
    assert silent.itm == 0.5
    assert {one.itc for one in (red, both, wrong, silent)} == {None}


def test_what_is_as_small_as_said_is_seen_half_of_the_time() -> None:
    assert seen(own_filter.SEEN) == 0.5
    assert (seen(0.0), seen(1.0) > 0.999, seen(0.01) < seen(0.03)) == (0.0, True, True)


def test_words_are_read_whole_and_once() -> None:
    assert colours_of("Red, RED and gray-green: a credit") == ["red", "grey", "green"]


def test_on_the_drawn_world_it_finds_wrong_colours_and_cannot_find_wrong_shapes() -> None:
    rng = random.Random(0)
    right, colour, shape = [], [], []
    drawn = [scenes.draw_scene(rng, unseen=False) for _ in range(200)]
    for scene in (one for one in drawn if len(one.items) == 1):  # in two items colours can change places
        picture = Image.open(io.BytesIO(scenes.picture(scene, rng)))
        texts = [scenes.caption(scene, rng)]
        texts += [scenes.planted_text(scene, kind, rng, []) for kind in ("colour", "shape")]
        for found, score in zip((right, colour, shape), alone(picture, *texts), strict=True):
            found.append(score.itm or 0.0)
    assert np.mean(np.array(right)[:, None] > np.array(colour)) > 0.99
    assert right == shape


def test_captions_name_what_is_seen_and_depend_on_the_picture_alone() -> None:
    pictures = [on_black("red", 0.3), on_black("blue", 0.9), Image.new("RGBA", (9, 9), (200, 0, 0, 0))]
    batch = ImageBatch(pictures, ["a", "b", "c"])
    greedy = ColourCaptioner().caption(batch, GREEDY, seed=0, candidates=2)
    assert greedy == [["something black"] * 2, ["something blue"] * 2, ["something white"] * 2]
    drawn = ColourCaptioner().caption(batch, NUCLEUS, seed=0, candidates=12)
    assert set(drawn[0]) == {"something black", "something black and red"}
    last = ColourCaptioner().caption(ImageBatch(pictures[:1], ["a"]), NUCLEUS, seed=0, candidates=3)
    assert last == [drawn[0][:3]]


def test_a_run_takes_the_file_as_captioner_and_as_filter(tmp_path: Path) -> None:
    file = Path(own_filter.__file__)
    batch = ImageBatch([on_black("red", 0.3)], ["a"])
    for role in ("captioner", "filter"):
        card = foreign_bundle.describe(file, role)
        foreign_bundle.take(file, card, tmp_path / role)
    assert foreign_bundle.describe(file, "filter").objectives == ("itm",)
    captions = captioner_of(tmp_path / "captioner", "cpu", "fp32").caption(
        batch, NUCLEUS, seed=0, candidates=3
    )
    assert captions == ColourCaptioner().caption(batch, NUCLEUS, seed=0, candidates=3)
    scores = filter_of(tmp_path / "filter", "cpu", "fp32").score(batch, [["a red car", "a blue car"]])
    assert scores == ColourFilter().score(batch, [["a red car", "a blue car"]])
