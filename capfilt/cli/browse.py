"""`capfilt browse`: look at a run, judge it by eye and label pairs, in a browser."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from capfilt.cli import options


def browse(
    run: options.RunArgument,
    port: Annotated[
        int,
        typer.Option("--port", metavar="N", min=0, max=65535, help="Port to listen on; 0 finds a free one."),
    ] = 0,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Print the address and open no browser.")
    ] = False,
) -> None:
    """Look at the pictures and texts of a run, slide its thresholds and label pairs, in a browser.

    The first line that is printed is the page's address. It is for this machine alone; what stands behind its
    # lets the page write policies and labels. A run that is still going on is shown as it grows.

    Example: capfilt browse runs/first
    """
    from capfilt.browser.serve import open_browser, serve
    from capfilt.provenance.rundir import RunDir

    def is_listening(address: str) -> None:
        print(address, flush=True)
        opened = not no_open and open_browser(address)
        where = (
            "it was opened in your browser" if opened else "open this address in a browser on this machine"
        )
        print(f"{where}; Ctrl-C ends it", file=sys.stderr, flush=True)

    serve(RunDir.open(run), port=port, is_listening=is_listening)
