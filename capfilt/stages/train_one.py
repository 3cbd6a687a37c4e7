"""Train one model outside a run: clean pairs in, a bundle out."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from capfilt.data.sources import find_shards
from capfilt.errors import CapfiltError
from capfilt.models.cards import CARD_FILE, Card, read_calibration, read_card
from capfilt.stages.bootstrap import resolve_devices
from capfilt.stages.judge import warnings_of
from capfilt.stages.training_job import TrainingJob, train_model

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.cards import Kind
    from capfilt.settings import Bootstrap, Training
    from capfilt.stages.context import Engine, Progress


def train_one(
    kind: Kind, clean: str, out: Path, settings: Bootstrap, engine: Engine, progress: Progress
) -> Card:
    """Train a captioner or a filter and return its card; a killed training goes on where it stopped.

    From scratch, the pipeline's joint pre-training comes first; its model is kept beside the bundle
    until the training is done. A bundle of the same kind is replaced, a folder of other things is refused.
    """
    out = out.absolute()
    _check_place(kind, out)
    shards = tuple(find_shards(clean))
    devices, precision = resolve_devices(settings.compute, engine)
    work = out.with_name(f".{out.name}.training")

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
        )

    own = settings.captioner_training if kind == "captioner" else settings.filter_training
    init = settings.bundles.init
    jobs = []
    if settings.pretrain is not None and init is None:
        init = work / "joint"
        jobs.append(job("joint", init, settings.pretrain, None))
    jobs.append(job(kind, out, own, init))
    for each in jobs:
        _train(each, devices[0], engine, progress)
    if kind == "filter":
        for line in warnings_of(read_calibration(out)):
            progress.say(line)
    shutil.rmtree(work, ignore_errors=True)
    return read_card(out)


def _check_place(kind: Kind, out: Path) -> None:
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


def _train(job: TrainingJob, device: str, engine: Engine, progress: Progress) -> None:
    task = f"train {job.kind}"

    def hear(_: int, done: int, total: int) -> None:
        progress.update(task, done, total)

    progress.begin(task, "steps")
    for _ in engine.run(train_model, [job], devices=[device], threads=job.threads, hear=hear):
        progress.end(task)
