"""The one data loop: a shard's samples are read and decoded once, recaptioned, scored and committed.

Batches are cut inside a shard, in its order, so that rows do not depend on who worked on what.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from capfilt.data.ahead import in_order
from capfilt.data.images import RefusedImage, decode, to_square
from capfilt.data.sources import read_shard
from capfilt.provenance.commit import commit_shard
from capfilt.provenance.rundir import RunDir
from capfilt.records import Caption, Sample, Shard, Source, Status
from capfilt.stages.recaption import recaption
from capfilt.stages.rows import Row, caption_row, sample_row, score_rows
from capfilt.stages.score import score

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from capfilt.models.protocols import Captioner, Filter
    from capfilt.settings import Compute, Images, Input, Matching, SettledDecoding
    from capfilt.stages.context import Tell


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
    decoders: int = 0
    """Threads that decode ahead; no row depends on them."""
    compiled: bool = False
    round_number: int = 1


@dataclass(frozen=True)
class ShardCounts:
    """What came of a shard."""

    samples: int
    images: int
    said: str = ""
    """What the captioner said of the first picture that it refused."""


@dataclass(frozen=True)
class Decoded:
    """A sample and its picture; None where the sample was refused."""

    number: int
    """Place in the shard as the reader counts, from 1: what goes in must come out as a row."""
    sample: Sample
    picture: Image | None
    squares: dict[Images, NDArray[np.uint8]] = field(default_factory=dict)
    """The picture as models see it."""


@dataclass
class _Rows:
    """What a shard's rows are gathered in until they are committed."""

    samples: list[Row] = field(default_factory=list)
    captions: list[Row] = field(default_factory=list)
    scores: list[Row] = field(default_factory=list)


def run_shard(job: ShardJob, device: str, tell: Tell) -> ShardCounts:
    """Do one shard and commit its rows."""
    from capfilt.models.protocols import seen_as

    captioner, filter_ = models_of(job, device)
    rows, said = _Rows(), list[str]()
    samples_in = images = 0
    decoded = in_order(
        partial(decode_sample, limits=job.input, seen_as=seen_as((captioner, filter_))),
        enumerate(read_shard(job.shard, job.input), start=1),
        threads=job.decoders,
        ahead=2 * job.batch_size,
    )
    for group in cut(decoded, job.batch_size):
        rows.samples += [sample_row(one.sample, one.picture, job.round_number) for one in group]
        usable = [decoded for decoded in group if decoded.picture is not None]
        if usable:
            _do_batch(job, usable, captioner, filter_, rows, said.append)
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
    return ShardCounts(samples_in, images, next(iter(said), ""))


def _do_batch(
    job: ShardJob,
    usable: list[Decoded],
    captioner: Captioner | None,
    filter_: Filter | None,
    rows: _Rows,
    tell: Callable[[str], None],
) -> None:
    """Recaption and score pictures side by side, and add their rows; refusals are told in words."""
    from capfilt.models.protocols import ImageBatch

    samples = [decoded.sample for decoded in usable]
    pictures = [decoded.picture for decoded in usable if decoded.picture is not None]
    names = [sample.image_sha256 or "" for sample in samples]
    batch = ImageBatch(pictures, names, [decoded.squares for decoded in usable])
    texts = [[Caption(s.web_text, Source.WEB)] if s.web_text is not None else [] for s in samples]
    if captioner is not None:
        written = recaption(
            captioner, batch, job.decoding, seed=job.seed, candidates=job.candidates, tell=tell
        )
        texts = [web + synthetic for web, synthetic in zip(texts, written, strict=True)]
    writer = captioner.digest if captioner is not None else None
    for sample, mine in zip(samples, texts, strict=True):
        rows.captions += [caption_row(sample, caption, job, writer) for caption in mine]
    if filter_ is not None:
        for sample, mine, values in zip(samples, texts, score(filter_, batch, texts), strict=True):
            rows.scores += score_rows(sample, mine, values, job.round_number, filter_.digest)


def models_of(job: ShardJob, device: str) -> tuple[Captioner | None, Filter | None]:
    """Return the captioner and the filter that a job asks for, as this worker keeps them."""
    captioner = filter_ = None
    if job.captioner is not None:
        captioner = load_captioner(job.captioner, device, job.precision, job.compiled)
    if job.filter is not None:
        filter_ = load_filter(job.filter, device, job.precision, job.matching, job.compiled)
    return captioner, filter_


@lru_cache(maxsize=1)
def load_captioner(path: Path, device: str, precision: str, compiled: bool) -> Captioner:
    """Load a captioner; a worker keeps it from shard to shard."""
    from capfilt.models.loading import captioner_of

    return captioner_of(path, device, precision, compiled=compiled)


@lru_cache(maxsize=1)
def load_filter(path: Path, device: str, precision: str, matching: Matching, compiled: bool) -> Filter:
    """Load a filter; a worker keeps it from shard to shard."""
    from capfilt.models.loading import filter_of

    return filter_of(path, device, precision, matching, compiled=compiled)


def decoders(compute: Compute, devices: Sequence[str]) -> int:
    """Return how many threads decode ahead in each worker."""
    if compute.decoders is not None:
        return compute.decoders
    if not devices[0].startswith("cuda"):
        return 0
    return max(1, (os.cpu_count() or 1) // len(devices))


def decode_sample(numbered: tuple[int, Sample], *, limits: Input, seen_as: Collection[Images]) -> Decoded:
    """Decode a sample's picture, and make of it what the models see."""
    number, sample = numbered
    if sample.status is not Status.OK or sample.image is None:
        return Decoded(number, sample, None)
    try:
        picture = decode(sample.image, max_pixels=limits.max_pixels)
    except RefusedImage as error:
        return Decoded(number, replace(sample, status=Status.REFUSED, reason=error.reason), None)
    return Decoded(number, sample, picture, {images: to_square(picture, images) for images in seen_as})


def cut(decoded: Iterator[Decoded], batch_size: int) -> Iterator[list[Decoded]]:
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
