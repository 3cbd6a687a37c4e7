"""A data set's files as examples, and what was refused on the way.

What a row lacks costs that row, or that turn of a dialogue and those after it, and is counted with a reason.
What no row can do without stops the reading: files that are not there, a wrong folder of pictures.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from capfilt.data.instructions.example import BadRow, Example, Refused
from capfilt.data.instructions.formats import FORMATS
from capfilt.data.instructions.formats.rows import ImageFolder, object_of, read_document
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from capfilt.data.instructions.example import Reason
    from capfilt.data.instructions.formats.rows import Format
    from capfilt.data.instructions.registry import Dataset


@dataclass(slots=True)
class Reading:
    """What a data set's files hold."""

    examples: list[Example] = field(default_factory=list)
    refused: Counter[Reason] = field(default_factory=Counter)
    """Rows that cannot be used, counted by reason."""
    first: dict[Reason, str] = field(default_factory=dict)
    """Where the first row of each reason is, for people."""


def read_examples(
    dataset: Dataset, annotations: Sequence[Path] | None = None, images: Path | None = None
) -> Reading:
    """Read a data set, from where its row says that it lies, or from the files and the folder that are given.

    Raises CapfiltError where the row names no reader, for files that are missing, too few, too many or of
    another format, for a folder that is missing, and where no row can be used.
    """
    found = Reading()
    found.examples.extend(examples_in(dataset, found, annotations, images))
    return found


def examples_in(
    dataset: Dataset, found: Reading, annotations: Sequence[Path] | None = None, images: Path | None = None
) -> Iterator[Example]:
    """Give the examples of a data set one after another, held nowhere; refused rows are counted in `found`.

    Raises CapfiltError as `read_examples` does: at the end, where no row can be used.
    """
    is_empty = True
    for one in iter_examples(dataset, annotations, images):
        if isinstance(one, Example):
            is_empty = False
            yield one
        else:
            found.refused[one.reason] += 1
            found.first.setdefault(one.reason, one.where)
    if is_empty:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.refused.most_common())
        first = next(iter(found.first.values()), "")
        raise CapfiltError(
            f"data set {dataset.name}: no row can be used"
            + (f": {reasons}; first: {first}" if reasons else ""),
            fix="look at the files, the split and the folder of pictures that its row names",
        )


def iter_examples(
    dataset: Dataset, annotations: Sequence[Path] | None = None, images: Path | None = None
) -> Iterator[Example | Refused]:
    """Give examples and refused rows of a data set, in the order of its files; see `read_examples`."""
    form, files, folder = _given(dataset, annotations, images)
    pictures = ImageFolder(folder)
    documents = [read_document(path) for path in files]
    splits: Counter[str | None] = Counter()
    wanted = 0
    for name, row in form.rows(documents, folder):
        if isinstance(row, dict) and dataset.split is not None and form.split is not None:
            split = form.split(row)
            splits[split] += 1
            if split != dataset.split:
                continue
        wanted += 1
        yield from _of_row(form, name, row, pictures, dataset)
    if splits and not wanted:
        raise CapfiltError(
            f"data set {dataset.name}: no row is of the split {dataset.split}",
            fix=f"name one of {', '.join(sorted(map(str, splits)))} as the split of its row, or none",
        )


def _of_row(
    form: Format, name: str, row: object, pictures: ImageFolder, dataset: Dataset
) -> Iterator[Example | Refused]:
    try:
        for example in form.examples(object_of(row), pictures, dataset.name):
            yield _as_question(example) if dataset.learns == "question" else example
    except BadRow as bad:
        yield Refused(bad.reason, f"{name}: {bad.what}" if bad.what else name)


def _as_question(example: Example) -> Example:
    """Turn an example round: the question is learnt, given the answer that most annotators gave."""
    question = example.parts.get("question")
    if question is None:
        raise BadRow("no_question")
    answer = Counter(example.outputs).most_common(1)[0][0]
    return replace(
        example,
        parts={"answer": answer},
        outputs=(question,),
        answers=(question,),
        candidates=(),
        right=None,
    )


def _given(
    dataset: Dataset, annotations: Sequence[Path] | None, images: Path | None
) -> tuple[Format, list[Path], Path]:
    """Return the format, the files and the folder of a data set, or say what is missing."""
    if dataset.reader is None:
        raise CapfiltError(
            f"data set {dataset.name} needs a reader: none is written for its format",
            fix="write its rows as image, text_input and text_output, and name the reader instructions",
        )
    form = FORMATS[dataset.reader]
    files = list(dataset.annotations if annotations is None else annotations)
    most, least = len(form.files), len(form.files) - form.optional
    if not least <= len(files) <= most:
        wanted = ", ".join(form.files) or "none"
        raise CapfiltError(
            f"data set {dataset.name}: {len(files)} annotation files, and its reader {dataset.reader} takes "
            f"{most if most == least else f'{least} to {most}'} ({wanted})",
            fix="give them as annotations = [...] in its row, in this order",
        )
    folder = dataset.images if images is None else images
    if folder is None or not folder.is_dir():
        raise CapfiltError(
            f"data set {dataset.name}: "
            + ("it has no folder of pictures" if folder is None else f"there is no folder {folder}"),
            fix='give it as images = "FOLDER" in its row',
        )
    if dataset.split is not None and form.split is None:
        raise CapfiltError(
            f"data set {dataset.name}: the files of its reader {dataset.reader} hold one split each",
            fix="take split out of its row, and give the files of that split",
        )
    return form, files, folder
