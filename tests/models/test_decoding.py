from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
import torch
from chi_square import follows
from hypothesis import assume, given, settings
from small_models import SMALL, small_med
from torch import Tensor

from capfilt.draws import uniforms
from capfilt.models.decoding import beam, draw, nucleus, shaped, write
from capfilt.models.text import TokenCache
from capfilt.settings import SettledDecoding

if TYPE_CHECKING:
    from capfilt.models.med import MED

BELOW_ONE = 1 - 2.0**-53
quick = settings(max_examples=80, deadline=None)
logits_lists = st.lists(st.floats(-12, 12), min_size=1, max_size=9)


def plain_softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


# -- the nucleus


@quick
@given(logits_lists, st.floats(0.01, 1), st.floats(0.2, 3))
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(
    values: list[float], top_p: float, temperature: float
) -> None:
    kept = nucleus(torch.tensor([values]).double(), SettledDecoding(top_p=top_p, temperature=temperature))[
        0
    ].tolist()
    probabilities = plain_softmax([value / temperature for value in torch.tensor(values).double().tolist()])
    inside, mass = set(), 0.0
    for token in sorted(range(len(values)), key=lambda token: -probabilities[token]):
        assume(abs(mass - top_p) > 1e-9)  # a rounding may decide there
        if mass < top_p:
            inside.add(token)
        mass += probabilities[token]
    whole = sum(probabilities[token] for token in inside)
    expected = [probabilities[token] / whole if token in inside else 0.0 for token in range(len(values))]
    assert kept == pytest.approx(expected, abs=1e-12)


def test_the_token_that_crosses_top_p_is_kept() -> None:
    logits = torch.tensor([[0.3, 0.5, 0.15, 0.05]]).double().log()

    def kept(top_p: float) -> list[float]:
        row: list[float] = nucleus(logits, SettledDecoding(top_p=top_p))[0].tolist()
        return row

    assert kept(0.6) == pytest.approx([0.3 / 0.8, 0.5 / 0.8, 0, 0])
    assert kept(0.81) == pytest.approx([0.3 / 0.95, 0.5 / 0.95, 0.15 / 0.95, 0])
    assert kept(0.01) == [0, 1, 0, 0]
    assert kept(1.0) == pytest.approx([0.3, 0.5, 0.15, 0.05])


def test_top_k_acts_before_top_p() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).double().log()
    # Of the two likeliest, 4/7 and 3/7, the first alone reaches one half; of all four it does not.
    assert nucleus(logits, SettledDecoding(top_k=2, top_p=0.5))[0].tolist() == [1, 0, 0, 0]
    assert nucleus(logits, SettledDecoding(top_k=0, top_p=0.5))[0].tolist() == pytest.approx(
        [4 / 7, 3 / 7, 0, 0]
    )
    assert nucleus(logits, SettledDecoding(top_k=9, top_p=1.0))[0].tolist() == pytest.approx(
        [0.4, 0.3, 0.2, 0.1]
    )


def test_equally_likely_tokens_at_the_edge_are_kept_in_the_order_of_their_ids() -> None:
    assert nucleus(torch.zeros(1, 4), SettledDecoding(top_p=0.5))[0].tolist() == [0.5, 0.5, 0, 0]


@pytest.mark.parametrize(
    "decoding",
    [
        SettledDecoding(top_p=0.9),
        SettledDecoding(top_p=0.5, temperature=1.7),
        SettledDecoding(top_p=0.95, top_k=5),
        SettledDecoding(top_p=1.0, top_k=3, temperature=0.6),
    ],
    ids=["top_p", "top_p and temperature", "top_k and top_p", "top_k and temperature"],
)
def test_draws_follow_the_probabilities_of_transformers(decoding: SettledDecoding) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.from_numpy(uniforms(12, "logits of a test"))[None] * 6
    ids = torch.zeros(1, 1, dtype=torch.long)
    theirs = (
        TemperatureLogitsWarper(decoding.temperature)(ids, logits) if decoding.temperature != 1 else logits
    )
    if decoding.top_k:
        theirs = TopKLogitsWarper(decoding.top_k)(ids, theirs)
    if decoding.top_p < 1:
        theirs = TopPLogitsWarper(decoding.top_p)(ids, theirs)
    expected = theirs.softmax(-1)[0].tolist()
    ours = nucleus(logits, decoding)
    assert ours[0].tolist() == pytest.approx(expected, abs=1e-12)
    numbers = torch.from_numpy(uniforms(100_000, "numbers of a test", str(decoding)))
    counts = torch.bincount(draw(ours.expand(len(numbers), -1), numbers), minlength=12).tolist()
    assert follows(counts, expected)
    assert not follows(counts[::-1], expected)  # the test could fail


# -- a draw


@quick
@given(
    st.lists(st.sampled_from([0.0, 0.125, 0.25, 1.0]) | st.floats(0, 1), min_size=1, max_size=8),
    st.floats(0, BELOW_ONE) | st.sampled_from([0.0, 0.125, 0.25, 0.5, BELOW_ONE]),
)
def test_a_draw_is_the_first_id_whose_cumulative_probability_exceeds_the_number(
    weights: list[float], number: float
) -> None:
    assume(sum(weights) > 1e-3)
    probabilities = torch.tensor([weights]).double()
    probabilities = probabilities / probabilities.sum()
    edges = list(itertools.accumulate(probabilities[0].tolist()))
    above = [token for token, edge in enumerate(edges) if edge > number]
    last = max(token for token, p in enumerate(probabilities[0].tolist()) if p > 0)
    drawn = int(draw(probabilities, torch.tensor([number]).double()))
    assert drawn == (above[0] if above else last)
    assert probabilities[0, drawn] > 0


def test_a_number_on_an_edge_belongs_to_the_next_token() -> None:
    probabilities = torch.tensor([[0.25, 0.0, 0.5, 0.25, 0.0]]).double().expand(6, -1)
    numbers = torch.tensor([0.0, 0.25, 0.5, 0.75, BELOW_ONE, 0.24]).double()
    assert draw(probabilities, numbers).tolist() == [0, 2, 2, 3, 3, 0]


# -- penalties and lengths


@quick
@given(st.integers(0, 10**6), st.floats(0.5, 2.0))
def test_the_repetition_penalty_is_that_of_transformers(seed: int, penalty: float) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, 10, (3, 6), generator=generator)
    before = logits.clone()
    ours = shaped(logits, ids, SettledDecoding(repetition_penalty=penalty, min_tokens=0), 3, 0)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    torch.testing.assert_close(ours, theirs, atol=1e-15, rtol=1e-15)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("position", range(5))
def test_the_end_is_out_of_reach_as_long_as_in_transformers(position: int) -> None:
    from transformers import MinNewTokensLengthLogitsProcessor

    logits = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    prompt = 2
    ids = torch.zeros(2, prompt + position, dtype=torch.long)
    theirs = MinNewTokensLengthLogitsProcessor(prompt, 3, 5, device="cpu")(ids, logits.clone())
    ours = shaped(logits, ids, SettledDecoding(min_tokens=3), 5, position)
    assert torch.equal(ours, theirs)
    assert torch.equal(logits, before)


# -- whole captions


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
        return torch.tensor([self.after(tuple(row)) for row in self.ids.tolist()]).double()

    def reorder(self, rows: Tensor) -> None:
        assert self.ids is not None
        self.ids = self.ids[rows]


END = 0


@quick
@given(st.integers(0, 10**6), st.integers(0, 4), st.integers(0, 3), st.booleans())
def test_captions_keep_to_their_lengths_and_a_finished_one_stays_finished(
    seed: int, least: int, more: int, is_drawn: bool
) -> None:
    decoding = SettledDecoding(min_tokens=least, max_tokens=max(1, least + more), top_p=1.0)
    rows = 5
    start = torch.arange(1, 1 + rows)[:, None]  # every row begins otherwise
    numbers = torch.from_numpy(uniforms(rows * decoding.max_tokens, "write", seed)).view(rows, -1)
    table = Table(3, seed, spread=2.0)
    ids = write(table.next_logits, start, decoding, END, numbers if is_drawn else None)
    assert ids.shape[0] == rows
    assert ids.shape[1] == table.calls <= decoding.max_tokens
    for number, row in enumerate(ids.tolist()):
        length = row.index(END) if END in row else len(row)
        assert length >= least
        assert row[length:] == [END] * (len(row) - length)
        beginning = [int(start[number, 0])]
        for position, token in enumerate(row[: length + 1]):  # each token is the one its beginning calls for
            values = table.after(tuple(beginning))
            allowed = [-math.inf if t == END and position < least else v for t, v in enumerate(values)]
            if is_drawn:
                edges = itertools.accumulate(plain_softmax(allowed))
                assert token == next(t for t, edge in enumerate(edges) if edge > numbers[number, position])
            else:
                assert token == max(range(3), key=allowed.__getitem__)
            beginning.append(token)
    if ids.shape[1] < decoding.max_tokens:
        assert all(END in row for row in ids.tolist())


def test_rows_do_not_depend_on_each_other() -> None:
    decoding = SettledDecoding(min_tokens=0, max_tokens=6, repetition_penalty=1.2)
    start = torch.tensor(list(itertools.product(range(1, 4), repeat=2)))[:8]
    numbers = torch.from_numpy(uniforms(48, "rows")).view(8, 6)
    together = write(Table(4, 0, 2.0).next_logits, start, decoding, END, numbers)
    for row in range(8):
        alone = write(
            Table(4, 0, 2.0).next_logits, start[row : row + 1], decoding, END, numbers[row : row + 1]
        )
        filled = alone[0].tolist() + [END] * (together.shape[1] - alone.shape[1])
        assert together[row].tolist() == filled


@pytest.fixture(scope="module")
def model() -> MED:
    return small_med(["lm"], 40).double()


@pytest.mark.parametrize("is_drawn", [False, True], ids=["greedy", "nucleus"])
@torch.no_grad()
def test_what_is_written_step_by_step_is_what_full_forwards_would_write(model: MED, is_drawn: bool) -> None:
    rows, end = 6, 3
    decoding = SettledDecoding(min_tokens=2, max_tokens=10, repetition_penalty=1.1, top_p=0.9, top_k=20)
    side = SMALL.images.size_px
    images = torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    memory = model.memory(model.encode_image(images))
    caches = [TokenCache() for _ in memory]
    start = torch.tensor([[5, 7]]).expand(rows, -1)
    numbers = torch.from_numpy(uniforms(rows * 10, "full forwards")).view(rows, 10)
    ids = write(
        lambda new: model.lm_logits(new, memory, caches)[:, -1],
        start,
        decoding,
        end,
        numbers if is_drawn else None,
    )
    written = start
    for position in range(ids.shape[1]):
        logits = shaped(model.lm_logits(written, memory)[:, -1], written, decoding, end, position)
        chosen = draw(nucleus(logits, decoding), numbers[:, position]) if is_drawn else logits.argmax(-1)
        finished = (written[:, 2:] == end).any(1)
        written = torch.cat([written, torch.where(finished, end, chosen)[:, None]], 1)
    assert ids.tolist() == written[:, 2:].tolist()
    assert len({tuple(row) for row in ids.tolist()}) > rows // 2  # the pictures matter


# -- beam search


def all_captions(vocabulary: int, longest: int) -> list[tuple[int, ...]]:
    """Return every caption: words and then the end, or `longest` words without one."""
    words = range(1, vocabulary)
    ended = [(*body, END) for length in range(longest) for body in itertools.product(words, repeat=length)]
    return ended + list(itertools.product(words, repeat=longest))


def score(table: Table, start: tuple[int, ...], caption: tuple[int, ...], decoding: SettledDecoding) -> float:
    """Return a caption's log-probability, its end included, by its length to the length penalty's power."""
    beginning, total = list(start), 0.0
    for position, token in enumerate(caption):
        values = table.after(tuple(beginning))
        for seen in set(beginning):
            penalty = decoding.repetition_penalty
            values[seen] = values[seen] / penalty if values[seen] > 0 else values[seen] * penalty
        if position < decoding.min_tokens:
            values[END] = -math.inf
        if values[token] == -math.inf:
            return -math.inf
        total += math.log(plain_softmax(values)[token])
        beginning.append(token)
    return float(total / len(caption) ** decoding.length_penalty)


def searched(table: Table, starts: list[tuple[int, ...]], decoding: SettledDecoding) -> list[tuple[int, ...]]:
    rows = beam(table.next_logits, table.reorder, torch.tensor(starts), decoding, END).tolist()
    return [tuple(row[: row.index(END) + 1]) if END in row else tuple(row) for row in rows]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.6, 1.0, 1.5]),
    st.sampled_from([1.0, 1.4]),
)
def test_with_enough_beams_the_search_finds_the_best_caption_of_all(
    seed: int, longest: int, least: int, length_penalty: float, repetition_penalty: float
) -> None:
    decoding = SettledDecoding(
        method="beam",
        beams=3**3,
        max_tokens=longest,
        min_tokens=min(least, longest),
        length_penalty=length_penalty,
        repetition_penalty=repetition_penalty,
    )
    starts = [(1, 2), (3, 1), (2, 2)]
    found = searched(Table(4, seed), starts, decoding)
    table = Table(4, seed)
    for start, caption in zip(starts, found, strict=True):
        scores = {other: score(table, start, other, decoding) for other in all_captions(4, longest)}
        assert scores[caption] == pytest.approx(max(scores.values()), abs=1e-5)


def test_few_beams_find_captions_that_exist_and_none_that_beats_the_best() -> None:
    found_best = 0
    for seed in range(40):
        decoding = SettledDecoding(method="beam", beams=2, max_tokens=4, min_tokens=1)
        (caption,) = searched(Table(4, seed), [(3,)], decoding)
        table = Table(4, seed)
        scores = {other: score(table, (3,), other, decoding) for other in all_captions(4, 4)}
        assert -math.inf < scores[caption] <= max(scores.values()) + 1e-5
        found_best += scores[caption] >= max(scores.values()) - 1e-5
    assert found_best >= 20


def test_rows_of_a_beam_search_do_not_depend_on_each_other() -> None:
    decoding = SettledDecoding(method="beam", beams=3, max_tokens=5, min_tokens=1)
    starts = list(itertools.product(range(1, 5), repeat=2))[:8]
    together = searched(Table(5, 1), starts, decoding)
    assert together == [searched(Table(5, 1), [start], decoding)[0] for start in starts]
    assert len(set(together)) > 1


def test_a_caption_that_cannot_be_scored_better_is_filled_up_with_the_end() -> None:
    class Ends(Table):
        def after(self, beginning: tuple[int, ...]) -> list[float]:
            return [9.0, 0.0, 0.0] if len(beginning) == 3 else [0.0, 9.0, 0.0]

    settings_of: dict[str, Any] = {"method": "beam", "beams": 2, "max_tokens": 5, "min_tokens": 0}
    ids = beam(
        (table := Ends(3, 0)).next_logits,
        table.reorder,
        torch.tensor([[2]]),
        SettledDecoding(**settings_of),
        END,
    )
    assert ids.tolist() == [[1, 1, END, END, END]]
