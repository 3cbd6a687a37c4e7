"""The commands that look at a run and decide on it: inspect, judge, export."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest
from made_run import FILTER, SHARD, made_run, started_run

from capfilt.provenance.catalog import open_catalog
from capfilt.provenance.commit import commit_scores
from capfilt.provenance.policy import policies

if TYPE_CHECKING:
    from pathlib import Path

    from typed_commands import Capfilt

    from capfilt.provenance.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return made_run(tmp_path / "a run")


def test_inspect_ends_with_the_next_command_ready_to_paste(capfilt: Capfilt, run: RunDir) -> None:
    ended = capfilt("inspect", run.path)
    assert ended.exit_code == 0
    assert "policy 1: ITM of at least 0.5" in ended.stdout
    last = ended.stdout.splitlines()[-1]
    assert shlex.split(last) == ["capfilt", "export", str(run.path), "--to", str(run.export)]


def test_inspect_as_json_holds_what_the_page_shows(capfilt: Capfilt, run: RunDir) -> None:
    value = json.loads(capfilt("inspect", run.path, "--json").stdout)
    assert (value["samples"]["in"], value["samples"]["refused"], value["policy"]["policy"]) == (4, 1, 1)
    assert value["next_command"].startswith("capfilt export ")


def test_inspect_compares_with_another_run_and_counts_what_the_stages_cost(
    capfilt: Capfilt, run: RunDir, tmp_path: Path
) -> None:
    other = made_run(tmp_path / "other")
    assert capfilt("judge", other.path, "--itm", "0.75").exit_code == 0
    options = ("--against", other.path, "--price-per-hour", "36")
    value = json.loads(capfilt("inspect", run.path, *options, "--json").stdout)
    assert (value["against"]["judged"], value["against"]["changed"]) == (5, 1)
    assert value["spent"]["cost"] == pytest.approx(0.02)
    said = capfilt("inspect", run.path, *options).stdout
    assert "Against " in said
    assert "0.02 at 36.00 an hour" in said
    assert "\x1b" not in said


def test_inspect_against_what_is_no_run_or_the_run_itself_says_what_to_do(
    capfilt: Capfilt, run: RunDir, tmp_path: Path
) -> None:
    for other, what in ((tmp_path / "nowhere", "is no run"), (run.path, "is the run itself")):
        ended = capfilt("inspect", run.path, "--against", other)
        assert ended.exit_code == 2
        assert what in ended.stderr
        assert "fix:" in ended.stderr


def test_json_is_ascii_so_that_no_text_can_move_the_cursor(capfilt: Capfilt, run: RunDir) -> None:
    shown = capfilt("inspect", run.path, "--json").stdout
    assert shown.isascii()
    assert "\x1b" not in shown


def test_judge_without_a_rule_shows_the_policy_in_force_and_writes_none(
    capfilt: Capfilt, run: RunDir
) -> None:
    value = json.loads(capfilt("judge", run.path, "--json").stdout)
    assert (value["policy"], value["words"]) == (1, "ITM of at least 0.5")
    assert len(policies(run)) == 1


def test_judge_decides_again_and_counts(capfilt: Capfilt, run: RunDir) -> None:
    ended = capfilt("judge", run.path, "--itm", "0.75", "--json")
    value = json.loads(ended.stdout)
    assert value["policy"] == 2
    # By hand: the cat's two texts score 0.9 and 0.8.
    kept = {row["source"]: row["pairs"] for row in value["verdicts"] if row["keep"]}
    assert kept == {"web": 1, "synthetic": 1}
    assert [number for number, _ in policies(run)] == [1, 2]


def test_judge_takes_every_kind_of_rule(capfilt: Capfilt, run: RunDir) -> None:
    for words, expected in (
        (["--itc", "0.3"], "ITC of at least 0.3"),
        (["--fraction", "0.4", "--by", "itc"], "among the best 40% of all scored captions by ITC"),
        (["--itm", "0.5", "--per-image", "1"], "ITM of at least 0.5; at most 1 an image, the best by ITM"),
        (
            ["--itm", "0.5", "--rescue"],
            "ITM of at least 0.5; a synthetic text only where no web text is kept",
        ),
        (["--itm", "auto:recall=0.75"], "ITM of at least 0.6 (auto:recall=0.75"),
    ):
        ended = capfilt("judge", run.path, *words)
        assert ended.exit_code == 0, ended.stderr
        assert expected in ended.stdout


def test_a_rule_out_of_range_is_the_users_error_and_writes_no_policy(capfilt: Capfilt, run: RunDir) -> None:
    for words in (["--itm", "1.5"], ["--fraction", "2"], ["--per-image", "0"], ["--itm", "often"]):
        ended = capfilt("judge", run.path, *words)
        assert ended.exit_code == 2, words
        assert "  fix: " in ended.stderr
    assert len(policies(run)) == 1


def test_judge_by_a_filter_that_never_scored_is_the_users_error(capfilt: Capfilt, run: RunDir) -> None:
    assert capfilt("judge", run.path, "--with-filter", FILTER[:6]).exit_code == 0
    ended = capfilt("judge", run.path, "--with-filter", "abc")
    assert ended.exit_code == 2
    assert FILTER[:12] in ended.stderr


def test_judge_combines_filters_that_scored_the_run(capfilt: Capfilt, run: RunDir) -> None:
    digest = "1a2b3c4d" * 8
    pairs = {pair: 0.9 if key == "cat" else 0.3 for pair, key in _pairs(run)}
    rows = [{"pair_id": p, "filter": digest, "score": "vqa", "value": value} for p, value in pairs.items()]
    commit_scores(run, SHARD, filter_digest=digest, fingerprint="more", scores=rows)

    ended = capfilt("judge", run.path, "--itm", "0.5", "--also", "1a2b:vqa=0.5", "--json")
    value = json.loads(ended.stdout)
    # By hand: of the three with ITM of at least 0.5 the dog's has 0.3 by the other filter.
    assert sum(row["pairs"] for row in value["verdicts"] if row["keep"]) == 2
    assert value["words"] == "ITM of at least 0.5; VQA by filter 1a2b3c4d of at least 0.5"
    assert value["rules"][1]["filter"] == digest

    ended = capfilt("judge", run.path, "--per-image", "1", "--by", "itm+1a2b:vqa")
    assert "the best by ITM + VQA by filter 1a2b3c4d" in ended.stdout
    for words in (
        ["--also", "1a2b:vqa"],
        ["--also", "ffff:vqa=0.5"],
        ["--also", "1a2b:itm=0.5"],
        ["--vqa", "0.5"],
    ):
        refused = capfilt("judge", run.path, *words)
        assert refused.exit_code == 2, words
        assert "  fix: " in refused.stderr
    assert capfilt("judge", run.path, "--by", "beauty").exit_code == 2
    alone = capfilt("judge", run.path, "--with-filter", "1a2b", "--vqa", "0.9")
    assert alone.exit_code == 0, alone.stderr
    assert len(policies(run)) == 4


def _pairs(run: RunDir) -> list[tuple[str, str]]:
    with open_catalog(run) as catalog:
        return catalog.execute("SELECT pair_id, key FROM pairs").fetchall()


def test_judge_on_a_run_that_nobody_judged_says_how_to(capfilt: Capfilt, tmp_path: Path) -> None:
    made_run(tmp_path / "run", policy=False)
    ended = capfilt("judge", "run")
    assert ended.exit_code == 0
    assert ended.stdout.splitlines() == [
        "no policy is in force: nothing was judged yet",
        "capfilt judge run --itm 0.5",
    ]


def test_judge_on_a_run_that_holds_no_scores_goes_on_with_the_run(capfilt: Capfilt, tmp_path: Path) -> None:
    started_run(tmp_path / "run")
    assert capfilt("judge", "run").stdout.splitlines()[-1] == "capfilt bootstrap 'my web' --out run"
    assert json.loads(capfilt("judge", "run", "--json").stdout)["policy"] is None


def test_judge_names_the_mend_where_the_policy_reads_a_weak_score(capfilt: Capfilt, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", weak=("itm",))
    ended = capfilt("judge", run.path)
    assert "weak filter: ITM" in ended.stdout
    mend = ended.stdout.splitlines()[-1]
    assert mend == f"capfilt judge {run.path} --itc auto:recall=0.85"
    # The mend is typed, and what follows it exports.
    mended = capfilt(*shlex.split(mend)[1:])
    assert mended.stdout.splitlines()[-1] == f"capfilt export {run.path} --to {run.export}"


def test_an_export_by_a_weak_score_is_refused_with_the_mend(capfilt: Capfilt, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", weak=("itm",))
    ended = capfilt("export", run.path, "--to", "cleaned")
    assert ended.exit_code == 2
    assert "nothing is exported" in ended.stderr
    assert "--accept-weak-filter" in ended.stderr
    assert not (tmp_path / "cleaned").exists()


def test_an_export_of_a_run_that_nobody_judged_is_refused(capfilt: Capfilt, tmp_path: Path) -> None:
    made_run(tmp_path / "run", policy=False)
    ended = capfilt("export", "run")
    assert ended.exit_code == 2
    assert "capfilt judge run --itm 0.5" in ended.stderr
