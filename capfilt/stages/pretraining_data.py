"""What a pre-training trains on: pairs that are streamed from shards, or instructions of many data sets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from capfilt.canonical import digest_of
from capfilt.data.stream import Stream
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from capfilt.settings import Images
    from capfilt.stages.families import Begun
    from capfilt.stages.pretraining_job import PretrainingJob
    from capfilt.training.instructed import Task
    from capfilt.training.loop import Batches, HeldOut
    from capfilt.training.parallel import World

VOCABULARY_TEXTS = 1_000_000
"""Texts that a vocabulary is trained on, at most."""


@dataclass(frozen=True)
class Found:
    """What was found of the data, to be told and recorded."""

    pairs: int
    """That a pass trains on."""
    held_out: int
    refused: dict[str, int]
    """What could not be used, by reason."""
    apart: int = 0
    """Pictures that are left out since they share a group or a caption with a held-out one."""
    instructions: dict[str, Any] = field(default_factory=dict)
    """Of data sets of instructions, the files that were read and the ids of what is held out."""


@dataclass(frozen=True)
class Sources:
    """The data as batches."""

    train: Batches
    held_out: HeldOut
    met: Counter[str]
    """Pictures that could not be used when their turn came, by reason, counted as it happens."""


class Data(Protocol):
    """What a pre-training works on, surveyed and not read."""

    @property
    def found(self) -> Found:
        """What there is."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """Everything of it that the trained weights depend on; `data` is the digest of the pairs."""
        ...

    def texts(self) -> Iterator[str]:
        """Yield texts for a vocabulary to be trained on."""
        ...

    def sources(self, begun: Begun, images: Images, device: torch.device, world: World) -> Sources:
        """Return the batches of a model that was begun."""
        ...


class StreamedPairs:
    """Pairs of shards of any number."""

    def __init__(self, job: PretrainingJob) -> None:
        """Survey the shards; CapfiltError where they hold too few pairs."""
        self._job = job
        self._stream = Stream(job.pools, job.stream, job.seed, job.clean, job.clean_pools)
        survey = self._stream.survey()
        self.found = Found(survey.pairs, len(survey.held_out), dict(survey.refused), survey.apart)
        if survey.pairs < 2:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(survey.refused.items()))
            raise CapfiltError(
                f"the shards hold {survey.pairs} pairs to train on"
                + (f" (refused: {reasons})" if reasons else ""),
                fix="give WebDataset tars of KEY.jpg and KEY.txt, and weights above 0 for their texts (--set "
                "stream.web=1)",
            )

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the weights depend on."""
        return {
            "stream": self._job.stream.model_dump(mode="json"),
            "data": digest_of([pool.facts for pool in self._job.pools]),
        }

    def texts(self) -> Iterator[str]:
        """Yield the texts of the stream."""
        return islice(self._stream.texts(), VOCABULARY_TEXTS)

    def sources(self, begun: Begun, images: Images, device: torch.device, world: World) -> Sources:
        """Return the batches of a model that was begun."""
        from capfilt.training.streamed import HeldOutPairs, Reader, StreamBatches

        job = self._job
        plain = Reader(begun.vocabulary, images, begun.max_tokens, device, job.input)
        varied = replace(plain, augment=job.training.augment)
        batches = StreamBatches(self._stream, varied, world=world, threads=job.decoders)
        return Sources(batches, HeldOutPairs(self._stream, plain), batches.refused)


class Instructions:
    """Examples of the data sets that a registry holds in and whose files it names (InstructBLIP, 2.1).

    They lie in a folder beside the training's checkpoint, read from there when they are met, as pictures are.
    """

    def __init__(self, job: PretrainingJob, world: World) -> None:
        """Have the first process read the annotations; CapfiltError where no data set can be trained on."""
        from capfilt.data.instructions.kept import keep_sets, open_sets
        from capfilt.data.instructions.learnt import record_of
        from capfilt.data.instructions.registry import read_registry
        from capfilt.training.instructed import Task, split_tasks

        assert job.instructions is not None
        self._job = job
        registry = read_registry(job.instructions)
        self._datasets = [one for one in registry.held("in") if one.annotations]
        if not self._datasets:
            raise CapfiltError(
                f"{job.instructions} names the files of no data set that is held in",
                fix='give its rows `annotations` and `images`, e.g. [[dataset]] name = "vqav2"; `capfilt '
                "datasets` lists the names and which reader each takes",
            )
        folder = job.checkpoint.with_name("instructions")
        if world.leads:
            keep_sets(folder, self._datasets, threads=job.decoders)
        world.wait()
        read = open_sets(folder, self._datasets)
        tasks = [
            Task(one.dataset.name, one.examples, registry.categories[one.dataset.category].parsed())
            for one in read
        ]
        self._templates = {task.name: [template.text for template in task.templates] for task in tasks}
        placed = {"annotations", "images", "source"}
        self._digest = digest_of(
            [[one.dataset.model_dump(mode="json", exclude=placed), one.digest] for one in read]
        )
        pictures = [one.pictures for one in read]
        self._train, self._held_out = split_tasks(tasks, job.clean, pictures, seed=job.seed)
        refused: Counter[str] = Counter()
        for one in read:
            refused.update(one.refused)
        held_out = {task.name: [one.id for one in task.examples] for task in self._held_out}
        self.found = Found(
            _count(self._train),
            _count(self._held_out),
            dict(refused),
            # For the card, which the process that read the files writes.
            instructions=record_of(self._datasets, held_out) if world.leads else {},
        )

    @property
    def facts(self) -> dict[str, Any]:
        """Return what the weights depend on."""
        return {"data": self._digest, "templates": self._templates, "weights": self._weights()}

    def texts(self) -> Iterator[str]:
        """Yield what is asked and answered."""
        for task in self._train:
            for example in task.examples:
                yield from example.parts.values()
                yield from example.outputs
            yield from (template.text for template in task.templates)

    def sources(self, begun: Begun, images: Images, device: torch.device, world: World) -> Sources:
        """Return the batches of a model that was begun."""
        from capfilt.training.instructed import HeldOutInstructions, InstructedBatches, InstructionReader

        job = self._job
        plain = InstructionReader(
            language=begun.vocabulary,
            qformer=begun.reader,
            images=images,
            qformer_tokens=begun.reader_tokens,
            language_tokens=begun.max_tokens,
            device=device,
            limits=job.input,
        )
        varied = replace(plain, augment=job.training.augment)
        batches = InstructedBatches(self._train, self._weights(), varied, world=world, threads=job.decoders)
        return Sources(batches, HeldOutInstructions(self._held_out, plain, seed=job.seed), batches.refused)

    def _weights(self) -> dict[str, float]:
        from capfilt.data.instructions.sampling import sampling_weights

        read = {task.name: max(1, len(task.examples)) for task in self._train}
        return sampling_weights(self._datasets, read)


def _count(tasks: list[Task]) -> int:
    return sum(len(task.examples) for task in tasks)


def find_data(job: PretrainingJob, world: World) -> Data:
    """Survey what a pre-training is given; the processes of a training come here together."""
    return Instructions(job, world) if job.instructions is not None else StreamedPairs(job)
