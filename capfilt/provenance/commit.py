"""Commit a shard's rows, all or nothing.

The data files are written first and the manifest last: what has no manifest does not exist. So a process
killed at any moment loses at most the shard in hand, two processes can commit different shards at once,
and a reader takes its files from the manifests and never from a listing.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json
from capfilt.errors import CapfiltError
from capfilt.files import flush_folder, remove_temporaries, whole_file, write_whole
from capfilt.provenance.rundir import RunDir, json_files, read_json, safe_name, shard_file
from capfilt.provenance.schema import CALIBRATION, CAPTIONS, METRICS, MODELS, SAMPLES, SCORES, Table
from capfilt.records import Shard, Source, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import pyarrow as pa

Row = dict[str, Any]


def commit_shard(
    run: RunDir,
    shard: Shard,
    *,
    fingerprint: str,
    samples: list[Row],
    captions: list[Row],
    scores: list[Row],
    samples_in: int,
) -> dict[str, Any]:
    """Write a shard's rows and then its manifest, which is returned.

    Rows name every column of their table in schema.py. `samples_in` is what the reader counted. Rows
    that contradict one another are a defect of ours: RuntimeError, and nothing is committed.
    """
    _check_rows(shard, samples, captions, samples_in)
    _check_scores(shard, scores, {row["pair_id"] for row in captions})
    name = f"{shard_file(shard)}.parquet"
    tables = {
        run.samples / name: arrow_table(SAMPLES, samples),
        run.captions / name: arrow_table(CAPTIONS, captions),
        run.scores / name: arrow_table(SCORES, scores),
    }
    _forget(run, shard)
    files = [_write_table(run, path, table) for path, table in tables.items()]
    manifest = {
        "kind": "shard",
        "shard": shard.name,
        "ordinal": shard.ordinal,
        "path": str(shard.path),
        "bytes": shard.size,
        "digest": shard.digest,
        "fingerprint": fingerprint,
        "samples_in": samples_in,
        "rows": {"samples": len(samples), "captions": len(captions), "scores": len(scores)},
        "statuses": _counts(row["status"] for row in samples),
        "reasons": _counts(row["reason"] for row in samples if row["reason"] is not None),
        "sources": _counts(row["source"] for row in captions),
        "unfinished": _counts(row["unfinished"] for row in captions if row["unfinished"] is not None),
        "filters": sorted({row["filter"] for row in scores}),
        "files": files,
    }
    write_whole(_manifest_path(run, shard), canonical_json(manifest))
    return manifest


def commit_scores(
    run: RunDir,
    shard: Shard,
    *,
    filter_digest: str,
    fingerprint: str,
    scores: list[Row],
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a further filter's scores of a committed shard as a file and a manifest of their own.

    `facts` is what the scores of every shard depend on, as plain values (see `scored_by`). No other file is
    rewritten. RuntimeError where the shard is not committed, where it was scored by this filter when it was
    committed, or where a score has no caption.
    """
    base = _manifest(run, shard)
    if base is None or not _whole(run, base):
        raise RuntimeError(f"shard {shard.name} is not committed, so nothing can be added to it")
    if filter_digest in base["filters"]:
        raise RuntimeError(f"shard {shard.name} already holds the scores of filter {filter_digest}")
    if any(row["filter"] != filter_digest for row in scores):
        raise RuntimeError(f"scores of another filter than {filter_digest} in shard {shard.name}")
    _check_scores(shard, scores, _pair_ids(run, shard))
    path = _manifest_path(run, shard, filter_digest)
    path.unlink(missing_ok=True)
    data = run.scores / f"{shard_file(shard)}.{safe_name(filter_digest)}.parquet"
    manifest = {
        "kind": "scores",
        "shard": shard.name,
        "ordinal": shard.ordinal,
        "fingerprint": fingerprint,
        "facts": dict(facts or {}),
        "rows": {"scores": len(scores)},
        "filters": [filter_digest],
        "files": [_write_table(run, data, arrow_table(SCORES, scores))],
    }
    write_whole(path, canonical_json(manifest))
    return manifest


def committed(run: RunDir, shard: Shard, fingerprint: str, *, filter_digest: str | None = None) -> bool:
    """Return whether the shard's rows of this fingerprint are there, or a further filter's scores of it.

    Rows of another fingerprint, and files that are gone or have another size, do not count.
    """
    manifest = _manifest(run, shard, filter_digest)
    if manifest is None or manifest["fingerprint"] != fingerprint or manifest["shard"] != shard.name:
        return False
    return _whole(run, manifest)


def manifests(run: RunDir) -> list[dict[str, Any]]:
    """Return what is committed, by shard, a shard's own manifest before those of further filters."""
    mend = "remove the file and give the run's command again: the shard is done anew"
    found = [read_json(path, mend=mend) for path in json_files(run.manifests)]
    return sorted(found, key=lambda m: (m["ordinal"], m["kind"] != "shard", m["filters"]))


def unfinished_captions(run: RunDir) -> dict[str, int]:
    """Return how many committed captions their writer did not end, by reason."""
    counts: Counter[str] = Counter()
    for manifest in manifests(run):
        counts.update(manifest.get("unfinished", {}))
    return dict(counts)


def scored_by(committed: Iterable[Mapping[str, Any]], digest: str) -> list[dict[str, Any]]:
    """Return what a further filter's scores depend on, each of it once: several where shards differ.

    `committed` are manifests. A scoring that was killed leaves shards of this start beside those of an older
    one. Nothing is returned of the filter that scored a run when it was made: all of a run is made alike.
    """
    found: list[dict[str, Any]] = []
    for manifest in committed:
        facts = manifest.get("facts")
        if facts and manifest["kind"] == "scores" and digest in manifest["filters"] and facts not in found:
            found.append(facts)
    return found


def missing_files(run: RunDir, manifest: Mapping[str, Any]) -> list[Path]:
    """Return the files that a manifest names and that are gone or have another size."""
    paths = {run.provenance / file["path"]: file["size"] for file in manifest["files"]}
    return [path for path, size in paths.items() if not path.is_file() or path.stat().st_size != size]


# -- rows that are no shard's


def record_model(run: RunDir, row: Row) -> None:
    """Write a row of `models`, replacing that of the same weights."""
    _check_columns(MODELS, [row])
    write_whole(run.models / f"{safe_name(row['model'])}.json", canonical_json(row))


def record_calibration(run: RunDir, digest: str, rows: list[Row]) -> None:
    """Write a filter's rows of `calibration`, replacing those it had."""
    _check_columns(CALIBRATION, rows)
    write_whole(run.calibration / f"{safe_name(digest)}.json", canonical_json(rows))


def record_metrics(run: RunDir, name: str, rows: list[Row]) -> None:
    """Write the rows of `metrics` of one training, replacing those it had."""
    _write_table(run, run.metrics / f"{safe_name(name)}.parquet", arrow_table(METRICS, rows))


# -- what a commit refuses


def _check_rows(shard: Shard, samples: list[Row], captions: list[Row], samples_in: int) -> None:
    statuses = Counter(row["status"] for row in samples)
    ok, refused = statuses[Status.OK], statuses[Status.REFUSED]
    if samples_in != ok + refused or len(samples) != samples_in:
        raise RuntimeError(
            f"{shard.name}: {samples_in} samples in, but of {len(samples)} rows {ok} ok, {refused} refused"
        )
    usable = {row["key"] for row in samples if row["status"] == Status.OK}
    if len(usable) != ok:
        raise RuntimeError(f"shard {shard.name}: a key of two usable samples")
    if any(row["shard"] != shard.name for row in (*samples, *captions)):
        raise RuntimeError(f"shard {shard.name}: a row of another shard")
    if len({row["pair_id"] for row in captions}) != len(captions):
        raise RuntimeError(f"shard {shard.name}: a pair_id of two captions")
    if orphans := [row["key"] for row in captions if row["key"] not in usable]:
        raise RuntimeError(f"shard {shard.name}: a caption of {orphans[0]!r}, which is no usable sample")


def _check_scores(shard: Shard, scores: list[Row], pair_ids: set[str]) -> None:
    if orphans := [row["pair_id"] for row in scores if row["pair_id"] not in pair_ids]:
        raise RuntimeError(f"shard {shard.name}: a score of pair {orphans[0]}, which has no caption")
    if len({(row["pair_id"], row["filter"], row["score"]) for row in scores}) != len(scores):
        raise RuntimeError(f"shard {shard.name}: a pair was scored twice by one filter")
    if not all(math.isfinite(row["value"]) for row in scores):
        raise RuntimeError(f"shard {shard.name}: a score that is not a finite number")


def _check_columns(table: Table, rows: list[Row]) -> None:
    names = set(table.names())
    for row in rows:
        if wrong := names ^ row.keys():
            raise RuntimeError(f"a row of {table.name} lacks or does not know: {', '.join(sorted(wrong))}")


# -- files


def arrow_table(table: Table, rows: list[Row]) -> pa.Table:
    """Return rows as an Arrow table; text that UTF-8 cannot say is escaped rather than refused."""
    import pyarrow as pa

    _check_columns(table, rows)
    schema = table.arrow()
    columns = []
    for field in schema:
        values = [row[field.name] for row in rows]
        if pa.types.is_string(field.type):
            values = [None if value is None else _encodable(str(value)) for value in values]
        columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _write_table(run: RunDir, path: Path, table: pa.Table) -> dict[str, Any]:
    """Write a Parquet file, whole; the same rows give the same bytes. Returns its path, size and sha256."""
    import pyarrow.parquet as pq

    remove_temporaries(path)
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=3)
        data = hashlib.sha256()
        with temporary.open("rb") as file:
            while block := file.read(1 << 20):
                data.update(block)
        size = temporary.stat().st_size
    return {"path": path.relative_to(run.provenance).as_posix(), "size": size, "sha256": data.hexdigest()}


def _forget(run: RunDir, shard: Shard) -> None:
    """Remove the shard's manifests before its files are replaced, those of further filters too.

    Old manifests must not name new files, and scores of a further filter are scores of the old captions.
    """
    stem = shard_file(shard)
    stale = [path for path in json_files(run.manifests) if path.name.startswith(f"{shard.ordinal:06d}-")]
    for path in stale:
        path.unlink(missing_ok=True)
    if stale:
        flush_folder(run.manifests)
    remove_temporaries(run.manifests / f"{stem}.json")


def _manifest_path(run: RunDir, shard: Shard, filter_digest: str | None = None) -> Path:
    further = "" if filter_digest is None else f".{safe_name(filter_digest)}"
    return run.manifests / f"{shard_file(shard)}{further}.json"


def _manifest(run: RunDir, shard: Shard, filter_digest: str | None = None) -> dict[str, Any] | None:
    path = _manifest_path(run, shard, filter_digest)
    try:
        manifest: dict[str, Any] = read_json(path, mend="remove it")
    except (FileNotFoundError, CapfiltError):
        return None
    return manifest


def _whole(run: RunDir, manifest: Mapping[str, Any]) -> bool:
    return not missing_files(run, manifest)


def _pair_ids(run: RunDir, shard: Shard) -> set[str]:
    import pyarrow.parquet as pq

    table = pq.read_table(run.captions / f"{shard_file(shard)}.parquet", columns=["pair_id"])
    return set(table.column("pair_id").to_pylist())


def _counts(values: Iterable[Any]) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items())}


def synthetic_captions(manifest: Mapping[str, Any]) -> int:
    """Return how many captions of a shard the captioner wrote."""
    return int(manifest["sources"].get(Source.SYNTHETIC, 0))
