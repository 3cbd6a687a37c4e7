"""What is measured on held-out pairs while a model trains: its losses, and signs of the known collapses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from capfilt.training.objectives import PAIRS, Objective, Setting

if TYPE_CHECKING:
    from capfilt.models.learner import Learner
    from capfilt.settings import Phase
    from capfilt.training.loop import HeldOut

MOST = 1024
"""Held-out pairs that are measured."""
AT_ONCE = 64
"""Of them in a batch, at most: every process measures all, and must not need more room than to train."""
CAPTIONED = 64
"""Held-out pictures that are captioned, to see whether captions differ at all."""
FEWEST = 20
"""Of fewer pictures nothing is said about how much their captions differ."""
CAPTION_TOKENS = 12


@dataclass(frozen=True)
class Validation:
    """Measures a model that is being trained; what it finds depends on nothing but weights and key."""

    model: Learner
    vocabulary: Any
    held_out: HeldOut
    phase: Phase
    key: tuple[str | int, ...]
    objective: Objective = PAIRS

    @torch.inference_mode()
    def measure(self) -> dict[str, float]:
        """Return measurements by name; none without held-out pairs.

        Losses are means over small batches, without momentum and queues. `itc_chance` is the
        ITC of guessing, `itm_positive` and `itm_negative` are mean probabilities of a match of right and
        wrong pairs, `distinct_captions` is the share of different ones among greedy captions.
        """
        if len(self.held_out) == 0:
            return {}
        self.model.eval()
        pairs = min(len(self.held_out), MOST)
        size = min(AT_ONCE, max(1, self.phase.batch_size // self.phase.accumulate))
        sums: dict[str, list[float]] = {}
        for start in range(0, pairs, size):
            batch = self.held_out.rows(range(start, min(start + size, pairs)))
            setting = Setting(with_itm=self.phase.itm > 0, key=(*self.key, "validation", start))
            losses = self.objective.losses(self.model, self.vocabulary, batch, self.phase, setting)
            for name, value in losses.parts.items():
                sums.setdefault(name, []).append(float(value))
            if self.phase.itc:
                sums.setdefault("itc_chance", []).append(math.log(len(batch.ids)))
        measured = {name: sum(values) / len(values) for name, values in sums.items()}
        if self.phase.lm and pairs >= FEWEST:
            measured["distinct_captions"] = self._distinct_captions(min(pairs, CAPTIONED))
        return measured

    def _distinct_captions(self, pictures: int) -> float:
        batch = self.held_out.rows(range(pictures))
        ids = self.objective.greedy_ids(self.model, self.vocabulary, batch, CAPTION_TOKENS)
        return len(set(map(tuple, ids.tolist()))) / pictures
