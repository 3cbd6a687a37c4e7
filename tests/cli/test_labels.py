from __future__ import annotations

import csv
import io
import json
import os
import pty
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from made_run import HOSTILE, made_run

from capfilt.provenance.labels import read_labels
from capfilt.reports.text import visible

if TYPE_CHECKING:
    from pathlib import Path

    from typed_commands import Capfilt

    from capfilt.provenance.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return made_run(tmp_path / "a run")


def filled_in(file: Path, verdict: str = "match") -> None:
    """Give every pair of a drawn sample a verdict, as a person with a spreadsheet does."""
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows({**row, "verdict": verdict} for row in rows)


def test_a_sample_is_drawn_filled_in_read_and_measured_by_the_commands_that_are_shown(
    capfilt: Capfilt, run: RunDir, tmp_path: Path
) -> None:
    drawn = capfilt("labels", "draw", run.path, "--count", 10, "--out", tmp_path / "my pairs.csv")
    assert drawn.exit_code == 0, drawn.stderr
    filled_in(tmp_path / "my pairs.csv")
    program, *words = shlex.split(drawn.stdout.splitlines()[-1].replace("NAME", "ann"))
    assert program == "capfilt"
    read = capfilt(*words)
    assert "5 labels" in read.stdout
    assert "5 of them new" in read.stdout
    assert {label.who for label in read_labels(run)} == {"ann"}
    shown = capfilt(*shlex.split(read.stdout.splitlines()[-1])[1:]).stdout
    # By hand: all five match, three are kept.
    assert "precision 1.000" in shown
    assert "recall    0.600" in shown
    assert "5 match, 0 mismatch, 0 unsure" in shown


def test_a_threshold_is_proposed_as_the_command_that_sets_it(
    capfilt: Capfilt, run: RunDir, tmp_path: Path
) -> None:
    capfilt("labels", "draw", run.path, "--out", tmp_path / "d.csv")
    filled_in(tmp_path / "d.csv")
    capfilt("labels", "import", run.path, tmp_path / "d.csv", "--who", "ann")
    shown = capfilt("labels", "measure", run.path, "--precision", 0.9).stdout
    assert shown.splitlines()[-1] == f"capfilt judge '{run.path}' --itm 0.1"
    value = json.loads(capfilt("labels", "measure", run.path, "--precision", 0.9, "--json").stdout)
    assert (value["proposed"]["threshold"], value["recall"]["value"]) == (0.1, 0.6)
    ended = capfilt("labels", "measure", run.path, "--precision", 1.5)
    assert ended.exit_code == 2


def test_labels_are_exported_and_imported_elsewhere(capfilt: Capfilt, run: RunDir, tmp_path: Path) -> None:
    capfilt("labels", "draw", run.path, "--out", tmp_path / "d.csv")
    filled_in(tmp_path / "d.csv")
    capfilt("labels", "import", run.path, tmp_path / "d.csv", "--who", "ann")
    other = made_run(tmp_path / "other")
    file = tmp_path / "labels.csv"
    assert capfilt("labels", "export", run.path, "--out", file).exit_code == 0
    value = json.loads(capfilt("labels", "import", other.path, file, "--json").stdout)
    assert value == {"labels": 5, "new": 5}
    assert read_labels(other) == read_labels(run)
    assert capfilt("labels", "export", run.path).stdout == file.read_text()


def test_as_json_texts_are_as_they_are_and_ascii(capfilt: Capfilt, run: RunDir) -> None:
    shown = capfilt("labels", "draw", run.path, "--json").stdout
    assert shown.isascii()
    assert HOSTILE in [row["text"] for row in json.loads(shown)]


def test_a_terminal_is_shown_escapes(run: RunDir) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "capfilt", "labels", "draw", str(run.path)]
    subprocess.run(command, stdout=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 100_000)
    os.close(ours)
    assert b"\\x1b]0;owned\\x07" in shown
    assert b"\x1b" not in shown


def test_texts_that_are_only_looked_at_are_shown_in_a_file_too(capfilt: Capfilt, run: RunDir) -> None:
    piped = capfilt("labels", "draw", run.path).stdout
    assert visible(HOSTILE) in [row["text"] for row in csv.DictReader(io.StringIO(piped))]
    assert "\x1b" not in piped


def test_a_wrong_file_is_the_users_error(capfilt: Capfilt, run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "wrong.csv").write_text("a,b\n")
    for file in ("wrong.csv", "nothing.csv"):
        ended = capfilt("labels", "import", run.path, tmp_path / file)
        assert (ended.exit_code, ended.stdout) == (2, "")
        assert "  fix: " in ended.stderr
