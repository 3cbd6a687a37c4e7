"""Train captioner and filter on clean pairs, as two separate models, side by side.

Separate, since a filter that shares weights with the captioner excuses its captions (BLIP, table 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt.models.cards import Kind, read_calibration
from capfilt.stages.context import Context, Outcome
from capfilt.stages.judge import warnings_of
from capfilt.stages.lineage import record_bundle
from capfilt.stages.start_models import check_parts
from capfilt.stages.training_job import (
    TrainingJob,
    check_joint_first,
    check_shared_vision,
    told_of_fresh_parts,
    train_model,
)

if TYPE_CHECKING:
    from capfilt.settings import Bootstrap, Training
    from capfilt.stages.trained import Trained


@dataclass(frozen=True)
class TrainModels:
    """Stage: train the models that were not given; both at once where there is room for two."""

    kinds: tuple[Kind, ...]
    """captioner, filter, or joint for both to start from."""

    @property
    def name(self) -> str:
        """Name in the record."""
        return "train_" + "_and_".join(self.kinds)

    def settings(self, context: Context) -> dict[str, Any]:
        """Return the trainings, with the structure they share."""
        trainings: dict[str, Any] = {
            kind: _training_of(context, kind).model_dump(mode="json") for kind in self.kinds
        }
        return {"model": context.settings.model.model_dump(mode="json"), **trainings}

    def run(self, context: Context) -> Outcome:
        """Train each model that is not given and not there already, and record it."""
        jobs = [self._job(context, kind) for kind in self.kinds]
        for job in jobs:
            context.progress.begin(_task(job), "steps")
        results: dict[int, Trained] = {}
        for number, result in context.engine.run(
            train_model,
            jobs,
            devices=context.devices[: len(jobs)],
            threads=context.settings.compute.threads,
            hear=lambda number, done, total: context.progress.update(_task(jobs[number]), done, total),
            say=context.progress.say,
        ):
            results[number] = result
            context.progress.end(_task(jobs[number]))
            record_bundle(context.run, jobs[number].out)
        details = [_summary(job, results[number]) for number, job in enumerate(jobs)]
        for line in [
            *details,
            *(told_of_fresh_parts(job, results[number]) for number, job in enumerate(jobs)),
        ]:
            if line:
                context.progress.say(line)
        if "filter" in self.kinds:
            for line in warnings_of(read_calibration(context.run.model("filter"))):
                context.progress.say(line)
        return Outcome(detail="; ".join(details), count=sum(result.steps for result in results.values()))

    def _job(self, context: Context, kind: Kind) -> TrainingJob:
        settings = context.settings
        init = None
        if settings.bundles.init is not None:
            init = context.run.model("init")
        elif kind != "joint" and settings.pretrain is not None:
            init = context.run.model("joint")
        return TrainingJob(
            kind=kind,
            out=context.run.model(kind),
            checkpoint=context.run.training(kind) / "checkpoint.pt",
            model=settings.model,
            training=_training_of(context, kind),
            clean_shards=tuple(context.clean),
            web_shards=tuple(context.web) if kind == "joint" and settings.pretrain_on == "clean+web" else (),
            init=init,
            clean=settings.clean,
            input=settings.input,
            seed=settings.seed,
            precision=context.precision,
            threads=settings.compute.threads,
            start=settings.bundles,
            parts=context.parts.of_a_qformer,
        )


def models_to_train(settings: Bootstrap) -> list[TrainModels]:
    """Return the training stages that are needed: none for what is given or not used.

    From scratch the joint pre-training, where the settings ask for one, comes first.
    """
    given = settings.bundles
    kinds: list[Kind] = []
    if settings.recaption and given.captioner is None:
        kinds.append("captioner")
    if settings.score and given.filter is None:
        kinds.append("filter")
    if not kinds:
        return []
    check_joint_first(settings)
    needs_joint = settings.pretrain is not None and given.init is None
    if given.init is None:
        check_parts(settings.model, given, kinds)
    for kind in kinds:
        check_shared_vision(settings.model, kind, starts_from_a_model=needs_joint or given.init is not None)
    return [*([TrainModels(("joint",))] if needs_joint else []), TrainModels(tuple(kinds))]


def _training_of(context: Context, kind: Kind) -> Training:
    settings = context.settings
    if kind == "joint":
        if settings.pretrain is None:
            raise ValueError("a joint model is trained only where settings.pretrain says how")
        return settings.pretrain
    return settings.captioner_training if kind == "captioner" else settings.filter_training


def _task(job: TrainingJob) -> str:
    return f"train {job.kind}"


def _summary(job: TrainingJob, result: Trained) -> str:
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(result.refused.items()))
    what = f"{job.kind}: {result.pairs} pairs to train on, {result.held_out} held out"
    what += f", refused {refused}" if refused else ""
    return what + ("" if result.is_new else "; trained before")
