"""What measuring came to, as people read it: all figures here are made by hand."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest

from capfilt.reports.bench import advice, as_json, sentences, show_bench
from capfilt.reports.text import terminal
from capfilt.stages.bench.compare import Comparison
from capfilt.stages.bench.measured import Counters, Measured, Part

COMPARED = Comparison(
    ours_s=2.0, theirs_s=7.0, seconds="cpu", our_images=4, their_images=4, rounds=3, tokens=20, texts=2.0
)
MEASURED = Measured(
    images=100,
    samples=102,
    megapixels=0.25,
    parts=(
        Part("read", "", 0.5, 0.1),
        Part("decode", "", 1.0, 1.0),
        Part("resize", "", 0.5, 0.5),
        Part("image encoder", "captioner", 20.0, 20.0, flops=400, peak=40.0),
        Part("image encoder", "filter", 18.0, 18.0, flops=360, peak=40.0),
        Part("captions", "", 6.0, 6.0, flops=60, peak=40.0),
        Part("scores", "", 3.0, 3.0, flops=30, peak=40.0),
        Part("commit", "", 1.0, 0.4),
    ),
    whole_wall_s=50.0,
    decoders=0,
    counters=Counters(200, 2000, 1900, 200),
    device="cpu",
    device_name="A [red]fast[/red] processor",
    precision="fp32",
    has_native_bf16=True,
    batch_size=32,
    candidates=1,
    peak_memory=3 * 2**30,
    device_peak_memory=None,
    comparison=COMPARED,
    why_not="",
    workers=4,
    at_once=2,
)


def shown(measured: Measured = MEASURED, width: int = 110, **asked: Any) -> str:
    file = io.StringIO()
    show_bench(measured, terminal(file, width=width), **asked)
    return file.getvalue()


def test_speed_share_of_peak_hours_and_cost_are_worked_out_by_hand() -> None:
    # 100 images in 50 s: 2 a second by one worker, 4 by the two that do not take turns.
    assert (MEASURED.images_per_s, MEASURED.images_per_s_at_once) == (2.0, 4.0)
    assert MEASURED.hours(144_000) == 10.0
    # At their peak the products would take (400 + 360 + 60 + 30) / 40 = 21.25 s of 47 s.
    assert MEASURED.share_of_peak == 21.25 / 47
    assert MEASURED.parts[3].share_of_peak == 0.5
    value = as_json(MEASURED, images=144_000, price_per_hour=2.5)
    assert value["estimate"] == {
        "images": 144_000,
        "hours": 10.0,
        "price_per_hour": 2.5,
        "cost": 25.0,
        "workers": 2,
        "assumes": {"megapixels": 0.25, "candidates": 1, "precision": "fp32"},
    }


def test_the_page_has_a_row_a_part_and_what_follows_from_them() -> None:
    text = shown(images=144_000, price_per_hour=2.5)
    rows = [line.split() for line in text.splitlines()]
    assert ["image", "encoder", "(captioner)", "40.0%", "200", "200", "50.0%"] in rows
    assert ["commit", "2.0%", "10", "4"] in rows
    assert ["all", "100.0%", "500", "490", "45.2%"] in rows
    for sentence in (
        "2 images/s from the tar to the rows by one worker; 4 images/s by 2 workers, if each is as fast.",
        "Peak memory of the worker: 3.00 GiB.",
        "3.50x as fast as transformers in fp32",
        "2 against 7 CPU seconds an image (captions of 20 tokens, 2 texts scored; median of 3 rounds",
        "Bottleneck: image encoder, 76% of the work;",
        "144,000 images take 10.0 hours with 2 workers at once and cost 25.00 at 2.50 an hour, if they",
        "4 workers would take turns",
    ):
        assert sentence in " ".join(text.split())


def test_nothing_is_said_of_a_run_that_nobody_asked_for() -> None:
    assert "hours" not in shown()
    assert as_json(MEASURED)["estimate"] is None
    assert "cost" not in shown(images=10)
    assert as_json(MEASURED, images=10)["estimate"]["cost"] is None


def test_json_holds_every_figure_without_loss() -> None:
    value = as_json(MEASURED, images=144_000)
    assert json.loads(json.dumps(value)) == value
    assert sorted(value) == [
        "batch_size",
        "bottleneck",
        "candidates",
        "counters",
        "cpu_s",
        "decoders",
        "device",
        "device_name",
        "device_peak_memory_bytes",
        "estimate",
        "images",
        "images_per_s",
        "images_per_s_all_workers",
        "megapixels",
        "parts",
        "peak_memory_bytes",
        "precision",
        "samples",
        "share_of_matmul_peak",
        "transformers",
        "wall_s",
        "whole_wall_s",
        "workers",
        "workers_at_once",
    ]
    assert sum(part["share_of_time"] for part in value["parts"]) == pytest.approx(1)
    assert value["parts"][3] == {
        "part": "image encoder",
        "model": "captioner",
        "share_of_time": 0.4,
        "wall_s": 20.0,
        "cpu_s": 20.0,
        "images_per_s": 5.0,
        "flops": 400,
        "matmul_peak_flops_per_s": 40.0,
        "share_of_matmul_peak": 0.5,
    }
    assert value["transformers"]["ratio"] == 3.5
    assert value["bottleneck"]["part"] == "image encoder"
    assert value["counters"]["encoder_passes"] == 200


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = shown(width=width, images=10**9, price_per_hour=30.0).splitlines()
    assert [line for line in lines if len(line) > width] == []


def test_a_pipe_gets_no_colour_and_no_markup_is_read() -> None:
    text = shown()
    assert "\x1b" not in text
    assert "A [red]fast[/red] processor" in text


def test_what_was_not_compared_says_why() -> None:
    alone = replace(MEASURED, comparison=None, why_not="transformers is not installed")
    assert "Not compared with transformers: transformers is not installed." in shown(alone)
    assert as_json(alone)["transformers"] == {"ratio": None, "why_not": "transformers is not installed"}


def test_a_gpu_has_memory_of_its_own_and_seconds_of_a_wall_clock() -> None:
    compared = replace(COMPARED, seconds="wall")
    gpu = replace(MEASURED, device="cuda:0", device_peak_memory=5 * 2**30, comparison=compared)
    text = " ".join(shown(gpu).split())
    assert "3.00 GiB, and 5.00 GiB of the GPU." in text
    assert "2 against 7 seconds an image" in text


def with_part(name: str, wall_s: float, measured: Measured = MEASURED, **changes: Any) -> Measured:
    parts = tuple(replace(part, wall_s=wall_s) if part.name == name else part for part in measured.parts)
    return replace(measured, parts=parts, **changes)


@pytest.mark.parametrize(
    ("measured", "part", "words"),
    [
        (MEASURED, "image encoder", "with one image encoder"),
        (MEASURED, "image encoder", "--precision bf16"),
        (replace(MEASURED, precision="bf16"), "image encoder", "--precision int8"),
        (replace(MEASURED, has_native_bf16=False), "image encoder", "model.shared_vision"),
        (with_part("captions", 99.0), "captions", "--precision bf16"),
        (with_part("captions", 99.0, precision="bf16"), "captions", "fewer --candidates"),
        (with_part("scores", 99.0, precision="bf16", device="cuda:0"), "scores", "--batch-size"),
        (with_part("decode", 99.0), "decode", "smaller pictures"),
        (with_part("decode", 999.0, decoders=4, device="cuda:0"), "decode", "compute.decoders"),
        (with_part("read", 99.0), "read", "faster disk"),
        (with_part("commit", 99.0), "commit", "disk of the run"),
    ],
)
def test_the_bottleneck_is_named_with_what_would_help(measured: Measured, part: str, words: str) -> None:
    assert measured.bottleneck == part
    assert words in advice(measured)


def test_an_encoder_that_is_shared_already_is_not_to_be_shared() -> None:
    both = tuple(replace(part, model="both") for part in MEASURED.parts if part.model != "filter")
    assert "model.shared_vision" not in advice(replace(MEASURED, parts=both))
    assert "bf16" not in advice(replace(MEASURED, parts=both, has_native_bf16=False))


def test_decoding_ahead_is_no_bottleneck_while_its_threads_keep_up() -> None:
    # 60 s of decoding and 0.5 s of resizing by two threads are done in 30.25 s, the rest takes 48.5 s.
    ahead = with_part("decode", 60.0, decoders=2)
    assert ahead.bottleneck == "image encoder"
    assert replace(ahead, decoders=1).bottleneck == "decode"
    assert replace(ahead, decoders=0).bottleneck == "decode"
    assert any("by 2 threads," in line for line in sentences(ahead))
    assert any("by 1 thread," in line for line in sentences(replace(ahead, decoders=1)))


def test_a_batch_is_no_larger_than_what_there_was() -> None:
    assert "batches of 32" in shown()
    assert "batches of 100" in shown(replace(MEASURED, batch_size=128))
