"""AdamW with a warm-up and a cosine, as BLIP's released training uses it (paper, section 4.1)."""

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
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    others = [parameter for parameter in trained if parameter.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": phase.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=phase.learning_rate,
        fused=True,
    )


def update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip_norm: float) -> Tensor:
    """Take one step down the loss and return the gradient's norm before it was clipped.

    Where the norm is no number, weights and moments stay as they are. The device decides that by itself,
    and whoever reads the norms later stops the training; nothing here waits for the device.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm).detach()
    # Fused optimizers leave everything alone where this is 1, for GradScaler and for us.
    optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
    optimizer.step()
    return norm


def learning_rate(phase: Phase, step: int, steps: int) -> float:
    """Return the rate of a step, counted from 0: a linear rise, then half a cosine down."""
    warmup = phase.warmup * steps
    if step < warmup:
        return phase.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1.0, steps - warmup)
    span = phase.learning_rate - phase.final_learning_rate
    return phase.final_learning_rate + span * (1 + math.cos(math.pi * done)) / 2
