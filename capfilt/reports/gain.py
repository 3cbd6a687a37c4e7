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
    from capfilt.stages.gain.arms import Arm
    from capfilt.stages.gain.measure import Gain


@dataclass(frozen=True)
class Measure:
    """A column of a table: which figure it shows."""

    words: str
    when: str
    """pre-trained: as it is, nothing fine-tuned (zero-shot); fine-tuned."""
    table: str
    row: str
    measure: str
    percent: bool = True

    @property
    def title(self) -> str:
        """Return the name of the figure and its unit."""
        return self.words + (", %" if self.percent else "")

    def of(self, rows: Sequence[Row], arm: str, step: int | None = None) -> Figure:
        """Return an arm's figure over its seeds, at the last step or at another."""
        mine = [row for row in rows if row["arm"] == arm and row["when"] == self.when]
        last = max((row["step"] for row in mine), default=0) if step is None else step
        chosen = {"table": self.table, "row": self.row, "measure": self.measure, "step": last}
        return over_seeds(mine, **chosen)


_NEAR = "nearness to the references"
TABLES: dict[str, tuple[Measure, ...]] = {
    title: (
        Measure("text R@1", when, "image to text", "ITC, then ITM", "R@1"),
        Measure("image R@1", when, "text to image", "ITC, then ITM", "R@1"),
        Measure("CIDEr-D", when, _NEAR, "model", "CIDEr-D", percent=False),
    )
    for when, title in (("pre-trained", "as pre-trained (zero-shot)"), ("fine-tuned", "after fine-tuning"))
}
ALONG = TABLES["as pre-trained (zero-shot)"][1]
"""What is drawn along the pre-training."""


def show_gain(gain: Gain, console: Console) -> None:
    """Print a table for each time of measuring, a row for each arm; then what is needed to read them."""
    from rich.table import Table

    done = [arm for arm in ARMS if any(row["arm"] == arm for row in gain.rows)]
    for title, measures in TABLES.items():
        if not any(row["when"] == measures[0].when for row in gain.rows):
            continue
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("texts")
        for measure in measures:
            table.add_column(measure.title, justify="right", overflow="fold")
        for arm in done:
            table.add_row(
                arm, *(figure_words(one.of(gain.rows, arm), percent=one.percent) for one in measures)
            )
        console.print(title)
        console.print(table)
        console.print()
    for line in (*_legend(gain, done), "", *(_NOTES if done else ())):
        console.print(visible(line))
    if gain.missing:
        console.print("not run: " + "; ".join(_missing(gain)))


def _legend(gain: Gain, done: Sequence[Arm]) -> list[str]:
    """Return what each arm is, how many texts it has, and how many seeds of it were run."""
    lines = []
    for arm in done:
        seeds = len({row["seed"] for row in gain.rows if row["arm"] == arm})
        lines.append(
            f"{arm}: {WORDS[arm]}; {gain.texts[arm]:,} texts, {seeds} {'seed' if seeds == 1 else 'seeds'}"
        )
    return lines


def _missing(gain: Gain) -> list[str]:
    """Return the arms that were not run, each with its seeds."""
    seeds: dict[str, list[str]] = {}
    for arm, seed in gain.missing:
        seeds.setdefault(arm, []).append(str(seed))
    return [f"{arm} with seed {', '.join(mine)}" for arm, mine in seeds.items()]


_NOTES = (
    "The arms differ in their texts alone: same model, equally many steps, the same clean pairs in an equal "
    "share of each batch. In brackets: 95% intervals of the mean over seeds (Student's t); they say nothing "
    "of other pictures.",
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
    label = f"{measure.words}, {measure.when}"
    return lines_with_bands(series, "steps of pre-training", label, "What bootstrapping was worth")


def figure_words(figure: Figure, *, percent: bool) -> str:
    """Return a figure with its interval: 41.2 [38.0, 44.4], in percent; nothing where there is none."""
    if figure.value != figure.value:
        return ""
    factor, digits = (100.0, 1) if percent else (1.0, 2)
    words = f"{figure.value * factor:.{digits}f}"
    if figure.low == figure.low:
        words += f" [{figure.low * factor:.{digits}f}, {figure.high * factor:.{digits}f}]"
    return words
