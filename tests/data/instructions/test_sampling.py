from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.data.instructions.registry import Dataset, read_registry
from capfilt.data.instructions.sampling import sampling_weights
from capfilt.errors import CapfiltError


def a_dataset(name: str, size: int | None, correction: float = 1.0) -> Dataset:
    return Dataset(name=name, category="image_captioning", size=size, correction=correction)


def test_a_data_set_a_hundred_times_as_large_is_met_ten_times_as_often() -> None:
    weights = sampling_weights([a_dataset("large", 10_000), a_dataset("small", 100)])
    assert weights == {"large": pytest.approx(10 / 11), "small": pytest.approx(1 / 11)}


def test_a_correction_multiplies_and_what_was_read_counts_where_a_row_has_no_size() -> None:
    datasets = [a_dataset("a", 100, 0.5), a_dataset("b", None, 3)]
    # 0.5 * 10 against 3 * 5.
    assert sampling_weights(datasets, {"a": 7, "b": 25}) == {
        "a": pytest.approx(0.25),
        "b": pytest.approx(0.75),
    }
    with pytest.raises(CapfiltError, match="b has no size"):
        sampling_weights(datasets)


def test_the_paper_s_corrections_lower_aokvqa_and_raise_okvqa() -> None:
    corrected = {one.name: one.correction for one in read_registry().held("in") if one.correction != 1}
    assert corrected.keys() == {"okvqa", "aokvqa"}
    assert corrected["aokvqa"] < 1 < corrected["okvqa"]


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=8))
def test_chances_add_up_to_one_and_follow_the_sizes(sizes: list[int]) -> None:
    weights = list(sampling_weights([a_dataset(f"d{n}", size) for n, size in enumerate(sizes)]).values())
    assert sum(weights) == pytest.approx(1)
    for size, weight in zip(sizes, weights, strict=True):
        assert weight / weights[0] == pytest.approx((size / sizes[0]) ** 0.5)
