"""Labels as CSV, to be carried to another copy of the run or given in a spreadsheet, and back.

What a label is stands in the columns of `Label`; the pair's text, source and place stand behind them, for
whoever reads the file, and are not read back.
"""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from capfilt.errors import CapfiltError
from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.csv_cells import as_cell, from_cell
from capfilt.provenance.label_rows import Label, Verdict
from capfilt.provenance.labels import add_labels, read_labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import IO

    from capfilt.provenance.rundir import RunDir
    from capfilt.provenance.strata import Draw

COLUMNS = ("pair_id", "verdict", "who", "when", "note", "draw", "text_sha256")
"""What is read back."""
FOR_PEOPLE = ("source", "text", "shard", "key")
"""What stands behind it; captions have columns of these names."""
_DELIMITERS = (",", ";", "\t")
"""Spreadsheets of some countries write a semicolon."""
_LONGEST_CELL = 1 << 27
"""Characters."""


def label_records(run: RunDir) -> list[dict[str, str]]:
    """Return every label of the run, those taken back too, each with what the run says of its pair."""
    return _with_captions(run, [record_of(label) for label in read_labels(run, every=True)])


def draw_records(run: RunDir, draw: Draw) -> list[dict[str, str]]:
    """Return the pairs of a drawn sample as labels whose verdict is to be filled in."""
    return _with_captions(run, [{"pair_id": pair.pair_id, "draw": draw.name} for pair in draw.pairs])


def cells(records: Iterable[Mapping[str, str]]) -> Iterator[list[str]]:
    """Yield the header and then a row for each record, as cells that no spreadsheet computes."""
    yield [*COLUMNS, *FOR_PEOPLE]
    for record in records:
        yield [as_cell(record[name]) for name in (*COLUMNS, *FOR_PEOPLE)]


def read_label_table(file: IO[str], *, when: float, who: str | None = None) -> list[Label]:
    """Return the labels of a CSV file, opened with newline="".

    Needed are the columns pair_id and verdict; rows without a verdict are left out. `who` gave the labels
    that name nobody, and a label without a time was given at `when`, seconds since 1970. CapfiltError says
    which line is wrong.
    """
    rows = _rows(file)
    _, header = next(rows, (0, []))
    names = [name.strip().lower() for name in header]
    if lacking := [name for name in COLUMNS[:2] if name not in names]:
        raise CapfiltError(
            f"the file has no column {' and no column '.join(lacking)} in its first line",
            fix="begin it like a file of `capfilt labels export`: " + ",".join(COLUMNS),
        )
    found = []
    for line, found_cells in rows:
        row = {
            name: from_cell(cell) for name, cell in zip(names, found_cells, strict=False) if name in COLUMNS
        }
        if not row.get("verdict", "").strip():
            continue
        try:
            found.append(_label(row, who, when))
        except CapfiltError as error:
            raise CapfiltError(f"line {line}: {error.what}", fix=error.fix) from error
    return found


def import_labels(run: RunDir, file: Path, *, who: str | None = None) -> tuple[int, int]:
    """Add the labels of a CSV file, all or none; return how many the file holds and how many were new.

    CapfiltError where the file cannot be read as labels or names a pair that the run does not have.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            # The file's own time, so that the same file given twice holds the same labels.
            labels = read_label_table(opened, when=file.stat().st_mtime, who=who)
    except FileNotFoundError as error:
        raise CapfiltError(f"there is no file {file}", fix="give a CSV file of labels") from error
    except IsADirectoryError as error:
        raise CapfiltError(f"{file} is a folder", fix="give a CSV file of labels") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CapfiltError(f"{file} is no CSV in UTF-8: {error}", fix="save it as CSV (UTF-8)") from error
    known = _captions(run, {label.pair_id for label in labels})
    if unknown := next((label for label in labels if label.pair_id not in known), None):
        raise CapfiltError(
            f"{run.path} has no pair {unknown.pair_id[:64]!r}, which {file} names",
            fix="give the labels to a copy of the run that they were made for",
        )
    return len(labels), add_labels(run, labels, only_new=True)


# -- rows and cells


def _with_captions(run: RunDir, rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    captions = _captions(run, {row["pair_id"] for row in rows})
    empty = dict.fromkeys((*COLUMNS, *FOR_PEOPLE), "")
    return [{**empty, **row, **captions.get(row["pair_id"], {})} for row in rows]


def _captions(run: RunDir, pair_ids: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return what the run says of those pairs that it has."""
    with open_catalog(run) as catalog:
        rows = catalog.execute(
            f"SELECT pair_id, {', '.join(FOR_PEOPLE)} FROM captions WHERE pair_id IN (SELECT unnest(?))",
            [sorted(pair_ids)],
        ).fetchall()
    return {pair: dict(zip(FOR_PEOPLE, map(str, values), strict=True)) for pair, *values in rows}


def record_of(label: Label) -> dict[str, str]:
    """Return a label as texts, by column."""
    return {
        "pair_id": label.pair_id,
        "verdict": label.verdict.value,
        "who": label.who,
        "when": datetime.fromtimestamp(label.when, UTC).isoformat(timespec="microseconds"),
        "note": label.note,
        "draw": label.draw or "",
        "text_sha256": label.text_sha256 or "",
    }


def _label(row: Mapping[str, str], who: str | None, when: float) -> Label:
    return Label(
        row["pair_id"].strip(),
        Verdict(_verdict(row["verdict"])),
        row.get("who", "").strip() or who or "",
        _seconds(row["when"].strip()) if row.get("when", "").strip() else when,
        note=row.get("note", ""),
        draw=row.get("draw", "").strip() or None,
        text_sha256=row.get("text_sha256", "").strip() or None,
    )


def _verdict(text: str) -> str:
    word = text.strip().lower()
    if word not in set(Verdict):
        raise CapfiltError(f"{text[:40]!r} is no verdict", fix=f"give {', '.join(Verdict)}, or nothing")
    return word


def _seconds(text: str) -> float:
    """Return a time as seconds since 1970; one without a zone is meant in UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise CapfiltError(
            f"{text[:40]!r} is no time", fix="write it like 2026-01-31T12:00:00+00:00, or leave it out"
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _rows(file: IO[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line that ends it and the cells of each row that is not empty."""
    csv.field_size_limit(_LONGEST_CELL)
    first = file.readline()
    delimiter = max(_DELIMITERS, key=first.count)
    lines: Any = _chained(first, file)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    for cells in reader:
        if any(cells):
            yield reader.line_num, cells


def _chained(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest
