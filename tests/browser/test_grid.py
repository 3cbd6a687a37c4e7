"""What a selection shows is what the run's own `pairs` say, page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from small_run import FILTER, make_run, make_shard, score_again

from capfilt.browser.grid import whole_word
from capfilt.browser.proposal import Proposal
from capfilt.browser.selection import Range, Selection
from capfilt.browser.view import RunView
from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.labels import Label, add_labels
from capfilt.provenance.policy import AtLeast, PerImage, Policy, Rescue, TopFraction, write_policy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from capfilt.provenance.rundir import RunDir

POLICY = Policy((AtLeast("itm", 0.4), PerImage(1, "itm")), FILTER)
EVERYTHING = 500


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run, made = make_run(tmp_path_factory.mktemp("grid") / "run", count=12)
    for one in made[:2]:
        score_again(run, one)
    write_policy(run, POLICY)
    labels = [
        Label(row["pair_id"], verdict, "somebody", 1.0)
        for row, verdict in zip(made[0].captions, ("match", "mismatch", "unsure"), strict=False)
    ]
    add_labels(run, labels)
    return run


@pytest.fixture(scope="module")
def view(run: RunDir) -> Iterator[RunView]:
    view = RunView.open(run)
    yield view
    view.close()


def names(view: RunView, selection: Selection, **choices: Any) -> list[tuple[str, str]]:
    grid = view.grid(selection, 0, EVERYTHING, **choices)
    assert grid.total == len(grid.rows)
    assert grid.texts == sum(text.is_selected for card in grid.rows for text in card.texts)
    return [(card.shard, card.key) for card in grid.rows]


def pictures(run: RunDir, where: str, *values: object, policy: Policy | None = None) -> set[tuple[str, str]]:
    """Pictures of which a pair meets a condition, as the catalog says."""
    with open_catalog(run, policy=policy) as catalog:
        rows = catalog.execute(
            f"SELECT DISTINCT shard, key FROM pairs WHERE {where}", list(values)
        ).fetchall()
    return set(rows)


CASES = {
    "a source": (Selection(source="web"), "source = 'web'"),
    "a range": (Selection(ranges=(Range("itm", 0.3, 0.5),)), "itm BETWEEN 0.3 AND 0.5"),
    "two ranges": (
        Selection(ranges=(Range("itm", 0.3), Range("itc", None, 0.1))),
        "itm >= 0.3 AND itc <= 0.1",
    ),
    "a further filter": (Selection(ranges=(Range("itc_1a2b3c4d", 0.2),)), "itc_1a2b3c4d >= 0.2"),
    "scored at all": (Selection(ranges=(Range("itc_1a2b3c4d"),)), "itc_1a2b3c4d IS NOT NULL"),
    "kept": (Selection(verdict="kept"), "keep"),
    "dropped": (Selection(verdict="dropped"), "NOT keep"),
    "a reason": (Selection(reason="not_best_of_image"), "reason = 'not_best_of_image'"),
    "a repeated text": (Selection(reason="repeated_text"), "reason = 'repeated_text'"),
    "a reason that no pair has": (Selection(reason="below_fraction"), "reason = 'below_fraction'"),
    "a substring in any case": (Selection(substring="DOGS ON"), "contains(lower(text), 'dogs on')"),
    "a substring inside words": (Selection(substring="unDred"), "contains(text, 'hundred')"),
    "a word and no part of one": (Selection(words="dog"), "text = 'dog'"),
    "words in any order": (Selection(words="stop THE"), "text = 'the bus stop'"),
    "a word of another script": (Selection(words="ХЛЕБ"), "contains(text, 'хлеб')"),
    "signs that mean something elsewhere": (Selection(words="100% off!"), "text = '100% off!'"),
    "several at once": (
        Selection(source="synthetic", verdict="dropped", words="bus", ranges=(Range("itm", 0.1),)),
        "source = 'synthetic' AND NOT keep AND contains(text, 'bus') AND itm >= 0.1",
    ),
}


@pytest.mark.parametrize(("selection", "where"), CASES.values(), ids=CASES.keys())
def test_a_selection_shows_what_the_catalog_finds(
    run: RunDir, view: RunView, selection: Selection, where: str
) -> None:
    found = names(view, selection)
    assert set(found) == pictures(run, where)
    assert len(found) == len(set(found))


def test_a_shard_and_a_refusal_are_of_samples(view: RunView) -> None:
    assert names(view, Selection(shard="00001")) == [("00001", f"k1-{n}") for n in range(12)]
    found = names(view, Selection(reason="unreadable_image"))
    assert found == [(f"0000{n}", f"k{n}-1") for n in range(3)]
    [card] = view.grid(Selection(reason="unreadable_image", shard="00002")).rows
    assert (card.status, card.refusal, card.texts, card.width) == ("refused", "unreadable_image", [], None)
    assert [key for _, key in names(view, Selection(reason="empty_text"))] == ["k0-2", "k1-2", "k2-2"]


def test_labels_select_the_texts_that_people_looked_at(view: RunView) -> None:
    every = view.grid(Selection(), 0, EVERYTHING)
    labelled = {text.pair_id: text.label for card in every.rows for text in card.texts if text.label}
    assert sorted(labelled.values()) == ["match", "mismatch", "unsure"]
    for label in ("match", "mismatch", "unsure"):
        [card] = view.grid(Selection(label=label)).rows
        assert label in {text.label for text in card.texts if text.is_selected}
    unlabelled = view.grid(Selection(label="none"), 0, EVERYTHING)
    assert unlabelled.texts == every.texts - 3


def test_cards_say_what_the_catalog_says(run: RunDir, view: RunView) -> None:
    with open_catalog(run) as catalog:
        rows = catalog.execute(
            "SELECT pair_id, shard, key, source, candidate, text, itm, itc, itc_1a2b3c4d, keep, reason "
            "FROM pairs"
        ).fetchall()
    shown = {
        (
            *(text.pair_id, card.shard, card.key, text.source, text.candidate, text.text),
            *(text.scores[name] for name in ("itm", "itc", "itc_1a2b3c4d")),
            *(text.keep, text.reason),
        )
        for card in view.grid(Selection(), 0, EVERYTHING).rows
        for text in card.texts
    }
    assert shown == set(rows)


def test_the_web_text_stands_first_and_candidates_in_their_order(view: RunView) -> None:
    for card in view.grid(Selection(), 0, EVERYTHING).rows:
        order = [(text.source != "web", text.candidate) for text in card.texts]
        assert order == sorted(order)


@pytest.mark.parametrize(
    "selection",
    [
        Selection(),
        Selection(order="itm"),
        Selection(order="itc", descending=False),
        Selection(order="random", seed=3),
        Selection(order="itm", source="synthetic", words="bus"),
        Selection(order="random", seed=4, verdict="dropped"),
        Selection(reason="missing_image", order="itm"),
    ],
)
def test_pages_hold_every_picture_once_in_one_order(view: RunView, selection: Selection) -> None:
    whole = view.grid(selection, 0, EVERYTHING)
    pages = [view.grid(selection, offset, 5) for offset in range(0, whole.total + 5, 5)]
    assert [card for page in pages for card in page.rows] == whole.rows
    assert {page.total for page in pages} == {whole.total} == {len(whole.rows)}
    assert pages[-1].rows == []


@pytest.mark.parametrize("descending", [True, False])
def test_a_score_orders_pictures_by_the_text_that_puts_them_first(view: RunView, descending: bool) -> None:
    selection = Selection(order="itm", descending=descending, source="synthetic")
    best = max if descending else min
    values = [
        best(text.scores["itm"] or 0.0 for text in card.texts if text.is_selected)
        for card in view.grid(selection, 0, EVERYTHING).rows
    ]
    assert values == sorted(values, reverse=descending)
    assert len(set(values)) > 2


def test_ordered_by_a_score_no_picture_is_lost_and_those_without_texts_come_last(view: RunView) -> None:
    cards = view.grid(Selection(order="itm"), 0, EVERYTHING).rows
    assert len(cards) == 36
    without = [not card.texts for card in cards]
    assert without == sorted(without)
    assert sum(without) == 6


def test_a_random_draw_is_named_by_its_seed(view: RunView) -> None:
    first, again, other = (names(view, Selection(order="random", seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)
    firsts = {names(view, Selection(order="random", seed=seed))[0] for seed in range(60)}
    assert len(firsts) > 20  # of 36; a fair draw misses 36 * (35 / 36) ** 60 = 7 of them


def test_a_random_order_does_not_change_when_a_shard_is_added(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run", shards=2)
    view = RunView.open(run)
    before = names(view, Selection(order="random", seed=5))
    make_shard(tmp_path / "web", 2).commit(run)
    view.refresh()
    after = names(view, Selection(order="random", seed=5))
    assert [one for one in after if one in before] == before
    view.close()


@pytest.mark.parametrize(
    ("proposal", "policy"),
    [
        (Proposal(itm="0.7"), Policy((AtLeast("itm", 0.7),), FILTER)),
        (Proposal(fraction=0.25, by="itc"), Policy((TopFraction(0.25, "itc"),), FILTER)),
        (Proposal(itm="0.3", rescue=True), Policy((AtLeast("itm", 0.3), Rescue("itm")), FILTER)),
    ],
)
def test_a_proposal_judges_the_grid_before_it_is_applied(
    run: RunDir, view: RunView, proposal: Proposal, policy: Policy
) -> None:
    found = names(view, Selection(verdict="kept"), proposal=proposal)
    assert set(found) == pictures(run, "keep", policy=policy)
    assert set(names(view, Selection(verdict="kept"))) == pictures(run, "keep")


HOSTILE = [
    "'",
    "'; DROP TABLE pairs; --",
    "$value_0",
    "\\",
    "%",
    "_",
    "(",
    "[a-",
    ".*",
    "\x00",
    "\udcff",
    "$$",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_are_looked_for_as_they_stand(view: RunView, text: str) -> None:
    before = names(view, Selection())
    for selection in (Selection(words=text), Selection(substring=text)):
        assert view.grid(selection).total == 0 or text in {"%"}
    with pytest.raises(CapfiltError, match="there is no shard"):
        view.grid(Selection(shard=text))
    assert names(view, Selection()) == before


@pytest.mark.parametrize("word", ["a.b", "c++", "$5", "[x]", "^", "naïve", "Ωmega", "x_y", "ΣΑΣ"])
def test_a_word_is_no_pattern(tmp_path: Path, word: str) -> None:
    texts = [f"see {word} here", f"see{word}here", "see nothing"]
    run, _ = make_run(tmp_path / "run", shards=1, count=30, texts=texts)
    view = RunView.open(run)
    found = view.grid(Selection(words=word), 0, EVERYTHING)
    shown = {text.text for card in found.rows for text in card.texts if text.is_selected}
    # Beside a sign that is no letter a word stands alone whatever follows.
    touches = not (word[0].isalnum() or word[-1].isalnum())
    assert shown == set(texts[: 2 if touches else 1])
    view.close()


def test_a_word_of_a_script_without_spaces_is_found_in_a_sentence() -> None:
    import re

    pattern = whole_word("猫").replace(r"\p{L}\p{N}_", r"\w")
    assert re.search(pattern, "黒い猫がいる")
    assert not re.search(whole_word("cat").replace(r"\p{L}\p{N}_", r"\w"), "concatenate")


def test_a_page_takes_four_queries_however_deep_it_is(view: RunView) -> None:
    selection = Selection(source="web", substring="bus", order="itm", ranges=(Range("itm", 0.05),))
    counts = []
    for offset in (0, 1, 2):
        before = view.store.queries
        view.grid(selection, offset, 5)
        counts.append(view.store.queries - before)
    assert counts == [4, 4, 4]


def test_what_a_selection_fits_is_counted_once(view: RunView, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    real = view.store.rows
    monkeypatch.setattr(view.store, "rows", lambda sql, *values: said.append(sql) or real(sql, *values))
    for offset in (0, 5, 10):
        view.grid(Selection(words="bus", order="itm"), offset, 5)
    assert sum("counted" in sql for sql in said) == 1


@pytest.mark.parametrize(("offset", "limit"), [(-1, 5), (0, 0), (0, 501)])
def test_a_page_that_is_none_is_refused(view: RunView, offset: int, limit: int) -> None:
    with pytest.raises(CapfiltError, match="a page of"):
        view.grid(Selection(), offset, limit)


def test_a_score_that_no_pair_has_is_refused_with_those_there_are(view: RunView) -> None:
    with pytest.raises(CapfiltError, match="no pair has a score 'vqa'") as refusal:
        view.grid(Selection(order="vqa"))
    assert refusal.value.fix == "name one of itm, itc, itc_1a2b3c4d"


def test_without_a_policy_nothing_is_judged(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run", shards=1)
    view = RunView.open(run)
    cards = view.grid(Selection()).rows
    assert {(text.keep, text.reason) for card in cards for text in card.texts} == {(None, None)}
    assert view.grid(Selection(verdict="kept")).total == 0
    assert view.grid(Selection(verdict="kept"), proposal=Proposal(itm="0.0")).total > 0
    view.close()
