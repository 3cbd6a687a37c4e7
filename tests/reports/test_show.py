from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from made_run import FILTER, made_run, started_run

from capfilt.provenance.policy import AtLeast, Policy, write_policy
from capfilt.provenance.rundir import RunDir, StageRecord, save_stage
from capfilt.reports.show import show
from capfilt.reports.summary import summarise
from capfilt.reports.text import terminal

GOLDEN = Path(__file__).parent / "golden"


def shown(run: RunDir, width: int = 100, file: Any = None) -> str:
    file = file or io.StringIO()
    show(summarise(run), terminal(file, width=width))
    return file.getvalue() if isinstance(file, io.StringIO) else ""


def lines_of(text: str, beginning: str) -> list[str]:
    """Lines that begin so, their columns one blank apart and without the bar at the end."""
    lines = [" ".join(line.rstrip("█▏▎▍▌▋▊▉ ").split()) for line in text.splitlines()]
    return [line for line in lines if line.startswith(beginning)]


@pytest.mark.parametrize("width", [60, 140])
def test_a_small_run_reads_like_this(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    # The numbers are worked out by hand from the rows of made_run; the page was read before it was kept.
    monkeypatch.chdir(tmp_path)
    lines = shown(made_run(Path("run"), weak=("itm",)), width).strip("\n").split("\n")
    expected = (GOLDEN / f"inspect_{width}.txt").read_text(encoding="utf-8").splitlines()
    assert [line.rstrip() for line in lines] == expected


@pytest.mark.parametrize("width", [60, 80])
def test_no_line_but_a_path_or_a_command_is_wider_than_the_terminal(tmp_path: Path, width: int) -> None:
    long = [line for line in shown(made_run(tmp_path / "run"), width).splitlines() if len(line) > width]
    assert [line for line in long if "capfilt " not in line and "models" not in line] == []


def test_a_pipe_that_knows_ascii_alone_gets_ascii(tmp_path: Path) -> None:
    pipe = io.BytesIO()
    file = io.TextIOWrapper(pipe, encoding="ascii", write_through=True)  # anything else is an error
    shown(made_run(tmp_path / "run"), file=file)
    # By hand: 0.1 lies in the third of twenty bars, 0.9 in the nineteenth, the threshold between ten and ten.
    assert b"ITM web        0.00 |  @       !        @ | 1.00 50.0% pass" in pipe.getvalue()


def test_nothing_of_a_hostile_text_reaches_the_terminal_unescaped(tmp_path: Path) -> None:
    text = shown(made_run(tmp_path / "run"))
    assert "\\x1b]0;owned\\x07" in text
    assert "[red]loud[/red]" in text
    assert all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.parametrize(
    "parts",
    [{"captioner": False}, {"scores": False}, {"policy": False}, {"captioner": False, "scores": False}],
    ids=str,
)
def test_a_run_that_lacks_a_part_is_shown_all_the_same(tmp_path: Path, parts: dict[str, bool]) -> None:
    text = shown(made_run(tmp_path / "run", **parts))
    assert lines_of(text, "in 1 shard") == ["in 1 shard 4 100.0%"]
    assert ("Scores" in text) == parts.get("scores", True)
    assert ("nothing was judged yet" in text) == (not parts.get("policy", True))


def test_a_run_that_did_nothing_is_shown(tmp_path: Path) -> None:
    assert lines_of(shown(started_run(tmp_path / "run")), "in 0 shards") == ["in 0 shards 0"]


def test_an_uncalibrated_filter_is_called_so(tmp_path: Path) -> None:
    assert "filter ffffffffffff: uncalibrated" in shown(made_run(tmp_path / "run", calibrated=False))


def test_a_stage_that_was_withheld_says_why_and_only_for_the_newest_start(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    for start, why in ((1, "an older reason"), (2, "the policy reads ITM")):
        record = StageRecord("export", start, started=300.0 * start)
        save_stage(run, record.finished("withheld", ended=301.0 * start, detail=why))
    text = shown(run)
    assert "export withheld: the policy reads ITM" in text
    assert "an older reason" not in text


def test_a_run_that_was_started_often_shows_its_newest_stages(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    for start in range(2, 30):
        save_stage(
            run,
            StageRecord(f"judge_{start}", start, started=float(start)).finished("done", ended=start + 1.0),
        )
    text = shown(run)
    assert "judge 29" in text
    assert "judge 17" not in text
    assert "and 17 before these" in text


def test_a_run_that_lost_samples_says_so(tmp_path: Path) -> None:
    summary = summarise(made_run(tmp_path / "run"))
    summary["samples"]["rows"] = 3
    file = io.StringIO()
    show(summary, terminal(file, width=100))
    assert "4 in, 3 recorded: these differ, so the run is damaged" in file.getvalue()


def test_rounds_stand_above_the_page_of_the_first_one(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    alone = shown(run)
    assert "Rounds" not in alone
    made_run(run.round(2).path)

    title, heads, first, second, rest, page = shown(run).lstrip("\n").split("\n", 5)

    assert (title, heads.split()[:5]) == ("Rounds", ["round", "texts", "kept", "share", "exported"])
    for number, line in ((1, first), (2, second)):
        assert line.split() == [str(number), "5", "3", "60.0%", "c" * 12, "f" * 12]
    assert rest == "what follows is round 1; the others are runs of their own"
    assert page.strip() == alone.strip()


def numbers_of(text: str) -> list[str]:
    return [word.strip(",;:()") for word in text.split()]


@pytest.mark.parametrize("width", [60, 140])
def test_the_page_shows_what_json_holds(tmp_path: Path, width: int) -> None:
    run, other = made_run(tmp_path / "run"), made_run(tmp_path / "other")
    write_policy(other, Policy((AtLeast("itm", 0.75),), FILTER))
    summary = summarise(run, against=other, price_per_hour=36.0)
    file = io.StringIO()
    show(json.loads(json.dumps(summary)), terminal(file, width=width))
    text = file.getvalue()
    for row in summary["verdicts"]:
        words = "kept" if row["keep"] else row["reason"].replace("_", " ")
        assert any(words in line and f" {row['pairs']} " in line for line in lines_of(text, row["source"]))
    digits = 3 if width == 140 else 2
    for row in summary["scores"]:
        [line] = [
            line for line in lines_of(text, f"{row['score'].upper()} {row['source']}") if "|" not in line[:22]
        ][:1]
        for name in ("p10", "p25", "p50", "p75", "p90"):
            assert f"{row[name]:.{digits}f}" in numbers_of(line)
    for row in summary["texts"]:
        assert lines_of(text, f"{row['source']} {row['captions']} {row['distinct']} {row['words_p10']}")
    for source in ("web", "synthetic"):
        shares = [f"{row['share']:.1%}" for row in summary["diversity"] if row["source"] == source]
        assert lines_of(text, f"{source} {' '.join(shares)}")
    for row in summary["calibration"]:
        assert f"{row['auroc']:.3f}" in numbers_of(text)
    for row in summary["stages"]:
        line = " ".join(lines_of(text, "recaption"))
        assert f"{row['per_second']:.3g}" in line
        assert f"{row['cost']:.2f}" in line
    assert f"{summary['spent']['cost_per_million_images']:,.2f} a million images" in text
    assert "1 of 5 texts judged by both, 20.0%, has another verdict" in " ".join(text.split())
    for row in summary["examples"]:
        assert f"{row['shard']}/{row['key']}" in text


@pytest.mark.parametrize("width", [60, 140])
def test_whatever_strangers_wrote_is_shown_as_text_on_lines_of_the_terminals_width(
    tmp_path: Path, width: int
) -> None:
    summary = summarise(made_run(tmp_path / "run"), against=made_run(tmp_path / "other"))
    hostile = "[red]x[/red]\x1b]0;owned\x07\x00\u202e\u2028<script>" + "y" * 100_000
    plague(summary, hostile)
    file = io.StringIO()
    show(summary, terminal(file, width=width))
    text = file.getvalue()
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "[red]x[/red]\\x1b]0;owned\\x07\\x00\\u202e\\u2028<script>" in "".join(text.split())
    assert max(len(line) for line in text.splitlines()) <= width
    assert len(text) < 40_000


def plague(value: Any, hostile: str) -> None:
    """Put a hostile text wherever a shard can put one: texts, names of shards and keys, whatever depth."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name in ("text", "text_there", "shard", "key"):
                value[name] = hostile
            else:
                plague(part, hostile)
    elif isinstance(value, list):
        for part in value:
            plague(part, hostile)


def test_what_went_wrong_with_texts_is_told_with_examples(tmp_path: Path) -> None:
    summary = summarise(made_run(tmp_path / "run"))
    example = {"pair_id": "0" * 32, "shard": "s", "key": "k", "text": "a red red red cat"}
    summary["degenerate"] = [{"source": "synthetic", "kind": "loop", "captions": 2, "examples": [example]}]
    file = io.StringIO()
    show(summary, terminal(file, width=100))
    # Two of the three synthetic texts.
    assert 'loop: 2 synthetic texts, 66.7%\n    "a red red red cat"\n' in file.getvalue()
    assert "no synthetic text is empty" not in file.getvalue()


def test_scores_that_some_texts_lack_are_said_to_be_lacking(tmp_path: Path) -> None:
    summary = summarise(made_run(tmp_path / "run"))
    summary["scores"][0]["unscored"] = 1
    file = io.StringIO()
    show(summary, terminal(file, width=100))
    assert "1 web text without ITM\n" in file.getvalue()


def test_an_export_by_an_older_policy_is_not_taken_for_that_of_the_newest(tmp_path: Path) -> None:
    summary = summarise(made_run(tmp_path / "run"))
    exported = {"samples": 2, "shards": 1, "bytes": 9, "policy": "ITM of at least 0.1", "is_current": False}
    file = io.StringIO()
    show({**summary, "exported": exported}, terminal(file, width=100))
    assert lines_of(file.getvalue(), "exported, 1 shard") == ["exported, 1 shard 2 50.0%"]
    assert "exported by another policy than that in force: ITM of at least 0.1" in file.getvalue()


def test_a_terminal_with_colours_has_kept_in_green_and_dropped_in_red(tmp_path: Path) -> None:
    from rich.console import Console

    file = io.StringIO()
    console = Console(
        file=file, width=140, force_terminal=True, color_system="standard", markup=False, highlight=False
    )
    show(summarise(made_run(tmp_path / "run")), console)
    assert '\x1b[32m"a cat on a mat"\x1b[0m' in file.getvalue()
    assert '\x1b[31m"IMG_0042.JPG"\x1b[0m' in file.getvalue()
