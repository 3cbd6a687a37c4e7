"""Samples chosen so that a look at them tells what the filter does.

Which ones are shown follows from the scores, or from a draw that a recorded seed repeats: md5 of the seed and
the sample's name puts them in an order that no version of a library changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from capfilt.provenance.pairs import score_columns
from capfilt.provenance.policy import TopFraction
from capfilt.provenance.statistics.distributions import thresholds_of
from capfilt.provenance.statistics.reading import rows
from capfilt.records import BEST_FIRST, Measure, Source
from capfilt.reports.html.cards import Cards
from capfilt.reports.html.panels import COLOURS, percent

if TYPE_CHECKING:
    from collections.abc import Mapping

    import duckdb

    from capfilt.provenance.policy import Policy
    from capfilt.provenance.rundir import RunDir
    from capfilt.reports.html.cards import Card, Sample

IN_A_ROW = 4
"""Samples of one kind."""
DRAWN = 12
"""Samples of the random draw."""
_DRAW = "md5(concat_ws(chr(31), ?::VARCHAR, shard, key))"
# A sample of which no web text, or no synthetic one, was judged has a null there and is of no kind.
_VERDICTS = f"""
    CREATE OR REPLACE TEMP TABLE verdicts AS
    SELECT shard, key, bool_or(keep) FILTER (WHERE source = '{Source.WEB}') AS web,
        bool_or(keep) FILTER (WHERE source = '{Source.SYNTHETIC}') AS synthetic
    FROM judged JOIN (SELECT pair_id, shard, key FROM captions) USING (pair_id) GROUP BY shard, key
"""
_KINDS = {
    "The web text is dropped, a synthetic one is kept": "NOT web AND synthetic",
    "The web text is kept, synthetic ones are dropped": "web AND NOT synthetic",
    "Both are kept": "web AND synthetic",
    "Both are dropped": "NOT web AND NOT synthetic",
}
_EXTREME = """
    SELECT shard, key, pair_id FROM (
        SELECT pair_id, {column} AS value FROM judged
        WHERE source = ? AND isfinite({column}) AND {condition} ORDER BY value {way}, pair_id LIMIT {most}
    ) JOIN (SELECT pair_id, shard, key FROM captions) USING (pair_id) ORDER BY value {way}, pair_id
"""


@dataclass(frozen=True, slots=True)
class Row:
    """Samples that have something in common."""

    title: str
    samples: list[tuple[Sample, str | None]]
    """With the pair that a sample is shown for, if it is shown for one."""
    note: str = ""
    cards: list[Card] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Gallery:
    """Rows of samples under one heading."""

    name: str
    """The page's own word for it."""
    title: str
    words: str
    rows: list[Row]


def galleries(
    catalog: duckdb.DuckDBPyConnection, run: RunDir, policy: Policy | None, seed: int
) -> list[Gallery]:
    """Return the galleries of a run, those that its scores and its policy give something to show in.

    `catalog` is that of `open_figures(run)`.
    """
    measured = [name for name in _best_first(catalog) if _is_measured(catalog, name)]
    found = [_drawn(catalog, seed)]
    if measured:
        found.insert(0, _surest(catalog, measured[0]))
    if policy is not None:
        if (border := _border(catalog, policy, thresholds_of(run), measured)) is not None:
            found.insert(0, _borderline(catalog, *border))
        found.insert(0, _side_by_side(catalog, seed))
    found = [gallery for gallery in found if gallery.rows]
    chosen = [one for gallery in found for row in gallery.rows for one in row.samples]
    cards = Cards(catalog, [sample for sample, _ in chosen])
    for gallery in found:
        for row in gallery.rows:
            row.cards.extend(cards.of(sample, pair) for sample, pair in row.samples)
    return found


def _side_by_side(catalog: duckdb.DuckDBPyConnection, seed: int) -> Gallery:
    """Draw samples by which of their two kinds of text the policy takes, as BLIP's figure 4 shows them."""
    catalog.execute(_VERDICTS)
    [both] = rows(
        catalog,
        "SELECT count(*) AS samples FROM verdicts WHERE web IS NOT NULL AND synthetic IS NOT NULL",
    )
    found = []
    for title, condition in _KINDS.items():
        [counted] = rows(catalog, f"SELECT count(*) AS samples FROM verdicts WHERE {condition}")
        drawn = rows(
            catalog,
            f"SELECT shard, key FROM verdicts WHERE {condition} ORDER BY {_DRAW}, shard, key"
            f" LIMIT {IN_A_ROW}",
            f"side by side {seed}",
        )
        share = percent(counted["samples"], both["samples"])
        if drawn:
            samples: list[tuple[Sample, str | None]] = [((row["shard"], row["key"]), None) for row in drawn]
            found.append(Row(title, samples, f"{counted['samples']:,} samples, {share}"))
    words = (
        f"By what became of their texts, the {both['samples']:,} samples with a web text and a synthetic one "
        f"fall into four kinds (BLIP, figure 4). Of each some are drawn, with seed {seed}."
    )
    return Gallery("side-by-side", "Accepted and rejected, side by side", words, found)


def _border(
    catalog: duckdb.DuckDBPyConnection,
    policy: Policy,
    thresholds: Mapping[str, float],
    measured: list[str],
) -> tuple[str, float] | None:
    """Return a score's column and where on it the policy parts kept from dropped; None where none does."""
    for column in measured:
        if column in thresholds:
            return column, thresholds[column]
    for rule in policy.rules:
        if isinstance(rule, TopFraction) and rule.ranking.only is not None:
            column = rule.ranking.only.column
            sql = f"SELECT max({column}) AS value FROM judged WHERE reason = 'below_fraction'"
            [found] = rows(catalog, sql)
            if found["value"] is not None:
                return column, found["value"]
    return None


def _borderline(catalog: duckdb.DuckDBPyConnection, column: str, value: float) -> Gallery:
    """Choose the pairs nearest to the threshold, on both sides."""
    found = [
        Row("Just kept", _extreme(catalog, column, "least", f"keep AND {column} >= {value!r}")),
        Row("Just dropped", _extreme(catalog, column, "most", f"NOT keep AND {column} <= {value!r}")),
    ]
    name = Measure.of_column(column).words
    words = (
        f"The pairs whose {name} lies nearest to {value:.3g}, where the policy parts them. Their scores are "
        "set in bold."
    )
    return Gallery("borderline", "Borderline", words, [row for row in found if row.samples])


def _surest(catalog: duckdb.DuckDBPyConnection, column: str) -> Gallery:
    """Choose the pairs with the highest and with the lowest scores."""
    name = Measure.of_column(column).words
    found = [
        Row("Surest of a match", _extreme(catalog, column, "most"), f"the highest {name}"),
        Row("Surest of a mismatch", _extreme(catalog, column, "least"), f"the lowest {name}"),
    ]
    words = (
        f"Where the filter is most confident by {name}, an error is the filter's and not the threshold's. "
        "The scores that are meant are set in bold."
    )
    return Gallery("confident", "Most confident", words, [row for row in found if row.samples])


def _drawn(catalog: duckdb.DuckDBPyConnection, seed: int) -> Gallery:
    """Draw samples, whatever was measured."""
    drawn = rows(
        catalog,
        f"SELECT shard, key FROM samples WHERE status = 'ok' ORDER BY {_DRAW}, shard, key LIMIT {DRAWN}",
        f"random {seed}",
    )
    samples: list[tuple[Sample, str | None]] = [((row["shard"], row["key"]), None) for row in drawn]
    words = f"Samples drawn with seed {seed}, whatever their scores; --seed draws others."
    return Gallery("random", "A random draw", words, [Row("", samples)] if samples else [])


def _extreme(
    catalog: duckdb.DuckDBPyConnection, column: str, which: str, condition: str = "true"
) -> list[tuple[Sample, str | None]]:
    """Return the pairs of each source with the least or the most of a score.

    `condition` is SQL of this module over `judged`.
    """
    way = "DESC" if which == "most" else "ASC"
    sql = _EXTREME.format(column=column, condition=condition, way=way, most=IN_A_ROW // 2)
    found = [row for source in COLOURS for row in rows(catalog, sql, source)]
    return [((row["shard"], row["key"]), row["pair_id"]) for row in found]


def _best_first(catalog: duckdb.DuckDBPyConnection) -> list[str]:
    return list(dict.fromkeys((*BEST_FIRST, *score_columns(catalog))))


def _is_measured(catalog: duckdb.DuckDBPyConnection, column: str) -> bool:
    [counted] = rows(catalog, f"SELECT count(*) AS pairs FROM judged WHERE isfinite({column})")
    return bool(counted["pairs"])
