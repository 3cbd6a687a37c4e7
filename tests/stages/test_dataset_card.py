from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import world

from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.policy import newest_policy
from capfilt.settings import Export
from capfilt.stages.dataset_card import dataset_card

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.provenance.rundir import RunDir

HOSTILE = "<script>alert(1)</script> | [x](http://evil) **b** `c`\n## Heading\x1b[2J \u202e\\"


def _rows(card: str, title: str) -> dict[str, str]:
    """First and last cell of a table's rows."""
    table = card.partition(f"## {title}\n\n")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table]
    return {row[0].strip(): row[-1].strip() for row in cells}


def test_the_sums_of_the_card_are_those_of_sql(finished: RunDir) -> None:
    card = (finished.export / "README.md").read_text()

    counts = _rows(card, "From samples to pairs")
    by_sql = {
        f"samples {status}" + (f", {reason}" if reason else ""): str(count)
        for status, reason, count in world.sql(
            finished, "SELECT status, reason, count(*) FROM samples GROUP BY ALL"
        )
    } | {
        f"{source} captions " + ("kept" if keep else f"dropped, {reason}"): str(count)
        for source, keep, reason, count in world.sql(
            finished, "SELECT source, keep, reason, count(*) FROM pairs GROUP BY ALL"
        )
    }
    assert counts == by_sql
    [(kept,)] = world.sql(finished, "SELECT count(DISTINCT key) FROM pairs WHERE keep")
    assert f"**{kept} samples**" in card
    assert sum(int(count) for count in _rows(card, "Licences found in the metadata").values()) == kept


def test_the_card_names_models_policy_and_its_digest(finished: RunDir) -> None:
    card = (finished.export / "README.md").read_text()

    newest = newest_policy(finished)
    assert newest is not None
    assert "Kept: ITM of at least 0.5." in card
    assert f"`{newest[1].digest}`" in card
    for (model,) in world.sql(finished, "SELECT model FROM models"):
        assert f"`{model}`" in card
    assert card.count("`") % 2 == 0


def test_licences_are_counted_and_a_strangers_one_stays_text(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    png = world.members(world.REAL / "photos.tar")
    pictures = [data for name, data in png.items() if name.endswith((".jpg", ".png"))]
    licences = [{"license": "CC-BY-4.0"}, {"licence": "CC-BY-4.0"}, {"rights": HOSTILE}, {}, {"licence": 7}]
    web = world.write_tar(
        tmp_path / "web.tar",
        [
            member
            for n, (picture, metadata) in enumerate(zip(pictures, licences, strict=True))
            for member in (
                (f"{n}.jpg", picture),
                (f"{n}.txt", f"text {n}"),
                (f"{n}.json", json.dumps(metadata)),
            )
        ],
    )

    run = world.run(tmp_path / "run", web, bundles, score=False).run

    card = (run.export / "README.md").read_text()
    found = _rows(card, "Licences found in the metadata")
    assert found.pop("CC-BY-4.0") == "2"
    assert found.pop("(none given)") == "2"
    [(hostile, count)] = found.items()
    assert count == "1"
    assert hostile.startswith(r"\<script\>alert\(1\)\</script\>")
    # Nothing of it is markup, moves a cursor or turns the direction of what follows.
    assert not re.search(r"(?<!\\)[<>`*\[\]#|]", hostile)
    assert hostile.isascii()
    assert hostile.isprintable()
    assert "\n## Heading" not in card


@pytest.mark.parametrize("weak", [[], ["ITM"], ["ITC by filter 1a2b3c4d", "ITM"]])
def test_a_weak_filter_is_said_before_the_counts(finished: RunDir, weak: list[str]) -> None:
    newest = newest_policy(finished)
    assert newest is not None
    with open_catalog(finished) as catalog:
        card = dataset_card(catalog, newest[1], Export(), Counter(web=1), Counter({"": 1}), weak)

    assert ("**Weak filter.**" in card) == bool(weak)
    assert all(words in card.partition("## From samples")[0] for words in weak)


def test_calibration_stands_in_the_card_with_its_interval(bundles: dict[str, Path], tmp_path: Path) -> None:
    calibrated = world.calibrated(bundles["filter"], tmp_path / "calibrated", itm=0.75, itc=0.6)

    run = world.run(tmp_path / "run", world.REAL / "photos.tar", {**bundles, "filter": calibrated}).run

    card = (run.export / "README.md").read_text()
    assert "| ITM | shuffled captions | 50 | 0.875 | 0.750 to 1.000 |" in card
    assert "| ITC | hard captions | 50 | 0.800 | 0.600 to 1.000 |" in card


def test_the_card_of_an_uncalibrated_filter_shows_no_calibration(finished: RunDir) -> None:
    assert "Calibration on held-out clean pairs" not in (finished.export / "README.md").read_text()
