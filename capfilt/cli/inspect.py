"""`capfilt inspect`: what a run came to, and why."""

from __future__ import annotations

from capfilt.cli import options
from capfilt.cli.output import print_json, print_next


def inspect(run: options.RunArgument, json: options.JsonOption = False) -> None:
    """Show what was kept, dropped and refused, and why; a run that is half done is shown as it stands.

    Example: capfilt inspect runs/first
    """
    from capfilt.provenance.rundir import RunDir
    from capfilt.reports.show import show
    from capfilt.reports.summary import summarise
    from capfilt.reports.text import terminal

    summary = summarise(RunDir.open(run))
    if json:
        print_json(summary)
        return
    show(summary, terminal())
    print_next(summary["next_command"])
