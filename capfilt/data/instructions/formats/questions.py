"""Questions with open answers: VQA's two files, GQA, VizWiz, TextVQA, OCR-VQA.

All annotators' answers are outputs, as often as they were given, so that a training meets them by their
votes. An annotator who said nothing still counts where an answer is measured.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from capfilt.data.instructions.example import BadRow, Example
from capfilt.data.instructions.formats.captions import ocr_part, ocr_words
from capfilt.data.instructions.formats.rows import (
    Document,
    Format,
    ImageFolder,
    Row,
    clean,
    list_of,
    name_of,
    number_of,
    numbered,
    rows_of,
    said_by_all,
    split_named,
    text_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from capfilt.data.instructions.formats.rows import Named


def _vqa_rows(documents: Sequence[Document], folder: Path) -> Iterator[Named]:
    """Give each question with its annotation; what is left of the annotations are rows without a question."""
    del folder
    questions, annotations = documents
    subset = questions.value.get("data_subtype") if isinstance(questions.value, dict) else None
    answers: dict[str, Any] = {}
    nameless = 0
    for annotation in annotations.of("annotations"):
        name = annotation.get("question_id") if isinstance(annotation, dict) else None
        if isinstance(name, (int, str)):
            answers[str(name)] = annotation
        else:
            nameless += 1
    for name, question in numbered(questions.of("questions"), "question"):
        if isinstance(question, dict):
            annotation = answers.pop(str(question.get("question_id")), {})
            yield name, {"subset": subset, **question, "answers": annotation.get("answers")}
        else:
            yield name, question
    yield from ((f"annotation of question {name}", BadRow("no_question")) for name in answers)
    yield from (("annotation", BadRow("field_missing", "question_id")) for _ in range(nameless))


def _vqa(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    question = text_of(row, "question", "no_question")
    outputs, answers = _answers(row)
    subset = row["subset"] if isinstance(row["subset"], str) else ""
    image = images.coco(number_of(row, "image_id"), subset)
    yield Example(dataset, name_of(row, "question_id"), image, {"question": question}, outputs, answers)


def _answers(row: Row) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what annotators said, to learn and to measure by: each is an object with an `answer`."""
    given = list_of(row, "answers", "no_answer")
    if not all(isinstance(answer, dict) for answer in given):
        raise BadRow("field_wrong", "answers")
    return said_by_all([answer.get("answer") for answer in given], "answer")


def _vizwiz(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    file, question = text_of(row, "image"), text_of(row, "question", "no_question")
    outputs, answers = _answers(row)
    subset = file.split("_")[1] if file.startswith("VizWiz_") else ""
    image = images.find(file, *([f"{subset}/{file}"] if subset else []))
    yield Example(dataset, file, image, {"question": question}, outputs, answers)


def _gqa_rows(documents: Sequence[Document], folder: Path) -> Iterator[Named]:
    del folder
    if not isinstance(documents[0].value, dict):
        raise documents[0].unlike("an object of questions by their number")
    for name, row in documents[0].value.items():
        yield f"question {name}", {**row, "name": name} if isinstance(row, dict) else row


def _gqa(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    question, answer = text_of(row, "question", "no_question"), text_of(row, "answer", "no_answer")
    number = name_of(row, "imageId")
    image = images.find(f"{number}.jpg", f"images/{number}.jpg")
    yield Example(dataset, row["name"], image, {"question": question}, (answer,), (answer,))


def _textvqa_rows(documents: Sequence[Document], folder: Path) -> Iterator[Named]:
    del folder
    words = ocr_words(documents[1:])
    for name, row in numbered(documents[0].of("data")):
        found = words.get(str(row.get("image_id")), {}) if isinstance(row, dict) else {}
        yield name, {**row, **found} if isinstance(row, dict) else row


def _textvqa(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    question = text_of(row, "question", "no_question")
    outputs, answers = said_by_all(list_of(row, "answers", "no_answer"), "answers")
    name = name_of(row, "image_id")
    image = images.find(f"{name}.jpg", f"train_images/{name}.jpg", f"test_images/{name}.jpg")
    parts = {"question": question, **ocr_part(row)}
    yield Example(dataset, name_of(row, "question_id"), image, parts, outputs, answers)


def _ocr_vqa_rows(documents: Sequence[Document], folder: Path) -> Iterator[Named]:
    """Give each question of each book as a row of its own, so that a damaged one costs no other."""
    del folder
    if not isinstance(documents[0].value, dict):
        raise documents[0].unlike("an object of books by their number")
    for book, row in documents[0].value.items():
        questions, answers = (
            row.get(key) if isinstance(row, dict) else None for key in ("questions", "answers")
        )
        if not isinstance(questions, list) or not isinstance(answers, list) or len(questions) != len(answers):
            yield (
                f"book {book}",
                BadRow("field_wrong", "questions and answers") if isinstance(row, dict) else row,
            )
            continue
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1):
            one = {**row, "book": book, "number": number, "question": question, "answer": answer}
            yield f"book {book}, question {number}", one


def _ocr_vqa(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    question = clean(row["question"], "questions")
    answer = clean(row["answer"], "answers")
    url = row.get("imageURL")
    kind = PurePosixPath(url).suffix if isinstance(url, str) else ""
    image = images.find(f"{row['book']}.jpg", *([f"{row['book']}{kind}"] if kind.isascii() and kind else []))
    parts = {"question": question, **ocr_part(row)}
    yield Example(dataset, f"{row['book']}/{row['number']}", image, parts, (answer,), (answer,))


def _ocr_vqa_split(row: Row) -> str | None:
    value = row.get("split")
    return {1: "train", 2: "val", 3: "test"}.get(value) if isinstance(value, int) else None


FORMATS = {
    "vqa": Format(
        "VQA's questions and annotations, those of VQAv2 and of OK-VQA",
        ("questions", "annotations"),
        _vqa_rows,
        _vqa,
    ),
    "vizwiz": Format("VizWiz-VQA: a list of picture, question and ten answers", ("vqa",), rows_of, _vizwiz),
    "gqa": Format("GQA's questions, by their numbers", ("questions",), _gqa_rows, _gqa),
    "textvqa": Format(
        "TextVQA 0.5, with its file of words found by OCR",
        ("questions", "ocr"),
        _textvqa_rows,
        _textvqa,
        optional=1,
        split=lambda row: split_named(row, "set_name"),
    ),
    "ocr_vqa": Format(
        "OCR-VQA: books with questions about their covers",
        ("dataset",),
        _ocr_vqa_rows,
        _ocr_vqa,
        split=_ocr_vqa_split,
    ),
}
