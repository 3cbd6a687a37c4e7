from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from counted_run import Counted, counted_run
from provenance_rows import commit, shard

from capfilt.provenance.policy import AtLeast, Policy, write_policy
from capfilt.provenance.statistics.counts import examples_by_verdict, exported, funnel
from capfilt.provenance.statistics.reading import examples_of, open_figures

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.provenance.rundir import RunDir


def test_the_funnel_is_what_counting_by_hand_gives(counted: Counted) -> None:
    with open_figures(counted.run) as catalog:
        found = funnel(catalog, counted.run)
    ok = [row for row in counted.samples if row["status"] == "ok"]
    refused = [row for row in counted.samples if row["status"] != "ok"]
    kept = [row for row in counted.captions if counted.is_kept(row)]
    assert (found.samples, found.recorded, found.shards) == (150, len(counted.samples), 3)
    assert (found.used, found.refused) == (len(ok), len(refused))
    assert found.refused_by_reason == Counter(row["reason"].value for row in refused)
    assert found.texts_missing_by_reason == {"missing_text": sum(row["reason"] is not None for row in ok)}
    assert found.captions == Counter(row["source"].value for row in counted.captions)
    assert list(found.captions) == ["web", "synthetic"]
    assert found.kept == len(kept)
    assert found.images_kept == len({(row["shard"], row["key"]) for row in kept})
    assert found.exported is None


def test_verdicts_are_those_of_the_policy_by_its_words(counted: Counted) -> None:
    with open_figures(counted.run) as catalog:
        found = funnel(catalog, counted.run).verdicts
    expected: Counter[tuple[str, bool, str]] = Counter()
    for row in counted.captions:
        if not row["text"].split():
            reason = "empty_caption"
        elif "itm" not in counted.scores[row["pair_id"]]:
            reason = "unscored"
        else:
            reason = "kept" if counted.is_kept(row) else "below_threshold"
        expected[row["source"].value, reason == "kept", reason] += 1
    assert {(row.source, row.keep, row.reason): row.pairs for row in found} == expected
    assert [(row.source, row.keep) for row in found[:2]] == [("web", True), ("web", False)]


def test_a_policy_that_is_only_asked_about_counts_as_if_it_stood(counted: Counted) -> None:
    strict = Policy((AtLeast("itm", 0.9),), counted.policy.filter)
    with open_figures(counted.run, policy=strict) as catalog:
        found = funnel(catalog, counted.run)
    expected = [
        row
        for row in counted.captions
        if row["text"].split() and counted.scores[row["pair_id"]].get("itm", 0) >= 0.9
    ]
    assert 0 < len(expected) < 40
    assert found.kept == len(expected)


def test_without_a_policy_nothing_is_kept_or_dropped(run: RunDir) -> None:
    commit(run, shard())
    with open_figures(run) as catalog:
        found = funnel(catalog, run)
        assert examples_by_verdict(catalog) == []
    assert (found.kept, found.images_kept) == (None, None)
    assert {(row.keep, row.reason) for row in found.verdicts} == {(None, None)}


def test_a_run_that_did_nothing_is_an_empty_funnel(run: RunDir) -> None:
    with open_figures(run) as catalog:
        found = funnel(catalog, run)
    assert (found.samples, found.recorded, found.used, found.captions) == (0, 0, 0, {})


def test_examples_are_the_first_by_pair_id_and_hold_what_was_measured(counted: Counted) -> None:
    with open_figures(counted.run) as catalog:
        found = examples_by_verdict(catalog, 3)
    expected = [
        row
        for keep in (True, False)
        for source in ("web", "synthetic")
        for row in [one for one in counted.of(source) if counted.is_kept(one) is keep][:3]
    ]
    assert [one.pair_id for one in found] == [row["pair_id"] for row in expected]
    for one, row in zip(found, expected, strict=True):
        assert (one.text, one.shard, one.key) == (row["text"], row["shard"], row["key"])
        assert one.scores == counted.scores[one.pair_id]
        assert one.keep is counted.is_kept(row)


def test_examples_come_in_the_order_asked_for_and_unknown_names_are_left_out(counted: Counted) -> None:
    wanted = [row["pair_id"] for row in counted.captions[5:0:-2]]
    with open_figures(counted.run) as catalog:
        found = examples_of(catalog, [wanted[0], "nobody", *wanted[1:]])
    assert [one.pair_id for one in found] == wanted


def test_an_export_is_current_as_long_as_its_policy_is_in_force(tmp_path: Path) -> None:
    run = counted_run(tmp_path / "run").run
    policy = Policy((AtLeast("itm", 0.4),), "f" * 64)
    run.export.mkdir()
    manifest = {
        "samples": 7,
        "shards": [{"name": "00000.tar", "bytes": 100}, {"name": "00001.tar", "bytes": 23}],
        "facts": {"policy": {"digest": policy.digest, "words": policy.words}},
    }
    run.export_manifest.write_text(json.dumps(manifest))
    found = exported(run)
    assert found is not None
    assert (found.samples, found.shards, found.bytes, found.is_current) == (7, 2, 123, True)
    write_policy(run, Policy((AtLeast("itm", 0.5),), "f" * 64))
    after = exported(run)
    assert after is not None
    assert not after.is_current


def test_figures_of_a_run_are_the_same_where_memory_is_scarce(counted: Counted) -> None:
    with open_figures(counted.run) as plenty, open_figures(counted.run, memory="64MB") as little:
        assert funnel(little, counted.run) == funnel(plenty, counted.run)
