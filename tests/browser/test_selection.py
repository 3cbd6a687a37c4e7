from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.browser.proposal import Proposal
from capfilt.browser.selection import Range, Selection
from capfilt.errors import CapfiltError
from capfilt.records import Reason, Refusal

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
bounds = st.one_of(st.none(), st.floats(-1, 1))
ranges = st.lists(
    st.builds(Range, st.sampled_from(["itm", "itc", "itc_1a2b3c4d"]), bounds, bounds),
    max_size=3,
    unique_by=lambda one: one.column,
)
selections = st.builds(
    Selection,
    source=st.sampled_from([None, "web", "synthetic"]),
    reason=st.sampled_from([None, *(r.value for r in Reason), *(r.value for r in Refusal)]),
    shard=st.one_of(st.none(), texts.filter(bool)),
    ranges=ranges.map(tuple),
    words=texts,
    substring=texts,
    verdict=st.sampled_from([None, "kept", "dropped"]),
    label=st.sampled_from([None, "match", "mismatch", "unsure", "none"]),
    order=st.sampled_from(["input", "random", "itm", "itc_1a2b3c4d"]),
    descending=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)
proposals = st.builds(
    Proposal,
    itm=st.one_of(st.none(), st.sampled_from(["0.5", "auto:precision=0.9"])),
    fraction=st.one_of(st.none(), st.floats(0.001, 1)),
    by=st.sampled_from([None, "itc", "0.7*itm + 0.3*1a2b3c4d:itc"]),
    per_image=st.one_of(st.none(), st.integers(1, 9)),
    rescue=st.booleans(),
    also=st.lists(st.sampled_from(["1a2b3c4d:itc=0.25", "second:itm=0.5"]), max_size=3).map(tuple),
    with_filter=st.sampled_from([None, "ffff"]),
    noise_rate=st.sampled_from([None, 0.3]),
    texts=st.sampled_from(["best", "all", "web", "synthetic"]),
)


@given(selections)
def test_a_link_says_the_same_selection(selection: Selection) -> None:
    link = urlencode(selection.query())
    assert Selection.read(parse_qsl(link, keep_blank_values=True)) == selection


@given(proposals, selections)
def test_a_link_holds_a_selection_and_a_proposal_at_once(proposal: Proposal, selection: Selection) -> None:
    link = urlencode([*selection.query(), *proposal.query()])
    query = parse_qsl(link, keep_blank_values=True)
    assert (Selection.read(query), Proposal.read(query)) == (selection, proposal)


def test_what_is_as_usual_stands_in_no_link() -> None:
    assert Selection().query() == Proposal().query() == []
    assert Selection(words="a bus", seed=3).query() == [("words", "a bus"), ("seed", "3")]


def test_a_form_sends_empty_fields_and_the_ends_of_a_range_apart() -> None:
    form = [
        ("source", ""),
        ("words", ""),
        ("itm.low", "0.2"),
        ("itm.high", ""),
        ("itc.high", "0.5"),
        ("x", "y"),
    ]
    wanted = Selection(ranges=(Range("itm", 0.2), Range("itc", None, 0.5)))
    assert Selection.read(form) == wanted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", "wed"),
        ("reason", "because"),
        ("verdict", "keep"),
        ("label", "maybe"),
        ("order", "pair_id"),
        ("order", "itm; DROP TABLE pairs"),
        ("range", "text:0:1"),
        ("range", "itm:low:1"),
        ("range", "itm:nan:1"),
        ("itm.low", "inf"),
        ("itm_x.low", "0.1"),
        ("seed", "-1"),
        ("seed", "one"),
        ("words", "x" * 1001),
    ],
)
def test_a_value_that_means_nothing_is_refused_in_words(name: str, value: str) -> None:
    with pytest.raises(CapfiltError) as refusal:
        Selection.read([(name, value)])
    assert refusal.value.fix


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fraction", "2"),
        ("fraction", "a"),
        ("per_image", "0"),
        ("by", "loss"),
        ("also", "x"),
        ("texts", "none"),
    ],
)
def test_a_rule_that_is_none_is_refused_in_words(name: str, value: str) -> None:
    with pytest.raises(CapfiltError) as refusal:
        Proposal.read([(f"judge.{name}", value)])
    assert refusal.value.fix


def test_what_utf8_cannot_say_is_looked_for_as_the_record_has_it() -> None:
    assert Selection(words="\udcff").words == "\\udcff"
