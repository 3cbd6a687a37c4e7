"""`capfilt evaluate answers`: how a model does on data sets of instructions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from capfilt.cli import options
from capfilt.cli.choices import chosen
from capfilt.cli.evaluate import ModelArgument, ResultsOption, flags_of, tell


def answers(
    model: ModelArgument,
    registry: Annotated[
        Path,
        typer.Option(
            "--registry",
            metavar="FILE.toml",
            help="Data sets of your own, or where the files of known ones lie: rows of `dataset` with name, "
            "annotations and images.",
            show_default=False,
        ),
    ],
    datasets: Annotated[
        str | None,
        typer.Option(
            "--datasets",
            metavar="A,B",
            help="Data sets to ask; by default all whose files the registry names.",
        ),
    ] = None,
    method: Annotated[
        Literal["greedy", "beam"],
        typer.Option("--method", help="How answers are decoded; --set decoding.a=b says how exactly."),
    ] = "greedy",
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="Examples of each data set, drawn by the seed."),
    ] = None,
    out: ResultsOption = None,
    config: options.ConfigOption = None,
    assignments: options.SetOption = None,
    max_pixels: options.MaxPixelsOption = None,
    seed: options.SeedOption = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    batch_size: options.BatchSizeOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Put the instructions of data sets to a captioner, and measure each by its own metric.

    Sets that are held out of training and those held in are shown apart; `capfilt datasets` lists them.

    Example: capfilt evaluate answers models/instructblip --registry mine.toml --datasets gqa,vizwiz

    Example: capfilt evaluate answers Salesforce/instructblip-flan-t5-xl --registry mine.toml --limit 1000
    """
    from capfilt.engines.local import LocalEngine
    from capfilt.reports.progress import shown_progress
    from capfilt.settings import Bootstrap
    from capfilt.stages.evaluate.answers import AnswersRequest, evaluate_answers
    from capfilt.stages.evaluate.results import check_place

    if out is not None:
        check_place(out)
    flags = flags_of(max_pixels, seed, device, precision, batch_size) | {"decoding.method": method}
    settings = chosen(Bootstrap(), config=config, flags=flags, assignments=assignments)
    names = tuple(name.strip() for name in (datasets or "").split(",") if name.strip())
    request = AnswersRequest(model, registry, settings, names, limit)
    with shown_progress(quiet=quiet) as progress:
        evaluation = evaluate_answers(request, LocalEngine(), progress)
    tell(evaluation, out, json=json)
