"""What a terminal makes of a picture's escape sequence, written from the protocols' documents."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

KITTY = re.compile(r"\x1b_G([^;]*);([A-Za-z0-9+/=]*)\x1b\\")
ITERM2 = re.compile(r"\x1b]1337;File=([^:]*):([A-Za-z0-9+/=]*)\x07")
SIXEL = re.compile(r"\x1bP[\d;]*q([\x20-\x7e]*)\x1b\\")


def from_kitty(text: str) -> tuple[dict[str, str], PIL.Image.Image]:
    """The keys of the first sequence and the picture that all of them transmit; nothing else may be there."""
    parts = KITTY.findall(text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in parts) == text
    keys = [_keys(given, ",") for given, _ in parts]
    assert [one["m"] for one in keys] == ["1"] * (len(keys) - 1) + ["0"]
    assert all(set(one) == {"m"} for one in keys[1:])
    assert all(len(data) <= 4096 for _, data in parts)
    assert all(len(data) % 4 == 0 for _, data in parts[:-1])
    return keys[0], _png("".join(data for _, data in parts))


def from_iterm2(text: str) -> tuple[dict[str, str], PIL.Image.Image]:
    """The arguments of an inline file and its picture."""
    found = ITERM2.fullmatch(text)
    assert found is not None
    keys = _keys(found[1], ";")
    assert int(keys["size"]) == len(base64.b64decode(found[2], validate=True))
    return keys, _png(found[2])


def from_sixel(text: str) -> npt.NDArray[np.uint8]:
    """The pixels of a sixel picture, (height, width, 3); a pixel that nobody drew is an error."""
    found = SIXEL.fullmatch(text)
    assert found is not None
    raster = re.match(r'"1;1;(\d+);(\d+)', found[1])
    assert raster is not None
    width, height = int(raster[1]), int(raster[2])
    pixels = np.full((-(-height // 6) * 6, width), -1)
    palette: dict[int, tuple[int, ...]] = {}
    colour, top, left = 0, 0, 0
    for token in re.finditer(
        r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)([?-~])|([?-~])|([$-])", found[1][raster.end() :]
    ):
        register, *percents, times, repeated, single, move = token.groups()
        if register is not None:
            colour = int(register)
            if percents[0] is not None:
                palette[colour] = tuple(round(int(value) * 255 / 100) for value in percents)
        elif move is not None:
            left, top = 0, top + 6 * (move == "-")
        else:
            letter, count = (repeated, int(times)) if times else (single, 1)
            for bit in range(6):
                if (ord(letter) - 63) >> bit & 1:
                    pixels[top + bit, left : left + count] = colour
            left += count
    drawn = pixels[:height]
    assert (drawn >= 0).all()
    assert (pixels[height:] == -1).all()
    return np.array([[palette[int(c)] for c in row] for row in drawn], dtype=np.uint8)


def _keys(given: str, between: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in given.split(between))


def _png(data: str) -> Any:
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=["PNG"])
    picture.load()
    return picture
