"""Text from the web, made safe to show in a terminal.

A caption can hold escape sequences that retitle a window or rewrite what stands above, marks that turn
the direction of reading, and words that look like Rich's markup. What a terminal would obey is shown as
its escape; markup is harmless because no console of ours reads any.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import IO

    from rich.console import Console

_MOST_MARKS = 4
"""Combining marks shown on one character; towers of them run over the lines around."""


def visible(text: str, most: int | None = None) -> str:
    """Return text on one line, with every character that is not to be seen written as its escape.

    These are control characters, marks of direction and of no width, lone surrogates, and characters of
    private use. Spaces of any width become a space. Beyond `most` characters the text is cut and
    ends with three dots.
    """
    shown: list[str] = []
    marks = 0
    for character in text if most is None else text[: most + 1]:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if category == "Zs":
            shown.append(" ")
        elif not character.isprintable() or marks > _MOST_MARKS:
            shown.append(character.encode("unicode_escape").decode("ascii"))
        else:
            shown.append(character)
    line = "".join(shown)
    return line if most is None or len(line) <= most else line[: max(0, most - 3)] + "..."


def terminal(file: IO[str] | None = None, *, stderr: bool = False, width: int | None = None) -> Console:
    """Return a console that prints what it is given: no markup, no emoji codes, no guessed colours."""
    from rich.console import Console

    return Console(file=file, stderr=stderr, width=width, markup=False, emoji=False, highlight=False)
