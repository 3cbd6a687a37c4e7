"""How figures are read: one catalog with its verdicts worked out once, in memory that has a bound.

A policy is a chain of windows over all pairs. Every figure would go through it again, so verdicts and scores
are put into a table of the catalog first. What does not fit below the bound lies on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.pairs import score_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb

    from capfilt.provenance.policy import Policy
    from capfilt.provenance.rundir import RunDir

Row = dict[str, Any]

MEMORY = "2GB"
"""What DuckDB may hold in memory at once; the rest of a large run is spilled beside it."""
WORD = r"[^\s\v\p{Z}\x1c-\x1f\x{85}]+"
"""A word, as str.split has it: DuckDB's own white space is ASCII alone."""

_JUDGED = """
    CREATE OR REPLACE TEMP TABLE judged AS
    SELECT pair_id, source, candidate, keep, reason, {scores} FROM pairs
"""


@dataclass(frozen=True, slots=True)
class Example:
    """One pair, to be looked at."""

    pair_id: str
    shard: str
    key: str
    source: str
    """web or synthetic."""
    text: str
    scores: dict[str, float]
    """By the column of `pairs`: itm, itc, itm_1a2b3c4d; what was not measured is left out."""
    keep: bool | None
    """Verdict of the policy in force; None while there is none."""
    reason: str | None
    """Why: kept, below_threshold, ..."""


def open_figures(
    run: RunDir, *, policy: Policy | None = None, memory: str = MEMORY
) -> duckdb.DuckDBPyConnection:
    """Return the catalog of a run, all rounds in it, with the table `judged` that figures are read from.

    `judged` holds pair_id, source, candidate, keep, reason and every score of `pairs`. `policy` and errors
    as in `open_catalog`; `memory` is DuckDB's bound, such as "512MB". The caller closes the connection.
    """
    catalog = open_catalog(run, policy=policy, every_round=True)
    try:
        catalog.execute(f"SET memory_limit = '{memory}'")
        catalog.execute(_JUDGED.format(scores=", ".join(score_columns(catalog))))
    except BaseException:
        catalog.close()
        raise
    return catalog


def rows(catalog: duckdb.DuckDBPyConnection, sql: str, *values: object) -> list[Row]:
    """Return the rows of a query by the names of its columns."""
    result = catalog.execute(sql, values or None)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def examples_of(catalog: duckdb.DuckDBPyConnection, pair_ids: Sequence[str]) -> list[Example]:
    """Return pairs by their names, in the order asked for; a name that is not there is left out."""
    scores = score_columns(catalog)
    found = {
        row["pair_id"]: Example(
            scores={name: value for name in scores if (value := row.pop(name)) is not None}, **row
        )
        for row in rows(
            catalog,
            f"SELECT pair_id, shard, key, source, text, keep, reason, {', '.join(scores)} "
            "FROM judged JOIN (SELECT pair_id, shard, key, text FROM captions) USING (pair_id) "
            "WHERE pair_id IN (SELECT unnest(?::VARCHAR[]))",
            list(pair_ids),
        )
    }
    return [found[pair] for pair in pair_ids if pair in found]
