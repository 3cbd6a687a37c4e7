from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from capfilt.data.instructions.example import Example, Part
from capfilt.data.instructions.registry import read_registry
from capfilt.data.instructions.templates import Template, instruct
from capfilt.errors import CapfiltError


def an_example(**parts: str) -> Example:
    return Example("mine", "1", Path("1.jpg"), parts, ("red", "red", "blue"), ("red", "blue"))  # type: ignore[arg-type]


def test_optional_text_goes_with_the_part_that_it_names() -> None:
    template = Template("[Hint: {context} ]{question}[ Choose from {choices}.]")
    assert template.needed == {"question"}
    assert template.filled({"question": "Why?"}) == "Why?"
    assert template.filled({"question": "Why?", "context": "It rains."}) == "Hint: It rains. Why?"
    assert template.filled({"question": "Why?", "choices": "(a) so"}) == "Why? Choose from (a) so."


def test_what_a_part_holds_is_copied_and_never_read_as_a_template() -> None:
    template = Template("[{history} ]{question}")
    assert template.filled({"question": "{answer} [x] \\1", "history": "{question}"}) == (
        "{question} {answer} [x] \\1"
    )


@pytest.mark.parametrize(
    "text",
    ["[{question}", "{question]", "{question", "question}", "[always]", "[[{question}]]", "{birds}", "{}"],
)
def test_a_template_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(CapfiltError, match="template") as caught:
        Template(text)
    assert "question, choices" in caught.value.fix


def test_every_shipped_template_reads_well_with_all_parts_and_with_those_it_needs_alone() -> None:
    everything: dict[Part, str] = dict.fromkeys(get_args(Part), "WORD")
    for category in read_registry().categories.values():
        for template in category.parsed():
            for parts in (everything, dict.fromkeys(template.needed, "WORD")):
                text = template.filled(parts)
                assert not set("[]{}") & set(text), text
                assert "  " not in text
                assert text == text.strip() != ""


def test_every_template_and_every_output_is_drawn_and_the_key_alone_decides() -> None:
    templates = [Template(text) for text in ("{question}", "Q: {question}", "Say: {question}")]
    example = an_example(question="What colour?")
    drawn = [instruct(example, templates, 0, step) for step in range(600)]
    assert drawn == [instruct(example, templates, 0, step) for step in range(600)]
    texts = Counter(one.text for one in drawn)
    outputs = Counter(one.output for one in drawn)
    assert texts.keys() == {"What colour?", "Q: What colour?", "Say: What colour?"}
    # Binomial(600, 1/3) has a standard deviation of 11.5, and red has two votes of three.
    assert all(abs(count - 200) < 50 for count in texts.values())
    assert abs(outputs["red"] - 400) < 50


def test_a_template_that_needs_more_than_there_is_is_left_out_and_none_left_is_an_error() -> None:
    templates = [Template("{question}"), Template("{question} {context}")]
    assert {instruct(an_example(question="Why?"), templates, step).text for step in range(20)} == {"Why?"}
    with pytest.raises(CapfiltError, match=r"have no context, question"):
        instruct(an_example(text="x"), templates)
