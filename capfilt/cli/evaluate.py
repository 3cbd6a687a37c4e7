"""`capfilt evaluate`: how good a model is on pairs it has not seen, and what simpler means come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from capfilt.cli import options
from capfilt.cli.choices import chosen
from capfilt.cli.output import print_json, print_line

if TYPE_CHECKING:
    from capfilt.stages.evaluate.measure import Choices
    from capfilt.stages.evaluate.results import Evaluation, Task

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help=f"Model to evaluate: {options.MODEL_KINDS}.", show_default=False),
]
DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Pairs the model was not trained on, with right texts, as WebDataset tars: a file, a folder, or "
        "a quoted glob.",
        show_default=False,
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="Evaluate on the first N pictures of DATA."),
]
ClipOption = Annotated[
    str | None,
    typer.Option(
        "--clip",
        metavar="MODEL",
        help="Dual encoder to stand beside it: a folder or hub id of a CLIP- or SigLIP-like model of "
        "transformers.",
    ),
]
ResultsOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Write figures (JSON), a row for each item (Parquet) and pictures (PNG) there.",
    ),
]

evaluate = typer.Typer(
    no_args_is_help=True,
    help="Measure a model on pairs it has not seen, beside simpler means.\n\n"
    "Example: capfilt evaluate retrieval models/filter test",
)


@evaluate.command()
def retrieval(
    model: ModelArgument,
    data: DataArgument,
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="K", min=1, help="Candidates of ITC that ITM orders.")
    ] = 128,
    rerank: Annotated[
        Literal["itm", "sum"],
        typer.Option(
            "--rerank",
            help="Order them by the probability of a match (BLIP's paper), or by its logit plus the cosine "
            "(BLIP's released code).",
        ),
    ] = "itm",
    clip: ClipOption = None,
    limit: LimitOption = None,
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
    """Find the texts of each picture and the pictures of each text: recall by ITC, and re-ranked by ITM.

    Example: capfilt evaluate retrieval models/filter test --clip openai/clip-vit-base-patch32

    Example: capfilt evaluate retrieval Salesforce/blip-itm-base-coco test --rerank sum --top-k 256
    """
    from capfilt.stages.evaluate.retrieval import RetrievalChoices

    flags = flags_of(max_pixels, seed, device, precision, batch_size)
    _evaluate(
        "retrieval",
        model,
        data,
        RetrievalChoices(top_k, rerank),
        clip=clip,
        limit=limit,
        out=out,
        config=config,
        assignments=assignments,
        flags=flags,
        json=json,
        quiet=quiet,
    )


@evaluate.command()
def caption(
    model: ModelArgument,
    data: DataArgument,
    method: Annotated[
        Literal["greedy", "beam", "nucleus"],
        typer.Option("--method", help="How captions are decoded; --set decoding.a=b says how exactly."),
    ] = "greedy",
    limit: LimitOption = None,
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
    """Caption each picture and compare with its texts: CIDEr-D, BLEU-4, and how much captions differ.

    Example: capfilt evaluate caption models/captioner test --out written

    Example: capfilt evaluate caption models/captioner test --method beam --set decoding.beams=3
    """
    flags = flags_of(max_pixels, seed, device, precision, batch_size) | {
        "decoding.method": method,
        "candidates": 1,
    }
    _evaluate(
        "caption",
        model,
        data,
        None,
        clip=None,
        limit=limit,
        out=out,
        config=config,
        assignments=assignments,
        flags=flags,
        json=json,
        quiet=quiet,
    )


@evaluate.command(name="filter")
def filter_(
    model: ModelArgument,
    data: DataArgument,
    kind_field: Annotated[
        str | None,
        typer.Option(
            "--kind-field",
            metavar="NAME",
            help="Field of KEY.json that says of the text that stands there `right`, or what is wrong with "
            "it; without, all texts are right, and wrong pairs are made of them.",
        ),
    ] = None,
    fraction: Annotated[
        list[float] | None,
        typer.Option(
            "--fraction",
            metavar="F",
            help="Share of the pairs to keep, the best by each score: 0.3; may be repeated.",
            show_default=False,
        ),
    ] = None,
    clip: ClipOption = None,
    limit: LimitOption = None,
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
    """Tell right pairs from wrong ones, by each score and by a classifier that never sees the picture.

    Example: capfilt evaluate filter models/filter test --clip openai/clip-vit-large-patch14

    Example: capfilt evaluate filter models/filter web --kind-field noise_kind --fraction 0.3 --fraction 0.5
    """
    from capfilt.stages.evaluate.filtering import FilterChoices

    flags = flags_of(max_pixels, seed, device, precision, batch_size)
    _evaluate(
        "filter",
        model,
        data,
        FilterChoices(kind_field, _fractions(fraction)),
        clip=clip,
        limit=limit,
        out=out,
        config=config,
        assignments=assignments,
        flags=flags,
        json=json,
        quiet=quiet,
    )


def flags_of(
    max_pixels: int | None,
    seed: int | None,
    device: str | None,
    precision: str | None,
    batch_size: int | None,
) -> dict[str, Any]:
    """Return what every evaluation lets one choose by a flag, as settings."""
    return {
        "input.max_pixels": max_pixels,
        "seed": seed,
        "compute.device": device,
        "compute.precision": precision,
        "compute.batch_size": batch_size,
    }


def _fractions(given: list[float] | None) -> tuple[float, ...]:
    from capfilt.errors import CapfiltError

    fractions = tuple(dict.fromkeys(given or (0.3,)))
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise CapfiltError(
                f"--fraction {fraction:g} is no share of the pairs", fix="give one above 0 and at most 1"
            )
    return fractions


def _evaluate(
    task: Task,
    model: str,
    data: str,
    choices: Choices,
    *,
    clip: str | None,
    limit: int | None,
    out: Path | None,
    config: Path | None,
    assignments: list[str] | None,
    flags: dict[str, Any],
    json: bool,
    quiet: bool,
) -> None:
    """Evaluate by this machine's engine, write what was asked for, and print it."""
    from capfilt.engines.local import LocalEngine
    from capfilt.reports.progress import shown_progress
    from capfilt.settings import Bootstrap
    from capfilt.stages.evaluate.measure import EvaluationRequest, evaluate
    from capfilt.stages.evaluate.results import check_place

    if out is not None:
        check_place(out)
    settings = chosen(Bootstrap(), config=config, flags=flags, assignments=assignments)
    request = EvaluationRequest(task, model, data, settings, choices, limit, clip)
    with shown_progress(quiet=quiet) as progress:
        evaluation = evaluate(request, LocalEngine(), progress)
    tell(evaluation, out, json=json)


def tell(evaluation: Evaluation, out: Path | None, *, json: bool) -> None:
    """Write an evaluation where that was asked for, and print it."""
    from capfilt.reports.evaluation import show_evaluation, write_evaluation
    from capfilt.reports.text import terminal
    from capfilt.stages.evaluate.results import as_json

    if out is not None:
        write_evaluation(evaluation, out)
    if json:
        print_json(as_json(evaluation))
        return
    show_evaluation(evaluation, terminal())
    if out is not None:
        print_line(f"written to {out}")
