"""A run whose pictures lie in a real tar, with scores and texts that are known: no model is trained."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from made_run import CAPTIONER, FILTER, made_run

from capfilt.data.sources import find_shards, read_shard
from capfilt.draws import uniforms
from capfilt.provenance.commit import commit_shard, record_metrics
from capfilt.provenance.policy import AtLeast, Policy, write_policy
from capfilt.records import Shard, Source, pair_id
from capfilt.settings import Input

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capfilt.provenance.rundir import RunDir
    from capfilt.records import Sample

THRESHOLD = 0.45
COLOURS = ("red", "green", "blue", "yellow")


def text_of(source: Source, number: int) -> str:
    return (
        f"{'photo' if source is Source.WEB else 'a picture'} of a {COLOURS[number % 4]} thing, {number % 17}"
    )


def noise_run(
    folder: Path,
    *,
    samples: int = 48,
    size: tuple[int, int] = (120, 90),
    text: Callable[[Source, int], str] = text_of,
) -> RunDir:
    """`made_run` with a second shard of pictures, losses of two trainings, and a policy of its own."""
    run = made_run(folder, policy=False)
    tar = folder.parent / "pictures.tar"
    write_pictures(tar, samples, size, text)
    shard = Shard("pictures", tar, 1, tar.stat().st_size, "pictures")
    read = list(read_shard(find_shards(tar)[0], Input(max_text_bytes=10**6)))
    captions = [
        _caption(sample, source, number, text) for number, sample in enumerate(read) for source in Source
    ]
    commit_shard(
        run,
        shard,
        fingerprint="print",
        samples=[_sample(sample, size) for sample in read],
        captions=captions,
        scores=[row for caption in captions for row in _scores(caption)],
        samples_in=len(read),
    )
    for model, name in (("captioner", "lm"), ("filter", "itm")):
        record_metrics(run, model, _losses(model, name))
    write_policy(
        run, Policy((AtLeast("itm", THRESHOLD, "auto:recall=0.75 of held-out clean pairs"),), FILTER)
    )
    return run


def write_pictures(
    tar: Path, samples: int, size: tuple[int, int], text: Callable[[Source, int], str]
) -> None:
    """Write pictures of noise, which no encoder makes small."""
    noise = np.random.default_rng(0)
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as file:
        for number in range(samples):
            pixels = noise.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            data = io.BytesIO()
            PIL.Image.fromarray(pixels).save(data, "PNG")
            for name, content in (
                (f"{number:04d}.png", data.getvalue()),
                (f"{number:04d}.txt", text(Source.WEB, number).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


def _sample(sample: Sample, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "shard": "pictures",
        "key": sample.key,
        "image_sha256": sample.image_sha256,
        "url": None,
        "web_text": sample.web_text,
        "width": size[0],
        "height": size[1],
        "status": sample.status,
        "reason": sample.reason,
        "member": sample.member,
        "image_offset": sample.image_offset,
        "image_size": sample.image_size,
        "metadata": "{}",
        "round": 1,
    }


def _caption(
    sample: Sample, source: Source, number: int, text: Callable[[Source, int], str]
) -> dict[str, Any]:
    is_synthetic = source is Source.SYNTHETIC
    return {
        "pair_id": pair_id(shard="pictures", key=sample.key, source=source, candidate=0, round_number=1),
        "shard": "pictures",
        "key": sample.key,
        "image_sha256": sample.image_sha256,
        "source": source,
        "candidate": 0,
        "text": text(source, number),
        "captioner": CAPTIONER if is_synthetic else None,
        "decoding": "{}" if is_synthetic else None,
        "prompt": "" if is_synthetic else None,
        "unfinished": None,
        "seed": 0 if is_synthetic else None,
        "round": 1,
    }


def _scores(caption: dict[str, Any]) -> list[dict[str, Any]]:
    first, second = uniforms(2, "scores of a run of noise", caption["pair_id"])
    itm = first if caption["source"] == Source.WEB else first**0.5
    values = {"itm": itm, "itc": 0.7 * itm + 0.5 * second - 0.4}
    return [
        {"pair_id": caption["pair_id"], "filter": FILTER, "score": name, "value": value}
        for name, value in values.items()
    ]


def _losses(model: str, name: str) -> list[dict[str, Any]]:
    return [
        {
            "model": model,
            "phase": phase,
            "step": step,
            "split": split,
            "name": name,
            "value": start / (1 + step / 100),
            "time": 0.0,
        }
        for phase, start in (("1: first", 4.0), ("2: then", 2.0))
        for split, every in (("train", 1), ("validation", 100))
        for step in range(every, 301, every)
    ]
