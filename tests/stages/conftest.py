from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# What these tests share, the drawn world of the examples, and models as transformers saves them.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import world

if TYPE_CHECKING:
    from capfilt.provenance.rundir import RunDir

    Bundles = dict[str, Path]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Random models on the disk: `captioner`, `filter` and another filter, `second`; none is calibrated."""
    return world.bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def finished(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run over real pictures that is done and exported; not to be changed: `fresh` is."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    return world.run(out, world.REAL / "noisy.tar", bundles).run


@pytest.fixture
def fresh(finished: RunDir, tmp_path: Path) -> RunDir:
    """A copy of the finished run, without its export."""
    return world.copied(finished, tmp_path / "run")
