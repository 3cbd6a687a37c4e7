from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capfilt.data.instructions.reading import Reading, read_examples
from capfilt.data.instructions.registry import Dataset

Reads = Callable[..., Reading]
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def fixtures() -> Path:
    """Annotation files as they are published; see their README."""
    return FIXTURES


@pytest.fixture
def reads(tmp_path: Path) -> Reads:
    """Read fixtures with pictures: `reads("gqa", ["gqa.json"], ["2405722.jpg"], split=...)`.

    Pictures are made as empty files below `tmp_path / "images"`: a reader looks whether they are there.
    """

    def read(reader: str, files: list[str | Path], pictures: list[str], **row: Any) -> Reading:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for picture in pictures:
            path = folder / picture
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        dataset = Dataset(
            name="mine",
            category="question_answering",
            reader=reader,
            annotations=tuple(FIXTURES / file for file in files),
            images=folder,
            **row,
        )
        return read_examples(dataset)

    return read
