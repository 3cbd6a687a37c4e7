"""Stage 2 of BLIP-2, and InstructBLIP: a Q-Former's queries as soft prompts of a frozen language model.

Source: Li et al., BLIP-2, 2023, section 3.3; Dai et al., InstructBLIP, 2023, section 2.3. Parts have the
names of transformers' Blip2ForConditionalGeneration and InstructBlipForConditionalGeneration, so that the
weights are read there as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from capfilt.models.frozen import FrozenImageEncoder
from capfilt.models.language_model import (
    Continued,
    build_language_model,
    check_places,
    decoder_start,
    embedding_width,
    recompute_layers,
)
from capfilt.models.learner import Learner
from capfilt.models.questions import within

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.models.cards import Objective
    from capfilt.models.language_vocabulary import LanguageVocabulary
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings.models import Blip2


@dataclass(frozen=True)
class Words:
    """Texts as tokens, padded to the longest."""

    ids: Tensor
    """(rows, tokens), long."""
    real: Tensor
    """(rows, tokens), true where a token is no padding."""

    def to(self, device: torch.device) -> Words:
        """Return them on a device."""
        return Words(self.ids.to(device), self.real.to(device))


class SoftPrompted(Learner):
    """A frozen image encoder, a Q-Former, a linear map, and a frozen language model.

    `vocabulary_size` are the entries of the vocabulary that InstructBLIP's Q-Former reads instructions
    with, by default those that the settings name.
    """

    objectives: tuple[Objective, ...] = ("lm",)

    def __init__(self, model: Blip2, vocabulary_size: int | None = None) -> None:
        super().__init__()
        self.family = model.family
        self.vision_model = FrozenImageEncoder(model)
        self.query_tokens = nn.Parameter(torch.empty(1, model.qformer.queries, model.qformer.width))
        nn.init.normal_(self.query_tokens, std=0.02)
        self.qformer = _qformer(model, self.vision_model.width, vocabulary_size)
        language_model = build_language_model(model.language.config)
        self.language_projection = nn.Linear(model.qformer.width, embedding_width(language_model))
        self.language_model = language_model
        self.is_encoder_decoder = bool(language_model.config.is_encoder_decoder)
        self.qformer_passes = 0

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.query_tokens.device

    @property
    def queries(self) -> int:
        """How many states stand before the text."""
        return self.query_tokens.shape[1]

    @property
    def decoder_start(self) -> int:
        """The id that the decoder of an encoder-decoder begins with."""
        return decoder_start(self.language_model)

    def train(self, mode: bool = True) -> SoftPrompted:
        """Set training mode, in which the language model stays as it is used: it is frozen."""
        super().train(mode)
        self.language_model.eval()
        return self

    def checkpoint_gradients(self, on: bool) -> None:
        """Have the backward pass compute states again instead of keeping them, or not."""
        recompute_layers(self.qformer, on)
        recompute_layers(self.language_model, on)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return image states, (images, states, image width), of pixels (images, 3, side, side)."""
        states: Tensor = self.vision_model(pixels)
        return states

    def query_states(self, states: Tensor, instruction: Words | None = None) -> Tensor:
        """Return what the queries found in image states: (images, queries, Q-Former width).

        With an instruction, a row for each image in the Q-Former's own vocabulary, queries and instruction
        see each other (InstructBLIP, section 2.3); the instruction's own states go no further. Computed in
        the numbers of its weights, whatever the rest is in: in half precision the Q-Former is unstable.
        """
        self.qformer_passes += len(states)
        queries = self.query_tokens.expand(len(states), -1, -1)
        seen = states.to(self.query_tokens.dtype)
        inputs: dict[str, Any] = {"query_embeds": queries, "encoder_hidden_states": seen}
        if self.family == "instructblip":
            inputs["input_ids"] = None if instruction is None else instruction.ids
        elif instruction is not None:
            raise ValueError("the Q-Former of BLIP-2's stage 2 reads no text")
        if instruction is not None:
            ones = instruction.real.new_ones(len(states), self.queries)
            inputs["attention_mask"] = torch.cat([ones, instruction.real], 1).long()
        with torch.autocast(states.device.type, enabled=False):
            found: Tensor = self.qformer(**inputs).last_hidden_state
        return found[:, : self.queries]

    def soft_prompts(self, states: Tensor, instruction: Words | None = None) -> Tensor:
        """Return what stands before the text in the language model: (images, queries, language width)."""
        found = self.query_states(states, instruction)
        with torch.autocast(states.device.type, enabled=False):
            prompts: Tensor = self.language_projection(found)
        return prompts

    def logits(self, prompts: Tensor, words: Words) -> Tensor:
        """Return a decoder-only model's logits of each next token, (rows, queries + tokens, vocabulary).

        `prompts` hold a row for each text. Padding, which follows a text, is masked; what is computed there
        means nothing.
        """
        embedded, seen = self._with_prompts(prompts, words)
        read = self.language_model(inputs_embeds=embedded, attention_mask=seen, use_cache=False)
        logits: Tensor = read.logits
        return logits

    def target_logits(self, prompts: Tensor, read: Words | None, decoder_ids: Tensor) -> Tensor:
        """Return an encoder-decoder's logits, (rows, tokens, vocabulary), after each of `decoder_ids`.

        The encoder reads the prompts and the texts `read` after them; the decoder reads `decoder_ids` (rows,
        tokens), whose first is `decoder_start`: targets shifted by one to the right. Padding follows a text.
        """
        embedded, seen = self._with_prompts(prompts, read)
        check_places(self.language_model, 0, decoder_ids.shape[1])
        logits: Tensor = self.language_model(
            inputs_embeds=embedded, attention_mask=seen, decoder_input_ids=decoder_ids, use_cache=False
        ).logits
        return logits

    def begin(self, prompts: Tensor, ids: Tensor) -> tuple[Continued, Tensor]:
        """Begin texts with prompts and the ids of the words after them, (rows, tokens), none of it padding.

        Returns what goes on from there and the logits of the first token that is written, (rows, vocabulary).
        """
        return Continued.after(self.language_model, prompts, ids)

    def _with_prompts(self, prompts: Tensor, words: Words | None) -> tuple[Tensor, Tensor]:
        """Return the language model's input states, and which of them are to be seen."""
        embeddings = self.language_model.get_input_embeddings()
        embedded = prompts.to(embeddings.weight.dtype)
        seen = torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)
        check_places(self.language_model, embedded.shape[1], 0 if words is None else words.ids.shape[1])
        if words is None:
            return embedded, seen
        return torch.cat([embedded, embeddings(words.ids)], 1), torch.cat([seen, words.real.long()], 1)


def one_row(read: Words, output: Words, pad: int) -> tuple[Words, Tensor]:
    """Return rows in which the output follows what is read, and which of their tokens are the output's.

    The padding of both stands behind both, so that positions are counted without gaps. Shape
    (rows, tokens read + tokens written). Source: LAVIS, Blip2VicunaInstruct, concat_text_input_output.
    """
    ids, real = torch.cat([read.ids, output.ids], 1), torch.cat([read.real, output.real], 1)
    written = torch.cat([torch.zeros_like(read.real), output.real], 1)
    # A stable sort of whether a token is padding brings real ones to the front, in their order.
    order = (~real).to(torch.uint8).argsort(stable=True, dim=1)
    ids, real = ids.gather(1, order), real.gather(1, order)
    return Words(ids.masked_fill(~real, pad), real), written.gather(1, order)


def shifted(ids: Tensor, start: int) -> Tensor:
    """Return what a decoder is given to write ids (rows, tokens): a start token, then all but the last."""
    return torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], 1)


def read_instructions(reader: Vocabulary, texts: Sequence[str], max_tokens: int) -> Words:
    """Return instructions as InstructBLIP's Q-Former reads them: [CLS] ... [SEP], cut on the left.

    What an instruction asks stands at its end (LAVIS: truncation_side="left").
    """
    return padded([within(ids, 1, max_tokens) for ids in whole_instructions(reader, texts)], reader.pad)


def whole_instructions(reader: Vocabulary, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of instructions for the Q-Former, [CLS] ... [SEP], however many they are."""
    ids, real = reader.encode(texts, "cls", 4 * max(map(len, texts), default=0) + 2)
    return [row[seen].tolist() for row, seen in zip(ids, real, strict=True)]


def read_questions(vocabulary: LanguageVocabulary, texts: Sequence[str], max_tokens: int) -> Words:
    """Return instructions as the language model reads them, cut on the left, for the same reason."""
    begin = len(vocabulary.begin)
    return padded([within(vocabulary.prompt(text), begin, max_tokens) for text in texts], vocabulary.pad)


def padded(rows: Sequence[Sequence[int]], pad: int) -> Words:
    """Return rows of ids as texts, filled up on the right."""
    longest = max(map(len, rows), default=0)
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    return Words(ids.view(len(rows), longest), torch.arange(longest)[None, :] < lengths[:, None])


def _qformer(model: Blip2, image_width: int, vocabulary_size: int | None) -> nn.Module:
    """Return transformers' Q-Former; that of InstructBLIP has the text side too."""
    from transformers import Blip2QFormerConfig, Blip2QFormerModel, InstructBlipQFormerConfig
    from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel

    own = model.qformer
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary_size or own.vocabulary,
        "hidden_size": own.width,
        "num_hidden_layers": own.layers,
        "num_attention_heads": own.heads,
        "intermediate_size": own.feed_forward,
        "max_position_embeddings": own.places,
        "hidden_dropout_prob": own.dropout,
        "attention_probs_dropout_prob": own.dropout,
        "layer_norm_eps": own.norm_epsilon,
        "cross_attention_frequency": own.cross_every,
        "encoder_hidden_size": image_width,
    }
    made: nn.Module
    if model.family == "instructblip":
        made = InstructBlipQFormerModel(InstructBlipQFormerConfig(**sizes))
    else:
        made = Blip2QFormerModel(Blip2QFormerConfig(**sizes))
    return made
