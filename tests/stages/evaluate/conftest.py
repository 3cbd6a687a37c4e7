from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


import drawn
import world


@pytest.fixture(scope="session")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn.tar(tmp_path_factory.mktemp("data") / "set.tar")


@pytest.fixture(scope="session")
def noisy_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn.noisy_tar(tmp_path_factory.mktemp("data") / "noisy.tar")


@pytest.fixture(scope="session")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.bundle(tmp_path_factory.mktemp("joint") / "joint", "joint", ("itc", "itm", "lm"), seed=3)
