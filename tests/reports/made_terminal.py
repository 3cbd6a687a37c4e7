"""A terminal for a program: it has a size, answers what it is asked, and keeps what it is told."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ASKED = b"\x1b[c"
ROWS, COLUMNS = 40, 140
CELL = (10, 20)
"""Pixels of a cell."""


def told(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    answer: bytes = b"",
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> str:
    """Run a program in a terminal of its own and return what it wrote, as it wrote it.

    `answer` is given, once, where the program asks what the terminal is. The program ends with 0, or this
    fails.
    """
    repository = str(Path(__file__).parents[2])
    child, terminal = pty.fork()
    if child == 0:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        os.execve(
            sys.executable,
            [sys.executable, *command],
            {**kept, "PYTHONPATH": repository, "PYTHONUTF8": "1", **environment},
        )
    size = struct.pack("HHHH", rows, columns, columns * CELL[0], rows * CELL[1])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
    said = _listen(terminal, answer)
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, said
    return said


def _listen(terminal: int, answer: bytes) -> str:
    said = b""
    has_answered = False
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the program ended
            break
        if not part:
            break
        said += part
        if ASKED in said and answer and not has_answered:
            os.write(terminal, answer)
            has_answered = True
    return said.decode("utf-8").replace("\r\n", "\n")
