"""MED as a filter: ITC cosine and ITM probability of texts against their picture (BLIP, section 3.3).

The image is encoded once for all its texts, which stand side by side over its keys and values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from capfilt.data.images import normalise
from capfilt.models.devices import inference_type, widened
from capfilt.records import Scores
from capfilt.settings import Matching

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.models.bundle import Bundle
    from capfilt.models.protocols import ImageBatch


AS_MADE = Matching()
"""Nothing chosen: a filter reads texts as its card says."""


class MedFilter:
    """Scores pairs with a bundle whose model has the ITC or the ITM function, or both."""

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        precision: str = "fp32",
        matching: Matching = AS_MADE,
    ) -> None:
        self.digest = bundle.card.weights
        self._dtype = inference_type(precision)
        self.model = bundle.model.to(device=device, dtype=self._dtype).eval()
        self._matching = bundle.card.conventions.matching(matching)
        self._images = bundle.card.model.images
        self._max_tokens = bundle.card.model.text.max_tokens
        self._vocabulary = bundle.vocabulary

    @property
    def has_itc(self) -> bool:
        """Whether it gives a cosine."""
        return "itc" in self.model.objectives

    @torch.inference_mode()
    def score(self, batch: ImageBatch, texts: Sequence[Sequence[str]]) -> list[list[Scores]]:
        """Return scores by picture and text; see `protocols.Filter`."""
        most = max(map(len, texts), default=0)
        if most == 0:
            return [[] for _ in texts]
        states = self._states(batch)
        # Every picture gets as many rows as the one with the most texts, so that rows follow pictures.
        rows = [text for mine in texts for text in (*mine, *[""] * (most - len(mine)))]
        itc = itm = [None] * len(rows)  # type: list[float | None]
        if self.has_itc:
            features = self.model.image_features(states)[:, None]
            own = self.text_features(rows).view(len(batch), most, -1)
            itc = (features * own).sum(-1).flatten().tolist()
        if "itm" in self.model.objectives:
            ids, real = self._encode(rows, self._matching.match_token or "enc")
            logits = self.model.itm_logits(ids, real, self.model.memory(states))
            itm = widened(logits).softmax(-1)[:, 1].tolist()
        scores = [Scores(itc=one, itm=other) for one, other in zip(itc, itm, strict=True)]
        return [scores[n * most : n * most + len(mine)] for n, mine in enumerate(texts)]

    @torch.inference_mode()
    def image_features(self, batch: ImageBatch) -> Tensor:
        """Return ITC features of pictures, unit length, shape (pictures, embed)."""
        return self.model.image_features(self._states(batch))

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return ITC features of texts, unit length, shape (texts, embed)."""
        return self.model.text_features(*self._encode(texts, "cls"))

    def _states(self, batch: ImageBatch) -> Tensor:
        pixels = torch.from_numpy(batch.squares(self._images)).to(self.model.device)
        return self.model.encode_image(normalise(pixels, self._images).to(self._dtype))

    def _encode(self, texts: Sequence[str], first: Literal["cls", "enc"]) -> tuple[Tensor, Tensor]:
        ids, real = self._vocabulary.encode(texts, first, self._max_tokens)
        return ids.to(self.model.device), real.to(self.model.device)
