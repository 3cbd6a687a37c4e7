"""`capfilt bench` as it is typed, on real pictures and random models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Bundles of random weights are made by what the tests of the stages share.
sys.path.insert(0, str(Path(__file__).parents[1] / "stages"))

import world

if TYPE_CHECKING:
    from typed_commands import Capfilt

NOISY = world.REAL / "noisy.tar"
QUICK = ("--device", "cpu", "--workers", 1, "--quiet")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return world.bundles(tmp_path_factory.mktemp("bundles"))


def test_everything_is_measured_and_told(capfilt: Capfilt, models: dict[str, Path], tmp_path: Path) -> None:
    given = ("--captioner", models["captioner"], "--filter", models["filter"], "--candidates", 2)
    wanted = ("--samples", 10, "--batch-size", 4, "--images", 1_000_000, "--price-per-hour", 3, *QUICK)

    told = capfilt("bench", NOISY, *given, *wanted)
    value = json.loads(capfilt("bench", NOISY, *given, *wanted, "--json", "--no-transformers").stdout)

    assert told.exit_code == 0, told.stderr
    lines = told.stdout.splitlines()
    assert lines[0].startswith("10 images on cpu, ")
    assert "batches of 4" in " ".join(lines[:3])
    text = " ".join(told.stdout.split())
    for words in (
        "x as fast as transformers in fp32",
        "Bottleneck: ",
        "1,000,000 images take ",
        " at 3.00 an",
    ):
        assert words in text
    assert (value["images"], value["batch_size"], value["candidates"]) == (10, 4, 2)
    assert value["counters"]["texts_scored"] == 10 * 3
    assert value["transformers"]["why_not"] == "it was not asked for"
    hours = 1_000_000 / value["images_per_s"] / 3600
    assert value["estimate"]["hours"] == pytest.approx(hours)
    assert value["estimate"]["cost"] == pytest.approx(3 * hours)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind where it was typed


def test_what_cannot_be_measured_is_the_users_error(
    capfilt: Capfilt, models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "empty.tar").touch()
    for words, what in (
        ((NOISY,), "no model is given"),
        ((NOISY, "--captioner", models["filter"]), "cannot write captions"),
        ((NOISY, "--filter", models["captioner"]), "cannot score pairs"),
        ((NOISY, "--filter", "nowhere"), "there is no"),
        (("empty.tar", "--filter", models["filter"]), "every shard is empty"),
        (("nowhere", "--filter", models["filter"]), "nowhere"),
        ((NOISY, "--filter", models["filter"], "--price-per-hour", 2), "once its pictures are counted"),
    ):
        ended = capfilt("bench", *words, *QUICK)
        assert ended.exit_code == 2, words
        assert ended.stdout == ""
        assert what in ended.stderr
        assert "  fix: " in ended.stderr
