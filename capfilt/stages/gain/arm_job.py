"""One arm with one seed: pre-train, look along the way, fine-tune, evaluate; done by a worker."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json, digest_of
from capfilt.files import write_whole
from capfilt.models.cards import read_card
from capfilt.settings import Matching, Model
from capfilt.stages.evaluate.measure import EvaluationJob, evaluate_job
from capfilt.stages.evaluate.retrieval import RetrievalChoices
from capfilt.stages.pretraining_job import PretrainingJob, pretrain_model, snapshot
from capfilt.stages.training_job import TrainingJob, train_model

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.records import Shard
    from capfilt.settings import Decoding, Input
    from capfilt.stages.context import Tell
    from capfilt.stages.evaluate.results import Findings, Task

TASKS: tuple[Task, ...] = ("retrieval", "caption")
"""Of a pre-trained model; BLIP-2's first stage writes no captions."""
LOOKS_FILE = "looks.json"
"""Steps after which the model is kept, while an arm is on its way."""
Row = dict[str, Any]
"""One figure: arm, seed, when, step, task, row, measure, value, low, high."""


@dataclass(frozen=True)
class ArmJob:
    """Everything one arm with one seed needs, as plain values that can cross processes."""

    arm: str
    seed: int
    folder: Path
    """Where its models and its result lie."""
    pretraining: PretrainingJob
    fine_tunings: tuple[TrainingJob, ...]
    """Captioner and filter, from the pre-trained model; none where nothing is fine-tuned."""
    test: tuple[Shard, ...]
    input: Input
    decoding: Decoding
    top_k: int
    batch_size: int

    @property
    def result(self) -> Path:
        """Return the file of the figures; it is there when the arm is done."""
        return self.folder / "result.json"

    @property
    def fingerprint(self) -> str:
        """Return the digest of all that the figures depend on, models apart: these have cards."""
        own = self.pretraining
        trainings = [own.training, *(one.training for one in self.fine_tunings)]
        return digest_of(
            {
                "arm": self.arm,
                "seed": self.seed,
                "model": own.model.model_dump(mode="json"),
                "starts": [own.bundles.vision, _language_side(own)],
                "phases": [[phase.model_dump(mode="json") for phase in one.phases] for one in trainings],
                "augment": [one.augment.model_dump(mode="json") for one in trainings],
                "pools": [pool.facts for pool in own.pools],
                "clean": [[shard.digest for shard in one.clean_shards] for one in self.fine_tunings],
                "split": own.clean.model_dump(mode="json", exclude={"cache_mb"}),
                "input": self.input.model_dump(mode="json"),
                "stream": own.stream.model_dump(mode="json"),
                "computed": [own.precision, own.threads],
                "looks": list(own.snapshots),
                "test": [shard.digest for shard in self.test],
                "decoding": self.decoding.model_dump(mode="json"),
                "top_k": self.top_k,
            }
        )


def _language_side(job: PretrainingJob) -> str | None:
    """Return what reads or writes texts and was trained elsewhere: a BERT, or BLIP-2's language model."""
    return job.bundles.text if isinstance(job.model, Model) else job.bundles.language


def done_before(job: ArmJob) -> list[Row] | None:
    """Return the figures of an arm that was done before, all of them; None where it is still to do."""
    if not job.result.exists():
        return None
    record = json.loads(job.result.read_text(encoding="utf-8"))
    rows: list[Row] = record["rows"]
    return rows if record["fingerprint"] == job.fingerprint else None


def run_arm(job: ArmJob, device: str, tell: Tell) -> list[Row]:
    """Train and evaluate one arm; what is done of it is not done again."""
    if (rows := done_before(job)) is not None:
        return rows
    tell = _Named(tell, f"{job.arm}, seed {job.seed}")
    rows, captions = [], []
    joint = job.pretraining.out
    total = sum(phase.steps or 0 for phase in job.pretraining.training.phases)
    on_the_way = tuple(step for step in job.pretraining.snapshots if step != total)
    _begin(job, on_the_way)
    pretrain_model(replace(job.pretraining, snapshots=on_the_way), device, tell)
    for step in job.pretraining.snapshots:
        there = snapshot(joint, step) if step in on_the_way else joint
        for look in TASKS if isinstance(job.pretraining.model, Model) else TASKS[:1]:
            found = _evaluated(job, there, look, device)
            rows += _rows(job, "pre-trained", step, look, found)
            captions += _captions("pre-trained", step, found) if look == "caption" else []
    for fine_tuning in job.fine_tunings:
        train_model(fine_tuning, device, tell)
        task: Task = "caption" if fine_tuning.kind == "captioner" else "retrieval"
        found = _evaluated(job, fine_tuning.out, task, device)
        rows += _rows(job, "fine-tuned", total, task, found)
        captions += _captions("fine-tuned", total, found) if task == "caption" else []
    weights = {path.name: read_card(path).weights for path in (joint, *(f.out for f in job.fine_tunings))}
    record = {"fingerprint": job.fingerprint, "models": weights, "rows": rows, "captions": captions}
    write_whole(job.result, canonical_json(record) + "\n")
    (job.folder / LOOKS_FILE).unlink(missing_ok=True)
    for step in on_the_way:
        shutil.rmtree(snapshot(joint, step), ignore_errors=True)
    return rows


class _Named:
    """A worker's word, which says whose it is: arms are trained side by side."""

    def __init__(self, tell: Tell, name: str) -> None:
        self._tell, self._name = tell, name

    def __call__(self, done: int, total: int, words: str = "") -> None:
        self._tell(done, total, f"{self._name}: {words}" if words else "")


def _begin(job: ArmJob, on_the_way: tuple[int, ...]) -> None:
    """Begin anew where an earlier start did not keep the models that are to be looked at.

    They are gone with an earlier result, and a training that goes on does not come by their steps again.
    """
    looks = canonical_json(on_the_way)
    noted = job.folder / LOOKS_FILE
    if not on_the_way or (noted.exists() and noted.read_text(encoding="utf-8") == looks):
        return
    joint = job.pretraining.out
    job.pretraining.checkpoint.unlink(missing_ok=True)
    for folder in (joint, *job.folder.glob(f"{joint.name}@*")):
        shutil.rmtree(folder, ignore_errors=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    write_whole(noted, looks)


def _evaluated(job: ArmJob, model: Path, task: Task, device: str) -> Findings:
    evaluation = EvaluationJob(
        task=task,
        model=model,
        called=str(model),
        shards=job.test,
        input=job.input,
        limit=None,
        choices=RetrievalChoices(job.top_k) if task == "retrieval" else None,
        clip=None,
        decoding=read_card(model).conventions.decoding(job.decoding) if task == "caption" else None,
        matching=Matching(),
        batch_size=job.batch_size,
        precision="fp32",
        compiled=False,
        seed=job.seed,
    )
    return evaluate_job(evaluation, device, lambda *_: None)


def _rows(job: ArmJob, when: str, step: int, task: str, found: Findings) -> list[Row]:
    return [
        {
            "arm": job.arm,
            "seed": job.seed,
            "when": when,
            "step": step,
            "task": task,
            "table": one.table,
            "row": one.row,
            "measure": one.measure,
            "value": one.figure.value,
            "low": one.figure.low,
            "high": one.figure.high,
        }
        for one in found.measured
    ]


def _captions(when: str, step: int, found: Findings) -> list[dict[str, Any]]:
    return [
        {"when": when, "step": step, "key": item["key"], "caption": item["caption"]} for item in found.items
    ]
