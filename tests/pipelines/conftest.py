from __future__ import annotations

import sys
from pathlib import Path

import pytest

# What these tests share, models as transformers saves them, and the drawn world of the examples.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "backends"))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).parents[1] / "stages"))
sys.path.insert(0, str(Path(__file__).parent))

import scenes
from whole_runs import Trained, bootstrap, finish


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 clean and 90 web pairs, the latter in six shards."""
    folder = tmp_path_factory.mktemp("drawn")
    scenes.make(folder, seed=2, clean=60, web=90, per_shard=15)
    return folder


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 clean and 24 web pairs, the latter in two shards."""
    folder = tmp_path_factory.mktemp("few")
    scenes.make(folder, seed=1, clean=40, web=24, per_shard=12)
    return folder


@pytest.fixture(scope="session")
def parts(few: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Image encoders that were trained, and language models: what a Q-Former is put between."""
    from blip2_world import CONVOLUTIONAL, image_encoder, language_model

    folder = tmp_path_factory.mktemp("parts")
    return {
        "plain": image_encoder(few, folder / "plain"),
        "convolutional": image_encoder(few, folder / "convolutional", CONVOLUTIONAL),
        "opt": language_model("opt", folder / "opt"),
        "t5": language_model("t5", folder / "t5"),
        "llama": language_model("llama", folder / "llama"),
    }


@pytest.fixture(scope="session")
def undisturbed(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of pipeline `small` from scratch that nobody disturbed; not to be changed."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return Trained(out, *finish(*bootstrap(drawn, out)))
