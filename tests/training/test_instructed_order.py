"""Which example stands in which row, and which examples are held out; no picture is read."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from capfilt.data.instructions.example import Example
from capfilt.data.instructions.templates import Template
from capfilt.settings import Clean
from capfilt.training.instructed import Mixture, Task, picture_digests, split_tasks

if TYPE_CHECKING:
    from pathlib import Path

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
    named = {picture: picture.name for picture in shared}
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
        examples = examples_of("some", [tmp_path / str(number) for number in range(pictures)])
        train, held_out = split_tasks(
            [Task("some", examples, ASKS)],
            Clean(held_out=0.9),
            {one.image: one.image.name for one in examples},
            seed=0,
        )
        assert len(held_out[0].examples) == expected
        assert len(train[0].examples) == 1


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
        digests = picture_digests(tasks, threads=2)
        sides = split_tasks(tasks, Clean(held_out=0.3), digests, seed=1)
        seen = [{one.image.read_bytes() for task in side for one in task.examples} for side in sides]
        assert not seen[0] & seen[1]
        assert len(seen[0] | seen[1]) == len(set(digests.values())) == 12
        held_out.append(seen[1])
    assert held_out[0] == held_out[1]


def test_a_picture_that_cannot_be_read_is_known_by_its_name(tmp_path: Path) -> None:
    tasks = [Task("some", examples_of("some", [tmp_path / "gone.png"]), ASKS)]
    assert picture_digests(tasks) == {tmp_path / "gone.png": "unreadable gone.png"}
