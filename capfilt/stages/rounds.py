"""Round after round: bootstrap, pre-train a fresh model on what came out, start the next round from it.

A further round is a complete run in `rounds/` of the first one, so that whatever looks into a run looks into
a round. The first run's lock is held over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from capfilt.draws import seed_of
from capfilt.errors import CapfiltError
from capfilt.layers import changed
from capfilt.provenance.catalog import rebuild_catalog
from capfilt.provenance.rundir import RunDir, lock
from capfilt.settings import Bootstrap
from capfilt.stages.bootstrap import Finished, Request, bootstrap, find_inputs, start_run
from capfilt.stages.context import Engine, Progress, Stage
from capfilt.stages.next_model import PretrainNext, check_unchanged, planned, read_record
from capfilt.stages.pretrain import training_of

if TYPE_CHECKING:
    from collections.abc import Iterator

Pipeline = Callable[[Bootstrap], Sequence[Stage]]
"""The stages of a run with these settings."""


def bootstrap_rounds(
    request: Request, pipeline: Pipeline, engine: Engine, progress: Progress
) -> list[Finished]:
    """Do every round that `settings.rounds` asks for and that is not done; returns how each of them ended.

    The same request again goes on where it stopped, and one that asks for more rounds goes on after the
    last. A round whose export is withheld is the last one. Raises as `stages.bootstrap.bootstrap` does.
    """
    rounds = request.settings.rounds
    if rounds == 1:
        return [bootstrap(request, engine, progress)]
    run = RunDir(request.out)
    requests = [_request(request, pipeline, number) for number in range(1, rounds + 1)]
    _check(request, requests, run)
    found = find_inputs(requests[0], engine)
    run = RunDir.create(request.out)
    ended: list[Finished] = []
    with lock(run):
        for number, one in _told(requests, progress):
            if number == 1:
                finished = start_run(run, one, found, engine, progress)
                # A later round that is damaged is mended when its turn comes.
                rebuild_catalog(run, every_round=False)
            else:
                previous = read_record(run.round(number - 1))
                finished = bootstrap(replace(one, previous=previous), engine, progress)
            ended.append(finished)
            if finished.is_withheld:
                if number < rounds:
                    progress.say(f"round {number} exports nothing, so that round {number + 1} has to wait")
                break
        rebuild_catalog(run)
    return ended


def round_settings(settings: Bootstrap, run: RunDir, number: int) -> Bootstrap:
    """Return the settings of a round of a run: a further one has its own seed and its own start."""
    if number == 1:
        return settings
    init = run.round(number - 1).model("next")
    return changed(settings, {"seed": _seed(settings, number), "bundles": {"init": init}})


def _seed(settings: Bootstrap, number: int) -> int:
    """Return a round's seed: no draw of another round is drawn again."""
    return settings.seed if number == 1 else seed_of("round", settings.seed, number)


def _request(request: Request, pipeline: Pipeline, number: int) -> Request:
    """Return a round as a request: its pipeline's stages and, but for the last one, what follows them."""
    run = RunDir(request.out)
    settings = round_settings(request.settings, run, number)
    stages = list(pipeline(settings))
    if number < settings.rounds:
        stages.append(PretrainNext(_seed(request.settings, number + 1), run.round(number + 1)))
    return replace(request, out=run.round(number).path, settings=settings, stages=tuple(stages), round=number)


def _told(requests: Sequence[Request], progress: Progress) -> Iterator[tuple[int, Request]]:
    for number, one in enumerate(requests, start=1):
        progress.say(f"round {number} of {len(requests)}")
        yield number, one


def _check(request: Request, requests: Sequence[Request], run: RunDir) -> None:
    """Refuse what no next round could be done with, before any work is."""
    settings = request.settings
    if settings.bundles.captioner is not None or not settings.recaption:
        given = settings.recaption
        raise CapfiltError(
            "a captioner that is given is not fine-tuned, so that the same model would write every round's "
            "captions"
            if given
            else "without a captioner there is nothing that a next round could write better",
            fix=f"leave out {'--captioner' if given else '--no-recaption'}, or ask for one round; a model "
            "given with --init is fine-tuned in the first round, and one with --filter judges every round "
            "alike",
        )
    training_of(settings)
    if settings.compute.processes > 1:
        raise CapfiltError(
            f"between two rounds a model is pre-trained in one process, and compute.processes is "
            f"{settings.compute.processes}",
            fix="leave it out; or do one round, pre-train on its export with `capfilt pretrain` under "
            "torchrun, and start another run from that model with --init",
        )
    if not any(stage.name == "export" for stage in request.stages):
        raise CapfiltError(
            "the pipeline exports nothing that a next round could learn from",
            fix="let its stages end with JudgePairs() and ExportPairs()",
        )
    for number, one in enumerate(requests[:-1], start=1):
        own, following = run.round(number), run.round(number + 1)
        if read_record(own) is not None and following.run_file.exists():
            facts = planned(own, one.settings, _seed(settings, number + 1))
            check_unchanged(own, facts, following)
