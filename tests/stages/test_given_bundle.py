"""A model for a command that keeps none: where its bundle lies, and when one is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import world

from capfilt.errors import CapfiltError
from capfilt.models.bundle import load_bundle
from capfilt.models.cards import read_card
from capfilt.settings import Bootstrap, Bundles
from capfilt.stages.given import given_bundle, wanted

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("size_px", [None, 16])
def test_a_bundle_of_the_side_that_is_asked_for_is_read_where_it_lies(
    bundles: dict[str, Path], tmp_path: Path, size_px: int | None
) -> None:
    asked = wanted("filter", bundles["filter"], Bootstrap(bundles=Bundles(size_px=size_px)))
    assert given_bundle(asked, tmp_path / "made", world.InProcess()) == bundles["filter"]
    assert list(tmp_path.iterdir()) == []


def test_one_of_another_side_is_made_and_the_model_that_is_given_stays(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    before = world.digests(bundles["filter"])
    asked = wanted("filter", bundles["filter"], Bootstrap(bundles=Bundles(size_px=32)))
    made = given_bundle(asked, tmp_path / "made", world.InProcess())
    assert made == tmp_path / "made"
    card = read_card(made)
    assert (card.model.images.size_px, card.resized_from_px) == (32, 16)
    assert load_bundle(made).card == card
    assert world.digests(bundles["filter"]) == before


def test_a_model_for_other_work_is_refused_and_nothing_is_made(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    asked = wanted("captioner", bundles["filter"], Bootstrap(bundles=Bundles(size_px=32)))
    with pytest.raises(CapfiltError, match="cannot write captions"):
        given_bundle(asked, tmp_path / "made", world.InProcess())
    assert list(tmp_path.iterdir()) == []
