from __future__ import annotations

import io
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from capfilt.data.clean import CleanSet, _Index, read_clean, same_caption, split
from capfilt.data.images import to_square
from capfilt.data.sources import find_shards
from capfilt.records import Sample
from capfilt.settings import Clean, Images, Input

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    TarOf = Callable[..., Path]

SMALL = Images(size_px=8)
REAL = ("clean.tar", "noisy.tar", "photos.tar")


def _png(number: int, side: int = 6) -> bytes:
    picture = Image.new("RGB", (side, side), (number * 37 % 256, number * 91 % 256, number % 256))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def _set_of(triples: list[tuple[int, int, int | None]], folder: Path) -> CleanSet:
    """A set of pairs (image, caption, group), equal numbers for equal things."""
    index = _Index()
    for image, caption, group in triples:
        metadata: dict[str, Any] = {} if group is None else {"group": f"g{group}"}
        sample = Sample(
            "s", "k", image=b"image %d" % image, image_offset=0, web_text=f"text {caption}", metadata=metadata
        )
        index.add(folder, sample)
    return CleanSet(index.pairs(), Counter(), Input())


def _connected(triples: list[tuple[int, int, int | None]]) -> list[set[int]]:
    """Connected pairs by flooding, slowly and plainly."""
    left = set(range(len(triples)))
    components = []
    while left:
        found, edge = set(), {left.pop()}
        while edge:
            found |= edge
            edge = {
                n
                for n in left
                for m in edge
                if any(a == b and a is not None for a, b in zip(triples[n], triples[m], strict=True))
            }
            left -= edge
        components.append(found)
    return components


things = st.integers(0, 12)
graphs = st.lists(st.tuples(things, things, st.none() | st.integers(0, 6)), min_size=1, max_size=30)


@given(triples=graphs, held_out=st.floats(0.02, 0.98), most=st.integers(1, 20), seed=st.integers(0, 5))
def test_no_connected_pairs_stand_on_both_sides(
    triples: list[tuple[int, int, int | None]],
    held_out: float,
    most: int,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    pairs = _set_of(triples, tmp_path_factory.getbasetemp())
    settings = Clean(held_out=held_out, held_out_most=most)

    train, aside = split(pairs, settings, seed=seed)

    assert sorted([*train, *aside]) == list(range(len(triples)))
    components = _connected(triples)
    for component in components:
        assert component <= set(train) or component <= set(aside)
    assert train
    assert bool(aside) == (len(components) > 1)
    assert split(pairs, settings, seed=seed) == (train, aside)


@given(triples=graphs, web=graphs, seed=st.integers(0, 3))
def test_web_pairs_of_a_held_out_group_are_in_neither_list(
    triples: list[tuple[int, int, int | None]],
    web: list[tuple[int, int, int | None]],
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    both = [*triples, *web]
    pairs = _set_of(both, tmp_path_factory.getbasetemp())

    train, aside = split(pairs, Clean(held_out=0.3), seed=seed, held_out_from=len(triples))

    assert all(index < len(triples) for index in aside)
    assert not set(train) & set(aside)
    for component in _connected(both):
        if component & set(aside):
            assert not component & set(train)
            assert component & set(range(len(triples))) <= set(aside)
        else:
            assert component <= set(train)


def test_two_groups_of_very_different_size_still_leave_something_on_each_side(tmp_path: Path) -> None:
    triples: list[tuple[int, int, int | None]] = [(n, n, 1) for n in range(20)] + [(50, 50, 2)]

    for seed in range(8):
        train, aside = split(_set_of(triples, tmp_path), Clean(held_out=0.5), seed=seed)
        assert (len(train), len(aside)) == (20, 1)


def test_the_share_is_held_out_up_to_the_most_and_the_seed_draws_which(tmp_path: Path) -> None:
    pairs = _set_of([(n, n, None) for n in range(200)], tmp_path)

    drawn = [split(pairs, Clean(held_out=0.1), seed=seed)[1] for seed in range(3)]
    few = split(pairs, Clean(held_out=0.5, held_out_most=7), seed=0)[1]

    assert [len(aside) for aside in drawn] == [20, 20, 20]
    assert len({tuple(aside) for aside in drawn}) == 3
    assert len(few) == 7


def test_captions_that_differ_in_case_and_white_space_are_the_same(tmp_path: Path, tar_of: TarOf) -> None:
    texts = ["A red  star", "a RED star", "ein roter Stern", "Straße", "STRASSE"]
    shard = tar_of(
        {f"{n}": {"png": _png(n), "txt": text} for n, text in enumerate(texts)}, tmp_path / "c.tar"
    )

    ids = [pair.caption_id for pair in _read(shard).pairs]

    assert ids[0] == ids[1]
    assert ids[3] == ids[4]
    assert len(set(ids)) == 3
    assert same_caption(" A\tRed\nStar ") == "a red star"


def test_groups_of_the_metadata_connect_and_empty_or_strange_ones_do_not(
    tmp_path: Path, tar_of: TarOf
) -> None:
    groups = ['{"group": "x"}', '{"group": "x"}', '{"group": ""}', '{"group": ""}', '{"group": ["x"]}', "{}"]
    shard = tar_of(
        {f"{n}": {"png": _png(n), "txt": f"text {n}", "json": group} for n, group in enumerate(groups)},
        tmp_path / "c.tar",
    )

    ids = [pair.group_id for pair in _read(shard).pairs]

    assert ids[0] == ids[1]
    assert len(set(ids)) == 5


def test_refused_samples_are_counted_by_their_reason(tmp_path: Path, tar_of: TarOf) -> None:
    good = _png(1)
    shard = tar_of(
        {
            "good": {"png": good, "txt": "a square"},
            "cut": {"png": good[: len(good) // 2], "txt": "half"},
            "junk": {"jpg": b"no picture", "txt": "junk"},
            "large": {"png": _png(2, side=40), "txt": "large"},
            "silent": {"png": _png(3)},
            "blank": {"png": _png(4), "txt": " \n"},
            "latin": {"png": _png(5), "txt": "caf\xe9".encode("latin-1")},
            "long": {"png": _png(6), "txt": "x" * 100_000},
            "alone": {"txt": "no picture at all"},
            "empty": {"png": b"", "txt": "nothing"},
        },
        tmp_path / "c.tar",
    )

    pairs = read_clean(find_shards(shard), Input(max_pixels=1000), SMALL, cache_mb=1)

    assert [pair.text for pair in pairs.pairs] == ["a square"]
    assert pairs.refused == {
        "unreadable_image": 2,
        "too_many_pixels": 1,
        "missing_text": 1,
        "empty_text": 1,
        "text_not_utf8": 1,
        "text_too_long": 1,
        "missing_image": 1,
        "empty_image": 1,
    }


@pytest.mark.parametrize("name", REAL)
def test_kept_pixels_equal_those_that_are_read_again(name: str, repository: Path) -> None:
    shards = find_shards(repository / "tests" / "data" / "real" / name)
    kept = read_clean(shards, Input(), SMALL, cache_mb=64)
    read = read_clean(shards, Input(), SMALL, cache_mb=0)
    indices = list(range(len(kept.pairs)))
    random.Random(name).shuffle(indices)

    assert len(indices) >= 5
    assert kept.digest == read.digest
    assert not kept.refused
    assert np.array_equal(kept.squares(indices, SMALL), read.squares(indices, SMALL))
    assert np.array_equal(
        kept.squares(indices[:3], SMALL), np.stack([to_square(kept.picture(i), SMALL) for i in indices[:3]])
    )


def test_pixels_of_another_size_are_not_taken_from_the_kept_ones(repository: Path) -> None:
    shards = find_shards(repository / "tests" / "data" / "real" / "photos.tar")
    kept = read_clean(shards, Input(), SMALL, cache_mb=64)

    assert kept.squares([1], Images(size_px=10)).shape == (1, 3, 10, 10)


def test_pixels_are_kept_only_where_all_of_them_fit(tmp_path: Path, tar_of: TarOf) -> None:
    side = 591  # three bytes a pixel: just under 1 MiB a picture
    shard = tar_of({f"{n}": {"png": _png(n), "txt": f"text {n}"} for n in range(3)}, tmp_path / "c.tar")
    images = Images(size_px=side)
    shards = find_shards(shard)

    fits = read_clean(shards, Input(), images, cache_mb=3)
    too_many = read_clean(shards, Input(), images, cache_mb=2)
    shard.unlink()

    assert fits.squares([0, 2], images).shape == (2, 3, side, side)
    with pytest.raises(Exception, match="cannot be read"):
        too_many.squares([0, 2], images)


def test_the_digest_names_images_and_texts_in_order(tmp_path: Path, tar_of: TarOf) -> None:
    def digest(*samples: tuple[int, str]) -> str:
        rows = {f"{n}": {"png": _png(image), "txt": text} for n, (image, text) in enumerate(samples)}
        return _read(tar_of(rows, tmp_path / f"{len(list(tmp_path.iterdir()))}.tar")).digest

    first = digest((1, "a"), (2, "b"))

    assert first == digest((1, "a"), (2, "b"))
    assert len({first, digest((2, "b"), (1, "a")), digest((1, "a"), (2, "c")), digest((1, "a"))}) == 4


def _read(shard: Path) -> CleanSet:
    return read_clean(find_shards(shard), Input(), SMALL, cache_mb=1)
