"""Measure recaptioning and scoring on this machine, with the user's models and shards.

It is done in one worker, as a run would have them: the first batch once untimed, then every part under a
stopwatch, then the same pictures with transformers, in turn with ours.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from capfilt.data.sources import find_shards
from capfilt.errors import CapfiltError
from capfilt.models.cards import read_card
from capfilt.settings import SettledDecoding
from capfilt.stages.bench.compare import compare, why_not
from capfilt.stages.bench.instruments import (
    Stopwatch,
    device_name,
    device_peak_memory,
    forget_device_peak,
    peak_memory,
    product_peak,
    stopwatch,
)
from capfilt.stages.bench.measured import PARTS, Counters, Measured, Part
from capfilt.stages.bootstrap import resolve_devices
from capfilt.stages.given import given_bundle, wanted
from capfilt.stages.shard import ShardJob, decoders, models_of
from capfilt.stages.worker import seen_in_a_worker

if TYPE_CHECKING:
    from capfilt.models.captioner import MedCaptioner
    from capfilt.models.filter import MedFilter
    from capfilt.records import Shard
    from capfilt.settings import Bootstrap, Decoding
    from capfilt.stages.bench.timed_loop import TimedLoop
    from capfilt.stages.context import Engine, Progress, Tell

Role = Literal["captioner", "filter"]
SAMPLES = 64


@dataclass(frozen=True)
class BenchRequest:
    """What is to be measured."""

    web: str
    settings: Bootstrap
    samples: int | None = None
    """Pictures that are measured, the first ones; when not given 64, or two batches if those are more."""
    beside_transformers: bool = True


@dataclass(frozen=True)
class BenchJob:
    """The same as a worker is given it, as plain values."""

    work: ShardJob
    """What is done to a shard; its `run` takes the rows, and is thrown away."""
    shards: tuple[Shard, ...]
    samples: int
    beside_transformers: bool


def measure(request: BenchRequest, engine: Engine, progress: Progress) -> Measured:
    """Measure in one worker; nothing of the input is changed, and nothing is left behind.

    Raises CapfiltError where there is no model, no picture, or where a model cannot do what it is given for.
    """
    settings = request.settings
    if settings.bundles.captioner is None and settings.bundles.filter is None:
        raise CapfiltError(
            "no model is given, and models are what takes the time",
            fix="give --captioner MODEL, --filter MODEL, or both, as for the run",
        )
    web = find_shards(request.web)
    if not any(shard.size for shard in web):
        raise CapfiltError(f"{request.web}: every shard is empty", fix="give tars that hold pictures")
    devices, precision = resolve_devices(settings.compute, engine)
    with tempfile.TemporaryDirectory(prefix="capfilt-bench-") as folder:
        captioner = _taken("captioner", settings, Path(folder), engine)
        work = ShardJob(
            run=Path(folder) / "run",
            shard=web[0],
            fingerprint="",
            captioner=captioner,
            filter=_taken("filter", settings, Path(folder), engine),
            decoding=_decoding(captioner, settings.decoding),
            matching=settings.filter,
            candidates=settings.candidates,
            seed=settings.seed,
            input=settings.input,
            batch_size=settings.compute.images_at_once(devices[0]),
            precision=precision,
            decoders=decoders(settings.compute, devices),
            compiled=settings.compute.compile,
        )
        samples = request.samples or max(SAMPLES, 2 * work.batch_size)
        job = BenchJob(work, tuple(web), samples, request.beside_transformers)
        measured = seen_in_a_worker(
            engine,
            measure_job,
            job,
            progress,
            "bench",
            device=devices[0],
            threads=settings.compute.threads,
            unit="images",
            total=samples,
        )
    return replace(measured, workers=len(devices), at_once=at_once(devices, settings.compute.threads))


def at_once(devices: list[str], threads: int) -> int:
    """Return how many of these workers do not take turns: one a GPU, or one for the cores of its threads."""
    if devices[0] != "cpu":
        return len(set(devices))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(len(devices), max(1, cores // threads))


def _taken(role: Role, settings: Bootstrap, folder: Path, engine: Engine) -> Path | None:
    """Return the bundle of a model, if one is given."""
    source: Path | None = getattr(settings.bundles, role)
    if source is None:
        return None
    return given_bundle(wanted(role, source, settings), folder / role, engine)


def _decoding(captioner: Path | None, chosen: Decoding) -> SettledDecoding:
    return read_card(captioner).conventions.decoding(chosen) if captioner else SettledDecoding()


# -- in the worker


def measure_job(job: BenchJob, device: str, tell: Tell) -> Measured:
    """Measure; done by a worker."""
    from capfilt.models.devices import has_native_bf16
    from capfilt.stages.bench.timed_loop import TimedLoop

    work = job.work
    forget_device_peak(device)
    captioner, filter_ = _models(work, device)
    some = min(job.samples, work.batch_size)
    untimed = TimedLoop(work, job.shards, some, captioner, filter_, Stopwatch())
    untimed.run(lambda *_: None)
    _check_some(untimed)
    loop = TimedLoop(work, job.shards, job.samples, captioner, filter_, stopwatch(device))
    before = _counts(captioner, filter_)
    loop.run(tell)
    passes, computed, needed = (
        now - then for now, then in zip(_counts(captioner, filter_), before, strict=True)
    )
    whole_wall_s = sum(loop.wall_s.values())
    if work.decoders:
        overlapped = TimedLoop(work, job.shards, job.samples, captioner, filter_, stopwatch(device))
        overlapped.run_ahead(loop.samples, tell)
        whole_wall_s = sum(overlapped.wall_s.values())
    memory, device_memory = peak_memory(), device_peak_memory(device)
    reason = why_not(work, untimed.first) if job.beside_transformers else "it was not asked for"
    return Measured(
        images=loop.images,
        samples=loop.samples,
        megapixels=loop.pixels / loop.images / 1e6,
        parts=_parts(loop, device),
        whole_wall_s=whole_wall_s,
        decoders=work.decoders,
        counters=Counters(passes, computed, needed, loop.texts_scored),
        device=device,
        device_name=device_name(device),
        precision=work.precision,
        has_native_bf16=has_native_bf16(device),
        batch_size=work.batch_size,
        candidates=work.candidates,
        peak_memory=memory,
        device_peak_memory=device_memory,
        comparison=None if reason else compare(work, captioner, filter_, untimed.first, device),
        why_not=reason,
    )


def _models(work: ShardJob, device: str) -> tuple[MedCaptioner | None, MedFilter | None]:
    """Return the models, which must be BLIP's: others have none of the parts that are timed."""
    from capfilt.models.captioner import MedCaptioner
    from capfilt.models.filter import MedFilter

    for path in (work.captioner, work.filter):
        if path is not None:
            _ = read_card(path).med
    captioner, filter_ = models_of(work, device)
    assert captioner is None or isinstance(captioner, MedCaptioner)
    assert filter_ is None or isinstance(filter_, MedFilter)
    return captioner, filter_


def _check_some(loop: TimedLoop) -> None:
    if loop.images:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in loop.refusals.most_common())
    raise CapfiltError(
        f"there is no picture among the first {loop.samples} samples" + (f": {reasons}" if reasons else ""),
        fix="give tars that hold pictures as KEY.jpg, KEY.png or KEY.webp",
    )


def _counts(captioner: MedCaptioner | None, filter_: MedFilter | None) -> tuple[int, int, int]:
    """Return image-encoder passes, tokens computed and tokens needed so far."""
    passes = sum(model.model.image.passes for model in (captioner, filter_) if model is not None)
    return (passes, captioner.tokens.computed, captioner.tokens.needed) if captioner else (passes, 0, 0)


def _parts(loop: TimedLoop, device: str) -> tuple[Part, ...]:
    """Return the parts in the order of the loop, with the peaks of the numbers they are computed in."""
    wall, cpu = loop.wall_s, loop.cpu_s
    precision = loop.job.precision
    of_text = "bf16" if precision == "int8" else precision
    peaks = {numbers: product_peak(device, numbers) for numbers in sorted({precision, of_text})}
    roles = [role for role in ("captioner", "filter") if loop.flops[f"image encoder {role}"]]
    is_shared = loop.captioner is not None and loop.filter is not None and len(roles) == 1
    parts = []
    for name in PARTS:
        for role in roles if name == "image encoder" else [""]:
            key = f"{name} {role}".strip()
            if key not in wall:
                continue
            peak = peaks[precision if role else of_text] if loop.flops[key] else 0.0
            model = "both" if role and is_shared else role
            parts.append(Part(name, model, wall[key], cpu[key], loop.flops[key], peak))
    return tuple(parts)
