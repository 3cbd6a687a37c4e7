"""`capfilt export`: write kept pairs as new shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capfilt.cli import options
from capfilt.cli.choices import nested
from capfilt.cli.output import next_step, print_json, print_line, print_next


def export(
    run: options.RunArgument,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="DIR",
            help="Folder of the new shards; the run's own export/ when not given.",
            rich_help_panel="Output",
        ),
    ] = None,
    texts: options.TextsOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an export that is there.", rich_help_panel="Output")
    ] = False,
    accept_weak_filter: options.AcceptWeakFilterOption = False,
    samples_per_shard: Annotated[
        int | None,
        typer.Option(
            "--samples-per-shard", metavar="N", help="Samples in a shard.", rich_help_panel="Output"
        ),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Write what the policy keeps as WebDataset tars with a dataset card.

    Example: capfilt export runs/first --to cleaned
    """
    from capfilt.layers import changed
    from capfilt.provenance.rundir import RunDir
    from capfilt.settings import Bootstrap
    from capfilt.stages.export import export_run

    flags = {
        "export.texts": texts,
        "export.accept_weak_filter": accept_weak_filter or None,
        "export.samples_per_shard": samples_per_shard,
    }
    wanted = changed(Bootstrap(), nested(flags)).export
    opened = RunDir.open(run)
    exported = export_run(opened, to or opened.export, wanted, overwrite=overwrite)
    following = next_step("inspect", run)
    if json:
        print_json(
            {
                "path": str(exported.path),
                "samples": exported.samples,
                "shards": exported.shards,
                "is_new": exported.is_new,
                "next_command": following,
            }
        )
        return
    done = "written" if exported.is_new else "there already, and the same"
    print_line(f"{exported.samples} samples in {exported.shards} shards in {exported.path}: {done}")
    print_next(following)
