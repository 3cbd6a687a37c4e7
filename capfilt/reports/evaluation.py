"""What an evaluation found, as people read it: a table for each question, then what must be known to read it.

The same figures go into a folder as JSON, as a Parquet row for each item, and as pictures.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from capfilt.files import whole_folder
from capfilt.reports.text import visible
from capfilt.stages.evaluate.results import write_results

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from rich.console import Console

    from capfilt.evaluation.intervals import Figure
    from capfilt.reports.charts import Estimate
    from capfilt.reports.drawing import Chart
    from capfilt.reports.filter_charts import KindOfNoise
    from capfilt.stages.evaluate.curves import Curve
    from capfilt.stages.evaluate.results import Evaluation, Measured


def show_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print what was evaluated, its tables and its notes."""
    from rich.table import Table

    console.print(visible(headline(evaluation)))
    for title, rows in _tables(evaluation):
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column(overflow="fold")
        measures = list(dict.fromkeys(one.measure for mine in rows.values() for one in mine))
        for measure in measures:
            table.add_column(visible(measure), justify="right", overflow="fold")
        for row, mine in rows.items():
            by_measure = {one.measure: figure_words(one.figure) for one in mine}
            table.add_row(visible(row), *(by_measure.get(measure, "") for measure in measures))
        console.print()
        console.print(visible(title))
        console.print(table)
    console.print()
    for note in (_INTERVALS, *evaluation.found.notes):
        console.print(visible(note))


_INTERVALS = (
    "In brackets: 95% intervals over pictures (AUROC: Newcombe's method 5; others: bootstrap). They say how "
    "far other pictures of the same kind would move a figure, and nothing of another training."
)


def headline(evaluation: Evaluation) -> str:
    """Return what was evaluated on what, in a sentence."""
    facts = evaluation.found.facts
    refused = sum(facts["refused"].values())
    is_asked = evaluation.task == "answers"
    words = (
        f"{evaluation.task} by {evaluation.model} on {evaluation.data}: {facts['pictures']:,} pictures, "
        f"{facts['texts']:,} {'examples' if is_asked else 'texts'}, on {facts['device']} in "
        f"{facts['precision']}"
    )
    cut = "drawn from more" if is_asked else "the first ones"
    words += f", {cut}" if facts["is_cut"] else ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in facts["refused"].items())
    left_out = "rows" if is_asked else "samples"
    return words + (f"; {refused:,} {left_out} left out ({reasons})" if refused else "")


def figure_words(figure: Figure) -> str:
    """Return a figure with its interval, as many decimals as it bears."""
    if math.isnan(figure.value):
        return "-"
    decimals = 3 if abs(figure.value) < 10 else 1
    words = f"{figure.value:.{decimals}f}"
    # What is known exactly, and what nothing is known of, have no interval.
    if math.isnan(figure.low) or figure.low == figure.value == figure.high:
        return words
    return f"{words} [{figure.low:.{decimals}f}, {figure.high:.{decimals}f}]"


def write_evaluation(evaluation: Evaluation, out: Path) -> None:
    """Write results.json, items.parquet and the pictures into a folder, all or nothing."""
    from capfilt.reports.drawing import write_chart

    with whole_folder(out) as folder:
        write_results(evaluation, folder)
        for name, chart in _charts(evaluation):
            write_chart(folder / f"{name}.png", chart)


def _tables(evaluation: Evaluation) -> Iterator[tuple[str, dict[str, list[Measured]]]]:
    """Yield each table's title and its rows, in the order of the figures."""
    tables: dict[str, dict[str, list[Measured]]] = {}
    for one in evaluation.found.measured:
        tables.setdefault(one.table, {}).setdefault(one.row, []).append(one)
    yield from tables.items()


# -- pictures


def _charts(evaluation: Evaluation) -> Iterator[tuple[str, Chart]]:
    from capfilt.reports.charts import bars_with_intervals

    found = evaluation.found
    if evaluation.task == "filter":
        yield from _filter_charts(evaluation)
        return
    if evaluation.task == "answers":
        yield from _answers_charts(evaluation)
        return
    unit = "recall" if evaluation.task == "retrieval" else "CIDEr-D"
    wanted = {"R@1", "R@5", "R@10"} if evaluation.task == "retrieval" else {"CIDEr-D"}
    rows: list[Estimate] = [
        (_label(one, evaluation.task), one.figure.value, one.figure.low, one.figure.high)
        for one in found.measured
        if one.measure in wanted
    ]
    yield evaluation.task, bars_with_intervals(rows, _title(evaluation), unit)


def _answers_charts(evaluation: Evaluation) -> Iterator[tuple[str, Chart]]:
    """Yield a picture of what is measured from 0 to 1, and one of CIDEr-D, which goes up to 10."""
    from capfilt.reports.charts import bars_with_intervals
    from capfilt.stages.evaluate.answered import METRICS, MODEL

    cider = METRICS["cider"]
    for name, unit, is_cider in (("answers", "score", False), ("captions", cider, True)):
        rows: list[Estimate] = [
            (f"{one.table}, {one.row}", one.figure.value, one.figure.low, one.figure.high)
            for one in evaluation.found.measured
            if one.measure == MODEL and one.row.endswith(f": {cider}") == is_cider
        ]
        if rows:
            yield name, bars_with_intervals(rows, _title(evaluation), unit)


def _title(evaluation: Evaluation) -> str:
    """Return a title that fits above a picture."""
    name = evaluation.model.rstrip("/").rpartition("/")[2]
    facts = evaluation.found.facts
    what = "examples" if evaluation.task == "answers" else "texts"
    return f"{name}: {facts['pictures']:,} pictures, {facts['texts']:,} {what}"


def _label(one: Measured, task: str) -> str:
    return f"{one.table}, {one.measure}: {one.row}" if task == "retrieval" else one.row


def _filter_charts(evaluation: Evaluation) -> Iterator[tuple[str, Chart]]:
    from capfilt.reports.filter_charts import Bin, by_kind, reliability, roc_and_precision

    found = evaluation.found
    title = _title(evaluation)
    kinds = _kinds_of_noise(found.curves)
    if kinds:
        every = kinds[-1]
        share = every.right_pairs / (every.right_pairs + every.wrong_pairs)
        yield "roc", roc_and_precision(every.curves, title, right_share=share)
    if len(kinds) > 1:
        yield "roc_by_kind", by_kind(kinds, f"AUROC by kind of noise, {title}", "roc")
        yield "precision_by_kind", by_kind(kinds, f"AP by kind of noise, {title}", "precision")
    if found.reliability:
        bins = [
            Bin(each.low, each.high, each.mean_probability, each.share_right, each.count)
            for each in found.reliability
        ]
        yield "reliability", reliability(bins, f"ITM of {title}")


def _kinds_of_noise(curves: Iterable[Curve]) -> list[KindOfNoise]:
    """Return the curves as they are drawn, put together by the kind of noise they are of."""
    from capfilt.reports.filter_charts import KindOfNoise, ScoreCurve

    kinds: dict[str, list[Curve]] = {}
    for one in curves:
        kinds.setdefault(one.kind, []).append(one)
    return [
        KindOfNoise(
            label=kind,
            right_pairs=mine[0].right_pairs,
            wrong_pairs=mine[0].wrong_pairs,
            curves=[
                ScoreCurve(
                    label=one.row,
                    roc=[(0.0, 0.0), *zip(one.wrong_kept, one.right_kept, strict=True)],
                    precision=list(zip(one.right_kept, one.precision, strict=True)),
                    auroc=one.auroc,
                    average_precision=one.average_precision,
                    baseline=one.row not in ("ITM", "ITC"),
                )
                for one in mine
            ],
        )
        for kind, mine in kinds.items()
    ]
