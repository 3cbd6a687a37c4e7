"""Pre-train the model that the next round starts from, on what this round exported and the clean pairs.

It is a fresh one. Continuing the model that the round started from does not help: the paper likens it to
distillation, where a student does not begin as its teacher (BLIP, section 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json
from capfilt.data.sources import find_shards
from capfilt.data.stream import TarPool
from capfilt.errors import CapfiltError
from capfilt.files import write_whole
from capfilt.models.cards import CARD_FILE, read_card
from capfilt.provenance.commit import manifests
from capfilt.provenance.differences import differences
from capfilt.provenance.lineage import export_digest, read_export
from capfilt.provenance.policy import newest_policy
from capfilt.provenance.rundir import read_json
from capfilt.settings import Judge
from capfilt.stages.clean_pool import clean_pool
from capfilt.stages.context import Outcome
from capfilt.stages.judge import policy_of
from capfilt.stages.lineage import record_bundle
from capfilt.stages.pretrain import run_pretraining, setting_of, told, training_of
from capfilt.stages.pretraining_job import PretrainingJob
from capfilt.stages.shard import decoders

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capfilt.provenance.rundir import RunDir
    from capfilt.settings import Bootstrap
    from capfilt.stages.context import Context

Record = dict[str, Any]
"""What is recorded of the model: its digest, that of its pairs and of the export, who wrote and kept the
export's texts, and the choices behind it."""


@dataclass(frozen=True)
class PretrainNext:
    """Stage: a fresh joint model, `models/next`, from the run's own export and the clean pairs."""

    seed: int
    """Of the next round."""
    following: RunDir
    """The next round."""
    name: str = "pretrain_next"

    def settings(self, context: Context) -> dict[str, Any]:
        """Return the training and how its pairs are drawn."""
        return _choices(context.settings, self.seed)

    def run(self, context: Context) -> Outcome:
        """Pre-train it, unless this very model is there, and record what it comes from."""
        run = context.run
        manifest, policy = read_export(run), newest_policy(run)
        if manifest is None or policy is None:
            raise CapfiltError(
                f"{run.path} has no export that a next round could learn from",
                fix="let the pipeline's stages end with JudgePairs() and ExportPairs()",
            )
        digest = export_digest(manifest)
        facts = {
            **_choices(context.settings, self.seed),
            "parts": context.parts.only(("vision", "text")),
            "policy": policy[1].words,
            "export": digest,
        }
        known = read_record(run)
        if known is not None and known["facts"] == facts and _stands(run, known):
            return Outcome(detail="joint: trained before", count=0)
        check_unchanged(run, facts, self.following)
        result = run_pretraining(
            self._job(context), context.devices[0], context.engine, context.progress, "pretrain next"
        )
        bundle = run.model("next")
        record_bundle(run, bundle)
        write_whole(run.next_file, canonical_json(self._record(context, facts)))
        context.progress.say(told(result))
        return Outcome(detail=told(result), count=result.steps)

    def _job(self, context: Context) -> PretrainingJob:
        settings = context.settings
        clean = tuple(context.clean)
        return PretrainingJob(
            out=context.run.model("next"),
            checkpoint=context.run.training("next") / "checkpoint.pt",
            model=settings.model,
            training=training_of(settings),
            pools=(
                TarPool(tuple(find_shards(context.run.export)), settings.input, "web"),
                clean_pool(clean, settings, self.seed, context.engine),
            ),
            clean_pools=(1,),
            stream=settings.stream,
            clean=settings.clean,
            input=settings.input,
            bundles=settings.bundles,
            parts=context.parts.of_a_qformer,
            init=None,
            seed=self.seed,
            precision=context.precision,
            threads=settings.compute.threads,
            setting=setting_of(settings),
            decoders=decoders(settings.compute, context.devices),
        )

    def _record(self, context: Context, facts: dict[str, Any]) -> Record:
        run = context.run
        card, policy = read_card(run.model("next")), newest_policy(run)
        captioner = run.model("captioner")
        return {
            "round": context.round,
            "model": card.weights,
            "data": card.data,
            "export": facts["export"],
            "captioner": read_card(captioner).digest if context.settings.recaption else None,
            "filter": policy[1].filter if policy is not None else None,
            "facts": facts,
        }


def read_record(run: RunDir) -> Record | None:
    """Return what is recorded of the model that was pre-trained on a run's export; None before that."""
    if not run.next_file.exists():
        return None
    record: Record = read_json(run.next_file, mend="remove the file and give the same command again")
    return record


def planned(run: RunDir, settings: Bootstrap, seed: int) -> dict[str, Any]:
    """Return what is known beforehand of what a next round would start from: all but the export's bytes."""
    facts = _choices(settings, seed)
    if manifests(run):
        facts["policy"] = policy_of(run, settings.judge if settings.score else Judge()).words
    return facts


def check_unchanged(run: RunDir, facts: Mapping[str, Any], following: RunDir) -> None:
    """Refuse to replace what a round that has begun started from; `facts` may leave out some."""
    known = read_record(run)
    if known is None or not following.run_file.exists():
        return
    recorded = {name: known["facts"].get(name) for name in facts}
    found = differences(recorded, dict(facts))
    if found:
        raise CapfiltError(
            f"{following.path} began from other choices (recorded -> given):\n"
            + "\n".join(f"    {line}" for line in found),
            fix="give the recorded values again, or another --out; or remove that folder and those of later "
            "rounds, to do them anew",
        )


def _choices(settings: Bootstrap, seed: int) -> dict[str, Any]:
    """Return the choices that the model depends on and that the run's own facts do not hold."""
    training = training_of(settings)
    return {
        "training": training.model_dump(mode="json", include={"phases", "augment"}),
        "stream": settings.stream.model_dump(mode="json"),
        "seed": seed,
        "texts": settings.export.texts,
        "samples_per_shard": settings.export.samples_per_shard,
    }


def _stands(run: RunDir, known: Record) -> bool:
    bundle = run.model("next")
    return (bundle / CARD_FILE).exists() and read_card(bundle).weights == known["model"]
