from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from capfilt.data.instructions.example import BadRow
from capfilt.data.instructions.formats.rows import clean, said_by_all

if TYPE_CHECKING:
    from collections.abc import Callable

HALF = json.loads(r'"half a \ud83d pair"')
"""What stands in JSON whose writer cut texts in the middle of an emoji."""


@pytest.mark.parametrize(
    "read", [lambda text: clean(text, "caption"), lambda text: said_by_all(["a cat", text], "caption")]
)
@pytest.mark.parametrize("text", [HALF, 7, None])
def test_what_is_no_text_that_can_be_written_is_a_bad_row(
    read: Callable[[object], object], text: object
) -> None:
    with pytest.raises(BadRow, match="caption") as bad:
        read(text)
    assert bad.value.reason == "field_wrong"


def test_texts_of_any_script_are_taken_with_single_spaces() -> None:
    assert clean(" een \t kat \U0001f408\n", "caption") == "een kat \U0001f408"
