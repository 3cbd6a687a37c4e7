"""Conversations about a picture: VisDial and LLaVA-Instruct.

Every turn that is answered is an example of its own, with what was said before as its history.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.data.instructions.example import BadRow, Example
from capfilt.data.instructions.formats.rows import (
    Document,
    Format,
    ImageFolder,
    Row,
    choice_of,
    clean,
    kept_text,
    list_of,
    name_of,
    number_of,
    numbered,
    rows_of,
    text_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from capfilt.data.instructions.example import Part
    from capfilt.data.instructions.formats.rows import Named

IMAGE_MARK = "<image>"
"""Where LLaVA puts its image tokens; the picture goes another way here."""


def _visdial_rows(documents: Sequence[Document], folder: Path) -> Iterator[Named]:
    del folder
    data = Document(documents[0].path, documents[0].of("data", dict))
    texts = {"questions": data.of("questions"), "answers": data.of("answers")}
    split = documents[0].value.get("split")
    for name, row in numbered(data.of("dialogs"), "dialogue"):
        yield name, {**row, **texts, "split": split} if isinstance(row, dict) else row


def _visdial(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    number = number_of(row, "image_id")
    split = row["split"] if isinstance(row["split"], str) else ""
    image = _visdial_image(images, number, split)
    said = [_ended(text_of(row, "caption"), ".")]
    # A training file has a hundred candidates for each of a million turns; nobody ranks them.
    is_ranked = not split.startswith("train")
    for place, turn in enumerate(list_of(row, "dialog", "no_question"), start=1):
        if not isinstance(turn, dict):
            raise BadRow("field_wrong", "dialog")
        question = _ended(_pooled(row, "questions", turn, "question"), "?")
        answer = _pooled(row, "answers", turn, "answer")
        candidates: tuple[str, ...] = ()
        right = None
        if is_ranked and turn.get("answer_options") is not None:
            options = list_of(turn, "answer_options")
            candidates = tuple(_pooled(row, "answers", {"option": option}, "option") for option in options)
            right = choice_of(turn, "gt_index", len(candidates))
        parts: dict[Part, str] = {"question": question, "history": " ".join(said)}
        yield Example(dataset, f"{number}/{place}", image, parts, (answer,), (answer,), candidates, right)
        said.append(f"{question} {_ended(answer, '.')}")


def _visdial_image(images: ImageFolder, number: int, split: str) -> Path:
    if split.startswith("train"):
        return images.coco(number)
    file = f"VisualDialog_{split}_{number:012}.jpg"
    return images.find(file, f"VisualDialog_{split}/{file}")


def _pooled(row: Row, pool: str, turn: Row, key: str) -> str:
    """Return a text by its place in one of the two lists that all dialogues share."""
    texts: list[Any] = row[pool]
    place = number_of(turn, key, "no_answer" if pool == "answers" else "no_question")
    if not 0 <= place < len(texts):
        raise BadRow("field_wrong", key)
    return clean(texts[place], pool)


def _ended(text: str, mark: str) -> str:
    """Return a text that ends as a sentence does: VisDial's do not."""
    return text if text[-1] in ".?!" else text + mark


def _llava(row: Row, images: ImageFolder, dataset: str) -> Iterator[Example]:
    image = images.find(text_of(row, "image", "no_picture"))
    name = name_of(row, "id")
    turns = list_of(row, "conversations", "no_question")
    if not all(isinstance(turn, dict) for turn in turns) or len(turns) % 2:
        raise BadRow("field_wrong", "conversations")
    said: list[str] = []
    for place, (asked, told) in enumerate(zip(turns[::2], turns[1::2], strict=True), start=1):
        if (asked.get("from"), told.get("from")) != ("human", "gpt"):
            raise BadRow("field_wrong", "from")
        asked_text = text_of(asked, "value", "no_question").replace(IMAGE_MARK, " ")
        instruction, output = clean(asked_text, "value"), kept_text(told, "value", "no_answer")
        parts: dict[Part, str] = {"instruction": instruction}
        if said:
            parts["history"] = " ".join(said)
        yield Example(dataset, f"{name}/{place}", image, parts, (output,), (output,))
        said += [_ended(instruction, "."), _ended(output, ".")]


FORMATS = {
    "visdial": Format("VisDial 1.0", ("dialogues",), _visdial_rows, _visdial),
    "llava": Format("LLaVA-Instruct: conversations of human and gpt", ("conversations",), rows_of, _llava),
}
