"""The hybrid text transformer: one stack that reads, reads with an image, or writes (BLIP, section 3.1).

A layer has self-attention, cross-attention to the image and feed-forward, each followed by its norm
(post-norm, as in BERT). Which self-attention is used and whether the image is looked at makes the
three functions; everything but self-attention is shared between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # the name everybody reads

if TYPE_CHECKING:
    from capfilt.settings import Text

Direction = Literal["encoder", "decoder"]


@dataclass(frozen=True, slots=True)
class ImageMemory:
    """Keys and values of one layer's cross-attention, each (images, heads, states, head width)."""

    keys: Tensor
    values: Tensor

    def take(self, images: Tensor) -> ImageMemory:
        """Return the memory of the images at these positions, shape (rows,)."""
        return ImageMemory(self.keys[images], self.values[images])


class TokenCache:
    """Keys and values of one layer's causal self-attention over the tokens so far.

    Room for more tokens than there are is taken at once and doubled when it is full, so that a step
    copies one token and not all of them.
    """

    def __init__(self, room: int = 32) -> None:
        self.length = 0
        self._room = room
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (rows, heads, new tokens, head width) and return all keys and values so far."""
        end = self.length + keys.shape[2]
        if self._keys is None or self._values is None or end > self._keys.shape[2]:
            while self._room < end:
                self._room *= 2
            self._keys = self._roomier(self._keys, keys)
            self._values = self._roomier(self._values, values)
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was (beam search)."""
        for tensor in (self._keys, self._values):
            if tensor is not None:
                tensor[:, :, : self.length] = tensor[rows, :, : self.length]

    def _roomier(self, old: Tensor | None, like: Tensor) -> Tensor:
        rows, heads, _, width = like.shape
        new = like.new_empty(rows, heads, self._room, width)
        if old is not None:
            new[:, :, : self.length] = old[:, :, : self.length]
        return new


class SelfAttention(nn.Module):
    """Multi-head self-attention with its residual and norm."""

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.heads = text.heads
        self.dropout = text.dropout
        self.qkv = nn.Linear(text.width, 3 * text.width)
        self.out = nn.Linear(text.width, text.width)
        self.norm = nn.LayerNorm(text.width, eps=text.norm_epsilon)

    def forward(
        self, states: Tensor, visible: Tensor | None, *, causal: bool, cache: TokenCache | None
    ) -> Tensor:
        """Return new states, shape (rows, tokens, width).

        `visible` (rows, 1, 1, tokens) is true where a token may be attended to.
        """
        rows, tokens, width = states.shape
        qkv = self.qkv(states).view(rows, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=visible,
            is_causal=causal and tokens > 1,
            dropout_p=self.dropout if self.training else 0.0,
        )
        out = self.out(attended.transpose(1, 2).reshape(rows, tokens, width))
        new: Tensor = self.norm(states + F.dropout(out, self.dropout, self.training))
        return new


class CrossAttention(nn.Module):
    """Multi-head attention from text states to an image's states, with its residual and norm."""

    def __init__(self, text: Text, image_width: int) -> None:
        super().__init__()
        self.heads = text.heads
        self.dropout = text.dropout
        self.query = nn.Linear(text.width, text.width)
        self.key_value = nn.Linear(image_width, 2 * text.width)
        self.out = nn.Linear(text.width, text.width)
        self.norm = nn.LayerNorm(text.width, eps=text.norm_epsilon)

    def memory(self, image_states: Tensor) -> ImageMemory:
        """Return keys and values of image states, shape (images, states, image width)."""
        images, states, _ = image_states.shape
        both = self.key_value(image_states).view(images, states, 2, self.heads, -1)
        keys, values = both.permute(2, 0, 3, 1, 4)
        return ImageMemory(keys, values)

    def forward(self, states: Tensor, memory: ImageMemory) -> Tensor:
        """Return new states, shape (rows, tokens, width).

        Rows may be several to an image, side by side: their tokens then stand in one long query over
        that image's keys and values, which are never copied.
        """
        rows, tokens, width = states.shape
        images = len(memory.keys)
        queries = self.query(states).view(images, rows // images * tokens, self.heads, -1).transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            queries, memory.keys, memory.values, dropout_p=self.dropout if self.training else 0.0
        )
        out = self.out(attended.transpose(1, 2).reshape(rows, tokens, width))
        new: Tensor = self.norm(states + F.dropout(out, self.dropout, self.training))
        return new


class FeedForward(nn.Module):
    """Two linear maps with GELU between, with their residual and norm."""

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.dropout = text.dropout
        self.up = nn.Linear(text.width, text.feed_forward)
        self.down = nn.Linear(text.feed_forward, text.width)
        self.norm = nn.LayerNorm(text.width, eps=text.norm_epsilon)

    def forward(self, states: Tensor) -> Tensor:
        """Return new states, same shape."""
        out = self.down(F.gelu(self.up(states)))
        new: Tensor = self.norm(states + F.dropout(out, self.dropout, self.training))
        return new


class Layer(nn.Module):
    """One layer: a self-attention for each direction it serves, and the parts they share."""

    def __init__(
        self, text: Text, image_width: int, directions: tuple[Direction, ...], *, grounded: bool
    ) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({direction: SelfAttention(text) for direction in directions})
        self.cross = CrossAttention(text, image_width) if grounded else None
        self.feed_forward = FeedForward(text)

    def forward(
        self,
        states: Tensor,
        visible: Tensor | None,
        direction: Direction,
        memory: ImageMemory | None,
        cache: TokenCache | None,
    ) -> Tensor:
        """Return new states, shape (rows, tokens, width)."""
        states = self.attention[direction](states, visible, causal=direction == "decoder", cache=cache)
        if memory is not None and self.cross is not None:
            states = self.cross(states, memory)
        new: Tensor = self.feed_forward(states)
        return new


class TextTransformer(nn.Module):
    """Embeddings and layers; token ids in, states out."""

    def __init__(
        self,
        text: Text,
        vocabulary_size: int,
        image_width: int,
        directions: tuple[Direction, ...],
        *,
        grounded: bool,
    ) -> None:
        super().__init__()
        self.dropout = text.dropout
        self.words = nn.Embedding(vocabulary_size, text.width)
        self.positions = nn.Embedding(text.places, text.width)
        self.norm = nn.LayerNorm(text.width, eps=text.norm_epsilon)
        self.layers = nn.ModuleList(
            Layer(text, image_width, directions, grounded=grounded) for _ in range(text.layers)
        )
        self.apply(_initialise)

    def memory(self, image_states: Tensor) -> list[ImageMemory]:
        """Return, a layer each, the keys and values of image states (images, states, image width)."""
        return [layer.cross.memory(image_states) for layer in self.layers]  # type: ignore[operator, union-attr]

    def forward(
        self,
        ids: Tensor,
        real: Tensor | None,
        direction: Direction,
        memory: list[ImageMemory] | None = None,
        caches: list[TokenCache] | None = None,
    ) -> Tensor:
        """Return states, shape (rows, tokens, width), of token ids (rows, tokens).

        `real` (rows, tokens) is true where a token is no padding; the encoder needs it, and the
        decoder does not, since padding follows the text. With `memory` the image is looked at; its
        images may each serve several neighbouring rows. With `caches` the ids continue earlier ones.
        """
        start = caches[0].length if caches else 0
        if start and ids.shape[1] > 1:
            raise ValueError("what continues earlier tokens comes one token at a time")
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        states: Tensor = self.norm(self.words(ids) + self.positions(positions))
        states = F.dropout(states, self.dropout, self.training)
        visible = None if real is None or direction == "decoder" else real[:, None, None, :]
        for number, layer in enumerate(self.layers):
            states = layer(
                states,
                visible,
                direction,
                memory[number] if memory is not None else None,
                caches[number] if caches is not None else None,
            )
        return states


class WordHead(nn.Module):
    """The LM head: dense, GELU, norm, then the word embeddings transposed plus a bias."""

    def __init__(self, text: Text, words: nn.Embedding) -> None:
        super().__init__()
        self.dense = nn.Linear(text.width, text.width)
        self.norm = nn.LayerNorm(text.width, eps=text.norm_epsilon)
        self.bias = nn.Parameter(torch.zeros(words.num_embeddings))
        self.apply(_initialise)

    def forward(self, states: Tensor, words: nn.Embedding) -> Tensor:
        """Return logits over the vocabulary, shape (..., vocabulary)."""
        return F.linear(self.norm(F.gelu(self.dense(states))), words.weight, self.bias)


def _initialise(module: nn.Module) -> None:
    """BERT's initialisation: N(0, 0.02^2), no biases."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
