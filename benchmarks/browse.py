"""How fast a run of a million samples is opened, judged on trial, searched and leafed through.

    python benchmarks/browse.py [--samples 1000000] [--run RUN]

makes a run in the layout of a real one, Parquet file by Parquet file and without any picture but those of its
first shard, and measures what the page of `capfilt browse` asks of it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import resource
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.browser.proposal import Proposal
from capfilt.browser.selection import Range, Selection
from capfilt.browser.view import RunView
from capfilt.canonical import canonical_json
from capfilt.provenance.policy import AtLeast, Policy, write_policy
from capfilt.provenance.rundir import RunDir, record_run, shard_file
from capfilt.provenance.schema import CAPTIONS, SAMPLES, SCORES, Table
from capfilt.records import Refusal, Shard, Source, Status, pair_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

FILTER, CAPTIONER = "f" * 64, "c" * 64
OF_A_SHARD = 10_000
WORDS = 20_000
"""Different words; the n-th is drawn as often as 1 / n."""
PICTURES = 24
"""That are really there: the first ones of the first shard."""
REFUSED_EVERY = 50
"""Samples, of which one has no picture."""


def make_run(path: Path, samples: int, *, seed: int = 0) -> RunDir:
    """Write a run whose texts and scores are drawn; a shard is in memory at a time."""
    run = RunDir.create(path)
    shards = [
        Shard(f"{n:05d}", (path / "web" / f"{n:05d}.tar").absolute(), n, 1 << 30, "quick")
        for n in range(-(-samples // OF_A_SHARD))
    ]
    record_run(
        run,
        {"seed": seed, "round": 1, "web": [{"name": s.name, "bytes": s.size, "digest": ""} for s in shards]},
        command=["capfilt", "bootstrap", "web", "--out", str(path)],
    )
    places = write_pictures(shards[0].path, seed)
    vocabulary = make_words(seed)
    for folder in (run.samples, run.captions, run.scores, run.manifests):
        folder.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        count = min(OF_A_SHARD, samples - shard.ordinal * OF_A_SHARD)
        write_shard(run, shard, count, vocabulary, places if shard.ordinal == 0 else [], seed)
    write_policy(run, Policy((AtLeast("itm", 0.5),)))
    return run


def make_words(seed: int) -> NDArray[Any]:
    """Return words of 2 to 10 letters, no two alike."""
    draws = np.random.default_rng([seed, 1])
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words: dict[str, None] = {}
    while len(words) < WORDS:
        words["".join(draws.choice(letters, draws.integers(2, 11)))] = None
    return np.array(list(words))


def write_pictures(tar: Path, seed: int) -> list[tuple[int, int, str]]:
    """Write some JPEGs as a tar and return where the bytes of each lie, and their digest."""
    tar.parent.mkdir(parents=True)
    draws = np.random.default_rng([seed, 2])
    digests = []
    with tarfile.open(tar, "w") as file:
        for number in range(PICTURES):
            small = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            picture = PIL.Image.fromarray(small).resize((512, 512), PIL.Image.Resampling.BICUBIC)
            data = io.BytesIO()
            picture.save(data, "JPEG", quality=90)
            member = tarfile.TarInfo(f"{number:09d}.jpg")
            member.size = data.tell()
            data.seek(0)
            file.addfile(member, data)
            digests.append(hashlib.sha256(data.getvalue()).hexdigest())
    with tarfile.open(tar) as file:
        return [
            (member.offset_data, member.size, digest) for member, digest in zip(file, digests, strict=True)
        ]


def write_shard(
    run: RunDir,
    shard: Shard,
    count: int,
    vocabulary: NDArray[Any],
    places: list[tuple[int, int, str]],
    seed: int,
) -> None:
    """Write the files of one shard and their manifest, as a commit does."""
    draws = np.random.default_rng([seed, 3, shard.ordinal])
    keys = [f"{shard.ordinal:05d}{n:06d}" for n in range(count)]
    is_refused = np.arange(count) % REFUSED_EVERY == REFUSED_EVERY - 1
    texts = {source: drawn_texts(draws, vocabulary, count) for source in Source}
    web = [None if refused else text for refused, text in zip(is_refused, texts[Source.WEB], strict=True)]
    sha = [hashlib.sha256(f"{seed}/{key}".encode()).hexdigest() for key in keys]
    sha[: len(places)] = [digest for *_, digest in places]
    offsets = [places[n][0] if n < len(places) else 512 + n * 20_000 for n in range(count)]
    sizes = [places[n][1] if n < len(places) else 19_000 for n in range(count)]
    metadata = [canonical_json({"licence": "CC0-1.0", "number": n}) for n in range(count)]
    samples = {
        "shard": [shard.name] * count,
        "key": keys,
        "image_sha256": sha,
        "url": [f"https://example.org/{key}.jpg" for key in keys],
        "web_text": web,
        "width": [None if refused else 512 for refused in is_refused],
        "height": [None if refused else 512 for refused in is_refused],
        "status": [Status.REFUSED if refused else Status.OK for refused in is_refused],
        "reason": [Refusal.UNREADABLE_IMAGE if refused else None for refused in is_refused],
        "member": [f"{key}.jpg" for key in keys],
        "image_offset": offsets,
        "image_size": sizes,
        "metadata": metadata,
        "round": [1] * count,
    }
    usable = [n for n in range(count) if not is_refused[n]]
    rows = [(n, source) for n in usable for source in Source]
    is_synthetic = [source is Source.SYNTHETIC for _, source in rows]
    names = [
        pair_id(shard=shard.name, key=keys[n], source=source, candidate=0, round_number=1)
        for n, source in rows
    ]
    captions = {
        "pair_id": names,
        "shard": [shard.name] * len(rows),
        "key": [keys[n] for n, _ in rows],
        "image_sha256": [sha[n] for n, _ in rows],
        "source": [source.value for _, source in rows],
        "candidate": [0] * len(rows),
        "text": [texts[source][n] for n, source in rows],
        "captioner": [CAPTIONER if one else None for one in is_synthetic],
        "decoding": ["{}" if one else None for one in is_synthetic],
        "prompt": ["" if one else None for one in is_synthetic],
        "unfinished": [None] * len(rows),
        "seed": [seed if one else None for one in is_synthetic],
        "round": [1] * len(rows),
    }
    itm = draws.beta(0.4, 0.4, len(rows))
    itc = np.clip(0.25 + 0.1 * draws.standard_normal(len(rows)) + 0.15 * itm, -1, 1)
    scores = {
        "pair_id": np.repeat(np.array(names), 2),
        "filter": [FILTER] * (2 * len(rows)),
        "score": ["itc", "itm"] * len(rows),
        "value": np.stack([itc, itm], axis=1).ravel(),
    }
    name = f"{shard_file(shard)}.parquet"
    files = []
    for table, columns, folder in (
        (SAMPLES, samples, run.samples),
        (CAPTIONS, captions, run.captions),
        (SCORES, scores, run.scores),
    ):
        files.append(write_parquet(run, folder / name, table, columns))
    refused = int(is_refused.sum())
    manifest = {
        "kind": "shard",
        "shard": shard.name,
        "ordinal": shard.ordinal,
        "path": str(shard.path),
        "bytes": shard.size,
        "digest": shard.digest,
        "fingerprint": "print",
        "samples_in": count,
        "rows": {"samples": count, "captions": len(rows), "scores": 2 * len(rows)},
        "statuses": {"ok": count - refused, "refused": refused},
        "reasons": {Refusal.UNREADABLE_IMAGE.value: refused} if refused else {},
        "sources": {source.value: len(usable) for source in Source},
        "filters": [FILTER],
        "files": files,
    }
    (run.manifests / f"{shard_file(shard)}.json").write_text(canonical_json(manifest))


def drawn_texts(draws: np.random.Generator, vocabulary: NDArray[Any], count: int) -> list[str]:
    """Return texts of 5 to 15 words, the common ones often."""
    lengths = draws.integers(5, 16, count)
    ranks = np.exp(draws.random(int(lengths.sum())) * np.log(len(vocabulary))).astype(np.int64) - 1
    words = vocabulary[ranks].tolist()
    ends = np.cumsum(lengths)
    return [" ".join(words[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


def write_parquet(run: RunDir, path: Path, table: Table, columns: dict[str, Any]) -> dict[str, Any]:
    """Write a file with the columns and the compression of a commit."""
    schema = table.arrow()
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path, compression="zstd", compression_level=3)
    return {"path": path.relative_to(run.provenance).as_posix(), "size": path.stat().st_size, "sha256": ""}


# -- what is measured


class Clock:
    """Wall-clock and CPU seconds of what is asked, the best of some times."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    def measure(self, name: str, ask: Callable[[], object], times: int = 5) -> None:
        """Ask some times; each call asks for something that was not asked for before."""
        best = {"seconds": math.inf, "cpu_seconds": math.inf}
        for _ in range(times):
            wall, cpu = time.perf_counter(), time.process_time()
            ask()
            spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            best = {one: min(best[one], spent[one]) for one in best}
        self.found[name] = {one: round(value, 4) for one, value in best.items()}
        print(
            f"{name:44} {best['seconds'] * 1000:8.0f} ms {best['cpu_seconds'] * 1000:8.0f} ms CPU", flush=True
        )


def measure(run: RunDir) -> dict[str, Any]:
    """Open a run and ask of it what the page asks."""
    clock = Clock()
    opened: list[RunView] = []
    clock.measure("open", lambda: opened.append(RunView.open(run)), 1)
    view = opened[0]
    clock.measure("first page, while rows are loaded", lambda: view.grid(Selection()), 1)
    clock.measure("all texts and scores loaded", view.store.wait, 1)
    clock.measure("first preview", lambda: view.preview(Proposal(itm="0.5")), 1)
    steps = (f"{0.3 + n / 1000:.3f}" for n in range(1000))
    proposals: dict[str, Callable[[], Proposal]] = {
        "threshold": lambda: Proposal(itm=next(steps)),
        "share of all texts": lambda: Proposal(fraction=float(next(steps))),
        "one text a picture": lambda: Proposal(itm=next(steps), per_image=1),
        "rescue": lambda: Proposal(itm=next(steps), rescue=True),
        "all rules": lambda: Proposal(
            itm=next(steps), fraction=0.6, by="0.5*itm + 0.5*itc", rescue=True, per_image=1
        ),
    }
    for name, proposal in proposals.items():
        clock.measure(f"preview: {name}, the first step", lambda ask=proposal: view.preview(ask()), 1)
        clock.measure(f"preview: {name}, a further step", lambda ask=proposal: view.preview(ask()))
    words = (str(word) for word in make_words(0)[100:])
    lows = (n / 5000 for n in range(1000))
    seeds = iter(range(1000))
    pages: dict[str, Callable[[], object]] = {
        "substring": lambda: view.grid(Selection(substring=next(words)[1:])),
        "word": lambda: view.grid(Selection(words=next(words))),
        "score range, by score": lambda: view.grid(
            Selection(order="itm", ranges=(Range("itm", next(lows)),))
        ),
        "kept by a new threshold": lambda: view.grid(
            Selection(verdict="kept", order="itm"), proposal=Proposal(itm=next(steps))
        ),
        "random draw": lambda: view.grid(Selection(order="random", seed=next(seeds))),
        "in the middle": lambda: view.grid(Selection(), view.facets().samples // 2),
    }
    for name, ask in pages.items():
        clock.measure(f"page: {name}", ask)
    first = view.grid(Selection()).rows
    clock.measure("history of a picture", lambda: view.history(first[0].shard, first[0].key))
    sizes = iter(range(200, 1000))
    clock.measure("thumbnail", lambda: view.thumbnail(first[0].shard, first[0].key, next(sizes)))
    clock.measure("refresh without news", view.refresh)
    facets = view.facets()
    view.close()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{facets.samples:,} samples, {facets.texts:,} texts; most memory {memory:,.0f} MB")
    return {
        "samples": facets.samples,
        "texts": facets.texts,
        "memory_mb": round(memory),
        "measured": clock.found,
    }


def main() -> None:
    """Make the run where it is not there yet, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="kept and used again; a temporary folder by default")
    parser.add_argument("--samples", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.run or Path(folder) / "run"
        if not RunDir(path).run_file.is_file():
            began = time.monotonic()
            make_run(path, options.samples)
            print(f"made {options.samples:,} samples in {time.monotonic() - began:.0f} s", flush=True)
        print(json.dumps(measure(RunDir.open(path))))


if __name__ == "__main__":
    main()
