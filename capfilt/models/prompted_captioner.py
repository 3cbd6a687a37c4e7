"""Stage 2 of BLIP-2 and InstructBLIP as a captioner.

A picture is encoded, asked by the queries and read by the language model once, with the prompt after it; all
its candidates go on from there, side by side, over copies of what was cached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from capfilt.errors import CapfiltError
from capfilt.models import decoding as search
from capfilt.models.captioner import Tokens, caption_numbers
from capfilt.models.devices import inference_type, refuse_int8
from capfilt.models.frozen import frozen_states
from capfilt.models.language_model import longest_text
from capfilt.models.prompted import read_instructions
from capfilt.models.questions import longest_answer, room_for_question, within

if TYPE_CHECKING:
    from capfilt.models.language_model import Continued
    from capfilt.models.prompted import SoftPrompted
    from capfilt.models.protocols import ImageBatch
    from capfilt.models.qformer_bundle import PromptedBundle
    from capfilt.settings import Images, SettledDecoding

ROWS_AT_ONCE = 256
"""Captions that are written side by side: what a language model of billions caches is some MB a row."""


class PromptedCaptioner:
    """Writes captions with a bundle that holds a Q-Former and a language model."""

    def __init__(self, bundle: PromptedBundle, device: torch.device, precision: str = "fp32") -> None:
        self.digest = bundle.card.weights
        self.model = ready(bundle.model, device, precision)
        self.tokens = Tokens()
        self._card = bundle.card
        self._precision = precision
        self._vocabulary = bundle.vocabulary
        self._reader = bundle.reader

    @property
    def images(self) -> Images:
        """How it sees a picture."""
        return self._card.blip2.images

    @torch.inference_mode()
    def caption(
        self, batch: ImageBatch, decoding: SettledDecoding, *, seed: int, candidates: int
    ) -> list[list[str]]:
        """Return captions by picture and candidate; see `protocols.Captioner`."""
        ids = self._prompt(decoding)
        prompts = self._soft_prompts(batch, decoding.prompt)
        numbers = None
        if decoding.method == "nucleus":
            numbers = caption_numbers(batch.sha256, decoding, seed, candidates).to(prompts.device)
        # Rows of a picture that cannot be apart: beams choose among one another, candidates do not.
        together = max(1, ROWS_AT_ONCE // (decoding.beams if decoding.method == "beam" else 1))
        rows: list[list[list[int]]] = []
        for first in range(0, len(batch), together):
            few = slice(first, first + together)
            rows += self._search(prompts[few], ids, decoding, None if numbers is None else numbers[few])
        end = self._vocabulary.sep
        self.tokens.needed += sum(
            row.index(end) + 1 if end in row else len(row) for mine in rows for row in mine
        )
        texts = [[self._text(row) for row in mine] for mine in rows]
        # Greedy and beam search have one answer: every candidate is that one.
        return [(mine * candidates)[:candidates] for mine in texts]

    def _search(
        self, prompts: Tensor, ids: Tensor, decoding: SettledDecoding, numbers: Tensor | None
    ) -> list[list[list[int]]]:
        """Return ids by picture and caption; the pictures are read side by side, each with ids (tokens,)."""
        pictures = len(prompts)
        begun, logits = self.model.begin(prompts, ids.expand(pictures, -1))
        self.tokens.computed += pictures
        start, end = self._start(ids).expand(pictures, -1), self._vocabulary.sep
        if decoding.method == "beam":
            writing = Writing(begun, logits, decoding.beams)
            written = search.beam(writing.next_logits, writing.reorder, start, decoding, end)[:, None]
            self.tokens.computed += writing.computed
        elif numbers is None:
            written = self._written(Writing(begun, logits, 1), start, decoding, None)
        else:
            some = numbers.split(max(1, ROWS_AT_ONCE // pictures), dim=1)
            parts = [
                self._written(Writing(begun, logits, few.shape[1]), start, decoding, few) for few in some
            ]
            written = torch.cat(parts, dim=1)
        found: list[list[list[int]]] = written.tolist()
        return found

    def _soft_prompts(self, batch: ImageBatch, prompt: str) -> Tensor:
        """Return what stands before the prompt's words; made once for a batch, or for each instruction."""
        model, device = self.model, self.model.device

        def ask() -> Tensor:
            encoder = model.vision_model
            states = encoder.normed(frozen_states(batch, encoder, self._card, self._precision, device))
            if self._reader is None:
                return model.soft_prompts(states)
            longest = self._card.blip2.qformer.max_tokens
            asked = read_instructions(self._reader, [prompt] * len(batch), longest)
            return model.soft_prompts(states, asked.to(device))

        name = (self.digest, self._precision, str(device), "soft prompts")
        return batch.states(name if self._reader is None else (*name, prompt), ask)

    def _written(
        self, writing: Writing, start: Tensor, decoding: SettledDecoding, numbers: Tensor | None
    ) -> Tensor:
        """Return ids, (pictures, captions of each, max_tokens), by `numbers` of that shape, or greedily."""
        ids = search.write(
            writing.next_logits,
            start,
            decoding,
            self._vocabulary.sep,
            numbers.flatten(0, 1) if numbers is not None else None,
            each=writing.each,
            keep=writing.keep,
        )
        self.tokens.computed += writing.computed
        return ids.view(len(start), writing.each, -1)

    def _prompt(self, decoding: SettledDecoding) -> Tensor:
        """Return the ids of the words before a caption, of which a question that is too long loses the first.

        Raises CapfiltError where it is the caption that is too long; see `longest_answer`.
        """
        ids, begin = self._vocabulary.prompt(decoding.prompt), len(self._vocabulary.begin)
        model, longest = self.model, longest_answer(self.model)
        room = room_for_question(model, decoding.max_tokens)
        is_too_long = longest is not None and decoding.max_tokens > longest
        if is_too_long and (model.is_encoder_decoder or (room is not None and len(ids) > room)):
            raise CapfiltError(
                f"decoding.max_tokens is {decoding.max_tokens} after {model.queries} queries and "
                f"{len(ids)} tokens of prompt; this captioner's language model has "
                f"{longest_text(model.language_model)} places",
                fix="set decoding.max_tokens lower, or shorten the prompt",
            )
        return torch.tensor(within(ids, begin, room), dtype=torch.long, device=model.device)

    def _start(self, ids: Tensor) -> Tensor:
        """Return the ids that the search takes for the beginning; the model has read what there is."""
        if self.model.is_encoder_decoder:
            return ids.new_tensor([self.model.decoder_start])
        # The search wants one id at least: any that is not the end, which it may make less likely.
        return ids if len(ids) else ids.new_tensor([int(self._vocabulary.sep == 0)])

    def _text(self, ids: list[int]) -> str:
        end = self._vocabulary.sep
        return self._vocabulary.decode(ids[: ids.index(end)] if end in ids else ids)


class Writing:
    """The language model in the middle of a batch, `each` captions to a picture, side by side.

    They go on from where the model has read a picture and the prompt: `begun` and the `logits` after it,
    which hold a row for each picture and stay as they are.
    """

    def __init__(self, begun: Continued, logits: Tensor, each: int) -> None:
        self.each = each
        self.computed = 0
        self._begun = begun
        self._logits: Tensor | None = logits
        self._texts: Continued | None = None

    def next_logits(self, new: Tensor) -> Tensor:
        """Return the logits after new tokens, (rows, new tokens); the first ones have been read before."""
        if self._logits is not None:
            logits = self._logits.repeat_interleave(len(new) // len(self._logits), 0)
            self._logits = None
            return logits
        self.computed += len(new)
        return self._captions().next_logits(new)

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was."""
        self._captions().take(rows)

    def keep(self, images: Tensor, rows: Tensor, of: int) -> None:
        """Go on with these rows; nothing is held for an image but in its rows."""
        del images, of
        self.reorder(rows)

    def _captions(self) -> Continued:
        if self._texts is None:
            self._texts = self._begun.repeat(self.each)
        return self._texts


def ready(model: SoftPrompted, device: torch.device, precision: str) -> SoftPrompted:
    """Return a model made ready to write, in place: what is frozen in the numbers of `precision`.

    The Q-Former and the maps around it stay in fp32: they are small, and unstable in less (LAVIS, too, keeps
    them so). Raises CapfiltError for int8, in which neither frozen model has a form.
    """
    refuse_int8(precision, "this is a model with a Q-Former")
    model = model.to(device).eval().requires_grad_(False)
    dtype = inference_type(precision)
    model.vision_model.convert(dtype)
    model.language_model.to(dtype)
    return model
