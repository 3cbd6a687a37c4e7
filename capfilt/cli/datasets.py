"""`capfilt datasets`: which sets of instructions there are, and which of them can be read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from capfilt.cli.options import JsonOption
from capfilt.cli.output import next_step, print_json, print_next
from capfilt.reports.text import terminal, visible

if TYPE_CHECKING:
    from rich.console import Console

    from capfilt.data.instructions.registry import Registry

RegistryOption = Annotated[
    Path | None,
    typer.Option(
        "--registry",
        metavar="FILE.toml",
        help="Data sets of your own, as [[dataset]] rows; a known name changes the fields that are given.",
    ),
]
NARROW = 90
"""Columns of a terminal below which a data set takes two lines."""


def datasets(registry: RegistryOption = None, json: JsonOption = False) -> None:
    """List the data sets of instructions: their task, whether they are trained on, their reader and metric.

    Example: capfilt datasets --registry mine.toml
    """
    from capfilt.data.instructions.registry import read_registry

    found = read_registry(registry)
    rows = _rows(found)
    if json:
        print_json(rows)
        return
    console = terminal()
    _print_table(console, rows) if console.width >= NARROW else _print_lines(console, rows)
    console.print()
    console.print(_summary(found), soft_wrap=console.width >= NARROW)
    print_next(next_step("settings", "--pipeline", "instructblip"))


def _rows(registry: Registry) -> list[dict[str, Any]]:
    """Return what is told of each data set; a chance of being met where all sizes are known.

    It is that of a training: on the sets whose files are named, and on all held-in ones where none is.
    """
    from capfilt.data.instructions.formats import FORMATS
    from capfilt.data.instructions.sampling import sampling_weights

    held_in = registry.held("in")
    trained = [dataset for dataset in held_in if dataset.annotations] or held_in
    weights = sampling_weights(trained) if all(dataset.size for dataset in trained) else {}
    return [
        {
            "name": dataset.name,
            "category": dataset.category,
            "held": dataset.held,
            "reader": dataset.reader,
            "metric": dataset.metric,
            "learns": dataset.learns,
            "size": dataset.size,
            "weight": weights.get(dataset.name),
            "split": dataset.split,
            "files": list(FORMATS[dataset.reader].files) if dataset.reader else None,
            "source": dataset.source,
        }
        for dataset in registry.datasets.values()
    ]


def _shown(row: dict[str, Any]) -> list[str]:
    """Return name, category, held in or out, reader and metric as they are shown."""
    from capfilt.data.instructions.registry import NEEDS_READER

    cells = (row["name"], row["category"], row["held"], row["reader"] or NEEDS_READER, row["metric"] or "-")
    return [visible(cell) for cell in cells]


def _print_table(console: Console, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("data set", "task", "held", "reader", "metric"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*_shown(row))
    console.print(table)


def _print_lines(console: Console, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        name, category, held, reader, metric = _shown(row)
        console.print(f"{name}: {category}, held {held}")
        console.print(f"  {reader}, {metric}")


def _summary(registry: Registry) -> str:
    """Say how many there are, which tasks no training sees, and how many cannot be read yet."""
    held_out = ", ".join(category.title for category in registry.wholly_held_out()) or "none"
    unread = sum(dataset.reader is None for dataset in registry.datasets.values())
    tasks = {dataset.category for dataset in registry.datasets.values()}
    return (
        f"{len(registry.datasets)} data sets of {len(tasks)} tasks: "
        f"{len(registry.held('in'))} held in, {len(registry.held('out'))} held out; {unread} need a reader\n"
        f"wholly held out: {visible(held_out)}"
    )
