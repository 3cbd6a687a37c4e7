"""Write a bundle over and over until killed: python bundle_writer.py BUNDLE

Two bundles take turns, of different seeds. A line on stdout says that the first is there.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from small_models import SMALL, WORDS, small_med

from capfilt.models.bundle import Packed, pack
from capfilt.models.vocabulary import train_vocabulary


def packed(path: Path, seed: int) -> Packed:
    """Return the bundle of a seed."""
    vocabulary = train_vocabulary(WORDS, 160)
    return pack(
        path,
        kind="captioner",
        model=small_med(["lm"], len(vocabulary), seed=seed),
        settings=SMALL,
        vocabulary=vocabulary,
        parent=None,
        data=None,
        training={"seed": seed},
        versions={},
    )


if __name__ == "__main__":
    bundles = [packed(Path(sys.argv[1]), seed) for seed in (0, 1)]
    for number in itertools.count():
        bundles[number % 2].write(metrics=[{"number": number}])
        if number == 0:
            sys.stdout.write("written\n")
            sys.stdout.flush()
