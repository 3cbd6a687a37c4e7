"""BLIP-2 and InstructBLIP of small parts on the drawn world, judged by the planted truth.

    python examples/blip2_scenes.py --seed 0 --out blip2            # about half an hour of two cores

An image encoder is trained on pairs and a language model on texts; both are frozen, and a Q-Former learns to
stand between them: stage 1 (can it find and match?), stage 2 before an OPT and before a T5 (does it make them
say what is in the picture?), and InstructBLIP (does it look for what it is asked?). Every training and every
figure but the probes is a `capfilt` command. The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scenes
import small_language_models as language
from instruction_probe import gains

from capfilt.evaluation.intervals import Figure, bootstrap
from capfilt.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scenes import Scene

SIZES: dict[str, dict[str, int]] = {
    "full": {"clean": 4000, "test": 300, "labelled": 500, "probe": 1500},
    # Too little to learn from: it shows that everything runs.
    "small": {"clean": 120, "test": 40, "labelled": 60, "probe": 80},
}
IMAGES = "images = {size_px = 32, mean = [0.5, 0.5, 0.5], std = [0.25, 0.25, 0.25]}"
QFORMER = """\
[model.qformer]
queries = 8
width = 96
layers = 4
heads = 4
feed_forward = 384
vocabulary = 400
dropout = 0.0"""
PHASE = "batch_size = 32\nlearning_rate = 1e-3"
RECIPES = {
    # No ITM: contrast and captions teach the image encoder what it is needed for.
    "encoder": f"""\
[model]
embed = 64
{IMAGES}
vision = {{patch_px = 8, width = 96, layers = 3, heads = 4, stem = "convolution"}}
text = {{width = 96, layers = 2, heads = 4, feed_forward = 384, vocabulary = 400, dropout = 0.0}}
[[pretrain.phases]]
itc = 1.0
lm = 1.0
steps = 1500
{PHASE}
""",
    "stage1": f"""\
[model]
embed = 64
{IMAGES}
{QFORMER}
[[pretrain.phases]]
itc = 1.0
itm = 1.0
lm = 1.0
itm_from = 0.2
itc_smoothing = 0.1
steps = 1000
{PHASE}
""",
    "stage2": f"""\
[model.qformer]
dropout = 0.0
[[pretrain.phases]]
lm = 1.0
label_smoothing = 0.0
steps = 2000
{PHASE}
""",
    "instructblip": f"""\
[model.qformer]
dropout = 0.2
[[pretrain.phases]]
lm = 1.0
label_smoothing = 0.0
steps = 1500
{PHASE}
""",
}
"""What differs from the pipelines, whose sizes are the papers'.

InstructBLIP learns questions about colours and questions about shapes, and no captions, for which all that is
in a picture is needed whatever was asked. No loss asks a Q-Former to leave out what stage 1 taught it to see:
the language model chooses by the question, too. Dropout does, since room in the states is then dear.
"""
COMMON = """
[pretrain]
validate_every = 500
augment = {crop_least = 1.0, flip = 0.0}
[compute]
precision = "fp32"
"""
REGISTRY = """\
[category.drawn]
templates = ["{instruction}"]

[[dataset]]
name = "drawn"
category = "drawn"
reader = "instructions"
annotations = ["instructions.json"]
images = "pictures"
"""


def main() -> None:
    """Draw, train part after part, measure, judge by the truth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("blip2"))
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    options = parser.parse_args()
    began = time.monotonic()
    example = Example(options.out / f"seed-{options.seed}", options.seed, options.size)
    example.draw()
    example.train_language_models()
    example.train()
    figures = example.measure()
    show(figures)
    result = {
        "seed": options.seed,
        "seconds": round(time.monotonic() - began, 1),
        "figures": {one.name: [one.figure.value, one.figure.low, one.figure.high] for one in figures},
        "targets_met": all(one.is_met for one in figures if one.least is not None),
    }
    write_whole(example.out / "result.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


@dataclass(frozen=True)
class Measured:
    """A figure, and what it should reach."""

    name: str
    figure: Figure
    least: float | None = None
    """What is asked of it, if anything is."""
    by: str = "value"
    """Whether the figure itself must reach it, or the lower end of its interval."""

    @property
    def is_met(self) -> bool:
        """Whether it reaches what is asked."""
        return self.least is None or getattr(self.figure, self.by) >= self.least


@dataclass(frozen=True)
class Example:
    """One seed's world, models and figures, in one folder."""

    out: Path
    seed: int
    size: str

    # -- the world

    def draw(self) -> None:
        """Draw clean pairs, test pictures of different contents, labelled pairs, and what can be asked."""
        if (self.out / "asked" / "registry.toml").exists():
            return
        sizes = SIZES[self.size]
        scenes.make(self.out, seed=self.seed, clean=sizes["clean"], web=10)
        scenes.make_labelled(self.out, seed=self.seed, count=sizes["labelled"])
        rng = random.Random(f"test {self.seed}")
        drawn: dict[tuple[scenes.Item, ...], Scene] = {}
        while len(drawn) < sizes["test"]:
            scene = scenes.draw_scene(rng, unseen=False)
            drawn.setdefault(tuple(sorted(scene.items)), scene)
        rows = [
            (f"{n:06d}", {"png": scenes.picture(scene, rng), "txt": scenes.caption(scene, rng).encode()})
            for n, scene in enumerate(drawn.values())
        ]
        scenes.write_shards(self.out / "test", rows, 1000)
        self._draw_instructions(random.Random(f"instructions {self.seed}"), sizes["clean"])

    def _draw_instructions(self, rng: random.Random, count: int) -> None:
        """Write pictures and questions in LAVIS's format, and the registry that names them."""
        pictures = self.out / "asked" / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        rows = []
        for number in range(count):
            scene = scenes.draw_scene(rng, unseen=False)
            (pictures / f"{number:06d}.png").write_bytes(scenes.picture(scene, rng))
            for about, questions in language.QUESTIONS.items():
                asked, said = rng.choice(questions), language.answer(scene, about)
                rows.append({"image": f"{number:06d}.png", "text_input": asked, "text_output": said})
        (self.out / "asked" / "instructions.json").write_text(json.dumps(rows), encoding="utf-8")
        (self.out / "asked" / "registry.toml").write_text(REGISTRY, encoding="utf-8")

    # -- the models

    def train_language_models(self) -> None:
        """Train an OPT and a T5 on texts alone, where they are not there."""
        for name, train in (("opt", language.train_opt), ("t5", language.train_t5)):
            steps = language.STEPS[name] if self.size == "full" else 10
            if not (self.out / name).exists():
                print(f"training a small {name} on texts", flush=True)
                train(self.out / name, self.seed, steps, print)

    def train(self) -> None:
        """Train the image encoder, and what stands on it; each is frozen in the next."""
        clean, init = f"{self.out}/clean", ["--init", f"{self.out}/stage1"]
        lines = ["--set", 'model.language.ends_with="\\n"']
        opt, t5 = ([f"--set=bundles.language={self.out}/{name}"] for name in ("opt", "t5"))
        self.pretrain("encoder", "small", clean)
        self.pretrain("stage1", "blip2_stage1", clean, f"--set=bundles.vision={self.out}/encoder")
        self.pretrain("stage2-opt", "blip2_stage2", clean, *init, *opt, *lines)
        self.pretrain("stage2-t5", "blip2_stage2", clean, *init, *t5)
        registry = f"{self.out}/asked/registry.toml"
        self.pretrain("instructblip", "instructblip", registry, *init, *opt, *lines)

    def pretrain(self, name: str, pipeline: str, data: str, *more: str) -> None:
        """Train one model; one that is there is left as it is."""
        if (self.out / name).exists():
            return
        recipe = self.out / f"{name}.toml"
        recipe.write_text(f"{COMMON.strip()}\n{RECIPES[name.partition('-')[0]]}", encoding="utf-8")
        few = [] if self.size == "full" else ["--set", "pretrain.phases.0.steps=4"]
        command = ["pretrain", data, "--out", f"{self.out}/{name}", "--pipeline", pipeline]
        capfilt([*command, "--config", f"{recipe}", "--seed", f"{self.seed}", *more, *few])

    # -- the judgement

    def measure(self) -> list[Measured]:
        """Return all figures."""
        chance = 1 / SIZES[self.size]["test"]
        found = self.figures("retrieval", "stage1", "test")
        r1 = found["text to image", "ITC", "R@1"]
        both = found["text to image", "ITC, then ITM", "R@1"]
        figures = [
            Measured("stage 1: image R@1, ITC", r1, 5 * chance, "low"),
            Measured("stage 1: image R@1, ITC then ITM", both, 5 * chance, "low"),
        ]
        found = self.figures("filter", "stage1", "labelled", "--kind-field", "noise_kind")
        for kind in ("all wrong ones", "swap", "colour", "shape"):
            area = found[f"right pairs and {kind}", "ITM", "AUROC"]
            figures.append(Measured(f"stage 1: AUROC of ITM, {kind}", area, 0.85))
        figures += [
            Measured("stage 2, OPT: captions right", self.right("stage2-opt", "caption"), 0.5),
            Measured("stage 2, T5: captions right", self.right("stage2-t5", "caption"), 0.5),
        ]
        for about, (question, *_) in language.QUESTIONS.items():
            asked = ["--set", f"decoding.prompt={question}", "--set", "decoding.min_tokens=1"]
            share = self.right("instructblip", about, *asked)
            figures.append(Measured(f"InstructBLIP: right answers, {about}", share))
        probed = gains(self.out / "instructblip", SIZES[self.size]["probe"], self.seed)
        for one in probed:
            figures.append(Measured(f"probe: {one.about} by its own instruction", one.own))
            figures.append(Measured(f"probe: {one.about} by the other's", one.other))
            figures.append(Measured(f"probe: {one.about}, gained by its own", one.gain, 0.1))
        return figures

    def figures(self, task: str, model: str, data: str, *more: str) -> dict[tuple[str, str, str], Figure]:
        """Run an evaluation and return its figures by table, row and measure."""
        out = self.evaluate(task, model, data, model, *more)
        found: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
        return {
            (one["table"], one["row"], one["measure"]): Figure(
                *(np.nan if one[end] is None else one[end] for end in ("value", "low", "high"))
            )
            for one in found["figures"]
        }

    def right(self, model: str, about: str, *more: str) -> Figure:
        """Have the test pictures captioned or asked about; return the share of what is right to say."""
        import pyarrow.parquet

        out = self.evaluate("caption", model, "test", f"{model}-{about}", *more)
        rows = pyarrow.parquet.read_table(out / "items.parquet").to_pylist()
        judged = np.array([is_right(about, row["references"][0], row["caption"]) for row in rows])
        return bootstrap(
            len(judged), lambda some: float(judged[some].mean()), seed=self.seed, key=f"{model} {about}"
        )

    def evaluate(self, task: str, model: str, data: str, name: str, *more: str) -> Path:
        """Run `capfilt evaluate`, unless it was run; returns the folder of what it wrote."""
        out = self.out / "evaluated" / f"{task}-{name}"
        if not out.exists():
            out.parent.mkdir(exist_ok=True)
            command = ["evaluate", task, f"{self.out}/{model}", f"{self.out}/{data}", "--out", f"{out}"]
            capfilt([*command, "--precision", "fp32", "--seed", f"{self.seed}", *more], quiet=True)
        return out


def is_right(about: str, reference: str, said: str) -> bool:
    """Whether what was said of a picture is right; its reference caption, which is, says what is in it."""
    if about == "caption":
        return scenes.described(said) is not None and scenes.described(said) == scenes.described(reference)
    names = scenes.COLOURS if about == "colour" else scenes.SHAPES
    return said == " and ".join(word for word in reference.split() if word in names)


def capfilt(arguments: Sequence[str], *, quiet: bool = False) -> None:
    """Run a capfilt command and show it; end with its exit code where it fails."""
    print(f"$ capfilt {shlex.join(arguments)}", flush=True)
    sent = subprocess.DEVNULL if quiet else None
    ended = subprocess.run([sys.executable, "-m", "capfilt", *arguments], check=False, stdout=sent)
    if ended.returncode:
        sys.exit(ended.returncode)


def show(figures: list[Measured]) -> None:
    """Print the figures beside what is asked of them."""
    print(f"\n{'':46}{'figure':>8}  {'95% interval':18}{'asked':>14}")
    for one in figures:
        value, low, high = one.figure.value, one.figure.low, one.figure.high
        asked = ""
        if one.least is not None:
            of = "low >= " if one.by == "low" else ">= "
            asked = f"{of}{one.least:.3g}  {'met' if one.is_met else 'missed'}"
        print(f"{one.name:46}{value:8.3f}  [{low:.3f}, {high:.3f}]    {asked:>14}")
    print()


if __name__ == "__main__":
    main()
