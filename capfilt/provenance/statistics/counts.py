"""The funnel: from the samples of the input to the pairs of the export, and where the others went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.provenance.lineage import read_export
from capfilt.provenance.policy import newest_policy
from capfilt.provenance.statistics.reading import examples_of, rows

if TYPE_CHECKING:
    import duckdb

    from capfilt.provenance.rundir import RunDir
    from capfilt.provenance.statistics.reading import Example


@dataclass(frozen=True, slots=True)
class Verdict:
    """Texts of one source with one verdict for one reason."""

    source: str
    keep: bool | None
    """None while nothing was judged."""
    reason: str | None
    pairs: int


@dataclass(frozen=True, slots=True)
class Exported:
    """What lies in the run's own export."""

    samples: int
    shards: int
    bytes: int
    policy: str
    """The policy in words that chose it."""
    is_current: bool
    """Whether that is the policy in force now."""


@dataclass(frozen=True, slots=True)
class Funnel:
    """Samples, pictures, texts, kept texts, exported samples."""

    samples: int
    """What the readers found in the shards."""
    recorded: int
    """Rows of samples: as many, or the run is damaged."""
    shards: int
    used: int
    """Samples whose picture was used."""
    refused: int
    refused_by_reason: dict[str, int]
    """Whole samples, the most frequent reason first."""
    texts_missing_by_reason: dict[str, int]
    """Web texts that a used picture lacks."""
    captions: dict[str, int]
    """Texts by source, web first; a source without texts is left out."""
    verdicts: tuple[Verdict, ...]
    """By source, kept ones first, the most frequent reason first."""
    kept: int | None
    """Texts that the policy in force keeps; None while there is none."""
    images_kept: int | None
    """Samples with a kept text; None while there is no policy."""
    exported: Exported | None
    """None while nothing was exported."""


_SAMPLES = """
    SELECT coalesce(sum(samples_in), 0)::BIGINT AS samples, count(*) AS shards,
        (SELECT count(*) FROM samples) AS recorded,
        (SELECT count(*) FROM samples WHERE status = 'ok') AS used,
        (SELECT count(*) FROM samples WHERE status <> 'ok') AS refused
    FROM shards
"""
_REASONS = """
    SELECT reason, count(*) AS samples FROM samples
    WHERE reason IS NOT NULL AND (status = 'ok') = ? GROUP BY reason ORDER BY samples DESC, reason
"""
_VERDICTS = """
    SELECT source, keep, reason, count(*) AS pairs FROM judged GROUP BY ALL
    ORDER BY source DESC, keep DESC, pairs DESC, reason
"""
_IMAGES_KEPT = """
    SELECT count(*) AS images FROM (
        SELECT DISTINCT shard, key FROM captions SEMI JOIN (FROM judged WHERE keep) AS kept USING (pair_id)
    )
"""
# pair_id is a digest already: its order is as good as drawn, and the same at every look.
_LOOKED_AT = """
    SELECT pair_id FROM (
        SELECT keep, source, pair_id, row_number() OVER (PARTITION BY source, keep ORDER BY pair_id) AS place
        FROM judged WHERE keep IS NOT NULL QUALIFY place <= ?
    ) ORDER BY keep DESC, source DESC, place
"""


def funnel(catalog: duckdb.DuckDBPyConnection, run: RunDir) -> Funnel:
    """Return how many samples, texts and kept texts there are, and why the others are not.

    `catalog` is that of `open_figures(run)`.
    """
    [samples] = rows(catalog, _SAMPLES)
    verdicts = tuple(Verdict(**row) for row in rows(catalog, _VERDICTS))
    captions: dict[str, int] = {}
    for row in verdicts:
        captions[row.source] = captions.get(row.source, 0) + row.pairs
    is_judged = newest_policy(run) is not None
    return Funnel(
        **samples,
        refused_by_reason=_reasons(catalog, of_used=False),
        texts_missing_by_reason=_reasons(catalog, of_used=True),
        captions=captions,
        verdicts=verdicts,
        kept=sum(row.pairs for row in verdicts if row.keep) if is_judged else None,
        images_kept=rows(catalog, _IMAGES_KEPT)[0]["images"] if is_judged else None,
        exported=exported(run),
    )


def exported(run: RunDir) -> Exported | None:
    """Return what the run's own export holds; None where there is none, or none that can be read."""
    manifest = read_export(run)
    if manifest is None:
        return None
    policy = manifest.get("facts", {}).get("policy", {})
    newest = newest_policy(run)
    return Exported(
        samples=manifest.get("samples", 0),
        shards=len(manifest["shards"]),
        bytes=sum(shard["bytes"] for shard in manifest["shards"]),
        policy=str(policy.get("words", "")),
        is_current=newest is not None and newest[1].digest == policy.get("digest"),
    )


def examples_by_verdict(catalog: duckdb.DuckDBPyConnection, most: int = 4) -> list[Example]:
    """Return up to `most` pairs of each source that were kept, then as many that were dropped.

    They are the first by pair_id, which is a digest: as good as drawn, and the same at every look.
    """
    return examples_of(catalog, [row["pair_id"] for row in rows(catalog, _LOOKED_AT, most)])


def _reasons(catalog: duckdb.DuckDBPyConnection, *, of_used: bool) -> dict[str, int]:
    return {row["reason"]: row["samples"] for row in rows(catalog, _REASONS, of_used)}
