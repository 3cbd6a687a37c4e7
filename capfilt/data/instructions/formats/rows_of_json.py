"""Rows of a JSON file one after another: a file of web captions holds millions.

A row is decoded when it is met and held nowhere, whether the file is one list or has a line for each row.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from capfilt.data.instructions.example import BadRow
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SPACE = re.compile(r"[ \t\n\r]*")
_CHUNK = 1 << 20
"""Characters that are read at once."""


class Rows:
    """The rows of a file, which is read anew each time they are gone through.

    In a file named .jsonl a damaged line is a BadRow; a damaged list is a CapfiltError when that is met.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[Any]:
        with readable(self._path) as stream:
            # A line ends at a line break alone: JSON may hold what ends one elsewhere, such as U+2028.
            yield from _lines(stream) if self._path.suffix == ".jsonl" else elements(stream)


@contextmanager
def readable(path: Path) -> Iterator[TextIO]:
    """Open a file of JSON; one that is missing, no UTF-8 or no JSON is a CapfiltError."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            yield stream
    except FileNotFoundError as error:
        raise CapfiltError(
            f"there is no annotation file {path}", fix="give the path of the file as it was downloaded"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CapfiltError(
            f"annotation file {path} cannot be read: {error}", fix="download it again, and unpack it"
        ) from error


def is_list(stream: TextIO) -> bool:
    """Return whether a JSON text at whose beginning a stream stands is a list; the stream is there again."""
    found = _Window(stream, 64).peek()
    stream.seek(0)
    return found == "["


def elements(stream: TextIO, chunk: int = _CHUNK) -> Iterator[Any]:
    """Give the elements of a JSON list, reading `chunk` characters at once; ValueError for other text."""
    window = _Window(stream, chunk)
    if window.take() != "[":
        raise ValueError("Expecting a list")
    mark = window.peek()
    count = 0
    while mark != "]":
        try:
            value = window.value()
        except json.JSONDecodeError as error:
            raise ValueError(f"{error.msg} in element {count + 1}") from error
        yield value
        count += 1
        mark = window.take()
        if mark not in (",", "]"):
            raise ValueError(f"Expecting ',' or ']' behind element {count}")
    if not count:
        window.take()
    if window.peek():
        raise ValueError("Extra data behind the list")


class _Window:
    """A part of a text, from where it is read on."""

    def __init__(self, stream: TextIO, chunk: int) -> None:
        self._stream, self._chunk = stream, chunk
        self._text, self._at, self._is_last = "", 0, False
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """Return the next character that is no space; none at the end."""
        while True:
            self._at = self._behind_space(self._at)
            if self._at < len(self._text) or self._is_last:
                return self._text[self._at : self._at + 1]
            self._read_on()

    def take(self) -> str:
        """Return the next character that is no space, and go behind it."""
        found = self.peek()
        self._at += len(found)
        return found

    def value(self) -> Any:
        """Return the next value, and go behind it; JSONDecodeError where there is none."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except ValueError:
                if self._is_last:
                    raise
            else:
                # What goes on beyond the window may belong to it, such as a number's digits.
                place = self._behind_space(end)
                behind = self._text[place : place + 1]
                if behind in (",", "]") or self._is_last:
                    self._at = end
                    return value
            self._read_on()

    def _behind_space(self, place: int) -> int:
        found = _SPACE.match(self._text, place)
        assert found is not None
        return found.end()

    def _read_on(self) -> None:
        left = self._text[self._at :]
        more = self._stream.read(max(self._chunk, len(left)))
        self._text, self._at, self._is_last = left + more, 0, not more


def _lines(stream: TextIO) -> Iterator[Any]:
    for line in stream:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = BadRow("not_json")
        yield row
