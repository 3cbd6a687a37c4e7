"""Trainings that one process or several can do, and a program that does one of several processes' parts."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "models")]

from steps import PLAIN, Words, double_model, joint_phase, random_batch

from capfilt.layers import changed
from capfilt.settings import Model, Phase, Training
from capfilt.training import loop
from capfilt.training.loop import Trainer
from capfilt.training.parallel import ALONE, World, joined

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from capfilt.training.objectives import Batch


@dataclass
class DrawnBatches:
    """Random pairs, of which a process takes its rows of every part; captions and pictures come again."""

    world: World = ALONE
    repeats: bool = False
    dtype: torch.dtype = torch.float64
    settings: Model = PLAIN
    """Of the model that they are for."""

    def __len__(self) -> int:
        return 0

    def rows(self, rows: range) -> Batch:
        raise AssertionError(f"nothing is held out, and {rows} were asked for")

    def steps_in_epoch(self, batch_size: int) -> int:
        return 3 if batch_size else 0

    def at(self, step: int, batch_size: int, parts: int, *key: str | int) -> Batch:
        assert key[0] == 7
        images = captions = None
        if self.repeats:
            # Half a batch later, and so in another process, comes a caption again, and an image.
            images = [100 * step + (n % (batch_size - 1)) for n in range(batch_size)]
            captions = [100 * step + 50 + (n % (batch_size // 2 + 1)) for n in range(batch_size)]
        whole = random_batch(batch_size, step, images, captions)
        part = batch_size // parts
        rows = [number * part + row for number in range(parts) for row in range(part)[self.world.mine(part)]]
        mine = replace(whole, **{name: getattr(whole, name)[rows] for name in whole.__slots__})
        return replace(mine, pixels=mine.pixels.to(self.dtype))


def together(checkpoint: Path, *phases: Phase, world: World = ALONE, **batches: Any) -> Trainer:
    """Return a training of a tiny model that is about to begin; equal arguments give equal first weights."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    drawn = DrawnBatches(world, **batches)
    return Trainer(
        model=double_model(settings=drawn.settings).to(drawn.dtype),
        vocabulary=Words(),  # type: ignore[arg-type]
        training=Training(phases=phases, checkpoint_every=2, validate_every=100, log_every=1),
        train=drawn,
        held_out=drawn,
        name="joint",
        seed=7,
        autocast=None,
        checkpoint=checkpoint,
        fingerprint="print",
        progress=lambda *_: None,
        world=world,
    )


@dataclass
class Captured:
    """A training that is done, and the gradients of its steps before they were clipped."""

    trainer: Trainer
    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)


def captured(folder: Path, *phases: Phase, world: World = ALONE, **batches: Any) -> Captured:
    """Train, and keep the gradients of every step."""
    found = Captured(together(folder / "checkpoint.pt", *phases, world=world, **batches))
    update = loop.update

    def watched(model: torch.nn.Module, *others: Any) -> torch.Tensor:
        found.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        return update(model, *others)

    loop.update = watched
    try:
        found.trainer.run()
    finally:
        loop.update = update
    return found


def row_values(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [row["value"] for row in rows if row["name"] == name]


STEPS: dict[str, Any] = {"steps": 4, "learning_rate": 3e-3, "warmup": 0.0, "momentum": 0.9, "alpha": 0.4}
CASES: dict[str, tuple[Phase, dict[str, Any]]] = {
    "whole batches": (joint_phase(**STEPS, batch_size=6, queue=7), {"repeats": True}),
    "parts": (joint_phase(**STEPS, batch_size=8, queue=7, accumulate=2), {"repeats": True}),
    "released": (
        joint_phase(
            **STEPS,
            batch_size=6,
            queue=4,
            negatives="released",
            negatives_by="momentum",
            negatives_floor=1e-3,
        ),
        {"repeats": True},
    ),
    "batch norms": (
        joint_phase(**STEPS, batch_size=8, queue=7, accumulate=2),
        {"repeats": True, "settings": changed(PLAIN, {"vision": {"stem": "convolution"}})},
    ),
    "without momentum": (joint_phase(steps=4, learning_rate=3e-3, batch_size=6), {"repeats": True}),
    "single precision": (
        joint_phase(**STEPS, batch_size=6, queue=7),
        {"repeats": True, "dtype": torch.float32},
    ),
}


def results(folder: Path, world: World = ALONE) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what each case ends with."""
    for name, (phase, batches) in CASES.items():
        found = captured(folder / name, phase, world=world, **batches)
        yield (
            name,
            {
                "gradients": found.gradients,
                "weights": found.trainer.model.state_dict(),
                "rows": [(row["name"], row["step"], row["value"]) for row in found.trainer.rows],
            },
        )


def main(folder: Path) -> None:
    """Do this process's part of every case and write down what it ends with; then the second one dies."""
    with joined("cpu") as world:
        torch.save(dict(results(folder, world)), folder / f"{world.rank}.pt")
        world.wait()
        if not world.leads:
            os._exit(DIED)
        world.total(torch.zeros(()))


DIED = 3
"""What a process exits with that says nothing to the others."""

if __name__ == "__main__":
    main(Path(sys.argv[1]))
