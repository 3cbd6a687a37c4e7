"""`capfilt labels`: what people said of pairs, as files to carry and as figures of the policy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from capfilt.cli import options
from capfilt.cli.output import next_step, print_json, print_next
from capfilt.reports.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from capfilt.provenance.labels import Estimate, Measured

MOST_CHARACTERS = 32_000
"""Characters of a cell that is only looked at; spreadsheets hold 32,767."""

labels = typer.Typer(
    no_args_is_help=True,
    help="Label pairs in a spreadsheet, carry labels to another copy of a run, measure a policy by them.\n\n"
    "Example: capfilt labels draw runs/first --count 300 --out pairs.csv",
)

OutFileOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="CSV file to write; else it is printed.", show_default=False),
]


@labels.command()
def draw(
    run: options.RunArgument,
    count: Annotated[int, typer.Option("--count", metavar="N", help="Pairs to draw.")] = 300,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The same one draws the same pairs.")] = 0,
    out: OutFileOption = None,
    json: options.JsonOption = False,
) -> None:
    """Draw pairs to label, as CSV: fill in match, mismatch or unsure and import the file.

    As many come from each part of the pairs by source and score; one may stop at any line.

    Example: capfilt labels draw runs/first --count 300 --out pairs.csv
    """
    from capfilt.provenance.label_files import draw_records
    from capfilt.provenance.labels import draw_sample
    from capfilt.provenance.rundir import RunDir

    opened = RunDir.open(run)
    records = draw_records(opened, draw_sample(opened, count, seed))
    _write(records, out, json=json, following=next_step("labels", "import", run, out, "--who", "NAME"))


@labels.command()
def export(run: options.RunArgument, out: OutFileOption = None, json: options.JsonOption = False) -> None:
    """Write every label as CSV; a text that a spreadsheet would compute begins with an apostrophe there.

    Example: capfilt labels export runs/first --out labels.csv
    """
    from capfilt.provenance.label_files import label_records
    from capfilt.provenance.rundir import RunDir

    following = next_step("labels", "import", "OTHER_RUN", out)
    _write(label_records(RunDir.open(run)), out, json=json, following=following)


@labels.command(name="import")
def import_(
    run: options.RunArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV file of labels.", show_default=False)],
    who: Annotated[
        str | None,
        typer.Option(
            "--who", metavar="NAME", help="Who gave the labels that name nobody.", show_default=False
        ),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Add the labels of a CSV file, all or none; those that are there already are left out.

    Example: capfilt labels import runs/first labels.csv
    """
    from capfilt.provenance.label_files import import_labels
    from capfilt.provenance.rundir import RunDir

    held, new = import_labels(RunDir.open(run), file, who=who)
    if json:
        print_json({"labels": held, "new": new})
        return
    print(f"{held} labels in {visible(str(file))}, {new} of them new")
    print_next(next_step("labels", "measure", run))


@labels.command()
def measure(
    run: options.RunArgument,
    precision: Annotated[
        float | None,
        typer.Option(
            "--precision",
            metavar="P",
            help="Propose the lowest threshold whose precision, by the labels, is at least P.",
            show_default=False,
        ),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Say how good the policy in force is by the labels, with 95% intervals, and propose a threshold.

    Example: capfilt labels measure runs/first --precision 0.95
    """
    from dataclasses import asdict

    from capfilt.provenance.labels import measured, threshold_for
    from capfilt.provenance.rundir import RunDir

    opened = RunDir.open(run)
    found = measured(opened)
    proposed = None if precision is None else threshold_for(opened, precision)
    if json:
        print_json({**asdict(found), "proposed": None if proposed is None else asdict(proposed)})
        return
    print("\n".join(_lines(found)))
    if proposed is not None:
        print(f"\nproposed: {proposed.score.upper()} of at least {proposed.threshold:.6g}")
        print("\n".join(_lines(proposed.measured)[:2]))
        print_next(next_step("judge", run, f"--{proposed.score}", repr(proposed.threshold)))
    else:
        print_next(next_step("labels", "measure", run, "--precision", 0.95))


def _lines(found: Measured) -> list[str]:
    lines = [
        f"precision {_words(found.precision)}   {found.kept} of {found.pairs} pairs kept",
        f"recall    {_words(found.recall)}",
        f"labels    {found.matches} match, {found.mismatches} mismatch, {found.unsure} unsure",
    ]
    if not found.is_drawn and found.matches + found.mismatches:
        lines.append(
            "          of pairs that were not drawn: right if all were labelled, or chance chose which"
        )
    if found.outside:
        lines.append(f"          {found.outside} more, of pairs that were not drawn, are left out")
    if found.stale:
        lines.append(f"          {found.stale} more, of texts that were written anew since, are left out")
    return lines


def _words(estimate: Estimate) -> str:
    value = "  ?  " if estimate.value is None else f"{estimate.value:.3f}"
    return f"{value} (95% interval {estimate.low:.3f} to {estimate.high:.3f})"


def _write(records: Sequence[Mapping[str, str]], out: Path | None, *, json: bool, following: str) -> None:
    """Write labels as CSV to a file or to stdout; a terminal, which is no file, is shown escapes."""
    from capfilt.files import whole_file
    from capfilt.provenance.csv_cells import csv_line
    from capfilt.provenance.label_files import FOR_PEOPLE, cells

    if json and out is None:
        print_json(records)
        return
    # What is only looked at is shown as text there too: no null byte ends a cell, nothing turns it round.
    records = [
        {**row, **{name: visible(row[name], MOST_CHARACTERS) for name in FOR_PEOPLE}} for row in records
    ]
    if out is not None:
        with whole_file(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            file.writelines(map(csv_line, cells(records)))
        if json:
            print_json({"file": str(out), "rows": len(records), "next_command": following})
        else:
            print_next(following)
    else:
        is_shown = sys.stdout.isatty()
        for row in cells(records):
            sys.stdout.write(csv_line(map(visible, row) if is_shown else row))
