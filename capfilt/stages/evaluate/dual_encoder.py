"""A dual encoder of transformers (CLIP, SigLIP and their like) as a baseline: one cosine for each pair.

It is what datasets are filtered with today (DataComp keeps the best share by CLIP), and what ITC is without
the rest of the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.models.backends import dual_encoder
from capfilt.models.checkpoints.hub import find_checkpoint
from capfilt.stages.given import content_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    Features = NDArray[np.float32]


class DualEncoder:
    """Features of pictures and texts by a model of transformers, in fp32, and what it is, for the record."""

    def __init__(self, source: str, device: str) -> None:
        """Load a folder, or a hub id; CapfiltError where it is none, or no dual encoder."""
        found = find_checkpoint(source)
        self._encoder = dual_encoder.DualEncoder(found.path, device, called=f"--clip {source}")
        self.facts = {
            "source": source,
            "revision": found.revision,
            "content": content_digest(found.path),
            "kind": self._encoder.kind,
        }
        """What it is, for the record."""

    def image_features(self, pictures: Sequence[Image]) -> Features:
        """Return features of unit length, shape (pictures, width)."""
        features: Features = self._encoder.image_features(pictures).cpu().numpy()
        return features

    def text_features(self, texts: Sequence[str]) -> Features:
        """Return features of unit length, shape (texts, width); a text that is too long is cut."""
        features: Features = self._encoder.text_features(texts).cpu().numpy()
        return features
