"""Batches off the disk against the pairs of the stream, read, decoded and put side by side by hand."""

from __future__ import annotations

import io
import random
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scenes
import torch
from trainings import TINY, same_pairs

from capfilt.data.augment import augmented, numbers_needed
from capfilt.data.clean import same_caption
from capfilt.data.images import decode, normalise, to_square
from capfilt.data.sources import find_shards, read_bytes
from capfilt.data.stream import Reference, Stream, TarPool, Text
from capfilt.draws import uniforms
from capfilt.errors import CapfiltError
from capfilt.models.losses import draw_hard_negatives
from capfilt.models.vocabulary import Vocabulary, train_vocabulary
from capfilt.settings import Augment, Clean, Input
from capfilt.settings import Stream as Weights
from capfilt.training.parallel import ALONE, World
from capfilt.training.streamed import HeldOutPairs, Reader, StreamBatches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from capfilt.data.stream import Drawn
    from capfilt.training.objectives import Batch

KEY = (7, "joint", 0)
"""Seed, training, phase."""
VARIED = Augment(crop_least=0.3, flip=0.5, operations=2, magnitude=5)
FIELDS = ("pixels", "ids", "real", "image_ids", "caption_ids")
WORDS = (
    "a",
    "picture",
    "of",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "star",
    "here",
    "next",
    "to",
    "cat",
)


def png(number: int) -> bytes:
    """A picture of its own for each number."""
    rng = random.Random(number)
    return scenes.picture(scenes.draw_scene(rng, unseen=False), rng)


def tars(folder: Path, pairs: Sequence[tuple[bytes, str]], per_shard: int = 5) -> Path:
    rows = [(f"{n:03d}", {"png": data, "txt": text.encode()}) for n, (data, text) in enumerate(pairs)]
    scenes.write_shards(folder, rows, per_shard)
    return folder


def drawn_pairs(count: int) -> list[tuple[bytes, str]]:
    return [(png(n), " ".join(WORDS[n % 5 : n % 5 + 3 + n % 4])) for n in range(count)]


def stream_of(folder: Path, *, held: float | None = None, buffer: int = 6) -> Stream:
    pool = TarPool(tuple(find_shards(folder)), Input(), "clean")
    return Stream(
        [pool], Weights(shuffle_buffer=buffer), 3, Clean(held_out=held or 0.1), () if held is None else (0,)
    )


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return train_vocabulary([" ".join(WORDS)] * 3, 90)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    """23 pairs in five shards."""
    return stream_of(tars(tmp_path_factory.mktemp("pairs"), drawn_pairs(23)))


def reader(words: Vocabulary, augment: Augment | None = None, limits: Input | None = None) -> Reader:
    return Reader(words, TINY.images, TINY.text.max_tokens, torch.device("cpu"), limits or Input(), augment)


def batches(stream: Stream, words: Vocabulary, augment: Augment | None = None, **more: Any) -> StreamBatches:
    return StreamBatches(stream, reader(words, augment), **more)


def endless(stream: Stream, phase: int = 0) -> Iterator[Drawn]:
    """Pairs of pass after pass, as the stream alone has them."""
    passes = range(phase << 20, (phase << 20) + 50)
    return chain.from_iterable(stream.epoch(number) for number in passes)


def pixels_of(pair: Drawn) -> torch.Tensor:
    data = read_bytes(pair.reference.path, pair.reference.offset, pair.reference.size)
    square = to_square(decode(data, max_pixels=10**6), TINY.images)
    return normalise(torch.from_numpy(square), TINY.images)


def check_equal(found: Batch, expected: Batch) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


# -- which pairs a batch holds


def test_a_batch_holds_the_next_pairs_of_the_stream(stream: Stream, words: Vocabulary) -> None:
    made, pairs = batches(stream, words), endless(stream)
    for step in range(4):
        batch, expected = made.at(step, 6, 1, *KEY), list(islice(pairs, 6))
        assert torch.equal(batch.pixels, torch.stack([pixels_of(pair) for pair in expected]))
        assert batch.ids.shape == batch.real.shape == (6, int(batch.real.sum(1).max()))
        for row, pair in enumerate(expected):
            own, _ = words.encode([pair.text], "cls", TINY.text.max_tokens)
            assert torch.equal(batch.ids[row][batch.real[row]], own[0])


def test_a_batch_may_end_in_the_next_pass(stream: Stream, words: Vocabulary) -> None:
    made = batches(stream, words)
    seen = Counter(picture for step in range(6) for picture in made.at(step, 23, 1, *KEY).image_ids.tolist())
    assert made.steps_in_epoch(23) == 1
    assert set(seen.values()) == {6}
    # Of three batches of ten the last has three of the first pass, and seven of the second.
    thirds = batches(stream, words)
    pictures = [picture for step in range(3) for picture in thirds.at(step, 10, 1, *KEY).image_ids.tolist()]
    assert len(set(pictures[:23])) == 23
    assert len(set(pictures[23:])) == 7
    assert (thirds.steps_in_epoch(10), thirds.steps_in_epoch(1000), len(thirds)) == (2, 1, 23)


def test_a_batch_larger_than_a_pass_meets_pairs_again(stream: Stream, words: Vocabulary) -> None:
    batch = batches(stream, words).at(0, 60, 1, *KEY)
    assert sorted(Counter(batch.image_ids.tolist()).values()) == [2] * 9 + [3] * 14


def test_phases_have_orders_of_their_own(stream: Stream, words: Vocabulary) -> None:
    made = batches(stream, words)
    first, second = (made.at(0, 23, 1, 7, "joint", phase).image_ids.tolist() for phase in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)
    expected = [pixels_of(pair) for pair in islice(endless(stream, 1), 23)]
    assert torch.equal(made.at(0, 23, 1, 7, "joint", 1).pixels, torch.stack(expected))


@pytest.mark.parametrize("threads", [0, 3])
def test_a_step_anywhere_is_the_one_that_walking_there_gives(
    stream: Stream, words: Vocabulary, threads: int
) -> None:
    walked = batches(stream, words, VARIED)
    steps = [walked.at(step, 8, 1, *KEY) for step in range(9)]
    for step in (8, 0, 3, 4, 2):
        check_equal(batches(stream, words, VARIED, threads=threads).at(step, 8, 1, *KEY), steps[step])
    jumping = batches(stream, words, VARIED, threads=threads)
    for step in (5, 6, 7, 1, 2, 0):
        check_equal(jumping.at(step, 8, 1, *KEY), steps[step])


def test_a_training_that_goes_on_walks_no_pass_that_is_over(
    stream: Stream, words: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[int] = []
    epoch = Stream.epoch
    monkeypatch.setattr(Stream, "epoch", lambda self, number: walked.append(number) or epoch(self, number))
    batches(stream, words).at(30, 10, 1, *KEY)  # 300 pairs of 23 a pass are 13 passes and one pair
    assert walked == [13]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_rows_of_all_processes_are_each_part_shared_out_in_order(
    stream: Stream, words: Vocabulary, size: int, parts: int
) -> None:
    alone = batches(stream, words, VARIED)
    processes = [batches(stream, words, VARIED, world=World(rank, size)) for rank in range(size)]
    for step in range(3):
        whole = alone.at(step, 12, parts, *KEY)
        shares = [one.at(step, 12, parts, *KEY) for one in processes]
        assert {len(share.ids) for share in shares} == {12 // size}
        for number in range(parts):
            mine = [share.part(number, parts) for share in shares]
            together = {name: torch.cat([getattr(one, name) for one in mine]) for name in FIELDS}
            part = whole.part(number, parts)
            assert all(torch.equal(together[name], getattr(part, name)) for name in FIELDS)


# -- what is varied


def test_pictures_are_varied_by_step_and_row(stream: Stream, words: Vocabulary) -> None:
    batch = batches(stream, words, VARIED).at(4, 5, 1, *KEY)
    for row, pair in enumerate(islice(endless(stream), 20, 25)):
        data = read_bytes(pair.reference.path, pair.reference.offset, pair.reference.size)
        numbers = uniforms(numbers_needed(VARIED), "augment", *KEY, 4, row)
        picture = augmented(decode(data, max_pixels=10**6), VARIED, side=16, numbers=numbers)
        square = torch.from_numpy(to_square(picture, TINY.images))
        assert torch.equal(batch.pixels[row], normalise(square, TINY.images))


def test_the_same_picture_is_varied_otherwise_at_another_step_and_in_another_row(
    tmp_path: Path, words: Vocabulary
) -> None:
    same = stream_of(tars(tmp_path, [(png(0), "a cat"), (png(0), "a star")]))
    made = batches(same, words, VARIED)
    pictures = torch.cat([made.at(step, 4, 1, *KEY).pixels for step in range(3)])
    assert len({picture.numpy().tobytes() for picture in pictures}) > 8
    plain = batches(same, words, Augment()).at(0, 4, 1, *KEY)
    assert len({picture.numpy().tobytes() for picture in plain.pixels}) == 1


def test_held_out_pictures_are_as_they_are(tmp_path: Path, words: Vocabulary) -> None:
    stream = stream_of(tars(tmp_path, drawn_pairs(30)), held=0.3)
    held_out = HeldOutPairs(stream, reader(words))
    pairs = stream.survey().held_out
    assert len(held_out) == len(pairs) > 4
    batch = held_out.rows(range(1, 4))
    assert torch.equal(batch.pixels, torch.stack([pixels_of(pair) for pair in pairs[1:4]]))


# -- what is the same


def test_equal_pictures_and_captions_have_equal_numbers(tmp_path: Path, words: Vocabulary) -> None:
    pairs = [(png(n % 4), text) for n, text in enumerate(["a cat", " A  Cat ", "a star", "a cat here"] * 3)]
    stream = stream_of(tars(tmp_path, [*pairs, *((png(n), f"a star {n}") for n in range(50, 250))]))
    batch = batches(stream, words).at(0, 212, 1, *KEY)
    met = list(islice(endless(stream), 212))
    data = [read_bytes(one.reference.path, one.reference.offset, one.reference.size) for one in met]
    texts = [same_caption(one.text) for one in met]
    expected = [
        [x == y or s == t for y, t in zip(data, texts, strict=True)] for x, s in zip(data, texts, strict=True)
    ]
    assert same_pairs(batch).tolist() == expected
    assert len(set(batch.image_ids.tolist())) == 204
    assert (batch.image_ids >= 0).all()
    assert (batch.caption_ids >= 0).all()


# -- what cannot be used


DAMAGED, LARGE, NOTHING = png(1)[:60], png(2), b"no picture at all"


def with_damage(folder: Path, bad: dict[int, bytes], count: int = 6) -> Stream:
    pairs = drawn_pairs(count)
    for number, data in bad.items():
        pairs[number] = (data, pairs[number][1])
    return stream_of(tars(folder, pairs), buffer=1)


def test_a_picture_that_cannot_be_used_gives_its_place_to_the_next_of_the_batch(
    tmp_path: Path, words: Vocabulary
) -> None:
    stream = with_damage(tmp_path, {1: DAMAGED, 2: NOTHING, 5: DAMAGED})
    pairs = list(stream.epoch(0))
    usable = [pair.reference.key not in {"001", "002", "005"} for pair in pairs]
    stands_in = []
    for row in range(6):
        stands_in.append(next(n % 6 for n in range(row, row + 6) if usable[n % 6]))
    made = batches(stream, words)
    batch = made.at(0, 6, 1, *KEY)
    assert torch.equal(batch.pixels, torch.stack([pixels_of(pairs[n]) for n in stands_in]))
    ids, real = words.encode([pair.text for pair in pairs], "cls", TINY.text.max_tokens)
    assert torch.equal(batch.ids, ids[stands_in, : int(real.sum(1).max())])
    assert made.refused == {"unreadable_image": 3}
    # Processes count what is theirs, and agree on what stands in for it.
    halves = [batches(stream, words, world=World(rank, 2)) for rank in (0, 1)]
    together = [half.at(0, 6, 1, *KEY) for half in halves]
    assert torch.equal(torch.cat([half.pixels for half in together]), batch.pixels)
    assert torch.equal(torch.cat([half.ids for half in together]), batch.ids)
    assert halves[0].refused + halves[1].refused == made.refused


def test_what_stands_in_is_no_negative_of_itself(tmp_path: Path, words: Vocabulary) -> None:
    stream = with_damage(tmp_path, {0: DAMAGED, 1: DAMAGED, 2: DAMAGED, 3: DAMAGED})
    batch = batches(stream, words).at(0, 6, 1, *KEY)
    same = same_pairs(batch)
    assert len(set(batch.image_ids.tolist())) == 2
    for seed in range(40):
        chances = torch.from_numpy(uniforms(6, "negatives", seed))
        drawn = draw_hard_negatives(torch.zeros(6, 6), same, torch.tensor(1.0), chances)
        assert not same[torch.arange(6), drawn].any()


def test_a_large_picture_is_refused_by_its_reason_and_again_at_each_visit(
    tmp_path: Path, words: Vocabulary
) -> None:
    stream = with_damage(tmp_path, {4: DAMAGED})
    made = StreamBatches(stream, reader(words, limits=Input(max_pixels=64 * 64)))
    for step in range(3):
        made.at(step, 6, 1, *KEY)
    assert made.refused == {"unreadable_image": 3}
    small = StreamBatches(stream, reader(words, limits=Input(max_pixels=100)))
    with pytest.raises(CapfiltError, match=r"none of the 6 pictures of a batch can be used.*too_many_pixels"):
        small.at(0, 6, 1, *KEY)


def test_a_batch_of_damaged_pictures_alone_is_an_error_that_names_one(
    tmp_path: Path, words: Vocabulary
) -> None:
    stream = with_damage(tmp_path, dict.fromkeys(range(6), NOTHING))
    with pytest.raises(
        CapfiltError, match=r"that of 00\d in .*0000\d\.tar is refused as unreadable_image"
    ) as caught:
        batches(stream, words).at(0, 3, 1, *KEY)
    assert "look at the shards" in caught.value.fix


def test_pictures_read_ahead_are_counted_when_they_are_met(tmp_path: Path, words: Vocabulary) -> None:
    stream = with_damage(tmp_path, {3: DAMAGED})
    ahead = batches(stream, words, threads=2)
    for step in range(3):
        ahead.at(step, 6, 1, *KEY)
        assert ahead.refused == {"unreadable_image": step + 1}


def test_a_held_out_picture_that_cannot_be_used_ends_no_training(tmp_path: Path, words: Vocabulary) -> None:
    held = stream_of(tars(tmp_path / "whole", drawn_pairs(30)), held=0.3).survey().held_out
    broken = {int(pair.reference.key): DAMAGED for pair in held[-2:]}
    pairs = [(broken.get(n, data), text) for n, (data, text) in enumerate(drawn_pairs(30))]
    stream = stream_of(tars(tmp_path / "broken", pairs), held=0.3)
    assert [p.reference.key for p in stream.survey().held_out] == [p.reference.key for p in held]
    held_out, last = HeldOutPairs(stream, reader(words)), len(held) - 1
    alone = held_out.rows(range(last, last + 1))  # the last and smallest batch of a validation
    assert torch.equal(alone.pixels, pixels_of(held[0])[None])
    ids, real = words.encode([held[last].text, held[0].text], "cls", TINY.text.max_tokens)
    assert torch.equal(alone.ids, ids[1:, : int(real.sum(1).max())])
    some = held_out.rows(range(last - 2, last + 1))
    assert torch.equal(some.pixels[:1], pixels_of(held[last - 2])[None])


def test_a_shard_that_changes_under_a_training_is_an_error(tmp_path: Path, words: Vocabulary) -> None:
    stream = stream_of(tars(tmp_path, drawn_pairs(8)))
    made = batches(stream, words)
    made.at(0, 4, 1, *KEY)
    for shard in tmp_path.glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(CapfiltError, match=r"0000[01]\.tar has changed"):
        made.at(1, 4, 1, *KEY)


# -- how much is in memory


@dataclass(frozen=True)
class Manifold:
    """Any number of shards, which all lie in one file."""

    one: Reference
    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, shard: int, refused: Counter[str]) -> Iterator[Reference]:  # noqa: ARG002
        for place in range(100):
            text = Text("web", f"a star {place} of {shard}")
            yield Reference(self.one.path, self.one.offset, self.one.size, str(shard), str(place), (text,))

    @property
    def facts(self) -> list[dict[str, Any]]:
        return []


def test_memory_does_not_grow_with_the_shards(tmp_path: Path, words: Vocabulary) -> None:
    buffer = io.BytesIO(png(0))
    [shard] = find_shards(tars(tmp_path, [(buffer.getvalue(), "a star")]))
    [one] = TarPool((shard,), Input(), "web").read(0, Counter())

    def peak(shards: int) -> int:
        stream = Stream([Manifold(one, shards)], Weights(shuffle_buffer=200), 0, Clean(), ())
        stream.survey()
        made = batches(stream, words)
        tracemalloc.start()
        try:
            for step in range(0, made.steps_in_epoch(100), 5):  # steps that are left out are walked
                assert len(made.at(step, 100, 1, *KEY).ids) == 100
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)
    few, many = peak(5), peak(50)
    # 45 more shards are 4,500 more references of some 600 bytes each.
    assert many - few < 300_000


def test_alone_is_one_process(stream: Stream, words: Vocabulary) -> None:
    check_equal(
        batches(stream, words, world=ALONE).at(2, 5, 1, *KEY),
        batches(stream, words, world=World(0, 1)).at(2, 5, 1, *KEY),
    )
    assert np.prod(batches(stream, words).at(2, 5, 1, *KEY).pixels.shape) == 5 * 3 * 16 * 16
