"""Texts as cells of a CSV file that a spreadsheet shows and does not compute.

A spreadsheet takes a cell that begins with =, +, - or @ for a formula, which can read other cells and call
addresses of the web. An apostrophe before it makes it a text (OWASP, "CSV injection"); so that it can be read
back as it was, a text that begins with an apostrophe gets one more.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_BEGINS_A_FORMULA = frozenset("=+-@\t\r\n\0|%\uff0b\uff0d\uff1d\uff20")
"""Signs of a formula, of white space that programs skip before one, and their full-width forms."""
_APOSTROPHE = "'"


def as_cell(text: str) -> str:
    """Return a text as a cell that no spreadsheet computes."""
    first = text.lstrip()[:1] or text[:1]
    is_risky = first in _BEGINS_A_FORMULA or text[:1] in _BEGINS_A_FORMULA or text[:1] == _APOSTROPHE
    return _APOSTROPHE + text if text and is_risky else text


def from_cell(cell: str) -> str:
    """Return the text of a cell that `as_cell` made; one that a person wrote is left as it is."""
    rest = cell[1:]
    return rest if cell[:1] == _APOSTROPHE and as_cell(rest) != rest else cell


def csv_line(cells: Iterable[object]) -> str:
    """Return one line of CSV, its end with it; a carriage return within a cell ends no line.

    The standard library quotes only the signs of its own line's end, and a program that takes a bare carriage
    return for one would find a cell behind it that nobody made safe.
    """
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\r\n").writerow(cells)
    return file.getvalue().removesuffix("\r\n") + "\n"
