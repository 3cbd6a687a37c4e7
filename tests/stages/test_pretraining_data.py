"""What a training on instruction data is known by."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from capfilt.settings import Clean
from capfilt.stages.pretraining_data import Instructions
from capfilt.training.parallel import ALONE

if TYPE_CHECKING:
    from pathlib import Path


def _facts(folder: Path) -> dict[str, Any]:
    job: Any = SimpleNamespace(
        instructions=folder / "data.toml",
        clean=Clean(held_out=0.2),
        seed=0,
        decoders=2,
        checkpoint=folder / "training" / "captioner.pt",
    )
    return Instructions(job, ALONE).facts


def test_other_pictures_under_the_same_names_are_other_data_and_moved_ones_are_not(tmp_path: Path) -> None:
    one = tmp_path / "one"
    (one / "pictures").mkdir(parents=True)
    rows = []
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(one / "pictures" / f"{number}.png")
        rows.append({"image": f"{number}.png", "text_input": "what shade?", "text_output": f"{number}"})
    (one / "rows.json").write_text(json.dumps(rows))
    (one / "data.toml").write_text(
        '[[dataset]]\nname = "mine"\nreader = "instructions"\ncategory = "question_answering"\n'
        'annotations = ["rows.json"]\nimages = "pictures"\n'
    )
    before = _facts(one)
    two = tmp_path / "two"
    shutil.copytree(one, two)
    assert _facts(two) == before
    Image.new("RGB", (8, 8), (0, 0, 255)).save(two / "pictures" / "3.png")
    assert _facts(two)["data"] != before["data"]


def test_a_data_set_is_met_by_the_size_of_its_row_and_else_by_what_was_read(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(20):
        Image.new("RGB", (8, 8), (12 * number, 0, 0)).save(tmp_path / "pictures" / f"{number}.png")
    row = '[[dataset]]\nname = "{}"\nreader = "instructions"\ncategory = "question_answering"\n'
    row += 'annotations = ["{}.json"]\nimages = "pictures"\n'
    for name in ("said", "read"):
        rows = [
            {"image": f"{number}.png", "text_input": "what shade?", "text_output": f"{number}"}
            for number in range(20)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    (tmp_path / "data.toml").write_text(
        row.format("said", "said") + "size = 144\n" + row.format("read", "read")
    )
    # Of twenty each, four of the same pictures are held out: the square roots of 144 and of 16.
    assert _facts(tmp_path)["weights"] == {"said": pytest.approx(0.75), "read": pytest.approx(0.25)}
