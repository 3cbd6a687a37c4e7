from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from small_run import CAPTIONER, FILTER, make_run, make_shard, score_again, start_run

from capfilt.browser.view import RunView
from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.commit import record_model
from capfilt.provenance.labels import Label, add_labels
from capfilt.provenance.policy import AtLeast, PerImage, Policy, TopFraction, write_policy
from capfilt.provenance.rundir import RunDir, StageRecord, lock, save_stage

if TYPE_CHECKING:
    from pathlib import Path


def in_rounds(path: Path) -> RunDir:
    """A run of two rounds over the same shards."""
    run, _ = make_run(path, shards=2)
    write_policy(run, Policy((AtLeast("itm", 0.5), PerImage(1, "itm")), FILTER))
    second = start_run(run.round(2).path, round_number=2, shards=2)
    for ordinal in range(2):
        made = make_shard(path.parent / "web", ordinal, texts=["a second thought"], round_number=2)
        made.commit(second)
        score_again(second, made)
    write_policy(second, Policy((TopFraction(0.4, "itc"),), FILTER))
    return run


def test_a_history_holds_every_text_of_every_round_as_its_catalog_has_it(tmp_path: Path) -> None:
    run = in_rounds(tmp_path / "run")
    view = RunView.open(run)
    found = view.history("00001", "k1-4")
    names = ("round", "pair_id", "source", "candidate", "text", "captioner", "decoding", "prompt", "seed")
    told = {tuple(getattr(one, name) for name in (*names, "keep", "reason")) for one in found.tellings}
    wanted = set()
    for one in (run, run.round(2)):
        with open_catalog(one) as catalog:
            sql = f"SELECT {', '.join(names)}, keep, reason FROM pairs WHERE shard = '00001' AND key = 'k1-4'"
            wanted |= set(catalog.execute(sql).fetchall())
    assert told == wanted
    assert [one.round for one in found.tellings] == [1, 1, 1, 2, 2, 2]
    assert found.tellings[1].captioner == CAPTIONER
    assert found.policies == {
        1: "ITM of at least 0.5; at most 1 an image, the best by ITM",
        2: "among the best 40% of all scored captions by ITC",
    }
    assert "itc_1a2b3c4d" in found.tellings[-1].scores
    assert (found.url, found.status) == ("https://example.org/k1-4.jpg", "ok")
    view.close()


def test_a_history_says_what_the_models_descend_from(tmp_path: Path) -> None:
    run = in_rounds(tmp_path / "run")
    for model, kind, parent in ((CAPTIONER, "captioner", "d" * 64), ("d" * 64, "joint", None)):
        row = {"model": model, "kind": kind, "path": "m", "parent": parent, "data": None}
        record_model(run, {**row, "settings": "{}", "versions": "{}"})
    view = RunView.open(run)
    web, synthetic = view.history("00000", "k0-0").tellings[:2]
    assert (web.captioner_ancestors, synthetic.captioner_ancestors) == (None, "joint dddddddddddd of round 1")
    view.close()


def test_a_history_of_one_sample_reads_no_rows_of_other_shards(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run")
    write_policy(run, Policy((AtLeast("itm", 0.5), PerImage(1, "itm")), FILTER))
    view = RunView.open(run)
    view.store.wait()
    for file in (*run.captions.glob("000002*"), *run.scores.glob("000002*")):
        file.write_bytes(bytes(file.stat().st_size))
    assert len(view.history("00001", "k1-0").tellings) == 3
    view.close()


def test_a_refused_sample_has_a_history_without_texts(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run")
    view = RunView.open(run)
    found = view.history("00000", "k0-1")
    assert (found.status, found.refusal, found.tellings) == ("refused", "unreadable_image", [])
    for shard, key in (("00000", "none"), ("none", "k0-1"), ("00000", "' OR true --")):
        with pytest.raises(CapfiltError, match="there is no sample"):
            view.history(shard, key)
    view.close()


def test_a_label_of_another_text_is_not_shown(tmp_path: Path) -> None:
    run, made = make_run(tmp_path / "run", shards=1)
    first, second = (row["pair_id"] for row in made[0].captions[:2])
    add_labels(run, [Label(first, "match", "a", 1.0), Label(first, "mismatch", "b", 2.0)])
    add_labels(run, [Label(second, "match", "a", 1.0, text_sha256="0" * 64)])
    view = RunView.open(run)
    labels = {one.pair_id: one.label for one in view.history("00000", made[0].captions[0]["key"]).tellings}
    assert (labels[first], labels[second]) == ("mismatch", None)
    view.close()


# -- a run that goes on


def test_a_run_is_live_while_its_holder_lives(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run", shards=2)
    view = RunView.open(run)
    began = time.time() - 10
    save_stage(run, StageRecord("recaption_and_score", 1, began))
    with lock(run):
        found = view.live()
        assert (found.is_running, found.stage, found.status) == (True, "recaption_and_score", "running")
        assert found.seconds is not None
        assert 10 <= found.seconds < 60
    found = view.live()
    assert (found.is_running, found.status, found.seconds) == (False, "interrupted", None)
    view.close()


def test_looking_never_keeps_a_run_from_being_held(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run", shards=1)
    view = RunView.open(run)
    for _ in range(20):
        view.live()
        with lock(run):
            view.live()
    view.close()


def test_a_live_run_counts_what_is_committed_and_shows_the_newest_texts(tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", shards=3)
    view = RunView.open(run)
    empty = view.live()
    assert (empty.shards, empty.shards_total, empty.newest, empty.images_per_second) == (0, 3, [], None)
    save_stage(run, StageRecord("recaption_and_score", 1, time.time() - 5))
    for ordinal in range(2):
        made = make_shard(tmp_path / "web", ordinal)
        made.commit(run)
        assert view.refresh()
    found = view.live()
    assert (found.shards, found.samples, found.pictures, found.captions) == (2, 12, 8, 22)
    assert found.refusals == {"unreadable_image": 2, "missing_image": 2, "empty_text": 2}
    assert {(one.shard, one.source) for one in found.newest} == {("00001", "synthetic")}
    assert {one.text for one in found.newest} == {
        row["text"] for row in made.captions if row["source"] == "synthetic"
    }
    assert found.images_per_second is not None
    assert 0 < found.images_per_second <= 8 / 5
    view.close()


def test_a_stage_that_ended_tells_its_own_rate(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "run", shards=1)
    ended = StageRecord("recaption_and_score", 1, 100.0).finished("done", ended=120.0, count=40, detail="x")
    save_stage(run, ended)
    view = RunView.open(run)
    found = view.live()
    assert (found.status, found.detail, found.seconds, found.images_per_second) == ("done", "x", 20.0, 2.0)
    view.close()


def test_a_run_in_its_second_round_is_shown_there(tmp_path: Path) -> None:
    run = in_rounds(tmp_path / "run")
    save_stage(run.round(2), StageRecord("judge", 1, time.time()))
    view = RunView.open(run)
    with lock(run):
        found = view.live()
    assert (found.round, found.stage, found.is_running, found.shards) == (2, "judge", True, 2)
    view.close()


def test_facets_count_from_manifests_at_once_and_from_rows_when_they_are_there(tmp_path: Path) -> None:
    run, made = make_run(tmp_path / "run", kinds=("right", "swap"))
    write_policy(run, Policy((AtLeast("itm", 0.5),), FILTER))
    view = RunView.open(run)
    view.store.wait()
    found = view.facets()
    assert found.is_complete
    assert (found.samples, found.pictures) == (18, 12)
    assert found.texts == sum(len(one.captions) for one in made) == sum(found.sources.values())
    assert found.refusals == {"unreadable_image": 3, "missing_image": 3, "empty_text": 3}
    assert [(one.name, one.samples, one.refused) for one in found.shards] == [
        (f"0000{n}", 6, 2) for n in range(3)
    ]
    assert sum(found.reasons.values()) == found.texts
    assert (found.policy, found.policy_words, found.rounds) == (1, "ITM of at least 0.5", [1])
    assert [(one.name, one.low, one.high) for one in found.columns] == [("itm", 0, 1), ("itc", -1, 1)]
    itm = [row["value"] for one in made for row in one.scores if row["score"] == "itm"]
    assert (found.columns[0].least, found.columns[0].most) == (min(itm), max(itm))
    assert set(found.planted) == {"right", "swap"}
    view.close()
