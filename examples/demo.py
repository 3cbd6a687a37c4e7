"""CapFilt from end to end on a drawn world, judged by the truth that was planted: what `make demo` runs.

    python examples/demo.py --seed 0 --out demo

draws clean and noisy pairs, runs `capfilt bootstrap` as a user would, and only then reads the truth to say
what the bootstrapping was worth. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scenes

from capfilt.evaluation.calibration import auroc
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZES: dict[str, dict[str, Any]] = {
    "full": {"clean": 3000, "web": 2000, "set": []},
    # Too little to learn from: it shows that everything runs.
    "small": {
        "clean": 300,
        "web": 200,
        "set": ["captioner_training.phases.0.steps=30", "filter_training.phases.0.steps=30"],
    },
}
TARGETS = {
    "auroc_swap": (">=", 0.97),
    "auroc_colour": (">=", 0.90),
    "auroc_shape": (">=", 0.90),
    "noise_after": ("<=", 0.10),
    "recall": (">=", 0.70),
    "synthetic_right": (">=", 0.80),
    "synthetic_kept": (">=", 0.30),
    "seconds": ("<=", 360.0),
}


@dataclass(frozen=True)
class Judged:
    """A pair, the filter's view of it, and the planted truth about it."""

    source: str
    text: str
    itm: float
    itc: float
    keep: bool
    kind: str
    """Of the web text: right, swap, colour, shape, junk or empty."""
    is_right: bool
    is_unseen: bool
    """The picture holds a combination that the clean set lacks."""


def main() -> None:
    """Draw, bootstrap, judge by the truth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    options = parser.parse_args()
    began = time.monotonic()
    size = SIZES[options.size]
    out: Path = options.out / f"seed-{options.seed}"
    shutil.rmtree(out, ignore_errors=True)
    scenes.make(out, seed=options.seed, clean=size["clean"], web=size["web"])
    print(f"drew {size['clean']} clean and {size['web']} web pairs in {out}\n")
    run = out / "run"
    command = ["bootstrap", f"{out}/web", "--clean", f"{out}/clean", "--out", f"{run}", "--pipeline", "demo"]
    command += ["--seed", str(options.seed), *(word for value in size["set"] for word in ("--set", value))]
    if options.size == "small":
        command.append("--accept-weak-filter")
    capfilt(command)
    seconds = time.monotonic() - began
    pairs = read_truth(run, out / "truth.jsonl")
    figures = {**measure(pairs), "seconds": round(seconds, 1), "seed": options.seed}
    capfilt(["inspect", f"{run}"])
    show(pairs, figures)
    met = all(is_met(name, figures[name]) for name in TARGETS)
    print(json.dumps({**figures, "targets_met": met}))


def capfilt(arguments: Sequence[str]) -> None:
    """Run a capfilt command and show it; end with its exit code where it fails."""
    print(f"$ capfilt {shlex.join(arguments)}", flush=True)
    ended = subprocess.run([sys.executable, "-m", "capfilt", *arguments], check=False)
    if ended.returncode:
        sys.exit(ended.returncode)


def read_truth(run: Path, truth: Path) -> list[Judged]:
    """Join the run's verdicts with what was planted; bootstrap never saw the latter."""
    planted = {row["key"]: row for row in map(json.loads, truth.read_text(encoding="utf-8").splitlines())}
    with open_catalog(RunDir.open(run)) as catalog:
        rows = catalog.execute(
            "SELECT key, source, text, itm, itc, keep FROM pairs ORDER BY pair_id"
        ).fetchall()
    pairs = []
    for key, source, text, itm, itc, keep in rows:
        row = planted[key]
        scene = scenes.Scene(tuple((colour, shape) for colour, shape in row["items"]))
        right = scenes.is_right(scene, text)
        pairs.append(Judged(source, text, itm, itc, keep, row["kind"], right, row["unseen"]))
    return pairs


def measure(pairs: list[Judged]) -> dict[str, Any]:
    """Return the demo's figures; texts that were empty are in none of them."""
    web = [pair for pair in pairs if pair.source == "web"]
    synthetic = [pair for pair in pairs if pair.source == "synthetic"]
    areas = {kind: area(web, (kind,)) for kind in ("swap", "colour", "shape", "junk")}
    kept_web, kept_synthetic = ([p for p in some if p.keep] for some in (web, synthetic))
    seen, unseen = ([p for p in synthetic if p.is_unseen is wanted] for wanted in (False, True))
    return {
        **{f"auroc_{kind}": value for kind, value in areas.items()},
        "auroc_attribute": area(web, ("colour", "shape")),
        "auroc_swap_itc": area(web, ("swap",), "itc"),
        "auroc_attribute_itc": area(web, ("colour", "shape"), "itc"),
        "auroc_swap_unseen": area([p for p in web if p.is_unseen], ("swap",)),
        "noise_before": round(1 - share(web), 4),
        "noise_after": round(1 - share(kept_web), 4),
        "recall": round(sum(p.is_right for p in kept_web) / max(1, sum(p.is_right for p in web)), 4),
        "synthetic_right_before": share(synthetic),
        "synthetic_right": share(kept_synthetic),
        "synthetic_kept": round(len(kept_synthetic) / max(1, len(synthetic)), 4),
        "synthetic_right_seen": share([p for p in seen if p.keep]),
        "synthetic_right_unseen": share([p for p in unseen if p.keep]),
        "synthetic_kept_unseen": round(sum(p.keep for p in unseen) / max(1, len(unseen)), 4),
    }


def area(web: list[Judged], kinds: Sequence[str], score: str = "itm") -> float:
    """AUROC of right web texts against those of some kinds of noise."""
    right, wrong = ([getattr(p, score) for p in web if p.kind in some] for some in (("right",), kinds))
    return round(auroc(np.array(right), np.array(wrong)), 4)


def share(pairs: list[Judged]) -> float:
    """Share of right captions; 1 where there are none to be wrong."""
    return round(sum(pair.is_right for pair in pairs) / len(pairs), 4) if pairs else 1.0


def is_met(name: str, value: float) -> bool:
    """Whether a figure reaches its target."""
    sign, target = TARGETS[name]
    return value >= target if sign == ">=" else value <= target


def show(pairs: list[Judged], figures: dict[str, Any]) -> None:
    """Print what the truth says."""
    print("\nJudged by the planted truth, which bootstrap never saw:\n")
    print(f"  {'':30}{'before':>8}{'after':>8}")
    print(f"  {'noise in web texts':30}{figures['noise_before']:8.1%}{figures['noise_after']:8.1%}")
    before, after = 1 - figures["synthetic_right_before"], 1 - figures["synthetic_right"]
    print(f"  {'noise in synthetic texts':30}{before:8.1%}{after:8.1%}")
    print(f"\n  {'web texts by what was planted':30}{'texts':>8}{'kept':>8}{'AUROC':>8}")
    for kind in ("right", "swap", "colour", "shape", "junk"):
        some = [pair for pair in pairs if pair.source == "web" and pair.kind == kind]
        kept = sum(pair.keep for pair in some) / max(1, len(some))
        auroc_text = "" if kind == "right" else f"{figures[f'auroc_{kind}']:8.3f}"
        print(f"  {kind:30}{len(some):8}{kept:8.1%}{auroc_text}")
    print(f"\n  {'synthetic texts':30}{'texts':>8}{'kept':>8}{'right':>8}   (right: of those kept)")
    for name, wanted in (("combinations seen in clean", False), ("combinations never seen", True)):
        some = [pair for pair in pairs if pair.source == "synthetic" and pair.is_unseen is wanted]
        kept_ones = [pair for pair in some if pair.keep]
        print(f"  {name:30}{len(some):8}{len(kept_ones) / max(1, len(some)):8.1%}{share(kept_ones):8.1%}")
    print("\n  target                        figure")
    for name, (sign, target) in TARGETS.items():
        verdict = "met" if is_met(name, figures[name]) else "missed"
        print(f"  {name:20}{sign} {target:<7g}{figures[name]:8.3f}  {verdict}")
    print()


if __name__ == "__main__":
    main()
