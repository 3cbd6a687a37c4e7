from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

# Rows of made-up shards, and small test sets of pictures and texts.
sys.path.insert(0, str(Path(__file__).parents[2] / "provenance"))
sys.path.insert(0, str(Path(__file__).parents[1] / "evaluate"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """As a worker has it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
