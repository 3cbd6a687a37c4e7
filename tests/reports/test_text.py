from __future__ import annotations

import io
import re
import unicodedata

import pytest
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


HOSTILE_PIECES = (
    *("\x1b]0;owned\x07", "\x1b[2J", "\x1b[8m", "\x9b31m", "\x1b]8;;http://evil.example\x1b\\"),
    *("\x1b]52;c;eA==\x07", "\0", "\r", "\n", "\t", "\b", "\x7f", "\x85", "\u2028", "\u2029"),
    *("\ufeff", "\u200b", "\u00ad", "\ud800", "\u180e", "\U000e0041", "\ufff9", "\ue000", *DIRECTION_MARKS),
    *("[red]", "[/red]", "[/]", "[link=http://evil.example]", ":smile:", "[bold red on blue]", "\\[", "\\"),
    *("e" + "\u0301" * 9, "\u05d0", "\u0627", "<script>", "w" * 1000, "=HYPERLINK(1)", " ", "a", "\uac00"),
    "\U0001f600",
)
hostile_texts = st.lists(st.sampled_from(HOSTILE_PIECES) | st.text(max_size=3), max_size=12).map("".join)
TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Screen(io.StringIO):
    """A file that is a terminal."""

    def isatty(self) -> bool:
        return True


def obeyed(shown: str) -> list[str]:
    """Characters that a terminal obeys rather than shows: controls, and marks that turn the direction."""
    return [
        character
        for character in shown
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(character)
        in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    ]


@given(hostile_texts, st.none() | st.integers(0, 30))
def test_no_control_character_and_no_mark_of_direction_passes(text: str, most: int | None) -> None:
    assert obeyed(visible(text, most)) == []


@pytest.mark.parametrize("is_terminal", [False, True])
@given(text=hostile_texts, width=st.integers(20, 120))
def test_in_a_table_of_any_width_a_terminal_is_given_no_order_but_our_colours(
    is_terminal: bool, text: str, width: int
) -> None:
    file = Screen() if is_terminal else io.StringIO()
    console = terminal(file, width=width)
    table = Table("head", header_style="bold")
    table.add_row(visible(text, 500))
    console.print(table)
    shown = file.getvalue()
    assert obeyed(COLOURS.sub("", shown).replace("\n", "")) == []
    if not is_terminal:
        assert "\x1b" not in shown


def test_a_word_of_100_kb_is_cut_before_it_is_looked_at() -> None:
    assert visible("w" * 100_000, 20) == "w" * 17 + "..."
    assert visible("\x1b" * 100_000, 20) == "\\x1b" * 4 + "\\..."
