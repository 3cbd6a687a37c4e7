from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.canonical import digest_of
from capfilt.data.instructions.kept import KeptSet, keep_sets, open_sets
from capfilt.data.instructions.reading import read_examples
from capfilt.data.instructions.registry import Dataset
from capfilt.errors import CapfiltError

pictures = st.lists(st.integers(0, 5), min_size=1, max_size=6)
"""What each picture of a folder shows, of which some may show the same."""
questions = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["what?", "who?", "", "w\ud800"]), st.text(max_size=3)),
    max_size=8,
)


def dataset_of(folder: Path, name: str, rows: list[dict[str, Any]], **row: Any) -> Dataset:
    """Write the rows of a data set of pictures and questions."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps(rows))
    given: dict[str, Any] = {"reader": "instructions", "category": "question_answering", **row}
    return Dataset(name=name, annotations=(file,), images=folder / name, **given)


def small(folder: Path, name: str = "mine", shown: tuple[int, ...] = (0, 1, 2, 1)) -> Dataset:
    (folder / name).mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(shown):
        (folder / name / f"{number}.png").write_bytes(b"picture %d" % one)
    rows = [
        {"image": f"{number}.png", "text_input": "what?", "text_output": f"a {number}"}
        for number in range(len(shown) + 1)
    ]
    return dataset_of(folder, name, rows)


def kept(folder: Path, datasets: list[Dataset], threads: int = 0) -> list[KeptSet]:
    keep_sets(folder, datasets, threads=threads)
    return open_sets(folder, datasets)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@settings(max_examples=25)
@given(st.lists(st.tuples(pictures, questions), min_size=1, max_size=3))
def test_what_is_kept_is_what_was_read_with_the_digests_of_its_pictures(
    sets: list[tuple[list[int], list[tuple[int, str, str]]]],
) -> None:
    with TemporaryDirectory() as path:
        folder, datasets = Path(path), []
        for number, (shown, asked) in enumerate(sets):
            one = small(folder, f"set{number}", tuple(shown))
            rows = [{"image": f"{n}.png", "text_input": q, "text_output": a} for n, q, a in asked]
            rows += json.loads(one.annotations[0].read_text())
            datasets.append(dataset_of(folder, one.name, rows))
        read = [read_examples(one) for one in datasets]
        every = [digest(one.image) for reading in read for one in reading.examples]
        found = kept(folder / "kept", datasets)
        for here, reading in zip(found, read, strict=True):
            assert list(here.examples) == reading.examples
            assert here.refused == reading.refused
            assert here.digest == digest_of(
                [
                    [one.id, digest(one.image), sorted(one.parts.items()), list(one.outputs)]
                    for one in reading.examples
                ]
            )
            known = [sorted(set(every)).index(digest(one.image)) for one in reading.examples]
            assert here.pictures.tolist() == known


def test_what_is_there_is_not_read_again(tmp_path: Path) -> None:
    datasets = [small(tmp_path, "one"), small(tmp_path, "two")]
    before = kept(tmp_path / "kept", datasets, threads=2)
    picture = tmp_path / "two" / "0.png"
    status = picture.stat()
    picture.write_bytes(b"PICTURE 0")
    os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if it were the same
    (tmp_path / "one" / "4.png").write_bytes(b"picture 9")  # it was missing
    again = kept(tmp_path / "kept", datasets, threads=2)
    assert [one.digest for one in again] == [one.digest for one in before]
    assert [list(one.examples) for one in again] == [list(one.examples) for one in before]
    assert [one.refused for one in again] == [{"picture_missing": 1}] * 2


def test_other_pictures_other_texts_and_other_rows_of_the_registry_are_read_anew(tmp_path: Path) -> None:
    dataset, folder = small(tmp_path), tmp_path / "kept"
    found = [kept(folder, [dataset])[0].digest]
    assert kept(folder, [dataset.model_copy(update={"correction": 2.0})])[0].digest == found[0]
    picture = tmp_path / "mine" / "0.png"
    picture.write_bytes(b"another picture")
    found.append(kept(folder, [dataset])[0].digest)
    picture.unlink()
    found.append(kept(folder, [dataset])[0].digest)
    dataset.annotations[0].write_text(dataset.annotations[0].read_text().replace("what?", "who?"))
    one = kept(folder, [dataset])[0]
    assert {example.parts["question"] for example in one.examples} == {"who?"}
    found.append(one.digest)
    found.append(kept(folder, [dataset.model_copy(update={"learns": "question"})])[0].digest)
    assert len(set(found)) == 5
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_problems_that_lie_among_their_pictures_are_read_anew(tmp_path: Path) -> None:
    problem = tmp_path / "icons" / "1"
    problem.mkdir(parents=True)
    (problem / "image.png").write_bytes(b"picture")
    row: dict[str, Any] = {
        "question": "which?",
        "choices": ["a", "b"],
        "answer": 0,
        "ques_type": "choose_txt",
    }
    dataset = Dataset(name="icons", category="question_answering", reader="iconqa", images=tmp_path / "icons")
    for answer in (0, 1):
        (problem / "data.json").write_text(json.dumps({**row, "answer": answer}))
        assert kept(tmp_path / "kept", [dataset])[0].examples[0].right == answer


def test_a_folder_of_other_sets_or_of_none_is_refused(tmp_path: Path) -> None:
    one, two = small(tmp_path, "one"), small(tmp_path, "two")
    with pytest.raises(CapfiltError, match="does not hold the data sets") as caught:
        open_sets(tmp_path / "kept", [one])
    assert "disk that they share" in caught.value.fix
    keep_sets(tmp_path / "kept", [one])
    with pytest.raises(CapfiltError, match="does not hold the data sets"):
        open_sets(tmp_path / "kept", [one, two])


def test_nothing_is_kept_of_files_that_cannot_be_read(tmp_path: Path) -> None:
    good, bad = small(tmp_path, "good"), small(tmp_path, "bad")
    bad.annotations[0].unlink()
    with pytest.raises(CapfiltError, match="there is no annotation file"):
        keep_sets(tmp_path / "kept", [good, bad])
    bad.annotations[0].write_text("[{}]")
    with pytest.raises(CapfiltError, match="no row can be used: 1 field_missing"):
        keep_sets(tmp_path / "kept", [good, bad])
    with pytest.raises(CapfiltError, match="has no folder of pictures"):
        keep_sets(tmp_path / "kept", [good.model_copy(update={"images": None})])
    assert not (tmp_path / "kept").exists()
    assert not list(tmp_path.glob(".*"))


KILLED_IN_THE_MIDDLE = """
import sys, time
from pathlib import Path
from capfilt.data.instructions import kept
from capfilt.data.instructions.registry import Dataset

def digests_of(count, path, *, threads):
    print("reading pictures", flush=True)
    time.sleep(600)

kept.digests_of = digests_of
kept.keep_sets(Path(sys.argv[1]), [Dataset.model_validate_json(sys.argv[2])])
"""


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_that_counts(tmp_path: Path) -> None:
    dataset, folder = small(tmp_path), tmp_path / "training" / "instructions"
    before = kept(folder, [dataset])[0].digest
    dataset.annotations[0].write_text(dataset.annotations[0].read_text().replace("what?", "who?"))
    command = [sys.executable, "-c", KILLED_IN_THE_MIDDLE, str(folder), dataset.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reading pictures\n"
        process.send_signal(signal.SIGKILL)
    assert [path.name for path in folder.parent.iterdir()] == [f".partial-instructions.{process.pid}"]
    with pytest.raises(CapfiltError, match="does not hold"):
        open_sets(folder, [dataset])
    after = kept(folder, [dataset])[0]
    assert after.digest != before
    assert {example.parts["question"] for example in after.examples} == {"who?"}
    assert [path.name for path in folder.parent.iterdir()] == ["instructions"]
