"""Start a run's stages with this machine's engine, and report how they ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.cli.curves import write_run_curves
from capfilt.cli.output import next_step, print_json, print_next
from capfilt.reports.progress import shown_progress
from capfilt.reports.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from capfilt.provenance.rundir import RunDir
    from capfilt.stages.bootstrap import Finished, Request
    from capfilt.stages.rounds import Pipeline


def run_and_report(
    request: Request,
    *,
    json: bool,
    quiet: bool,
    next_command: Callable[[RunDir], str] | None = None,
    pipeline: Pipeline | None = None,
) -> None:
    """Run the stages, print how each ended, then what is next: a withheld stage's mend comes first.

    `next_command` gives what is next for a run that has ended well; by default a look at it. With a pipeline
    to ask for its stages, as many rounds are done as the settings say.
    """
    from capfilt.engines.local import LocalEngine
    from capfilt.stages.bootstrap import bootstrap
    from capfilt.stages.rounds import bootstrap_rounds

    with shown_progress(quiet=quiet) as progress:
        if pipeline is None:
            rounds = [bootstrap(request, LocalEngine(), progress)]
        else:
            rounds = bootstrap_rounds(request, pipeline, LocalEngine(), progress)
    for finished in rounds:
        write_run_curves(finished.run)
    usual = next_command(rounds[-1].run) if next_command is not None else next_step("inspect", request.out)
    following = rounds[-1].next_command or usual
    _report(rounds, following, json=json)


def _report(rounds: Sequence[Finished], next_command: str, *, json: bool) -> None:
    if json:
        stages = [
            {
                "round": finished.round,
                "stage": name,
                "status": outcome.status,
                "detail": outcome.detail,
                "count": outcome.count,
            }
            for finished in rounds
            for name, outcome in finished.outcomes
        ]
        print_json({"run": str(rounds[0].run.path), "stages": stages, "next_command": next_command})
        return
    for finished in rounds:
        of_round = f"round {finished.round}, " if len(rounds) > 1 else ""
        for name, outcome in finished.outcomes:
            detail = f": {outcome.detail}" if outcome.detail else ""
            print(visible(f"{of_round}{name}: {outcome.status}{detail}"))
    print_next(next_command)
