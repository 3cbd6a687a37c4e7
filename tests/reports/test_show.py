from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_run import made_run, started_run

from capfilt.provenance.rundir import RunDir, StageRecord, save_stage
from capfilt.reports.show import ASCII_BLOCKS, BLOCKS, histogram, show
from capfilt.reports.summary import summarise
from capfilt.reports.text import terminal

GOLDEN = Path(__file__).parent / "golden"


def shown(run: RunDir, width: int = 100, file: Any = None) -> str:
    file = file or io.StringIO()
    show(summarise(run), terminal(file, width=width))
    return file.getvalue() if isinstance(file, io.StringIO) else ""


@pytest.mark.parametrize("width", [60, 120])
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
    assert b"ITM web        0.00 |  @               @ | 1.00" in pipe.getvalue()


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
    assert "4 in, 4 recorded, in 1 shard" in text
    assert ("Scores" in text) == parts.get("scores", True)
    assert ("nothing was judged yet" in text) == (not parts.get("policy", True))


def test_a_run_that_did_nothing_is_shown(tmp_path: Path) -> None:
    assert "0 in, 0 recorded, in 0 shards" in shown(started_run(tmp_path / "run"))


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
    assert "4 in, 3 recorded, in 1 shard  (these differ: the run is damaged)" in file.getvalue()


def test_bars_are_drawn_by_hand_worked_heights() -> None:
    assert histogram([0, 1, 4, 8]) == " ▁▄█"
    assert histogram([0, 1, 4, 8], ascii_only=True) == " .=@"
    assert histogram([0, 0]) == "  "
    assert histogram([]) == ""


@given(st.lists(st.integers(0, 10**6), max_size=30))
def test_whatever_is_not_empty_is_seen_and_more_is_never_lower(counts: list[int]) -> None:
    for blocks, is_ascii in ((BLOCKS, False), (ASCII_BLOCKS, True)):
        bars = histogram(counts, ascii_only=is_ascii)
        heights = [blocks.index(bar) for bar in bars]
        assert [height == 0 for height in heights] == [count == 0 for count in counts]
        ordered = sorted(zip(counts, heights, strict=True))
        assert [height for _, height in ordered] == sorted(heights)


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
