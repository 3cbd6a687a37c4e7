"""`capfilt train`: one model, outside of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from capfilt.cli import options
from capfilt.cli.choices import chosen
from capfilt.cli.output import next_step, print_json, print_line, print_next
from capfilt.cli.pipelines import DEFAULT, load_pipeline
from capfilt.reports.progress import shown_progress


def train(
    kind: Annotated[
        Literal["captioner", "filter"],
        typer.Argument(metavar="captioner|filter", help="Which model.", show_default=False),
    ],
    clean: options.CleanArgument,
    out: Annotated[
        Path, typer.Option("--out", metavar="BUNDLE", help="Folder of the model.", show_default=False)
    ],
    pipeline: options.PipelineOption = DEFAULT,
    config: options.ConfigOption = None,
    assignments: options.SetOption = None,
    seed: options.SeedOption = None,
    max_pixels: options.MaxPixelsOption = None,
    init: options.InitOption = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Train a captioner or a filter on clean pairs and write it as a bundle.

    Example: capfilt train filter clean --out models/filter --pipeline small
    """
    from capfilt.engines.local import LocalEngine
    from capfilt.stages.train_one import train_one

    settings = chosen(
        load_pipeline(pipeline).choices(),
        config=config,
        flags={
            "seed": seed,
            "input.max_pixels": max_pixels,
            "bundles.init": init,
            "compute.device": device,
            "compute.precision": precision,
        },
        assignments=assignments,
    )
    with shown_progress(quiet=quiet) as progress:
        card = train_one(kind, clean, out, settings, LocalEngine(), progress)
    following = (
        next_step("recaption", "WEB", "--captioner", out, "--out", "RUN")
        if kind == "captioner"
        else next_step("score", "WEB", "--filter", out, "--out", "RUN")
    )
    if json:
        print_json(
            {"bundle": str(out), "kind": card.kind, "weights": card.weights, "next_command": following}
        )
        return
    print_line(f"{card.kind} {card.weights[:12]} in {out}")
    print_next(following)
