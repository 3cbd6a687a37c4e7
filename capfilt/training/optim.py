"""AdamW and what changes with the steps: learning rate, share of soft labels (BLIP, section 4.1)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from capfilt.settings import Phase


def optimizer_of(model: nn.Module, phase: Phase) -> torch.optim.AdamW:
    """Return AdamW that decays matrices and spares gains, biases, the temperature and what is frozen."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    spares = phase.decays == "matrices"
    matrices = [parameter for parameter in trained if parameter.ndim >= 2 or not spares]
    others = [parameter for parameter in trained if parameter.ndim < 2 and spares]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": phase.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=phase.learning_rate,
        betas=(0.9, phase.beta2),
        fused=True,
    )


def update(model: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float) -> Tensor:
    """Take one step down the gradients and return their norm before it was clipped.

    Where the norm is no number, weights and moments stay as they are. The device decides that by itself,
    and whoever reads the norms later stops the training; nothing here waits for the device.
    """
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm).detach()
    # Fused optimizers leave everything alone where this is 1, for GradScaler and for us.
    optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
    optimizer.step()
    return norm


def learning_rate(phase: Phase, step: int, steps: int, steps_in_epoch: int | None = None) -> float:
    """Return the rate of a step, counted from 0: a linear rise, then a fall.

    The fall is half a cosine, or with `phase.decay` a step down after every pass of `steps_in_epoch`
    steps, as in BLIP's released pre-training.
    """
    warmup = phase.warmup * steps if phase.warmup_steps is None else phase.warmup_steps
    highest, first = phase.learning_rate, phase.first_learning_rate
    if step < warmup:
        return first + (highest - first) * (step + 1) / (warmup + 1)
    if phase.decay is not None:
        return max(phase.final_learning_rate, highest * phase.decay ** (step // (steps_in_epoch or steps)))
    done = (step - warmup) / max(1.0, steps - warmup)
    span = highest - phase.final_learning_rate
    return phase.final_learning_rate + span * (1 + math.cos(math.pi * done)) / 2


def soft_share(phase: Phase, step: int, steps_in_epoch: int) -> float:
    """Return alpha at a step, counted from 0: it rises over the first passes (ALBEF, section 3.3)."""
    ramp = phase.alpha_epochs * steps_in_epoch
    return phase.alpha * (min(1.0, step / ramp) if ramp else 1.0)
