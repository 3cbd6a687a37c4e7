"""Models that other software runs, in runs: what rows know them by, and how they are asked."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "backends"))

import small_folders
import world

from capfilt.models.cards import identity, read_card
from capfilt.stages.judge import filters_of
from capfilt.stages.process import RecaptionAndScore
from capfilt.stages.rescore import score_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capfilt.provenance.rundir import RunDir

WEB = world.REAL / "photos.tar"
PASS = (RecaptionAndScore(),)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folders.clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture
def captioned(bundles: dict[str, Path], tmp_path: Path) -> RunDir:
    """A run of real pictures, captioned and scored by models of capfilt's own."""
    return world.run(tmp_path / "run", WEB, bundles, stages=PASS).run


def scored(run: RunDir, bundles: Mapping[str, Path], by: Path) -> str:
    return score_run(run, by, world.settings(dict(bundles)), world.InProcess(), world.QUIET)


# -- what rows know a model by


def test_the_same_weights_behind_other_preprocessing_are_another_filter(
    captioned: RunDir, bundles: dict[str, Path], clip: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(clip, tmp_path / "other")
    seen = json.loads((other / "preprocessor_config.json").read_text())
    changed = {**seen, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]}
    (other / "preprocessor_config.json").write_text(json.dumps(changed))

    first, second = scored(captioned, bundles, clip), scored(captioned, bundles, other)

    cards = [read_card(captioned.model(f"filter-{digest[:12]}")) for digest in (first, second)]
    assert cards[0].weights == cards[1].weights
    assert [identity(card) for card in cards] == [first, second]
    assert filters_of(captioned)[1:] == sorted([first, second])
    query = "SELECT value FROM scores WHERE filter = ? ORDER BY pair_id"
    values = [[value for (value,) in world.sql(captioned, query, one)] for one in (first, second)]
    assert len(values[0]) == len(values[1]) == 10
    assert values[0] != pytest.approx(values[1], abs=1e-3)
    known = {model for (model,) in world.sql(captioned, "SELECT model FROM models WHERE kind = 'filter'")}
    assert {first, second} < known
    # Their own weights still name what is trained here.
    assert read_card(bundles["filter"]).digest == read_card(bundles["filter"]).weights
