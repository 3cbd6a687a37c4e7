"""What a training on instruction data is known by, and that it is read once for all its processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from capfilt.settings import Clean
from capfilt.stages.pretraining_data import Instructions
from capfilt.training.parallel import ALONE

PROGRAM = Path(__file__).parent / "kept_together.py"


def _instructions(folder: Path) -> Instructions:
    job: Any = SimpleNamespace(
        instructions=folder / "data.toml",
        clean=Clean(held_out=0.2),
        seed=0,
        decoders=2,
        checkpoint=folder / "training" / "captioner.pt",
    )
    return Instructions(job, ALONE)


def _facts(folder: Path) -> dict[str, Any]:
    return _instructions(folder).facts


def _some(folder: Path, pictures: int) -> None:
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for number in range(pictures):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(folder / "pictures" / f"{number}.png")
        rows.append({"image": f"{number}.png", "text_input": "what shade?", "text_output": f"{number}"})
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "data.toml").write_text(
        '[[dataset]]\nname = "mine"\nreader = "instructions"\ncategory = "question_answering"\n'
        'annotations = ["rows.json"]\nimages = "pictures"\n'
    )


def test_other_pictures_under_the_same_names_are_other_data_and_moved_ones_are_not(tmp_path: Path) -> None:
    one = tmp_path / "one"
    _some(one, 4)
    before = _facts(one)
    two = tmp_path / "two"
    shutil.copytree(one, two)
    assert _facts(two) == before
    Image.new("RGB", (8, 8), (0, 0, 255)).save(two / "pictures" / "3.png")
    assert _facts(two)["data"] != before["data"]


def test_two_processes_find_what_one_alone_does_and_only_the_first_reads(tmp_path: Path) -> None:
    _some(tmp_path, 12)
    alone = _instructions(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    checkpoint = tmp_path / "together" / "captioner.pt"
    # The second has a registry of its own, whose file has no row: all else is as in the first one's.
    hollow = tmp_path / "hollow.toml"
    hollow.write_text((tmp_path / "data.toml").read_text().replace("rows.json", "hollow.json"))
    (tmp_path / "hollow.json").write_text("[]")
    launched = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(registry), str(checkpoint), str(tmp_path)],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, registry in enumerate((tmp_path / "data.toml", hollow))
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in launched]
    finally:
        for process in launched:
            process.kill()
    assert [process.returncode for process in launched] == [0, 0], errors
    known = {"facts": alone.facts, "texts": list(alone.texts()), "held_out": alone.found.held_out}
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [known, known]
    assert [path.name for path in checkpoint.parent.iterdir()] == ["instructions"]
