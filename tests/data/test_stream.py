"""What is drawn, how often and in which order, and what is never read on the way."""

from __future__ import annotations

import json
import pickle
import tarfile
import tracemalloc
from collections import Counter
from dataclasses import dataclass
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.data import sources
from capfilt.data.clean import same_caption
from capfilt.data.sources import find_shards, read_bytes, read_shard, read_without_images
from capfilt.data.stream import Reference, Stream, TarPool, Text
from capfilt.errors import CapfiltError
from capfilt.records import Status
from capfilt.settings import Clean, Input
from capfilt.settings import Stream as Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    TarOf = Callable[..., Path]

REAL = Path(__file__).parent / "real"
LIMITS = Input()
NONE_APART = Clean()
EVERYWHERE = ("clean", "web", "synthetic")


@dataclass(frozen=True)
class Given:
    """A pool of references that stand here, shard by shard."""

    shards: tuple[tuple[Reference, ...], ...]

    def __len__(self) -> int:
        return len(self.shards)

    def read(self, shard: int, refused: Counter[str]) -> Iterator[Reference]:  # noqa: ARG002
        yield from self.shards[shard]

    @property
    def facts(self) -> list[dict[str, Any]]:
        return []


@dataclass(frozen=True)
class Endless:
    """A pool of any number of shards that are made when they are read."""

    count: int
    each: int = 200

    def __len__(self) -> int:
        return self.count

    def read(self, shard: int, refused: Counter[str]) -> Iterator[Reference]:  # noqa: ARG002
        for place in range(self.each):
            yield reference(f"{shard}/{place}", Text("web", f"picture {place} of shard {shard}"))

    @property
    def facts(self) -> list[dict[str, Any]]:
        return []


def reference(key: str, *texts: Text, group: str | None = None) -> Reference:
    return Reference(Path("a.tar"), 0, 1, "a", key, texts or (Text("web", f"text of {key}"),), group)


def pool(*sizes: int, source: str = "web", name: str = "p") -> Given:
    return Given(
        tuple(
            tuple(reference(f"{name}{s}/{n}", Text(source, f"text {n} of {name}{s}")) for n in range(size))  # type: ignore[arg-type]
            for s, size in enumerate(sizes)
        )
    )


def stream(*pools: Any, seed: int = 0, held: Clean = NONE_APART, apart: Any = (), **weights: Any) -> Stream:
    return Stream(pools, Weights(**weights), seed, held, apart)


def keys(drawn: Iterator[Any]) -> list[str]:
    return [pair.reference.key for pair in drawn]


def tar_pool(path: Path | list[Path], source: Any = "web", limits: Input = LIMITS) -> TarPool:
    return TarPool(tuple(find_shards(path)), limits, source)


def kept(*captions: Any) -> str:
    """KEY.json of an export that kept these texts."""
    return json.dumps({"capfilt": {"shard": "s", "captions": list(captions)}})


sizes = st.lists(st.integers(0, 12), min_size=1, max_size=5)


@given(clean=sizes, web=sizes, seed=st.integers(0, 9), number=st.integers(0, 9), weight=st.integers(0, 3))
def test_each_picture_is_met_as_often_as_its_weight_says(clean, web, seed, number, weight):
    pools = pool(*clean, source="clean", name="c"), pool(*web, name="w")

    made = stream(*pools, seed=seed, clean=weight, web=1)

    counts = Counter(keys(made.epoch(number)))
    wanted = {f"c{s}/{n}": weight for s, size in enumerate(clean) for n in range(size)}
    wanted |= {f"w{s}/{n}": 1 for s, size in enumerate(web) for n in range(size)}
    assert counts == Counter({key: count for key, count in wanted.items() if count})
    assert made.survey().pairs == counts.total()
    assert made.survey().pictures == (sum(clean), sum(web))


@given(sizes=sizes, buffer=st.integers(1, 40), seed=st.integers(0, 9))
def test_a_buffer_of_any_size_gives_the_same_pairs(sizes, buffer, seed):
    def pairs(size: int) -> list[tuple[str, str]]:
        made = stream(pool(*sizes), seed=seed, shuffle_buffer=size, web=1.5)
        return [(pair.reference.key, pair.text) for pair in made.epoch(0)]

    assert sorted(pairs(buffer)) == sorted(pairs(1))


def test_a_buffer_of_one_leaves_the_order_of_a_shard():
    made = stream(pool(30), shuffle_buffer=1)

    assert keys(made.epoch(0)) == [f"p0/{n}" for n in range(30)]


def test_pairs_are_numbered_in_the_order_in_which_they_come():
    assert [pair.number for pair in stream(pool(5, 6, 7), shuffle_buffer=4).epoch(3)] == list(range(18))


def test_the_same_arguments_give_the_same_order_and_others_another():
    def order(seed: int, number: int) -> list[str]:
        return keys(stream(pool(*[10] * 8), seed=seed, shuffle_buffer=16).epoch(number))

    first = order(0, 0)
    assert order(0, 0) == first
    assert sorted(order(1, 0)) == sorted(order(0, 1)) == sorted(first)
    assert len({tuple(order(seed, number)) for seed in (0, 1) for number in (0, 1)}) == 4


def test_a_pass_does_not_depend_on_the_passes_before_it():
    made = stream(pool(20, 20), shuffle_buffer=8)
    for number in (2, 0, 1):
        next(made.epoch(number))

    assert keys(made.epoch(1)) == keys(stream(pool(20, 20), shuffle_buffer=8).epoch(1))


def test_shards_of_all_pools_come_in_one_mixed_order():
    made = stream(pool(*[1] * 20, name="a"), pool(*[1] * 20, name="b"), shuffle_buffer=1)

    orders = [[key[0] for key in keys(made.epoch(number))] for number in range(4)]

    assert all(5 <= Counter(order[:20])["a"] <= 15 for order in orders)


def test_a_large_buffer_shuffles_evenly():
    """Where a pair lands has the mean and the spread of the uniform distribution."""
    made = stream(pool(20), shuffle_buffer=100)
    places = np.array([[keys(made.epoch(number)).index(f"p0/{n}") for n in (0, 19)] for number in range(300)])

    # The standard error of a mean of 300 uniform places among 20 is 0.33.
    assert np.allclose(places.mean(axis=0), 9.5, atol=1.4)
    assert np.allclose(places.std(axis=0), np.sqrt((20**2 - 1) / 12), atol=0.8)


def test_a_pair_waits_in_the_buffer_as_long_as_another():
    """The wait of a pair is geometric: each time one of 50 leaves, it is this one with chance 1/50."""
    made = stream(pool(6000), shuffle_buffer=50)

    left = {key: place for place, key in enumerate(keys(made.epoch(0)))}
    waits = np.array([left[f"p0/{n}"] + 50 - n for n in range(100, 5500)])

    assert waits.min() >= 1
    # Both standard errors are below 2 for 5,400 waits.
    assert waits.mean() == pytest.approx(50, abs=5)
    assert waits.std() == pytest.approx(np.sqrt(50 * 49), abs=7)


def test_shards_come_in_another_order_in_each_pass_and_for_each_seed():
    orders = {
        tuple(keys(stream(pool(*[1] * 30), seed=seed, shuffle_buffer=1).epoch(number)))
        for seed in (0, 1)
        for number in (0, 1, 2)
    }

    assert len(orders) == 6


def test_chances_do_not_repeat_within_a_large_shard():
    met = Counter(keys(stream(pool(4096), web=0.5).epoch(0)))
    row = np.array([met[f"p0/{n}"] for n in range(4096)])

    for block in (512, 1024, 2048):
        # Coins agree half of the time: 4096 of them within 0.01.
        assert (row[block:] == row[:-block]).mean() == pytest.approx(0.5, abs=0.05)


def test_the_chance_of_a_fraction_is_drawn_once_for_all_passes():
    made = stream(pool(*[500] * 8), web=1.3)

    first, second = (Counter(keys(made.epoch(number))) for number in (0, 1))

    assert first == second
    assert set(first.values()) == {1, 2}
    assert first.total() == made.survey().pairs
    # 4,000 pictures: the standard error of the share is 0.0072.
    assert first.total() / 4000 == pytest.approx(1.3, abs=0.03)
    assert Counter(keys(stream(pool(*[500] * 8), web=1.3, seed=1).epoch(0))) != first


def test_texts_of_a_picture_are_drawn_by_their_weights_anew_in_each_pass():
    texts = (Text("web", "found"), Text("synthetic", "written"), Text("synthetic", "written too"))
    made = stream(Given(((reference("a", *texts),),)), web=3, synthetic=1.5)

    drawn = [[pair.text for pair in made.epoch(number)] for number in range(1000)]

    assert all(len(texts) == 3 for texts in drawn)
    counts = Counter(text for texts in drawn for text in texts)
    expected = {"found": 1500, "written": 750, "written too": 750}
    # 99.9% of chi-square with two degrees of freedom.
    assert sum((counts[text] - many) ** 2 / many for text, many in expected.items()) < 13.8


@given(chance=st.floats(0, 1, exclude_max=True), weights=st.lists(st.sampled_from(EVERYWHERE), min_size=1))
def test_a_text_stands_where_its_weight_has_its_place(chance, weights):
    made = stream(clean=2, web=0, synthetic=0.5)
    texts = tuple(Text(source, str(place)) for place, source in enumerate(weights))
    lengths = [{"clean": 2, "web": 0, "synthetic": 0.5}[source] for source in weights]
    if not any(lengths):
        return

    drawn = int(made._draw_text(texts, chance))

    assert lengths[drawn] > 0
    assert sum(lengths[:drawn]) <= chance * sum(lengths) <= sum(lengths[: drawn + 1])


def test_rounding_at_the_end_of_the_line_draws_no_text_of_weight_0():
    texts = (Text("clean", "a"), Text("synthetic", "b"), Text("web", "c"))

    assert stream(clean=0.1, web=0, synthetic=0.2)._draw_text(texts, 1.0) == "b"


def test_texts_of_weight_0_are_never_drawn_and_a_picture_without_another_is_skipped():
    both = reference("both", Text("web", "found"), Text("synthetic", "written"))
    alone = reference("alone", Text("web", "found"))
    made = stream(Given(((both, alone),)), web=0, synthetic=1)

    assert {pair.text for number in range(50) for pair in made.epoch(number)} == {"written"}
    assert keys(made.epoch(0)) == ["both"]
    assert (made.survey().pairs, made.survey().pictures) == (1, (2,))
    assert list(made.texts()) == ["written"]


def test_a_weight_without_end_is_refused():
    with pytest.raises(CapfiltError, match="weight of web texts is inf"):
        stream(pool(1), web=float("inf"))


names = st.integers(0, 6)
grouped = st.lists(st.tuples(names, st.none() | names), min_size=1, max_size=25)


def pool_of(pairs: list[tuple[int, int | None]], source: str) -> Given:
    return Given(
        tuple(
            (
                reference(
                    f"{source}{n}",
                    Text(source, f" A  text {caption}" if n % 2 else f"a text {caption}"),  # type: ignore[arg-type]
                    group=None if group is None else str(group),
                ),
            )
            for n, (caption, group) in enumerate(pairs)
        )
    )


def shared_names(one: Reference) -> set[tuple[str, str]]:
    own = {("caption", same_caption(text.text)) for text in one.texts}
    return own | ({("group", one.group)} if one.group is not None else set())


@given(
    clean=grouped,
    web=grouped,
    share=st.floats(0.01, 0.99),
    most=st.integers(1, 30),
    seed=st.integers(0, 20),
)
def test_nothing_that_is_like_a_held_out_pair_is_in_any_pass(clean, web, share, most, seed):
    pools = pool_of(clean, "clean"), pool_of(web, "web")
    made = stream(*pools, seed=seed, held=Clean(held_out=share, held_out_most=most), apart={0})

    survey = made.survey()

    assert len(survey.held_out) <= most
    apart = set().union(*(shared_names(pair.reference) for pair in survey.held_out))
    everything = [one for pool in pools for shard in pool.shards for one in shard]
    assert sorted(keys(made.epoch(0))) == sorted(
        one.key for one in everything if not shared_names(one) & apart
    )
    assert survey.pairs == len(keys(made.epoch(1)))
    held_out = keys(iter(survey.held_out))
    assert all(key.startswith("clean") for key in held_out)
    assert held_out == sorted(held_out, key=lambda key: int(key.removeprefix("clean")))
    assert [pair.text for pair in survey.held_out] == [
        pair.reference.texts[0].text for pair in survey.held_out
    ]
    assert any(key.startswith("clean") for key in keys(made.epoch(0)))


@given(captions=st.lists(st.integers(0, 4), min_size=2), share=st.floats(0.01, 0.99), seed=st.integers(0, 50))
def test_of_two_captions_one_is_held_out_and_one_is_not(captions, share, seed):
    made = stream(
        pool_of([(c, None) for c in captions], "clean"), seed=seed, apart={0}, held=Clean(held_out=share)
    )

    held_out, trained = len(made.survey().held_out), made.survey().pairs

    assert held_out + trained == len(captions)
    assert trained > 0
    assert (held_out > 0) == (len(set(captions)) > 1)


def test_the_share_that_is_held_out_is_the_one_asked_for():
    clean = pool(*[1000] * 4, source="clean")

    share = len(stream(clean, apart={0}, held=Clean(held_out=0.2)).survey().held_out) / 4000
    capped = stream(clean, apart={0}, held=Clean(held_out=0.2, held_out_most=50)).survey()

    assert share == pytest.approx(0.2, abs=0.03)  # the standard error is 0.0063
    assert (len(capped.held_out), capped.pairs) == (50, 3950)


def test_what_is_held_out_does_not_depend_on_the_order_of_the_shards():
    pairs = [((n, None)) for n in range(300)]
    held = Clean(held_out=0.3, held_out_most=40)

    forwards = stream(pool_of(pairs, "clean"), apart={0}, held=held).survey()
    backwards = stream(pool_of(pairs[::-1], "clean"), apart={0}, held=held).survey()

    def captions(survey: Any) -> set[str]:
        return {same_caption(pair.text) for pair in survey.held_out}

    assert captions(forwards) == captions(backwards)
    assert len(captions(forwards)) == 40


def test_a_clean_set_that_is_one_group_is_trained_on():
    made = stream(pool_of([(n, 5) for n in range(9)], "clean"), pool(4), apart={0})

    assert (made.survey().held_out, made.survey().pairs) == ((), 13)


def test_a_clean_set_of_weight_0_still_serves_for_validation():
    made = stream(pool(50, source="clean"), pool(10, name="w"), apart={0}, clean=0)

    assert len(made.survey().held_out) > 0
    assert made.survey().pairs == 10


def test_texts_are_those_that_a_pass_may_draw():
    made = stream(pool(60, source="clean", name="c"), pool(40), apart={0}, held=Clean(held_out=0.3))

    assert sorted(made.texts()) == sorted(pair.text for pair in made.epoch(0))
    assert len(list(made.texts())) < 100


def test_a_pickled_stream_gives_the_same_pairs_and_is_not_surveyed_again(monkeypatch):
    made = stream(pool(30, 30), apart={0}, shuffle_buffer=7)
    survey, order = made.survey(), keys(made.epoch(0))
    monkeypatch.setattr(Stream, "_count", None)

    copy = pickle.loads(pickle.dumps(made))

    assert copy.survey() == survey
    assert keys(copy.epoch(0)) == order


def test_memory_does_not_grow_with_the_number_of_shards():
    def peak(shards: int) -> int:
        held = Clean(held_out_most=50)
        made = stream(Endless(shards), apart={0}, held=held, shuffle_buffer=300)
        tracemalloc.start()
        try:
            made.survey()
            assert sum(1 for _ in made.epoch(0)) == made.survey().pairs > 150 * shards
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)
    few, many = peak(10), peak(100)
    # 90 more shards are 18,000 more references, some 600 bytes each; their numbers alone may take room.
    assert many - few < 60_000


@pytest.mark.parametrize("name", ["clean", "noisy", "photos"])
def test_a_real_tar_gives_its_pictures_and_texts_without_their_bytes(name):
    path = REAL / f"{name}.tar"
    [shard] = find_shards(path)

    references = list(tar_pool(path, "clean").read(0, Counter()))

    samples = list(read_shard(shard, LIMITS))
    assert [one.key for one in references] == [sample.key for sample in samples]
    for one, sample in zip(references, samples, strict=True):
        assert one.texts == (Text("clean", sample.web_text),)
        assert (one.path, one.shard) == (path, name)
        assert read_bytes(one.path, one.offset, one.size) == sample.image


class Watched(FileIO):
    """A file that notes which bytes are asked of it."""

    asked: list[tuple[int, int]]

    def read(self, size: int = -1) -> bytes:
        self.asked.append((self.tell(), size))
        return super().read(size)


@pytest.mark.parametrize(("read", "touched"), [(read_shard, True), (read_without_images, False)])
def test_no_byte_of_a_picture_is_asked_for(monkeypatch, read, touched):
    path = REAL / "photos.tar"
    [shard] = find_shards(path)
    asked: list[tuple[int, int]] = []

    def opened(path: Path) -> Watched:
        file = Watched(path)
        file.asked = asked
        return file

    monkeypatch.setattr(sources, "_opened", opened)
    read_all = list(read(shard, LIMITS))

    with tarfile.open(path) as tar:
        pictures = [(m.offset_data, m.size) for m in tar if m.name.endswith(("jpg", "png"))]
    assert len(pictures) == len(read_all) > 0
    assert asked
    hit = any(at < first + many and first < at + size for at, size in asked for first, many in pictures)
    assert hit is touched


def test_samples_that_cannot_be_used_are_counted_by_their_reason(tar_of: TarOf, tmp_path: Path):
    path = tar_of(
        {
            "good": {"jpg": b"1", "txt": "a cat", "json": '{"group": 7}'},
            "no picture": {"txt": "a cat"},
            "empty picture": {"jpg": b"", "txt": "a cat"},
            "no text": {"jpg": b"1"},
            "empty text": {"jpg": b"1", "txt": " "},
            "odd text": {"jpg": b"1", "txt": b"caf\xe9"},
            "long text": {"jpg": b"1", "txt": "x" * 101},
        },
        tmp_path / "a.tar",
    )
    made = stream(tar_pool(path, limits=Input(max_text_bytes=100)))

    [pair] = made.epoch(0)

    assert (pair.reference.key, pair.reference.group, pair.text) == ("good", "7", "a cat")
    reasons = ("missing_image", "empty_image", "missing_text", "empty_text", "text_not_utf8", "text_too_long")
    assert made.survey().refused == Counter(reasons)


def test_a_tar_that_was_cut_off_gives_what_is_whole_and_counts_the_rest(tmp_path: Path):
    whole = (REAL / "photos.tar").read_bytes()
    path = tmp_path / "photos.tar"
    path.write_bytes(whole[: len(whole) // 2])

    survey = stream(tar_pool(path)).survey()

    samples = [sample for sample in read_shard(find_shards(path)[0], LIMITS) if sample.status is Status.OK]
    assert survey.pictures == (len([sample for sample in samples if sample.web_text]),)
    assert survey.refused["damaged_shard"] == 1


WEB = {"source": "web", "text": "found "}
SYNTHETIC = {"source": "synthetic", "text": "written", "itm": 0.9}


def texts_of(tar_of: TarOf, path: Path, metadata: str, limits: Input = LIMITS) -> tuple[Text, ...]:
    tar_of({"a": {"jpg": b"1", "txt": "beside", "json": metadata}}, path)
    [one] = tar_pool(path, "clean", limits).read(0, Counter())
    return one.texts


def test_kept_texts_of_an_export_are_the_texts(tar_of: TarOf, tmp_path: Path):
    texts = texts_of(tar_of, tmp_path / "a.tar", kept(SYNTHETIC, WEB))

    assert texts == (Text("synthetic", "written"), Text("web", "found"))


def test_kept_texts_need_no_text_beside_them(tar_of: TarOf, tmp_path: Path):
    tar_of({"a": {"jpg": b"1", "json": kept(WEB)}}, tmp_path / "a.tar")
    refused: Counter[str] = Counter()

    [one] = tar_pool(tmp_path / "a.tar").read(0, refused)

    assert (one.texts, refused) == ((Text("web", "found"),), Counter())


@pytest.mark.parametrize(
    "captions",
    [
        [],
        None,
        "found",
        {"source": "web", "text": "found"},
        ["found"],
        [WEB, None],
        [WEB, {"source": "clean", "text": "x"}],
        [WEB, {"source": ["web"], "text": "x"}],
        [WEB, {"source": "web", "text": 5}],
        [WEB, {"source": "web", "text": "  "}],
        [WEB, {"source": "web"}],
        [WEB, {"source": "web", "text": "\ud800"}],
        [WEB, {"source": "web", "text": "x" * 101}],
    ],
)
def test_where_a_stranger_writes_other_things_the_text_beside_the_picture_counts(
    captions: Any, tar_of: TarOf, tmp_path: Path
):
    metadata = json.dumps({"capfilt": {"captions": captions}})

    texts = texts_of(tar_of, tmp_path / "a.tar", metadata, Input(max_text_bytes=100))

    assert texts == (Text("clean", "beside"),)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just("web"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["capfilt", "captions", "source", "text", "group"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(own=anything, group=anything)
def test_whatever_the_metadata_holds_a_pair_has_a_text(
    own: Any, group: Any, tar_of: TarOf, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.getbasetemp() / "anything.tar"
    tar_of({"a": {"jpg": b"1", "txt": "beside", "json": json.dumps({"capfilt": own, "group": group})}}, path)

    [pair] = stream(tar_pool(path), apart={0}).epoch(0)

    assert pair.text.strip()
    assert pair.reference.group is None or isinstance(group, (str, int))


@pytest.mark.parametrize(
    ("group", "read"), [(7, "7"), ("7", "7"), ("", None), (1.5, None), ([1], None), ("\ud800", "\\ud800")]
)
def test_a_group_is_a_text_or_a_whole_number(group: Any, read: Any, tar_of: TarOf, tmp_path: Path):
    tar_of({"a": {"jpg": b"1", "txt": "x", "json": json.dumps({"group": group})}}, tmp_path / "a.tar")

    [one] = tar_pool(tmp_path / "a.tar").read(0, Counter())

    assert one.group == read
    assert stream(tar_pool(tmp_path / "a.tar"), apart={0}).survey().pairs == 1


def test_the_facts_of_a_pool_are_its_files():
    paths = [REAL / "clean.tar", REAL / "noisy.tar"]

    facts = tar_pool(paths).facts

    assert [(fact["name"], fact["bytes"]) for fact in facts] == [(p.stem, p.stat().st_size) for p in paths]
    assert all(len(fact["digest"]) == 64 for fact in facts)


def test_a_pass_may_be_left_half_read():
    made = stream(pool(*[50] * 4), shuffle_buffer=10)
    whole = keys(made.epoch(0))

    assert keys(islice(made.epoch(0), 120, None)) == whole[120:]
