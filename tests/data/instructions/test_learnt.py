from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from capfilt.data.instructions.example import Example
from capfilt.data.instructions.learnt import Learnt, Trainings, record_of
from capfilt.data.instructions.registry import Dataset

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("a", "[1]"), ("b", "[2]"), ("copy of a", "[1]")):
        (tmp_path / f"{name}.json").write_text(text)
    return tmp_path


def a_dataset(folder: Path, name: str, *files: str, split: str | None = None) -> Dataset:
    paths = tuple(folder / f"{file}.json" for file in files)
    return Dataset(name=name, category="question_answering", annotations=paths, split=split)


def examples(folder: Path, ids: str) -> list[Example]:
    return [Example("any", name, folder / name, {}, ("yes",), ("yes",)) for name in ids]


def trained(*trainings: dict[str, Any]) -> Trainings:
    return Trainings.on_card({"instructions": list(trainings)})


def found(known: Trainings, dataset: Dataset, folder: Path, ids: str = "abcde") -> tuple[str, Learnt]:
    left, learnt = known.unlearnt(dataset, examples(folder, ids))
    return "".join(one.id for one in left), learnt


def test_the_same_files_are_measured_by_what_was_held_out_whatever_their_names(folder: Path) -> None:
    known = trained(record_of([a_dataset(folder, "one", "a")], {"one": ["d", "b", "d"]}))
    assert found(known, a_dataset(folder, "one", "a"), folder) == ("bd", Learnt.HELD_OUT)
    assert found(known, a_dataset(folder, "another", "copy of a"), folder) == ("bd", Learnt.HELD_OUT)
    # Not the same: other contents, one file more. Only the name says that it may be.
    for files in (("b",), ("a", "b"), ()):
        assert found(known, a_dataset(folder, "another", *files), folder) == ("abcde", Learnt.NO)
        assert found(known, a_dataset(folder, "one", *files), folder) == ("abcde", Learnt.PERHAPS)


def test_what_has_no_example_held_out_is_measured_whole_and_called_learnt(folder: Path) -> None:
    known = trained(record_of([a_dataset(folder, "one", "a")], {}))
    assert found(known, a_dataset(folder, "one", "a"), folder) == ("abcde", Learnt.YES)


def test_rows_of_another_split_of_the_same_file_were_not_read(folder: Path) -> None:
    known = trained(record_of([a_dataset(folder, "one", "a", split="train")], {"one": ["b"]}))
    assert found(known, a_dataset(folder, "other", "a", split="val"), folder) == ("abcde", Learnt.NO)
    assert found(known, a_dataset(folder, "other", "a", split="train"), folder) == ("b", Learnt.HELD_OUT)
    assert found(known, a_dataset(folder, "other", "a"), folder) == ("b", Learnt.HELD_OUT)


def test_what_is_learnt_twice_from_one_file_is_held_out_by_every_training_of_it(folder: Path) -> None:
    # Questions from answers and answers from questions, of which each lacks an example that the other has.
    both = [a_dataset(folder, "answers", "a"), a_dataset(folder, "questions", "a")]
    first = record_of(both, {"answers": ["b", "c"], "questions": ["c", "d"]})
    assert found(trained(first), both[0], folder) == ("bcd", Learnt.HELD_OUT)
    # The model that it started from learnt from the same file, and held out others.
    earlier = record_of([a_dataset(folder, "before", "a")], {"before": ["c", "e"]})
    assert found(trained(first, earlier), both[0], folder) == ("c", Learnt.HELD_OUT)


def test_an_old_card_tells_names_alone_and_another_model_s_nothing(folder: Path) -> None:
    old = Trainings.on_card({"templates": {"one": ["{question}"]}, "weights": {"one": 1.0}})
    assert found(old, a_dataset(folder, "one", "a"), folder) == ("abcde", Learnt.PERHAPS)
    assert found(old, a_dataset(folder, "two", "a"), folder) == ("abcde", Learnt.NO)
    assert found(Trainings.on_card({}), a_dataset(folder, "one", "a"), folder) == ("abcde", Learnt.NO)
