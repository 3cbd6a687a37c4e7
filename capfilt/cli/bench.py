"""`capfilt bench`: how fast a run would be here, and what holds it up."""

from __future__ import annotations

from typing import Annotated

import typer

from capfilt.cli import options
from capfilt.cli.choices import chosen
from capfilt.cli.output import print_json
from capfilt.errors import CapfiltError


def bench(
    web: options.WebArgument,
    config: options.ConfigOption = None,
    assignments: options.SetOption = None,
    max_pixels: options.MaxPixelsOption = None,
    captioner: options.CaptionerOption = None,
    filter_bundle: options.FilterOption = None,
    candidates: options.CandidatesOption = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples", metavar="N", min=1, help="Pictures to measure, the first of WEB: 64, or two batches."
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option("--images", metavar="N", min=1, help="Say how long a run over so many pictures takes."),
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour", metavar="P", min=0, help="Price of this machine: say what that costs."
        ),
    ] = None,
    no_transformers: Annotated[
        bool, typer.Option("--no-transformers", help="Do not measure transformers beside it.")
    ] = False,
    workers: options.WorkersOption = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    batch_size: options.BatchSizeOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Measure each part of captioning and scoring here, with your models and shards; name the bottleneck.

    Example: capfilt bench web --captioner models/captioner --filter models/filter --images 1000000

    Example: capfilt bench web --filter models/filter --images 1000000 --price-per-hour 2.5
    """
    from capfilt.engines.local import LocalEngine
    from capfilt.reports.bench import as_json, show_bench
    from capfilt.reports.progress import shown_progress
    from capfilt.reports.text import terminal
    from capfilt.settings import Bootstrap
    from capfilt.stages.bench.measure import BenchRequest, measure

    if price_per_hour is not None and images is None:
        raise CapfiltError(
            "a price per hour says what a run costs once its pictures are counted",
            fix="add --images N, the number of pictures of the whole run",
        )
    settings = chosen(
        Bootstrap(),
        config=config,
        flags={
            "candidates": candidates,
            "input.max_pixels": max_pixels,
            "bundles.captioner": captioner,
            "bundles.filter": filter_bundle,
            "compute.workers": workers,
            "compute.device": device,
            "compute.precision": precision,
            "compute.batch_size": batch_size,
        },
        assignments=assignments,
    )
    request = BenchRequest(web, settings, samples, beside_transformers=not no_transformers)
    with shown_progress(quiet=quiet) as progress:
        measured = measure(request, LocalEngine(), progress)
    if json:
        print_json(as_json(measured, images=images, price_per_hour=price_per_hour))
        return
    show_bench(measured, terminal(), images=images, price_per_hour=price_per_hour)
