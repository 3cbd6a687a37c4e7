"""Two rounds by the command line: killed on their way, looked at, asked by SQL."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from whole_runs import Trained, bootstrap, capfilt, finish, kill_when, lasting, sql, start

from capfilt.draws import seed_of

if TYPE_CHECKING:
    from pathlib import Path

NEXT = "{phases = [{itc = 1.0, itm = 1.0, lm = 1.0, steps = 30, batch_size = 16}], checkpoint_every = 10}"
"""The pre-training between two rounds, as a setting."""


def _words(drawn: Path, out: Path) -> list[str]:
    return bootstrap(drawn, out, "--rounds", 2, next_round=NEXT)


def _both(run: Path) -> list[dict[str, str]]:
    return [lasting(run), lasting(run / "rounds" / "2")]


@pytest.fixture(scope="module")
def two(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two rounds that nobody disturbed; not to be changed."""
    out = tmp_path_factory.mktemp("two") / "run"
    return Trained(out, *finish(*_words(drawn, out)))


@pytest.mark.slow
def test_two_rounds_end_with_both_runs_whole_and_say_how_to_look_at_them(two: Trained) -> None:
    assert two.code == 0, two.err
    stages = ["train_captioner_and_filter", "recaption_and_score", "judge", "export"]
    assert sql(two.path, "SELECT stage, status FROM stages ORDER BY started") == [
        (name, "done") for name in ("train_joint", *stages, "pretrain_next")
    ]
    assert sql(two.path / "rounds" / "2", "SELECT stage, status FROM stages ORDER BY started") == [
        (name, "done") for name in stages
    ]
    assert re.findall(r"^round \d of 2$", two.err, re.MULTILINE) == ["round 1 of 2", "round 2 of 2"]
    assert "round 2, recaption_and_score: done: 6 shards, 90 samples" in two.out
    assert two.out.strip().rpartition("\n")[2] == f"capfilt inspect {two.path}"

    shown = capfilt("inspect", two.path)
    assert shown.last_line == f"capfilt inspect {two.path / 'rounds' / '2'}"
    rounds = json.loads(capfilt("inspect", two.path, "--json").out)["rounds"]
    assert [row["round"] for row in rounds] == [1, 2]
    for row in rounds:
        kept = sql(
            two.path if row["round"] == 1 else two.path / "rounds" / "2",
            "SELECT count(*), count(*) FILTER (WHERE keep) FROM pairs",
        )
        assert kept == [(row["captions"], row["kept"])]
        line = rf"^ *{row['round']} +{row['captions']} +{row['kept']} .*{row['captioner'][:12]}"
        assert re.search(line, shown.out, re.MULTILINE)
    assert capfilt("inspect", two.path / "rounds" / "2").code == 0


@pytest.mark.slow
def test_the_lineage_of_every_caption_of_both_rounds_is_one_query(two: Trained) -> None:
    asked = capfilt(
        "sql",
        two.path,
        "select round, captioner, captioner_ancestors, filter from lineage where source = 'synthetic'",
        "--json",
    )
    rows = json.loads(asked.out)
    assert [sum(row["round"] == number for row in rows) for number in (1, 2)] == [90, 90]
    kinds = "SELECT kind, model FROM models"
    first, second = dict(sql(two.path, kinds)), dict(sql(two.path / "rounds" / "2", kinds))
    joint = dict(sql(two.path, "SELECT path, model FROM models"))[str(two.path / "models" / "joint")]
    assert {(row["round"], row["captioner"], row["filter"]) for row in rows} == {
        (1, first["captioner"], first["filter"]),
        (2, second["captioner"], second["filter"]),
    }
    [told] = {row["captioner_ancestors"] for row in rows if row["round"] == 2}
    assert told == (
        f"joint {second['joint'][:12]} of round 1; captioner {first['captioner'][:12]} of round 1, by data; "
        f"filter {first['filter'][:12]} of round 1, by data; joint {joint[:12]} of round 1, by data"
    )
    seeds = "SELECT DISTINCT seed FROM captions WHERE seed IS NOT NULL"
    assert sql(two.path, seeds) == [(0,)]
    assert sql(two.path / "rounds" / "2", seeds) == [(seed_of("round", 0, 2),)]


@pytest.mark.slow
def test_every_training_has_its_curves_as_a_picture(two: Trained) -> None:
    for run, names in (
        (two.path, ["captioner", "filter", "joint", "next"]),
        (two.path / "rounds" / "2", ["captioner", "filter"]),
    ):
        pictures = sorted((run / "curves").iterdir())
        assert [picture.name for picture in pictures] == [f"{name}.png" for name in names]
        assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.slow
def test_rounds_killed_in_the_next_pretraining_between_rounds_and_after_end_with_the_same_bytes(
    two: Trained, drawn: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    second = run / "rounds" / "2"
    words = _words(drawn, run)
    for moment in (
        lambda: (run / "training" / "next" / "checkpoint.pt").exists(),
        lambda: (run / "provenance" / "next.json").exists(),
        lambda: any((second / "training").glob("*/checkpoint.pt")),
    ):
        kill_when(start(*words), moment)

    code, _, err = finish(*words)

    assert code == 0, err
    assert _both(run) == _both(two.path)
    assert len(lasting(second)) > 6 * 3 + 10
    assert (run / "provenance" / "next.json").read_bytes() == (
        second / "provenance" / "previous.json"
    ).read_bytes()
    assert not list(run.rglob(".partial-*"))
    assert not list(run.rglob("checkpoint.pt"))
