"""Pre-trainings that are killed, and such as several processes do together, started as users start them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from whole_runs import MOST_SECONDS, finish, kill_when, start

from capfilt.models.bundle import load_bundle
from capfilt.models.cards import read_card

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS: dict[str, Any] = {
    "model.images.size_px": 16,
    "model.vision.width": 16,
    "model.vision.layers": 1,
    "model.vision.heads": 2,
    "model.vision.stem": "patch",
    "model.text.width": 16,
    "model.text.layers": 1,
    "model.text.heads": 2,
    "model.text.feed_forward": 32,
    "model.text.vocabulary": 120,
    "model.text.dropout": 0,
    "model.embed": 8,
    "pretrain.checkpoint_every": 3,
    "pretrain.validate_every": 20,
    "pretrain.phases.0.steps": 60,
    "pretrain.phases.0.batch_size": 12,
    "pretrain.phases.0.momentum": 0.9,
    "pretrain.phases.0.queue": 31,
    "pretrain.phases.0.alpha": 0.4,
    "pretrain.augment.flip": 0.5,
    "pretrain.augment.operations": 2,
    "stream.web": 1.7,
}
"""Pipeline `small`, tiny, with all that has a state: momentum encoder, queue, passes that end anywhere."""
_KEYS = ("qkv.bias", "key_value.bias")
"""A bias of keys changes no attention: its gradient is rounding, of which AdamW makes whole steps."""


def pretrain(drawn: Path, out: Path, **changes: Any) -> list[str]:
    """Words of the command; `changes` are settings, with `__` for a dot."""
    chosen = {**SETTINGS, **{name.replace("__", "."): value for name, value in changes.items()}}
    words = ["pretrain", drawn / "web", "--clean", drawn / "clean", "--out", out, "--pipeline", "small"]
    sets = [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]
    return [str(word) for word in (*words, "--device", "cpu", *sets)]


def measured(out: Path) -> list[tuple[Any, ...]]:
    """The rows of a training, without their times."""
    rows = json.loads((out / "metrics.json").read_text())
    return [(row["phase"], row["step"], row["split"], row["name"], row["value"]) for row in rows]


@pytest.fixture(scope="module")
def alone(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that one process pre-trained, undisturbed."""
    out = tmp_path_factory.mktemp("alone") / "joint"
    code, _, err = finish(*pretrain(drawn, out))
    assert code == 0, err
    return out


@pytest.mark.slow
def test_a_killed_pre_training_ends_with_the_weights_of_an_undisturbed_one(
    drawn: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "joint"
    checkpoint = tmp_path / ".joint.training" / "joint.pt"
    steps = []
    for least in (3, 24):  # once after the first checkpoint, once in the middle

        def is_there(least: int = least) -> bool:
            step = torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else 0
            steps.append(step)
            return bool(step >= least)

        kill_when(start(*pretrain(drawn, out)), is_there)
        assert steps[-1] < 60
        assert not out.exists()

    code, _, err = finish(*pretrain(drawn, out))

    assert code == 0, err
    assert read_card(out).weights == read_card(alone).weights
    assert measured(out) == measured(alone)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["joint"]


@dataclass(frozen=True)
class Launched:
    """What torchrun came to."""

    code: int
    out: str
    err: str


def torchrun(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [*command, "-m", "capfilt", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_of_which_one_was_killed_end_with_the_weights_of_one_process(
    drawn: Path, alone: Path, tmp_path: Path
) -> None:
    out, work = tmp_path / "joint", tmp_path / ".joint.training"
    words = pretrain(drawn, out, compute__processes=2)
    first = torchrun(words)
    try:
        while not (work / "joint.pt").exists():
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.02)
        leader = json.loads((work / "lock").read_text())["pid"]
        os.kill(leader, signal.SIGKILL)
        first.communicate(timeout=MOST_SECONDS)
    finally:
        first.kill()
    assert first.returncode not in (0, None), "the other went on alone"
    assert not out.exists()
    stopped_at = torch.load(work / "joint.pt", weights_only=True)["step"]
    assert 0 < stopped_at < 60

    again = torchrun(words)
    said, err = again.communicate(timeout=MOST_SECONDS)

    assert again.returncode == 0, err
    # One of them writes and speaks.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["joint"]
    assert len([line for line in said.splitlines() if line.startswith("joint ")]) == 1
    assert len([line for line in said.splitlines() if line.startswith("capfilt bootstrap")]) == 1
    assert len([line for line in err.splitlines() if "pairs in a pass" in line]) == 1
    assert len([line for line in err.splitlines() if "pretrain: done" in line]) == 1
    card = read_card(out)
    assert card.training["processes"] == 2
    assert card.vocabulary == read_card(alone).vocabulary
    expected = load_bundle(alone).model.state_dict()
    found = load_bundle(out).model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if not name.endswith(_KEYS):
            # In single precision 60 steps of AdamW make this much of rounding; in double precision the two
            # are compared in tests/training/test_parallel.py.
            torch.testing.assert_close(
                tensor, expected[name], atol=1e-4, rtol=0, msg=lambda words, of=name: f"{of}: {words}"
            )
    mine, theirs = measured(out), measured(alone)
    assert [row[:4] for row in mine] == [row[:4] for row in theirs]
    for (*what, value), (*_, other) in zip(mine, theirs, strict=True):
        assert value == pytest.approx(other, rel=1e-3, abs=1e-4), what
