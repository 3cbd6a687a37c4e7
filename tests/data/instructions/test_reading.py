from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capfilt.data.instructions.formats import FORMATS
from capfilt.data.instructions.reading import read_examples
from capfilt.data.instructions.registry import Dataset, read_registry
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Callable

    from capfilt.data.instructions.reading import Reading

    Reads = Callable[..., Reading]

FILES = {
    "coco_captions": ["coco_captions.json"],
    "karpathy": ["karpathy.json"],
    "textcaps": ["textcaps.json", "rosetta_ocr.json"],
    "blip_pairs": ["blip_pairs.json"],
    "instructions": ["instructions.json"],
    "vqa": ["vqa_questions.json", "vqa_annotations.json"],
    "vizwiz": ["vizwiz.json"],
    "gqa": ["gqa.json"],
    "textvqa": ["textvqa.json", "rosetta_ocr.json"],
    "ocr_vqa": ["ocr_vqa.json"],
    "aokvqa": ["aokvqa.json"],
    "aokvqa_open": ["aokvqa.json"],
    "scienceqa": ["scienceqa.json"],
    "vsr": ["vsr.jsonl"],
    "hateful_memes": ["hateful_memes.jsonl"],
    "visdial": ["visdial_val.json"],
    "llava": ["llava.json"],
}
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**30,
    1.5,
    "",
    "..",
    "x\0",
    "y" * 5000,
    [],
    [None],
    {},
    {"id": []},
)


def test_every_format_but_that_of_folders_has_a_fixture() -> None:
    assert FILES.keys() == FORMATS.keys() - {"iconqa"}


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_a_file_is_refused_or_the_users_error_and_never_a_crash(
    data: st.DataObject, fixtures: Path, tmp_path: Path
) -> None:
    reader = data.draw(st.sampled_from(sorted(FILES)))
    broken = data.draw(st.integers(0, len(FILES[reader]) - 1))
    paths = [fixtures / name for name in FILES[reader]]
    if paths[broken].suffix == ".jsonl":
        document: Any = [json.loads(line) for line in paths[broken].read_text().splitlines()[:1]]
    else:
        document = json.loads(paths[broken].read_text())
    document = _damaged(document, data)
    paths[broken] = tmp_path / paths[broken].name
    lines = document if paths[broken].suffix == ".jsonl" and isinstance(document, list) else [document]
    paths[broken].write_text("\n".join(map(json.dumps, lines)))
    dataset = Dataset(name="mine", category="image_captioning", reader=reader)
    try:
        found = read_examples(dataset, paths, _AllPictures(tmp_path / "images"))
    except CapfiltError:
        return
    assert len(found.examples) > 0
    for example in found.examples:
        assert all(example.outputs)
        assert example.right is None or 0 <= example.right < len(example.candidates)
        assert ".." not in example.image.parts


class _AllPictures(Path().__class__):  # type: ignore[misc]
    """A folder in which every picture is there."""

    def is_file(self) -> bool:
        return True

    def is_dir(self) -> bool:
        return True


def _damaged(document: Any, data: st.DataObject) -> Any:
    """Replace or remove one value, at a place that is drawn."""
    if not isinstance(document, (dict, list)) or not document or data.draw(st.integers(0, 5)) == 0:
        return data.draw(st.sampled_from(WRONG))
    if isinstance(document, dict):
        key = data.draw(st.sampled_from(list(document)))
        if data.draw(st.integers(0, 5)) == 0:
            return {name: value for name, value in document.items() if name != key}
        return {**document, key: _damaged(document[key], data)}
    place = data.draw(st.integers(0, len(document) - 1))
    return [*document[:place], _damaged(document[place], data), *document[place + 1 :]]


def test_a_data_set_without_a_reader_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match="msvd_qa needs a reader") as caught:
        read_examples(read_registry().dataset("msvd_qa"), [], tmp_path)
    assert "text_input" in caught.value.fix


@pytest.mark.parametrize(
    ("reader", "files", "what"),
    [
        ("vqa", ["vqa_questions.json"], r"1 annotation files, and its reader vqa takes 2 \(questions, annot"),
        ("textvqa", [], "takes 1 to 2"),
        ("gqa", ["none.json"], "there is no annotation file"),
        ("gqa", ["README.md"], "cannot be read"),
        ("gqa", ["aokvqa.json"], "not an object of questions"),
        ("aokvqa", ["gqa.json"], "not a list of rows"),
        ("vqa", ["vqa_annotations.json", "vqa_questions.json"], "not an object with a list under"),
        ("gqa", ["gqa.json"], "no row can be used: 1 picture_missing, 1 no_answer"),
    ],
)
def test_files_that_cannot_serve_are_named(reads: Reads, reader: str, files: list[str], what: str) -> None:
    with pytest.raises(CapfiltError, match=what) as caught:
        reads(reader, files, [])
    assert caught.value.fix


def test_a_folder_or_a_split_that_is_not_there_is_named(reads: Reads, fixtures: Path, tmp_path: Path) -> None:
    dataset = Dataset(
        name="mine", category="image_captioning", reader="gqa", annotations=(fixtures / "gqa.json",)
    )
    with pytest.raises(CapfiltError, match="has no folder of pictures"):
        read_examples(dataset)
    with pytest.raises(CapfiltError, match="there is no folder"):
        read_examples(dataset, images=tmp_path / "none")
    with pytest.raises(CapfiltError, match="hold one split each"):
        reads("gqa", ["gqa.json"], ["2405722.jpg"], split="train")
    with pytest.raises(CapfiltError, match="no row is of the split val") as caught:
        reads("aokvqa", ["aokvqa.json"], ["000000000009.jpg"], split="val")
    assert "test, train" in caught.value.fix
