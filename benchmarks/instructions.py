"""Memory and seconds that a training's instruction data takes, web captions with a picture each.

Draws a file of captions and tiny pictures, then, in a process of its own each: reads them into a list of
examples, the plain way, which looks at no picture; reads them once into the folder beside a training, with
digests of the pictures; finds them there, as a training does that goes on; meets examples in a drawn order.

    python benchmarks/instructions.py [--examples 100000]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from capfilt.data.instructions.kept import keep_sets, open_sets
from capfilt.data.instructions.reading import read_examples
from capfilt.data.instructions.registry import Dataset
from capfilt.draws import permutation

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS = (
    "a",
    "red",
    "small",
    "kite",
    "boat",
    "bridge",
    "table",
    "woman",
    "dog",
    "two",
    "street",
    "holding",
    "near",
)
MET = 100_000
"""Examples that are met in a drawn order."""


def draw(folder: Path, examples: int) -> None:
    """Write pictures, a thousand to a folder, and lines of picture and caption."""
    numbers = random.Random(0)
    with (folder / "pairs.jsonl").open("w") as lines:
        for number in range(examples):
            name = f"{number // 1000:05}/{number}.jpg"
            picture = folder / "pictures" / name
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(b"picture %d" % number)
            caption = " ".join(numbers.choices(WORDS, k=numbers.randint(6, 14)))
            lines.write(json.dumps({"image": name, "caption": caption}) + "\n")


def dataset(folder: Path) -> Dataset:
    """Return the row of a registry for what was drawn."""
    return Dataset(
        name="web",
        category="image_captioning",
        reader="blip_pairs",
        annotations=(folder / "pairs.jsonl",),
        images=folder / "pictures",
    )


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print what a block takes: seconds, and memory at most beyond what was there, without mapped files."""
    before, most, is_done = memory_mb(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not is_done.wait(0.02):
            most = max(most, memory_mb())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    clock, cpu = time.perf_counter(), time.process_time()
    yield
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    is_done.set()
    watcher.join()
    most = max(most, memory_mb()) - before
    print(f"{what:42} {clock:7.1f} s clock {cpu:7.1f} s CPU {most:7.0f} MB", flush=True)


def memory_mb() -> float:
    """Return what this process alone holds in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def listed(folder: Path) -> None:
    """Hold all examples, as the plain way is."""
    import numpy  # noqa: F401 - so that its own memory is not counted

    with measured("a list of all examples"):
        held = read_examples(dataset(folder))
    assert held.examples


def kept(folder: Path) -> None:
    """Read once, or find what was read."""
    import numpy  # noqa: F401
    import pyarrow  # noqa: F401

    is_there = (folder / "kept").exists()
    with measured("found again" if is_there else "read, with the digests of the pictures"):
        keep_sets(folder / "kept", [dataset(folder)])
    with measured("opened"):
        [found] = open_sets(folder / "kept", [dataset(folder)])
    with measured(f"{MET:,} examples in a drawn order"):
        for number in permutation(len(found.examples), "met")[:MET].tolist():
            assert found.examples[number].outputs


def main() -> None:
    """Draw, and measure in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--part", choices=("listed", "kept"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        {"listed": listed, "kept": kept}[given.part](given.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), given.examples)
        print(f"{given.examples:,} captions", flush=True)
        for part in ("listed", "kept", "kept"):
            subprocess.run([sys.executable, __file__, "--part", part, "--folder", folder], check=True)
        size = (Path(folder) / "kept" / "web.arrow").stat().st_size
        print(f"the file of the examples: {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
