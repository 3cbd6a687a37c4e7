"""Commands as text that a shell takes back word for word, and that a terminal obeys in nothing.

A folder may be named by a stranger. What a terminal would act upon, or a reader would not see, stands as the
escapes of the shell's $'...', so that a printed command can be looked at and still be copied.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def shell_word(word: object) -> str:
    r"""Return one word, quoted where it must be: as 'a b', or as $'\x1b[2J' for bash, zsh and ksh."""
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"


def shell_line(words: Iterable[object]) -> str:
    """Return a command, ready to paste."""
    return " ".join(map(shell_word, words))


def _escaped(character: str) -> str:
    """Return a character as it stands in $'...'; one that is not to be seen byte by byte, in any locale."""
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    try:
        octets = character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair that is no byte of a file's name
        octets = character.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{octet:02x}" for octet in octets)
