from __future__ import annotations

import os
import shlex
import shutil
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capfilt.cli.output import next_step
from capfilt.shell import shell_line, shell_word

BASH = shutil.which("bash")
# A file's name may hold any character but these, and any byte that is not UTF-8.
names = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))
bytes_of_names = st.binary().map(lambda name: os.fsdecode(name.replace(b"\0", b"")))


def read_by_bash(line: str) -> list[bytes]:
    """The words of a command as bash takes them, in the plainest locale."""
    assert BASH is not None
    say = """shift; for word; do printf '%s\\0' "$word"; done"""
    script = f"capfilt() {{ {say}; }}\n{line}\n"
    done = subprocess.run([BASH], input=script.encode(), capture_output=True, check=True, env={"LC_ALL": "C"})
    assert done.stderr == b""
    return done.stdout.split(b"\0")[:-1]


@pytest.mark.skipif(BASH is None, reason="there is no bash")
@settings(max_examples=60)
@given(words=st.lists(names | bytes_of_names, max_size=4))
@example(words=["run\x1b]0;owned\x07", "a\u202egpj.exe", "it's", "a\nb", "\x1b1", "\\x41", "$(id)", "-"])
@example(words=["\u200bz", "\x7f", "\x9b2J", "\udcff", "\u3000", "~", "*", "", "$'a'", "!"])
def test_bash_reads_back_every_word_of_a_printed_command(words: list[str]) -> None:
    line = next_step("inspect", *words)
    assert line.isprintable()
    assert read_by_bash(line) == [os.fsencode(word) for word in words]


@given(st.lists(st.text()))
def test_a_line_has_nothing_that_a_terminal_obeys_or_a_reader_does_not_see(words: list[str]) -> None:
    assert shell_line(words).isprintable()


@given(st.text().filter(str.isprintable))
def test_a_word_that_is_seen_whole_is_quoted_as_ever(word: str) -> None:
    assert shell_word(word) == shlex.quote(word)


def test_what_is_not_to_be_seen_is_escaped_and_the_rest_can_be_read() -> None:
    assert shell_word("run\x1b[2J's") == r"$'run\x1b[2J\'s'"
    assert shell_word("a\u202eb") == r"$'a\xe2\x80\xaeb'"
    assert shell_line(["capfilt", "inspect", "a b"]) == "capfilt inspect 'a b'"
