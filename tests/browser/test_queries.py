from __future__ import annotations

import math
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.browser.cards import Facets, ScoreColumn
from capfilt.browser.proposal import Proposal
from capfilt.browser.queries import Wanted, proposal_of, threshold_of
from capfilt.browser.selection import Selection
from capfilt.errors import CapfiltError
from capfilt.provenance.policy import AtLeast, PerImage, Policy, Rescue, TopFraction

FILTER, OTHER = "f" * 64, "0123abcd" * 8
COLUMNS = [
    ScoreColumn("itm", "ITM", 0, 1, 0.1, 0.9, True),
    ScoreColumn("itc", "ITC", -1, 1, -0.5, 0.5, False),
    ScoreColumn("itc_0123abcd", "ITC by filter 0123abcd", -1, 1, -0.5, 0.5, False),
]
FACETS = Facets(9, 9, 9, {}, {}, {}, [], COLUMNS, [FILTER], [1], {}, {}, 1, "", True)
IN_FORCE = Policy((AtLeast("itm", 0.123456789), PerImage(1, "itm")), FILTER)


def read(query: str, in_force: Policy | None = IN_FORCE) -> Wanted:
    return Wanted.read(parse_qsl(query, keep_blank_values=True), FACETS, in_force)


def test_an_empty_address_asks_for_everything_by_the_policy_in_force() -> None:
    assert read("") == Wanted(Selection(), Proposal())
    assert read("").address() == "/"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    words=texts,
    shard=texts,
    itm=st.none() | st.floats(0, 1),
    per_image=st.none() | st.integers(1, 9),
    offset=st.integers(0, 10**9),
)
def test_an_address_leads_to_what_it_was_made_from(
    words: str, shard: str, itm: float | None, per_image: int | None, offset: int
) -> None:
    selection = Selection(words=words, shard=shard or None, order="itc", descending=False)
    proposal = Proposal(itm=None if itm is None else repr(itm), per_image=per_image)
    wanted = Wanted(selection, proposal, offset)
    assert read(urlsplit(wanted.address(offset=offset)).query) == wanted


def test_a_form_that_stands_as_the_policy_in_force_proposes_nothing() -> None:
    query = (
        "form=1&judge.itm=0.123457&judge.itc=&judge.fraction=&judge.per_image=1&judge.by=&judge.texts=best"
    )
    assert read(query).proposal == Proposal()
    assert read(query).address() == "/"
    with_by = query.replace("judge.by=", "judge.by=itm")
    assert read(with_by).proposal == Proposal()


def test_a_form_with_one_slider_moved_proposes_all_that_stands_in_it() -> None:
    query = "form=1&judge.itm=0.5&judge.itc=&judge.fraction=&judge.per_image=1&judge.by=itm&source=web"
    wanted = read(query)
    assert wanted.proposal == Proposal(itm="0.5", per_image=1, by="itm")
    assert parse_qsl(urlsplit(wanted.address()).query) == [
        ("source", "web"),
        ("judge.itm", "0.5"),
        ("judge.by", "itm"),
        ("judge.per_image", "1"),
    ]


def test_a_form_without_any_rule_keeps_what_is_scored_rather_than_what_is_in_force() -> None:
    wanted = read("form=1&judge.itm=&judge.itc=&judge.per_image=")
    assert wanted.proposal == Proposal(itm="0")


def test_a_form_without_any_rule_is_nothing_where_nothing_was_judged() -> None:
    assert read("form=1&judge.itm=&judge.itc=", in_force=None).proposal == Proposal()


def test_a_mix_alone_leaves_the_policy_in_force() -> None:
    query = "form=1&judge.itm=0.123457&judge.per_image=1&judge.texts=web"
    wanted = read(query)
    assert wanted.proposal == Proposal(texts="web")
    assert not wanted.proposal.is_given


def test_the_threshold_of_a_further_filter_becomes_its_option() -> None:
    wanted = read("form=1&judge.itm=0.5&also.itc_0123abcd=0.25")
    assert wanted.proposal.also == ("0123abcd:itc=0.25",)
    assert threshold_of(wanted.proposal, "itc_0123abcd") == "0.25"
    assert threshold_of(wanted.proposal, "itm") == "0.5"
    assert threshold_of(wanted.proposal, "itc") == ""


@pytest.mark.parametrize(
    "query",
    ["judge.fraction=much", "judge.per_image=x", "source=mars", "order=nothing", "range=itm:a", "seed=-1"],
)
def test_a_value_that_is_none_is_refused_with_its_mend(query: str) -> None:
    with pytest.raises(CapfiltError) as refused:
        read(query)
    assert refused.value.fix


@pytest.mark.parametrize("offset", ["-1", "x", "1e9", "9" * 40, "\u0664"])
def test_a_page_that_is_none_is_the_first(offset: str) -> None:
    assert read(f"offset={offset}").offset in (0, 4)


def test_a_policy_and_the_options_that_give_it_are_one() -> None:
    policy = Policy(
        (AtLeast("itm", 0.5), AtLeast("itc", 0.25, filter=OTHER), TopFraction(0.3), Rescue(), PerImage(2)),
        FILTER,
    )
    proposal = proposal_of(policy)
    assert proposal == Proposal(
        itm="0.5", also=("0123abcd:itc=0.25",), fraction=0.3, by="itm", rescue=True, per_image=2
    )
    assert proposal_of(None) == Proposal()
    assert math.isclose(float(proposal_of(IN_FORCE).itm or 0), 0.123456789, rel_tol=1e-5)
