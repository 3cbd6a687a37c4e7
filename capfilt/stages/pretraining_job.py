"""One pre-training, from streamed shards of any number to a joint bundle; done by a worker, knows no run.

Under torchrun every process comes here with the same job: they train one model together, the first of them
writes it, and all of them know by the same card whether it is there already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from capfilt.canonical import digest_of
from capfilt.errors import CapfiltError
from capfilt.files import remove_temporaries
from capfilt.records import Refusal
from capfilt.stages.families import Beginning, Begun, begin, find_beginning
from capfilt.stages.pretraining_data import Data, find_data
from capfilt.stages.trained import (
    Recipe,
    Trained,
    objectives_in,
    same_training,
    write_trained,
)

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable
    from pathlib import Path

    from capfilt import settings
    from capfilt.data.stream import Pool
    from capfilt.models.cards import Kind
    from capfilt.models.qformer_parts import Parts
    from capfilt.settings import Blip2, Bundles, Clean, Input, Model, Training
    from capfilt.stages.context import Tell
    from capfilt.training.loop import Trainer
    from capfilt.training.parallel import World


@dataclass(frozen=True)
class PretrainingJob:
    """Everything one pre-training needs, as plain values that can cross processes."""

    out: Path
    """Bundle to write."""
    checkpoint: Path
    """Where a training in progress is kept."""
    model: Model | Blip2
    training: Training
    pools: tuple[Pool, ...]
    """Where the pairs come from."""
    clean_pools: tuple[int, ...]
    """Numbers of the pools that pairs are held out of."""
    stream: settings.Stream
    clean: Clean
    """What is held out."""
    input: Input
    bundles: Bundles
    """What the image encoder and the text side start from."""
    init: Path | None
    """Bundle that the whole model starts from; None for a fresh one."""
    seed: int
    precision: str
    threads: int
    instructions: Path | None = None
    """Registry of instruction data to train on instead of pairs."""
    kind: Kind = "joint"
    """captioner for the second stage of a Q-Former."""
    setting: str = "pretrain"
    """Name of the setting that holds its phases, for advice."""
    processes: int = 1
    decoders: int = 0
    """Threads that read and decode pictures ahead."""
    parts: Parts | None = None
    """What a Q-Former is put between, where it was found before."""
    snapshots: tuple[int, ...] = ()
    """Steps after which the model is kept beside the bundle, as `OUT@STEP`, to look at the way."""


def pretrain_model(job: PretrainingJob, device: str, tell: Tell) -> Trained:
    """Pre-train a model and write its bundle; a bundle of the same training is taken as it is."""
    import torch

    from capfilt.training.parallel import joined, local_device

    device = local_device(device)
    with joined(device) as world:
        # The first process puts in place what the model starts from, and then comes here.
        world.wait()
        material = _read(job, device, world)
        found = material.data.found
        result = Trained(
            weights="",
            steps=0,
            pairs=found.pairs,
            held_out=found.held_out,
            refused=found.refused,
            is_new=False,
            apart=found.apart,
        )
        world.agree("settings or shards", digest_of(material.facts), torch.device(device))
        there = same_training(job.out, digest_of(material.facts))
        world.agree(f"whether {job.out} is there", str(there is not None), torch.device(device))
        # Nobody writes the bundle before everybody has looked for it.
        world.wait()
        if there is not None:
            return replace(result, weights=there.weights, fresh=tuple(there.training["fresh"]))
        trainer, met, begun = _trainer(job, material, device, tell, world)
        trainer.run()
        weights = ""
        if world.leads:
            weights = write_trained(job.out, trainer, _recipe(material, begun), lambda _: None)
            remove_temporaries(job.checkpoint)
            job.checkpoint.unlink(missing_ok=True)
        world.wait()
        return replace(
            result,
            weights=weights,
            steps=sum(map(trainer.steps_of, job.training.phases)),
            is_new=True,
            fresh=begun.fresh,
            met=_of_all(met, world, device),
        )


def _of_all(counts: Counter[str], world: World, device: str) -> dict[str, int]:
    """Return what all processes counted together, by reason."""
    import torch

    reasons = [reason.value for reason in Refusal]
    total = world.total(torch.tensor([counts[reason] for reason in reasons], device=device))
    return {reason: count for reason, count in zip(reasons, total.tolist(), strict=True) if count}


@dataclass(frozen=True)
class _Material:
    """What a pre-training works on."""

    beginning: Beginning
    data: Data
    facts: dict[str, Any]
    """Everything that the trained weights depend on."""


def _read(job: PretrainingJob, device: str, world: World) -> _Material:
    """Read what the model starts from, and survey the data."""
    from capfilt.models.devices import autocast_type

    _check_shares(job)
    beginning = find_beginning(job.kind, job.init, job.bundles, job.model, job.parts)
    data = find_data(job, world)
    facts = {
        "kind": job.kind,
        "model": beginning.settings.model_dump(mode="json"),
        "phases": [phase.model_dump(mode="json") for phase in job.training.phases],
        "augment": job.training.augment.model_dump(mode="json"),
        "split": job.clean.model_dump(mode="json", exclude={"cache_mb"}),
        **data.facts,
        "input": job.input.model_dump(mode="json"),
        **beginning.facts(),
        "seed": job.seed,
        "device": device.partition(":")[0],
        "precision": "bf16" if autocast_type(job.precision, device) is not None else "fp32",
        "threads": job.threads,
        "processes": job.processes,
    }
    return _Material(beginning, data, facts)


def _check_shares(job: PretrainingJob) -> None:
    """Refuse a batch that cannot be shared out evenly: a pair too many would be left out of every step."""
    for number, phase in enumerate(job.training.phases):
        shares = phase.accumulate * job.processes
        if phase.batch_size % shares:
            raise CapfiltError(
                f"a batch of {phase.batch_size} pairs cannot be shared out to {job.processes} processes in "
                f"{phase.accumulate} parts",
                fix=f"give a multiple of {shares}, e.g. --set {job.setting}.phases.{number}.batch_size="
                f"{max(1, round(phase.batch_size / shares)) * shares}",
            )


def _trainer(
    job: PretrainingJob, material: _Material, device: str, tell: Tell, world: World
) -> tuple[Trainer, Counter[str], Begun]:
    """Build the model and what trains it; returns what is counted meanwhile, too."""
    import torch

    from capfilt.models.devices import autocast_type
    from capfilt.training.loop import Trainer

    torch.manual_seed(job.seed)
    begun = begin(material.beginning, material.data.texts(), objectives_in(job.training))
    begun.model.to(device)
    images = material.beginning.settings.images
    sources = material.data.sources(begun, images, torch.device(device), world)
    trainer = Trainer(
        model=begun.model,
        vocabulary=begun.vocabulary,
        objective=begun.objective,
        training=job.training,
        train=sources.train,
        held_out=sources.held_out,
        name=job.kind,
        seed=job.seed,
        autocast=autocast_type(job.precision, device),
        checkpoint=job.checkpoint,
        fingerprint=digest_of(material.facts),
        progress=lambda steps, total, _: tell(steps, total),
        say=lambda words: tell(0, 0, words),
        setting=job.setting,
        world=world,
        keep_at=job.snapshots,
        keep=_keeper(job, material, begun),
    )
    return trainer, sources.met, begun


def _recipe(material: _Material, begun: Begun) -> Recipe:
    found = material.data.found
    return Recipe(
        kind=material.beginning.kind,
        model=material.beginning.settings,
        facts=material.facts,
        data=material.facts["data"],
        pairs=found.pairs,
        held_out=found.held_out,
        instructions=found.instructions,
        init=material.beginning.init,
        fresh=begun.fresh,
        reader=begun.reader,
    )


def _keeper(job: PretrainingJob, material: _Material, begun: Begun) -> Callable[[Trainer, int], None]:
    """Return what writes a model on its way as a bundle of its own."""

    def keep(trainer: Trainer, step: int) -> None:
        recipe = replace(_recipe(material, begun), facts={**material.facts, "stopped_at": step})
        write_trained(snapshot(job.out, step), trainer, recipe, lambda _: None)

    return keep


def snapshot(out: Path, step: int) -> Path:
    """Return where a model is kept as it was after a step."""
    return out.with_name(f"{out.name}@{step}")
