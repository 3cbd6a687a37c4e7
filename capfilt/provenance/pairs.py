"""The view `pairs`: every caption with its scores, filter beside filter, and the verdict of a policy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from capfilt.provenance.schema import PAIRS
from capfilt.records import SCORES, Measure, is_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import duckdb

    from capfilt.provenance.policy import Policy, Value


def create_pairs(
    connection: duckdb.DuckDBPyConnection, policy: Policy | None, committed: Sequence[Mapping[str, Any]]
) -> None:
    """Create `pairs`: captions, the scores of the chosen filter and of further ones, the policy's verdict.

    `committed` are the run's manifests; the views of captions and scores are there. A view takes no
    parameters of its own, so it reads them from the table `policy_parameters`.
    """
    chosen = _filter_of(policy, committed)
    further = _further_measures(connection, policy, chosen, committed)
    inner = [*PAIRS.names()[:-2], *(measure.column for measure in further)]
    if policy is None:
        columns = ", ".join(f'"{name}"' for name in inner)
        sql, parameters = f"SELECT {columns}, NULL::BOOLEAN AS keep, NULL::VARCHAR AS reason FROM scored", {}
    else:
        rendered = policy.render(inner)
        sql, parameters = rendered.sql, rendered.parameters
    filters = {"filter": chosen, **{f"filter_{one.column}": one.filter for one in further}}
    connection.execute("CREATE TABLE policy_parameters (name VARCHAR, number DOUBLE, words VARCHAR)")
    for name, value in {**parameters, **filters}.items():
        is_number = isinstance(value, (int, float))
        row = [name, value if is_number else None, None if is_number else value]
        connection.execute("INSERT INTO policy_parameters VALUES (?, ?, ?)", row)
    connection.execute(f"CREATE VIEW scored AS {_scored(further)}")
    connection.execute(f"CREATE VIEW pairs AS {_bound(sql, parameters)}")


def _further_measures(
    connection: duckdb.DuckDBPyConnection,
    policy: Policy | None,
    chosen: str | None,
    committed: Sequence[Mapping[str, Any]],
) -> list[Measure]:
    """Return what further filters measured, filter by filter, and what the policy reads of them."""
    filters = sorted({digest for manifest in committed for digest in manifest["filters"]} - {chosen})
    filters = [digest for digest in filters if is_digest(digest)]
    found: set[tuple[str, str]] = set()
    if filters:
        # Only where there are several: a scan of all scores.
        sql = "SELECT DISTINCT filter, score FROM scores WHERE filter <> coalesce(?, '')"
        found = set(connection.execute(sql, [chosen]).fetchall())
    measures = [Measure(score, digest) for digest in filters for score in SCORES if (digest, score) in found]
    asked = [] if policy is None else [one for one in policy.measures if one.filter is not None]
    return list({one.column: one for one in (*measures, *asked)}.values())


def _scored(further: Sequence[Measure]) -> str:
    """Return the SELECT of captions with a column for each score of the chosen filter and of further ones."""
    own = _from_table("filter", "")
    filters = {measure: _from_table(f"filter_{measure.column}", "") for measure in further}
    columns = [f"max(filter) FILTER (WHERE filter = {own}) AS filter"]
    for measure, digest in ({Measure(score): own for score in SCORES} | filters).items():
        chosen = f"score = '{measure.score}' AND filter = {digest}"
        columns.append(f"max(value) FILTER (WHERE {chosen}) AS {measure.column}")
    read = ", ".join(dict.fromkeys((own, *filters.values())))
    return (
        "SELECT captions.*, measured.* EXCLUDE (pair_id) FROM captions LEFT JOIN "
        f"(SELECT pair_id, {', '.join(columns)} FROM scores "
        f"WHERE filter IN ({read}) GROUP BY pair_id) AS measured USING (pair_id)"
    )


def score_columns(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the columns of `pairs` that hold scores: the chosen filter's, then those of further ones."""
    names = [row[0] for row in connection.execute("DESCRIBE pairs").fetchall()]
    further = [name for name in names if name not in PAIRS.names()]
    return [*SCORES, *further]


def _bound(sql: str, parameters: Mapping[str, Value]) -> str:
    """Return rendered SQL that reads its parameters from the table `policy_parameters`."""
    return re.sub(r"\$(\w+)", lambda match: _from_table(match[1], parameters[match[1]]), sql)


def _from_table(name: str, value: Value) -> str:
    column = "words" if isinstance(value, str) else "number"
    return f"(SELECT {column} FROM policy_parameters WHERE name = '{name}')"


def _filter_of(policy: Policy | None, committed: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the filter whose scores stand in `pairs`: the policy's, else the run's first."""
    if policy is not None and policy.filter is not None:
        return policy.filter
    by_kind = sorted(committed, key=lambda manifest: manifest["kind"] != "shard")
    return next((digest for manifest in by_kind for digest in manifest["filters"]), None)
