from __future__ import annotations

from typing import TYPE_CHECKING

import duckdb
import provenance_rows as made
import pytest

from capfilt.errors import CapfiltError
from capfilt.provenance.query import run_sql
from capfilt.provenance.rundir import RunDir

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def committed(run: RunDir) -> RunDir:
    made.commit(run, made.shard())
    return run


def hidden_copy(to: Path) -> str:
    """A query that writes a file, as DuckDB's syntax tree, which one of its functions runs."""
    query = f"with a as (copy (select 1) to '{to}') select 1"
    row = duckdb.sql("select json_serialize_sql(?)", params=[query]).fetchone()
    assert row is not None
    assert "COPY" in row[0]
    return str(row[0])


def test_a_query_gives_its_columns_and_its_rows(committed: RunDir) -> None:
    columns, rows = run_sql(committed, "select source, count(*) as n from pairs group by 1 order by 1;")
    assert columns == ["source", "n"]
    assert list(rows) == [("synthetic", 3), ("web", 3)]


def test_rows_beyond_one_batch_all_come(committed: RunDir) -> None:
    _, rows = run_sql(committed, "select i from range(2501) t(i) order by i")
    assert [i for (i,) in rows] == list(range(2501))


@pytest.mark.parametrize(
    "query",
    [
        "with w as (select * from pairs) from w limit 1",
        "values (1)",
        "describe pairs",
        "show tables",
        "summarize samples",
        "explain select * from pairs",
        "explain analyze select count(*) from pairs",
        "EXPLAIN (ANALYZE, FORMAT json) select 1",
        "select 1 union all select 2",
        "with recursive t(n) as (select 1 union all select n + 1 from t where n < 3) from t",
        "from pairs -- a remark",
    ],
)
def test_every_kind_of_query_is_let_through(committed: RunDir, query: str) -> None:
    columns, rows = run_sql(committed, query)
    assert columns
    assert list(rows)


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("copy pairs to '{out}'", "COPY is not a query"),
        ("attach '{out}' as other", "ATTACH is not a query"),
        ("install httpfs", "LOAD is not a query"),
        ("load httpfs", "LOAD is not a query"),
        ("insert into stages select * from stages", "INSERT is not a query"),
        ("drop view pairs", "DROP is not a query"),
        ("create table t as select 1", "CREATE is not a query"),
        ("set enable_external_access = true", "SET is not a query"),
        ("pragma version", "PRAGMA is not a query"),
        ("call pragma_version()", "CALL is not a query"),
        ("export database '{out}'", "EXPORT is not a query"),
        ("begin", "TRANSACTION is not a query"),
        ("commit", "TRANSACTION is not a query"),
        ("select 1; drop view pairs", "one statement"),
        ("", "one statement"),
        ("-- nothing", "one statement"),
        ("explain analyze copy pairs to '{out}'", "COPY is not a query"),
        ("explain (analyze) copy pairs to '{out}'", "COPY is not a query"),
        ("/* x */ explain analyze copy pairs to '{out}'", "one statement"),
        ("with a as (copy pairs to '{out}') select 1", "a part of the query is COPY"),
        ("explain analyze with a as (copy pairs to '{out}') select 1", "a part of the query is COPY"),
        ("with a as (insert into stages select * from stages returning 1) from a", "is INSERT"),
        ("with a as (delete from stages returning 1) from a", "is DELETE"),
        ("with a as (update stages set start = 2 returning 1) from a", "is UPDATE"),
        ("select * from (with a as (copy pairs to '{out}') select 1)", "a part of the query is COPY"),
        ("from query('with a as (copy pairs to ''{out}'') select 1')", "query may not"),
        ("select (select 1 from main.\"QUERY\"('select 1'))", "query may not"),
        ("from query_table('pairs')", "query_table may not"),
        ("from json_execute_serialized_sql('{hidden}')", "json_execute_serialized_sql may not"),
        ("with a as (from json_execute_serialized_sql('{hidden}')) from a", "json_execute_serialized_sql may"),
        ("explain analyze from json_execute_serialized_sql('{hidden}')", "json_execute_serialized_sql may"),
        ("from arrow_scan(1::bigint, 2::bigint, 3::bigint)", "arrow_scan may not"),
        ("from checkpoint()", "checkpoint may not"),
        ("from duckdb_secrets()", "duckdb_secrets may not"),
        ("select * from read_csv('{secret}')", "no other file"),
        ("select * from read_text('{secret}')", "no other file"),
        ("select * from read_text('{provenance}/../../secret.csv')", "no other file"),
        ("select * from glob('/etc/*')", "no other file"),
        ("select * from '{secret}'", ""),
        ("select * from read_csv('https://example.com/x.csv')", ""),
        ("from enable_logging(storage = 'file', storage_path = '{out}')", "enable_logging may not"),
        ("select * from made", "does not exist"),
        ("select nothing from pairs", '"nothing" not found'),
        ("selec 1", "syntax error"),
        ("select $a", "parameters"),
        ("select '\udc80'", "UTF-8"),
        ("select 1 / (select count(*) from pairs where error('ouch'))", "ouch"),
        ("select error('late') from range(5000) t(i) where i = 4000", "late"),
    ],
)
def test_what_is_no_query_over_the_run_is_refused_and_changes_nothing(
    committed: RunDir, tmp_path: Path, query: str, why: str
) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("secret\n1\n")
    # The run's own folder is where a query may read, so it is where writing is tempting.
    out = committed.provenance / "out.csv"
    before = sorted(tmp_path.rglob("*"))
    text = query.replace("{out}", str(out)).replace("{secret}", str(secret))
    text = text.replace("{hidden}", hidden_copy(out).replace("'", "''"))
    with pytest.raises(CapfiltError) as refused:
        list(run_sql(committed, text.replace("{provenance}", str(committed.provenance)))[1])
    assert why in refused.value.what
    assert "\n" not in refused.value.what
    assert "pairs" in refused.value.fix
    assert sorted(tmp_path.rglob("*")) == before


def test_a_query_may_read_the_runs_own_files(committed: RunDir) -> None:
    file = next(committed.samples.iterdir())
    _, rows = run_sql(committed, f"select count(*) from read_parquet('{file}')")
    assert list(rows) == [(4,)]


def test_a_run_in_a_folder_with_odd_characters_can_be_queried(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "it's [odd] *?")
    made.commit(run, made.shard())
    _, rows = run_sql(run, "select count(*) from pairs")
    assert list(rows) == [(6,)]
