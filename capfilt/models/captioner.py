"""MED as a captioner: the image-grounded decoder (BLIP, section 3.1).

The image is encoded once for all its candidates, which look at its states side by side; the beginning
that they share is read once; each token costs one step over cached states; a caption that has ended
leaves the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from capfilt.draws import uniforms
from capfilt.errors import CapfiltError
from capfilt.models import decoding as search
from capfilt.models.inference import image_states, prepare
from capfilt.models.med import absorbs
from capfilt.models.memory import Memory, TokenCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.models.bundle import Bundle
    from capfilt.models.med import MED
    from capfilt.models.protocols import ImageBatch
    from capfilt.settings import Images, SettledDecoding


ROWS_AT_ONCE = 1024
"""Captions that are written side by side; more candidates than fit are written after them."""


@dataclass
class Tokens:
    """Tokens that went through the decoder, and those that stand in captions, ends included."""

    computed: int = 0
    needed: int = 0


class MedCaptioner:
    """Writes captions with a bundle whose model has the LM function."""

    def __init__(
        self, bundle: Bundle, device: torch.device, precision: str = "fp32", *, compiled: bool = False
    ) -> None:
        self.digest = bundle.card.weights
        self.model = prepare(bundle.model, device, precision, compiled=compiled)
        self._compiled = compiled
        self.tokens = Tokens()
        self._card = bundle.card
        self._precision = precision
        self._vocabulary = bundle.vocabulary

    @property
    def images(self) -> Images:
        """How it sees a picture."""
        return self._card.med.images

    @torch.inference_mode()
    def caption(
        self, batch: ImageBatch, decoding: SettledDecoding, *, seed: int, candidates: int
    ) -> list[list[str]]:
        """Return captions by picture and candidate; see `protocols.Captioner`."""
        states = image_states(batch, self.model, self._card, self._precision)
        prompt = self._prompt(decoding).to(states.device)
        start = prompt.expand(len(batch), -1)
        end = self._vocabulary.sep
        room = len(prompt) + decoding.max_tokens
        each = {"nucleus": candidates, "beam": decoding.beams, "greedy": 1}[decoding.method]
        memory = self.model.memory(states, absorbed=absorbs(each * room) and not self._compiled)
        if decoding.method == "beam":
            writing = Writing(self.model, memory, room)
            ids = search.beam(writing.next_logits, writing.reorder, start, decoding, end)[:, None]
            self.tokens.computed += writing.computed
        elif decoding.method == "greedy":
            ids = self._written(memory, start, decoding, None)
        else:
            numbers = caption_numbers(batch.sha256, decoding, seed, candidates).to(states.device)
            some = numbers.split(max(1, ROWS_AT_ONCE // len(batch)), dim=1)
            ids = torch.cat([self._written(memory, start, decoding, few) for few in some], dim=1)
        rows = ids.tolist()
        self.tokens.needed += sum(
            row.index(end) + 1 if end in row else len(row) for mine in rows for row in mine
        )
        texts = [[self._text(row) for row in mine] for mine in rows]
        # Greedy and beam search have one answer: every candidate is that one.
        return [(mine * candidates)[:candidates] for mine in texts]

    def _written(
        self, memory: list[Memory], start: Tensor, decoding: SettledDecoding, numbers: Tensor | None
    ) -> Tensor:
        """Return ids, (pictures, captions of each, max_tokens), by `numbers` of that shape, or greedily."""
        each = numbers.shape[1] if numbers is not None else 1
        writing = Writing(self.model, memory, start.shape[1] + decoding.max_tokens)
        ids = search.write(
            writing.next_logits,
            start,
            decoding,
            self._vocabulary.sep,
            numbers.flatten(0, 1) if numbers is not None else None,
            each=each,
            # A graph is compiled for one number of rows: then captions that ended stay to the end.
            keep=None if self._compiled else writing.keep,
        )
        self.tokens.computed += writing.computed
        return ids.view(len(start), each, -1)

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


class Writing:
    """The decoder in the middle of a batch: what was written so far, and the images it looks at.

    Rows are captions, as many to each image of `memory`, side by side. `room` is the longest text,
    prompt included. Every step has the same shapes, and none waits for the device.
    """

    def __init__(self, model: MED, memory: list[Memory], room: int) -> None:
        self.computed = 0
        self._model = model
        self._memory = memory
        self._caches = [TokenCache(room) for _ in memory]
        self._rows = 0
        self._written = torch.zeros((), dtype=torch.long, device=model.device)

    def next_logits(self, new: Tensor) -> Tensor:
        """Return the logits after new tokens, (rows, new tokens); more rows than before copy theirs."""
        self._spread(len(new))
        logits = self._model.next_logits(new, self._memory, self._caches, self._written)
        self._written = self._written + new.shape[1]
        self.computed += len(new)
        return logits

    def _spread(self, rows: int) -> None:
        """Have as many rows, those of one image being copies of what was read for it."""
        if self._rows and rows != self._rows:
            copies = torch.arange(self._rows, device=self._model.device)
            self.reorder(copies.repeat_interleave(rows // self._rows))
        self._rows = rows

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was."""
        for cache in self._caches:
            cache.take(rows)

    def keep(self, images: Tensor, rows: Tensor, of: int) -> None:
        """Go on with these images and these of their rows, as many to each image, side by side.

        There are `of` rows: more than were read while captions end at their first token.
        """
        self._spread(of)
        self._rows = len(rows)
        self.reorder(rows)
        apart = {id(layer): layer for layer in self._memory}  # layers may look at one memory
        taken = {name: layer.take(images) for name, layer in apart.items()}
        self._memory = [taken[id(layer)] for layer in self._memory]


def caption_numbers(digests: Sequence[str], decoding: SettledDecoding, seed: int, candidates: int) -> Tensor:
    """Return the uniform numbers of every caption, float64, shape (pictures, candidates, max_tokens).

    `digests` are the sha256 of the pictures: what is drawn of one depends on it, and not on its place.
    """
    drawn = [
        torch.from_numpy(uniforms(decoding.max_tokens, "caption", seed, sha256, candidate))
        for sha256 in digests
        for candidate in range(candidates)
    ]
    return torch.stack(drawn).view(len(digests), candidates, -1)
