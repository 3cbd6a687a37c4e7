"""`capfilt models`: what a checkpoint is, and any checkpoint as a bundle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from capfilt.cli import options
from capfilt.cli.output import next_step, print_json, print_line, print_next
from capfilt.errors import CapfiltError, RunFailedError
from capfilt.reports.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.stages.checkpoint import Checkpoint

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help=f"{options.MODEL_KINDS}.".capitalize(), show_default=False),
]
VocabularyOption = Annotated[
    str,
    typer.Option(
        "--vocabulary",
        metavar="PATH|ID",
        help="Vocabulary of a .pth, which holds none: a folder or a hub id.",
    ),
]
HeadsOption = Annotated[
    str | None,
    typer.Option(
        "--heads",
        metavar="V,T",
        help="Attention heads of a .pth, image encoder and text (or Q-Former), where their widths are not "
        "those of a released one.",
    ),
]
VisionOption = Annotated[
    str | None,
    typer.Option(
        "--vision",
        metavar="PATH|ID",
        help="Image encoder of a .pth of LAVIS that lacks it: LAVIS's eva_vit_g.pth, or a folder or hub id "
        "of a BLIP-2.",
    ),
]
LanguageOption = Annotated[
    str | None,
    typer.Option(
        "--language",
        metavar="PATH|ID",
        help="Language model of a .pth of LAVIS: a folder of transformers or a hub id.",
    ),
]
BERT = "bert-base-uncased"
_FAMILIES = {"blip": "BLIP", "blip2": "BLIP-2", "instructblip": "InstructBLIP"}

models = typer.Typer(
    no_args_is_help=True,
    help="Say what a checkpoint is, or write it as a bundle.\n\n"
    "Example: capfilt models check models/captioner",
)


@models.command()
def check(
    model: ModelArgument,
    vocabulary: VocabularyOption = BERT,
    heads: HeadsOption = None,
    vision: VisionOption = None,
    language: LanguageOption = None,
    json: options.JsonOption = False,
) -> None:
    """Say what a checkpoint is and, where transformers can load it, whether both compute the same.

    Ends with 1 where they do not.

    Example: capfilt models check models/captioner
    """
    from capfilt.engines.local import LocalEngine
    from capfilt.stages.checkpoint import check_checkpoint

    job = _checkpoint(model, vocabulary, heads, vision=vision, language=language)
    [(_, found)] = list(LocalEngine().run(check_checkpoint, [job], devices=["cpu"], threads=1))
    fresh = found["origin"]["fresh"] if found["origin"] is not None else ()
    options_given = [] if vocabulary == BERT else ["--vocabulary", vocabulary]
    for name, value in (("--heads", heads), ("--vision", vision), ("--language", language)):
        options_given += [] if value is None else [name, value]
    following = _following(
        model, found["kind"], found["format"], found["family"], fresh=fresh, options=options_given
    )
    if json:
        print_json({"model": model, **found, "next_command": following})
    else:
        for line in _lines(model, found):
            print(visible(line))
        print_next(following)
    failed = [kind for kind, measured in found["parity"].items() if not measured["holds"]]
    if failed:
        raise RunFailedError(
            f"{model}: transformers computes something else of its {' and '.join(failed)}",
            fix="compare the versions of transformers and torch, and report it with the lines above",
        )


@models.command()
def convert(
    model: ModelArgument,
    out: Annotated[
        Path, typer.Option("--out", metavar="BUNDLE", help="Folder of the bundle.", show_default=False)
    ],
    role: Annotated[
        Literal["captioner", "filter", "init"],
        typer.Option("--role", help="Part that is wanted; init is all there is."),
    ] = "init",
    size_px: Annotated[
        int | None,
        typer.Option(
            "--size-px",
            metavar="N",
            min=8,
            max=4096,
            help="Side of the pictures, in pixels: position embeddings are interpolated to it.",
        ),
    ] = None,
    vocabulary: VocabularyOption = BERT,
    heads: HeadsOption = None,
    vision: VisionOption = None,
    language: LanguageOption = None,
    json: options.JsonOption = False,
) -> None:
    """Write a checkpoint as a bundle, which transformers can load too where the image encoder is BLIP's own.

    Of what other software runs (CLIP, chat models, a .py of your own) the bundle is its own files and a card.

    Example: capfilt models convert model_base.pth --out models/base --role captioner
    """
    from capfilt.engines.local import LocalEngine
    from capfilt.stages.checkpoint import check_new, convert_checkpoint
    from capfilt.stages.given import described

    check_new(out)
    parts = {"vision": vision, "language": language}
    job = _checkpoint(model, vocabulary, heads, role=role, size_px=size_px, **parts), out.absolute()
    [(_, card)] = list(LocalEngine().run(convert_checkpoint, [job], devices=["cpu"], threads=1))
    fresh = card.origin.fresh if card.origin is not None else ()
    following = _following(str(out), card.kind, "bundle", card.family, fresh=fresh)
    if json:
        print_json(
            {
                "bundle": str(out),
                "kind": card.kind,
                "weights": card.weights,
                "fresh": list(fresh),
                "next_command": following,
            }
        )
        return
    print(visible(described(card, model)))
    if fresh:
        print(f"drawn anew, to start a training from: {', '.join(fresh)}")
    print_line(f"{card.kind} {card.weights[:12]} in {out}")
    print_next(following)


def _checkpoint(model: str, vocabulary: str, heads: str | None, **more: Any) -> Checkpoint:
    from capfilt.stages.checkpoint import Checkpoint

    found = re.fullmatch(r"([1-9]\d*),([1-9]\d*)", heads) if heads is not None else None
    if heads is not None and found is None:
        raise CapfiltError(f"--heads {heads} is not two numbers", fix="write --heads 12,12")
    parts = {name: more.pop(name, None) for name in ("vision", "language")}
    more |= {name: _absolute(one) for name, one in parts.items() if one is not None}
    source, words = _absolute(model), _absolute(vocabulary)
    return Checkpoint(source, words, heads=(int(found[1]), int(found[2])) if found else None, **more)


def _absolute(given: str) -> str:
    """Return a path that exists as an absolute one: a worker may have been started elsewhere."""
    return str(Path(given).absolute()) if Path(given).exists() else given


def _following(
    model: str, kind: str, form: str, family: str, *, fresh: Sequence[str] = (), options: Sequence[str] = ()
) -> str:
    """Return what to type next; `options` are those a .pth was read with, `fresh` heads are untrained."""
    if form == "pth":
        return next_step("models", "convert", model, *options, "--out", "BUNDLE")
    pipeline = [] if family == "blip" else ["--pipeline", "blip2_opt"]
    if fresh:
        return next_step("train", "filter", "CLEAN", "--init", model, *pipeline, "--out", "BUNDLE")
    if kind == "captioner":
        return next_step("recaption", "WEB", "--captioner", model, "--out", "RUN")
    if kind == "filter":
        return next_step("score", "WEB", "--filter", model, "--out", "RUN")
    # Of a Q-Former a captioner is made by a language model, which the model does not hold.
    language = ["--set", "bundles.language=MODEL"] if pipeline else []
    return next_step(
        "bootstrap", "WEB", "--clean", "CLEAN", "--init", model, *pipeline, *language, "--out", "RUN"
    )


def _lines(model: str, found: dict[str, Any]) -> list[str]:
    forms = {
        "bundle": "bundle of capfilt",
        "transformers": "transformers folder",
        "pth": ".pth",
        "python": "Python file",
        "server": "server",
    }
    roles = " and ".join(found["roles"])
    lines = [
        f"{model}: {roles} ({', '.join(found['objectives'])}), a {forms[found['format']]}",
        *(_structure(found) if found["structure"] is not None else _run_elsewhere(found)),
        "conventions: " + ", ".join(f"{name} {value!r}" for name, value in found["conventions"].items()),
    ]
    origin = found["origin"]
    if origin is not None:
        commit = f", commit {origin['revision']}" if origin["revision"] else ""
        lines.append(f"origin: {origin['kind']}, {origin['source']}{commit}, {origin['sha256'][:12]}")
        lines += [f"not read: {name}: {what}" for name, what in origin["left_out"].items()]
        lines += [f"lacking, drawn anew for a training: {name}" for name in origin["fresh"]]
    lines += [f"transformers: {kind} by {name}" for kind, name in found["transformers"].items()]
    if found["not_in_transformers"]:
        lines.append(f"transformers cannot load it: {found['not_in_transformers']}")
    return [*lines, *(line for kind, one in found["parity"].items() for line in _parity(kind, one))]


def _structure(found: dict[str, Any]) -> list[str]:
    """Return how a model is built that capfilt builds itself."""
    built = found["structure"]
    widths = f"image width {built['image_width']}, {built['image_layers']} layers"
    if not isinstance(built["image_encoder"], dict):
        widths = f"image encoder {built['image_encoder']}"
    head = f"{_FAMILIES[found['family']]}, {built['name']}, {built['size_px']} px, {widths}, "
    lines = [
        f"weights: {found['weights']}",
        f"image encoder: {found['image_encoder']}",
        f"vocabulary: {found['vocabulary']['entries']} entries, {found['vocabulary']['digest'][:12]}",
    ]
    if "queries" not in built:
        sizes = (
            f"text width {built['text_width']}, {built['text_layers']} layers, {built['text_heads']} heads"
        )
        return [f"structure: {head}{sizes}", *lines]
    sizes = (
        f"{built['queries']} queries, Q-Former width {built['qformer_width']}, {built['qformer_layers']} "
        f"layers, {built['qformer_heads']} heads"
    )
    language = built["language_model"]
    if language is not None:
        lines.append(
            f"language model: {language['type']}, width {language['width']}, {language['layers']} layers, "
            f"{language['entries']} entries"
        )
    return [f"structure: {head}{sizes}", *lines]


def _run_elsewhere(found: dict[str, Any]) -> list[str]:
    """Return by what a model is run that capfilt does not build."""
    options = ", ".join(f"{name} {value!r}" for name, value in found["options"].items())
    return [
        f"run by: the backend {found['family']}" + (f", with {options}" if options else ""),
        f"weights: {found['weights']}",
        "nothing is converted: a bundle is its own files, or its address, beside a card",
    ]


def _parity(kind: str, measured: dict[str, Any]) -> list[str]:
    """Return how far a model is from the same one in transformers."""
    apart = ", ".join(f"{name} {value:.1e}" for name, value in measured["differences"].items())
    lines = [f"parity of the {kind}: largest differences {apart} (within {measured['within']:.0e})"]
    if measured["captions"] is not None:
        ours, theirs = measured["captions"]
        same = "the same" if ours == theirs else f"another one there: {theirs!r}"
        lines.append(f"greedy caption of the built-in picture: {ours!r}, {same}")
    if measured["pixels"] is not None:
        lines.append(f"image processing: at most {measured['pixels']:.1f} of 255 levels apart")
    if not measured["tokens_are_equal"]:
        lines.append("texts: other token ids there, or no tokenizer in the folder")
    return lines + [f"not loaded there: {name}" for name in measured["not_loaded"]]
