"""The one data loop under a stopwatch: what `stages.shard` does with the first samples, part by part.

It calls the same pieces in the same order. One after another, the parts add up to the whole; with pictures
decoded ahead, as on a GPU, only the whole can be measured. What a shard costs once, its index and an empty
commit, counts by the share of the shard that was looked at.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from capfilt.data.ahead import in_order
from capfilt.data.sources import read_shard
from capfilt.models.cards import Card, read_card
from capfilt.models.flops import CountedText, image_encoder_cost
from capfilt.models.inference import image_states
from capfilt.models.protocols import ImageBatch
from capfilt.provenance.commit import commit_shard
from capfilt.provenance.rundir import RunDir
from capfilt.records import Caption, Sample, Source
from capfilt.stages.recaption import recaption
from capfilt.stages.rows import caption_row, sample_row, score_rows
from capfilt.stages.score import score
from capfilt.stages.shard import (
    Decoded,
    ShardJob,
    cut,
    decode_sample,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from capfilt.models.captioner import MedCaptioner
    from capfilt.models.filter import MedFilter
    from capfilt.models.med import MED
    from capfilt.records import Shard
    from capfilt.stages.bench.instruments import Stopwatch
    from capfilt.stages.context import Tell

Row = dict[str, Any]
INDEX, EMPTY_COMMIT = "index", "empty commit"
"""Parts that a shard costs once."""
SAMPLES_TO_A_PICTURE = 8
"""So many samples are looked at for each picture that is wanted, should most of them be refused."""


@dataclass
class TimedLoop:
    """What the loop works with, and what it counts."""

    job: ShardJob
    """What is done to a shard; its `run` takes the rows."""
    shards: Sequence[Shard]
    images_wanted: int
    captioner: MedCaptioner | None
    filter: MedFilter | None
    watch: Stopwatch
    first: list[Sample] = field(default_factory=list)
    """Usable samples of the first batch."""
    samples: int = 0
    images: int = 0
    pixels: int = 0
    texts_scored: int = 0
    bytes_taken: int = 0
    bytes_opened: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    flops: Counter[str] = field(default_factory=Counter)
    """Operations by the name that the stopwatch has for a part."""

    def run(self, tell: Tell) -> None:
        """Do all of it once, one thing after another."""
        self._run(self._one_by_one(), tell)

    def run_ahead(self, samples: int, tell: Tell) -> None:
        """Do so many samples, their pictures decoded and resized ahead by the threads of the job."""
        models = (self.captioner, self.filter)
        seen_as = {model.images for model in models if model is not None}
        work = partial(decode_sample, limits=self.job.input, seen_as=seen_as)
        numbered = enumerate(islice(self._samples(), samples), start=1)
        ahead = in_order(work, numbered, threads=self.job.decoders, ahead=2 * self.job.batch_size)
        self._run(map(self._seen, ahead), tell)

    @property
    def wall_s(self) -> dict[str, float]:
        """Seconds by part; of what a shard costs once, only the share that was looked at."""
        return self._shared_out(self.watch.wall_s)

    @property
    def cpu_s(self) -> dict[str, float]:
        """CPU seconds by part, likewise."""
        return self._shared_out(self.watch.cpu_s)

    def _shared_out(self, seconds: dict[str, float]) -> dict[str, float]:
        share = min(1.0, self.bytes_taken / max(1, self.bytes_opened))
        index, empty_commit = seconds[INDEX], seconds[EMPTY_COMMIT]
        parts = {name: value for name, value in seconds.items() if name not in (INDEX, EMPTY_COMMIT)}
        parts["read"] = parts.get("read", 0.0) + share * index
        parts["commit"] = max(0.0, parts["commit"] - empty_commit) + share * empty_commit
        return parts

    def _run(self, decoded: Iterator[Decoded], tell: Tell) -> None:
        job = self.job
        rows: dict[str, list[Row]] = {"samples": [], "captions": [], "scores": []}
        nothing: dict[str, list[Row]] = {name: [] for name in rows}
        with self.watch.part("commit"):
            for group in cut(decoded, job.batch_size):
                rows["samples"] += [sample_row(one.sample, one.picture, job.round_number) for one in group]
                usable = [one for one in group if one.picture is not None]
                if usable:
                    self._do_batch(usable, rows)
                tell(self.images, self.images_wanted)
            run = RunDir(job.run)
            with self.watch.part(EMPTY_COMMIT):
                commit_shard(run, job.shard, fingerprint="", samples_in=0, **nothing)
            commit_shard(run, job.shard, fingerprint="", samples_in=self.samples, **rows)

    def _do_batch(self, usable: list[Decoded], rows: dict[str, list[Row]]) -> None:
        """Recaption and score pictures side by side, and add their rows; see `stages.shard`."""
        samples = [one.sample for one in usable]
        self.first = self.first or samples
        pictures = [one.picture for one in usable if one.picture is not None]
        names = [sample.image_sha256 or "" for sample in samples]
        batch = ImageBatch(pictures, names, [one.squares for one in usable])
        texts = [[Caption(s.web_text, Source.WEB)] if s.web_text is not None else [] for s in samples]
        if self.captioner is not None:
            written = self._captions(self.captioner, batch)
            texts = [web + synthetic for web, synthetic in zip(texts, written, strict=True)]
        writer = self.captioner.digest if self.captioner is not None else None
        for sample, mine in zip(samples, texts, strict=True):
            rows["captions"] += [caption_row(sample, caption, self.job, writer) for caption in mine]
        if self.filter is not None and any(texts):
            self._score(self.filter, batch, samples, texts, rows)

    def _captions(self, captioner: MedCaptioner, batch: ImageBatch) -> list[list[Caption]]:
        job, card = self.job, _card(self.job.captioner)
        self._encode(batch, "captioner", captioner.model, card)
        # What torch.compile made of a step cannot be looked into.
        counted = None if job.compiled else CountedText(captioner.model, card)
        with counted or nullcontext(), self.watch.part("captions"):
            written = recaption(captioner, batch, job.decoding, seed=job.seed, candidates=job.candidates)
        self.flops["captions"] += counted.batch_cost() if counted else 0
        return written

    def _score(
        self,
        model: MedFilter,
        batch: ImageBatch,
        samples: list[Sample],
        texts: list[list[Caption]],
        rows: dict[str, list[Row]],
    ) -> None:
        card = _card(self.job.filter)
        self._encode(batch, "filter", model.model, card)
        with CountedText(model.model, card) as counted, self.watch.part("scores"):
            scores = score(model, batch, texts)
        self.flops["scores"] += counted.batch_cost()
        self.texts_scored += sum(map(len, texts))
        for sample, mine, values in zip(samples, texts, scores, strict=True):
            rows["scores"] += score_rows(sample, mine, values, self.job.round_number, model.digest)

    def _encode(self, batch: ImageBatch, role: str, model: MED, card: Card) -> None:
        """Make a batch's squares and states; what an equal encoder made of it is taken as it is."""
        with self.watch.part("resize"):
            batch.squares(card.med.images)
        before = model.image.passes
        with self.watch.part(f"image encoder {role}"), torch.inference_mode():
            image_states(batch, model, card, self.job.precision)
        passes = model.image.passes - before
        self.flops[f"image encoder {role}"] += passes * image_encoder_cost(card.med).flops

    def _one_by_one(self) -> Iterator[Decoded]:
        """Yield the first samples with their pictures, until there are as many pictures as are wanted."""
        most = SAMPLES_TO_A_PICTURE * self.images_wanted
        for numbered in enumerate(islice(self._samples(), most), start=1):
            with self.watch.part("decode"):
                decoded = decode_sample(numbered, limits=self.job.input, seen_as=())
            yield self._seen(decoded)
            if self.images == self.images_wanted:
                return

    def _seen(self, decoded: Decoded) -> Decoded:
        """Count a sample."""
        self.samples += 1
        if decoded.picture is not None:
            self.images += 1
            self.pixels += decoded.picture.width * decoded.picture.height
        else:
            self.refusals[str(decoded.sample.reason)] += 1
        return decoded

    def _samples(self) -> Iterator[Sample]:
        """Yield samples of all shards as if they were one's, with keys that are theirs alone."""
        number = 0
        for shard in self.shards:
            self.bytes_opened += shard.size
            _drop_cached(shard.path)
            reading = read_shard(shard, self.job.input)
            part = INDEX  # it is made before the first sample
            while True:
                with self.watch.part(part):
                    sample = next(reading, None)
                if sample is None:
                    break
                part, number = "read", number + 1
                self.bytes_taken += len(sample.image or b"")
                yield replace(sample, shard=self.job.shard.name, key=f"{number} {sample.key}")


@lru_cache(maxsize=2)
def _card(bundle: Path | None) -> Card:
    assert bundle is not None
    return read_card(bundle)


def _drop_cached(path: Path) -> None:
    """Have a file read from where it lies, not from what the system kept of it, where that can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
