from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hostile import TEXTS
from hypothesis import given
from hypothesis import strategies as st

import capfilt.browser
from capfilt.browser.pages import address, duration, page, rate, share, shown

TEMPLATES = Path(capfilt.browser.__file__).parent / "templates"


class Parsed(HTMLParser):
    """The tags of some markup, and its text."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert attrs == []

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text())
def test_a_strangers_text_is_one_element_of_text_whatever_it_holds(text: str) -> None:
    parsed = Parsed(str(shown(text)))
    assert parsed.tags == ["bdi"]
    assert parsed.text.isprintable()


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_texts_are_shown_as_they_stand(name: str) -> None:
    parsed = Parsed(str(shown(TEXTS[name], 10_000_000)))
    assert parsed.tags == ["bdi"]
    printable = "".join(c for c in TEXTS[name] if c.isprintable())
    left = parsed.text
    for character in printable:
        assert character in left
        left = left[left.index(character) + 1 :]


def test_a_word_without_end_is_cut() -> None:
    assert len(str(shown("x" * 100_000, 280))) < 320


def test_a_part_is_never_rounded_to_all_or_nothing() -> None:
    assert [
        share(*of) for of in ((0, 9), (9, 9), (1, 10**6), (10**6 - 1, 10**6), (1, 3), (1, 11), (0, 0))
    ] == [
        "0%",
        "100%",
        "<0.1%",
        ">99.9%",
        "33%",
        "9.1%",
        "\N{EN DASH}",
    ]


def test_times_are_said_as_people_say_them() -> None:
    assert [duration(s) for s in (0.4, 59.4, 60, 200, 7500)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "3 min 20 s",
        "2 h 5 min",
    ]


def test_speeds_are_written_as_people_write_them() -> None:
    assert [rate(value) for value in (0.01234, 3.14159, 42.19, 99.96, 1256.4)] == [
        "0.0123",
        "3.14",
        "42.2",
        "100",
        "1,256",
    ]


def test_an_address_quotes_what_a_key_may_hold() -> None:
    assert (
        address("/picture", shard="a/b", key="<b>&\x00", px=None) == "/picture?shard=a%2Fb&key=%3Cb%3E%26%00"
    )


def test_no_template_turns_escaping_off_or_holds_a_script_a_style_or_a_handler() -> None:
    for template in TEMPLATES.iterdir():
        text = template.read_text(encoding="utf-8")
        assert not re.search(
            r"\|\s*safe\b|autoescape|Markup|<style|style=|<script(?! src=)|javascript:", text
        ), template
        assert not re.search(r"\son\w+\s*=|hx-on|hx-vals|js:", re.sub(r"{%.*?%}", "", text)), template
        for link in re.findall(r'(?:href|src|action)="([^"]*)"', text):
            assert link.startswith(("/", "{{ ", "#")), (template, link)


def test_every_value_in_a_template_stands_in_quotes_or_in_text() -> None:
    for template in TEMPLATES.iterdir():
        assert not re.search(r"=\s*{{", template.read_text(encoding="utf-8")), template


def test_a_lone_surrogate_is_no_error() -> None:
    answer = page("notice.html", {"what": "a \ud800 text", "fix": "none"})
    assert b"\\ud800" in answer.body
