from __future__ import annotations

import base64
import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import pytest

from capfilt.data.judged import Place
from capfilt.reports.html.pictures import SIDE_PX, picture

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.reports.html.pictures import Picture


def place_of(path: Path, image: PIL.Image.Image, **options: object) -> Place:
    """The picture, in the middle of a file of other bytes."""
    data = io.BytesIO()
    image.save(data, "PNG", **options)
    path.write_bytes(b"before" + data.getvalue() + b"after")
    sha256 = hashlib.sha256(data.getvalue()).hexdigest()
    return Place(path, 6, len(data.getvalue()), sha256, image.width, image.height)


def decoded(shown: Picture) -> PIL.Image.Image:
    data = base64.b64decode(shown.url.removeprefix("data:image/jpeg;base64,"))
    return PIL.Image.open(io.BytesIO(data))


def noise(width: int, height: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_picture_is_read_by_the_byte_and_made_small(tmp_path: Path) -> None:
    image = PIL.Image.new("RGB", (800, 400), (200, 40, 40))
    shown = picture(place_of(tmp_path / "shard.tar", image), 10**6)
    assert (shown.width, shown.height) == (SIDE_PX, SIDE_PX // 2)
    assert np.abs(np.asarray(decoded(shown)).astype(int) - (200, 40, 40)).max() <= 4
    assert not shown.is_small


@pytest.mark.parametrize("most", [40_000, 12_000, 4_000, 1_500])
def test_a_picture_weighs_no_more_than_it_may(tmp_path: Path, most: int) -> None:
    shown = picture(place_of(tmp_path / "shard.tar", noise(640, 480)), most)
    assert len(base64.b64decode(shown.url.partition(",")[2])) <= most


def test_nothing_but_the_picture_goes_into_the_page(tmp_path: Path) -> None:
    """A stranger's profile or comment may name him, or be large."""
    place = place_of(tmp_path / "shard.tar", noise(64, 64), icc_profile=b"a profile of a stranger" * 9)
    assert b"stranger" not in base64.b64decode(picture(place, 10**6).url.partition(",")[2])


def test_a_picture_of_few_pixels_is_kept_as_it_is(tmp_path: Path) -> None:
    shown = picture(place_of(tmp_path / "shard.tar", noise(32, 24)), 10**6)
    assert (shown.width, shown.height, shown.is_small) == (32, 24, True)


def test_where_another_picture_stands_the_page_says_so_and_where(tmp_path: Path) -> None:
    judged = place_of(tmp_path / "shard.tar", noise(64, 64))
    before = (tmp_path / "shard.tar").stat().st_size
    place_of(tmp_path / "shard.tar", PIL.Image.fromarray(255 - np.asarray(noise(64, 64))))
    assert (tmp_path / "shard.tar").stat().st_size == before
    shown = picture(judged, 10**6)
    assert not shown.url
    assert shown.problem == f"its shard changed since it was judged ({tmp_path / 'shard.tar'})"
