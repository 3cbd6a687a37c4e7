"""The stages as commands of their own, on real pictures: train, recaption, score, and what each says next."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest
from typed_commands import typed

from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.policy import newest_policy
from capfilt.provenance.rundir import RunDir

if TYPE_CHECKING:
    from pathlib import Path

    from typed_commands import Capfilt

pytestmark = pytest.mark.slow  # three trainings, however short

SHORT = ("--pipeline", "demo", "--quiet", "--device", "cpu")
STEPS = ("--set", "captioner_training.phases.0.steps=2", "--set", "filter_training.phases.0.steps=2")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[str, Path]:
    """A captioner and two filters, barely trained."""
    folder = tmp_path_factory.mktemp("models")
    clean = repository / "tests/data/real/clean.tar"
    for kind, name, seed in (("captioner", "captioner", 0), ("filter", "filter", 0), ("filter", "other", 1)):
        ended = typed("train", kind, clean, "--out", folder / name, "--seed", seed, *SHORT, *STEPS)
        assert ended.exit_code == 0, ended.stderr
        assert str(folder / name) in ended.stdout.splitlines()[-1]
    return {name: folder / name for name in ("captioner", "filter", "other")}


@pytest.fixture
def web(repository: Path) -> Path:
    return repository / "tests/data/real/noisy.tar"


def count(run: Path, sql: str) -> int:
    with open_catalog(RunDir(run)) as catalog:
        [(number,)] = catalog.execute(sql).fetchall()
    return int(number)


def test_captions_are_written_then_scored_by_one_filter_and_another(
    capfilt: Capfilt, models: dict[str, Path], web: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("--captioner", models["captioner"], "--out", run, "--candidates", 2, "--quiet", "--json")
    recaptioned = capfilt("recaption", web, *words)
    assert recaptioned.exit_code == 0, recaptioned.stderr
    assert [stage["stage"] for stage in json.loads(recaptioned.stdout)["stages"]] == ["recaption", "judge"]
    images = count(run, "select count(*) from samples where status = 'ok'")
    assert count(run, "select count(*) from captions where source = 'synthetic'") == 2 * images
    captions = count(run, "select count(*) from captions")
    # Nothing was scored, so everything is kept.
    assert count(run, "select count(*) from pairs where keep") == captions
    assert count(run, "select count(*) from scores") == 0

    for number, name in enumerate(("filter", "other"), 1):
        scored = capfilt("score", run, "--filter", models[name], "--quiet")
        assert scored.exit_code == 0, scored.stderr
        assert count(run, "select count(*) from scores") == 2 * captions * number
    # The last line judges by the filter that was added.
    judged = capfilt(*shlex.split(scored.stdout.splitlines()[-1])[1:])
    assert judged.exit_code == 0, judged.stderr
    found = newest_policy(RunDir(run))
    assert found is not None
    assert found[1].filter == json.loads((models["other"] / "capfilt.json").read_text())["weights"]


def test_web_texts_are_scored_in_a_run_of_their_own(
    capfilt: Capfilt, models: dict[str, Path], web: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ended = capfilt("score", web, "--filter", models["filter"], "--out", run, "--quiet")
    assert ended.exit_code == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == f"capfilt judge {run} --itm 0.5"
    assert count(run, "select count(*) from captions where source <> 'web'") == 0
    captions = count(run, "select count(*) from captions")
    assert count(run, "select count(*) from pairs where itm is not null and itc is not null") == captions > 0


def test_scores_have_one_place_to_go(
    capfilt: Capfilt, models: dict[str, Path], web: Path, tmp_path: Path
) -> None:
    nowhere = capfilt("score", web, "--filter", models["filter"])
    assert (nowhere.exit_code, "--out RUN" in nowhere.stderr) == (2, True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    twice = capfilt("score", "run", "--filter", models["filter"], "--out", "other")
    assert (twice.exit_code, "leave out --out" in twice.stderr) == (2, True)


def test_a_model_of_the_other_kind_or_none_is_the_users_error(
    capfilt: Capfilt, models: dict[str, Path], web: Path, tmp_path: Path
) -> None:
    for words in (
        ("recaption", web, "--captioner", models["filter"], "--out", "a"),
        ("recaption", web, "--captioner", "nowhere", "--out", "b"),
        ("score", web, "--filter", models["captioner"], "--out", "c"),
        ("bootstrap", web, "--captioner", models["filter"], "--filter", models["filter"], "--out", "c"),
        ("train", "captioner", web.parent / "nowhere", "--out", "d", "--pipeline", "demo"),
    ):
        ended = capfilt(*words, "--quiet")
        assert ended.exit_code == 2, words
        assert "  fix: " in ended.stderr
    # Nothing is begun that cannot be ended.
    assert not any((tmp_path / out).exists() for out in "abcd")
