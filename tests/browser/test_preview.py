from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest
from small_run import FILTER, SECOND, make_run, score_again
from typer.testing import CliRunner

from capfilt.browser.proposal import Proposal
from capfilt.browser.quality import wilson
from capfilt.browser.selection import Selection
from capfilt.browser.store import ClosedError
from capfilt.browser.view import RunView
from capfilt.cli.main import app
from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.labels import Label, add_labels, draw_sample, measured
from capfilt.provenance.policy import AtLeast, PerImage, Policy, Rescue, TopFraction, newest_policy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from capfilt.browser.previews import Preview
    from capfilt.provenance.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run, made = make_run(tmp_path / "run", count=20, kinds=("right", "swap", "right", "colour"))
    for one in made:
        score_again(run, one)
    return run


@pytest.fixture
def view(run: RunDir) -> Iterator[RunView]:
    view = RunView.open(run)
    yield view
    view.close()


PROPOSALS: dict[str, tuple[Proposal, Policy]] = {
    "a threshold": (Proposal(itm="0.6"), Policy((AtLeast("itm", 0.6),), FILTER)),
    "a share": (Proposal(fraction=0.3), Policy((TopFraction(0.3, "itm"),), FILTER)),
    "a further filter": (
        Proposal(itm="0.2", also=("1a2b3c4d:itc=0.3",)),
        Policy((AtLeast("itm", 0.2), AtLeast("itc", 0.3, filter=SECOND)), FILTER),
    ),
    "the further filter as its own": (
        Proposal(itc="0.3", with_filter="1a2b"),
        Policy((AtLeast("itc", 0.3),), SECOND),
    ),
    "two texts a picture": (
        Proposal(itm="0.1", per_image=2),
        Policy((AtLeast("itm", 0.1), PerImage(2, "itm")), FILTER),
    ),
    "all rules": (
        Proposal(itm="0.2", fraction=0.8, by="0.5*itm + 0.5*itc", rescue=True, per_image=1),
        Policy(
            (
                AtLeast("itm", 0.2),
                TopFraction(0.8, "0.5*itm + 0.5*itc"),
                Rescue("0.5*itm + 0.5*itc"),
                PerImage(1, "0.5*itm + 0.5*itc"),
            ),
            FILTER,
        ),
    ),
}


def counted(found: Preview) -> list[tuple[str, bool, str, int]]:
    return sorted((one.source, one.keep, one.reason, one.texts) for one in found.counts)


@pytest.mark.parametrize(("proposal", "policy"), PROPOSALS.values(), ids=PROPOSALS.keys())
def test_a_preview_counts_what_the_catalog_counts(
    run: RunDir, view: RunView, proposal: Proposal, policy: Policy
) -> None:
    found = view.preview(proposal)
    with open_catalog(run, policy=policy) as catalog:
        rows = catalog.execute("SELECT source, keep, reason, count(*) FROM pairs GROUP BY ALL").fetchall()
        [(kept, pictures)] = catalog.execute(
            "SELECT count(*), count(DISTINCT (shard, key)) FROM pairs WHERE keep"
        ).fetchall()
    assert (found.digest, found.words) == (policy.digest, policy.words)
    assert counted(found) == sorted(rows)
    assert (found.kept, found.pictures_kept, found.exported) == (kept, pictures, pictures)
    assert found.texts == sum(one.texts for one in found.counts)


@pytest.mark.parametrize(("proposal", "policy"), PROPOSALS.values(), ids=PROPOSALS.keys())
def test_what_is_applied_is_what_the_command_line_writes(
    run: RunDir, view: RunView, proposal: Proposal, policy: Policy
) -> None:
    command = view.preview(proposal).command
    applied = view.apply(proposal)
    assert newest_policy(run) == (applied.policy, policy)
    assert applied.command == command
    view.apply(Proposal(itm="0.123"))  # another one is in force before the command is typed
    program, *words = shlex.split(command)
    typed = CliRunner().invoke(app, words)
    assert (program, typed.exit_code) == ("capfilt", 0), typed.output
    found = newest_policy(run)
    assert found is not None
    assert found[1] == policy


def test_a_picture_that_was_told_the_same_twice_keeps_it_once(run: RunDir, view: RunView) -> None:
    view.apply(Proposal(itm="0.1", per_image=2))
    with open_catalog(run) as catalog:
        dropped = catalog.execute("SELECT pair_id FROM pairs WHERE reason = 'repeated_text'").fetchall()
        [(kept, texts)] = catalog.execute(
            "SELECT count(*), count(DISTINCT (shard, key, text)) FROM pairs WHERE keep"
        ).fetchall()
    cards = [text for row in view.grid(Selection(reason="repeated_text")).rows for text in row.texts]
    assert {one.pair_id for one in cards if one.reason == "repeated_text"} == {name for (name,) in dropped}
    assert dropped
    assert kept == texts


def test_what_is_applied_is_in_force_at_once(view: RunView) -> None:
    view.apply(Proposal(itm="0.6"))
    assert [view.refresh(), view.refresh()] == [True, False]
    facets = view.facets()
    assert (facets.policy, facets.policy_words) == (1, "ITM of at least 0.6")
    assert counted(view.preview(Proposal())) == counted(view.preview(Proposal(itm="0.6")))


def test_no_rule_is_not_applied(run: RunDir, view: RunView) -> None:
    with pytest.raises(CapfiltError, match="no rule is proposed"):
        view.apply(Proposal())
    assert newest_policy(run) is None


def test_a_rule_by_a_score_that_nobody_measured_is_refused_as_judge_refuses_it(view: RunView) -> None:
    with pytest.raises(CapfiltError, match="measured no VQA") as here:
        view.preview(Proposal(vqa="0.5"))
    with pytest.raises(CapfiltError, match="measured no VQA") as there:
        view.apply(Proposal(vqa="0.5"))
    assert str(here.value) == str(there.value)


def test_a_run_without_scores_keeps_everything_and_takes_no_rule(tmp_path: Path) -> None:
    run, made = make_run(tmp_path / "run", shards=1)
    made[0].scores.clear()
    made[0].commit(run, fingerprint="unscored")
    view = RunView.open(run)
    found = view.preview(Proposal())
    assert (found.kept, found.histograms) == (len(made[0].captions), [])
    assert "fill" not in found.words
    with pytest.raises(CapfiltError, match="holds no scores"):
        view.preview(Proposal(itm="0.5"))
    view.close()


@pytest.mark.parametrize(
    ("texts", "condition"),
    [("web", "source = 'web'"), ("synthetic", "source = 'synthetic'"), ("all", "true")],
)
def test_the_mix_says_how_many_samples_an_export_holds(
    run: RunDir, view: RunView, texts: str, condition: str
) -> None:
    found = view.preview(Proposal(itm="0.6", texts=texts))
    with open_catalog(run, policy=Policy((AtLeast("itm", 0.6),), FILTER)) as catalog:
        sql = f"SELECT count(DISTINCT (shard, key)) FROM pairs WHERE keep AND {condition}"
        assert catalog.execute(sql).fetchall() == [(found.exported,)]
    assert found.export_command.endswith(f"--texts {texts}")


def test_histograms_hold_every_scored_text_once_and_part_at_the_threshold(run: RunDir, view: RunView) -> None:
    found = view.preview(Proposal(itm="0.6"))
    with open_catalog(run) as catalog:
        rows = catalog.execute("SELECT source, itm, itc, itc_1a2b3c4d FROM pairs").fetchall()
    for one in found.histograms:
        place = {"itm": 1, "itc": 2, "itc_1a2b3c4d": 3}[one.column]
        values = [row[place] for row in rows if row[0] == one.source and row[place] is not None]
        assert sum(one.kept) + sum(one.dropped) == len(values)
    itm = [one for one in found.histograms if one.column == "itm"]
    assert [(one.source, one.low, one.high, one.threshold) for one in itm] == [
        ("web", 0, 1, 0.6),
        ("synthetic", 0, 1, 0.6),
    ]
    for one in itm:
        # 0.6 begins the 31st of 50 bars.
        assert not any(one.kept[:30])
        assert not any(one.dropped[30:])
        assert sum(one.kept) == sum(r[1] >= 0.6 for r in rows if r[0] == one.source)
    itc = next(one for one in found.histograms if one.column == "itc")
    assert (itc.low, itc.high) == (min(r[2] for r in rows), max(r[2] for r in rows))


def test_planted_labels_give_precision_and_recall_of_the_web_texts(run: RunDir, view: RunView) -> None:
    found = view.preview(Proposal(itm="0.4"))
    with open_catalog(run) as catalog:
        rows = catalog.execute(
            "SELECT metadata->>'noise_kind', itm >= 0.4 FROM pairs JOIN samples USING (shard, key) "
            "WHERE source = 'web'"
        ).fetchall()
    [planted] = found.quality
    right = [keep for kind, keep in rows if kind == "right"]
    kept = [kind for kind, keep in rows if keep]
    assert planted.texts == len(rows)
    assert planted.precision is not None
    assert planted.recall is not None
    assert planted.precision.value == kept.count("right") / len(kept)
    assert planted.recall.value == sum(right) / len(right)
    assert planted.precision.low < planted.precision.value < planted.precision.high
    assert planted.kinds["swap"] == (kept.count("swap"), sum(kind == "swap" for kind, _ in rows))
    assert view.facets().planted == {
        kind: sum(one == kind for one, _ in rows) for kind in ("colour", "right", "swap")
    }


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I: 81/263 and 0/20.
    for count, of, low, high in ((81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611)):
        share = wilson(count, of)
        assert share is not None
        assert (round(share.low, 4), round(share.high, 4)) == (low, high)
    assert wilson(0, 0) is None


@pytest.mark.parametrize("is_drawn", [True, False])
def test_labels_of_people_say_what_the_record_says_of_them(
    run: RunDir, view: RunView, is_drawn: bool
) -> None:
    assert [one.known_by for one in view.preview(Proposal(itm="0.5")).quality] == ["planted"]
    drawn = draw_sample(run, 40, seed=1)
    verdicts = ("match", "mismatch", "match", "unsure", "match")
    labels: list[Any] = [
        Label(one.pair_id, verdicts[n % 5], who, 1.0 + n, draw=drawn.name if is_drawn else None)
        for n, one in enumerate(drawn.pairs)
        for who in (("a", "b") if n % 7 == 0 else ("a",))
    ]
    labels.append(Label(drawn.pairs[0].pair_id, "mismatch", "b", 99.0, draw=labels[0].draw))
    labels.append(Label(drawn.pairs[3].pair_id, "match", "c", 9.0, text_sha256="0" * 64))  # of another text
    add_labels(run, labels)
    assert view.refresh()
    for proposal, policy in (PROPOSALS["a threshold"], PROPOSALS["all rules"]):
        found = view.preview(proposal).quality[1]
        known = measured(run, policy)
        assert found.known_by == "labels"
        assert found.texts == known.matches + known.mismatches + known.unsure
        for mine, theirs in ((found.precision, known.precision), (found.recall, known.recall)):
            assert mine is not None
            assert (mine.value, mine.low, mine.high) == pytest.approx((theirs.value, theirs.low, theirs.high))


def test_a_second_step_of_a_slider_asks_no_database_and_reads_no_file(
    view: RunView, monkeypatch: pytest.MonkeyPatch
) -> None:
    view.preview(Proposal(itm="0.5", per_image=1))
    monkeypatch.setattr("capfilt.browser.shards.read_columns", None)
    before = view.store.queries
    for threshold in ("0.51", "0.52", "0.53"):
        view.preview(Proposal(itm=threshold, per_image=1))
    assert view.store.queries == before


def test_the_best_score_is_sorted_before_a_slider_asks(run: RunDir) -> None:
    view = RunView.open(run)
    view.trials.sort_ahead()
    assert {f"{FILTER} itm", f"{FILTER} itm by picture"} <= view.store.columns().orders.keys()
    view.close()
    with pytest.raises(ClosedError):
        view.preview(Proposal(itm="0.5"))


def test_grid_and_preview_judge_a_proposal_once(view: RunView, monkeypatch: pytest.MonkeyPatch) -> None:
    from capfilt.browser import trials

    judged = []
    real = trials.judge
    monkeypatch.setattr(trials, "judge", lambda *values: judged.append(1) or real(*values))
    proposal = Proposal(itm="0.4", fraction=0.5)
    view.preview(proposal)
    for selection in (
        Selection(),
        Selection(verdict="kept"),
        Selection(reason="below_fraction", order="itm"),
    ):
        view.grid(selection, proposal=proposal)
    assert judged == [1]


def test_only_the_last_policies_and_the_newest_rows_are_held_in_memory(view: RunView) -> None:
    for step in range(12):
        view.grid(Selection(verdict="kept"), proposal=Proposal(itm=str(step / 20)))
    tables = "SELECT count(*) FROM duckdb_tables() WHERE starts_with(table_name, 'verdicts_')"
    assert view.store.rows(tables)[0][0] <= 4
