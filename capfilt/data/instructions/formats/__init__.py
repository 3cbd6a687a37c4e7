"""The published formats, by name: what a data set's row can give as its reader.

A format is two functions, from its files to rows and from a row to examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.data.instructions.formats import captions, choices, dialogues, questions

if TYPE_CHECKING:
    from capfilt.data.instructions.formats.rows import Format

FORMATS: dict[str, Format] = {
    **captions.FORMATS,
    **questions.FORMATS,
    **choices.FORMATS,
    **dialogues.FORMATS,
}
