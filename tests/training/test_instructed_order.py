"""Which example stands in which row, and which examples are held out; no picture is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from capfilt.data.instructions.example import Example
from capfilt.data.instructions.pictures import PictureFiles, digests_of
from capfilt.data.instructions.templates import Template
from capfilt.draws import permutation
from capfilt.settings import Clean
from capfilt.training.instructed import Mixture, Task, split_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

KEY = (7, "captioner", 0)
ASKS = (Template("the {question}"),)


# -- which example stands in which row


sizes_and_weights = st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 1)), min_size=1, max_size=4)


@given(sizes_and_weights, st.integers(0, 3))
def test_every_pass_has_the_share_of_each_task(mixed: list[tuple[int, float]], number: int) -> None:
    sizes, weights = [size for size, _ in mixed], [weight for _, weight in mixed]
    mixture = Mixture(sizes, weights)
    rows = range(number * len(mixture), (number + 1) * len(mixture))
    met = Counter(mixture.at(row, *KEY)[0] for row in rows)
    for task, weight in enumerate(weights):
        assert abs(met[task] - max(1, sum(sizes) * weight / sum(weights))) <= 0.5 + 1e-9


@given(sizes_and_weights)
def test_no_example_is_met_again_before_all_of_its_task_are(mixed: list[tuple[int, float]]) -> None:
    mixture = Mixture([size for size, _ in mixed], [weight for _, weight in mixed])
    met: dict[int, Counter[int]] = {}
    passes = 4
    for row in range(passes * len(mixture)):
        task, example = mixture.at(row, *KEY)
        met.setdefault(task, Counter())[example] += 1
    for task, (size, _) in enumerate(mixed):
        assert set(met[task]) <= set(range(size))
        # Within a pass of the mixture the task's rows come in any order, so at its end all is even.
        counts = [met[task][example] for example in range(size)]
        assert max(counts) - min(counts) <= 1


def test_passes_and_phases_have_orders_of_their_own() -> None:
    mixture = Mixture([50, 50], [1.0, 3.0])
    first, second = ([mixture.at(row + start, *KEY) for row in range(100)] for start in (0, 100))
    assert first != second
    assert first != [mixture.at(row, *KEY[:2], 1) for row in range(100)]
    assert first == [Mixture([50, 50], [2.0, 6.0]).at(row, *KEY) for row in range(100)]
    tasks = [task for task, _ in first]
    assert tasks != sorted(tasks)


# -- held out by pictures


def numbered(tasks: list[Task], name: Callable[[Path], str]) -> list[NDArray[np.int64]]:
    """Number the pictures of all examples by what names them, in its order."""
    names = sorted({name(example.image) for task in tasks for example in task.examples})
    return [
        np.array([names.index(name(example.image)) for example in task.examples], np.int64) for task in tasks
    ]


def outside_of(names: Mapping[Path, str], tasks: list[Task], settings: Clean, seed: int) -> set[str]:
    """Return the names that are held out, by a set that is filled one after another."""
    every = Counter(names[example.image] for task in tasks for example in task.examples)
    known = sorted(every)
    wanted = min(settings.held_out_most, max(1, round(sum(every.values()) * settings.held_out)))
    outside: set[str] = set()
    for number in permutation(len(known), "held out instructions", seed)[: len(known) - 1]:
        if sum(every[name] for name in outside) >= wanted:
            break
        outside.add(known[number])
    return outside


shown_in_turn = st.lists(st.lists(st.integers(0, 12), max_size=15), min_size=1, max_size=3)


@given(shown_in_turn, st.floats(0.01, 0.95), st.integers(1, 8), st.integers(0, 5))
def test_what_is_held_out_is_what_a_set_of_pictures_filled_one_by_one_holds(
    shown: list[list[int]], share: float, most: int, seed: int
) -> None:
    tasks = [
        Task(str(place), examples_of(str(place), [Path(f"{one}.png") for one in pictures]), ASKS)
        for place, pictures in enumerate(shown)
    ]
    named = {Path(f"{one}.png"): f"{one % 10:x}" for one in range(13)}  # of some there are two files
    settings = Clean(held_out=share, held_out_most=most)
    sides = split_tasks(tasks, settings, numbered(tasks, named.__getitem__), seed=seed)
    outside = outside_of(named, tasks, settings, seed)
    for side, is_outside in zip(sides, (False, True), strict=True):
        expected = [[one for one in t.examples if (named[one.image] in outside) == is_outside] for t in tasks]
        assert [list(task.examples) for task in side] == expected


def examples_of(name: str, pictures: list[Path], each: int = 1) -> list[Example]:
    return [
        Example(name, f"{number}.{turn}", picture, {"question": "cat"}, ("dogs",), ())
        for number, picture in enumerate(pictures)
        for turn in range(each)
    ]


def test_a_picture_is_trained_on_or_held_out_whatever_is_asked_of_it(tmp_path: Path) -> None:
    shared = [tmp_path / f"{number}.png" for number in range(20)]
    tasks = [
        Task("questions", examples_of("questions", shared, 3), ASKS),
        Task("captions", examples_of("captions", shared[:10]), ASKS),
    ]
    named = numbered(tasks, lambda picture: picture.name)
    train, held_out = split_tasks(tasks, Clean(held_out=0.2), named, seed=3)
    sides = [{example.image for task in side for example in task.examples} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(shared)
    found = sum(len(task.examples) for task in held_out)
    assert 14 <= found < 14 + 4  # 20% of 70; the last picture may have four examples
    assert [task.name for task in train] == [task.name for task in held_out] == ["questions", "captions"]
    assert split_tasks(tasks, Clean(held_out=0.2), named, seed=3) == (train, held_out)
    assert split_tasks(tasks, Clean(held_out=0.2), named, seed=4) != (train, held_out)


def test_of_two_pictures_one_is_held_out_and_a_single_one_is_not(tmp_path: Path) -> None:
    for pictures, expected in ((2, 1), (1, 0)):
        tasks = [Task("some", examples_of("some", [tmp_path / str(n) for n in range(pictures)]), ASKS)]
        named = numbered(tasks, lambda picture: picture.name)
        train, held_out = split_tasks(tasks, Clean(held_out=0.9), named, seed=0)
        assert len(held_out[0].examples) == expected
        assert len(train[0].examples) == 1


def numbered_by_bytes(tasks: list[Task]) -> list[NDArray[np.int64]]:
    """Number the pictures of all examples by the digests of their files."""
    files = PictureFiles()
    paths = [example.image for task in tasks for example in files.noting(task.examples)]
    firsts, of_row = files.numbered()
    digests = digests_of(len(firsts), lambda file: paths[firsts[file]], threads=2)
    return np.split(digests.numbers[of_row], np.cumsum([len(task.examples) for task in tasks])[:-1])


def test_the_same_picture_in_two_folders_is_on_one_side_wherever_they_lie(tmp_path: Path) -> None:
    held_out = []
    for place, further in (("here", "captions"), ("moved/to", "a")):
        folders = [tmp_path / place / name for name in ("questions", further)]
        for number, folder in enumerate(folders):
            folder.mkdir(parents=True)
            for picture in range(12):
                (folder / f"{picture + number}.png").write_bytes(b"picture %d" % picture)
        tasks = [
            Task(name, examples_of(name, sorted(folder.iterdir())), ASKS)
            for name, folder in zip(("questions", "captions"), folders, strict=True)
        ]
        pictures = numbered_by_bytes(tasks)
        sides = split_tasks(tasks, Clean(held_out=0.3), pictures, seed=1)
        seen = [{one.image.read_bytes() for task in side for one in task.examples} for side in sides]
        assert not seen[0] & seen[1]
        assert len(seen[0] | seen[1]) == len(set(np.concatenate(pictures).tolist())) == 12
        held_out.append(seen[1])
    assert held_out[0] == held_out[1]
