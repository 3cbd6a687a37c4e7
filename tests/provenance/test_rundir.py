from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from pathlib import Path

import provenance_rows as made
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.errors import CapfiltError
from capfilt.provenance.differences import differences
from capfilt.provenance.rundir import (
    RunDir,
    StageRecord,
    hold,
    lock,
    next_start,
    record_run,
    recorded_facts,
    save_stage,
    shard_file,
    stage_rows,
)

# -- what a folder is


def test_a_run_is_opened_where_its_record_is(run: RunDir) -> None:
    record_run(run, {"seed": 1})
    assert RunDir.open(run.path).run_file == run.path / "run.json"


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ([], "the folder is empty"),
        (["00000.tar", "00001.tar"], "a folder of shards (2 .tar files)"),
        (["capfilt.json", "weights.safetensors"], "a bundle"),
        (["holiday.jpg"], "holds no run.json"),
    ],
)
def test_a_folder_that_is_no_run_is_refused_with_what_it_is(
    tmp_path: Path, names: list[str], what: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(CapfiltError) as refused:
        RunDir.open(tmp_path)
    assert what in refused.value.what
    assert "capfilt bootstrap" in refused.value.fix


def test_a_missing_folder_and_a_file_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match="no such folder"):
        RunDir.open(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(CapfiltError, match="it is a file"):
        RunDir.open(tmp_path / "file")
    with pytest.raises(CapfiltError, match="it is a file"):
        RunDir.create(tmp_path / "file")


def test_a_run_is_not_made_among_other_things(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").touch()
    with pytest.raises(CapfiltError, match="folder of shards"):
        RunDir.create(tmp_path)


def test_a_start_killed_before_its_first_record_can_be_repeated(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    with lock(run):
        pass
    (tmp_path / ".partial-run.json.1").touch()
    assert RunDir.create(tmp_path).path == tmp_path


# -- names from the web


@given(st.text(), st.integers(0, 10**7))
def test_no_name_of_a_shard_leaves_its_folder(name: str, ordinal: int) -> None:
    stem = shard_file(made.shard(ordinal, name))
    assert stem.startswith(f"{ordinal:06d}-")
    assert len(stem) <= 100
    assert set(stem) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert Path("folder", stem).parent == Path("folder")


def test_a_plain_name_of_a_shard_can_be_read_in_its_files() -> None:
    assert shard_file(made.shard(7, "cc3m/train_00007")) == "000007-cc3m_train_00007"


# -- the lock


def test_a_second_process_is_refused_with_the_name_of_the_first(run: RunDir) -> None:
    holder = made.start("hold", run.path)
    try:
        with pytest.raises(CapfiltError, match=f"in use by process {holder.pid} ") as refused, lock(run):
            pass
        assert "provenance_rows.py" in refused.value.what
        assert "another --out" in refused.value.fix
    finally:
        holder.kill()
        holder.wait()


def test_a_killed_process_does_not_hold_the_lock(run: RunDir) -> None:
    holder = made.start("hold", run.path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads(run.lock_file.read_text())["pid"] == holder.pid
    with lock(run):
        assert json.loads(run.lock_file.read_text())["pid"] == os.getpid()


def test_a_spawned_child_does_not_inherit_the_lock(run: RunDir) -> None:
    with lock(run):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with lock(run):
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_a_lock_whose_file_goes_with_its_last_holder_is_not_held_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, flock = tmp_path / "work" / "lock", fcntl.flock

    def after_the_holder_has_gone(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        file.unlink()  # what was opened a moment ago is no longer the file of that name
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", after_the_holder_has_gone)
    with hold(file, tmp_path):
        assert file.exists()
        with pytest.raises(CapfiltError, match=f"in use by process {os.getpid()}"), hold(file, tmp_path):
            pass
    with hold(file, tmp_path):
        pass


def test_the_lock_is_free_after_an_error_inside(run: RunDir) -> None:
    with pytest.raises(ZeroDivisionError), lock(run):
        1 / 0  # noqa: B018
    with lock(run):
        pass


# -- what the rows depend on

FACTS = {
    "decoding": {"top_p": 0.9, "min_tokens": 5},
    "shards": [{"name": f"shard-{i}", "size": i} for i in range(10)],
    "seed": 0,
}


def test_the_same_facts_go_on_and_leave_the_record_alone(run: RunDir) -> None:
    first = record_run(run, FACTS, settings={"seed": 0}, command=["capfilt", "bootstrap"])
    before = run.run_file.read_bytes()
    assert record_run(run, FACTS, settings={"seed": 0, "workers": 4}) == first
    assert run.run_file.read_bytes() == before
    assert recorded_facts(run) == FACTS


def test_other_facts_are_refused_line_by_line_with_two_ways_on(run: RunDir) -> None:
    record_run(run, FACTS)
    shards = [{"name": f"shard-{i}", "size": i} for i in range(1, 13)]
    shards[0]["size"] = 99
    with pytest.raises(CapfiltError) as refused:
        record_run(run, {"decoding": {"top_p": 0.8, "min_tokens": 5}, "shards": shards, "precision": "bf16"})
    assert [line.strip() for line in refused.value.what.splitlines()[1:]] == [
        "decoding.top_p: 0.9 -> 0.8",
        "1 shards changed: shard-1",
        "1 shards removed: shard-0",
        "3 shards added: shard-10, shard-11, shard-12",
        "seed: 0 -> nothing",
        "precision: nothing -> bf16",
    ]
    assert "recorded values" in refused.value.fix
    assert "another --out" in refused.value.fix


def test_a_reordered_list_and_many_changed_keys_are_one_line_each() -> None:
    names = [f"a-long-name-of-a-shard-{i}" for i in range(100)]
    assert differences(names, names[::-1], "shards") == [
        "shards: the same 100 items, in another order or number"
    ]
    old, new = ({f"{i:02d}": value for i in range(50)} for value in ("x", "y"))
    assert differences(old, new, "shards") == ["50 shards changed: 00, 01, 02, ..."]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(json_values, json_values)
def test_differences_are_said_exactly_where_values_differ_and_hold_no_escapes(
    old: object, new: object
) -> None:
    lines = differences(old, new, "facts")
    assert bool(lines) == (old != new)
    assert all(line.isprintable() for line in lines)


def test_a_damaged_record_is_an_error_with_its_mend(run: RunDir) -> None:
    run.run_file.write_text("{")
    with pytest.raises(CapfiltError, match=r"run\.json is damaged"):
        record_run(run, FACTS)


# -- stages


def test_a_stage_is_rewritten_when_it_ends_with_its_rate(run: RunDir) -> None:
    record = StageRecord("recaption_and_score", next_start(run), started=100.0)
    save_stage(run, record)
    assert [row["status"] for row in stage_rows(run)] == ["running"]
    save_stage(run, record.finished("done", ended=110.0, count=50))
    (row,) = stage_rows(run)
    assert (row["status"], row["count"], row["per_second"]) == ("done", 50, 5.0)


def test_a_stage_that_an_older_start_left_running_was_interrupted(run: RunDir) -> None:
    assert next_start(run) == 1
    save_stage(run, StageRecord("train_filter", 1, started=1.0))
    assert next_start(run) == 2
    save_stage(run, StageRecord("train_filter", 2, started=2.0))
    assert [(row["start"], row["status"]) for row in stage_rows(run)] == [(1, "interrupted"), (2, "running")]
