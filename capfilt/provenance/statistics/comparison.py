"""Two runs over the same samples: which pairs they judge differently, and in what they differ themselves.

A pair has the same name in both where shard, key, source and candidate are the same. Its text need not be:
another captioner writes other texts under the same names, and these are told apart from a change of mind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.provenance.catalog import add_run
from capfilt.provenance.differences import differences
from capfilt.provenance.policy import newest_policy
from capfilt.provenance.rundir import recorded_facts
from capfilt.provenance.statistics.reading import rows
from capfilt.records import SCORES

if TYPE_CHECKING:
    import duckdb

    from capfilt.provenance.rundir import RunDir
    from capfilt.provenance.statistics.reading import Row

OTHER = "against"
"""Schema that the other run's tables stand in."""
EXAMPLES = 3
"""Pairs shown of each source and way."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Pairs of one source by their verdicts in both runs."""

    source: str
    same_text: bool
    """Whether both runs have the same text; if not, they have different ones under one name."""
    kept_by_both: int
    dropped_by_both: int
    kept_here_alone: int
    kept_there_alone: int

    @property
    def pairs(self) -> int:
        """Pairs that both runs judged."""
        return self.kept_by_both + self.dropped_by_both + self.kept_here_alone + self.kept_there_alone


@dataclass(frozen=True, slots=True)
class Change:
    """Pairs of one source whose verdict differs, by why each run decided as it did."""

    source: str
    keep: bool
    """Verdict of this run; the other has the opposite."""
    reason: str
    reason_there: str
    pairs: int


@dataclass(frozen=True, slots=True)
class Shift:
    """One score of the texts that are the same in both runs."""

    score: str
    source: str
    pairs: int
    """Those with the score in both."""
    mean: float
    """Mean of this run's value minus the other's."""
    mean_absolute: float


@dataclass(frozen=True, slots=True)
class ChangedPair:
    """One pair whose verdict differs, with what each run holds of it."""

    pair_id: str
    shard: str
    key: str
    source: str
    keep: bool
    """Verdict of this run."""
    reason: str
    reason_there: str
    text: str
    text_there: str
    scores: dict[str, float]
    """itm, itc, ... by the filter in force; what was not measured is left out."""
    scores_there: dict[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed its mind between another run, there, and this one, here."""

    run: str
    other: str
    policy: str | None
    """The policy in force in words; None while nothing was judged."""
    policy_there: str | None
    facts: tuple[str, ...]
    """What the rows depend on, where it differs: one line each, there -> here."""
    here_alone: dict[str, int]
    """Pairs by source that the other run lacks."""
    there_alone: dict[str, int]
    agreement: tuple[Agreement, ...]
    """By source, web first, the same texts first; pairs that both runs judged."""
    unjudged: int
    """Pairs in both of which at least one run has no verdict."""
    changes: tuple[Change, ...]
    """The most frequent first."""
    shifts: tuple[Shift, ...]
    examples: tuple[ChangedPair, ...]
    """The first by pair_id of each source and way: as good as drawn, and the same at every look."""

    @property
    def judged(self) -> int:
        """Pairs that both runs judged."""
        return sum(row.pairs for row in self.agreement)

    @property
    def changed(self) -> int:
        """Pairs whose verdict differs."""
        return sum(row.pairs for row in self.changes)


def comparison(
    catalog: duckdb.DuckDBPyConnection, run: RunDir, other: RunDir, *, examples: int = EXAMPLES
) -> Comparison:
    """Return what differs between a run, whose `open_figures` is given, and another one.

    The other run's tables are added to the catalog, once. Pairs are joined within DuckDB's bound of
    memory. CapfiltError where the other run is damaged.
    """
    add_run(catalog, other, OTHER)
    catalog.execute(_BOTH)
    alone: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for row in rows(catalog, _ALONE):
        alone[row["is_here"]][row["source"]] = row["pairs"]
    newest, newest_there = newest_policy(run), newest_policy(other)
    return Comparison(
        run=str(run.path),
        other=str(other.path),
        policy=newest[1].words if newest is not None else None,
        policy_there=newest_there[1].words if newest_there is not None else None,
        facts=tuple(differences(recorded_facts(other), recorded_facts(run))),
        here_alone=alone[True],
        there_alone=alone[False],
        agreement=tuple(Agreement(**row) for row in rows(catalog, _AGREEMENT)),
        unjudged=rows(catalog, _UNJUDGED)[0]["pairs"],
        changes=tuple(Change(**row) for row in rows(catalog, _CHANGES)),
        shifts=tuple(shift for score in SCORES for shift in _shifts(catalog, score)),
        examples=tuple(map(_changed_pair, rows(catalog, _EXAMPLES, examples))),
    )


# -- the queries; `both_runs` has a row a pair of either run, a digest of 64 bits in place of its text

_SCORES = f"struct_pack({', '.join(f'{score} := {score}' for score in SCORES)}) AS scores"
_BOTH = f"""
    CREATE OR REPLACE TEMP TABLE both_runs AS
    WITH here AS (
        SELECT pair_id, source, keep, reason, text, {_SCORES}
        FROM judged JOIN (SELECT pair_id, hash(text) AS text FROM captions) USING (pair_id)
    ),
    there AS (SELECT pair_id, source, keep, reason, hash(text) AS text, {_SCORES} FROM {OTHER}.pairs)
    SELECT coalesce(here.pair_id, there.pair_id) AS pair_id, coalesce(here.source, there.source) AS source,
        here.pair_id IS NOT NULL AS is_here, there.pair_id IS NOT NULL AS is_there,
        here.keep, there.keep AS keep_there, here.reason, there.reason AS reason_there,
        here.text = there.text AS is_same, here.scores, there.scores AS scores_there
    FROM here FULL JOIN there USING (pair_id)
"""
_ALONE = """
    SELECT source, is_here, count(*) AS pairs FROM both_runs WHERE NOT (is_here AND is_there)
    GROUP BY ALL ORDER BY source DESC
"""
_JUDGED = "is_here AND is_there AND keep IS NOT NULL AND keep_there IS NOT NULL"
_AGREEMENT = f"""
    SELECT source, is_same AS same_text,
        count(*) FILTER (WHERE keep AND keep_there) AS kept_by_both,
        count(*) FILTER (WHERE NOT keep AND NOT keep_there) AS dropped_by_both,
        count(*) FILTER (WHERE keep AND NOT keep_there) AS kept_here_alone,
        count(*) FILTER (WHERE NOT keep AND keep_there) AS kept_there_alone
    FROM both_runs WHERE {_JUDGED} GROUP BY source, is_same ORDER BY source DESC, is_same DESC
"""
_UNJUDGED = f"SELECT count(*) AS pairs FROM both_runs WHERE is_here AND is_there AND NOT ({_JUDGED})"
_CHANGES = f"""
    SELECT source, keep, reason, reason_there, count(*) AS pairs FROM both_runs
    WHERE {_JUDGED} AND keep <> keep_there GROUP BY ALL
    ORDER BY pairs DESC, source DESC, keep DESC, reason, reason_there
"""
_SHIFT = """
    SELECT source, count(*) AS pairs, avg(change) AS mean, avg(abs(change)) AS mean_absolute FROM (
        SELECT source, scores.{score} - scores_there.{score} AS change FROM both_runs WHERE is_same
    ) WHERE isfinite(change) GROUP BY source ORDER BY source DESC
"""
_EXAMPLES = f"""
    WITH chosen AS (
        SELECT *, row_number() OVER (PARTITION BY source, keep ORDER BY pair_id) AS place
        FROM both_runs WHERE {_JUDGED} AND keep <> keep_there QUALIFY place <= ?
    )
    SELECT pair_id, shard, key, chosen.source, keep, reason, reason_there, captions.text,
        theirs.text AS text_there, scores, scores_there
    FROM chosen JOIN captions USING (pair_id)
        JOIN (SELECT pair_id, text FROM {OTHER}.captions) AS theirs USING (pair_id)
    ORDER BY keep DESC, chosen.source DESC, place
"""


def _shifts(catalog: duckdb.DuckDBPyConnection, score: str) -> list[Shift]:
    return [Shift(score=score, **row) for row in rows(catalog, _SHIFT.format(score=score))]


def _changed_pair(row: Row) -> ChangedPair:
    for name in ("scores", "scores_there"):
        row[name] = {score: value for score, value in row[name].items() if value is not None}
    return ChangedPair(**row)
