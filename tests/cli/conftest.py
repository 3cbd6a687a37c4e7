from __future__ import annotations

import sys
from pathlib import Path

import pytest

# What these tests share lies beside them, and the run that is made by hand beside the tests of the reports.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "reports"))

from typed_commands import Capfilt, typed


@pytest.fixture
def capfilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Capfilt:
    """Type a command in an empty folder: `capfilt("inspect", run)`."""
    monkeypatch.chdir(tmp_path)
    return typed
