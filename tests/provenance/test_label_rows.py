from __future__ import annotations

import errno
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import label_writers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.errors import CapfiltError, RunFailedError
from capfilt.provenance.label_rows import (
    Label,
    Verdict,
    append_labels,
    newest_labels,
    read_every_label,
    text_digest,
)
from capfilt.provenance.rundir import RunDir

if TYPE_CHECKING:
    from pathlib import Path


def label(pair: str = "p", verdict: str = "match", who: str = "ann", when: float = 1.0) -> Label:
    return Label(pair, Verdict(verdict), who, when)


def test_labels_come_back_in_the_order_they_were_added(run: RunDir) -> None:
    assert read_every_label(run) == []
    first, second = [label("a"), label("b", "unsure")], [label("a", "mismatch", when=0.5)]
    assert (append_labels(run, first), append_labels(run, second)) == (2, 1)
    assert read_every_label(run) == [*first, *second]


@given(
    who=st.text(min_size=1, max_size=16).filter(lambda text: text.strip()),
    note=st.text(max_size=200),
    when=st.floats(0, 253402300799),
)
def test_whatever_a_person_writes_comes_back(
    tmp_path_factory: pytest.TempPathFactory, who: str, note: str, when: float
) -> None:
    run = RunDir(tmp_path_factory.mktemp("run"))
    made = Label("p", Verdict.MATCH, who, when, note=note, draw=note[:10], text_sha256="d")
    append_labels(run, [made])
    assert read_every_label(run) == [made]
    if all(not "\ud800" <= character <= "\udfff" for character in who + note):
        assert (made.who, made.note) == (who.strip(), note)


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": "maybe"},
        {"who": " \n"},
        {"who": "x" * 101},
        {"note": "x" * 2001},
        {"when": float("nan")},
        {"when": -1.0},
        {"when": 1e15},
    ],
)
def test_a_label_that_says_nothing_of_use_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(CapfiltError):
        Label(**{"pair_id": "p", "verdict": "match", "who": "ann", "when": 1.0, **changes})  # type: ignore[arg-type]


def test_the_newest_word_of_each_person_on_each_pair_counts() -> None:
    said = [
        label("a", "match", "ann", 5),
        label("a", "mismatch", "ann", 3),
        label("a", "unsure", "bob", 1),
        label("b", "match", "ann", 2),
        label("b", "undone", "ann", 2),
    ]
    assert {(one.pair_id, one.who): one.verdict for one in newest_labels(said)} == {
        ("a", "ann"): "match",
        ("a", "bob"): "unsure",
        ("b", "ann"): "undone",
    }


def test_labels_that_are_there_are_added_once_more_only_unless_asked_otherwise(run: RunDir) -> None:
    assert append_labels(run, [label("a")]) == 1
    assert append_labels(run, [label("a"), label("b"), label("b")], only_new=True) == 1
    assert append_labels(run, [label("a")]) == 1
    assert len(read_every_label(run)) == 3


def test_the_digest_of_a_text_is_that_of_its_utf8_bytes() -> None:
    # sha256sum of the three bytes abc (FIPS 180-2, appendix B.1).
    assert text_digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# -- what happens on the way


def test_a_line_that_was_cut_off_is_not_read_and_does_not_spoil_the_next(run: RunDir) -> None:
    append_labels(run, [label("a")])
    whole = run.labels_file.read_bytes()
    append_labels(run, [label("b"), label("c")])
    both = run.labels_file.read_bytes()
    for end in range(len(whole), len(both)):
        run.labels_file.write_bytes(both[:end])
        assert read_every_label(run) == [label("a")]
    append_labels(run, [label("d")])
    assert read_every_label(run) == [label("a"), label("d")]


def test_a_cut_line_longer_than_a_block_is_taken_away(run: RunDir) -> None:
    append_labels(run, [label("a")])
    with run.labels_file.open("ab") as file:
        file.write(b"x" * 200_000)
    append_labels(run, [label("b")])
    assert read_every_label(run) == [label("a"), label("b")]


def test_a_damaged_line_is_named(run: RunDir) -> None:
    append_labels(run, [label("a")])
    for damage in (b"{}\n", b"[1]\n", b'[{"pair_id": "a"}]\n', b"\xff\n"):
        whole = run.labels_file.read_bytes()
        run.labels_file.write_bytes(whole + damage)
        with pytest.raises(CapfiltError) as found:
            read_every_label(run)
        assert found.value.what.startswith("line 2 of ")
        run.labels_file.write_bytes(whole)


def test_a_full_disk_leaves_what_was_there(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    append_labels(run, [label("a")])
    before = run.labels_file.read_bytes()
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(RunFailedError, match="full"):
        append_labels(run, [label("b")])
    assert run.labels_file.read_bytes() == before


def test_two_processes_at_once_lose_nothing_and_mix_no_call(run: RunDir) -> None:
    names = ("ann", "bob", "eve")
    processes = [label_writers.start(who, run.path, 60, 5, 300) for who in names]
    while any(process.poll() is None for process in processes):
        assert len(read_every_label(run)) % 5 == 0  # what is read meanwhile is whole
    assert [process.wait() for process in processes] == [0, 0, 0]
    found = read_every_label(run)
    for who in names:
        mine = [one for one in found if one.who == who]
        assert mine == [one for call in range(60) for one in label_writers.one_call(who, call, 5, 300)]
    calls = [found[first : first + 5] for first in range(0, len(found), 5)]
    assert all(len({(one.who, one.when) for one in call}) == 1 for call in calls)


def test_a_process_killed_at_any_moment_leaves_whole_calls_alone(tmp_path: Path) -> None:
    chance = random.Random(0)
    for number in range(6):
        run = RunDir(tmp_path / str(number))
        process = label_writers.start("ann", run.path, 100_000, 20, 2000)
        time.sleep(chance.uniform(0.05, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = read_every_label(run)
        calls = range(len(found) // 20)
        assert found == [one for call in calls for one in label_writers.one_call("ann", call, 20, 2000)]
        append_labels(run, [label("after")])
        assert read_every_label(run) == [*found, label("after")]
    assert found
