"""A model that is a table: logits of its own after every beginning, so that all captions can be counted."""

from __future__ import annotations

import torch
from torch import Tensor

from capfilt.draws import uniforms

END = 0


class Table:
    """A model with logits of its own after every beginning: nothing but the beginning decides."""

    def __init__(self, vocabulary: int, seed: int, spread: float = 6.0) -> None:
        self.vocabulary, self.seed, self.spread = vocabulary, seed, spread
        self.ids: Tensor | None = None
        self.calls = 0

    def after(self, beginning: tuple[int, ...]) -> list[float]:
        numbers = uniforms(self.vocabulary, "table", self.seed, *beginning) * self.spread
        values: list[float] = numbers.tolist()
        return values

    def next_logits(self, new: Tensor) -> Tensor:
        self.ids = new if self.ids is None else torch.cat([self.ids, new], 1)
        self.calls += 1
        beginnings, row = self.ids.unique(dim=0, return_inverse=True)
        logits = [self.after(tuple(beginning)) for beginning in beginnings.tolist()]
        return torch.tensor(logits, dtype=torch.float64)[row]

    def reorder(self, rows: Tensor) -> None:
        assert self.ids is not None
        self.ids = self.ids[rows]
