"""Whether a terminal takes pictures, and how: by what it says of itself, and else by asking it.

Where nobody looks, in a pipe, a file or a log, and where nothing is known, no picture is drawn: an escape
sequence that a terminal does not know is pages of letters.
"""

from __future__ import annotations

import os
import re
import select
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from capfilt.reports.inline_images import Box
from capfilt.reports.show_examples import Pictures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TextIO

    from capfilt.provenance.rundir import RunDir
    from capfilt.reports.inline_images import Protocol

ANSWER_S = 0.5
"""How long a terminal may take to say what it is; over a slow line it has no pictures."""

COLUMNS, ROWS = 12, 5
"""Cells of a picture."""

_PRIMARY_ATTRIBUTES = "\x1b[c"
"""DA1, the question that every terminal answers; attribute 4 is sixel graphics."""
_ANSWER = re.compile(rb"\x1b\[\?([\d;]*)c")
_SIXEL = b"4"
_MULTIPLEXERS = ("screen", "tmux")
_GUESSED_CELL = (8, 16)
_LEAST_ROWS = 12
"""Rows of a terminal below which pictures would push everything else out of sight."""


def pictures_of(
    run: RunDir, summary: Mapping[str, Any], out: TextIO, keys: TextIO, environment: Mapping[str, str]
) -> Pictures | None:
    """Return pictures of a summary's examples; None where the terminal takes none, or none can be shown."""
    from capfilt.reports.pictures import small_pictures

    examples = [*summary["examples"], *(summary["against"] or {"examples": []})["examples"]]
    samples = {(row["shard"], row["key"]) for row in examples}
    if not samples or (protocol := protocol_of(out, keys, environment)) is None:
        return None
    box = box_of(out, COLUMNS, ROWS)
    found = small_pictures(run, samples, 2 * max(box.size_px))
    return Pictures(protocol, box, found) if found else None


def protocol_of(out: TextIO, keys: TextIO, environment: Mapping[str, str]) -> Protocol | None:
    """Return how the terminal behind `out` takes pictures; None where it does not, or is none.

    `keys` is where its answers arrive. What is typed there in the meantime would be lost, so that a
    terminal is asked only where its name does not tell.
    """
    kind = environment.get("TERM", "")
    if not (_is_terminal(out) and kind) or kind in ("dumb", "unknown"):
        return None
    if os.get_terminal_size(out.fileno()).lines < _LEAST_ROWS:
        return None
    is_multiplexed = "TMUX" in environment or kind.startswith(_MULTIPLEXERS)
    if not is_multiplexed and (named := _by_name(kind, environment)) is not None:
        return named
    return "sixel" if _is_terminal(keys) and _SIXEL in _attributes(out, keys) else None


def box_of(out: TextIO, columns: int, rows: int) -> Box:
    """Return room for a picture, with the pixels of a cell where the terminal tells them."""
    import fcntl
    import struct
    import termios

    try:
        size = fcntl.ioctl(out.fileno(), termios.TIOCGWINSZ, bytes(8))
    except OSError:
        return Box(columns, rows, *_GUESSED_CELL)
    lines, across, width, height = struct.unpack("HHHH", size)
    if not (lines and across and width // across and height // lines):
        return Box(columns, rows, *_GUESSED_CELL)
    return Box(columns, rows, width // across, height // lines)


def _by_name(kind: str, environment: Mapping[str, str]) -> Protocol | None:
    """Return what a terminal is known for by the name it goes under."""
    program = environment.get("TERM_PROGRAM", "")
    if "KITTY_WINDOW_ID" in environment or kind in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return None


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.isatty(stream.fileno())
    except (OSError, ValueError):  # closed, or not a file of the system's
        return False


def _attributes(out: TextIO, keys: TextIO) -> list[bytes]:
    """Return the abilities that the terminal answers to DA1; none where it is silent or not ours to ask."""
    descriptor = keys.fileno()
    try:
        # A job in the background that changes the terminal is stopped by it.
        if os.tcgetpgrp(descriptor) != os.getpgrp():
            return []
        with _without_echo(descriptor):
            out.write(_PRIMARY_ATTRIBUTES)
            out.flush()
            return _answer(descriptor)
    except OSError:
        return []


def _answer(descriptor: int) -> list[bytes]:
    """Return the numbers behind the first one, which is the terminal's class."""
    read = b""
    until = time.monotonic() + ANSWER_S
    while (left := until - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            break
        part = os.read(descriptor, 256)
        read += part
        if not part:
            break
        if found := _ANSWER.search(read):
            return found[1].split(b";")[1:]
    return []


@contextmanager
def _without_echo(descriptor: int) -> Iterator[None]:
    """Read key by key and show none, as long as the answer may come."""
    import termios
    import tty

    before: list[Any] = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
