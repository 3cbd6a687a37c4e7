"""What bootstrapping was worth, as people read it: the paper's first table, and the way of each arm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from capfilt.reports.text import visible
from capfilt.stages.gain.arms import ARMS, WORDS
from capfilt.stages.gain.measure import over_seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from capfilt.evaluation.intervals import Figure
    from capfilt.reports.charts import At
    from capfilt.reports.drawing import Chart
    from capfilt.stages.gain.arm_job import Row
    from capfilt.stages.gain.measure import Gain


@dataclass(frozen=True)
class Measure:
    """A column of the table: which figure it shows."""

    words: str
    when: str
    """pre-trained: as it is, nothing fine-tuned (zero-shot); fine-tuned."""
    table: str
    row: str
    measure: str
    percent: bool = True

    def of(self, rows: Sequence[Row], arm: str, step: int | None = None) -> Figure:
        """Return an arm's figure over its seeds, at the last step or at another."""
        mine = [row for row in rows if row["arm"] == arm and row["when"] == self.when]
        last = max((row["step"] for row in mine), default=0) if step is None else step
        chosen = {"table": self.table, "row": self.row, "measure": self.measure, "step": last}
        return over_seeds(mine, **chosen)


_NEAR = "nearness to the references"
COLUMNS = tuple(
    measure
    for when, title in (("pre-trained", "zero-shot"), ("fine-tuned", "fine-tuned"))
    for measure in (
        Measure(f"{title} text R@1", when, "image to text", "ITC, then ITM", "R@1"),
        Measure(f"{title} image R@1", when, "text to image", "ITC, then ITM", "R@1"),
        Measure(f"{title} CIDEr-D", when, _NEAR, "model", "CIDEr-D", percent=False),
    )
)


def show_gain(gain: Gain, console: Console) -> None:
    """Print the table, a row for each arm; then what is needed to read it."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("pre-trained on")
    for column in ("texts", "seeds", *(measure.words for measure in COLUMNS)):
        table.add_column(column, justify="right")
    for arm in ARMS:
        mine = [row for row in gain.rows if row["arm"] == arm]
        seeds = {row["seed"] for row in mine}
        if not mine:
            continue
        figures = (figure_words(measure.of(gain.rows, arm), percent=measure.percent) for measure in COLUMNS)
        table.add_row(f"{arm}: {WORDS[arm]}", f"{gain.texts[arm]:,}", str(len(seeds)), *figures)
    console.print(table)
    console.print()
    for note in _NOTES:
        console.print(visible(note))
    if gain.missing:
        console.print("not run: " + ", ".join(f"{arm} with seed {seed}" for arm, seed in gain.missing))


_NOTES = (
    "Every arm had the same model, the same clean pairs beside its texts, and equally many steps. In "
    "brackets: 95% intervals of the mean over seeds (Student's t); they say nothing of other pictures.",
    "R@1 of ITC's first candidates as ITM orders them; CIDEr-D of greedy captions, words parted otherwise "
    "than in papers.",
)


def gain_curves(gain: Gain, measure: Measure) -> Chart:
    """Draw a figure along the pre-training, a line for each arm, its band over seeds."""
    from capfilt.reports.charts import lines_with_bands

    steps = sorted({row["step"] for row in gain.rows if row["when"] == measure.when})
    series: dict[str, list[At]] = {}
    for arm in ARMS:
        points = [(step, measure.of(gain.rows, arm, step)) for step in steps]
        known = [(step, one.value, one.low, one.high) for step, one in points if one.value == one.value]
        if known:
            series[arm] = known
    return lines_with_bands(series, "steps of pre-training", measure.words, "What bootstrapping was worth")


def figure_words(figure: Figure, *, percent: bool) -> str:
    """Return a figure with its interval: 41.2% [38.0, 44.4]."""
    if figure.value != figure.value:
        return ""
    factor, unit, digits = (100.0, "%", 1) if percent else (1.0, "", 2)
    words = f"{figure.value * factor:.{digits}f}{unit}"
    if figure.low == figure.low:
        words += f" [{figure.low * factor:.{digits}f}, {figure.high * factor:.{digits}f}]"
    return words
