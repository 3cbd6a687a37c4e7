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
from torch.utils.checkpoint import checkpoint

from capfilt.models.memory import ImageMemory, Memory, StatesMemory, TokenCache
from capfilt.models.packed import product

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.settings import Text

Direction = Literal["encoder", "decoder"]


def attend(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
    """Return attention's result, (rows, heads, queries, head width); `visible` is broadcast to its scores."""
    if queries.device.type == "cpu" and queries.dtype == torch.bfloat16:
        # There the fused kernel is several times slower than three plain steps.
        scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        return F.dropout(scores.softmax(-1), dropout) @ values
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, dropout_p=dropout)


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
        self,
        states: Tensor,
        visible: Tensor | None,
        *,
        cache: TokenCache | None = None,
        places: Tensor | None = None,
        firsts: Tensor | None = None,
    ) -> Tensor:
        """Return new states, shape (rows, tokens, width), or (rows, firsts, width) of these tokens alone.

        `visible` is true where a token (third dimension) may attend to another (fourth).
        """
        rows, tokens, width = states.shape
        qkv = self.qkv(states).view(rows, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None and places is not None:
            keys, values = cache.extend(keys, values, places)
        if firsts is not None:
            states = picked(states, firsts)
            queries = queries.gather(2, firsts[:, None, :, None].expand(-1, self.heads, -1, queries.shape[3]))
            tokens = firsts.shape[1]
            if visible is not None and visible.shape[2] > 1:
                visible = visible.gather(2, firsts[:, None, :, None].expand(-1, 1, -1, visible.shape[3]))
        attended = attend(queries, keys, values, visible, self.dropout if self.training else 0.0)
        out = self.out(attended.transpose(1, 2).reshape(rows, tokens, width))
        new: Tensor = self.norm(states + F.dropout(out, self.dropout, self.training))
        return new


def picked(states: Tensor, places: Tensor) -> Tensor:
    """Return the states (rows, places, width) at these places, (rows, places), of (rows, tokens, width)."""
    return states.gather(1, places[:, :, None].expand(-1, -1, states.shape[2]))


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

    def forward(self, states: Tensor, memory: Memory) -> Tensor:
        """Return new states, shape (rows, tokens, width).

        Rows may be several to an image, side by side: their tokens then stand in one long query over
        that image's keys and values, which are never copied.
        """
        rows, tokens, width = states.shape
        queries = self.query(states)
        if isinstance(memory, StatesMemory):
            attended = self._absorbed(queries, memory)
        else:
            images = len(memory.keys)
            queries = queries.view(images, rows // images * tokens, self.heads, -1).transpose(1, 2)
            dropout = self.dropout if self.training else 0.0
            attended = attend(queries, memory.keys, memory.values, None, dropout).transpose(1, 2)
        out = self.out(attended.reshape(rows, tokens, width))
        new: Tensor = self.norm(states + F.dropout(out, self.dropout, self.training))
        return new

    def _absorbed(self, queries: Tensor, memory: StatesMemory) -> Tensor:
        """Return attention's result without keys and values: ((q Wk) x, then (p x) Wv.

        A query's product with the bias of the keys is the same for every state, and softmax does not see
        it; the probabilities sum to one, so that the bias of the values is added whole.
        """
        image_width = memory.states.shape[-1]
        head = queries.shape[-1] // self.heads
        to_keys, to_values = self.key_value.weight.view(2, self.heads, head, image_width)
        each = queries.reshape(-1, self.heads, head).transpose(0, 1) * head**-0.5
        wide = (each @ to_keys).view(self.heads, memory.images, -1, image_width)
        shares = memory.scores(wide.transpose(0, 1).flatten(1, 2)).softmax(-1)
        mixed = memory.mixed(shares).view(memory.images, self.heads, -1, image_width)
        values = mixed.transpose(0, 1).flatten(1, 2) @ to_values.transpose(1, 2)
        bias = self.key_value.bias[self.heads * head :].view(self.heads, 1, head)
        result: Tensor = (values + bias).transpose(0, 1).reshape(queries.shape)
        return result


class FeedForward(nn.Module):
    """Two linear maps with GELU between, with their residual and norm."""

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.dropout = text.dropout
        self.up = nn.Linear(text.width, text.feed_forward)
        self.act = nn.GELU()
        self.down = nn.Linear(text.feed_forward, text.width)
        self.norm = nn.LayerNorm(text.width, eps=text.norm_epsilon)

    def forward(self, states: Tensor) -> Tensor:
        """Return new states, same shape."""
        out = self.down(self.act(self.up(states)))
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
        memory: Memory | None,
        cache: TokenCache | None = None,
        places: Tensor | None = None,
        firsts: Tensor | None = None,
    ) -> Tensor:
        """Return new states, shape (rows, tokens, width); see `SelfAttention` for the rest."""
        attention = self.attention[direction]
        states = attention(states, visible, cache=cache, places=places, firsts=firsts)
        if memory is not None and self.cross is not None:
            states = self.cross(states, memory)
        new: Tensor = self.feed_forward(states)
        return new


@dataclass(frozen=True, slots=True)
class Packed:
    """Texts side by side in rows, each seeing itself alone: several texts of an image without padding."""

    ids: Tensor
    """(rows, tokens)"""
    text: Tensor
    """(rows, tokens): number of the text in its row that a token belongs to; -1 for padding."""
    places: Tensor
    """(rows, tokens): place of a token in its text."""
    firsts: Tensor
    """(rows, texts): where each text of a row begins; 0 for a text that a row lacks."""

    @property
    def visible(self) -> Tensor:
        """True where a token may be attended to, (rows, 1, tokens, tokens)."""
        return (self.text[:, :, None] == self.text[:, None, :])[:, None]


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
        self.checkpointing = False
        self.dropout = text.dropout
        self.words = nn.Embedding(vocabulary_size, text.width)
        self.positions = nn.Embedding(text.places, text.width)
        self.norm = nn.LayerNorm(text.width, eps=text.norm_epsilon)
        self.layers = nn.ModuleList(
            Layer(text, image_width, directions, grounded=grounded) for _ in range(text.layers)
        )
        self.apply(_initialise)

    def memory(self, image_states: Tensor, *, absorbed: bool = False) -> list[Memory]:
        """Return, a layer each, what is looked at of image states (images, states, image width)."""
        if absorbed:
            one: Memory = StatesMemory(image_states)
            return [one] * len(self.layers)
        return [layer.cross.memory(image_states) for layer in self.layers]  # type: ignore[operator, union-attr]

    def read(self, ids: Tensor, real: Tensor, memory: Sequence[Memory] | None = None) -> Tensor:
        """Return states, (rows, tokens, width), of texts (rows, tokens), read in both directions.

        `real` (rows, tokens) is true where a token is no padding. With `memory` the image is looked at;
        its images may each serve several neighbouring rows.
        """
        places = torch.arange(ids.shape[1], device=ids.device)
        states = self._embedded(ids, places)
        for number, layer in enumerate(self.layers):
            visible = real[:, None, None, :]
            states = self._run(layer, states, visible, "encoder", memory[number] if memory else None)
        return states

    def read_firsts(self, packed: Packed, memory: Sequence[Memory] | None = None) -> Tensor:
        """Return the state of each text's first token, (rows, texts, width).

        The last layer is computed for the first tokens alone: nothing looks at the others any more.
        """
        states, visible = self._embedded(packed.ids, packed.places), packed.visible
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            states = layer(
                states,
                visible,
                "encoder",
                memory[number] if memory else None,
                firsts=packed.firsts if number == last else None,
            )
        return states

    def write(
        self,
        ids: Tensor,
        memory: Sequence[Memory],
        caches: list[TokenCache] | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Return states, (rows, tokens, width), each token seeing those before it.

        Padding, which follows the text, is seen by no token that counts. With `caches` the ids stand
        at place `start`, a number on the device, and continue what the caches hold.
        """
        tokens = ids.shape[1]
        places = torch.arange(tokens, device=ids.device)
        if start is not None:
            places = places + start
        room = torch.arange(caches[0].room, device=ids.device) if caches else places
        visible = room[None, None, None, :] <= places[None, None, :, None]
        states = self._embedded(ids, places)
        for number, layer in enumerate(self.layers):
            cache = caches[number] if caches else None
            states = self._run(layer, states, visible, "decoder", memory[number], cache, places)
        return states

    def _run(self, layer: nn.Module, *arguments: object) -> Tensor:
        """Return a layer's states; while a model trains they may be computed again instead of kept."""
        if self.checkpointing and torch.is_grad_enabled():
            again: Tensor = checkpoint(layer, *arguments, use_reentrant=False)
            return again
        states: Tensor = layer(*arguments)
        return states

    def _embedded(self, ids: Tensor, places: Tensor) -> Tensor:
        states = self.norm(self.words(ids) + self.positions(places))
        return F.dropout(states, self.dropout, self.training)


class WordHead(nn.Module):
    """The LM head: dense, GELU, norm, then the word embeddings transposed plus a bias."""

    def __init__(self, text: Text, words: nn.Embedding) -> None:
        super().__init__()
        self.blocks: Tensor | None = None
        """The word embeddings laid out, where the model was made ready for that."""
        self.dense = nn.Linear(text.width, text.width)
        self.norm = nn.LayerNorm(text.width, eps=text.norm_epsilon)
        self.bias = nn.Parameter(torch.zeros(words.num_embeddings))
        self.apply(_initialise)

    def forward(self, states: Tensor, words: nn.Embedding) -> Tensor:
        """Return logits over the vocabulary, shape (..., vocabulary)."""
        states = self.norm(F.gelu(self.dense(states)))
        if self.blocks is not None:
            return product(states, self.blocks, self.bias)
        return F.linear(states, words.weight, self.bias)


def _initialise(module: nn.Module) -> None:
    """BERT's initialisation: N(0, 0.02^2), no biases."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
