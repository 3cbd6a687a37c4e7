"""Train one model outside a run: clean pairs in, a bundle out."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from capfilt.data.sources import find_shards
from capfilt.errors import CapfiltError
from capfilt.models.cards import CARD_FILE, Card, identity, read_calibration, read_card
from capfilt.provenance.rundir import hold
from capfilt.stages.bootstrap import resolve_devices
from capfilt.stages.given import described, find_given, read_given, take_given, wanted, write_given
from capfilt.stages.judge import warnings_of
from capfilt.stages.parts import find_run_parts, write_parts
from capfilt.stages.start_models import check_parts, check_start, check_started_from
from capfilt.stages.training_job import (
    TrainingJob,
    are_trained,
    check_joint_first,
    check_shared_vision,
    told_of_fresh_parts,
    train_model,
)
from capfilt.stages.worker import in_a_worker, seen_in_a_worker

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.cards import Kind
    from capfilt.records import Shard
    from capfilt.settings import Bootstrap, Training
    from capfilt.stages.context import Engine, Progress


def train_one(
    kind: Kind, clean: str, out: Path, settings: Bootstrap, engine: Engine, progress: Progress
) -> Card:
    """Train a captioner or a filter and return its card; a killed training goes on where it stopped.

    From scratch, the pipeline's joint pre-training comes first; its model, or a copy of the one that is
    given to start from, is kept beside the bundle until the training is done. A bundle of the same kind is
    replaced, a folder of other things is refused, and so is a second training to the same place.
    """
    out = out.absolute()
    check_place(kind, out)
    check_joint_first(settings)
    init = settings.bundles.init
    check_start(settings)
    if init is None:
        check_parts(settings.model, settings.bundles, [kind])
    shards = tuple(find_shards(clean))
    begins_jointly = settings.pretrain is not None and init is None
    check_shared_vision(settings.model, kind, starts_from_a_model=begins_jointly or init is not None)
    work = out.with_name(f".{out.name}.training")
    with hold(work / "lock", out):
        try:
            _train_there(kind, shards, out, work, settings, engine, progress)
        finally:
            if [file.name for file in work.iterdir()] == ["lock"]:
                shutil.rmtree(work)  # nothing was begun that could go on
        if kind == "filter":
            for line in warnings_of(read_calibration(out)):
                progress.say(line)
        shutil.rmtree(work, ignore_errors=True)  # the lock goes with what it guards
    return read_card(out)


def _train_there(
    kind: Kind,
    shards: tuple[Shard, ...],
    out: Path,
    work: Path,
    settings: Bootstrap,
    engine: Engine,
    progress: Progress,
) -> None:
    """Do the trainings that a model needs, each of which may be done already."""
    devices, precision = resolve_devices(settings.compute, engine)
    kinds = [kind] if settings.pretrain is None or settings.bundles.init is not None else ["joint", kind]
    parts = find_run_parts(
        settings.bundles,
        settings.model,
        kinds,
        untrained=kinds,
        record=work / "parts.json",
        engine=engine,
    )

    def job(what: Kind, to: Path, training: Training, init: Path | None) -> TrainingJob:
        return TrainingJob(
            kind=what,
            out=to,
            checkpoint=work / f"{what}.pt",
            model=settings.model,
            training=training,
            clean_shards=shards,
            web_shards=(),
            init=init,
            clean=settings.clean,
            input=settings.input,
            seed=settings.seed,
            precision=precision,
            threads=settings.compute.threads,
            start=settings.bundles,
            parts=parts.of_a_qformer,
        )

    own = settings.captioner_training if kind == "captioner" else settings.filter_training
    init = None
    if settings.bundles.init is not None:
        init = start_model(settings, kind, work, engine, progress)
        write_parts(work / "parts.json", parts)
    elif settings.pretrain is not None:
        init = work / "joint"
        jobs = job("joint", init, settings.pretrain, None), job(kind, out, own, init)
        if _are_done(jobs, devices[0], engine):
            progress.say(f"{kind}: trained before")
            return
        write_parts(work / "parts.json", parts)
        _train(jobs[0], devices[0], engine, progress)
    _train(job(kind, out, own, init), devices[0], engine, progress)


def start_model(settings: Bootstrap, kind: Kind, work: Path, engine: Engine, progress: Progress) -> Path:
    """Return the bundle of the model that is given to start from.

    CapfiltError where a model of this kind cannot be trained from it; nothing is written then.
    """
    source = settings.bundles.init
    assert source is not None
    record, bundle = work / "init.json", work / "init"
    given = find_given(wanted("init", source, settings), read_given(record), engine)
    if given.start_card is not None:
        check_started_from(settings, [kind], given.start_card, given.source)
    if (bundle / CARD_FILE).exists() and identity(read_card(bundle)) != given.identity:
        # Left by a training that began from another model.
        shutil.rmtree(bundle)
        record.unlink(missing_ok=True)
    write_given(record, given)
    take_given(given, bundle, engine, settings.server)
    progress.say(described(read_card(bundle), given.source))
    return bundle


def check_place(kind: Kind, out: Path) -> None:
    """Refuse a place whose contents a bundle would replace, before the work and not after it."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if (out / CARD_FILE).exists():
        there = read_card(out).kind
        if there == kind:
            return
        what = f"it holds a {there}"
    else:
        what = "it is no bundle" if out.is_dir() else "it is a file"
    raise CapfiltError(
        f"no {kind} can be written to {out}: {what}", fix="give --out a new or an empty folder"
    )


def _are_done(jobs: tuple[TrainingJob, TrainingJob], device: str, engine: Engine) -> bool:
    """Return whether the second bundle came of both trainings, so that the first need not be done for it."""
    if not (jobs[1].out / CARD_FILE).exists():
        return False
    return in_a_worker(engine, are_trained, jobs, device=device, threads=jobs[0].threads)


def _train(job: TrainingJob, device: str, engine: Engine, progress: Progress) -> None:
    task = f"train {job.kind}"
    result = seen_in_a_worker(engine, train_model, job, progress, task, device=device, threads=job.threads)
    if line := told_of_fresh_parts(job, result):
        progress.say(line)
