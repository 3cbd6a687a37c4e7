"""What measuring came to, as people read it and as JSON: a row a part, then what follows from them.

Every figure was measured on this machine; what a run would take is worked out of them, and what that assumes
is said beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.reports.rate import per_second_words
from capfilt.reports.text import visible

if TYPE_CHECKING:
    from rich.console import Console

    from capfilt.stages.bench.measured import Measured, Part

_GIB = 2**30


def as_json(measured: Measured, *, images: int | None = None, price_per_hour: float | None = None) -> Any:
    """Return all figures as JSON can say them; `images` and a price give what a run over so many takes."""
    return {
        "device": measured.device,
        "device_name": measured.device_name,
        "precision": measured.precision,
        "batch_size": measured.batch_size,
        "candidates": measured.candidates,
        "images": measured.images,
        "samples": measured.samples,
        "megapixels": measured.megapixels,
        "parts": [_part(part, measured) for part in measured.parts],
        "wall_s": measured.wall_s,
        "whole_wall_s": measured.whole_wall_s,
        "decoders": measured.decoders,
        "cpu_s": measured.cpu_s,
        "images_per_s": measured.images_per_s,
        "workers": measured.workers,
        "workers_at_once": measured.at_once,
        "images_per_s_all_workers": measured.images_per_s_at_once,
        "share_of_matmul_peak": measured.share_of_peak,
        "peak_memory_bytes": measured.peak_memory,
        "device_peak_memory_bytes": measured.device_peak_memory,
        "counters": dict(measured.counters.__dict__),
        "transformers": _comparison(measured),
        "bottleneck": {"part": measured.bottleneck, "advice": advice(measured)},
        "estimate": _estimate(measured, images, price_per_hour) if images is not None else None,
    }


def show_bench(
    measured: Measured, console: Console, *, images: int | None = None, price_per_hour: float | None = None
) -> None:
    """Print a row a part, then the machine's figures, the bottleneck and what a run would take."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("part", overflow="fold")
    for title in ("work", "ms/image", "CPU ms", "of peak"):
        table.add_column(title, justify="right", overflow="fold")
    for part in measured.parts:
        table.add_row(*_cells(_named(part), part.wall_s, part.cpu_s, part.share_of_peak, measured))
    table.add_row(*_cells("all", measured.wall_s, measured.cpu_s, measured.share_of_peak, measured))
    console.print(
        f"{measured.images:,} images on {visible(measured.device)}, {visible(measured.device_name)}, in "
        f"{measured.precision}, batches of {min(measured.batch_size, measured.images)}"
    )
    console.print(table)
    for line in sentences(measured, images=images, price_per_hour=price_per_hour):
        console.print(visible(line))


def sentences(
    measured: Measured, *, images: int | None = None, price_per_hour: float | None = None
) -> list[str]:
    """Return what follows from the figures: speed, memory, transformers, the bottleneck, the estimate."""
    lines = [_speed(measured), _memory(measured), _beside_transformers(measured)]
    if measured.decoders:
        threads = "1 thread" if measured.decoders == 1 else f"{measured.decoders} threads"
        lines.insert(1, f"Decode and resize are done ahead, by {threads}, beside the rest.")
    if measured.share_of_peak is not None:
        lines.append(
            "Of peak: share of the speed of a plain matrix product in the same numbers, measured here too."
        )
    share = measured.share(measured.bottleneck)
    lines.append(f"Bottleneck: {measured.bottleneck}, {share:.0%} of the work; {advice(measured)}.")
    if images is not None:
        lines.append(_estimate_words(measured, images, price_per_hour))
    return lines


def advice(measured: Measured) -> str:
    """Return what would make the bottleneck shorter, as half a sentence."""
    is_gpu = measured.device != "cpu"
    name = measured.bottleneck
    if name == "image encoder":
        return _encoder_advice(measured)
    if name in ("captions", "scores"):
        if faster := _faster_precision(measured):
            return f"try {faster}"
        if is_gpu:
            return "a larger --batch-size fills the GPU better"
        return "fewer --candidates, or a smaller decoding.max_tokens, are less work"
    if name == "commit":
        return "fewer samples have to be written at once: check the disk of the run"
    if name == "read":
        return "have the shards on a faster disk, or take more --workers that read side by side"
    smaller = "shards of smaller pictures are less work (img2dataset resizes them)"
    if not measured.decoders:
        return smaller
    return f"more threads can do it ahead than {measured.decoders} (compute.decoders), and {smaller}"


def _encoder_advice(measured: Measured) -> str:
    faster = _faster_precision(measured)
    shared = "a captioner and a filter with one image encoder encode a picture once (model.shared_vision)"
    if measured.encoders > 1:
        return f"{shared}" + (f"; try {faster}" if faster else "")
    if faster:
        return f"try {faster}"
    return (
        "this is where a GPU helps most"
        if measured.device == "cpu"
        else "this is the work itself; more GPUs share it"
    )


def _faster_precision(measured: Measured) -> str:
    """Return the option that may pay on this device; empty where there is none, or none that is native."""
    if measured.precision == "fp32" and measured.has_native_bf16:
        return "--precision bf16"
    if measured.precision == "bf16" and measured.device == "cpu" and measured.bottleneck == "image encoder":
        return "--precision int8"
    return ""


# -- the parts of the page


def _named(part: Part) -> str:
    return f"{part.name} ({part.model})" if part.model else part.name


def _cells(
    name: str, wall_s: float, cpu_s: float, share_of_peak: float | None, measured: Measured
) -> list[str]:
    each = 1000 / measured.images
    return [
        name,
        f"{wall_s / measured.wall_s:.1%}",
        _milliseconds(wall_s * each),
        _milliseconds(cpu_s * each),
        "" if share_of_peak is None else f"{share_of_peak:.1%}",
    ]


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.1 else f"{value:.2f}"


def _speed(measured: Measured) -> str:
    one = f"{per_second_words(measured.images_per_s, 'images')} from the tar to the rows by one worker"
    if measured.at_once == 1:
        return f"{one}."
    every = per_second_words(measured.images_per_s_at_once, "images")
    return f"{one}; {every} by {measured.at_once} workers, if each is as fast."


def _memory(measured: Measured) -> str:
    words = f"Peak memory of the worker: {measured.peak_memory / _GIB:.2f} GiB"
    if measured.device_peak_memory is not None:
        words += f", and {measured.device_peak_memory / _GIB:.2f} GiB of the GPU"
    return words + "."


def _beside_transformers(measured: Measured) -> str:
    found = measured.comparison
    if found is None:
        return f"Not compared with transformers: {measured.why_not}."
    what = [f"captions of {found.tokens} tokens"] if found.tokens else []
    what += [f"{found.texts:.3g} texts scored"] if found.texts else []
    kind = "CPU seconds" if found.seconds == "cpu" else "seconds"
    return (
        f"{found.ratio:.2f}x as fast as transformers in fp32, picture by picture: {found.ours_s:.3g} against "
        f"{found.theirs_s:.3g} {kind} an image ({', '.join(what)}; median of {found.rounds} rounds in turn)."
    )


def _estimate_words(measured: Measured, images: int, price_per_hour: float | None) -> str:
    workers = "1 worker" if measured.at_once == 1 else f"{measured.at_once} workers at once"
    words = f"{images:,} images take {_hours(measured.hours(images))} with {workers}"
    if price_per_hour is not None:
        words += f" and cost {measured.hours(images) * price_per_hour:,.2f} at {price_per_hour:,.2f} an hour"
    words += f", if they are like these ({measured.megapixels:.2g} megapixels on average)"
    if measured.workers > measured.at_once:
        words += f"; {measured.workers} workers would take turns"
    return words + "."


def _hours(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 10 else f"{hours:.3g} hours"


# -- JSON


def _part(part: Part, measured: Measured) -> dict[str, Any]:
    return {
        "part": part.name,
        "model": part.model or None,
        "share_of_time": part.wall_s / measured.wall_s,
        "wall_s": part.wall_s,
        "cpu_s": part.cpu_s,
        "images_per_s": measured.images / part.wall_s if part.wall_s > 0 else None,
        "flops": part.flops,
        "matmul_peak_flops_per_s": part.peak or None,
        "share_of_matmul_peak": part.share_of_peak,
    }


def _comparison(measured: Measured) -> dict[str, Any]:
    found = measured.comparison
    if found is None:
        return {"ratio": None, "why_not": measured.why_not}
    return {"ratio": found.ratio, **found.__dict__, "why_not": None}


def _estimate(measured: Measured, images: int, price_per_hour: float | None) -> dict[str, Any]:
    hours = measured.hours(images)
    return {
        "images": images,
        "hours": hours,
        "price_per_hour": price_per_hour,
        "cost": None if price_per_hour is None else hours * price_per_hour,
        "workers": measured.at_once,
        "assumes": {
            "megapixels": measured.megapixels,
            "candidates": measured.candidates,
            "precision": measured.precision,
        },
    }
