from __future__ import annotations

import io
import re
import sys
from typing import TYPE_CHECKING

import pytest
from escape_sequences import KITTY, SIXEL, from_kitty, from_sixel
from made_terminal import CELL, told
from pictured_run import COLOURS, pictured_run, write_shard

from capfilt.reports.inline_images import Box
from capfilt.reports.terminal_pictures import box_of, protocol_of

if TYPE_CHECKING:
    from pathlib import Path

_WHICH = """
import os, sys, termios
from capfilt.reports.terminal_pictures import protocol_of
before = termios.tcgetattr(0)
found = protocol_of(sys.stdout, sys.stdin, os.environ)
print("found", found, termios.tcgetattr(0) == before)
"""
_SIXELS, _NO_SIXELS = b"\x1b[?62;1;4;22c", b"\x1b[?64;1;2;40;44c"


def which(environment: dict[str, str], answer: bytes = b"", **size: int) -> str:
    said = told(["-c", _WHICH], environment, answer=answer, **size)
    found = re.search(r"found (\w+) (\w+)", said)
    assert found is not None, said
    assert found[2] == "True"  # keys are read and shown as before
    return found[1]


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "dumb", "KITTY_WINDOW_ID": "1"}, "None"),
        ({"TERM": "", "KITTY_WINDOW_ID": "1"}, "None"),
        ({"TERM": "unknown", "TERM_PROGRAM": "iTerm.app"}, "None"),
    ],
    ids=str,
)
def test_terminals_are_known_by_their_names(environment: dict[str, str], found: str) -> None:
    assert which(environment) == found


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (_SIXELS, "sixel"),
        (_NO_SIXELS, "None"),
        (b"\x1b[?4c", "None"),
        (b"typed\x1b[?62;4c", "sixel"),
        (b"", "None"),
    ],
    ids=str,
)
def test_a_terminal_of_another_name_is_asked_and_believed(answer: bytes, found: str) -> None:
    assert which({"TERM": "xterm-256color"}, answer) == found


def test_what_stands_around_a_multiplexer_says_nothing_of_it() -> None:
    outside = {"TERM": "tmux-256color", "TMUX": "/tmp/tmux", "KITTY_WINDOW_ID": "1", "TERM_PROGRAM": "tmux"}
    assert which(outside, _NO_SIXELS) == "None"
    assert which(outside, _SIXELS) == "sixel"


def test_a_terminal_of_few_lines_keeps_them_for_text() -> None:
    assert which({"TERM": "xterm-kitty"}, rows=8) == "None"


def test_a_file_a_pipe_and_a_closed_stream_take_no_pictures(tmp_path: Path) -> None:
    everything = {"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1", "TERM_PROGRAM": "iTerm.app"}
    closed = io.StringIO()
    closed.close()
    with (tmp_path / "out").open("w+") as file:
        for out in (file, io.StringIO(), closed):
            assert protocol_of(out, file, everything) is None
        assert box_of(file, 12, 5) == Box(12, 5, 8, 16)
    assert (tmp_path / "out").read_text() == ""


# -- the whole command


def inspect(run: Path, environment: dict[str, str], *options: str, answer: bytes = b"") -> str:
    command = ["-m", "capfilt", "inspect", str(run), *options]
    return told(command, environment, answer=answer)


def test_a_terminal_with_sixels_sees_every_example_beside_its_texts(tmp_path: Path) -> None:
    said = inspect(pictured_run(tmp_path).path, {"TERM": "xterm-256color"}, answer=_SIXELS)
    drawn = [from_sixel(found.group()) for found in SIXEL.finditer(said)]
    seen = sorted(tuple(map(int, picture[5, 5])) for picture in drawn)
    for colour, expected in zip(seen, sorted(COLOURS.values()), strict=True):
        assert max(abs(a - b) for a, b in zip(colour, expected, strict=True)) <= 2
    # In cells of the size that the terminal told: the square one is as high as its room of five rows.
    assert max(picture.shape[0] for picture in drawn) == 5 * CELL[1]
    assert all(picture.shape[1] <= 12 * CELL[0] for picture in drawn)


def test_kitty_sees_them_too_and_the_page_between_them_is_the_same(tmp_path: Path) -> None:
    run = pictured_run(tmp_path).path
    said = inspect(run, {"TERM": "xterm-kitty"})
    parts = [from_kitty(found.group()) for found in KITTY.finditer(said)]
    assert sorted(picture.getpixel((0, 0)) for _, picture in parts) == sorted(COLOURS.values())
    words = re.compile(r"\x1b_G.*?\x1b\\|\x1b[78]|\x1b\[[\d;]*[A-Za-z]", re.DOTALL)
    plain = inspect(run, {"TERM": "xterm-kitty"}, "--no-pictures")
    # Beside a picture scores and place have a line each; else they have one, with a comma between.
    shown, bare = (sorted(words.sub("", text).replace(",", "").split()) for text in (said, plain))
    assert shown == bare
    assert not KITTY.search(plain)


def test_a_terminal_says_where_a_shard_was_replaced_by_another(tmp_path: Path) -> None:
    run, tar = pictured_run(tmp_path).path, tmp_path / "web" / "00000.tar"
    before = tar.stat().st_size
    write_shard(tar, {key: (red, blue, green) for key, (red, green, blue) in COLOURS.items()})
    assert tar.stat().st_size == before
    said = inspect(run, {"TERM": "xterm-kitty"})
    assert not KITTY.search(said)
    assert said.count("no picture: its shard changed since it was judged") == len(COLOURS)


def test_a_dumb_terminal_and_a_pipe_are_given_plain_text(tmp_path: Path) -> None:
    import subprocess

    run = pictured_run(tmp_path).path
    assert "\x1b" not in inspect(run, {"TERM": "dumb", "KITTY_WINDOW_ID": "1"})
    piped = subprocess.run(
        [sys.executable, "-m", "capfilt", "inspect", str(run)],
        capture_output=True,
        check=True,
        env={
            "TERM": "xterm-kitty",
            "KITTY_WINDOW_ID": "1",
            "PYTHONPATH": str(_repository()),
            "PYTHONUTF8": "1",
        },
    )
    assert b"\x1b" not in piped.stdout
    assert '"a cat"' in piped.stdout.decode()


def _repository() -> Path:
    from pathlib import Path

    return Path(__file__).parents[2]
