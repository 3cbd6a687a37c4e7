from __future__ import annotations

import hashlib
import resource
import time
from pathlib import Path

import duckdb
import provenance_rows as made
import pytest

from capfilt.errors import CapfiltError
from capfilt.provenance.query import Limits, bounded_memory, open_locked, run_sql
from capfilt.provenance.rundir import RunDir


@pytest.fixture
def committed(run: RunDir) -> RunDir:
    made.commit(run, made.shard())
    return run


def hidden_copy(to: Path) -> str:
    """A query that writes a file, as DuckDB's syntax tree, which one of its functions runs."""
    query = f"with a as (copy (select 1) to '{to}') select 1"
    [(tree,)] = duckdb.sql("select json_serialize_sql(?)", params=[query]).fetchall()
    assert "COPY" in tree
    return str(tree)


def digests(folder: Path) -> dict[Path, str]:
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()
    }


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
        ("copy (select 1) to '{data}' (format parquet)", "COPY is not a query"),
        ("with a as (copy (select 1) to '{data}') select 1", "a part of the query is COPY"),
        ("explain analyze copy (select 1) to '{data}'", "COPY is not a query"),
        ("attach '{data}' as other", "ATTACH is not a query"),
        ("detach memory", "DETACH is not a query"),
        ("reset allowed_directories", "SET is not a query"),
        ("set allowed_directories = ['/']", "SET is not a query"),
        ("pragma enable_profiling", "PRAGMA is not a query"),
        ("prepare p as select 1", "PREPARE is not a query"),
        ("execute p", "EXECUTE is not a query"),
        ("vacuum", "VACUUM is not a query"),
        ("checkpoint", "is not a query"),
        ("use memory", "is not a query"),
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
        ("with a as (from json_execute_serialized_sql('{hidden}')) from a", "serialized_sql may not"),
        ("explain analyze from json_execute_serialized_sql('{hidden}')", "serialized_sql may not"),
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
        ("select " + "abs(" * 800 + "1" + ")" * 800, "too deep"),
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
    before = digests(tmp_path)
    data = next(committed.captions.iterdir())
    text = query.replace("{out}", str(out)).replace("{secret}", str(secret)).replace("{data}", str(data))
    text = text.replace("{hidden}", hidden_copy(out).replace("'", "''"))
    with pytest.raises(CapfiltError) as refused:
        list(run_sql(committed, text.replace("{provenance}", str(committed.provenance)))[1])
    assert why in refused.value.what
    assert "\n" not in refused.value.what
    assert "pairs" in refused.value.fix
    assert digests(tmp_path) == before


def test_a_query_may_read_the_runs_own_files(committed: RunDir) -> None:
    file = next(committed.samples.iterdir())
    _, rows = run_sql(committed, f"select count(*) from read_parquet('{file}')")
    assert list(rows) == [(4,)]


def test_a_run_in_a_folder_with_odd_characters_can_be_queried(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "it's [odd] *?")
    made.commit(run, made.shard())
    _, rows = run_sql(run, "select count(*) from pairs")
    assert list(rows) == [(6,)]


# -- time and memory


@pytest.mark.parametrize(
    "query",
    [
        "select count(*) from range(1000000000000) t(i) where sqrt(i) < 0",
        "select sleep_ms(60000)",
        "with recursive t(n) as (select 1 union all select n + 1 from t) select max(n) from t",
        "select i from range(1000000000000) t(i)",
    ],
)
def test_a_query_that_runs_for_ever_is_stopped(committed: RunDir, query: str) -> None:
    began = time.monotonic()
    with pytest.raises(CapfiltError) as stopped:
        sum(1 for _ in run_sql(committed, query, Limits(seconds=0.5))[1])
    assert time.monotonic() - began < 15
    assert stopped.value.what == "the query was stopped after 0.5 seconds"
    assert "--timeout" in stopped.value.fix


def test_the_time_of_whoever_reads_the_rows_does_not_count(committed: RunDir) -> None:
    _, rows = run_sql(committed, "select i from range(5000) t(i)", Limits(seconds=3))
    first = next(rows)
    time.sleep(3.2)
    assert [first, *rows] == [(i,) for i in range(5000)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux bounds a process's memory")
@pytest.mark.parametrize(
    "query",
    [
        "select list(i) from range(1000000000) t(i)",
        # DuckDB does not count these.
        "select length(repeat('x', 3000000000))",
        "select repeat('x', 10000000) from range(100000)",
        "select length(string_agg(repeat('x', 1000000), '')) from range(100000)",
    ],
)
def test_a_query_that_takes_too_much_memory_is_the_users_error(committed: RunDir, query: str) -> None:
    limits = Limits(memory_gb=0.2)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(CapfiltError) as stopped, bounded_memory(limits):
        sum(1 for _ in run_sql(committed, query, limits)[1])
    assert stopped.value.what == "the query needs more than 0.2 GB of memory"
    assert "--memory" in stopped.value.fix
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert list(run_sql(committed, "select 1")[1]) == [(1,)]


def test_a_query_that_fits_on_disk_alone_is_answered(committed: RunDir) -> None:
    query = "select count(*) from (select repeat('x', 100) x from range(3000000) order by random() offset 1)"
    assert list(run_sql(committed, query, Limits(memory_gb=0.2))[1]) == [(2_999_999,)]


def test_limits_that_are_none_are_refused() -> None:
    for values in ((0.0, 2.0), (-1.0, 2.0), (float("nan"), 2.0), (1.0, 0.0), (1.0, float("inf"))):
        with pytest.raises(CapfiltError):
            Limits(*values)


def test_a_time_with_a_zone_is_refused_with_the_way_to_ask_for_it(committed: RunDir) -> None:
    with pytest.raises(CapfiltError) as refused:
        list(run_sql(committed, "select to_timestamp(0)")[1])
    assert "::varchar" in refused.value.fix
    [(text,)] = run_sql(committed, "select to_timestamp(0)::varchar")[1]
    assert text.startswith(("1970-01-01", "1969-12-31"))


# -- a connection for looking


def test_a_locked_connection_makes_tables_in_memory_and_reaches_nothing_else(
    committed: RunDir, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("secret\n1\n")
    before = digests(tmp_path)
    with open_locked(committed) as connection:
        connection.execute("create table copied as select * from pairs")
        cursor = connection.cursor()
        for one in (connection, cursor):
            assert one.execute("select count(*) from copied").fetchall() == [(6,)]
            for attack in (
                f"from read_csv('{secret}')",
                f"copy copied to '{tmp_path / 'out.csv'}'",
                f"copy copied to '{committed.path / 'out.csv'}'",
                f"attach '{tmp_path / 'other.duckdb'}' as other",
                "set enable_external_access = true",
                "set memory_limit = '100GB'",
                "reset lock_configuration",
                "install httpfs",
                "load httpfs",
            ):
                with pytest.raises(duckdb.Error):
                    one.execute(attack).fetchall()
    assert digests(tmp_path) == before
