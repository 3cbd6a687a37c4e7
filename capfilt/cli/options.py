"""The options that several commands share, each written once.

An option that is not given is None and leaves its setting alone, so that a pipeline's choice or that of
a settings file stands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

_INPUTS, _MODELS, _RULES, _COMPUTE, _OUTPUT = "Input", "Models", "Policy", "Compute", "Output"

WebArgument = Annotated[
    str,
    typer.Argument(
        metavar="WEB",
        help="Noisy pairs as WebDataset tars: a file, a folder, or a quoted glob, braces included.",
        show_default=False,
    ),
]
CleanArgument = Annotated[
    str,
    typer.Argument(metavar="CLEAN", help="Clean pairs as WebDataset tars, like WEB.", show_default=False),
]
CleanOption = Annotated[
    str | None,
    typer.Option(
        "--clean",
        metavar="CLEAN",
        help="Clean pairs to train on, as WebDataset tars; needless when both models are given.",
        rich_help_panel=_INPUTS,
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="RUN",
        help="Folder of the run: a new one, or one to go on with.",
        show_default=False,
        rich_help_panel=_INPUTS,
    ),
]
PipelineOption = Annotated[
    str,
    typer.Option(
        "--pipeline",
        metavar="NAME|PATH",
        help="A pipeline by name (see `capfilt pipelines`), or the path of a Python file, which is run.",
        rich_help_panel=_INPUTS,
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        help="Settings to change, as a TOML file.",
        rich_help_panel=_INPUTS,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="a.b=c",
        help="Change one setting (see `capfilt settings`); may be repeated, and wins over all else.",
        rich_help_panel=_INPUTS,
    ),
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        metavar="N",
        help="Largest picture that is decoded, width times height.",
        rich_help_panel=_INPUTS,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help="Every random choice is keyed by it.", rich_help_panel=_INPUTS),
]
MODEL_KINDS = "a bundle, a transformers folder, a hub id (NAME/MODEL or NAME/MODEL@REVISION), or a .pth"
InitOption = Annotated[
    Path | None,
    typer.Option(
        "--init",
        metavar="MODEL",
        help=f"Model to start captioner and filter from: {MODEL_KINDS}.",
        rich_help_panel=_MODELS,
    ),
]
CaptionerOption = Annotated[
    Path | None,
    typer.Option(
        "--captioner",
        metavar="MODEL",
        help=f"Captioner to use, none is trained: {MODEL_KINDS}.",
        rich_help_panel=_MODELS,
    ),
]
FilterOption = Annotated[
    Path | None,
    typer.Option(
        "--filter",
        metavar="MODEL",
        help=f"Filter to use, none is trained: {MODEL_KINDS}.",
        rich_help_panel=_MODELS,
    ),
]
CandidatesOption = Annotated[
    int | None,
    typer.Option(
        "--candidates", metavar="N", help="Captions drawn for each picture.", rich_help_panel=_MODELS
    ),
]
PromptOption = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="Words that every caption begins with, or what the captioner is told to do; may be repeated: "
        "candidates take them in turn.",
        rich_help_panel=_MODELS,
    ),
]
ItmOption = Annotated[
    str | None,
    typer.Option(
        "--itm",
        metavar="T",
        help="Least ITM: a probability, auto:precision=P or auto:recall=R.",
        rich_help_panel=_RULES,
    ),
]
ItcOption = Annotated[
    str | None,
    typer.Option(
        "--itc",
        metavar="T",
        help="Least ITC: a cosine, auto:precision=P or auto:recall=R.",
        rich_help_panel=_RULES,
    ),
]
VqaOption = Annotated[
    str | None,
    typer.Option(
        "--vqa",
        metavar="T",
        help="Least VQA, the probability of yes to a question about the caption: a number, "
        "auto:precision=P or auto:recall=R.",
        rich_help_panel=_RULES,
    ),
]
FractionOption = Annotated[
    float | None,
    typer.Option(
        "--fraction",
        metavar="F",
        help="Keep this share of all captions, the best by --by.",
        rich_help_panel=_RULES,
    ),
]
ByOption = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="SCORE",
        help="What --fraction and --per-image rank by: itm, itc, vqa, FILTER:itc for a further filter, or a "
        "sum such as 0.7*itm+0.3*FILTER:itc.",
        rich_help_panel=_RULES,
    ),
]
PerImageOption = Annotated[
    int | None,
    typer.Option(
        "--per-image",
        metavar="N",
        help="Keep at most this many captions of a picture; of equal ones, the best placed.",
        rich_help_panel=_RULES,
    ),
]
RescueOption = Annotated[
    bool,
    typer.Option(
        "--rescue",
        help="Keep a synthetic text only where the web text fails, the best one.",
        rich_help_panel=_RULES,
    ),
]
NoiseRateOption = Annotated[
    float | None,
    typer.Option(
        "--noise-rate",
        metavar="R",
        help="Share of wrong pairs that auto:precision assumes.",
        rich_help_panel=_RULES,
    ),
]
AcceptWeakFilterOption = Annotated[
    bool,
    typer.Option(
        "--accept-weak-filter",
        help="Export even where the policy reads a score that is no better than chance.",
        rich_help_panel=_RULES,
    ),
]
TextsOption = Annotated[
    Literal["best", "all", "web", "synthetic"] | None,
    typer.Option("--texts", help="Which kept captions of a picture go out.", rich_help_panel=_OUTPUT),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", help="Processes that take shards.", rich_help_panel=_COMPUTE),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="auto|cpu|cuda:N", help="Where models run.", rich_help_panel=_COMPUTE),
]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "bf16", "int8"] | None,
    typer.Option(
        "--precision",
        help="Numbers of captioning and scoring; auto is bf16 where GPU or processor computes in it.",
        rich_help_panel=_COMPUTE,
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        help="Pictures in a batch of recaptioning and scoring.",
        rich_help_panel=_COMPUTE,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Report as one JSON value on stdout.", rich_help_panel=_OUTPUT)
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", help="Show no progress on stderr.", rich_help_panel=_OUTPUT)
]
