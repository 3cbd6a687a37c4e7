"""One training, from clean pairs to a bundle; done by a worker, knows no run.

Everything the weights depend on is in the bundle's card, so that a bundle of the very same training is
taken as it is, and a checkpoint of another one is not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from capfilt.canonical import digest_of
from capfilt.data.clean import CleanSet, read_clean, split
from capfilt.errors import CapfiltError
from capfilt.files import remove_temporaries
from capfilt.models.cards import CARD_FILE, Kind, Objective, read_card
from capfilt.versions import versions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from capfilt.models.bundle import Bundle
    from capfilt.records import Shard
    from capfilt.settings import Clean, Input, Model, Training
    from capfilt.stages.context import Tell
    from capfilt.training.loop import Trainer

SERVES: dict[str, tuple[str, ...]] = {
    "captioner": ("lm",),
    "filter": ("itc", "itm"),
    "joint": ("itc", "itm", "lm"),
}
"""Which objectives' parts a model keeps."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything one training needs, as plain values that can cross processes."""

    kind: Kind
    """captioner, filter or joint."""
    out: Path
    """Bundle to write."""
    checkpoint: Path
    """Where a training in progress is kept."""
    model: Model
    training: Training
    clean_shards: tuple[Shard, ...]
    web_shards: tuple[Shard, ...]
    """Their pairs are trained on too; none of them is ever held out."""
    init: Path | None
    clean: Clean
    input: Input
    seed: int
    precision: str
    threads: int


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    weights: str
    """Digest."""
    steps: int
    pairs: int
    held_out: int
    refused: dict[str, int]
    """Samples that could not be used, by reason."""
    is_new: bool
    """False when the bundle was there already."""


def train_model(job: TrainingJob, device: str, tell: Tell) -> Trained:
    """Train one model and write its bundle; a bundle of the same training is taken as it is."""
    material = _read(job, device)
    result = Trained(
        weights=_same_training(job.out, digest_of(material.facts)) or "",
        steps=0,
        pairs=len(material.train),
        held_out=len(material.held_out),
        refused=dict(material.pairs.refused),
        is_new=False,
    )
    if result.weights:
        return result
    trainer = _trainer(job, material, device, tell)
    trainer.run()
    weights = _write_bundle(job, material, trainer, device)
    remove_temporaries(job.checkpoint)
    job.checkpoint.unlink(missing_ok=True)
    steps = sum(map(trainer.steps_of, job.training.phases))
    return replace(result, weights=weights, steps=steps, is_new=True)


@dataclass(frozen=True)
class _Material:
    """What a training works on."""

    init: Bundle | None
    settings: Model
    """How the model is built: as the one it starts from, where there is one."""
    pairs: CleanSet
    train: list[int]
    held_out: list[int]
    facts: dict[str, Any]
    """Everything that the trained weights depend on."""


def _read(job: TrainingJob, device: str) -> _Material:
    """Read the model to start from and the pairs, and split them."""
    from capfilt.models.bundle import load_bundle

    init = load_bundle(job.init) if job.init is not None else None
    settings = init.card.model if init is not None else job.model
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
        "split": job.clean.model_dump(mode="json", exclude={"cache_mb"}),
        "data": pairs.digest,
        "init": init.card.weights if init is not None else None,
        "seed": job.seed,
        "device": device.partition(":")[0],
        "precision": job.precision,
        "threads": job.threads,
    }
    return _Material(init, settings, pairs, train, held_out, facts)


def _trainer(job: TrainingJob, material: _Material, device: str, tell: Tell) -> Trainer:
    """Build the model, from scratch or from another one's weights, and what trains it."""
    import torch

    from capfilt.models.devices import autocast_type
    from capfilt.models.med import MED, adopt
    from capfilt.models.vocabulary import train_vocabulary
    from capfilt.training.batches import PairBatches
    from capfilt.training.loop import Trainer

    settings, pairs = material.settings, material.pairs
    torch.manual_seed(job.seed)
    if material.init is not None:
        vocabulary = material.init.vocabulary
    else:
        vocabulary = train_vocabulary((pair.text for pair in pairs.pairs), settings.text.vocabulary)
    model = MED(settings, len(vocabulary), _objectives(job.training))
    if material.init is not None:
        adopt(model, material.init.model.state_dict())
    model.to(device)

    def batches(indices: list[int]) -> PairBatches:
        return PairBatches(
            pairs,
            indices,
            vocabulary=vocabulary,
            images=settings.images,
            max_tokens=settings.text.max_tokens,
            device=torch.device(device),
        )

    return Trainer(
        model=model,
        vocabulary=vocabulary,
        training=job.training,
        train=batches(material.train),
        held_out=batches(material.held_out),
        name=job.kind,
        seed=job.seed,
        autocast=autocast_type(job.precision, device),
        checkpoint=job.checkpoint,
        fingerprint=digest_of(material.facts),
        progress=lambda steps, total, _: tell(steps, total),
    )


def _write_bundle(job: TrainingJob, material: _Material, trainer: Trainer, device: str) -> str:
    """Write the trained model, a filter with its calibration; returns the digest of its weights."""
    from capfilt.models.bundle import pack
    from capfilt.models.med import MED, adopt

    # What helped the training and does not serve the model's purpose stays behind.
    kept = [name for name in trainer.model.objectives if name in SERVES[job.kind]]
    model = MED(material.settings, len(trainer.vocabulary), kept)
    adopt(model, trainer.model.state_dict())
    packed = pack(
        job.out,
        kind=job.kind,
        model=model,
        settings=material.settings,
        vocabulary=trainer.vocabulary,
        parent=material.facts["init"],
        data=material.facts["data"],
        training={
            **material.facts,
            "fingerprint": digest_of(material.facts),
            "pairs": len(material.train),
            "held_out": len(material.held_out),
        },
        versions=versions(),
    )
    is_filter = job.kind == "filter"
    packed.write(_calibrate(packed.bundle, material, job, device) if is_filter else None, trainer.rows)
    return packed.bundle.card.weights


def _objectives(training: Training) -> list[Objective]:
    names: tuple[Objective, ...] = ("itc", "itm", "lm")
    return [name for name in names if any(getattr(phase, name) for phase in training.phases)]


def _same_training(path: Path, fingerprint: str) -> str | None:
    """Return the digest of a bundle that came out of this very training, if it is there."""
    if not (path / CARD_FILE).exists():
        return None
    card = read_card(path)
    return card.weights if card.training.get("fingerprint") == fingerprint else None


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


def _calibrate(bundle: Bundle, material: _Material, job: TrainingJob, device: str) -> dict[str, Any]:
    """Measure the trained filter on held-out pairs, in the precision it will score with."""
    import torch

    from capfilt.evaluation.calibration import SCORES, measure
    from capfilt.models.filter import MedFilter
    from capfilt.models.protocols import ImageBatch

    pairs, held_out = material.pairs, material.held_out

    def batches() -> Iterator[ImageBatch]:
        for start in range(0, len(held_out), 32):
            some = held_out[start : start + 32]
            yield ImageBatch(
                [pairs.picture(index) for index in some], [pairs.pairs[index].image_sha256 for index in some]
            )

    model = MedFilter(bundle, torch.device(device), job.precision)
    scores = [name for name in SCORES if name in bundle.card.objectives]
    return measure(model, batches, [pairs.pairs[index] for index in held_out], scores=scores, seed=job.seed)
