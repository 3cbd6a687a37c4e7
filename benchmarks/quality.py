"""What the faster ways cost in quality, on models trained on the drawn world and judged by its planted truth.

    python benchmarks/quality.py --out quality        # a quarter of an hour

One joint model is pre-trained. From it one pair of captioner and filter is fine-tuned with image encoders of
their own, another pair keeps the joint model's encoder (`--set model.shared_vision=true`), so that a picture
is encoded once for both. Each pair goes over the same noisy pairs. Then the first pair captions and scores
them again in bf16 and int8, and what differs from fp32 is counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import demo
import scenes

from capfilt.data.images import decode
from capfilt.data.sources import find_shards, read_shard
from capfilt.models.bundle import load_bundle
from capfilt.models.captioner import MedCaptioner
from capfilt.models.filter import MedFilter
from capfilt.models.protocols import ImageBatch
from capfilt.settings import Input, SettledDecoding

if TYPE_CHECKING:
    from capfilt.records import Sample

PHASE = "batch_size = 32\nsteps = {steps}\nlearning_rate = {rate}\n"
CPU = torch.device("cpu")
FIGURES = (
    "auroc_swap",
    "auroc_colour",
    "auroc_shape",
    "noise_before",
    "noise_after",
    "recall",
    "synthetic_right_before",
    "synthetic_right",
    "synthetic_kept",
)


def main() -> None:
    """Draw, train, bootstrap twice, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("quality"))
    parser.add_argument("--joint-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=700, help="of each fine-tuning")
    options = parser.parse_args()
    out: Path = options.out / f"seed-{options.seed}"
    shutil.rmtree(out, ignore_errors=True)
    scenes.make(out, seed=options.seed, clean=3000, web=2000)
    joint = PHASE.format(steps=options.joint_steps, rate=1e-3)
    fine = PHASE.format(steps=options.steps, rate=5e-4)
    (out / "recipe.toml").write_text(
        f"[[pretrain.phases]]\nitc = 1.0\nitm = 1.0\nlm = 1.0\nitm_from = 0.2\n{joint}"
        f"[[captioner_training.phases]]\nlm = 1.0\n{fine}"
        f"[[filter_training.phases]]\nitc = 1.0\nitm = 1.0\n{fine}"
    )
    runs = {
        "own encoders": _bootstrapped(out, "own", options.seed),
        "shared encoder": _bootstrapped(
            out,
            "shared",
            options.seed,
            *("--init", f"{out}/own/models/joint", "--set", "model.shared_vision=true"),
        ),
    }
    figures = {name: demo.measure(demo.read_truth(run, out / "truth.jsonl")) for name, run in runs.items()}
    print(f"\n{'':24}" + "".join(f"{name:>16}" for name in figures))
    for figure in FIGURES:
        print(f"{figure:24}" + "".join(f"{each[figure]:16.3f}" for each in figures.values()))
    print()
    samples = [s for shard in find_shards(f"{out}/web") for s in read_shard(shard, Input()) if s.image]
    _compare_precisions(runs["own encoders"], samples, out / "truth.jsonl")


def _bootstrapped(out: Path, name: str, seed: int, *more: str) -> Path:
    command = ["bootstrap", f"{out}/web", "--clean", f"{out}/clean", "--out", f"{out / name}"]
    command += ["--pipeline", "demo", "--config", f"{out}/recipe.toml", "--seed", str(seed), *more]
    demo.capfilt(command)
    return out / name


def _compare_precisions(run: Path, samples: list[Sample], truth: Path) -> None:
    """Print, beside fp32, how many verdicts and captions other precisions change, and how many are right."""
    planted = {row["key"]: row for row in map(json.loads, truth.read_text(encoding="utf-8").splitlines())}
    worlds = [scenes.Scene(tuple(map(tuple, planted[sample.key]["items"]))) for sample in samples]
    logits: dict[str, torch.Tensor] = {}
    drawn: dict[str, list[str]] = {}
    for precision in ("fp32", "bf16", "int8"):
        captioner = MedCaptioner(load_bundle(run / "models/captioner"), CPU, precision)
        filter_ = MedFilter(load_bundle(run / "models/filter"), CPU, precision)
        scores: list[float] = []
        drawn[precision] = []
        for start in range(0, len(samples), 64):
            some = samples[start : start + 64]
            batch = _batch(some)
            texts = [[sample.web_text or ""] for sample in some]
            scores += [one.itm or 0.0 for [one] in filter_.score(batch, texts)]
            written = captioner.caption(batch, SettledDecoding(), seed=0, candidates=1)
            drawn[precision] += [caption for [caption] in written]
        logits[precision] = torch.tensor(scores, dtype=torch.float64).clamp(1e-9, 1 - 1e-9).logit()
        right = sum(scenes.is_right(w, text) for w, text in zip(worlds, drawn[precision], strict=True))
        print(f"{precision}: drawn captions right {right / len(samples):.1%}", end="")
        if precision != "fp32":
            print(_against(logits, drawn, precision), end="")
        print()


def _against(logits: dict[str, torch.Tensor], drawn: dict[str, list[str]], precision: str) -> str:
    off = (logits[precision] - logits["fp32"]).abs()
    changed = ((logits[precision] > 0) != (logits["fp32"] > 0)).double().mean()
    same = sum(a == b for a, b in zip(drawn[precision], drawn["fp32"], strict=True)) / len(off)
    return (
        f"; against fp32: ITM logits off by {off.mean():.3f} on average, {off.max():.2f} at most, "
        f"verdicts at 0.5 changed {changed:.2%}, drawn captions the same {same:.1%}"
    )


def _batch(samples: list[Sample]) -> ImageBatch:
    pictures: list[Any] = [decode(sample.image or b"", max_pixels=10**8) for sample in samples]
    return ImageBatch(pictures, [sample.image_sha256 or "" for sample in samples])


if __name__ == "__main__":
    main()
