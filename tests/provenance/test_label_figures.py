from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.provenance.label_figures import Cell, Estimate, precision_and_recall

Z95 = 1.959963984540054


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's interval by its closed form."""
    share, square = right / count, Z95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = Z95 / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return centre - half, centre + half


def close(found: Estimate, value: float, low: float, high: float, most: float = 1e-6) -> bool:
    return (
        found.value is not None
        and abs(found.value - value) < most
        and abs(found.low - low) < most
        and abs(found.high - high) < most
    )


@pytest.mark.parametrize("right", [0, 1, 13, 20])
def test_one_part_of_endless_pairs_has_wilsons_interval(right: int) -> None:
    cell = Cell("web", 0, True, 10**9, right, 20 - right)
    assert close(precision_and_recall([cell])[0], right / 20, *wilson(right, 20))


@pytest.mark.parametrize("parts", [2, 5, 16])
def test_where_all_labels_agree_equal_parts_say_what_one_part_of_all_labels_says(parts: int) -> None:
    cells = [Cell("web", number, True, 10**9, 6, 0) for number in range(parts)]
    assert close(precision_and_recall(cells)[0], 1.0, *wilson(6 * parts, 6 * parts))


def test_parts_weigh_what_they_hold_whatever_was_labelled_of_them() -> None:
    cells = [Cell("web", 0, True, 9000, 10, 90), Cell("web", 1, True, 1000, 5, 0)]
    # By hand: 0.9 * 0.1 + 0.1 * 1.
    assert precision_and_recall(cells)[0].value == pytest.approx(0.19)


def test_recall_is_the_matches_kept_of_all_matches_by_hand() -> None:
    cells = [Cell("web", 1, True, 1000, 8, 2), Cell("web", 0, False, 4000, 1, 19)]
    # By hand: 800 matches are kept, 200 dropped.
    recall = precision_and_recall(cells)[1]
    assert recall.value == pytest.approx(0.8)
    assert recall.low < 0.8 < recall.high


def test_what_is_labelled_wholly_is_known_wholly() -> None:
    cells = [Cell("web", 1, True, 10, 8, 2), Cell("web", 0, False, 20, 2, 18)]
    assert precision_and_recall(cells) == (Estimate(0.8, 0.8, 0.8), Estimate(0.8, 0.8, 0.8))


def test_a_part_without_labels_is_taken_for_its_neighbour_of_the_same_source_and_verdict() -> None:
    with_gap = [
        Cell("web", 0, False, 500, 0, 10),
        Cell("web", 2, True, 300, 9, 1),
        Cell("web", 3, True, 100, 0, 0),
        Cell("web", 9, True, 50, 5, 5),
    ]
    joined = [with_gap[0], Cell("web", 2, True, 400, 9, 1), with_gap[3]]
    assert precision_and_recall(with_gap) == precision_and_recall(joined)


def test_a_source_without_labels_leaves_the_value_open_and_the_interval_wide() -> None:
    cells = [Cell("web", 0, True, 1000, 20, 0), Cell("synthetic", 0, True, 1000, 0, 0)]
    precision, recall = precision_and_recall(cells)
    assert precision.value is None
    assert precision.low == pytest.approx(wilson(20, 20)[0] / 2, abs=0.005)
    assert precision.high == 1
    assert recall.value is None


def test_without_labels_nothing_is_known() -> None:
    for keep in (True, False):
        found = precision_and_recall([Cell("web", 0, keep, 10, 0, 0)])
        assert found[0] == Estimate(None, 0.0, 1.0)
    assert precision_and_recall([]) == (Estimate(None, 0.0, 1.0), Estimate(None, 0.0, 1.0))


def test_where_nothing_is_kept_there_is_no_precision_and_no_recall() -> None:
    precision, recall = precision_and_recall([Cell("web", 0, False, 1000, 10, 10)])
    assert precision == Estimate(None, 0.0, 1.0)
    assert (recall.value, recall.low) == (0.0, 0.0)


parts = st.lists(
    st.tuples(
        st.sampled_from(["web", "synthetic"]),
        st.integers(-1, 5),
        st.booleans(),
        st.integers(1, 5000),
        st.integers(0, 40),
        st.integers(0, 40),
    ),
    max_size=12,
    unique_by=lambda part: part[:3],
)


@given(parts)
def test_whatever_was_labelled_intervals_hold_the_value_and_lie_between_0_and_1(
    found: list[tuple[str, int, bool, int, int, int]],
) -> None:
    cells = [Cell(s, n, k, max(pairs, right + wrong), right, wrong) for s, n, k, pairs, right, wrong in found]
    for estimate in precision_and_recall(cells):
        assert -1e-9 <= estimate.low <= estimate.high + 1e-9 <= 1 + 2e-9
        if estimate.value is not None:
            assert estimate.low - 1e-9 <= estimate.value <= estimate.high + 1e-9


@given(parts)
def test_more_labels_of_the_same_kind_never_widen_precisions_interval(
    found: list[tuple[str, int, bool, int, int, int]],
) -> None:
    few = [Cell(s, n, k, 10**6, right, wrong) for s, n, k, _, right, wrong in found]
    more = [Cell(c.source, c.stratum, c.keep, c.pairs, 4 * c.matches, 4 * c.mismatches) for c in few]
    narrow, wide = precision_and_recall(more)[0], precision_and_recall(few)[0]
    assert narrow.high - narrow.low <= wide.high - wide.low + 1e-6


WORLDS = {
    "clear at both ends": (
        [20_000, 3000, 2000, 1500, 1500, 2000, 3000, 15_000],
        [0, 0, 0.01, 0.1, 0.6, 0.95, 1, 1],
    ),
    "a weak score": ([5000] * 8, [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65]),
    "few pairs": ([60] * 8, [0, 0, 0.01, 0.1, 0.6, 0.95, 1, 1]),
}


@pytest.mark.parametrize("labels", [64, 320])
@pytest.mark.parametrize("name", WORLDS)
def test_intervals_hold_the_truth_nearly_as_often_as_they_say(name: str, labels: int) -> None:
    """Samples are drawn from pairs whose truth is known; 95% within two and a half standard errors."""
    sizes, shares = WORLDS[name]
    generator = np.random.default_rng(7)
    # The threshold cuts the fifth part into halves.
    cells = []
    for part, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        halves = [size] if part != 4 else [size // 2, size - size // 2]
        for number, half in enumerate(halves):
            cells.append((part, part > 4 or (part == 4 and number == 1), half, round(half * share)))
    kept = sum(pairs for _, keep, pairs, _ in cells if keep)
    right_kept = sum(right for _, keep, _, right in cells if keep)
    truth = right_kept / kept, right_kept / sum(right for *_, right in cells)
    times = 400
    held = np.zeros(2)
    for _ in range(times):
        drawn = []
        for part in range(8):
            mine = [cell for cell in cells if cell[0] == part]
            groups = [count for *_, pairs, right in mine for count in (right, pairs - right)]
            found = generator.multivariate_hypergeometric(groups, min(labels // 8, sum(groups)))
            for place, (_, keep, pairs, _) in enumerate(mine):
                drawn.append(Cell("web", part, keep, pairs, int(found[2 * place]), int(found[2 * place + 1])))
        for which, estimate in enumerate(precision_and_recall(drawn)):
            held[which] += estimate.low - 1e-9 <= truth[which] <= estimate.high + 1e-9
    assert (held / times > 0.95 - 2.5 * math.sqrt(0.95 * 0.05 / times)).all(), held / times
