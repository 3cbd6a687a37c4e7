"""SIGKILL at moments spread over a run: what comes out is what an undisturbed run makes, to the byte."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from whole_runs import bootstrap, capfilt, finish, given, kill_when, lasting, sql, start

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from whole_runs import Trained


def _moments(run: Path) -> dict[str, Callable[[], bool]]:
    """Moments of a run in their order, by what can be seen of it on the disk."""
    models, provenance = run / "models", run / "provenance"

    def stands(path: Path) -> bool:
        return path.exists()

    return {
        "train_joint": lambda: stands(run / "training" / "joint" / "checkpoint.pt"),
        # The joint model is there, and one of the two that start from it is on its way.
        "train_captioner_and_filter": lambda: (
            stands(run / "training" / "filter" / "checkpoint.pt")
            or stands(run / "training" / "captioner" / "checkpoint.pt")
        ),
        "train_captioner_and_filter, one is done": lambda: (
            stands(models / "captioner") or stands(models / "filter")
        ),
        "recaption_and_score": lambda: any(provenance.glob("manifests/00000[1-4]-*.json")),
        "export": lambda: any(provenance.glob("stages/*-export.json")),
    }


@pytest.mark.slow
def test_a_run_killed_at_five_moments_ends_with_the_bytes_of_an_undisturbed_one(
    undisturbed: Trained, drawn: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = bootstrap(drawn, run)
    for number, (name, moment) in enumerate(_moments(run).items(), start=1):
        process = start(*words)
        kill_when(process, moment)
        stage = name.partition(",")[0]
        rows = sql(run, f"SELECT stage, status FROM stages WHERE start = {number} ORDER BY started")
        assert rows[-1] == (stage, "running"), f"it was not killed in {stage}, but stood at {rows}"

    code, _, err = finish(*words)

    assert code == 0, err
    expected = lasting(undisturbed.path)
    assert len(expected) > 6 * 3 + 10
    assert lasting(run) == expected
    # Every start before the last was interrupted, and nothing is left of any.
    assert sql(run, "SELECT count(*) FROM stages WHERE status = 'interrupted'") == [(5,)]
    assert not list(run.rglob(".partial-*"))
    assert not list(run.rglob("checkpoint.pt"))
    metrics = "SELECT model, phase, step, split, name, value FROM metrics ORDER BY ALL"
    assert sql(run, metrics) == sql(undisturbed.path, metrics)


@pytest.mark.slow
def test_a_second_process_on_the_same_run_is_refused_and_a_dead_one_holds_nothing(
    undisturbed: Trained, drawn: Path, tmp_path: Path
) -> None:
    words = given(drawn, tmp_path / "run", undisturbed.path / "models", "--workers", "1")
    first = start(*words)
    lock = tmp_path / "run" / "run.lock"
    refused = []

    def is_held() -> bool:
        if not (lock.exists() and str(first.pid) in lock.read_text()):
            return False
        refused.append(capfilt(*words))
        return True

    kill_when(first, is_held)

    assert [ended.code for ended in refused] == [2]
    assert f"in use by process {first.pid}" in refused[0].err
    assert "another --out" in refused[0].err
    again = capfilt(*words)
    assert again.code == 0, again.err
    assert sql(tmp_path / "run", "SELECT count(*) FROM samples") == [(90,)]


def test_a_killed_process_is_named_by_its_signal() -> None:
    """The tests above say nothing if what they kill ends by itself."""
    process = subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    kill_when(process, lambda: True)

    assert process.returncode == -9
