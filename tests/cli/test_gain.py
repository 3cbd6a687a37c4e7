"""`capfilt evaluate gain` as it is typed, by processes of this machine."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# The drawn world of the examples, runs with random models, and a run that is made by hand.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "stages"))

import made_run
import scenes
import world

if TYPE_CHECKING:
    from typed_commands import Capfilt

STEPS = {"batch_size": 6, "learning_rate": 1e-3, "steps": 4}
RECIPE: dict[str, Any] = {
    "model": world.TINY.model_dump(),
    "next_round": {"phases": [{"itc": 1.0, "itm": 1.0, "lm": 1.0, **STEPS}]},
    "captioner_training": {"phases": [{"lm": 1.0, **STEPS}]},
    "filter_training": {"phases": [{"itc": 1.0, "itm": 1.0, **STEPS}]},
    "judge": {"itm": "0.5"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    scenes.make(folder, seed=6, clean=20, web=16)
    scenes.make(folder / "other", seed=7, clean=8, web=0)
    (folder / "other" / "clean").rename(folder / "test")
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return world.run(folder / "run", data / "web", world.bundles(folder / "bundles"), **RECIPE).run.path


def words(run: Path, data: Path, *more: object) -> list[object]:
    pairs = ["--clean", data / "clean", "--test", data / "test"]
    return ["evaluate", "gain", run, *pairs, "--device", "cpu", "--workers", 1, *more]


def strictly(text: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def test_two_arms_are_compared_from_the_command_line(capfilt: Capfilt, run: Path, data: Path) -> None:
    asked = words(run, data, "--arms", "C+F,none", "--seeds", 1, "--steps", 2, "--looks", 1, "--top-k", 3)

    ended = capfilt(*asked)

    assert ended.exit_code == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == "as pre-trained (zero-shot)"
    assert "after fine-tuning" in lines
    assert [line.split()[0] for line in lines[2:4]] == ["none", "C+F"]
    assert max(map(len, lines[:5])) <= 80
    [missing] = [line for line in lines if line.startswith("not run: ")]
    assert missing == "not run: F with seed 0; C with seed 0; repeated with seed 0"
    assert lines[-1].startswith("figures: ")
    assert (run / "gain" / "gain.png").read_bytes().startswith(b"\x89PNG")
    results = {path: path.read_bytes() for path in (run / "gain").glob("*/result.json")}
    assert len(results) == 2
    # Two steps, and not the run's four.
    value = strictly((run / "gain" / "gain.json").read_text())
    assert {row["step"] for row in value["rows"]} == {2}

    again = capfilt(*asked, "--json", "--quiet")

    assert again.exit_code == 0, again.stderr
    assert again.stderr == ""
    assert strictly(again.stdout) == value
    assert {path: path.read_bytes() for path in results} == results


def refused(ended: Any, what: str, fix: str) -> None:
    assert ended.exit_code == 2
    assert what in ended.stderr
    assert fix in ended.stderr


@pytest.mark.parametrize(
    ("arms", "what"), [("none,CF", "there is no arm CF"), ("", "--arms names no arm"), ("c", "no arm c")]
)
def test_an_unknown_arm_is_refused_with_those_there_are(
    capfilt: Capfilt, run: Path, data: Path, arms: str, what: str
) -> None:
    refused(capfilt(*words(run, data, "--arms", arms)), what, "choose among none,F,C,C+F,repeated")


def test_clean_pairs_are_no_test_of_themselves(capfilt: Capfilt, run: Path, data: Path) -> None:
    ended = capfilt("evaluate", "gain", run, "--clean", data / "clean", "--test", data / "clean")
    refused(ended, "both trained on and tested on", "--test")


def test_what_is_no_run_is_refused(capfilt: Capfilt, data: Path) -> None:
    refused(capfilt(*words(Path("nowhere"), data)), "nowhere", "fix")


@pytest.mark.parametrize(
    ("lacks", "what"),
    [({"policy": False}, "has no policy"), ({"captioner": False}, "holds no synthetic captions")],
)
def test_a_run_without_verdicts_or_captions_is_refused(
    capfilt: Capfilt, data: Path, tmp_path: Path, lacks: dict[str, bool], what: str
) -> None:
    made = made_run.made_run(tmp_path / "made", **lacks)  # type: ignore[arg-type]
    record = json.loads(made.run_file.read_text())
    record["settings"] = world.settings({"captioner": Path("c"), "filter": Path("f")}, **RECIPE).model_dump(
        mode="json"
    )
    made.run_file.write_text(json.dumps(record))
    refused(capfilt(*words(made.path, data)), what, "capfilt ")


def test_a_run_that_says_nothing_of_a_pre_training_is_told_how_to(
    capfilt: Capfilt, data: Path, run: Path
) -> None:
    shutil.copytree(run, "copy", ignore=lambda _, names: {"gain"} & set(names))
    file = Path("copy/run.json")
    record = json.loads(file.read_text())
    record["settings"]["next_round"] = None
    file.write_text(json.dumps(record))
    refused(capfilt(*words(Path("copy"), data)), "says nothing of a pre-training", "--config")
