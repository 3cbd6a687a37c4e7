"""What the texts are like: how long, how different, which ones come again and again, which went wrong.

Loops and prompt echoes are how a captioner fails without an error; both are counted over every text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.provenance.statistics.reading import WORD, rows

if TYPE_CHECKING:
    import duckdb

LONGEST = 40
"""Words from which on lengths are counted as one."""
DRAWN = 20_000
"""Most texts of a source that distinct n-grams are counted over, however large the run is."""
MOST_REPEATED = 5
"""Texts of a source that are named."""
MOST_WORDS = 4
"""n of the longest n-gram that is counted, and words of the longest sequence that is seen to loop."""
READ = 200
"""Words of a text that are looked through for sequences: a stranger's text may have fifty thousand, and the
work grows with their square."""
TIMES = 3
"""How often in a row a sequence must stand to be a loop."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the texts of one source are, in words."""

    source: str
    captions: int
    distinct: int
    """Different texts among them."""
    words_mean: float
    words_p10: int
    """Quantiles are lengths that occur: the shortest that so many texts do not exceed."""
    words_p50: int
    words_p90: int
    words_most: int
    counts: tuple[int, ...]
    """Texts of 0, 1, 2, ... words; the last count is of LONGEST words and more."""


@dataclass(frozen=True, slots=True)
class Diversity:
    """Different sequences of n words among all of them, over texts that were drawn.

    The share falls as more texts are counted, so the same number is drawn of every source.
    Source: Li et al., "A diversity-promoting objective function", 2016, distinct-1 and distinct-2.
    """

    source: str
    n: int
    captions: int
    """Texts that were drawn: those with the least pair_id, which is a digest."""
    total: int
    """Sequences of n words, lower-cased, in the first READ words of each text."""
    distinct: int

    @property
    def share(self) -> float | None:
        """Distinct ones by all of them; None where there is none."""
        return self.distinct / self.total if self.total else None


@dataclass(frozen=True, slots=True)
class Repeated:
    """A text that stands under several pictures, or several times under one."""

    source: str
    text: str
    pairs: int


@dataclass(frozen=True, slots=True)
class DegenerateText:
    """One text that went wrong."""

    pair_id: str
    shard: str
    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Degenerate:
    """Texts of one source that went wrong in one way."""

    source: str
    kind: str
    """empty: no word; loop: the same one to four words three times in a row; prompt_echo: the first words
    of its prompt, two to four of them, stand in the text, of which the prompt is no part. The first READ
    words of a text are looked at."""
    captions: int
    examples: tuple[DegenerateText, ...]
    """The first by pair_id."""


def lengths(catalog: duckdb.DuckDBPyConnection) -> list[Lengths]:
    """Return how long the texts of each source are, web first."""
    distinct = {row["source"]: row["texts"] for row in rows(catalog, _DISTINCT)}
    by_source: dict[str, dict[int, int]] = {}
    for row in rows(catalog, _LENGTHS):
        by_source.setdefault(row["source"], {})[row["words"]] = row["captions"]
    return [_lengths(source, by_source[source], distinct[source]) for source in sorted(by_source)[::-1]]


def diversity(catalog: duckdb.DuckDBPyConnection, *, most: int = DRAWN) -> list[Diversity]:
    """Return distinct n-grams for n of 1 to 4, source by source, web first.

    As many texts are drawn of every source as the smallest one has, at most `most`.
    """
    counts = {row["source"]: row["captions"] for row in rows(catalog, _CAPTIONS)}
    drawn = min(most, *counts.values()) if counts else 0
    return [
        Diversity(source=source, n=n, captions=drawn, **rows(catalog, _ngrams(n), source, drawn)[0])
        for source in counts
        for n in range(1, MOST_WORDS + 1)
    ]


def repeated(catalog: duckdb.DuckDBPyConnection, *, most: int = MOST_REPEATED) -> list[Repeated]:
    """Return the texts of each source that stand there most often, synthetic ones first."""
    return [Repeated(**row) for row in rows(catalog, _REPEATED, most)]


def degenerate(catalog: duckdb.DuckDBPyConnection, *, examples: int = 3) -> list[Degenerate]:
    """Return the texts that went wrong, by source and kind, synthetic ones first; only what occurs."""
    found = rows(catalog, _DEGENERATE, examples)
    return [
        Degenerate(
            **{name: row[name] for name in ("source", "kind", "captions")},
            examples=tuple(DegenerateText(**one) for one in row["examples"]),
        )
        for row in found
    ]


def _lengths(source: str, counts: dict[int, int], distinct: int) -> Lengths:
    captions = sum(counts.values())
    held = [0] * (LONGEST + 1)
    for words, count in counts.items():
        held[min(words, LONGEST)] += count
    return Lengths(
        source=source,
        captions=captions,
        distinct=distinct,
        words_mean=sum(words * count for words, count in counts.items()) / captions,
        words_p10=_quantile(counts, captions, 10),
        words_p50=_quantile(counts, captions, 50),
        words_p90=_quantile(counts, captions, 90),
        words_most=max(counts),
        counts=tuple(held),
    )


def _quantile(counts: dict[int, int], captions: int, percent: int) -> int:
    """Return the least length that so many percent of the texts do not exceed."""
    seen = 0
    for words in sorted(counts):
        seen += counts[words]
        if seen * 100 >= percent * captions:
            return words
    raise ValueError("no text was counted")


_CAPTIONS = "SELECT source, count(*) AS captions FROM captions GROUP BY source ORDER BY source DESC"
_DISTINCT = """
    SELECT source, count(*) AS texts FROM (SELECT DISTINCT source, text FROM captions) GROUP BY source
"""
_LENGTHS = f"""
    SELECT source, len(regexp_extract_all(coalesce(text, ''), '{WORD}')) AS words, count(*) AS captions
    FROM captions GROUP BY ALL
"""
_REPEATED = """
    SELECT source, text, pairs FROM (
        SELECT source, text, count(*) AS pairs,
            row_number() OVER (PARTITION BY source ORDER BY count(*) DESC, text) AS place
        FROM captions GROUP BY source, text HAVING count(*) > 1
    ) WHERE place <= ? ORDER BY source, place
"""
# A digest of 64 bits stands for a sequence: of a million different ones, two meet once in forty million runs.
_WORDS_DRAWN = f"""
    WITH words AS (
        SELECT regexp_extract_all(lower(coalesce(text, '')), '{WORD}')[:{READ}] AS word
        FROM (SELECT text FROM captions WHERE source = ? ORDER BY pair_id LIMIT ?)
    )
"""


def _ngrams(n: int) -> str:
    every = f"list_transform(range(1, greatest(1, len(word) - {n} + 2)), lambda i: hash(word[i:i + {n - 1}]))"
    return (
        f"{_WORDS_DRAWN} SELECT count(*) AS total, count(DISTINCT sequence) AS distinct "
        f"FROM (SELECT unnest({every}) AS sequence FROM words)"
    )


def _stands_in_a_row(words: int) -> str:
    """Return whether some sequence of so many words stands TIMES times in a row.

    It does where what begins at some word, but for the last time, is what begins one sequence later.
    """
    rest = (TIMES - 1) * words
    return (
        f"list_contains(list_transform(range(1, greatest(1, len(word) - {TIMES * words} + 2)), "
        f"lambda i: word[i:i + {rest} - 1] = word[i + {words}:i + {words} + {rest} - 1]), true)"
    )


# CASE asks its questions in turn: few texts have a word so often that a loop has to be looked for.
_LOOP = (
    f"CASE WHEN len(word) - len(list_distinct(word)) >= {TIMES - 1} THEN "
    + " OR ".join(_stands_in_a_row(words) for words in range(1, MOST_WORDS + 1))
    + " ELSE false END"
)
_ECHO = f"""
    len(asked) > 1 AND contains(
        ' ' || array_to_string(word, ' ') || ' ', ' ' || array_to_string(asked[1:{MOST_WORDS}], ' ') || ' '
    )
"""
_DEGENERATE = f"""
    WITH split AS (
        SELECT source, pair_id, regexp_extract_all(lower(coalesce(text, '')), '{WORD}')[:{READ}] AS word,
            regexp_extract_all(lower(coalesce(prompt, '')), '{WORD}') AS asked
        FROM captions
    ),
    found AS (
        SELECT source, pair_id, unnest([
            CASE WHEN len(word) = 0 THEN 'empty' END,
            CASE WHEN {_LOOP} THEN 'loop' END,
            CASE WHEN {_ECHO} THEN 'prompt_echo' END
        ]) AS kind FROM split
    ),
    counted AS (
        SELECT source, kind, count(*) AS captions, unnest(min(pair_id, ?)) AS pair_id
        FROM found WHERE kind IS NOT NULL GROUP BY source, kind
    )
    SELECT source, kind, any_value(counted.captions) AS captions,
        list({{pair_id: pair_id, shard: shard, key: key, text: text}} ORDER BY pair_id) AS examples
    FROM counted JOIN (SELECT pair_id, shard, key, text FROM captions) USING (pair_id)
    GROUP BY source, kind ORDER BY source, captions DESC, kind
"""
