"""One evaluation, from what was typed to what was found; one worker does it, as a run's workers would.

Nothing is left behind: a model that is no bundle is made into one in a folder that goes with the command.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capfilt.data.sources import find_shards
from capfilt.errors import CapfiltError
from capfilt.models.cards import Objective, read_card
from capfilt.stages.bootstrap import resolve_devices
from capfilt.stages.evaluate.filtering import FilterChoices, measure_filter
from capfilt.stages.evaluate.pairs import read_pairs
from capfilt.stages.evaluate.results import Evaluation, Findings, Task
from capfilt.stages.evaluate.retrieval import RetrievalChoices, measure_retrieval
from capfilt.stages.given import given_bundle, wanted
from capfilt.stages.shard import load_captioner, load_filter
from capfilt.stages.worker import seen_in_a_worker

if TYPE_CHECKING:
    from capfilt.records import Shard
    from capfilt.settings import Bootstrap, Input, Matching, SettledDecoding
    from capfilt.stages.context import Engine, Progress, Tell
    from capfilt.stages.evaluate.pairs import Pairs

Choices = RetrievalChoices | FilterChoices | None
"""What a task lets one choose; of captions it is all in the decoding."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What is to be evaluated."""

    task: Task
    model: str
    data: str
    settings: Bootstrap
    choices: Choices = None
    limit: int | None = None
    """Pictures that are read, the first ones; when not given, all."""
    clip: str | None = None
    """Folder or hub id of a dual encoder that stands beside it."""


@dataclass(frozen=True)
class EvaluationJob:
    """The same as a worker is given it, as plain values."""

    task: Task
    model: Path
    called: str
    """The model as it was typed, for the words of an error."""
    shards: tuple[Shard, ...]
    input: Input
    limit: int | None
    choices: Choices
    clip: str | None
    decoding: SettledDecoding | None
    matching: Matching
    batch_size: int
    precision: str
    compiled: bool
    seed: int


def evaluate(request: EvaluationRequest, engine: Engine, progress: Progress) -> Evaluation:
    """Evaluate in one worker; nothing of the input is changed.

    Raises CapfiltError where there is no usable pair, or where the model cannot do what it is evaluated for.
    """
    settings = request.settings
    shards = find_shards(request.data)
    devices, precision = resolve_devices(settings.compute, engine)
    device = devices[0]
    with tempfile.TemporaryDirectory(prefix="capfilt-evaluate-") as folder:
        model = taken(request.task, request.model, settings, Path(folder) / "model", engine)
        card = read_card(model)
        job = EvaluationJob(
            task=request.task,
            model=model,
            called=request.model,
            shards=tuple(shards),
            input=settings.input,
            limit=request.limit,
            choices=request.choices,
            clip=_absolute(request.clip),
            decoding=card.conventions.decoding(settings.decoding) if request.task == "caption" else None,
            matching=settings.filter,
            batch_size=settings.compute.images_at_once(device),
            precision=precision,
            compiled=settings.compute.compile,
            seed=settings.seed,
        )
        if precision != "fp32":
            where = device.partition(":")[0]
            progress.say(f"models compute in {precision} on {where}; --precision fp32 is exact")
        found = seen_in_a_worker(
            engine, evaluate_job, job, progress, "evaluate", device=device, threads=settings.compute.threads
        )
    facts = {
        "weights": card.weights,
        "objectives": list(card.objectives),
        "device": device,
        "precision": precision,
        "batch_size": job.batch_size,
        "seed": job.seed,
    }
    return Evaluation(
        request.task, request.model, request.data, replace(found, facts={**facts, **found.facts})
    )


def taken(task: Task, model: str, settings: Bootstrap, folder: Path, engine: Engine) -> Path:
    """Return the bundle of a model, which must have learnt what the task needs.

    Raises CapfiltError for one that has not, and as `given_bundle` does.
    """
    role, needs = _ROLES[task]
    bundle = given_bundle(wanted(role, model, settings), folder, engine)
    card = read_card(bundle)
    # One that answers questions scores pairs too, and what it lacks for a task is told there.
    if not needs.intersection(card.objectives) and not (role == "filter" and card.is_instructed):
        verb = "write captions" if role == "captioner" else "score pairs"
        raise CapfiltError(
            f"{model} cannot {verb}: it is a {card.kind} trained for {', '.join(card.objectives)}",
            fix=f"give a model that was trained for {' or '.join(sorted(needs))}",
        )
    return bundle


def _absolute(source: str | None) -> str | None:
    """Return a path that exists as an absolute one: a worker may have been started elsewhere."""
    return str(Path(source).absolute()) if source is not None and Path(source).exists() else source


# -- in the worker


def evaluate_job(job: EvaluationJob, device: str, tell: Tell) -> Findings:
    """Evaluate; done by a worker."""
    kind_field = job.choices.kind_field if isinstance(job.choices, FilterChoices) else None
    pairs = read_pairs(job.shards, job.input, limit=job.limit, kind_field=kind_field)
    found = (
        _captions(job, pairs, device, tell) if job.task == "caption" else _scores(job, pairs, device, tell)
    )
    facts = {
        "pairs": len(pairs.pairs),
        "pictures": pairs.pictures,
        "texts": len(pairs.texts),
        "refused": dict(pairs.refused),
        "is_cut": pairs.is_cut,
        "data_digest": pairs.digest,
    }
    return replace(found, facts={**facts, **found.facts})


def _captions(job: EvaluationJob, pairs: Pairs, device: str, tell: Tell) -> Findings:
    from capfilt.stages.evaluate.caption import measure_captions

    assert job.decoding is not None
    model = load_captioner(job.model, device, job.precision, job.compiled)
    return measure_captions(pairs, model, job.decoding, batch_size=job.batch_size, seed=job.seed, tell=tell)


def _scores(job: EvaluationJob, pairs: Pairs, device: str, tell: Tell) -> Findings:
    from capfilt.models.protocols import FeatureFilter
    from capfilt.stages.evaluate.dual_encoder import DualEncoder

    model = load_filter(job.model, device, job.precision, job.matching, job.compiled)
    if not isinstance(model, FeatureFilter) or not (model.has_itc or model.has_itm):
        raise CapfiltError(
            f"{job.called} gives scores and no features, by which candidates and the hardest wrong texts are "
            "found",
            fix="give a filter of BLIP or BLIP-2, or a dual encoder such as CLIP or SigLIP",
        )
    clip = DualEncoder(job.clip, device) if job.clip is not None else None
    shared: dict[str, Any] = {"batch_size": job.batch_size, "seed": job.seed, "clip": clip, "tell": tell}
    before = model.encoder_passes
    if isinstance(job.choices, FilterChoices):
        found = measure_filter(pairs, model, job.choices, **shared)
    else:
        choices = job.choices or RetrievalChoices()
        found = measure_retrieval(pairs, model, choices, **shared)
    facts = {
        "encoder_passes": model.encoder_passes - before,
        "dual_encoder": clip.facts if clip is not None else None,
    }
    return replace(found, facts={**found.facts, **facts})


_ROLES: dict[Task, tuple[Any, frozenset[Objective]]] = {
    "retrieval": ("filter", frozenset({"itc", "itm"})),
    "filter": ("filter", frozenset({"itc", "itm"})),
    "caption": ("captioner", frozenset({"lm"})),
    "answers": ("captioner", frozenset({"lm"})),
}
"""What a model must be for a task, and the objectives of which one teaches it."""
