"""What CapFilt is worth, on a drawn world whose truth is known: tables 1, 4 and 2 of the paper, small.

    python examples/capfilt_gain.py --out gain                    # about 75 minutes of two cores

For each seed it draws a world (clean pairs, web pairs of which about 55% are wrong, fresh test pictures),
bootstraps it with `capfilt bootstrap`, and compares equal models after equal steps with `capfilt evaluate
gain`. Only then is the truth read. The same command goes on where it stopped: what is done is not done again.
The result is in examples/README.md.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scenes

from capfilt.evaluation.intervals import Figure, mean_interval
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SIZES = {"full": (1500, 6000, 300), "small": (200, 160, 40)}
"""Pairs of the clean set, of the web set, and test pictures."""
RECIPE = """\
[next_round]
validate_every = 250

[[next_round.phases]]
itc = 1.0
itm = 1.0
lm = 1.0
itm_from = 0.2
steps = {steps}
batch_size = 32
learning_rate = 1e-3

[[captioner_training.phases]]
lm = 1.0
steps = {fine}
batch_size = 32
learning_rate = 3e-4

[[filter_training.phases]]
itc = 1.0
itm = 1.0
steps = {fine}
batch_size = 32
learning_rate = 3e-4
"""
# One model that captions and filters: trained for all three losses and not parted. The two trainings that
# `bootstrap` does from it take one step that moves nothing (the batch norms keep their statistics, too), and
# calibrate the filter. It has as many steps as the separate captioner.
SHARED = """\
[model]
shared_vision = true

[[pretrain.phases]]
itc = 1.0
itm = 1.0
lm = 1.0
itm_from = 0.2
steps = {steps}
batch_size = 32
learning_rate = 1e-3

[[captioner_training.phases]]
lm = 1.0
steps = 1
learning_rate = 1e-12

[[filter_training.phases]]
itc = 1.0
itm = 1.0
steps = 1
learning_rate = 1e-12
"""
TABLES = {"1": ("none", "F", "C", "C+F"), "4": (), "2": (), "repeated": ("repeated",)}
RIGHT = "captions right"


def main() -> None:
    """Draw, bootstrap, compare, judge; table after table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gain"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tables", nargs="+", choices=sorted(TABLES), default=["1", "4", "2", "repeated"])
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--steps", type=int, default=1500, help="of each pre-training")
    parser.add_argument("--fine-tune-steps", type=int, default=200)
    parser.add_argument("--only-report", action="store_true", help="train nothing, show what is done")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "gain.toml").write_text(RECIPE.format(steps=options.steps, fine=options.fine_tune_steps))
    (out / "shared.toml").write_text(SHARED.format(steps=2200))
    for table in [] if options.only_report else options.tables:
        for seed in options.seeds:
            world = out / f"seed-{seed}"
            draw(world, seed, options.size)
            bootstrap_all(world, seed, table, options.size)
            compare(world, seed, table)
            (out / "result.md").write_text(report(out, options.seeds), encoding="utf-8")
    print(report(out, options.seeds))


# -- the work


def draw(world: Path, seed: int, size: str) -> None:
    """Draw the pairs, and test pictures that no one has seen, no two with the same content."""
    clean, web, test = SIZES[size]
    if (world / "test.jsonl").exists():
        return
    scenes.make(world, seed=seed, clean=clean, web=web)
    rng = random.Random(f"test {seed}")
    drawn: dict[tuple[scenes.Item, ...], scenes.Scene] = {}
    while len(drawn) < test:
        scene = scenes.draw_scene(rng, unseen=rng.random() < 0.1)
        drawn.setdefault(tuple(sorted(scene.items)), scene)
    rows = [
        (f"{n:06d}", {"png": scenes.picture(scene, rng), "txt": scenes.caption(scene, rng).encode()})
        for n, scene in enumerate(drawn.values())
    ]
    scenes.write_shards(world / "test", rows, 1000)
    truth = [
        json.dumps({"key": key, "items": s.items}) for (key, _), s in zip(rows, drawn.values(), strict=True)
    ]
    (world / "test.jsonl").write_text("\n".join(truth) + "\n")


def bootstrap_all(world: Path, seed: int, table: str, size: str) -> None:
    """Make the runs that a table compares."""
    base = ["bootstrap", f"{world}/web", "--clean", f"{world}/clean", "--pipeline", "demo"]
    base += ["--seed", f"{seed}"]
    few: list[str] = []
    if size == "small":  # too little to learn from: it shows that everything runs
        base += ["--accept-weak-filter", "--itm", "auto:recall=0.95"]
        few = [f"--set={kind}_training.phases.0.steps=20" for kind in ("captioner", "filter")]
    own = ["--captioner", f"{world}/run/models/captioner", "--filter", f"{world}/run/models/filter"]
    wanted = {"run": few}
    if table == "2":
        wanted["beam"] = [*own, "--set", "decoding.method=beam"]
    if table == "4":
        wanted["shared"] = ["--config", f"{world.parent}/shared.toml"]
    for run, choices in wanted.items():
        if not (world / run / "export").exists():
            capfilt([*base, *choices, "--out", f"{world}/{run}"])


def compare(world: Path, seed: int, table: str) -> None:
    """Train and evaluate the arms of a table."""
    runs = {"1": ["run"], "repeated": ["run"], "2": ["beam"], "4": ["shared"]}[table]
    arms = TABLES[table] or ("C+F",)
    for run in runs:
        command = ["evaluate", "gain", f"{world}/{run}", "--clean", f"{world}/clean"]
        command += ["--test", f"{world}/test", "--config", f"{world.parent}/gain.toml"]
        command += ["--arms", ",".join(arms), "--seeds", "1", "--seed", f"{seed}", "--json"]
        capfilt(command, quiet=True)


def capfilt(arguments: list[str], *, quiet: bool = False) -> None:
    """Run a capfilt command and show it; end with its exit code where it fails."""
    print(f"$ capfilt {' '.join(arguments)}", flush=True)
    sent = subprocess.DEVNULL if quiet else None
    ended = subprocess.run([sys.executable, "-m", "capfilt", *arguments], check=False, stdout=sent)
    if ended.returncode:
        sys.exit(ended.returncode)


# -- the judgement


def results(world: Path, run: str, arm: str, seed: int) -> list[dict[str, Any]]:
    """Return the figures of an arm, with the captions judged by what was drawn; none if it is not done."""
    file = world / run / "gain" / f"{arm.replace('+', '')}-{seed}" / "result.json"
    if not file.exists():
        return []
    record = json.loads(file.read_text())
    truth = {
        row["key"]: scenes.Scene(tuple((colour, shape) for colour, shape in row["items"]))
        for row in map(json.loads, (world / "test.jsonl").read_text().splitlines())
    }
    rows: list[dict[str, Any]] = record["rows"]
    looks: dict[tuple[str, int], list[bool]] = {}
    for written in record["captions"]:
        right = scenes.is_right(truth[written["key"]], written["caption"])
        looks.setdefault((written["when"], written["step"]), []).append(right)
    for (when, step), judged in looks.items():
        value = sum(judged) / len(judged)
        rows.append(
            {"when": when, "step": step, "table": RIGHT, "row": "model", "measure": RIGHT, "value": value}
        )
    return rows


def verdicts(world: Path, run: str) -> dict[str, float]:
    """Return, of a run's synthetic and web texts, how many are dropped and how many of each are right."""
    planted = {row["key"]: row for row in map(json.loads, (world / "truth.jsonl").read_text().splitlines())}
    with open_catalog(RunDir.open(world / run)) as catalog:
        pairs = catalog.execute("SELECT key, source, text, keep FROM pairs").fetchall()
    judged: dict[str, list[tuple[bool, bool]]] = {"web": [], "synthetic": []}
    for key, source, text, keep in pairs:
        scene = scenes.Scene(tuple((colour, shape) for colour, shape in planted[key]["items"]))
        judged[source].append((keep, scenes.is_right(scene, text)))
    found = {}
    for source, mine in judged.items():
        kept = [right for keep, right in mine if keep]
        found[f"{source} dropped"] = 1 - len(kept) / len(mine)
        found[f"{source} right"] = sum(right for _, right in mine) / len(mine)
        found[f"{source} right of kept"] = sum(kept) / max(1, len(kept))
        wrong = [keep for keep, right in mine if not right]
        found[f"wrong {source} dropped"] = 1 - sum(wrong) / max(1, len(wrong))
    return found


@dataclass(frozen=True)
class Shown:
    """A column: which of an arm's rows it shows, and what a 1 of it is shown as."""

    is_it: Callable[[dict[str, Any]], bool]
    scale: float = 100.0
    """100 for a share, shown in percent; 1 for what is shown as it is."""


def recall(direction: str, ranked_by: str) -> Shown:
    """Return the column of R@1 in one direction."""
    return Shown(lambda r: (r["table"], r["row"], r["measure"]) == (direction, ranked_by, "R@1"))


FIGURES = {
    "text R@1": recall("image to text", "ITC, then ITM"),
    "image R@1": recall("text to image", "ITC, then ITM"),
    "image R@1, ITC": recall("text to image", "ITC"),
    RIGHT: Shown(lambda r: r["measure"] == RIGHT),
    "CIDEr-D": Shown(lambda r: (r["row"], r["measure"]) == ("model", "CIDEr-D"), scale=1.0),
}


def report(out: Path, seeds: Iterable[int]) -> str:
    """Return what is done so far as Markdown: means over seeds, with their 95% intervals."""
    seeds = list(seeds)
    lines: list[str] = []
    arms = [("run", arm) for arm in ("none", "repeated", "F", "C", "C+F")]
    every = [*arms, ("beam", "C+F"), ("shared", "C+F")]
    found = {
        (run, arm, seed): results(out / f"seed-{seed}", run, arm, seed)
        for run, arm in every
        for seed in seeds
    }
    for when in ("pre-trained", "fine-tuned"):
        titles = [name + (", %" if one.scale > 1 else "") for name, one in FIGURES.items()]
        lines += ["", f"**{when}**", "", "| texts | seeds | " + " | ".join(titles) + " |"]
        lines.append("|---" * (len(FIGURES) + 2) + "|")
        for run, arm in every:
            mine = [found[run, arm, seed] for seed in seeds if found[run, arm, seed]]
            if mine:
                name = arm if run == "run" else f"{arm}, {run}"
                cells = [
                    shown((last(rows, when, one) for rows in mine), one.scale) for one in FIGURES.values()
                ]
                lines.append(f"| {name} | {len(mine)} | " + " | ".join(cells) + " |")
    lines += ["", "**along the pre-training: image R@1 (ITC, then ITM) / captions right, in %**", ""]
    steps = sorted({r["step"] for rows in found.values() for r in rows if r["when"] == "pre-trained"})
    lines.append("| texts | " + " | ".join(f"{step} steps" for step in steps) + " |")
    lines.append("|---" * (len(steps) + 1) + "|")
    for run, arm in every:
        mine = [found[run, arm, seed] for seed in seeds if found[run, arm, seed]]
        if mine:
            cells = [
                " / ".join(
                    f"{100 * mean_interval([at(rows, step, FIGURES[name]) for rows in mine]).value:.0f}"
                    for name in ("image R@1", RIGHT)
                )
                for step in steps
            ]
            lines.append(f"| {arm if run == 'run' else f'{arm}, {run}'} | " + " | ".join(cells) + " |")
    lines += ["", "**verdicts, in %**", ""]
    names: list[str] = []
    for run in ("run", "beam", "shared"):
        done = [seed for seed in seeds if (out / f"seed-{seed}" / run / "export").exists()]
        mine_all = [verdicts(out / f"seed-{seed}", run) for seed in done]
        if not mine_all:
            continue
        if not names:
            names = list(mine_all[0])
            lines += ["| run | seeds | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
        cells = [shown(one[name] for one in mine_all) for name in names]
        lines.append(f"| {run} | {len(done)} | " + " | ".join(cells) + " |")
    missing = [f"{run} {arm} seed {seed}" for (run, arm, seed), rows in found.items() if not rows]
    lines += ["", "not run: " + (", ".join(missing) or "nothing")]
    return "\n".join(lines) + "\n"


def last(rows: list[dict[str, Any]], when: str, figure: Shown) -> float:
    """Return a figure at the end of a part of the training."""
    mine = [row for row in rows if row["when"] == when and figure.is_it(row)]
    return float(max(mine, key=lambda row: int(row["step"]))["value"])


def at(rows: list[dict[str, Any]], step: int, figure: Shown) -> float:
    """Return a figure of a pre-training on its way."""
    [row] = [row for row in rows if (row["when"], row["step"]) == ("pre-trained", step) and figure.is_it(row)]
    return float(row["value"])


def shown(values: Iterable[float], scale: float = 100.0) -> str:
    """Return a mean with its interval, in percent or in another scale."""
    figure: Figure = mean_interval(list(values))
    digits = 1 if scale > 1 else 2
    words = f"{figure.value * scale:.{digits}f}"
    if figure.low == figure.low:
        words += f" ({figure.low * scale:.{digits}f} to {figure.high * scale:.{digits}f})"
    return words


if __name__ == "__main__":
    main()
