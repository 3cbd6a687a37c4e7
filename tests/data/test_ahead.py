from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.data.ahead import in_order


@given(items=st.lists(st.integers(), max_size=30), threads=st.integers(0, 4), ahead=st.integers(0, 6))
def test_results_come_in_the_order_of_their_items(items: list[int], threads: int, ahead: int) -> None:
    assert list(in_order(lambda item: 2 * item, items, threads=threads, ahead=ahead)) == [
        2 * i for i in items
    ]


def test_no_more_is_done_ahead_than_allowed() -> None:
    begun: list[int] = []
    results = in_order(begun.append, range(100), threads=3, ahead=5)
    next(results)
    time.sleep(0.05)
    assert len(begun) <= 6
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 9


def test_threads_work_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=10)
    assert list(in_order(lambda _: both.wait() >= 0, range(2), threads=2, ahead=2)) == [True, True]


@pytest.mark.parametrize("threads", [0, 2])
def test_what_an_item_raises_is_raised_in_its_place(threads: int) -> None:
    def work(item: int) -> float:
        return 1 / item

    results = in_order(work, [1, 2, 0, 4], threads=threads, ahead=3)
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
