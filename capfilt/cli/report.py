"""`capfilt report`: one page to look at a run, and to pass on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capfilt.cli import options
from capfilt.cli.output import next_step, print_json, print_line, print_next


def report(
    run: options.RunArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Where the page is written; report.html in the run when not given.",
            rich_help_panel="Output",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", metavar="N", help="Draws the samples that are shown.", rich_help_panel="Output"
        ),
    ] = 0,
    json: options.JsonOption = False,
) -> None:
    """Write one page of charts, pictures and provenance, which needs no network and no server.

    Example: capfilt report runs/first --out first.html
    """
    from capfilt.provenance.rundir import RunDir
    from capfilt.reports.html.page import write_report

    opened = RunDir.open(run)
    written = write_report(opened, out or opened.report, seed=seed)
    following = next_step("browse", run)
    if json:
        print_json(
            {
                "path": str(written.path),
                "bytes": written.bytes,
                "seed": written.seed,
                "next_command": following,
            }
        )
        return
    print_line(f"{written.path}: {written.bytes / 1e6:.2f} MB, samples drawn with seed {written.seed}")
    print_next(following)
