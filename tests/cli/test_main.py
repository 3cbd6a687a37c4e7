from __future__ import annotations

import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.main import get_command

import capfilt
from capfilt.cli.main import app

if TYPE_CHECKING:
    from pathlib import Path

    from typed_commands import Capfilt


def commands(group: Any, before: str = "") -> dict[str, Any]:
    """Return every command by what is typed for it: those of a group by two words."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        is_group = hasattr(command, "commands")
        found |= commands(command, f"{before}{name} ") if is_group else {f"{before}{name}": command}
    return found


COMMANDS = commands(get_command(app))


def examples(name: str) -> list[list[str]]:
    """Return the words of each example in a command's help."""
    help_text = COMMANDS[name].help or ""
    lines = [line.strip() for line in help_text.splitlines() if line.strip().startswith("Example: ")]
    return [shlex.split(line.removeprefix("Example: ")) for line in lines]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_in_its_help_that_it_understands(name: str, capfilt: Capfilt) -> None:
    shown = capfilt(*name.split(), "--help")
    assert shown.exit_code == 0
    assert "Example: capfilt " in shown.stdout
    assert examples(name)
    for words in examples(name):
        typed = ["capfilt", *name.split()]
        assert words[: len(typed)] == typed
        COMMANDS[name].make_context(name, words[len(typed) :])  # a word it does not know is an error


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    assert [option.name for option in COMMANDS[name].params if not getattr(option, "help", None)] == []


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"sql", "browse"}))
def test_every_command_reports_as_json_when_asked(name: str) -> None:
    assert "--json" in [word for option in COMMANDS[name].params for word in option.opts]


def test_the_help_of_the_program_lists_the_commands_in_the_order_of_the_work(capfilt: Capfilt) -> None:
    shown = capfilt("--help").stdout
    order = ("bootstrap", "inspect", "judge", "export", "sql", "train", "recaption", "score")
    places = [shown.index(f"│ {name} ") for name in order]
    assert places == sorted(places)


def test_the_version_is_that_of_the_package(capfilt: Capfilt) -> None:
    import capfilt as package

    assert capfilt("--version").stdout == f"capfilt {package.__version__}\n"


def test_a_word_it_does_not_know_is_the_users_error(capfilt: Capfilt) -> None:
    assert capfilt("captionate").exit_code == 2
    assert capfilt("judge", "run", "--itn", "0.5").exit_code == 2


def test_what_the_user_can_mend_is_two_lines_and_exit_2(capfilt: Capfilt, tmp_path: Path) -> None:
    ended = capfilt("inspect", tmp_path / "nowhere")
    assert ended.exit_code == 2
    assert ended.stdout == ""
    what, fix = ended.stderr.splitlines()
    assert what.startswith("error: ")
    assert "is no run: there is no such folder" in what
    assert fix.startswith("  fix: make a run with `capfilt bootstrap ")


def pipeline(folder: Path, body: str) -> Path:
    """Write a pipeline whose `stages` does as told."""
    file = folder / "mine.py"
    file.write_text(
        '"""A pipeline of a user."""\n'
        "from capfilt.errors import CapfiltError, RunFailedError\n"
        "from capfilt.settings import Bootstrap\n"
        "class Choices(Bootstrap):\n    pass\n"
        f"def stages(choices):\n    {body}\n"
    )
    return file


def test_work_that_fails_ends_with_exit_1(capfilt: Capfilt, tmp_path: Path) -> None:
    file = pipeline(tmp_path, "raise RunFailedError('the disk is full', fix='free some space')")
    ended = capfilt("bootstrap", "web", "--out", "run", "--pipeline", file)
    assert (ended.exit_code, ended.stderr) == (1, "error: the disk is full\n  fix: free some space\n")


def test_a_stop_by_hand_ends_with_exit_130_and_the_command_to_go_on_with(
    capfilt: Capfilt, tmp_path: Path
) -> None:
    file = pipeline(tmp_path, "raise KeyboardInterrupt")
    ended = capfilt("bootstrap", "my web", "--out", "run", "--pipeline", file)
    assert ended.exit_code == 130
    assert ended.stderr.splitlines()[-1] == f"capfilt bootstrap 'my web' --out run --pipeline {file}"


def test_a_defect_of_ours_shows_its_traceback(capfilt: Capfilt, tmp_path: Path) -> None:
    ended = capfilt("bootstrap", "web", "--out", "run", "--pipeline", pipeline(tmp_path, "return 1 / 0"))
    assert ended.exit_code == 1
    assert isinstance(ended.exception, ZeroDivisionError)


def test_an_error_that_quotes_a_strangers_file_cannot_obey_it(capfilt: Capfilt, tmp_path: Path) -> None:
    body = "raise CapfiltError('bad name \\x1b[2J[red]x[/red]\\n    second line \\u202e', fix='rename')"
    ended = capfilt("bootstrap", "web", "--out", "run", "--pipeline", pipeline(tmp_path, body))
    assert ended.stderr == ("error: bad name \\x1b[2J[red]x[/red]\n    second line \\u202e\n  fix: rename\n")


def test_python_m_capfilt_is_capfilt() -> None:
    command = [sys.executable, "-m", "capfilt", "--version"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout == f"capfilt {capfilt.__version__}\n"


def test_a_reader_that_leaves_early_is_no_defect() -> None:
    command = f"{shlex.quote(sys.executable)} -m capfilt settings --json | head -1"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("[\n", "")
