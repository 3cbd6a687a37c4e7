"""Pre-train a joint model on any number of shards: raw ones, exported ones, clean ones beside them."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from capfilt.data.instructions.registry import read_registry
from capfilt.data.sources import find_shards
from capfilt.data.stream import TarPool
from capfilt.errors import CapfiltError
from capfilt.models.cards import read_card
from capfilt.provenance.rundir import hold
from capfilt.settings import Blip2
from capfilt.stages.bootstrap import resolve_devices
from capfilt.stages.clean_pool import clean_pool
from capfilt.stages.parts import find_run_parts, write_parts
from capfilt.stages.pretraining_job import PretrainingJob, pretrain_model
from capfilt.stages.shard import decoders
from capfilt.stages.start_models import check_parts, check_start
from capfilt.stages.train_one import check_place, start_model
from capfilt.stages.worker import seen_in_a_worker

if TYPE_CHECKING:
    from capfilt.data.stream import Pool
    from capfilt.models.cards import Card
    from capfilt.settings import Bootstrap, Training
    from capfilt.stages.context import Engine, Progress
    from capfilt.stages.trained import Trained


@dataclass(frozen=True)
class Pretraining:
    """What a pre-training is to work on, found but not read."""

    pools: tuple[Pool, ...]
    clean_pools: tuple[int, ...]
    """Numbers of the pools that pairs are held out of: the clean ones, where there are any."""
    instructions: Path | None = None
    """Registry of instruction data that is trained on instead of pairs."""


def find_pairs(data: str, clean: str | None, settings: Bootstrap, engine: Engine) -> Pretraining:
    """Find the shards of a pre-training, or the registry; those of CLEAN are streamed like the others.

    The pairs of CLEAN on which a filter is measured that is fine-tuned from the model with the same seed are
    left out: it would be calibrated on pairs that the model has seen.
    """
    if data.endswith(".toml"):
        if clean is not None:
            raise CapfiltError(
                "--clean holds pairs, and instruction data is trained on alone", fix="leave --clean out"
            )
        if not isinstance(settings.model, Blip2) or settings.pretrains != "captioner":
            raise CapfiltError(
                f"{data} is a registry of instruction data, which a captioner with a Q-Former is trained on",
                fix="give it with --pipeline instructblip, or give WebDataset tars",
            )
        registry = Path(data).absolute()
        read_registry(registry)  # the worker that trains would refuse it late
        return Pretraining((), (), registry)
    pools: list[Pool] = [TarPool(tuple(find_shards(data)), settings.input, "web")]
    if clean is not None:
        pools.append(clean_pool(tuple(find_shards(clean)), settings, settings.seed, engine))
    return Pretraining(tuple(pools), (len(pools) - 1,))


def setting_of(settings: Bootstrap) -> str:
    """Return the name of the setting that says how a fresh joint model is pre-trained."""
    return "pretrain" if settings.next_round is None else "next_round"


def training_of(settings: Bootstrap) -> Training:
    """Return how a fresh joint model is pre-trained; refused where the settings do not say."""
    training = settings.next_round or settings.pretrain
    if training is None:
        name = f"pipeline {settings.pipeline}" if settings.pipeline else "the pipeline"
        raise CapfiltError(
            f"{name} says nothing of a pre-training",
            fix="choose --pipeline small or pretrain_blip_base, which do, or describe one with --config "
            "FILE: [[next_round.phases]]",
        )
    return training


def pretrain(
    data: str,
    clean: str | None,
    out: Path,
    settings: Bootstrap,
    engine: Engine,
    progress: Progress,
    *,
    leads: bool = True,
) -> Card | None:
    """Pre-train a joint model, or a captioner with a Q-Former, and return its card.

    A killed pre-training goes on where it stopped. Of several processes only the one that leads holds the
    place, keeps the record and returns the card. A bundle of the same kind is replaced, a folder of other
    things is refused.
    """
    out = out.absolute()
    check_place(settings.pretrains, out)
    training = training_of(settings)
    check_start(settings)
    if settings.bundles.init is None:
        check_parts(settings.model, settings.bundles, [settings.pretrains])
    pairs = find_pairs(data, clean, settings, engine)
    work = out.with_name(f".{out.name}.training")
    with hold(work / "lock", out) if leads else nullcontext():
        try:
            result = _pretrain_there(pairs, training, out, work, settings, engine, progress, leads=leads)
        finally:
            if leads and [file.name for file in work.iterdir()] == ["lock"]:
                shutil.rmtree(work)  # nothing was begun that could go on
        if not leads:
            return None
        progress.say(told(result, settings.pretrains))
        shutil.rmtree(work, ignore_errors=True)  # the lock goes with what it guards
    return read_card(out)


def _pretrain_there(
    pairs: Pretraining,
    training: Training,
    out: Path,
    work: Path,
    settings: Bootstrap,
    engine: Engine,
    progress: Progress,
    *,
    leads: bool,
) -> Trained:
    """Do the pre-training, which may be done already; what it starts from is put in place by the leader."""
    devices, precision = resolve_devices(settings.compute, engine)
    init = None
    if settings.bundles.init is not None:
        init = start_model(settings, settings.pretrains, work, engine, progress) if leads else work / "init"
    parts = find_run_parts(
        settings.bundles,
        settings.model,
        [settings.pretrains],
        untrained=[settings.pretrains],
        record=work / "parts.json",
        engine=engine,
    )
    if leads:
        write_parts(work / "parts.json", parts)
    job = PretrainingJob(
        out=out,
        checkpoint=work / f"{settings.pretrains}.pt",
        kind=settings.pretrains,
        model=settings.model,
        training=training,
        pools=pairs.pools,
        clean_pools=pairs.clean_pools,
        instructions=pairs.instructions,
        stream=settings.stream,
        clean=settings.clean,
        input=settings.input,
        bundles=settings.bundles,
        parts=parts.of_a_qformer,
        init=init,
        seed=settings.seed,
        precision=precision,
        threads=settings.compute.threads,
        processes=settings.compute.processes,
        setting=setting_of(settings),
        decoders=decoders(settings.compute, devices),
    )
    return run_pretraining(job, devices[0], engine, progress)


def run_pretraining(
    job: PretrainingJob, device: str, engine: Engine, progress: Progress, task: str = "pretrain"
) -> Trained:
    """Have a worker do a pre-training, and show how far it is."""
    return seen_in_a_worker(engine, pretrain_model, job, progress, task, device=device, threads=job.threads)


def told(result: Trained, kind: str = "joint") -> str:
    """Return what a pre-training came to, in words."""
    words = f"{kind}: {result.pairs} pairs in a pass, {result.held_out} held out"
    words += f", {result.apart} like these left out" if result.apart else ""
    words += f", refused {_counted(result.refused)}" if result.refused else ""
    words += f"; met pictures that cannot be used, {_counted(result.met)}" if result.met else ""
    return words + ("" if result.is_new else "; trained before")


def _counted(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
