"""A user's own SQL over a run, which can read the provenance, nothing else, and not for ever.

Three fences. The statement is parsed, and only a query is let through that calls no function which could hide
another one, since DuckDB lets a WITH clause copy to a file, in a string too; the connection reaches no file
outside the run's provenance, by a configuration that is then locked; and time and memory are bounded, memory
by the system, since DuckDB's own limit does not count long texts.
"""

from __future__ import annotations

import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import duckdb_path, open_catalog
from capfilt.provenance.lineage import rounds_of
from capfilt.provenance.schema import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

    from capfilt.provenance.policy import Policy
    from capfilt.provenance.rundir import RunDir

_BATCH = 1000
"""Rows fetched at once."""
_EXPLAIN = re.compile(r"\s*explain(\s+analyze\b|\s*\([\s\w,]*\))?", re.IGNORECASE)
_QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
"""Of DuckDB's syntax tree; any other kind of node writes."""
_TABLE_FUNCTIONS = {
    *("unnest", "range", "generate_series", "repeat", "repeat_row", "json_each", "json_tree"),
    *("histogram", "histogram_values", "glob", "read_text", "read_blob", "read_parquet", "parquet_scan"),
    *("parquet_schema", "parquet_metadata", "parquet_file_metadata", "parquet_kv_metadata"),
    *("read_csv", "read_csv_auto", "read_json", "read_json_auto", "read_json_objects"),
    *("read_ndjson", "read_ndjson_objects", "duckdb_columns", "duckdb_tables", "duckdb_views"),
    *("duckdb_functions", "duckdb_types", "duckdb_settings", "duckdb_keywords", "pragma_table_info"),
}
"""Functions that may stand behind FROM. Others change settings, take addresses in memory, or run a query that
is given as text or as a syntax tree."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a query may take before it is stopped."""

    seconds: float = 300.0
    """Of the query's own work, to its last row."""
    memory_gb: float = 2.0
    """In 10^9 bytes; what does not fit is put on disk as far as it can be, five times as much."""

    def __post_init__(self) -> None:
        if not (0 < self.seconds < 1e6 and 0.05 <= self.memory_gb < 1e6):
            raise CapfiltError(
                f"a query cannot be held to {self.seconds:g} seconds and {self.memory_gb:g} GB",
                fix="give more than 0 seconds and at least 0.05 GB",
            )


LIMITS = Limits()
"""Those that hold where none are given."""


def run_sql(run: RunDir, query: str, limits: Limits = LIMITS) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """Return the columns and the rows of one query over the run's tables, those of further rounds too.

    The rows come as they are computed and the catalog closes after the last one. CapfiltError where the
    text is not one query, reaches beyond the run, fails in DuckDB, or takes more than `limits`.
    """
    connection = open_locked(run, limits=limits, every_round=True)
    clock = _Clock(connection, limits)
    try:
        with clock.running():
            _check_query(connection, query)
            connection.execute("BEGIN TRANSACTION READ ONLY")
            connection.execute(query)
            columns = [column[0] for column in connection.description or ()]
    except BaseException:
        connection.close()
        raise
    return columns, _rows(connection, clock)


def open_locked(
    run: RunDir, *, policy: Policy | None = None, limits: Limits = LIMITS, every_round: bool = False
) -> duckdb.DuckDBPyConnection:
    """Return a catalog of the run (see `open_catalog`) that reaches no file but the run's provenance.

    It is for statements of ours, with what a user asks for as parameters: tables can be made in its memory,
    and it does not look at what it is given. No configuration can be changed in it any more, nor in its
    cursors. The caller closes it.
    """
    connection = open_catalog(run, policy=policy, every_round=every_round)
    try:
        _lock(connection, run, limits, every_round=every_round)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def bounded_memory(limits: Limits = LIMITS) -> Iterator[None]:
    """Hold this whole process to twice what DuckDB may take, beyond what it holds now; Linux alone.

    DuckDB's own limit does not count texts on their way through a query: one that repeats a letter took 20 GB
    under a limit of 0.3. What is refused by the system becomes an error of the query.
    """
    import resource

    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return
    held = int(re.search(r"VmData:\s*(\d+) kB", status.read_text())[1]) * 1024  # type: ignore[index]
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = held + int(2e9 * limits.memory_gb)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


class _Clock:
    """Stops a connection when its time is over; what whoever reads the rows takes does not count."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, limits: Limits) -> None:
        self.limits = limits
        self.is_over = False
        self._connection = connection
        self._left = limits.seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let the time run while the connection works; DuckDB's refusals become errors of the user."""
        began = time.monotonic()
        timer = threading.Timer(max(0.0, self._left), self._ring)
        timer.daemon = True
        timer.start()
        try:
            with _user_errors(self):
                yield
        finally:
            timer.cancel()
            self._left -= time.monotonic() - began

    def _ring(self) -> None:
        self.is_over = True
        self._connection.interrupt()


def _rows(connection: duckdb.DuckDBPyConnection, clock: _Clock) -> Iterator[tuple[Any, ...]]:
    try:
        while True:
            with clock.running():
                rows = connection.fetchmany(_BATCH)
            if clock.is_over:  # It may ring just after a batch came, when nothing is left to be stopped.
                raise _too_slow(clock)
            if not rows:
                return
            yield from rows
    finally:
        connection.close()


def _lock(connection: duckdb.DuckDBPyConnection, run: RunDir, limits: Limits, *, every_round: bool) -> None:
    """Take from a connection every file but the run's provenance, for good."""
    rounds = [each for _, each in rounds_of(run)] if every_round else [run]
    folders = {duckdb_path(each.provenance, escaped=escaped) for each in rounds for escaped in (True, False)}
    quoted = ", ".join("'" + folder.replace("'", "''") + "'" for folder in sorted(folders))
    connection.execute(f"SET memory_limit = '{int(limits.memory_gb * 1e6)}kB'")
    connection.execute(f"SET max_temp_directory_size = '{int(limits.memory_gb * 5e6)}kB'")
    connection.execute(f"SET allowed_directories = [{quoted}]")
    for setting in ("autoinstall_known_extensions", "autoload_known_extensions", "enable_external_access"):
        connection.execute(f"SET {setting} = false")
    connection.execute("SET lock_configuration = true")


def _check_query(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Refuse what is not exactly one query, by DuckDB's own parser."""
    import duckdb

    statements = connection.extract_statements(_encodable(query))
    if len(statements) != 1:
        raise _refusal(f"one statement is run at a time, and this is {len(statements)}")
    kind = statements[0].type
    if kind == duckdb.StatementType.EXPLAIN:
        # EXPLAIN ANALYZE runs what it explains.
        _check_query(connection, _EXPLAIN.sub("", query, count=1) if _EXPLAIN.match(query) else "")
        return
    if kind != duckdb.StatementType.SELECT:
        raise _refusal(f"{kind.name} is not a query, and a run's provenance is only read")
    row = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchone()
    try:
        tree = json.loads(row[0]) if row else {"error": True}
        functions, nodes = _table_functions(tree), _nodes(tree)
    except RecursionError:
        raise _refusal("the query stands too deep in itself to be checked for being read-only") from None
    if tree["error"]:
        raise _refusal("this kind of query cannot be checked for being read-only")
    if hiding := sorted(functions - _TABLE_FUNCTIONS):
        names = ", ".join(hiding)
        raise _refusal(f"{names} may not stand behind FROM: what it does cannot be checked beforehand")
    if writing := sorted(nodes - _QUERY_NODES):
        kinds = ", ".join(node.removesuffix("_NODE").removesuffix("_QUERY") for node in writing)
        raise _refusal(f"a part of the query is {kinds}, and a run's provenance is only read")


def _nodes(tree: Any) -> set[str]:
    """Return the kinds of query nodes in DuckDB's syntax tree."""
    if isinstance(tree, list):
        return set().union(*map(_nodes, tree))
    if not isinstance(tree, dict):
        return set()
    kind = tree.get("type")
    own = {kind} if isinstance(kind, str) and kind.endswith("_NODE") else set()
    return own.union(*map(_nodes, tree.values()))


def _table_functions(tree: Any) -> set[str]:
    """Return the names of the functions behind FROM in DuckDB's syntax tree."""
    if isinstance(tree, list):
        return set().union(*map(_table_functions, tree))
    if not isinstance(tree, dict):
        return set()
    own = {str(tree["function"]["function_name"]).lower()} if tree.get("type") == "TABLE_FUNCTION" else set()
    return own.union(*map(_table_functions, tree.values()))


def _encodable(query: str) -> str:
    try:
        query.encode("utf-8")
    except UnicodeEncodeError:
        raise _refusal("the query is not UTF-8") from None
    return query


@contextmanager
def _user_errors(clock: _Clock) -> Iterator[None]:
    """Turn DuckDB's refusals into errors of the user, on one line."""
    import duckdb

    try:
        yield
    except duckdb.PermissionException as error:
        raise _refusal(
            f"a query reads the run's provenance and no other file: {_first_line(error)}"
        ) from error
    except duckdb.InterruptException as error:
        if clock.is_over:
            raise _too_slow(clock) from error
        raise KeyboardInterrupt from error
    except (duckdb.OutOfMemoryException, MemoryError) as error:
        raise CapfiltError(
            f"the query needs more than {clock.limits.memory_gb:g} GB of memory",
            fix="ask for fewer rows or columns, or give `capfilt sql` more with --memory",
        ) from error
    except duckdb.Error as error:
        if "pytz" in str(error):
            raise CapfiltError(
                "a time with a time zone cannot be given as it is",
                fix="ask for it as text: to_timestamp(started)::varchar",
            ) from error
        raise _refusal(_first_line(error)) from error


def _too_slow(clock: _Clock) -> CapfiltError:
    return CapfiltError(
        f"the query was stopped after {clock.limits.seconds:g} seconds",
        fix="ask for less, or give `capfilt sql` more time with --timeout",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _refusal(what: str) -> CapfiltError:
    names = ", ".join(table.name for table in TABLES)
    return CapfiltError(
        what,
        fix=f"write one SELECT over {names}; `capfilt sql RUN --schema` lists their columns",
    )
