"""Pictures in a terminal: as kitty's graphics, as iTerm2's inline files, or as sixels.

Each is one escape sequence that ends where it began or a few cells further; whoever writes it saves the
cursor before and restores it after. What goes into a sequence are pixels that were decoded here, in base64 or
in sixels' own six-bit letters: no byte of a stranger's file reaches the terminal.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

Protocol = Literal["kitty", "iterm2", "sixel"]
"""How a terminal takes pictures."""

ESC, ST = "\x1b", "\x1b\\"
CHUNK = 4096
"""Characters of base64 in one of kitty's sequences, at most."""
COLOURS = 128
"""Colours of a picture in sixels; terminals have 256 registers, some fewer."""


@dataclass(frozen=True, slots=True)
class Box:
    """Room for a picture, in cells of the terminal."""

    columns: int
    rows: int
    cell_width_px: int = 8
    """Pixels of a cell. A guess should be small: a picture may not be taller than its room."""
    cell_height_px: int = 16

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.columns * self.cell_width_px, self.rows * self.cell_height_px


def sequence(picture: Image, box: Box, protocol: Protocol) -> str:
    """Return what draws an RGB picture from the cursor's cell on, undistorted and as large as its box."""
    if protocol == "kitty":
        return _kitty(picture, box)
    return _iterm2(picture, box) if protocol == "iterm2" else _sixel(_fitted(picture, box))


def at(column: int, rows_up: int, drawn: str) -> str:
    """Return a drawing that begins so many rows above the cursor, at a column from 0; the cursor stays."""
    return f"{ESC}7{ESC}[{rows_up}A{ESC}[{column + 1}G{drawn}{ESC}8"


def _kitty(picture: Image, box: Box) -> str:
    """Return kitty's graphics: PNG in base64 by chunks, shown at once (a=T).

    The terminal is to answer nothing (q=2), for the answer would stand in the next command line, and to
    leave the cursor (C=1). One side is given in cells and the other follows from the picture.
    Source: https://sw.kovidgoyal.net/kitty/graphics-protocol/
    """
    data = base64.b64encode(_png(picture)).decode("ascii")
    width, height = box.size_px
    is_broad = picture.width * height > picture.height * width
    fit = f"c={box.columns}" if is_broad else f"r={box.rows}"
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks):
        first = f"a=T,f=100,q=2,C=1,{fit}," if number == 0 else ""
        more = int(number < len(chunks) - 1)
        parts.append(f"{ESC}_G{first}m={more};{chunk}{ST}")
    return "".join(parts)


def _iterm2(picture: Image, box: Box) -> str:
    """Return iTerm2's inline file: PNG in base64, fitted into the box by the terminal.

    Source: https://iterm2.com/documentation-images.html
    """
    data = _png(picture)
    facts = f"inline=1;size={len(data)};width={box.columns};height={box.rows};preserveAspectRatio=1"
    return f"{ESC}]1337;File={facts};doNotMoveCursor=1:{base64.b64encode(data).decode('ascii')}\x07"


def _png(picture: Image) -> bytes:
    out = io.BytesIO()
    bare = picture.copy()
    bare.info.clear()  # neither a profile nor a comment of a stranger's file
    bare.save(out, "PNG")
    return out.getvalue()


def _fitted(picture: Image, box: Box) -> Image:
    """Return the picture in the size that it has on the screen: sixels are pixels."""
    width, height = box.size_px
    scale = min(width / picture.width, height / picture.height)
    size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
    return picture.resize(size)


def _sixel(picture: Image) -> str:
    """Return sixels: six rows of pixels at once, colour by colour, equal letters counted.

    P2=1 leaves undrawn pixels as they are. Source: DEC's VT330/VT340 programmer reference, chapter 14.
    """
    import numpy as np

    reduced = picture.quantize(COLOURS)
    palette = reduced.getpalette() or []
    pixels = np.asarray(reduced)
    height, width = pixels.shape
    used = [int(colour) for colour in np.unique(pixels)]
    registers = "".join(
        f"#{n};2;" + ";".join(str(round(value * 100 / 255)) for value in palette[3 * n : 3 * n + 3])
        for n in used
    )
    bands = "-".join("$".join(_band(pixels[top : top + 6])) for top in range(0, height, 6))
    return f'{ESC}P0;1;0q"1;1;{width};{height}{registers}{bands}{ST}'


def _band(rows: npt.NDArray[np.uint8]) -> Iterator[str]:
    """Return the letters of up to six rows of pixels, one line for each colour in them."""
    import numpy as np

    bits = 1 << np.arange(len(rows))[:, None]
    for colour in np.unique(rows):
        letters = ((rows == colour) * bits).sum(axis=0) + 63
        yield f"#{colour}" + "".join(
            _repeated(chr(letter), len(list(same))) for letter, same in groupby(letters.tolist())
        )


def _repeated(letter: str, times: int) -> str:
    return f"!{times}{letter}" if times > 3 else letter * times
