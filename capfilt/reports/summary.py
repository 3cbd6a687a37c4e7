"""What a run came to, as plain values: everything `capfilt inspect` shows and its `--json` prints.

All of it is read from the provenance by SQL; no model is loaded, and a run that is half done, or that
has no captioner, filter or policy, is summed up as it stands.
"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.lineage import rounds_of, schema_of
from capfilt.provenance.pairs import score_columns
from capfilt.provenance.policy import newest_policy
from capfilt.provenance.rundir import read_json
from capfilt.records import BEST_FIRST, SCORES, Measure
from capfilt.stages.export import MANIFEST_FILE
from capfilt.stages.judge import advice, filters_of, loosening_command, mend_command, weak_scores_of
from capfilt.stages.wishes import Filters

if TYPE_CHECKING:
    import duckdb

    from capfilt.provenance.policy import Policy
    from capfilt.provenance.rundir import RunDir

Row = dict[str, Any]

BINS = 20
"""Bars of a histogram."""
MOST_REPEATED = 5
"""Synthetic captions shown that were written most often."""
EXAMPLES = 4
"""Pairs shown that were kept, and as many that were dropped, of each source."""

_SAMPLES = """
    SELECT coalesce(sum(samples_in), 0)::BIGINT AS "in", count(*) AS shards,
        (SELECT count(*) FROM samples) AS rows,
        (SELECT count(*) FROM samples WHERE status = 'ok') AS ok,
        (SELECT count(*) FROM samples WHERE status <> 'ok') AS refused
    FROM shards
"""
_REASONS = """
    SELECT reason, count(*) AS samples FROM samples
    WHERE reason IS NOT NULL AND (status = 'ok') = ? GROUP BY reason ORDER BY samples DESC, reason
"""
_VERDICTS = """
    SELECT source, keep, reason, count(*) AS pairs FROM pairs GROUP BY ALL
    ORDER BY source DESC, keep DESC, pairs DESC, reason
"""
_TEXTS = """
    SELECT source, count(*) AS pairs, count(DISTINCT text) AS distinct_texts,
        quantile_disc(words, 0.1) AS words_p10, quantile_disc(words, 0.5) AS words_p50,
        quantile_disc(words, 0.9) AS words_p90, max(words) AS words_most
    FROM (SELECT source, text, len(regexp_extract_all(text, '\\S+')) AS words FROM captions)
    GROUP BY source ORDER BY source DESC
"""
_REPEATED = """
    SELECT text, count(*) AS pairs FROM captions WHERE source = 'synthetic'
    GROUP BY text HAVING pairs > 1 ORDER BY pairs DESC, text LIMIT ?
"""
_QUANTILES = """
    SELECT score, filter, source, count(*) AS pairs, min(value) AS least,
        quantile_cont(value, 0.1) AS p10, quantile_cont(value, 0.25) AS p25,
        quantile_cont(value, 0.5) AS p50, quantile_cont(value, 0.75) AS p75,
        quantile_cont(value, 0.9) AS p90, max(value) AS most
    FROM ({measured}) GROUP BY place, score, filter, source ORDER BY place, source DESC
"""
# A probability is drawn from 0 to 1; a cosine from the least to the most that was measured.
_HISTOGRAM = f"""
    WITH measured AS ({{measured}}),
    edges AS (
        SELECT place, if(any_value(is_probability), 0, min(value)) AS low,
            if(any_value(is_probability), 1, max(value)) AS high
        FROM measured GROUP BY place
    )
    SELECT score, filter, source, any_value(low) AS low, any_value(high) AS high,
        least(floor((value - low) / greatest(high - low, 1e-9) * {BINS}), {BINS - 1})::INTEGER AS bin,
        count(*) AS pairs
    FROM measured JOIN edges USING (place) GROUP BY score, filter, source, bin ORDER BY ALL
"""
# pair_id is a digest already: its order is as good as drawn, and the same at every look.
_EXAMPLES = """
    SELECT source, keep, reason, text, {columns}, shard, key, pair_id,
        row_number() OVER (PARTITION BY source, keep ORDER BY pair_id) AS place
    FROM pairs WHERE keep IS NOT NULL QUALIFY place <= ? ORDER BY keep DESC, source DESC, place
"""


def summarise(run: RunDir) -> dict[str, Any]:
    """Return everything worth telling of a run, as JSON can say it."""
    with open_catalog(run, every_round=True) as catalog:
        summary: dict[str, Any] = {
            "run": str(run.path),
            "rounds": _rounds(run, catalog),
            "samples": _samples(catalog),
            "verdicts": _rows(catalog, _VERDICTS),
            "texts": _rows(catalog, _TEXTS),
            "most_repeated": _rows(catalog, _REPEATED, MOST_REPEATED),
            "scores": _scores(catalog),
            "models": _rows(catalog, "SELECT kind, model, path, parent FROM models ORDER BY kind, path"),
            "calibration": _rows(
                catalog, "SELECT * FROM calibration ORDER BY model, score DESC, negatives DESC"
            ),
            "uncalibrated": _uncalibrated(catalog),
            "policy": _policy(catalog),
            "stages": _stages(catalog),
            "examples": _examples(catalog),
        }
    kept = sum(row["pairs"] for row in summary["verdicts"] if row["keep"]) if summary["policy"] else None
    return {
        **summary,
        "advice": advice(run, kept=kept),
        "next_command": loosening_command(run) if kept == 0 else _next_command(run, summary),
    }


def _rounds(run: RunDir, catalog: duckdb.DuckDBPyConnection) -> list[Row]:
    """Return what each round came to, where there are several; a round is named as the run was."""
    rounds = rounds_of(run)
    if len(rounds) == 1:
        return []
    rows = _rows(catalog, "SELECT round, captioner, filter, init, samples FROM rounds ORDER BY round")
    for row, (number, one) in zip(rows, rounds, strict=True):
        [counts] = _rows(
            catalog,
            "SELECT count(*) AS captions, count(*) FILTER (WHERE keep) AS kept "
            f"FROM {schema_of(number, rounds)}.pairs",
        )
        row |= {"path": str(one.path), **counts}
    return rows


def _rows(catalog: duckdb.DuckDBPyConnection, sql: str, *values: object) -> list[Row]:
    result = catalog.execute(sql, values or None)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _samples(catalog: duckdb.DuckDBPyConnection) -> Row:
    [row] = _rows(catalog, _SAMPLES)
    return {
        **row,
        "refused_by_reason": {each["reason"]: each["samples"] for each in _rows(catalog, _REASONS, False)},
        "texts_missing_by_reason": {
            each["reason"]: each["samples"] for each in _rows(catalog, _REASONS, True)
        },
    }


def _scores(catalog: duckdb.DuckDBPyConnection) -> list[Row]:
    measured = " UNION ALL ".join(
        _measured(place, column) for place, column in enumerate(_best_first(catalog))
    )
    rows = _rows(catalog, _QUANTILES.format(measured=measured))
    for row in rows:
        row["histogram"] = {"low": 0.0, "high": 1.0, "pairs": [0] * BINS}
    by_name = {(row["score"], row["filter"], row["source"]): row["histogram"] for row in rows}
    for bar in _rows(catalog, _HISTOGRAM.format(measured=measured)):
        histogram = by_name[bar["score"], bar["filter"], bar["source"]]
        histogram["low"], histogram["high"] = bar["low"], bar["high"]
        histogram["pairs"][bar["bin"]] = bar["pairs"]
    return rows


def _best_first(catalog: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the columns of scores: those of the filter in force, the best first, then further filters'."""
    return list(dict.fromkeys((*BEST_FIRST, *score_columns(catalog))))


def _measured(place: int, column: str) -> str:
    """Return the SELECT of a column's values, with the score and, for a further filter, its first digits."""
    measure = Measure.of_column(column)
    filter_ = f"'{measure.filter}'" if measure.filter else "NULL::VARCHAR"
    return (
        f"SELECT {place} AS place, '{measure.score}' AS score, {filter_} AS filter, source, "
        f"{column} AS value, {SCORES[measure.score].is_probability} AS is_probability "
        f"FROM pairs WHERE {column} IS NOT NULL"
    )


def _uncalibrated(catalog: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the digests of filters that scored pairs and that nobody calibrated."""
    sql = (
        "SELECT DISTINCT filter FROM scores WHERE filter NOT IN (SELECT model FROM calibration) ORDER BY ALL"
    )
    return [digest for (digest,) in catalog.execute(sql).fetchall()]


def _policy(catalog: duckdb.DuckDBPyConnection) -> Row | None:
    rows = _rows(
        catalog, "SELECT policy, words, thresholds, filter FROM policies ORDER BY policy DESC LIMIT 1"
    )
    return {**rows[0], "thresholds": json.loads(rows[0]["thresholds"])} if rows else None


def _stages(catalog: duckdb.DuckDBPyConnection) -> list[Row]:
    return _rows(
        catalog,
        "SELECT stage, start, status, detail, ended - started AS seconds, count, per_second"
        " FROM stages ORDER BY start, started, stage",
    )


def _examples(catalog: duckdb.DuckDBPyConnection) -> list[Row]:
    rows = _rows(catalog, _EXAMPLES.format(columns=", ".join(_best_first(catalog))), EXAMPLES)
    return [{name: value for name, value in row.items() if name != "place"} for row in rows]


def following(run: RunDir, policy: Policy) -> str:
    """Return the command that follows a policy: its mend, the export, or a look once that is done."""
    if weak_scores_of(run, policy):
        return mend_command(run)
    if _is_exported(run, policy):
        return shlex.join(["capfilt", "sql", str(run.path), "select * from pairs where not keep limit 20"])
    return shlex.join(["capfilt", "export", str(run.path), "--to", str(run.export)])


def first_policy(run: RunDir) -> str:
    """Return the command for a run that nobody judged: judge it where it holds scores, else go on with it."""
    if scored_by := filters_of(run):
        return shlex.join(["capfilt", "judge", str(run.path), *Filters.of(run, scored_by).usual_rule])
    return going_on(run)


def going_on(run: RunDir) -> str:
    """Return the command that started the run; given again, it goes on."""
    record = read_json(run.run_file, mend="restore run.json from a copy, or start a new run elsewhere")
    return shlex.join(map(str, record.get("command") or ["capfilt", "bootstrap", "--help"]))


def _next_command(run: RunDir, summary: dict[str, Any]) -> str:
    """Return what to type next: go on with a run that was stopped, look at its last round, judge it, or
    what follows its policy.
    """
    last = summary["stages"][-1]["status"] if summary["stages"] else None
    newest = newest_policy(run)
    if not summary["samples"]["shards"] or last in ("failed", "running", "interrupted"):
        return going_on(run)
    if summary["rounds"]:
        return shlex.join(["capfilt", "inspect", summary["rounds"][-1]["path"]])
    return first_policy(run) if newest is None else following(run, newest[1])


def _is_exported(run: RunDir, policy: Policy) -> bool:
    """Return whether the run's own export is that of the policy."""
    try:
        manifest = json.loads((run.export / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    digest: str = manifest.get("facts", {}).get("policy", {}).get("digest", "")
    return digest == policy.digest
