"""Questions whose answers are given to choose from: A-OKVQA, ScienceQA, IconQA, VSR, Hateful Memes.

The choices are candidates, so that a model may be asked which of them it finds likeliest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.data.instructions.example import BadRow, Example
from capfilt.data.instructions.formats.rows import (
    Document,
    Format,
    ImageFolder,
    Row,
    choice_of,
    lettered,
    list_of,
    name_of,
    number_of,
    read_document,
    rows_of,
    said_by_all,
    split_named,
    text_of,
    texts_of,
)
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from capfilt.data.instructions.example import Part
    from capfilt.data.instructions.formats.rows import Named


def _chosen(
    dataset: str, name: str, image: Path, parts: dict[Part, str], choices: tuple[str, ...], right: int
) -> Example:
    with_choices: dict[Part, str] = {**parts, "choices": lettered(choices)}
    answer = (choices[right],)
    return Example(dataset, name, image, with_choices, answer, answer, choices, right)


def _aokvqa(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    question, choices = text_of(row, "question", "no_question"), texts_of(row, "choices")
    right = choice_of(row, "correct_choice_idx", len(choices))
    image = images.coco(number_of(row, "image_id"))
    yield _chosen(dataset, name_of(row, "question_id"), image, {"question": question}, choices, right)


def _aokvqa_open(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    question = text_of(row, "question", "no_question")
    outputs, answers = said_by_all(list_of(row, "direct_answers", "no_answer"), "direct_answers")
    image = images.coco(number_of(row, "image_id"))
    yield Example(dataset, name_of(row, "question_id"), image, {"question": question}, outputs, answers)


def _scienceqa_rows(documents: Sequence[Document], folder: Path) -> Iterator[Named]:
    del folder
    if not isinstance(documents[0].value, dict):
        raise documents[0].unlike("an object of problems by their number")
    for name, row in documents[0].value.items():
        yield f"problem {name}", {**row, "name": name} if isinstance(row, dict) else row


def _scienceqa(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    question, choices = text_of(row, "question", "no_question"), texts_of(row, "choices")
    file = text_of(row, "image", "no_picture")
    right = choice_of(row, "answer", len(choices))
    parts: dict[Part, str] = {"question": question}
    if isinstance(row.get("hint"), str) and row["hint"].strip():
        parts["context"] = text_of(row, "hint")
    within = f"{row['name']}/{file}"
    image = images.find(f"{row.get('split')}/{within}", within)
    yield _chosen(dataset, row["name"], image, parts, choices, right)


def _iconqa_rows(documents: Sequence[Document], folder: Path) -> Iterator[Named]:
    """Give the problems of a folder such as test/choose_txt: each a folder of data.json and image.png."""
    del documents
    for file in sorted(folder.glob("*/data.json")):
        name = file.parent.name
        try:
            row = read_document(file).value
        except CapfiltError:
            row = BadRow("not_json", file.name)
        yield f"problem {name}", {**row, "name": name} if isinstance(row, dict) else row


def _iconqa(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    if row.get("ques_type") != "choose_txt":
        raise BadRow("field_wrong", "ques_type is not choose_txt")
    question, choices = text_of(row, "question", "no_question"), texts_of(row, "choices")
    right = choice_of(row, "answer", len(choices))
    image = images.find(f"{row['name']}/image.png")
    yield _chosen(dataset, row["name"], image, {"question": question}, choices, right)


def _vsr(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    file, statement = text_of(row, "image"), text_of(row, "caption", "no_question")
    is_true = _label(row)
    image = images.find(file, f"train2017/{file}", f"val2017/{file}")
    parts: dict[Part, str] = {"question": f'Is this true of the picture, yes or no: "{statement}"'}
    # What it is asked for, and the words of the data set's own labels.
    answers = ("yes", "true") if is_true else ("no", "false")
    candidates = ("yes", "no")
    name = f"{file}: {statement}"
    yield Example(dataset, name, image, parts, answers[:1], answers, candidates, 0 if is_true else 1)


def _hateful_memes(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    file, text = text_of(row, "img", "no_picture"), text_of(row, "text")
    is_hateful = _label(row)
    parts: dict[Part, str] = {"question": "Is this meme hateful, yes or no?", "text": text}
    answer = ("yes",) if is_hateful else ("no",)
    yield Example(
        dataset,
        name_of(row, "id"),
        images.find(file),
        parts,
        answer,
        answer,
        ("yes", "no"),
        0 if is_hateful else 1,
    )


def _label(row: Row) -> bool:
    return choice_of(row, "label", 2) == 1


FORMATS = {
    "aokvqa": Format(
        "A-OKVQA, with its four choices",
        ("aokvqa",),
        rows_of,
        _aokvqa,
        split=lambda row: split_named(row, "split"),
    ),
    "aokvqa_open": Format(
        "A-OKVQA, with the ten answers that people gave without the choices",
        ("aokvqa",),
        rows_of,
        _aokvqa_open,
        split=lambda row: split_named(row, "split"),
    ),
    "scienceqa": Format(
        "ScienceQA's problems; those without a picture are counted and left out",
        ("problems",),
        _scienceqa_rows,
        _scienceqa,
        split=lambda row: split_named(row, "split"),
    ),
    "iconqa": Format(
        "IconQA's text choices: no file of its own, a folder for each problem among the pictures",
        (),
        _iconqa_rows,
        _iconqa,
    ),
    "vsr": Format("VSR: lines of picture, statement and whether it is true", ("statements",), rows_of, _vsr),
    "hateful_memes": Format(
        "Hateful Memes: lines of picture, its words and a label; yes is the first candidate",
        ("memes",),
        rows_of,
        _hateful_memes,
    ),
}
