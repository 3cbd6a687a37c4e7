from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from made_run import HOSTILE, TEXTS, made_run

from capfilt.provenance.schema import TABLES

if TYPE_CHECKING:
    from pathlib import Path

    from typed_commands import Capfilt

    from capfilt.provenance.rundir import RunDir

TEXT_ROWS = "select source, text from pairs order by source, text"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return made_run(tmp_path / "run")


def test_a_table_shows_texts_escaped_and_ends_with_the_next_command(capfilt: Capfilt, run: RunDir) -> None:
    shown = capfilt("sql", run.path, TEXT_ROWS).stdout
    assert "IMG_0042.JPG" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[red]loud[/red]" in shown
    assert shown.splitlines()[-1] == f"capfilt sql {run.path} --schema"


def test_json_holds_every_row_without_loss(capfilt: Capfilt, run: RunDir) -> None:
    rows = json.loads(capfilt("sql", run.path, TEXT_ROWS, "--format", "json").stdout)
    assert [(row["source"], row["text"]) for row in rows] == sorted((s, t) for (_, s), t in TEXTS.items())
    assert json.loads(capfilt("sql", run.path, TEXT_ROWS, "--json").stdout) == rows


def test_json_says_what_json_cannot_say_as_null_or_text(capfilt: Capfilt, run: RunDir) -> None:
    query = (
        "select 'nan'::double a, 'inf'::double b, 1 a, date '2024-02-29' d,"
        " [1.5, 'nan'::double] l, {'x': 1} s"
    )
    [row] = json.loads(capfilt("sql", run.path, query, "--json").stdout)
    assert row == {"a": None, "b": None, "a_2": 1, "d": "2024-02-29", "l": [1.5, None], "s": {"x": 1}}


def test_json_of_no_row_is_an_empty_array(capfilt: Capfilt, run: RunDir) -> None:
    assert json.loads(capfilt("sql", run.path, "select 1 where false", "--json").stdout) == []


def test_csv_in_a_pipe_holds_every_text_and_no_formula(capfilt: Capfilt, run: RunDir) -> None:
    shown = capfilt("sql", run.path, TEXT_ROWS, "--format", "csv").stdout
    header, *rows = csv.reader(io.StringIO(shown))
    assert header == ["source", "text"]
    assert ["web", HOSTILE] in rows
    query = """select '=HYPERLINK("http://x")' "=a", '-2' b, -2 c, ['=1'] d, null e, -0.5::decimal(3, 1) f"""
    formula = capfilt("sql", run.path, query, "--format", "csv").stdout
    assert list(csv.reader(io.StringIO(formula))) == [
        ["'=a", "b", "c", "d", "e", "f"],
        ['\'=HYPERLINK("http://x")', "'-2", "-2", "['=1']", "", "-0.5"],
    ]


def test_csv_in_a_terminal_is_shown_with_escapes(run: RunDir) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "capfilt", "sql", str(run.path), TEXT_ROWS, "--format", "csv"]
    subprocess.run(command, stdout=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 100_000)
    os.close(ours)
    assert b"\\x1b]0;owned\\x07" in shown
    assert b"\x1b" not in shown


def test_a_long_table_says_that_it_was_cut(capfilt: Capfilt, run: RunDir) -> None:
    ended = capfilt("sql", run.path, "select unnest(range(1000)) as n")
    assert "more than 200 rows" in ended.stderr
    assert "199" in ended.stdout
    assert capfilt("sql", run.path, "select unnest(range(200)) as n").stderr == ""
    csv_rows = capfilt("sql", run.path, "select unnest(range(1000)) as n", "--format", "csv").stdout
    assert len(csv_rows.splitlines()) == 1001


def test_the_schema_names_every_table_with_and_without_a_run(capfilt: Capfilt, run: RunDir) -> None:
    for words in ([], [run.path]):
        shown = capfilt("sql", *words, "--schema").stdout
        assert all(f"{table.name}: {table.meaning}" in shown for table in TABLES)
    tables = json.loads(capfilt("sql", "--schema", "--json").stdout)
    assert {name: list(columns) for name, columns in tables.items()} == {t.name: t.names() for t in TABLES}


@pytest.mark.parametrize(
    "query",
    ["drop table samples", "select * from nothing", "select 1; select 2", "copy samples to 'x.csv'", ""],
)
def test_what_is_no_query_of_the_run_is_the_users_error(capfilt: Capfilt, run: RunDir, query: str) -> None:
    ended = capfilt("sql", run.path, query)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "  fix: " in ended.stderr


def test_a_query_is_needed(capfilt: Capfilt, run: RunDir) -> None:
    assert capfilt("sql", run.path).exit_code == 2
    assert capfilt("sql").exit_code == 2
