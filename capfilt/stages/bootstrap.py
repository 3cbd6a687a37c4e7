"""One start of a run: find the input, hold the run, do its stages in order, record how each ended.

A further round of bootstrapping (`stages.rounds`) is a run too, and comes through here like the first one.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capfilt.canonical import canonical_json
from capfilt.data.sources import find_shards
from capfilt.errors import CapfiltError
from capfilt.files import remove_strays, write_whole
from capfilt.models.cards import CARD_FILE, read_card
from capfilt.provenance.catalog import rebuild_catalog
from capfilt.provenance.rundir import RunDir, StageRecord, lock, next_start, record_run, save_stage
from capfilt.stages.context import Context, Engine, Outcome, Progress, Stage, Tell
from capfilt.stages.given import (
    Given,
    Wanted,
    described,
    find_given,
    read_given,
    take_given,
    wanted,
    write_given,
)
from capfilt.stages.lineage import record_bundle
from capfilt.stages.parts import FoundParts, find_run_parts, takers, write_parts
from capfilt.stages.start_models import check_start, check_started_from
from capfilt.stages.train import TrainModels
from capfilt.stages.worker import in_a_worker
from capfilt.versions import versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from capfilt.models.cards import Kind
    from capfilt.records import Shard
    from capfilt.settings import Bootstrap, Compute


_PARTS = "parts"
"""Names their record beside those of models that are given."""


@dataclass(frozen=True)
class Request:
    """What a user asks for."""

    web: str | None
    """Shards to recaption and filter."""
    clean: str | None
    """Clean shards to train on; not needed where nothing is trained."""
    out: Path
    settings: Bootstrap
    stages: Sequence[Stage]
    command: Sequence[str] = ()
    """What was typed, for the record."""
    round: int = 1
    """Round of bootstrapping."""
    previous: Mapping[str, Any] | None = None
    """What the round before recorded of the model that this one starts from."""


@dataclass(frozen=True)
class Finished:
    """How a start ended."""

    run: RunDir
    outcomes: list[tuple[str, Outcome]]
    round: int = 1

    @property
    def is_withheld(self) -> bool:
        """Whether a stage was withheld, and with it whatever would have come after."""
        return any(outcome.status == "withheld" for _, outcome in self.outcomes)

    @property
    def next_command(self) -> str:
        """What to type next, where a stage was withheld; else empty."""
        return next((outcome.next_command for _, outcome in self.outcomes if outcome.next_command), "")


def bootstrap(request: Request, engine: Engine, progress: Progress) -> Finished:
    """Do every stage that is not done yet; the same request again goes on where it stopped.

    A stage that was withheld is the last one: what comes after would build on it.
    Raises CapfiltError where the request cannot be done and RunFailedError where doing it failed.
    """
    found = find_inputs(request, engine)
    run = RunDir.create(request.out)
    with lock(run):
        finished = start_run(run, request, found, engine, progress)
        rebuild_catalog(run)
    return finished


@dataclass(frozen=True)
class Inputs:
    """What a request names, found before a run is made for it."""

    web: list[Shard]
    clean: list[Shard]
    given: list[Given]
    parts: FoundParts
    """What models from nothing are begun with."""


def find_inputs(request: Request, engine: Engine) -> Inputs:
    """Find shards and models; nothing is written. CapfiltError where they are missing or no good."""
    web = find_shards(request.web) if request.web is not None else []
    clean = find_shards(request.clean) if request.clean is not None else []
    _check_input(request, web, clean)
    if request.round == 1 and _trains(request):
        check_start(request.settings)
    given = _find_given(request, engine)
    for one in given:
        if request.round == 1 and one.start_card is not None:
            check_started_from(request.settings, _kinds(request), one.start_card, one.source)
    return Inputs(web, clean, given, _find_parts(request, engine))


def start_run(run: RunDir, request: Request, found: Inputs, engine: Engine, progress: Progress) -> Finished:
    """Do the stages of a run that the caller holds."""
    settings = request.settings
    remove_strays(run.path)
    devices, precision = resolve_devices(settings.compute, engine)
    facts = _facts(request, found, devices[0].partition(":")[0], precision)
    record_run(run, facts, settings=settings.model_dump(mode="json"), command=request.command)
    if request.previous is not None:
        write_whole(run.previous_file, canonical_json(request.previous))
    for one in found.given:
        write_given(run.given_file(one.role), one)
    write_parts(run.given_file(_PARTS), found.parts)
    for one in found.given:
        take_into_run(run, one.role, one, settings, engine, progress)
        if one.role == "init":
            record_bundle(run, run.model(one.role))
    context = Context(
        run=run,
        settings=settings,
        web=found.web,
        clean=found.clean,
        engine=engine,
        progress=progress,
        devices=devices,
        precision=precision,
        start=next_start(run),
        round=request.round,
        parts=found.parts,
    )
    finished = Finished(run, [], request.round)
    for stage in request.stages:
        with recorded(stage, context) as ended:
            ended.append(stage.run(context))
        finished.outcomes.append((stage.name, ended[0]))
        if finished.is_withheld:
            break
    return finished


def take_into_run(
    run: RunDir, name: str, given: Given, settings: Bootstrap, engine: Engine, progress: Progress
) -> None:
    """Have a model that is given as the run's bundle of this name, and record where it came from."""
    is_new = not (run.model(name) / CARD_FILE).exists()
    write_given(run.given_file(name), given)
    take_given(given, run.model(name), engine, settings.server)
    if is_new:
        progress.say(described(read_card(run.model(name)), given.source))


def resolve_devices(compute: Compute, engine: Engine) -> tuple[list[str], str]:
    """Return the device of each worker and the precision; asked in a worker, which has torch at hand."""
    return in_a_worker(engine, _find_devices, compute)


@contextmanager
def recorded(stage: Stage, context: Context) -> Iterator[list[Outcome]]:
    """Record a stage as running, then as it ended; the block puts its outcome into the list."""
    record = StageRecord(
        stage=stage.name,
        start=context.start,
        started=time.time(),
        settings=canonical_json(stage.settings(context)),
        versions=canonical_json(versions()),
    )
    save_stage(context.run, record)
    ended: list[Outcome] = []
    try:
        yield ended
    except BaseException as error:
        save_stage(context.run, record.finished("failed", ended=time.time(), detail=str(error)[:2000]))
        raise
    outcome = ended[0]
    save_stage(
        context.run,
        record.finished(outcome.status, ended=time.time(), detail=outcome.detail, count=outcome.count),
    )


def _find_devices(compute: Compute, _device: str, _tell: Tell) -> tuple[list[str], str]:
    from capfilt.models.devices import find_devices

    return find_devices(compute)


def _check_input(request: Request, web: list[Shard], clean: list[Shard]) -> None:
    if _trains(request) and not clean:
        raise CapfiltError(
            "clean pairs are needed to train on, and none are given",
            fix="add --clean CLEAN (WebDataset tars of pictures with good captions), or give trained models "
            "with --captioner and --filter",
        )
    if request.web is not None and not any(shard.size for shard in web):
        raise CapfiltError(f"{request.web}: every shard is empty", fix="give tars that hold pictures")


def _find_given(request: Request, engine: Engine) -> list[Given]:
    """Find the models that are given and needed, before a run is made for them."""
    bundles, run = request.settings.bundles, RunDir(request.out)
    asked: list[Wanted] = []
    if _trains(request) and bundles.init is not None:
        asked.append(wanted("init", bundles.init, request.settings))
    if request.settings.recaption and bundles.captioner is not None:
        asked.append(wanted("captioner", bundles.captioner, request.settings))
    if request.settings.score and bundles.filter is not None:
        asked.append(wanted("filter", bundles.filter, request.settings))
    return [find_given(one, read_given(run.given_file(one.role)), engine) for one in asked]


def _find_parts(request: Request, engine: Engine) -> FoundParts:
    """Find what the run's models from nothing, and the one after them, are begun with."""
    run, kinds = RunDir(request.out), list[str](_kinds(request))
    if any(stage.name == "pretrain_next" for stage in request.stages):
        kinds.append("next")
    return find_run_parts(
        request.settings.bundles,
        request.settings.model,
        kinds,
        untrained=[kind for kind in kinds if not (run.model(kind) / CARD_FILE).exists()],
        record=run.given_file(_PARTS),
        engine=engine,
    )


def _kinds(request: Request) -> list[Kind]:
    """Return the kinds of the models that are trained."""
    return [kind for stage in request.stages if isinstance(stage, TrainModels) for kind in stage.kinds]


def _trains(request: Request) -> bool:
    return any(stage.name.startswith("train_") for stage in request.stages)


def _facts(request: Request, found: Inputs, device: str, precision: str) -> dict[str, Any]:
    """Return everything the run's rows depend on; what may differ from start to start is left out.

    What a next round starts from is that round's affair: it is in `next.json` (`stages.next_model`).
    """
    settings = request.settings
    # What a server is asked with stands on the card of the captioner.
    left_out = {
        "judge",
        "export",
        "compute",
        "bundles",
        "rounds",
        "next_round",
        "stream",
        "server",
        "pretrains",
    }
    choices = settings.model_dump(mode="json", exclude=left_out)
    for name in ("pretrain", "captioner_training", "filter_training"):
        for what in ("checkpoint_every", "validate_every", "log_every"):
            (choices[name] or {}).pop(what, None)
    choices["clean"].pop("cache_mb")
    # Those of the model that a next round starts from are that round's affair, too.
    taking = takers(_kinds(request), from_nothing=settings.bundles.init is None)
    parts = found.parts.only(taking)
    return {
        **choices,
        **({"parts": parts} if parts else {}),
        "round": request.round,
        "device": device,
        "precision": precision,
        "batch_size": settings.compute.images_at_once(device),
        "compile": settings.compute.compile,
        "threads": settings.compute.threads,
        "bundles": {one.role: one.identity for one in found.given},
        "web": _shard_facts(found.web),
        "clean_shards": _shard_facts(found.clean),
    }


def _shard_facts(shards: list[Shard]) -> list[dict[str, Any]]:
    return [{"name": shard.name, "bytes": shard.size, "digest": shard.digest} for shard in shards]
