"""Copy kept pairs into new shards, with a card that says what they are; the same bytes every time.

The only stage that copies pictures. What is written follows from the committed rows and the policy
alone, so an export can be thrown away and made again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json, digest_of
from capfilt.data.judged import judged_bytes
from capfilt.data.writers import ShardWriter, extension_of
from capfilt.errors import CapfiltError
from capfilt.files import whole_folder
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.commit import manifests
from capfilt.provenance.lineage import export_digest
from capfilt.provenance.policy import Policy, newest_policy
from capfilt.records import BEST_FIRST, SCORES, Source
from capfilt.shell import shell_word
from capfilt.stages.context import Outcome
from capfilt.stages.dataset_card import dataset_card
from capfilt.stages.judge import filters_of, loosening_command, mend_command, weak_scores_of
from capfilt.stages.wishes import Filters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import duckdb

    from capfilt.provenance.rundir import RunDir
    from capfilt.settings import Export
    from capfilt.stages.context import Context

MANIFEST_FILE = "manifest.json"
VERDICTS_FILE = "verdicts.parquet"
POLICY_FILE = "policy.json"
CARD_FILE = "README.md"


@dataclass(frozen=True)
class Exported:
    """What an export came to."""

    path: Path
    samples: int
    shards: int
    is_new: bool
    """False when the very same export was there already."""


@dataclass(frozen=True)
class ExportPairs:
    """Stage: write the kept pairs into the run's `export/`."""

    name: str = "export"

    def settings(self, context: Context) -> dict[str, Any]:
        """Return how pairs are written."""
        return context.settings.export.model_dump(mode="json")

    def run(self, context: Context) -> Outcome:
        """Export, or withhold where the policy keeps nothing or reads a score no better than chance."""
        run, export = context.run, context.settings.export
        if (withheld := _withheld(run, _policy(run), export)) is not None:
            return Outcome(
                status="withheld",
                detail=f"{withheld.why}; its verdicts are kept, and nothing was exported",
                next_command=withheld.command,
            )
        made = export_run(run, run.export, export)
        return Outcome(detail=f"{made.samples} samples in {made.shards} shards", count=made.samples)


def export_run(run: RunDir, to: Path, export: Export, *, overwrite: bool = False) -> Exported:
    """Write the run's kept pairs to a folder, all or nothing.

    A folder that holds the same export is left as it is; one that holds another export is replaced; one
    that holds anything else is refused, unless `overwrite` says so.
    """
    policy = _policy(run)
    if (withheld := _withheld(run, policy, export)) is not None:
        ways = dict.fromkeys((withheld.command, withheld.insisting))
        raise CapfiltError(
            f"nothing is exported: {withheld.why}", fix=" or ".join(f"`{way}`" for way in ways if way)
        )
    with open_catalog(run) as catalog:
        facts = _facts(run, policy, export)
        if (
            (old := _old_manifest(to, overwrite=overwrite)) is not None
            and old["facts"] == facts
            and _whole(to, old)
        ):
            return Exported(to, old["samples"], len(old["shards"]), is_new=False)
        with whole_folder(to) as folder:
            counts = _write_shards(catalog, folder, policy, export)
            _write_verdicts(catalog, folder, policy)
            (folder / POLICY_FILE).write_text(canonical_json(facts["policy"]) + "\n", encoding="utf-8")
            card = dataset_card(catalog, policy, export, counts.texts, counts.licences, _weak(run, policy))
            (folder / CARD_FILE).write_text(card, encoding="utf-8")
            manifest = {
                "facts": facts,
                "digest": export_digest({"shards": counts.shards}),
                "samples": counts.samples,
                "shards": counts.shards,
                "files": {
                    name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
                    for name in (VERDICTS_FILE, POLICY_FILE, CARD_FILE)
                },
            }
            text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)
            (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
    return Exported(to, counts.samples, len(counts.shards), is_new=True)


@dataclass
class _Counts:
    samples: int
    texts: Counter[str]
    """Exported texts by source."""
    licences: Counter[str]
    """Licences found in the metadata, by sample."""
    shards: list[dict[str, Any]]


@dataclass(frozen=True)
class _Withheld:
    """Why nothing is exported, what to type instead, and what to type to have it all the same."""

    why: str
    command: str
    insisting: str = ""


def _withheld(run: RunDir, policy: Policy, export: Export) -> _Withheld | None:
    if (weak := _weak(run, policy)) and not export.accept_weak_filter:
        return _Withheld(
            f"the policy reads {' and '.join(weak)}, no better than chance on held-out clean pairs",
            mend_command(run),
            f"capfilt export {shell_word(run.path)} --accept-weak-filter",
        )
    with open_catalog(run) as catalog:
        if catalog.execute("SELECT 1 FROM pairs WHERE keep LIMIT 1").fetchone() is None:
            return _Withheld("the policy keeps no caption", loosening_command(run))
    return None


def _weak(run: RunDir, policy: Policy) -> list[str]:
    return sorted(measure.words for measure in weak_scores_of(run, policy))


def _policy(run: RunDir) -> Policy:
    newest = newest_policy(run)
    if newest is None:
        scored_by = filters_of(run)
        rule = Filters.of(run, scored_by).usual_rule if scored_by else ["--itm", "0.5"]
        raise CapfiltError(
            f"{run.path} has no policy yet: nobody decided which pairs are kept",
            fix=f"decide first, e.g. capfilt judge {shell_word(run.path)} {' '.join(rule)}",
        )
    return newest[1]


def _facts(run: RunDir, policy: Policy, export: Export) -> dict[str, Any]:
    """Return everything the bytes of an export depend on."""
    # Scores of a further filter are committed apart from the shard's rows, and count where it judges.
    judges = {policy.filter, *policy.further_filters}
    rows = [
        [manifest["kind"], manifest["shard"], manifest["fingerprint"]]
        for manifest in manifests(run)
        if manifest["kind"] == "shard" or judges.intersection(manifest["filters"])
    ]
    return {
        "format": 1,
        "rows": digest_of(rows),
        "policy": {**policy.record(), "digest": policy.digest, "words": policy.words},
        "export": export.model_dump(mode="json"),
    }


def _old_manifest(to: Path, *, overwrite: bool) -> dict[str, Any] | None:
    """Return the manifest of an export that stands there; a folder of other things is refused."""
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return None
    try:
        manifest: dict[str, Any] = json.loads((to / MANIFEST_FILE).read_text(encoding="utf-8"))
        if "facts" in manifest and "shards" in manifest:
            return manifest
    except (OSError, ValueError):
        pass
    if overwrite and to.is_dir():
        return None
    raise CapfiltError(
        f"{to} is there and is no export of capfilt",
        fix="give --to a new folder, or --overwrite to replace this one",
    )


def _whole(to: Path, manifest: dict[str, Any]) -> bool:
    sizes = {row["name"]: row["bytes"] for row in manifest["shards"]}
    return all(
        (to / name).is_file() and (to / name).stat().st_size == size for name, size in sizes.items()
    ) and all((to / name).is_file() for name in manifest["files"])


KEPT = """
    SELECT p.shard, p.key, s.image_sha256, s.image_offset, s.image_size, s.metadata, f.path,
        p.pair_id, p.source, p.candidate, p.text, {scores},
        p.captioner, p.filter, p.decoding, p.prompt, p.seed, p.round
    FROM pairs AS p
    JOIN samples AS s ON s.shard = p.shard AND s.key = p.key AND s.status = 'ok'
    JOIN shards AS f ON f.shard = p.shard
    WHERE p.keep AND ($source = 'any' OR p.source = $source)
    ORDER BY p.shard, s.image_offset, p.key,
        coalesce({best}) DESC NULLS LAST,
        p.source DESC, p.candidate
"""
"""Kept pairs by sample, the best text first by the policy's score; the web text where scores are equal."""


def _columns(policy: Policy) -> list[str]:
    """Return the columns of scores that an export shows: the filter's, and what the policy reads beside."""
    return list(dict.fromkeys((*SCORES, *(measure.column for measure in policy.measures))))


def _kept(catalog: duckdb.DuckDBPyConnection, policy: Policy, export: Export) -> Iterator[dict[str, Any]]:
    source = export.texts if export.texts in ("web", "synthetic") else "any"
    ranked = (policy.ranking.sql("best"), *BEST_FIRST)
    sql = KEPT.format(scores=", ".join(_columns(policy)), best=", ".join(ranked))
    result = catalog.execute(sql, {"source": source, **policy.ranking.parameters("best")})
    names = [column[0] for column in result.description or []]
    while rows := result.fetchmany(1000):
        for row in rows:
            yield dict(zip(names, row, strict=True))


def _write_shards(
    catalog: duckdb.DuckDBPyConnection, folder: Path, policy: Policy, export: Export
) -> _Counts:
    texts: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    samples = 0
    with ShardWriter(folder, samples_per_shard=export.samples_per_shard) as writer:
        # One cursor streams the rows; nothing else is asked of this connection meanwhile.
        for _, group in groupby(
            _kept(catalog, policy, export), key=lambda pair: (pair["shard"], pair["key"])
        ):
            pairs = list(group)
            if all(pairs[0][column] is None for column in _columns(policy)):
                # Nothing was scored: who recaptions without a filter wants the new captions.
                pairs.sort(key=lambda pair: pair["source"] == Source.WEB)
            kept = pairs if export.texts == "all" else pairs[:1]
            first = kept[0]
            place = (first["image_offset"], first["image_size"], first["image_sha256"])
            image = judged_bytes(Path(first["path"]), *place)
            original = json.loads(first["metadata"])
            metadata = _metadata(original, kept, _columns(policy))
            writer.add(image, extension_of(image), first["text"], metadata)
            samples += 1
            texts.update(pair["source"] for pair in kept)
            licences[_licence(original)] += 1
    shards = [
        {"name": shard.name, "samples": shard.samples, "bytes": shard.bytes, "sha256": shard.sha256}
        for shard in writer.shards
    ]
    return _Counts(samples, texts, licences, shards)


def _metadata(original: dict[str, Any], pairs: list[dict[str, Any]], scores: Sequence[str]) -> dict[str, Any]:
    """Return what KEY.json of the export holds: the original's fields, and `capfilt`, the provenance."""
    shown = ("pair_id", "source", "candidate", "text", *scores)
    made = ("captioner", "filter", "decoding", "prompt", "seed", "round")
    first = pairs[0]
    return {
        **original,
        "capfilt": {
            "shard": first["shard"],
            "key": first["key"],
            "image_sha256": first["image_sha256"],
            "captions": [{name: pair[name] for name in (*shown, *made)} for pair in pairs],
        },
    }


def _licence(metadata: dict[str, Any]) -> str:
    for name in ("licence", "license", "LICENSE", "rights"):
        value = metadata.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()[:200]
    return ""


def _write_verdicts(catalog: duckdb.DuckDBPyConnection, folder: Path, policy: Policy) -> None:
    """Write every pair's verdict, dropped ones included, in chunks of a fixed size."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    reader = catalog.sql(
        f"SELECT pair_id, shard, key, source, candidate, filter, {', '.join(_columns(policy))}, keep, reason "
        "FROM pairs ORDER BY pair_id"
    ).to_arrow_reader(65536)
    with pq.ParquetWriter(folder / VERDICTS_FILE, reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_table(pa.Table.from_batches([batch]))
