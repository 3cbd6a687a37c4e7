from __future__ import annotations

import hashlib
import io
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import pytest

from capfilt.data.judged import CHANGED, GONE, UNPLACED, LostPicture, Place, judged_picture

if TYPE_CHECKING:
    from pathlib import Path


def noise(width: int, height: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def place_of(path: Path, image: PIL.Image.Image) -> Place:
    """The picture, in the middle of a file of other bytes."""
    data = io.BytesIO()
    image.save(data, "PNG")
    path.write_bytes(b"before" + data.getvalue() + b"after")
    sha256 = hashlib.sha256(data.getvalue()).hexdigest()
    return Place(path, 6, len(data.getvalue()), sha256, image.width, image.height)


def test_the_picture_that_was_judged_is_read_by_its_bytes(tmp_path: Path) -> None:
    found = judged_picture(place_of(tmp_path / "shard.tar", noise(40, 30)))
    assert (found.mode, found.tobytes()) == ("RGB", noise(40, 30).tobytes())


def test_transparency_is_shown_on_white(tmp_path: Path) -> None:
    found = judged_picture(place_of(tmp_path / "shard.tar", PIL.Image.new("RGBA", (9, 9), (0, 0, 0, 0))))
    assert found.getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"offset": None}, UNPLACED),
        ({"size": None}, UNPLACED),
        ({"sha256": None}, UNPLACED),
        ({"width": None}, UNPLACED),
        ({"height": 0}, UNPLACED),
        ({"offset": -6}, UNPLACED),
        ({"size": -1}, UNPLACED),
        ({"offset": 5}, CHANGED),
        ({"sha256": "0" * 64}, CHANGED),
        ({"size": 1 << 60}, CHANGED),
        ({"width": 2, "height": 2}, "it cannot be decoded: too many pixels"),
    ],
)
def test_no_picture_but_the_one_that_was_judged_is_shown(
    tmp_path: Path, change: dict[str, object], why: str
) -> None:
    place = replace(place_of(tmp_path / "shard.tar", noise(64, 64)), **change)  # type: ignore[arg-type]
    with pytest.raises(LostPicture) as lost:
        judged_picture(place)
    assert lost.value.words == why


def test_where_no_plain_file_stands_any_more_the_shard_is_gone(tmp_path: Path) -> None:
    place = place_of(tmp_path / "shard.tar", noise(64, 64))
    place.shard.unlink()
    os.mkfifo(tmp_path / "pipe.tar")
    for path in (place.shard, tmp_path, tmp_path / "pipe.tar", tmp_path / "a\0b"):
        with pytest.raises(LostPicture, match=GONE):
            judged_picture(replace(place, shard=path))


def test_a_shard_that_is_cut_off_has_changed(tmp_path: Path) -> None:
    place = place_of(tmp_path / "shard.tar", noise(64, 64))
    place.shard.write_bytes(place.shard.read_bytes()[:100])
    with pytest.raises(LostPicture, match=CHANGED):
        judged_picture(place)


def test_a_reader_may_ask_for_fewer_pixels_than_were_judged(tmp_path: Path) -> None:
    place = place_of(tmp_path / "shard.tar", noise(64, 64))
    with pytest.raises(LostPicture, match="too many pixels"):
        judged_picture(place, max_pixels=64 * 64 - 1)
    assert judged_picture(place, max_pixels=64 * 64).size == (64, 64)
