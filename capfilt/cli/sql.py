"""`capfilt sql`: a user's own questions to the provenance.

A table is for people, so it is cut and made safe; JSON and CSV hold every row. JSON is for programs, and has
texts as they are; CSV is for spreadsheets, which compute a text that begins with =, +, - or @, so that it
gets an apostrophe.
"""

from __future__ import annotations

import json as jsonlib
import math
import sys
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from capfilt.cli.output import next_step, print_next
from capfilt.errors import CapfiltError
from capfilt.reports.text import terminal, visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOST_ROWS = 200
"""Rows of a table for people."""
MOST_CHARACTERS = 500
"""Characters of a cell of a table for people."""
_NUMBERS = (bool, int, float, Decimal, type(None))
"""What stands in CSV as it is."""


def sql(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Folder of a run.")] = None,
    query: Annotated[str | None, typer.Argument(metavar="QUERY", help="One SELECT.")] = None,
    output_format: Annotated[
        Literal["table", "json", "csv"],
        typer.Option(
            "--format", help="table for people (cut to 200 rows), json for programs, csv for spreadsheets."
        ),
    ] = "table",
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="List every table and column.")] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="S", help="Seconds after which the query is stopped.")
    ] = 300.0,
    memory_gb: Annotated[
        float, typer.Option("--memory", metavar="GB", help="Memory that the query may take.")
    ] = 2.0,
) -> None:
    """Ask the provenance of a run in SQL; nothing can be changed by it.

    JSON holds texts as they are; in CSV one that begins with = + - or @ gets an apostrophe, so that no
    spreadsheet takes it for a formula.

    Example: capfilt sql runs/first "select source, keep, count(*) from pairs group by all"
    """
    if schema:
        _print_schema(run, json=json or output_format == "json")
        return
    if run is None or query is None:
        raise CapfiltError(
            "a run and a query are needed",
            fix=next_step("sql", run or "RUN", "select source, keep, count(*) from pairs group by all"),
        )
    from capfilt.provenance.query import Limits, bounded_memory, run_sql
    from capfilt.provenance.rundir import RunDir

    limits = Limits(timeout_s, memory_gb)
    with bounded_memory(limits):
        columns, rows = run_sql(RunDir.open(run), query, limits)
        if json or output_format == "json":
            _print_json(columns, rows)
        elif output_format == "csv":
            _print_csv(columns, rows)
        else:
            _print_table(columns, rows)
            print_next(next_step("sql", run, "--schema"))


def _print_schema(run: Path | None, *, json: bool) -> None:
    from capfilt.provenance.catalog import schema_text
    from capfilt.provenance.schema import TABLES

    if json:
        tables = {
            table.name: {column.name: [column.type, column.meaning] for column in table.columns}
            for table in TABLES
        }
        print(jsonlib.dumps(tables, indent=1))
        return
    print(schema_text())
    print_next(next_step("sql", run or "RUN", "select * from stages"))


def _print_table(columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(visible(column), overflow="fold")
    source = iter(rows)
    for row in islice(source, MOST_ROWS):
        table.add_row(*(_cell(value) for value in row))
    terminal().print(table)
    if next(source, None) is not None:
        print(
            f"more than {MOST_ROWS} rows: these are the first; --format json or csv gives all",
            file=sys.stderr,
        )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return visible(text, MOST_CHARACTERS)


def _print_json(columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
    """Print an array of objects, a row a line, as the rows come."""
    names = _distinct(columns)
    before = "[\n"
    for row in rows:
        record = dict(zip(names, map(_plain, row), strict=True))
        print(before + jsonlib.dumps(record, default=str), end="")
        before = ",\n"
    print("[]" if before == "[\n" else "\n]")


def _print_csv(columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
    """Write the rows for a spreadsheet; a terminal, which is no file, is shown escapes instead."""
    from capfilt.provenance.csv_cells import as_cell, csv_line

    shown = visible if sys.stdout.isatty() else as_cell
    for row in chain([columns], rows):
        # A text may also stand in a list or a struct.
        cells = (value if isinstance(value, _NUMBERS) else shown(str(value)) for value in row)
        sys.stdout.write(csv_line(cells))


def _distinct(columns: Sequence[str]) -> list[str]:
    """Return names that can be keys of one object: a second `a` is `a_2`."""
    names: list[str] = []
    for column in columns:
        name, number = column, 1
        while name in names:
            number += 1
            name = f"{column}_{number}"
        names.append(name)
    return names


def _plain(value: Any) -> Any:
    """Return what JSON can say: a float that is not finite becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
