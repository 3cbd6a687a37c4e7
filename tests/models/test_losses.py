from __future__ import annotations

import math
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
import torch
from chi_square import follows
from hypothesis import given, settings

from capfilt.draws import uniforms
from capfilt.models.losses import draw_hard_negatives, itc_loss, itm_loss, lm_loss

if TYPE_CHECKING:
    from torch import Tensor

BELOW_ONE = 1 - 2.0**-53
quick = settings(max_examples=60)


def random(*shape: int, seed: int, low: float = -1, high: float = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64) * (high - low) + low


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities of a batch, which pairs are the same, and a temperature."""
    pairs = draw(st.integers(1, 6))
    images = torch.tensor(draw(st.lists(st.integers(0, 4), min_size=pairs, max_size=pairs)))
    texts = torch.tensor(draw(st.lists(st.integers(0, 4), min_size=pairs, max_size=pairs)))
    same = (images[:, None] == images) | (texts[:, None] == texts)
    temperature = torch.tensor(draw(st.floats(0.001, 0.5)), dtype=torch.float64)
    return random(pairs, pairs, seed=draw(st.integers(0, 10**6))), same, temperature


# -- ITC


def plain_itc(similarities: list[list[float]], same: list[list[bool]], temperature: float) -> float:
    def direction(rows: list[list[float]], right: list[list[bool]]) -> float:
        total = 0.0
        for row, marks in zip(rows, right, strict=True):
            highest = max(row) / temperature
            mass = math.log(sum(math.exp(value / temperature - highest) for value in row)) + highest
            for value, mark in zip(row, marks, strict=True):
                if mark:
                    total += (mass - value / temperature) / sum(marks)
        return total / len(rows)

    across = [list(column) for column in zip(*similarities, strict=True)]
    same_across = [list(column) for column in zip(*same, strict=True)]
    return (direction(similarities, same) + direction(across, same_across)) / 2


@quick
@given(batches())
def test_itc_is_the_mean_cross_entropy_of_both_directions(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    similarities, same, temperature = batch
    expected = plain_itc(similarities.tolist(), same.tolist(), float(temperature))
    assert float(itc_loss(similarities, same, temperature)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_itc_of_two_pairs_by_hand() -> None:
    similarities = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    alone = itc_loss(similarities, torch.eye(2, dtype=torch.bool), torch.tensor(0.5))
    texts = (math.log(1 + math.exp(-2)) + math.log(2)) / 2  # rows (2, 0) and (1, 1)
    images = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-1))) / 2  # columns (2, 1) and (0, 1)
    assert float(alone) == pytest.approx((texts + images) / 2)


def test_a_target_is_spread_evenly_over_what_is_the_same() -> None:
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    # Similarities that are the targets' logarithms leave the targets' own entropy: log 2, log 2 and 0.
    similarities = torch.log(same.double() / same.sum(1, keepdim=True) + 1e-300)
    loss = itc_loss(similarities, same, torch.tensor(1.0, dtype=torch.float64))
    assert float(loss) == pytest.approx(2 * math.log(2) / 3)
    assert float(itc_loss(similarities[:, [1, 0, 2]], same, torch.tensor(1.0))) == pytest.approx(float(loss))


def test_a_single_pair_has_no_contrast_and_a_finite_gradient() -> None:
    similarities = torch.tensor([[0.3]], requires_grad=True)
    temperature = torch.tensor(0.07, requires_grad=True)
    loss = itc_loss(similarities, torch.tensor([[True]]), temperature)
    loss.backward()
    assert float(loss.detach()) == 0
    assert similarities.grad is not None
    assert similarities.grad.tolist() == [[0]]
    assert temperature.grad is not None
    assert float(temperature.grad) == 0


def test_itc_reaches_similarities_and_temperature_with_the_right_gradient() -> None:
    similarities = random(5, 5, seed=0).requires_grad_()
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    same = torch.eye(5, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True
    assert torch.autograd.gradcheck(lambda s, t: itc_loss(s, same, t), (similarities, temperature))


# -- hard negatives


@quick
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.floats(0.001, 0.5),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.floats(0, BELOW_ONE) | st.sampled_from([0.0, 2.0**-53, BELOW_ONE]),
)
def test_a_negative_is_admissible_and_lies_where_its_number_points(
    rows: int, columns: int, seed: int, temperature: float, share: float, number: float
) -> None:
    similarities = random(rows, columns, seed=seed)
    same = random(rows, columns, seed=seed + 1, low=0) < share
    drawn = draw_hard_negatives(
        similarities, same, torch.tensor(temperature), torch.full((rows,), number, dtype=torch.float64)
    )
    assert drawn.dtype == torch.long
    for row, column in enumerate(drawn.tolist()):
        admissible = [c for c in range(columns) if not same[row, c]]
        if not admissible:
            assert column == -1
            continue
        assert column in admissible
        logits = [float(similarities[row, c]) / float(torch.tensor(temperature)) for c in range(columns)]
        highest = max(logits[c] for c in admissible)
        weights = [0.0 if same[row, c] else math.exp(logits[c] - highest) for c in range(columns)]
        mass = sum(weights[c] for c in admissible)
        before = sum(weights[c] for c in admissible if c < column) / mass
        assert before - 1e-9 <= number <= before + weights[column] / mass + 1e-9


@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_negatives_are_drawn_by_the_softmax_of_the_similarities(temperature: float) -> None:
    similarities, same = random(1, 8, seed=5), torch.tensor([[0, 1, 0, 0, 0, 1, 0, 0]], dtype=torch.bool)
    draws = 40_000
    numbers = torch.from_numpy(uniforms(draws, "test of negatives", str(temperature)))
    drawn = draw_hard_negatives(
        similarities.expand(draws, -1), same.expand(draws, -1), torch.tensor(temperature), numbers
    )
    weights = [0.0 if same[0, c] else math.exp(float(similarities[0, c]) / temperature) for c in range(8)]
    expected = [weight / sum(weights) for weight in weights]
    counts = torch.bincount(drawn, minlength=8).tolist()
    assert follows(counts, expected)
    shifted = [counts[-1], *counts[:-1]]
    assert not follows(shifted, expected)  # the test could fail


def test_a_draw_stops_at_the_last_column_that_has_weight() -> None:
    # At the lowest temperature the others' weights are nothing at all.
    similarities = torch.tensor([[0.0, 1.0, -1.0, -1.0]])
    same = torch.tensor([[True, False, False, False]])
    for number in (0.0, 0.5, BELOW_ONE):
        drawn = draw_hard_negatives(similarities, same, torch.tensor(0.001), torch.tensor([number]).double())
        assert drawn.tolist() == [1]


def test_a_row_without_an_admissible_column_leaves_the_others_alone() -> None:
    same = torch.tensor([[True, True], [False, True]])
    drawn = draw_hard_negatives(torch.zeros(2, 2), same, torch.tensor(0.1), torch.tensor([0.5, 0.5]).double())
    assert drawn.tolist() == [-1, 0]


# -- ITM


def test_itm_is_the_mean_negative_log_probability() -> None:
    logits = random(7, 2, seed=2, low=-3, high=3)
    matches = torch.tensor([1, 0, 0, 1, 1, 0, 1], dtype=torch.bool)
    plain = [
        math.log(math.exp(a) + math.exp(b)) - (b if m else a)
        for (a, b), m in zip(logits.tolist(), matches.tolist(), strict=True)
    ]
    assert float(itm_loss(logits, matches)) == pytest.approx(sum(plain) / 7)
    counts = torch.tensor([1, 1, 0, 1, 0, 0, 1], dtype=torch.bool)
    counted = [value for value, counts_here in zip(plain, counts.tolist(), strict=True) if counts_here]
    assert float(itm_loss(logits, matches, counts)) == pytest.approx(sum(counted) / 4)


def test_itm_has_the_right_gradient_and_none_where_a_row_does_not_count() -> None:
    logits = random(5, 2, seed=3).requires_grad_()
    matches = torch.tensor([True, False, False, True, False])
    counts = torch.tensor([True, True, False, True, True])
    assert torch.autograd.gradcheck(lambda x: itm_loss(x, matches, counts), (logits,))
    itm_loss(logits, matches, counts).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(1).gt(0).tolist() == counts.tolist()


# -- LM


def plain_lm(logits: Tensor, ids: Tensor, real: Tensor, smoothing: float) -> float:
    losses = []
    for row in range(len(ids)):
        for position in range(1, ids.shape[1]):
            if not real[row, position]:
                continue
            values = logits[row, position - 1].tolist()
            mass = math.log(sum(map(math.exp, values)))
            right = mass - values[int(ids[row, position])]
            everything = sum(mass - value for value in values) / len(values)
            losses.append((1 - smoothing) * right + smoothing * everything)
    return sum(losses) / len(losses)


@quick
@given(
    st.lists(st.integers(2, 6), min_size=1, max_size=4),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.1, 0.4]),
)
def test_lm_is_the_mean_over_the_tokens_that_count(lengths: list[int], seed: int, smoothing: float) -> None:
    rows, tokens = len(lengths), max(lengths)
    logits = random(rows, tokens, 9, seed=seed, low=-4, high=4)
    ids = (random(rows, tokens, seed=seed + 1, low=0) * 9).long().clamp(max=8)
    real = torch.arange(tokens)[None, :] < torch.tensor(lengths)[:, None]
    loss = lm_loss(logits, ids, real, label_smoothing=smoothing)
    assert float(loss) == pytest.approx(plain_lm(logits, ids, real, smoothing), rel=1e-12)
    noise = logits.masked_fill(~real[:, :, None], 1e6)  # what stands on a padding is nobody's business
    noise[:, -1] = -1e6  # after the last token nothing is predicted
    assert float(lm_loss(noise, ids, real, label_smoothing=smoothing)) == pytest.approx(
        float(loss), rel=1e-12
    )


def test_lm_smooths_by_a_tenth_where_nothing_is_said() -> None:
    logits, ids = random(2, 4, 6, seed=1), torch.tensor([[0, 2, 3, 1], [0, 4, 1, 5]])
    everything = torch.ones_like(ids, dtype=torch.bool)
    assert float(lm_loss(logits, ids, everything)) == pytest.approx(plain_lm(logits, ids, everything, 0.1))


def test_lm_has_the_right_gradient() -> None:
    logits = random(2, 4, 5, seed=4).requires_grad_()
    ids = torch.tensor([[0, 2, 3, 1], [0, 4, 1, 0]])
    real = torch.tensor([[True] * 4, [True, True, True, False]])
    assert torch.autograd.gradcheck(lambda x: lm_loss(x, ids, real), (logits,))


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_losses_of_narrow_logits_are_taken_in_fp32(narrow: torch.dtype) -> None:
    logits = random(3, 4, 6, seed=6).to(narrow)
    ids, real = torch.zeros(3, 4, dtype=torch.long), torch.ones(3, 4, dtype=torch.bool)
    assert torch.equal(lm_loss(logits, ids, real), lm_loss(logits.float(), ids, real))
    matches = torch.tensor([True, False, True])
    assert torch.equal(itm_loss(logits[:, 0, :2], matches), itm_loss(logits[:, 0, :2].float(), matches))
