"""Pairs divided by score, so that few labels say much, and samples drawn from the parts.

Where nearly all texts are right or nearly all are wrong a label tells little; what a policy is worth is
decided between. The parts are cut by the square roots of the counts (Dalenius and Hodges, "Minimum variance
stratification", 1959), with which as many labels from each part is nearly the best that can be done. They are
cut once, at the first draw: a later draw adds to an earlier one, whatever was scored or judged since.
"""

from __future__ import annotations

import math
import os
import threading
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json, digest_of
from capfilt.errors import CapfiltError
from capfilt.files import TEMPORARY_PREFIX, disk_errors, flush_folder, write_whole
from capfilt.provenance.rundir import read_json
from capfilt.records import BEST_FIRST, SCORES, Source, is_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import duckdb

    from capfilt.provenance.rundir import RunDir

MOST_STRATA = 8
"""Parts of one source's texts."""
PAIRS_A_STRATUM = 25
"""Fewer pairs are not divided."""
_BINS = 1024
"""Of the histogram over a score's whole scale whose counts the cuts are made from."""
UNSCORED = -1
"""Number of the part without a score."""


@dataclass(frozen=True, slots=True)
class Strata:
    """How the pairs of a run are divided: by source, and within it by one filter's score."""

    score: str | None
    """None for a run without scores: a source is one part."""
    filter: str | None
    """Digest of the filter whose score it is."""
    cuts: Mapping[str, tuple[float, ...]]
    """By source, ascending scores at which a further part begins; its own score belongs to it."""

    @property
    def digest(self) -> str:
        """First digits of what names this division."""
        return digest_of(self.record())[:8]

    def record(self) -> dict[str, Any]:
        """Return the division as plain values."""
        cuts = {source: list(values) for source, values in self.cuts.items()}
        return {"score": self.score, "filter": self.filter, "cuts": cuts}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Strata:
        """Return the division of a record; KeyError, TypeError or ValueError for one that is none."""
        score, digest = record["score"], record["filter"]
        if score is not None and (score not in BEST_FIRST or not is_digest(digest)):
            raise ValueError(f"{score!r} by {digest!r}")
        cuts = {Source(name).value: tuple(map(float, values)) for name, values in record["cuts"].items()}
        if not all(math.isfinite(cut) for values in cuts.values() for cut in values):
            raise ValueError("a cut that is no number")
        return cls(score, digest, cuts)

    def sql(self, value: str) -> str:
        """Return an SQL expression for the number of a pair's part within its source.

        `value` is an expression for the score of the division, null for a pair without one. It is read beside
        the column `source`. Numbers begin at 0, for the lowest scores; UNSCORED is that of pairs without one.
        """
        if self.score is None:
            return "0"
        whens = [
            f"WHEN source = '{Source(source).value}' THEN "
            + (" + ".join(f"({value} >= {cut!r}::DOUBLE)::INTEGER" for cut in cuts) or "0")
            for source, cuts in self.cuts.items()
        ]
        missing = f"WHEN {value} IS NULL OR NOT isfinite({value}) THEN {UNSCORED}"
        return f"(CASE {missing} {' '.join(whens)} ELSE 0 END)"


@dataclass(frozen=True, slots=True)
class DrawnPair:
    """A pair to be labelled, and the part it was drawn from."""

    pair_id: str
    shard: str
    key: str
    source: str
    stratum: int


@dataclass(frozen=True, slots=True)
class Draw:
    """A drawn sample, in the order in which it should be labelled: one may stop at any place."""

    name: str
    """What its labels name as their `draw`."""
    pairs: tuple[DrawnPair, ...]


def strata_of(run: RunDir, connection: duckdb.DuckDBPyConnection, filter_digest: str | None) -> Strata:
    """Return how the run's pairs are divided; the first call decides it, for good.

    It is divided by the score of `filter_digest` that speaks for a filter (ITM where it has one).
    `connection` is a catalog of the run.
    """
    if (known := known_strata(run)) is not None:
        return known
    strata = cut_strata(connection, filter_digest)
    # Of this thread too: two tabs of one page may draw at once.
    temporary = run.labels / f"{TEMPORARY_PREFIX}strata.{threading.get_ident()}.{os.getpid()}"
    with disk_errors(run.strata_file):
        write_whole(temporary, canonical_json(strata.record()))
        try:
            os.link(temporary, run.strata_file)
        except FileExistsError:  # Another process was first, and its division is the run's.
            return known_strata(run) or strata
        finally:
            temporary.unlink(missing_ok=True)
        flush_folder(run.labels)
    return strata


def known_strata(run: RunDir) -> Strata | None:
    """Return how the run's pairs are divided; None where no sample was drawn yet."""
    mend = "restore it from a copy; without it the labels of drawn samples cannot be weighed"
    if not run.strata_file.exists():
        return None
    try:
        return Strata.read(read_json(run.strata_file, mend=mend))
    except (KeyError, TypeError, ValueError) as error:
        raise CapfiltError(f"{run.strata_file} is damaged: {error!r}", fix=mend) from error


def with_value(strata: Strata) -> tuple[str, list[str]]:
    """Return a SELECT of the captions with words, `value` being the score of the division, and parameters."""
    words = "text <> ''"
    if strata.score is None or strata.filter is None:
        return f"SELECT pair_id, source, NULL::DOUBLE AS value FROM captions WHERE {words}", []
    return (
        "SELECT pair_id, source, value FROM captions LEFT JOIN "
        "(SELECT pair_id, value FROM scores WHERE filter = ? AND score = ?) USING (pair_id) "
        f"WHERE {words}",
        [strata.filter, strata.score],
    )


def draw(connection: duckdb.DuckDBPyConnection, strata: Strata, count: int, seed: int) -> Draw:
    """Draw `count` pairs, as many from each part as it has and as are wanted.

    A pair's place depends on the seed and its pair_id alone: a larger sample of the same seed begins with the
    smaller one, and the first pairs of a sample are a sample themselves.
    """
    values, parameters = with_value(strata)
    rows = connection.execute(
        # The first ones of each part are found in one pass, without putting all pairs in order.
        f"WITH valued AS ({values}), parts AS (SELECT source, {strata.sql('value')} AS stratum, "
        "arg_min(pair_id, md5(? || ' ' || pair_id), ?) AS chosen FROM valued GROUP BY ALL), "
        "placed AS (SELECT source, stratum, unnest(chosen) AS pair_id, "
        "unnest(range(len(chosen))) AS place FROM parts) "
        "SELECT pair_id, shard, key, placed.source, stratum FROM captions JOIN placed USING (pair_id) "
        "ORDER BY place, md5(? || ' ' || pair_id), pair_id LIMIT ?",
        [*parameters, str(seed), count, str(seed), count],
    ).fetchall()
    return Draw(f"{strata.digest}-{seed}", tuple(DrawnPair(*row) for row in rows))


def cut_strata(connection: duckdb.DuckDBPyConnection, filter_digest: str | None) -> Strata:
    """Divide the pairs of a catalog by what stands in it now; nothing is written."""
    scores = connection.execute("SELECT DISTINCT score FROM scores WHERE filter = ?", [filter_digest or ""])
    found = {row[0] for row in scores.fetchall()}
    score = next((name for name in BEST_FIRST if name in found), None)
    if score is None:
        return Strata(None, None, {})
    values, parameters = with_value(Strata(score, filter_digest, {}))
    low, high = SCORES[score].low, SCORES[score].high
    rows = connection.execute(
        f"WITH valued AS ({values}) SELECT source, "
        "greatest(0, least(? - 1, floor((value - ?) / ? * ?)))::INTEGER AS bin, count(*) "
        "FROM valued WHERE isfinite(value) GROUP BY ALL ORDER BY source, bin",
        [*parameters, _BINS, low, high - low, _BINS],
    ).fetchall()
    counts: dict[str, dict[int, int]] = {}
    for source, number, pairs in rows:
        counts.setdefault(source, {})[number] = pairs
    cuts = {source: _cuts(low, high, mine) for source, mine in counts.items()}
    return Strata(score, filter_digest, cuts)


def _cuts(low: float, high: float, counts: Mapping[int, int]) -> tuple[float, ...]:
    """Return the cuts of one source: ends of the bins at which the summed square roots reach equal shares."""
    parts = min(MOST_STRATA, sum(counts.values()) // PAIRS_A_STRATUM)
    bins = sorted(counts)
    sums: Sequence[float] = list(accumulate(math.sqrt(counts[number]) for number in bins))
    chosen: list[int] = []
    for part in range(1, parts):
        wanted = sums[-1] * part / parts
        last = min(range(len(bins)), key=lambda at: abs(sums[at] - wanted))
        # The cut stands where the next bin that holds something begins.
        if last + 1 < len(bins) and bins[last + 1] not in chosen:
            chosen.append(bins[last + 1])
    return tuple(low + (high - low) * number / _BINS for number in chosen)
