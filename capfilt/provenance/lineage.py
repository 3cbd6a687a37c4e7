"""All rounds of bootstrapping in one catalog: who wrote and scored a caption, and what these descend from.

A further round is a run inside the first one. Its tables are views in a schema of their own
(`round_2.pairs`), so that those of the first round stay what they are, and three views stand over all.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from capfilt.canonical import digest_of
from capfilt.provenance.policy import newest_policy
from capfilt.provenance.rundir import read_json, recorded_facts
from capfilt.provenance.schema import ANCESTRY, LINEAGE, ROUNDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import duckdb

    from capfilt.provenance.rundir import RunDir
    from capfilt.provenance.schema import Table

_MEND = "remove the file and give the run's command again"
_WRITTEN = ("captioner", "filter")
"""Columns of `rounds` that are read from the rows and not from the run's files."""

_MODELS = "SELECT {number}::INTEGER AS round, model, kind, parent FROM {schema}.models"
_WRITERS = """
    SELECT {number}::INTEGER AS round, (SELECT any_value(captioner) FROM {schema}.captions) AS captioner,
        (SELECT words FROM {schema}.policy_parameters WHERE name = 'filter') AS filter
"""
# A model's own weights as its parent would say nothing; it happens where a training moves nothing.
_ANCESTRY = """
    WITH RECURSIVE known AS (
        SELECT model, arg_min(kind, round) AS kind, min(round) AS round FROM models_of_rounds GROUP BY model
    ),
    links AS (
        SELECT model, parent AS ancestor, 'parent' AS via FROM models_of_rounds WHERE parent <> model
        UNION SELECT model, ancestor, 'data' FROM taught_by WHERE ancestor <> model
    ),
    up AS (
        SELECT model, ancestor, via, 1 AS depth FROM links
        UNION  -- of two ways least() takes data, which stands before parent in the alphabet
        SELECT up.model, links.ancestor, least(up.via, links.via), up.depth + 1
        FROM up JOIN links ON links.model = up.ancestor WHERE up.depth < (SELECT count(*) FROM links)
    )
    SELECT up.model, mine.kind, mine.round, up.ancestor, theirs.kind AS ancestor_kind,
        theirs.round AS ancestor_round, min(up.depth)::INTEGER AS depth, up.via
    FROM up LEFT JOIN known AS mine ON mine.model = up.model
        LEFT JOIN known AS theirs ON theirs.model = up.ancestor
    GROUP BY ALL
"""
_LINEAGE = """
    WITH told AS (
        SELECT model, string_agg(
            coalesce(ancestor_kind, 'model') || ' ' || ancestor[:12]
                || coalesce(' of round ' || ancestor_round, '') || if(via = 'data', ', by data', ''),
            '; ' ORDER BY depth, via DESC, ancestor_kind, ancestor
        ) AS ancestors
        FROM ancestry GROUP BY model
    )
    SELECT pairs.*, wrote.ancestors AS captioner_ancestors, judged.ancestors AS filter_ancestors
    FROM ({pairs}) AS pairs LEFT JOIN told AS wrote ON wrote.model = pairs.captioner
        LEFT JOIN told AS judged ON judged.model = pairs.filter
"""


def round_number(run: RunDir) -> int:
    """Return which round of bootstrapping a run is."""
    return int(recorded_facts(run).get("round", 1)) if run.run_file.is_file() else 1


def rounds_of(run: RunDir) -> list[tuple[int, RunDir]]:
    """Return a run and the further rounds in it, by number, up to the first one that has not begun."""
    first = round_number(run)
    found = [(first, run)]
    while (further := run.round(found[-1][0] + 1)).run_file.is_file():
        found.append((found[-1][0] + 1, further))
    return found


def schema_of(number: int, rounds: Sequence[tuple[int, RunDir]]) -> str:
    """Return the schema that holds the tables of a round."""
    return "main" if number == rounds[0][0] else f"round_{number}"


def export_digest(manifest: Mapping[str, Any]) -> str:
    """Return what an export is known by: the digest of its shards' names and bytes.

    That is what a model is trained on; card, policy and verdicts lie beside it.
    """
    return digest_of([[shard["name"], shard["sha256"]] for shard in manifest["shards"]])


def read_export(run: RunDir) -> dict[str, Any] | None:
    """Return the manifest of the run's own export; None where there is none that can be read."""
    try:
        manifest: dict[str, Any] = json.loads(run.export_manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "shards" in manifest else None


def create_lineage(connection: duckdb.DuckDBPyConnection, rounds: Sequence[tuple[int, RunDir]]) -> None:
    """Create `rounds`, `ancestry` and `lineage` over the tables of these rounds, which are there."""

    def each(sql: str) -> str:
        return " UNION ALL ".join(
            sql.format(number=number, schema=schema_of(number, rounds)) for number, _ in rounds
        )

    known = [_row(number, run) for number, run in rounds if run.run_file.is_file()]
    own = [column for column in ROUNDS.names() if column not in _WRITTEN]
    _create_table(connection, "known_rounds", ROUNDS, own, known)
    taught = [row for _, run in rounds for row in _taught(run)]
    _create_table(connection, "taught_by", ANCESTRY, ["model", "ancestor"], taught)
    columns = ", ".join(ROUNDS.names())
    connection.execute(
        f"CREATE VIEW rounds AS SELECT {columns} FROM known_rounds LEFT JOIN ({each(_WRITERS)}) USING (round)"
    )
    connection.execute(f"CREATE VIEW models_of_rounds AS {each(_MODELS)}")
    connection.execute(f"CREATE VIEW ancestry AS {_ANCESTRY}")
    of_pairs = [name for name in LINEAGE.names() if not name.endswith("_ancestors")]
    pairs = each(f"SELECT {', '.join(of_pairs)} FROM {{schema}}.pairs")
    columns = ", ".join(LINEAGE.names())
    connection.execute(f"CREATE VIEW lineage AS SELECT {columns} FROM ({_LINEAGE.format(pairs=pairs)})")


def _create_table(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    like: Table,
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Create a table of some columns of another one."""
    import pyarrow as pa

    schema = pa.schema([like.arrow().field(column) for column in columns])
    connection.register("incoming", pa.Table.from_pylist(list(rows), schema))
    connection.execute(f"CREATE TABLE {name} AS SELECT * FROM incoming")
    connection.unregister("incoming")


def _row(number: int, run: RunDir) -> dict[str, Any]:
    """Return what the files of a run say of it as a round."""
    policy, export = newest_policy(run), read_export(run)
    init = _read(run.given_file("init"))
    previous, following = _read(run.previous_file), _read(run.next_file)
    return {
        "round": number,
        "path": str(run.path.absolute()),
        "seed": recorded_facts(run).get("seed"),
        "init": init.get("weights"),
        "init_export": previous.get("export"),
        "policy": policy[1].words if policy is not None else None,
        "export": export_digest(export) if export is not None else None,
        "samples": export.get("samples") if export is not None else None,
        "next": following.get("model"),
        "next_export": following.get("export"),
    }


def _taught(run: RunDir) -> list[dict[str, Any]]:
    """Return which models wrote and kept the texts that others were pre-trained on."""
    return [
        {"model": record["model"], "ancestor": record[kind]}
        for record in (_read(run.previous_file), _read(run.next_file))
        for kind in ("captioner", "filter")
        if record.get(kind) is not None
    ]


def _read(file: Any) -> dict[str, Any]:
    """Read a JSON record; an empty one where there is none."""
    record: dict[str, Any] = read_json(file, mend=_MEND) if file.exists() else {}
    return record
