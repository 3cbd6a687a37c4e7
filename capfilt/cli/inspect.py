"""`capfilt inspect`: what a run came to, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capfilt.cli import options
from capfilt.cli.output import print_json, print_next


def inspect(
    run: options.RunArgument,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="RUN", help="Another run over the same shards: say what changed its mind."
        ),
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour", metavar="P", min=0, help="Price of the machines: say what the stages cost."
        ),
    ] = None,
    no_pictures: Annotated[
        bool, typer.Option("--no-pictures", help="Draw no pictures where the terminal could.")
    ] = False,
    json: options.JsonOption = False,
) -> None:
    """Show what was kept, dropped and refused, and why; a run that is half done is shown as it stands.

    Example: capfilt inspect runs/first

    Example: capfilt inspect runs/second --against runs/first --price-per-hour 2.5
    """
    import os
    import sys

    from capfilt.provenance.rundir import RunDir
    from capfilt.reports.show import show
    from capfilt.reports.summary import summarise
    from capfilt.reports.terminal_pictures import pictures_of
    from capfilt.reports.text import terminal

    opened = RunDir.open(run)
    other = RunDir.open(against) if against is not None else None
    summary = summarise(opened, against=other, price_per_hour=price_per_hour)
    if json:
        print_json(summary)
        return
    pictures = None if no_pictures else pictures_of(opened, summary, sys.stdout, sys.stdin, os.environ)
    show(summary, terminal(), pictures)
    print_next(summary["next_command"])
