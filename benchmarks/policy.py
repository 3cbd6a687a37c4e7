"""Seconds to change the policy of a run of a million pairs and to count what it keeps.

Builds a run of 500,000 samples with a web and a synthetic text each, then opens the catalog with one
policy after another, in a process of its own each, and counts pairs by source, verdict and reason.

    python benchmarks/policy.py [--pairs 1000000] [--threads 1]
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from capfilt.provenance.catalog import open_catalog, pair_counts
from capfilt.provenance.commit import commit_shard
from capfilt.provenance.policy import AtLeast, PerImage, Policy, Rescue, Rule, TopFraction
from capfilt.provenance.rundir import RunDir
from capfilt.records import Shard, Source, Status, pair_id

POLICIES: dict[str, tuple[Rule, ...]] = {
    "no rule": (),
    "ITM of at least 0.5": (AtLeast("itm", 0.5),),
    "ITM of at least 0.6": (AtLeast("itm", 0.6),),
    "best 30% by ITC": (TopFraction(0.3, "itc"),),
    "best one an image": (PerImage(1, "itm"),),
    "ITM of at least 0.5, rescue": (AtLeast("itm", 0.5), Rescue("itm")),
    "all four rules": (AtLeast("itm", 0.5), TopFraction(0.6, "itc"), Rescue("itm"), PerImage(1, "itm")),
}
SAMPLES_PER_SHARD = 10_000


def build(run: RunDir, pairs: int) -> None:
    """Commit shards of samples with texts of a usual length and random scores."""
    draw = random.Random(0)
    for ordinal in range(-(-pairs // (2 * SAMPLES_PER_SHARD))):
        shard = Shard(f"{ordinal:05d}", Path(f"web/{ordinal:05d}.tar"), ordinal, 10**9, "")
        samples, captions, scores = [], [], []
        for i in range(SAMPLES_PER_SHARD):
            key = f"{ordinal:05d}{i:04d}"
            image = hashlib.sha256(key.encode()).hexdigest()
            samples.append(_sample(shard.name, key, image))
            for source in Source:
                name = pair_id(shard=shard.name, key=key, source=source, candidate=0, round_number=1)
                captions.append(_caption(name, shard.name, key, image, source))
                for score, low in (("itc", -1), ("itm", 0)):
                    value = draw.uniform(low, 1)
                    scores.append({"pair_id": name, "filter": "f" * 64, "score": score, "value": value})
        commit_shard(
            run,
            shard,
            fingerprint="benchmark",
            samples=samples,
            captions=captions,
            scores=scores,
            samples_in=SAMPLES_PER_SHARD,
        )


def _sample(shard: str, key: str, image: str) -> dict[str, object]:
    return {
        "shard": shard,
        "key": key,
        "image_sha256": image,
        "url": f"https://example.com/{image}.jpg",
        "web_text": f"a photograph of something number {key}, for sale",
        "width": 512,
        "height": 384,
        "status": Status.OK,
        "reason": None,
        "member": f"{key}.jpg",
        "image_offset": 512,
        "image_size": 50_000,
        "metadata": "{}",
        "round": 1,
    }


def _caption(name: str, shard: str, key: str, image: str, source: Source) -> dict[str, object]:
    written = source is Source.SYNTHETIC
    return {
        "pair_id": name,
        "shard": shard,
        "key": key,
        "image_sha256": image,
        "source": source,
        "candidate": 0,
        "text": f"a photograph of something number {key}, {source}",
        "captioner": "c" * 64 if written else None,
        "decoding": '{"method":"nucleus","top_p":0.9}' if written else None,
        "prompt": "" if written else None,
        "unfinished": None,
        "seed": 0 if written else None,
        "round": 1,
    }


def measure(run: RunDir, name: str, threads: int) -> None:
    """Open the catalog with one policy, count, and print what it took."""
    begun = time.perf_counter()
    connection = open_catalog(run, policy=Policy(POLICIES[name]))
    connection.execute(f"SET threads = {int(threads)}")
    counts = pair_counts(connection)
    seconds = time.perf_counter() - begun
    kept = sum(count for _, keep, _, count in counts if keep)
    pairs = sum(count for *_, count in counts)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:32} {seconds:6.2f} s  {memory:6.0f} MB  {kept:9,} of {pairs:,} kept", flush=True)


def main() -> None:
    """Build once, then measure each policy in a fresh process, so that nothing is warm but the disk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--policy", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.policy:
        measure(RunDir(given.run), given.policy, given.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir.create(given.run or folder)
        begun = time.perf_counter()
        build(run, given.pairs)
        print(f"{'build and commit':32} {time.perf_counter() - begun:6.2f} s", flush=True)
        for name in POLICIES:
            again = ["--run", str(run.path), "--policy", name, "--threads", str(given.threads)]
            subprocess.run([sys.executable, __file__, *again], check=True)


if __name__ == "__main__":
    main()
