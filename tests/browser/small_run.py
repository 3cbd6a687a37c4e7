"""A run of a few shards whose rows are made up, with real pictures in real tars; no model is needed."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import PIL.Image

from capfilt.provenance.commit import commit_scores, commit_shard
from capfilt.provenance.rundir import RunDir, record_run
from capfilt.records import Refusal, Shard, Source, Status, pair_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILTER, SECOND, CAPTIONER = "f" * 64, "1a2b3c4d" + "0" * 56, "c" * 64
TEXTS = ("a red bus", "Two DOGS on grass", "the bus stop", "хлеб и сыр", "100% off!", "dog", "a hundred men")


@dataclass
class Made:
    """One shard: where its pictures lie, and the rows that were committed."""

    shard: Shard
    samples: list[dict[str, Any]] = field(default_factory=list)
    captions: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)

    def commit(self, run: RunDir, *, fingerprint: str = "print", seed: int = 0) -> None:
        """Commit the rows, in an order that has nothing to do with one another."""
        draw = random.Random(seed)
        captions, scores = (draw.sample(rows, len(rows)) for rows in (self.captions, self.scores))
        commit_shard(
            run,
            self.shard,
            fingerprint=fingerprint,
            samples=self.samples,
            captions=captions,
            scores=scores,
            samples_in=len(self.samples),
        )


def picture(number: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A JPEG of one colour."""
    data = io.BytesIO()
    colour = (37 * number % 256, 91 * number % 256, 151 * number % 256)
    PIL.Image.new("RGB", size, colour).save(data, "JPEG", quality=95)
    return data.getvalue()


def make_shard(
    folder: Path,
    ordinal: int,
    *,
    name: str | None = None,
    count: int = 6,
    texts: Sequence[str] = TEXTS,
    kinds: Sequence[str] = (),
    candidates: int = 2,
    round_number: int = 1,
) -> Made:
    """Write a tar of pictures and make up the rows: two are refused, one has no web text."""
    name = f"{ordinal:05d}" if name is None else name
    path = folder / f"{ordinal:05d}.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [f"k{ordinal}-{number}" for number in range(count)]
    with tarfile.open(path, "w") as tar:
        for number, key in enumerate(keys):
            data = b"no picture" if number == 1 else picture(100 * ordinal + number)
            member = tarfile.TarInfo(f"{key}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        places = [(member.offset_data, member.size) for member in tar]
    digests = [hashlib.sha256(data[offset : offset + size]).hexdigest() for offset, size in places]
    made = Made(Shard(name, path, ordinal, path.stat().st_size, "quick"))
    draw = random.Random(ordinal)
    for number, (key, (offset, size)) in enumerate(zip(keys, places, strict=True)):
        refused = {1: Refusal.UNREADABLE_IMAGE, 3: Refusal.MISSING_IMAGE}.get(number)
        no_text = Refusal.EMPTY_TEXT if number == 2 else None
        kind = {"noise_kind": kinds[number % len(kinds)]} if kinds else {}
        has_picture = refused is not Refusal.MISSING_IMAGE
        made.samples.append(
            {
                "shard": name,
                "key": key,
                "image_sha256": digests[number] if has_picture else None,
                "url": f"https://example.org/{key}.jpg",
                "web_text": None,
                "width": None if refused else 64,
                "height": None if refused else 48,
                "status": Status.REFUSED if refused else Status.OK,
                "reason": refused or no_text,
                "member": f"{key}.jpg",
                "image_offset": offset if has_picture else None,
                "image_size": size if has_picture else None,
                "metadata": json.dumps({"licence": "CC0", **kind}),
                "round": round_number,
            }
        )
        if refused:
            continue
        sources = [(Source.WEB, 0)] * (no_text is None) + [(Source.SYNTHETIC, c) for c in range(candidates)]
        for source, candidate in sources:
            text = texts[draw.randrange(len(texts))]
            _add_pair(made, key, source, candidate, text, draw, round_number)
    return made


def _add_pair(
    made: Made, key: str, source: Source, candidate: int, text: str, draw: random.Random, round_number: int
) -> None:
    name = pair_id(
        shard=made.shard.name, key=key, source=source, candidate=candidate, round_number=round_number
    )
    is_synthetic = source is Source.SYNTHETIC
    made.captions.append(
        {
            "pair_id": name,
            "shard": made.shard.name,
            "key": key,
            "image_sha256": "0" * 64,
            "source": source,
            "candidate": candidate,
            "text": text,
            "captioner": CAPTIONER if is_synthetic else None,
            "decoding": '{"top_p":0.9}' if is_synthetic else None,
            "prompt": "a picture of" if is_synthetic else None,
            "unfinished": None,
            "seed": 7 if is_synthetic else None,
            "round": round_number,
        }
    )
    # Tenths, so that scores are often equal and their order is that of the names.
    values = {"itm": draw.randrange(11) / 10, "itc": draw.randrange(-5, 6) / 10}
    for score, value in values.items():
        made.scores.append({"pair_id": name, "filter": FILTER, "score": score, "value": value})


def score_again(run: RunDir, made: Made, *, every: int = 2) -> None:
    """Add a second filter's ITC for every second pair."""
    names = [row["pair_id"] for row in made.captions][::every]
    scores = [
        {"pair_id": name, "filter": SECOND, "score": "itc", "value": number % 7 / 10}
        for number, name in enumerate(names)
    ]
    commit_scores(run, made.shard, filter_digest=SECOND, fingerprint="print", scores=scores)


def start_run(path: Path, *, round_number: int = 1, shards: int = 3) -> RunDir:
    """A run whose first start is recorded and that holds nothing yet."""
    run = RunDir.create(path)
    facts = {"seed": 7, "round": round_number, "web": [{"name": f"{n:05d}"} for n in range(shards)]}
    record_run(run, facts, command=["capfilt", "bootstrap", "web"])
    return run


def make_run(path: Path, *, shards: int = 3, **changes: Any) -> tuple[RunDir, list[Made]]:
    """A run of some committed shards."""
    run = start_run(path, shards=shards)
    made = [make_shard(path.parent / "web", ordinal, **changes) for ordinal in range(shards)]
    for one in made:
        one.commit(run, seed=one.shard.ordinal)
    return run, made
