"""The one data loop: a shard's samples are read and decoded once, recaptioned, scored and committed.

Batches are cut inside a shard, in its order, so that rows do not depend on who worked on what.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json
from capfilt.data.images import RefusedImage, decode
from capfilt.data.sources import read_shard
from capfilt.errors import CapfiltError
from capfilt.provenance.commit import commit_shard
from capfilt.provenance.rundir import RunDir
from capfilt.records import Caption, Sample, Scores, Shard, Source, Status, pair_id
from capfilt.stages.recaption import recaption
from capfilt.stages.score import score

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from PIL.Image import Image

    from capfilt.models.captioner import MedCaptioner
    from capfilt.models.filter import MedFilter
    from capfilt.settings import Input, Matching, SettledDecoding
    from capfilt.stages.context import Tell

Row = dict[str, Any]


@dataclass(frozen=True)
class ShardJob:
    """One shard and everything its rows depend on, as plain values that can cross processes."""

    run: Path
    shard: Shard
    fingerprint: str
    captioner: Path | None
    filter: Path | None
    decoding: SettledDecoding
    matching: Matching
    candidates: int
    seed: int
    input: Input
    batch_size: int
    precision: str
    round_number: int = 1


@dataclass(frozen=True)
class ShardCounts:
    """What came of a shard."""

    samples: int
    images: int


@dataclass(frozen=True)
class Decoded:
    """A sample and its picture; None where the sample was refused."""

    number: int
    """Place in the shard as the reader counts, from 1: what goes in must come out as a row."""
    sample: Sample
    picture: Image | None


@dataclass
class _Rows:
    """What a shard's rows are gathered in until they are committed."""

    samples: list[Row] = field(default_factory=list)
    captions: list[Row] = field(default_factory=list)
    scores: list[Row] = field(default_factory=list)


def run_shard(job: ShardJob, device: str, tell: Tell) -> ShardCounts:
    """Do one shard and commit its rows."""
    captioner = load_captioner(job.captioner, device, job.precision) if job.captioner else None
    filter_ = load_filter(job.filter, device, job.precision, job.matching) if job.filter else None
    rows = _Rows()
    samples_in = images = 0
    for group in _batches(_decoded(job.shard, job.input), job.batch_size):
        rows.samples += [_sample_row(decoded, job.round_number) for decoded in group]
        usable = [decoded for decoded in group if decoded.picture is not None]
        if usable:
            _do_batch(job, usable, captioner, filter_, rows)
        images += len(usable)
        last = group[-1]
        samples_in = last.number
        tell(samples_in, min(job.shard.size, (last.sample.image_offset or 0) + len(last.sample.image or b"")))
    tell(samples_in, job.shard.size)
    commit_shard(
        RunDir(job.run),
        job.shard,
        fingerprint=job.fingerprint,
        samples=rows.samples,
        captions=rows.captions,
        scores=rows.scores,
        samples_in=samples_in,
    )
    return ShardCounts(samples_in, images)


def _do_batch(
    job: ShardJob,
    usable: list[Decoded],
    captioner: MedCaptioner | None,
    filter_: MedFilter | None,
    rows: _Rows,
) -> None:
    """Recaption and score pictures side by side, and add their rows."""
    from capfilt.models.protocols import ImageBatch

    samples = [decoded.sample for decoded in usable]
    pictures = [decoded.picture for decoded in usable if decoded.picture is not None]
    batch = ImageBatch(pictures, [sample.image_sha256 or "" for sample in samples])
    texts = [[Caption(s.web_text, Source.WEB)] if s.web_text is not None else [] for s in samples]
    if captioner is not None:
        written = recaption(captioner, batch, job.decoding, seed=job.seed, candidates=job.candidates)
        texts = [web + synthetic for web, synthetic in zip(texts, written, strict=True)]
    writer = captioner.digest if captioner is not None else None
    for sample, mine in zip(samples, texts, strict=True):
        rows.captions += [_caption_row(sample, caption, job, writer) for caption in mine]
    if filter_ is not None:
        for sample, mine, values in zip(samples, texts, score(filter_, batch, texts), strict=True):
            rows.scores += _score_rows(sample, mine, values, job.round_number, filter_.digest)


@lru_cache(maxsize=1)
def load_captioner(path: Path, device: str, precision: str) -> MedCaptioner:
    """Load a captioner; a worker keeps it from shard to shard."""
    import torch

    from capfilt.models.bundle import load_bundle
    from capfilt.models.captioner import MedCaptioner

    return MedCaptioner(load_bundle(path, needs="lm"), torch.device(device), precision)


@lru_cache(maxsize=1)
def load_filter(path: Path, device: str, precision: str, matching: Matching) -> MedFilter:
    """Load a filter; a worker keeps it from shard to shard."""
    import torch

    from capfilt.models.bundle import load_bundle
    from capfilt.models.filter import MedFilter

    bundle = load_bundle(path)
    if not {"itc", "itm"} & set(bundle.card.objectives):
        raise CapfiltError(
            f"{path} cannot score pairs: it is a {bundle.card.kind} trained for "
            f"{', '.join(bundle.card.objectives)}",
            fix="give a bundle trained for itc or itm; `capfilt train filter CLEAN --out BUNDLE` makes one",
        )
    return MedFilter(bundle, torch.device(device), precision, matching)


def _decoded(shard: Shard, limits: Input) -> Iterator[Decoded]:
    for number, sample in enumerate(read_shard(shard, limits), start=1):
        if sample.status is not Status.OK or sample.image is None:
            yield Decoded(number, sample, None)
            continue
        try:
            yield Decoded(number, sample, decode(sample.image, max_pixels=limits.max_pixels))
        except RefusedImage as error:
            refused = replace(sample, status=Status.REFUSED, reason=error.reason)
            yield Decoded(number, refused, None)


def _batches(decoded: Iterator[Decoded], batch_size: int) -> Iterator[list[Decoded]]:
    """Cut samples into groups of `batch_size` pictures; refused samples go along and fill no place."""
    group: list[Decoded] = []
    pictures = 0
    for item in decoded:
        group.append(item)
        pictures += item.picture is not None
        if pictures == batch_size or len(group) == 8 * batch_size:
            yield group
            group, pictures = [], 0
    if group:
        yield group


def _sample_row(decoded: Decoded, round_number: int) -> Row:
    sample, picture = decoded.sample, decoded.picture
    url = sample.metadata.get("url")
    return {
        "shard": sample.shard,
        "key": sample.key,
        "image_sha256": sample.image_sha256,
        "url": url if isinstance(url, str) else None,
        "web_text": sample.web_text,
        "width": picture.width if picture is not None else None,
        "height": picture.height if picture is not None else None,
        "status": sample.status.value,
        "reason": sample.reason.value if sample.reason is not None else None,
        "member": sample.member,
        "image_offset": sample.image_offset,
        "image_size": len(sample.image) if sample.image is not None else None,
        "metadata": canonical_json(sample.metadata),
        "round": round_number,
    }


def _caption_row(sample: Sample, caption: Caption, job: ShardJob, captioner: str | None) -> Row:
    is_synthetic = caption.source is Source.SYNTHETIC
    return {
        "pair_id": _pair_id(sample, caption, job.round_number),
        "shard": sample.shard,
        "key": sample.key,
        "image_sha256": sample.image_sha256,
        "source": caption.source.value,
        "candidate": caption.candidate,
        "text": caption.text,
        "captioner": captioner if is_synthetic else None,
        "decoding": canonical_json(job.decoding.model_dump(mode="json")) if is_synthetic else None,
        "prompt": job.decoding.prompt if is_synthetic else None,
        "seed": job.seed if is_synthetic else None,
        "round": job.round_number,
    }


def _score_rows(
    sample: Sample, captions: list[Caption], values: list[Scores], round_number: int, digest: str
) -> list[Row]:
    return [
        {"pair_id": _pair_id(sample, caption, round_number), "filter": digest, "score": name, "value": value}
        for caption, scores in zip(captions, values, strict=True)
        for name, value in (("itc", scores.itc), ("itm", scores.itm))
        if value is not None
    ]


def _pair_id(sample: Sample, caption: Caption, round_number: int) -> str:
    return pair_id(
        shard=sample.shard,
        key=sample.key,
        source=caption.source,
        candidate=caption.candidate,
        round_number=round_number,
    )
