"""One thing to ask about one picture, with its right answers, whatever data set it is from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Part = Literal["question", "choices", "context", "ocr", "history", "text", "answer", "instruction"]
"""What an example can bring along for a template to name."""

Reason = Literal[
    "not_json",
    "not_a_row",
    "field_missing",
    "field_wrong",
    "text_empty",
    "no_question",
    "no_answer",
    "no_picture",
    "picture_name",
    "picture_missing",
]
"""Why a row cannot be used: no JSON, no object; a field that is not there, of another kind or without a word;
an answer without its question, a question without an answer; a row about no picture, a picture's name that
leads out of its folder, a picture that is not there.
"""


@dataclass(frozen=True, slots=True)
class Example:
    """A picture, what is asked of it, and what is right.

    Texts have single spaces and no margin, but for long answers to learn, which keep their lines.
    """

    dataset: str
    id: str
    """Names it within its data set."""
    image: Path
    parts: Mapping[Part, str]
    """What templates may name."""
    outputs: tuple[str, ...]
    """Texts to learn, one at a time; one that several annotators gave stands there as often."""
    answers: tuple[str, ...]
    """What counts as right where the answer is measured: all captions, or what all annotators said, of whom
    some may have said nothing."""
    candidates: tuple[str, ...] = ()
    """Texts to rank by their likelihood; empty where the answer is free."""
    right: int | None = None
    """Which candidate is right."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that cannot be used."""

    reason: Reason
    where: str
    """The row, and what of it: for people."""


class BadRow(Exception):
    """What a reader raises for a row that it cannot use, or puts in its place."""

    def __init__(self, reason: Reason, what: str = "") -> None:
        super().__init__(reason, what)
        self.reason = reason
        self.what = what
