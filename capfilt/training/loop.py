"""The one training loop: captioner, filter and joint model differ in their phases, not in the code.

Everything random is keyed by (seed, phase, step), so a checkpoint holds weights, optimizer and counters
and no generator; a training killed and started again ends with the weights of an undisturbed one.
"""

from __future__ import annotations

import io
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from capfilt.draws import seed_of
from capfilt.errors import CapfiltError, RunFailedError
from capfilt.files import write_whole
from capfilt.training.objectives import Batch, Losses, step_losses
from capfilt.training.optim import learning_rate, optimizer_of, update

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capfilt.models.med import MED
    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings import Phase, Training
    from capfilt.training.batches import PairBatches

Row = dict[str, Any]
"""One measurement, as in the catalog's metrics view, without the model's name."""


@dataclass
class Trainer:
    """One model on its way through its phases."""

    model: MED
    vocabulary: Vocabulary
    training: Training
    train: PairBatches
    held_out: PairBatches
    name: str
    seed: int
    autocast: torch.dtype | None
    """Type of the forward pass where it is not fp32."""
    checkpoint: Path
    fingerprint: str
    """Digest of all that the weights depend on; a checkpoint of another training is not taken up."""
    progress: Callable[[int, int, int], None]
    """Told (steps done, steps in all, pairs of this step)."""
    keeps_image_encoder: bool = False
    """The image encoder stays as it came: no gradients, no decay, its batch norms' statistics kept."""
    rows: list[Row] = field(default_factory=list)
    _waiting: list[tuple[int, Losses, float]] = field(default_factory=list)
    _phase: int = 0
    _step: int = 0
    """Steps done in the phase."""
    _negatives_in_epoch: int | torch.Tensor = 0
    """Asked of the GPU when an epoch of ITM ends, not at every step."""
    _matched_in_epoch: int = 0
    """Steps of this epoch of ITM; it has as many as a pass takes, and begins when ITM does."""

    def run(self) -> None:
        """Train to the end of the last phase, from the newest checkpoint if there is one."""
        state = self._saved()
        self.model.image.requires_grad_(not self.keeps_image_encoder)
        for number, phase in enumerate(self.training.phases):
            if number < self._phase:
                continue
            optimizer = optimizer_of(self.model, phase)
            if state is not None:
                optimizer.load_state_dict(state["optimizer"])
                state = None
            self._run_phase(number, phase, optimizer)
            self._phase, self._step = number + 1, 0
            self._matched_in_epoch = self._negatives_in_epoch = 0
        self.model.eval()

    def _run_phase(self, number: int, phase: Phase, optimizer: torch.optim.Optimizer) -> None:
        steps = self.steps_of(phase)
        before = sum(self.steps_of(other) for other in self.training.phases[:number])
        total = sum(map(self.steps_of, self.training.phases))
        for step in range(self._step, steps):
            batch = self.train.at(step, phase.batch_size, self.seed, self.name, number)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(phase, step, steps)
            self._step_once(step, steps, phase, batch, optimizer)
            self._step = step + 1
            self.progress(before + self._step, total, len(batch.ids))
            last = self._step == steps
            if last or self._step % self.training.log_every == 0:
                self._write_rows(phase)
            if last or self._step % self.training.validate_every == 0:
                self._validate(phase)
            if last or self._step % self.training.checkpoint_every == 0:
                self._write_rows(phase)
                self._save(optimizer)

    def steps_of(self, phase: Phase) -> int:
        """Return how many steps a phase takes."""
        if phase.steps is not None:
            return phase.steps
        return max(1, round(phase.epochs * self.train.steps_in_epoch(phase.batch_size)))

    def _step_once(
        self, step: int, steps: int, phase: Phase, batch: Batch, optimizer: torch.optim.Optimizer
    ) -> None:
        self.model.train()
        if self.keeps_image_encoder:
            self.model.image.eval()
        key = (self.seed, self.name, self._phase, step)
        torch.manual_seed(seed_of("dropout", *key))
        with_itm = phase.itm > 0 and step >= _first_with_itm(phase, steps)
        with self._precision():
            losses = step_losses(self.model, self.vocabulary, batch, phase, with_itm=with_itm, key=key)
        losses.parts["gradient_norm"] = update(self.model, optimizer, losses.total, phase.clip_norm)
        self.model.clamp_temperature()
        self._waiting.append((step + 1, losses, optimizer.param_groups[0]["lr"]))
        if losses.negatives is not None:
            self._count_negatives(steps, phase, losses.negatives)

    def _count_negatives(self, steps: int, phase: Phase, negatives: torch.Tensor) -> None:
        """Refuse to go on where an epoch of ITM, or all the ITM of a shorter phase, saw no wrong pair.

        One step without, such as a last batch of one pair, is no error.
        """
        self._matched_in_epoch += 1
        self._negatives_in_epoch = self._negatives_in_epoch + negatives
        in_phase = steps - _first_with_itm(phase, steps)
        if self._matched_in_epoch < min(in_phase, self.train.steps_in_epoch(phase.batch_size)):
            return
        if not self._negatives_in_epoch:
            raise CapfiltError(
                f"training the {self.name}: a whole epoch had no wrong pair for ITM to learn from",
                fix=f"give a batch size above 1 (--set {_setting(self.name)}.phases.{self._phase}.batch_size="
                "64) and clean pairs whose captions differ",
            )
        self._matched_in_epoch = self._negatives_in_epoch = 0

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=self.autocast)

    def _write_rows(self, phase: Phase) -> None:
        """Turn the losses since the last time into rows: their means, and each step without negatives."""
        if not self._waiting:
            return
        last = self._waiting[-1][0]
        for name in self._waiting[-1][1].parts:
            values = [(step, losses.parts[name]) for step, losses, _ in self._waiting if name in losses.parts]
            numbers = torch.stack([value.float() for _, value in values]).tolist()
            for (step, _), number in zip(values, numbers, strict=True):
                if not math.isfinite(number):
                    raise self._diverged(f"{name} is {number} at step {step}")
            self._row(phase, last, "train", name, sum(numbers) / len(numbers))
        counted = [
            (step, losses.negatives) for step, losses, _ in self._waiting if losses.negatives is not None
        ]
        counts = torch.stack([count for _, count in counted]).tolist() if counted else []
        for (step, _), count in zip(counted, counts, strict=True):
            if count == 0 or step == last:
                self._row(phase, step, "train", "negatives", float(count))
        self._row(phase, last, "train", "learning_rate", self._waiting[-1][2])
        if "itc" in self.model.objectives:
            self._row(phase, last, "train", "temperature", float(self.model.temperature.detach()))
        self._waiting.clear()

    def _validate(self, phase: Phase) -> None:
        """Measure the losses on held-out pairs, in batches like the training's."""
        if len(self.held_out) == 0:
            return
        self.model.eval()
        sums: dict[str, list[float]] = {}
        with torch.inference_mode(), self._precision():
            for start in range(0, min(len(self.held_out), 1024), phase.batch_size):
                batch = self.held_out.rows(range(start, min(start + phase.batch_size, len(self.held_out))))
                losses = step_losses(
                    self.model,
                    self.vocabulary,
                    batch,
                    phase,
                    with_itm=phase.itm > 0,
                    key=(self.seed, self.name, "validation", start),
                )
                for name, value in losses.parts.items():
                    sums.setdefault(name, []).append(float(value))
        for name, values in sums.items():
            mean = sum(values) / len(values)
            if not math.isfinite(mean):
                raise self._diverged(f"{name} on held-out pairs is {mean} after step {self._step}")
            self._row(phase, self._step, "validation", name, mean)

    def _row(self, phase: Phase, step: int, split: str, name: str, value: float) -> None:
        label = "+".join(o for o in ("itc", "itm", "lm") if getattr(phase, o))
        self.rows.append(
            {
                "phase": f"{self._phase + 1}: {label}",
                "step": step,
                "split": split,
                "name": name,
                "value": value,
                "time": time.time(),
            }
        )

    def _diverged(self, what: str) -> RunFailedError:
        rate = f"{_setting(self.name)}.phases.{self._phase}.learning_rate"
        return RunFailedError(
            f"training the {self.name}: {what}",
            fix=f"lower the learning rate (--set {rate}=...), or train in fp32 (--precision fp32); nothing "
            "of this training was kept after its last checkpoint",
        )

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        # The losses of a step are those before it: its own update may have gone astray.
        for name, weights in self.model.named_parameters():
            if not weights.isfinite().all():
                raise self._diverged(f"{name} is not finite after step {self._step}")
        data = io.BytesIO()
        torch.save(
            {
                "fingerprint": self.fingerprint,
                "model": self.model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "phase": self._phase,
                "step": self._step,
                "matched_in_epoch": self._matched_in_epoch,
                "negatives_in_epoch": int(self._negatives_in_epoch),
                "rows": self.rows,
            },
            data,
        )
        write_whole(self.checkpoint, data.getvalue())

    def _saved(self) -> dict[str, Any] | None:
        """Take up the newest checkpoint of this training; returns it, or None to begin."""
        if not self.checkpoint.exists():
            return None
        state: dict[str, Any] = torch.load(self.checkpoint, map_location=self.model.device, weights_only=True)
        if state["fingerprint"] != self.fingerprint:
            return None
        self.model.load_state_dict(state["model"])
        self._phase, self._step = state["phase"], state["step"]
        self._matched_in_epoch = state["matched_in_epoch"]
        self._negatives_in_epoch = state["negatives_in_epoch"]
        self.rows = state["rows"]
        return state


def _first_with_itm(phase: Phase, steps: int) -> int:
    """Return the first step of a phase that has ITM, counted from 0."""
    return math.ceil(phase.itm_from * steps)


def _setting(name: str) -> str:
    """Return the name of the setting that holds a training's phases."""
    return "pretrain" if name == "joint" else f"{name}_training"
