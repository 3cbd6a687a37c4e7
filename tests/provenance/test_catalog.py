from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import duckdb
import provenance_rows as made
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.canonical import canonical_json
from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import (
    open_catalog,
    pair_counts,
    rebuild_catalog,
    sample_counts,
    schema_text,
)
from capfilt.provenance.commit import (
    commit_scores,
    record_calibration,
    record_metrics,
    record_model,
    unfinished_captions,
)
from capfilt.provenance.label_rows import Label, append_labels
from capfilt.provenance.pairs import score_columns
from capfilt.provenance.policy import AtLeast, PerImage, Policy, write_policy
from capfilt.provenance.rundir import RunDir, StageRecord, record_run, save_stage
from capfilt.provenance.schema import CALIBRATION, METRICS, MODELS, TABLES, Column, Table
from capfilt.records import Reason, Source

VALUES: dict[str, Any] = {"string": "x", "int32": 1, "int64": 2, "double": 0.5, "bool": True}


def any_row(table: Table, **changes: Any) -> dict[str, Any]:
    return {**{column.name: VALUES[column.type] for column in table.columns}, **changes}


def full_run(run: RunDir) -> RunDir:
    """Return the run with a row in every table."""
    for ordinal in range(3):
        made.commit(run, made.shard(ordinal))
    record_run(run, {"seed": 0})
    record_model(run, any_row(MODELS, parent="y"))
    record_calibration(run, "digest", [any_row(CALIBRATION), any_row(CALIBRATION, score="itc")])
    record_metrics(run, "filter", [any_row(METRICS)])
    save_stage(run, StageRecord("judge", 1, started=1.0).finished("done", ended=2.0, count=4))
    write_policy(run, Policy((AtLeast("itm", 0.25),)))
    append_labels(run, [Label("a pair", "match", "ann", 3.0, draw="d", text_sha256="e")])
    return run


def query(run: RunDir, sql: str, policy: Policy | None = None) -> list[tuple[Any, ...]]:
    connection = open_catalog(run, policy=policy)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


# -- the columns are those of the schema, whatever there is


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_table_has_the_columns_and_types_of_the_schema(run: RunDir, table: Table, fill: bool) -> None:
    if fill:
        full_run(run)
    connection = open_catalog(run)
    found = connection.sql(f"SELECT * FROM {table.name}").to_arrow_table()
    assert found.schema.names == table.names()
    assert found.schema.types == [pa.type_for_alias(column.type) for column in table.columns]
    assert (found.num_rows > 0) is fill


def test_the_schema_for_people_names_every_column() -> None:
    text = schema_text()
    for table in TABLES:
        assert f"{table.name}: {table.meaning}" in text
        assert all(isinstance(column, Column) and column.meaning in text for column in table.columns)


# -- what stands in them


def test_shards_count_what_was_committed(run: RunDir) -> None:
    full_run(run)
    counted = query(
        run,
        "SELECT shard, samples_in, samples_ok, samples_refused, captions, captions_synthetic FROM shards"
        " ORDER BY shard",
    )
    assert counted == [(f"0000{i}", 4, 3, 1, 6, 3) for i in range(3)]


def test_pairs_hold_captions_scores_and_verdicts_side_by_side(run: RunDir) -> None:
    full_run(run)
    expected = []
    for ordinal in range(3):
        rows = made.rows(made.shard(ordinal))
        values = {(row["pair_id"], row["score"]): row["value"] for row in rows["scores"]}
        for row in rows["captions"]:
            itc, itm = (values[row["pair_id"], name] for name in ("itc", "itm"))
            reason = Reason.KEPT if itm >= 0.25 else Reason.BELOW_THRESHOLD
            expected.append((row["pair_id"], row["text"], itc, itm, made.FILTER, itm >= 0.25, reason))
    found = query(run, "SELECT pair_id, text, itc, itm, filter, keep, reason FROM pairs")
    assert sorted(found) == sorted(expected)


def test_a_pair_without_scores_is_unscored_and_names_no_filter(run: RunDir) -> None:
    made.commit(run, made.shard(), scores=[])
    write_policy(run, Policy((AtLeast("itm", 0.5),)))
    found = query(run, "SELECT DISTINCT itc, itm, filter, keep, reason FROM pairs")
    assert found == [(None, None, None, False, "unscored")]


def test_without_a_policy_there_is_no_verdict(run: RunDir) -> None:
    made.commit(run, made.shard())
    assert query(run, "SELECT DISTINCT keep, reason FROM pairs") == [(None, None)]


def test_the_newest_policy_is_in_force_unless_another_is_asked(run: RunDir) -> None:
    made.commit(run, made.shard(), count=20)
    write_policy(run, Policy((AtLeast("itm", 0.1),)))
    write_policy(run, Policy((AtLeast("itm", 0.8),)))
    kept = "SELECT count(*) FROM pairs WHERE keep"
    # The 40 texts score 0.0, 0.1, ... 0.9, 0.0, ...
    assert query(run, kept) == [(8,)]
    assert query(run, kept, Policy((AtLeast("itm", 0.3),))) == [(28,)]
    assert query(run, kept, Policy((PerImage(1, "itc"),))) == [(20,)]
    assert query(run, "SELECT policy, thresholds FROM policies ORDER BY policy") == [
        (1, canonical_json({"rule_1_threshold": 0.1})),
        (2, canonical_json({"rule_1_threshold": 0.8})),
    ]


def test_a_further_filter_stands_in_pairs_when_the_policy_names_it(run: RunDir) -> None:
    shard, digest = made.shard(), "a" * 64
    made.commit(run, shard)
    pairs = [row["pair_id"] for row in made.rows(shard)["captions"]]
    scores = [made.score(name, "itm", 0.99, digest) for name in pairs]
    commit_scores(run, shard, filter_digest=digest, fingerprint="more", scores=scores)
    chosen = "SELECT DISTINCT filter FROM pairs"
    assert query(run, chosen) == [(made.FILTER,)]
    write_policy(run, Policy((AtLeast("itm", 0.9),), filter=digest))
    assert query(run, chosen) == [(digest,)]
    assert query(run, "SELECT count(*), bool_and(keep), max(itc) FROM pairs") == [(6, True, None)]
    assert query(run, "SELECT count(*) FROM scores") == [(18,)]


def test_the_scores_of_every_filter_stand_side_by_side(run: RunDir) -> None:
    shard, second, third = made.shard(), "a1" * 32, "0123456789abcdef" * 4
    made.commit(run, shard)
    pairs = [row["pair_id"] for row in made.rows(shard)["captions"]]
    for digest, rows in (
        (second, [made.score(pair, "vqa", i / 10, second) for i, pair in enumerate(pairs)]),
        # One that met only some captions, and a name that is no digest, which gets no column.
        (third, [made.score(pair, name, 0.5, third) for pair in pairs[:2] for name in ("itc", "itm")]),
        ("b'; --", [made.score(pairs[0], "itm", 0.1, "b'; --")]),
    ):
        commit_scores(run, shard, filter_digest=digest, fingerprint="more", scores=rows)
    with open_catalog(run) as connection:
        assert score_columns(connection) == [
            "itc",
            "itm",
            "vqa",
            "itc_01234567",
            "itm_01234567",
            "vqa_a1a1a1a1",
        ]
    columns = "itm, vqa, itm_01234567, vqa_a1a1a1a1, filter"
    assert query(run, f"SELECT {columns} FROM pairs ORDER BY vqa_a1a1a1a1") == [
        (i / 10, None, 0.5 if i < 2 else None, i / 10, made.FILTER) for i in range(6)
    ]
    # Judged by another one, the first is a further filter itself; a pair that lacks a score is unscored.
    policy = Policy((AtLeast("vqa", 0.2), AtLeast("itm", 0.4, filter=third)), filter=second)
    write_policy(run, policy)
    rows = query(run, "SELECT itm_ffffffff, vqa, itm_01234567, reason FROM pairs ORDER BY vqa")
    assert rows[0] == (0.0, 0.0, 0.5, "below_threshold")
    assert rows[5] == (0.5, 0.5, None, "unscored")
    by_first = Policy((AtLeast("itm", 0.3), AtLeast("vqa", 0.4, filter=second)), filter=made.FILTER)
    assert query(run, "SELECT itm FROM pairs WHERE keep ORDER BY 1", by_first) == [(0.4,), (0.5,)]
    rebuild_catalog(run)
    with duckdb.connect(run.catalog_file, read_only=True) as plain:
        everything = "SELECT * FROM pairs ORDER BY ALL"
        assert plain.execute(everything).fetchall() == query(run, everything)
        assert len(plain.execute("SELECT * FROM lineage").fetchall()) == 6


def test_a_score_that_nobody_measured_is_a_column_of_nulls_where_a_policy_reads_it(run: RunDir) -> None:
    made.commit(run, made.shard())
    policy = Policy((AtLeast("itc", 0.1, filter="c" * 64),))
    assert query(run, "SELECT DISTINCT itc_cccccccc, reason FROM pairs", policy) == [(None, "unscored")]


def test_the_summary_counts_pairs_and_samples(run: RunDir) -> None:
    full_run(run)
    connection = open_catalog(run)
    # Of 6 texts of a shard, web and synthetic in turn, the web ones score 0.0, 0.2, 0.4.
    assert pair_counts(connection) == [
        ("web", True, "kept", 3),
        ("web", False, "below_threshold", 6),
        ("synthetic", True, "kept", 6),
        ("synthetic", False, "below_threshold", 3),
    ]
    assert sample_counts(connection) == [("ok", None, 9), ("refused", "unreadable_image", 3)]


# -- only what is committed, wherever it lies


def test_stray_files_beside_committed_ones_do_not_disturb(run: RunDir) -> None:
    full_run(run)
    before = query(run, "SELECT * FROM pairs ORDER BY ALL"), query(run, "SELECT * FROM metrics")
    for folder in (run.samples, run.captions, run.scores, run.metrics):
        (folder / ".partial-000009-x.parquet.77").write_bytes(b"PAR1 half")
    for folder in (run.samples, run.captions, run.scores):
        (folder / "000009-x.parquet").write_bytes(b"PAR1 half")
    for folder in (run.manifests, run.stages, run.policies, run.models, run.calibration):
        (folder / ".partial-000009-x.json.77").write_bytes(b'{"half')
    after = query(run, "SELECT * FROM pairs ORDER BY ALL"), query(run, "SELECT * FROM metrics")
    assert after == before


def test_a_column_that_the_files_of_an_older_run_lack_is_null(run: RunDir) -> None:
    made.commit(run, made.shard(0))
    before = query(run, "SELECT * FROM captions ORDER BY pair_id")
    [manifest] = run.manifests.glob("*.json")
    record = json.loads(manifest.read_text())
    [file] = [one for one in record["files"] if one["path"].startswith("captions/")]
    path = run.provenance / file["path"]
    pq.write_table(pq.read_table(path).drop_columns(["unfinished"]), path)
    file["size"] = path.stat().st_size
    del record["unfinished"]
    manifest.write_text(canonical_json(record))
    assert query(run, "SELECT * FROM captions ORDER BY pair_id") == before
    assert query(run, "SELECT DISTINCT unfinished FROM pairs") == [(None,)]
    assert unfinished_captions(run) == {}


@pytest.mark.parametrize("name", ["moved", "run[1]", "r*n?", "a=b", "it's", "sp ace", "{a,b}", "Übung"])
def test_a_run_opens_wherever_it_was_moved(run: RunDir, tmp_path: Path, name: str) -> None:
    full_run(run)
    before = query(run, "SELECT * FROM pairs ORDER BY ALL")
    # Beside it lies what a glob of that name would also find.
    made.commit(RunDir.create(tmp_path / "run1"), made.shard(7))
    moved = RunDir(tmp_path / name)
    shutil.move(run.path, moved.path)
    assert query(moved, "SELECT * FROM pairs ORDER BY ALL") == before
    rebuild_catalog(moved)


def test_a_relative_run_opens(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    full_run(run)
    monkeypatch.chdir(run.path.parent)
    assert query(RunDir(Path("run")), "SELECT count(*) FROM samples") == [(12,)]


def test_a_file_that_is_gone_is_an_error_with_its_mend(run: RunDir) -> None:
    full_run(run)
    (run.captions / "000001-00001.parquet").unlink()
    with pytest.raises(CapfiltError, match=r"000001-00001\.parquet is gone") as refused:
        open_catalog(run)
    assert "again" in refused.value.fix


HOSTILE = [
    "\x1b]0;owned\x07\x1b[2J",
    "'); DROP TABLE pairs; --",
    '"quoted" \\ back',
    "a\x00b",
    "=cmd|' /C calc'!A0",
    "<script>alert(1)</script>",
    "\u202eright to left",
    "$rule_1_threshold {shard} %s",
    "../../etc/passwd",
]


def test_hostile_text_comes_back_as_it_was(run: RunDir) -> None:
    shard = made.shard(0, HOSTILE[0])
    samples = [made.sample(shard, f"k{i}", web_text=text) for i, text in enumerate(HOSTILE)]
    captions = [made.caption(shard, f"k{i}", Source.WEB, text=text) for i, text in enumerate(HOSTILE)]
    made.commit(run, shard, samples=samples, captions=captions, scores=[], samples_in=len(samples))
    write_policy(run, Policy((AtLeast("itm", 0.5, chosen=HOSTILE[1]),), filter=HOSTILE[2]))
    assert [text for (text,) in query(run, "SELECT text FROM pairs ORDER BY key")] == HOSTILE
    assert [text for (text,) in query(run, "SELECT web_text FROM samples ORDER BY key")] == HOSTILE
    assert query(run, "SELECT shard FROM shards") == [(HOSTILE[0],)]
    assert query(run, "SELECT filter FROM policies") == [(HOSTILE[2],)]


# -- the catalog in a file


def test_a_rebuilt_catalog_says_the_same_to_a_plain_duckdb(run: RunDir) -> None:
    full_run(run)
    rebuild_catalog(run)
    write_policy(run, Policy((AtLeast("itm", 0.35),)))
    rebuild_catalog(run)
    with duckdb.connect(run.catalog_file, read_only=True) as plain:
        for table in TABLES:
            sql = f"SELECT * FROM {table.name} ORDER BY ALL"
            assert plain.execute(sql).fetchall() == query(run, sql)
    assert not list(run.path.glob(".partial-*"))


def test_a_catalog_held_open_by_a_person_does_not_stop_a_rebuild(run: RunDir) -> None:
    full_run(run)
    rebuild_catalog(run)
    with duckdb.connect(run.catalog_file, read_only=True) as person:
        made.commit(run, made.shard(3))
        rebuild_catalog(run)
        assert person.execute("SELECT count(*) FROM shards").fetchall() == [(3,)]


def test_the_order_of_commits_does_not_matter(tmp_path: Path) -> None:
    dumps = []
    for seed in range(3):
        run = RunDir.create(tmp_path / str(seed))
        for ordinal in random.Random(seed).sample(range(5), 5):
            made.commit(run, made.shard(ordinal))
        dumps.append(query(run, "SELECT * FROM pairs ORDER BY ALL"))
    assert dumps[0] == dumps[1] == dumps[2]
