"""BLIP-2's first stage as a filter: cosine of the best query, and probability of a match.

A picture is encoded once for all its texts, and so is what its queries extract of it; the texts of all
pictures stand in one batch, each beside its own picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from capfilt.data.captions import cleaned
from capfilt.errors import CapfiltError
from capfilt.models.devices import inference_type, refuse_int8, widened
from capfilt.models.frozen import frozen_states
from capfilt.models.inference import PackedLinear
from capfilt.models.packed import can_lay_out
from capfilt.models.protocols import AS_MADE, refuse_infinite
from capfilt.records import Scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.models.protocols import ImageBatch
    from capfilt.models.qformer import QFormer
    from capfilt.models.qformer_bundle import QFormerBundle
    from capfilt.settings import Images, Matching

ROWS_AT_ONCE = 64
"""Texts that are matched side by side, each with the keys and values of its picture."""


class QFormerFilter:
    """Scores pairs with a bundle whose model has the ITC or the ITM function, or both."""

    def __init__(
        self,
        bundle: QFormerBundle,
        device: torch.device,
        precision: str = "fp32",
        matching: Matching = AS_MADE,
    ) -> None:
        """Make the model ready in place; CapfiltError where [ENC] is chosen, which BLIP-2 does not have."""
        if matching.match_token == "enc":
            raise CapfiltError(
                "filter.match_token is enc, and the texts that BLIP-2 matches begin with [CLS]",
                fix="leave filter.match_token out",
            )
        self.digest = bundle.card.weights
        self.model = prepare_qformer(bundle.model, device, precision)
        self._card = bundle.card
        self._precision = precision
        self._clean_up = bundle.card.conventions.matching(matching).clean_up
        self._max_tokens = bundle.card.blip2.qformer.max_tokens
        self._vocabulary = bundle.vocabulary

    @property
    def images(self) -> Images:
        """How it sees a picture."""
        return self._card.blip2.images

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    @property
    def encoder_passes(self) -> int:
        """Pictures that its image encoder encoded so far."""
        return self.model.vision_model.passes

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
        flat = [text for mine in texts for text in mine]
        if not flat:
            return [[] for _ in texts]
        states = self._normed(batch)
        ids, real = self._read(flat)
        of = _pictures_of(texts, self.device)
        itc = itm = None
        if self.has_itc:
            features = self.model.image_features(states), self.model.text_features(ids, real)
            cosines = self.model.similarity(*features)
            itc = cosines[of, torch.arange(len(flat), device=of.device)].tolist()
        if self.has_itm:
            itm = self._match(states, of, ids, real).softmax(-1)[:, 1].tolist()
        refuse_infinite("scores", itc or (), itm or ())
        scores = iter(
            Scores(itc=itc[row] if itc else None, itm=itm[row] if itm else None) for row in range(len(flat))
        )
        return [[next(scores) for _ in mine] for mine in texts]

    @torch.inference_mode()
    def image_states(self, batch: ImageBatch) -> Tensor:
        """Return a batch's image states before the norm, (pictures, states, width); see `frozen_states`."""
        return frozen_states(batch, self.model.vision_model, self._card, self._precision, self.device)

    @torch.inference_mode()
    def itm_logits(self, batch: ImageBatch, texts: Sequence[Sequence[str]]) -> Tensor:
        """Return (pictures, most texts of a picture, 2) logits in fp32, column 1 for a match.

        A picture's row means nothing beyond its last text. At least one picture must have a text.
        """
        of = _pictures_of(texts, self.device)
        ids, real = self._read([text for mine in texts for text in mine])
        logits = self._match(self._normed(batch), of, ids, real)
        found = logits.new_zeros(len(texts), max(map(len, texts)), 2)
        column = [number for mine in texts for number in range(len(mine))]
        found[of, torch.tensor(column, device=of.device)] = logits
        return found

    @torch.inference_mode()
    def image_features(self, batch: ImageBatch) -> Tensor:
        """Return ITC features of pictures, unit length, one of each query: (pictures, queries, embed)."""
        return self.model.image_features(self._normed(batch))

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return ITC features of texts, unit length, shape (texts, embed)."""
        return self.model.text_features(*self._read(texts))

    def _normed(self, batch: ImageBatch) -> Tensor:
        return self.model.vision_model.normed(self.image_states(batch))

    def _match(self, states: Tensor, of: Tensor, ids: Tensor, real: Tensor) -> Tensor:
        """Return (texts, 2) logits of texts, each with the picture that `of` (texts,) names."""
        (seen,) = self.model.memory(states)
        rows = zip(of.split(ROWS_AT_ONCE), ids.split(ROWS_AT_ONCE), real.split(ROWS_AT_ONCE), strict=True)
        return widened(torch.cat([self.model.itm_logits(i, r, [seen.take(o)]) for o, i, r in rows]))

    def _read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ids and `real` of texts that begin with [CLS]."""
        if self._clean_up == "blip":
            texts = [cleaned(text) for text in texts]
        ids, real = self._vocabulary.encode(texts, "cls", self._max_tokens)
        return ids.to(self.device), real.to(self.device)


def _pictures_of(texts: Sequence[Sequence[str]], device: torch.device) -> Tensor:
    """Return the number of each text's picture, (texts,)."""
    return torch.tensor([n for n, mine in enumerate(texts) for _ in mine], dtype=torch.long, device=device)


def prepare_qformer(model: QFormer, device: torch.device, precision: str) -> QFormer:
    """Make a model ready to score, in place: its image encoder in the numbers of `precision`.

    The Q-Former stays in fp32, being small, and unstable in less. Raises CapfiltError for int8, in which the
    frozen image encoder has no form.
    """
    refuse_int8(precision, "this is a model with a Q-Former")
    model = model.to(device).eval().requires_grad_(False)
    model.vision_model.convert(inference_type(precision))
    if device.type == "cpu":
        lay_out(model.qformer)
        if model.vision_model.embeddings is not None:
            lay_out(model.vision_model.encoder)
    return model


def lay_out(module: nn.Module) -> None:
    """Have the linear maps of transformers' Q-Former or ViT laid out, which they call and never look into."""
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if type(child) is nn.Linear and child.bias is not None and can_lay_out(child.weight):
                setattr(part, name, PackedLinear(child))
