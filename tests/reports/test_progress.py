from __future__ import annotations

import io
import sys

import pytest
from made_run import HOSTILE
from rich.console import Console

from capfilt.reports.progress import (
    BarProgress,
    PlainProgress,
    QuietProgress,
    shown_progress,
)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain() -> tuple[PlainProgress, io.StringIO, Clock]:
    file, clock = io.StringIO(), Clock()
    return PlainProgress(file, clock=clock), file, clock


def test_without_a_terminal_a_task_has_a_line_at_its_begin_and_its_end() -> None:
    progress, file, clock = plain()
    progress.begin("recaption", "images", 200)
    for _ in range(5):
        clock.now += 1
        progress.update("recaption", int(clock.now - 1000) * 20, 200)
    progress.end("recaption")
    assert file.getvalue().splitlines() == [
        "recaption: 200 images ...",
        "recaption: done, 100 images in 5 s, 20 images/s",
    ]


def test_plain_lines_about_work_under_way_are_ten_seconds_apart() -> None:
    progress, file, clock = plain()
    progress.begin("score", "images", 1000)
    for second in range(1, 36):
        clock.now += 1
        progress.update("score", second * 10)
    assert file.getvalue().splitlines() == [
        "score: 1,000 images ...",
        "score: 100/1,000 images, 10 images/s, 1 min 30 s left",
        "score: 200/1,000 images, 10 images/s, 1 min 20 s left",
        "score: 300/1,000 images, 10 images/s, 1 min 10 s left",
    ]


def test_tasks_side_by_side_share_a_line() -> None:
    progress, file, clock = plain()
    progress.begin("train captioner", "steps")
    progress.begin("train filter", "steps")
    for step in (0, 40):
        progress.update("train captioner", step, 100)
        progress.update("train filter", step // 2, 50)
        clock.now += 20
    progress.update("train filter", 40, 50)
    assert file.getvalue().splitlines()[-1].split("; ") == [
        "train captioner: 40/100 steps, 1 steps/s, 1 min 0 s left",
        "train filter: 40/50 steps, 1 steps/s, 10 s left",
    ]


def test_a_start_that_resumes_counts_only_what_it_did_itself() -> None:
    progress, file, clock = plain()
    progress.begin("train filter", "steps")
    progress.update("train filter", 900, 1000)
    clock.now += 10
    progress.update("train filter", 910, 1000)
    progress.end("train filter")
    assert file.getvalue().splitlines()[1:] == [
        "train filter: 910/1,000 steps, 1 steps/s, 1 min 30 s left",
        "train filter: done, 910 steps in 10 s, 1 steps/s",
    ]


def test_a_sentence_that_stays_is_made_safe() -> None:
    progress, file, _ = plain()
    progress.say(HOSTILE)
    assert "\x1b" not in file.getvalue()
    assert file.getvalue().count("\n") == 1


def test_in_a_terminal_bars_show_count_rate_and_time_left() -> None:
    file, clock = Terminal(), Clock()
    console = Console(file=file, force_terminal=True, width=100, markup=False, highlight=False)
    with BarProgress(console, clock=clock) as progress:
        progress.begin("train captioner", "steps")
        progress.begin("train filter", "steps", 50)
        progress.update("train captioner", 0, 100)
        clock.now += 10
        progress.update("train captioner", 40, 100)
        progress.say("[bold]held out[/bold]: 3 pairs")
        progress.end("train filter")
    shown = file.getvalue()
    assert "40/100 steps, 4 steps/s, 15 s left" in shown
    assert "0 steps in 10 s" in shown
    assert "[bold]held out[/bold]: 3 pairs" in shown
    assert shown.endswith("\x1b[?25h")  # the cursor is shown again


def test_the_terminal_is_put_right_after_an_error() -> None:
    file = Terminal()
    progress = BarProgress(Console(file=file, force_terminal=True, width=80))
    with pytest.raises(KeyError), progress:
        progress.update("a task that never began", 1)
    assert file.getvalue().endswith("\x1b[?25h")


def test_the_form_follows_the_wish_and_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for stream, quiet, form in (
        (io.StringIO(), True, QuietProgress),
        (io.StringIO(), False, PlainProgress),
        (Terminal(), False, BarProgress),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        with shown_progress(quiet=quiet) as progress:
            assert type(progress) is form


def test_quiet_means_not_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress(quiet=True) as progress:
        progress.begin("x", "steps", 3)
        progress.update("x", 3)
        progress.say("something")
        progress.end("x")
    assert capsys.readouterr() == ("", "")
