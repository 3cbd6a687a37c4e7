"""What sees what in the Q-Former: one mask for each objective (BLIP-2, section 3.1, figure 2).

Queries stand first, then the text. A mask is true where a row's position (third dimension) may attend to
another (fourth); nothing attends to padding. Pads are rows too, whose states mean nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unimodal(queries: int, real: Tensor) -> Tensor:
    """ITC: queries see queries, the text sees the text, and neither the other.

    `real` (rows, tokens) is true where a token is no padding. Returns bool (rows, 1, n, n) with
    n = queries + tokens. With no queries it is the mask of the text alone.
    """
    is_query = _is_query(queries, real)
    return (is_query[:, None] == is_query[None, :]) & _seen(queries, real)


def bidirectional(queries: int, real: Tensor) -> Tensor:
    """ITM: queries and text all see each other; shapes as in `unimodal`."""
    places = queries + real.shape[1]
    return _seen(queries, real).expand(-1, -1, places, -1)


def multimodal_causal(queries: int, real: Tensor) -> Tensor:
    """ITG: the text sees all queries and the text up to itself, queries see queries; as in `unimodal`."""
    places = torch.arange(queries + real.shape[1], device=real.device)
    before = places[None, :] <= places[:, None]
    return (before | _is_query(queries, real)[None, :]) & _seen(queries, real)


def _is_query(queries: int, real: Tensor) -> Tensor:
    return torch.arange(queries + real.shape[1], device=real.device) < queries


def _seen(queries: int, real: Tensor) -> Tensor:
    """Return where there is anything to see, (rows, 1, 1, queries + tokens)."""
    return torch.cat([real.new_ones(len(real), queries), real], 1)[:, None, None, :]


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to be added to attention scores, which every implementation of attention takes alike.

    What is hidden gets the lowest number of the type: its share is 0 as long as the row sees anything.
    """
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
