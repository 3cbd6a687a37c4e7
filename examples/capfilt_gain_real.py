"""What CapFilt is worth on real pictures: few, small and varied, so that little can be learnt from them.

    python examples/capfilt_gain_real.py --data real --out gain-real      # half an hour of two cores

`--data` holds `clean/` and `noisy/`, WebDataset tars. A fifth of the clean pairs, by their groups, is set
apart as the test set; the rest is what `capfilt bootstrap --pipeline small` trains on. The same command goes
on where it stopped. The result is in examples/README.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import scenes
from capfilt_gain import RECIPE, capfilt

from capfilt.data.sources import find_shards, read_shard
from capfilt.draws import seed_of
from capfilt.settings import Input

TEST_SHARE = 0.2


def main() -> None:
    """Split, bootstrap, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("gain-real"))
    parser.add_argument("--steps", type=int, default=600, help="of each pre-training")
    parser.add_argument("--fine-tune-steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "gain.toml").write_text(RECIPE.format(steps=options.steps, fine=options.fine_tune_steps))
    if not (out / "test").exists():
        split(options.data / "clean", out)
    if not (out / "run" / "export").exists():
        command = ["bootstrap", f"{options.data}/noisy", "--clean", f"{out}/clean", "--out", f"{out}/run"]
        capfilt([*command, "--pipeline", "small", "--itm", "auto:recall=0.85"])
    command = ["evaluate", "gain", f"{out}/run", "--clean", f"{out}/clean", "--test", f"{out}/test"]
    command += ["--config", f"{out}/gain.toml", "--arms", "none,F,C,C+F", "--looks", "2"]
    capfilt([*command, "--seeds", f"{options.seeds}"])


def split(clean: Path, out: Path) -> None:
    """Write the clean pairs as two sets; pairs of one group, or with one text, are on one side."""
    sides: dict[str, list[tuple[str, dict[str, bytes]]]] = {"clean": [], "test": []}
    for shard in find_shards(clean):
        for sample in read_shard(shard, Input()):
            if sample.image is None or sample.web_text is None:
                continue
            group = sample.metadata.get("group") or sample.web_text
            is_test = seed_of("test", str(group)) < TEST_SHARE * 2**63
            members = {
                Path(sample.member).suffix.lstrip("."): sample.image,
                "txt": sample.web_text.encode(),
                "json": json.dumps(sample.metadata, sort_keys=True).encode(),
            }
            sides["test" if is_test else "clean"].append((f"{shard.name}-{sample.key}", members))
    for name, rows in sides.items():
        scenes.write_shards(out / name, rows, 1000)
        print(f"{name}: {len(rows)} pairs")


if __name__ == "__main__":
    main()
