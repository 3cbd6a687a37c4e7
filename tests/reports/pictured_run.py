"""A run over a real shard: pictures of one colour each, with texts that were kept and dropped."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import made_run as made
import PIL.Image

from capfilt.data.sources import find_shards, read_shard
from capfilt.provenance.commit import commit_shard
from capfilt.provenance.policy import AtLeast, Policy, write_policy
from capfilt.records import Source, Status, pair_id
from capfilt.settings import Input

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.provenance.rundir import RunDir

COLOURS = {"cat": (200, 30, 40), "dog": (20, 160, 60), "fox": (30, 60, 210)}
"""By key; cat and fox are kept."""
SIZES = {"cat": (64, 64), "dog": (120, 30), "fox": (10, 40)}


def pictured_run(folder: Path) -> RunDir:
    """Write the shard beside the run, read it and commit what stands in it."""
    tar = folder / "web" / "00000.tar"
    write_shard(tar, COLOURS)
    [shard] = find_shards(tar)
    run = made.started_run(folder / "run")
    samples, captions = [], []
    for sample in read_shard(shard, Input()):
        width, height = SIZES[sample.key]
        samples.append(
            {
                **made.sample_rows()[0],
                "shard": shard.name,
                "key": sample.key,
                "image_sha256": sample.image_sha256,
                "web_text": sample.web_text,
                "width": width,
                "height": height,
                "status": Status.OK,
                "member": sample.member,
                "image_offset": sample.image_offset,
                "image_size": sample.image_size,
            }
        )
        pair = pair_id(shard=shard.name, key=sample.key, source=Source.WEB, candidate=0, round_number=1)
        row = made.caption_row("cat", "web")
        captions.append(
            {**row, "pair_id": pair, "shard": shard.name, "key": sample.key, "text": sample.web_text}
        )
    scores = [
        {
            "pair_id": row["pair_id"],
            "filter": made.FILTER,
            "score": "itm",
            "value": float(row["key"] != "dog"),
        }
        for row in captions
    ]
    commit_shard(
        run,
        shard,
        fingerprint="print",
        samples=samples,
        captions=captions,
        scores=scores,
        samples_in=len(samples),
    )
    write_policy(run, Policy((AtLeast("itm", 0.5),), made.FILTER))
    return run


def write_shard(path: Path, colours: dict[str, tuple[int, int, int]]) -> None:
    """Write a tar of PNGs and texts; other colours give another shard with pictures of the same names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, colour in colours.items():
            out = io.BytesIO()
            PIL.Image.new("RGB", SIZES[key], colour).save(out, "PNG")
            for name, data in ((f"{key}.png", out.getvalue()), (f"{key}.txt", f"a {key}".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
