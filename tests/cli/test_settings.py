from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import Field

from capfilt.cli.settings import setting_rows
from capfilt.layers import Settings, changed
from capfilt.settings import Bootstrap

if TYPE_CHECKING:
    from typed_commands import Capfilt


def test_every_setting_has_a_name_that_set_takes_and_a_meaning() -> None:
    settings = Bootstrap()
    rows = list(setting_rows(settings))
    for row in rows:
        assert row["meaning"], row["name"]
        assert row["range"], row["name"]
        value = "none" if row["value"] is None else json.dumps(row["value"])
        assert changed(settings, assignments=[f"{row['name']}={value}"]) == settings
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names)
    assert {"seed", "decoding.method", "judge.itm", "captioner_training.phases.0.lm"} <= set(names)


def test_ranges_are_said_in_words() -> None:
    ranges = {row["name"]: row["range"] for row in setting_rows(Bootstrap())}
    assert ranges["decoding.top_p"] == "above 0, at most 1"
    assert ranges["decoding.method"] == "nucleus|greedy|beam"
    assert ranges["recaption"] == "true|false"
    assert ranges["bundles.init"] == "str or none"


def test_a_pipeline_that_changes_a_default_keeps_the_meaning() -> None:
    class Base(Settings):
        width: int = Field(3, ge=1)
        """How wide."""

    class Choices(Base):
        width: int = 5

    assert list(setting_rows(Choices())) == [
        {"name": "width", "value": 5, "range": "at least 1", "meaning": "How wide."}
    ]


def test_a_pipelines_own_values_are_listed(capfilt: Capfilt, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from capfilt.settings import Bootstrap, Decoding, Phase, Training\n"
        "class Choices(Bootstrap):\n"
        "    decoding: Decoding = Decoding(min_tokens=2)\n"
        "    pretrain: Training | None = Training(phases=(Phase(itc=0.5), Phase(lm=0.25)))\n"
        "def stages(choices):\n    return []\n"
    )
    listed = json.loads(capfilt("settings", "--pipeline", "mine.py", "--json").stdout)
    rows = {row["name"]: row["value"] for row in listed}
    assert rows["pipeline"] == "mine.py"
    assert (rows["pretrain.phases.0.itc"], rows["pretrain.phases.1.lm"]) == (0.5, 0.25)
    shown = capfilt("settings", "--pipeline", "mine.py").stdout
    assert "decoding.min_tokens = 2 (at least 0)\n    Shortest caption" in shown


@pytest.mark.parametrize(
    "words",
    [
        ["--set", "decoding.top_p=2"],
        ["--set", "nothing=1"],
        ["--set", "x"],
        ["--candidates", "0"],
        ["--config", "no.toml"],
    ],
)
def test_a_setting_out_of_range_is_the_users_error(capfilt: Capfilt, words: list[str]) -> None:
    ended = capfilt("bootstrap", "web", "--clean", "clean", "--out", "run", "--pipeline", "small", *words)
    assert ended.exit_code == 2
    assert "  fix: " in ended.stderr
    assert not Path("run").exists()
