from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from typing import TYPE_CHECKING

import drawn
import world

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """As a worker has it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn.tar(tmp_path_factory.mktemp("data") / "set.tar")


@pytest.fixture(scope="session")
def noisy_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn.noisy_tar(tmp_path_factory.mktemp("data") / "noisy.tar")


@pytest.fixture(scope="session")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.bundle(tmp_path_factory.mktemp("joint") / "joint", "joint", ("itc", "itm", "lm"), seed=3)
