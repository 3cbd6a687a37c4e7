from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capfilt.data.captions import MAX_WORDS, cleaned

GOLDEN = Path(__file__).parent / "golden" / "pre_caption.json"
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "text" / "pre_caption.json"
MARKS = '.!"()*#:;~'

spaced = st.text(st.sampled_from(" \t\n\r\x0b\x1f\u00a0\u2003aBÇİΣ,-'" + MARKS), max_size=40)
texts = st.text(max_size=60) | spaced
limits = st.integers(1, 12)


@pytest.mark.parametrize("path", [GOLDEN, SHARED], ids=["a few", "all"])
def test_captions_are_cleaned_as_by_the_released_code(path):
    if not path.is_file():
        pytest.skip("the golden numbers are not beside the repository")
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]

    assert len(cases) >= 20
    for case in cases:
        assert cleaned(case["input"], case["max_words"]) == case["output"], case


def test_thirty_words_are_kept_when_nothing_else_is_asked():
    assert cleaned("word " * 31) == " ".join(["word"] * MAX_WORDS)
    assert MAX_WORDS == 30


@given(texts, limits)
def test_a_caption_has_at_most_the_words_that_are_asked(text, most):
    words = cleaned(text, most).split(" ")

    assert len(words) <= most
    assert all(words) or words == [""]


@given(texts, limits, limits)
@example("a\tb", 1, 1)
@example("trailing tab.\t", 9, 9)
def test_cleaning_again_changes_nothing_but_the_number_of_words(text, first, second):
    assert cleaned(cleaned(text, first), second) == cleaned(text, min(first, second))


@given(texts, limits)
def test_no_mark_is_left_and_every_word_is_in_lower_case(text, most):
    clean = cleaned(text, most)

    assert not set(clean) & set(MARKS)
    assert clean == clean.lower()
    assert not any(before.isspace() and after.isspace() for before, after in pairwise(clean))


@given(st.lists(st.text("abcdefg,-'", min_size=1, max_size=6), min_size=1, max_size=12))
def test_a_clean_text_stays_as_it_is(words):
    assert cleaned(" ".join(words)) == " ".join(words)


@given(texts, limits)
def test_marks_and_gaps_of_any_length_count_like_one_blank(text, most):
    assert cleaned(f"{text} . {text}", most) == cleaned(f"{text}\n\t\n{text}", most)
