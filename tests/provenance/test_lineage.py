"""Three rounds written by hand, and what each model and caption in them descends from, worked out by hand."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import duckdb
import provenance_rows as made
import pytest

from capfilt.canonical import canonical_json, digest_of
from capfilt.errors import CapfiltError
from capfilt.files import write_whole
from capfilt.provenance.catalog import open_catalog, rebuild_catalog
from capfilt.provenance.commit import commit_shard, record_model
from capfilt.provenance.lineage import export_digest, round_number, rounds_of
from capfilt.provenance.policy import AtLeast, Policy, write_policy
from capfilt.provenance.query import run_sql
from capfilt.provenance.rundir import RunDir, record_run
from capfilt.records import Source, pair_id

if TYPE_CHECKING:
    from pathlib import Path


def digest(name: str) -> str:
    return digest_of(name)


C1, F1, J1, N1 = (digest(name) for name in ("C1", "F1", "J1", "N1"))
C2, F2, N2, C3, F3 = (digest(name) for name in ("C2", "F2", "N2", "C3", "F3"))
NAMES = {digest(name): name for name in ("C1", "F1", "J1", "N1", "C2", "F2", "N2", "C3", "F3", "outside")}
OUTSIDE = digest("outside")
MODELS = {
    # The first round's models start from a joint one, which itself began from a model nobody here knows.
    1: [("joint", J1, OUTSIDE), ("captioner", C1, J1), ("filter", F1, J1), ("joint", N1, None)],
    2: [("joint", N1, None), ("captioner", C2, N1), ("filter", F2, N1), ("joint", N2, None)],
    3: [("joint", N2, None), ("captioner", C3, N2), ("filter", F3, N2)],
}
WRITERS = {1: (C1, F1), 2: (C2, F2), 3: (C3, F3)}
NEXT = {1: N1, 2: N2}


def write_round(run: RunDir, number: int) -> RunDir:
    """A round of one shard with one picture: a web text (ITM 0.4) and a synthetic one (0.8)."""
    captioner, judge = WRITERS[number]
    record_run(run, {"round": number, "seed": 10 * number})
    for kind, model, parent in MODELS[number]:
        row = {"model": model, "kind": kind, "path": f"models/{kind}", "parent": parent, "data": None}
        record_model(run, {**row, "settings": "{}", "versions": "{}"})
    of = made.shard()
    captions = [
        made.caption(
            of,
            "k",
            source,
            round=number,
            captioner=captioner if source is Source.SYNTHETIC else None,
            pair_id=pair_id(shard=of.name, key="k", source=source, candidate=0, round_number=number),
        )
        for source in Source
    ]
    values = {Source.WEB: 0.4, Source.SYNTHETIC: 0.8}
    commit_shard(
        run,
        of,
        fingerprint=f"print {number}",
        samples=[made.sample(of, "k", round=number)],
        captions=captions,
        scores=[made.score(row["pair_id"], "itm", values[row["source"]], judge) for row in captions],
        samples_in=1,
    )
    write_policy(run, Policy((AtLeast("itm", 0.5),), judge))
    if number > 1:
        write_whole(run.given_file("init"), canonical_json({"weights": NEXT[number - 1]}))
        write_whole(run.previous_file, canonical_json(_record(number - 1)))
    if number in NEXT:
        write_whole(run.next_file, canonical_json(_record(number)))
        write_whole(run.export_manifest, json.dumps(_manifest(number)))
    return run


def _manifest(number: int) -> dict[str, Any]:
    return {"samples": number + 5, "shards": [{"name": "00000.tar", "sha256": f"{number}" * 64}]}


def _record(number: int) -> dict[str, Any]:
    captioner, judge = WRITERS[number]
    export = export_digest(_manifest(number))
    return {"model": NEXT[number], "export": export, "captioner": captioner, "filter": judge}


@pytest.fixture
def three(run: RunDir) -> RunDir:
    """A run of three rounds."""
    for number in (1, 2, 3):
        write_round(run.round(number), number)
    return run


def query(run: RunDir, sql: str) -> list[tuple[Any, ...]]:
    _, rows = run_sql(run, sql)
    return list(rows)


def test_every_model_descends_by_weights_and_by_data_from_what_it_comes_from(three: RunDir) -> None:
    # By hand, from MODELS, WRITERS and NEXT: N1 was taught by what C1 wrote and F1 kept, N2 by C2 and F2.
    before_n1 = {
        ("C1", 1, "data"),
        ("F1", 1, "data"),
        ("J1", 2, "data"),
        ("outside", 3, "data"),
    }
    n1_and_before = {("N1", 1, "parent"), *((name, depth + 1, via) for name, depth, via in before_n1)}
    # C2 and F2 both start from N1, so each way to what is before N1 is as long.
    before_n2 = {
        ("C2", 1, "data"),
        ("F2", 1, "data"),
        *((name, depth + 1, "data") for name, depth, _ in n1_and_before),
    }
    n2_and_before = {("N2", 1, "parent"), *((name, depth + 1, via) for name, depth, via in before_n2)}
    expected = {
        "J1": {("outside", 1, "parent")},
        "C1": {("J1", 1, "parent"), ("outside", 2, "parent")},
        "F1": {("J1", 1, "parent"), ("outside", 2, "parent")},
        "N1": before_n1,
        "C2": n1_and_before,
        "F2": n1_and_before,
        "N2": before_n2,
        "C3": n2_and_before,
        "F3": n2_and_before,
    }
    assert ("J1", 5, "data") in expected["C3"]

    found: dict[str, set[tuple[str, int, str]]] = {}
    for model, ancestor, depth, via in query(three, "SELECT model, ancestor, depth, via FROM ancestry"):
        found.setdefault(NAMES[model], set()).add((NAMES[ancestor], depth, via))
    assert found == expected


def test_models_are_named_with_their_kind_and_the_first_round_that_knows_them(three: RunDir) -> None:
    rows = query(three, "SELECT DISTINCT ancestor, ancestor_kind, ancestor_round FROM ancestry")
    assert {(NAMES[model], kind, number) for model, kind, number in rows} == {
        ("outside", None, None),
        ("J1", "joint", 1),
        ("C1", "captioner", 1),
        ("F1", "filter", 1),
        ("N1", "joint", 1),
        ("C2", "captioner", 2),
        ("F2", "filter", 2),
        ("N2", "joint", 2),
    }
    mine = query(three, f"SELECT DISTINCT kind, round FROM ancestry WHERE model = '{C3}'")
    assert mine == [("captioner", 3)]


def test_one_query_tells_of_every_caption_who_wrote_and_scored_it_and_what_these_descend_from(
    three: RunDir,
) -> None:
    rows = query(
        three,
        "SELECT round, source, text, itm, keep, captioner, captioner_ancestors, filter, filter_ancestors "
        "FROM lineage ORDER BY round, source",
    )
    of_first = f"joint {J1[:12]} of round 1; model {OUTSIDE[:12]}"
    by_data = f"joint {J1[:12]} of round 1, by data; model {OUTSIDE[:12]}, by data"
    first = f"captioner {C1[:12]} of round 1, by data; filter {F1[:12]} of round 1, by data; {by_data}"
    second = f"joint {N1[:12]} of round 1; {first}"
    third = (
        f"joint {N2[:12]} of round 2; captioner {C2[:12]} of round 2, by data; "
        f"filter {F2[:12]} of round 2, by data; joint {N1[:12]} of round 1, by data; {first}"
    )
    expected = []
    for number, ancestors in ((1, of_first), (2, second), (3, third)):
        captioner, judge = WRITERS[number]
        own = (captioner, ancestors)
        expected += [
            (number, "synthetic", "synthetic text 0 of k", 0.8, True, *own, judge, ancestors),
            (number, "web", "web text 0 of k", 0.4, False, None, None, judge, ancestors),
        ]
    assert rows == expected


def test_rounds_are_a_table_with_what_each_left_to_the_next(three: RunDir) -> None:
    columns = "round, seed, init, init_export, captioner, filter, samples, next, next_export, export"
    exports = {number: export_digest(_manifest(number)) for number in (1, 2)}
    assert query(three, f"SELECT {columns} FROM rounds ORDER BY round") == [
        (1, 10, None, None, C1, F1, 6, N1, exports[1], exports[1]),
        (2, 20, N1, exports[1], C2, F2, 7, N2, exports[2], exports[2]),
        (3, 30, N2, exports[2], C3, F3, None, None, None, None),
    ]
    assert query(three, "SELECT DISTINCT policy FROM rounds") == [("ITM of at least 0.5",)]
    assert query(three, "SELECT path FROM rounds ORDER BY round") == [
        (str(three.round(number).path),) for number in (1, 2, 3)
    ]


def test_the_tables_of_the_first_round_are_what_they_are_without_others(
    three: RunDir, tmp_path: Path
) -> None:
    alone = write_round(RunDir.create(tmp_path / "alone"), 1)
    for table in ("samples", "captions", "scores", "pairs", "shards", "models", "policies"):
        sql = f"SELECT * FROM {table} ORDER BY ALL"
        assert query(three, sql) == query(alone, sql)
    assert query(three, "SELECT DISTINCT captioner FROM round_3.pairs ORDER BY ALL NULLS FIRST") == [
        (None,),
        (C3,),
    ]


def test_a_round_by_itself_knows_itself_and_what_it_was_begun_from(three: RunDir) -> None:
    second = RunDir(three.round(2).path)

    assert query(second, "SELECT DISTINCT round, captioner FROM lineage WHERE source = 'synthetic'") == [
        (2, C2)
    ]
    assert {
        (NAMES[model], kind, number)
        for model, kind, number in query(
            second, f"SELECT ancestor, ancestor_kind, ancestor_round FROM ancestry WHERE model = '{C2}'"
        )
    } == {("N1", "joint", 2), ("C1", None, None), ("F1", None, None)}
    assert query(second, "SELECT round, init FROM rounds") == [(2, N1)]
    assert (round_number(second), round_number(three)) == (2, 1)


def test_a_catalog_for_stages_holds_one_round_and_a_damaged_later_one_does_not_stop_it(three: RunDir) -> None:
    (three.round(2).captions / "000000-00000.parquet").unlink()

    with open_catalog(three) as catalog:
        assert catalog.execute("SELECT DISTINCT round FROM lineage").fetchall() == [(1,)]
    with pytest.raises(CapfiltError, match="is gone or damaged") as refused:
        query(three, "SELECT * FROM lineage")
    assert "rounds/2" in refused.value.what
    assert "command again" in refused.value.fix


def test_a_rebuilt_catalog_holds_every_round(three: RunDir) -> None:
    rebuild_catalog(three)

    with duckdb.connect(three.catalog_file, read_only=True) as plain:
        for table in ("rounds", "ancestry", "lineage", "round_2.pairs"):
            sql = f"SELECT * FROM {table} ORDER BY ALL"
            assert plain.execute(sql).fetchall() == query(three, sql)


def test_rounds_end_where_one_has_not_begun(three: RunDir) -> None:
    shutil.rmtree(three.round(2).path)

    assert [number for number, _ in rounds_of(three)] == [1]


def test_models_that_name_each_other_as_parents_end_all_the_same(run: RunDir) -> None:
    # A training that moves nothing leaves the digest it started from.
    write_round(run, 1)
    for model, parent in ((J1, C1), (N1, N1)):
        row = {"model": model, "kind": "joint", "path": "x", "parent": parent, "data": None}
        record_model(run, {**row, "settings": "{}", "versions": "{}"})

    assert query(run, f"SELECT ancestor FROM ancestry WHERE model = '{F1}' ORDER BY depth, ancestor") == [
        (name,) for name in (J1, C1)
    ]
