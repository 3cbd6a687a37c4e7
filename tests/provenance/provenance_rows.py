"""Rows of made-up shards, and a program that commits them one after another until it is killed.

python provenance_rows.py commit RUN FIRST LAST [COUNT]    commit shards FIRST to LAST - 1
python provenance_rows.py hold RUN                         hold the run's lock until killed
python provenance_rows.py judge RUN COUNT                  write COUNT policies
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from capfilt.provenance.commit import commit_shard
from capfilt.provenance.policy import AtLeast, Policy, write_policy
from capfilt.provenance.rundir import RunDir, lock
from capfilt.records import Refusal, Shard, Source, Status, pair_id

FILTER = "f" * 64


def shard(ordinal: int = 0, name: str | None = None) -> Shard:
    name = f"{ordinal:05d}" if name is None else name
    return Shard(name, Path(f"web/{ordinal:05d}.tar"), ordinal, 1000 + ordinal, "quick")


def sample(shard: Shard, key: str, **changes: Any) -> dict[str, Any]:
    row = {
        "shard": shard.name,
        "key": key,
        "image_sha256": "0" * 64,
        "url": None,
        "web_text": f"text of {key}",
        "width": 4,
        "height": 3,
        "status": Status.OK,
        "reason": None,
        "member": f"{key}.jpg",
        "image_offset": 512,
        "image_size": 100,
        "metadata": "{}",
        "round": 1,
    }
    return {**row, **changes}


def caption(shard: Shard, key: str, source: Source, candidate: int = 0, **changes: Any) -> dict[str, Any]:
    is_synthetic = source is Source.SYNTHETIC
    row = {
        "pair_id": pair_id(shard=shard.name, key=key, source=source, candidate=candidate, round_number=1),
        "shard": shard.name,
        "key": key,
        "image_sha256": "0" * 64,
        "source": source,
        "candidate": candidate,
        "text": f"{source} text {candidate} of {key}",
        "captioner": "c" * 64 if is_synthetic else None,
        "decoding": "{}" if is_synthetic else None,
        "prompt": "" if is_synthetic else None,
        "unfinished": None,
        "seed": 0 if is_synthetic else None,
        "round": 1,
    }
    return {**row, **changes}


def score(pair: str, name: str, value: float, digest: str = FILTER) -> dict[str, Any]:
    return {"pair_id": pair, "filter": digest, "score": name, "value": value}


def rows(of: Shard, count: int = 3) -> dict[str, Any]:
    """Arguments of commit_shard: usable samples with a web and a synthetic text, and a refused one."""
    keys = [f"{of.ordinal:05d}{i:04d}" for i in range(count)]
    refused = sample(of, "broken", status=Status.REFUSED, reason=Refusal.UNREADABLE_IMAGE, width=None)
    captions = [caption(of, key, source) for key in keys for source in Source]
    return {
        "samples": [*(sample(of, key) for key in keys), refused],
        "captions": captions,
        "scores": [
            score(row["pair_id"], name, (i % 10) / 10)
            for i, row in enumerate(captions)
            for name in ("itc", "itm")
        ],
        "samples_in": count + 1,
    }


def commit(
    run: RunDir, of: Shard, count: int = 3, fingerprint: str = "print", **changes: Any
) -> dict[str, Any]:
    return commit_shard(run, of, fingerprint=fingerprint, **{**rows(of, count), **changes})


def start(*words: object) -> subprocess.Popen[str]:
    """Start this file as a program and wait until it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, __file__, *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def say(word: object) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main() -> None:
    action, path, *numbers = sys.argv[1:]
    run = RunDir(path)
    if action == "commit":
        first, last, *count = map(int, numbers)
        say("ready")
        for ordinal in range(first, last):
            commit(run, shard(ordinal), *count)
    elif action == "hold":
        with lock(run):
            say("ready")
            time.sleep(600)
    elif action == "judge":
        say("ready")
        for i in range(int(numbers[0])):
            say(write_policy(run, Policy((AtLeast("itm", i / 1000),))))


if __name__ == "__main__":
    main()
