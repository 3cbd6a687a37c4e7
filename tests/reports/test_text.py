from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from made_run import HOSTILE
from rich.table import Table

from capfilt.reports.text import terminal, visible

DIRECTION_MARKS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c"


@given(st.text())
def test_whatever_the_text_one_printable_line_is_shown(text: str) -> None:
    assert visible(text).isprintable()


@given(st.text(), st.integers(3, 40))
def test_a_cut_text_is_no_longer_than_allowed(text: str, most: int) -> None:
    assert len(visible(text, most)) <= most


@given(st.text(st.characters(categories=("L", "N", "P", "S")), max_size=30))
def test_words_of_any_script_are_shown_as_they_are(text: str) -> None:
    assert visible(text) == text


def test_control_characters_are_shown_as_escapes() -> None:
    assert visible("a\x1b[31mred\x07\n\t\x9bK\x7f") == "a\\x1b[31mred\\x07\\n\\t\\x9bK\\x7f"


def test_no_mark_of_direction_reaches_the_terminal() -> None:
    assert visible(DIRECTION_MARKS) == "".join(f"\\u{ord(mark):04x}" for mark in DIRECTION_MARKS)


def test_a_lone_surrogate_is_shown_as_its_escape() -> None:
    assert visible("x\ud800y") == "x\\ud800y"


def test_a_tower_of_marks_is_cut_after_four() -> None:
    assert visible("e" + "\u0301" * 6) == "e" + "\u0301" * 4 + "\\u0301" * 2


def test_a_wide_space_is_a_space() -> None:
    assert visible("a\u3000b\u00a0c") == "a b c"


def test_a_text_that_fits_is_not_cut() -> None:
    assert visible("abcdef", 6) == "abcdef"
    assert visible("abcdefg", 6) == "abc..."


def test_markup_and_emoji_codes_are_printed_as_they_stand() -> None:
    file = io.StringIO()
    console = terminal(file, width=200)
    table = Table("text")
    table.add_row(visible(HOSTILE))
    console.print(table)
    console.print(visible(HOSTILE) + " :smile: [/] [link=http://x]y[/link]")
    shown = file.getvalue()
    assert shown.count("[red]loud[/red]") == 2
    assert ":smile: [/] [link=http://x]y[/link]" in shown
    assert "\x1b" not in shown


def test_a_console_in_a_pipe_prints_no_colour() -> None:
    file = io.StringIO()
    terminal(file).print("12 done: 'yes'", style="bold red")
    assert file.getvalue() == "12 done: 'yes'\n"
