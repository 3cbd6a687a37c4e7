from __future__ import annotations

import hashlib
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import PIL.Image
import pytest
from small_run import make_run, picture

from capfilt.browser.thumbnails import Thumbnails
from capfilt.browser.view import RunView
from capfilt.data import sources
from capfilt.data.judged import CHANGED, GONE, Place
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image


def shown(jpeg: bytes) -> Image:
    image = PIL.Image.open(io.BytesIO(jpeg))
    assert image.format == "JPEG"
    return image.convert("RGB")


def thumbnails(folder: Path, *files: bytes, **choices: Any) -> Thumbnails:
    """Thumbnails of pictures that lie one after another in one file, as in a tar."""
    path = folder / "shard.tar"
    path.write_bytes(b"".join(files))

    def where(_shard: str, key: str) -> Place:
        number = int(key)
        data = files[number]
        sha256 = hashlib.sha256(data).hexdigest()
        return Place(path, sum(map(len, files[:number])), len(data), sha256, 4000, 4000)

    return Thumbnails(where, **choices)


def encoded(image: Image, kind: str, **choices: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **choices)
    return data.getvalue()


def test_a_run_shows_the_very_picture_of_a_sample(tmp_path: Path) -> None:
    run, made = make_run(tmp_path / "run", shards=2)
    view = RunView.open(run)
    for one in made:
        for number in (0, 2, 4, 5):
            found = view.thumbnail(one.shard.name, f"k{one.shard.ordinal}-{number}", 32)
            wanted = shown(picture(100 * one.shard.ordinal + number)).getpixel((5, 5))
            image = shown(found.jpeg)
            assert (image.size, found.words) == ((32, 24), "")
            colour = image.getpixel((5, 5))
            assert isinstance(colour, tuple)
            assert isinstance(wanted, tuple)
            assert max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) < 12
    view.close()


def test_of_a_shard_only_the_bytes_of_the_picture_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, made = make_run(tmp_path / "run", shards=1)
    read: list[tuple[Path, int, int]] = []
    real = sources._read
    monkeypatch.setattr(sources, "_read", lambda *where: read.append(where[1:]) or real(*where))
    view = RunView.open(run)
    view.thumbnail("00000", "k0-4", 64)
    sample = made[0].samples[4]
    assert read == [(made[0].shard.path, sample["image_offset"], sample["image_size"])]
    view.thumbnail("00000", "k0-4", 64)
    assert len(read) == 1
    view.close()


@pytest.mark.parametrize(("key", "reason"), [("k0-1", "unreadable_image"), ("k0-3", "missing_image")])
def test_a_refused_picture_is_drawn_with_its_reason(tmp_path: Path, key: str, reason: str) -> None:
    run, _ = make_run(tmp_path / "run", shards=1)
    view = RunView.open(run)
    found = view.thumbnail("00000", key, 200)
    assert found.words == reason.replace("_", " ")
    image = shown(found.jpeg)
    assert image.size == (200, 200)
    colours = image.convert("L").getextrema()
    assert isinstance(colours[0], (int, float))
    assert colours[0] < 110 < 200 < colours[1]  # dark words on a light card
    view.close()


def test_a_sample_that_is_not_there_is_an_error_and_no_file_is_opened(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run", shards=1)
    view = RunView.open(run)
    for shard, key in (("00000", "k9"), ("../web/00000", "k0-0"), ("00000", "k0-0' OR 1=1"), ("", "")):
        with pytest.raises(CapfiltError, match="there is no sample"):
            view.thumbnail(shard, key, 64)
    view.close()


def test_a_shard_that_is_gone_is_said_and_seen_again_when_it_is_back(tmp_path: Path) -> None:
    run, made = make_run(tmp_path / "run", shards=1)
    view = RunView.open(run)
    away = made[0].shard.path.rename(tmp_path / "away.tar")
    gone = view.thumbnail("00000", "k0-0", 64)
    assert (gone.words, gone.is_lasting) == (GONE, False)
    away.rename(made[0].shard.path)
    back = view.thumbnail("00000", "k0-0", 64)
    assert (back.words, back.is_lasting) == ("", True)
    view.close()


def test_a_shard_replaced_by_another_of_its_size_shows_no_picture_that_nobody_judged(tmp_path: Path) -> None:
    run, made = make_run(tmp_path / "run", shards=1)
    view = RunView.open(run)
    path, sample = made[0].shard.path, made[0].samples[4]
    tar = bytearray(path.read_bytes())
    other = encoded(PIL.Image.new("RGB", (64, 48), "green"), "JPEG", quality=60)
    assert len(other) <= sample["image_size"]
    other += bytes(sample["image_size"] - len(other))
    tar[sample["image_offset"] : sample["image_offset"] + len(other)] = other
    path.write_bytes(tar)
    found = view.thumbnail("00000", "k0-4", 200)
    assert (found.words, found.is_lasting) == (CHANGED, False)
    low, high = shown(found.jpeg).convert("L").getextrema()
    assert isinstance(low, (int, float))
    assert low < 110 < 200 < high  # a card with words
    assert view.thumbnail("00000", "k0-5", 64).words == ""
    view.close()


def test_a_picture_that_was_never_used_is_not_read_again(tmp_path: Path) -> None:
    run, made = make_run(tmp_path / "run", shards=1)
    view = RunView.open(run)
    made[0].shard.path.unlink()
    assert view.thumbnail("00000", "k0-1", 64).words == "unreadable image"
    view.close()


def test_a_bomb_is_not_decoded(tmp_path: Path) -> None:
    bomb = encoded(PIL.Image.new("1", (3000, 3000)), "PNG")
    found = thumbnails(tmp_path, bomb, max_pixels=1_000_000).thumbnail("", "0", 64)
    assert found.words == "it cannot be decoded: too many pixels"


def test_no_more_pictures_are_read_and_decoded_at_once_than_memory_is_there_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [encoded(PIL.Image.effect_noise((64, 64), 90), "PNG") for _ in range(12)]
    made = thumbnails(tmp_path, *files)
    lock, inside, most = threading.Lock(), 0, 0
    real = sources._read

    def slow(*where: Any) -> bytes:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        data = real(*where)
        with lock:
            inside -= 1
        return data

    monkeypatch.setattr(sources, "_read", slow)
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda key: made.thumbnail("", str(key), 64).words, range(12)))
    assert found == [""] * 12
    assert most == 4


def test_a_picture_is_upright_never_enlarged_and_carries_nothing_of_its_file(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    exif[0x010E] = "a stranger's words"
    turned = encoded(PIL.Image.new("RGB", (60, 20), "red"), "JPEG", exif=exif, comment=b"a stranger's words")
    clear = encoded(PIL.Image.new("RGBA", (10, 10), (0, 0, 0, 0)), "PNG")
    made = thumbnails(tmp_path, turned, clear)
    found = made.thumbnail("", "0", 300).jpeg
    assert b"stranger" in turned
    assert b"stranger" not in found
    image = PIL.Image.open(io.BytesIO(found))
    assert (image.size, len(image.getexif())) == ((20, 60), 0)
    assert shown(made.thumbnail("", "1", 300).jpeg).getpixel((5, 5)) == (255, 255, 255)


def test_memory_is_bounded_and_the_ones_that_were_looked_at_last_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = [encoded(PIL.Image.effect_noise((64, 64), 90), "PNG") for _ in range(8)]
    one = len(thumbnails(tmp_path, *noise).thumbnail("", "0", 64).jpeg)
    made = thumbnails(tmp_path, *noise, most_bytes=int(3.5 * one))
    read: list[int] = []
    real = sources._read
    monkeypatch.setattr(sources, "_read", lambda *where: read.append(where[2]) or real(*where))
    for key in ("0", "1", "2", "0", "3", "4", "0"):
        made.thumbnail("", key, 64)
        assert made.bytes_kept <= 3.5 * one
    assert len(read) == 5  # the first one was looked at in between and stayed
    made.thumbnail("", "1", 64)
    assert len(read) == 6


@pytest.mark.parametrize(("asked", "side"), [(1, 32), (100, 100), (10**9, 1024)])
def test_sizes_are_brought_into_their_range(tmp_path: Path, asked: int, side: int) -> None:
    large = encoded(PIL.Image.new("RGB", (1600, 1600), "blue"), "JPEG")
    assert shown(thumbnails(tmp_path, large).thumbnail("", "0", asked).jpeg).size == (side, side)
