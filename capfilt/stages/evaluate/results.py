"""What an evaluation found: figures, each with its interval, and a row for every item behind them.

Figures are measured in a worker and shown elsewhere, so they are plain values.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from capfilt.errors import CapfiltError
from capfilt.versions import versions

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.evaluation.filtering import ReliabilityBin
    from capfilt.evaluation.intervals import Figure
    from capfilt.stages.evaluate.curves import Curve

Task = Literal["retrieval", "caption", "filter", "answers"]
RESULTS_FILE = "results.json"
ITEMS_FILE = "items.parquet"
PICTURE_FILE = "picture.png"


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure, and its place: a table has a row for each means and a column for each measure."""

    table: str
    row: str
    """The model's function, or the baseline."""
    measure: str
    figure: Figure


@dataclass(frozen=True)
class Findings:
    """What a worker comes back with."""

    measured: list[Measured]
    items: list[dict[str, Any]]
    """A row for each query, picture or pair."""
    notes: list[str]
    """What must be known to read the figures."""
    facts: dict[str, Any]
    """What was evaluated, on what, and how."""
    curves: list[Curve] = field(default_factory=list)
    """Of a filter: one of each kind of noise and each score; those against all kinds come last."""
    reliability: list[ReliabilityBin] = field(default_factory=list)
    """Of a filter with ITM."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation: what was found, and what was asked for."""

    task: Task
    model: str
    """As it was typed."""
    data: str
    """As it was typed."""
    found: Findings


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return all but the items as JSON can say it: what cannot be measured is null."""
    found = evaluation.found
    return {
        "task": evaluation.task,
        "model": evaluation.model,
        "data": evaluation.data,
        **found.facts,
        "versions": versions(),
        "figures": [
            {
                "table": one.table,
                "row": one.row,
                "measure": one.measure,
                "value": _number(one.figure.value),
                "low": _number(one.figure.low),
                "high": _number(one.figure.high),
            }
            for one in found.measured
        ],
        "reliability": [
            {
                "low": each.low,
                "high": each.high,
                "pairs": each.count,
                "mean_probability": _number(each.mean_probability),
                "share_right": _number(each.share_right),
            }
            for each in found.reliability
        ],
        "notes": found.notes,
        "curves": [asdict(each) for each in found.curves],
    }


def check_place(out: Path) -> None:
    """Refuse to replace a folder that holds anything but an evaluation."""
    if not out.exists() or (out / RESULTS_FILE).exists():
        return
    if not out.is_dir() or any(out.iterdir()):
        what = "it holds other things" if out.is_dir() else "it is a file"
        raise CapfiltError(
            f"no evaluation can be written to {out}: {what}", fix="give --out a new or an empty folder"
        )


def write_results(evaluation: Evaluation, folder: Path) -> None:
    """Write figures as JSON and items as Parquet into a folder that is there."""
    import pyarrow
    import pyarrow.parquet

    text = json.dumps(as_json(evaluation), indent=1, allow_nan=False)
    (folder / RESULTS_FILE).write_text(text + "\n", encoding="utf-8")
    rows = pyarrow.Table.from_pylist(evaluation.found.items)
    pyarrow.parquet.write_table(rows, folder / ITEMS_FILE, compression="zstd")


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
