"""MED as a captioner: the image-grounded decoder (BLIP, section 3.1).

The image is encoded once for all its candidates; keys and values of cross-attention are computed
once and never copied; each token costs one step over cached states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from capfilt.data.images import normalise
from capfilt.draws import uniforms
from capfilt.errors import CapfiltError
from capfilt.models import decoding as search
from capfilt.models.devices import inference_type
from capfilt.models.text import ImageMemory, TokenCache

if TYPE_CHECKING:
    from capfilt.models.bundle import Bundle
    from capfilt.models.med import MED
    from capfilt.models.protocols import ImageBatch
    from capfilt.settings import SettledDecoding


class MedCaptioner:
    """Writes captions with a bundle whose model has the LM function."""

    def __init__(self, bundle: Bundle, device: torch.device, precision: str = "fp32") -> None:
        self.digest = bundle.card.weights
        self._dtype = inference_type(precision)
        self.model = bundle.model.to(device=device, dtype=self._dtype).eval()
        self._images = bundle.card.model.images
        self._vocabulary = bundle.vocabulary

    @torch.inference_mode()
    def caption(
        self, batch: ImageBatch, decoding: SettledDecoding, *, seed: int, candidates: int
    ) -> list[list[str]]:
        """Return captions by picture and candidate; see `protocols.Captioner`."""
        device = self.model.device
        pixels = torch.from_numpy(batch.squares(self._images)).to(device)
        states = self.model.encode_image(normalise(pixels, self._images).to(self._dtype))
        prompt = self._prompt(decoding).to(device)
        writing = _Writing(self.model, self.model.memory(states))
        end = self._vocabulary.sep
        if decoding.method == "beam":
            start = prompt.expand(len(batch), -1)
            ids = search.beam(writing.next_logits, writing.reorder, start, decoding, end)
        else:
            rows = len(batch) * (candidates if decoding.method == "nucleus" else 1)
            numbers = (
                _numbers(batch, decoding, seed, candidates).to(device)
                if decoding.method == "nucleus"
                else None
            )
            ids = search.write(writing.next_logits, prompt.expand(rows, -1), decoding, end, numbers)
        texts = [self._text(row) for row in ids.tolist()]
        each = len(texts) // len(batch)
        # Greedy and beam search have one answer: every candidate is that one.
        return [(texts[n * each : (n + 1) * each] * candidates)[:candidates] for n in range(len(batch))]

    def _prompt(self, decoding: SettledDecoding) -> Tensor:
        """Return the ids that every caption begins with; with the longest caption they must have places."""
        ids = self._vocabulary.prompt(decoding.prompt)
        places = self.model.text.positions.num_embeddings
        if len(ids) + decoding.max_tokens > places:
            raise CapfiltError(
                f"decoding.max_tokens is {decoding.max_tokens} after a prompt of {len(ids)} tokens; this "
                f"captioner has {places} places",
                fix=f"set decoding.max_tokens to {max(1, places - len(ids))} at most",
            )
        return torch.tensor(ids)

    def _text(self, ids: list[int]) -> str:
        end = self._vocabulary.sep
        return self._vocabulary.decode(ids[: ids.index(end)] if end in ids else ids)


class _Writing:
    """The decoder in the middle of a batch: what was written so far, and the images it looks at."""

    def __init__(self, model: MED, memory: list[ImageMemory]) -> None:
        self._model, self._memory = model, memory
        self._caches = [TokenCache() for _ in memory]

    def next_logits(self, new: Tensor) -> Tensor:
        return self._model.lm_logits(new, self._memory, self._caches)[:, -1]

    def reorder(self, rows: Tensor) -> None:
        for cache in self._caches:
            cache.reorder(rows)


def _numbers(batch: ImageBatch, decoding: SettledDecoding, seed: int, candidates: int) -> Tensor:
    """Return the uniform numbers of every caption, float64, shape (pictures * candidates, max_tokens)."""
    return torch.stack(
        [
            torch.from_numpy(uniforms(decoding.max_tokens, "caption", seed, sha256, candidate))
            for sha256 in batch.sha256
            for candidate in range(candidates)
        ]
    )
