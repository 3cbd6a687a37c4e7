"""Where answers are measured, an example is asked in the same words every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from capfilt.data.instructions.asking import fixed_template
from capfilt.data.instructions.example import Example
from capfilt.data.instructions.registry import Category, read_registry
from capfilt.errors import CapfiltError


def example(**parts: Any) -> Example:
    return Example("mine", "1", Path("1.jpg"), parts, ("yes",), ("yes",))


def category(*templates: str, answers: Any = "short") -> Category:
    return Category(name="kind", title="kind", answers=answers, templates=templates)


def test_the_first_that_fits_and_asks_for_a_short_answer_is_taken() -> None:
    kind = category(
        "{question}", "{context} {question} In short:", "{question} Answer briefly.", "Short: {question}"
    )
    assert fixed_template(example(question="Why?"), kind).text == "{question} Answer briefly."
    assert fixed_template(example(question="Why?", context="It rains."), kind).text == (
        "{context} {question} In short:"
    )


def test_without_such_a_one_or_where_answers_are_free_it_is_the_first_that_fits() -> None:
    assert fixed_template(
        example(question="Why?"), category("{answer}", "{question}", "Q: {question}")
    ).text == ("{question}")
    free = category("{question}", "{question} Briefly.", answers="free")
    assert fixed_template(example(question="Why?"), free).text == "{question}"


def test_what_no_template_fits_is_told_with_its_parts() -> None:
    with pytest.raises(CapfiltError, match="no template of kind fits mine, whose examples have text"):
        fixed_template(example(text="a line"), category("{question}"))


@pytest.mark.parametrize(
    ("name", "parts", "words"),
    [
        ("image_captioning", {}, "A short caption of this picture:"),
        ("question_answering", {"question": "Who?"}, "Who? Answer briefly."),
        (
            "knowledge_question_answering",
            {"question": "Who?", "choices": "tea, sand"},
            "Who? Choose from tea, sand. Answer briefly.",
        ),
        ("visual_dialogue", {"question": "who", "history": "a kite"}, "a kite who Answer briefly."),
        ("image_classification", {"question": "Is it?"}, "Is it? Answer briefly."),
    ],
)
def test_the_categories_that_ship_ask_briefly(name: str, parts: Any, words: str) -> None:
    kind = read_registry().categories[name]
    assert fixed_template(example(**parts), kind).filled(parts) == words
