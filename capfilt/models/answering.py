"""How likely a captioner finds answers to a question about a picture, and the filter that this makes.

InstructBLIP ranks the candidates of a question by their likelihood (Dai et al., 2023, section 2.5). Asked
whether a text fits a picture, the probability of yes is a score of the pair (VQAScore: Lin et al.,
"Evaluating text-to-visual generation with image-to-text generation", 2024, section 3).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from capfilt.errors import CapfiltError
from capfilt.models.devices import widened
from capfilt.models.frozen import frozen_states
from capfilt.models.prompted import padded, read_instructions, shifted, whole_instructions
from capfilt.models.prompted_captioner import ready
from capfilt.models.protocols import AS_MADE, refuse_infinite
from capfilt.models.questions import longest_answer, room_for_question, shortened, within
from capfilt.records import Scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.models.prompted import SoftPrompted
    from capfilt.models.protocols import ImageBatch
    from capfilt.models.qformer_bundle import PromptedBundle
    from capfilt.settings import Images, Matching

QUESTION = 'Does the image show "{text}"? Answer yes or no.'
"""What is asked of a text, unless `filter.question` says otherwise."""
YES_OR_NO = ("yes", "no")
ROWS_AT_ONCE = 64
"""Answers that are read side by side."""
_LEAST = 4
"""Words of a text that a question must leave room for."""


class Answering:
    """A captioner that reads answers instead of writing them; its model is made ready in place."""

    def __init__(self, bundle: PromptedBundle, device: torch.device, precision: str = "fp32") -> None:
        self.model: SoftPrompted = ready(bundle.model, device, precision)
        self._card = bundle.card
        self._precision = precision
        self._vocabulary = bundle.vocabulary
        self._reader = bundle.reader

    @torch.inference_mode()
    def log_likelihoods(
        self, batch: ImageBatch, of: Sequence[int], questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return the log-likelihood of each question's answers, their ends included.

        `of` holds the number of the picture that a question is about; a picture is encoded once for all.
        """
        model, device = self.model, self.model.device
        encoder = model.vision_model
        states = encoder.normed(frozen_states(batch, encoder, self._card, self._precision, device))
        rows = [(number, answer) for number, mine in enumerate(answers) for answer in mine]
        outputs, read = self._outputs(answers), self._read(questions, answers)
        found: list[float] = []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            asked = sorted({number for number, _ in some})
            prompts = self._prompts(states, [of[n] for n in asked], [questions[n] for n in asked])
            place = {number: at for at, number in enumerate(asked)}
            each = torch.tensor([place[number] for number, _ in some], device=device)
            before, after = [read[number] for number, _ in some], outputs[start : start + ROWS_AT_ONCE]
            found += self._summed(prompts[each], before, after).tolist()
        likelihoods = iter(found)
        return [[next(likelihoods) for _ in mine] for mine in answers]

    def _prompts(self, states: Tensor, of: Sequence[int], questions: Sequence[str]) -> Tensor:
        """Return what stands before each question, (questions, queries, width)."""
        seen = states[torch.tensor(of, device=states.device)]
        if self._reader is None:
            return self.model.soft_prompts(seen)
        asked = read_instructions(self._reader, questions, self._card.blip2.qformer.max_tokens)
        return self.model.soft_prompts(seen, asked.to(states.device))

    def fits(self, question: str, answers: Sequence[str]) -> bool:
        """Return whether a question is read whole, by the Q-Former and by the language model."""
        longest = self._card.blip2.qformer.max_tokens
        if self._reader is not None and len(whole_instructions(self._reader, [question])[0]) > longest:
            return False
        [read] = self._read([question], [answers])
        return len(read) == len(self._vocabulary.prompt(question))

    def _outputs(self, answers: Sequence[Sequence[str]]) -> list[list[int]]:
        """Return the ids of all answers, one after the other, with their ends."""
        blank = self._vocabulary.blank
        texts = [f"{blank}{answer}" for mine in answers for answer in mine]
        ids, real = self._vocabulary.encode_output(texts, longest_answer(self.model))
        return [row[seen].tolist() for row, seen in zip(ids, real, strict=True)]

    def _read(self, questions: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[int]]:
        """Return the ids of questions, each with places for the longest of its own answers after it."""
        found, begin = [], len(self._vocabulary.begin)
        for question, mine in zip(questions, answers, strict=True):
            room = room_for_question(self.model, max(map(len, self._outputs([mine])), default=0))
            found.append(within(self._vocabulary.prompt(question), begin, room))
        return found

    def _summed(self, prompts: Tensor, read: list[list[int]], written: list[list[int]]) -> Tensor:
        """Return the summed log-probabilities of what is written, (rows,), fp32 or wider."""
        pad, device = self._vocabulary.pad, prompts.device
        if self.model.is_encoder_decoder:
            before, output = padded(read, pad).to(device), padded(written, pad).to(device)
            logits = self.model.target_logits(prompts, before, shifted(output.ids, self.model.decoder_start))
            ids, counts = output.ids, output.real
        else:
            words = padded([[*one, *other] for one, other in zip(read, written, strict=True)], pad).to(device)
            lengths = torch.tensor([len(one) for one in read], device=device)
            counts = words.real & (torch.arange(words.ids.shape[1], device=device) >= lengths[:, None])
            # A token is guessed where the one before it stands.
            logits, ids = self.model.logits(prompts, words)[:, prompts.shape[1] - 1 : -1], words.ids
        chances = F.log_softmax(widened(logits), -1).gather(-1, ids[..., None])[..., 0]
        return (chances * counts).sum(1)


class AnswerFilter:
    """Scores pairs by asking whether the text fits: `vqa`, the probability of yes against no."""

    def __init__(
        self,
        bundle: PromptedBundle,
        device: torch.device,
        precision: str = "fp32",
        matching: Matching = AS_MADE,
    ) -> None:
        self.digest = bundle.card.weights
        self._answering = Answering(bundle, device, precision)
        self._images = bundle.card.blip2.images
        self._question = matching.question or QUESTION
        if not self._answering.fits(self._question.replace("{text}", "a " * _LEAST), YES_OR_NO):
            raise CapfiltError(
                f"filter.question leaves no room for {_LEAST} words of a text: this model reads questions of "
                f"{bundle.card.blip2.qformer.max_tokens} tokens",
                fix="ask a shorter one, as --set filter.question='does it show {text} ?'",
            )

    @property
    def images(self) -> Images:
        """How it sees a picture."""
        return self._images

    def score(self, batch: ImageBatch, texts: Sequence[Sequence[str]]) -> list[list[Scores]]:
        """Return scores by picture and text; see `protocols.Filter`."""
        of = [number for number, mine in enumerate(texts) for _ in mine]
        questions = [self._asked(text) for mine in texts for text in mine]
        found = self._answering.log_likelihoods(batch, of, questions, [YES_OR_NO] * len(questions))
        refuse_infinite("answers", *found)
        scores = iter(Scores(vqa=_against(yes, no)) for yes, no in found)
        return [[next(scores) for _ in mine] for mine in texts]

    def _asked(self, text: str) -> str:
        """Return the question about a text, which loses its end where the question would be cut otherwise."""

        def about(text: str) -> str:
            # Not str.format: a text may have braces of its own, and a question no place for it but this.
            return self._question.replace("{text}", text)

        return about(shortened(text, lambda some: self._answering.fits(about(some), YES_OR_NO)))


def _against(yes: float, no: float) -> float:
    """Return the probability of the first of two that have these log-likelihoods."""
    return 1 / (1 + math.exp(min(700.0, no - yes)))
