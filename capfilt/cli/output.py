"""What every command prints the same way: its next step, its JSON, its errors.

JSON is ASCII: lossless for a program, and nothing in a stranger's text can move a terminal's cursor.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from capfilt.reports.text import visible
from capfilt.shell import shell_line

if TYPE_CHECKING:
    from capfilt.errors import CapfiltError

TYPED = "capfilt.typed"
"""Where a context keeps the words that were typed."""


def typed_command(ctx: Any) -> list[str]:
    """Return the words that were typed, beginning with capfilt."""
    words: list[str] = ctx.meta.get(TYPED, ["capfilt"])
    return words


def next_step(*words: object) -> str:
    """Return a command, quoted for a shell, ready to paste."""
    return shell_line(["capfilt", *words])


def print_next(command: str) -> None:
    """Print the next command to type: the last line of a command that is done."""
    if command:
        print(command)


def print_line(text: str) -> None:
    """Print one line; a name in it may be a stranger's."""
    print(visible(text))


def print_json(value: Any) -> None:
    """Print one value as JSON."""
    print(json.dumps(value, indent=1, default=str))


def print_error(error: CapfiltError) -> None:
    """Print what is wrong and how to mend it; either may quote a stranger's file."""
    for title, text in (("error: ", error.what), ("  fix: ", error.fix)):
        lines = [visible(line) for line in text.split("\n")]
        print(title + "\n".join(lines), file=sys.stderr)
