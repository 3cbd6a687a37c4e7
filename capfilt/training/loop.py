"""The one training loop: captioner, filter and joint model differ in their phases, not in the code.

Everything random is keyed by (seed, phase, step), so a checkpoint holds trained weights, optimizer, momentum
encoder and counters and no generator: a training killed and started again ends with the weights of an
undisturbed one.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from capfilt.draws import seed_of
from capfilt.errors import CapfiltError, RunFailedError
from capfilt.files import whole_file
from capfilt.training.frozen_parts import frozen_parts
from capfilt.training.momentum import Momentum
from capfilt.training.objectives import PAIRS, Losses, Objective, Setting
from capfilt.training.optim import learning_rate, optimizer_of, soft_share, update
from capfilt.training.parallel import ALONE, World
from capfilt.training.record import Record
from capfilt.training.shared_norms import share_norms
from capfilt.training.validation import Validation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from capfilt.models.learner import Learner
    from capfilt.settings import Phase, Training
    from capfilt.training.record import Row


class Batches(Protocol):
    """Where the pairs of a training come from."""

    def steps_in_epoch(self, batch_size: int) -> int:
        """Return how many batches one pass takes."""
        ...

    def at(self, step: int, batch_size: int, parts: int, *key: str | int) -> Any:
        """Return this process's rows of the batch of a step, counted from 0.

        It is a `Batch`, or what the objective takes instead. A batch is computed in equal parts, of each of
        which a process has its share; they stand in order.
        """
        ...


class HeldOut(Protocol):
    """Pairs that are measured and not trained on."""

    def __len__(self) -> int: ...

    def rows(self, rows: range) -> Any:
        """Return the batch of these pairs."""
        ...


@dataclass
class Trainer:
    """One model on its way through its phases."""

    model: Learner
    vocabulary: Any
    """What the losses read texts with."""
    training: Training
    train: Batches
    held_out: HeldOut
    name: str
    seed: int
    autocast: torch.dtype | None
    """Type of the forward pass where it is not fp32."""
    checkpoint: Path
    fingerprint: str
    """Digest of all that the weights depend on; a checkpoint of another training is not taken up."""
    progress: Callable[[int, int, int], None]
    """Told (steps done, steps in all, pairs of this step)."""
    objective: Objective = PAIRS
    """What this kind of model is trained for."""
    say: Callable[[str], None] = lambda _: None
    """Told what looks wrong, once."""
    setting: str = ""
    """Name of the setting that holds its phases, for advice; by default that of its name."""
    keeps_image_encoder: bool = False
    """The image encoder stays as it came: no gradients, no decay, its batch norms' statistics kept."""
    world: World = ALONE
    """The processes that train this model together."""
    keep_at: tuple[int, ...] = ()
    """Steps of the whole training after which `keep` is given the model as it is."""
    keep: Callable[[Trainer, int], None] = lambda *_: None
    record: Record = field(init=False)
    _frozen: frozenset[str] = field(init=False)
    """Names of what came with the model to stay as it is, by the model's own word."""
    _momentum: Momentum | None = None
    _phase: int = 0
    _step: int = 0
    """Steps done in the phase."""
    _negatives_in_epoch: int | torch.Tensor = 0
    """Asked of the GPU when an epoch of ITM ends, not at every step."""
    _matched_in_epoch: int = 0
    """Steps of this epoch of ITM; it has as many as a pass takes, and begins when ITM does."""

    def __post_init__(self) -> None:
        if not self.setting:
            self.setting = "pretrain" if self.name == "joint" else f"{self.name}_training"
        phases = [(phase, self.steps_of(phase)) for phase in self.training.phases]
        self._frozen = frozen_parts(self.model)
        self.record = Record(phases, self.setting)

    @property
    def rows(self) -> list[Row]:
        """What was measured."""
        return self.record.rows

    def run(self) -> None:
        """Train to the end of the last phase, from the newest checkpoint if there is one."""
        share_norms(self.model, self.world)
        self.world.share(self.model)
        state = self._saved()
        self.world.agree(
            "how far the training is", f"{self.fingerprint} {self._phase} {self._step}", self.model.device
        )
        if self.keeps_image_encoder:
            self.model.hold_image_encoder()
        self.model.checkpoint_gradients(self.training.gradient_checkpointing)
        for number, phase in enumerate(self.training.phases):
            if number < self._phase:
                continue
            optimizer = optimizer_of(self.model, phase)
            self._momentum = None
            if phase.momentum and (phase.itc or phase.itm):
                self._momentum = Momentum.of(self.model, keep=phase.momentum, queue=phase.queue)
            if state is not None:
                optimizer.load_state_dict(state["optimizer"])
                if self._momentum is not None:
                    self._momentum.load_state_dict(state["momentum"])
                state = None
            self._run_phase(number, phase, optimizer)
            self._phase, self._step = number + 1, 0
            self._matched_in_epoch = self._negatives_in_epoch = 0
        self.model.checkpoint_gradients(False)
        self.model.eval()

    def _run_phase(self, number: int, phase: Phase, optimizer: torch.optim.Optimizer) -> None:
        steps = self.steps_of(phase)
        before = sum(self.steps_of(other) for other in self.training.phases[:number])
        total = sum(map(self.steps_of, self.training.phases))
        in_epoch = self.train.steps_in_epoch(phase.batch_size)
        validation = Validation(
            self.model, self.vocabulary, self.held_out, phase, (self.seed, self.name), self.objective
        )
        self.record.begin(number)
        self._say_of_warmup(number, phase, steps)
        for step in range(self._step, steps):
            batch = self.train.at(step, phase.batch_size, phase.accumulate, self.seed, self.name, number)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(phase, step, steps, in_epoch)
            self._step_once(step, steps, phase, batch, optimizer)
            self._step = step + 1
            self.progress(before + self._step, total, len(batch.ids) * self.world.size)
            last = self._step == steps
            if last or self._step % self.training.log_every == 0:
                self._write_rows()
            if last or self._step % self.training.validate_every == 0:
                with self._precision():
                    measured = validation.measure()
                self._check_finite(measured, "on held-out pairs ")
                self.record.validation(self._step, measured)
                for words in self.record.warnings():
                    self.say(f"training the {self.name}: {words}")
            if before + self._step in self.keep_at:
                self._write_rows()
                if self.world.leads:
                    self.keep(self, before + self._step)
            if last or self._step % self.training.checkpoint_every == 0:
                self._write_rows()
                self._save(optimizer)

    def _say_of_warmup(self, number: int, phase: Phase, steps: int) -> None:
        if phase.warmup_steps is None or phase.warmup_steps < steps or self._step:
            return
        self.say(
            f"training the {self.name}: the warm-up takes {phase.warmup_steps:,} steps and there are "
            f"{steps:,}, so that the rate never comes near {phase.learning_rate:g}; warm up for less "
            f"(--set {self.setting}.phases.{number}.warmup_steps=...), or give more pairs"
        )

    def steps_of(self, phase: Phase) -> int:
        """Return how many steps a phase takes."""
        if phase.steps is not None:
            return phase.steps
        return max(1, round(phase.epochs * self.train.steps_in_epoch(phase.batch_size)))

    def _step_once(
        self, step: int, steps: int, phase: Phase, batch: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        self.model.train()
        if self._momentum is not None:
            self._momentum.follow(self.model)
        optimizer.zero_grad(set_to_none=True)
        alpha = soft_share(phase, step, self.train.steps_in_epoch(phase.batch_size))
        done: list[Losses] = []
        # The last batch of an epoch may have fewer pairs than a whole batch has parts.
        parts_of_batch = min(phase.accumulate, len(batch.ids))
        of_step: tuple[str | int, ...] = (self.seed, self.name, self._phase, step)
        keys = [(*of_step, number) if number else of_step for number in range(parts_of_batch)]
        tokens = None
        if phase.lm:
            mine = self.objective.targets_in(self.model, self.vocabulary, batch, keys, self.world)
            tokens = self.world.total(mine)
        for number, key in enumerate(keys):
            rank = ("rank", self.world.rank) if self.world.rank else ()
            torch.manual_seed(seed_of("dropout", *key, *rank))
            setting = Setting(
                with_itm=phase.itm > 0 and step >= _first_with_itm(phase, steps),
                key=key,
                world=self.world,
                momentum=self._momentum,
                alpha=alpha,
                tokens=tokens,
                share=1 / parts_of_batch,
            )
            with self._precision():
                losses = self.objective.losses(
                    self.model, self.vocabulary, batch.part(number, parts_of_batch), phase, setting
                )
            losses.total.backward()
            done.append(losses)
        self.world.sum_gradients(self.model)
        parts = _summed(done, self.world)
        parts["gradient_norm"] = update(self.model, optimizer, phase.clip_norm)
        self.model.clamp_temperature()
        negatives = [losses.negatives for losses in done if losses.negatives is not None]
        met = torch.stack(negatives).sum() if negatives else None
        self.record.step(step + 1, parts, met, optimizer.param_groups[0]["lr"])
        if met is not None:
            self._count_negatives(steps, phase, met)

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
                fix=f"give a batch size above 1 (--set {self.setting}.phases.{self._phase}.batch_size="
                "64) and clean pairs whose captions differ",
            )
        self._matched_in_epoch = self._negatives_in_epoch = 0

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=self.autocast)

    def _write_rows(self) -> None:
        """Turn the losses since the last time into rows; one that is no number stops the training."""
        unfinished = self.record.write(
            self.model.temperature.detach() if "itc" in self.model.objectives else None
        )
        if unfinished:
            raise self._diverged(unfinished)

    def _check_finite(self, measured: dict[str, float], where: str) -> None:
        for name, value in measured.items():
            if not math.isfinite(value):
                raise self._diverged(f"{name} {where}is {value} after step {self._step}")

    def _diverged(self, what: str) -> RunFailedError:
        rate = f"{self.setting}.phases.{self._phase}.learning_rate"
        return RunFailedError(
            f"training the {self.name}: {what}",
            fix=f"remove {self.checkpoint} and begin anew with a lower learning rate (--set {rate}=...), or "
            "in fp32 (--precision fp32)",
        )

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        # The losses of a step are those before it: its own update may have gone astray.
        for name, weights in self.model.named_parameters():
            if name not in self._frozen and not weights.isfinite().all():
                raise self._diverged(f"{name} is not finite after step {self._step}")
        self.world.wait()
        if not self.world.leads:
            return
        with whole_file(self.checkpoint) as temporary:
            torch.save(self._state(optimizer), temporary)

    def _state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return all that a training which goes on needs."""
        return {
            "fingerprint": self.fingerprint,
            # What is frozen comes with the model again, and its digest is in the fingerprint.
            "model": {name: one for name, one in self.model.state_dict().items() if name not in self._frozen},
            "optimizer": optimizer.state_dict(),
            "momentum": self._momentum.state_dict() if self._momentum is not None else None,
            "phase": self._phase,
            "step": self._step,
            "matched_in_epoch": self._matched_in_epoch,
            "negatives_in_epoch": int(self._negatives_in_epoch),
            "rows": self.record.rows,
        }

    def _saved(self) -> dict[str, Any] | None:
        """Take up the newest checkpoint of this training; returns it, or None to begin.

        One of another training is refused: it may have taken weeks.
        """
        if not self.checkpoint.exists():
            return None
        state: dict[str, Any] = torch.load(self.checkpoint, map_location=self.model.device, weights_only=True)
        if state["fingerprint"] != self.fingerprint:
            raise CapfiltError(
                f"{self.checkpoint} is a training in progress with other settings, pairs or versions, "
                f"{state['step']} steps into phase {state['phase'] + 1}",
                fix=f"give what it was begun with, or remove {self.checkpoint} to begin anew",
            )
        frozen = {name: one for name, one in self.model.state_dict().items() if name in self._frozen}
        self.model.load_state_dict({**frozen, **state["model"]})
        self._phase, self._step = state["phase"], state["step"]
        self._matched_in_epoch = state["matched_in_epoch"]
        self._negatives_in_epoch = state["negatives_in_epoch"]
        self.record.resume(state["rows"])
        return state


def _summed(parts: list[Losses], world: World) -> dict[str, torch.Tensor]:
    """Return the losses of the whole batch: the sums of all parts' and all processes' shares."""
    names = list(parts[0].parts)
    mine = torch.stack([torch.stack([part.parts[name] for part in parts]).float().sum() for name in names])
    return dict(zip(names, world.total(mine), strict=True))


def _first_with_itm(phase: Phase, steps: int) -> int:
    """Return the first step of a phase that has ITM, counted from 0."""
    return math.ceil(phase.itm_from * steps)
