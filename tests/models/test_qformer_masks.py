"""What may be seen, position by position, in plain words beside the masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capfilt.models.qformer_masks import additive, bidirectional, multimodal_causal, unimodal

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Mask = "Callable[[int, Tensor], Tensor]"


def sees_unimodal(place: int, other: int, queries: int) -> bool:
    return (place < queries) == (other < queries)


def sees_bidirectional(_place: int, _other: int, _queries: int) -> bool:
    return True


def sees_causal(place: int, other: int, queries: int) -> bool:
    if other < queries:
        return True
    return place >= queries and other <= place


RULES = [
    pytest.param(unimodal, sees_unimodal, id="unimodal"),
    pytest.param(bidirectional, sees_bidirectional, id="bidirectional"),
    pytest.param(multimodal_causal, sees_causal, id="multimodal_causal"),
]


@pytest.mark.parametrize(("mask", "sees"), RULES)
@given(queries=st.integers(0, 4), lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_each_position_sees_what_the_objective_lets_it_and_no_padding(
    mask: Callable[[int, Tensor], Tensor],
    sees: Callable[[int, int, int], bool],
    queries: int,
    lengths: list[int],
) -> None:
    tokens = max(lengths)
    real = torch.arange(tokens)[None, :] < torch.tensor(lengths)[:, None]
    found = mask(queries, real)
    assert found.dtype == torch.bool
    assert found.shape == (len(lengths), 1, queries + tokens, queries + tokens)
    for row, length in enumerate(lengths):
        for place in range(queries + tokens):
            for other in range(queries + tokens):
                is_real = other < queries + length
                expected = is_real and sees(place, other, queries)
                assert bool(found[row, 0, place, other]) == expected, (row, place, other)


def test_a_hand_drawn_causal_mask() -> None:
    real = torch.tensor([[True, True, False]])
    drawn = """
        11000
        11000
        11100
        11110
        11110
    """  # two queries, two words, one pad, which is a row and no column
    expected = torch.tensor([[c == "1" for c in line] for line in drawn.split()])
    assert torch.equal(multimodal_causal(2, real)[0, 0], expected)


@given(queries=st.integers(0, 3), lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_every_position_sees_something_so_that_no_softmax_is_of_nothing(
    queries: int, lengths: list[int]
) -> None:
    real = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    for mask in (unimodal, bidirectional, multimodal_causal):
        assert mask(queries, real).any(-1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_hidden_has_no_share_at_all(dtype: torch.dtype) -> None:
    visible = torch.tensor([[True, False, True], [False, True, False]])
    shares = (
        torch.tensor([[3.0, 90.0, 1.0], [80.0, -80.0, 80.0]], dtype=dtype) + additive(visible, dtype)
    ).softmax(-1)
    assert torch.equal(shares == 0, ~visible)
    torch.testing.assert_close(shares.float().sum(-1), torch.ones(2), atol=1e-2, rtol=0.0)
