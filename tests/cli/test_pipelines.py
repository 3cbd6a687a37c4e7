from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from capfilt.cli.pipelines import load_pipeline, shipped_pipelines
from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from pathlib import Path

    from typed_commands import Capfilt

MINE = '''"""A pipeline of a user."""

from __future__ import annotations

from capfilt.settings import Bootstrap, Decoding
from capfilt.stages.judge import JudgePairs


class Choices(Bootstrap):
    """One choice of its own."""

    decoding: Decoding = Decoding(top_p=0.5)


def stages(choices):
    return [JudgePairs()] if choices.score else []
'''


def test_every_shipped_pipeline_loads_and_says_what_it_is() -> None:
    found = shipped_pipelines()
    assert {"small", "demo", "blip_base"} <= set(found)
    for name, about in found.items():
        assert about.endswith((".", ":", "`"))
        assert load_pipeline(name).choices().pipeline == name


def test_the_pipelines_are_listed(capfilt: Capfilt) -> None:
    shown = capfilt("pipelines").stdout.splitlines()
    assert [line.split()[0] for line in shown[:-1]] == sorted(shipped_pipelines())
    assert [row["name"] for row in json.loads(capfilt("pipelines", "--json").stdout)] == sorted(
        shipped_pipelines()
    )


def test_a_path_runs_a_python_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    pipeline = load_pipeline(str(file))
    choices = pipeline.choices()
    assert (choices.decoding.top_p, choices.pipeline) == (0.5, str(file))
    assert [stage.name for stage in pipeline.stages(choices)] == ["judge"]


def test_an_unknown_name_is_refused_with_the_names_there_are(capfilt: Capfilt) -> None:
    ended = capfilt("bootstrap", "web", "--out", "run", "--pipeline", "smal")
    assert ended.exit_code == 2
    assert all(name in ended.stderr for name in shipped_pipelines())


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "there is no pipeline file"),
        ("x = 1\n", "lacks a settings class"),
        ("def (:\n", "is not Python"),
        ("class Choices: ...\ndef stages(choices): ...\n", "lacks a settings class"),
    ],
)
def test_a_file_that_is_no_pipeline_is_refused(tmp_path: Path, text: str | None, what: str) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(CapfiltError, match=what):
        load_pipeline(str(file))


def test_a_wheels_pipelines_are_found_beside_the_package(repository: Path, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repository / "capfilt", tmp_path / "capfilt", ignore=ignored)
    shutil.copytree(repository / "pipelines", tmp_path / "capfilt_pipelines", ignore=ignored)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from capfilt.cli.pipelines import load_pipeline\n"
        "print(load_pipeline('small').module.__file__)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ended.stdout.strip() == str(tmp_path / "capfilt_pipelines" / "small.py")


def test_the_default_pipeline_without_models_says_how_to_give_them(capfilt: Capfilt) -> None:
    ended = capfilt("bootstrap", "web", "--clean", "clean", "--out", "run")
    assert ended.exit_code == 2
    for word in ("--captioner", "--filter", "--init", "--pipeline small"):
        assert word in ended.stderr
