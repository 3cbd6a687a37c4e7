from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The rows these tests share are also a program of their own, for tests that kill it.
sys.path.insert(0, str(Path(__file__).parent))

from capfilt.provenance.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """An empty run."""
    return RunDir.create(tmp_path / "run")
