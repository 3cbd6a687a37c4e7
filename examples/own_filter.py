"""A captioner and a filter of one's own, in one file: both look at colours, and at nothing else.

    capfilt bootstrap web --clean clean --out run --filter examples/own_filter.py

This is the model to follow for a new backend. capfilt asks a file for two functions, of which one is enough:
`captioner` and `filter`. Each is called once in every worker, with the device and the precision that the run
chose, and returns an object with one method. What they measure here is real and small: the share of a picture
that each of eleven colours covers. The filter takes a caption's colour words at their word, and gives the
probability that all of them are in the picture; the captioner names the colours that it sees.

A run copies the file and knows it by its digest: change a line and it is another filter.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from capfilt.data.images import flattened
from capfilt.draws import uniforms
from capfilt.records import Scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image

    from capfilt.models.protocols import Captioner, Filter, ImageBatch
    from capfilt.settings import SettledDecoding

# Both are optional, and read without running the file. SCORES says which of the columns `itc` and `itm` the
# filter fills in (`itc` where nothing is said). VERSION is for what the digest of this file cannot see, such
# as weights that it reads from elsewhere: whoever changes those changes it too.
SCORES = ("itm",)
VERSION = 1

# The eleven basic colour terms of English (Berlin and Kay, 1969), as points in sRGB.
COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (220, 30, 30),
    "green": (40, 150, 50),
    "blue": (40, 80, 220),
    "yellow": (240, 215, 40),
    "orange": (245, 135, 30),
    "brown": (120, 75, 35),
    "purple": (135, 45, 165),
    "pink": (245, 160, 190),
}
OTHER_SPELLINGS = {"gray": "grey", "violet": "purple"}
SIDE_PX = 64
"""Pictures are looked at this small: a colour's share hardly depends on it."""
SEEN = 0.02
"""Share of a picture at which a colour is as likely seen as not: a square a seventh as wide."""
SURE = 2.0
"""How fast more of it makes it certain: odds grow with the share to this power."""


def captioner(device: str, precision: str) -> Captioner:
    """Called once in every worker. Arithmetic on pixels needs neither of its arguments."""
    del device, precision
    return ColourCaptioner()


def filter(device: str, precision: str) -> Filter:
    """Called once in every worker; a model would be loaded here, on `device`, in numbers of `precision`."""
    del device, precision
    return ColourFilter()


class ColourFilter:
    """The probability that every colour a text speaks of is in the picture."""

    digest = ""  # capfilt puts the file's in its place

    def score(self, batch: ImageBatch, texts: Sequence[Sequence[str]]) -> list[list[Scores]]:
        """Return one `Scores` for each text, in the order of pictures and texts; a picture may have none.

        What a picture needs is computed once for all its texts: that is why they come together. A text
        without a colour says nothing that this filter could doubt or confirm: 0.5, which the policy judges.
        """
        scores = []
        for picture, mine in zip(batch.pictures, texts, strict=True):
            share = shares(picture) if mine else {}
            scores.append([Scores(itm=self._probability(colours_of(text), share)) for text in mine])
        return scores

    def _probability(self, named: list[str], share: dict[str, float]) -> float:
        if not named:
            return 0.5
        return min(seen(share[colour]) for colour in named)


class ColourCaptioner:
    """Names the colours of a picture: the largest first, a second one where it is seen too."""

    digest = ""

    def caption(
        self, batch: ImageBatch, decoding: SettledDecoding, *, seed: int, candidates: int
    ) -> list[list[str]]:
        """Return `candidates` captions for each picture.

        Whatever is drawn must be named by (seed, sha256 of the picture, candidate), as here, so that a run
        that is interrupted and goes on, or has other workers, writes the same captions. `decoding` says what
        the user chose of prompt, method and lengths; a captioner that writes by rule has no use for most.
        """
        captions = []
        for picture, sha256 in zip(batch.pictures, batch.sha256, strict=True):
            share = shares(picture)
            largest = sorted(share, key=lambda colour: -share[colour])
            colours = [colour for colour in largest[:3] if colour == largest[0] or seen(share[colour]) > 0.5]
            mine = []
            for candidate in range(candidates):
                [number] = uniforms(1, "colour caption", seed, sha256, candidate)
                count = 1 if decoding.method == "greedy" else 1 + int(number * len(colours))
                mine.append(f"something {' and '.join(colours[:count])}")
            captions.append(mine)
        return captions


def shares(picture: Image) -> dict[str, float]:
    """Return the share of a picture that each colour covers; they sum to 1.

    A pixel belongs to the colour that is nearest in L*a*b*, where distances are about as large as they look.
    """
    small = flattened(picture).resize((SIDE_PX, SIDE_PX))
    pixels = lab(np.asarray(small, dtype=np.float64).reshape(-1, 3))
    points = lab(np.array(list(COLOURS.values()), dtype=np.float64))
    nearest = np.linalg.norm(pixels[:, None] - points[None], axis=2).argmin(axis=1)
    counts = np.bincount(nearest, minlength=len(COLOURS))
    return {name: float(count) / len(pixels) for name, count in zip(COLOURS, counts, strict=True)}


def lab(srgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return L*a*b* under D65 of sRGB colours from 0 to 255, shape (colours, 3) (CIE 15; IEC 61966-2-1)."""
    part = srgb / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    edge = 6 / 29
    f = np.where(xyz > edge**3, np.cbrt(xyz), xyz / (3 * edge**2) + 4 / 29)
    x, y, z = f.T
    found: NDArray[np.float64] = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
    return found


def seen(share: float) -> float:
    """Return the probability that a colour of this share is seen, logistic in the logarithm of the share."""
    return 1 / (1 + (SEEN / share) ** SURE) if share > 0 else 0.0


def colours_of(text: str) -> list[str]:
    """Return the colour words of a text, each once."""
    words = [OTHER_SPELLINGS.get(word, word) for word in re.findall(r"[a-z]+", text.lower())]
    return [word for word in dict.fromkeys(words) if word in COLOURS]
