from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
import torch
from chi_square import follows
from hypothesis import assume, given, settings
from small_models import SMALL, small_med
from tables import END, Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from capfilt.draws import uniforms
from capfilt.models.captioner import Writing
from capfilt.models.decoding import SHARES, draw, nucleus, shaped, write
from capfilt.settings import SettledDecoding

if TYPE_CHECKING:
    from capfilt.models.med import MED

BELOW_ONE = 1 - 2.0**-53
quick = settings(max_examples=80)
# Equal or clearly apart: how close ones are ordered is a matter of rounding.
logits_lists = st.lists(st.integers(-12000, 12000).map(lambda n: n / 1000), min_size=1, max_size=9)


def plain_softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def kept_of(logits: Tensor, decoding: SettledDecoding) -> list[float]:
    """Probabilities after the nucleus, of one row of logits."""
    shares = nucleus(logits, decoding)
    row: list[float] = (shares / shares.sum(-1, keepdim=True))[0].tolist()
    return row


# -- the nucleus


@quick
@given(logits_lists, st.floats(0.01, 1), st.floats(0.2, 3))
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(
    values: list[float], top_p: float, temperature: float
) -> None:
    decoding = SettledDecoding(top_p=top_p, temperature=temperature)
    kept = kept_of(torch.tensor([values], dtype=torch.float64), decoding)
    probabilities = plain_softmax([value / temperature for value in values])
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
        return kept_of(logits, SettledDecoding(top_p=top_p))

    assert kept(0.6) == pytest.approx([0.3 / 0.8, 0.5 / 0.8, 0, 0])
    assert kept(0.81) == pytest.approx([0.3 / 0.95, 0.5 / 0.95, 0.15 / 0.95, 0])
    assert kept(0.01) == [0, 1, 0, 0]
    assert kept(1.0) == pytest.approx([0.3, 0.5, 0.15, 0.05])


def test_top_k_acts_before_top_p() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).double().log()
    # Of the two likeliest, 4/7 and 3/7, the first alone reaches one half; of all four it does not.
    assert kept_of(logits, SettledDecoding(top_k=2, top_p=0.5)) == [1, 0, 0, 0]
    assert kept_of(logits, SettledDecoding(top_k=0, top_p=0.5)) == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert kept_of(logits, SettledDecoding(top_k=9, top_p=1.0)) == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_equally_likely_tokens_at_the_edge_are_kept_in_the_order_of_their_ids() -> None:
    assert kept_of(torch.zeros(1, 4), SettledDecoding(top_p=0.5)) == [0.5, 0.5, 0, 0]
    assert kept_of(torch.zeros(1, 4), SettledDecoding(top_p=0.51)) == pytest.approx([1 / 3] * 3 + [0])
    # One token is above the edge, and of the four at it three are needed.
    logits = torch.tensor([[0.125, 0.125, 0.5, 0.125, 0.125]]).double().log()
    assert kept_of(logits, SettledDecoding(top_p=0.8)) == pytest.approx(
        [1 / 7, 1 / 7, 4 / 7, 1 / 7, 0], abs=1e-12
    )


@pytest.mark.parametrize("top_p", [1e-300, 1e-9, 1 - 2.0**-53, 1.0])
def test_the_smallest_and_the_largest_nucleus_hold_what_they_should(top_p: float) -> None:
    logits = torch.tensor([[0.0, 3.0, -300.0, 2.0], [0.0, -torch.inf, -torch.inf, -torch.inf]])
    shares = nucleus(logits, SettledDecoding(top_p=top_p))
    assert (shares > 0).tolist() == [[top_p > 0.5, True, False, top_p > 0.5], [True, False, False, False]]
    assert shares[1, 0] == SHARES


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 0.999999])
@pytest.mark.parametrize("spread", [0.02, 1.0, 4.0])
@pytest.mark.parametrize("steps", [0.0, 0.25], ids=["distinct", "tied"])
def test_a_large_nucleus_is_the_one_that_sorting_finds(top_p: float, spread: float, steps: float) -> None:
    logits = torch.randn(6, 30524, generator=torch.Generator().manual_seed(0)) * spread
    if steps:
        logits = (logits / (steps * spread)).round() * (steps * spread)
    probabilities = logits.double().softmax(-1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    inside = ordered.cumsum(-1) - ordered < top_p
    expected = torch.zeros_like(probabilities).scatter(1, order, ordered * inside)
    found = nucleus(logits, SettledDecoding(top_p=top_p)) / SHARES
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected, atol=2.0**-53, rtol=0)


def test_shares_are_whole_and_a_row_has_the_same_ones_in_every_batch() -> None:
    logits = torch.randn(7, 999, generator=torch.Generator().manual_seed(1)) * 2
    together = nucleus(logits, SettledDecoding())
    assert torch.equal(together, together.round())
    assert (together.sum(-1) <= SHARES).all()
    for row in range(7):
        assert torch.equal(nucleus(logits[row : row + 1], SettledDecoding()), together[row : row + 1])


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
    assert kept_of(logits, decoding) == pytest.approx(expected, abs=1e-12)
    numbers = torch.from_numpy(uniforms(100_000, "numbers of a test", str(decoding)))
    counts = torch.bincount(draw(ours.expand(len(numbers), -1), numbers), minlength=12).tolist()
    assert follows(counts, expected)
    assert not follows(counts[::-1], expected)  # the test could fail


# -- a draw


@quick
@given(
    st.lists(st.integers(0, 4) | st.integers(0, 2**20), min_size=1, max_size=8),
    st.integers(0, 2**30 - 1).map(lambda n: n / 2**30) | st.sampled_from([0.0, 0.125, 0.25, 0.5, BELOW_ONE]),
)
def test_a_draw_is_the_first_id_whose_cumulative_share_exceeds_the_number(
    shares: list[int], number: float
) -> None:
    assume(sum(shares) > 0)
    aim = Fraction(number) * sum(shares)
    expected = next(token for token, edge in enumerate(itertools.accumulate(shares)) if edge > aim)
    assert draw(torch.tensor([shares]).double(), torch.tensor([number], dtype=torch.float64)).tolist() == [
        expected
    ]


def test_a_number_on_an_edge_belongs_to_the_next_token() -> None:
    shares = torch.tensor([[0.25, 0.0, 0.5, 0.25, 0.0]]).double().expand(6, -1)
    numbers = torch.tensor([0.0, 0.25, 0.5, 0.75, BELOW_ONE, 0.24], dtype=torch.float64)
    assert draw(shares, numbers).tolist() == [0, 2, 2, 3, 3, 0]


@quick
@given(st.integers(1, SHARES + 2**14))
def test_the_largest_number_draws_the_last_token_that_can_be_drawn(total: int) -> None:
    shares = torch.tensor([[total - 1, 0, 1, 0, 0]]).double()
    assert draw(shares, torch.tensor([BELOW_ONE], dtype=torch.float64)).tolist() == [2]


# -- a step of sampling

STEP = SettledDecoding(top_k=20, repetition_penalty=1.1, min_tokens=2)


def sampled(logits: Tensor, ids: Tensor, numbers: Tensor) -> Tensor:
    return draw(nucleus(shaped(logits, ids, STEP, 3, 1), STEP), numbers)


def test_a_step_of_sampling_is_one_graph() -> None:
    logits = torch.randn(4, 60, generator=torch.Generator().manual_seed(2))
    ids, numbers = torch.arange(20).view(4, 5), torch.from_numpy(uniforms(4, "one graph"))
    compiled = torch.compile(sampled, fullgraph=True, backend="eager")
    assert compiled(logits, ids, numbers).tolist() == sampled(logits, ids, numbers).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_step_of_sampling_runs_on_the_gpu_without_waiting_for_it(dtype: torch.dtype) -> None:
    with FakeTensorMode():  # a question for a number, or a tensor on another device, would raise
        device = torch.device("cuda")
        drawn = sampled(
            torch.zeros(4, 60, dtype=dtype, device=device),
            torch.zeros(4, 5, dtype=torch.long, device=device),
            torch.zeros(4, dtype=torch.float64, device=device),
        )
        assert drawn.device.type == "cuda"
        assert drawn.shape == (4,)


@pytest.mark.gpu
def test_a_gpu_draws_what_the_cpu_draws() -> None:
    logits = torch.randn(64, 30524, generator=torch.Generator().manual_seed(3)) * 3
    ids = torch.randint(0, 30524, (64, 9), generator=torch.Generator().manual_seed(4))
    numbers = torch.from_numpy(uniforms(64, "on a gpu"))
    assert (
        sampled(logits.cuda(), ids.cuda(), numbers.cuda()).tolist() == sampled(logits, ids, numbers).tolist()
    )


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


def captions_of_transformers(
    table: Table, start: tuple[int, ...], decoding: SettledDecoding
) -> dict[tuple[int, ...], float]:
    """Probability of every caption, as transformers would change the logits of each step."""
    from transformers import (
        LogitsProcessorList,
        MinNewTokensLengthLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty),
            MinNewTokensLengthLogitsProcessor(len(start), decoding.min_tokens, END, device="cpu"),
            TemperatureLogitsWarper(decoding.temperature),
            TopKLogitsWarper(decoding.top_k),
            TopPLogitsWarper(decoding.top_p),
        ]
    )
    found: dict[tuple[int, ...], float] = {}

    def go_on(caption: tuple[int, ...], probability: float) -> None:
        if len(caption) == decoding.max_tokens or END in caption:
            found[caption] = probability
            return
        ids = torch.tensor([[*start, *caption]])
        logits = torch.tensor([table.after((*start, *caption))]).double()
        for token, p in enumerate(steps(ids, logits).softmax(-1)[0].tolist()):
            if p:
                go_on((*caption, token), probability * p)

    go_on((), 1.0)
    return found


def test_whole_captions_are_drawn_as_often_as_transformers_would() -> None:
    decoding = SettledDecoding(
        min_tokens=1, max_tokens=3, top_p=0.9, top_k=4, temperature=1.3, repetition_penalty=1.4
    )
    start = (2, 4)
    expected = captions_of_transformers(Table(6, 3), start, decoding)
    lengths = {caption.index(END) if END in caption else len(caption) for caption in expected}
    assert lengths == {1, 2, 3}
    numbers = torch.from_numpy(uniforms(300_000, "whole captions")).view(10, 10_000, 3)
    begun = torch.tensor([start]).expand(10_000, -1)
    ids = torch.cat([write(Table(6, 3).next_logits, begun, decoding, END, part) for part in numbers])
    counts = dict.fromkeys(expected, 0)
    for row, count in zip(*(part.tolist() for part in ids.unique(dim=0, return_counts=True)), strict=True):
        counts[tuple(row[: row.index(END) + 1]) if END in row else tuple(row)] += count
    assert follows(list(counts.values()), list(expected.values()))
    warmer = decoding.model_copy(update={"temperature": 1.35})
    otherwise = captions_of_transformers(Table(6, 3), start, warmer)
    assert not follows([counts.get(c, 0) for c in otherwise], list(otherwise.values()))  # it could fail


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
    start = torch.tensor([[5, 7]]).expand(rows, -1)
    numbers = torch.from_numpy(uniforms(rows * 10, "full forwards")).view(rows, 10)
    ids = write(
        Writing(model, memory, 12).next_logits,
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
