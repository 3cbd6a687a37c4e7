"""Answers to the instructions of many data sets, each by its own metric, held in and held out apart.

An answer is written, or the likeliest of the candidates; which, the metric of the data set says. Beside the
model stands what needs no picture: the commonest answer of the set, or a random order of the candidates.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from capfilt.data.instructions.learnt import Trainings
from capfilt.data.instructions.reading import read_examples
from capfilt.data.instructions.registry import NEEDS_READER, read_registry
from capfilt.draws import permutation
from capfilt.errors import CapfiltError
from capfilt.models.cards import read_card
from capfilt.stages.bootstrap import resolve_devices
from capfilt.stages.evaluate.answered import BLIND, RANKS, TABLES, AskedDataset
from capfilt.stages.evaluate.asking import Pictures, put_into_words, ranked, written
from capfilt.stages.evaluate.measure import taken
from capfilt.stages.evaluate.results import Evaluation, Findings
from capfilt.stages.worker import seen_in_a_worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.data.instructions.example import Example
    from capfilt.data.instructions.registry import Category, Dataset, Metric, Registry
    from capfilt.models.answering import Answering
    from capfilt.models.protocols import Captioner
    from capfilt.settings import Bootstrap, Input, SettledDecoding
    from capfilt.stages.context import Engine, Progress, Tell

CANNOT_RANK = "it has candidates to rank by their likelihood, which this captioner does not tell"
NO_METRIC = "its answers are free text, which no metric measures"
SHORTEST = 1
"""Tokens of an answer at least, unless it is chosen: a yes is one."""


@dataclass(frozen=True)
class AnswersRequest:
    """What is to be evaluated."""

    model: str
    registry: Path
    """The user's own rows, which say where files lie."""
    settings: Bootstrap
    datasets: tuple[str, ...] = ()
    """Names of those to ask; when not given, all whose files the registry names."""
    limit: int | None = None
    """Examples of each data set, drawn by the seed; when not given, all."""


@dataclass(frozen=True)
class AnswersJob:
    """The same as a worker is given it, as plain values."""

    model: Path
    datasets: tuple[Dataset, ...]
    categories: dict[str, Category]
    skipped: dict[str, str]
    limit: int | None
    input: Input
    decoding: SettledDecoding
    batch_size: int
    precision: str
    seed: int


def evaluate_answers(request: AnswersRequest, engine: Engine, progress: Progress) -> Evaluation:
    """Ask every data set in one worker.

    Raises CapfiltError where no data set can be asked, for a name that there is not, and where the model
    writes nothing.
    """
    settings = request.settings
    if settings.decoding.prompt is not None:
        raise CapfiltError(
            "a prompt is given, and the templates of each data set say what is asked",
            fix="leave decoding.prompt out; a [category.NAME] group of the registry changes its templates",
        )
    registry = read_registry(request.registry.absolute())
    datasets, skipped = _chosen(registry, request)
    devices, precision = resolve_devices(settings.compute, engine)
    with tempfile.TemporaryDirectory(prefix="capfilt-evaluate-") as folder:
        model = taken("answers", request.model, settings, Path(folder) / "model", engine)
        card = read_card(model)
        chosen = settings.decoding
        if chosen.min_tokens is None:
            shortest = SHORTEST if chosen.max_tokens is None else min(SHORTEST, chosen.max_tokens)
            chosen = chosen.model_copy(update={"min_tokens": shortest})
        job = AnswersJob(
            model=model,
            datasets=tuple(datasets),
            categories={one.category: registry.categories[one.category] for one in datasets},
            skipped=skipped,
            limit=request.limit,
            input=settings.input,
            decoding=card.conventions.decoding(chosen),
            batch_size=settings.compute.images_at_once(devices[0]),
            precision=precision,
            seed=settings.seed,
        )
        found = seen_in_a_worker(
            engine,
            answers_job,
            job,
            progress,
            "evaluate",
            device=devices[0],
            threads=settings.compute.threads,
        )
    facts = {
        "weights": card.weights,
        "objectives": list(card.objectives),
        "device": devices[0],
        "precision": precision,
        "batch_size": job.batch_size,
        "seed": job.seed,
        **found.facts,
    }
    found = Findings(found.measured, found.items, found.notes, facts)
    return Evaluation("answers", request.model, str(request.registry), found)


def _chosen(registry: Registry, request: AnswersRequest) -> tuple[list[Dataset], dict[str, str]]:
    """Return the data sets to ask, and why others are not whose files are named."""
    if request.datasets:
        named = [registry.dataset(name) for name in dict.fromkeys(request.datasets)]
        for one in named:
            if one.metric is None:
                raise CapfiltError(
                    f"data set {one.name} has no metric: its answers are free text",
                    fix="leave it out, or give its row a metric, e.g. exact",
                )
        return named, {}
    here = [one for one in registry.datasets.values() if one.images is not None or one.annotations]
    skipped = {one.name: NO_METRIC for one in here if one.metric is None}
    skipped |= {one.name: NEEDS_READER for one in here if one.reader is None}
    asked = [one for one in here if one.name not in skipped]
    if skipped and not asked:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise CapfiltError(
            f"{request.registry} names the files of data sets none of which can be measured: {reasons}",
            fix='give a row whose answers are short a metric, e.g. metric = "exact", and one without a '
            'reader its examples as image, text_input and text_output, with reader = "instructions"',
        )
    if not asked:
        raise CapfiltError(
            f"{request.registry} names the files of no data set that can be measured",
            fix='give rows `annotations` and `images`, e.g. [[dataset]] name = "gqa"; `capfilt datasets` '
            "lists the names and which reader each takes",
        )
    return asked, skipped


# -- in the worker


def answers_job(job: AnswersJob, device: str, tell: Tell) -> Findings:
    """Ask every data set; done by a worker."""
    captioner, answering = _models(job, device)
    trainings = Trainings.on_card(read_card(job.model).training)
    skipped = dict(job.skipped)
    read = []
    for dataset in job.datasets:
        if dataset.metric in RANKS and answering is None:
            skipped[dataset.name] = CANNOT_RANK
            continue
        reading = read_examples(dataset)
        examples = [one for one in reading.examples if _can_be_measured(one, dataset.metric)]
        refused = Counter({str(reason): count for reason, count in reading.refused.items()})
        refused["no_answer"] += len(reading.examples) - len(examples)
        unlearnt, learnt = trainings.unlearnt(dataset, examples)
        some = _drawn(unlearnt, job, dataset.name)
        asked = put_into_words(some, job.categories[dataset.category])
        read.append(AskedDataset(dataset, asked, {}, refused, learnt, len(examples)))
    done, total = 0, sum(len(one.asked) for one in read)

    def hear(more: int) -> None:
        nonlocal done
        done += more
        tell(done, total)

    findings: list[AskedDataset] = []
    for one in read:
        dataset, asked = one.dataset, one.asked
        pictures = Pictures(job.input)
        if dataset.metric in RANKS and answering is not None:
            answered = ranked(asked, answering, pictures, batch_size=job.batch_size, hear=hear)
        else:
            answered = written(
                asked,
                captioner,
                job.decoding,
                pictures,
                batch_size=job.batch_size,
                seed=job.seed,
                hear=hear,
            )
        lost = (asked[number].example.image for number in range(len(asked)) if number not in answered)
        unseen = Counter(pictures.refused[path] for path in lost)
        found = replace(one, answered=answered, refused=+(one.refused + unseen))
        if reason := found.lacking:
            skipped[dataset.name] = reason
        else:
            findings.append(found)
    return _gathered(job, findings, skipped)


def _models(job: AnswersJob, device: str) -> tuple[Captioner, Answering | None]:
    """Return the captioner and, of a model whose likelihoods can be asked for, what tells them."""
    from capfilt.models.loading import captioner_from, captioner_of, open_bundle

    card = read_card(job.model)
    if not (card.is_qformer and card.kind == "captioner"):
        return captioner_of(job.model, device, job.precision), None
    import torch

    from capfilt.models.answering import Answering

    bundle = open_bundle(job.model)
    captioner = captioner_from(bundle, device, job.precision)
    return captioner, Answering(bundle, torch.device(device), job.precision)


def _can_be_measured(example: Example, metric: Metric | None) -> bool:
    """Return whether it is known what is right; of a public test set it may not be."""
    if metric in RANKS:
        several = len(example.candidates) == 2 if metric == "auroc" else len(example.candidates) > 1
        return example.right is not None and several
    return any(example.answers)


def _drawn(examples: Sequence[Example], job: AnswersJob, name: str) -> list[Example]:
    if job.limit is None or len(examples) <= job.limit:
        return list(examples)
    numbers = permutation(len(examples), "answers", job.seed, name)[: job.limit]
    return [examples[number] for number in sorted(numbers.tolist())]


def _gathered(job: AnswersJob, findings: Sequence[AskedDataset], skipped: dict[str, str]) -> Findings:
    ordered = sorted(findings, key=lambda one: list(TABLES).index(one.dataset.held))
    if not ordered:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise CapfiltError(
            f"no data set could be measured: {reasons}",
            fix="look at the files that the registry names, or give other data sets, e.g. --datasets gqa",
        )
    counts = ", ".join(f"{one.dataset.name} {len(one.answered):,}" for one in ordered)
    return Findings(
        measured=[figure for one in ordered for figure in one.figures(job.seed)],
        items=[item for one in ordered for item in one.items()],
        notes=[
            f"Examples: {counts}.",
            *(words for one in ordered if (words := one.told)),
            f"{BLIND}: the commonest answer of the set, or what a random order of the candidates gives.",
            "Which sets are held out is the registry's word (InstructBLIP's, unless yours says otherwise): "
            "figures are zero-shot for a model that was not trained on them.",
            *(f"{name} is left out: {reason}." for name, reason in skipped.items()),
        ],
        facts={
            "datasets": {one.dataset.name: one.facts() for one in ordered},
            "skipped": skipped,
            "decoding": job.decoding.model_dump(mode="json", exclude={"prompt"}),
            "pictures": sum(one.pictures for one in ordered),
            "texts": sum(len(one.answered) for one in ordered),
            "refused": dict(sum((one.refused for one in ordered), Counter())),
            "is_cut": job.limit is not None,
        },
    )
