from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import provenance_rows as made
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capfilt.provenance.commit import commit_scores, committed, manifests, record_metrics, record_model
from capfilt.provenance.rundir import RunDir
from capfilt.provenance.schema import METRICS, SAMPLES
from capfilt.records import Source, Status

if TYPE_CHECKING:
    from collections.abc import Callable


def assert_whole(run: RunDir) -> list[dict[str, Any]]:
    """Every file that a manifest names is there, with its size, its hash and its rows."""
    found = manifests(run)
    for manifest in found:
        for file in manifest["files"]:
            path = run.provenance / file["path"]
            data = path.read_bytes()
            assert len(data) == file["size"]
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
            assert pq.read_metadata(path).num_rows == manifest["rows"][path.parent.name]
    return found


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_committed_shard_is_counted_in_its_manifest(run: RunDir) -> None:
    manifest = made.commit(run, made.shard(2), count=3)
    assert assert_whole(run) == [manifest]
    assert manifest["rows"] == {"samples": 4, "captions": 6, "scores": 12}
    assert manifest["statuses"] == {"ok": 3, "refused": 1}
    assert manifest["reasons"] == {"unreadable_image": 1}
    assert manifest["sources"] == {"web": 3, "synthetic": 3}
    assert manifest["samples_in"] == 4
    assert manifest["filters"] == [made.FILTER]


def test_rows_come_back_as_they_were_given(run: RunDir) -> None:
    shard = made.shard()
    made.commit(run, shard)
    (path,) = run.samples.iterdir()
    assert pq.read_table(path).to_pylist() == made.rows(shard)["samples"]
    assert pq.read_schema(path).names == SAMPLES.names()


def test_a_commit_counts_for_its_fingerprint_only(run: RunDir) -> None:
    shard = made.shard()
    assert not committed(run, shard, "print")
    made.commit(run, shard)
    assert committed(run, shard, "print")
    assert not committed(run, shard, "other")
    assert not committed(run, made.shard(0, "another name"), "print")
    made.commit(run, shard, fingerprint="other")
    assert committed(run, shard, "other")
    assert [m["fingerprint"] for m in assert_whole(run)] == ["other"]


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_commit_whose_file_was_harmed_does_not_count(run: RunDir, harm: Callable[[Path], object]) -> None:
    made.commit(run, made.shard())
    harm(next(run.captions.iterdir()))
    assert not committed(run, made.shard(), "print")


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = (RunDir.create(tmp_path / name) for name in ("one", "other"))
    for run in (one, other):
        made.commit(run, made.shard(), count=50)
        time.sleep(0.01)
    assert digests(one.provenance) == digests(other.provenance)


def test_manifests_are_in_the_order_of_the_input(run: RunDir) -> None:
    order = list(range(12))
    random.Random(0).shuffle(order)
    for ordinal in order:
        made.commit(run, made.shard(ordinal), count=1)
    assert [m["ordinal"] for m in manifests(run)] == list(range(12))


# -- what a commit refuses


def contradictions() -> dict[str, Callable[[dict[str, Any]], object]]:
    shard = made.shard()
    stranger = made.caption(shard, "stranger", Source.WEB)
    return {
        "samples in": lambda rows: rows.update(samples_in=5),
        "lost sample": lambda rows: rows["samples"].pop(),
        "unknown status": lambda rows: rows["samples"][0].update(status="maybe"),
        "pair_id of two": lambda rows: rows["captions"].append(rows["captions"][0]),
        "caption of a stranger": lambda rows: rows["captions"].append(stranger),
        "caption of a refused one": lambda rows: rows["captions"][0].update(key="broken"),
        "score without a caption": lambda rows: rows["scores"].append(made.score("stranger", "itm", 0.5)),
        "a pair scored twice": lambda rows: rows["scores"].append(rows["scores"][0]),
        "a score that is no number": lambda rows: rows["scores"][0].update(value=float("nan")),
        "a key of two samples": lambda rows: rows["samples"][1].update(key=rows["samples"][0]["key"]),
        "another shard": lambda rows: rows["samples"][0].update(shard="another"),
        "a column that is lacking": lambda rows: rows["samples"][0].pop("url"),
        "a column nobody knows": lambda rows: rows["scores"][0].update(note=""),
    }


@pytest.mark.parametrize("name", contradictions())
def test_rows_that_contradict_one_another_are_not_committed(run: RunDir, name: str) -> None:
    shard = made.shard()
    rows = made.rows(shard)
    contradictions()[name](rows)
    with pytest.raises(RuntimeError):
        made.commit(run, shard, **rows)
    assert not committed(run, shard, "print")
    assert not digests(run.path)


# -- text from the web


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec=None), max_size=30))
def test_any_text_is_written_and_valid_text_comes_back(run: RunDir, text: str) -> None:
    shard = made.shard()
    rows = made.rows(shard, count=1)
    rows["samples"][0]["web_text"] = text
    made.commit(run, shard, **rows)
    back = pq.read_table(next(run.samples.iterdir())).to_pylist()[0]["web_text"]
    assert back == text.encode("utf-8", "backslashreplace").decode("utf-8")


def test_a_shard_named_by_a_stranger_is_committed_below_the_run(run: RunDir) -> None:
    shard = made.shard(0, "../../\x1b]0;owned\x07/\udc80'); drop table samples; --")
    made.commit(run, shard)
    assert committed(run, shard, "print")
    assert {path.name for path in run.path.parent.iterdir()} == {"run"}


# -- a further filter


def further(shard: Any, digest: str = "g" * 64) -> list[dict[str, Any]]:
    return [made.score(row["pair_id"], "itm", 0.25, digest) for row in made.rows(shard)["captions"]]


def test_a_further_filter_adds_a_file_and_rewrites_none(run: RunDir) -> None:
    shard = made.shard()
    made.commit(run, shard)
    before = digests(run.path)
    commit_scores(run, shard, filter_digest="g" * 64, fingerprint="more", scores=further(shard))
    after = digests(run.path)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2
    assert committed(run, shard, "more", filter_digest="g" * 64)
    assert not committed(run, shard, "print", filter_digest="g" * 64)
    assert [m["kind"] for m in assert_whole(run)] == ["shard", "scores"]


def test_a_further_filter_is_refused_where_there_is_nothing_to_score(run: RunDir) -> None:
    shard = made.shard()
    with pytest.raises(RuntimeError, match="not committed"):
        commit_scores(run, shard, filter_digest="g", fingerprint="more", scores=[])
    made.commit(run, shard)
    with pytest.raises(RuntimeError, match="no caption"):
        commit_scores(run, shard, filter_digest="g", fingerprint="m", scores=[made.score("x", "itm", 1, "g")])
    with pytest.raises(RuntimeError, match="already holds"):
        commit_scores(run, shard, filter_digest=made.FILTER, fingerprint="m", scores=[])
    with pytest.raises(RuntimeError, match="another filter"):
        commit_scores(run, shard, filter_digest="h", fingerprint="m", scores=further(shard))


def test_new_captions_forget_a_further_filters_scores_of_the_old_ones(run: RunDir) -> None:
    shard = made.shard()
    made.commit(run, shard)
    commit_scores(run, shard, filter_digest="g" * 64, fingerprint="more", scores=further(shard))
    made.commit(run, shard, fingerprint="other")
    assert not committed(run, shard, "more", filter_digest="g" * 64)
    assert [m["kind"] for m in assert_whole(run)] == ["shard"]


# -- kills and neighbours


def test_what_manifests_name_is_whole_whenever_the_writer_is_killed(run: RunDir) -> None:
    moments = random.Random(0)
    reached = 0
    for _ in range(8):
        process = made.start("commit", run.path, 0, 1000, 40)
        while not manifests(run) and process.poll() is None:  # once: a busy machine may take long to begin
            time.sleep(0.001)
        time.sleep(moments.uniform(0.02, 0.5))
        process.kill()
        assert process.wait() == -9
        reached = max(reached, len(assert_whole(run)))
    assert 0 < reached < 1000


def test_a_run_that_was_killed_ends_with_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    disturbed, calm = (RunDir.create(tmp_path / name) for name in ("disturbed", "calm"))
    for ordinal in range(6):
        made.commit(calm, made.shard(ordinal), count=40)
    process = made.start("commit", disturbed.path, 0, 6, 40)
    while not manifests(disturbed) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    for ordinal in range(6):
        if not committed(disturbed, made.shard(ordinal), "print"):
            made.commit(disturbed, made.shard(ordinal), count=40)
    assert digests(disturbed.provenance) == digests(calm.provenance)


def test_two_processes_commit_different_shards_at_once(run: RunDir) -> None:
    processes = [made.start("commit", run.path, first, first + 10) for first in (0, 10)]
    assert [process.wait() for process in processes] == [0, 0]
    assert [m["ordinal"] for m in assert_whole(run)] == list(range(20))


# -- rows that are no shard's


def test_metrics_and_models_replace_what_they_had(run: RunDir) -> None:
    row = dict(zip(METRICS.names(), ("filter", "one", 1, "train", "loss", 0.5, 0.0), strict=True))
    record_metrics(run, "filter", [row])
    record_metrics(run, "filter", [row, {**row, "step": 2}])
    (path,) = run.metrics.iterdir()
    assert [r["step"] for r in pq.read_table(path).to_pylist()] == [1, 2]
    model = dict.fromkeys(("model", "kind", "path", "parent", "data", "settings", "versions"), "x")
    record_model(run, model)
    record_model(run, {**model, "kind": "filter"})
    (path,) = run.models.iterdir()
    assert json.loads(path.read_text())["kind"] == "filter"
    with pytest.raises(RuntimeError, match="versions"):
        record_model(run, {name: "x" for name in model if name != "versions"})


def test_a_moved_run_is_still_committed(run: RunDir) -> None:
    made.commit(run, made.shard())
    moved = RunDir(run.path.with_name("moved"))
    shutil.move(run.path, moved.path)
    assert committed(moved, made.shard(), "print")


def test_a_status_is_its_plain_word_in_the_file(run: RunDir) -> None:
    made.commit(run, made.shard(), count=1)
    assert pq.read_table(next(run.samples.iterdir())).column("status").to_pylist() == [
        Status.OK.value,
        Status.REFUSED.value,
    ]
