from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from capfilt.data.instructions.registry import read_registry

if TYPE_CHECKING:
    from pathlib import Path

    from typed_commands import Capfilt


@pytest.mark.parametrize("columns", ["140", "60"])
def test_every_data_set_is_listed_with_its_reader_or_that_it_needs_one(
    capfilt: Capfilt, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    ended = capfilt("datasets")
    assert ended.exit_code == 0
    lines = ended.stdout.splitlines()
    assert max(map(len, lines)) <= int(columns)
    text = " ".join(ended.stdout.split())
    for dataset in read_registry().datasets.values():
        assert dataset.name in text
        assert (dataset.reader or "needs reader") in text
    assert "26 data sets of 11 tasks: 13 held in, 13 held out; 3 need a reader" in text
    assert "wholly held out: visual reasoning, video question answering" in text
    assert lines[-1] == "capfilt settings --pipeline instructblip"


def test_json_tells_files_and_chances(capfilt: Capfilt) -> None:
    rows = {row["name"]: row for row in json.loads(capfilt("datasets", "--json").stdout)}
    assert len(rows) == 26
    assert rows["vqav2"]["files"] == ["questions", "annotations"]
    assert (rows["ivqa"]["reader"], rows["ivqa"]["files"], rows["ivqa"]["weight"]) == (None, None, None)
    assert sum(row["weight"] for row in rows.values() if row["held"] == "in") == pytest.approx(1)


def test_the_chances_are_those_of_a_training_on_the_sets_whose_files_are_named(
    capfilt: Capfilt, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    birds = '[[dataset]]\nname = "birds"\ncategory = "image_captioning"\nannotations = ["birds.json"]\n'
    okvqa = '[[dataset]]\nname = "okvqa"\nannotations = ["okvqa.json"]\ncorrection = 1.0\nsize = 100\n'
    file.write_text(f"{birds}size = 400\n{okvqa}")
    rows = json.loads(capfilt("datasets", "--json", "--registry", file).stdout)
    found = {row["name"]: row["weight"] for row in rows if row["weight"] is not None}
    assert found == {"birds": pytest.approx(2 / 3), "okvqa": pytest.approx(1 / 3)}
    # What is read of a set decides where its row does not say, and nothing is read here.
    file.write_text(birds + okvqa)
    rows = json.loads(capfilt("datasets", "--json", "--registry", file).stdout)
    assert all(row["weight"] is None for row in rows)


def test_a_row_of_ones_own_is_listed_and_a_wrong_one_refused(capfilt: Capfilt, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[[dataset]]\nname = "birds"\ncategory = "image_captioning"\nreader = "blip_pairs"\n')
    rows = json.loads(capfilt("datasets", "--json", "--registry", file).stdout)
    assert rows[-1]["name"] == "birds"
    # Its size is not known, so no chance is.
    assert all(row["weight"] is None for row in rows)
    file.write_text('[[dataset]]\nname = "birds"\ncategory = "birds"\n')
    ended = capfilt("datasets", "--registry", file)
    assert ended.exit_code == 2
    assert "there is no category birds" in ended.stderr
    assert "fix: name one of image_captioning" in ended.stderr
