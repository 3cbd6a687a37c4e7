"""Floating point operations of a model's parts, counted from shapes: two for each product that is summed.

Products of matrices and convolutions count; norms, softmax, GELU and embeddings do not, which are a few
operations a number. What is counted is what is computed here: absorbed cross-attention, a last layer for
first tokens alone, padding that goes along. So the share of a processor's peak is that of the work it did.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from capfilt.models.memory import StatesMemory
from capfilt.models.vision import ImageEncoder

if TYPE_CHECKING:
    from torch import nn

    from capfilt.models.cards import Card
    from capfilt.models.med import MED
    from capfilt.settings import Model, Text


@dataclass(frozen=True)
class EncoderCost:
    """What one picture costs an image encoder, and what it leaves for the text."""

    flops: int
    states: int
    """Image states of a picture, the [class] token's among them."""
    width: int
    """Numbers in a state."""


@lru_cache(maxsize=8)
def image_encoder_cost(model: Model) -> EncoderCost:
    """Return what a picture costs; from shapes for BLIP's own ViT, else by one pass without numbers."""
    vision = model.vision
    if vision.timm is not None:
        return _traced(model)
    patches = (model.images.size_px // vision.patch_px) ** 2
    states, width = patches + 1, vision.width
    layer = 2 * states * width * 3 * width  # queries, keys, values
    layer += 4 * states**2 * width  # scores, and states mixed by them
    layer += 2 * states * width**2
    layer += 4 * states * width * int(width * vision.mlp_ratio)
    return EncoderCost(_stem(model, patches) + vision.layers * layer, states, width)


def _stem(model: Model, patches: int) -> int:
    """Return what it costs to make patches of pixels; see `vision.ConvolutionalStem` for the second kind."""
    width, patch_px = model.vision.width, model.vision.patch_px
    if model.vision.stem == "patch":
        return 2 * patches * width * 3 * patch_px**2
    halvings = int(math.log2(patch_px))
    widths = [3, *(max(32, width // 2**n) for n in range(halvings - 1, 0, -1)), width]
    side, flops = model.images.size_px, 2 * patches * width**2
    for before, after in itertools.pairwise(widths):
        flops += 2 * side**2 * 9 * before * after
        side //= 2
    return flops


def _traced(model: Model) -> EncoderCost:
    from torch.utils.flop_counter import FlopCounterMode

    side = model.images.size_px
    with torch.device("meta"), torch.no_grad():
        encoder = ImageEncoder(model.vision, model.images).eval()
        with FlopCounterMode(display=False) as counter:
            states = encoder.vit.forward_features(torch.empty(1, 3, side, side))
    return EncoderCost(int(counter.get_total_flops()), int(states.shape[1]), encoder.width)


@dataclass(frozen=True)
class TextPass:
    """One pass of tokens through the text transformer."""

    rows: int
    tokens: int
    """Of a row, padding included."""
    seen: int
    """Tokens that each of them may look at: those of the row, or the room of its cache."""
    firsts: int | None
    """Tokens of a row whose last state is wanted; None for all of them."""
    images: int
    """Pictures that are looked at; 0 where the text is read alone."""
    absorbed: bool
    """Whether the image states themselves are looked at, or keys and values made of them."""
    writes: bool


class CountedText:
    """Notes every pass through a model's text transformer, as long as it is open."""

    def __init__(self, model: MED, card: Card) -> None:
        self.passes: list[TextPass] = []
        self._model = model
        self._card = card
        self._hooks: list[Any] = []

    def __enter__(self) -> CountedText:
        # The first layer sees the shapes of a pass; only the last one is told which tokens are wanted.
        first, last = self._model.text.layers[0], self._model.text.layers[-1]
        self._hooks = [
            first.register_forward_pre_hook(self._begins),
            last.register_forward_pre_hook(self._ends, with_kwargs=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def batch_cost(self) -> int:
        """Return what the passes of one batch of pictures cost, and forget them.

        The first of them looks at all the pictures, of which keys and values are made once.
        """
        passes, self.passes = self.passes, []
        made = next((one for one in passes if one.images), None)
        flops = memory_cost(self._card, made.images, absorbed=made.absorbed) if made else 0
        alone = next((one for one in passes if not one.images and not one.writes), None)
        if alone:  # where texts have features for ITC their pictures have too, once
            flops += alone.rows * 2 * image_encoder_cost(self._card.med).width * self._card.med.embed
        return flops + sum(text_cost(self._card, one) for one in passes)

    def _begins(self, _layer: nn.Module, given: tuple[Any, ...]) -> None:
        states, _, direction, memory = given[:4]
        cache = given[4] if len(given) > 4 else None
        rows, tokens, _ = states.shape
        absorbed = isinstance(memory, StatesMemory)
        images = 0 if memory is None else memory.images if absorbed else len(memory.keys)
        seen = tokens if cache is None else cache.room
        self.passes.append(TextPass(rows, tokens, seen, None, images, absorbed, direction == "decoder"))

    def _ends(self, _layer: nn.Module, _given: tuple[Any, ...], named: dict[str, Any]) -> None:
        firsts = named.get("firsts")
        if firsts is not None:
            one = self.passes.pop()
            self.passes.append(replace(one, firsts=int(firsts.shape[1])))


def text_cost(card: Card, one: TextPass) -> int:
    """Return what a pass costs, its head included; keys and values of image states are `memory_cost`."""
    text, seen = card.med.text, image_encoder_cost(card.med)
    wanted = one.tokens if one.firsts is None else one.firsts
    flops = (text.layers - 1) * _layer(text, seen, one, one.tokens) + _layer(text, seen, one, wanted)
    width = text.width
    if one.writes:  # the head is for the last token of each row
        head = 2 * width**2 + 2 * width * card.vocabulary
        return one.rows * (flops + head)
    if one.images:
        return one.rows * (flops + wanted * 4 * width)
    return one.rows * (flops + wanted * 2 * width * card.med.embed)  # text read alone has features for ITC


def memory_cost(card: Card, images: int, *, absorbed: bool) -> int:
    """Return what it costs to make keys and values of pictures' states, once for all their tokens."""
    seen = image_encoder_cost(card.med)
    each = 0 if absorbed else 4 * seen.states * seen.width * card.med.text.width
    return images * card.med.text.layers * each


def _layer(text: Text, image: EncoderCost, one: TextPass, wanted: int) -> int:
    """Return what one layer costs a row whose states go on for `wanted` of its tokens."""
    width = text.width
    flops = 2 * one.tokens * width * 3 * width
    flops += wanted * (4 * one.seen * width + 2 * width**2)
    if one.images:
        flops += wanted * 4 * width**2  # the query and what follows the look
        if one.absorbed:  # queries to the width of a state and back, scores and mixtures at that width
            flops += wanted * 4 * (width * image.width + text.heads * image.states * image.width)
        else:
            flops += wanted * 4 * image.states * width
    return flops + wanted * 4 * width * text.feed_forward
