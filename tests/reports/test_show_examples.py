from __future__ import annotations

import io
import re

import PIL.Image
import pytest
from escape_sequences import KITTY
from rich.text import Text

from capfilt.reports.inline_images import Box
from capfilt.reports.show_examples import PairCard, Pictures, scores_in_words, show_cards
from capfilt.reports.text import terminal

BOX = Box(12, 5)
_MOVES = re.compile(r"\x1b7\x1b\[(\d+)A\x1b\[(\d+)G(.*?)\x1b8", re.DOTALL)


def cards(keys: str, lines: int = 2) -> list[PairCard]:
    return [PairCard(("s", key), [(0, Text(f"{key} {n}")) for n in range(lines)]) for key in keys]


def printed(width: int, *columns: tuple[str, list[PairCard]], seen: str = "") -> str:
    file = io.StringIO()
    by_sample = {("s", key): PIL.Image.new("RGB", (20, 20), (200, 0, 0)) for key in seen}
    pictures = Pictures("kitty", BOX, by_sample) if seen else None
    show_cards(columns, terminal(file, width=width), pictures)
    return file.getvalue()


def test_a_wide_terminal_has_kept_and_dropped_side_by_side() -> None:
    lines = printed(140, ("Kept", cards("abc")), ("Dropped", cards("xy"))).splitlines()
    assert lines[1].split() == ["Kept", "Dropped"]
    assert [line.split() for line in lines[2:]] == [
        ["a", "0", "x", "0"],
        ["a", "1", "x", "1"],
        ["b", "0", "y", "0"],
        ["b", "1", "y", "1"],
        ["c", "0"],
        ["c", "1"],
    ]


def test_a_narrow_terminal_has_one_after_the_other() -> None:
    said = printed(60, ("Kept", cards("ab")), ("Dropped", cards("x"))).split()
    assert said == ["Kept", "a", "0", "a", "1", "b", "0", "b", "1", "Dropped", "x", "0", "x", "1"]


def test_one_column_alone_fills_a_wide_terminal() -> None:
    lines = printed(140, ("Kept", cards("abc", 1)), ("Dropped", [])).splitlines()
    assert [line.split() for line in lines[1:]] == [["Kept"], ["a", "0", "b", "0"], ["c", "0"]]
    assert printed(140, ("Kept", []), ("Dropped", [])) == ""


@pytest.mark.parametrize(("lines", "height"), [(2, 5), (5, 5), (8, 8)])
def test_a_picture_begins_beside_the_first_line_of_its_card(lines: int, height: int) -> None:
    said = printed(140, ("Kept", cards("a", lines)), ("Dropped", cards("x", lines)), seen="ax")
    moves = _MOVES.findall(said)
    # Up to the card's first line, to the left edge of each half.
    assert [(int(up), int(column)) for up, column, _ in moves] == [(height, 1), (height, 72)]
    assert all(KITTY.match(drawn) for *_, drawn in moves)
    page = _MOVES.sub("", said).splitlines()
    first = next(number for number, line in enumerate(page) if "a 0" in line)
    assert len(page) - first == height
    # Nothing is written where the pictures stand.
    assert all(not line[:14].strip() and not line[71:85].strip() for line in page[first:])


def test_a_sample_without_picture_has_a_blank_as_wide() -> None:
    said = printed(60, ("Kept", cards("ab")), seen="a")
    assert len(_MOVES.findall(said)) == 1
    assert {line.index(line.strip()) for line in _MOVES.sub("", said).splitlines() if " 1" in line} == {14}


def test_where_a_picture_is_lost_its_card_says_why() -> None:
    file = io.StringIO()
    pictures = Pictures("kitty", BOX, {("s", "a"): "its shard is gone"})
    show_cards([("Kept", cards("ab"))], terminal(file, width=60), pictures)
    lines = [line.strip() for line in file.getvalue().splitlines() if line.strip()]
    assert lines == ["Kept", "a 0", "a 1", "no picture: its shard is gone", "b 0", "b 1"]


def test_scores_stand_the_best_first_and_those_of_further_filters_behind() -> None:
    scores = {"itc_1a2b3c4d": 0.5, "itc": -0.25, "itm": 0.125}
    assert scores_in_words(scores) == "ITM 0.125, ITC -0.250, ITC by filter 1a2b3c4d 0.500"
