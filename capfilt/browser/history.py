"""One sample through all rounds of bootstrapping: every text, who wrote and scored it, and what became of it.

A round is judged over this one sample where its policy looks at nothing else; where it keeps a share of all
texts, its whole `pairs` are asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.browser.cards import History, Telling
from capfilt.browser.locked import locked_connection
from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import duckdb_path
from capfilt.provenance.lineage import rounds_of
from capfilt.provenance.pairs import create_pairs
from capfilt.provenance.policy import TopFraction, newest_policy
from capfilt.provenance.query import open_locked
from capfilt.records import BEST_FIRST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import duckdb

    from capfilt.browser.said import Labels
    from capfilt.browser.shards import ManifestReader, ShardFiles
    from capfilt.provenance.policy import Policy
    from capfilt.provenance.rundir import RunDir

_FILE = "read_parquet(?, hive_partitioning = false)"
_SAMPLE = f"""
    SELECT key, image_sha256, url, metadata, status, reason
    FROM {_FILE} WHERE key = ? ORDER BY status LIMIT 1
"""
_OF_SAMPLE = "WHERE shard = ? AND key = ? ORDER BY source DESC, candidate, pair_id"
_ANCESTORS = """
    SELECT model, string_agg(
        coalesce(ancestor_kind, 'model') || ' ' || ancestor[:12]
            || coalesce(' of round ' || ancestor_round, '') || if(via = 'data', ', by data', ''),
        '; ' ORDER BY depth, via DESC, ancestor_kind, ancestor
    ) FROM ancestry GROUP BY model
"""


def history(
    run: RunDir, shard: str, key: str, labels: Labels, reader: Callable[[RunDir], ManifestReader]
) -> History:
    """Return what every round wrote and decided of one sample; CapfiltError where there is none.

    `labels` are what people said, `reader` gives that of a round's manifests.
    """
    sample: dict[str, Any] | None = None
    tellings: list[Telling] = []
    policies: dict[int, str] = {}
    ancestors = _ancestors(run)
    for number, one in rounds_of(run):
        files = next((its for its in reader(one).shards().values() if its.name == shard), None)
        if files is None:
            continue
        newest = newest_policy(one)
        if newest is not None:
            policies[number] = newest[1].words
        found, rows = _in_round(one, files, key, None if newest is None else newest[1])
        sample = sample or found
        tellings += [_telling(number, row, ancestors, labels) for row in rows]
    if sample is None:
        raise CapfiltError(
            f"there is no sample {key[:80]!r} in shard {shard[:80]!r}", fix="follow a link of the page"
        )
    return History(
        shard=shard,
        key=key,
        image_sha256=sample["image_sha256"],
        url=sample["url"],
        metadata=sample["metadata"],
        status=sample["status"],
        refusal=sample["reason"],
        tellings=tellings,
        policies=policies,
    )


def _in_round(
    run: RunDir, files: ShardFiles, key: str, policy: Policy | None
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return the row of a sample in one round, and its pairs with their verdicts."""
    with locked_connection(run) as catalog:
        found = _rows(catalog, _SAMPLE, [duckdb_path(files.samples), key])
        captions = f"CREATE TABLE captions AS SELECT * FROM {_FILE} WHERE key = ?"
        catalog.execute(captions, [duckdb_path(files.captions), key])
        scores = f"CREATE TABLE scores AS SELECT * FROM {_FILE} SEMI JOIN captions USING (pair_id)"
        if files.scores:
            catalog.execute(scores, [[duckdb_path(path) for path in files.scores]])
        else:
            catalog.execute(
                "CREATE TABLE scores (pair_id VARCHAR, filter VARCHAR, score VARCHAR, value DOUBLE)"
            )
        create_pairs(catalog, policy, [{**files.manifest, "filters": list(files.filters)}])
        rows = _rows(catalog, "SELECT * FROM pairs ORDER BY source DESC, candidate, pair_id", [])
    if policy is not None and any(isinstance(rule, TopFraction) for rule in policy.rules) and rows:
        with open_locked(run) as whole:
            rows = _rows(whole, f"SELECT * FROM pairs {_OF_SAMPLE}", [files.name, key])
    return (found[0] if found else None), rows


def _rows(catalog: duckdb.DuckDBPyConnection, sql: str, values: list[Any]) -> list[dict[str, Any]]:
    result = catalog.execute(sql, values)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _telling(number: int, row: Mapping[str, Any], ancestors: Mapping[str, str], labels: Labels) -> Telling:
    return Telling(
        round=number,
        pair_id=row["pair_id"],
        source=row["source"],
        candidate=row["candidate"],
        text=row["text"] or "",
        captioner=row["captioner"],
        captioner_ancestors=ancestors.get(row["captioner"] or ""),
        decoding=row["decoding"],
        prompt=row["prompt"],
        seed=row["seed"],
        filter=row["filter"],
        scores=_scores(row),
        keep=row["keep"],
        reason=row["reason"],
        label=labels.verdict(row["pair_id"], row["text"]),
    )


def _scores(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the scores of a pair that some filter measured of any pair of the sample, the best first."""
    names = [name for name in row if name.partition("_")[0] in BEST_FIRST]
    further = [name for name in names if name not in BEST_FIRST]
    return {name: row[name] for name in (*BEST_FIRST, *further) if row[name] is not None or name in further}


def _ancestors(run: RunDir) -> dict[str, str]:
    """Return what each model of any round descends from, in words."""
    with open_locked(run, every_round=True) as catalog:
        return dict(catalog.execute(_ANCESTORS).fetchall())
