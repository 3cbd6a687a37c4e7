"""Score an existing run's captions with a further filter: rows are added, none is rewritten."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.canonical import digest_of
from capfilt.data.images import decode
from capfilt.data.judged import judged_bytes
from capfilt.errors import CapfiltError
from capfilt.models.cards import CARD_FILE, identity, read_card
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.commit import commit_scores, committed, manifests, scored_by
from capfilt.provenance.rundir import RunDir, json_files, lock, next_start, recorded_facts, stage_rows
from capfilt.records import Shard
from capfilt.stages.bootstrap import recorded, resolve_devices, take_into_run
from capfilt.stages.context import Context, Engine, Outcome, Progress, Tell
from capfilt.stages.given import find_given, is_recorded, read_given, wanted
from capfilt.stages.lineage import record_bundle
from capfilt.stages.shard import ShardCounts, load_filter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
    compiled: bool
    facts: Mapping[str, Any]
    """What the scores of every shard depend on."""


@dataclass(frozen=True)
class Stored:
    """A picture of a committed shard and its captions, as the record has them."""

    sha256: str
    offset: int
    size: int
    pairs: list[tuple[str, str]]
    """(pair_id, text)"""


def score_run(run: RunDir, source: Path, settings: Bootstrap, engine: Engine, progress: Progress) -> str:
    """Score every caption of a run with another filter, whatever its origin, and return its digest."""
    with lock(run):
        devices, precision = resolve_devices(settings.compute, engine)
        bundle = _further_filter(run, source, settings, engine, progress)
        context = Context(run, settings, [], [], engine, progress, devices, precision, start=next_start(run))
        stage = ScoreAgain(bundle)
        with recorded(stage, context) as ended:
            ended.append(stage.run(context))
    return read_card(bundle).digest


def _further_filter(
    run: RunDir, source: Path, settings: Bootstrap, engine: Engine, progress: Progress
) -> Path:
    """Return the run's bundle of a filter that is given: one that it has, or a copy under a new name."""
    asked = replace(wanted("filter", source, settings), scores=())
    taken = {file.stem: read_given(file) for file in json_files(run.given) if file.stem.startswith("filter")}
    before = next((one for one in taken.values() if one is not None and is_recorded(asked, one)), None)
    given = find_given(asked, before, engine)
    for name in ("filter", *taken):
        bundle = run.model(name)
        if (bundle / CARD_FILE).exists() and identity(read_card(bundle)) == given.identity:
            return bundle
    name = f"filter-{given.identity[:12]}"
    take_into_run(run, name, given, settings, engine, progress)
    return run.model(name)


@dataclass(frozen=True)
class ScoreAgain:
    """Stage: one pass over the committed shards with a further filter."""

    filter: Path
    name: str = "score"

    def settings(self, context: Context) -> dict[str, Any]:
        """Return what the scores depend on."""
        card = read_card(self.filter)
        return {
            "filter": card.digest,
            "matching": card.matching(context.settings.filter),
            "device": context.devices[0].partition(":")[0],
            "precision": context.precision,
            "compile": context.settings.compute.compile,
            "batch_size": context.settings.compute.images_at_once(context.devices[0]),
            "threads": context.settings.compute.threads,
        }

    def run(self, context: Context) -> Outcome:
        """Score what this filter has not scored yet."""
        run, facts = context.run, self.settings(context)
        _check_reading(run, facts)
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
                        context.settings.compute.compile,
                        facts,
                    )
                )
        if jobs:
            context.say_precision()
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


def _check_reading(run: RunDir, facts: dict[str, Any]) -> None:
    """Refuse to have a filter that scored this run, or some of its shards, read texts in another way.

    Scores of two readings would stand in one column: those of the run's own filter stay, and those of a
    further one are replaced shard by shard. What a refused start asked for has scored nothing, so that
    manifests are believed here, and of the run's own pass its settings, which are the same every time.
    """
    passes = [json.loads(row["settings"]) for row in stage_rows(run)]
    before = [own for own in passes if "candidates" in own and own["filter"] == facts["filter"]]
    for own in (*before, *scored_by(manifests(run), facts["filter"])):
        if own["matching"] == facts["matching"]:
            continue
        old, new = own["matching"], facts["matching"]
        read = {name: old.get(name) for name in sorted({*old, *new}) if old.get(name) != new.get(name)}
        told = [f"another filter.{n}={v}" if v is not None else f"no filter.{n}" for n, v in read.items()]
        raise CapfiltError(
            f"filter {facts['filter'][:12]} has scored this run, and with {', '.join(told)}",
            fix="give the same again, or another --filter; or score the shards in a new run: "
            "capfilt score WEB --out RUN",
        )


def score_shard(job: ScoringJob, device: str, tell: Tell) -> ShardCounts:
    """Score one committed shard's captions and commit the scores."""
    model = load_filter(job.filter, device, job.precision, job.matching, job.compiled)
    scores: list[dict[str, Any]] = []
    images = 0
    for stored, batch in _batches(job):
        scored = model.score(batch, [[text for _, text in one.pairs] for one in stored])
        for one, values in zip(stored, scored, strict=True):
            for (pair, _), value in zip(one.pairs, values, strict=True):
                for name, number in value.measured().items():
                    scores.append({"pair_id": pair, "filter": model.digest, "score": name, "value": number})
        images += len(stored)
        tell(images, images)
    commit_scores(
        RunDir(job.run),
        job.shard,
        filter_digest=model.digest,
        fingerprint=job.fingerprint,
        scores=scores,
        facts=job.facts,
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
            data = judged_bytes(job.shard.path, one.offset, one.size, one.sha256)
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
