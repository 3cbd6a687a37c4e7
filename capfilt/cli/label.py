"""`capfilt recaption` and `capfilt score`: half of the one pass over the pictures, each on its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from capfilt.cli import options
from capfilt.cli.choices import chosen, prompt_flags
from capfilt.cli.output import next_step, print_json, print_line, print_next, typed_command
from capfilt.cli.running import run_and_report
from capfilt.errors import CapfiltError
from capfilt.reports.progress import shown_progress

if TYPE_CHECKING:
    from capfilt.settings import Bootstrap
    from capfilt.stages.context import Stage

CaptionerNeeded = Annotated[
    Path,
    typer.Option(
        "--captioner",
        metavar="MODEL",
        help=f"Captioner to use: {options.MODEL_KINDS}.",
        show_default=False,
    ),
]
FilterNeeded = Annotated[
    Path,
    typer.Option(
        "--filter", metavar="MODEL", help=f"Filter to use: {options.MODEL_KINDS}.", show_default=False
    ),
]
WebOrRunArgument = Annotated[
    str,
    typer.Argument(
        metavar="WEB|RUN",
        help="Noisy pairs, whose texts are scored in a new run; or a run, which gets further scores.",
        show_default=False,
    ),
]


def recaption(
    ctx: typer.Context,
    web: options.WebArgument,
    captioner: CaptionerNeeded,
    out: options.OutOption,
    config: options.ConfigOption = None,
    assignments: options.SetOption = None,
    seed: options.SeedOption = None,
    max_pixels: options.MaxPixelsOption = None,
    candidates: options.CandidatesOption = None,
    prompts: options.PromptOption = None,
    workers: options.WorkersOption = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    batch_size: options.BatchSizeOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Write captions for every picture, and score none.

    Example: capfilt recaption web --captioner models/captioner --out runs/captions

    Example: capfilt recaption web --captioner Salesforce/blip-image-captioning-base --out runs/captions
    """
    from capfilt.settings import Bootstrap
    from capfilt.stages.bootstrap import Request
    from capfilt.stages.judge import JudgePairs
    from capfilt.stages.process import RecaptionAndScore

    settings = chosen(
        Bootstrap(),
        config=config,
        flags={
            "seed": seed,
            "candidates": candidates,
            **prompt_flags(prompts),
            "score": False,
            "bundles.captioner": captioner,
            "input.max_pixels": max_pixels,
            "compute.workers": workers,
            "compute.device": device,
            "compute.precision": precision,
            "compute.batch_size": batch_size,
        },
        assignments=assignments,
    )
    # Without scores every caption is kept: a policy that says so, or nothing could be exported.
    stages: list[Stage] = [RecaptionAndScore(recaption=True, score=False), JudgePairs()]
    request = Request(web, None, out, settings, stages, command=typed_command(ctx))
    run_and_report(request, json=json, quiet=quiet)


def score(
    ctx: typer.Context,
    web_or_run: WebOrRunArgument,
    filter_bundle: FilterNeeded,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Folder of the new run, where WEB is scored."),
    ] = None,
    config: options.ConfigOption = None,
    assignments: options.SetOption = None,
    max_pixels: options.MaxPixelsOption = None,
    workers: options.WorkersOption = None,
    device: options.DeviceOption = None,
    precision: options.PrecisionOption = None,
    batch_size: options.BatchSizeOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Score web texts with a filter, or add a further filter's scores to a run.

    Example: capfilt score web --filter models/filter --out runs/scores

    Example: capfilt score runs/first --filter models/other
    """
    from capfilt.provenance.rundir import RunDir
    from capfilt.settings import Bootstrap

    settings = chosen(
        Bootstrap(),
        config=config,
        flags={
            "recaption": False,
            "bundles.filter": filter_bundle,
            "input.max_pixels": max_pixels,
            "compute.workers": workers,
            "compute.device": device,
            "compute.precision": precision,
            "compute.batch_size": batch_size,
        },
        assignments=assignments,
    )
    if RunDir(web_or_run).run_file.is_file():
        if out is not None:
            raise CapfiltError(
                f"{web_or_run} is a run, and its scores are added to it",
                fix="leave out --out, or give shards instead of a run",
            )
        _score_run(Path(web_or_run), filter_bundle, settings, json=json, quiet=quiet)
    elif out is None:
        raise CapfiltError(
            f"{web_or_run} is no run, so its texts are scored in a new one, which has no folder yet",
            fix="say where: --out RUN",
        )
    else:
        _score_web(ctx, web_or_run, out, settings, json=json, quiet=quiet)


def _score_web(
    ctx: typer.Context, web: str, out: Path, settings: Bootstrap, *, json: bool, quiet: bool
) -> None:
    from capfilt.reports.summary import first_policy
    from capfilt.stages.bootstrap import Request
    from capfilt.stages.process import RecaptionAndScore

    stages = [RecaptionAndScore(recaption=False, score=True)]
    request = Request(web, None, out, settings, stages, command=typed_command(ctx))
    run_and_report(request, json=json, quiet=quiet, next_command=first_policy)


def _score_run(path: Path, bundle: Path, settings: Bootstrap, *, json: bool, quiet: bool) -> None:
    from capfilt.engines.local import LocalEngine
    from capfilt.provenance.rundir import RunDir
    from capfilt.stages.judge import filters_of
    from capfilt.stages.rescore import score_run
    from capfilt.stages.wishes import Filters

    run = RunDir.open(path)
    with shown_progress(quiet=quiet) as progress:
        digest = score_run(run, bundle, settings, LocalEngine(), progress)
    rule = Filters.of(run, filters_of(run), digest).usual_rule
    following = next_step("judge", path, "--with-filter", digest[:12], *rule)
    if json:
        print_json({"run": str(path), "filter": digest, "next_command": following})
        return
    print_line(f"scores of filter {digest[:12]} added to {path}")
    print_next(following)
