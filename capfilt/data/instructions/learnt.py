"""What a model learnt of instruction data, so that an evaluation knows what it measures.

A training records on the card which files it read and which examples it held out. The same files, under
whatever name, are then measured by those examples alone, and no picture is read to find them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from capfilt.data.instructions.example import Example
    from capfilt.data.instructions.registry import Dataset


class Learnt(StrEnum):
    """Whether a model was trained on examples."""

    NO = "no"
    """No training is known to have read them."""
    HELD_OUT = "held_out"
    """Its training read their files and held these examples out."""
    YES = "yes"
    """It was trained on them."""
    PERHAPS = "perhaps"
    """It was trained on a data set of this name, of other files or of files that nobody recorded."""


def record_of(datasets: Sequence[Dataset], held_out: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Return what a training's card says of its data sets, by name; `held_out` are ids of examples."""
    return {
        one.name: {
            "annotations": _digests(one.annotations),
            "split": one.split,
            "held_out": sorted(set(held_out.get(one.name, ()))),
        }
        for one in datasets
    }


@dataclass(frozen=True)
class Trainings:
    """The trainings on instruction data that a model and those that it started from went through."""

    records: tuple[Mapping[str, Any], ...] = ()
    """By data set, as `record_of` gives them."""
    names: frozenset[str] = frozenset()
    """Data sets that were trained on."""

    @classmethod
    def on_card(cls, training: Mapping[str, Any]) -> Trainings:
        """Return the trainings that a card tells of; of an old one the names of data sets alone."""
        records = tuple(training.get("instructions", ()))
        names = {name for one in records for name in one}
        return cls(records, frozenset(names | (training.get("templates") or {}).keys()))

    def unlearnt(self, dataset: Dataset, examples: Sequence[Example]) -> tuple[Sequence[Example], Learnt]:
        """Return the examples of a data set that no training learnt from, and what they are to the model.

        Where none was held out all are returned, as what was learnt.
        """
        if not self.names:
            return examples, Learnt.NO
        files = _digests(dataset.annotations)
        held_out: list[set[str]] = []
        for record in self.records:
            same = [row for row in record.values() if _is_same(row, files, dataset.split)]
            if same:
                held_out.append({name for row in same for name in row["held_out"]})
        if not held_out:
            return examples, Learnt.PERHAPS if dataset.name in self.names else Learnt.NO
        left = [one for one in examples if all(one.id in names for names in held_out)]
        return (left, Learnt.HELD_OUT) if left else (examples, Learnt.YES)


def _is_same(row: Mapping[str, Any], files: list[str], split: str | None) -> bool:
    is_same_split = split is None or row["split"] in (None, split)
    return bool(files) and row["annotations"] == files and is_same_split


def _digests(files: Iterable[Path]) -> list[str]:
    found = []
    for path in files:
        try:
            with path.open("rb") as stream:
                found.append(hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError as error:
            raise CapfiltError(
                f"{path} cannot be read: {error.strerror}", fix="name a file that is there"
            ) from error
    return found
