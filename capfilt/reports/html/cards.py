"""One sample on the page: its picture with its texts, their scores and their verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.data.judged import Place
from capfilt.provenance.pairs import score_columns
from capfilt.provenance.statistics.reading import rows
from capfilt.records import BEST_FIRST, Measure
from capfilt.reports.html.panels import COLOURS
from capfilt.reports.html.pictures import picture

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    import duckdb

    from capfilt.reports.html.pictures import Picture

LONGEST_TEXT = 240
"""Characters of a text that are shown; how many there are stands beside it."""
MOST_TEXTS = 4
"""Texts shown of one sample."""
PICTURES_BYTES = 1_500_000
"""What all pictures of the page may weigh together; as data URLs they take a third more."""
_SOURCES = tuple(COLOURS)

Sample = tuple[str, str]
"""Shard and key."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a sample, with what was measured and decided."""

    source: str
    text: str
    """At most a character more than LONGEST_TEXT."""
    length: int
    """Characters of the whole text."""
    keep: bool | None
    reason: str | None
    scores: list[tuple[str, float]]
    """What was measured, the best score first."""
    is_meant: bool
    """Whether the sample is shown for this text."""

    @property
    def longest(self) -> int:
        """Characters that are shown."""
        return LONGEST_TEXT


@dataclass(frozen=True, slots=True)
class Card:
    """One sample."""

    shard: str
    key: str
    picture: Picture
    texts: list[Text]
    more: int
    """Texts that are not shown."""


class Cards:
    """Samples looked up at once, and their pictures as they are asked for."""

    def __init__(self, catalog: duckdb.DuckDBPyConnection, samples: Collection[Sample]) -> None:
        """Look samples up in a catalog of `open_figures`."""
        columns = score_columns(catalog)
        self._columns = [
            *(name for name in BEST_FIRST if name in columns),
            *(name for name in columns if name not in BEST_FIRST),
        ]
        self._most_bytes = PICTURES_BYTES // max(1, len(set(samples)))
        wanted = sorted(set(samples))
        asked = [[sample[place] for sample in wanted] for place in (0, 1)]
        shown = "(SELECT unnest(?::VARCHAR[]) AS shard, unnest(?::VARCHAR[]) AS key)"
        self._texts = _grouped(
            rows(
                catalog,
                f"SELECT shard, key, pair_id, source, candidate, keep, reason, {', '.join(columns)},"
                f" text[:{LONGEST_TEXT + 1}] AS text, length(text) AS length FROM judged"
                f" JOIN (SELECT pair_id, shard, key, text FROM captions SEMI JOIN {shown} USING (shard, key))"
                " USING (pair_id)",
                *asked,
            )
        )
        self._places = _grouped(
            rows(
                catalog,
                "SELECT shard, key, path, image_offset, image_size, image_sha256, width, height FROM"
                f" (SELECT * FROM samples SEMI JOIN {shown} USING (shard, key) WHERE status = 'ok')"
                " JOIN (SELECT shard, path FROM shards) USING (shard)",
                *asked,
            )
        )
        self._pictures: dict[Sample, Picture] = {}

    def of(self, sample: Sample, pair: str | None = None) -> Card:
        """Return a sample as a card, web texts first; `pair` is the one that it is shown for."""
        every = sorted(
            self._texts.get(sample, []),
            key=lambda row: (
                row["pair_id"] != pair,
                _SOURCES.index(row["source"]),
                row["keep"] is False,
                row["candidate"],
            ),
        )
        chosen = sorted(every[:MOST_TEXTS], key=lambda row: _SOURCES.index(row["source"]))
        texts = [self._text(row, is_meant=row["pair_id"] == pair) for row in chosen]
        return Card(*sample, self._picture(sample), texts, more=len(every) - len(texts))

    def _text(self, row: dict[str, Any], *, is_meant: bool) -> Text:
        scores = [
            (Measure.of_column(name).words, row[name]) for name in self._columns if row[name] is not None
        ]
        return Text(
            row["source"], row["text"], row["length"], row["keep"], row["reason"], scores, is_meant=is_meant
        )

    def _picture(self, sample: Sample) -> Picture:
        if sample not in self._pictures:
            row = self._places[sample][0]
            place = Place(
                Path(row["path"]),
                row["image_offset"],
                row["image_size"],
                row["image_sha256"],
                row["width"],
                row["height"],
            )
            self._pictures[sample] = picture(place, self._most_bytes)
        return self._pictures[sample]


def _grouped(found: Iterable[dict[str, Any]]) -> dict[Sample, list[dict[str, Any]]]:
    groups: dict[Sample, list[dict[str, Any]]] = {}
    for row in found:
        groups.setdefault((row["shard"], row["key"]), []).append(row)
    return groups
