"""`capfilt pretrain`: a model on pairs of any number, or on instruction data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from capfilt.cli import options
from capfilt.cli.choices import chosen
from capfilt.cli.curves import write_curves
from capfilt.cli.output import next_step, print_json, print_line, print_next, typed_command
from capfilt.cli.pipelines import load_pipeline
from capfilt.reports.progress import shown_progress
from capfilt.shell import shell_line

if TYPE_CHECKING:
    from capfilt.models.cards import Card
    from capfilt.settings import Bootstrap

DEFAULT = "pretrain_blip_base"


def pretrain(
    ctx: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Pairs as WebDataset tars, raw or exported by capfilt: a file, a folder, or a quoted glob. "
            "For pipeline instructblip a registry of instruction data (.toml; see `capfilt datasets`).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="BUNDLE", help="Folder of the model.", show_default=False)
    ],
    clean: Annotated[
        str | None,
        typer.Option(
            "--clean",
            metavar="CLEAN",
            help="Clean pairs beside them, as WebDataset tars; a share of them is held out to measure. "
            "Not with instruction data.",
            rich_help_panel="Input",
        ),
    ] = None,
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
    """Pre-train a model and write it as a bundle; which one, the pipeline says.

    A joint model with ITC, ITM and LM (pretrain_blip_base; blip2_stage1, a Q-Former), from which captioner
    and filter are fine-tuned; or a captioner with a frozen language model (blip2_stage2, instructblip).

    The shards are streamed, so that there may be any number. Several processes train one model together:
    torchrun --nproc_per_node 8 -m capfilt pretrain ... --set compute.processes=8

    Example: capfilt pretrain runs/first/export --clean clean --out models/next --pipeline small
    """
    from capfilt.engines.local import LocalEngine
    from capfilt.stages.pretrain import pretrain as run
    from capfilt.training.launch import check_launch, leads

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
        many_processes=True,
    )
    check_launch(settings.compute.processes, "-m " + shell_line(typed_command(ctx)))
    with shown_progress(quiet=quiet or not leads()) as progress:
        card = run(data, clean, out, settings, LocalEngine(), progress, leads=leads())
    if card is None:
        return
    picture = write_curves(out)
    # With another seed, other clean pairs are held out, and the model has seen some of them.
    same = ("--seed", settings.seed) if settings.seed else ()
    following = next_step(
        "bootstrap", "WEB", "--clean", clean or "CLEAN", *same, *_given(card, out, settings), "--out", "RUN"
    )
    if json:
        print_json(
            {
                "bundle": str(out),
                "kind": card.kind,
                "weights": card.weights,
                "curves": str(picture),
                "next_command": following,
            }
        )
        return
    print_line(f"{card.kind} {card.weights[:12]} in {out}; its curves are in {picture}")
    print_next(following)


def _given(card: Card, out: Path, settings: Bootstrap) -> tuple[object, ...]:
    """Return how the next command is given the model, and what it needs beside it."""
    if not card.is_qformer:
        return ("--init", out)
    pipeline = ("--pipeline", "blip2_opt")
    if card.kind != "captioner":
        return ("--init", out, *pipeline, "--set", "bundles.language=MODEL")
    # The filter goes on from what the captioner was started from.
    first = settings.bundles.init
    return ("--captioner", out, *(("--init", first) if first and not card.is_instructed else ()), *pipeline)
