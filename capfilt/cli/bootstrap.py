"""`capfilt bootstrap`: the whole work, from noisy pairs to cleaned shards."""

from __future__ import annotations

from typing import Annotated

import typer

from capfilt.cli import options
from capfilt.cli.choices import chosen, prompt_flags
from capfilt.cli.output import typed_command
from capfilt.cli.pipelines import DEFAULT, load_pipeline
from capfilt.cli.running import run_and_report


def bootstrap(
    ctx: typer.Context,
    web: options.WebArgument,
    out: options.OutOption,
    clean: options.CleanOption = None,
    pipeline: options.PipelineOption = DEFAULT,
    config: options.ConfigOption = None,
    assignments: options.SetOption = None,
    seed: options.SeedOption = None,
    max_pixels: options.MaxPixelsOption = None,
    init: options.InitOption = None,
    captioner: options.CaptionerOption = None,
    filter_bundle: options.FilterOption = None,
    no_recaption: Annotated[
        bool, typer.Option("--no-recaption", help="Write no captions.", rich_help_panel="Models")
    ] = False,
    no_filter: Annotated[
        bool,
        typer.Option("--no-filter", help="Score nothing and keep every text.", rich_help_panel="Models"),
    ] = False,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            metavar="N",
            help="Rounds of bootstrapping; between two a fresh model is pre-trained on what was exported.",
            rich_help_panel="Models",
        ),
    ] = None,
    candidates: options.CandidatesOption = None,
    prompts: options.PromptOption = None,
    itm: options.ItmOption = None,
    itc: options.ItcOption = None,
    vqa: options.VqaOption = None,
    fraction: options.FractionOption = None,
    by: options.ByOption = None,
    per_image: options.PerImageOption = None,
    rescue: options.RescueOption = False,
    noise_rate: options.NoiseRateOption = None,
    accept_weak_filter: options.AcceptWeakFilterOption = False,
    workers: options.WorkersOption = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    batch_size: options.BatchSizeOption = None,
    texts: options.TextsOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Train a captioner and a filter, caption and score every picture, keep what fits, export it.

    The same command again goes on where it stopped; with more rounds, after the last one.

    Example: capfilt bootstrap web --clean clean --out runs/first --pipeline small

    Example: capfilt bootstrap web --clean clean --out runs/first --pipeline small --rounds 2
    """
    from capfilt.stages.bootstrap import Request

    found = load_pipeline(pipeline)
    settings = chosen(
        found.choices(),
        config=config,
        flags={
            "seed": seed,
            "candidates": candidates,
            **prompt_flags(prompts),
            "rounds": rounds,
            "input.max_pixels": max_pixels,
            "bundles.init": init,
            "bundles.captioner": captioner,
            "bundles.filter": filter_bundle,
            "judge.itm": itm,
            "judge.itc": itc,
            "judge.vqa": vqa,
            "judge.fraction": fraction,
            "judge.by": by,
            "judge.per_image": per_image,
            "judge.rescue": rescue or None,
            "judge.noise_rate": noise_rate,
            "export.texts": texts,
            "export.accept_weak_filter": accept_weak_filter or None,
            "compute.workers": workers,
            "compute.device": device,
            "compute.precision": precision,
            "compute.batch_size": batch_size,
            "recaption": False if no_recaption else None,
            "score": False if no_filter else None,
        },
        assignments=assignments,
    )
    stages = found.stages(settings)
    request = Request(web, clean, out, settings, stages, command=typed_command(ctx))
    run_and_report(request, json=json, quiet=quiet, pipeline=found.stages)
