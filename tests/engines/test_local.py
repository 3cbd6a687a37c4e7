from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pieces_of_work as work
import pytest

from capfilt.engines import local
from capfilt.engines.local import LocalEngine
from capfilt.errors import CapfiltError, RunFailedError


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    """One engine for all: its workers are forked from one server, which imports the models once."""
    return LocalEngine()


def test_results_do_not_depend_on_how_many_workers_there_are(engine: LocalEngine) -> None:
    # The first item takes longest, so that results come in another order than items went.
    items = [(7, 1.5), (2, 0.0), (5, 0.1), (3, 0.0), (4, 0.0)]
    found = {}
    for devices in (["cpu"], ["cpu", "cpu:1"], ["cpu"] * 9):
        came = list(engine.run(work.square, items, devices=devices, threads=1))
        found[len(devices)] = {number: result[0] for number, result in came}
        assert len(came) == len(items)
        assert {device for _, (_, device) in came} <= set(devices)
        if len(devices) == 2:
            assert [number for number, _ in came] != [0, 1, 2, 3, 4]

    assert found[1] == found[2] == found[9] == {0: 49, 1: 4, 2: 25, 3: 9, 4: 16}


def test_what_workers_say_is_heard_with_the_number_of_their_item(engine: LocalEngine) -> None:
    heard: list[tuple[int, int, int]] = []

    results = list(
        engine.run(
            work.square,
            [(7, 0.0), (2, 0.0)],
            devices=["cpu", "cpu"],
            threads=1,
            hear=lambda number, done, total: heard.append((number, done, total)),
        )
    )

    assert sorted(heard) == [(0, 0, 7), (0, 7, 7), (1, 0, 2), (1, 2, 2)]
    assert len(results) == 2


def test_workers_have_the_threads_they_were_given_and_keep_from_item_to_item(engine: LocalEngine) -> None:
    [three] = {count for _, (count, _, _) in engine.run(work.threads, [0], devices=["cpu"], threads=3)}
    found = [result for _, result in engine.run(work.threads, [0, 1, 2], devices=["cpu"], threads=1)]

    assert three == 3
    assert {count for count, _, _ in found} == {1}
    assert len({pid for _, pid, _ in found}) == 1
    assert found[0][1] != os.getpid()
    assert {parallelism for _, _, parallelism in found} == {"false"}


def test_nothing_to_do_starts_nobody(engine: LocalEngine) -> None:
    assert list(engine.run(work.fail, [], devices=["cpu"], threads=1)) == []


@pytest.mark.parametrize(
    ("item", "kind", "what", "fix"),
    [
        ("wrong", CapfiltError, "the shard is gone", "put it back"),
        ("failed", RunFailedError, "the disk is full", "free some space"),
    ],
)
def test_a_users_error_in_a_worker_comes_through_with_its_mend(
    engine: LocalEngine, item: str, kind: type[CapfiltError], what: str, fix: str
) -> None:
    with pytest.raises(CapfiltError) as caught:
        list(engine.run(work.fail, [item], devices=["cpu"], threads=1))

    assert type(caught.value) is kind
    assert (caught.value.what, caught.value.fix) == (what, fix)


def test_a_defect_in_a_worker_comes_through_with_the_place_where_it_happened(engine: LocalEngine) -> None:
    with pytest.raises(ZeroDivisionError, match="a defect of ours") as caught:
        list(engine.run(work.fail, ["defect"], devices=["cpu"], threads=1))

    assert "pieces_of_work.py" in "".join(caught.value.__notes__)


def test_an_error_that_cannot_be_sent_is_told_in_words(engine: LocalEngine) -> None:
    with pytest.raises(RuntimeError, match="NotPortable: of a library"):
        list(engine.run(work.fail, ["not portable"], devices=["cpu"], threads=1))


@pytest.mark.parametrize(("item", "code"), [("killed", -9), ("left", 3)])
def test_a_worker_that_dies_ends_the_run_with_an_error_and_takes_the_others_along(
    engine: LocalEngine, item: str, code: int
) -> None:
    began = time.monotonic()

    with pytest.raises(RunFailedError, match=f"exit code {code}") as caught:
        list(engine.run(work.fail, ["slow", item], devices=["cpu", "cpu"], threads=1))

    assert ("want of memory" in caught.value.what) == (code == -9)
    assert "same command again" in caught.value.fix
    assert time.monotonic() - began < 30


def test_workers_end_when_whoever_listens_has_heard_enough(engine: LocalEngine) -> None:
    results = engine.run(work.threads, list(range(4)), devices=["cpu"], threads=1)
    _, (_, worker, _) = next(results)

    results.close()

    assert _ends(worker)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    """Neither a worker nor the server that forked it may outlive a killed run."""
    parent = subprocess.Popen(
        [sys.executable, work.__file__, str(tmp_path)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        workers = [_number_in(tmp_path / name) for name in ("one", "two")]
        family = _session(parent.pid)
        assert {parent.pid, *workers} < family, "nobody forked the workers"
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        for process in family:
            assert _ends(process), f"process {process} outlives the run"
    finally:
        for process in _session(parent.pid):
            os.kill(process, signal.SIGKILL)


def test_what_is_loaded_beforehand_exists() -> None:
    """A module that cannot be imported is passed over in silence, and every worker then starts slowly."""
    import importlib.util

    assert all(importlib.util.find_spec(name) for name in local.PRELOADED)


def _number_in(path: Path) -> int:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()):
            return int(text)
        time.sleep(0.05)
    raise TimeoutError(path)


def _session(leader: int) -> set[int]:
    """Process ids of a session that have not ended, from /proc."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


def _ends(process: int) -> bool:
    """Whether a process ends within some seconds; a zombie has ended."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False
