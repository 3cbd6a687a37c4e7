"""What people said of pairs: kept, drawn for, and turned into figures of a policy.

Labels are rows in the run's record like any other measurement: of whom, when, of which text. A policy is
measured by them without a model, and changed without losing one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.commit import manifests
from capfilt.provenance.label_figures import Cell, Estimate, Measured, precision_and_recall
from capfilt.provenance.label_rows import (
    Label,
    Verdict,
    append_labels,
    newest_labels,
    read_every_label,
    text_digest,
)
from capfilt.provenance.policy import AtLeast, Policy, newest_policy
from capfilt.provenance.strata import (
    Draw,
    DrawnPair,
    Strata,
    cut_strata,
    draw,
    known_strata,
    strata_of,
    with_value,
)
from capfilt.shell import shell_word

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import duckdb

    from capfilt.provenance.rundir import RunDir

__all__ = [
    "Cell",
    "Draw",
    "DrawnPair",
    "Estimate",
    "Label",
    "Measured",
    "Proposed",
    "Strata",
    "Verdict",
    "add_labels",
    "draw_sample",
    "measured",
    "precision_and_recall",
    "read_labels",
    "text_digest",
    "threshold_for",
]

MOST_CANDIDATES = 200
"""Thresholds that are tried."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """A threshold for a wanted precision, and what labels say of it."""

    score: str
    threshold: float
    filter: str
    """Digest of the filter whose score it is."""
    measured: Measured


def add_labels(run: RunDir, labels: Iterable[Label], *, only_new: bool = False) -> int:
    """Add labels to the run, all or none, and return how many were added.

    Safe for several processes at once and when killed at any moment. A label without `text_sha256` gets that
    of the pair's text now; CapfiltError where the run has no such pair. `only_new` leaves out labels that are
    there already.
    """
    given = list(labels)
    if lacking := {label.pair_id for label in given if label.text_sha256 is None}:
        digests = _text_digests(run, lacking)
        if unknown := sorted(lacking - digests.keys()):
            raise CapfiltError(
                f"{run.path} has no pair {unknown[0][:64]!r}",
                fix="label pairs of this run; `capfilt sql RUN 'select pair_id, text from pairs'` lists them",
            )
        given = [
            replace(label, text_sha256=digests[label.pair_id]) if label.text_sha256 is None else label
            for label in given
        ]
    return append_labels(run, given, only_new=only_new)


def read_labels(run: RunDir, *, every: bool = False) -> list[Label]:
    """Return what each person says of each pair now: the newest label, without those taken back.

    `every` returns all labels in the order they were added, whatever became of them.
    """
    labels = read_every_label(run)
    if every:
        return labels
    return [label for label in newest_labels(labels) if label.verdict is not Verdict.UNDONE]


def draw_sample(run: RunDir, n: int, seed: int = 0) -> Draw:
    """Draw `n` pairs to label, or all where there are fewer, in the order to label them in.

    As many come from each part of the pairs by source and score, so that the uncertain ones are not lost
    among the many clear ones; `measured` gives each label the weight of its part. The same seed draws the
    same pairs, and begins with them when more are drawn.
    """
    if n < 1:
        raise CapfiltError(f"a sample of {n} pairs cannot be drawn", fix="draw 1 or more")
    with open_catalog(run) as catalog:
        return draw(catalog, strata_of(run, catalog, _filter_of(run)), n, seed)


def measured(run: RunDir, policy: Policy | None = None, *, kept: Collection[str] | None = None) -> Measured:
    """Return precision and recall of a policy from the run's labels, with 95% intervals.

    The policy is the newest by default; `kept`, pair_ids, may say instead what is kept. Where labels of drawn
    samples exist they alone count; else all count, as if drawn within their part, which is right for labels
    of every pair or of pairs that chance chose.
    """
    with open_catalog(run, policy=policy) as catalog:
        catalog.execute("CREATE TABLE kept_pairs (pair_id VARCHAR)")
        if kept is None:
            catalog.execute("INSERT INTO kept_pairs SELECT pair_id FROM pairs WHERE keep")
        else:
            catalog.execute("INSERT INTO kept_pairs SELECT unnest(?)", [list(kept)])
        strata, said = _prepared(run, catalog)
        values, parameters = with_value(strata)
        rows = catalog.execute(
            f"WITH valued AS ({values}) SELECT source, {strata.sql('value')}, "
            "pair_id IN (FROM kept_pairs), count(*), count(*) FILTER (WHERE said > 0), "
            "count(*) FILTER (WHERE said < 0) FROM valued LEFT JOIN said USING (pair_id) GROUP BY ALL",
            parameters,
        ).fetchall()
    return said.measured([Cell(*row) for row in rows])


def threshold_for(
    run: RunDir, precision: float, *, score: str | None = None, certain: bool = False
) -> Proposed:
    """Return the lowest threshold of a score whose precision, by the labels, is at least `precision`.

    `certain` asks that of the lower end of the interval instead. The score is that of the policy in force,
    else the one that the sample was drawn by. Thresholds are tried where a labelled pair has its score.
    CapfiltError where none reaches it, with the best.
    """
    if not 0 < precision <= 1:
        raise CapfiltError(f"a precision of {precision:g} is asked for", fix="ask for one above 0, up to 1")
    with open_catalog(run) as catalog:
        strata, said = _prepared(run, catalog)
        measure = _measure(run, strata, score)
        candidates = _candidates(catalog, measure)
        rows = _counted(catalog, strata, measure, candidates)
    best = math.nan
    for number, threshold in enumerate(candidates):
        found = said.measured(_cells_from(rows, number))
        reached = found.precision.low if certain else found.precision.value
        if reached is not None and reached >= precision - 1e-12:
            return Proposed(measure[0], threshold, measure[1], found)
        if reached is not None:
            best = reached if math.isnan(best) else max(best, reached)
    what = "no labelled pair has that score" if math.isnan(best) else f"the best is {best:.3f}"
    raise CapfiltError(
        f"no threshold of {measure[0].upper()} reaches a precision of {precision:g} by the labels: {what}",
        fix="ask for less, or label more pairs",
    )


# -- what the figures are made from


@dataclass(frozen=True, slots=True)
class _Said:
    """What was said of labelled pairs, apart from where they lie."""

    unsure: int
    stale: int
    outside: int
    is_drawn: bool

    def measured(self, cells: Sequence[Cell]) -> Measured:
        precision, recall = precision_and_recall(cells)
        return Measured(
            precision,
            recall,
            kept=sum(cell.pairs for cell in cells if cell.keep),
            pairs=sum(cell.pairs for cell in cells),
            matches=sum(cell.matches for cell in cells),
            mismatches=sum(cell.mismatches for cell in cells),
            unsure=self.unsure,
            stale=self.stale,
            outside=self.outside,
            is_drawn=self.is_drawn,
        )


def _prepared(run: RunDir, catalog: duckdb.DuckDBPyConnection) -> tuple[Strata, _Said]:
    """Create the table `said` of a catalog: pair_id, and above 0 for a match, below 0 for a mismatch."""
    known = known_strata(run)
    strata = known or cut_strata(catalog, _filter_of(run))
    catalog.execute(
        "CREATE TABLE said_of_all AS WITH fresh AS (SELECT pair_id, verdict, "
        "coalesce(starts_with(draw, ?), false) AS is_drawn, "
        "text_sha256 = sha256(captions.text) AS is_fresh "
        "FROM labels JOIN captions USING (pair_id) WHERE newest) "
        "SELECT pair_id, count(*) FILTER (WHERE verdict = 'match' AND is_fresh) "
        "- count(*) FILTER (WHERE verdict = 'mismatch' AND is_fresh) AS said, "
        "coalesce(bool_or(is_drawn) FILTER (WHERE is_fresh), false) AS is_drawn, "
        "count(*) FILTER (WHERE is_fresh) AS fresh, count(*) FILTER (WHERE NOT is_fresh) AS stale "
        "FROM fresh GROUP BY pair_id",
        [f"{strata.digest}-" if known else None],
    )
    counted = catalog.execute(
        "SELECT coalesce(bool_or(is_drawn AND said <> 0), false), coalesce(sum(stale), 0)::BIGINT "
        "FROM said_of_all"
    ).fetchone()
    is_drawn, stale = counted or (False, 0)
    counts = "is_drawn" if is_drawn else "true"
    catalog.execute(
        f"CREATE TABLE said AS SELECT pair_id, said FROM said_of_all WHERE fresh > 0 AND {counts}"
    )
    left = catalog.execute(
        "SELECT (SELECT count(*) FROM said WHERE said = 0), "
        f"(SELECT count(*) FROM said_of_all WHERE fresh > 0 AND NOT {counts})"
    ).fetchone()
    unsure, outside = left or (0, 0)
    return strata, _Said(unsure, stale, outside, is_drawn)


def _measure(run: RunDir, strata: Strata, score: str | None) -> tuple[str, str]:
    """Return the score and the filter whose threshold is looked for."""
    newest = newest_policy(run)
    rules = () if newest is None else newest[1].rules
    rule = next((rule for rule in rules if isinstance(rule, AtLeast) and score in (None, rule.score)), None)
    name = score or (rule.score if rule is not None else strata.score)
    digest = (rule.filter if rule is not None else None) or _filter_of(run)
    if name is None or digest is None:
        raise CapfiltError(
            f"{run.path} holds no scores, so there is no threshold to look for",
            fix=f"score it first: capfilt score {shell_word(run.path)} --filter MODEL",
        )
    return name, digest


def _candidates(catalog: duckdb.DuckDBPyConnection, measure: tuple[str, str]) -> list[float]:
    """Return the scores of labelled pairs, ascending and each once; of many some, evenly spread."""
    rows = catalog.execute(
        "SELECT DISTINCT value FROM scores JOIN said USING (pair_id) "
        "WHERE score = ? AND filter = ? AND said <> 0 AND isfinite(value) ORDER BY value",
        list(measure),
    ).fetchall()
    values = [row[0] for row in rows]
    step = max(1, math.ceil(len(values) / MOST_CANDIDATES))
    return values[::step]


def _counted(
    catalog: duckdb.DuckDBPyConnection, strata: Strata, measure: tuple[str, str], candidates: list[float]
) -> list[tuple[Any, ...]]:
    """Return (source, stratum, candidates reached, pairs, matches, mismatches), counted in one pass."""
    values, parameters = with_value(strata)
    catalog.execute("CREATE TABLE candidates AS SELECT unnest(?::DOUBLE[]) AS threshold", [candidates])
    catalog.execute(
        "CREATE TABLE numbered AS SELECT threshold, row_number() OVER (ORDER BY threshold) AS reached "
        "FROM candidates"
    )
    return catalog.execute(
        f"WITH valued AS ({values}), "
        "asked_of AS (SELECT pair_id, value AS asked FROM scores WHERE score = ? AND filter = ?), "
        f"asked AS (SELECT pair_id, source, {strata.sql('value')} AS stratum, asked "
        "FROM valued LEFT JOIN asked_of USING (pair_id)) "
        "SELECT source, stratum, coalesce(reached, 0), count(*), count(*) FILTER (WHERE said > 0), "
        "count(*) FILTER (WHERE said < 0) FROM asked ASOF LEFT JOIN numbered "
        "ON asked.asked >= numbered.threshold LEFT JOIN said USING (pair_id) GROUP BY ALL",
        [*parameters, *measure],
    ).fetchall()


def _cells_from(rows: Sequence[tuple[Any, ...]], number: int) -> list[Cell]:
    """Return the cells of keeping what reaches the candidate of this number, from 0."""
    sums: dict[tuple[str, int, bool], list[int]] = {}
    for source, stratum, reached, *counts in rows:
        cell = sums.setdefault((source, stratum, reached > number), [0, 0, 0])
        for place, count in enumerate(counts):
            cell[place] += count
    return [Cell(*where, *counts) for where, counts in sums.items()]


def _text_digests(run: RunDir, pair_ids: Collection[str]) -> dict[str, str]:
    """Return the digests of the texts of those pairs that the run has."""
    with open_catalog(run) as catalog:
        rows = catalog.execute(
            "SELECT pair_id, text FROM captions WHERE pair_id IN (SELECT unnest(?))", [sorted(pair_ids)]
        ).fetchall()
    return {pair: text_digest(text) for pair, text in rows}


def _filter_of(run: RunDir) -> str | None:
    """Return the filter that the policy in force reads, else the run's first."""
    newest = newest_policy(run)
    if newest is not None and newest[1].filter is not None:
        return newest[1].filter
    by_kind = sorted(manifests(run), key=lambda manifest: manifest["kind"] != "shard")
    return next((digest for manifest in by_kind for digest in manifest["filters"]), None)
