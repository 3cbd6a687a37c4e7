"""Random numbers that are named, not taken in turn.

Every draw is keyed by what it is for (a seed, an image, a step), through a counter-based generator
(Philox; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). So a draw is the same
whatever else was drawn before it, by whichever process, and there is no state to save or restore.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def uniforms(count: int, *key: str | int) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1), shape (count,), float64: a function of the key alone.

    The first n of them do not depend on `count`. Only the generator's raw bits are used, which numpy
    promises never to change.
    """
    import numpy as np

    digest = hashlib.sha256("\0".join(str(part) for part in key).encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    bits = np.atleast_1d(generator.random_raw(count))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(count: int, *key: str | int) -> NDArray[np.int64]:
    """Return a permutation of 0..count-1, shape (count,), int64: a function of the key alone."""
    import numpy as np

    return np.argsort(uniforms(count, *key), kind="stable")


def seed_of(*key: str | int) -> int:
    """Return a 63-bit seed for a generator that needs one: a function of the key alone."""
    digest = hashlib.sha256("\0".join(str(part) for part in key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
