"""How often each data set is met in a training.

Data sets differ in size by thousands, and a model that met them by size would forget the small ones: so the
square root of the size counts, and a few weights are corrected by hand.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from capfilt.data.instructions.registry import Dataset


def sampling_weights(datasets: Sequence[Dataset], read: Mapping[str, int] | None = None) -> dict[str, float]:
    """Return the chance of each data set, by name: sqrt(size) times its correction, adding up to 1.

    The size is what its row says, and else the examples that were read. They differ: publishers count
    captions where an example is a picture with five, or dialogues where it is a turn.
    Source: InstructBLIP (Dai et al., 2023), section 2.4.

    Raises CapfiltError for a data set without a size.
    """
    shares: dict[str, float] = {}
    for dataset in datasets:
        size = dataset.size or (read or {}).get(dataset.name)
        if not size:
            raise CapfiltError(
                f"data set {dataset.name} has no size to be sampled by",
                fix="give its row in the registry a size = N, in examples",
            )
        shares[dataset.name] = math.sqrt(size) * dataset.correction
    whole = math.fsum(shares.values())
    return {name: share / whole for name, share in shares.items()}
