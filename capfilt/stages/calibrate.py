"""Measure a filter on held-out clean pairs, in the precision that it will score with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from capfilt.data.clean import CleanSet
    from capfilt.models.bundle_files import BundleOf
    from capfilt.models.protocols import ImageBatch

_PICTURES = 32
"""At a time."""


def calibrate(
    bundle: BundleOf[Any, Any],
    pairs: CleanSet,
    held_out: Sequence[int],
    *,
    device: str,
    precision: str,
    seed: int,
) -> dict[str, Any]:
    """Return what calibration.json holds: `evaluation.calibration.measure`'s, and `precision`.

    `held_out` are numbers of pairs. The model is made ready for its device in place.
    """
    from capfilt.evaluation.calibration import measure
    from capfilt.models.loading import filter_from
    from capfilt.models.protocols import ImageBatch
    from capfilt.records import SCORES

    def batches() -> Iterator[ImageBatch]:
        for start in range(0, len(held_out), _PICTURES):
            some = held_out[start : start + _PICTURES]
            yield ImageBatch(
                [pairs.picture(index) for index in some], [pairs.pairs[index].image_sha256 for index in some]
            )

    model = filter_from(bundle, device, precision)
    scores = [name for name in SCORES if name in bundle.card.objectives]
    measured = measure(model, batches, [pairs.pairs[index] for index in held_out], scores=scores, seed=seed)
    return {**measured, "precision": precision}
