"""Start a run's stages with this machine's engine, and report how they ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capfilt.cli.output import next_step, print_json, print_next
from capfilt.reports.progress import shown_progress
from capfilt.reports.text import visible

if TYPE_CHECKING:
    from capfilt.stages.bootstrap import Finished, Request


def run_and_report(request: Request, *, json: bool, quiet: bool, next_command: str = "") -> None:
    """Run the stages, print how each ended, then what is next: a withheld stage's mend comes first."""
    from capfilt.engines.local import LocalEngine
    from capfilt.stages.bootstrap import bootstrap

    with shown_progress(quiet=quiet) as progress:
        finished = bootstrap(request, LocalEngine(), progress)
    following = finished.next_command or next_command or next_step("inspect", request.out)
    _report(finished, following, json=json)


def _report(finished: Finished, next_command: str, *, json: bool) -> None:
    if json:
        stages = [
            {"stage": name, "status": outcome.status, "detail": outcome.detail, "count": outcome.count}
            for name, outcome in finished.outcomes
        ]
        print_json({"run": str(finished.run.path), "stages": stages, "next_command": next_command})
        return
    for name, outcome in finished.outcomes:
        print(visible(f"{name}: {outcome.status}" + (f": {outcome.detail}" if outcome.detail else "")))
    print_next(next_command)
