from __future__ import annotations

import math
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.evaluation.retrieval import chance_recall, most_similar, ranks, recall_at, reranked


@st.composite
def tables(draw: st.DrawFn, most_candidates: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and what is right: at least one candidate for each query."""
    queries, candidates = draw(st.integers(1, 5)), draw(st.integers(1, most_candidates))
    # None is 0: a logarithm orders these too.
    cells = st.lists(st.integers(1, 6).map(lambda n: n / 6), min_size=candidates, max_size=candidates)
    marks = st.lists(st.booleans(), min_size=candidates, max_size=candidates).filter(any)
    scores = draw(st.lists(cells, min_size=queries, max_size=queries))
    right = draw(st.lists(marks, min_size=queries, max_size=queries))
    return np.array(scores), np.array(right)


# -- ranks


@given(tables())
def test_a_rank_is_the_place_of_the_first_right_one_where_wrong_ones_win_ties(
    table: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, right = table

    expected = []
    for row, marks in zip(scores, right, strict=True):
        order = sorted(range(len(row)), key=lambda n: (-row[n], marks[n]))
        expected.append(next(place for place, n in enumerate(order) if marks[n]))

    # Right ones before it cannot be: it is the first.
    assert ranks(scores, right).tolist() == expected


@given(tables())
def test_ranks_stay_when_scores_are_transformed_monotonely(table: tuple[np.ndarray, np.ndarray]) -> None:
    scores, right = table

    assert ranks(np.log(scores) * 3 - 7, right).tolist() == ranks(scores, right).tolist()


def test_several_captions_and_equal_images_are_all_right() -> None:
    # Two images that are equal, and one more, with two captions each: any of the four is right for the first.
    scores = np.array([[0.1, 0.2, 0.8, 0.3, 0.9, 0.0]])

    assert ranks(scores, np.array([[True, True, False, False, False, False]])).tolist() == [3]
    assert ranks(scores, np.array([[True, True, True, True, False, False]])).tolist() == [1]


def test_a_model_that_scores_everything_alike_finds_nothing() -> None:
    found = ranks(np.zeros((3, 5)), np.eye(3, 5, dtype=bool))

    assert found.tolist() == [4, 4, 4]
    assert recall_at(found, 4) == 0.0
    assert recall_at(found, 5) == 1.0


def test_recall_counts_queries_found_among_the_first_k() -> None:
    found = np.array([0, 1, 4, 5, 9, 10, 0, 300])

    assert [recall_at(found, k) for k in (1, 5, 10)] == [2 / 8, 4 / 8, 6 / 8]
    assert math.isnan(recall_at(np.array([], dtype=np.int64), 1))


def test_a_query_without_an_answer_and_a_score_without_a_number_are_refused() -> None:
    right = np.array([[True, False], [False, False]])
    with pytest.raises(ValueError, match="1 of 2 queries have no right candidate, the first is 1"):
        ranks(np.zeros((2, 2)), right)
    with pytest.raises(ValueError, match="1 of 2 queries have no right candidate"):
        chance_recall(right, 1)
    with pytest.raises(ValueError, match="NaN"):
        ranks(np.array([[math.nan, 0.1]]), np.array([[False, True]]))
    with pytest.raises(ValueError, match="shape"):
        ranks(np.zeros((2, 3)), np.ones((2, 2), dtype=bool))


# -- re-ranking


@given(tables(), st.integers(1, 9), st.randoms(use_true_random=False))
def test_the_top_is_ordered_by_itm_and_the_rest_below_it_by_itc(table, k, random) -> None:  # type: ignore[no-untyped-def]
    scores, _ = table
    top = most_similar(scores, k)
    # Logits of any size, far from cosines on both sides.
    second = np.array([[random.choice([-900.0, -2.5, 0.0, 0.1, 40.0]) for _ in row] for row in top])

    result = reranked(scores, top, second)

    for row, chosen, logits, given_scores in zip(result, top, second, scores, strict=True):
        meant = {
            n: (1, float(logits[list(chosen).index(n)])) if n in chosen else (0, float(given_scores[n]))
            for n in range(len(row))
        }
        for one in meant:
            for other in meant:
                assert (row[one] < row[other]) == (meant[one] < meant[other])


def test_reranking_worked_out_by_hand() -> None:
    itc = np.array([[0.9, 0.8, 0.7, 0.1], [0.2, 0.3, 0.1, 0.4]])
    right = np.array([[False, True, False, False], [False, False, True, False]])
    top = most_similar(itc, 2)
    assert top.tolist() == [[0, 1], [3, 1]]

    result = reranked(itc, top, np.array([[-1.0, 2.0], [0.5, 3.0]]))

    assert np.argsort(-result, axis=1).tolist() == [[1, 0, 2, 3], [1, 3, 0, 2]]
    # The first query's caption moves to the front; the second's is not in the top, and ITM cannot save it.
    assert ranks(itc, right).tolist() == [1, 3]
    assert ranks(result, right).tolist() == [0, 3]


def test_recall_is_that_of_filling_the_rest_with_minus_100() -> None:
    # As the released code does: logit plus cosine for the top, -100 for all others.
    random = np.random.Generator(np.random.PCG64(2))
    itc = random.uniform(-1, 1, (40, 60))
    right = np.arange(60) // 2 == np.arange(40)[:, None] % 30
    top = most_similar(itc, 12)
    second = random.normal(0, 4, top.shape) + np.take_along_axis(itc, top, axis=1)
    filled = np.full(itc.shape, -100.0)
    np.put_along_axis(filled, top, second, axis=1)

    ours, theirs = ranks(reranked(itc, top, second), right), ranks(filled, right)

    for k in (1, 5, 10, 12):
        assert recall_at(ours, k) == recall_at(theirs, k)
    assert 0 < recall_at(ours, 12) < 1


def test_the_most_similar_come_in_order_and_are_never_more_than_there_are() -> None:
    scores = np.array([[0.2, 0.9, 0.2, 0.5]])

    assert most_similar(scores, 3).tolist() == [[1, 3, 0]]
    assert most_similar(scores, 256).tolist() == [[1, 3, 0, 2]]


@pytest.mark.parametrize("top", [[[0, 0]], [[0, 3]], [[-1, 0]]])
def test_a_top_that_names_no_different_candidates_is_refused(top: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="from 0 to 2"):
        reranked(np.zeros((1, 3)), np.array(top), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="top is"):
        reranked(np.zeros((1, 3)), np.array(top), np.zeros((1, 3)))


# -- chance


@settings(max_examples=40)
@given(tables(most_candidates=6), st.integers(1, 8))
def test_chance_is_the_mean_recall_over_all_orders(table: tuple[np.ndarray, np.ndarray], k: int) -> None:
    _, right = table
    candidates = right.shape[1]

    expected = Fraction(0)
    for marks in right:
        orders = list(permutations(range(candidates)))
        expected += Fraction(sum(any(marks[n] for n in order[:k]) for order in orders), len(orders)) / len(
            right
        )

    assert chance_recall(right, k) == pytest.approx(float(expected), abs=1e-12)


def test_chance_of_known_sizes() -> None:
    # One right of 1,000: 1 / 1000 at 1. Five right of 5,000 at 1: again 1 / 1000.
    assert chance_recall(np.eye(1, 1000, dtype=bool), 1) == pytest.approx(0.001, abs=1e-12)
    assert chance_recall(np.arange(5000)[None] < 5, 1) == pytest.approx(0.001, abs=1e-12)
    assert chance_recall(np.eye(1, 1000, dtype=bool), 10) == pytest.approx(0.01, abs=1e-12)
    assert chance_recall(np.eye(3, 7, dtype=bool), 7) == 1.0
    assert math.isnan(chance_recall(np.zeros((0, 4), dtype=bool), 1))
