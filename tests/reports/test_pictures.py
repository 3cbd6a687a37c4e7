from __future__ import annotations

from typing import TYPE_CHECKING

import PIL.Image
from pictured_run import COLOURS, SIZES, pictured_run, write_shard

from capfilt.data.judged import CHANGED, GONE
from capfilt.reports.pictures import small_pictures

if TYPE_CHECKING:
    from pathlib import Path

EVERY = [("00000", key) for key in COLOURS]


def test_pictures_are_those_of_the_shard_made_small(tmp_path: Path) -> None:
    found = small_pictures(pictured_run(tmp_path), EVERY, 60)
    assert list(found) == EVERY
    for (_, key), picture in found.items():
        assert isinstance(picture, PIL.Image.Image)
        assert picture.getpixel((0, 0)) == COLOURS[key]
        assert max(picture.size) == min(60, max(SIZES[key]))


def test_only_what_was_asked_for_is_read_and_the_unknown_is_left_out(tmp_path: Path) -> None:
    found = small_pictures(pictured_run(tmp_path), [("00000", "dog"), ("00000", "owl"), ("'; --", "dog")], 60)
    assert list(found) == [("00000", "dog")]
    assert small_pictures(pictured_run(tmp_path / "again"), [], 60) == {}


def test_for_a_picture_that_is_no_longer_the_one_that_was_judged_stands_why(tmp_path: Path) -> None:
    run, tar = pictured_run(tmp_path), tmp_path / "web" / "00000.tar"
    before = tar.stat().st_size
    write_shard(tar, COLOURS | {"cat": (30, 200, 40)})
    assert tar.stat().st_size == before
    found = small_pictures(run, EVERY, 60)
    assert found["00000", "cat"] == CHANGED
    assert all(isinstance(found["00000", key], PIL.Image.Image) for key in ("dog", "fox"))


def test_a_shard_that_is_gone_or_cut_off_shows_no_picture(tmp_path: Path) -> None:
    run, tar = pictured_run(tmp_path), tmp_path / "web" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:1024])
    assert small_pictures(run, EVERY, 60)["00000", "fox"] == CHANGED
    tar.unlink()
    assert small_pictures(run, EVERY, 60) == dict.fromkeys(EVERY, GONE)
