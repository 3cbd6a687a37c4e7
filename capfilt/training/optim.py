"""AdamW with a warm-up and a cosine, as BLIP's released training uses it (paper, section 4.1)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

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


def learning_rate(phase: Phase, step: int, steps: int) -> float:
    """Return the rate of a step, counted from 0: a linear rise, then half a cosine down."""
    warmup = phase.warmup * steps
    if step < warmup:
        return phase.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1.0, steps - warmup)
    span = phase.learning_rate - phase.final_learning_rate
    return phase.final_learning_rate + span * (1 + math.cos(math.pi * done)) / 2
