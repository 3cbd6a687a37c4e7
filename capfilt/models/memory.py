"""What the text transformer looks back at: an image's states, and the tokens that were written so far."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from capfilt.models.packed import can_lay_out, laid_out, product


@dataclass(frozen=True, slots=True)
class ImageMemory:
    """Keys and values of one layer's cross-attention, each (images, heads, states, head width)."""

    keys: Tensor
    values: Tensor

    def take(self, images: Tensor) -> ImageMemory:
        """Return the memory of the images at these positions, shape (rows,)."""
        return ImageMemory(self.keys[images], self.values[images])


class StatesMemory:
    """Image states that every layer's cross-attention looks at, keys and values being absorbed into it.

    On a CPU the states are laid out once, for all tokens and layers, in the two ways they are used.
    """

    def __init__(self, states: Tensor) -> None:
        self.states = states
        """(images, states, image width)"""
        self._by_state = self._by_width = None  # type: list[Tensor] | None
        if can_lay_out(states):
            self._by_state = [laid_out(image) for image in states]
            self._by_width = [laid_out(image.t().contiguous()) for image in states]

    @property
    def images(self) -> int:
        """How many images it holds."""
        return len(self.states if self._by_state is None else self._by_state)

    def take(self, images: Tensor) -> StatesMemory:
        """Return the memory of the images at these positions, shape (rows,)."""
        taken = StatesMemory.__new__(StatesMemory)
        taken.states = self.states
        taken._by_state, taken._by_width = self._by_state, self._by_width
        if self._by_state is None or self._by_width is None:
            taken.states = self.states[images]
        else:
            numbers = images.tolist()
            taken._by_state = [self._by_state[n] for n in numbers]
            taken._by_width = [self._by_width[n] for n in numbers]
        return taken

    def scores(self, queries: Tensor) -> Tensor:
        """Return products with every state, (images, queries, states), of (images, queries, width)."""
        if self._by_state is None:
            return queries @ self.states.transpose(1, 2)
        return torch.stack([product(q, x) for q, x in zip(queries, self._by_state, strict=True)])

    def mixed(self, shares: Tensor) -> Tensor:
        """Return the states mixed by shares (images, queries, states): (images, queries, width)."""
        if self._by_width is None:
            return shares @ self.states
        return torch.stack([product(p, x) for p, x in zip(shares, self._by_width, strict=True)])


@dataclass(frozen=True, slots=True)
class SeenStates:
    """Image states as they are, (images, states, width): what a Q-Former's own layers look at."""

    states: Tensor

    def take(self, images: Tensor) -> SeenStates:
        """Return the memory of the images at these positions, shape (rows,)."""
        return SeenStates(self.states[images])


Memory = ImageMemory | StatesMemory
"""What a layer of the text transformer looks at."""
Seen = Memory | SeenStates
"""What any model looks at."""


def joined(first: Seen, then: Seen) -> Seen:
    """Return the memory of some images, then others'."""
    if isinstance(first, ImageMemory) and isinstance(then, ImageMemory):
        return ImageMemory(torch.cat([first.keys, then.keys]), torch.cat([first.values, then.values]))
    if isinstance(first, SeenStates) and isinstance(then, SeenStates):
        return SeenStates(torch.cat([first.states, then.states]))
    assert isinstance(first, StatesMemory)
    assert isinstance(then, StatesMemory)
    return StatesMemory(torch.cat([first.states, then.states]))


class TokenCache:
    """Keys and values of one layer's causal self-attention over the tokens so far.

    The room for all tokens is taken at once and every step looks at the whole of it, what is not
    written yet being masked: so every step has the same shapes, and copies one token and not all.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Write (rows, heads, new tokens, head width) at `places` (new tokens,) and return all there is."""
        if self._keys is None or self._values is None:
            rows, heads, _, width = keys.shape
            self._keys = keys.new_zeros(rows, heads, self.room, width)
            self._values = values.new_zeros(rows, heads, self.room, width)
        self._keys.index_copy_(2, places, keys)
        self._values.index_copy_(2, places, values)
        return self._keys, self._values

    def take(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys[rows], self._values[rows]
