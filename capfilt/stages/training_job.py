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
from capfilt.models.cards import CARD_FILE, Kind, Objective, read_card
from capfilt.versions import versions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from capfilt.models.bundle import Bundle
    from capfilt.records import Shard
    from capfilt.settings import Clean, Input, Model, Training
    from capfilt.stages.context import Tell

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
    import torch

    from capfilt.models import bundle as bundles
    from capfilt.models.devices import autocast_type
    from capfilt.models.med import MED, adopt
    from capfilt.models.vocabulary import train_vocabulary
    from capfilt.training.batches import PairBatches
    from capfilt.training.loop import Trainer

    init = bundles.load_bundle(job.init) if job.init is not None else None
    settings = init.card.model if init is not None else job.model
    pairs = read_clean(
        (*job.clean_shards, *job.web_shards), job.input, settings.images, cache_mb=job.clean.cache_mb
    )
    own = {shard.path for shard in job.clean_shards}
    clean_count = sum(pair.path in own for pair in pairs.pairs)
    _check_enough(pairs, clean_count, job)
    train, held_out = split(pairs, job.clean, seed=job.seed, held_out_from=clean_count)
    facts = _facts(job, settings, pairs, init.card.weights if init else None, torch.device(device).type)
    fingerprint = digest_of(facts)
    result = Trained("", 0, len(train), len(held_out), dict(pairs.refused), is_new=False)
    if (done := _same_training(job.out, fingerprint)) is not None:
        return replace(result, weights=done)

    torch.manual_seed(job.seed)
    if init is not None:
        vocabulary = init.vocabulary
    else:
        vocabulary = train_vocabulary((pair.text for pair in pairs.pairs), settings.text.vocabulary)
    objectives = _objectives(job.training)
    model = MED(settings, len(vocabulary), objectives)
    if init is not None:
        adopt(model, init.model.state_dict())
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

    trainer = Trainer(
        model=model,
        vocabulary=vocabulary,
        training=job.training,
        train=batches(train),
        held_out=batches(held_out),
        name=job.kind,
        seed=job.seed,
        autocast=autocast_type(job.precision),
        checkpoint=job.checkpoint,
        fingerprint=fingerprint,
        progress=lambda steps, total, _: tell(steps, total),
    )
    trainer.run()

    # What helped the training and does not serve the model's purpose stays behind.
    final = MED(settings, len(vocabulary), [name for name in objectives if name in SERVES[job.kind]])
    adopt(final, model.state_dict())
    packed = bundles.pack(
        job.out,
        kind=job.kind,
        model=final,
        settings=settings,
        vocabulary=vocabulary,
        parent=facts["init"],
        data=facts["data"],
        training={**facts, "fingerprint": fingerprint, "pairs": len(train), "held_out": len(held_out)},
        versions=versions(),
    )
    calibration = _calibrate(packed.bundle, pairs, held_out, job, device) if job.kind == "filter" else None
    packed.write(calibration, trainer.rows)
    job.checkpoint.unlink(missing_ok=True)
    steps = sum(map(trainer.steps_of, job.training.phases))
    return replace(result, weights=packed.bundle.card.weights, steps=steps, is_new=True)


def _objectives(training: Training) -> list[Objective]:
    names: tuple[Objective, ...] = ("itc", "itm", "lm")
    return [name for name in names if any(getattr(phase, name) for phase in training.phases)]


def _facts(
    job: TrainingJob, settings: Model, pairs: CleanSet, init: str | None, device_type: str
) -> dict[str, Any]:
    """Return everything that the trained weights depend on."""
    return {
        "kind": job.kind,
        "model": settings.model_dump(mode="json"),
        "phases": [phase.model_dump(mode="json") for phase in job.training.phases],
        "split": job.clean.model_dump(mode="json", exclude={"cache_mb"}),
        "data": pairs.digest,
        "init": init,
        "seed": job.seed,
        "device": device_type,
        "precision": job.precision,
        "threads": job.threads,
    }


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


def _calibrate(
    bundle: Bundle, pairs: CleanSet, held_out: list[int], job: TrainingJob, device: str
) -> dict[str, Any]:
    """Measure the trained filter on held-out pairs, in the precision it will score with."""
    import torch

    from capfilt.evaluation.calibration import SCORES, measure
    from capfilt.models.devices import inference_type
    from capfilt.models.filter import MedFilter
    from capfilt.models.protocols import ImageBatch

    def batches() -> Iterator[ImageBatch]:
        for start in range(0, len(held_out), 32):
            some = held_out[start : start + 32]
            yield ImageBatch(
                [pairs.picture(index) for index in some], [pairs.pairs[index].image_sha256 for index in some]
            )

    model = MedFilter(bundle, torch.device(device), inference_type(job.precision))
    scores = [name for name in SCORES if name in bundle.card.objectives]
    return measure(model, batches, [pairs.pairs[index] for index in held_out], scores=scores, seed=job.seed)
