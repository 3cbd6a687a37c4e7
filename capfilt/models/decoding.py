"""Nucleus sampling, greedy and beam search over any model that gives the next token's logits.

A draw takes one uniform number per token from outside, so that what is drawn depends on the numbers
and not on what else is in the batch. Probabilities are taken in whole shares, whose sums are exact in
any order: what is drawn does not depend on the device either. Nothing here asks a GPU for a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from capfilt.errors import RunFailedError
from capfilt.models.devices import on_host, steps_between_reads, widened

if TYPE_CHECKING:
    from capfilt.settings import SettledDecoding

NextLogits = Callable[[Tensor], Tensor]
"""Given the new token ids (rows, new tokens), the logits (rows, vocabulary) of the token after them."""

Keep = Callable[[Tensor, Tensor, int], None]
"""Told which images go on, and which rows, of how many: as many to each of these images, side by side."""

SHARE_BITS = 52
SHARES = 2**SHARE_BITS
"""A probability of 1 in shares: so many that sums of shares are still whole numbers that float64 has."""


def write(
    next_logits: NextLogits,
    start: Tensor,
    decoding: SettledDecoding,
    end: int,
    numbers: Tensor | None = None,
    *,
    each: int = 1,
    keep: Keep | None = None,
) -> Tensor:
    """Write captions token by token, greedily or, with `numbers`, by nucleus sampling.

    `start` (images, tokens) are the ids every caption begins with; they are read once an image, and
    `each` captions go on from there, side by side. `numbers` (images * each, max_tokens) are uniform
    in [0, 1). Returns ids (images * each, max_tokens), where `end` closes a caption and fills what
    follows it. With `keep`, captions that have ended leave the batch, see `Keep`. Raises RunFailedError
    where logits are no finite numbers.
    """
    images, begun = start.shape
    rows = torch.arange(images * each, device=start.device)
    written = torch.full((len(rows), decoding.max_tokens), end, device=start.device)
    # Places that are not written yet hold the first token, which the repetition penalty sees anyway.
    ids = start[:, :1].repeat(1, begun + decoding.max_tokens).repeat_interleave(each, 0)
    ids[:, :begun] = start.repeat_interleave(each, 0)
    ended = torch.zeros(len(rows), dtype=torch.bool, device=start.device)
    logits = next_logits(start).repeat_interleave(each, 0)
    broken = torch.zeros((), dtype=torch.bool, device=start.device)
    for position in range(decoding.max_tokens):
        finite = logits.amax(1).isfinite()
        broken = broken | ~finite.all()
        logits = torch.where(finite[:, None], logits, 0.0)  # what is drawn of it is thrown away below
        token = _chosen(logits, ids, decoding, end, position, numbers)
        token = torch.where(ended, end, token)
        ids[:, begun + position] = token
        written[rows, position] = token
        ended = ended | (token == end)
        if position + 1 == decoding.max_tokens:
            break
        if keep is not None and (position + 1) % steps_between_reads(ended.device) == 0:
            live = on_host((~ended).view(-1, each).sum(1))
            if not any(live):
                break
            if _is_worth_it(live, each):
                picked, kept, each = _still_writing(ended, live, each)
                keep(picked, kept, len(rows))
                rows, ids, ended, token = rows[kept], ids[kept], ended[kept], token[kept]
                numbers = numbers[kept] if numbers is not None else None
        logits = next_logits(token[:, None])
    _check_numbers(broken)
    return written


def _check_numbers(broken: Tensor) -> None:
    if on_host(broken[None])[0]:
        raise RunFailedError(
            "the captioner's logits are no finite numbers, so that no caption can be written",
            fix="give a captioner whose training did not diverge, or try --precision fp32",
        )


def _chosen(
    logits: Tensor, ids: Tensor, decoding: SettledDecoding, end: int, position: int, numbers: Tensor | None
) -> Tensor:
    logits = shaped(logits, ids, decoding, end, position)
    if numbers is None:
        return logits.argmax(-1)
    return draw(nucleus(logits, decoding), numbers[:, position])


def _is_worth_it(live: list[int], each: int) -> bool:
    """Whether so many captions have ended that leaving them out pays for copying the others."""
    left = sum(map(bool, live)) * max(live)
    return 3 * left <= 2 * len(live) * each


def _still_writing(ended: Tensor, live: list[int], each: int) -> tuple[Tensor, Tensor, int]:
    """Return the images that go on, their rows, and how many rows an image has from now on.

    Every image keeps as many rows as the one with the most unfinished captions; its unfinished ones
    come first, in their order.
    """
    most = max(live)
    images = torch.tensor([n for n, count in enumerate(live) if count], device=ended.device)
    order = ended.view(-1, each).int().argsort(dim=1, stable=True)[:, :most]
    rows = order + torch.arange(len(order), device=ended.device)[:, None] * each
    return images, rows[images].flatten(), most


def shaped(logits: Tensor, ids: Tensor, decoding: SettledDecoding, end: int, position: int) -> Tensor:
    """Return logits (rows, vocabulary), fp32 or wider, after repetition penalty and shortest length.

    The penalty divides positive and multiplies negative logits of tokens that stand in `ids`, prompt
    included (Keskar et al., CTRL, 2019, section 4.1). Beam search gives log-probabilities instead.
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
    """Return the shares (rows, vocabulary) of the smallest set that reaches top_p, and 0 for other tokens.

    Shares are whole numbers in float64, proportional to the probabilities. The token that crosses top_p
    belongs to the set; of equally likely ones the first ids do; top_k acts before (Holtzman et al.,
    2020, section 3.1). The share of its least likely token is found digit by digit, as in a radix sort
    that follows one bucket: a few passes, always as many. They work in place, since memory that is
    asked for anew would cost a CPU as much as the sums.
    """
    scratch = logits.to(torch.float64, copy=True).div_(decoding.temperature)
    rows, vocabulary = scratch.shape
    if 0 < decoding.top_k < vocabulary:
        scratch.masked_fill_(scratch < scratch.topk(decoding.top_k, dim=1).values[:, -1:], -torch.inf)
    shares = scratch.softmax(-1).mul_(SHARES).round_()
    total = shares.sum(-1, keepdim=True)
    spare = torch.minimum(total - total * decoding.top_p, total - 1)  # what may be left out, the least first
    edge = torch.zeros_like(total)
    bits = min(max(vocabulary.bit_length() - 1, 8), 13)  # of a digit: long tables cost time, and so do passes
    bucket = torch.empty_like(shares, dtype=torch.long)
    upto = shares.new_empty(rows, 2**bits + 2)
    for shift in reversed(range(0, SHARE_BITS, bits)):
        # Buckets: what is below the edge as known so far, one for each value of the digit, what is above.
        torch.add(1 - edge / 2**shift, shares, alpha=2.0**-shift, out=scratch)
        bucket.copy_(scratch.clamp_(0, 2**bits + 1))
        upto.zero_().scatter_add_(1, bucket, shares).cumsum_(1)
        found = torch.searchsorted(upto, spare, right=True)
        edge.add_(found - 1, alpha=2**shift)
    missing = upto.gather(1, found) - spare  # what tokens at the edge have to give
    at_edge = shares == edge
    nothing = torch.zeros_like(edge)
    torch.where(at_edge, edge, nothing, out=scratch)
    given_before = scratch.cumsum(-1).sub_(scratch)
    at_edge &= given_before < missing
    return torch.where(at_edge | (shares > edge), shares, nothing, out=scratch)


def draw(shares: Tensor, numbers: Tensor) -> Tensor:
    """Return one id a row: the first, in id order, whose cumulative share of the sum exceeds its number.

    `shares` (rows, vocabulary) need not sum to 1; `numbers` (rows,) are in [0, 1).
    """
    edges = shares.cumsum(-1)
    # The largest number below 1, times the sum, is below the sum after rounding too: some edge exceeds it.
    return torch.searchsorted(edges, numbers[:, None] * edges[:, -1:], right=True)[:, 0]


def beam(
    next_logits: NextLogits,
    reorder: Callable[[Tensor], None],
    start: Tensor,
    decoding: SettledDecoding,
    end: int,
) -> Tensor:
    """Return the best caption a row by beam search, ids (rows, max_tokens); see `scored_beam`.

    Raises RunFailedError where scores are no numbers.
    """
    ids, scores = scored_beam(next_logits, reorder, start, decoding, end)
    _check_numbers(scores.isnan().any())
    return ids


def scored_beam(
    next_logits: NextLogits,
    reorder: Callable[[Tensor], None],
    start: Tensor,
    decoding: SettledDecoding,
    end: int,
) -> tuple[Tensor, Tensor]:
    """Return the best caption a row, ids (rows, max_tokens) filled up with `end`, and its score (rows,).

    `next_logits` works on rows * beams rows, row by row; `reorder` makes its row i what row index[i]
    was. A caption's score is the sum of its log-probabilities, after the repetition penalty, divided by
    its length to the power of the length penalty. `decoding.length_counts` says whose search it is,
    number for number: `generated` that of transformers 5 (a length is that of the generated ids, the
    end included), `whole` that of BLIP's released code (transformers 4.15; prompt included, end not).
    They also differ in when a row takes no more captions, and in which of the longest ones count.
    """
    rows, beams, longest, prompt = len(start), decoding.beams, decoding.max_tokens, start.shape[1]
    is_whole = decoding.length_counts == "whole"
    first_row = torch.arange(rows, device=start.device)[:, None] * beams
    ids = start.repeat_interleave(beams, 0)
    sums = torch.full((rows, beams), -torch.inf, device=start.device)
    sums[:, 0] = 0.0  # all beams begin alike: only the first may be continued
    finished = _Finished(rows, decoding, end, start.device)
    new = ids
    for position in range(longest):
        steps = shaped(widened(next_logits(new)).log_softmax(-1), ids, decoding, end, position)
        vocabulary = steps.shape[1]
        ahead = (sums[:, :, None] + steps.view(rows, beams, vocabulary)).flatten(1)
        # Each beam can end in one way, so twice as many candidates hold enough that go on.
        values, places = ahead.topk(2 * beams, dim=1)
        parents, tokens = first_row + places // vocabulary, places % vocabulary
        ends = tokens == end
        length = prompt + position if is_whole else position + 1
        # Transformers finishes what is longest before it looks who would go on, the released code after.
        closes = ends | (not is_whole and position == longest - 1)
        captions = torch.cat([ids[parents, prompt:], tokens[:, :, None]], dim=2)
        closing = values.masked_fill(~closes, -torch.inf)
        finished.add(closing[:, :beams], length, captions[:, :beams])
        sums, going = values.masked_fill(ends, -torch.inf).topk(beams, dim=1)
        index = parents.gather(1, going).flatten()
        new = tokens.gather(1, going).view(-1, 1)
        ids = torch.cat([ids[index], new], dim=1)
        reorder(index)
        finished.settle((values if is_whole else sums)[:, 0], length)
        # Asking a GPU whether all are settled would make it wait at every token.
        if start.device.type == "cpu" and finished.settled.all():
            break
    if is_whole:
        finished.add(sums, ids.shape[1], ids.view(rows, beams, -1)[:, :, prompt:])
    return finished.ids[:, 0], finished.scores[:, 0]


class _Finished:
    """The best finished captions of each row, as many as beams, the best first."""

    def __init__(self, rows: int, decoding: SettledDecoding, end: int, device: torch.device) -> None:
        self._penalty, self._end = decoding.length_penalty, end
        self.scores = torch.full((rows, decoding.beams), -torch.inf, device=device)
        self.ids = torch.full((rows, decoding.beams, decoding.max_tokens), end, device=device)
        self.settled = torch.zeros(rows, dtype=torch.bool, device=device)
        """Rows that take no more captions."""

    def add(self, sums: Tensor, length: int, captions: Tensor) -> None:
        """Take captions (rows, beams, tokens) that are better than others; a sum of -inf is no caption."""
        scores = (sums / length**self._penalty).masked_fill(self.settled[:, None], -torch.inf)
        captions = F.pad(captions, (0, self.ids.shape[2] - captions.shape[2]), value=self._end)
        self.scores, best = torch.cat([self.scores, scores], 1).topk(scores.shape[1], dim=1)
        self.ids = torch.cat([self.ids, captions], 1).take_along_dim(best[:, :, None], 1)

    def settle(self, best: Tensor, length: int) -> None:
        """Settle rows full of captions that are no worse than the best sum (rows,) at this length."""
        self.settled |= self.scores[:, -1] >= best / length**self._penalty
