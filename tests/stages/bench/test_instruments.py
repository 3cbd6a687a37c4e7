from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from capfilt.stages.bench import instruments
from capfilt.stages.bench.instruments import Stopwatch, device_name, peak_memory, product_peak, stopwatch

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_a_moment_belongs_to_the_innermost_part_and_all_parts_to_the_whole() -> None:
    # Worked by hand: a turn of the stopwatch takes the next of these, wall and CPU seconds.
    turns: Iterator[tuple[float, float]] = iter([(10, 1), (12, 2), (15, 4), (16, 4), (20, 5), (25, 9)])
    watch = Stopwatch(lambda: next(turns))
    with watch.part("outer"):
        with watch.part("inner"):
            pass
        with watch.part("inner"):
            pass

    assert watch.wall_s == {"outer": 2 + 1 + 5, "inner": 3 + 4}
    assert watch.cpu_s == {"outer": 1 + 0 + 4, "inner": 2 + 1}
    assert sum(watch.wall_s.values()) == 25 - 10


def test_a_part_that_fails_is_left_all_the_same() -> None:
    turns: Iterator[tuple[float, float]] = iter([(0, 0), (1, 0), (3, 0), (7, 0)])
    watch = Stopwatch(lambda: next(turns))
    with watch.part("outer"), pytest.raises(ValueError, match="broken"), watch.part("inner"):
        raise ValueError("broken")

    assert watch.wall_s == {"outer": 1 + 4, "inner": 2}


def test_a_gpu_is_waited_for_at_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    watch = stopwatch("cuda:1")
    with watch.part("outer"), watch.part("inner"):
        pass

    assert waited == ["cuda:1"] * 4
    assert stopwatch("cpu").wall_s == {}


@pytest.mark.parametrize("numbers", ["fp32", "bf16", "int8"])
def test_a_peak_is_two_operations_a_product_in_the_fastest_time(
    numbers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = iter([(0.0, 0.0), (4.0, 0.0), (5.0, 0.0), (7.0, 0.0), (8.0, 0.0), (11.0, 0.0)])
    monkeypatch.setattr(instruments, "_now", lambda: next(turns))
    assert product_peak("cpu", numbers, side=32, seconds=0) == 2 * 32**3 / 2


def test_memory_that_was_given_back_stays_in_the_peak() -> None:
    program = (
        "from capfilt.stages.bench.instruments import peak_memory\n"
        "before = peak_memory()\n"
        "block = bytearray(100_000_000)\n"
        "del block\n"
        "print(peak_memory() - before)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # Bytes and not kilobytes; what the interpreter had free already is a little less to ask for.
    assert 90_000_000 < int(ended.stdout) < 200_000_000
    assert peak_memory() > 10_000_000


def test_a_processor_has_a_name() -> None:
    assert device_name("cpu").strip()
