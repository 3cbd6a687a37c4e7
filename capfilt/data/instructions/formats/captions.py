"""Captions: COCO's own file, Karpathy's splits, TextCaps, and the pairs of BLIP's released code.

A picture is one example, whose captions are its outputs: a training draws one of them each time.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from capfilt.data.instructions.example import BadRow, Example
from capfilt.data.instructions.formats.rows import (
    Document,
    Format,
    ImageFolder,
    Row,
    clean,
    kept_text,
    list_of,
    name_of,
    numbered,
    object_of,
    rows_of,
    split_named,
    text_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from capfilt.data.instructions.example import Part
    from capfilt.data.instructions.formats.rows import Named


def _captioned(
    dataset: str, name: str, image: Path, captions: tuple[str, ...], parts: dict[Part, str] | None = None
) -> Example:
    if not captions:
        raise BadRow("no_answer", "captions")
    return Example(dataset, name, image, parts or {}, captions, captions)


def _coco_rows(documents: Sequence[Document], folder: Path) -> Iterator[Named]:
    """Give each picture with its captions, then the annotations that are damaged or of no listed picture."""
    del folder
    of_image: defaultdict[str, list[str]] = defaultdict(list)
    lost: list[Named] = []
    for name, annotation in numbered(documents[0].of("annotations"), "annotation"):
        try:
            row = object_of(annotation)
            of_image[name_of(row, "image_id")].append(text_of(row, "caption"))
        except BadRow as bad:
            lost.append((name, bad))
    for name, image in numbered(documents[0].of("images"), "image"):
        is_row = isinstance(image, dict)
        yield name, {**image, "captions": of_image.pop(str(image.get("id")), [])} if is_row else image
    yield from lost
    yield from ((f"captions of {image}", BadRow("no_picture", "not among images")) for image in of_image)


def _coco(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    name = name_of(row, "id")
    file = text_of(row, "file_name")
    subset = file.split("_")[1] if file.startswith("COCO_") and file.count("_") == 2 else ""
    image = images.find(file, *([f"{subset}/{file}"] if subset else []))
    yield _captioned(dataset, name, image, tuple(row["captions"]))


def _karpathy_rows(documents: Sequence[Document], folder: Path) -> Iterator[Named]:
    del folder
    yield from numbered(documents[0].of("images"), "image")


def _karpathy(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    file = text_of(row, "filename")
    within = [f"{row['filepath']}/{file}"] if isinstance(row.get("filepath"), str) else []
    sentences = list_of(row, "sentences", "no_answer")
    captions = tuple(text_of(object_of(sentence), "raw") for sentence in sentences)
    yield _captioned(dataset, name_of(row, "imgid"), images.find(*within, file), captions)


def _textcaps_rows(documents: Sequence[Document], folder: Path) -> Iterator[Named]:
    """Give each picture once, with the captions of its rows and the words that OCR found, where given."""
    del folder
    words = ocr_words(documents[1:])
    pictures: dict[str, Row] = {}
    for name, value in numbered(documents[0].of("data")):
        try:
            row = object_of(value)
            image, caption = name_of(row, "image_id"), text_of(row, "caption_str", "no_answer")
        except BadRow as bad:
            yield name, bad
            continue
        pictures.setdefault(image, {**row, **words.get(image, {}), "captions": []})["captions"].append(
            caption
        )
    yield from ((f"image {name}", picture) for name, picture in pictures.items())


def _textcaps(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    name = name_of(row, "image_id")
    path = [row["image_path"]] if isinstance(row.get("image_path"), str) else []
    image = images.find(f"{name}.jpg", f"train_images/{name}.jpg", f"test_images/{name}.jpg", *path)
    yield _captioned(dataset, name, image, tuple(row["captions"]), ocr_part(row))


def ocr_words(documents: Sequence[Document]) -> dict[str, Row]:
    """Return the words that OCR found in each picture, of TextVQA's file of them, where it is given."""
    if not documents:
        return {}
    found = [row for row in documents[0].of("data") if isinstance(row, dict)]
    return {
        row["image_id"]: {"ocr_tokens": row["ocr_tokens"]}
        for row in found
        if isinstance(row.get("image_id"), str) and isinstance(row.get("ocr_tokens"), list)
    }


def ocr_part(row: Row) -> dict[Part, str]:
    """Return the words that OCR found as a part, or nothing where it found none."""
    tokens = row.get("ocr_tokens")
    words = " ".join(token for token in tokens if isinstance(token, str)) if isinstance(tokens, list) else ""
    return {"ocr": " ".join(words.split())} if words.strip() else {}


def _pair(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    file = text_of(row, "image")
    captions = row.get("caption")
    texts = captions if isinstance(captions, list) else [captions]
    found = tuple(clean(text, "caption") for text in texts if text is not None)
    yield _captioned(dataset, file, images.find(file), found)


def _instruction(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    file, asked = text_of(row, "image"), text_of(row, "text_input", "no_question")
    output = kept_text(row, "text_output", "no_answer")
    parts: dict[Part, str] = {"instruction": asked, "question": asked}
    yield Example(dataset, f"{file}: {asked}", images.find(file), parts, (output,), (output,))


FORMATS = {
    "coco_captions": Format(
        "COCO's captions, and NoCaps's: images and annotations in one JSON", ("captions",), _coco_rows, _coco
    ),
    "karpathy": Format(
        "Karpathy's splits of COCO and Flickr30K",
        ("dataset",),
        _karpathy_rows,
        _karpathy,
        split=lambda row: split_named(row, "split"),
    ),
    "textcaps": Format(
        "TextCaps 0.1, with TextVQA's file of words found by OCR",
        ("captions", "ocr"),
        _textcaps_rows,
        _textcaps,
        optional=1,
        split=lambda row: split_named(row, "set_name"),
    ),
    "blip_pairs": Format(
        "BLIP's released code: a list of image and caption, by which its filtered web pairs are given too",
        ("pairs",),
        rows_of,
        _pair,
    ),
    "instructions": Format(
        "LAVIS's instruction tuning: image, text_input and text_output; what any data can be written as",
        ("instructions",),
        rows_of,
        _instruction,
    ),
}
