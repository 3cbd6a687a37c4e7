from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.data.instructions.example import Example
from capfilt.data.instructions.table import MappedExamples, choose, one_of_each_kind, write_table

IMAGES = Path("/folder/of pictures")

any_text = st.text() | st.sampled_from(["a\ud800b", "two\u2028lines", "\x00", "\U0001f600"])
"""What stands in strangers' JSON: lone surrogates and characters that some take for ends of lines, too."""
texts = st.lists(any_text, max_size=3).map(tuple)
names = st.text(st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in (".", "..")
)
examples = st.builds(
    Example,
    st.just("mine"),
    any_text,
    st.lists(names | st.just("bad\udcff"), min_size=1, max_size=2).map(lambda parts: IMAGES.joinpath(*parts)),
    st.dictionaries(st.sampled_from(["question", "history", "ocr"]), any_text),
    texts,
    texts,
    texts,
    st.none() | st.integers(0, 3),
)


def mapped(folder: Path, some: list[Example]) -> MappedExamples:
    write_table(folder / "mine.arrow", some, IMAGES)
    return MappedExamples(folder / "mine.arrow", "mine", IMAGES)


@settings(max_examples=40)
@given(st.lists(examples, max_size=6), st.data())
def test_what_is_written_is_read_by_any_number_and_slice(some: list[Example], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        found = mapped(Path(folder), some)
        assert list(found) == some
        assert [list(one.parts) for one in found] == [list(one.parts) for one in some]
        assert [found[number] for number in range(-len(some), len(some))] == some + some
        part = data.draw(st.slices(len(some)))
        assert list(found[part]) == some[part]
        numbers = data.draw(st.lists(st.sampled_from(range(len(some))), max_size=5)) if some else []
        chosen = choose(found, np.array(numbers, np.int64))
        assert list(chosen) == [some[number] for number in numbers]
        again = np.arange(len(numbers))[::2]
        assert list(choose(chosen, again)) == [some[number] for number in numbers[::2]]
        assert list(chosen) == list(choose(some, np.array(numbers, np.int64)))


@settings(max_examples=40)
@given(st.lists(examples, max_size=6), st.data())
def test_every_combination_of_parts_has_one_example_among_those_that_were_chosen(
    some: list[Example], data: st.DataObject
) -> None:
    numbers = np.array(data.draw(st.lists(st.sampled_from(range(len(some))))) if some else [], np.int64)
    with TemporaryDirectory() as folder:
        for among in (choose(mapped(Path(folder), some), numbers), choose(some, numbers)):
            kinds = [frozenset(one.parts) for one in one_of_each_kind(among)]
            assert len(kinds) == len(set(kinds))
            assert set(kinds) == {frozenset(some[number].parts) for number in numbers}
            assert all(one in some for one in one_of_each_kind(among))


def test_more_rows_than_a_batch_of_the_file_holds_keep_their_numbers(tmp_path: Path) -> None:
    some = [Example("mine", str(n), IMAGES / f"{n}.jpg", {}, ("a cat",), ("a cat",)) for n in range(10_000)]
    found = mapped(tmp_path, some)
    assert len(found) == 10_000
    assert [found[number].id for number in (0, 4095, 4096, 8191, 8192, 9999, -1)] == [
        "0",
        "4095",
        "4096",
        "8191",
        "8192",
        "9999",
        "9999",
    ]
    with pytest.raises(IndexError):
        found[10_000]


def test_a_shell_of_arrow_can_read_the_file(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    one = Example(
        "mine", "7", IMAGES / "a" / "b.jpg", {"question": "what?"}, ("cat",), ("cat", ""), ("cat",), 0
    )
    mapped(tmp_path, [one])
    table = pa.ipc.open_file(pa.OSFile(str(tmp_path / "mine.arrow"))).read_all()
    assert table.to_pylist() == [
        {
            "kind": 0,
            "example": '["7","a/b.jpg",{"question":"what?"},["cat"],["cat",""],["cat"],0]',
        }
    ]
