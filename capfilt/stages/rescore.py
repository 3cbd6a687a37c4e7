"""Score an existing run's captions with a further filter: rows are added, none is rewritten."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.canonical import digest_of
from capfilt.data.images import decode
from capfilt.data.sources import read_bytes
from capfilt.errors import CapfiltError
from capfilt.models.cards import read_card
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.commit import commit_scores, committed, manifests
from capfilt.provenance.rundir import RunDir, lock, next_start, recorded_facts
from capfilt.records import Shard
from capfilt.stages.bootstrap import recorded, resolve_devices
from capfilt.stages.context import Context, Engine, Outcome, Progress, Tell
from capfilt.stages.lineage import record_bundle
from capfilt.stages.shard import ShardCounts, load_filter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capfilt.models.protocols import ImageBatch
    from capfilt.settings import Bootstrap, Matching


@dataclass(frozen=True)
class ScoringJob:
    """One committed shard and the filter that shall score it."""

    run: Path
    shard: Shard
    filter: Path
    fingerprint: str
    max_pixels: int
    batch_size: int
    precision: str
    matching: Matching


@dataclass(frozen=True)
class Stored:
    """A picture of a committed shard and its captions, as the record has them."""

    sha256: str
    offset: int
    size: int
    pairs: list[tuple[str, str]]
    """(pair_id, text)"""


def score_run(run: RunDir, filter_path: Path, settings: Bootstrap, engine: Engine, progress: Progress) -> str:
    """Score every caption of a run with another filter and return the filter's digest."""
    digest = read_card(filter_path).weights
    with lock(run):
        devices, precision = resolve_devices(settings.compute, engine)
        context = Context(run, settings, [], [], engine, progress, devices, precision, start=next_start(run))
        stage = ScoreAgain(filter_path)
        with recorded(stage, context) as ended:
            ended.append(stage.run(context))
    return digest


@dataclass(frozen=True)
class ScoreAgain:
    """Stage: one pass over the committed shards with a further filter."""

    filter: Path
    name: str = "score"

    def settings(self, context: Context) -> dict[str, Any]:
        """Return what the scores depend on."""
        card = read_card(self.filter)
        return {
            "filter": card.weights,
            "matching": card.conventions.matching(context.settings.filter).model_dump(mode="json"),
            "device": context.devices[0].partition(":")[0],
            "precision": context.precision,
            "batch_size": context.settings.compute.batch_size,
            "threads": context.settings.compute.threads,
        }

    def run(self, context: Context) -> Outcome:
        """Score what this filter has not scored yet."""
        run, facts = context.run, self.settings(context)
        record_bundle(run, self.filter)
        max_pixels = recorded_facts(run)["input"]["max_pixels"]
        jobs = []
        for manifest in manifests(run):
            if manifest["kind"] != "shard" or facts["filter"] in manifest["filters"]:
                continue
            shard = Shard(
                manifest["shard"],
                Path(manifest["path"]),
                manifest["ordinal"],
                manifest["bytes"],
                manifest["digest"],
            )
            fingerprint = digest_of({**facts, "rows": manifest["fingerprint"]})
            if not committed(run, shard, fingerprint, filter_digest=facts["filter"]):
                jobs.append(
                    ScoringJob(
                        run.path,
                        shard,
                        self.filter,
                        fingerprint,
                        max_pixels,
                        facts["batch_size"],
                        context.precision,
                        context.settings.filter,
                    )
                )
        context.progress.begin("score", "images")
        done: dict[int, int] = {}

        def hear(number: int, images: int, _: int) -> None:
            done[number] = images
            context.progress.update("score", sum(done.values()))

        images = 0
        for _, counts in context.engine.run(
            score_shard,
            jobs,
            devices=context.devices[: max(1, len(jobs))],
            threads=facts["threads"],
            hear=hear,
        ):
            images += counts.images
        context.progress.end("score")
        return Outcome(detail=f"{images} images by filter {facts['filter'][:12]}", count=images)


def score_shard(job: ScoringJob, device: str, tell: Tell) -> ShardCounts:
    """Score one committed shard's captions and commit the scores."""
    model = load_filter(job.filter, device, job.precision, job.matching)
    scores: list[dict[str, Any]] = []
    images = 0
    for stored, batch in _batches(job):
        scored = model.score(batch, [[text for _, text in one.pairs] for one in stored])
        for one, values in zip(stored, scored, strict=True):
            for (pair, _), value in zip(one.pairs, values, strict=True):
                for name, number in (("itc", value.itc), ("itm", value.itm)):
                    if number is not None:
                        scores.append(
                            {"pair_id": pair, "filter": model.digest, "score": name, "value": number}
                        )
        images += len(stored)
        tell(images, images)
    commit_scores(
        RunDir(job.run), job.shard, filter_digest=model.digest, fingerprint=job.fingerprint, scores=scores
    )
    return ShardCounts(images, images)


def _batches(job: ScoringJob) -> Iterator[tuple[list[Stored], ImageBatch]]:
    """Yield pictures and captions of a shard in its order, as many at a time as asked."""
    from capfilt.models.protocols import ImageBatch

    stored = _stored(job)
    for start in range(0, len(stored), job.batch_size):
        some = stored[start : start + job.batch_size]
        pictures = []
        for one in some:
            data = read_bytes(job.shard.path, one.offset, one.size)
            if hashlib.sha256(data).hexdigest() != one.sha256:
                raise CapfiltError(
                    f"{job.shard.path} changed since it was committed: another picture stands at byte "
                    f"{one.offset}",
                    fix="restore the shard, or start a new run on the changed input",
                )
            pictures.append(decode(data, max_pixels=job.max_pixels))
        yield some, ImageBatch(pictures, [one.sha256 for one in some])


def _stored(job: ScoringJob) -> list[Stored]:
    """Return the pictures of a shard that have captions, in its order."""
    with open_catalog(RunDir(job.run)) as catalog:
        rows = catalog.execute(
            "SELECT s.image_sha256, s.image_offset, s.image_size, c.pair_id, c.text FROM samples AS s "
            "JOIN captions AS c ON c.shard = s.shard AND c.key = s.key "
            "WHERE s.shard = ? AND s.status = 'ok' ORDER BY s.image_offset, c.source DESC, c.candidate",
            [job.shard.name],
        ).fetchall()
    stored: list[Stored] = []
    for (sha256, offset, size), group in groupby(rows, key=lambda row: row[:3]):
        stored.append(Stored(sha256, offset, size, [(row[3], row[4]) for row in group]))
    return stored
