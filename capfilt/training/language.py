"""A step's loss where a frozen language model writes: BLIP-2's stage 2 (section 3.3) and InstructBLIP.

Whatever the data and whichever the language model, a row is something that is read and something that is to
be written after it; a plain caption is written from nothing, or from its own beginning. So there is one loss,
and what differs is how a row is laid out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from capfilt.draws import uniforms
from capfilt.models.devices import sent, widened
from capfilt.models.prompted import Words, one_row, read_instructions, shifted
from capfilt.training.objectives import Batch, Losses, Objective
from capfilt.training.parallel import ALONE, World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.models.language_vocabulary import LanguageVocabulary
    from capfilt.models.prompted import SoftPrompted
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings import Phase
    from capfilt.training.objectives import Setting


@dataclass(frozen=True, slots=True)
class InstructedBatch:
    """Pictures, each with something to read and what is to be written then: the rows of this process.

    All on the model's device; padding stands on the right, and counts for nothing.
    """

    pixels: Tensor
    """Normalised, shape (rows, 3, side, side)."""
    asked: Words | None
    """The instruction as the Q-Former reads it, [CLS] ... [SEP]; None where it reads no text (BLIP-2)."""
    read: Words
    """The instruction or prompt as the language model reads it: with its begin token in a decoder, with its
    end token in an encoder."""
    output: Words
    """What is to be written, without a begin token and with the end token unless that was cut off."""

    @property
    def ids(self) -> Tensor:
        """Ids of the outputs, shape (rows, tokens), where a batch of pairs has those of its captions."""
        return self.output.ids

    def part(self, number: int, parts: int) -> InstructedBatch:
        """Return one of several equal parts, in order."""
        rows = len(self.pixels) // parts
        some = slice(number * rows, (number + 1) * rows)
        asked = None if self.asked is None else _rows(self.asked, some)
        return InstructedBatch(self.pixels[some], asked, _rows(self.read, some), _rows(self.output, some))


def prompted(batch: Batch, tokens: int) -> InstructedBatch:
    """Return pairs whose captions' first tokens, as many as the prompt has, are read and not written.

    The prompt must stand in the captions, and its tokens include the begin token. For decoders alone: what
    an encoder reads ends with an end token. Source: LAVIS, Blip2OPT, which counts and does not look.
    """
    ids, real = batch.ids, batch.real
    return InstructedBatch(
        batch.pixels, None, Words(ids[:, :tokens], real[:, :tokens]), Words(ids[:, tokens:], real[:, tokens:])
    )


def language_losses(
    model: SoftPrompted,
    vocabulary: LanguageVocabulary,
    batch: Batch | InstructedBatch,
    phase: Phase,
    setting: Setting,
) -> Losses:
    """Return the LM loss of one batch, or of one part of a step's: this process's share.

    What a decoder is to write follows the queries and what it reads, in one row; an encoder reads after the
    queries, and its decoder writes. A pair has nothing to read: a decoder writes the whole caption, begin
    token included, from the queries (LAVIS); an encoder reads the beginning of the caption, cut at a place
    that is drawn, and the decoder writes the rest (BLIP-2, section 3.3: prefix language modelling).
    """
    prompts = model.soft_prompts(model.encode_image(batch.pixels), _asked(batch))
    if model.is_encoder_decoder:
        if isinstance(batch, InstructedBatch):
            read, output = batch.read, batch.output
        else:
            places = cuts(batch.real, len(vocabulary.begin), setting.key, setting.world)
            prefix, output = prefix_and_rest(Words(batch.ids, batch.real), places)
            # As encoders read any text, a prompt of no words too: with what the tokenizer puts after it.
            read, _ = one_row(prefix, _everywhere(vocabulary.closing, batch.ids), vocabulary.pad)
        logits = model.target_logits(prompts, read, shifted(output.ids, model.decoder_start))
        loss = _summed_loss(logits, output.ids, output.real, phase.label_smoothing)
    else:
        if isinstance(batch, InstructedBatch):
            words, targets = one_row(batch.read, batch.output, vocabulary.pad)
        else:
            words, targets = Words(batch.ids, batch.real), batch.real
        # A token is guessed where the one before it stands, the first one where the last query stands.
        logits = model.logits(prompts, words)[:, prompts.shape[1] - 1 : -1]
        loss = _summed_loss(logits, words.ids, targets, phase.label_smoothing)
    tokens = setting.tokens
    if tokens is None:
        found = language_targets_in(model, vocabulary, batch, [setting.key], setting.world)
        tokens = setting.world.total(found)
    loss = loss / tokens
    return Losses(phase.lm * loss, {"lm": loss.detach()})


def language_targets_in(
    model: SoftPrompted,
    vocabulary: LanguageVocabulary,
    batch: Batch | InstructedBatch,
    keys: Sequence[tuple[str | int, ...]],
    world: World = ALONE,
) -> Tensor:
    """Return how many tokens are to be written in these rows of a whole step, shape ().

    `keys` are those of the settings of the parts that the step is computed in, by which captions are cut.
    """
    if isinstance(batch, InstructedBatch):
        return batch.output.real.sum()
    tokens = batch.real.sum()
    if model.is_encoder_decoder:
        for number, key in enumerate(keys):
            real = batch.part(number, len(keys)).real
            tokens = tokens - cuts(real, len(vocabulary.begin), key, world).sum()
    return tokens


def greedy_ids(
    model: SoftPrompted, vocabulary: LanguageVocabulary, batch: Batch | InstructedBatch, tokens: int
) -> Tensor:
    """Return the likeliest outputs, ids (rows, tokens), the end token repeated after the end of one.

    A pair's picture is captioned without a prompt.
    """
    rows = len(batch.pixels)
    prompts = model.soft_prompts(model.encode_image(batch.pixels), _asked(batch))
    nothing = _everywhere(vocabulary.prompt(""), batch.ids)
    read = batch.read if isinstance(batch, InstructedBatch) else nothing
    written = read.ids.new_zeros((rows, 0))
    ended = torch.zeros(rows, dtype=torch.bool, device=written.device)
    for _ in range(tokens):
        # A few pictures and tokens now and then: caches would be quicker and longer to read.
        if model.is_encoder_decoder:
            start = written.new_full((rows, 1), model.decoder_start)
            last = model.target_logits(prompts, read, torch.cat([start, written], 1))[:, -1]
        else:
            so_far = Words(written, torch.ones_like(written, dtype=torch.bool))
            words, _ = one_row(read, so_far, vocabulary.pad)
            places = prompts.shape[1] - 1 + words.real.sum(1)
            last = model.logits(prompts, words)[torch.arange(rows, device=places.device), places]
        following = last.argmax(-1).masked_fill(ended, vocabulary.sep)
        ended = ended | (following == vocabulary.sep)
        written = torch.cat([written, following[:, None]], 1)
    return written


LANGUAGE = Objective(language_losses, language_targets_in, greedy_ids)
"""Of a frozen language model behind a Q-Former."""


def asked_for(
    instruction: str, reader: Vocabulary, vocabulary: LanguageVocabulary, qformer_tokens: int
) -> Objective:
    """Return the objective in which plain captions answer an instruction, as InstructBLIP's are trained.

    `reader` reads it for the Q-Former, in `qformer_tokens` at most. Batches of instructions are taken as they
    are.
    """
    asked = read_instructions(reader, [instruction], qformer_tokens)
    read = vocabulary.prompt(instruction)

    def put(batch: Batch | InstructedBatch) -> InstructedBatch:
        if isinstance(batch, InstructedBatch):
            return batch
        first = len(vocabulary.begin)
        output = Words(batch.ids[:, first:], batch.real[:, first:])
        question = _everywhere(asked.ids[0].tolist(), batch.ids)
        return InstructedBatch(batch.pixels, question, _everywhere(read, batch.ids), output)

    return Objective(
        lambda model, words, batch, *rest: language_losses(model, words, put(batch), *rest),
        lambda model, words, batch, *rest: language_targets_in(model, words, put(batch), *rest),
        lambda model, words, batch, tokens: greedy_ids(model, words, put(batch), tokens),
    )


def cuts(real: Tensor, least: int, key: tuple[str | int, ...], world: World = ALONE) -> Tensor:
    """Draw where captions are cut: how many of each one's tokens go to the encoder, long, shape (rows,).

    `real` (rows, tokens) is true where a token is no padding. Any number is as likely as any other, from
    `least`, the tokens that begin any text, to all but the last token before the end token. A prefix may hold
    no word, since without a prompt a picture is captioned from none; the rest holds one, for to be asked for
    the end alone would teach nothing of the picture. Keyed by the row's number in the batch of all processes.
    """
    rows = len(real) * world.size
    numbers = sent(torch.from_numpy(uniforms(rows, "prefix", *key)), real.device)[world.mine(rows)]
    return least + (numbers * (real.sum(1) - 1 - least).clamp(min=1)).long()


def prefix_and_rest(words: Words, places: Tensor) -> tuple[Words, Words]:
    """Cut captions after so many tokens, (rows,): what stands before the place, and what stands after it.

    Both are as wide as the captions, (rows, tokens): to make them narrower, a GPU would have to be asked.
    """
    columns = torch.arange(words.ids.shape[1], device=words.ids.device)
    before = columns < places[:, None]
    moved = columns + places[:, None]
    inside = moved < len(columns)
    moved = moved.clamp(max=len(columns) - 1)
    rest = Words(words.ids.gather(1, moved), words.real.gather(1, moved) & inside)
    return Words(words.ids, words.real & before), rest


def _summed_loss(logits: Tensor, ids: Tensor, counts: Tensor, label_smoothing: float) -> Tensor:
    """Sum the cross entropies of logits (rows, tokens, vocabulary) and ids where `counts` (rows, tokens)."""
    return F.cross_entropy(
        widened(logits.flatten(0, 1)),
        ids.masked_fill(~counts, _IGNORED).flatten(),
        label_smoothing=label_smoothing,
        ignore_index=_IGNORED,
        reduction="sum",
    )


_IGNORED = -100


def _asked(batch: Batch | InstructedBatch) -> Words | None:
    """Return what the Q-Former reads."""
    return batch.asked if isinstance(batch, InstructedBatch) else None


def _everywhere(ids: Sequence[int], like: Tensor) -> Words:
    """Return the same tokens for as many rows as `like` (rows, tokens) has, on its device."""
    rows = sent(torch.tensor(ids, dtype=torch.long), like.device).expand(len(like), -1)
    return Words(rows, torch.ones_like(rows, dtype=torch.bool))


def _rows(words: Words, some: slice) -> Words:
    return Words(words.ids[some], words.real[some])
