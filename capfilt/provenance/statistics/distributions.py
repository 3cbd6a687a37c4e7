"""How scores lie: quantiles and histograms by score and source, and two scores against each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from capfilt.provenance.pairs import score_columns
from capfilt.provenance.policy import AtLeast, newest_policy
from capfilt.provenance.statistics.reading import rows
from capfilt.records import BEST_FIRST, SCORES, Measure

if TYPE_CHECKING:
    from collections.abc import Iterable

    import duckdb

    from capfilt.provenance.rundir import RunDir

BINS = 20
"""Bars of a histogram."""
QUANTILES = {"p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9}


@dataclass(frozen=True, slots=True)
class Distribution:
    """One score of the texts of one source."""

    score: str
    filter: str | None
    """First digits of the digest of a further filter; None for the filter in force."""
    source: str
    pairs: int
    """Texts that have the score."""
    unscored: int
    """Texts of the source that lack it, or whose value is no finite number."""
    least: float
    p10: float
    """Quantiles between two values are interpolated, as numpy does."""
    p25: float
    p50: float
    p75: float
    p90: float
    most: float
    low: float
    """Left edge of the histogram: 0 for a probability, else the least value of all sources."""
    high: float
    """Right edge: 1 for a probability, else the greatest value of all sources."""
    bars: tuple[int, ...]
    """Texts by equal parts of low to high; the last part has its right edge."""
    threshold: float | None
    """What the policy in force asks of this score at least; None where it asks nothing."""
    reaching: int | None
    """Texts at or above the threshold, whatever else the policy asks; None without one."""

    @property
    def measure(self) -> Measure:
        """The score and the filter."""
        return Measure(self.score, self.filter)


@dataclass(frozen=True, slots=True)
class ScoreGrid:
    """Texts of one source counted over two scores at once."""

    source: str
    x: str
    """Column of the score that goes to the right."""
    y: str
    """Column of the score that goes up."""
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    counts: tuple[tuple[int, ...], ...]
    """By y from below, then by x from the left; edges as in a Distribution."""


def distributions(catalog: duckdb.DuckDBPyConnection, run: RunDir, *, bins: int = BINS) -> list[Distribution]:
    """Return one row a score and source that was measured: the filter in force first, its best score first.

    `catalog` is that of `open_figures(run)`.
    """
    thresholds = thresholds_of(run)
    found: list[Distribution] = []
    for column in _best_first(catalog):
        counted = rows(catalog, _COUNTS.format(value=column))
        low, high = _edges(column, counted)
        bars = _bars(catalog, column, low, high, bins)
        threshold = thresholds.get(column)
        reaching = _reaching(catalog, column, threshold)
        measure = Measure.of_column(column)
        found += [
            Distribution(
                score=measure.score,
                filter=measure.filter,
                low=low,
                high=high,
                bars=tuple(bars[row["source"]]),
                threshold=threshold,
                reaching=None if reaching is None else reaching[row["source"]],
                **_quantiles(catalog, column, row["source"], row["pairs"]),
                **row,
            )
            for row in counted
            if row["pairs"]
        ]
    return found


def thresholds_of(run: RunDir) -> dict[str, float]:
    """Return what the policy in force asks of single scores, by their columns; the highest of several."""
    newest = newest_policy(run)
    found: dict[str, float] = {}
    for rule in newest[1].rules if newest is not None else ():
        if isinstance(rule, AtLeast):
            column = rule.measure.column
            found[column] = max(rule.threshold, found.get(column, -math.inf))
    return found


def score_grids(
    catalog: duckdb.DuckDBPyConnection, x: str = "itc", y: str = "itm", *, bins: int = 32
) -> list[ScoreGrid]:
    """Return texts counted over two scores, source by source, web first; empty where none has both.

    `x` and `y` are columns of `pairs`; any other name is a KeyError, since it becomes part of the SQL.
    """
    known = score_columns(catalog)
    if x not in known or y not in known:
        raise KeyError(x if x not in known else y)
    edges = [_edges(column, rows(catalog, _COUNTS.format(value=column))) for column in (x, y)]
    cells = rows(
        catalog,
        f"SELECT source, {_bin(x)} AS x, {_bin(y)} AS y, count(*) AS pairs FROM judged "
        f"WHERE isfinite({x}) AND isfinite({y}) GROUP BY ALL",
        *(value for low, high in edges for value in (low, _width(low, high), bins, bins - 1)),
    )
    by_source: dict[str, list[list[int]]] = {}
    for cell in cells:
        counts = by_source.setdefault(cell["source"], [[0] * bins for _ in range(bins)])
        counts[cell["y"]][cell["x"]] = cell["pairs"]
    return [
        ScoreGrid(source, x, y, *edges[0], *edges[1], tuple(map(tuple, by_source[source])))
        for source in sorted(by_source, reverse=True)
    ]


def edges_of(distribution: Distribution) -> list[tuple[float, float]]:
    """Return left and right edge of every bar."""
    bins = len(distribution.bars)
    step = (distribution.high - distribution.low) / bins
    marks = [distribution.low + number * step for number in range(bins)] + [distribution.high]
    return list(pairwise(marks))


# -- parts of the queries; a column is one of score_columns and never a user's text

_COUNTS = """
    SELECT source, count(*) FILTER (WHERE isfinite({value})) AS pairs,
        count(*) FILTER (WHERE {value} IS NULL OR NOT isfinite({value})) AS unscored,
        min({value}) FILTER (WHERE isfinite({value})) AS least,
        max({value}) FILTER (WHERE isfinite({value})) AS most
    FROM judged GROUP BY source ORDER BY source DESC
"""
# Sorting spills to disk; DuckDB's own quantile holds every value in memory.
_RANKS = """
    SELECT place, value FROM (
        SELECT {value} AS value, row_number() OVER (ORDER BY {value}) AS place
        FROM judged WHERE source = ? AND isfinite({value})
    ) WHERE place IN (SELECT unnest(?::BIGINT[]))
"""


def _best_first(catalog: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the columns of scores: those of the filter in force, the best first, then further filters'."""
    return list(dict.fromkeys((*BEST_FIRST, *score_columns(catalog))))


def _edges(column: str, counted: Iterable[dict[str, float]]) -> tuple[float, float]:
    """Return what a histogram goes from and to: the same for every source, or bars cannot be compared."""
    if SCORES[Measure.of_column(column).score].is_probability:
        return 0.0, 1.0
    measured = [row for row in counted if row["pairs"]]
    return (
        min((row["least"] for row in measured), default=0.0),
        max((row["most"] for row in measured), default=0.0),
    )


def _width(low: float, high: float) -> float:
    return max(high - low, 1e-9)


def _bin(column: str) -> str:
    """Return the number of a value's bar; its parameters are low, width, bins, bins - 1.

    A value that lies outside, by rounding or because a filter gave it, belongs to the bar at the edge.
    """
    return f"greatest(0, least(floor(({column} - ?) / ? * ?), ?))::INTEGER"


def _bars(
    catalog: duckdb.DuckDBPyConnection, column: str, low: float, high: float, bins: int
) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    counted = rows(
        catalog,
        f"SELECT source, {_bin(column)} AS bar, count(*) AS pairs FROM judged WHERE isfinite({column}) "
        "GROUP BY ALL",
        *(low, _width(low, high), bins, bins - 1),
    )
    for row in counted:
        found.setdefault(row["source"], [0] * bins)[row["bar"]] = row["pairs"]
    return found


def _reaching(
    catalog: duckdb.DuckDBPyConnection, column: str, threshold: float | None
) -> dict[str, int] | None:
    if threshold is None:
        return None
    sql = f"SELECT source, count(*) FILTER (WHERE {column} >= ?) AS pairs FROM judged GROUP BY source"
    return {row["source"]: row["pairs"] for row in rows(catalog, sql, threshold)}


def _quantiles(catalog: duckdb.DuckDBPyConnection, column: str, source: str, pairs: int) -> dict[str, Any]:
    """Return quantiles, interpolated between the two values around each."""
    exact = {name: share * (pairs - 1) for name, share in QUANTILES.items()}
    places = sorted({place for at in exact.values() for place in (math.floor(at), math.ceil(at))})
    found = {
        row["place"] - 1: row["value"]
        for row in rows(catalog, _RANKS.format(value=column), source, [place + 1 for place in places])
    }
    return {
        name: found[math.floor(at)] + (at - math.floor(at)) * (found[math.ceil(at)] - found[math.floor(at)])
        for name, at in exact.items()
    }
