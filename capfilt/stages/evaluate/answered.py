"""A data set that was asked: its figures, and a row for every example behind them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from capfilt.data.instructions.learnt import Learnt
from capfilt.evaluation.answers import Answered, measure, normalised
from capfilt.evaluation.intervals import Figure
from capfilt.stages.evaluate.results import Measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capfilt.data.instructions.registry import Dataset, Metric
    from capfilt.stages.evaluate.asking import Asked

TABLES: dict[Literal["in", "out"], str] = {"out": "held out, zero-shot", "in": "held in"}
MODEL, BLIND = "model", "without a picture"
METRICS: dict[Metric, str] = {
    "cider": "CIDEr-D",
    "vqa_accuracy": "VQA accuracy",
    "ivqa_accuracy": "iVQA accuracy",
    "exact": "exact answers",
    "ranked": "right one first",
    "auroc": "AUROC",
    "mrr": "MRR",
}
"""As people call them."""
_LEARNT = {
    Learnt.NO: "",
    Learnt.HELD_OUT: " (held out of its training)",
    Learnt.YES: " (trained on)",
    Learnt.PERHAPS: " (perhaps trained on)",
}
_TOLD = {
    Learnt.HELD_OUT: "the model was trained on its files; asked are {:,} of the examples that no "
    "training learnt from, of {:,} in all.",
    Learnt.YES: "the model was trained on these very examples: the figure says what it remembers.",
    Learnt.PERHAPS: "the model was trained on a data set of this name, and nobody recorded whether on these "
    "examples.",
}
RANKS: frozenset[Metric] = frozenset({"ranked", "auroc", "mrr"})
"""Of the likelihoods of candidates."""


@dataclass(frozen=True)
class AskedDataset:
    """A data set, and what it came to."""

    dataset: Dataset
    asked: list[Asked]
    answered: dict[int, Answered]
    """By number; those whose picture cannot be used are missing."""
    refused: Counter[str]
    """Rows of its files, and examples without a picture, by reason."""
    learnt: Learnt = Learnt.NO
    """Whether the model was trained on what is asked."""
    whole: int = 0
    """Examples that could be asked, those that it was trained on too."""

    @property
    def told(self) -> str:
        """What must be known of the model's training to read the figure; empty where nothing must."""
        if self.learnt is Learnt.NO:
            return ""
        return f"{self.dataset.name}: {_TOLD[self.learnt].format(len(self.asked), self.whole)}"

    @property
    def rows(self) -> list[Answered]:
        """Return the answers in the order of the examples."""
        return [self.answered[number] for number in sorted(self.answered)]

    @property
    def pictures(self) -> int:
        """How many different ones there are."""
        return len({one.image for one in self.rows})

    @property
    def lacking(self) -> str:
        """Why nothing can be measured; empty where something can."""
        if not self.answered:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.refused.most_common())
            return f"no example can be used: {reasons}"
        if self.dataset.metric == "cider" and self.pictures < 2:
            return "it has one picture, and CIDEr-D weighs words by the differences between several"
        return ""

    def figures(self, seed: int) -> list[Measured]:
        """Return the model's figure, and that of what needs no picture."""
        metric = self.dataset.metric
        assert metric is not None
        table, row = (
            TABLES[self.dataset.held],
            f"{self.dataset.name}{_LEARNT[self.learnt]}: {METRICS[metric]}",
        )
        return [
            Measured(table, row, MODEL, measure(metric, self.rows, seed=seed)),
            Measured(table, row, BLIND, _blind(metric, self.rows, seed)),
        ]

    def facts(self) -> dict[str, Any]:
        """Return what was asked, and how."""
        return {
            "category": self.dataset.category,
            "held": self.dataset.held,
            "metric": self.dataset.metric,
            "learnt": self.learnt.value,
            "examples": len(self.answered),
            "pictures": self.pictures,
            "refused": dict(self.refused),
            "templates": list(dict.fromkeys(one.template for one in self.asked)),
        }

    def items(self) -> list[dict[str, Any]]:
        """Return a row for each example."""
        return [
            {
                "dataset": self.dataset.name,
                "held": self.dataset.held,
                "id": self.asked[number].example.id,
                "image": one.image,
                "instruction": self.asked[number].instruction,
                "answer": one.answer if one.right is None else self._likeliest(number, one),
                "said": list(one.said),
                "candidates": list(self.asked[number].example.candidates),
                "log_likelihoods": list(one.scores),
                "right": one.right,
            }
            for number, one in sorted(self.answered.items())
        ]

    def _likeliest(self, number: int, one: Answered) -> str:
        return self.asked[number].example.candidates[one.scores.index(max(one.scores))]


def _blind(metric: Metric, rows: Sequence[Answered], seed: int) -> Figure:
    """Return the figure of the commonest answer of the set, or the one expected of a random order."""
    if metric not in RANKS:
        counts = Counter(normalised(said) or said for one in rows for said in one.said if said)
        [(commonest, _)] = counts.most_common(1)
        return measure(metric, [Answered(one.image, commonest, said=one.said) for one in rows], seed=seed)
    sizes = [len(one.scores) for one in rows]
    if metric == "auroc":
        value = 0.5
    elif metric == "ranked":
        value = sum(1 / size for size in sizes) / len(sizes)
    else:
        value = sum(sum(1 / place for place in range(1, size + 1)) / size for size in sizes) / len(sizes)
    return Figure(value, value, value)
