"""Nucleus sampling, greedy and beam search over any model that gives the next token's logits.

A draw takes one uniform number per token from outside, so that what is drawn depends on the numbers
and not on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from capfilt.models.devices import widened

if TYPE_CHECKING:
    from capfilt.settings import SettledDecoding

NextLogits = Callable[[Tensor], Tensor]
"""Given the new token ids (rows, new tokens), the logits (rows, vocabulary) of the token after them."""


def write(
    next_logits: NextLogits, start: Tensor, decoding: SettledDecoding, end: int, numbers: Tensor | None = None
) -> Tensor:
    """Write captions token by token, greedily or, with `numbers`, by nucleus sampling.

    `start` (rows, tokens) are the ids every caption begins with, `numbers` (rows, max_tokens) are
    uniform in [0, 1). Returns ids (rows, at most max_tokens), where `end` closes a caption and fills
    what follows it.
    """
    ids = start
    ended = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    new = start
    for position in range(decoding.max_tokens):
        logits = shaped(next_logits(new), ids, decoding, end, position)
        if numbers is None:
            token = logits.argmax(-1)
        else:
            token = draw(nucleus(logits, decoding), numbers[:, position])
        token = torch.where(ended, end, token)
        new = token[:, None]
        ids = torch.cat([ids, new], dim=1)
        ended |= token == end
        # Asking a GPU whether all have ended would make it wait at every token.
        if ended.device.type == "cpu" and ended.all():
            break
    return ids[:, start.shape[1] :]


def shaped(logits: Tensor, ids: Tensor, decoding: SettledDecoding, end: int, position: int) -> Tensor:
    """Return logits (rows, vocabulary), fp32 or wider, after repetition penalty and shortest length.

    The penalty divides positive and multiplies negative logits of tokens that stand in `ids`, prompt
    included (Keskar et al., CTRL, 2019, section 4.1).
    """
    logits = widened(logits)
    if decoding.repetition_penalty != 1:
        seen = logits.gather(1, ids)
        seen = torch.where(seen > 0, seen / decoding.repetition_penalty, seen * decoding.repetition_penalty)
        logits = logits.scatter(1, ids, seen)
    if position < decoding.min_tokens:
        logits = logits.clone()
        logits[:, end] = -torch.inf
    return logits


def nucleus(logits: Tensor, decoding: SettledDecoding) -> Tensor:
    """Return float64 probabilities (rows, vocabulary) of the smallest set that reaches top_p.

    The token that crosses top_p belongs to it; top_k acts before (Holtzman et al., 2020, section 3.1).
    """
    logits = logits.double() / decoding.temperature
    if 0 < decoding.top_k < logits.shape[1]:
        least = logits.topk(decoding.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(-1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    inside = ordered.cumsum(-1) - ordered < decoding.top_p
    kept = torch.zeros_like(probabilities).scatter(1, order, ordered * inside)
    return kept / kept.sum(-1, keepdim=True)


def draw(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """Return one id a row: the first, in id order, whose cumulative probability exceeds its number."""
    edges = probabilities.cumsum(-1)
    drawn = (edges <= numbers[:, None]).sum(-1)
    # The edges may end a rounding below 1: the last token that can be drawn takes what is left.
    last = probabilities.shape[1] - 1 - (probabilities.flip(1) > 0).long().argmax(1)
    return torch.minimum(drawn, last)


def beam(
    next_logits: NextLogits,
    reorder: Callable[[Tensor], None],
    start: Tensor,
    decoding: SettledDecoding,
    end: int,
) -> Tensor:
    """Return the best caption a row by beam search, ids (rows, max_tokens), filled up with `end`.

    `next_logits` works on rows * beams rows, row by row; `reorder` makes its row i what row index[i]
    was. A caption's score is its log-probability, its end included, divided by its length to the
    power of the length penalty; unfinished captions of the greatest length count too.
    """
    rows, beams, width = len(start), decoding.beams, decoding.max_tokens
    device = start.device
    ids = start.repeat_interleave(beams, 0)
    scores = torch.full((rows, beams), -torch.inf, device=device)
    scores[:, 0] = 0.0  # all beams begin alike: only the first may be continued
    best = torch.full((rows,), -torch.inf, device=device)
    best_ids = torch.full((rows, width), end, device=device)
    first_row = torch.arange(rows, device=device)[:, None] * beams
    new = ids
    for position in range(width):
        steps = shaped(next_logits(new), ids, decoding, end, position).log_softmax(-1)
        vocabulary = steps.shape[1]
        ahead = (scores[:, :, None] + steps.view(rows, beams, vocabulary)).flatten(1)
        # Each beam can end in one way, so twice as many candidates hold enough that go on.
        values, places = ahead.topk(min(2 * beams, ahead.shape[1]), dim=1)
        parents, tokens = places // vocabulary, places % vocabulary
        ends = tokens == end
        length = position + 1
        closing = (values / length**decoding.length_penalty).masked_fill(~ends, -torch.inf)
        closing[:, beams:] = -torch.inf
        value, rank = closing.max(1)
        better = value > best
        row = first_row[:, 0] + parents.gather(1, rank[:, None])[:, 0]
        closed = F.pad(ids[row, start.shape[1] :], (0, width - position), value=end)
        best = torch.where(better, value, best)
        best_ids = torch.where(better[:, None], closed, best_ids)
        scores, going = values.masked_fill(ends, -torch.inf).topk(beams, dim=1)
        index = (first_row + parents.gather(1, going)).flatten()
        new = tokens.gather(1, going).view(-1, 1)
        ids = torch.cat([ids[index], new], dim=1)
        reorder(index)
    value, rank = (scores / width**decoding.length_penalty).max(1)
    unfinished = ids[first_row[:, 0] + rank, start.shape[1] :]
    return torch.where((value > best)[:, None], unfinished, best_ids)
