from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.reports.layout import (
    ASCII_BLOCKS,
    BLOCKS,
    bar,
    histogram,
    histogram_with_threshold,
    percent,
    put,
    put_with_bars,
    table,
)
from capfilt.reports.text import terminal

if TYPE_CHECKING:
    from rich.console import Console


def page(width: int) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return terminal(file, width=width), file


def test_bars_are_drawn_by_hand_worked_heights() -> None:
    assert histogram([0, 1, 4, 8]) == " ▁▄█"
    assert histogram([0, 1, 4, 8], ascii_only=True) == " .=@"
    assert histogram([0, 0]) == "  "
    assert histogram([]) == ""


@given(st.lists(st.integers(0, 10**6), max_size=30))
def test_whatever_is_not_empty_is_seen_and_more_is_never_lower(counts: list[int]) -> None:
    for blocks, is_ascii in ((BLOCKS, False), (ASCII_BLOCKS, True)):
        bars = histogram(counts, ascii_only=is_ascii)
        heights = [blocks.index(bar) for bar in bars]
        assert [height == 0 for height in heights] == [count == 0 for count in counts]
        ordered = sorted(zip(counts, heights, strict=True))
        assert [height for _, height in ordered] == sorted(heights)


@pytest.mark.parametrize(
    ("threshold", "drawn"),
    [
        (0.5, "▁▁┊▁▁"),
        (0.0, "┊▁▁▁▁"),
        (1.0, "▁▁▁▁┊"),
        (0.3, "▁┊▁▁▁"),
        (-9, "┊▁▁▁▁"),
        (9, "▁▁▁▁┊"),
        (None, "▁▁▁▁ "),
    ],
)
def test_the_threshold_stands_at_the_nearest_edge_between_two_bars(
    threshold: float | None, drawn: str
) -> None:
    blocks = histogram_with_threshold([1, 1, 1, 1], 0, 1, threshold).plain
    assert blocks.replace("█", "▁") == drawn


def test_bars_below_the_threshold_and_above_it_differ_in_colour_and_the_one_it_cuts_has_none() -> None:
    drawn = histogram_with_threshold([1, 1, 1, 1], 0, 1, 0.3)
    styles = {drawn.plain[span.start : span.end]: str(span.style) for span in drawn.spans}
    # 0.3 lies in the second of four bars: the first is below it, the last two above.
    assert styles == {"█": "red", "┊": "bold", "██": "green"}


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.floats(-2, 2), st.booleans())
def test_a_threshold_adds_one_mark_and_changes_no_bar(counts: list[int], at: float, is_ascii: bool) -> None:
    drawn = histogram_with_threshold(counts, -1, 1, at, ascii_only=is_ascii).plain
    mark = "!" if is_ascii else "┊"
    assert drawn.count(mark) == 1
    assert drawn.replace(mark, "") == histogram(counts, ascii_only=is_ascii)


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(0.0, ""), (1.0, "████"), (0.5, "██"), (0.53125, "██▏"), (0.001, "▏"), (0.21875, "▉")],
)
def test_bars_of_shares_are_drawn_by_eighths_of_a_column(share: float, drawn: str) -> None:
    assert bar(share, 4).plain == drawn


def test_bars_in_ascii_are_whole_columns() -> None:
    assert [bar(share, 4, ascii_only=True).plain for share in (0.0, 0.01, 0.5, 1.0)] == [
        "",
        "#",
        "##",
        "####",
    ]


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [
        (1, 2, "50.0%"),
        (0, 9, "0.0%"),
        (1, 100_000, "<0.1%"),
        (99_999, 100_000, ">99.9%"),
        (9, 9, "100.0%"),
        (0, 0, ""),
    ],
)
def test_a_few_of_many_are_neither_none_nor_all(part: int, whole: int, said: str) -> None:
    assert percent(part, whole) == said


def test_lines_end_where_their_words_end_and_are_counted() -> None:
    console, file = page(40)
    made = table("name", ">number", "")
    made.add_row("a", "1", "")
    made.add_row("b " * 30, "2", "")
    assert put(made, console) == len(file.getvalue().splitlines()) > 3
    assert all(line == line.rstrip() for line in file.getvalue().splitlines())


def test_bars_stand_beside_a_table_only_where_there_is_room() -> None:
    rows, shares = [["some words", "7"]], [(1.0, "green")]
    for width, length in ((60, 40), (35, 15), (25, 0)):
        console, file = page(width)
        put_with_bars(("name", ">number"), rows, shares, console)
        assert file.getvalue().count("█") == length
        assert max(map(len, file.getvalue().splitlines())) <= width


def test_what_stands_in_a_table_is_shown_and_not_obeyed() -> None:
    console, file = page(80)
    put_with_bars(("name",), [["[red]x[/red]\x1b[2J\u202e"]], [(0.5, "")], console)
    assert "[red]x[/red]\\x1b[2J\\u202e" in file.getvalue()
