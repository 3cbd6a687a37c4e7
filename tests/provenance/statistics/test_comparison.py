from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import provenance_rows as made
import pytest
from counted_run import Counted, counted_run

from capfilt.provenance.policy import AtLeast, Policy, write_policy
from capfilt.provenance.rundir import RunDir
from capfilt.provenance.statistics.comparison import comparison
from capfilt.provenance.statistics.reading import open_figures

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.provenance.statistics.comparison import Comparison


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Counted:
    """A run over the same samples with other texts, scores and another threshold."""
    return counted_run(tmp_path_factory.mktemp("other") / "run", seed=1, captioner="d" * 64, itm=0.7)


def compared(run: RunDir, against: RunDir) -> Comparison:
    with open_figures(run) as catalog:
        return comparison(catalog, run, against)


def kept(counted: Counted, itm: float) -> dict[str, bool]:
    return {
        row["pair_id"]: bool(row["text"].split()) and counted.scores[row["pair_id"]].get("itm", -1) >= itm
        for row in counted.captions
    }


def test_agreement_and_changes_are_those_counted_by_hand(counted: Counted, other: Counted) -> None:
    found = compared(counted.run, other.run)
    here, there = kept(counted, 0.4), kept(other, 0.7)
    texts = {row["pair_id"]: row["text"] for row in other.captions}
    expected: Counter[tuple[str, bool, bool, bool]] = Counter(
        (
            row["source"].value,
            texts[row["pair_id"]] == row["text"],
            here[row["pair_id"]],
            there[row["pair_id"]],
        )
        for row in counted.captions
    )
    assert found.judged == len(counted.captions)
    for row in found.agreement:
        ways = [(True, True), (False, False), (True, False), (False, True)]
        counts = [expected.pop((row.source, row.same_text, *way), 0) for way in ways]
        assert counts == [row.kept_by_both, row.dropped_by_both, row.kept_here_alone, row.kept_there_alone]
    assert not expected
    changed = [pair for pair in here if here[pair] is not there[pair]]
    assert found.changed == len(changed) > 0
    assert (found.here_alone, found.there_alone, found.unjudged) == ({}, {}, 0)


def test_examples_are_the_first_pairs_that_changed_with_both_sides(counted: Counted, other: Counted) -> None:
    found = compared(counted.run, other.run)
    here, there = kept(counted, 0.4), kept(other, 0.7)
    theirs = {row["pair_id"]: row for row in other.captions}
    for source in ("web", "synthetic"):
        for keep in (True, False):
            mine = [
                row
                for row in counted.of(source)
                if here[row["pair_id"]] is keep and there[row["pair_id"]] is not keep
            ]
            shown = [one for one in found.examples if one.source == source and one.keep is keep]
            assert [one.pair_id for one in shown] == [row["pair_id"] for row in mine[:3]]
            for one, row in zip(shown, mine, strict=False):
                assert (one.text, one.text_there) == (row["text"], theirs[row["pair_id"]]["text"])
                assert one.scores == counted.scores[one.pair_id]
                assert one.scores_there == other.scores[one.pair_id]
                assert (one.reason == "kept") is keep


def test_how_far_scores_moved_is_told_of_texts_that_are_the_same(counted: Counted, other: Counted) -> None:
    found = {(one.score, one.source): one for one in compared(counted.run, other.run).shifts}
    theirs = {row["pair_id"]: row["text"] for row in other.captions}
    for (score, source), one in found.items():
        moved = [
            counted.scores[pair][score] - other.scores[pair][score]
            for row in counted.of(source)
            if theirs[pair := row["pair_id"]] == row["text"]
            and score in counted.scores[pair]
            and score in other.scores[pair]
        ]
        assert one.pairs == len(moved)
        assert one.mean == pytest.approx(np.mean(moved))
        assert one.mean_absolute == pytest.approx(np.mean(np.abs(moved)))
    assert ("itm", "web") in found


def test_what_the_runs_themselves_differ_in_is_told(counted: Counted, other: Counted) -> None:
    found = compared(counted.run, other.run)
    assert found.facts == ("seed: 1 -> 0",)
    assert (found.policy, found.policy_there) == ("ITM of at least 0.4", "ITM of at least 0.7")


def test_a_run_against_its_copy_with_another_policy_changes_verdicts_alone(
    counted: Counted, tmp_path: Path
) -> None:
    import shutil

    copy = RunDir(shutil.copytree(counted.run.path, tmp_path / "copy"))
    write_policy(copy, Policy((AtLeast("itm", 0.5),), made.FILTER))
    found = compared(counted.run, copy)
    between = [
        row["pair_id"]
        for row in counted.captions
        if row["text"].split() and 0.4 <= counted.scores[row["pair_id"]].get("itm", 0) < 0.5
    ]
    assert found.changed == sum(row.kept_here_alone for row in found.agreement) == len(between) > 0
    assert {(row.reason, row.reason_there) for row in found.changes} == {("kept", "below_threshold")}
    assert all(row.same_text for row in found.agreement)
    assert all(one.mean_absolute == 0 for one in found.shifts)
    assert found.facts == ()


def test_pairs_that_only_one_run_has_and_pairs_without_verdict_are_counted_apart(
    counted: Counted, tmp_path: Path
) -> None:
    from capfilt.provenance.rundir import record_run

    small = RunDir.create(tmp_path / "small")
    record_run(small, {"seed": 0})
    made.commit(small, made.shard(0), 2)  # its keys are others than those of counted_run
    found = compared(counted.run, small)
    assert found.here_alone == Counter(row["source"].value for row in counted.captions)
    assert found.there_alone == {"web": 2, "synthetic": 2}
    assert (found.judged, found.changed, found.examples) == (0, 0, ())

    same = RunDir.create(tmp_path / "same")
    record_run(same, {"seed": 0})
    made.commit(same, made.shard(0), 2)
    write_policy(same, Policy((), made.FILTER))
    assert compared(small, same).unjudged == 4
