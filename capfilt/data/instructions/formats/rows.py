"""What all formats share: files of JSON as rows, fields of a row, and the pictures that rows name.

Annotation files are strangers' work: a row that is not as its format says raises BadRow and is counted,
while a file that is another kind of file altogether is the user's error and stops the reading.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from capfilt.data.instructions.example import BadRow, Reason
from capfilt.data.instructions.formats.rows_of_json import Rows, is_list, readable
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from capfilt.data.instructions.example import Example

Row = dict[str, Any]
Named = tuple[str, Any]
"""What names a row, for people, and the row itself, or the BadRow that stands for it."""


@dataclass(frozen=True, slots=True)
class Document:
    """An annotation file that was read."""

    path: Path
    value: Any
    """Its JSON; Rows of a list, and of lines of JSON, where a damaged line is a BadRow."""

    def of(self, key: str, kind: type[list[Any]] | type[dict[str, Any]] = list) -> Any:
        """Return what stands under a name of the whole file; a file without it is a CapfiltError."""
        value = self.value.get(key) if isinstance(self.value, dict) else None
        if not isinstance(value, kind):
            raise self.unlike(f"an object with {'a list' if kind is list else 'an object'} under {key!r}")
        return value

    def rows(self) -> Iterable[Any]:
        """Return the rows of a file that is a list; another one is a CapfiltError."""
        if not isinstance(self.value, Rows):
            raise self.unlike("a list of rows")
        return self.value

    def unlike(self, expected: str) -> CapfiltError:
        """Return the error of a file that is not as its format says."""
        return CapfiltError(
            f"{self.path} is not of the format that was named: it is not {expected}",
            fix="give the files in the order of the reader, or name another reader in the data set's row",
        )


@dataclass(frozen=True, slots=True)
class Format:
    """A published format of annotation files."""

    about: str
    """Whose it is, and which data sets use it."""
    files: tuple[str, ...]
    """Its annotation files, in order."""
    rows: Callable[[Sequence[Document], Path], Iterator[Named]]
    """Give the rows of the files, of which those that may be left out may be missing; and of the pictures'
    folder, where the annotations lie in it."""
    examples: Callable[[Row, ImageFolder, str], Iterator[Example]]
    """Give the examples of a row, whose data set is named; or raise BadRow."""
    optional: int = 0
    """How many of the last files may be left out."""
    split: Callable[[Row], str | None] | None = None
    """Say which split a row belongs to: train, val or test; None where a file has one split."""


class ImageFolder:
    """The folder of a data set's pictures."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, *names: str) -> Path:
        """Return the first of these files that is there; names are relative to the folder.

        Raises BadRow for a name that leads out of the folder, and where none is there.
        """
        for name in names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise BadRow("picture_name", repr(name))
            try:
                if (self.root / path).is_file():
                    return self.root / path
            except (OSError, ValueError):
                # A name too long for a file system, or of characters that no file can have.
                continue
        raise BadRow("picture_missing", repr(names[0]))

    def coco(self, number: int, *subsets: str) -> Path:
        """Return a picture of COCO by its number, as COCO names it in 2014 or in 2017.

        `subsets`, such as train2014, are looked at first. The folder holds the pictures or the subsets.
        """
        plain = f"{number:012}.jpg"
        of_2014 = [s for s in (*subsets, "train2014", "val2014", "test2015") if s]
        names = [f"COCO_{subset}_{plain}" for subset in of_2014]
        inside = [f"{subset}/COCO_{subset}_{plain}" for subset in of_2014]
        return self.find(
            *names, plain, *inside, *(f"{s}/{plain}" for s in ("train2017", "val2017", "test2017"))
        )


def read_document(path: Path) -> Document:
    """Read JSON, or lines of JSON from a file named .jsonl; rows are read when they are gone through.

    Raises CapfiltError for a file that is missing, is no UTF-8 or, as a whole, no JSON; of rows then.
    """
    with readable(path) as stream:
        if path.suffix == ".jsonl" or is_list(stream):
            return Document(path, Rows(path))
        return Document(path, json.loads(stream.read()))


def rows_of(documents: Sequence[Document], folder: Path) -> Iterator[Named]:
    """Give the rows of a format whose one file is a list."""
    del folder
    yield from numbered(documents[0].rows())


def numbered(rows: Iterable[Any], name: str = "row") -> Iterator[Named]:
    """Name rows by their number, from 1."""
    return ((f"{name} {number}", row) for number, row in enumerate(rows, start=1))


def object_of(value: Any) -> Row:
    """Return a row; anything else than an object is a BadRow, and one that stands for a row is raised."""
    if isinstance(value, BadRow):
        raise value
    if not isinstance(value, dict):
        raise BadRow("not_a_row")
    return value


def text_of(row: Row, key: str, reason: Reason = "field_missing") -> str:
    """Return a text with single spaces; `reason` is what a missing one is counted as."""
    value = row.get(key)
    if value is None:
        raise BadRow(reason, key)
    return clean(value, key)


def clean(value: Any, key: str) -> str:
    """Return a text with single spaces; anything else than a text with a word is a BadRow."""
    if not _is_text(value):
        raise BadRow("field_wrong", key)
    text = " ".join(value.split())
    if not text:
        raise BadRow("text_empty", key)
    return text


def _is_text(value: Any) -> bool:
    """Whether it is a text that can be written: half of a pair of surrogates stands for no character."""
    return isinstance(value, str) and not any("\ud800" <= sign <= "\udfff" for sign in value)


def number_of(row: Row, key: str, reason: Reason = "field_missing") -> int:
    """Return a whole number, which some files write as a text."""
    value = row.get(key)
    if value is None:
        raise BadRow(reason, key)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRow("field_wrong", key)
    return value


def name_of(row: Row, key: str) -> str:
    """Return what names something: a text, or a number as text."""
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_of(row, key)


def list_of(row: Row, key: str, reason: Reason = "field_missing") -> list[Any]:
    """Return a list that is not empty."""
    value = row.get(key)
    if value is None or value == []:
        raise BadRow(reason, key)
    if not isinstance(value, list):
        raise BadRow("field_wrong", key)
    return value


def texts_of(row: Row, key: str, reason: Reason = "field_missing") -> tuple[str, ...]:
    """Return a list of texts."""
    return tuple(clean(value, key) for value in list_of(row, key, reason))


def kept_text(row: Row, key: str, reason: Reason = "field_missing") -> str:
    """Return a text as it was written, but for its margin: the lines of a long answer are part of it."""
    text_of(row, key, reason)
    return str(row[key]).strip()


def said_by_all(values: list[Any], key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what annotators said that can be learnt, and what all said, of whom some said nothing."""
    if not all(map(_is_text, values)):
        raise BadRow("field_wrong", key)
    everything = tuple(" ".join(value.split()) for value in values)
    something = tuple(answer for answer in everything if answer)
    if not something:
        raise BadRow("no_answer", key)
    return something, everything


def choice_of(row: Row, key: str, count: int) -> int:
    """Return the place of the right one of `count` choices, from 0."""
    place = number_of(row, key, "no_answer")
    if not 0 <= place < count:
        raise BadRow("field_wrong", key)
    return place


def lettered(choices: Sequence[str]) -> str:
    """Write choices as (a) one, (b) two: numbers beyond z."""
    letters = (chr(ord("a") + n) if n < 26 else str(n + 1) for n in range(len(choices)))
    return ", ".join(f"({letter}) {choice}" for letter, choice in zip(letters, choices, strict=True))


def split_named(row: Row, key: str) -> str | None:
    """Return the split that a row names, by one of the three names that splits have here."""
    value = row.get(key)
    return _SPLITS.get(str(value), str(value)) if value is not None else None


_SPLITS = {
    "restval": "train",  # Karpathy and Fei-Fei, 2015: more pictures to train on
    "validation": "val",
    "dev": "val",
}
