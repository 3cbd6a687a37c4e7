"""Recaption and score every shard that is not committed yet, in one pass over the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from capfilt.canonical import digest_of
from capfilt.models.cards import read_card
from capfilt.provenance.commit import committed, unfinished_captions
from capfilt.records import Unfinished
from capfilt.settings import SettledDecoding
from capfilt.stages.context import Context, Outcome
from capfilt.stages.lineage import record_bundle
from capfilt.stages.shard import ShardJob, decoders, run_shard


@dataclass(frozen=True)
class RecaptionAndScore:
    """Stage: one pass over the web shards with the captioner, the filter, or both."""

    recaption: bool = True
    score: bool = True

    @property
    def name(self) -> str:
        """Name in the record."""
        verbs = (("recaption", self.recaption), ("score", self.score))
        return "_and_".join(verb for verb, is_done in verbs if is_done) or "read"

    def settings(self, context: Context) -> dict[str, Any]:
        """Return everything the rows depend on."""
        return self._facts(context)

    def run(self, context: Context) -> Outcome:
        """Hand out the shards that are missing; a shard is committed by the worker that did it."""
        facts = self._facts(context)
        jobs = [
            ShardJob(
                run=context.run.path,
                shard=shard,
                fingerprint=digest_of({**facts, "shard": [shard.name, shard.size, shard.digest]}),
                captioner=context.run.model("captioner") if self.recaption else None,
                filter=context.run.model("filter") if self.score else None,
                decoding=SettledDecoding(**(facts["decoding"] or {})),
                matching=context.settings.filter,
                candidates=context.settings.candidates,
                seed=context.settings.seed,
                input=context.settings.input,
                batch_size=facts["batch_size"],
                decoders=decoders(context.settings.compute, context.devices),
                compiled=facts["compile"],
                precision=context.precision,
                round_number=context.round,
            )
            for shard in context.web
        ]
        for job in jobs[:1]:
            for path in (job.captioner, job.filter):
                if path is not None:
                    record_bundle(context.run, path)
        waiting = [job for job in jobs if not committed(context.run, job.shard, job.fingerprint)]
        if waiting:
            context.say_precision()
        samples, images = self._work(context, waiting)
        detail = f"{len(waiting)} shards, {samples} samples, {images} images"
        if before := len(jobs) - len(waiting):
            detail += f"; {before} shards were done before"
        if unfinished := unfinished_captions(context.run):
            words = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in unfinished.items())
            detail += f"; unfinished captions: {words}"
            for line in _told_of(unfinished, jobs[0].decoding.max_tokens):
                context.progress.say(line)
        return Outcome(detail=detail, count=images)

    def _work(self, context: Context, jobs: list[ShardJob]) -> tuple[int, int]:
        """Do the shards; returns how many samples they hold and how many pictures were used."""
        task = self.name.replace("_", " ")
        context.progress.begin(task, "images")
        done: dict[int, int] = {}
        bytes_done: dict[int, int] = {}
        bytes_all = sum(job.shard.size for job in jobs)

        def hear(number: int, samples_done: int, shard_bytes_done: int) -> None:
            done[number], bytes_done[number] = samples_done, shard_bytes_done
            so_far = sum(done.values())
            # How many samples a shard holds is known at its end; bytes are known from the start.
            context.progress.update(
                task, so_far, round(so_far * bytes_all / max(1, sum(bytes_done.values())))
            )

        images = samples = 0
        said = ""
        for _, counts in context.engine.run(
            run_shard,
            jobs,
            devices=context.devices[: max(1, len(jobs))],
            threads=context.settings.compute.threads,
            hear=hear,
        ):
            images += counts.images
            samples += counts.samples
            if counts.said and not said:
                said = counts.said
                context.progress.say(f"a caption of one picture was refused: {said}")
        context.progress.end(task)
        return samples, images

    def _facts(self, context: Context) -> dict[str, Any]:
        settings = context.settings
        captioner = read_card(context.run.model("captioner")) if self.recaption else None
        filter_ = read_card(context.run.model("filter")) if self.score else None
        return {
            "captioner": captioner.digest if captioner else None,
            "filter": filter_.digest if filter_ else None,
            "matching": filter_.matching(settings.filter) if filter_ else None,
            "decoding": captioner.conventions.decoding(settings.decoding).model_dump(mode="json")
            if captioner
            else None,
            "candidates": settings.candidates if captioner else None,
            "seed": settings.seed if captioner else None,
            "input": settings.input.model_dump(mode="json"),
            "device": context.devices[0].partition(":")[0],
            "precision": context.precision,
            "batch_size": settings.compute.images_at_once(context.devices[0]),
            "compile": settings.compute.compile,
            "threads": settings.compute.threads,
            "round": context.round,
        }


def _told_of(unfinished: dict[str, int], max_tokens: int) -> list[str]:
    """Return what captions that their writer did not end come to, in words."""
    meanings = {
        Unfinished.LENGTH: f"were cut off at decoding.max_tokens={max_tokens}",
        Unfinished.CONTENT_FILTER: "were withheld by a filter of contents, and are empty",
        Unfinished.REFUSED: "were refused, and are empty",
    }
    return [
        f"{unfinished[reason]} synthetic captions {meaning} (captions.unfinished is '{reason}')"
        for reason, meaning in meanings.items()
        if reason in unfinished
    ]
