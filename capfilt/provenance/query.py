"""A user's own SQL over a run, which can read the provenance and nothing else.

Two fences. The statement is parsed and only a query is let through, since DuckDB lets a WITH clause copy
to a file; and the connection reaches no file outside the run's provenance, by a configuration that is
then locked.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import duckdb_path, open_catalog
from capfilt.provenance.lineage import rounds_of
from capfilt.provenance.schema import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

    from capfilt.provenance.rundir import RunDir

_BATCH = 1000
"""Rows fetched at once."""
_EXPLAIN = re.compile(r"\s*explain(\s+analyze\b|\s*\([^()]*\))?", re.IGNORECASE)
_QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
"""Of DuckDB's syntax tree; any other kind of node writes."""


def run_sql(run: RunDir, query: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """Return the columns and the rows of one query over the run's tables, those of further rounds too.

    The rows come as they are computed and the catalog closes after the last one. CapfiltError where the
    text is not one query, reaches beyond the run, or fails in DuckDB.
    """
    connection = open_catalog(run, every_round=True)
    try:
        with _user_errors():
            _check_query(connection, query)
            _fence(connection, run)
            connection.execute(query)
            columns = [column[0] for column in connection.description or ()]
    except BaseException:
        connection.close()
        raise
    return columns, _rows(connection)


def _rows(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    try:
        with _user_errors():
            while rows := connection.fetchmany(_BATCH):
                yield from rows
    finally:
        connection.close()


def _fence(connection: duckdb.DuckDBPyConnection, run: RunDir) -> None:
    """Take from a connection every file but the run's provenance, for good."""
    folders = {
        duckdb_path(each.provenance, escaped=escaped)
        for _, each in rounds_of(run)
        for escaped in (True, False)
    }
    quoted = ", ".join("'" + folder.replace("'", "''") + "'" for folder in sorted(folders))
    connection.execute(f"SET allowed_directories = [{quoted}]")
    for setting in ("autoinstall_known_extensions", "autoload_known_extensions", "enable_external_access"):
        connection.execute(f"SET {setting} = false")
    connection.execute("SET lock_configuration = true")
    connection.execute("BEGIN TRANSACTION READ ONLY")


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
    tree = json.loads(row[0]) if row else {"error": True}
    if tree["error"]:
        raise _refusal("this kind of query cannot be checked for being read-only")
    if writing := sorted(_nodes(tree) - _QUERY_NODES):
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


def _encodable(query: str) -> str:
    try:
        query.encode("utf-8")
    except UnicodeEncodeError:
        raise _refusal("the query is not UTF-8") from None
    return query


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turn DuckDB's refusals into errors of the user, on one line."""
    import duckdb

    try:
        yield
    except duckdb.PermissionException as error:
        raise _refusal(
            f"a query reads the run's provenance and no other file: {_first_line(error)}"
        ) from error
    except duckdb.Error as error:
        raise _refusal(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _refusal(what: str) -> CapfiltError:
    names = ", ".join(table.name for table in TABLES)
    return CapfiltError(
        what,
        fix=f"write one SELECT over {names}; `capfilt sql RUN --schema` lists their columns",
    )
