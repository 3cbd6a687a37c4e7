from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# What these tests share, the names of BLIP's weights, and the drawn world of the examples.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).parent))

from trainings import drawn_pairs

if TYPE_CHECKING:
    from capfilt.data.clean import CleanSet


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> CleanSet:
    """29 drawn pictures with their right captions; batches of 8 leave a last one of 5."""
    return drawn_pairs(tmp_path_factory.mktemp("drawn"), 29)
