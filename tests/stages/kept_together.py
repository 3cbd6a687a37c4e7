"""What one of several processes finds of a training's instruction data, written as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from capfilt.settings import Clean
from capfilt.stages.pretraining_data import Instructions
from capfilt.training.parallel import joined


def main(registry: Path, checkpoint: Path, out: Path) -> None:
    """Join the others, read what there is, and say what was found."""
    job: Any = SimpleNamespace(
        instructions=registry, clean=Clean(held_out=0.2), seed=0, decoders=0, checkpoint=checkpoint
    )
    with joined("cpu") as world:
        data = Instructions(job, world)
        found = {"facts": data.facts, "texts": list(data.texts()), "held_out": data.found.held_out}
        (out / f"{world.rank}.json").write_text(json.dumps(found))
        world.wait()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
