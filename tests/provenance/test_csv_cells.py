from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.provenance.csv_cells import as_cell, csv_line, from_cell

FULL_WIDTH = "\uff1d\uff0b\uff0d\uff20"
SIGNS = "'=+-@\t\r\n \0|%ax1\",;" + FULL_WIDTH
texts = st.text(st.sampled_from(SIGNS) | st.characters(codec="utf-8"), max_size=12)


@given(texts)
def test_every_text_comes_back_as_it_was(text: str) -> None:
    assert from_cell(as_cell(text)) == text


@given(st.lists(texts, min_size=1, max_size=4))
def test_every_text_comes_back_through_a_file(row: list[str]) -> None:
    file = io.StringIO(newline="")
    file.write(csv_line(as_cell(text) for text in ["first", *row]))
    file.seek(0)
    assert [[from_cell(cell) for cell in cells] for cells in csv.reader(file)] == [["first", *row]]


@given(texts)
def test_no_cell_begins_like_a_formula(text: str) -> None:
    assert as_cell(text).lstrip()[:1] not in set("=+-@" + FULL_WIDTH)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ('=HYPERLINK("http://x", "y")', '\'=HYPERLINK("http://x", "y")'),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("  =1", "'  =1"),
        ("\t=1", "'\t=1"),
        ("\uff1d1", "'\uff1d1"),
        ("'quoted'", "''quoted'"),
        ("a = b", "a = b"),
        ("", ""),
        ("2-1", "2-1"),
    ],
)
def test_what_would_be_computed_begins_with_an_apostrophe(text: str, cell: str) -> None:
    assert as_cell(text) == cell


def test_an_apostrophe_that_a_person_wrote_is_left() -> None:
    assert from_cell("'tis") == "'tis"


def test_a_formula_behind_a_bare_carriage_return_stays_in_its_cell() -> None:
    line = csv_line(["a\r=1+1", "b\n=2", 3, None, "c"])
    assert line == '"a\r=1+1","b\n=2",3,,c\n'
    assert list(csv.reader(io.StringIO(line, newline=""))) == [["a\r=1+1", "b\n=2", "3", "", "c"]]
