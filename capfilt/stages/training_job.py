"""One training, from clean pairs to a bundle; done by a worker, knows no run.

The pairs are indexed in memory and their pixels kept there where they fit: clean pairs are thousands, and
near copies among them are kept on one side of the split. Sets of any size are streamed: `pretraining_job`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json, digest_of
from capfilt.data.clean import CleanSet, read_clean, split
from capfilt.errors import CapfiltError
from capfilt.files import remove_temporaries, write_whole
from capfilt.models.cards import CALIBRATION_FILE, CARD_FILE, Kind, read_calibration, read_card
from capfilt.settings import Model
from capfilt.stages.calibrate import calibrate
from capfilt.stages.families import Beginning, Begun, begin, find_beginning
from capfilt.stages.trained import (
    Recipe,
    Trained,
    objectives_in,
    same_training,
    write_trained,
)

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.bundle_files import BundleOf
    from capfilt.models.qformer_parts import Parts
    from capfilt.records import Shard
    from capfilt.settings import Augment, Blip2, Bootstrap, Bundles, Clean, Input, Training
    from capfilt.stages.context import Tell
    from capfilt.training.loop import Trainer


@dataclass(frozen=True)
class TrainingJob:
    """Everything one training needs, as plain values that can cross processes."""

    kind: Kind
    """captioner, filter or joint."""
    out: Path
    """Bundle to write."""
    checkpoint: Path
    """Where a training in progress is kept."""
    model: Model | Blip2
    training: Training
    clean_shards: tuple[Shard, ...]
    web_shards: tuple[Shard, ...]
    """Their pairs are trained on too; none of them is ever held out."""
    init: Path | None
    clean: Clean
    input: Input
    seed: int
    precision: str
    """Of scoring, which a filter is calibrated in; a training computes in fp32 on every CPU."""
    threads: int
    start: Bundles | None = None
    """What image encoder and text side of a model from scratch start from."""
    parts: Parts | None = None
    """The same of a Q-Former, and its language model, where they were found before."""


def told_of_fresh_parts(job: TrainingJob, result: Trained) -> str:
    """Return what is told of heads that start fresh; nothing where there are none."""
    if not result.fresh:
        return ""
    return f"{job.kind}: the model it starts from lacks {', '.join(result.fresh)}; they start fresh"


def train_model(job: TrainingJob, device: str, tell: Tell) -> Trained:
    """Train one model and write its bundle; a bundle of the same training is taken as it is."""
    material = _read(job, device)
    result = Trained(
        weights="",
        steps=0,
        pairs=len(material.train),
        held_out=len(material.held_out),
        refused=dict(material.pairs.refused),
        is_new=False,
    )
    there = same_training(job.out, digest_of(material.facts))
    if there is not None:
        _calibrate_again(job, material, device)
        return replace(result, weights=there.weights, fresh=tuple(there.training["fresh"]))
    trainer, begun = _trainer(job, material, device, tell)
    trainer.run()
    recipe = Recipe(
        kind=job.kind,
        model=material.beginning.settings,
        facts=material.facts,
        data=material.facts["data"],
        pairs=len(material.train),
        held_out=len(material.held_out),
        init=material.beginning.init,
        fresh=begun.fresh,
        reader=begun.reader,
    )
    weights = write_trained(
        job.out, trainer, recipe, lambda bundle: _calibrate(job, material, bundle, device)
    )
    remove_temporaries(job.checkpoint)
    job.checkpoint.unlink(missing_ok=True)
    steps = sum(map(trainer.steps_of, job.training.phases))
    return replace(result, weights=weights, steps=steps, is_new=True, fresh=begun.fresh)


def are_trained(jobs: tuple[TrainingJob, TrainingJob], device: str, _tell: Tell) -> bool:
    """Return whether the second training's bundle is there, begun from the first one's, which is gone.

    Like any filter that is there already, it is measured in the precision that is asked for.
    """
    first, then = jobs
    if not (then.out / CARD_FILE).exists():
        return False
    recorded = read_card(then.out).training
    begun = digest_of(_read(first, device).facts)
    # What it was begun from has the structure of a model from scratch.
    material = _read(replace(then, init=None), device, begins=False)
    own = digest_of({**material.facts, **material.beginning.facts(begun_from=recorded.get("init"))})
    if (recorded.get("init_training"), recorded.get("fingerprint")) != (begun, own):
        return False
    _calibrate_again(then, material, device)
    return True


@dataclass(frozen=True)
class _Material:
    """What a training works on."""

    beginning: Beginning
    pairs: CleanSet
    train: list[int]
    held_out: list[int]
    facts: dict[str, Any]
    """Everything that the trained weights depend on."""


def _read(job: TrainingJob, device: str, *, begins: bool = True) -> _Material:
    """Read the model to start from and the pairs, and split them."""
    from capfilt.models.devices import autocast_type

    beginning = find_beginning(job.kind, job.init, job.start, job.model, job.parts)
    settings = beginning.settings
    if begins:
        check_shared_vision(job.model, job.kind, starts_from_a_model=job.init is not None)
    shards = (*job.clean_shards, *job.web_shards)
    pairs = read_clean(shards, job.input, settings.images, cache_mb=job.clean.cache_mb)
    clean_paths = {shard.path for shard in job.clean_shards}
    clean_count = sum(pair.path in clean_paths for pair in pairs.pairs)
    _check_enough(pairs, clean_count, job)
    train, held_out = split(pairs, job.clean, seed=job.seed, held_out_from=clean_count)
    facts = {
        "kind": job.kind,
        "model": settings.model_dump(mode="json"),
        "phases": [phase.model_dump(mode="json") for phase in job.training.phases],
        "augment": job.training.augment.model_dump(mode="json"),
        "split": job.clean.model_dump(mode="json", exclude={"cache_mb"}),
        "data": pairs.digest,
        **beginning.facts(),
        "seed": job.seed,
        "device": device.partition(":")[0],
        "precision": "bf16" if autocast_type(job.precision, device) is not None else "fp32",
        "threads": job.threads,
    }
    return _Material(beginning, pairs, train, held_out, facts)


def check_joint_first(settings: Bootstrap) -> None:
    """Refuse a pipeline that pre-trains no joint model where captioner and filter would start from one."""
    if settings.pretrain is not None and settings.pretrains != "joint":
        raise CapfiltError(
            f"pipeline {settings.pipeline} pre-trains a {settings.pretrains}, and a captioner or a filter "
            "that is trained on clean pairs starts from a joint model",
            fix="give this pipeline to `capfilt pretrain`; to train on clean pairs, name another one, e.g. "
            "--pipeline blip2_opt",
        )


def check_shared_vision(model: Model | Blip2, kind: Kind, *, starts_from_a_model: bool) -> None:
    """Refuse to share an image encoder that nobody has trained."""
    if isinstance(model, Model) and model.shared_vision and kind != "joint" and not starts_from_a_model:
        raise CapfiltError(
            "model.shared_vision keeps the image encoder of the model that captioner and filter start from, "
            "and they start from none",
            fix="give --init MODEL, or a pipeline with a joint pre-training, such as --pipeline small",
        )


def _trainer(job: TrainingJob, material: _Material, device: str, tell: Tell) -> tuple[Trainer, Begun]:
    """Build the model, from scratch or from another one's weights, and what trains it."""
    import torch

    from capfilt.models.devices import autocast_type
    from capfilt.training.batches import PairBatches
    from capfilt.training.loop import Trainer

    settings, pairs = material.beginning.settings, material.pairs
    torch.manual_seed(job.seed)
    begun = begin(material.beginning, (p.text for p in pairs.pairs), objectives_in(job.training))
    begun.model.to(device)

    def batches(indices: list[int], augment: Augment | None = None) -> PairBatches:
        return PairBatches(
            pairs,
            indices,
            vocabulary=begun.vocabulary,
            images=settings.images,
            max_tokens=begun.max_tokens,
            device=torch.device(device),
            augment=augment,
        )

    trainer = Trainer(
        model=begun.model,
        vocabulary=begun.vocabulary,
        objective=begun.objective,
        training=job.training,
        train=batches(material.train, job.training.augment),
        held_out=batches(material.held_out),
        name=job.kind,
        seed=job.seed,
        autocast=autocast_type(job.precision, device),
        checkpoint=job.checkpoint,
        fingerprint=digest_of(material.facts),
        progress=lambda steps, total, _: tell(steps, total),
        say=lambda words: tell(0, 0, words),
        keeps_image_encoder=getattr(settings, "shared_vision", False) and job.kind != "joint",
    )
    return trainer, begun


def _check_enough(pairs: CleanSet, clean_count: int, job: TrainingJob) -> None:
    if clean_count >= 2:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(pairs.refused.items()))
    where = job.clean_shards[0].path.parent if job.clean_shards else "CLEAN"
    raise CapfiltError(
        f"{where} holds {clean_count} clean pairs that can be used"
        + (f" (refused: {reasons})" if reasons else ""),
        fix="give at least two clean pairs, better a few thousand: WebDataset tars of KEY.jpg and KEY.txt",
    )


def _calibrate(
    job: TrainingJob, material: _Material, bundle: BundleOf[Any, Any], device: str
) -> dict[str, Any] | None:
    """Return a filter's calibration; what is no filter has none."""
    if job.kind != "filter":
        return None
    return calibrate(
        bundle, material.pairs, material.held_out, device=device, precision=job.precision, seed=job.seed
    )


def _calibrate_again(job: TrainingJob, material: _Material, device: str) -> None:
    """Measure a filter that is there already, if it was measured in another precision."""
    from capfilt.models.loading import open_bundle

    if job.kind != "filter" or (read_calibration(job.out) or {}).get("precision") == job.precision:
        return
    calibration = _calibrate(job, material, open_bundle(job.out), device)
    write_whole(job.out / CALIBRATION_FILE, canonical_json(calibration) + "\n")
