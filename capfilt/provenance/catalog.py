"""DuckDB views over the committed Parquet: what a run knows, as tables.

Parquet is the record and the catalog a way to look at it: made in memory at every opening, from the files
that the manifests name, and closed by whoever opened it. No stage holds a database file open, since one
writer would lock every other process out.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json
from capfilt.errors import CapfiltError
from capfilt.files import disk_errors, remove_temporaries, whole_file
from capfilt.provenance.commit import arrow_table, manifests, missing_files, synthetic_captions
from capfilt.provenance.label_rows import Verdict, newest_labels, read_every_label
from capfilt.provenance.lineage import create_lineage, rounds_of, schema_of
from capfilt.provenance.pairs import create_pairs
from capfilt.provenance.policy import Policy, newest_policy, policies
from capfilt.provenance.rundir import RunDir, json_files, read_json, stage_rows
from capfilt.provenance.schema import (
    CALIBRATION,
    CAPTIONS,
    LABELS,
    METRICS,
    MODELS,
    POLICIES,
    SAMPLES,
    SCORES,
    SHARDS,
    STAGES,
    TABLES,
    Table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import duckdb

_SQL_TYPES = {
    "string": "VARCHAR",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "double": "DOUBLE",
    "bool": "BOOLEAN",
}


def open_catalog(
    run: RunDir, *, policy: Policy | None = None, every_round: bool = False
) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB in memory with every table of schema.py over what is committed now.

    `every_round` adds the further rounds that lie in the run, each in a schema of its own and all of them
    in `rounds`, `ancestry` and `lineage`, which else know this run alone. Stages do without: a damaged
    round must not keep an earlier one from going on.
    `policy` judges the pairs; without one the newest of the run does, and where there is none `keep` and
    `reason` are null. The caller closes the connection. CapfiltError where a manifest names a file that
    is gone or has another size.
    """
    import duckdb

    connection = duckdb.connect(
        config={"temp_directory": _spill_folder(), "python_enable_replacements": False}
    )
    try:
        _fill(connection, run, policy, every_round=every_round)
    except BaseException:
        connection.close()
        raise
    return connection


def add_run(connection: duckdb.DuckDBPyConnection, run: RunDir, schema: str) -> None:
    """Add the tables of one more run to a catalog, in a schema of their own; its newest policy judges it.

    `schema` is a name of ours and never a user's. Further rounds of that run are left out.
    """
    connection.execute(f"CREATE SCHEMA {schema}")
    connection.execute(f"SET schema = '{schema}'")
    try:
        _fill_round(connection, run, None)
    finally:
        connection.execute("SET schema = 'main'")


def rebuild_catalog(run: RunDir, *, every_round: bool = True) -> None:
    """Write catalog.duckdb anew: the same views in a file, for people with a DuckDB shell.

    Its views name the run's files by their absolute paths, so it is rebuilt after the run was moved.
    """
    import duckdb

    # DuckDB takes a path with a question mark for one with options, so its file is made elsewhere.
    with _one_at_a_time(run), tempfile.TemporaryDirectory(prefix="capfilt-") as folder:
        file = Path(folder) / "catalog.duckdb"
        with duckdb.connect(file, config={"temp_directory": _spill_folder()}) as connection:
            _fill(connection, run, None, every_round=every_round)
        remove_temporaries(run.catalog_file)
        with whole_file(run.catalog_file) as temporary:
            shutil.copyfile(file, temporary)


def pair_counts(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, bool | None, str | None, int]]:
    """Return (source, keep, reason, pairs), kept ones first: what a summary shows of the verdicts."""
    return connection.execute(
        "SELECT source, keep, reason, count(*) FROM pairs GROUP BY ALL"
        " ORDER BY source DESC, keep DESC, reason"
    ).fetchall()


def sample_counts(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str | None, int]]:
    """Return (status, reason, samples): what a summary shows of the input."""
    return connection.execute(
        "SELECT status, reason, count(*) FROM samples GROUP BY ALL ORDER BY status, reason NULLS FIRST"
    ).fetchall()


def schema_text() -> str:
    """Return every table and column with its type and meaning, for people."""
    lines = []
    for table in TABLES:
        lines.append(f"{table.name}: {table.meaning}")
        width = max(len(column.name) for column in table.columns)
        lines += [f"    {c.name:{width}}  {_SQL_TYPES[c.type]:7}  {c.meaning}" for c in table.columns]
        lines.append("")
    return "\n".join(lines)


def duckdb_path(path: Path, *, escaped: bool = True) -> str:
    """Return an absolute path as DuckDB reads it: not as a glob, whatever characters the folder has."""
    text = str(path.absolute())
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise CapfiltError(
            f"the path {text!r} is not UTF-8, and DuckDB reads no other",
            fix="rename the folder, or move the run elsewhere",
        ) from None
    return re.sub(r"[*?\[]", r"[\g<0>]", text) if escaped else text


# -- the tables and views


def _fill(
    connection: duckdb.DuckDBPyConnection, run: RunDir, policy: Policy | None, *, every_round: bool
) -> None:
    """Create every table of schema.py, in a catalog that is still empty."""
    rounds = rounds_of(run)[: None if every_round else 1]
    _fill_round(connection, run, policy)
    for number, further in rounds[1:]:
        add_run(connection, further, schema_of(number, rounds))
    create_lineage(connection, rounds)


def _fill_round(connection: duckdb.DuckDBPyConnection, run: RunDir, policy: Policy | None) -> None:
    """Create the tables of one round, in the schema that is set."""
    committed = manifests(run)
    _check_files(run, committed)
    files = [run.provenance / file["path"] for manifest in committed for file in manifest["files"]]
    for table, folder in ((SAMPLES, run.samples), (CAPTIONS, run.captions), (SCORES, run.scores)):
        _parquet_view(connection, table, [path for path in files if path.parent == folder])
    _parquet_view(connection, METRICS, sorted(run.metrics.glob("[!.]*.parquet")))
    mend = "remove the file and give the run's command again"
    _rows_table(connection, SHARDS, [_shard_row(m) for m in committed if m["kind"] == "shard"])
    _rows_table(connection, MODELS, [read_json(path, mend=mend) for path in json_files(run.models)])
    calibrations = [row for path in json_files(run.calibration) for row in read_json(path, mend=mend)]
    _rows_table(connection, CALIBRATION, calibrations)
    _rows_table(connection, POLICIES, [_policy_row(number, known) for number, known in policies(run)])
    _rows_table(connection, LABELS, _label_rows(run))
    _rows_table(connection, STAGES, stage_rows(run))
    if policy is None and (newest := newest_policy(run)) is not None:
        policy = newest[1]
    create_pairs(connection, policy, committed)


def _parquet_view(connection: duckdb.DuckDBPyConnection, table: Table, files: list[Path]) -> None:
    """Create a view over the listed files, or an empty one of the right types."""
    import pyarrow.parquet as pq

    if files:
        # Runs of before a column was added lack it in all their files.
        there = set(pq.read_schema(files[0]).names)
        names = ", ".join(
            f'"{one.name}"' if one.name in there else f'NULL::{_SQL_TYPES[one.type]} AS "{one.name}"'
            for one in table.columns
        )
        listed = ", ".join(_quoted(duckdb_path(path)) for path in files)
        # A folder named a=b would otherwise become a column.
        source = f"SELECT {names} FROM read_parquet([{listed}], hive_partitioning = false)"
    else:
        names = ", ".join(f'NULL::{_SQL_TYPES[column.type]} AS "{column.name}"' for column in table.columns)
        source = f"SELECT {names} WHERE false"
    connection.execute(f'CREATE VIEW "{table.name}" AS {source}')


def _rows_table(connection: duckdb.DuckDBPyConnection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Create a table of a few rows that are JSON in the run."""
    connection.register("incoming", arrow_table(table, rows))
    connection.execute(f'CREATE TABLE "{table.name}" AS SELECT * FROM incoming')
    connection.unregister("incoming")


def _shard_row(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "shard": manifest["shard"],
        "path": manifest["path"],
        "bytes": manifest["bytes"],
        "samples_in": manifest["samples_in"],
        "samples_ok": manifest["statuses"].get("ok", 0),
        "samples_refused": manifest["statuses"].get("refused", 0),
        "captions": manifest["rows"]["captions"],
        "captions_synthetic": synthetic_captions(manifest),
        "fingerprint": manifest["fingerprint"],
    }


def _policy_row(number: int, policy: Policy) -> dict[str, Any]:
    return {
        "policy": number,
        "digest": policy.digest,
        "filter": policy.filter,
        "rule": canonical_json(policy.record()["rules"]),
        "thresholds": canonical_json(policy.render().parameters),
        "words": policy.words,
    }


def _label_rows(run: RunDir) -> list[dict[str, Any]]:
    labels = read_every_label(run)
    newest = {id(label) for label in newest_labels(labels)}
    return [
        {
            "pair_id": label.pair_id,
            "verdict": label.verdict,
            "who": label.who,
            "time": label.when,
            "note": label.note,
            "draw": label.draw,
            "text_sha256": label.text_sha256,
            "newest": id(label) in newest and label.verdict != Verdict.UNDONE,
        }
        for label in labels
    ]


def _check_files(run: RunDir, committed: Sequence[Mapping[str, Any]]) -> None:
    for manifest in committed:
        if gone := missing_files(run, manifest):
            raise CapfiltError(
                f"{gone[0]} is gone or damaged, and the manifest of shard {manifest['shard']} names it",
                fix="give the run's command again: it does that shard anew",
            )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _spill_folder() -> str:
    """Return where DuckDB puts what does not fit in memory; its own choice is the working folder."""
    return str(Path(tempfile.gettempdir()) / f"capfilt-duckdb-{os.getpid()}")


@contextmanager
def _one_at_a_time(run: RunDir) -> Iterator[None]:
    """Wait for other processes that rebuild the catalog of the run."""
    path = run.provenance / ".catalog.lock"
    with disk_errors(path):
        run.provenance.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
