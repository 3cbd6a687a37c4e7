from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# The runs that are looked at are made by modules beside these tests, one folder up, and of the other rooms.
for room in (".", "..", "../../stages", "../../cli", "../../browser"):
    sys.path.insert(0, str((Path(__file__).parent / room).resolve()))

if TYPE_CHECKING:
    from capfilt.provenance.rundir import RunDir


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of 48 pictures that lie in a shard, and three samples whose shard is gone; it is only read."""
    from noise_run import noise_run

    return noise_run(tmp_path_factory.mktemp("pictured") / "run")
