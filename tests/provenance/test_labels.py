from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import provenance_rows as made
import pytest

from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.labels import (
    Label,
    Verdict,
    add_labels,
    draw_sample,
    measured,
    read_labels,
    text_digest,
    threshold_for,
)
from capfilt.provenance.policy import AtLeast, Policy, write_policy
from capfilt.provenance.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@pytest.fixture
def judged(run: RunDir) -> RunDir:
    """1,200 pairs, 120 of each tenth of ITM from 0 to 0.9; those of 0.5 and more are kept."""
    for ordinal in range(3):
        made.commit(run, made.shard(ordinal), 200)
    write_policy(run, Policy((AtLeast("itm", 0.5),), made.FILTER))
    return run


def scores(run: RunDir) -> dict[str, float]:
    with open_catalog(run) as catalog:
        return dict(catalog.execute("SELECT pair_id, itm FROM pairs ORDER BY pair_id").fetchall())


def truth(run: RunDir) -> dict[str, Verdict]:
    """Of ten pairs of a score, as many match as the score has tenths: 0.7 of those of 0.7."""
    found: dict[str, Verdict] = {}
    places: dict[float, int] = {}
    for pair, itm in scores(run).items():
        place = places[itm] = places.get(itm, -1) + 1
        found[pair] = Verdict.MATCH if place % 10 < round(10 * itm) else Verdict.MISMATCH
    return found


def labels(
    said: dict[str, Verdict], pairs: Iterable[str], draw: str | None = None, who: str = "ann"
) -> list[Label]:
    return [Label(pair, said[pair], who, 1.0, draw=draw) for pair in pairs]


# -- kept and read


def test_a_label_names_the_text_that_was_looked_at(judged: RunDir) -> None:
    with open_catalog(judged) as catalog:
        [(pair, text)] = catalog.execute("SELECT pair_id, text FROM captions LIMIT 1").fetchall()
    add_labels(judged, [Label(pair, Verdict.MATCH, "ann", 1.0)])
    assert read_labels(judged) == [Label(pair, Verdict.MATCH, "ann", 1.0, text_sha256=text_digest(text))]


def test_a_label_of_no_pair_is_refused_and_none_is_added(judged: RunDir) -> None:
    pair = next(iter(scores(judged)))
    with pytest.raises(CapfiltError, match="has no pair 'nothing'"):
        add_labels(
            judged, [Label(pair, Verdict.MATCH, "ann", 1.0), Label("nothing", Verdict.MATCH, "ann", 1.0)]
        )
    assert read_labels(judged) == []


def test_what_was_taken_back_is_read_only_when_asked_for(judged: RunDir) -> None:
    pair = next(iter(scores(judged)))
    add_labels(judged, [Label(pair, Verdict.MATCH, "ann", 1.0), Label(pair, Verdict.UNDONE, "ann", 2.0)])
    assert read_labels(judged) == []
    assert [label.verdict for label in read_labels(judged, every=True)] == ["match", "undone"]
    with open_catalog(judged) as catalog:
        found = catalog.execute("SELECT verdict, newest FROM labels ORDER BY time").fetchall()
    assert found == [("match", False), ("undone", False)]


# -- drawn


def test_the_same_seed_draws_the_same_pairs_and_begins_with_them_when_more_are_drawn(judged: RunDir) -> None:
    few, many = draw_sample(judged, 40, 3), draw_sample(judged, 200, 3)
    assert few.name == many.name
    assert many.pairs[:40] == few.pairs
    assert len({pair.pair_id for pair in many.pairs}) == 200
    assert {pair.pair_id for pair in draw_sample(judged, 40, 4).pairs} != {pair.pair_id for pair in few.pairs}


def test_two_threads_that_draw_at_once_divide_the_run_once(
    judged: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two tabs of the page do: the second one draws while the first is about to keep its division."""
    real, others = os.link, []

    def late(*where: object) -> None:
        monkeypatch.setattr(os, "link", real)
        with ThreadPoolExecutor(1) as other:
            others.append(other.submit(draw_sample, judged, 5).result())
        real(*where)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", late)
    assert draw_sample(judged, 5) == others[0]
    assert [file.name for file in judged.labels.iterdir()] == [judged.strata_file.name]


def test_every_part_gives_as_many_pairs_as_it_has_and_as_are_wanted(judged: RunDir) -> None:
    counts: dict[tuple[str, int], int] = {}
    for pair in draw_sample(judged, 160, 0).pairs:
        counts[pair.source, pair.stratum] = counts.get((pair.source, pair.stratum), 0) + 1
    assert len(counts) > 6
    assert max(counts.values()) - min(counts.values()) <= 1


def test_more_pairs_than_there_are_are_all_of_them(judged: RunDir) -> None:
    found = [pair.pair_id for pair in draw_sample(judged, 10_000).pairs]
    assert sorted(found) == sorted(scores(judged))


def test_how_pairs_are_divided_is_decided_once(judged: RunDir) -> None:
    first = draw_sample(judged, 50, 1)
    before = judged.strata_file.read_bytes()
    made.commit(judged, made.shard(3), 300)
    second = draw_sample(judged, 50, 1)
    assert judged.strata_file.read_bytes() == before
    assert first.name == second.name


def test_a_run_without_scores_is_drawn_from_by_source(run: RunDir) -> None:
    made.commit(run, made.shard(), 50, scores=[])
    found = draw_sample(run, 20).pairs
    assert sorted(pair.source for pair in found) == ["synthetic"] * 10 + ["web"] * 10


def test_a_sample_of_nothing_is_refused(judged: RunDir) -> None:
    with pytest.raises(CapfiltError):
        draw_sample(judged, 0)


def test_a_damaged_division_is_named_with_its_mend(judged: RunDir) -> None:
    draw_sample(judged, 5)
    for damage in (
        '{"score": "itm", "filter": "x", "cuts": {}}',
        '{"cuts": 1}',
        "nothing",
        '{"score": "itm"}',
    ):
        judged.strata_file.write_text(damage)
        with pytest.raises(CapfiltError) as found:
            draw_sample(judged, 5)
        assert "strata.json is damaged" in found.value.what


# -- measured


def test_labels_of_every_pair_give_the_figures_that_counting_gives(judged: RunDir) -> None:
    said = truth(judged)
    add_labels(judged, labels(said, said))
    found = measured(judged)
    itm = scores(judged)
    kept = [pair for pair in said if itm[pair] >= 0.5]
    right = sum(said[pair] is Verdict.MATCH for pair in kept)
    precision = right / len(kept)
    recall = right / sum(verdict is Verdict.MATCH for verdict in said.values())
    assert (found.precision.low, found.precision.high) == pytest.approx((precision, precision))
    assert (found.precision.value, found.recall.value) == pytest.approx((precision, recall))
    assert (found.kept, found.pairs, found.is_drawn) == (len(kept), len(said), False)


@pytest.mark.parametrize("seed", range(5))
def test_a_drawn_sample_comes_near_to_what_all_labels_say(judged: RunDir, seed: int) -> None:
    said = truth(judged)
    draw = draw_sample(judged, 300, seed)
    add_labels(judged, labels(said, (pair.pair_id for pair in draw.pairs), draw.name))
    found = measured(judged)
    # By hand: 0.5 to 0.9 are as frequent as one another, and so are 0 to 0.9.
    assert found.is_drawn
    assert found.precision.value == pytest.approx(0.7, abs=0.08)
    assert found.recall.value == pytest.approx(3.5 / 4.5, abs=0.08)
    assert found.precision.low < 0.7 < found.precision.high
    assert found.precision.high - found.precision.low < 0.2


def test_labels_of_pairs_that_were_not_drawn_are_left_out_where_a_sample_was(judged: RunDir) -> None:
    said = truth(judged)
    draw = draw_sample(judged, 200, 0)
    drawn = [pair.pair_id for pair in draw.pairs]
    add_labels(judged, labels(said, drawn, draw.name))
    alone = measured(judged)
    others = [pair for pair in said if pair not in drawn][:30]
    wrong = dict.fromkeys(others, Verdict.MISMATCH)
    add_labels(judged, [*labels(wrong, others[:20]), *labels(wrong, others[20:], "of another run")])
    with_others = measured(judged)
    assert (with_others.precision, with_others.recall) == (alone.precision, alone.recall)
    assert (alone.outside, with_others.outside) == (0, 30)


def test_any_policy_and_any_choice_of_pairs_is_measured_by_the_same_labels(judged: RunDir) -> None:
    said = truth(judged)
    add_labels(judged, labels(said, said))
    itm = scores(judged)
    strict = Policy((AtLeast("itm", 0.9),), made.FILTER)
    found = measured(judged, strict)
    assert found.precision.value == pytest.approx(0.9)
    assert measured(judged, kept=[pair for pair in itm if itm[pair] >= 0.9]) == found
    assert measured(judged, kept=[]).precision.value is None


def test_persons_who_disagree_are_unsure_and_the_majority_counts(judged: RunDir) -> None:
    pairs = list(scores(judged))[:2]
    for who, verdicts in {"ann": "match match", "bob": "mismatch match", "eve": "unsure mismatch"}.items():
        said = {pair: Verdict(verdict) for pair, verdict in zip(pairs, verdicts.split(), strict=True)}
        add_labels(judged, labels(said, pairs, who=who))
    found = measured(judged)
    assert (found.matches, found.mismatches, found.unsure) == (1, 0, 1)


def test_a_label_of_another_text_is_stale(judged: RunDir) -> None:
    pair = next(iter(scores(judged)))
    add_labels(judged, [Label(pair, Verdict.MATCH, "ann", 1.0, text_sha256=text_digest("as it was"))])
    found = measured(judged)
    assert (found.matches, found.stale) == (0, 1)


def test_without_labels_nothing_is_claimed(judged: RunDir) -> None:
    found = measured(judged)
    assert (found.precision.value, found.recall.value) == (None, None)
    assert not judged.labels.exists()


# -- a threshold


def test_the_lowest_threshold_that_reaches_a_precision_is_that_of_counting(judged: RunDir) -> None:
    said = truth(judged)
    add_labels(judged, labels(said, said))
    # By hand: of 0.6 and above 0.75 match on average, of 0.5 and above 0.7.
    for wanted, threshold in ((0.75, 0.6), (0.7, 0.5), (0.9, 0.9), (0.45, 0.0)):
        found = threshold_for(judged, wanted)
        assert (found.score, found.threshold, found.filter) == ("itm", threshold, made.FILTER)
        assert found.measured.precision.value == pytest.approx(wanted)
        assert found.measured.kept == sum(itm >= threshold for itm in scores(judged).values())
    with pytest.raises(CapfiltError, match=r"the best is 0\.900"):
        threshold_for(judged, 0.95)


def test_a_certain_threshold_is_no_lower_and_its_interval_reaches_the_wish(judged: RunDir) -> None:
    said = truth(judged)
    draw = draw_sample(judged, 300, 0)
    add_labels(judged, labels(said, (pair.pair_id for pair in draw.pairs), draw.name))
    likely, certain = threshold_for(judged, 0.65), threshold_for(judged, 0.65, certain=True)
    assert likely.threshold < certain.threshold
    assert certain.measured.precision.low >= 0.65 > likely.measured.precision.low


def test_the_threshold_of_another_score_can_be_asked_for(judged: RunDir) -> None:
    said = truth(judged)
    add_labels(judged, labels(said, said))
    assert threshold_for(judged, 0.7, score="itc").score == "itc"


def test_a_threshold_without_labels_or_scores_is_the_users_error(judged: RunDir, tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match="no labelled pair"):
        threshold_for(judged, 0.9)
    unscored = RunDir.create(tmp_path / "unscored")
    made.commit(unscored, made.shard(), scores=[])
    with pytest.raises(CapfiltError, match="holds no scores"):
        threshold_for(unscored, 0.9)
    for wanted in (0.0, 1.1, math.nan):
        with pytest.raises(CapfiltError, match="asked for"):
            threshold_for(judged, wanted)
