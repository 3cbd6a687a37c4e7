from __future__ import annotations

import json
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.data.instructions.example import BadRow
from capfilt.data.instructions.formats.rows import read_document
from capfilt.data.instructions.formats.rows_of_json import elements
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from pathlib import Path

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
chunks = st.integers(1, 40)


@given(st.lists(values, max_size=5), st.sampled_from([None, 0, 2]), st.booleans(), chunks)
def test_a_list_in_pieces_is_the_list(rows: list[Any], indent: int | None, ascii: bool, chunk: int) -> None:
    text = f" \n{json.dumps(rows, indent=indent, ensure_ascii=ascii)}\r\n"
    assert list(elements(StringIO(text, newline=""), chunk)) == rows


@given(st.text('[]{},:"\\ 01.-+eE\ntrufalsn/', max_size=14).map("[".__add__), chunks)
def test_whatever_python_refuses_as_a_list_is_refused_in_pieces(text: str, chunk: int) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"[Ee]xpecting|Extra|Invalid|Unterminated"):
            list(elements(StringIO(text), chunk))
    else:
        assert list(elements(StringIO(text), chunk)) == expected


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[{"a": 1}, {"a": }]', "Expecting value in element 2"),
        ("[1 2]", "Expecting ',' or ']' behind element 1"),
        ("[1, 2", "Expecting ',' or ']' behind element 2"),
        ("[1] x", "Extra data behind the list"),
        ("[", "Expecting value in element 1"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_damaged_list_is_named_when_its_damage_is_met(tmp_path: Path, text: str, what: str) -> None:
    file = tmp_path / "rows.json"
    file.write_text(text)
    rows = read_document(file).rows()
    with pytest.raises(CapfiltError, match="cannot be read") as caught:
        list(rows)
    assert what in str(caught.value)


def test_rows_are_decoded_when_they_are_met(tmp_path: Path) -> None:
    """What stands before the damage is read, and what is no UTF-8 is met late."""
    for name, lines in (
        ("rows.json", b'[{"a": 1}, \n' + b'{"b": 2},\n' * 120_000),
        ("rows.jsonl", b"{}\n" * 9000),
    ):
        file = tmp_path / name
        file.write_bytes(lines + b"\xff\xff")
        rows = iter(read_document(file).rows())
        assert isinstance(next(rows), dict)
        with pytest.raises(CapfiltError, match="cannot be read"):
            list(rows)


def test_a_mark_at_the_beginning_belongs_to_no_json(tmp_path: Path) -> None:
    file = tmp_path / "document.json"
    file.write_bytes('\ufeff\n {"images": []}'.encode())
    assert read_document(file).of("images") == []
    file.write_bytes('\ufeff\n [{"image": 1}]'.encode())
    assert list(read_document(file).rows()) == [{"image": 1}]


def test_lines_are_rows_and_a_damaged_one_is_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes('\ufeff{"a": "x\u2028y"}\r\n\n  \n[1\n{"b": 2}'.encode())
    rows = read_document(file).rows()
    for _ in range(2):
        first, damaged, last = rows
        assert (first, last) == ({"a": "x\u2028y"}, {"b": 2})
        assert isinstance(damaged, BadRow)
        assert damaged.reason == "not_json"
