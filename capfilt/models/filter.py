"""MED as a filter: ITC cosine and ITM probability of texts against their picture (BLIP, section 3.3).

The image is encoded once for all its texts, which are read side by side in one row without padding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from capfilt.data.captions import cleaned
from capfilt.models.devices import widened
from capfilt.models.inference import image_states, prepare
from capfilt.models.med import absorbs
from capfilt.models.protocols import AS_MADE, refuse_infinite
from capfilt.models.text import Packed
from capfilt.records import Scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.models.bundle import Bundle
    from capfilt.models.protocols import ImageBatch
    from capfilt.settings import Images, Matching

TEXTS_AT_ONCE = 16
"""Texts of a picture that stand in one row; attention within a row grows with the square of its length."""


class MedFilter:
    """Scores pairs with a bundle whose model has the ITC or the ITM function, or both."""

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        precision: str = "fp32",
        matching: Matching = AS_MADE,
        *,
        compiled: bool = False,
    ) -> None:
        self.digest = bundle.card.weights
        self.model = prepare(bundle.model, device, precision, compiled=compiled)
        self._card = bundle.card
        self._precision = precision
        self._matching = bundle.card.conventions.matching(matching)
        self._max_tokens = bundle.card.med.text.max_tokens
        self._vocabulary = bundle.vocabulary

    @property
    def images(self) -> Images:
        """How it sees a picture."""
        return self._card.med.images

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    @property
    def encoder_passes(self) -> int:
        """Pictures that its image encoder encoded so far."""
        return self.model.image.passes

    @property
    def has_itc(self) -> bool:
        """Whether it gives a cosine."""
        return "itc" in self.model.objectives

    @property
    def has_itm(self) -> bool:
        """Whether it gives a probability of a match."""
        return "itm" in self.model.objectives

    @torch.inference_mode()
    def score(self, batch: ImageBatch, texts: Sequence[Sequence[str]]) -> list[list[Scores]]:
        """Return scores by picture and text; see `protocols.Filter`."""
        if not any(texts):
            return [[] for _ in texts]
        states = self.image_states(batch)
        packs = self._packs(texts)
        itc = itm = None
        if self.has_itc:
            own = torch.cat([self.model.packed_features(packed) for packed in packs], 1)
            itc = (self.model.image_features(states)[:, None] * own).sum(-1).tolist()
        if self.has_itm:
            itm = self._itm_logits(states, packs).softmax(-1)[..., 1].tolist()
        refuse_infinite("scores", *(itc or ()), *(itm or ()))
        return [
            [
                Scores(itc=itc[picture][n] if itc else None, itm=itm[picture][n] if itm else None)
                for n in range(len(mine))
            ]
            for picture, mine in enumerate(texts)
        ]

    @torch.inference_mode()
    def image_states(self, batch: ImageBatch) -> Tensor:
        """Return a batch's image states, (pictures, 1 + patches, width), made once for equal encoders."""
        return image_states(batch, self.model, self._card, self._precision)

    @torch.inference_mode()
    def itm_logits(self, batch: ImageBatch, texts: Sequence[Sequence[str]]) -> Tensor:
        """Return (pictures, most texts of a picture, 2) logits in fp32, column 1 for a match.

        They order pairs that are all but certain, whose probabilities are equal. A picture's row means
        nothing beyond its last text. At least one picture must have a text.
        """
        return self._itm_logits(self.image_states(batch), self._packs(texts))

    @torch.inference_mode()
    def image_features(self, batch: ImageBatch) -> Tensor:
        """Return ITC features of pictures, unit length, shape (pictures, embed)."""
        return self.model.image_features(self.image_states(batch))

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return ITC features of texts, unit length, shape (texts, embed)."""
        return self.model.packed_features(self._packed([[text] for text in texts]))[:, 0]

    def _packs(self, texts: Sequence[Sequence[str]]) -> list[Packed]:
        """Return the texts of each picture in rows of as many as stand side by side."""
        return [
            self._packed([mine[first : first + TEXTS_AT_ONCE] for mine in texts])
            for first in range(0, max(map(len, texts)), TEXTS_AT_ONCE)
        ]

    def _itm_logits(self, states: Tensor, packs: Sequence[Packed]) -> Tensor:
        tokens = sum(packed.ids.shape[1] for packed in packs)
        memory = self.model.memory(states, absorbed=absorbs(tokens))
        logits = [self.model.packed_itm_logits(self._begun(packed), memory) for packed in packs]
        return widened(torch.cat(logits, 1))

    def _packed(self, texts: Sequence[Sequence[str]]) -> Packed:
        """Return the texts of each picture side by side, each from its [CLS] to its [SEP]."""
        flat = [self._cleaned(text) for mine in texts for text in mine]
        ids, real = self._vocabulary.encode(flat, "cls", self._max_tokens)
        lengths = real.sum(1).tolist()
        most = max(map(len, texts))
        numbers = iter(range(len(flat)))
        mine_of = [[next(numbers) for _ in mine] for mine in texts]
        room = max(sum(lengths[n] for n in mine) for mine in mine_of)
        packed = Packed(
            ids=torch.full((len(texts), room), self._vocabulary.pad),
            text=torch.full((len(texts), room), -1),
            places=torch.zeros(len(texts), room, dtype=torch.long),
            firsts=torch.zeros(len(texts), most, dtype=torch.long),
        )
        for row, mine in enumerate(mine_of):
            at = 0
            for column, number in enumerate(mine):
                until = at + lengths[number]
                packed.ids[row, at:until] = ids[number, : lengths[number]]
                packed.text[row, at:until] = column
                packed.places[row, at:until] = torch.arange(lengths[number])
                packed.firsts[row, column] = at
                at = until
        device = self.model.device
        return Packed(*(getattr(packed, name).to(device) for name in ("ids", "text", "places", "firsts")))

    def _begun(self, packed: Packed) -> Packed:
        """Return the texts with the first token of those whose match is judged."""
        if self._matching.match_token == "cls":
            return packed
        begun = packed.ids.scatter(1, packed.firsts, self._vocabulary.first_id("enc"))
        return replace(packed, ids=begun)

    def _cleaned(self, text: str) -> str:
        return cleaned(text) if self._matching.clean_up == "blip" else text
