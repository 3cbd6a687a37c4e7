from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The run that these tests count over is made by a module beside them.
sys.path.insert(0, str(Path(__file__).parent))

from counted_run import Counted, counted_run


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Counted:
    """A run of three shards, and its rows as plain Python; nobody may change it."""
    return counted_run(tmp_path_factory.mktemp("counted") / "run")
