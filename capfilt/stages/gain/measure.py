"""The comparison itself: which arms and seeds, alike in all but their texts, and their figures together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json
from capfilt.data.sources import find_shards
from capfilt.data.stream import TarPool
from capfilt.errors import CapfiltError
from capfilt.evaluation.intervals import Figure, mean_interval
from capfilt.files import write_whole
from capfilt.layers import changed
from capfilt.provenance.rundir import RunDir, hold, read_json, recorded_facts
from capfilt.settings import Bootstrap
from capfilt.stages.bootstrap import resolve_devices
from capfilt.stages.gain.arm_job import ArmJob, done_before, run_arm
from capfilt.stages.gain.arms import ARMS, Arm, Texts, write_texts
from capfilt.stages.pretrain import setting_of, training_of
from capfilt.stages.pretraining_job import PretrainingJob
from capfilt.stages.shard import decoders
from capfilt.stages.training_job import TrainingJob
from capfilt.versions import versions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from capfilt.data.stream import Pool
    from capfilt.models.cards import Kind
    from capfilt.records import Shard
    from capfilt.settings import Decoding, Training
    from capfilt.stages.context import Engine, Progress
    from capfilt.stages.gain.arm_job import Row


@dataclass(frozen=True)
class GainRequest:
    """What is to be compared."""

    run: Path
    clean: str
    """Clean pairs: every arm has them beside its web pictures, and is fine-tuned on them."""
    test: str
    """Clean pairs that nothing was trained on."""
    settings: Bootstrap
    """How models are built and trained."""
    arms: tuple[Arm, ...] = ARMS
    seeds: tuple[int, ...] = (0, 1, 2)
    looks: int = 4
    """How often a pre-training is evaluated on its way, its end included."""
    fine_tune: bool = True
    with_clean: bool = True
    """Whether clean pairs stand beside the arm's in pre-training, as in the paper."""
    top_k: int = 16


@dataclass(frozen=True)
class Gain:
    """All figures, and how many texts each arm had."""

    rows: list[Row]
    """Of every arm that is done, those included that were done before and not asked for again."""
    texts: dict[str, int]
    missing: list[tuple[str, int]]
    """Arms and seeds that were not run."""


def settings_of(run: RunDir) -> Bootstrap:
    """Return the settings that a run was started with."""
    record = read_json(run.run_file, mend="restore run.json from a copy")
    return Bootstrap.model_validate(record["settings"])


def with_steps(settings: Bootstrap, steps: int) -> Bootstrap:
    """Return the settings with a pre-training of so many steps, shared out to its phases as before."""
    phases = training_of(settings).phases
    counted = all(phase.steps is not None for phase in phases)
    shares = [(phase.steps or 0) if counted else phase.epochs for phase in phases]
    given = [
        {**phase.model_dump(), "steps": max(1, round(share * steps / sum(shares)))}
        for phase, share in zip(phases, shares, strict=True)
    ]
    return changed(settings, {setting_of(settings): {"phases": given}})


def measure_gain(request: GainRequest, engine: Engine, progress: Progress) -> Gain:
    """Train and evaluate every arm with every seed; what was done before is taken as it is."""
    run = RunDir.open(request.run)
    folder = run.gain
    test = tuple(find_shards(request.test))
    clean = tuple(find_shards(request.clean))
    _check_apart(run, clean, test)
    with hold(folder / "lock", folder):
        texts = write_texts(run, folder)
        devices, precision = resolve_devices(request.settings.compute, engine)
        jobs = [
            _job(request, texts, arm, seed, clean, test, folder, precision, devices[0])
            for seed in sorted({*request.seeds, *_seeds_in(folder)})
            for arm in ARMS
        ]
        asked = [job for job in jobs if job.arm in request.arms and job.seed in request.seeds]
        waiting = [job for job in asked if done_before(job) is None]
        for job in waiting:
            if job.result.exists():
                progress.say(f"{_task(job)}: done before with other choices or texts, and done anew")
        for job in waiting:
            progress.begin(_task(job), "steps")
        for number, _ in engine.run(
            run_arm,
            waiting,
            devices=devices,
            threads=request.settings.compute.threads,
            hear=lambda number, done, total: progress.update(_task(waiting[number]), done, total),
            say=progress.say,
        ):
            progress.end(_task(waiting[number]))
            write_gain(folder, gathered(jobs, texts, asked), request)
        gain = gathered(jobs, texts, asked)
        write_gain(folder, gain, request)
    return gain


def gathered(jobs: Sequence[ArmJob], texts: Texts, asked: Sequence[ArmJob]) -> Gain:
    """Return the figures of all arms that are done alike, and which of this start's seeds are not."""
    seeds = {job.seed for job in asked}
    rows: list[Row] = []
    missing = []
    for job in jobs:
        mine = done_before(job)
        if mine is not None:
            rows += mine
        elif job.seed in seeds:
            missing.append((job.arm, job.seed))
    counts: dict[str, int] = dict(texts.counts.items())
    counts["repeated"] = round(texts.counts["none"] * texts.repetition)
    return Gain(rows, counts, missing)


def over_seeds(rows: Sequence[Row], **chosen: Any) -> Figure:
    """Return the mean of a figure over the seeds, with the 95% interval of that mean (Student's t)."""
    mine = [row["value"] for row in rows if all(row[name] == value for name, value in chosen.items())]
    return mean_interval([math.nan if value is None else value for value in mine])


def record_of(gain: Gain, request: GainRequest) -> dict[str, Any]:
    """Return all figures, with what they rest on: what is no number is null."""
    settings = request.settings
    trainings = (training_of(settings), settings.captioner_training, settings.filter_training)
    facts = {
        "model": settings.model.model_dump(mode="json"),
        "phases": [[phase.model_dump(mode="json") for phase in one.phases] for one in trainings],
        "clean": request.clean,
        "test": request.test,
        "with_clean": request.with_clean,
        "fine_tune": request.fine_tune,
        "top_k": request.top_k,
        "versions": versions(),
    }
    return {"facts": facts, "texts": gain.texts, "missing": gain.missing, "rows": gain.rows}


def write_gain(folder: Path, gain: Gain, request: GainRequest) -> None:
    """Write the record of all figures as JSON."""
    write_whole(folder / "gain.json", canonical_json(record_of(gain, request)) + "\n")


def _seeds_in(folder: Path) -> set[int]:
    """Return the seeds of earlier starts, by the names of their folders."""
    found = (path.parent.name.rpartition("-")[2] for path in folder.glob("*-*/result.json"))
    return {int(name) for name in found if name.isdigit()}


def _task(job: ArmJob) -> str:
    return f"{job.arm}, seed {job.seed}"


def _job(
    request: GainRequest,
    texts: Texts,
    arm: Arm,
    seed: int,
    clean: tuple[Shard, ...],
    test: tuple[Shard, ...],
    folder: Path,
    precision: str,
    device: str,
) -> ArmJob:
    settings = request.settings
    own = folder / f"{arm.replace('+', '')}-{seed}"
    training = training_of(settings)
    steps = _steps(training)
    stream, often = settings.stream, texts.visits(arm)
    weights = {"web": stream.web * often, "synthetic": stream.synthetic * often}
    if arm == "repeated":
        # All pairs of a pass, the clean ones too: their share of a batch stays that of the other arms.
        weights = {"web": weights["web"] * texts.repetition, "clean": stream.clean * texts.repetition}
    stream = changed(stream, weights)
    pools: list[Pool] = [texts.pool(arm)]
    if request.with_clean:
        pools.append(TarPool(clean, settings.input, "clean"))
    looks = sorted({max(1, round(steps * (number + 1) / request.looks)) for number in range(request.looks)})
    pretraining = PretrainingJob(
        out=own / "joint",
        checkpoint=own / "joint.pt",
        model=settings.model,
        training=training,
        pools=tuple(pools),
        clean_pools=(1,) if request.with_clean else (),
        stream=stream,
        clean=settings.clean,
        input=settings.input,
        bundles=settings.bundles,
        init=None,
        seed=seed,
        precision=precision,
        threads=settings.compute.threads,
        setting=setting_of(settings),
        decoders=decoders(settings.compute, [device]),
        snapshots=tuple(looks),
    )
    kinds: tuple[tuple[Kind, Training], ...] = (
        ("captioner", settings.captioner_training),
        ("filter", settings.filter_training),
    )
    fine_tunings = tuple(
        TrainingJob(
            kind=kind,
            out=own / kind,
            checkpoint=own / f"{kind}.pt",
            model=settings.model,
            training=tuned,
            clean_shards=clean,
            web_shards=(),
            init=own / "joint",
            clean=settings.clean,
            input=settings.input,
            seed=seed,
            precision=precision,
            threads=settings.compute.threads,
            start=settings.bundles,
        )
        for kind, tuned in kinds
    )
    return ArmJob(
        arm=arm,
        seed=seed,
        folder=own,
        pretraining=pretraining,
        fine_tunings=fine_tunings if request.fine_tune else (),
        test=test,
        input=settings.input,
        decoding=_greedy(settings),
        top_k=request.top_k,
        batch_size=settings.compute.images_at_once(device),
    )


def _greedy(settings: Bootstrap) -> Decoding:
    """Return the run's decoding, but greedy: a caption that is compared is the likeliest one."""
    return changed(settings.decoding, {"method": "greedy"})


def _steps(training: Training) -> int:
    """Return the steps of a pre-training; equal steps are what makes arms comparable."""
    steps = [phase.steps for phase in training.phases]
    if None in steps:
        raise CapfiltError(
            "the arms are compared after equal steps, and the pre-training counts passes",
            fix="say how many, e.g. --steps 2000",
        )
    return sum(step for step in steps if step is not None)


def _check_apart(run: RunDir, clean: Sequence[Shard], test: Sequence[Shard]) -> None:
    facts = recorded_facts(run)
    trained_on = {shard.digest for shard in clean}
    trained_on |= {shard["digest"] for name in ("web", "clean_shards") for shard in facts.get(name, ())}
    for shard in test:
        if shard.digest in trained_on:
            raise CapfiltError(
                f"{shard.path} is both trained on and tested on",
                fix="give --test clean pairs that nothing was trained on",
            )
