"""What is shipped agrees with what is said of it, and speaks of the project alone."""

from __future__ import annotations

import re
import subprocess
import tomllib
from typing import TYPE_CHECKING

import pytest

import capfilt

if TYPE_CHECKING:
    from pathlib import Path

FOREIGN = {
    "a path of one machine": re.compile(r"(?<![\w.~-])/(?:work|root)(?:/|\b)"),
    "a package registry's host": re.compile(
        r"\b(?:pypi\.(?:org|io)|pythonhosted\.org|npmjs\.(?:org|com)|crates\.io|conda\.anaconda\.org)\b"
    ),
    "the number of an issue": re.compile(r"\bissue #?\d+\b", re.IGNORECASE),
}


def foreign(text: str) -> list[tuple[int, str]]:
    """Return (line, what) for everything in the text that does not belong to the project."""
    lines = enumerate(text.splitlines(), 1)
    return [(number, what) for number, line in lines for what, trace in FOREIGN.items() if trace.search(line)]


def test_the_version_is_the_newest_entry_of_the_changelog(repository: Path) -> None:
    entries = re.findall(
        r"^## \[?(\d+\.\d+\.\d+\S*?)\]?(?:\s|$)", (repository / "CHANGELOG.md").read_text(), re.M
    )
    assert entries[0] == capfilt.__version__


def test_files_speak_of_the_project_alone(repository: Path) -> None:
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the project is not known")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=True, text=True
    ).stdout.split("\0")
    found = []
    for name in filter(None, tracked):
        try:
            text = (repository / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # a picture, a tar; a file about to be removed
            continue
        found += [f"{name}:{line}: {what}" for line, what in foreign(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "see " + "/".join(("", "work", "main")),
        "open('" + "/".join(("", "root", ".cache")) + "')",
        "https://" + ".".join(("pypi", "org")) + "/simple",
        "as asked in " + "issue" + " 12",
    ],
)
def test_a_planted_trace_is_found(text: str) -> None:
    assert [line for line, _ in foreign(f"first\n{text}\nlast")] == [2]


@pytest.mark.parametrize(
    "text", ["frame/work/flow", "../work/notes", "the issue at hand", "chroot/ and /roots"]
)
def test_ordinary_words_are_left_alone(text: str) -> None:
    assert foreign(text) == []


def test_every_pipeline_is_shorter_than_a_hundred_lines(repository: Path) -> None:
    lengths = {
        file.name: len(file.read_text().splitlines()) for file in (repository / "pipelines").glob("*.py")
    }
    assert "small.py" in lengths
    assert {name: length for name, length in lengths.items() if length >= 100} == {}


def test_the_wheel_is_typed_and_carries_the_pipelines_under_a_name_of_their_own(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["only-include"]) == {"capfilt", "pipelines"}
    assert wheel["sources"] == {"pipelines": "capfilt_pipelines"}
    assert (repository / "capfilt" / "py.typed").is_file()
