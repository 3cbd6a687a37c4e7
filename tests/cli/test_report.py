from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "reports"))

from made_run import made_run

if TYPE_CHECKING:
    from typed_commands import Capfilt

    from capfilt.provenance.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return made_run(tmp_path / "run")


def test_report_writes_one_page_into_the_run_and_says_what_to_type_next(
    capfilt: Capfilt, run: RunDir
) -> None:
    ended = capfilt("report", run.path)
    assert ended.exit_code == 0, ended.stderr
    page = run.path / "report.html"
    first, following = ended.stdout.splitlines()
    assert first.startswith(f"{page}: 0.")
    assert first.endswith("samples drawn with seed 0")
    assert following == f"capfilt browse {run.path}"
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")


def test_report_writes_where_it_is_told_and_prints_json(
    capfilt: Capfilt, run: RunDir, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "look.html"
    ended = capfilt("report", run.path, "--out", out, "--seed", 7, "--json")
    told = json.loads(ended.stdout)
    assert told["path"] == str(out)
    assert told["bytes"] == out.stat().st_size
    assert "drawn with seed 7" in out.read_text("utf-8")
    assert not (run.path / "report.html").exists()


def test_report_of_what_is_no_run_is_refused_in_words(capfilt: Capfilt, tmp_path: Path) -> None:
    ended = capfilt("report", tmp_path)
    assert ended.exit_code == 2
    assert "is no run" in ended.stderr
