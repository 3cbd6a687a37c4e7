"""MED, the multimodal mixture of encoder and decoder (BLIP, section 3.1): three functions of one model.

Unimodal text encoder, image-grounded encoder and image-grounded decoder share everything but
self-attention. A model that serves fewer functions simply lacks the others' parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capfilt.errors import CapfiltError
from capfilt.models.checkpoints.names import few
from capfilt.models.devices import widened
from capfilt.models.learner import PairLearner
from capfilt.models.text import Packed, TextTransformer, WordHead
from capfilt.models.vision import ImageEncoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from capfilt.models.cards import Objective
    from capfilt.models.memory import Memory, TokenCache
    from capfilt.settings import Model

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.001, 0.5
"""Between these the learned temperature of ITC stays (BLIP's released code)."""


class MED(PairLearner):
    """Image encoder, hybrid text transformer and the heads of the objectives it is trained for."""

    def __init__(self, model: Model, vocabulary_size: int, objectives: Iterable[Objective]) -> None:
        super().__init__()
        self.objectives: tuple[Objective, ...] = tuple(
            o for o in ("itc", "itm", "lm") if o in set(objectives)
        )
        self._holds_image_encoder = False
        reads = "itc" in self.objectives or "itm" in self.objectives
        writes = "lm" in self.objectives
        self.image = ImageEncoder(model.vision, model.images)
        self.text = TextTransformer(
            model.text,
            vocabulary_size,
            self.image.width,
            (*(("encoder",) if reads else ()), *(("decoder",) if writes else ())),
            grounded=writes or "itm" in self.objectives,
        )
        if "itc" in self.objectives:
            self.image_projection = nn.Linear(self.image.width, model.embed)
            self.text_projection = nn.Linear(model.text.width, model.embed)
            self.temperature = nn.Parameter(torch.tensor(model.temperature))
        if "itm" in self.objectives:
            self.itm_head = nn.Linear(model.text.width, 2)
        if writes:
            self.word_head = WordHead(model.text, self.text.words)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.text.words.weight.device

    def clamp_temperature(self) -> None:
        """Hold the learned temperature within its bounds; called after every step."""
        if "itc" in self.objectives:
            with torch.no_grad():
                self.temperature.clamp_(LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE)

    def hold_image_encoder(self) -> None:
        """Keep the image encoder as it came: no gradients, and its batch norms' statistics stay."""
        self.image.requires_grad_(False)
        self._holds_image_encoder = True

    def train(self, mode: bool = True) -> MED:
        """Train or not; an image encoder that is held never does."""
        super().train(mode)
        if self._holds_image_encoder:
            self.image.eval()
        return self

    def checkpoint_gradients(self, on: bool) -> None:
        """Have the backward pass compute states again instead of keeping them, or not."""
        self.image.checkpoint_gradients(on)
        self.text.checkpointing = on

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return image states, (images, 1 + patches, image width), of pixels (images, 3, side, side)."""
        states: Tensor = self.image(pixels)
        return states.to(self.text.words.weight.dtype)

    def memory(self, image_states: Tensor, *, absorbed: bool = False) -> list[Memory]:
        """Return what cross-attention looks at of image states, a layer each; see `absorbs`."""
        return self.text.memory(image_states, absorbed=absorbed)

    def image_features(self, image_states: Tensor) -> Tensor:
        """Return ITC features of unit length, shape (images, embed), from the [class] state."""
        return F.normalize(widened(self.image_projection(image_states[:, 0])), dim=-1)

    def text_features(self, ids: Tensor, real: Tensor) -> Tensor:
        """Return ITC features of unit length, shape (rows, embed), of texts that begin with [CLS]."""
        return self._projected(self.text.read(ids, real)[:, 0])

    def packed_features(self, packed: Packed) -> Tensor:
        """Return the same of packed texts, shape (rows, texts, embed)."""
        return self._projected(self.text.read_firsts(packed))

    def itm_logits(self, ids: Tensor, real: Tensor, memory: Sequence[Memory]) -> Tensor:
        """Return (rows, 2) logits, column 1 for a match, of texts that begin with [ENC].

        `memory` holds one image a row, or one for several neighbouring rows.
        """
        logits: Tensor = self.itm_head(self.text.read(ids, real, memory)[:, 0])
        return logits

    def packed_itm_logits(self, packed: Packed, memory: Sequence[Memory]) -> Tensor:
        """Return (rows, texts, 2) logits of packed texts; `memory` holds one image a row."""
        logits: Tensor = self.itm_head(self.text.read_firsts(packed, memory))
        return logits

    def lm_logits(self, ids: Tensor, memory: Sequence[Memory]) -> Tensor:
        """Return logits of each next token, (rows, tokens, vocabulary), of texts that begin with [DEC]."""
        return self._word_logits(self.text.write(ids, memory))

    def next_logits(
        self, ids: Tensor, memory: Sequence[Memory], caches: list[TokenCache], start: Tensor
    ) -> Tensor:
        """Return logits of the token after these, (rows, vocabulary).

        `ids` (rows, tokens) stand at place `start`, a number on the device, and continue what the
        caches hold.
        """
        return self._word_logits(self.text.write(ids, memory, caches, start)[:, -1])

    def _projected(self, states: Tensor) -> Tensor:
        return F.normalize(widened(self.text_projection(states)), dim=-1)

    def _word_logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self.word_head(states, self.text.words)
        return logits


ABSORBED_TOKENS = 64
"""Per token, products with all image states cost a sixtieth of keys and values (base, 384 px)."""


def absorbs(tokens: int) -> bool:
    """Return whether to look at the image states themselves or to make keys and values of them.

    Both give the same; which is cheaper depends on how many text tokens look at an image in all.
    """
    return tokens <= ABSORBED_TOKENS


def adopt(model: MED, weights: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Take over every weight that is known by its name; returns (names left fresh, names left over).

    A captioner or filter that starts from a joint model takes the parts it has. A self-attention that
    is missing there starts as its twin of the other direction, which learnt on the same words. A weight of
    another shape is refused: to leave it fresh would look like a start from what was learnt.
    """
    own = model.state_dict()
    sources = {name: weights.get(name, weights.get(_twin(name))) for name in own}
    misshapen = [
        name
        for name, tensor in own.items()
        if (one := sources[name]) is not None and one.shape != tensor.shape
    ]
    if misshapen:
        raise CapfiltError(
            f"the model that is started from has other sizes: {few(misshapen)}",
            fix="start from a model that is built alike, or build this one like it",
        )
    for name, tensor in own.items():
        source = sources[name]
        if source is not None:
            tensor.copy_(source)
    return [name for name in own if sources[name] is None], [name for name in weights if name not in own]


def _twin(name: str) -> str:
    """Return the name of the same weight of the other direction's self-attention."""
    encoder, decoder = ".attention.encoder.", ".attention.decoder."
    return name.replace(encoder, decoder) if encoder in name else name.replace(decoder, encoder)
